//! NCCL's side of the exchange, on the fake `libnccl.so.2` (`crates/gpu/fake_nccl`) and the fake driver:
//! ranks are threads on one shared device or on a device each. Every test runs in a child process, which
//! exits with its own code if the fake libnccl has found a misuse that the test did not expect.

mod captured;
mod captured_faults;
mod communicators;
mod contract;
mod deferred;
mod faults;
mod launches;
mod soak;
mod windows;

use super::child;
use lmhead::DType;
use lmhead::backend::Backend;
use lmhead::backend::cuda::CudaDevice;
use lmhead::backend::device::stream_marks;
use lmhead::config::Quantization;
use lmhead::exchange::nccl::{Nccl, NcclExchange};
use lmhead::exchange::{Exchange, StreamMarks, WithDevice, local};
use lmhead::result::{Request, TokenLogprobs};
use lmhead_gpu::fake_nccl::FakeNccl;
use lmhead_testkit::TestHead;
use lmhead_testkit::product::shards::backend_of;
use lmhead_testkit::product::shared_device::pieces_arrive_between;
use lmhead_testkit::requests::{self, Resident, steady_steps};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// The largest number of ranks in a test.
const RANKS: usize = 12;

/// Runs a child on both fake libraries, with a device for every rank.
fn on_nccl(test: &str, says: &[(&str, &str)]) -> String {
    on_libraries(lmhead_gpu::fake_nccl::folder, test, says)
}

fn on_libraries(nccl: fn(&Path) -> &'static Path, test: &str, says: &[(&str, &str)]) -> String {
    let folders = [super::fake_driver(), nccl(Path::new(env!("CARGO_TARGET_TMPDIR")))];
    let path = folders.map(|folder| folder.display().to_string()).join(":");
    let devices = RANKS.to_string();
    let both = [("LD_LIBRARY_PATH", path.as_str()), ("FAKE_DEVICES", &devices)];
    let text = child(&format!("nccl::{test}"), &[&both[..], says].concat());
    text.lines().filter_map(|line| line.split_once(TIME)).for_each(|(_, time)| println!("{time}"));
    text
}

/// Prefix of lines that a child prints for docs/transport-faults.md.
const TIME: &str = "time: ";

/// Prints when a rank learned of a fault, also from a child.
fn knew(fault: &str, rank: usize, took: Duration) {
    println!("{TIME}{fault}: rank {rank} knew after {:.1} ms", took.as_secs_f64() * 1e3);
}

fn device(ordinal: usize) -> CudaDevice {
    CudaDevice::open(ordinal).expect("a device")
}

fn test_head() -> TestHead {
    TestHead::random(300, 32, DType::Bf16, Quantization::None, 11)
}

fn backend(device: &CudaDevice) -> Arc<dyn Backend> {
    Arc::new(backend_of(device.clone(), false))
}

/// Endpoints of a group whose member m uses `devices[m]`.
fn group(devices: &[CudaDevice]) -> Vec<Arc<dyn Exchange>> {
    group_with(devices.len(), |_, local| Arc::new(local), |member| stream_marks(&devices[member]))
}

/// A group of that size, with what `host` makes of each member's side of the host transport, and the marks of
/// its device.
fn group_with(
    size: usize,
    host: impl Fn(usize, local::LocalExchange) -> Arc<dyn Exchange>,
    marks: impl Fn(usize) -> Arc<dyn StreamMarks>,
) -> Vec<Arc<dyn Exchange>> {
    let nccl = Nccl::load(None).expect("the fake libnccl");
    let endpoint = |(member, local): (usize, local::LocalExchange)| {
        let side = NcclExchange::new(nccl, marks(member), (member, size));
        Arc::new(WithDevice::new(host(member, local), Arc::new(side))) as Arc<dyn Exchange>
    };
    local::group(size).into_iter().enumerate().map(endpoint).collect()
}

/// Ranks with a device each.
fn resident(ranks: usize) -> Resident<CudaDevice> {
    let devices: Vec<CudaDevice> = (0..ranks).map(device).collect();
    let places = devices.iter().map(|device| (device.clone(), backend(device))).collect();
    Resident::over(places, move |ranks| {
        group(&ranks.iter().map(|rank| devices[*rank].clone()).collect::<Vec<_>>())
    })
}

