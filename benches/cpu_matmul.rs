//! The CPU backend over types and row counts, beside a read-only pass over the same bytes: the roof for few rows.
//!
//! ```text
//! cargo bench --bench cpu_matmul                        # the best instruction set of this machine
//! LMHEAD_CPU_ISA=avx2 cargo bench --bench cpu_matmul -- 'bf16'
//! ```
//! Throughput is bytes of W per second, so that every row compares with the roof of the same run.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::{bf16, f16};
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::{Backend, Job, LogitsOut};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::epilogue::Epilogue;
use lmhead::merge::{PartialSpec, RowPartial};
use lmhead::rows::HiddenRows;
use lmhead::weights::{HeadShard, Matrix};
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Duration;

/// A quarter of DeepSeek-V3's head: 463 MB in bf16, far beyond any cache.
const VOCAB: usize = 32_320;
const HIDDEN: usize = 7168;

/// Uniform in (-1, 1): a pure function of the index, cheap enough to fill half a gigabyte.
fn value(i: usize) -> f32 {
    let mixed = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ (mixed >> 29)) as u32 as i32) as f32 / 2f32.powi(31)
}

/// The weights of one row of the table.
fn shard(dtype: DType, quantization: Quantization) -> HeadShard {
    fn fill<T: Send>(vocab: usize, from: impl Fn(f32) -> T + Sync) -> Vec<T> {
        (0..vocab * HIDDEN).into_par_iter().map(|i| from(value(i))).collect()
    }
    // f32 with half the vocabulary: the same bytes as bf16.
    let vocab = if dtype == DType::F32 { VOCAB / 128 * 64 } else { VOCAB };
    let matrix = match dtype {
        DType::F32 => Matrix::F32(fill(vocab, |v| v).into()),
        DType::F16 => Matrix::F16(fill(vocab, f16::from_f32).into()),
        DType::Bf16 => Matrix::Bf16(fill(vocab, bf16::from_f32).into()),
        DType::I8 => {
            Matrix::I8 { values: fill(vocab, |v| (v * 127.0) as i8).into(), scales: vec![1e-3; vocab] }
        }
    };
    HeadShard::new(0..vocab, vocab, HIDDEN, quantization, matrix, None).expect("the sizes fit")
}

/// Bytes of W, to be read and nothing more.
fn weight_bytes(shard: &HeadShard) -> &[u8] {
    match shard.matrix() {
        Matrix::F32(w) => bytemuck::cast_slice(w),
        Matrix::F16(w) => bytemuck::cast_slice(w),
        Matrix::Bf16(w) => bytemuck::cast_slice(w),
        Matrix::I8 { values, .. } => bytemuck::cast_slice(values),
    }
}

/// A read-only pass: the sum of all bytes as u64, on `threads` threads.
fn read(bytes: &[u8], pool: &rayon::ThreadPool) -> u64 {
    let part = |part: &[u8]| {
        let mut sums = [0u64; 32];
        for chunk in part.as_chunks::<256>().0 {
            for (sum, word) in sums.iter_mut().zip(chunk.as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
        }
        sums.iter().fold(0u64, |a, b| a.wrapping_add(*b))
    };
    pool.install(|| bytes.par_chunks(1 << 20).map(part).reduce(|| 0, u64::wrapping_add))
}

fn cpu_matmul(criterion: &mut Criterion) {
    let backend = CpuBackend::new(None).expect("a backend");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(backend.threads()).build().expect("a pool");
    let heads = [
        ("bf16", DType::Bf16, Quantization::None, DType::Bf16),
        ("f16", DType::F16, Quantization::None, DType::F16),
        ("f32", DType::F32, Quantization::None, DType::F32),
        ("w8a8", DType::I8, Quantization::W8a8, DType::Bf16),
        ("w8a16", DType::I8, Quantization::W8a16, DType::Bf16),
    ];
    for (name, dtype, quantization, hidden) in heads {
        let shard = shard(dtype, quantization);
        let mut group = criterion.benchmark_group(format!("{name}/{}", backend.isa()));
        group.sample_size(10).warm_up_time(Duration::from_millis(500));
        group.measurement_time(Duration::from_secs(2));
        group.throughput(Throughput::Bytes(weight_bytes(&shard).len() as u64));
        group.bench_function("read only", |b| b.iter(|| black_box(read(weight_bytes(&shard), &pool))));
        for rows in [1, 2, 4, 8, 28, 128] {
            let values: Vec<f32> = (0..rows * HIDDEN).map(|i| value(i + 12345)).collect();
            let mut x = vec![0; rows * HIDDEN * hidden.size()];
            hidden.round_into(&values, &mut x);
            let rows_view = HiddenRows::new(&x, hidden, rows, HIDDEN).expect("the sizes fit");
            let job =
                Job { rows: rows_view, shard: &shard, epilogue: Epilogue::default(), adjustments: None };
            let vocab = shard.vocab().len();
            let (mut bytes, mut nonfinite) = (vec![0; rows * vocab * 4], vec![false; rows]);
            group.bench_function(BenchmarkId::new("logits", rows), |b| {
                b.iter(|| {
                    let out = LogitsOut {
                        bytes: &mut bytes,
                        stride: vocab * 4,
                        dtype: DType::F32,
                        nonfinite: &mut nonfinite,
                        any_allowed: None,
                    };
                    backend.logits(&job, out).expect("logits");
                });
            });
            if rows == 28 {
                let mut half = vec![0; rows * vocab * 2];
                group.bench_function(BenchmarkId::new("logits as bf16", rows), |b| {
                    b.iter(|| {
                        let out = LogitsOut {
                            bytes: &mut half,
                            stride: vocab * 2,
                            dtype: DType::Bf16,
                            nonfinite: &mut nonfinite,
                            any_allowed: None,
                        };
                        backend.logits(&job, out).expect("logits");
                    });
                });
                let spec = PartialSpec { k: 8, sum: true };
                let mut partials = vec![RowPartial::new(spec); rows];
                group.bench_function(BenchmarkId::new("top-8 and sum", rows), |b| {
                    b.iter(|| backend.partials(&job, spec, &mut partials).expect("partials"));
                });
            }
        }
        group.finish();
    }
}

criterion_group!(benches, cpu_matmul);
criterion_main!(benches);
