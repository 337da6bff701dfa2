//! The stacks on which CUDA threads run: kept from launch to launch, and bounded in this process.

use super::ffi::{self, RawWorker};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Stacks of this process. Each is two mappings of memory, itself and its guard page, and Linux gives a
/// process 65,530 (`vm.max_map_count`): the rest is for everything else. The largest cluster needs 8192.
const STACKS: u32 = 24_000;

/// Stacks that launches which wait for other ranks may hold together. The rest is enough for the largest
/// cluster: launches of other kernels always come to their end, however long these wait.
const PEER_STACKS: u32 = STACKS - 8192;

/// How long such a launch waits for the stacks that others of its kind hold. They may be those of its own
/// peers, which wait for it.
const PEER_PATIENCE: Duration = Duration::from_secs(10);

struct Pool {
    idle: Vec<Stacks>,
    /// Stacks of all workers, idle ones included.
    reserved: u32,
    /// Stacks in use by launches that wait for other ranks.
    of_peers: u32,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { idle: Vec::new(), reserved: 0, of_peers: 0 });
static RETURNED: Condvar = Condvar::new();

/// A worker of the emulated device, and the most stacks it may have.
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
    /// At least `count` stacks, of an idle worker at most `most`; none where others hold too many.
    fn reserve(&mut self, count: u32, most: u32) -> Option<Stacks> {
        if let Some(fit) = self.idle.iter().position(|stacks| (count..=most).contains(&stacks.count)) {
            return Some(self.idle.swap_remove(fit));
        }
        while self.reserved + count > STACKS {
            self.reserved -= self.idle.pop()?.count;
        }
        self.reserved += count;
        // SAFETY: takes nothing.
        Some(Stacks { raw: unsafe { ffi::lmhead_emulated_open_worker() }, count })
    }

    /// `count` stacks for each of `workers`, all at once; none where others hold too many. (An idle worker of
    /// more stacks stays idle: it would count for more than it is used for.)
    fn reserve_for_peers(&mut self, workers: u32, count: u32) -> Option<Vec<Stacks>> {
        let mut taken = Vec::new();
        for _ in 0..workers {
            match self.reserve(count, count) {
                Some(stacks) => taken.push(stacks),
                None => {
                    self.idle.extend(taken);
                    return None;
                }
            }
        }
        self.of_peers += workers * count;
        Some(taken)
    }
}

/// Stacks for the threads of one cluster at a time; back in the pool when dropped.
pub struct Worker {
    stacks: Option<Stacks>,
    /// It belongs to a launch that waits for other ranks.
    of_peers: bool,
}

impl Worker {
    /// Waits until other launches leave room. Whoever holds a worker runs clusters without wanting another,
    /// so that ends.
    pub fn take(count: u32) -> Self {
        let mut pool = pool();
        loop {
            if let Some(stacks) = pool.reserve(count, u32::MAX) {
                return Worker { stacks: Some(stacks), of_peers: false };
            }
            pool = RETURNED.wait(pool).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A worker for each of a launch's clusters, which all run at the same time.
    ///
    /// # Errors
    /// Where that is more than such launches may have, or others of them hold it and do not end in time.
    pub fn take_for_peers(clusters: u64, count: u32) -> Result<Vec<Self>, String> {
        let deadline = Instant::now() + PEER_PATIENCE;
        let wanted = clusters.saturating_mul(u64::from(count));
        let mut pool = pool();
        loop {
            if wanted.saturating_add(pool.of_peers.into()) > u64::from(PEER_STACKS) {
                if wanted > u64::from(PEER_STACKS) || Instant::now() >= deadline {
                    return Err(format!(
                        "threads: kernels that wait for other ranks can have {PEER_STACKS} together, and {} \
                         are in use; wanted {wanted} more; use fewer blocks, or fewer ranks in one process",
                        pool.of_peers
                    ));
                }
            } else if let Some(all) = pool.reserve_for_peers(clusters as u32, count) {
                return Ok(all
                    .into_iter()
                    .map(|stacks| Worker { stacks: Some(stacks), of_peers: true })
                    .collect());
            }
            let woken = RETURNED.wait_timeout(pool, Duration::from_millis(100));
            pool = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn raw(&self) -> *mut RawWorker {
        self.stacks.as_ref().expect("there until dropped").raw
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let mut pool = pool();
        if let Some(stacks) = self.stacks.take() {
            pool.of_peers -= if self.of_peers { stacks.count } else { 0 };
            pool.idle.push(stacks);
        }
        drop(pool);
        RETURNED.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_bounded_and_idle_ones_make_room() {
        let most = u32::MAX;
        let mut pool = Pool { idle: Vec::new(), reserved: 0, of_peers: 0 };
        let mut held: Vec<_> = (0..2).map(|_| pool.reserve(8192, most).expect("room")).collect();
        assert!(pool.reserve(8192, most).is_none(), "24,576 are too many");
        let small = pool.reserve(128, most).expect("room");
        pool.idle.push(small);
        pool.idle.extend(held.pop());
        assert_eq!(pool.reserve(64, most).expect("an idle one").count, 128);
        assert_eq!(pool.reserve(8000, most).expect("an idle one").count, 8192);
        assert_eq!(pool.reserved, 2 * 8192 + 128);
    }

    #[test]
    fn launches_that_wait_for_peers_take_all_their_stacks_or_none() {
        let mut pool = Pool { idle: Vec::new(), reserved: 0, of_peers: 0 };
        let large = pool.reserve(8192, u32::MAX).expect("room");
        pool.idle.push(large);
        let taken = pool.reserve_for_peers(3, 512).expect("room");
        assert_eq!(taken.iter().map(|stacks| stacks.count).collect::<Vec<_>>(), [512; 3]);
        assert_eq!((pool.idle.len(), pool.of_peers), (1, 3 * 512));
        assert!(pool.reserve_for_peers(50, 512).is_none(), "27,136 are too many");
        assert_eq!(pool.of_peers, 3 * 512);
        assert!(pool.reserved <= STACKS);
        let error = Worker::take_for_peers(u64::MAX, 32).err().expect("too many");
        assert!(error.contains("15808 together"), "{error}");
    }
}
