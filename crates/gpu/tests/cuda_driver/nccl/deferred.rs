//! Eager steps of several ranks queue all their collectives before the host waits, and a fault is still
//! reported of the first collective that has not ended.

use super::{
    all_are_destroyed, backend, device, each, group, group_with, knew, on_nccl, resident, test_head,
};
use crate::{count, count_on};
use cudarc::driver::result;
use lmhead::DType;
use lmhead::backend::cuda::{Buffer, CudaDevice, CudaStream};
use lmhead::backend::device::{KernelDevice, stream_marks};
use lmhead::config::{HeadConfig, Verify};
use lmhead::exchange::{Exchange, Fault, Operation, Pending, Scratch, StreamCounters, StreamMarks};
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::memory::{Memory, Span, Stream};
use lmhead::result::Request;
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead_gpu::device_step::{Ask, DeviceStep, Source};
use lmhead_gpu::fake_nccl::FakeNccl;
use lmhead_testkit::TestHead;
use lmhead_testkit::requests::ResidentRank;
use lmhead_testkit::wrong::{Wrong, WrongExchange};
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Barrier, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(2);
/// Rows of each rank.
const ROWS: usize = 4;
const HIDDEN: usize = 32;

/// A rank's device, stream and rows.
struct Place {
    device: CudaDevice,
    /// An engine's: before the library frees memory it waits for its own streams, not for this.
    stream: CudaStream,
    states: Buffer,
}

fn places(test: &TestHead, ranks: usize) -> Vec<Place> {
    let of = |me: usize| {
        let device = device(me);
        let create = || result::stream::create(result::stream::StreamKind::NonBlocking);
        let stream = device.bound(create).expect("a context").expect("a stream");
        // SAFETY: it lives as long as the process.
        let stream = unsafe { CudaStream::from_raw(stream.cast()) };
        let states = device.upload(&test.rows(ROWS, me as u64)).expect("memory");
        Place { device, stream, states }
    };
    (0..ranks).map(of).collect()
}

fn group_of(places: &[Place]) -> Vec<Arc<dyn Exchange>> {
    group(&places.iter().map(|place| place.device.clone()).collect::<Vec<_>>())
}

/// One rank's step without a contract check: only its collectives wait for the others.
fn step<'d>(
    test: &TestHead,
    Place { device, stream, states }: &'d Place,
    exchange: Arc<dyn Exchange>,
    (ask, timeout): (Ask, Duration),
) -> DeviceStep<'d> {
    let (me, ranks) = (exchange.me(), exchange.size());
    let members = HeadGroup::data_parallel(ranks, me).expect("a group");
    let shard = test.shard(members.shard(test.vocab, me));
    let config = HeadConfig { verify: Verify::WarmUp, timeout, ..test.config() };
    let head = LmHead::new(&config, members, shard, exchange, backend(device)).expect("a head");
    let memory = Memory::Device(device.ordinal());
    // SAFETY: the memory outlives the step and is not written.
    let states = unsafe { Span::from_raw(memory, states.address(), states.len()) };
    let source = Source { states, dtype: DType::Bf16, rows: ROWS };
    let picks: Vec<i64> = (0..ROWS as i64).rev().collect();
    let counts = RowCounts::exact(&vec![ROWS; ranks]);
    DeviceStep::new(head, ask, counts, (device, *stream), (source, &picks)).expect("a step")
}

/// The bits of a step's answer, once it is complete.
fn answer(Place { device, stream, .. }: &Place, step: &DeviceStep<'_>) -> (Vec<i64>, Vec<u32>) {
    device.wait(*stream).expect("the end of a step");
    let logprobs = step.logprobs().expect("logprobs");
    (step.ids().expect("ids"), logprobs.into_iter().map(f32::to_bits).collect())
}

#[test]
fn all_collectives_of_an_eager_step_are_queued_before_the_host_waits() {
    on_nccl("deferred::in_child_queued", &[]);
}

