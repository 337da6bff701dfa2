//! The golden files: inputs and expected outputs that `tests/golden/make.py` computed in exact arithmetic
//! from formulas of its own. Every case runs on one rank and on groups of 2 and 5, and is compared as
//! `tests/golden/README.md` says.

use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::quantize::quantize_row;
use lmhead::reference::logsumexp_allowed;
use lmhead::result::{Output, Request};
use lmhead::weights::{LoadOptions, Matrix};
use lmhead_testkit::golden::{goldens, statuses};

/// The status of each row. Some logits may overflow the delivered type; the files only know f32.
fn delivered(status: &[u8], logits: &[f64], vocab: usize, dtype: DType) -> Vec<u8> {
    let rows = status.iter().zip(logits.chunks(vocab));
    let of_row = |(&status, logits): (&u8, &[f64])| {
        let logits: Vec<f32> = logits.iter().map(|l| *l as f32).collect();
        let (mut bytes, mut wide) = (vec![0; logits.len() * dtype.size()], vec![0.0; logits.len()]);
        dtype.round_into(&logits, &mut bytes);
        dtype.widen(&bytes, &mut wide);
        let overflows = logits.iter().zip(&wide).any(|(logit, wide)| logit.is_finite() && wide.is_infinite());
        if status == 0 && overflows { 1 } else { status }
    };
    rows.map(of_row).collect()
}

#[test]
fn logits_are_within_the_stated_error_and_exact_where_they_must_be() {
    for golden in goldens() {
        let (expected, allowed) = (golden.stored.f64s("expected.logits"), golden.allowed());
        let status = golden.stored.bytes("expected.row_status");
        let plain = golden.config.logit_scale == 1.0
            && golden.config.final_logit_softcapping.is_none()
            && !golden.stored.has("lm_head.bias");
        for size in [1, 2, 5] {
            for dtype in [DType::F32, DType::Bf16, DType::F16] {
                let answers = golden.run(size, Request::logits(dtype));
                assert_eq!(
                    statuses(&answers),
                    delivered(status, &expected, golden.config.vocab_size, dtype),
                    "{} P {size}",
                    golden.stored.name
                );
                let got: Vec<f32> = answers.iter().flat_map(|a| a.output.logits_f32().unwrap()).collect();
                assert_eq!(got.len(), expected.len());
                for (i, (&got, &want)) in got.iter().zip(&expected).enumerate() {
                    let place = || {
                        format!("{} P {size} {dtype} element {i}: {got}, expected {want}", golden.stored.name)
                    };
                    if status[i / golden.config.vocab_size] != 0 {
                        // What IEEE arithmetic gives: NaN, or an infinity (which a softcap has capped).
                        let same = got.is_nan() == want.is_nan()
                            && (want.is_nan() || f64::from(got) == want || want.is_finite());
                        assert!(same, "{}", place());
                        continue;
                    }
                    let bits_are_known = golden.exact_raw() && plain && dtype == DType::F32;
                    assert!(!bits_are_known || got == want as f32, "{}", place());
                    let rounding =
                        if dtype == DType::F32 { 0.0 } else { dtype.half_ulp(want.abs() + allowed[i]) };
                    let beyond = dtype == DType::F16 && want.abs() >= 65504.0;
                    let error = (f64::from(got) - want).abs();
                    assert!(beyond || error <= allowed[i] + rounding, "{} allowed {}", place(), allowed[i]);
                }
            }
        }
    }
}

