//! The answer stages of the CPU backend: partials of logits as they are computed, then the passes over held
//! logits. `lmhead bench` times matmuls, their other stages and whole steps.
//!
//! ```text
//! cargo bench --bench answers                             # the best instruction set of this machine
//! LMHEAD_CPU_ISA=avx2 cargo bench --bench answers -- 'sampling'
//! ```
//! - `logits`, `partials`, `partials, 64 best`: logits rounded into the caller's rows, or instead the maximum
//!   and the sum, or candidates as well; on a head of one column, whose matmul is small;
//! - `partials, 8 best, rank` and the `sampling` passes: over held f32 logits of 32768 ids.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::{Backend, Job, LogitsOut, On, Out, Pass, Status, Which};
use lmhead::backend::{HistogramQuery, TiesQuery, Wanted};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::epilogue::Epilogue;
use lmhead::memory::{Span, SpanMut};
use lmhead::merge::Candidate;
use lmhead::merge::PartialSpec;
use lmhead::rows::HiddenRows;
use lmhead::sampling::SamplingParams;
use lmhead::sampling::cut::{Digits, Kept, Sum};
use lmhead::sampling::mass::Scale;
use lmhead::weights::HeadShard;
use lmhead::weights::synthetic::{self, Spec};
use std::sync::Arc;
use std::time::Duration;

const ROWS: [usize; 5] = [1, 4, 28, 64, 256];
const VOCAB: usize = 16_384;
/// Ids of the held logits.
const HELD: usize = 32_768;

fn head(vocab_size: usize, hidden_size: usize, dtype: DType, quantization: Quantization) -> Arc<HeadShard> {
    let spec = Spec { vocab_size, hidden_size, dtype };
    let shard = synthetic::shard(&spec, 0, 0..vocab_size, quantization, None);
    Arc::new(shard.expect("the sizes fit"))
}

/// `[rows, hidden]`
fn hidden(rows: usize, hidden: usize, dtype: DType) -> Vec<u8> {
    (0..rows as u64).flat_map(|row| synthetic::hidden_row(0, row, hidden, dtype)).collect()
}

fn group<'a>(criterion: &'a mut Criterion, name: String) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    group
}