/// Rank 1 comes when rank 0 has queued its whole step. Until then rank 0's device is in the first collective.
#[test]
#[ignore = "needs the fake libraries: all_collectives_of_an_eager_step_are_queued_before_the_host_waits runs it"]
fn in_child_queued() {
    const PATIENCE: Duration = Duration::from_secs(60);
    let test = test_head();
    let places = places(&test, 2);
    let sampled = Ask::sample(|params| params.top_p = 0.9).by_device();
    for (ask, first) in [
        (Ask::plain(Request::logits(DType::F32)), Operation::GatherRows),
        (Ask::plain(Request::argmax()), Operation::GatherRows),
        (Ask::plain(Request::top_k(3)), Operation::GatherRows),
        (Ask::plain(Request::logprobs(2)), Operation::Targets),
        (Ask::plain(Request::sample()), Operation::GatherRows),
        (sampled, Operation::GatherRows),
    ] {
        let (meeting, wanted) = (Barrier::new(2), AtomicI64::new(0));
        each(group_of(&places), |me, exchange| {
            let mut step = step(&test, &places[me], exchange, (ask, 2 * PATIENCE));
            let collectives = || count_on("collectives", 0);
            meeting.wait();
            let before = collectives();
            meeting.wait();
            // The first step of its kind in this workspace.
            step.run().expect("a step");
            meeting.wait();
            let each = collectives() - before;
            assert!(each > 1, "{ask}: {each} collectives");
            wanted.store(before + 2 * each, Ordering::SeqCst);
            let wanted_bits = answer(&places[me], &step);
            step.poison().expect("copies");
            meeting.wait();
            if me == 1 {
                let until = Instant::now() + PATIENCE;
                while collectives() < wanted.load(Ordering::SeqCst) {
                    assert!(Instant::now() < until, "{ask}: rank 0 waits before it has queued its step");
                    thread::sleep(Duration::from_millis(1));
                }
                let evidence = step.head.flight_recorder().evidence();
                let place = evidence.last_seen[0].place.expect("rank 0 has been seen");
                assert_eq!(place.operation, first, "{ask}");
            }
            step.run().expect("a step");
            assert_eq!(answer(&places[me], &step), wanted_bits, "{ask}, rank {me}");
            meeting.wait();
        });
    }
    all_are_destroyed();
}

#[test]
fn a_fault_is_of_the_first_collective_that_does_not_end() {
    on_nccl("deferred::in_child_first", &[("FAKE_NCCL_RANK", "1")]);
}

#[test]
#[ignore = "needs the fake libraries: a_fault_is_of_the_first_collective_that_does_not_end runs it"]
fn in_child_first() {
    const RANKS: usize = 3;
    let (resident, test, fake) = (resident(RANKS), test_head(), FakeNccl::loaded());
    let (meeting, operations) = (Barrier::new(RANKS), [Operation::GatherRows, Operation::ExchangeResults]);
    let config = HeadConfig { verify: Verify::WarmUp, timeout: DEADLINE, ..test.config() };
    each(resident.group(&[0, 1, 2]), |me, exchange| {
        let mut rank = ResidentRank::new(&resident, &test, &config, exchange).expect("a head");
        let wanted = ResidentRank::wanted(&resident, &test, me);
        for (fault, words) in [
            ("STALL", "no end on the device within 2s; every member has come to it"),
            ("ASYNC", "internal error - please report this issue to the NCCL developers (code 3)"),
        ] {
            for (which, operation) in operations.into_iter().enumerate() {
                // Steps of this kind are known after the first; the second queues its collectives without
                // waiting.
                for _ in 0..2 {
                    assert_eq!(rank.step().expect("a step"), wanted, "rank {me}");
                }
                if meeting.wait().is_leader() {
                    let from = fake.count("launches") / RANKS as i64 + which as i64;
                    fake.set("FROM", Some(&from.to_string()));
                    fake.set(fault, Some("3"));
                }
                meeting.wait();
                let began = Instant::now();
                let error = rank.step().expect_err("a collective that does not end");
                let took = began.elapsed();
                knew(&format!("{fault} in the {operation}"), me, took);
                let text = error.to_string();
                assert!(text.contains(words), "rank {me}: {text}");
                let first = text.lines().next().unwrap_or_default();
                let named = operations.map(|any| first.contains(any.name()));
                // NCCL's own error is the communicator's: it may be seen while either collective is awaited
                // or queued.
                let exact = fault == "STALL";
                assert!(named.contains(&true), "rank {me}: {text}");
                assert!(!exact || named == operations.map(|any| any == operation), "rank {me}: {text}");
                assert!(took < DEADLINE + Duration::from_secs(1), "rank {me}: {took:?}");
                if meeting.wait().is_leader() {
                    fake.set(fault, None);
                }
                meeting.wait();
                rank.head.rebuild().expect("a rebuilt head");
            }
        }
        assert_eq!(rank.step().expect("a step"), wanted);
    });
    all_are_destroyed();
}

