//! Progress of `lmhead bench`, which can take minutes, on a terminal: a line for each case that has been
//! timed, and below them a progress bar of the present head. Elsewhere standard error stays empty.

use super::BenchSetup;
use super::report::RowsReport;
use crate::input::progress_bar_like;
use indicatif::{ProgressBar, ProgressDrawTarget};

/// Progress of one head. It draws only between timings: it has no thread.
pub struct Progress {
    bar: ProgressBar,
    head: String,
}

impl Progress {
    pub fn new(setup: &BenchSetup, head: &str) -> Self {
        let bar = progress_bar_like("{msg} {wide_bar} {pos}/{len} repetitions, {eta} left", head);
        bar.set_length((setup.rows.len() * setup.reps) as u64);
        bar.set_draw_target(ProgressDrawTarget::stderr());
        Progress { bar, head: head.into() }
    }

    /// Begins a row count.
    pub fn begin(&self, rows: usize) {
        self.bar.set_message(format!("{}, rows {rows}", self.head));
    }

    /// One repetition of every stage is done.
    pub fn repeated(&self) {
        self.bar.inc(1);
    }

    /// All repetitions of a row count are done.
    pub fn timed(&self, report: &RowsReport) {
        self.bar.println(report.line(&self.head));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
