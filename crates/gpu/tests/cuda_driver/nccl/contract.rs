//! What ranks learn of a peer that disagrees with them in a step on the device, or whose device is lost or
//! full.

use super::{backend, device, each, group, knew, on_nccl, resident, test_head};
use lmhead::DType;
use lmhead::backend::cuda::CudaDevice;
use lmhead::config::HeadConfig;
use lmhead::head::LmHead;
use lmhead::result::{Answer, Request};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead_testkit::TestHead;
use lmhead_testkit::requests::{Resident, ResidentRank};
use std::sync::Barrier;
use std::time::{Duration, Instant};

const RANKS: usize = 3;
const DEADLINE: Duration = Duration::from_secs(2);

fn config(test: &TestHead) -> HeadConfig {
    HeadConfig { timeout: DEADLINE, ..test.config() }
}

/// The errors of a step that rank 1 makes differently from the others, which stay on their devices.
fn another_step(
    head: &mut LmHead,
    counts: &[usize],
    request: &Request,
    rows: usize,
) -> lmhead::Result<Answer> {
    let bytes = test_head().rows(rows, 1);
    let hidden = HiddenRows::new(&bytes, DType::Bf16, rows, 32)?;
    head.step(RowCounts::exact(counts), request)?.run(hidden)
}

#[test]
fn ranks_that_disagree_in_a_step_on_the_device_are_named() {
    on_nccl("contract::in_child_disagree", &[]);
}

#[test]
#[ignore = "needs the fake libraries: ranks_that_disagree_in_a_step_on_the_device_are_named runs it"]
fn in_child_disagree() {
    type Step = fn(&mut LmHead) -> lmhead::Result<Answer>;
    let disagreements: [(&str, Step, &str); 2] = [
        (
            "another request",
            |head| another_step(head, &[1, 2, 3], &Request::top_k(2), 2),
            "request: ranks [0, 2] say argmax, ranks [1] say topk:2",
        ),
        ("other counts", |head| another_step(head, &[1, 5, 3], &Request::argmax(), 5), "counts: ranks [0"),
    ];
    let (resident, test, meeting) = (resident(RANKS), test_head(), Barrier::new(RANKS));
    each(resident.group(&[0, 1, 2]), |me, exchange| {
        let mut rank = ResidentRank::new(&resident, &test, &config(&test), exchange).expect("a head");
        let want = rank.step().expect("a step");
        for (fault, step, words) in disagreements {
            meeting.wait();
            let began = Instant::now();
            let error = match me {
                1 => step(&mut rank.head).expect_err(words),
                _ => rank.step().expect_err(words),
            };
            let took = began.elapsed();
            knew(fault, me, took);
            assert!(error.to_string().contains(words), "rank {me}: {error}\nwant {words}");
            assert!(took < DEADLINE + Duration::from_secs(1), "rank {me}: {took:?}");
            rank.head.rebuild().expect("a rebuilt head");
            assert_eq!(rank.step().expect("a step"), want);
        }
    });
}

/// Steps of three ranks on devices of their own until one fails, because rank 1's device is lost. The others
/// are notified, or name it at the deadline.
#[test]
fn a_lost_device_is_named_on_every_rank_within_the_deadline() {
    for (variable, value) in [("FAKE_RUN", "700"), ("FAKE_HANG", "60")] {
        let says = [(variable, value), ("FAKE_FROM", "60"), ("FAKE_ON", "1"), ("FAKE_BLOCKS", "1")];
        on_nccl("contract::in_child_lost_device", &says);
    }
}

#[test]
#[ignore = "needs the fake libraries: a_lost_device_is_named_on_every_rank_within_the_deadline runs it"]
fn in_child_lost_device() {
    let devices: Vec<CudaDevice> = (0..RANKS).map(device).collect();
    // So that freeing memory at the end does not wait long for the lost device.
    devices.iter().for_each(|device| device.set_patience(DEADLINE));
    let places = devices.iter().map(|device| (device.clone(), backend(device))).collect();
    let resident = Resident::over(places, move |_| group(&devices));
    let (test, meeting) = (test_head(), Barrier::new(RANKS));
    let hangs = std::env::var("FAKE_HANG").is_ok();
    let fault = if hangs { "a kernel that does not end" } else { "a kernel that fails" };
    each(resident.group(&[0, 1, 2]), |me, exchange| {
        let mut rank = ResidentRank::new(&resident, &test, &config(&test), exchange).expect("a head");
        let (error, took) = (0..200)
            .find_map(|_| {
                let began = Instant::now();
                rank.step().err().map(|error| (error, began.elapsed()))
            })
            .expect("a device that is lost within 200 steps");
        println!("rank {me}: {error}");
        knew(fault, me, took);
        assert!(took < DEADLINE + Duration::from_secs(1), "rank {me}: {took:?}");
        let text = error.to_string();
        let named = match me {
            1 if hangs => text.contains("this rank's device has not come to it within 2s"),
            // Reported by the first call after the kernel: the matmul's own, or one of a collective.
            1 => text.contains("CUDA_ERROR_ILLEGAL_ADDRESS") && text.contains("the device is lost"),
            _ => text.contains("ranks [1]") || text.contains("rank 1"),
        };
        assert!(named, "rank {me}: {text}");
        // A rank that leaves is lost to the others: stay.
        meeting.wait();
    });
}

/// Rank 1's device is full when its head first needs memory for a step.
#[test]
fn device_memory_that_is_short_on_one_rank_is_named_on_every_rank() {
    on_nccl("contract::in_child_short_memory", &[("FAKE_MEMORY", "67108864")]);
}

#[test]
#[ignore = "needs the fake libraries: device_memory_that_is_short_on_one_rank_is_named_on_every_rank runs it"]
fn in_child_short_memory() {
    let (resident, test) = (resident(RANKS), test_head());
    each(resident.group(&[0, 1, 2]), |me, exchange| {
        let mut rank = ResidentRank::new(&resident, &test, &config(&test), exchange).expect("a head");
        let backend = resident.backend(me);
        let mut taken = Vec::new();
        for bytes in [1 << 20, 1 << 12, 256] {
            while me == 1
                && let Ok(memory) = backend.allocate(backend.memory(), bytes, "test")
            {
                taken.push(memory);
            }
        }
        let began = Instant::now();
        let error = rank.step().expect_err("no memory on rank 1");
        let took = began.elapsed();
        knew("memory short on one rank", me, took);
        let words = if me == 1 { "CUDA_ERROR_OUT_OF_MEMORY" } else { "aborted: ranks [1] say" };
        assert!(error.to_string().contains(words), "rank {me}: {error}");
        assert!(took < DEADLINE + Duration::from_secs(1), "rank {me}: {took:?}");
        drop(taken);
        rank.head.rebuild().expect("a rebuilt head");
        rank.step().expect("a step");
    });
}
