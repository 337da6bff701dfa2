//! Partials in hard cases: every number of candidates, logits that tie across tiles, parts and lanes, the
//! largest logit in each tile in turn, rows without an answer beside good ones. An int8 head's partials must
//! equal the CPU backend's in every bit.

pub mod lists;

use super::shards::Placed;
use crate::Random;
use lmhead::adjust::ShardAdjustments;
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::device::{DeviceBackend, KernelDevice};
use lmhead::backend::params::{LMHEAD_STATUS_ALLOWED, PartialRow};
use lmhead::backend::{Backend, HistogramQuery, Job, LoadedShard, On, Out, Pass, TiesQuery, Wanted, Which};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::epilogue::Epilogue;
use lmhead::finish::{Finish, FinishScratch, Messages};
use lmhead::memory::{Memory, Span, SpanMut};
use lmhead::merge::{Candidate, ExpSum, Merge, NO_TARGET, PartialMut, PartialSpec};
use lmhead::rows::HiddenRows;
use lmhead::sampling::SamplingParams;
use lmhead::sampling::cut::{Digits, Kept, Sum};
use lmhead::sampling::mass::Scale;
use lmhead::weights::{HeadShard, Matrix};
use std::mem::offset_of;
use std::ops::Range;
use std::sync::Arc;

/// Numbers of candidates: one, some, the most that a warp collects, one more, many, and all.
pub const CANDIDATES: [usize; 6] = [1, 9, 64, 65, 1000, usize::MAX];

/// Ids and rows of the cases. Tiles have 64 to 256 ids; held logits of 2048 ids and more are several parts.
pub const SIZES: [(usize, usize); 7] =
    [(1, 3), (63, 9), (65, 70), (129, 17), (2048, 5), (2100, 3), (4200, 8)];

const HIDDEN: usize = 16;

/// The contents of a partial: status, candidates (best first), logarithm of the sum, counts.
type Said = (u32, Vec<(u32, u32)>, u64, Vec<u32>);

fn said(bytes: &[u8], spec: PartialSpec, ids: usize) -> Vec<Said> {
    let mut merge = Merge::default();
    let row = |bytes: &[u8]| {
        merge.reset(spec);
        merge.add(bytes, &(0..ids)).expect("a partial");
        let best = merge.sorted().iter().map(|c| (c.value.to_bits(), c.id)).collect();
        (merge.status(), best, merge.logsumexp().to_bits(), merge.num_greater().to_vec())
    };
    bytes.chunks(spec.stride(ids)).map(row).collect()
}

/// An int8 head with few different values, so that logits tie everywhere; only id `largest` is above all.
fn shard((vocab, hidden): (usize, usize), largest: usize, random: &mut Random) -> Arc<HeadShard> {
    let values: Vec<i8> = (0..vocab * hidden).map(|_| random.below(3) as i8 - 1).collect();
    let bias = (0..vocab).map(|id| if id == largest { 20.0 } else { 0.0 }).collect();
    let matrix = Matrix::I8 { values: values.into(), scales: vec![0.5; vocab] };
    Arc::new(
        HeadShard::new(0..vocab, vocab, hidden, Quantization::W8a8, matrix, Some(bias)).expect("a shard"),
    )
}