#[test]
fn argmax_top_k_and_logsumexp_are_those_of_exact_arithmetic() {
    for golden in goldens() {
        let k = golden.k();
        let (ids, values) =
            (golden.stored.i64s("expected.topk_ids"), golden.stored.f64s("expected.topk_values"));
        let sums = golden.stored.f64s("expected.logsumexp");
        let allowed = golden.allowed();
        let vocab = golden.config.vocab_size;
        for size in [1, 2, 5] {
            let answers = golden.run(size, Request::argmax());
            assert_eq!(
                statuses(&answers),
                golden.stored.bytes("expected.row_status"),
                "{}",
                golden.stored.name
            );
            let mut argmax = Vec::new();
            for answer in &answers {
                let Output::Argmax { ids } = &answer.output else { panic!("not argmax") };
                argmax.extend_from_slice(ids);
            }
            assert_eq!(
                argmax,
                golden.stored.tensors.indices("expected.argmax").unwrap(),
                "{} P {size}",
                golden.stored.name
            );

            let answers = golden.run(size, Request::top_k(k));
            let (mut got_ids, mut got_values, mut got_sums) = (Vec::new(), Vec::new(), Vec::new());
            for answer in &answers {
                let Output::TopK { values, ids, logsumexp, .. } = &answer.output else { panic!("not top-k") };
                got_ids.extend_from_slice(ids);
                got_values.extend_from_slice(values);
                got_sums.extend_from_slice(logsumexp);
            }
            assert_eq!(got_ids, ids, "{} P {size}", golden.stored.name);
            for row in 0..golden.outputs() {
                let row_allowed = allowed[row * vocab..(row + 1) * vocab].iter().copied().fold(0.0, f64::max);
                let close = |got: f32, want: f64, allowed: f64| {
                    (got.is_nan() && want.is_nan()) || (f64::from(got) - want).abs() <= allowed
                };
                for place in row * k..(row + 1) * k {
                    let (got, want) = (got_values[place], values[place]);
                    assert!(close(got, want, row_allowed), "{} row {row}: {got} {want}", golden.stored.name);
                }
                let (got, want) = (got_sums[row], sums[row]);
                let limit = row_allowed + logsumexp_allowed(want, vocab);
                assert!(close(got, want, limit), "{} row {row}: logsumexp {got} {want}", golden.stored.name);
            }
        }
    }
}

#[test]
fn quantised_rows_and_weights_are_those_of_the_rule() {
    let (mut rows_seen, mut weights_seen) = (0, 0);
    for golden in goldens() {
        let hidden = golden.config.hidden_size;
        if golden.quantization == Quantization::W8a8 {
            let matrix = golden.stored.tensors.float_matrix("hidden_states").unwrap();
            let selection = golden.selection().unwrap_or_else(|| (0..golden.rows).collect());
            let (want, scales) = (
                golden.stored.bytes("expected.activation_int8"),
                golden.stored.f32s("expected.activation_scale"),
            );
            for (row, &from) in selection.iter().enumerate() {
                let wide: Vec<f32> =
                    (0..hidden).map(|k| matrix.dtype.read(matrix.bytes, from * hidden + k)).collect();
                let mut q = vec![0i8; hidden];
                let scale = quantize_row(&wide, &mut q);
                assert!(scale.to_bits() == scales[row].to_bits() || (scale.is_nan() && scales[row].is_nan()));
                let same = q.iter().zip(&want[row * hidden..]).all(|(a, b)| *a == *b as i8);
                assert!(same || scale.is_nan(), "{} row {row}", golden.stored.name);
                rows_seen += 1;
            }
        }
        if golden.stored.has("expected.weight_int8") {
            let checkpoint = golden.stored.checkpoint();
            let options = LoadOptions { quantization: Some(golden.quantization), ..LoadOptions::default() };
            let vocab = golden.config.vocab_size;
            let shard = checkpoint.shard(0..vocab, vocab, &options).unwrap();
            let Matrix::I8 { values, scales } = shard.matrix() else { panic!("not int8") };
            let want: Vec<i8> =
                golden.stored.bytes("expected.weight_int8").iter().map(|b| *b as i8).collect();
            assert_eq!(values[..], want[..], "{}", golden.stored.name);
            assert_eq!(scales, &golden.stored.f32s("expected.weight_scale"), "{}", golden.stored.name);
            weights_seen += 1;
        }
    }
    assert!(rows_seen > 10 && weights_seen > 1, "{rows_seen} rows, {weights_seen} heads");
}