#[test]
fn a_rank_that_fails_behind_a_queued_collective_says_so_at_once() {
    on_nccl("deferred::in_child_refused", &[]);
}

/// Rank 2 does not come, so the gather does not end. Rank 1's workspace is refused once the gather is queued.
#[test]
#[ignore = "needs the fake libraries: a_rank_that_fails_behind_a_queued_collective_says_so_at_once runs it"]
fn in_child_refused() {
    const RANKS: usize = 3;
    let (test, meeting, timeout) = (test_head(), Barrier::new(RANKS), 10 * DEADLINE);
    let places = places(&test, RANKS);
    each(group_of(&places), |me, exchange| {
        let ask = Ask::plain(Request::argmax());
        let mut step = step(&test, &places[me], exchange, (ask, timeout));
        (0..2).for_each(|_| step.run().expect("a step"));
        let wanted = answer(&places[me], &step);
        step.poison().expect("copies");
        let enough = step.workspace();
        meeting.wait();
        if me < 2 {
            if me == 1 {
                step.lend(16).expect("memory");
            }
            let began = Instant::now();
            let error = step.run().expect_err("a step without rank 2").to_string();
            let took = began.elapsed();
            knew("a workspace that is too small", me, took);
            let words =
                if me == 1 { "allocate what LoadedShard::workspace says" } else { "aborted: ranks [1] say" };
            assert!(error.contains(words), "rank {me}: {error}");
            assert!(took < timeout / 2, "rank {me}: {took:?}");
        }
        meeting.wait();
        step.lend(enough).expect("memory");
        step.head.rebuild().expect("a rebuilt head");
        step.run().expect("a step");
        assert_eq!(answer(&places[me], &step), wanted, "rank {me}");
        meeting.wait();
    });
    all_are_destroyed();
}

#[test]
fn nothing_is_allocated_or_freed_behind_a_queued_collective() {
    on_nccl("deferred::in_child_memory", &[]);
}

/// A step in host memory takes the place of buffers that steps on the device have had. The next one on the
/// device makes them anew: a driver may wait there for the collective before, and so for a peer.
#[test]
#[ignore = "needs the fake libraries: nothing_is_allocated_or_freed_behind_a_queued_collective runs it"]
fn in_child_memory() {
    const RANKS: usize = 2;
    let test = test_head();
    let places = places(&test, RANKS);
    for ask in [
        Ask::plain(Request::logits(DType::F32)),
        Ask::plain(Request::argmax()),
        Ask::plain(Request::top_k(3)),
        Ask::plain(Request::logprobs(2)),
        Ask::sample(|params| params.top_p = 0.9).by_device(),
    ] {
        each(group_of(&places), |me, exchange| {
            let mut step = step(&test, &places[me], exchange, (ask, 30 * DEADLINE));
            (0..2).for_each(|_| step.run().expect("a step"));
            let wanted = answer(&places[me], &step);
            let rows = test.rows(ROWS, me as u64);
            let rows = HiddenRows::strided(Span::host(&rows), DType::Bf16, ROWS, HIDDEN, 2 * HIDDEN);
            let on_host = step.head.step(RowCounts::exact(&[ROWS; RANKS]), &Request::argmax());
            on_host.and_then(|step| step.run(rows?)).expect("a step in host memory");
            step.poison().expect("copies");
            (0..2).for_each(|_| step.run().expect("a step"));
            assert_eq!(answer(&places[me], &step), wanted, "{ask}, rank {me}");
        });
        assert_eq!(count("blocked"), 0, "{ask}");
    }
    all_are_destroyed();
}