/// Compares the same call on the device, in its memory and the host's, with that of the CPU backend.
fn case<D: KernelDevice>(
    backend: &DeviceBackend<D>,
    cpu: &CpuBackend,
    (vocab, rows, columns): (usize, usize, usize),
    (k, largest): (usize, usize),
    seed: u64,
) {
    let what = format!("{rows} rows, {vocab} ids, k {k}, largest {largest}, seed {seed}");
    let mut random = Random(seed);
    let shard = shard((vocab, columns), largest, &mut random);
    let mut values: Vec<f32> = (0..rows * columns).map(|_| random.below(5) as f32 - 2.0).collect();
    if rows > 2 {
        values[columns] = f32::NAN;
    }
    let mut bytes = vec![0; 2 * values.len()];
    DType::Bf16.round_into(&values, &mut bytes);
    let hidden = HiddenRows::new(&bytes, DType::Bf16, rows, columns).expect("rows");
    // The last row allows no id, the others all.
    let own = crate::adjusting::OwnAdjustments {
        vocab,
        rows,
        mask: Some(
            (0..rows * vocab.div_ceil(32)).map(|i| -i32::from(i / vocab.div_ceil(32) + 1 < rows)).collect(),
        ),
        logit_bias: None,
        penalties: None,
    };
    let mut masked = ShardAdjustments::new(0..vocab);
    own.with(|all| masked.push_encoded(&all.encode(0..rows, 0..vocab, vocab), rows)).expect("a slice");
    for adjustments in [None, Some(&masked)] {
        let job = Job { rows: hidden, epilogue: Epilogue::default(), adjustments, placed: None };
        let mut theirs = cpu.load(&shard, DType::Bf16).expect("the CPU's");
        let mut loaded = backend.load(&shard, DType::Bf16).expect("memory");
        // With many candidates only once.
        for sum in [true, false].into_iter().take(if k > 65 { 1 } else { 2 }) {
            let spec = PartialSpec { k, sum, targets: 0 };
            let mut wanted = vec![0u64; rows * spec.stride(vocab) / 8];
            let out = Out::Partials(spec, SpanMut::host(&mut wanted[..]));
            theirs.run(&job, out, &mut On::default()).expect("the CPU's partials");
            let wanted: &[u8] = bytemuck::cast_slice(&wanted);
            for memory in [Memory::Host, Backend::memory(backend)] {
                let placed = Placed::new(backend, memory, &vec![0xa5; rows * spec.stride(vocab)]);
                let got = run_product(&mut *loaded, &job, spec, placed);
                assert_eq!(said(&got, spec, vocab), said(wanted, spec, vocab), "{what}, {memory}, sum {sum}");
            }
        }
        // With three targets a row, in held logits and in the matmul: one in this shard, no target, one in
        // another shard. The targets' logits tie with many.
        let spec = PartialSpec { k, sum: true, targets: 3 };
        let targets: Vec<Candidate> = (0..rows)
            .flat_map(|row| {
                let own = Candidate { value: 0.0, id: random.below(vocab) as u32 };
                let none = Candidate { value: 1.0, id: NO_TARGET };
                let other = Candidate { value: row as f32 - 3.0, id: vocab as u32 + 7 };
                [own, none, other]
            })
            .collect();
        let wanted = of_held(&mut *theirs, &job, spec, &targets);
        let got = of_held(&mut *loaded, &job, spec, &targets);
        assert_eq!(said(&got, spec, vocab), said(&wanted, spec, vocab), "{what}, held");
        for memory in [Memory::Host, Backend::memory(backend)] {
            let asked = Placed::new(backend, memory, bytemuck::cast_slice(&targets));
            let mut out = Placed::new(backend, memory, &vec![0xa5; rows * spec.stride(vocab)]);
            let counted = Out::Counted { spec, targets: asked.span(), again: false, out: out.span_mut() };
            loaded.run(&job, counted, &mut On::default()).expect("partials");
            assert_eq!(
                said(&out.read(), spec, vocab),
                said(&wanted, spec, vocab),
                "{what}, counted in {memory}"
            );
        }
        if k == 1 {
            let (got, wanted) = (searched(&mut *loaded, &job, seed), searched(&mut *theirs, &job, seed));
            let names = ["maxima", "histograms", "ties", "candidates"];
            for ((got, wanted), name) in got.iter().zip(&wanted).zip(names) {
                let differs = got.iter().zip(wanted).position(|(got, wanted)| got != wanted);
                let pair = differs.map(|i| (i, got[i], wanted[i]));
                assert_eq!((pair, got.len()), (None, wanted.len()), "{what}, {name}");
            }
        }
    }
}

fn run_product<D: KernelDevice>(
    loaded: &mut dyn LoadedShard,
    job: &Job<'_>,
    spec: PartialSpec,
    mut out: Placed<'_, D>,
) -> Vec<u8> {
    loaded.run(job, Out::Partials(spec, out.span_mut()), &mut On::default()).expect("partials");
    out.read()
}

/// The partials of held logits, in host memory.
fn of_held(loaded: &mut dyn LoadedShard, job: &Job<'_>, spec: PartialSpec, targets: &[Candidate]) -> Vec<u8> {
    let mut out = vec![u64::MAX; job.rows.len() * spec.stride(loaded.info().vocab.len()) / 8];
    let held = loaded.hold(job, false, &mut On::default()).expect("held logits");
    let pass = Pass::Partials {
        of: Which::Adjusted,
        spec,
        targets: Span::host(targets),
        out: SpanMut::host(&mut out[..]),
    };
    held.pass(pass).expect("partials");
    bytemuck::cast_slice(&out).to_vec()
}

