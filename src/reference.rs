//! A naive float64 implementation of the stages: the truth that tests and `--check` compare with, and the
//! errors that are allowed against it ([promises 2 and 5](crate#promises)).

mod adjusted;
mod judge;
mod sampled;
mod sums;

pub use adjusted::adjust_row;
pub use judge::{Judge, Verdict};
pub use sampled::{judge_sample, sample, survivors};
pub use sums::{exp_sum, exp_term};

use crate::dtype::DType;
use crate::dtype::Quantization;
use crate::epilogue::Epilogue;
use crate::error::{Error, Result};
use crate::quantize;
use crate::weights::{HeadShard, Matrix};
use half::f16;

/// Unit roundoff of f32.
const U: f64 = 1.0 / (1u64 << 24) as f64;

/// A true logit, and how far a backend's may be from it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Truth {
    /// The logit in float64. For W8A8 its raw part is the exact f32 of promise 2.
    pub logit: f64,
    /// Largest allowed `|f32 logit - logit|`.
    pub allowed: f64,
    /// The raw logit: before bias, softcap and scale.
    pub raw: f64,
    /// Largest allowed error of the raw logit: `c·K·2^-24·Σ|x_k·w_k|` with the c of `Accuracy::factor`,
    /// plus `K·2^-149` for products below the f32 range (`K·2^-126` where a backend flushes subnormals); 0
    /// for W8A8.
    pub raw_allowed: f64,
}

impl Truth {
    /// Largest allowed error after rounding the logit to `dtype`.
    pub fn allowed_as(&self, dtype: DType) -> f64 {
        match dtype {
            DType::F32 => self.allowed,
            _ => self.allowed + dtype.half_ulp(self.logit.abs() + self.allowed),
        }
    }

    /// The error of `got`, a logit rounded to `dtype`. An infinity has error 0 where the truth, within its
    /// allowed error, may round to it.
    pub fn error_of(&self, got: f64, dtype: DType) -> f64 {
        let reaches = self.logit.abs() + self.allowed >= dtype.rounds_to_infinity();
        if got.is_infinite() && reaches && got.is_sign_positive() == self.logit.is_sign_positive() {
            return 0.0;
        }
        (got - self.logit).abs()
    }

    /// True where the raw or the final logit may be beyond f32; the row's status may then be 1.
    pub fn may_overflow(&self) -> bool {
        let limit = DType::F32.rounds_to_infinity();
        let beyond = |value: f64, allowed: f64| value.is_nan() || value.abs() + allowed >= limit;
        beyond(self.raw, self.raw_allowed) || beyond(self.logit, self.allowed)
    }
}

/// One hidden row, prepared for the shard it is multiplied with.
#[derive(Debug, Clone)]
pub struct ReferenceRow {
    x: Vec<f64>,
    dtype: DType,
    quantized: Option<(Vec<i8>, f32)>,
    finite: bool,
}

/// Error bounds of raw f32 logits, K being the hidden size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accuracy {
    /// Sums are rounded to nearest: `K·2^-24·Σ|x_k·w_k|`, and `5e-5` of the logits' root mean square on
    /// Gaussian data.
    Rounded,
    /// Tensor cores truncate each step of a sum toward zero. The first bound is 1.5 times that of `Rounded`.
    /// The second is `1.5e-8·K` from K = 3334 on: truncation takes a fraction of the sum, so the largest
    /// errors are those of the largest logits and grow with K.
    ///
    /// Measured: up to 7.8e-5 at K = 12288 and 1.04e-4 at 16384 on an H100 (`benches/results/h100`). For f16
    /// rows and int8 weights on the emulated device, which has an H100's bits: 6.9e-5 at 7168 (the largest of
    /// 8450 logits) and 1.05e-4 at 12288 (of 3072; `crates/emulated/tests/device`).
    TensorCores,
}

impl Accuracy {
    /// The factor c of `c·K·2^-24·Σ|x_k·w_k|`.
    pub fn factor(self) -> f64 {
        match self {
            Accuracy::Rounded => 1.0,
            Accuracy::TensorCores => 1.5,
        }
    }

    /// The largest error on Gaussian data, in units of the logits' root mean square.
    pub fn of_rms(self, hidden: usize) -> f64 {
        match self {
            Accuracy::Rounded => 5e-5,
            Accuracy::TensorCores => (1.5e-8 * hidden as f64).max(5e-5),
        }
    }
}