#[test]
fn a_rank_that_queues_for_long_is_where_it_waits_for_the_others() {
    on_nccl("deferred::in_child_slow_alone", &[("FAKE_NCCL_RANK", "0")]);
}

#[test]
fn a_rank_that_queues_for_long_is_in_that_collective_when_those_before_it_have_ended() {
    on_nccl("deferred::in_child_slow_behind", &[("FAKE_NCCL_RANK", "0")]);
}

#[test]
#[ignore = "needs the fake libraries: a_rank_that_queues_for_long_is_where_it_waits_for_the_others runs it"]
fn in_child_slow_alone() {
    queues_for_long(false);
}

#[test]
#[ignore = "needs the fake libraries: a_rank_that_queues_for_long_is_in_that_collective_when_those_before_it_have_ended runs it"]
fn in_child_slow_behind() {
    queues_for_long(true);
}

/// NCCL does not come to an end with the queueing of rank 0's second collective. Rank 1 comes to both, or to
/// none.
fn queues_for_long(comes: bool) {
    const RANKS: usize = 2;
    let (test, fake, meeting) = (test_head(), FakeNccl::loaded(), Barrier::new(RANKS));
    let places = places(&test, RANKS);
    let operation = if comes { Operation::ExchangeResults } else { Operation::GatherRows };
    each(group_of(&places), |me, exchange| {
        let mut step = step(&test, &places[me], exchange, (Ask::plain(Request::argmax()), DEADLINE));
        (0..2).for_each(|_| step.run().expect("a step"));
        let wanted = answer(&places[me], &step);
        if meeting.wait().is_leader() {
            let second = fake.count("launches") / RANKS as i64 + 1;
            fake.set("FROM", Some(&second.to_string()));
            fake.set("SLOW", Some("60000"));
        }
        meeting.wait();
        let recorder = step.head.flight_recorder();
        thread::scope(|scope| {
            let seen = scope.spawn(|| {
                thread::sleep(DEADLINE / 2);
                recorder.evidence().last_seen[0].place.expect("rank 0 has been seen").operation
            });
            if me == 0 || comes {
                let began = Instant::now();
                let error = step.run().expect_err("a collective that is not queued").to_string();
                let took = began.elapsed();
                knew("a collective that NCCL does not queue", me, took);
                let first = error.lines().next().unwrap_or_default();
                assert!(first.contains(operation.name()), "rank {me}: {error}");
                let words = if comes { "every member has come to it" } else { "ranks [1] did not come" };
                assert!(error.contains(words), "rank {me}: {error}");
                assert!(took < DEADLINE + Duration::from_secs(1), "rank {me}: {took:?}");
            }
            assert_eq!(seen.join().expect("a place"), operation, "as rank {me} sees it");
        });
        if meeting.wait().is_leader() {
            fake.set("SLOW", None);
        }
        meeting.wait();
        step.head.rebuild().expect("a rebuilt head");
        step.run().expect("a step");
        assert_eq!(answer(&places[me], &step), wanted, "rank {me}");
        meeting.wait();
    });
    all_are_destroyed();
}

/// A device's marks; some are refused.
struct CheckedMarks {
    inner: Arc<dyn StreamMarks>,
    awaited: Mutex<BTreeSet<u64>>,
    /// Marks until one is refused; negative where none will be.
    left: AtomicI64,
}

impl CheckedMarks {
    fn new(device: &CudaDevice) -> Arc<Self> {
        let (inner, awaited) = (stream_marks(device), Mutex::default());
        Arc::new(CheckedMarks { inner, awaited, left: AtomicI64::new(-1) })
    }

    fn awaited(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.awaited.lock().expect("no panic beside it")
    }
}

