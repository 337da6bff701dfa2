//! A step that was begun is run once, by the head that began it.

use crate::aborts::config;
use crate::contract::hooked::{When, hooked};
use crate::contract::test_head;
use lmhead::backend::On;
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::exchange::{Exchange, local};
use lmhead::head::{LmHead, StepOptions, Ticket};
use lmhead::result::{Answer, Output, Request, RowInputs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead_testkit::caller_memory::OwnBuffers;
use lmhead_testkit::{each_rank, head_of};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SIZE: usize = 3;
const ROWS: usize = 2;

fn begin(head: &mut LmHead) -> Result<Ticket> {
    let counts = RowCounts::exact(&vec![ROWS; head.group().size()]);
    head.begin(&counts, &Request::argmax(), StepOptions::default())
}

fn run(head: &mut LmHead, ticket: Ticket) -> Result<Output> {
    let bytes = test_head().rows(ROWS, 7);
    let hidden = HiddenRows::new(&bytes, DType::F32, ROWS, 16)?;
    let mut buffers = OwnBuffers::new(&Request::argmax(), ROWS, 200, 0);
    let stats = head.run_into(ticket, hidden, &RowInputs::default(), buffers.lend(), On::default())?;
    let Answer { output, .. } = buffers.into_answer(stats);
    Ok(output)
}

fn good_step(head: &mut LmHead) -> Result<Output> {
    let ticket = begin(head)?;
    run(head, ticket)
}

fn alone() -> LmHead {
    let exchange: Arc<dyn Exchange> = Arc::new(local::group(1).remove(0));
    head_of(&test_head(), &config(), 1, 0, exchange).unwrap()
}

fn assert_no_ticket(error: &Error) {
    assert!(matches!(error, Error::Request { .. }), "{error}");
    assert!(error.to_string().contains("ticket: wanted that of the step that has begun"), "{error}");
}

/// Checks the errors of all ranks after a mistake of rank 1, each with the time since the step began.
fn assert_told_at_once(errors: &[(Error, Duration)], reason: &str) {
    for (rank, (error, time)) in errors.iter().enumerate().filter(|(rank, _)| *rank != 1) {
        assert!(matches!(error, Error::StepMismatch { .. }), "rank {rank}: {error}");
        let want = format!("aborted: ranks [1] say {reason}");
        assert!(error.to_string().contains(&want), "rank {rank}: {error}\nwant {want}");
        assert!(*time < Duration::from_secs(10), "rank {rank}: told after {time:?}");
    }
}

#[test]
fn a_ticket_of_another_head_or_of_a_step_that_has_ended_changes_nothing() {
    let (mut one, mut other) = (alone(), alone());
    let want = good_step(&mut one).unwrap();
    good_step(&mut other).unwrap();
    // Both heads have begun equally many steps: their tickets still differ.
    let (of_one, of_other) = (begin(&mut one).unwrap(), begin(&mut other).unwrap());
    assert_no_ticket(&run(&mut one, of_other).unwrap_err());
    assert_eq!(run(&mut one, of_one).unwrap(), want, "its own step goes on");
    assert!(one.poisoned().is_none());

    // The other head has begun a step whose ticket is gone. After a rebuild it goes on; older tickets stay
    // invalid.
    other.rebuild().unwrap();
    let old = begin(&mut other).unwrap();
    other.rebuild().unwrap();
    assert_no_ticket(&run(&mut other, old).unwrap_err());
    assert_eq!(good_step(&mut other).unwrap(), want);
    let old = begin(&mut other).unwrap();
    other.rebuild().unwrap();
    let new = begin(&mut other).unwrap();
    assert_no_ticket(&run(&mut other, old).unwrap_err());
    assert_eq!(run(&mut other, new).unwrap(), want);
}

#[test]
fn a_step_that_begins_within_another_ends_both_and_is_told() {
    let ended = each_rank(SIZE, |me, exchange| {
        let mut head = head_of(&test_head(), &config(), SIZE, me, exchange).unwrap();
        let want = good_step(&mut head).unwrap();
        let began = Instant::now();
        let ticket = begin(&mut head).unwrap();
        let error = if me == 1 {
            let error = begin(&mut head).unwrap_err();
            assert!(error.to_string().contains("wanted the step that has begun to be run"), "{error}");
            // The first step has ended, too.
            let refused = begin(&mut head).unwrap_err();
            assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
            drop(ticket);
            error
        } else {
            run(&mut head, ticket).unwrap_err()
        };
        let time = began.elapsed();
        head.rebuild().unwrap();
        assert_eq!(good_step(&mut head).unwrap(), want);
        (error, time)
    });
    assert!(matches!(ended[1].0, Error::Request { .. }), "{}", ended[1].0);
    assert_told_at_once(&ended, "began another step without running this one");
}

#[test]
fn a_head_that_goes_with_a_step_begun_tells_its_peers() {
    let ended = each_rank(SIZE, |me, exchange| {
        // The transport lives on: it is the head that notifies the peers.
        let mut head = head_of(&test_head(), &config(), SIZE, me, Arc::clone(&exchange)).unwrap();
        good_step(&mut head).unwrap();
        let began = Instant::now();
        let ticket = begin(&mut head).unwrap();
        if me == 1 {
            drop(head);
            return None;
        }
        let error = run(&mut head, ticket).unwrap_err();
        assert!(head.poisoned().is_some());
        Some((error, began.elapsed(), exchange))
    });
    for (rank, told) in ended.iter().enumerate().filter(|(rank, _)| *rank != 1) {
        let (error, time, _) = told.as_ref().unwrap();
        assert!(matches!(error, Error::StepMismatch { .. }), "rank {rank}: {error}");
        let want = "aborted: ranks [1] say dropped the step without running it";
        assert!(error.to_string().contains(want), "rank {rank}: {error}");
        assert!(*time < Duration::from_secs(10), "rank {rank}: told after {time:?}");
    }
}

/// A lost ticket goes unnoticed until the head is rebuilt, which ends the peers' waits.
#[test]
fn a_lost_ticket_ends_with_the_rebuilding() {
    let ended = each_rank(SIZE, |me, exchange| {
        let mut head = head_of(&test_head(), &config(), SIZE, me, exchange).unwrap();
        let want = good_step(&mut head).unwrap();
        let began = Instant::now();
        let ticket = begin(&mut head).unwrap();
        let error = match me {
            1 => {
                drop(ticket);
                None
            }
            _ => Some(run(&mut head, ticket).unwrap_err()),
        };
        let time = began.elapsed();
        head.rebuild().unwrap();
        assert_eq!(good_step(&mut head).unwrap(), want);
        error.map(|error| (error, time))
    });
    for (rank, told) in ended.iter().enumerate().filter(|(rank, _)| *rank != 1) {
        let (error, time) = told.as_ref().unwrap();
        assert!(error.to_string().contains("[1]"), "rank {rank}: {error}");
        assert!(*time < Duration::from_secs(10), "rank {rank}: told after {time:?}");
    }
}

/// Where the counts are known, they can be read between the two calls.
#[test]
fn counts_are_known_between_beginning_and_run() {
    let rows = [2, 0, 3];
    each_rank(SIZE, |me, exchange| {
        let mut head = head_of(&test_head(), &config(), SIZE, me, exchange).unwrap();
        let bytes = test_head().rows(rows[me], 7);
        let hidden = HiddenRows::new(&bytes, DType::F32, rows[me], 16).unwrap();
        assert_eq!(head.counts(), None);
        for (counts, known) in [
            (RowCounts::exact(&rows), true),
            (RowCounts::discover(rows[me]), true),
            (RowCounts::capacity(4, rows[me]), false),
        ] {
            let ticket = head.begin(&counts, &Request::argmax(), StepOptions::default()).unwrap();
            assert_eq!(head.counts(), known.then_some(&rows[..]));
            let mut buffers = OwnBuffers::new(&Request::argmax(), rows[me], 200, 0);
            let inputs = RowInputs::default();
            head.run_into(ticket, hidden, &inputs, buffers.lend(), On::default()).unwrap();
            assert_eq!(head.counts(), None, "the step has ended");
        }
    });
}

/// A step is checked when it begins: a rank that disagrees is found before any rank has passed rows.
#[test]
fn the_contract_is_checked_when_a_step_begins() {
    each_rank(SIZE, |me, exchange| {
        let gathered = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = Arc::clone(&gathered);
        let exchange = hooked(exchange, move |when, call, _| {
            if when == When::BeforeGather && call.operation == lmhead::exchange::Operation::GatherRows {
                count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        });
        let mut head = head_of(&test_head(), &config(), SIZE, me, exchange).unwrap();
        let request = if me == 1 { Request::top_k(2) } else { Request::argmax() };
        let error =
            head.begin(&RowCounts::exact(&[ROWS; SIZE]), &request, StepOptions::default()).unwrap_err();
        assert!(matches!(error, Error::StepMismatch { .. }), "{error}");
        assert!(error.to_string().contains("ranks [1] say topk:2"), "{error}");
        assert_eq!(gathered.load(std::sync::atomic::Ordering::SeqCst), 0);
        head.rebuild().unwrap();
        good_step(&mut head).unwrap();
    });
}
