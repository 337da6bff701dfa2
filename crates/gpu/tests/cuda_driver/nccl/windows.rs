//! Channels with windows: collectives are kernels that store into the peers' memory. Tests of channels
//! without windows are run again, with a version of NCCL that has them.

use super::captured::each_ranked;
use super::{RANKS, all_are_destroyed, device, each, group, on_nccl, resident};
use lmhead::DType;
use lmhead::backend::cuda::CudaDevice;
use lmhead::config::{HeadConfig, Quantization, Verify};
use lmhead::exchange::{Call, Fault, Operation};
use lmhead_gpu::fake_nccl::FakeNccl;
use lmhead_gpu::nccl_ranks;
use lmhead_testkit::TestHead;
use lmhead_testkit::product::peers::{long_pieces_arrive_through_windows, pieces_arrive_through_windows};
use lmhead_testkit::product::shared_device::{call, pieces_arrive_between};
use lmhead_testkit::requests::{self, ResidentRank};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

/// A version whose windows are used, and the switch.
const WINDOWS: [(&str, &str); 2] = [("FAKE_NCCL_VERSION", "23203"), ("LMHEAD_NCCL_WINDOWS", "on")];
/// The most ranks: each thread of their kernels has a stack, and all kernels run at the same time.
const MOST: usize = 6;

/// Runs a child with windows. What `says` says counts before what they need.
fn through_windows(test: &str, says: &[(&str, &str)]) {
    on_nccl(test, &[&WINDOWS[..], says].concat());
}

#[test]
fn pieces_arrive_through_the_windows_of_one_device_and_of_several() {
    through_windows("windows::in_child_pieces", &[("WINDOWS", "1"), ("FAKE_CHECKS", "1")]);
}

/// One member cannot reach the others, one is told not to, or NCCL is older: then nobody has windows.
#[test]
fn all_members_have_windows_or_none_has() {
    for says in [("LMHEAD_NCCL_WINDOWS", "off"), ("FAKE_NCCL_LSA", "1"), ("FAKE_NCCL_VERSION", "23101")] {
        through_windows("windows::in_child_pieces", &[says, ("WINDOWS", "0")]);
    }
    // What nobody has asked for is not used.
    on_nccl("windows::in_child_pieces", &[WINDOWS[0], ("WINDOWS", "0")]);
    through_windows("windows::in_child_misspelt", &[("LMHEAD_NCCL_WINDOWS", "yes")]);
}

#[test]
#[ignore = "needs the fake libraries: all_members_have_windows_or_none_has runs it"]
fn in_child_misspelt() {
    let devices: Vec<CudaDevice> = (0..2).map(device).collect();
    each(group(&devices), |_, exchange| {
        let connect = call(0, Operation::Connect, Duration::from_secs(60));
        let connected = exchange.device().expect("a side for device memory").connect(&connect, &*exchange);
        let Err(Fault::Broken { problem, .. }) = connected else { panic!("{connected:?}") };
        assert!(problem.contains("LMHEAD_NCCL_WINDOWS: wanted on or off, got \"yes\""), "{problem}");
    });
    all_are_destroyed();
}

#[test]
#[ignore = "needs the fake libraries: all_members_have_windows_or_none_has runs it"]
fn in_child_pieces() {
    let wanted = std::env::var("WINDOWS").as_deref() == Ok("1");
    if wanted {
        (0..4).for_each(|seed| pieces_arrive_through_windows(&device(0), 2 + seed as usize, 2, seed));
        long_pieces_arrive_through_windows(&device(0));
    }
    for seed in 0..4 {
        let size = 2 + seed as usize % 3;
        println!("seed {seed}: {size} ranks");
        let devices: Vec<CudaDevice> = (0..size).map(device).collect();
        let endpoints = group(&devices);
        has_windows(&devices, wanted);
        pieces_arrive_between(devices.into_iter().zip(endpoints).collect(), 8, seed);
    }
    assert_eq!(FakeNccl::loaded().count("operations") > 0, !wanted);
    all_are_destroyed();
}

/// Connects a channel of each member, and asks whether it has windows.
fn has_windows(devices: &[CudaDevice], wanted: bool) {
    each(group(devices), |me, exchange| {
        let (instance, channel) = exchange.channel(9).expect("a channel");
        let side = channel.device().expect("a side for device memory");
        let connect = Call { instance, head: 9, ..call(0, Operation::Connect, Duration::from_secs(60)) };
        assert_eq!(side.connect(&connect, &*channel), Ok(()));
        assert_eq!(side.caps().windows, wanted, "rank {me}");
    });
}

