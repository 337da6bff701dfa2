//! Outputs: candidates and sums, flags of non-finite rows, strided rows of every type.

use crate::cases::{
    Case, Data, backends_of, bits, data, epilogues, floats, isas, kinds, merged, plain, row_bytes, shapes,
};
use half::{bf16, f16};
use lmhead::backend::{LogitsOut, On, Out, Status};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::memory::SpanMut;
use lmhead::merge::PartialSpec;
use lmhead::merge::{Candidate, ExpSum};
use lmhead::params::{LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_NONFINITE};
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
        let spec = PartialSpec { k, sum: true, targets: 0 };
        let cut = (cut.index(vocab.div_ceil(64) + 1) * 64).min(vocab);
        for isa in isas() {
            let want = case.bits(backends_of(isa).next().unwrap());
            for backend in backends_of(isa) {
                let shards = [case.shard(0..cut), case.shard(cut..vocab)];
                let parts = shards.each_ref().map(|shard| case.partial_bytes(backend, shard, spec));
                for row in 0..rows {
                    let part = |i: usize| {
                        let stride = spec.stride(shards[i].vocab().len());
                        (&bytemuck::cast_slice(&parts[i])[row * stride..][..stride], &*shards[i])
                    };
                    let mut partial = merged(spec, &[part(0), part(1)]);
                    let logits: Vec<f32> =
                        want[row * vocab..][..vocab].iter().map(|&b| f32::from_bits(b)).collect();
                    let mut sorted: Vec<Candidate> =
                        logits.iter().zip(0..).map(|(&value, id)| Candidate { value, id }).collect();
                    sorted.sort_by(|a, b| b.value.partial_cmp(&a.value).unwrap());
                    let sum = ExpSum::of(&logits).ln(sorted[0].value);
                    sorted.truncate(k);
                    prop_assert_eq!(partial.sorted(), sorted);
                    prop_assert_eq!(partial.logsumexp().to_bits(), sum.to_bits());
                    prop_assert_eq!(partial.status(), LMHEAD_STATUS_ALLOWED);
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
        let good: Vec<_> = isas().iter().map(|&isa| case.bits(backends_of(isa).last().unwrap())).collect();
        let bad = bad.index(rows);
        let (size, at) = (kind.hidden.size(), bad * hidden + at.index(hidden));
        kind.hidden.round_into(&[value], &mut case.x[at * size..][..size]);
        let shard = case.shard(0..vocab);
        for (isa, good) in isas().into_iter().zip(good) {
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
            let spec = PartialSpec { k: 2, sum: true, targets: 0 };
            for (row, partial) in case.partials(backend, &shard, spec).iter().enumerate() {
                prop_assert_eq!(partial.nonfinite(), row == bad);
            }
        }
    }

    /// A finite logit that rounds to infinity counts as not finite where it is delivered in that type, and
    /// only there.
    #[test]
    fn what_overflows_the_delivered_type_is_flagged(
        (rows, vocab) in (1usize..4, 1usize..200), at in any::<prop::sample::Index>(), negative: bool,
        near in -40i32..40, dtype in prop::sample::select(vec![DType::F16, DType::Bf16]),
    ) {
        // 65520 and 0x7f7f8000 are the first that round to infinity.
        let limit = if dtype == DType::F16 { 65520f32.to_bits() } else { 0x7f7f_8000 };
        let value = f32::from_bits(limit.wrapping_add_signed(near));
        let value = if negative { -value } else { value };
        let mut case = Case::new(plain(DType::F32), rows, 1, vocab, Data::Gaussian, 1);
        let at = at.index(rows * vocab);
        // One column: a logit is the row's value times that of the id.
        let x: Vec<f32> = (0..rows).map(|row| f32::from(row == at / vocab)).collect();
        case.x = row_bytes(DType::F32, &x);
        case.w = vec![1.0; vocab];
        case.w[at % vocab] = value;
        let shard = case.shard(0..vocab);
        for backend in isas().into_iter().map(|isa| backends_of(isa).last().unwrap()) {
            for delivered in [DType::F32, dtype] {
                let (bytes, nonfinite) = case.run(backend, case.all_rows(), &shard, delivered);
                let infinite = delivered.read(&bytes, at).is_infinite();
                prop_assert_eq!(infinite, delivered == dtype && near >= 0);
                let want: Vec<bool> = (0..rows).map(|row| row == at / vocab && infinite).collect();
                prop_assert_eq!(nonfinite, want, "{} delivered as {}", value, delivered);
            }
        }
    }

    /// Every output type is the f32 logit rounded half to even. Bytes between rows are not written, except
    /// for status words placed there.
    #[test]
    fn strided_output_touches_its_own_bytes_only(
        kind in kinds(), (rows, hidden, vocab) in shapes(), gap in 0usize..20, last_gap in any::<bool>(),
        inside in prop::option::of(0usize..3),
        dtype in prop::sample::select(vec![DType::F32, DType::F16, DType::Bf16]), seed in any::<u64>(),
    ) {
        let case = Case::new(kind, rows, hidden, vocab, Data::Wide, seed);
        let shard = case.shard(0..vocab);
        let own = vocab * dtype.size();
        let at = inside.map(|words| own.next_multiple_of(4) + 4 * words);
        let stride = match at {
            Some(at) => at + 4 + 4 * gap,
            None => own + gap * dtype.size(),
        };
        for isa in isas() {
            let backend = backends_of(isa).last().unwrap();
            let (exact, _) = case.run(backend, case.all_rows(), &shard, DType::F32);
            let want = row_bytes_by_the_book(dtype, &floats(&exact));
            let end = at.map_or(own, |at| at + 4);
            let len = rows * stride - if last_gap { 0 } else { stride - end };
            let mut memory = vec![0xa5a5_a5a5u32; len.div_ceil(4)];
            let mut words = vec![u32::MAX; 2 * rows];
            let status = match at {
                Some(at) => Status::Inside { at },
                None => Status::Apart { words: SpanMut::host(&mut words[..]), stride: 8 },
            };
            let data = SpanMut::host(&mut memory[..]).part(0..len);
            let out = Out::Logits(LogitsOut { data, stride, dtype, status });
            case.load(backend, &shard).run(&case.job(case.all_rows()), out, &mut On::default()).unwrap();
            let bytes: &[u8] = &bytemuck::cast_slice(&memory)[..len];
            for (row, (got, want)) in bytes.chunks(stride).zip(want.chunks(own)).enumerate() {
                prop_assert_eq!(&got[..own], want);
                let word = match at {
                    Some(at) => u32::from_le_bytes(got[at..at + 4].try_into().unwrap()),
                    None => words[2 * row],
                };
                let overflows = (0..vocab).any(|i| !dtype.read(want, i).is_finite());
                let nonfinite = if overflows { LMHEAD_STATUS_NONFINITE } else { 0 };
                prop_assert_eq!(word, LMHEAD_STATUS_ALLOWED | nonfinite);
                let place = at.unwrap_or(stride)..at.map_or(stride, |at| at + 4);
                let gap = got.iter().enumerate().skip(own).filter(|(i, _)| !place.contains(i));
                prop_assert!(gap.into_iter().all(|(_, &b)| b == 0xa5), "the gap was written");
            }
            let apart = words.iter().skip(1).step_by(2).all(|&word| word == u32::MAX);
            prop_assert!(apart, "more than the words was written");
        }
    }
}

/// Rounding with the `half` crate's scalar conversions.
fn row_bytes_by_the_book(dtype: DType, values: &[f32]) -> Vec<u8> {
    match dtype {
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32_const(v).to_le_bytes()).collect(),
        DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32_const(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|&v| v.to_le_bytes()).collect(),
    }
}
