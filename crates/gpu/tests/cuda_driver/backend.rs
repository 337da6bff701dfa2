//! Calls of the whole backend: how often they wait, and what they allocate and copy.

use super::calls::counted;
use super::child;
use half::bf16;
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::cuda::CudaDevice;
use lmhead::backend::device::DeviceBackend;
use lmhead::backend::{Backend, Job, LogitsOut};
use lmhead::epilogue::Epilogue;
use lmhead::merge::{Candidate, PartialSpec, RowPartial};
use lmhead::rows::HiddenRows;
use lmhead::weights::{HeadShard, Matrix};
use lmhead::{DType, Quantization};
use std::sync::Arc;

const ROWS: usize = 11;

fn cpu() -> CpuBackend {
    CpuBackend::new(Some(1)).expect("the CPU backend")
}

fn cuda() -> DeviceBackend<CudaDevice> {
    CudaDevice::open(0).expect("a device").backend(cpu())
}

/// `n` small integers, which differ from seed to seed: sums of their products are exact, so that the CPU backend has the same bits.
fn values(n: usize, seed: usize) -> Vec<bf16> {
    (0..n).map(|i| bf16::from_f32(((i * 7919 + seed) % 23) as f32 - 11.0)).collect()
}

fn shard(vocab: usize, hidden: usize) -> Arc<HeadShard> {
    let matrix = Matrix::Bf16(values(vocab * hidden, vocab).into());
    Arc::new(HeadShard::new(0..vocab, vocab, hidden, Quantization::None, matrix, None).expect("a shard"))
}

/// The best of a row, and the bits of its logsumexp.
type Best = (Vec<Candidate>, u64);

/// The logits of some rows, and the best of each: two calls.
fn ask(backend: &dyn Backend, shard: &HeadShard, rows: HiddenRows, dtype: DType) -> (Vec<u8>, Vec<Best>) {
    let job = Job { rows, shard, epilogue: Epilogue::default(), adjustments: None };
    let (mut nonfinite, stride) = (vec![false; rows.len()], shard.vocab().len() * dtype.size());
    let mut bytes = vec![0; rows.len() * stride];
    let out = LogitsOut { bytes: &mut bytes, stride, dtype, nonfinite: &mut nonfinite, any_allowed: None };
    backend.logits(&job, out).expect("logits");
    let spec = PartialSpec { k: 3, sum: true };
    let mut partials = vec![RowPartial::new(spec); rows.len()];
    backend.partials(&job, spec, &mut partials).expect("candidates");
    (bytes, partials.iter().map(|row| (row.sorted(), row.logsumexp_f64().to_bits())).collect())
}

#[test]
fn a_call_waits_once_and_makes_nothing_that_an_earlier_one_made() {
    child("backend::in_child_waits", &[]);
}

#[test]
#[ignore = "needs the fake driver: a_call_waits_once_and_makes_nothing_that_an_earlier_one_made runs it"]
fn in_child_waits() {
    let (cuda, cpu) = (cuda(), cpu());
    // Rows of 50 elements are padded to 16 bytes on their way, rows of 203 logits on theirs.
    for (vocab, hidden, prepared) in [(203, 50, true), (192, 48, true), (203, 50, false)] {
        let shard = shard(vocab, hidden);
        let resident = prepared.then(|| cuda.prepare(&shard, DType::Bf16).expect("memory"));
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
            let got = ask(&cuda, &shard, rows, dtype);
            let after = counted();
            assert_eq!(got, ask(&cpu, &shard, rows, dtype), "call {i}, {vocab} x {hidden}");
            // The first call makes what all use.
            if i > 0 {
                assert_eq!(after[0], before[0] + 2, "waits of two calls, {i}, {vocab} x {hidden}");
                assert_eq!(after[1..], before[1..], "call {i}, {vocab} x {hidden}");
            }
        }
        drop(resident);
    }
}

#[test]
fn what_does_not_fit_the_staged_memory_goes_in_parts() {
    child("backend::in_child_parts", &[]);
}

#[test]
#[ignore = "needs the fake driver: what_does_not_fit_the_staged_memory_goes_in_parts runs it"]
fn in_child_parts() {
    let (small, whole) = (cuda().staged(4096), cpu());
    let (vocab, hidden, rows) = (1003, 90, 70);
    let shard = shard(vocab, hidden);
    let bytes = values(rows * hidden, 9);
    let all = HiddenRows::new(bytemuck::cast_slice(&bytes), DType::Bf16, rows, hidden).expect("rows");
    let picked: Vec<usize> = (0..rows).map(|i| i * 37 % rows).collect();
    for rows in [all, all.select(&picked).expect("rows")] {
        let before = counted();
        let got = ask(&small, &shard, rows, DType::F32);
        // 13 kB of rows and 281 kB of logits, of which candidates are found row by row.
        assert!(counted()[0] - before[0] >= 3 + 69 + 70, "{} waits", counted()[0] - before[0]);
        assert_eq!(got, ask(&whole, &shard, rows, DType::F32));
    }
}

#[test]
fn heads_that_nobody_prepared_are_kept_until_memory_is_short() {
    child("backend::in_child_unprepared", &[("FAKE_MEMORY", "300000")]);
}

/// Of shards of 100 kB two fit, beside what calls use.
#[test]
#[ignore = "needs the fake driver: heads_that_nobody_prepared_are_kept_until_memory_is_short runs it"]
fn in_child_unprepared() {
    let (cuda, cpu) = (cuda(), cpu());
    let hidden = 50;
    let bytes = values(hidden, 3);
    let rows = HiddenRows::new(bytemuck::cast_slice(&bytes), DType::Bf16, 1, hidden).expect("rows");
    // Shards come and go, so that one may lie where another did.
    for i in 0..8 {
        let shard = shard(890 + i, hidden);
        assert_eq!(ask(&cuda, &shard, rows, DType::F32), ask(&cpu, &shard, rows, DType::F32), "shard {i}");
    }
    let kept = shard(950, hidden);
    let resident = cuda.prepare(&kept, DType::Bf16).expect("memory of those that nobody prepared");
    assert_eq!(ask(&cuda, &kept, rows, DType::F32), ask(&cpu, &kept, rows, DType::F32));
    // What was prepared is not given up.
    let large = shard(2000, hidden);
    let error = cuda.prepare(&large, DType::Bf16).expect_err("no memory").to_string();
    assert!(error.contains("CUDA_ERROR_OUT_OF_MEMORY"), "{error}");
    // What calls had left was.
    assert_eq!(ask(&cuda, &kept, rows, DType::F32), ask(&cpu, &kept, rows, DType::F32));
    let before = counted();
    assert_eq!(ask(&cuda, &kept, rows, DType::F32), ask(&cpu, &kept, rows, DType::F32));
    assert_eq!(counted()[1], before[1]);
    // What a large call left makes room for a head.
    let bytes = values(40 * hidden, 3);
    let rows = HiddenRows::new(bytemuck::cast_slice(&bytes), DType::Bf16, 40, hidden).expect("rows");
    assert_eq!(ask(&cuda, &kept, rows, DType::F32), ask(&cpu, &kept, rows, DType::F32));
    let another = cuda.prepare(&shard(980, hidden), DType::Bf16).expect("memory that the call left");
    drop((resident, another));
}