/// The passes of searches and draws over held logits: maxima, histograms of every digit, ends of ties, draws.
fn searched(loaded: &mut dyn LoadedShard, job: &Job<'_>, seed: u64) -> [Vec<u64>; 4] {
    let (rows, vocab) = (job.rows.len(), loaded.info().vocab.len());
    let held = loaded.hold(job, false, &mut On::default()).expect("held logits");
    let all: Vec<usize> = (0..rows).collect();
    let mut maxima = vec![0.0f32; rows];
    held.pass(Pass::Maxima { rows: &all, out: &mut maxima }).expect("maxima");
    let params = |row: usize| SamplingParams {
        seed,
        position: row as u64,
        temperature: [0.0, 0.7, 3.0][row % 3],
        min_p: [0.0, 0.0, 0.01][row / 3 % 3],
        ..SamplingParams::default()
    };
    let warm = |row: usize| SamplingParams { temperature: 0.5 + row as f32, ..params(row) };
    // A step would not search a row without a largest logit; the kernels' results are compared all the same.
    let kept = |row: usize| {
        let max = if maxima[row].is_finite() { maxima[row] } else { 0.0 };
        let cut = if row.is_multiple_of(2) { f32::NEG_INFINITY } else { max - 2.0 };
        Kept { cut, ties_end: vocab as u32 / 2, ..Kept::new(Scale::new(&warm(row), max, vocab)) }
    };
    let mut bins = Vec::new();
    for sum in [Sum::Ids, Sum::Masses] {
        for digits in [4, 5] {
            for digit in Digits::of_rounds(digits).each() {
                // The known digits are those of the largest logit, or of a logit that does not occur.
                let key = |row: usize| if row.is_multiple_of(4) { 0x4123_4567 } else { order(maxima[row]) };
                let query = |row: usize| HistogramQuery { row, kept: kept(row), sum, digit, key: key(row) };
                let queries: Vec<HistogramQuery> = all.iter().map(|&row| query(row)).collect();
                let mut out = vec![7; rows * digit.bins()];
                held.pass(Pass::Histograms { queries: &queries, out: &mut out }).expect("histograms");
                bins.extend(out);
            }
        }
    }
    let mut ends = Vec::new();
    for allowance in [0, 1, 2, 40, 300, 1100, u32::MAX] {
        for below in [0.0, 1.0, 2.0] {
            let query = |&row: &usize| TiesQuery {
                row,
                kept: kept(row),
                logit: maxima[row] - 20.0 - below,
                allowance,
            };
            let queries: Vec<TiesQuery> = all.iter().map(query).collect();
            let mut out = vec![7; rows];
            held.pass(Pass::Ties { queries: &queries, out: &mut out }).expect("ties");
            ends.extend(out.into_iter().map(u64::from));
        }
    }
    let wants: Vec<(usize, Wanted)> = (0..7 * rows)
        .map(|i| match i / rows {
            0 => (i % rows, Wanted::Drawn { params: params(i % rows), kept: None }),
            1 => (i % rows, Wanted::Drawn { params: warm(i % rows), kept: Some(kept(i % rows)) }),
            n => (i % rows, Wanted::Best { k: [1, 70, 5, 1024, 64 + i][n - 2].min(vocab) }),
        })
        .collect();
    let places = wants.iter().map(|(_, wanted)| wanted.places()).sum();
    let mut found = vec![Candidate { value: 1.0, id: 7 }; places];
    held.pass(Pass::Candidates { rows: &wants, out: SpanMut::host(&mut found[..]) }).expect("candidates");
    // Candidates may come in any order.
    let mut first = 0;
    for (_, wanted) in &wants {
        let own = &mut found[first..first + wanted.places()];
        own.sort_by(|a, b| b.value.total_cmp(&a.value).then(a.id.cmp(&b.id)));
        first += wanted.places();
    }
    let found = found.iter().map(|c| u64::from(c.value.to_bits()) << 32 | u64::from(c.id)).collect();
    [maxima.iter().map(|max| u64::from(max.to_bits())).collect(), bins, ends, found]
}

/// The order key of a logit.
fn order(logit: f32) -> u32 {
    let bits = (logit + 0.0).to_bits();
    bits ^ if bits >> 31 == 1 { u32::MAX } else { 1 << 31 }
}

/// Checks few cases of one size: ids, rows, hidden size.
///
/// # Panics
/// Where something differs, with the seed.
pub fn of_one_size_are_the_cpus<D: KernelDevice>(
    backend: &DeviceBackend<D>,
    cpu: &CpuBackend,
    size: (usize, usize, usize),
    seed: u64,
) {
    let mut random = Random(seed);
    // The largest logit is in the last tile.
    for k in [1, 64] {
        case(backend, cpu, size, (k, size.0 - 1), random.next());
    }
}

