//! The thread pool of the CPU backend, and the only way into it.
//!
//! rayon's own `install` sends a task through a queue that allocates a block for every 63 tasks. A step
//! allocates nothing, so tasks come in another way: one thread of the pool, the driver, waits for callers
//! outside of rayon and runs their tasks. All other threads take their share from it, as rayon's workers do.

use crate::error::{Error, Result};
use crate::process::Maker;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

/// Callers that can wait at once before the queue of their tasks must grow.
const CALLERS: usize = 256;

/// Threads that compute, shared by all ranks of a process.
#[derive(Debug)]
pub(super) struct Pool {
    /// `None` within `drop` only.
    threads: Option<rayon::ThreadPool>,
    tasks: Arc<PoolTasks>,
    maker: Maker,
}

impl Pool {
    /// A pool whose threads all run when it is returned.
    pub(super) fn new(threads: usize) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("lmhead-cpu-{i}"))
            .build()
            .map_err(|problem| {
                Error::unsupported(
                    "thread pool of the CPU backend",
                    format!("{threads} threads"),
                    problem,
                    "ask for fewer threads",
                )
            })?;
        let tasks = Arc::new(PoolTasks::new());
        let driver = Arc::clone(&tasks);
        pool.spawn(move || driver.drive());
        let pool = Pool { threads: Some(pool), tasks, maker: Maker::here() };
        // A thread allocates when it starts, which must not happen in somebody's step.
        pool.install(|| rayon::broadcast(|_| ()))?;
        Ok(pool)
    }

    fn threads(&self) -> &rayon::ThreadPool {
        self.threads.as_ref().expect("taken by drop alone")
    }

    /// Threads of the pool.
    pub(super) fn size(&self) -> usize {
        self.threads().current_num_threads()
    }

    /// Refuses a process that was forked from the one that made the pool: its threads are not there, and work
    /// given to them would never end.
    ///
    /// # Errors
    /// `Unsupported`.
    pub(super) fn check(&self) -> Result<()> {
        self.maker.check("the CPU backend")
    }

    /// Runs `work` on the pool and waits for it; on a thread of the pool, runs it there. A panic of `work`
    /// goes on in the caller. Allocates nothing. Tasks of several callers run side by side where they wait
    /// together, so `work` must not wait for another caller's.
    ///
    /// The caller may be a worker of another rayon pool. It waits outside of rayon: inside, it would take up
    /// other tasks of its own pool meanwhile. Where the ranks of a group are such tasks, the worker would
    /// start a second rank in the middle of the first one's step, and that one waits for the first for ever.
    ///
    /// # Errors
    /// As [`Pool::check`].
    pub(super) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R> {
        self.check()?;
        if self.threads().current_thread_index().is_some() {
            return Ok(work());
        }
        let mut work = Some(work);
        let mut result = None;
        self.tasks.run(&mut || {
            let work = work.take().expect("a task runs once");
            result = Some(catch_unwind(AssertUnwindSafe(work)));
        });
        let result: thread::Result<R> = result.expect("a task that is done");
        Ok(result.unwrap_or_else(|panic| resume_unwind(panic)))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.maker.is_here() {
            self.tasks.close();
        } else {
            // In a forked child there are no threads to end, and one of them may hold a lock of the pool.
            std::mem::forget(self.threads.take());
        }
    }
}

/// The tasks of callers that wait.
#[derive(Debug)]
struct PoolTasks {
    queue: Mutex<Queue>,
    /// A task has come, or the queue is closed.
    changed: Condvar,
}

#[derive(Debug)]
struct Queue {
    waiting: VecDeque<PoolTask>,
    is_closed: bool,
}

/// A caller's task: it lives on the stack of that caller, who waits until it is done.
struct PoolTask {
    /// Does not unwind.
    work: *mut (dyn FnMut() + Send),
    is_done: *const AtomicBool,
    caller: Thread,
}

// SAFETY: `work` may be called on another thread, `is_done` is shared, and the caller touches neither before
// the task is done.
#[allow(unsafe_code, reason = "pointers to what another thread's stack holds")]
unsafe impl Send for PoolTask {}

impl std::fmt::Debug for PoolTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PoolTask of {:?}", self.caller.id())
    }
}

impl PoolTask {
    #[allow(unsafe_code, reason = "what a caller lends for as long as it waits")]
    fn run(self) {
        // SAFETY: the caller of `PoolTasks::run` keeps both alive, and does not touch the closure, until
        // `is_done` is set. A task is taken from the queue once, so that nobody else calls the closure.
        unsafe {
            (*self.work)();
            (*self.is_done).store(true, Ordering::Release);
        }
        // From here on the caller's stack may be gone; its handle is ours.
        self.caller.unpark();
    }
}

impl PoolTasks {
    fn new() -> Self {
        let queue = Queue { waiting: VecDeque::with_capacity(CALLERS), is_closed: false };
        PoolTasks { queue: Mutex::new(queue), changed: Condvar::new() }
    }

