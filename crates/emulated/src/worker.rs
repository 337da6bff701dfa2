//! The stacks on which CUDA threads run: kept from launch to launch, and bounded in this process.

use super::ffi::{self, RawWorker};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Stacks of this process. Each is two mappings of memory, itself and its guard page, and Linux gives a
/// process 65,530 (`vm.max_map_count`): the rest is for everything else. The largest cluster needs 8192.
const STACKS: u32 = 24_000;

struct Pool {
    idle: Vec<Stacks>,
    /// Stacks of all workers, idle ones included.
    reserved: u32,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: Vec::new(), reserved: 0 });
static RETURNED: Condvar = Condvar::new();

/// The driver's own worker and how many stacks it may come to have.
struct Stacks {
    raw: *mut RawWorker,
    count: u32,
}

// SAFETY: nothing in it belongs to one OS thread.
unsafe impl Send for Stacks {}

impl Drop for Stacks {
    fn drop(&mut self) {
        // SAFETY: opened by `Pool::reserve`, closed once.
        unsafe { ffi::lmhead_emulated_close_worker(self.raw) }
    }
}

/// Ignores poison: a panic while the lock was held left nothing half done.
fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// None where others hold too many stacks.
    fn reserve(&mut self, count: u32) -> Option<Stacks> {
        if let Some(fit) = self.idle.iter().position(|stacks| stacks.count >= count) {
            return Some(self.idle.swap_remove(fit));
        }
        while self.reserved + count > STACKS {
            self.reserved -= self.idle.pop()?.count;
        }
        self.reserved += count;
        // SAFETY: takes nothing.
        Some(Stacks { raw: unsafe { ffi::lmhead_emulated_open_worker() }, count })
    }
}

/// Stacks for the threads of one cluster at a time; back in the pool when dropped.
pub struct Worker(Option<Stacks>);

impl Worker {
    /// Waits until other launches leave room. Whoever holds a worker runs clusters without wanting another,
    /// so that ends.
    pub fn take(count: u32) -> Self {
        let mut pool = pool();
        loop {
            if let Some(stacks) = pool.reserve(count) {
                return Worker(Some(stacks));
            }
            pool = RETURNED.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub fn raw(&self) -> *mut RawWorker {
        self.0.as_ref().expect("there until dropped").raw
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        pool().idle.extend(self.0.take());
        RETURNED.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_bounded_and_idle_ones_make_room() {
        let mut pool = Pool { idle: Vec::new(), reserved: 0 };
        let mut held: Vec<_> = (0..2).map(|_| pool.reserve(8192).expect("room")).collect();
        assert!(pool.reserve(8192).is_none(), "24,576 are too many");
        let small = pool.reserve(128).expect("room");
        pool.idle.push(small);
        pool.idle.extend(held.pop());
        assert_eq!(pool.reserve(64).expect("an idle one").count, 128);
        assert_eq!(pool.reserve(8000).expect("an idle one").count, 8192);
        assert_eq!(pool.reserved, 2 * 8192 + 128);
    }
}