/// Checks all cases.
///
/// # Panics
/// Where something differs, with the seed.
pub fn are_the_cpus<D: KernelDevice>(backend: &DeviceBackend<D>, cpu: &CpuBackend, seed: u64) {
    let mut random = Random(seed);
    for (vocab, rows) in SIZES {
        // A seed has only one of the two large numbers of candidates.
        for (i, k) in CANDIDATES.into_iter().enumerate() {
            if i >= 4 && (i as u64 + seed).is_multiple_of(2) {
                continue;
            }
            let largest = random.below(vocab);
            case(backend, cpu, (vocab, rows, HIDDEN), (k.min(vocab + 3), largest), random.next());
        }
    }
    // Each tile and part in turn has the largest logit, at its first or last id.
    let edges = (0..4200).filter(|id| [0, 63].contains(&(id % 64)));
    for (i, largest) in edges.step_by(5).enumerate() {
        let k = if i.is_multiple_of(4) { 65 } else { 1 };
        case(backend, cpu, (4200, 2, HIDDEN), (k, largest), random.next());
    }
    lists::are_merged_as_on_the_host(backend, seed);
    for k in [3, 70] {
        damaged_messages_are_rows_of_bad_input(backend, k);
    }
}

/// Checks that a damaged message, which cannot end a step on a device, gives its row the status of bad input.
fn damaged_messages_are_rows_of_bad_input<D: KernelDevice>(backend: &DeviceBackend<D>, k: usize) {
    const SHARDS: [Range<usize>; 2] = [0..128, 128..200];
    const ROWS: usize = 8;
    let spec = PartialSpec { k, sum: true, targets: 0 };
    let stride = spec.stride(72);
    let mut words = vec![0u64; SHARDS.len() * ROWS * stride / 8];
    for (i, bytes) in bytemuck::cast_slice_mut(&mut words).chunks_mut(stride).enumerate() {
        let shard = &SHARDS[i / ROWS];
        let mut partial = PartialMut::new(bytes, &spec, shard.len());
        partial.set_status(LMHEAD_STATUS_ALLOWED);
        partial.set_sum(&ExpSum::of(&[1.0, 2.0]));
        let first = shard.start as u32;
        partial.set_candidates(&[(2.0, 5), (1.0, 6)].map(|(value, id)| Candidate { value, id: first + id }));
    }
    // In the second shard's message, something is wrong with each row but the last.
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    let row = |row: usize| (ROWS + row) * stride;
    let partial = size_of::<PartialRow>();
    bytes[row(0) + offset_of!(PartialRow, candidates)..][..4].copy_from_slice(&(k as u32 + 1).to_le_bytes());
    bytes[row(1) + offset_of!(PartialRow, reserved)] = 1;
    bytes[row(2) + offset_of!(PartialRow, top)..][..4].copy_from_slice(&100_000i32.to_le_bytes());
    bytes[row(3) + partial + 4..][..4].copy_from_slice(&127u32.to_le_bytes());
    bytes[row(4) + partial..][..4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    // One row is not in order, and one has the same id twice.
    bytes[row(5) + partial..][..4].copy_from_slice(&0.5f32.to_le_bytes());
    let (first, second) = (row(6) + partial, row(6) + partial + 8);
    bytes.copy_within(first..first + 8, second);

    let memory = Backend::memory(backend);
    let head = crate::TestHead::random(200, HIDDEN, DType::Bf16, Quantization::None, 1);
    let mut loaded = backend.load(&head.shard(0..128), DType::Bf16).expect("memory");
    let came = Placed::new(backend, memory, bytes);
    let space = |bytes: usize| Placed::new(backend, memory, &vec![0x77; bytes]);
    let (mut ids, mut values) = (space(8 * ROWS * k), space(4 * ROWS * k));
    let (mut sums, mut status) = (space(4 * ROWS), space(ROWS));
    let from = Messages {
        bytes: came.span(),
        own: Span::EMPTY,
        starts: &[0, ROWS * stride],
        shards: &SHARDS,
        rows: ROWS,
        answered: ROWS,
    };
    let what = Finish::TopK {
        from,
        k,
        ids: ids.span_mut(),
        values: values.span_mut(),
        logsumexp: sums.span_mut(),
        row_status: status.span_mut(),
    };
    loaded.finish(what, &mut FinishScratch::default(), &mut On::default()).expect("an answer");
    assert_eq!(status.read(), [3, 3, 3, 3, 3, 3, 3, 0]);
    let ids: Vec<i64> = bytemuck::pod_collect_to_vec(&ids.read());
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(&values.read());
    let sums: Vec<f32> = bytemuck::pod_collect_to_vec(&sums.read());
    for (row, status) in status.read().into_iter().enumerate() {
        let (ids, values) = (&ids[row * k..][..k], &values[row * k..][..k]);
        if status == 0 {
            assert!(sums[row].is_finite());
            continue;
        }
        assert!(ids.iter().all(|id| *id == -1), "of a row that is none nothing is told: {ids:?}");
        assert!(values.iter().all(|value| value.is_nan()) && sums[row].is_nan());
    }
    let last: Vec<i64> = [5, 133, 6, 134].into_iter().chain(std::iter::repeat(-1)).take(k).collect();
    assert_eq!(ids[7 * k..], last);
}
