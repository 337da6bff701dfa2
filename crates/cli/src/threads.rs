//! `--threads`: how many threads this process computes on.

use lmhead::error::{Error, Result};

/// Makes the parallel loops that do not belong to a backend run on that many threads: loading, making,
/// quantising and checking weights. (A backend has a pool of its own, of as many.) To be called before the
/// first of them; without a number there is a thread for each CPU.
///
/// # Errors
/// `Unsupported` where they cannot be started.
pub fn limit(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("lmhead-load-{i}"))
        .build_global()
        .map_err(|problem| Error::Unsupported {
            what: "--threads".into(),
            wanted: format!("{threads} threads"),
            got: problem.to_string(),
            fix: "use fewer".into(),
        })
}
