//! Passes over held logits, against their definitions.

use crate::cases::{Case, Data, KINDS, backends_of, data, epilogues, isas, kinds, shapes};
use lmhead::adjust::ShardAdjustments;
use lmhead::backend::cpu::{CpuBackend, Isa};
use lmhead::backend::{HistogramQuery, TiesQuery, Wanted};
use lmhead::backend::{Job, LoadedShard, LogitsOut, On, Out, Pass, Status, Which};
use lmhead::dtype::DType;
use lmhead::memory::{Span, SpanMut};
use lmhead::merge::{Candidate, ExpSum};
use lmhead::merge::{NO_TARGET, PartialSpec};
use lmhead::params::{LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_NONFINITE};
use lmhead::sampling::SamplingParams;
use lmhead::sampling::cut::{Digits, Kept, Sum};
use lmhead::sampling::mass::Scale;
use lmhead::weights::HeadShard;
use lmhead_testkit::Random;
use lmhead_testkit::adjusting::OwnAdjustments;
use proptest::prelude::*;
use std::sync::Arc;

/// f32 logits `[rows, shard]` of a job and its rows' status words.
fn logits(loaded: &mut dyn LoadedShard, job: &Job<'_>) -> (Vec<f32>, Vec<u32>) {
    let (rows, ids) = (job.rows.len(), loaded.info().vocab.len());
    let (mut logits, mut words) = (vec![0.0f32; rows * ids], vec![u32::MAX; rows]);
    let out = LogitsOut {
        data: SpanMut::host(&mut logits[..]),
        stride: 4 * ids,
        dtype: DType::F32,
        status: Status::Apart { words: SpanMut::host(&mut words[..]), stride: 4 },
    };
    loaded.run(job, Out::Logits(out), &mut On::default()).unwrap();
    (logits, words)
}

/// Candidates with a logit above minus infinity, best first.
fn sorted(logits: &[f32], first_id: usize) -> Vec<Candidate> {
    let ids = first_id as u32..;
    let mut all: Vec<_> = ids.zip(logits).map(|(id, &value)| Candidate { value, id }).collect();
    all.retain(|c| c.value > f32::NEG_INFINITY);
    all.sort_by(|a, b| b.value.partial_cmp(&a.value).unwrap().then(a.id.cmp(&b.id)));
    all
}

