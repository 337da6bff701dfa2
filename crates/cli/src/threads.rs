//! `--threads`: how many threads this process uses.

use lmhead::error::{Error, Result};

/// Sets the number of threads for the parallel loops that do not belong to a backend: loading, making,
/// quantising and checking weights. (A backend has its own pool of the same size.) Must be called before the
/// first such loop; with `None` there is a thread for each CPU.
///
/// # Errors
/// `Unsupported` where the threads cannot be started.
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