/// Computes single logits of a shard in float64.
#[derive(Debug, Clone, Copy)]
pub struct Reference<'a> {
    shard: &'a HeadShard,
    epilogue: Epilogue,
    flushes: bool,
    accuracy: Accuracy,
}

impl<'a> Reference<'a> {
    /// The reference for a shard (which may be the whole head) and its epilogue.
    pub fn new(shard: &'a HeadShard, epilogue: Epilogue) -> Self {
        Reference { shard, epilogue, flushes: false, accuracy: Accuracy::Rounded }
    }

    /// With `flushes`, the reference for a backend that treats subnormal numbers as zeros
    /// ([`Backend::flushes_subnormals`](crate::backend::Backend::flushes_subnormals)): inputs below `2^-126`
    /// are zero in the truth too, and each of the K steps of a sum may lose as much.
    pub fn flushing(self, flushes: bool) -> Self {
        Reference { flushes, ..self }
    }

    /// The reference for a backend of that accuracy
    /// ([`Backend::accuracy`](crate::backend::Backend::accuracy)).
    pub fn accurate_as(self, accuracy: Accuracy) -> Self {
        Reference { accuracy, ..self }
    }

    /// An input as the backend sees it: zero where it is subnormal and the backend flushes.
    fn seen(&self, value: f64) -> f64 {
        if self.flushes && value.abs() < f64::from(f32::MIN_POSITIVE) { 0.0 } else { value }
    }

    /// Widens a hidden row of `dtype`, `[hidden]` little-endian, and quantises it where the shard is W8A8.
    ///
    /// # Errors
    /// `Shape` when the row has another length than the head's hidden size.
    pub fn row(&self, bytes: &[u8], dtype: DType) -> Result<ReferenceRow> {
        let hidden = self.shard.hidden_size();
        if bytes.len() != hidden * dtype.size() {
            let wanted = format!("{} bytes of {dtype}", hidden * dtype.size());
            return Err(Error::shape(
                "reference row",
                wanted,
                bytes.len(),
                "pass one row of this head's model",
            ));
        }
        let x: Vec<f32> = (0..hidden).map(|k| dtype.read(bytes, k)).collect();
        let quantized = (self.shard.quantization() == Quantization::W8a8).then(|| {
            let mut q = vec![0; hidden];
            let scale = quantize::quantize_row(&x, &mut q);
            (q, scale)
        });
        let finite = x.iter().all(|v| v.is_finite());
        let x = x.into_iter().map(|v| self.seen(f64::from(v))).collect();
        Ok(ReferenceRow { x, dtype, quantized, finite })
    }

    /// The logit of `row` for row `v` of the shard (vocabulary id `shard.vocab().start + v`).
    ///
    /// # Panics
    /// When `v` is not a row of the shard.
    pub fn logit(&self, row: &ReferenceRow, v: usize) -> Truth {
        let hidden = self.shard.hidden_size();
        let weights = v * hidden..(v + 1) * hidden;
        let (raw, raw_allowed) = match (self.shard.matrix(), &row.quantized) {
            (Matrix::I8 { values, scales }, Some((q, scale))) => {
                let acc: i64 =
                    q.iter().zip(&values[weights]).map(|(x, w)| i64::from(*x) * i64::from(*w)).sum();
                // Promise 2: three f32 roundings and nothing else.
                (f64::from((acc as f32 * scale) * scales[v]), 0.0)
            }
            (Matrix::I8 { values, .. }, None) => {
                let values = values[weights].iter().map(|w| f64::from(*w));
                self.scaled(self.float(row, DType::I8, values), v)
            }
            (Matrix::E4m3 { values, .. }, _) => {
                let codes = values[weights].iter().map(|code| f64::from(lmhead_cpu::e4m3::widen(*code)));
                self.scaled(self.float(row, DType::E4m3, codes), v)
            }
            (Matrix::F32(w), _) => {
                self.scaled(self.float(row, DType::F32, w[weights].iter().map(|w| f64::from(*w))), v)
            }
            (Matrix::F16(w), _) => {
                self.scaled(self.float(row, DType::F16, w[weights].iter().map(|w| w.to_f64())), v)
            }
            (Matrix::Bf16(w), _) => {
                let seen = w[weights].iter().map(|w| self.seen(w.to_f64()));
                self.scaled(self.float(row, DType::Bf16, seen), v)
            }
        };
        let (logit, allowed) = self.epilogue(raw, raw_allowed, self.shard.bias().map(|b| f64::from(b[v])));
        Truth { logit, allowed, raw, raw_allowed }
    }