#[test]
fn steps_through_windows_have_the_bits_of_the_hosts() {
    through_windows("windows::in_child_requests", &[]);
}

#[test]
#[ignore = "needs the fake libraries: steps_through_windows_have_the_bits_of_the_hosts runs it"]
fn in_child_requests() {
    let kinds = [(DType::Bf16, Quantization::None), (DType::F16, Quantization::W8a8)];
    // The same cases in every run.
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config { failure_persistence: None, ..Config::with_cases(24) };
    let mut runner = TestRunner::new_with_rng(config, random);
    let resident = resident(RANKS);
    let done = runner.run(&requests::cases(&kinds), |case| match case.group_size() {
        2..=MOST => case.stays_on(&resident),
        _ => Ok(()),
    });
    done.unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(FakeNccl::loaded().count("operations"), 0, "no collective of NCCL's own");
    assert_eq!(super::super::count("blocked"), 0, "allocations and frees behind a queued collective");
}

#[test]
fn steps_through_windows_make_nothing_on_the_device() {
    through_windows("in_child_steady", &[]);
}

#[test]
fn captured_steps_through_windows_have_the_bits_of_eager_ones() {
    through_windows("windows::in_child_captured", &[("FAKE_CAPABILITY", "100")]);
}

#[test]
#[ignore = "needs the fake libraries: captured_steps_through_windows_have_the_bits_of_eager_ones runs it"]
fn in_child_captured() {
    for size in [2, 3] {
        each_ranked(size, |ranked| {
            nccl_ranks::replays(&ranked, 20);
        });
        each_ranked(size, |ranked| {
            // The kernels between the exchanges are those of any other transport.
            nccl_ranks::captured_steps(&ranked, 2, 6);
        });
    }
    assert_eq!(FakeNccl::loaded().count("operations"), 0, "no collective of NCCL's own");
    all_are_destroyed();
}

#[test]
fn who_does_not_come_is_named() {
    through_windows("faults::in_child_absent", &[]);
    through_windows("captured_faults::in_child_missing", &[]);
}

#[test]
fn a_rank_that_ends_or_does_not_answer_inside_an_exchange_is_named() {
    through_windows("faults::in_child_gone", &[]);
    through_windows("faults::in_child_silent", &[]);
}

#[test]
fn an_abort_ends_an_exchange_on_every_rank_at_once() {
    through_windows("windows::in_child_abort", &[]);
}

/// Rank 1 does not come, and rank 0's deadline is far away.
#[test]
#[ignore = "needs the fake libraries: an_abort_ends_an_exchange_on_every_rank_at_once runs it"]
fn in_child_abort() {
    const FAR: Duration = Duration::from_secs(300);
    let test = TestHead::random(300, 32, DType::Bf16, Quantization::None, 11);
    let config = HeadConfig { verify: Verify::WarmUp, timeout: FAR, ..test.config() };
    let (resident, meeting) = (resident(2), Barrier::new(2));
    each(resident.group(&[0, 1]), |me, exchange| {
        let mut rank = ResidentRank::new(&resident, &test, &config, exchange).expect("a head");
        let wanted = rank.step().expect("a step");
        meeting.wait();
        if me == 0 {
            let (handle, began) = (rank.head.abort_handle(), Instant::now());
            let error = thread::scope(|scope| {
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(200));
                    handle.abort("the engine shuts down");
                });
                rank.step().expect_err("an abort")
            });
            assert!(error.to_string().contains("the engine shuts down"), "{error}");
            assert!(began.elapsed() < FAR / 10, "{:?}", began.elapsed());
        }
        meeting.wait();
        if me == 1 {
            let error = rank.step().expect_err("rank 0 has given up");
            assert!(error.to_string().contains("the engine shuts down"), "{error}");
        }
        rank.head.rebuild().expect("a rebuilt head");
        assert_eq!(rank.step().expect("a step"), wanted, "rank {me}");
        meeting.wait();
    });
    all_are_destroyed();
}

#[test]
fn ranks_that_disagree_are_named_and_rebuilt_with_windows() {
    through_windows("contract::in_child_disagree", &[]);
}
