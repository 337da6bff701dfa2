//! Steps that another thread ends.

use crate::contract::test_head;
use lmhead::config::HeadConfig;
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::exchange::{Exchange, local};
use lmhead::head::LmHead;
use lmhead::result::{Output, Request};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead_testkit::{each_rank, head_of};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

const SIZE: usize = 3;
const REASON: &str = "the server shuts down";

/// A deadline that must not be reached.
pub fn config() -> HeadConfig {
    let patient = Duration::from_secs(60);
    HeadConfig { timeout: patient, create_timeout: patient, ..test_head().config() }
}

fn good_step(head: &mut LmHead) -> Result<Output> {
    let bytes = test_head().rows(2, 7);
    let hidden = HiddenRows::new(&bytes, DType::F32, 2, 16)?;
    let counts = RowCounts::exact(&vec![2; head.group().size()]);
    Ok(head.step(counts, &Request::top_k(3))?.run(hidden)?.output)
}

fn assert_poisoned(head: &mut LmHead) {
    assert!(head.poisoned().is_some_and(|cause| cause.contains(REASON)), "{:?}", head.poisoned());
    let refused = good_step(head).unwrap_err();
    assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
}

#[test]
fn a_step_that_waits_for_a_peer_ends_at_once_on_all_ranks() {
    let left = Barrier::new(SIZE);
    let ended = each_rank(SIZE, |me, exchange| {
        let mut head = head_of(&test_head(), &config(), SIZE, me, exchange).unwrap();
        let want = good_step(&mut head).unwrap();
        let began = Instant::now();
        let error = match me {
            0 => {
                let handle = head.abort_handle();
                thread::scope(|scope| {
                    scope.spawn(move || {
                        thread::sleep(Duration::from_millis(200));
                        handle.abort(REASON);
                    });
                    good_step(&mut head).unwrap_err()
                })
            }
            1 => {
                // Ranks 0 and 2 have been waiting for this one; the abort has ended that.
                left.wait();
                good_step(&mut head).unwrap_err()
            }
            _ => good_step(&mut head).unwrap_err(),
        };
        if me != 1 {
            left.wait();
        }
        let time = began.elapsed();
        assert_poisoned(&mut head);
        assert_poisoned(&mut head);
        head.rebuild().unwrap();
        assert_eq!(good_step(&mut head).unwrap(), want);
        (error, time)
    });
    for (rank, (error, time)) in ended.iter().enumerate() {
        assert!(matches!(error, Error::StepMismatch { .. }), "rank {rank}: {error}");
        assert!(error.to_string().contains(REASON), "rank {rank}: {error}");
        assert!(error.to_string().contains("ranks [0] say"), "rank {rank}: {error}");
        assert!(*time < Duration::from_secs(10), "rank {rank}: ended after {time:?}");
    }
}

#[test]
fn an_abort_between_steps_ends_the_next_one_everywhere() {
    let told = Barrier::new(SIZE);
    each_rank(SIZE, |me, exchange| {
        let mut head = head_of(&test_head(), &config(), SIZE, me, exchange).unwrap();
        let want = good_step(&mut head).unwrap();
        told.wait();
        let began = Instant::now();
        if me == 1 {
            head.abort_handle().abort(REASON);
            assert!(matches!(good_step(&mut head).unwrap_err(), Error::Poisoned { .. }));
        } else {
            let error = good_step(&mut head).unwrap_err();
            assert!(matches!(error, Error::StepMismatch { .. }), "rank {me}: {error}");
            assert!(error.to_string().contains(REASON), "rank {me}: {error}");
        }
        assert!(began.elapsed() < Duration::from_secs(10), "rank {me}: {:?}", began.elapsed());
        assert_poisoned(&mut head);
        head.rebuild().unwrap();
        // An abort from before a rebuild has no effect after it.
        for _ in 0..3 {
            assert_eq!(good_step(&mut head).unwrap(), want);
        }
    });
}

/// A step of a single rank waits for nobody and is not interrupted; the next one is refused.
#[test]
fn a_head_of_one_rank_refuses_steps_after_an_abort_until_it_is_rebuilt() {
    let exchange: Arc<dyn Exchange> = Arc::new(local::group(1).remove(0));
    let mut head = head_of(&test_head(), &config(), 1, 0, exchange).unwrap();
    let want = good_step(&mut head).unwrap();
    let handle = head.abort_handle();
    for _ in 0..2 {
        handle.abort(REASON);
        handle.abort("another reason, which comes later");
        assert!(matches!(good_step(&mut head).unwrap_err(), Error::Poisoned { .. }));
        assert_poisoned(&mut head);
        head.rebuild().unwrap();
        assert_eq!(good_step(&mut head).unwrap(), want);
    }
    handle.abort(REASON);
    head.rebuild().unwrap();
    assert_eq!(good_step(&mut head).unwrap(), want, "rebuilt before it has seen the abort");
}

#[test]
fn an_abort_of_a_head_that_is_gone_disturbs_no_other() {
    each_rank(SIZE, |me, exchange| {
        let make = || head_of(&test_head(), &config(), SIZE, me, Arc::clone(&exchange)).unwrap();
        let mut first = make();
        let want = good_step(&mut first).unwrap();
        let handle = first.abort_handle();
        let mut other = make();
        drop(first);
        handle.abort(REASON);
        assert_eq!(good_step(&mut other).unwrap(), want);
        drop(handle.clone());
        let mut again = make();
        handle.abort(REASON);
        assert_eq!(good_step(&mut again).unwrap(), want);
        assert_eq!(good_step(&mut other).unwrap(), want);
    });
}

/// Whenever an abort comes, all ranks end with a named error and go on after a rebuild.
#[test]
fn an_abort_at_any_moment_ends_in_a_named_error() {
    for delay in 0..30u64 {
        each_rank(2, |me, exchange| {
            let mut head = head_of(&test_head(), &config(), 2, me, exchange).unwrap();
            let want = good_step(&mut head).unwrap();
            let handle = head.abort_handle();
            let error = thread::scope(|scope| {
                if me == 1 {
                    scope.spawn(move || {
                        thread::sleep(Duration::from_micros(37 * delay));
                        handle.abort(REASON);
                    });
                }
                loop {
                    match good_step(&mut head) {
                        Ok(output) => assert_eq!(output, want),
                        Err(error) => break error,
                    }
                }
            });
            let known = matches!(error, Error::StepMismatch { .. } | Error::Poisoned { .. });
            assert!(known && error.to_string().contains(REASON), "rank {me}: {error}");
            head.rebuild().unwrap();
            assert_eq!(good_step(&mut head).unwrap(), want);
        });
    }
}
