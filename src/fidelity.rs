//! How far a quantised head's answers are from the original's: compares the logits of rows, slice by slice of
//! the vocabulary, so that neither a head nor a whole row of logits has to be kept.

use crate::backend::cpu::CpuBackend;
use crate::backend::{Backend, Job, LogitsOut, On, Out, Status};
use crate::config::{HeadConfig, Quantization};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::layout::BLOCK;
use crate::memory::SpanMut;
use crate::merge::Candidate;
use crate::rows::HiddenRows;
use crate::weights::{Checkpoint, HeadShard, LoadOptions};
use serde::Serialize;
use std::sync::Arc;

/// Bytes of weights, and of logits, of one slice of the vocabulary.
const SLICE_BYTES: usize = 32 << 20;

/// Comparison of two heads' answers to the same rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Fidelity {
    /// Mean over the rows of `KL(softmax(original) ‖ softmax(other))`, nats; NaN where a logit is not finite.
    pub kl_mean: f64,
    /// Largest divergence of a row.
    pub kl_largest: f64,
    /// Rows for which both answer the same id.
    pub same_argmax: usize,
}

impl Fidelity {
    /// Summarises fully compared rows.
    pub fn of(rows: &[Divergence]) -> Self {
        let kls = || rows.iter().map(Divergence::kl);
        Fidelity {
            kl_mean: kls().sum::<f64>() / rows.len() as f64,
            // Not f64::max, which ignores NaN.
            kl_largest: kls().fold(0.0, |largest, kl| if kl > largest || kl.is_nan() { kl } else { largest }),
            same_argmax: rows.iter().filter(|row| row.same_argmax()).count(),
        }
    }
}

/// Compares `quantized`, an int8 file, with the float head `original` that it was made of, on `rows` in host
/// memory: once for each of the `ways` in which its weights may be multiplied. `config` is the original's.
/// `progress(done, total)` gets bytes of the original. In memory are slices of the heads and their logits,
/// each of 32 MiB or, if that is more, of 64 ids.
///
/// # Errors
/// As [`Checkpoint::shard`], and as the products of rows of this type; `Config` as
/// [`HeadConfig::validate`], `Shape` for no rows.
pub fn compare(
    backend: &CpuBackend,
    config: &HeadConfig,
    original: &Checkpoint,
    (quantized, ways): (&Checkpoint, &[Quantization]),
    rows: HiddenRows<'_>,
    progress: &dyn Fn(u64, u64),
) -> Result<Vec<Fidelity>> {
    if ways.is_empty() {
        return Ok(Vec::new());
    }
    config.validate()?;
    if rows.is_empty() {
        return Err(Error::shape("rows to compare by", "at least one", 0, "pass some"));
    }
    let (vocab_size, dtype) = (config.vocab_size, original.dtype());
    let row_bytes = config.hidden_size * dtype.size();
    let ids = SLICE_BYTES / row_bytes.max(3 * size_of::<f32>() * rows.len()) / BLOCK * BLOCK;
    let ids = ids.max(BLOCK);
    let mut divergences = vec![vec![Divergence::default(); rows.len()]; ways.len()];
    for start in (0..vocab_size).step_by(ids) {
        let slice = start..(start + ids).min(vocab_size);
        let logits = |of: &Checkpoint, quantization| {
            let options = LoadOptions { quantization: Some(quantization), ..LoadOptions::default() };
            logits(backend, config, rows, of.shard(slice.clone(), vocab_size, &options)?)
        };
        let wanted = logits(original, Quantization::None)?;
        for (&quantization, divergences) in ways.iter().zip(&mut divergences) {
            let got = logits(quantized, quantization)?;
            let of_rows = wanted.chunks(slice.len()).zip(got.chunks(slice.len()));
            for (divergence, (wanted, got)) in divergences.iter_mut().zip(of_rows) {
                divergence.push(start, wanted, got);
            }
        }
        progress((slice.end * row_bytes) as u64, (vocab_size * row_bytes) as u64);
    }
    Ok(divergences.iter().map(|rows| Fidelity::of(rows)).collect())
}

/// Logits, f32 `[rows, ids of the shard]`.
fn logits(
    backend: &CpuBackend,
    config: &HeadConfig,
    rows: HiddenRows<'_>,
    shard: HeadShard,
) -> Result<Vec<f32>> {
    let columns = shard.vocab().len();
    let mut logits = vec![0.0f32; rows.len() * columns];
    let mut status = vec![0u32; rows.len()];
    let mut loaded = backend.load(&Arc::new(shard), rows.dtype())?;
    let out = LogitsOut {
        data: SpanMut::host(&mut logits[..]),
        stride: columns * size_of::<f32>(),
        dtype: DType::F32,
        status: Status::Apart { words: SpanMut::host(&mut status[..]), stride: size_of::<u32>() },
    };
    let job = Job { rows, epilogue: config.epilogue(), adjustments: None, placed: None };
    loaded.run(&job, Out::Logits(out), &mut On::default())?;
    Ok(logits)
}

/// Compares one row's logits of two heads: the original's distribution `p = softmax(l)` with the other's `q =
/// softmax(m)`.
#[derive(Debug, Clone)]
pub struct Divergence {
    original: Side,
    other: Side,
    /// `Σ e^(l − max l) (l − m)` over the slices so far.
    cross: f64,
}

