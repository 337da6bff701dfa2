//! The engine's own transport: the same bits as unsharded whichever functions the engine has, and a named
//! error whatever they do wrong.

#![allow(unsafe_code, reason = "functions of an engine, which get addresses")]

use lmhead::config::{HeadConfig, Quantization, Verify};
use lmhead::dtype::DType;
use lmhead::error::{Error, Result};
use lmhead::exchange::callbacks::{self, Report, Status, Transport};
use lmhead::exchange::{Call, Exchange, Fault, Operation, Piece, Reset};
use lmhead::head::LmHead;
use lmhead::memory::{Memory, Stream};
use lmhead::result::{Answer, Request};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead_testkit::engine::{Functions, Odd, engines, group, group_of};
use lmhead_testkit::{Random, TestHead, backend, each_rank_over, end_to_end, head_of, requests, row_bits};
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const KINDS: [(DType, Quantization); 3] =
    [(DType::F32, Quantization::None), (DType::Bf16, Quantization::W8a8), (DType::F16, Quantization::W8a16)];

fn functions() -> impl Strategy<Value = Functions> {
    any::<[bool; 4]>().prop_map(|[all_gather, notify_abort, place, reset]| Functions {
        all_gather,
        notify_abort,
        place,
        reset,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any layout, group size, mode and rows. Without a gather function, gathers use all_to_all, also over a
    /// part of the members.
    #[test]
    fn sharded_equals_alone_in_every_bit(case in end_to_end::cases(&KINDS, 149), functions in functions()) {
        case.holds_over(&backend(), &|size| group_of(size, functions, |_, _, _| None))?;
    }

    #[test]
    fn every_request_answers_what_it_does_alone(case in requests::cases(&KINDS), functions in functions()) {
        case.holds_over(&backend(), &|size| group_of(size, functions, |_, _, _| None))?;
    }
}

const SIZE: usize = 3;
const ROWS: usize = 2;
const SHORT: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(60);
/// The limit for "at once" on a busy machine: far below [`LONG`].
const AT_ONCE: Duration = Duration::from_secs(10);

fn test_head() -> TestHead {
    TestHead::random(200, 16, DType::F32, Quantization::None, 3)
}

fn config(timeout: Duration) -> HeadConfig {
    HeadConfig { timeout, ..test_head().config() }
}

fn step(head: &mut LmHead) -> Result<Answer> {
    let bytes = test_head().rows(ROWS, 7);
    let hidden = HiddenRows::new(&bytes, DType::F32, ROWS, 16)?;
    head.step(RowCounts::exact(&[ROWS; SIZE]), &Request::argmax())?.run(hidden)
}

fn head(me: usize, exchange: Arc<dyn Exchange>, timeout: Duration) -> LmHead {
    head_of(&test_head(), &config(timeout), SIZE, me, exchange).expect("a head")
}

/// What rank 1's function does wrong in a step, and how the step then ends on rank 1 and on the others, as
/// codes of [`Error::code`].
struct Row {
    odd: Odd,
    there: (i32, &'static str),
    others: (i32, &'static str),
    /// Whether the step ends only at the deadline.
    waits: bool,
}

const EXCHANGE: i32 = 12;
const MISMATCH: i32 = 8;
const TIMEOUT: i32 = 9;

/// Rows of the table in which the other ranks are notified, so that nobody waits for the deadline.
const fn told(odd: Odd, there: &'static str, others: &'static str) -> Row {
    Row { odd, there: (EXCHANGE, there), others: (MISMATCH, others), waits: false }
}

const TABLE: &[Row] = &[
    told(
        Odd::Panics,
        "the callback `all_gather` panicked: an engine's bug in all_gather",
        "aborted: ranks [1] say the callback `all_gather` panicked",
    ),
    told(Odd::Returns(Status(77)), "returned 77, which is no status: wanted 0 to 6", "ranks [1] say"),
    told(Odd::Returns(Status(-1)), "returned -1, which is no status", "ranks [1] say"),
    told(Odd::Returns(Status::BROKEN), "`all_gather` failed without saying why", "ranks [1] say"),
    told(Odd::Returns(Status::LOST), "returned LOST and marked no member with it", "ranks [1] say"),
    told(Odd::Returns(Status::LENGTH), "returned LENGTH and marked no member", "ranks [1] say"),
    told(Odd::Marks(2, Status(-4), Status::TIMEOUT), "marked member 2 with -4", "ranks [1] say"),
    told(
        Odd::Marks(2, Status::LOST, Status::GOOD),
        "returned GOOD and marked member 2 with LOST",
        "aborted: ranks [1] say the callback `all_gather` returned GOOD and marked member 2 with LOST",
    ),
    Row {
        there: (MISMATCH, "counts: ranks [2] say 0 bytes where 128 were expected"),
        ..told(Odd::Marks(2, Status::LENGTH, Status::LENGTH), "", "ranks [1] say")
    },
    Row {
        odd: Odd::Late(Duration::from_millis(50)),
        // The error names the operation that was late, not the next one, which the rank does not reach.
        there: (TIMEOUT, "step 1: all_gather of hidden rows: ranks"),
        others: (TIMEOUT, "ranks [1] did not come within 500ms"),
        waits: true,
    },
];

#[test]
fn whatever_a_function_does_wrong_is_named_on_every_rank() {
    for Row { odd, there, others, waits } in TABLE {
        let on = Arc::new(AtomicBool::new(false));
        let switch = Arc::clone(&on);
        let exchanges = group_of(SIZE, Functions::ALL, move |me, function, _| {
            let here = me == 1 && function == "all_gather" && switch.load(Ordering::SeqCst);
            // The second gather of a step: the first one carries the headers.
            (here && switch.swap(false, Ordering::SeqCst)).then_some(*odd)
        });
        let ready = Barrier::new(SIZE);
        let timeout = if *waits { SHORT } else { LONG };
        let ends = each_rank_over(exchanges, |me, exchange| {
            let mut head = head(me, exchange, timeout);
            let want = step(&mut head).expect("a good step");
            ready.wait();
            let began = Instant::now();
            let bytes = test_head().rows(ROWS, 7);
            let hidden = HiddenRows::new(&bytes, DType::F32, ROWS, 16).expect("rows");
            let request = Request::argmax();
            let begun = head.step(RowCounts::exact(&[ROWS; SIZE]), &request).expect("headers that agree");
            if me == 1 {
                on.store(true, Ordering::SeqCst);
            }
            // The others may have all that they need for this step, and get the error in the next one.
            let error = begun.run(hidden).and_then(|_| step(&mut head)).expect_err("an odd function");
            let took = began.elapsed();
            assert!(matches!(step(&mut head), Err(Error::Poisoned { .. })));
            while head.rebuild().is_err() {
                assert!(began.elapsed() < LONG, "it is not rebuilt");
            }
            let again = step(&mut head).expect("a step after the rebuilding");
            assert_eq!(row_bits(&again, 0), row_bits(&want, 0));
            (error, took)
        });
        for (rank, (error, took)) in ends.into_iter().enumerate() {
            let want = if rank == 1 { there } else { others };
            let text = error.to_string();
            assert!(
                error.code() == want.0 && text.contains(want.1),
                "{odd:?}, rank {rank}: {text}\n{want:?}"
            );
            let most = if *waits { SHORT + Duration::from_secs(1) } else { AT_ONCE };
            println!("{odd:?}, rank {rank}: {took:?}");
            assert!(took < most, "{odd:?}, rank {rank}: {took:?}");
        }
    }
}

/// Without notices the others wait until the deadline, and name the rank.
#[test]
fn without_notices_a_function_that_fails_is_named_at_the_deadline() {
    let on = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&on);
    let exchanges = group_of(SIZE, Functions::LEAST, move |me, _, call| {
        let here = me == 1 && call.operation == Operation::Contract && switch.load(Ordering::SeqCst);
        here.then_some(Odd::Panics)
    });
    let ready = Barrier::new(SIZE);
    each_rank_over(exchanges, |me, exchange| {
        let mut head = head(me, exchange, SHORT);
        step(&mut head).expect("a good step");
        on.store(true, Ordering::SeqCst);
        ready.wait();
        let began = Instant::now();
        let text = step(&mut head).expect_err("a panic").to_string();
        let took = began.elapsed();
        let rebuilt = head.rebuild().expect_err("no reset").to_string();
        // A rank that leaves would be lost to the others: wait for them.
        ready.wait();
        assert!(took < SHORT + Duration::from_secs(1), "{took:?}");
        // The last rank to give up may miss one that has given up already.
        let missing = ["ranks [1] did", "ranks [0, 1] did", "ranks [1, 2] did"];
        let named = missing.iter().any(|missing| text.contains(&format!("{missing} not come within 500ms")));
        assert!(if me == 1 { text.contains("panicked") } else { named }, "rank {me}: {text}");
        // Rebuilding is refused, too.
        assert!(rebuilt.contains("`callbacks` cannot be brought back after a fault"), "{rebuilt}");
        assert!(rebuilt.contains("make a new exchange and new heads on every rank"), "{rebuilt}");
    });
}

/// Without headers, differing lengths are the only sign of a disagreement.
#[test]
fn other_lengths_in_a_step_without_headers_are_told_by_both_sides() {
    let exchanges = group(SIZE);
    let ready = Barrier::new(SIZE);
    let texts = each_rank_over(exchanges, |me, exchange| {
        let config = HeadConfig { verify: Verify::WarmUp, ..config(LONG) };
        let mut head = head_of(&test_head(), &config, SIZE, me, exchange).expect("a head");
        step(&mut head).expect("a good step");
        let rows = if me == 1 { 3 } else { ROWS };
        let bytes = test_head().rows(rows, 7);
        let hidden = HiddenRows::new(&bytes, DType::F32, rows, 16).expect("rows");
        let counts: Vec<usize> = (0..SIZE).map(|m| if m == 1 { rows } else { ROWS }).collect();
        let began = Instant::now();
        let begun = head.step(RowCounts::exact(&counts), &Request::argmax());
        let error = begun.and_then(|begun| begun.run(hidden)).expect_err("other counts");
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
        ready.wait();
        (error.code(), error.to_string())
    });
    for (rank, (code, text)) in texts.iter().enumerate() {
        assert_eq!(*code, MISMATCH, "rank {rank}: {text}");
    }
    assert!(texts[0].1.contains("ranks [1] say 192 bytes where 128 were expected"), "{}", texts[0].1);
}

fn call(step: u64, timeout: Duration) -> Call {
    let began = Instant::now();
    let operation = Operation::GatherRows;
    Call { head: 1, instance: 0, epoch: 0, step, operation, terms: 0, began, deadline: began + timeout }
}

fn gather(exchange: &dyn Exchange, call: &Call) -> std::result::Result<Vec<u8>, Fault> {
    let mut bytes = vec![9u8; exchange.size()];
    let everyone: Vec<usize> = (0..exchange.size()).collect();
    let mut pieces: Vec<&mut [u8]> = bytes.chunks_mut(1).collect();
    exchange.all_gather_v(call, &everyone, &[exchange.me() as u8], &mut pieces)?;
    Ok(bytes)
}

#[test]
fn uneven_and_empty_pieces_arrive_whole_by_whatever_functions() {
    const SEED: u64 = 20_261_129;
    println!("seed {SEED}");
    for functions in [Functions::ALL, Functions::LEAST] {
        for size in [1, 2, 5, 8] {
            each_rank_over(group_of(size, functions, |_, _, _| None), |me, exchange| {
                let (_, channel) = exchange.channel(1).expect("a channel");
                let mut random = Random(SEED ^ size as u64);
                for round in 0..100 {
                    let lengths: Vec<usize> =
                        (0..size * size).map(|_| random.below(4) * random.below(200)).collect();
                    let byte = |from: usize, to: usize| (from * 16 + to + round) as u8;
                    let send: Vec<Vec<u8>> =
                        (0..size).map(|to| vec![byte(me, to); lengths[me * size + to]]).collect();
                    let send: Vec<&[u8]> = send.iter().map(Vec::as_slice).collect();
                    let mut recv: Vec<Vec<u8>> =
                        (0..size).map(|from| vec![0; lengths[from * size + me]]).collect();
                    let mut pieces: Vec<&mut [u8]> = recv.iter_mut().map(Vec::as_mut_slice).collect();
                    channel.all_to_all_v(&call(round as u64, LONG), &send, &mut pieces).expect("pieces");
                    for (from, got) in recv.iter().enumerate() {
                        assert!(got.iter().all(|got| *got == byte(from, me)), "from {from} to {me}");
                    }
                }
            });
        }
    }
}

#[test]
fn a_member_in_another_call_or_with_another_length_is_told_apart_and_the_channel_goes_on() {
    each_rank_over(group(2), |me, exchange| {
        let other = gather(&*exchange, &call(me as u64, LONG));
        let theirs = |fault: &Fault| {
            matches!(fault, Fault::OtherCall { member, theirs }
            if *member == 1 - me && theirs.contains(&format!("of step {}", 1 - me)))
        };
        assert!(other.as_ref().is_err_and(theirs), "{other:?}");
        let mut recv = [vec![0u8; 2], vec![0u8; 2]];
        let mut pieces: Vec<&mut [u8]> = recv.iter_mut().map(Vec::as_mut_slice).collect();
        let send = vec![7u8; 2 + me];
        let fault = exchange.all_gather_v(&call(2, LONG), &[0, 1], &send, &mut pieces);
        assert_eq!(fault, Err(Fault::Length { peers: vec![(1, 2, 3)] }));
        assert_eq!(recv, [[7, 7], [7, 7]]);
        assert_eq!(gather(&*exchange, &call(3, LONG)), Ok(vec![0, 1]));
    });
}

#[test]
fn a_channel_stays_in_its_fault_until_the_reset_and_calls_nothing_meanwhile() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let exchanges = group_of(2, Functions::ALL, move |_, function, call| {
        count.fetch_add(usize::from(function == "all_gather"), Ordering::SeqCst);
        (call.step == 7).then_some(Odd::Returns(Status::BROKEN))
    });
    let together = Barrier::new(2);
    each_rank_over(exchanges, |me, exchange| {
        let first = gather(&*exchange, &call(7, LONG)).expect_err("the function fails");
        assert!(matches!(first, Fault::Broken { .. } | Fault::Aborted { .. }), "{first:?}");
        together.wait();
        let before = calls.load(Ordering::SeqCst);
        for step in 8..10 {
            match gather(&*exchange, &call(step, LONG)) {
                Err(Fault::Earlier { call, fault }) => assert_eq!((call.step, &*fault), (7, &first)),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(exchange.pending_fault().map(|(call, fault)| (call.step, fault)), Some((7, first)));
        together.wait();
        assert_eq!(calls.load(Ordering::SeqCst), before);
        assert_eq!(exchange.reset(&call(9, LONG)), Ok(Reset::Done));
        assert_eq!(exchange.pending_fault(), None);
        assert_eq!(gather(&*exchange, &Call { epoch: 1, ..call(0, LONG) }), Ok(vec![0, 1]), "{me}");
    });
}

#[test]
fn who_gives_up_is_told_at_once_and_a_notice_of_a_later_step_waits_for_it() {
    let together = Barrier::new(2);
    each_rank_over(group(2), |me, exchange| {
        let reason = String::from("no memory");
        let (own, began) = (call(4, LONG), Instant::now());
        if me == 1 {
            exchange.notify_abort(&Call { step: 6, ..own }, &reason);
            together.wait();
            // Messages from before still arrive; rank 1's own channel stays in its fault.
            let told = gather(&*exchange, &Call { step: 6, ..own });
            assert_eq!(told, Err(Fault::Aborted { member: 1, reason }));
        } else {
            together.wait();
            let waits = gather(&*exchange, &call(4, SHORT));
            assert_eq!(waits, Err(Fault::Timeout { missing: vec![1] }), "the notice is of step 6");
            exchange.notify_abort(&own, "not told");
        }
        assert!(began.elapsed() < AT_ONCE);
        together.wait();
        assert_eq!(exchange.reset(&own), Ok(Reset::Done));
        let own = Call { epoch: 1, ..call(6, LONG) };
        if me == 1 {
            exchange.notify_abort(&own, "no memory");
        } else {
            let began = Instant::now();
            let told = gather(&*exchange, &own);
            assert_eq!(told, Err(Fault::Aborted { member: 1, reason: "no memory".into() }));
            assert!(began.elapsed() < AT_ONCE);
        }
    });
}

#[test]
fn another_thread_ends_the_own_wait() {
    let exchanges = group(2);
    let own = call(3, LONG);
    thread::scope(|scope| {
        let waits = scope.spawn(|| (gather(&*exchanges[0], &own), Instant::now()));
        thread::sleep(Duration::from_millis(50));
        let began = Instant::now();
        exchanges[0].notify_abort(&own, "the engine shuts down");
        let (told, ended) = waits.join().expect("no panic");
        assert_eq!(told, Err(Fault::Aborted { member: 0, reason: "the engine shuts down".into() }));
        assert!(ended.saturating_duration_since(began) < AT_ONCE);
    });
}

/// However often each rank has tried alone, they meet in the next creation of all.
#[test]
fn a_rank_that_comes_to_a_later_creation_passes_over_those_that_waited_in_vain() {
    let together = Barrier::new(SIZE);
    let hurried = HeadConfig { create_timeout: Duration::from_millis(100), ..config(LONG) };
    each_rank_over(group(SIZE), |me, exchange| {
        let create = |config: &HeadConfig| head_of(&test_head(), config, SIZE, me, Arc::clone(&exchange));
        let failed: Vec<_> = (0..3 * usize::from(me != 1)).map(|_| create(&hurried).err()).collect();
        together.wait();
        let began = Instant::now();
        let made = create(&config(LONG)).map(|mut head| step(&mut head).map(|_| ()));
        together.wait();
        for error in failed {
            assert!(matches!(error, Some(Error::Timeout { .. })), "{error:?}");
        }
        assert!(matches!(made, Ok(Ok(()))), "rank {me}: {made:?}");
        assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
    });
}

/// The transport would deliver, but what arrives after the deadline is not used.
#[test]
fn who_is_called_after_the_deadline_says_so_and_uses_nothing() {
    let exchanges = group_of(1, Functions::ALL, |_, _, _| None);
    let late = Call { began: Instant::now() - SHORT, deadline: Instant::now(), ..call(3, SHORT) };
    let fault = gather(&*exchanges[0], &late).expect_err("it is late");
    assert!(matches!(&fault, Fault::Aborted { member: 0, reason } if reason.contains("after the deadline")));
}

#[test]
fn where_nobody_is_named_those_are_who_were_last_seen_elsewhere() {
    let silent = |me: usize, _: &'static str, call: &Call| {
        let here = me == 0 && call.step == 5 && call.operation == Operation::GatherRows;
        here.then_some(Odd::Returns(Status::TIMEOUT))
    };
    let exchanges = group_of(3, Functions { all_gather: false, ..Functions::ALL }, silent);
    let channels: Vec<_> = exchanges.iter().map(|e| e.channel(1).expect("a channel").1).collect();
    let own = call(5, Duration::from_millis(50));
    channels[0].note(&own);
    channels[1].note(&Call { operation: Operation::Contract, ..own });
    channels[2].note(&Call { step: 4, operation: Operation::Idle, ..own });
    // Both peers are missing, but rank 1 has come to the step and is itself held up by rank 2.
    assert_eq!(gather(&*channels[0], &own), Err(Fault::Timeout { missing: vec![2] }));
    let places = channels[0].places();
    let steps: Vec<_> = places.iter().map(|place| place.map(|p| (p.step, p.operation))).collect();
    use Operation::{Contract, GatherRows, Idle};
    assert_eq!(steps, [Some((5, GatherRows)), Some((5, Contract)), Some((4, Idle))]);
}

#[test]
fn a_dropped_head_is_lost_at_once_though_its_exchange_lives_on() {
    let together = Barrier::new(SIZE);
    each_rank_over(group(SIZE), |me, exchange| {
        let mut own = head(me, Arc::clone(&exchange), LONG);
        step(&mut own).expect("a good step");
        if me == 1 {
            drop(own);
            together.wait();
            return;
        }
        let began = Instant::now();
        let error = step(&mut own).expect_err("a rank has left");
        assert!(matches!(&error, Error::RankLost { ranks, .. } if *ranks == [1]), "{error}");
        assert!(began.elapsed() < AT_ONCE);
        together.wait();
    });
}

/// A transport that sends nothing and records what it was asked.
#[derive(Default)]
struct Asked(Mutex<Vec<(Vec<Piece>, Vec<Piece>)>>);

// SAFETY: it writes nothing.
unsafe impl Transport for Asked {
    unsafe fn all_to_all(
        &self,
        _: &Call,
        stream: Stream,
        send: &[Piece],
        recv: &[Piece],
        report: &mut Report,
    ) -> Status {
        assert!(stream.is_none());
        assert_eq!(report.peers_mut().len(), 4);
        self.0.lock().expect("no panic").push((send.into(), recv.into()));
        Status::GOOD
    }
}

/// sglang#39899: ranks without rows.
#[test]
fn empty_pieces_have_no_address_and_a_gather_sends_others_nothing() {
    let asked = Arc::new(Asked::default());
    let exchange = callbacks::exchange(4, 2, Arc::clone(&asked) as _).expect("an exchange");
    let (send, mut a, mut b) = ([1u8, 2], [0u8; 3], [0u8; 0]);
    exchange.all_gather_v(&call(0, LONG), &[0, 2], &send, &mut [&mut a, &mut b]).expect("no fault");
    exchange.all_gather_v(&call(1, LONG), &[0, 2], &[], &mut [&mut a, &mut b]).expect("no fault");
    let all = std::mem::take(&mut *asked.0.lock().expect("no panic"));
    let none = Piece::default();
    let own = Piece { address: send.as_ptr().addr() as u64, len: 2 };
    let place = Piece { address: a.as_ptr().addr() as u64, len: 3 };
    assert_eq!(all[0], (vec![own, none, own, none], vec![place, none, none, none]));
    assert_eq!(all[1], (vec![none; 4], vec![place, none, none, none]));
}

#[test]
fn what_cannot_be_an_exchange_is_refused_by_name() {
    struct OnDevice;
    // SAFETY: it writes nothing.
    unsafe impl Transport for OnDevice {
        fn memory(&self) -> Memory {
            Memory::Device(3)
        }
        unsafe fn all_to_all(&self, _: &Call, _: Stream, _: &[Piece], _: &[Piece], _: &mut Report) -> Status {
            Status::GOOD
        }
    }
    let refused =
        |size, me| callbacks::exchange(size, me, Arc::new(Asked::default())).err().map(|e| e.to_string());
    for (size, me) in [(0, 0), (3, 3), (3, usize::MAX)] {
        let text = refused(size, me).expect("no such member");
        assert!(text.contains(&format!("wanted one of 0..{size}, got {me}")), "{text}");
    }
    let text = callbacks::exchange(2, 0, Arc::new(OnDevice)).err().expect("device memory").to_string();
    assert!(text.contains("callbacks for memory of device 3") && text.contains("stream marks"), "{text}");
}

/// `VmRSS`, `Threads` and the number of open files of this process, where the system reports them.
fn resources() -> Option<[u64; 3]> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let number = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Some([number("VmRSS:")?, number("Threads:")?, std::fs::read_dir("/proc/self/fd").ok()?.count() as u64])
}

/// Faults of all kinds, each followed by a rebuild; heads that come and go on one exchange.
#[test]
fn a_thousand_rebuildings_and_heads_leave_nothing_behind() {
    const ROUNDS: usize = 1000;
    let engines: Vec<_> = engines(SIZE, Functions::ALL, |_, _, _| None).into_iter().map(Arc::new).collect();
    let exchanges = engines.iter().enumerate();
    let exchange = |(me, engine): (usize, &Arc<_>)| callbacks::exchange(SIZE, me, Arc::clone(engine) as _);
    let exchanges: Vec<_> = exchanges.map(|pair| exchange(pair).expect("an exchange")).collect();
    let before = Mutex::new(None);
    let together = Barrier::new(SIZE);
    each_rank_over(exchanges, |me, exchange| {
        let mut lasting = head(me, Arc::clone(&exchange), LONG);
        let want = step(&mut lasting).expect("a good step");
        for round in 0..ROUNDS {
            if round == ROUNDS / 5 && together.wait().is_leader() {
                *before.lock().expect("no panic") = resources();
            }
            match (round % 3, round % SIZE == me) {
                (0, true) => drop(lasting.step(RowCounts::exact(&[ROWS; SIZE]), &Request::argmax())),
                (1, true) => drop(lasting.step(RowCounts::capacity(1, 2), &Request::argmax())),
                (2, true) => {
                    let abort = lasting.abort_handle();
                    abort.abort("the round says so");
                }
                _ => assert!(step(&mut lasting).is_err(), "round {round}"),
            }
            lasting.rebuild().unwrap_or_else(|error| panic!("round {round}, rank {me}: {error}"));
            let again = step(&mut lasting).unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert_eq!(row_bits(&again, 1), row_bits(&want, 1));
            let mut passing = head(me, Arc::clone(&exchange), LONG);
            step(&mut passing).expect("a good step");
        }
        together.wait();
        let channels = engines[me].channels();
        assert!(channels <= 2, "{channels} channels are remembered for one head");
    });
    let (Some(before), Some(after)) = (before.into_inner().expect("no panic"), resources()) else {
        return println!("this system does not tell of resources: growth was not judged");
    };
    let [memory, threads, files] = [0, 1, 2].map(|i| after[i].saturating_sub(before[i]));
    println!(
        "after {ROUNDS} rounds: {memory} kB, {threads} threads and {files} files more than after a fifth"
    );
    // Loose bounds, because tests that run beside this one have threads, files and memory of their own.
    assert!(memory < 32 << 10 && threads < 64 && files < 64, "{before:?} {after:?}");
}
