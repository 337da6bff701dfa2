//! Faults that need more than one line in the table: a rank that dies or stops at a chosen moment of a
//! collective, a product that fails or hangs, too little memory, a transport that mixes bytes up, a row that
//! is not finite.

use super::scenarios::{LONG_MS, ROWS, SHORT_MS, SIZE, await_end_of, bits, config, exact, good_step, head};
use super::{
    AT_ONCE, ENTRY, LAUNCHERS, LOST, MISMATCH, SHAPE, TIMEOUT, all, assert_all, assert_same_over_all,
};
use super::{assert_names_the_stopped, error_of, ms_of};
use crate::contract::hooked::{When, hooked};
use crate::contract::test_head;
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::exchange::{Exchange, Operation, local};
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::result::{Answer, Request, RowInputs, RowStatus};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead_testkit::hooked::failing;
use lmhead_testkit::processes::{Launcher, Processes, Rank, Scenario, outcome};
use lmhead_testkit::wrong::{Wrong, WrongExchange};
use lmhead_testkit::{head_of, row_bits};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Scenarios of this file, by name.
pub const SCENARIOS: &[(&str, Scenario)] = &[
    ("killed before a collective", |rank| signalled(rank, Moment::Before, libc::SIGKILL)),
    ("killed inside a collective", |rank| signalled(rank, Moment::Inside, libc::SIGKILL)),
    ("killed after a collective", |rank| signalled(rank, Moment::After, libc::SIGKILL)),
    ("stopped inside a collective", |rank| signalled(rank, Moment::Inside, libc::SIGSTOP)),
    ("a product that fails", |rank| odd_product(rank, LONG_MS, || Err(a_devices_error()))),
    ("a product that does not end", |rank| {
        odd_product(rank, SHORT_MS, || {
            thread::sleep(Duration::from_millis(3 * SHORT_MS));
            Ok(())
        })
    }),
    ("memory short on one rank", short_memory),
    ("a gather in another order", |rank| wrong_bytes(rank, Wrong::GatherOrder)),
    ("pieces of another rank", |rank| wrong_bytes(rank, Wrong::PieceOrder)),
    ("rows that are not finite", not_finite),
];

/// Code of [`Error::Exchange`] and of [`Error::Device`].
const EXCHANGE: i64 = 12;
const DEVICE: i64 = 14;

/// The moment at which the signal reaches rank 1, relative to its gather of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Before,
    /// It has sent its rows, and waits for rank 2, which is late.
    Inside,
    After,
}

/// Sends the signal to this process; all its threads stop or end.
#[allow(unsafe_code, reason = "a signal")]
pub fn send_to_itself(signal: i32) {
    // SAFETY: no memory is handed over.
    let sent = unsafe { libc::kill(libc::getpid(), signal) };
    assert_eq!(sent, 0, "a signal: {}", std::io::Error::last_os_error());
    // The signal may be delivered to another thread first.
    thread::sleep(Duration::from_secs(5));
}

/// Good steps, then the signal to rank 1 at that moment of a step.
fn signalled(rank: Rank, moment: Moment, signal: i32) -> Value {
    let armed = Arc::new(AtomicBool::new(false));
    let (me, on) = (rank.me, Arc::clone(&armed));
    let exchange = hooked(Arc::clone(&rank.exchange), move |when, call, _| {
        if call.operation != Operation::GatherRows || !on.load(Ordering::SeqCst) {
            return;
        }
        match (me, moment, when) {
            (1, Moment::Before, When::BeforeGather) | (1, Moment::After, When::AfterGather) => {
                send_to_itself(signal);
            }
            (1, Moment::Inside, When::BeforeGather) => {
                thread::spawn(move || {
                    thread::sleep(Duration::from_millis(100));
                    send_to_itself(signal);
                });
            }
            (2, Moment::Inside, When::BeforeGather) => thread::sleep(Duration::from_millis(300)),
            _ => {}
        }
    });
    let mut head = head_of(&test_head(), &config(2 * SHORT_MS), rank.size, me, exchange).expect("a head");
    for _ in 0..3 {
        good_step(&mut head).expect("a good step");
    }
    await_end_of(2, &*rank.exchange);
    armed.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let ended = outcome(began, &good_step(&mut head));
    // A rank that has given up must not leave before the others' deadline.
    thread::sleep(Duration::from_millis(SHORT_MS));
    ended
}

/// The survivors name rank 1 within the deadline plus a second, whenever the signal comes.
fn assert_survivors(name: &str, launcher: Launcher, closes: bool) {
    let mut ranks = Processes::start(launcher, ENTRY, name, SIZE);
    let answers = ranks.answers(Duration::from_secs(60), Some(1));
    for rank in [0, 2] {
        let ms = ms_of(&answers[rank]);
        println!("{name}, {launcher:?}: rank {rank} knew after {ms:.1} ms");
        assert!(ms < 2.0 * SHORT_MS as f64 + 1000.0, "{name}, {launcher:?}, rank {rank}: {ms} ms");
    }
    if !closes {
        return assert_names_the_stopped(&answers, &[0, 2]);
    }
    for rank in [0, 2] {
        let (code, text) = error_of(&answers[rank]);
        assert!(code == LOST && text.contains("ranks [1] have left"), "{name}, rank {rank}: {code} {text}");
    }
}

