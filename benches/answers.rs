//! What becomes of logits on the CPU backend: partials as they come, then tallies and the passes of sampling over held ones. Products,
//! their other stages and whole steps: `lmhead bench`.
//!
//! ```text
//! cargo bench --bench answers                             # the best instruction set of this machine
//! LMHEAD_CPU_ISA=avx2 cargo bench --bench answers -- 'sampling'
//! ```
//! - `partials`, `partials, 64 best`: the maximum and the sum, or candidates as well, in place of written logits: on a head of one
//!   column, whose products are few;
//! - `tally` and the `sampling` passes: over held f32 logits of 32768 ids.

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
use lmhead::sampling::cut::{Digits, Kept, Sum};
use lmhead::sampling::mass::Scale;
use lmhead::weights::HeadShard;
use lmhead::weights::synthetic::{self, Spec};
use std::time::Duration;

const ROWS: [usize; 5] = [1, 4, 28, 64, 256];
const VOCAB: usize = 16_384;
/// Ids of the held logits.
const HELD: usize = 32_768;

fn head(vocab_size: usize, hidden_size: usize, dtype: DType, quantization: Quantization) -> HeadShard {
    let spec = Spec { vocab_size, hidden_size, dtype };
    synthetic::shard(&spec, 0, 0..vocab_size, quantization, None).expect("the sizes fit")
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

/// f32 logits of the job, written.
fn logits(backend: &CpuBackend, job: &Job<'_>, bytes: &mut [u8], nonfinite: &mut [bool]) {
    let stride = job.shard.vocab().len() * DType::F32.size();
    let out = LogitsOut { bytes, stride, dtype: DType::F32, nonfinite, any_allowed: None };
    backend.logits(job, out).expect("logits");
}

/// Logits that go to partials one block after the other.
fn partials(criterion: &mut Criterion) {
    let backend = CpuBackend::new(None).expect("a backend");
    let dtype = DType::Bf16;
    let shard = head(VOCAB, 1, dtype, Quantization::None);
    let column = hidden(ROWS[ROWS.len() - 1], 1, dtype);
    let mut group = group(criterion, format!("partials/{}", backend.isa()));
    for rows in ROWS {
        let x = HiddenRows::new(&column[..rows * dtype.size()], dtype, rows, 1).expect("the sizes fit");
        let job = Job { rows: x, shard: &shard, epilogue: Epilogue::default(), adjustments: None };
        group.throughput(Throughput::Elements(rows as u64));
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
        let digit = Digits::of_rounds(4).each().next().expect("a first digit");
        let queries: Vec<HistogramQuery> = (0..rows)
            .map(|row| HistogramQuery { row, kept: kept[row], sum: Sum::Masses, digit, key: 0 })
            .collect();
        let mut bins = vec![0; rows * digit.bins()];
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

criterion_group!(benches, partials, held);
criterion_main!(benches);
