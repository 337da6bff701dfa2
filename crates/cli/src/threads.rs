//! `--threads`: how many threads this process computes on.

use crate::args::at_least_one;
use lmhead::error::{Error, Result};

/// As many as a backend takes.
const MAX_THREADS: usize = 1024;

/// The value of the option.
///
/// # Errors
/// `Config` for what is no number from 1 to 1024.
pub fn parse(text: Option<&str>) -> Result<Option<usize>> {
    match text.map(|text| at_least_one("--threads", text)).transpose()? {
        Some(n) if n > MAX_THREADS => Err(Error::Config {
            key: "--threads".into(),
            wanted: format!("1 to {MAX_THREADS}"),
            got: n.to_string(),
            fix: "leave it out to use every CPU".into(),
        }),
        threads => Ok(threads),
    }
}

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
