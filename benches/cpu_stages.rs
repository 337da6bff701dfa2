//! The CPU backend stage by stage, over types and row counts, so that a change shows where it acts.
//!
//! ```text
//! cargo bench --bench cpu_stages                             # the best instruction set of this machine
//! LMHEAD_CPU_ISA=avx2 cargo bench --bench cpu_stages -- 'bf16/rows'
//! ```
//! - `rows`: hidden rows packed, or quantised: on a head of one id, whose products are few;
//! - `matmul`: all of it to f32 logits, over 16384 x 4096 weights, beyond the caches; throughput is bytes of W, as that of `read only`;
//! - `epilogue`, `epilogue, softcap`: sums dequantised and written: on a head of one column;
//! - `partials`, `partials, 64 best`: the maximum and the sum, or candidates as well, in place of written logits: on the same;
//! - `tally` and the `sampling` passes: over held f32 logits of 32768 ids, whatever the weights were.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::{
    Backend, HeldLogits, HistogramQuery, Job, LogitsOut, SamplingPass, Tally, TiesQuery, Wanted,
};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::epilogue::Epilogue;
use lmhead::merge::{Candidate, PartialSpec, RowPartial};
use lmhead::rows::HiddenRows;
use lmhead::sampling::SamplingParams;
use lmhead::sampling::cut::{BINS, Kept, Sum};
use lmhead::sampling::mass::Scale;
use lmhead::weights::synthetic::{self, Spec};
use lmhead::weights::{HeadShard, Matrix};
use std::hint::black_box;
use std::time::Duration;

const ROWS: [usize; 5] = [1, 4, 28, 64, 256];
const VOCAB: usize = 16_384;
const HIDDEN: usize = 4096;
/// Ids of the held logits.
const HELD: usize = 32_768;

const TYPES: [(&str, DType, Quantization); 5] = [
    ("bf16", DType::Bf16, Quantization::None),
    ("f16", DType::F16, Quantization::None),
    ("f32", DType::F32, Quantization::None),
    ("w8a8", DType::Bf16, Quantization::W8a8),
    ("w8a16", DType::Bf16, Quantization::W8a16),
];

fn head(vocab_size: usize, hidden_size: usize, dtype: DType, quantization: Quantization) -> HeadShard {
    let spec = Spec { vocab_size, hidden_size, dtype };
    synthetic::shard(&spec, 0, 0..vocab_size, quantization, None).expect("the sizes fit")
}

/// `[rows, hidden]`
fn hidden(rows: usize, hidden: usize, dtype: DType) -> Vec<u8> {
    (0..rows as u64).flat_map(|row| synthetic::hidden_row(0, row, hidden, dtype)).collect()
}

fn weight_bytes(shard: &HeadShard) -> &[u8] {
    match shard.matrix() {
        Matrix::F32(w) => bytemuck::cast_slice(w),
        Matrix::F16(w) => bytemuck::cast_slice(w),
        Matrix::Bf16(w) => bytemuck::cast_slice(w),
        Matrix::I8 { values, .. } => bytemuck::cast_slice(values),
    }
}

fn group<'a>(criterion: &'a mut Criterion, name: String) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1));
    group
}

/// f32 logits of the job, written.
fn logits(backend: &CpuBackend, job: &Job<'_>, bytes: &mut [u8], nonfinite: &mut [bool]) {
    let stride = job.shard.vocab().len() * DType::F32.size();
    let out = LogitsOut { bytes, stride, dtype: DType::F32, nonfinite, any_allowed: None };
    backend.logits(job, out).expect("logits");
}

fn matmul(criterion: &mut Criterion) {
    let backend = CpuBackend::new(None).expect("a backend");
    let most = ROWS[ROWS.len() - 1];
    let mut bytes = vec![0; most * VOCAB * DType::F32.size()];
    let mut nonfinite = vec![false; most];
    for (name, dtype, quantization) in TYPES {
        let heads = [(1, HIDDEN), (VOCAB, HIDDEN), (VOCAB, 1)].map(|(v, h)| head(v, h, dtype, quantization));
        let [one_id, whole, one_column] = &heads;
        let (x, column) = (hidden(most, HIDDEN, dtype), hidden(most, 1, dtype));
        let mut group = group(criterion, format!("{name}/{}", backend.isa()));
        let capped = Epilogue { softcap: Some(30.0), scale: 1.0 };
        let streamed = Throughput::Bytes(weight_bytes(whole).len() as u64);
        group.throughput(streamed.clone());
        group.bench_function("read only", |b| {
            b.iter(|| black_box(backend.read_stream(weight_bytes(whole))));
        });
        for rows in ROWS {
            for (stage, shard, x, epilogue) in [
                ("rows", one_id, &x, Epilogue::default()),
                ("matmul", whole, &x, Epilogue::default()),
                ("epilogue", one_column, &column, Epilogue::default()),
                ("epilogue, softcap", one_column, &column, capped),
            ] {
                let row_bytes = shard.hidden_size() * dtype.size();
                let x = HiddenRows::new(&x[..rows * row_bytes], dtype, rows, shard.hidden_size())
                    .expect("the sizes fit");
                let job = Job { rows: x, shard, epilogue, adjustments: None };
                let bytes = &mut bytes[..rows * shard.vocab().len() * DType::F32.size()];
                group.throughput(match stage {
                    "matmul" => streamed.clone(),
                    _ => Throughput::Elements(rows as u64),
                });
                group.bench_function(BenchmarkId::new(stage, rows), |b| {
                    b.iter(|| logits(&backend, &job, bytes, &mut nonfinite[..rows]));
                });
            }
            let x = HiddenRows::new(&column[..rows * dtype.size()], dtype, rows, 1).expect("the sizes fit");
            let job = Job { rows: x, shard: one_column, epilogue: Epilogue::default(), adjustments: None };
            for (stage, k) in [("partials", 1), ("partials, 64 best", 64)] {
                let spec = PartialSpec { k, sum: true };
                let mut out = vec![RowPartial::new(spec); rows];
                group.bench_function(BenchmarkId::new(stage, rows), |b| {
                    b.iter(|| backend.partials(&job, spec, &mut out).expect("partials"));
                });
            }
        }
        group.finish();
    }
}