fn job(rows: HiddenRows<'_>) -> Job<'_> {
    Job { rows, epilogue: Epilogue::default(), adjustments: None, placed: None }
}

/// Logits that become partials one block after the other.
fn partials(criterion: &mut Criterion) {
    let backend = CpuBackend::new(None).expect("a backend");
    let dtype = DType::Bf16;
    let shard = head(VOCAB, 1, dtype, Quantization::None);
    let column = hidden(ROWS[ROWS.len() - 1], 1, dtype);
    let mut loaded = backend.load(&shard, dtype).expect("a loaded shard");
    let mut group = group(criterion, format!("partials/{}", backend.isa()));
    for rows in ROWS {
        let x = HiddenRows::new(&column[..rows * dtype.size()], dtype, rows, 1).expect("the sizes fit");
        group.throughput(Throughput::Elements(rows as u64));
        let mut bytes = vec![0u32; rows * VOCAB];
        let mut words = vec![0u32; rows];
        for (stage, dtype) in [("logits, f32", DType::F32), ("logits, bf16", DType::Bf16)] {
            group.bench_function(BenchmarkId::new(stage, rows), |b| {
                b.iter(|| {
                    let (data, stride) = (SpanMut::host(&mut bytes[..]), VOCAB * dtype.size());
                    let status = Status::Apart { words: SpanMut::host(&mut words[..]), stride: 4 };
                    let out = Out::Logits(LogitsOut { data, stride, dtype, status });
                    loaded.run(&job(x), out, &mut On::default()).expect("logits");
                });
            });
        }
        for (stage, k) in [("partials", 1), ("partials, 20 best", 20), ("partials, 64 best", 64)] {
            let spec = PartialSpec { k, sum: true, targets: 0 };
            let mut out = vec![0u64; rows * spec.stride(VOCAB) / 8];
            group.bench_function(BenchmarkId::new(stage, rows), |b| {
                b.iter(|| {
                    let out = Out::Partials(spec, SpanMut::host(&mut out[..]));
                    loaded.run(&job(x), out, &mut On::default()).expect("partials");
                });
            });
        }
    }
    group.finish();
}

/// The passes over held logits.
fn held(criterion: &mut Criterion) {
    let backend = CpuBackend::new(None).expect("a backend");
    let shard = head(HELD, 256, DType::F32, Quantization::None);
    let most = ROWS[ROWS.len() - 1];
    let x = hidden(most, 256, DType::F32);
    let mut loaded = backend.load(&shard, DType::F32).expect("a loaded shard");
    let mut group = group(criterion, format!("held logits/{}", backend.isa()));
    for rows in ROWS {
        let x = HiddenRows::from_f32(bytemuck::cast_slice(&x[..4 * rows * 256]), rows, 256);
        let x = x.expect("the sizes fit");
        let held = loaded.hold(&job(x), false, &mut On::default()).expect("held logits");
        group.throughput(Throughput::Bytes((rows * HELD * size_of::<f32>()) as u64));
        let (of, numbers) = (Which::Adjusted, (0..rows).collect::<Vec<usize>>());
        let mut maxima = vec![0.0; rows];
        let pass = Pass::Maxima { rows: &numbers, out: &mut maxima };
        held.pass(pass).expect("maxima");
        let mut logits_at = |id: u32| {
            let (ids, mut out) = (vec![id; rows], vec![0.0; rows]);
            let pass = Pass::TargetLogits {
                of,
                targets: Span::host(&ids[..]),
                per_row: 1,
                out: SpanMut::host(&mut out[..]),
            };
            held.pass(pass).expect("logits of targets");
            out
        };
        let (hundredth, seventh) = (logits_at(100), logits_at(7));
        let spec = PartialSpec { k: 8, sum: true, targets: 1 };
        let mut out = vec![0u64; rows * spec.stride(HELD) / 8];
        let targets: Vec<Candidate> = hundredth.iter().map(|&value| Candidate { value, id: 100 }).collect();
        group.bench_function(BenchmarkId::new("partials, 8 best, rank", rows), |b| {
            b.iter(|| {
                let (targets, out) = (&targets[..], SpanMut::host(&mut out[..]));
                held.pass(Pass::Partials { of, spec, targets: Span::host(targets), out }).expect("partials");
            });
        });
        let params = |row: usize| SamplingParams { position: row as u64, ..SamplingParams::default() };
        let kept: Vec<Kept> = maxima
            .iter()
            .enumerate()
            .map(|(row, max)| Kept::new(Scale::new(&params(row), *max, HELD)))
            .collect();
        group.bench_function(BenchmarkId::new("sampling, maxima", rows), |b| {
            b.iter(|| {
                let pass = Pass::Maxima { rows: &numbers, out: &mut maxima };
                held.pass(pass).expect("maxima");
            });
        });
        let digit = Digits::of_rounds(4).each().next().expect("a first digit");
        let queries: Vec<HistogramQuery> = (0..rows)
            .map(|row| HistogramQuery { row, kept: kept[row], sum: Sum::Masses, digit, key: 0 })
            .collect();
        let mut bins = vec![0; rows * digit.bins()];
        group.bench_function(BenchmarkId::new("sampling, histogram of masses", rows), |b| {
            b.iter(|| {
                let pass = Pass::Histograms { queries: &queries, out: &mut bins };
                held.pass(pass).expect("histograms");
            });
        });
        let queries: Vec<TiesQuery> = (0..rows)
            .map(|row| TiesQuery { row, kept: kept[row], logit: seventh[row], allowance: 1 })
            .collect();
        let mut ends = vec![0; rows];
        group.bench_function(BenchmarkId::new("sampling, ties", rows), |b| {
            b.iter(|| {
                let pass = Pass::Ties { queries: &queries, out: &mut ends };
                held.pass(pass).expect("ties");
            });
        });
        type Ask<'a> = Box<dyn Fn(usize) -> Wanted + 'a>;
        let asks: [(&str, Ask<'_>); 3] = [
            ("sampling, 50 best", Box::new(|_| Wanted::Best { k: 50 })),
            ("sampling, draw", Box::new(|row| Wanted::Drawn { params: params(row), kept: None })),
            (
                "sampling, draw of what is kept",
                Box::new(|row| Wanted::Drawn { params: params(row), kept: Some(kept[row]) }),
            ),
        ];
        for (name, ask) in asks {
            let wanted: Vec<(usize, Wanted)> = (0..rows).map(|row| (row, ask(row))).collect();
            let places = wanted.iter().map(|(_, wanted)| wanted.places()).sum();
            let mut out = vec![Candidate { value: 0.0, id: 0 }; places];
            group.bench_function(BenchmarkId::new(name, rows), |b| {
                b.iter(|| {
                    let pass = Pass::Candidates { rows: &wanted, out: SpanMut::host(&mut out[..]) };
                    held.pass(pass).expect("candidates");
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, partials, held);
criterion_main!(benches);