/// One head's running values: its best id, and `Σ e^(l − max)`.
#[derive(Debug, Clone)]
struct Side {
    best: Option<Candidate>,
    sum: f64,
}

impl Side {
    fn new() -> Self {
        Side { best: None, sum: 0.0 }
    }

    /// Updates the best id with a slice. Returns the factor that rescales sums from the old maximum to the
    /// new one.
    fn raise(&mut self, first_id: usize, logits: &[f32]) -> f64 {
        let mut factor = 1.0;
        for (i, &value) in logits.iter().enumerate() {
            let candidate = Candidate { value, id: (first_id + i) as u32 };
            match &self.best {
                None => self.best = Some(candidate),
                Some(best) if candidate.beats(best) => {
                    factor *= (f64::from(best.value) - f64::from(value)).exp();
                    self.best = Some(candidate);
                }
                Some(_) => {}
            }
        }
        self.sum *= factor;
        factor
    }

    fn max(&self) -> f64 {
        self.best.map_or(f64::NAN, |best| f64::from(best.value))
    }

    fn logsumexp(&self) -> f64 {
        self.max() + self.sum.ln()
    }
}

impl Default for Divergence {
    fn default() -> Self {
        Divergence { original: Side::new(), other: Side::new(), cross: 0.0 }
    }
}

impl Divergence {
    /// Adds the logits of the ids from `first_id` on; slices must come in ascending order. A logit that is
    /// not finite makes the divergence NaN.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn push(&mut self, first_id: usize, original: &[f32], other: &[f32]) {
        assert_eq!(original.len(), other.len(), "divergence: slices of different ids");
        self.cross *= self.original.raise(first_id, original);
        self.other.raise(first_id, other);
        let (max, other_max) = (self.original.max(), self.other.max());
        for (&l, &m) in original.iter().zip(other) {
            let (l, m) = (f64::from(l), f64::from(m));
            let weight = (l - max).exp();
            self.original.sum += weight;
            self.cross += weight * (l - m);
            self.other.sum += (m - other_max).exp();
        }
    }

    /// `KL(p ‖ q) = Σ p (ln p − ln q) = Σ p (l − m) − lse(l) + lse(m)`, nats, at least 0.
    pub fn kl(&self) -> f64 {
        let kl = self.cross / self.original.sum - self.original.logsumexp() + self.other.logsumexp();
        // Rounding may leave the divergence of equal distributions just below 0.
        if kl < 0.0 { 0.0 } else { kl }
    }

    /// Whether both heads answer the same id; ties go to the lowest.
    pub fn same_argmax(&self) -> bool {
        self.original.best.map(|best| best.id) == self.other.best.map(|best| best.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::logsumexp;
    use proptest::prelude::*;

    fn whole(l: &[f32], m: &[f32], cuts: &[usize]) -> Divergence {
        let mut divergence = Divergence::default();
        let mut start = 0;
        for end in cuts.iter().map(|cut| cut % (l.len() + 1)).chain([l.len()]) {
            if end > start {
                divergence.push(start, &l[start..end], &m[start..end]);
                start = end;
            }
        }
        divergence
    }

    proptest! {
        #[test]
        fn equals_the_definition_however_it_is_cut(
            pairs in prop::collection::vec((-30.0f32..30.0, -2.0f32..2.0), 1..300),
            mut cuts in prop::collection::vec(0usize..300, 0..5),
        ) {
            cuts.sort_unstable();
            let l: Vec<f32> = pairs.iter().map(|(l, _)| *l).collect();
            let m: Vec<f32> = pairs.iter().map(|(l, d)| l + d).collect();
            let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
            let (l64, m64) = (wide(&l), wide(&m));
            let (a, b) = (logsumexp(&l64), logsumexp(&m64));
            let truth: f64 = l64.iter().zip(&m64).map(|(l, m)| (l - a).exp() * ((l - a) - (m - b))).sum();
            let got = whole(&l, &m, &cuts);
            prop_assert!((got.kl() - truth).abs() <= 1e-12 * 60.0, "{} {}", got.kl(), truth);
            let best = |v: &[f32]| (0..v.len()).rev().max_by(|&a, &b| v[a].total_cmp(&v[b])).unwrap();
            // Adding 0 makes -0 and +0 tie.
            let plus = |v: &[f32]| v.iter().map(|v| v + 0.0).collect::<Vec<_>>();
            prop_assert_eq!(got.same_argmax(), best(&plus(&l)) == best(&plus(&m)));
        }
    }

    #[test]
    fn equal_rows_ties_and_broken_ones() {
        let row = [1.0f32, 5.0, 5.0, -3.0];
        let same = whole(&row, &row, &[2]);
        assert_eq!((same.kl(), same.same_argmax()), (0.0, true));
        assert!(!whole(&row, &[1.0, 4.0, 5.0, -3.0], &[]).same_argmax());
        let broken = whole(&row, &[1.0, f32::NAN, 5.0, -3.0], &[]);
        assert!(broken.kl().is_nan());
        let all = Fidelity::of(&[same.clone(), broken, same]);
        assert!(all.kl_mean.is_nan() && all.kl_largest.is_nan());
        let (up, down) = ([200.0f32, -200.0], [-200.0f32, 200.0]);
        assert!((whole(&up, &down, &[1]).kl() - 400.0).abs() < 1e-9, "no overflow");
    }
}
