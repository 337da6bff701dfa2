//! The thread pool of the CPU backend, and the only way into it.

use crate::error::{Error, Result};
use crate::process::Maker;
use std::thread;

/// Threads that compute, shared by all ranks of a process.
#[derive(Debug)]
pub(super) struct Pool {
    /// Always there but in `drop`.
    threads: Option<rayon::ThreadPool>,
    maker: Maker,
}

impl Pool {
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
        Ok(Pool { threads: Some(pool), maker: Maker::here() })
    }

    fn threads(&self) -> &rayon::ThreadPool {
        self.threads.as_ref().expect("taken by drop alone")
    }

    /// Threads of the pool.
    pub(super) fn size(&self) -> usize {
        self.threads().current_num_threads()
    }

    /// Runs `work` on the pool and waits for it.
    ///
    /// A worker of another rayon pool must not wait inside rayon: it would take up other tasks of its own
    /// pool meanwhile. Where the ranks of a group are such tasks, the worker would start a second rank in the
    /// middle of the first one's step, and that one waits for the first for ever. So a thread of our own goes
    /// in for it, and the worker waits for that thread. It costs the start of a thread, there only.
    ///
    /// # Errors
    /// `Unsupported` in a process that was forked from the one that made the pool: its threads are not there,
    /// and work given to them would never end. The same where that thread cannot be started.
    pub(super) fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R> {
        self.maker.check("the CPU backend")?;
        let pool = self.threads();
        let foreign = rayon::current_thread_index().is_some() && pool.current_thread_index().is_none();
        if !foreign {
            return Ok(pool.install(work));
        }
        thread::scope(|scope| {
            let waits = thread::Builder::new()
                .name("lmhead-cpu-wait".into())
                .spawn_scoped(scope, || pool.install(work))
                .map_err(|problem| {
                    Error::unsupported(
                        "the CPU backend on a worker of another rayon pool",
                        "one more thread, which waits for it",
                        problem,
                        "run the ranks on threads of their own",
                    )
                })?;
            Ok(waits.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // In a forked child there are no threads to end, and a lock of the pool may be held by one of them.
        if !self.maker.is_here() {
            std::mem::forget(self.threads.take());
        }
    }
}
