//! Eager steps of several ranks: all collectives of a step are queued before the host waits for any, and a
//! fault is still that of the first one that has not ended.

use super::{all_are_destroyed, backend, device, each, group, knew, on_nccl, resident};
use crate::count_on;
use lmhead::DType;
use lmhead::backend::cuda::{Buffer, CudaDevice};
use lmhead::backend::device::KernelDevice;
use lmhead::config::{HeadConfig, Quantization, Verify};
use lmhead::exchange::{Exchange, Operation};
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::memory::{Memory, Span};
use lmhead::result::Request;
use lmhead::rows::RowCounts;
use lmhead_gpu::device_step::{Ask, DeviceStep, Source};
use lmhead_gpu::fake_nccl::FakeNccl;
use lmhead_testkit::TestHead;
use lmhead_testkit::requests::ResidentRank;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(2);
/// Of each rank.
const ROWS: usize = 4;
const HIDDEN: usize = 32;

fn test_head() -> TestHead {
    TestHead::random(300, HIDDEN, DType::Bf16, Quantization::None, 11)
}

/// Where a rank has its rows.
struct Place {
    device: CudaDevice,
    stream: <CudaDevice as KernelDevice>::OwnedStream,
    states: Buffer,
}

fn places(test: &TestHead, ranks: usize) -> Vec<Place> {
    let of = |me: usize| {
        let device = device(me);
        let stream = device.open_stream().expect("a stream");
        let states = device.upload(&test.rows(ROWS, me as u64)).expect("memory");
        Place { device, stream, states }
    };
    (0..ranks).map(of).collect()
}

fn group_of(places: &[Place]) -> Vec<Arc<dyn Exchange>> {
    group(&places.iter().map(|place| place.device.clone()).collect::<Vec<_>>())
}

/// One rank's step, whose contract is not checked: nothing but its collectives waits for the others.
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
    // SAFETY: it outlives the step, and nobody writes it.
    let states = unsafe { Span::from_raw(memory, states.address(), states.len()) };
    let source = Source { states, dtype: DType::Bf16, rows: ROWS };
    let picks: Vec<i64> = (0..ROWS as i64).rev().collect();
    let counts = RowCounts::exact(&vec![ROWS; ranks]);
    DeviceStep::new(head, ask, counts, (device, device.on(stream)), (source, &picks)).expect("a step")
}

/// The bits of a step's answer, once it is there.
fn answer(Place { device, stream, .. }: &Place, step: &DeviceStep<'_>) -> (Vec<i64>, Vec<u32>) {
    device.wait(device.on(stream)).expect("the end of a step");
    let logprobs = step.logprobs().expect("logprobs");
    (step.ids().expect("ids"), logprobs.into_iter().map(f32::to_bits).collect())
}

#[test]
fn all_collectives_of_an_eager_step_are_queued_before_the_host_waits() {
    on_nccl("deferred::in_child_queued", &[]);
}

/// Rank 1 comes when rank 0 has queued its whole step. Until then rank 0 is in its first collective.
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
            // In a workspace that is lent it is the first of its kind.
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
                // The second one is known, and queues what it has.
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
                // What NCCL says may be heard while the second one is queued.
                let exact = fault == "STALL" || which == 1;
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

/// Rank 2 does not come, so that the gather does not end. Rank 1 is refused its workspace behind it.
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
            let words = if me == 1 {
                "allocate what LoadedShard::workspace says"
            } else {
                "abandoned: ranks [1] say"
            };
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
