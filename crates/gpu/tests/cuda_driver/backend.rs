//! Loaded shards with pageable host memory: how often their calls wait, and what they allocate and copy.

use super::calls::counted;
use super::child;
use half::bf16;
use lmhead::backend::Backend;
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::cuda::CudaDevice;
use lmhead::backend::device::DeviceBackend;
use lmhead::backend::{Job, LoadedShard, On};
use lmhead::epilogue::Epilogue;
use lmhead::rows::HiddenRows;
use lmhead::weights::{HeadShard, Matrix};
use lmhead::{DType, Quantization};
use lmhead_testkit::product::shards::{Best, answers};
use std::sync::Arc;

const ROWS: usize = 11;

pub fn cpu() -> CpuBackend {
    CpuBackend::new(Some(1)).expect("the CPU backend")
}

fn cuda() -> DeviceBackend<CudaDevice> {
    CudaDevice::open(0).expect("a device").backend()
}

/// `n` small integers that depend on the seed: sums of their products are exact, so that the CPU backend has
/// the same bits.
fn values(n: usize, seed: usize) -> Vec<bf16> {
    (0..n).map(|i| bf16::from_f32(((i * 7919 + seed) % 23) as f32 - 11.0)).collect()
}

fn shard(vocab: usize, hidden: usize) -> Arc<HeadShard> {
    let matrix = Matrix::Bf16(values(vocab * hidden, vocab).into());
    Arc::new(HeadShard::new(0..vocab, vocab, hidden, Quantization::None, matrix, None).expect("a shard"))
}

fn load(backend: &dyn Backend, shard: &Arc<HeadShard>) -> Box<dyn LoadedShard> {
    backend.load(shard, DType::Bf16).expect("memory")
}

/// The logits of some rows with their status words, and the best id of each: two calls.
fn ask(loaded: &mut dyn LoadedShard, rows: HiddenRows, dtype: DType) -> (Vec<u8>, Vec<u32>, Vec<Best>) {
    answers(loaded, &Job { rows, epilogue: Epilogue::default(), adjustments: None, placed: None }, dtype, 3)
}

#[test]
fn a_call_waits_once_and_makes_nothing_that_an_earlier_one_made() {
    child("backend::in_child_waits", &[]);
}

#[test]
#[ignore = "needs the fake driver: a_call_waits_once_and_makes_nothing_that_an_earlier_one_made runs it"]
fn in_child_waits() {
    let (cuda, cpu) = (cuda(), cpu());
    // Rows of 50 elements and rows of 203 logits are padded to 16 bytes for the transfer.
    for (vocab, hidden) in [(203, 50), (192, 48)] {
        let shard = shard(vocab, hidden);
        let (mut on_cuda, mut on_cpu) = (load(&cuda, &shard), load(&cpu, &shard));
        let bytes = values(ROWS * hidden, 5);
        let all = HiddenRows::new(bytemuck::cast_slice(&bytes), DType::Bf16, ROWS, hidden).expect("rows");
        let backwards: Vec<usize> = (0..ROWS).rev().collect();
        let rows = |selection| all.select(selection).expect("rows");
        for (i, (rows, dtype)) in [
            (rows(&backwards), DType::F32),
            (rows(&backwards), DType::F32),
            (all, DType::F32),
            (rows(&[3, 3, 10]), DType::Bf16),
            (all.range(2..5), DType::F16),
        ]
        .into_iter()
        .enumerate()
        {
            let before = counted();
            let got = ask(&mut *on_cuda, rows, dtype);
            let after = counted();
            assert_eq!(got, ask(&mut *on_cpu, rows, dtype), "call {i}, {vocab} x {hidden}");
            // The first call allocates what all calls use.
            if i > 0 {
                assert_eq!(after[0], before[0] + 2, "waits of two calls, {i}, {vocab} x {hidden}");
                assert_eq!(after[1..], before[1..], "call {i}, {vocab} x {hidden}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_the_staged_memory_goes_in_parts() {
    child("backend::in_child_parts", &[]);
}

#[test]
#[ignore = "needs the fake driver: what_does_not_fit_the_staged_memory_goes_in_parts runs it"]
fn in_child_parts() {
    // Logits of one row at a time are held, and 4 KiB are pinned.
    let (small, whole) = (cuda().staged(4096).held(1), cpu());
    let (vocab, hidden, rows) = (1003, 90, 70);
    let shard = shard(vocab, hidden);
    let (mut small, mut whole) = (load(&small, &shard), load(&whole, &shard));
    let bytes = values(rows * hidden, 9);
    let all = HiddenRows::new(bytemuck::cast_slice(&bytes), DType::Bf16, rows, hidden).expect("rows");
    let picked: Vec<usize> = (0..rows).map(|i| i * 37 % rows).collect();
    for rows in [all, all.select(&picked).expect("rows")] {
        let before = counted();
        let got = ask(&mut *small, rows, DType::F32);
        // 13 kB of rows and 281 kB of logits, and the candidates of one row after the other.
        assert!(counted()[0] - before[0] >= 3 + 69 + 70, "{} waits", counted()[0] - before[0]);
        assert_eq!(got, ask(&mut *whole, rows, DType::F32));
    }
}

#[test]
fn weights_are_shared_and_go_with_the_last_head() {
    child("backend::in_child_memory", &[("FAKE_MEMORY", "300000")]);
}

/// Memory for two shards of 100 kB beside what calls use.
#[test]
#[ignore = "needs the fake driver: weights_are_shared_and_go_with_the_last_head runs it"]
fn in_child_memory() {
    let (cuda, cpu) = (cuda(), cpu());
    let hidden = 50;
    let bytes = values(hidden, 3);
    let rows = HiddenRows::new(bytemuck::cast_slice(&bytes), DType::Bf16, 1, hidden).expect("rows");
    let right = |loaded: &mut dyn LoadedShard, shard: &Arc<HeadShard>| {
        assert_eq!(ask(loaded, rows, DType::F32), ask(&mut *load(&cpu, shard), rows, DType::F32));
    };
    let (one, two, three) = (shard(890, hidden), shard(900, hidden), shard(910, hidden));
    let mut first = load(&cuda, &one);
    let mut second = load(&cuda, &two);
    // Only the test still holds the host's copy.
    assert_eq!(Arc::strong_count(&one), 1);
    let refused = cuda.load(&three, DType::Bf16).map(|_| ()).expect_err("no memory").to_string();
    assert!(refused.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{refused}");
    right(&mut *first, &one);
    right(&mut *second, &two);
    let mut another = first.another().expect("a stream");
    drop(first);
    assert!(cuda.load(&three, DType::Bf16).is_err(), "the weights have another head");
    right(&mut *another, &one);
    drop(another);
    let mut third = load(&cuda, &three);
    right(&mut *third, &three);
    // The error names the missing memory, and smaller calls still succeed.
    let many = values(60 * hidden, 3);
    let many = HiddenRows::new(bytemuck::cast_slice(&many), DType::Bf16, 60, hidden).expect("rows");
    let job = Job { rows: many, epilogue: Epilogue::default(), adjustments: None, placed: None };
    let short = third.hold(&job, false, &mut On::default()).map(|_| ());
    assert!(short.expect_err("no memory").to_string().contains("CUDA_ERROR_OUT_OF_MEMORY"));
    right(&mut *third, &three);
}