#[test]
fn a_rank_that_is_killed_before_inside_or_after_a_collective_is_named() {
    for name in ["killed before a collective", "killed inside a collective", "killed after a collective"] {
        for &(_, launcher) in LAUNCHERS {
            // The sockets of a process that dies close; MPI reports nothing.
            assert_survivors(name, launcher, launcher == Launcher::Test);
        }
    }
}

#[test]
fn a_rank_that_stops_inside_a_collective_is_named() {
    for &(_, launcher) in LAUNCHERS {
        assert_survivors("stopped inside a collective", launcher, false);
    }
}

fn a_devices_error() -> Error {
    Error::Device {
        what: "device 0, after kernel matmul".into(),
        problem: "CUDA_ERROR_ILLEGAL_ADDRESS".into(),
        fix: "run it under compute-sanitizer".into(),
    }
}

/// A good step; then the product of rank 1 calls `odd`, once. The rebuilt head answers as before.
fn odd_product(rank: Rank, timeout_ms: u64, odd: fn() -> Result<()>) -> Value {
    let armed = Arc::new(AtomicBool::new(false));
    let on = Arc::clone(&armed);
    let backend = failing(lmhead_testkit::backend(), move |asked| {
        let here = asked.method == "run" && on.swap(false, Ordering::SeqCst);
        if here { odd() } else { Ok(()) }
    });
    let group = HeadGroup::data_parallel(rank.size, rank.me).expect("a group");
    let (test, config) = (test_head(), config(timeout_ms));
    let shard = test.shard(group.shard(test.vocab, rank.me));
    let mut head = LmHead::new(&config, group, shard, Arc::clone(&rank.exchange), backend).expect("a head");
    let want = good_step(&mut head).expect("a good step");
    armed.store(rank.me == 1, Ordering::SeqCst);
    let began = Instant::now();
    // Rank 1 may have all that it needs for its answer, and then gets its error in the next step.
    let ended = outcome(began, &good_step(&mut head).and_then(|_| good_step(&mut head)));
    rebuild_until_it_answers(&mut head, &want);
    ended
}

fn rebuild_until_it_answers(head: &mut LmHead, want: &Answer) {
    let mut attempts = 1;
    while let Err(error) = head.rebuild() {
        attempts += 1;
        assert!(attempts < 20, "{error}");
    }
    assert_eq!(bits(&good_step(head).expect("a step after the rebuilding")), bits(want));
}

#[test]
fn a_product_that_fails_is_told_to_every_rank_at_once() {
    let allowed = |rank| match rank {
        1 => vec![(DEVICE, "CUDA_ERROR_ILLEGAL_ADDRESS")],
        _ => vec![(
            MISMATCH,
            "aborted: ranks [1] say device 0, after kernel matmul: CUDA_ERROR_ILLEGAL_ADDRESS",
        )],
    };
    assert_all("a product that fails", SIZE, allowed, AT_ONCE);
}

#[test]
fn a_product_that_does_not_end_is_named_at_the_deadline() {
    let allowed = |rank| match rank {
        1 => vec![(TIMEOUT, "ranks [1] did not come within 500ms"), (MISMATCH, "aborted: ranks [1] say")],
        _ => vec![(TIMEOUT, "ranks [1] did not come within 500ms")],
    };
    // Rank 1 itself only returns when its product ends, after three deadlines.
    for (transport, answers) in all("a product that does not end", SIZE) {
        for (rank, answer) in answers.iter().enumerate() {
            let (code, text) = error_of(answer);
            let fits = allowed(rank).iter().any(|(own, words)| *own == code && text.contains(words));
            assert!(fits, "{transport}, rank {rank}: {code} {text}");
            let most = if rank == 1 { 3.0 } else { 1.0 } * SHORT_MS as f64 + 1000.0;
            assert!(ms_of(answer) < most, "{transport}, rank {rank}: {} ms", ms_of(answer));
        }
    }
}

/// Rows of rank 1: 16 MB, more than its memory limit leaves.
const MANY_ROWS: usize = 250_000;

/// Limits this process's memory to its present use and a few MB, or lifts the limit.
#[allow(unsafe_code, reason = "a limit of the process")]
fn limit_memory(on: bool) {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).expect("a size");
    let kb: u64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number");
    let most = if on { (kb << 10) + (6 << 20) } else { libc::RLIM_INFINITY };
    let limit = libc::rlimit { rlim_cur: most, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a whole structure, which is only read.
    let set = unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) };
    assert_eq!(set, 0, "a limit: {}", std::io::Error::last_os_error());
}