/// Checks every pass over the logits of one shard. Returns the results that must be the same on any number of
/// threads.
fn check(
    case: &Case,
    shard: &Arc<HeadShard>,
    adjustments: Option<&ShardAdjustments>,
    k: usize,
    backend: &CpuBackend,
) -> Vec<u64> {
    let (rows, vocab) = (case.rows, shard.vocab());
    let ids = vocab.len();
    let mut loaded = case.load(backend, shard);
    let job = Job { adjustments, ..case.job(case.all_rows()) };
    let (raw, raw_words) = logits(&mut *loaded, &case.job(case.all_rows()));
    let (adjusted, words) = logits(&mut *loaded, &job);
    let finite = |words: &[u32], row: usize| words[row] & LMHEAD_STATUS_NONFINITE == 0;

    // Partials written by the product equal those of a pass over held logits.
    let plain = PartialSpec { k, sum: true, targets: 0 };
    let mut bytes = vec![0xa5a5u64; rows * plain.stride(ids) / 8];
    let out = Out::Partials(plain, SpanMut::host(&mut bytes[..]));
    loaded.run(&job, out, &mut On::default()).unwrap();
    let direct: Vec<Candidate> = partials(&bytes, plain, shard, rows)
        .iter_mut()
        .enumerate()
        .flat_map(|(row, partial)| {
            assert_eq!(partial.nonfinite(), !finite(&words, row));
            partial.sorted().to_vec()
        })
        .collect();

    let held = loaded.hold(&job, true, &mut On::default()).unwrap();
    let mut joined = Vec::new();
    for (of, logits, words) in [(Which::Raw, &raw, &raw_words), (Which::Adjusted, &adjusted, &words)] {
        let own = |row: usize| &logits[row * ids..][..ids];
        // For each row an id from anywhere, no target, and the last id.
        let targets: Vec<u32> = (0..rows as u32)
            .flat_map(|row| [(row * 37 + 5) % case.vocab as u32, NO_TARGET, case.vocab as u32 - 1])
            .collect();
        let mut values = vec![7.0f32; 3 * rows];
        held.pass(Pass::TargetLogits {
            of,
            targets: Span::host(&targets[..]),
            per_row: 3,
            out: SpanMut::host(&mut values[..]),
        })
        .unwrap();
        for (i, (&id, got)) in targets.iter().zip(&values).enumerate() {
            let is_own = vocab.contains(&(id as usize));
            let want = if is_own { own(i / 3)[id as usize - vocab.start] } else { f32::NAN };
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{got} {want}");
        }
        let value = |i: usize| if values[i].is_nan() { 0.25 } else { values[i] };
        let targets: Vec<Candidate> =
            targets.iter().enumerate().map(|(i, &id)| Candidate { value: value(i), id }).collect();
        let spec = PartialSpec { targets: 3, ..plain };
        let mut bytes = vec![0xa5a5u64; rows * spec.stride(ids) / 8];
        let out = SpanMut::host(&mut bytes[..]);
        held.pass(Pass::Partials { of, spec, targets: Span::host(&targets[..]), out }).unwrap();
        for (row, partial) in partials(&bytes, spec, shard, rows).iter_mut().enumerate() {
            if !finite(words, row) {
                assert!(
                    partial.nonfinite() && partial.sorted().is_empty() && partial.num_greater() == [0; 3]
                );
                continue;
            }
            let mut best = sorted(own(row), vocab.start);
            let targets = &targets[3 * row..][..3];
            // Ids that are not allowed rank before such a target if their ids are lower.
            let all =
                || own(row).iter().zip(vocab.start as u32..).map(|(&value, id)| Candidate { value, id });
            let num_greater = [0, 1, 2].map(|i| match targets[i].id {
                NO_TARGET => 0,
                _ => all().filter(|c| c.beats(&targets[i])).count() as u32,
            });
            assert_eq!(partial.num_greater(), num_greater);
            let max = best.first().map_or(f32::NEG_INFINITY, |c| c.value);
            assert_eq!(partial.status(), if best.is_empty() { 0 } else { LMHEAD_STATUS_ALLOWED });
            best.truncate(k);
            assert_eq!(partial.sorted(), best);
            assert_eq!(partial.logsumexp().to_bits(), ExpSum::of(own(row)).ln(max).to_bits());
            if of == Which::Adjusted {
                joined.extend(best);
            }
        }
    }
    assert_eq!(direct, joined);

    let own = |row: usize| &adjusted[row * ids..][..ids];
    // Unordered, with one row twice.
    let numbers: Vec<usize> = (0..rows).rev().chain([0]).collect();
    let mut maxima = vec![1.0; numbers.len()];
    held.pass(Pass::Maxima { rows: &numbers, out: &mut maxima }).unwrap();
    for (&row, max) in numbers.iter().zip(&maxima) {
        let want = own(row).iter().fold(f32::NEG_INFINITY, |max, &l| max.max(l));
        assert!(if finite(&words, row) { *max == want } else { max.is_nan() }, "{max} {want}");
    }
    let params =
        |row: usize| SamplingParams { position: row as u64, min_p: 0.01, ..SamplingParams::default() };
    let kept = |i: usize| {
        let max = if maxima[i].is_finite() { maxima[i] } else { 0.0 };
        Kept::new(Scale::new(&params(numbers[i]), max, case.vocab))
    };
    let digit = Digits::of_rounds(4).each().next().unwrap();
    let queries: Vec<_> = (0..numbers.len())
        .map(|i| HistogramQuery { row: numbers[i], kept: kept(i), sum: Sum::Ids, digit, key: 0 })
        .collect();
    let mut bins = vec![4; numbers.len() * digit.bins()];
    held.pass(Pass::Histograms { queries: &queries, out: &mut bins }).unwrap();
    for (query, bins) in queries.iter().zip(bins.chunks(digit.bins())) {
        let kept =
            own(query.row).iter().zip(vocab.start as u32..).filter(|&(&l, id)| query.kept.keeps(l, id));
        let want = if finite(&words, query.row) { kept.count() as u64 } else { 0 };
        assert_eq!(bins.iter().sum::<u64>(), want);
    }

    let queries: Vec<TiesQuery> = (0..numbers.len())
        .filter(|_| ids > 0)
        .map(|i| {
            let logit = own(numbers[i])[(i * 13) % ids];
            TiesQuery { row: numbers[i], kept: kept(i), logit, allowance: i as u32 % 3 }
        })
        .collect();
    let mut ends = vec![4; queries.len()];
    held.pass(Pass::Ties { queries: &queries, out: &mut ends }).unwrap();
    for (query, end) in queries.iter().zip(&ends) {
        let ties = own(query.row).iter().zip(vocab.start as u32..);
        let mut ties = ties.filter(|&(&l, id)| l == query.logit && query.kept.keeps(l, id));
        let last = query.allowance.checked_sub(1).and_then(|before| ties.nth(before as usize));
        assert_eq!(*end, last.map_or(0, |(_, id)| id + 1));
    }

    let k = k.min(ids);
    let wants: Vec<(usize, Wanted)> = (0..numbers.len())
        .map(|i| match i % 3 {
            0 => (numbers[i], Wanted::Best { k }),
            1 => (numbers[i], Wanted::Drawn { params: params(numbers[i]), kept: None }),
            _ => (numbers[i], Wanted::Drawn { params: params(numbers[i]), kept: Some(kept(i)) }),
        })
        .collect();
    let places = wants.iter().map(|(_, wanted)| wanted.places()).sum();
    let mut out = vec![Candidate { value: 2.0, id: 3 }; places];
    held.pass(Pass::Candidates { rows: &wants, out: SpanMut::host(&mut out[..]) }).unwrap();
    let mut rest = &mut out[..];
    let mut drawn = Vec::new();
    for (row, wanted) in &wants {
        let got = rest.split_off_mut(..wanted.places()).unwrap();
        match wanted {
            _ if !finite(&words, *row) => assert!(got.first().is_none_or(|c| c.value.is_nan())),
            Wanted::Best { k } => {
                let mut want = sorted(own(*row), vocab.start);
                want.resize(*k, Candidate { value: f32::NEG_INFINITY, id: 0 });
                got.sort_by(|a, b| b.value.partial_cmp(&a.value).unwrap().then(a.id.cmp(&b.id)));
                assert_eq!(got, want);
            }
            Wanted::Drawn { kept, .. } => {
                let Candidate { value, id } = got[0];
                let nobody = value == f32::NEG_INFINITY;
                assert!(nobody || own(*row)[id as usize - vocab.start] == value);
                assert!(nobody || kept.is_none_or(|kept| kept.keeps(value, id)));
                drawn.push(u64::from(value.to_bits()) << 32 | u64::from(id));
            }
        }
    }
    drawn.extend(bins);
    drawn
}