    /// True when the row's values are all finite. Otherwise its status is 1.
    pub fn is_finite(&self, row: &ReferenceRow) -> bool {
        row.finite
    }

    /// Multiplies a sum and its bound by the scale of row `v` of the shard, where it has scales; adds the
    /// error of that f32 multiplication to the bound.
    fn scaled(&self, (sum, bound): (f64, f64), v: usize) -> (f64, f64) {
        let Some(scales) = self.shard.scales() else { return (sum, bound) };
        let scale = f64::from(scales[v]);
        let raw = sum * scale;
        let bound = (bound * (1.0 + U)) * scale.abs() + U * raw.abs() + f64::from_bits(1);
        (raw, bound + f64::from(f32::from_bits(1)))
    }

    fn float(&self, row: &ReferenceRow, weights: DType, w: impl Iterator<Item = f64>) -> (f64, f64) {
        let (sum, size) = self.dot(row, weights, w);
        (sum, self.bound(size))
    }

    /// `(Σ x·w, Σ |x|·|w|)` in float64, k ascending. Tensor cores truncate below the last place of the
    /// largest product, and take the exponent of a subnormal f16 to be that of the smallest normal one: in
    /// the second sum such a factor counts as 2^-14.
    fn dot(&self, row: &ReferenceRow, weights: DType, w: impl Iterator<Item = f64>) -> (f64, f64) {
        let least = |dtype: DType| match (self.accuracy, dtype) {
            (Accuracy::TensorCores, DType::F16) => f64::from(f16::MIN_POSITIVE),
            _ => 0.0,
        };
        let placed = |v: f64, least: f64| if v == 0.0 { 0.0 } else { v.abs().max(least) };
        let (least_x, least_w) = (least(row.dtype), least(weights));
        row.x.iter().zip(w).fold((0.0, 0.0), |(sum, size), (&x, w)| {
            (sum + x * w, size + placed(x, least_x) * placed(w, least_w))
        })
    }

    /// `c·K·2^-24·size + K·2^-149`, where `size` is `Σ|x·w|` and c the accuracy's; `K·2^-126` in place of
    /// `K·2^-149` where the backend flushes.
    fn bound(&self, size: f64) -> f64 {
        let k = self.shard.hidden_size() as f64;
        let least = if self.flushes { f32::MIN_POSITIVE } else { f32::from_bits(1) };
        self.accuracy.factor() * k * U * size + k * f64::from(least)
    }

    /// Applies bias -> softcap -> scale to the truth, and adds each one's f32 rounding to the allowed error.
    /// The softcap's slope is at most 1; `tanhf` is allowed 2 ulps (libm documents less than 1).
    fn epilogue(&self, raw: f64, raw_allowed: f64, bias: Option<f64>) -> (f64, f64) {
        let (mut logit, mut allowed) = (raw, raw_allowed);
        if let Some(bias) = bias {
            logit += bias;
            allowed += U * (logit.abs() + allowed);
        }
        if let Some(cap) = self.epilogue.softcap {
            let cap = f64::from(cap);
            let before = logit;
            logit = cap * (logit / cap).tanh();
            // The division's error is U·|z| times the slope of tanh there; tanhf's is 2 ulps, 4 U; the
            // product's is U.
            let slope = 1.0 - (logit / cap).powi(2);
            allowed += U * before.abs() * slope.max(U) + 5.0 * U * (logit.abs() + allowed);
        }
        let scale = f64::from(self.epilogue.scale);
        if scale != 1.0 {
            logit *= scale;
            allowed = allowed * scale.abs() + U * (logit.abs() + allowed * scale.abs());
        }
        (logit, allowed)
    }
}

/// The ids of the `k` largest values, by value descending then id ascending.
pub fn top_k(logits: &[f64], k: usize) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    // Adding 0 turns −0 into +0: they tie.
    ids.sort_by(|&a, &b| (logits[b] + 0.0).total_cmp(&(logits[a] + 0.0)).then(a.cmp(&b)));
    ids.truncate(k);
    ids
}

