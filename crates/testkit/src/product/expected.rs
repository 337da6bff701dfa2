//! The expected results of a product: raw logits by the rule of int8 or within the accuracy rules of 16-bit
//! sums; then what the CPU backend's own epilogue makes of them.

use super::{Finish, Operands, Product, Values};
use lmhead::DType;
use lmhead::backend::params::{LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE};
use lmhead::plan::Precision;
use lmhead::quantize::quantize_row;
use lmhead::reference::Accuracy;

/// About how many ids of a row are compared with float64: all ids of a small head, or this many spread over a
/// large one.
const SAMPLED: usize = 600;

/// A factor's magnitude, as it counts for the error of a sum. Tensor cores truncate products 24 bits below
/// the largest one, and take the exponent of a subnormal f16 to be that of the smallest normal one.
fn placed(value: f32, least: f32) -> f64 {
    if value == 0.0 { 0.0 } else { f64::from(value.abs().max(least)) }
}

/// f32 bits; all NaN are made equal.
pub fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

/// The rows in int8 `[rows, hidden]` and their scales, by `quantize_row`.
pub fn quantised(operands: &Operands) -> (Vec<i8>, Vec<f32>) {
    let shape = operands.product.shape;
    let mut out = vec![0; shape.rows * shape.hidden];
    let scales = out.chunks_mut(shape.hidden).enumerate().map(|(i, q)| quantize_row(&operands.row(i), q));
    let scales = scales.collect();
    (out, scales)
}

/// Checks raw logits `[rows, vocab]`.
///
/// # Errors
/// The first logit that is not what it must be, with both values.
pub fn check_raw(product: &Product, operands: &Operands, raw: &[f32]) -> Result<(), String> {
    let shape = product.shape;
    let step = (shape.vocab / SAMPLED).max(1);
    let ids = || (0..shape.vocab).step_by(step).chain([shape.vocab - 1]);
    let weights: Vec<Vec<f64>> =
        ids().map(|id| (0..shape.hidden).map(|k| f64::from(operands.weight(id, k))).collect()).collect();
    // The smallest normal numbers of row elements and of weights.
    let f16 = 2f32.powi(-14);
    let least = match product.precision {
        Precision::F16 => (f16, f16),
        // Every weight is normal.
        Precision::W8a16(DType::F16) | Precision::Fp8(DType::F16) => (f16, f32::MIN_POSITIVE),
        _ => (f32::MIN_POSITIVE, f32::MIN_POSITIVE),
    };
    let (mut furthest, mut squares, mut count) = (0f64, 0f64, 0usize);
    for row in 0..shape.rows {
        let x = operands.row(row);
        let place = |id: usize, what: String| Err(format!("raw logit of row {row}, id {id}: {what}"));
        if let Precision::W8a8(_) = product.precision {
            let mut q = vec![0; shape.hidden];
            let scale = quantize_row(&x, &mut q);
            for (id, w) in ids().zip(&weights) {
                let sum: i64 = q.iter().zip(w).map(|(q, w)| i64::from(*q) * *w as i64).sum();
                let want = (sum as f32 * scale) * operands.scales[id];
                let got = raw[row * shape.vocab + id];
                if bits_of(&[got]) != bits_of(&[want]) {
                    return place(id, format!("wanted {want:e}, got {got:e}"));
                }
            }
            continue;
        }
        let finite = x.iter().all(|v| v.is_finite());
        for (id, w) in ids().zip(&weights) {
            let got = raw[row * shape.vocab + id];
            if !finite {
                if got.is_finite() {
                    return place(id, format!("wanted NaN or infinity, got {got:e}"));
                }
                continue;
            }
            let scale = match product.precision {
                Precision::W8a16(_) | Precision::Fp8(_) => Some(operands.scales[id]),
                _ => None,
            };
            let (sum, size) = x.iter().zip(w).fold((0f64, 0f64), |(sum, size), (x, w)| {
                (sum + f64::from(*x) * w, size + placed(*x, least.0) * placed(*w as f32, least.1))
            });
            if product.values == Values::Integers {
                // The sum is exact; multiplying it by the scale rounds once.
                let want = sum as f32 * scale.unwrap_or(1.0);
                if got.to_bits() != want.to_bits() {
                    return place(id, format!("wanted the exact {want:e}, got {got:e}"));
                }
                continue;
            }
            let (wide, unit) = (f64::from(scale.unwrap_or(1.0)), 2f64.powi(-24));
            let k = shape.hidden as f64;
            let tiny = k * f64::from(f32::from_bits(1));
            let truth = sum * wide;
            let allowed = Accuracy::TensorCores.factor() * k * unit * size * wide
                + tiny
                + scale.map_or(0.0, |_| unit * truth.abs());
            let error = (f64::from(got) - truth).abs();
            // The sum is beyond f32, or a partial sum may be.
            let overflows = size * (1.0 + k * unit) >= f64::from(f32::MAX);
            let good = if overflows { !got.is_finite() || error <= allowed } else { error <= allowed };
            if !good {
                return place(id, format!("wanted {truth:e} within {allowed:e}, got {got:e}"));
            }
            (furthest, squares, count) = (furthest.max(error), squares + truth * truth, count + 1);
        }
    }
    let rms = (squares / count.max(1) as f64).sqrt();
    let limit = Accuracy::TensorCores.of_rms(shape.hidden) * rms;
    if product.values == Values::Gaussian && furthest > limit {
        return Err(format!("wanted all raw logits within {limit:e} of float64, got one {furthest:e} away"));
    }
    Ok(())
}

/// The delivered logits `[rows, vocab]`, as bytes of type `finish.out`, and the statuses that follow from raw
/// logits by the CPU backend's epilogue and the definition of the adjustments.
pub fn expected(operands: &Operands, finish: &Finish, raw: &[f32]) -> (Vec<u8>, Vec<u32>) {
    let vocab = operands.product.shape.vocab;
    let rows = raw.len() / vocab;
    let mut bytes = vec![0; raw.len() * finish.out.size()];
    let mut statuses = Vec::new();
    for row in 0..rows {
        let mut logits = raw[row * vocab..(row + 1) * vocab].to_vec();
        let bias = finish.bias.then_some(&operands.bias[..]);
        let mut good = finish.epilogue().apply(&mut logits, bias);
        let mut any = true;
        if finish.adjusted() {
            operands.adjustments.by_definition(row, &mut logits);
            good &= logits.iter().all(|l| *l < f32::INFINITY);
            any = logits.iter().any(|l| *l > f32::NEG_INFINITY);
        }
        let temperature = operands.temperatures.get(row).copied().unwrap_or(0.0);
        if finish.temperatures && temperature != 0.0 {
            for l in &mut logits {
                let finite = l.is_finite();
                *l /= temperature;
                good &= !finite || l.is_finite();
            }
        }
        // A finite logit that is delivered as infinity makes the row bad.
        let limit = finish.out.rounds_to_infinity();
        good &= logits.iter().all(|l| !l.is_finite() || f64::from(l.abs()) < limit);
        let flag = |said: bool, flag: u32| if said { flag } else { 0 };
        statuses.push(
            flag(!good, LMHEAD_STATUS_NONFINITE)
                | flag(any, LMHEAD_STATUS_ALLOWED)
                | flag(operands.picked(row).is_none(), LMHEAD_STATUS_BAD_INDEX),
        );
        let size = vocab * finish.out.size();
        finish.out.round_into(&logits, &mut bytes[row * size..(row + 1) * size]);
    }
    (bytes, statuses)
}