impl StreamMarks for CheckedMarks {
    fn memory(&self) -> Memory {
        self.inner.memory()
    }

    fn mark(&self, stream: Stream) -> Result<Pending, Fault> {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            return Err(Fault::Broken { problem: "a refused mark".into(), fix: "none".into() });
        }
        let mark = self.inner.mark(stream)?;
        assert!(self.awaited().insert(mark.0));
        Ok(mark)
    }

    fn is_reached(&self, mark: Pending) -> Result<bool, Fault> {
        self.inner.is_reached(mark)
    }

    fn give_back(&self, mark: Pending) {
        if !self.awaited().remove(&mark.0) {
            eprintln!("mark {} is given back twice", mark.0);
            std::process::exit(101);
        }
        self.inner.give_back(mark);
    }

    fn counters(&self) -> Result<Arc<dyn StreamCounters>, Fault> {
        self.inner.counters()
    }

    fn scratch(&self, bytes: usize) -> Result<Box<dyn Scratch>, Fault> {
        self.inner.scratch(bytes)
    }

    fn with_context(&self, run: &mut dyn FnMut()) -> Result<(), Fault> {
        self.inner.with_context(run)
    }
}

/// # Panics
/// Where the stream's work has not ended by the deadline.
fn comes_to_its_end(Place { device, stream, .. }: &Place) {
    let (marks, began) = (stream_marks(device), Instant::now());
    let mark = marks.mark(device.handle(*stream)).expect("a mark");
    while marks.is_reached(mark) != Ok(true) {
        assert!(began.elapsed() < DEADLINE, "something is left on the stream");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Where rank 0 panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Panics {
    /// Where it begins to wait for the exchange of results, which is queued and does not end.
    Before,
    /// While it waits for it, in the first step of a kind: for each collective at once.
    First,
    /// While it looks for who is gone, after NCCL has said that a peer is.
    Blaming,
}

#[test]
fn a_panic_behind_queued_collectives_leaves_nothing_on_the_stream() {
    on_nccl("deferred::in_child_panic", &[("FAKE_NCCL_RANK", "1")]);
}

#[test]
#[ignore = "needs the fake libraries: a_panic_behind_queued_collectives_leaves_nothing_on_the_stream runs it"]
fn in_child_panic() {
    [Panics::Before, Panics::First, Panics::Blaming].into_iter().for_each(panics_at);
}

fn panics_at(panics_at: Panics) {
    const RANKS: usize = 2;
    let (test, fake, meeting, panics) =
        (test_head(), FakeNccl::loaded(), Barrier::new(RANKS), OnceLock::new());
    let places = places(&test, RANKS);
    let marks: Vec<Arc<CheckedMarks>> = places.iter().map(|place| CheckedMarks::new(&place.device)).collect();
    // The collective that does not end, by its number in the step.
    let (operation, which, fault) = match panics_at {
        Panics::Before | Panics::First => (Operation::ExchangeResults, 1, "STALL"),
        Panics::Blaming => (Operation::GatherRows, 0, "LOST"),
    };
    let host = |me, local| {
        let (exchange, on) = WrongExchange::later(Arc::new(local), Wrong::PanicInPlace(operation));
        if me == 0 {
            panics.set(on).expect("one rank");
        }
        Arc::new(exchange) as Arc<dyn Exchange>
    };
    let endpoints = group_with(RANKS, host, |me| Arc::clone(&marks[me]) as Arc<dyn StreamMarks>);
    let set_panics = |on| panics.get().expect("a switch").store(on, Ordering::SeqCst);
    let launched = || fake.count("launches");
    each(endpoints, |me, exchange| {
        let ask = Ask::plain(Request::argmax());
        let mut step = step(&test, &places[me], exchange, (ask, 10 * DEADLINE));
        if panics_at != Panics::First {
            (0..2).for_each(|_| step.run().expect("a step"));
        }
        step.poison().expect("copies");
        meeting.wait();
        let before = launched();
        let from = before / RANKS as i64 + which;
        if meeting.wait().is_leader() {
            fake.set("FROM", Some(&from.to_string()));
            fake.set(fault, Some("1"));
            set_panics(panics_at == Panics::Before);
        }
        meeting.wait();
        let began = Instant::now();
        let await_launched = |more: i64| {
            while launched() < before + more {
                assert!(began.elapsed() < DEADLINE, "a collective that is not queued");
                thread::sleep(Duration::from_millis(1));
            }
        };
        if me == 1 && panics_at == Panics::Blaming {
            // Rank 0 has queued its step, and waits.
            await_launched(2);
        }
        let ended = thread::scope(|scope| {
            if me == 1 && panics_at != Panics::Before {
                // Both ranks have come to the collective.
                scope.spawn(|| {
                    await_launched(if panics_at == Panics::First { 4 } else { 3 });
                    set_panics(true);
                });
            }
            catch_unwind(AssertUnwindSafe(|| step.run()))
        });
        let took = began.elapsed();
        if me == 0 {
            assert!(ended.is_err(), "{panics_at:?}: it has panicked");
            comes_to_its_end(&places[me]);
        } else {
            let error = ended.expect("no panic").expect_err("a step without rank 0").to_string();
            knew("a panic behind a queued collective", me, took);
            assert!(error.contains("its thread panicked in the step"), "{panics_at:?}: {error}");
        }
        assert!(took < DEADLINE, "{panics_at:?}, rank {me}: {took:?}");
        assert_eq!(*marks[me].awaited(), BTreeSet::new(), "{panics_at:?}, rank {me}");
        let refused = step.run().expect_err("a poisoned head");
        assert!(matches!(refused, lmhead::Error::Poisoned { .. }), "rank {me}: {refused}");
        if meeting.wait().is_leader() {
            fake.set(fault, None);
            set_panics(false);
        }
        meeting.wait();
        step.head.rebuild().expect("a rebuilt head");
        step.run().expect("a step");
        let wanted = answer(&places[me], &step);
        step.poison().expect("copies");
        step.run().expect("a step");
        assert_eq!(answer(&places[me], &step), wanted, "{panics_at:?}, rank {me}");
        meeting.wait();
    });
    all_are_destroyed();
}

#[test]
fn a_collective_that_cannot_be_waited_for_is_ended() {
    on_nccl("deferred::in_child_unmarked", &[]);
}

/// Rank 1 does not come, and the device refuses rank 0's mark behind the gather.
#[test]
#[ignore = "needs the fake libraries: a_collective_that_cannot_be_waited_for_is_ended runs it"]
fn in_child_unmarked() {
    const RANKS: usize = 2;
    let (test, meeting) = (test_head(), Barrier::new(RANKS));
    let places = places(&test, RANKS);
    let marks: Vec<Arc<CheckedMarks>> = places.iter().map(|place| CheckedMarks::new(&place.device)).collect();
    for known in [false, true] {
        let host = |_, local| Arc::new(local) as Arc<dyn Exchange>;
        let endpoints = group_with(RANKS, host, |me| Arc::clone(&marks[me]) as Arc<dyn StreamMarks>);
        each(endpoints, |me, exchange| {
            let ask = Ask::plain(Request::argmax());
            let mut step = step(&test, &places[me], exchange, (ask, 10 * DEADLINE));
            if known {
                (0..2).for_each(|_| step.run().expect("a step"));
            }
            step.poison().expect("copies");
            meeting.wait();
            if me == 0 {
                marks[me].left.store(1, Ordering::SeqCst);
                let began = Instant::now();
                let error = step.run().expect_err("a step without rank 1").to_string();
                assert!(error.contains("a refused mark"), "{error}");
                assert!(began.elapsed() < DEADLINE, "{:?}", began.elapsed());
                comes_to_its_end(&places[me]);
                assert_eq!(*marks[me].awaited(), BTreeSet::new());
            }
            meeting.wait();
            step.head.rebuild().expect("a rebuilt head");
            (0..2).for_each(|_| step.run().expect("a step"));
            meeting.wait();
        });
    }
    all_are_destroyed();
}