/// The decoded partials of a shard, row by row.
fn partials(bytes: &[u64], spec: PartialSpec, shard: &HeadShard, rows: usize) -> Vec<lmhead::merge::Merge> {
    let stride = spec.stride(shard.vocab().len());
    let bytes: &[u8] = bytemuck::cast_slice(bytes);
    (0..rows).map(|row| crate::cases::merged(spec, &[(&bytes[row * stride..][..stride], shard)])).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn passes_answer_by_their_definitions(
        kind in kinds(), (rows, hidden, vocab) in shapes(), data in data(), epilogue in epilogues(),
        adjusted: bool, broken in any::<Option<prop::sample::Index>>(),
        k in prop_oneof![1usize..10, 1usize..400],
        cut in any::<prop::sample::Index>(), seed: u64,
    ) {
        let mut case = Case::new(kind, rows, hidden, vocab, data, seed);
        case.epilogue = epilogue;
        if let Some(at) = broken {
            let (at, size) = (at.index(rows * hidden), kind.hidden.size());
            kind.hidden.round_into(&[f32::INFINITY], &mut case.x[at * size..][..size]);
        }
        let own = OwnAdjustments::random(rows, vocab, &mut Random(seed));
        let cut = (cut.index(vocab.div_ceil(64) + 1) * 64).min(vocab);
        for part in [0..cut, cut..vocab] {
            let mut slice = ShardAdjustments::new(part.clone());
            own.with(|all| slice.push_encoded(&all.encode(0..rows, part.clone(), vocab), rows)).unwrap();
            let (shard, slice) = (case.shard(part), adjusted.then_some(&slice));
            for isa in isas() {
                let said = backends_of(isa).map(|backend| check(&case, &shard, slice, k, backend));
                let said: Vec<_> = said.collect();
                prop_assert!(said.iter().all(|one| *one == said[0]), "{isa}: threads show");
            }
        }
    }
}

