//! What comes out: candidates and sums, flags of non-finite rows, strided rows of every type.

use crate::cases::{Case, Data, backends_of, bits, data, epilogues, floats, kinds, shapes};
use half::{bf16, f16};
use lmhead::backend::cpu::Isa;
use lmhead::backend::{Backend, Job, LogitsOut};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::merge::{PartialSpec, RowPartial};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Candidates and sums from `partials` are those of the f32 logits, whatever the threads and shards.
    #[test]
    fn partials_agree_with_logits(
        kind in kinds(), (rows, hidden, vocab) in shapes(), data in data(), epilogue in epilogues(),
        k in prop_oneof![1usize..10, 1usize..400], cut in any::<prop::sample::Index>(), seed in any::<u64>(),
    ) {
        let mut case = Case::new(kind, rows, hidden, vocab, data, seed);
        case.epilogue = epilogue;
        let spec = PartialSpec { k, sum: true };
        let cut = (cut.index(vocab.div_ceil(64) + 1) * 64).min(vocab);
        for isa in Isa::available() {
            let want = case.bits(backends_of(isa).next().unwrap());
            for backend in backends_of(isa) {
                let mut merged = vec![RowPartial::new(spec); rows];
                for part in [0..cut, cut..vocab] {
                    let shard = case.shard(part);
                    let job = Job { rows: case.all_rows(), shard: &shard, epilogue, adjustments: None };
                    // What was there before is overwritten.
                    let mut out = vec![RowPartial::new(PartialSpec { k: 3, sum: false }); rows];
                    out.iter_mut().for_each(|p| p.push(0, &[1e30, f32::NAN], false));
                    backend.partials(&job, spec, &mut out).unwrap();
                    merged.iter_mut().zip(&out).for_each(|(all, part)| all.merge(part));
                }
                for (row, partial) in merged.iter().enumerate() {
                    let want: Vec<f32> = want[row * vocab..][..vocab].iter().map(|&b| f32::from_bits(b)).collect();
                    let mut pushed = RowPartial::new(spec);
                    for (block, logits) in want.chunks(64).enumerate() {
                        pushed.push(block * 64, logits, true);
                    }
                    let list = |p: &RowPartial| {
                        p.sorted().iter().map(|c| (c.id, c.value.to_bits())).collect::<Vec<_>>()
                    };
                    prop_assert_eq!(list(partial), list(&pushed));
                    prop_assert_eq!(partial.logsumexp().to_bits(), pushed.logsumexp().to_bits());
                    let mut sorted: Vec<u32> = (0..vocab as u32).collect();
                    sorted.sort_by(|&a, &b| want[b as usize].partial_cmp(&want[a as usize]).unwrap());
                    sorted.truncate(k);
                    let ids: Vec<u32> = partial.sorted().iter().map(|c| c.id).collect();
                    prop_assert_eq!(ids, sorted);
                    prop_assert!(!partial.nonfinite());
                }
            }
        }
    }

    /// A row with NaN or infinity is flagged in every output; its neighbours keep their bits and no flag.
    #[test]
    fn bad_rows_are_flagged_and_disturb_nobody(
        kind in kinds(), (rows, hidden, vocab) in shapes(), bad in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        value in prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]),
        softcap in prop::option::of(Just(30.0f32)), seed in any::<u64>(),
    ) {
        let mut case = Case::new(kind, rows, hidden, vocab, Data::Gaussian, seed);
        case.epilogue.softcap = softcap;
        let good: Vec<_> = Isa::available().iter().map(|&isa| case.bits(backends_of(isa).last().unwrap())).collect();
        let bad = bad.index(rows);
        let (size, at) = (kind.hidden.size(), bad * hidden + at.index(hidden));
        kind.hidden.round_into(&[value], &mut case.x[at * size..][..size]);
        let shard = case.shard(0..vocab);
        for (isa, good) in Isa::available().into_iter().zip(good) {
            let backend = backends_of(isa).last().unwrap();
            for dtype in [DType::F32, DType::F16, DType::Bf16] {
                let (got, nonfinite) = case.run(backend, case.all_rows(), &shard, dtype);
                let want: Vec<bool> = (0..rows).map(|row| row == bad).collect();
                prop_assert_eq!(nonfinite, want);
                if dtype == DType::F32 {
                    let got = bits(&got);
                    for row in (0..rows).filter(|&row| row != bad) {
                        prop_assert_eq!(&got[row * vocab..][..vocab], &good[row * vocab..][..vocab]);
                    }
                    if kind.quantization == Quantization::W8a8 {
                        let row = &got[bad * vocab..][..vocab];
                        prop_assert!(row.iter().all(|&b| f32::from_bits(b).is_nan()));
                    }
                }
            }
            let spec = PartialSpec { k: 2, sum: true };
            let mut partials = vec![RowPartial::new(spec); rows];
            let job = Job { rows: case.all_rows(), shard: &shard, epilogue: case.epilogue, adjustments: None };
            backend.partials(&job, spec, &mut partials).unwrap();
            for (row, partial) in partials.iter().enumerate() {
                prop_assert_eq!(partial.nonfinite(), row == bad);
            }
        }
    }

    /// Every output type is the f32 logit rounded half to even; bytes between the rows stay as they were; a flag
    /// that was set stays set.
    #[test]
    fn strided_output_touches_its_own_bytes_only(
        kind in kinds(), (rows, hidden, vocab) in shapes(), gap in 0usize..70, last_gap in any::<bool>(),
        dtype in prop::sample::select(vec![DType::F32, DType::F16, DType::Bf16]), seed in any::<u64>(),
    ) {
        let case = Case::new(kind, rows, hidden, vocab, Data::Wide, seed);
        let shard = case.shard(0..vocab);
        let own = vocab * dtype.size();
        let stride = own + gap;
        for isa in Isa::available() {
            let backend = backends_of(isa).last().unwrap();
            let (want, _) = case.run(backend, case.all_rows(), &shard, DType::F32);
            let want = row_bytes_by_the_book(dtype, &floats(&want));
            let mut bytes = vec![0xa5; rows * stride - if last_gap { 0 } else { gap }];
            let mut nonfinite = vec![true; rows];
            let job = Job { rows: case.all_rows(), shard: &shard, epilogue: case.epilogue, adjustments: None };
            let out = LogitsOut { bytes: &mut bytes, stride, dtype, nonfinite: &mut nonfinite, any_allowed: None };
            backend.logits(&job, out).unwrap();
            for (got, want) in bytes.chunks(stride.max(1)).zip(want.chunks(own)) {
                prop_assert_eq!(&got[..own], want);
                prop_assert!(got[own..].iter().all(|&b| b == 0xa5), "the gap was written");
            }
            prop_assert!(nonfinite.iter().all(|&flag| flag));
        }
    }
}

/// Rounding by the `half` crate's scalar conversions.
fn row_bytes_by_the_book(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32_const(v).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32_const(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|&v| v.to_le_bytes()).collect(),
    }
}
