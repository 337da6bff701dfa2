//! Every breach of the contract ends in the named error on every rank, well within the deadline, and the head
//! refuses steps until it is rebuilt.

mod creation;
mod endings;
mod heads;
pub mod hooked;
mod memory;
mod steps;

use hooked::{When, head_with, hooked};
use lmhead::backend::Backend;
use lmhead::config::{HeadConfig, Quantization, Verify};
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::exchange::{Exchange, local};
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::result::{Answer, Request, RowStatus};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead_testkit::hooked::{Asked, hooked as hooked_backend};
use lmhead_testkit::{TestHead, each_rank, head_of};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

const SIZE: usize = 3;
const ROWS: usize = 2;

pub fn test_head() -> TestHead {
    TestHead::random(200, 16, DType::F32, Quantization::None, 3)
}

fn config(timeout_ms: u64) -> HeadConfig {
    let mut config = test_head().config();
    config.timeout = Duration::from_millis(timeout_ms);
    config.create_timeout = Duration::from_millis(timeout_ms);
    config
}

pub fn step(head: &mut LmHead, counts: RowCounts, request: Request, rows: usize) -> Result<Answer> {
    let bytes = test_head().rows(rows, 7);
    let hidden = HiddenRows::new(&bytes, DType::F32, rows, 16)?;
    head.step(counts, &request)?.run(hidden)
}

fn good_step(head: &mut LmHead) -> Result<Answer> {
    step(head, RowCounts::exact(&[ROWS; SIZE]), Request::argmax(), ROWS)
}

/// After one good step of all, runs `break_it` on rank 1 and good steps on the others; returns every rank's
/// error.
fn broken(config: &HeadConfig, break_it: impl Fn(&mut LmHead) -> Result<Answer> + Sync) -> Vec<Error> {
    let began = Instant::now();
    let errors = each_rank(SIZE, |me, exchange| {
        let mut head = head_of(&test_head(), config, SIZE, me, exchange).unwrap();
        good_step(&mut head).unwrap();
        let result = if me == 1 { break_it(&mut head) } else { good_step(&mut head) };
        // Some breaches show only in the next step on the rank that made them.
        let error = result.and_then(|_| good_step(&mut head)).unwrap_err();
        let refused = good_step(&mut head).unwrap_err();
        assert!(matches!(refused, Error::Poisoned { .. }), "rank {me} after {error}: {refused}");
        assert!(head.poisoned().is_some());
        error
    });
    assert!(began.elapsed() < Duration::from_secs(20), "took {:?}", began.elapsed());
    errors
}

fn assert_mismatch(errors: &[Error], want: &str) {
    for (rank, error) in errors.iter().enumerate() {
        assert!(matches!(error, Error::StepMismatch { .. }), "rank {rank}: {error}");
        assert!(error.to_string().contains(want), "rank {rank}: {error}\nwant {want}");
    }
}

/// A rank's error, and when it came, from the beginning of the group's call.
type Ended = (Error, Duration);

/// A deadline in ms that must not be reached.
const PATIENT: u64 = 30_000;

/// Prints and checks how soon the other ranks got their errors, in calls with a distant deadline.
fn assert_at_once(what: &str, ended: &[Ended]) {
    let times: Vec<String> =
        ended.iter().map(|(_, time)| format!("{:.1}", time.as_secs_f64() * 1e3)).collect();
    println!("{what}: {} ms", times.join(", "));
    for (error, time) in ended {
        assert!(*time < Duration::from_secs(2), "{what}: {error} after {time:?}");
    }
}