/// What is done with logits that are held.
fn held(criterion: &mut Criterion) {
    let backend = CpuBackend::new(None).expect("a backend");
    let shard = head(HELD, 256, DType::F32, Quantization::None);
    let most = ROWS[ROWS.len() - 1];
    let x = hidden(most, 256, DType::F32);
    let mut all = vec![0.0f32; most * HELD];
    let mut nonfinite = vec![false; most];
    let rows = HiddenRows::new(&x, DType::F32, most, 256).expect("the sizes fit");
    let job = Job { rows, shard: &shard, epilogue: Epilogue::default(), adjustments: None };
    logits(&backend, &job, bytemuck::cast_slice_mut(&mut all), &mut nonfinite);

    let mut group = group(criterion, format!("held logits/{}", backend.isa()));
    for rows in ROWS {
        let logits = &all[..rows * HELD];
        let nonfinite = &nonfinite[..rows];
        group.throughput(Throughput::Bytes(size_of_val(logits) as u64));
        let spec = PartialSpec { k: 8, sum: true };
        let (mut partials, mut better) = (vec![RowPartial::new(spec); rows], vec![0; rows]);
        let targets: Vec<Candidate> =
            logits.chunks(HELD).map(|row| Candidate { value: row[100], id: 100 }).collect();
        group.bench_function(BenchmarkId::new("tally, 8 best", rows), |b| {
            b.iter(|| {
                let (partials, better, targets) = (&mut partials[..], &mut better[..], &targets[..]);
                let tally = Tally { logits, vocab: 0..HELD, nonfinite, targets, spec, partials, better };
                backend.tally(tally).expect("a tally");
            });
        });
        let held = HeldLogits { logits, vocab: 0..HELD, nonfinite };
        let numbers: Vec<usize> = (0..rows).collect();
        let params = |row: usize| SamplingParams { position: row as u64, ..SamplingParams::default() };
        let kept: Vec<Kept> = logits
            .chunks(HELD)
            .enumerate()
            .map(|(row, logits)| {
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                Kept::new(Scale::new(&params(row), max, HELD))
            })
            .collect();
        let mut maxima = vec![0.0; rows];
        group.bench_function(BenchmarkId::new("sampling, maxima", rows), |b| {
            b.iter(|| {
                let pass = SamplingPass::Maxima { rows: &numbers, out: &mut maxima };
                backend.sample(&held, pass).expect("maxima");
            });
        });
        let queries: Vec<HistogramQuery> = (0..rows)
            .map(|row| HistogramQuery { row, kept: kept[row], sum: Sum::Masses, step: 0, key: 0 })
            .collect();
        let mut bins = vec![0; rows * BINS];
        group.bench_function(BenchmarkId::new("sampling, histogram of masses", rows), |b| {
            b.iter(|| {
                let pass = SamplingPass::Histograms { queries: &queries, out: &mut bins };
                backend.sample(&held, pass).expect("histograms");
            });
        });
        let queries: Vec<TiesQuery> = (0..rows)
            .map(|row| TiesQuery { row, kept: kept[row], logit: logits[row * HELD + 7], allowance: 1 })
            .collect();
        let mut ends = vec![0; rows];
        group.bench_function(BenchmarkId::new("sampling, ties", rows), |b| {
            b.iter(|| {
                let pass = SamplingPass::Ties { queries: &queries, out: &mut ends };
                backend.sample(&held, pass).expect("ties");
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
                    let pass = SamplingPass::Candidates { rows: &wanted, out: &mut out };
                    backend.sample(&held, pass).expect("candidates");
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, matmul, held);
criterion_main!(benches);