/// Runs a thread for each member and returns their results. A panic in a rank ends the program, because the
/// others may wait for that rank.
fn each<T: Send>(
    endpoints: Vec<Arc<dyn Exchange>>,
    run: impl Fn(usize, Arc<dyn Exchange>) -> T + Sync,
) -> Vec<T> {
    thread::scope(|scope| {
        let run = &run;
        let one = |me, own| match catch_unwind(AssertUnwindSafe(|| run(me, own))) {
            Ok(returned) => returned,
            Err(_) => std::process::exit(101),
        };
        let threads = endpoints.into_iter().enumerate().map(|(me, own)| scope.spawn(move || one(me, own)));
        let threads: Vec<_> = threads.collect();
        threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
    })
}

/// Waits until no communicator is left. One whose rank was dropped long before the others is destroyed by a
/// thread.
fn all_are_destroyed() {
    let (fake, until) = (FakeNccl::loaded(), Instant::now() + Duration::from_secs(60));
    while fake.count("communicators") > 0 {
        assert!(Instant::now() < until, "{} communicators are left", fake.count("communicators"));
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn pieces_arrive_as_on_the_host() {
    on_nccl("in_child_pieces", &[("FAKE_NCCL_POLLS", "3")]);
    // Ranks that share a device.
    on_nccl("in_child_pieces", &[("FAKE_DEVICES", "1"), ("NCCL_MULTI_RANK_GPU_ENABLE", "1")]);
}

#[test]
#[ignore = "needs the fake libraries: pieces_arrive_as_on_the_host runs it"]
fn in_child_pieces() {
    let own = std::env::var("NCCL_MULTI_RANK_GPU_ENABLE").is_err();
    for seed in 0..12 {
        let size = 1 + seed as usize % 5;
        println!("seed {seed}: {size} ranks");
        let devices: Vec<CudaDevice> = (0..size).map(|me| device(if own { me } else { 0 })).collect();
        let endpoints = group(&devices);
        pieces_arrive_between(devices.into_iter().zip(endpoints).collect(), 8, seed);
    }
    let fake = FakeNccl::loaded();
    assert!(fake.count("operations") > 100, "{} operations", fake.count("operations"));
    all_are_destroyed();
}

#[test]
fn steps_that_stay_on_the_device_have_the_bits_of_the_hosts() {
    on_nccl("in_child_requests", &[]);
}

#[test]
#[ignore = "needs the fake libraries: steps_that_stay_on_the_device_have_the_bits_of_the_hosts runs it"]
fn in_child_requests() {
    let kinds = [
        (DType::Bf16, Quantization::None),
        (DType::F16, Quantization::W8a8),
        (DType::Bf16, Quantization::W8a16),
    ];
    // The same cases in every run.
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let config = Config { failure_persistence: None, ..Config::with_cases(60) };
    let mut runner = TestRunner::new_with_rng(config, random);
    let resident = resident(RANKS);
    let done = runner.run(&requests::cases(&kinds), |case| case.stays_on(&resident));
    done.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(FakeNccl::loaded().count("operations") > 0);
    assert_eq!(super::count("blocked"), 0, "allocations and frees behind a queued collective");
}

#[test]
fn steps_over_nccl_make_nothing_on_the_device() {
    on_nccl("in_child_steady", &[]);
}

#[test]
#[ignore = "needs the fake libraries: steps_over_nccl_make_nothing_on_the_device runs it"]
fn in_child_steady() {
    let made = || {
        let made = ["allocations", "loads", "lazy kernels", "lazy graphs", "handles"];
        made.map(super::count).iter().map(|n| *n as u64).sum::<u64>()
    };
    let told = TokenLogprobs { top_n: 2, processed: false };
    for request in [Request::logits(DType::F16), Request::top_k(3), Request::Sample { logprobs: Some(told) }]
    {
        for ranks in [2, 3] {
            steady_steps(&resident(ranks), &made, ranks, request);
        }
    }
}
