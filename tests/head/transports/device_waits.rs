//! Waits for a device, which cannot tell which rank it waits for: the host transport beside it finds who was
//! killed or stopped in the collective, and a fault of the next step does not end the wait for this one. The
//! device is an event that completes after a while, or never.

use super::scenarios::{LONG_MS, SHORT_MS, SIZE};
use super::{
    ENTRY, EXCHANGE, LAUNCHERS, LOST, MISMATCH, TIMEOUT, all, assert_all, assert_times, error_of, ms_of,
};
use lmhead::exchange::{
    Call, Exchange, Fault, Operation, Pending, Scratch, StreamCounters, StreamMarks, wait_for_mark,
};
use lmhead::memory::{Memory, Stream};
use lmhead_testkit::processes::{Launcher, Processes, Rank, Scenarios, outcome};
use serde_json::Value;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

pub const SCENARIOS: &Scenarios = &[
    ("a device that does not end", |rank| wait(&rank, || {})),
    ("a member that does not answer", |rank| wait(&rank, || thread::sleep(3 * LATE))),
    ("killed in a device wait", |rank| signalled(&rank, libc::SIGKILL)),
    ("stopped in a device wait", |rank| signalled(&rank, libc::SIGSTOP)),
    ("a fault of the next step", next_step),
];

const LATE: Duration = Duration::from_millis(SHORT_MS);

/// An event that completes at `reached`.
struct Mark {
    reached: Option<Instant>,
}

impl StreamMarks for Mark {
    fn memory(&self) -> Memory {
        Memory::Device(0)
    }

    fn mark(&self, _: Stream) -> Result<Pending, Fault> {
        Ok(Pending(0))
    }

    fn is_reached(&self, _: Pending) -> Result<bool, Fault> {
        Ok(self.reached.is_some_and(|at| at <= Instant::now()))
    }

    fn give_back(&self, _: Pending) {}

    fn counters(&self) -> Result<Arc<dyn StreamCounters>, Fault> {
        unimplemented!("no counters")
    }

    fn scratch(&self, _: usize) -> Result<Box<dyn Scratch>, Fault> {
        unimplemented!("no memory")
    }

    fn with_context(&self, run: &mut dyn FnMut()) -> Result<(), Fault> {
        run();
        Ok(())
    }
}

/// The rank's channel, once all ranks have opened it, and a function that makes calls of a step there.
fn open(rank: &Rank) -> (Arc<dyn Exchange>, impl Fn(u64, u64) -> Call) {
    let (instance, channel) = rank.exchange.channel(7).expect("a channel");
    let call = move |step, ms| {
        let (began, operation) = (Instant::now(), Operation::GatherRows);
        let deadline = began + Duration::from_millis(ms);
        Call { head: 7, instance, epoch: 0, step, operation, terms: 0, began, deadline }
    };
    let everyone: Vec<usize> = (0..rank.size).collect();
    let mut bytes = vec![0; rank.size];
    let mut recv: Vec<&mut [u8]> = bytes.chunks_mut(1).collect();
    channel.all_gather_v(&call(0, LONG_MS), &everyone, &[0], &mut recv).expect("all come");
    (channel, call)
}

/// Waits in `call` for an event; the rank has come to the call.
fn wait_in(call: &Call, channel: &dyn Exchange, reached: Option<Instant>) -> Result<(), Fault> {
    let mark = Mark { reached };
    channel.note(call);
    let waited = wait_for_mark(&mark, None, Pending(0), call, channel, || None);
    // As a head does: tells the others what they would not find by themselves.
    if let Err(Fault::Broken { problem, .. }) = &waited {
        channel.notify_abort(call, problem);
    }
    waited
}

fn ended(began: Instant, call: &Call, rank: &Rank, waited: Result<(), Fault>) -> Value {
    let ranks: Vec<usize> = (0..rank.size).collect();
    outcome(began, &waited.map_err(|fault| fault.into_error(call, &ranks)))
}

