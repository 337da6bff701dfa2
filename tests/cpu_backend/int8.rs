//! Promise 2: W8A8 operation by operation, and the edge cases of its rule.

use crate::cases::{
    BACKENDS, Case, Data, Numbers, backends_of, data, epilogues, int8, isas, row_bytes, shapes,
};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::quantize::quantize_row;
use lmhead_testkit::Random;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// W8A8 against promise 2, transcribed one scalar operation at a time.
    #[test]
    fn w8a8_is_the_promise_word_by_word(
        hidden_type in prop::sample::select(vec![DType::F32, DType::F16, DType::Bf16]),
        (rows, hidden, vocab) in shapes(), data in data(), biased in any::<bool>(), epilogue in epilogues(),
        seed in any::<u64>(),
    ) {
        let kind = int8(Quantization::W8a8, hidden_type);
        let mut case = Case::new(kind, rows, hidden, vocab, data, seed);
        case.epilogue = epilogue;
        if biased {
            let mut numbers = Numbers(Random(seed ^ 1));
            case.bias = Some((0..vocab).map(|_| numbers.gaussian()).collect());
        }
        let want: Vec<u32> =
            (0..rows).flat_map(|row| w8a8_by_the_word(&case, row)).map(f32::to_bits).collect();
        for isa in isas() {
            prop_assert_eq!(&case.bits(backends_of(isa).last().unwrap()), &want, "{}", isa);
        }
    }
}

/// One row's W8A8 logits by promise 2: every operation scalar and rounded on its own.
pub fn w8a8_by_the_word(case: &Case, row: usize) -> Vec<f32> {
    let x = case.row(row);
    let absmax = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let mut s_x = absmax / 127.0;
    let mut q: Vec<i32> = x.iter().map(|v| (v / s_x).round_ties_even().clamp(-127.0, 127.0) as i32).collect();
    if s_x < f32::MIN_POSITIVE {
        s_x = 1.0;
        q.fill(0);
    }
    if x.iter().any(|v| !v.is_finite()) {
        s_x = f32::NAN;
    }
    let logit = |v: usize| {
        let w = &case.w[v * case.hidden..][..case.hidden];
        let acc: i32 = q.iter().zip(w).map(|(q, w)| q * *w as i32).sum();
        let mut logit = acc as f32;
        logit *= s_x;
        logit *= case.scales[v];
        if let Some(bias) = &case.bias {
            logit += bias[v];
        }
        if let Some(cap) = case.epilogue.softcap {
            logit = libm::tanhf(logit / cap) * cap;
        }
        logit * case.epilogue.scale
    };
    (0..case.vocab).map(logit).collect()
}

/// The largest int8 magnitudes at the largest hidden size allowed: int32 sums do not wrap.
#[test]
fn int8_sums_do_not_overflow() {
    let hidden = lmhead::quantize::MAX_INT8_HIDDEN;
    let kind = int8(Quantization::W8a8, DType::F32);
    let mut case = Case::new(kind, 23, hidden, 3, Data::Integers, 0);
    case.w.fill(-128.0);
    for rows in [1, 6, 23] {
        case.rows = rows;
        case.x = row_bytes(DType::F32, &vec![127.0; rows * hidden]);
        let want = (-(127 * 128) * hidden as i64) as f32;
        for isa in isas() {
            let got = case.bits(backends_of(isa).next().unwrap());
            assert!(got.iter().all(|&b| f32::from_bits(b) == want), "{isa}");
        }
    }
}

/// A subnormal row quantises to zeros with scale 1.
#[test]
fn a_tiny_row_is_zero_in_w8a8() {
    let mut case = Case::new(int8(Quantization::W8a8, DType::F32), 1, 40, 9, Data::Gaussian, 1);
    case.x = row_bytes(DType::F32, &[1e-39; 40]);
    let mut q = [1; 40];
    assert_eq!(quantize_row(&[1e-39; 40], &mut q), 1.0);
    for backend in BACKENDS.iter() {
        assert!(case.bits(backend).iter().all(|&b| f32::from_bits(b) == 0.0));
    }
}