    /// No task runs under the lock, so the queue is whole even after a panic.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the driver run `work`, which does not unwind, and waits until it has.
    ///
    /// Safe code has no way to lend a closure to a thread that is there already: scoped threads are new ones,
    /// and a channel wants what it carries to live for ever.
    #[allow(unsafe_code, reason = "a loan to a thread that is there already")]
    fn run<'a>(&self, work: &'a mut (dyn FnMut() + Send + 'a)) {
        let is_done = AtomicBool::new(false);
        // SAFETY: only the lifetime changes. This function returns after `is_done` is set, which is the
        // last that `PoolTask::run` does with either pointer, and nothing before that unwinds.
        let work = unsafe {
            std::mem::transmute::<*mut (dyn FnMut() + Send + 'a), *mut (dyn FnMut() + Send + 'static)>(work)
        };
        let task = PoolTask { work, is_done: &raw const is_done, caller: thread::current() };
        self.queue().waiting.push_back(task);
        self.changed.notify_one();
        while !is_done.load(Ordering::Acquire) {
            thread::park();
        }
    }

    /// The driver: runs what callers bring until the queue is closed.
    fn drive(&self) {
        loop {
            let mut queue = self.queue();
            while queue.waiting.is_empty() {
                if queue.is_closed {
                    return;
                }
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            let together = queue.waiting.len();
            drop(queue);
            self.run_together(together);
        }
    }

    /// Runs the first `count` tasks of the queue side by side.
    fn run_together(&self, count: usize) {
        if count > 1 {
            let half = count / 2;
            rayon::join(|| self.run_together(half), || self.run_together(count - half));
            return;
        }
        let task = self.queue().waiting.pop_front();
        task.expect("as many tasks as the driver has counted").run();
    }

    fn close(&self) {
        self.queue().is_closed = true;
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Barrier, Weak};
    use std::time::{Duration, Instant};

    #[test]
    fn every_thread_takes_part_in_a_job_the_driver_too() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            let all = Barrier::new(threads);
            let indices = pool.install(|| rayon::broadcast(|of| (all.wait(), of.index()).1)).unwrap();
            assert_eq!(indices, (0..threads).collect::<Vec<_>>());
        }
    }

    #[test]
    fn jobs_of_many_callers_return_what_each_asked() {
        for threads in [1, 3] {
            let pool = Pool::new(threads).unwrap();
            thread::scope(|scope| {
                for caller in 0..9u64 {
                    let pool = &pool;
                    scope.spawn(move || {
                        for call in 0..300 {
                            // Both halves borrow from this stack.
                            let (a, b) = pool.install(|| rayon::join(|| caller, || call)).unwrap();
                            assert_eq!((a, b), (caller, call));
                        }
                    });
                }
            });
        }
    }

    #[test]
    fn a_panic_goes_on_in_its_caller_alone() {
        let pool = Pool::new(2).unwrap();
        thread::scope(|scope| {
            for caller in 0..4 {
                let pool = &pool;
                scope.spawn(move || {
                    for call in 0..50 {
                        let work = || if (caller + call) % 3 == 0 { panic!("task {caller}") } else { call };
                        match catch_unwind(AssertUnwindSafe(|| pool.install(work))) {
                            Ok(result) => assert_eq!(result, Ok(call)),
                            Err(panic) => {
                                assert_eq!(panic.downcast_ref(), Some(&format!("task {caller}")));
                            }
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn a_job_within_a_job_runs_in_place() {
        let pool = Pool::new(1).unwrap();
        let nested = pool.install(|| {
            let outer = thread::current().id();
            pool.install(|| thread::current().id() == outer)
        });
        assert_eq!(nested, Ok(Ok(true)));
    }

    /// A worker that waited inside rayon would start the second task while it waits in the first.
    #[test]
    fn a_worker_of_another_pool_does_nothing_else_while_it_waits() {
        let (ours, other) = (Pool::new(1).unwrap(), rayon::ThreadPoolBuilder::new().num_threads(1).build());
        let is_waiting = AtomicBool::new(false);
        other.unwrap().scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|_| {
                    assert!(!is_waiting.swap(true, Ordering::SeqCst), "begun in the middle of another task");
                    ours.install(|| thread::sleep(Duration::from_millis(1))).unwrap();
                    is_waiting.store(false, Ordering::SeqCst);
                });
            }
        });
    }

    #[test]
    fn the_driver_ends_with_its_pool() {
        let pool = Pool::new(2).unwrap();
        let tasks: Weak<PoolTasks> = Arc::downgrade(&pool.tasks);
        drop(pool);
        let began = Instant::now();
        while tasks.strong_count() > 0 {
            assert!(began.elapsed() < Duration::from_secs(20), "the driver is still there");
            thread::yield_now();
        }
    }
}
