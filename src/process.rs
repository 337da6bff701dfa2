//! Protects against `fork`, which copies memory but only the calling thread: a thread pool, or a queue that
//! other threads serve, looks whole in the child but never answers there. Such values remember the process
//! that made them, and refuse calls from another one with an error.

use crate::error::{Error, Result};
use std::sync::OnceLock;

/// The process in which a value was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Maker(u32);

impl Maker {
    /// The calling process.
    pub(crate) fn here() -> Self {
        Maker(std::process::id())
    }

    /// False in a process that was forked from the maker.
    pub(crate) fn is_here(self) -> bool {
        self == Self::here()
    }

    /// Refuses a call from another process than the maker. `what` names the value.
    ///
    /// # Errors
    /// `Unsupported` in a process that was forked from the maker.
    pub(crate) fn check(self, what: &str) -> Result<()> {
        if self.is_here() {
            return Ok(());
        }
        Err(Error::unsupported(
            what,
            format!("a call from process {}, which made it", self.0),
            format!("one from process {}, which was forked from it", std::process::id()),
            "fork first and make backend, exchange and head in the child, or start the child with exec \
             (Python's multiprocessing: spawn)",
        ))
    }
}

/// Runs `work`, whose parallel loops use the caller's rayon pool: the one whose worker the caller is, else
/// rayon's global pool.
///
/// If this library used the global pool before a fork, that pool has no threads in the child, and a loop on
/// it would never end. In that case `work` gets a pool of its own.
///
/// # Errors
/// `Unsupported` where that pool cannot be made.
pub(crate) fn on_live_threads<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R> {
    static GLOBAL: OnceLock<Maker> = OnceLock::new();
    if rayon::current_thread_index().is_some() || GLOBAL.get_or_init(Maker::here).is_here() {
        return Ok(work());
    }
    let pool = rayon::ThreadPoolBuilder::new().build().map_err(|problem| {
        let fix = "raise the limit of threads, or load before the fork";
        Error::unsupported("a thread pool in a forked process", "threads", problem, fix)
    })?;
    Ok(pool.install(work))
}

/// The most threads that [`on_threads`] starts: enough for any machine, and few enough to be startable.
const MAX_THREADS: usize = 1024;

/// Runs `work`, whose parallel loops use `threads` threads of their own, which end with it.
///
/// The caller waits outside of rayon. A worker of another pool that waits inside rayon runs other tasks of
/// its pool meanwhile; if those are ranks of the caller's group, one rank would run nested in another.
///
/// # Errors
/// `Config` for 0 threads or more than 1024; `Unsupported` where they cannot be started.
pub(crate) fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> Result<R> {
    if !(1..=MAX_THREADS).contains(&threads) {
        let fix = "leave it out to use every CPU";
        return Err(Error::config("threads", format!("1 to {MAX_THREADS}"), threads, fix));
    }
    let refused = |problem: &dyn std::fmt::Display| {
        Error::unsupported("threads", format!("{threads} threads"), problem, "ask for fewer")
    };
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("lmhead-load-{i}"))
        .build()
        .map_err(|problem| refused(&problem))?;
    std::thread::scope(|scope| {
        let waits = std::thread::Builder::new().name("lmhead-load-wait".into());
        let waits = waits.spawn_scoped(scope, || pool.install(work)).map_err(|problem| refused(&problem))?;
        waits.join().map_or_else(|panic| std::panic::resume_unwind(panic), Ok)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_runs_on_as_many_threads_as_asked_for_whoever_asks() {
        let other = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        for threads in [1, 3] {
            let counted = || on_threads(threads, rayon::current_num_threads);
            assert_eq!((counted(), other.install(counted)), (Ok(threads), Ok(threads)));
        }
        let panic = std::panic::catch_unwind(|| on_threads(1, || -> () { panic!("as it was") })).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"as it was"));
    }

    #[test]
    fn another_process_is_refused_by_name() {
        assert_eq!(Maker::here().check("the CPU backend"), Ok(()));
        let other = Maker(Maker::here().0 ^ 1);
        let error = other.check("the CPU backend").unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }));
        let text = error.to_string();
        assert!(text.starts_with("the CPU backend: wanted a call from process "), "{text}");
        assert!(
            text.contains("forked from it") && text.contains("make backend, exchange and head"),
            "{text}"
        );
    }
}
