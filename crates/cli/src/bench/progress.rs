//! What a person at a terminal sees while `lmhead bench` runs, which can take minutes: a line for each case
//! that is timed, and below them how far the present head is. Elsewhere standard error stays empty.

use super::Plan;
use super::report::RowsReport;
use crate::input::progress_bar_like;
use indicatif::ProgressBar;

/// How far one head is. It draws between timings only: there is no thread behind it.
pub struct Progress {
    bar: ProgressBar,
    head: String,
}

impl Progress {
    pub fn new(plan: &Plan, head: &str) -> Self {
        let bar = progress_bar_like("{msg} {wide_bar} {pos}/{len} repetitions, {eta} left", head);
        bar.set_length((plan.rows.len() * plan.reps) as u64);
        Progress { bar, head: head.into() }
    }

    /// The next row count.
    pub fn begin(&self, rows: usize) {
        self.bar.set_message(format!("{}, rows {rows}", self.head));
    }

    /// Every stage has been timed once more.
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