/// Rank 1 has no memory for its rows. The limit is lifted before the head is rebuilt.
fn short_memory(rank: Rank) -> Value {
    let (test, config, me) = (test_head(), config(LONG_MS), rank.me);
    let mut head = head_of(&test, &config, rank.size, me, Arc::clone(&rank.exchange)).expect("a head");
    let want = good_step(&mut head).expect("a good step");
    let mut counts = vec![1; rank.size];
    counts[1] = MANY_ROWS;
    let bytes = test.rows(counts[me], 7);
    let hidden = HiddenRows::new(&bytes, DType::F32, counts[me], 16).expect("rows");
    if me == 1 {
        limit_memory(true);
    }
    let began = Instant::now();
    let step = head.step(RowCounts::exact(&counts), &Request::argmax());
    let ended = outcome(began, &step.and_then(|step| step.run(hidden)));
    if me == 1 {
        limit_memory(false);
    }
    rebuild_until_it_answers(&mut head, &want);
    ended
}

/// Only for processes, since ranks of one process share its memory.
#[test]
fn memory_that_is_short_on_one_rank_is_named_on_every_rank() {
    for &(transport, launcher) in LAUNCHERS {
        let mut ranks = Processes::start(launcher, ENTRY, "memory short on one rank", SIZE);
        let answers = ranks.answers(Duration::from_secs(60), None);
        for (rank, answer) in answers.iter().enumerate() {
            assert!(answer.is_some(), "{transport}, rank {rank}: {}", ranks.said(rank));
            let (code, text) = error_of(answer);
            println!("memory short on one rank, {transport}: rank {rank} knew after {:.1} ms", ms_of(answer));
            let own = rank == 1 && code == SHAPE && text.contains("fits this machine's memory");
            let told = rank != 1 && code == MISMATCH && text.contains("aborted: ranks [1] say");
            assert!(own || told, "{transport}, rank {rank}: {code} {text}");
        }
    }
}

/// Rank 1's transport delivers bytes to wrong places while the head is made.
fn wrong_bytes(rank: Rank, wrong: Wrong) -> Value {
    let Rank { me, size, exchange, .. } = rank;
    let exchange: Arc<dyn Exchange> = match me {
        1 => Arc::new(WrongExchange::new(exchange, wrong)),
        _ => exchange,
    };
    let began = Instant::now();
    outcome(began, &head_of(&test_head(), &config(LONG_MS), size, me, exchange))
}

#[test]
fn a_transport_that_delivers_another_ranks_bytes_is_found_at_creation_over_all() {
    for name in ["a gather in another order", "pieces of another rank"] {
        assert_all(name, SIZE, |_| vec![(EXCHANGE, "self-test")], AT_ONCE);
    }
}

/// One row of rank 1 has a NaN, one of rank 2 an infinity: their status says so, and all other rows are
/// answered as they are alone.
fn not_finite(rank: Rank) -> Value {
    let (test, config, me) = (test_head(), config(LONG_MS), rank.me);
    let mut head = head(&rank, &config);
    let whole = Arc::new(local::group(1).remove(0));
    let mut alone = head_of(&test, &config, 1, 0, whole).expect("a head");
    let mut bytes = test.rows(ROWS, me as u64);
    let broken = [None, Some(f32::NAN), Some(f32::INFINITY)][me];
    if let Some(value) = broken {
        bytes[20..24].copy_from_slice(&value.to_ne_bytes());
    }
    let sampling = [SamplingParams { top_p: 0.8, ..SamplingParams::default() }; ROWS];
    let targets = [3i64; ROWS];
    let mut all = Vec::new();
    for request in [
        Request::argmax(),
        Request::top_k(3),
        Request::logits(DType::F16),
        Request::logprobs(2),
        Request::sample(),
    ] {
        let inputs = RowInputs {
            targets: matches!(request, Request::Logprobs { .. }).then_some(&targets[..]),
            sampling: matches!(request, Request::Sample { .. }).then_some(&sampling[..]),
            ..RowInputs::default()
        };
        let run = |head: &mut LmHead, counts| {
            let hidden = HiddenRows::new(&bytes, DType::F32, ROWS, 16)?;
            head.step(counts, &request)?.run_with(hidden, &inputs)
        };
        let got = run(&mut head, exact()).expect("an answer");
        let want = run(&mut alone, RowCounts::exact(&[ROWS])).expect("an answer");
        let first = if broken.is_some() { RowStatus::NonFinite } else { RowStatus::Good };
        assert_eq!(got.row_status, [first, RowStatus::Good], "{request}, rank {me}");
        for row in 0..ROWS {
            assert_eq!(row_bits(&got, row), row_bits(&want, row), "{request}, rank {me}, row {row}");
        }
        all.push(bits(&got));
    }
    json!(all)
}

#[test]
fn a_row_that_is_not_finite_is_a_row_status_over_all_transports() {
    assert_same_over_all("rows that are not finite", SIZE);
}
