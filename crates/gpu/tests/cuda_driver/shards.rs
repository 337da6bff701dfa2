//! Loaded shards and the exchange of device memory on a driver that executes nothing before something waits
//! for it.

use super::backend::cpu;
use super::{child, count};
use lmhead::backend::cuda::CudaDevice;
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::result::{Request, TokenLogprobs};
use lmhead_testkit::product::draws;
use lmhead_testkit::product::partials::lists::are_merged_as_on_the_host;
use lmhead_testkit::product::shards::{ShardCase, backend_of};
use lmhead_testkit::product::shared_device::pieces_arrive;
use lmhead_testkit::product::steady::{Done, steady};
use lmhead_testkit::requests::{Resident, bad_inputs, steady_steps};
use std::sync::Arc;

#[test]
fn answers_are_what_the_definitions_say_in_any_memory() {
    child("shards::in_child_answers", &[]);
}

#[test]
#[ignore = "needs the fake driver: answers_are_what_the_definitions_say_in_any_memory runs it"]
fn in_child_answers() {
    let kinds = [
        (DType::Bf16, Quantization::None),
        (DType::F16, Quantization::W8a8),
        (DType::Bf16, Quantization::W8a16),
        (DType::F16, Quantization::None),
    ];
    for (i, (dtype, quantization)) in kinds.into_iter().cycle().take(12).enumerate() {
        let case = ShardCase {
            dtype,
            quantization,
            rows: [1, 5, 33][i % 3],
            hidden: [50, 64, 7][i / 2 % 3],
            // The second case's last shard has no ids.
            vocab: [203, 128, 320, 77][i / 3 % 4],
            cut: [0, 128, 130, 64][i / 3 % 4],
            bias: i % 2 == 0,
            adjusted: i % 3 > 0,
            scale: [1.0, 3e4][i % 2],
            broken: i % 4 == 1,
            k: [1, 70, 320][i / 2 % 3],
            seed: i as u64,
        };
        let device = CudaDevice::open(0).expect("a device");
        case.holds(&backend_of(device, i % 2 == 1));
    }
    let device = CudaDevice::open(0).expect("a device");
    are_merged_as_on_the_host(&backend_of(device, false), 5);
}

#[test]
fn a_repeated_call_makes_nothing_and_multiplies_once() {
    child("shards::in_child_steady", &[]);
}

#[test]
#[ignore = "needs the fake driver: a_repeated_call_makes_nothing_and_multiplies_once runs it"]
fn in_child_steady() {
    let backend = backend_of(CudaDevice::open(0).expect("a device"), false);
    let done = || {
        let made = ["allocations", "loads", "lazy kernels", "lazy graphs", "handles", "slow copies"];
        let made = made.map(count).iter().sum();
        Done { made, copies: count("copies"), products: count("products"), waits: count("waits") }
    };
    for (name, done) in steady(&backend, &done) {
        println!("{name}: {} copies, {} products, {} waits", done.copies, done.products, done.waits);
        assert_eq!(done.products, i64::from(!name.contains("finish")), "{name}");
        // A step's logits stay in device memory: no byte is copied, nothing waits.
        if name.ends_with("memory of device 0: logits") {
            assert_eq!(
                (done.copies, done.waits),
                (1, 0),
                "{name}: status words alone are copied to their places"
            );
        }
        // The same for the best of them, and for draws.
        let of_best = ["partials", "many partials", "finish of many", "draws by parameters there"];
        if of_best.iter().any(|what| name.ends_with(&format!("memory of device 0: {what}"))) {
            assert_eq!((done.copies, done.waits), (0, 0), "{name}");
        }
    }
}

#[test]
fn draws_are_the_hosts_and_the_cpu_backend_s() {
    child("shards::in_child_draws", &[]);
}

#[test]
#[ignore = "needs the fake driver: draws_are_the_hosts_and_the_cpu_backend_s runs it"]
fn in_child_draws() {
    let backend = backend_of(CudaDevice::open(0).expect("a device"), true);
    draws::are_the_hosts(&backend, 7000);
    draws::of_products_are_the_cpus(&backend, &cpu(), 7000);
    draws::of_filtered_rows_are_refused(&backend, &cpu());
    draws::misplaced_messages_are_refused(&backend);
}

#[test]
fn pieces_arrive_on_streams_that_run_late() {
    child("shards::in_child_pieces", &[]);
}

#[test]
#[ignore = "needs the fake driver: pieces_arrive_on_streams_that_run_late runs it"]
fn in_child_pieces() {
    let device = CudaDevice::open(0).expect("a device");
    for seed in 0..12 {
        pieces_arrive(&device, 1 + seed as usize % 5, 8, seed);
    }
}

#[test]
fn heads_whose_steps_stay_on_the_device_make_nothing_there() {
    child("shards::in_child_heads", &[]);
}

#[test]
#[ignore = "needs the fake driver: heads_whose_steps_stay_on_the_device_make_nothing_there runs it"]
fn in_child_heads() {
    let made = || {
        // Without copies to pageable memory: those are this test's own.
        let made = ["allocations", "loads", "lazy kernels", "lazy graphs", "handles"];
        made.map(count).iter().map(|n| *n as u64).sum::<u64>()
    };
    let told = TokenLogprobs { top_n: 2, processed: false };
    let on_device = |request, counted: &(dyn Fn() -> u64 + Sync)| {
        for ranks in [1, 2] {
            let device = CudaDevice::open(0).expect("a device");
            let backend = Arc::new(backend_of(device.clone(), false));
            steady_steps(&Resident::new(device, backend), counted, ranks, request);
        }
    };
    on_device(Request::Sample { logprobs: Some(told) }, &made);
    // For these, no logits or candidates are copied to the host.
    let to_host = || count("bytes to the host") as u64;
    assert!(to_host() > 0, "candidates of the draws came to the host");
    let logprobs = Request::Logprobs { targets: 2, top_n: 2, processed: false };
    on_device(logprobs, &made);
    for request in [Request::logits(DType::F16), Request::top_k(3), Request::top_k(1000)] {
        on_device(request, &|| made() + to_host());
    }
}

#[test]
fn inputs_in_device_memory_that_cannot_be_are_told_of_their_rows() {
    child("shards::in_child_inputs", &[]);
}

#[test]
#[ignore = "needs the fake driver: inputs_in_device_memory_that_cannot_be_are_told_of_their_rows runs it"]
fn in_child_inputs() {
    for ranks in [1, 2] {
        let device = CudaDevice::open(0).expect("a device");
        let backend = Arc::new(backend_of(device.clone(), false));
        bad_inputs(&Resident::new(device, backend), ranks);
    }
}
