//! Raw logits of float heads and W8A16 against float64: both halves of the accuracy rule.

use crate::cases::{
    BACKENDS, Case, Data, KINDS, backends_of, bits, data, e4m3, isas, kinds, plain, row_bytes, shapes,
};
use crate::int8::w8a8_by_the_word;
use lmhead::backend::Backend;
use lmhead::backend::cpu::CpuBackend;
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::weights::{HeadShard, Matrix};
use proptest::prelude::*;
use std::sync::Arc;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Both halves of the accuracy rule hold for raw logits (without bias, softcap and scale).
    #[test]
    fn float_heads_keep_the_accuracy_rules(
        kind in kinds(), (rows, hidden, vocab) in shapes(), data in data(), seed in any::<u64>(),
    ) {
        prop_assume!(kind.quantization != Quantization::W8a8);
        let case = Case::new(kind, rows, hidden, vocab, data, seed);
        for isa in isas() {
            check_accuracy(&case, data, backends_of(isa).last().unwrap());
        }
    }
}

/// `|out - truth| <= K 2^-24 Σ|x w|`, plus what underflow can lose; on Gaussian data within 5e-5 of the
/// truth's rms; on integers exact.
fn check_accuracy(case: &Case, data: Data, backend: &CpuBackend) {
    let got: Vec<f32> = case.bits(backend).into_iter().map(f32::from_bits).collect();
    let k = case.hidden as f64;
    // Where the backend flushes subnormal inputs to zero, the truth does too, and each sum may lose one
    // subnormal.
    let flushes = backend.flushes_subnormals(case.kind.types());
    let seen = |v: f32| if flushes && v.is_subnormal() { 0.0 } else { f64::from(v) };
    let least = if flushes { 2f64.powi(-126) } else { 2f64.powi(-149) };
    let (mut worst, mut squares) = (0.0f64, 0.0f64);
    for row in 0..case.rows {
        let x: Vec<f64> = case.row(row).into_iter().map(seen).collect();
        for v in 0..case.vocab {
            let w = &case.w[v * case.hidden..][..case.hidden];
            let (mut sum, mut magnitudes) = (0.0f64, 0.0f64);
            for (x, w) in x.iter().zip(w) {
                sum += x * seen(*w);
                magnitudes += (x * seen(*w)).abs();
            }
            let scale = f64::from(case.scales[v]);
            let truth = sum * scale;
            let got = f64::from(got[row * case.vocab + v]);
            let mut allowed = (k * magnitudes * 2f64.powi(-24) + k * least) * scale;
            if !case.kind.weights.is_float() {
                // The product with the scale adds one rounding.
                allowed += truth.abs() * 2f64.powi(-24) + 2f64.powi(-149);
            }
            let error = (got - truth).abs();
            assert!(
                error <= allowed,
                "{} {:?}: row {row}, id {v}: got {got}, truth {truth}, allowed {allowed}",
                backend.isa(),
                case.kind
            );
            if data == Data::Integers {
                assert_eq!(got, truth, "{}: integers are exact", backend.isa());
            }
            worst = worst.max(error);
            squares += truth * truth;
        }
    }
    let rms = (squares / (case.rows * case.vocab) as f64).sqrt();
    if data == Data::Gaussian {
        assert!(worst <= 5e-5 * rms, "{}: largest error {worst}, rms {rms}", backend.isa());
    }
}

/// Hidden sizes of real models, and a size that is not a multiple of any block.
#[test]
fn real_hidden_sizes() {
    // On AVX-512: one tile that reads weights directly; two tiles (W8A16: panels); one tile, W8A16's largest
    // in bf16; panels.
    let sizes = [(5, 7168), (17, 2880), (10, 4097), (24, 2880)];
    for (kind, (rows, hidden)) in KINDS.iter().flat_map(|&kind| sizes.map(|size| (kind, size))) {
        let case = Case::new(kind, rows, hidden, 70, Data::Gaussian, hidden as u64);
        for isa in isas() {
            let backend = backends_of(isa).last().unwrap();
            let want = case.bits(backend);
            let shard = case.shard(0..70);
            for row in 0..case.rows {
                let alone = [row];
                let (got, _) = case.run(backend, case.all_rows().select(&alone).unwrap(), &shard, DType::F32);
                assert_eq!(bits(&got), want[row * 70..][..70], "{isa} {kind:?} {hidden}");
            }
            if kind.quantization == Quantization::W8a8 {
                let by_the_word = (0..case.rows).flat_map(|row| w8a8_by_the_word(&case, row));
                assert_eq!(want, by_the_word.map(f32::to_bits).collect::<Vec<_>>());
            } else {
                check_accuracy(&case, Data::Gaussian, backend);
            }
        }
    }
}

/// A backend that flushes subnormal inputs to zero says so, and no other one does it.
#[test]
fn subnormal_inputs_count_unless_the_backend_says_otherwise() {
    for dtype in [DType::F32, DType::Bf16] {
        let mut case = Case::new(plain(dtype), 1, 40, 9, Data::Gaussian, 1);
        case.x = row_bytes(dtype, &[2f32.powi(-130); 40]);
        case.w.fill(2f32.powi(120));
        for backend in BACKENDS.iter() {
            let want =
                if backend.flushes_subnormals(plain(dtype).types()) { 0.0 } else { 40.0 * 2f32.powi(-10) };
            let got = case.bits(backend).into_iter().map(f32::from_bits);
            assert!(got.eq([want; 9]), "{} {dtype}", backend.isa());
        }
    }
}

/// A weight that is NaN makes its id's logits NaN, and flags the rows; the others keep their bits.
#[test]
fn the_codes_of_nan_make_logits_nan() {
    for (hidden, rows) in
        [DType::F32, DType::F16, DType::Bf16].into_iter().flat_map(|h| [(h, 1), (h, 3), (h, 40)])
    {
        let case = Case::new(e4m3(hidden), rows, 100, 70, Data::Gaussian, 7);
        for (code, at) in [(0x7f, 0), (0xff, 99), (0x7f, 64)] {
            let whole = case.shard(0..70);
            let Matrix::E4m3 { values, scales } = whole.matrix() else { panic!("FP8") };
            let mut values = values.to_vec();
            values[33 * 100 + at] = code;
            let matrix = Matrix::E4m3 { values: values.into(), scales: scales.clone() };
            let broken = HeadShard::new(0..70, 70, 100, Quantization::W8a16, matrix, None).unwrap();
            let broken = Arc::new(broken);
            for backend in BACKENDS.iter() {
                let (want, (got, flags)) =
                    (case.bits(backend), case.run(backend, case.all_rows(), &broken, DType::F32));
                assert_eq!(flags, vec![true; rows], "{}", backend.isa());
                for (i, (want, got)) in want.into_iter().zip(bits(&got)).enumerate() {
                    let want = if i % 70 == 33 { f32::NAN.to_bits() } else { want };
                    assert_eq!(got, want, "{} {hidden} row {}, id {}", backend.isa(), i / 70, i % 70);
                }
            }
        }
    }
}