/// More rows than one product takes, and rows that several threads share.
#[test]
fn many_rows_and_many_ids() {
    for kind in KINDS {
        let case = Case::new(kind, 300, 37, 200, Data::Gaussian, 5);
        for isa in [Isa::detect(), Isa::EmulatedAmx] {
            check(&case, &case.shard(0..200), None, 3, backends_of(isa).last().unwrap());
        }
    }
    for (rows, k) in [(1, 1), (5, 4), (9, 20), (1, 100), (2, 300)] {
        let case = Case::new(KINDS[2], rows, 40, 20_000, Data::Integers, 5);
        let threads = [1, 3, 8].map(|threads| CpuBackend::with_isa(Isa::detect(), Some(threads)).unwrap());
        for backend in &threads {
            check(&case, &case.shard(0..20_000), None, k, backend);
            check(&case, &case.shard(6400..20_000), None, k, backend);
        }
    }
}

/// Two heads with the same weights give the same answers, also after giving their memory back.
#[test]
fn another_head_has_the_same_weights_and_memory_of_its_own() {
    let isas = [Isa::detect(), Isa::EmulatedAmx];
    for (kind, isa) in [KINDS[2], KINDS[11]].into_iter().flat_map(|kind| isas.map(|isa| (kind, isa))) {
        let case = Case::new(kind, 5, 40, 300, Data::Gaussian, 5);
        let shard = case.shard(64..300);
        let backend = backends_of(isa).last().unwrap();
        let mut first = case.load(backend, &shard);
        let mut second = first.another().unwrap();
        assert_eq!((first.info(), second.info()), (&shard.info(), &shard.info()));
        let job = case.job(case.all_rows());
        let want = logits(&mut *first, &job);
        // What one head holds survives a call of the other.
        let held = first.hold(&job, false, &mut On::default()).unwrap();
        assert_eq!(logits(&mut *second, &job), want);
        second.release_memory();
        let (targets, mut out) = ([70, 71, 72, 73, 299], [0.0; 5]);
        let pass = Pass::TargetLogits {
            of: Which::Raw,
            targets: Span::host(&targets[..]),
            per_row: 1,
            out: SpanMut::host(&mut out[..]),
        };
        held.pass(pass).unwrap();
        let own = |row: usize| want.0[row * 236 + targets[row] as usize - 64];
        assert_eq!(out, [0, 1, 2, 3, 4].map(own));
        drop(first);
        assert_eq!(logits(&mut *second, &job), want);
    }
}