/// `ln Σ e^l`, in float64.
pub fn logsumexp(logits: &[f64]) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        return max;
    }
    max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln()
}

/// How far a logsumexp may be from `truth`, the one of `ids` exact logits: `5e-7·max(1, |truth|)`. Where the
/// largest logit is beyond 2^20, the answer is that logit, without the at most `ln(ids)` that the others add;
/// the bound allows this from 2^19 on.
pub fn logsumexp_allowed(truth: f64, ids: usize) -> f64 {
    let left_out = if truth.abs() > 524_288.0 { (ids as f64).ln() } else { 0.0 };
    5e-7 * truth.abs().max(1.0) + left_out
}

/// Judges a top-k answer (argmax is k = 1) against `truths[v]` of every vocabulary id v. Ids must be
/// distinct, values in order, and no id left out that is better by more than the allowed errors.
///
/// Returns the largest `error / allowed` of the values (above 1: a wrong value).
///
/// # Errors
/// A sentence that says what is wrong.
pub fn judge_top_k(
    truths: &[Truth],
    ids: &[i64],
    values: Option<&[f32]>,
) -> std::result::Result<f64, String> {
    let mut chosen = std::collections::HashSet::new();
    let mut worst = 0.0f64;
    for (place, &id) in ids.iter().enumerate() {
        let Some(truth) = usize::try_from(id).ok().and_then(|id| truths.get(id)) else {
            return Err(format!("place {place}: id {id} is not in the vocabulary of {}", truths.len()));
        };
        if !chosen.insert(id) {
            return Err(format!("place {place}: id {id} was answered before"));
        }
        if let Some(values) = values {
            let error = (f64::from(values[place]) - truth.logit).abs();
            worst = worst.max(ratio(error, truth.allowed));
            if place > 0 {
                let (previous, value) = (values[place - 1], values[place]);
                if !(previous > value || (previous == value && ids[place - 1] < id)) {
                    return Err(format!("places {} and {place} are out of order", place - 1));
                }
            }
        }
    }
    let Some(last) = ids.last().map(|&id| truths[id as usize]) else { return Ok(worst) };
    for (id, truth) in truths.iter().enumerate() {
        if !chosen.contains(&(id as i64)) && truth.logit - truth.allowed > last.logit + last.allowed {
            return Err(format!("id {id} with {} was left out, {} was answered", truth.logit, last.logit));
        }
    }
    Ok(worst)
}

/// `error / allowed`, where no error at all is 0 even if none is allowed.
pub fn ratio(error: f64, allowed: f64) -> f64 {
    if error == 0.0 { 0.0 } else { error / allowed }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truths(logits: &[f64]) -> Vec<Truth> {
        logits.iter().map(|&logit| Truth { logit, allowed: 0.1, raw: logit, raw_allowed: 0.1 }).collect()
    }

    #[test]
    fn top_k_judgement_finds_each_kind_of_mistake() {
        let t = truths(&[1.0, 5.0, 3.0, 3.0]);
        assert_eq!(judge_top_k(&t, &[1, 2], Some(&[5.0, 3.0])), Ok(0.0));
        assert!(judge_top_k(&t, &[1, 2], Some(&[5.05, 3.0])).unwrap() > 0.4);
        assert!(judge_top_k(&t, &[1, 2], Some(&[5.5, 3.0])).unwrap() > 1.0, "a wrong value");
        assert!(judge_top_k(&t, &[1, 1], Some(&[5.0, 5.0])).is_err(), "twice");
        assert!(judge_top_k(&t, &[1, 4], None).is_err(), "outside");
        assert!(judge_top_k(&t, &[1, -1], None).is_err(), "outside");
        assert!(judge_top_k(&t, &[3, 2], Some(&[3.0, 3.0])).is_err(), "ties out of order");
        assert!(judge_top_k(&t, &[1, 0], Some(&[5.0, 1.0])).is_err(), "left out");
        assert!(judge_top_k(&t, &[0], None).is_err(), "not the largest");
    }

    #[test]
    fn sorting_and_sums() {
        assert_eq!(top_k(&[1.0, 2.0, 2.0], 2), [1, 2]);
        assert!((logsumexp(&[0.0, 0.0]) - 2f64.ln()).abs() < 1e-15);
        assert_eq!(ratio(0.0, 0.0), 0.0);
        assert_eq!(ratio(1.0, 0.0), f64::INFINITY);
    }
}