/// All ranks wait for an event that never completes; rank 1 runs `rank_1` first.
fn wait(rank: &Rank, rank_1: impl FnOnce()) -> Value {
    let (channel, call) = open(rank);
    let call = call(1, SHORT_MS);
    let began = Instant::now();
    channel.note(&call);
    if rank.me == 1 {
        rank_1();
    }
    let ended = ended(began, &call, rank, wait_in(&call, &*channel, None));
    // A rank that leaves is lost to the others: stay.
    thread::sleep(3 * LATE);
    ended
}

fn signalled(rank: &Rank, signal: i32) -> Value {
    wait(rank, || {
        thread::spawn(move || {
            thread::sleep(LATE / 2);
            super::faults::send_to_itself(signal);
        });
    })
}

/// Rank 1 gives up the step after the one whose event, which completes after a while, the others wait for.
fn next_step(rank: Rank) -> Value {
    let (channel, call) = open(&rank);
    let this = call(1, LONG_MS);
    if rank.me == 1 {
        channel.note(&this);
        channel.notify_abort(&call(2, LONG_MS), "cannot go on");
    } else {
        let soon = Instant::now() + LATE;
        assert_eq!(wait_in(&this, &*channel, Some(soon)), Ok(()), "rank {}", rank.me);
    }
    let (began, next) = (Instant::now(), call(2, LONG_MS));
    let ended = ended(began, &next, &rank, wait_in(&next, &*channel, None));
    thread::sleep(3 * LATE);
    ended
}

/// The longest wait allowed, in milliseconds.
const MOST_MS: f64 = SHORT_MS as f64 + 1000.0;

#[test]
fn a_device_that_does_not_end_is_no_members_fault() {
    let words = "no end on the device within 500ms; every member has come to it";
    let allowed = |_| vec![(EXCHANGE, words), (MISMATCH, words)];
    assert_all("a device that does not end", SIZE, allowed, (SHORT_MS as f64 - 1.0, MOST_MS));
}

#[test]
fn a_member_that_does_not_answer_in_a_device_wait_is_named() {
    let words = "ranks [1] did not come within 500ms";
    for (transport, answers) in all("a member that does not answer", SIZE) {
        for (rank, answer) in answers.iter().enumerate() {
            let (code, text) = error_of(answer);
            assert!(code == TIMEOUT && text.contains(words), "{transport}, rank {rank}: {code} {text}");
            // The member itself gets its error when it comes.
            let most = if rank == 1 { 3.0 } else { 1.0 } * SHORT_MS as f64 + 1000.0;
            assert!(ms_of(answer) < most, "{transport}, rank {rank}: {} ms", ms_of(answer));
        }
    }
}

#[test]
fn a_process_that_is_killed_or_stopped_in_a_device_wait_is_named_by_all_others() {
    for (name, kills) in [("killed in a device wait", true), ("stopped in a device wait", false)] {
        for &(transport, launcher) in LAUNCHERS {
            let mut ranks = Processes::start(launcher, ENTRY, name, SIZE);
            let answers = ranks.answers(Duration::from_secs(60), Some(1));
            // The sockets of a process that dies close; MPI reports nothing.
            let closes = kills && launcher == Launcher::Test;
            let (code, words) = match closes {
                true => (LOST, "ranks [1] have left the group"),
                false => (TIMEOUT, "ranks [1] did not come within 500ms"),
            };
            let survivors = [answers[0].clone(), answers[2].clone()];
            for answer in &survivors {
                let got = error_of(answer);
                println!("{name}, {transport}: after {:.1} ms: {}", ms_of(answer), got.1);
                assert!(got.0 == code && got.1.contains(words), "{name}, {transport}: {got:?}");
            }
            assert_times(name, transport, &survivors, (0.0, MOST_MS));
        }
    }
}

#[test]
fn a_fault_of_the_next_step_ends_no_wait_for_this_one() {
    let words = "aborted: ranks [1] say cannot go on";
    assert_all("a fault of the next step", SIZE, |_| vec![(MISMATCH, words)], super::AT_ONCE);
}
