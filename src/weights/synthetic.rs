//! Synthetic heads and hidden rows: every value is a pure function of a seed and its position, so it is the
//! same for any sharding, on any thread and in any process.
//!
//! The value at `(seed, row, column)` is `(b - 510) * step` in one f32 multiplication, where `b` is the sum
//! of the four bytes of a hash:
//!
//! ```text
//! per row, with domain 1 for weights and 2 for hidden rows:
//!   k0, k1 = the low and the high 32 bits of mix64(mix64(mix64(seed) + domain) + row)
//! h = k0 + column * 0x9e3779b9;  h ^= h >> 16;  h *= 0x7feb352d;  h ^= k1;
//!   h ^= h >> 15;  h *= 0x846ca68b;  h ^= h >> 16
//! mix64(z): z += 0x9e3779b97f4a7c15;  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
//!   z = (z ^ z >> 27) * 0x94d049bb133111eb;  z ^ z >> 31
//! ```
//!
//! (`mix64` is SplitMix64's output function, the rest is the 32-bit mixer "lowbias32" with a second key, so
//! that no two rows of a vocabulary coincide.) A sum of four uniform bytes has mean 510, standard deviation
//! `sqrt(4 * (256^2 - 1) / 12) = 147.80` and is close to Gaussian within 3.4 standard deviations, its bounds.
//! `step` makes the standard deviation 1 for hidden rows and `3 / sqrt(hidden)` for weights, so that that of
//! the logits is about 3. Values are then rounded to their type, half to even; int8 heads quantise the
//! rounded values row by row ([`crate::quantize`]).

use super::load::{Meter, Progress, rows_per_task};
use super::storage::Fresh;
use super::{HeadShard, Matrix};
use crate::config::{ModelConfig, Quantization};
use crate::digest::{self, mix64};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::process;
use crate::quantize::{MAX_INT8_HIDDEN, quantize_row};
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// Standard deviation of the logits of a unit-variance hidden row.
const LOGIT_STD: f32 = 3.0;
/// `sqrt(4 * (256^2 - 1) / 12)`
const BYTE_SUM_STD: f32 = 147.801;
const WEIGHTS: u64 = 1;
const HIDDEN: u64 = 2;

/// Sizes and type of a synthetic head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// f32, f16 or bf16.
    pub dtype: DType,
}

/// The head of a known model: its sizes, its type, and what its `config.json` says about logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    pub name: &'static str,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub dtype: DType,
    pub model: ModelConfig,
}

impl Preset {
    /// The sizes and type, for [`shard`].
    pub fn spec(&self) -> Spec {
        Spec { vocab_size: self.vocab_size, hidden_size: self.hidden_size, dtype: self.dtype }
    }
}

/// Every preset. The vocabulary of `tiny` is no multiple of 64.
pub fn presets() -> Vec<Preset> {
    [
        ("deepseek-v3", 129_280, 7168, None),
        ("llama-3-8b", 128_256, 4096, None),
        ("qwen2.5-7b", 152_064, 3584, None),
        ("gemma-2-9b", 256_000, 3584, Some(30.0)),
        ("tiny", 1000, 256, None),
    ]
    .map(|(name, vocab_size, hidden_size, final_logit_softcapping)| Preset {
        name,
        vocab_size,
        hidden_size,
        dtype: DType::Bf16,
        model: ModelConfig {
            vocab_size: Some(vocab_size),
            hidden_size: Some(hidden_size),
            final_logit_softcapping,
            ..ModelConfig::default()
        },
    })
    .into()
}

/// The preset of this name.
///
/// # Errors
/// `Config` listing the names.
pub fn preset(name: &str) -> Result<Preset> {
    let presets = presets();
    let names = presets.iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
    presets.into_iter().find(|p| p.name == name).ok_or_else(|| {
        Error::config("preset", format!("one of {names}"), format!("`{name}`"), "use one of those")
    })
}

/// Makes the shard of ids `vocab` of the head that `spec` and `seed` describe, on the caller's rayon pool.
/// Without `quantization` it has the spec's type; with it, values rounded to that type are quantised to int8.
/// `progress` counts bytes of the spec's type.
///
/// # Errors
/// `Config` for a size of 0; `Dtype` for int8 in the spec (name a quantisation instead); `Shape` for a range
/// outside of the vocabulary and for `w8a8` with a hidden size above [`MAX_INT8_HIDDEN`]; `Unsupported` where
/// the system refuses memory.
pub fn shard(
    spec: &Spec,
    seed: u64,
    vocab: Range<usize>,
    quantization: Quantization,
    progress: Option<Progress<'_>>,
) -> Result<HeadShard> {
    check(spec, &vocab, quantization)?;
    process::on_live_threads(|| make(spec, seed, vocab, quantization, progress))?
}

fn make(
    spec: &Spec,
    seed: u64,
    vocab: Range<usize>,
    quantization: Quantization,
    progress: Option<Progress<'_>>,
) -> Result<HeadShard> {
    let hidden = spec.hidden_size;
    let elements = vocab.len().saturating_mul(hidden);
    let meter = Meter::new(elements as u64 * spec.dtype.size() as u64, progress);
    let maker =
        Maker { seed, first: vocab.start, hidden, step: LOGIT_STD / (hidden as f32).sqrt() / BYTE_SUM_STD };
    const WHAT: &str = "synthetic weights";
    let matrix = if quantization == Quantization::None {
        match spec.dtype {
            DType::F32 => {
                let mut values = Fresh::<f32>::zeros(elements, WHAT)?;
                maker.fill(&mut values, |wide, row| row.copy_from_slice(wide), &meter);
                Matrix::F32(values.finish(WHAT)?)
            }
            DType::F16 => {
                let mut values = Fresh::<f16>::zeros(elements, WHAT)?;
                maker.fill(
                    &mut values,
                    |wide, row| spec.dtype.round_into(wide, bytemuck::cast_slice_mut(row)),
                    &meter,
                );
                Matrix::F16(values.finish(WHAT)?)
            }
            _ => {
                let mut values = Fresh::<bf16>::zeros(elements, WHAT)?;
                maker.fill(&mut values, round_bf16, &meter);
                Matrix::Bf16(values.finish(WHAT)?)
            }
        }
    } else {
        let mut values = Fresh::<i8>::zeros(elements, WHAT)?;
        let mut scales = vec![0.0f32; vocab.len()];
        maker.quantized(spec.dtype, &mut values, &mut scales, &meter);
        Matrix::I8 { values: values.finish(WHAT)?, scales }
    };
    meter.finish();
    let shard = HeadShard::from_finite(vocab, spec.vocab_size, hidden, quantization, matrix, None)?;
    let about = format!("synthetic {} {} {} {seed}", spec.vocab_size, hidden, spec.dtype);
    Ok(shard.with_fingerprint(digest::of_bytes(about.as_bytes())))
}

fn check(spec: &Spec, vocab: &Range<usize>, quantization: Quantization) -> Result<()> {
    let limit = i32::MAX as usize;
    for (key, size) in [("vocab_size", spec.vocab_size), ("hidden_size", spec.hidden_size)] {
        if size == 0 || size > limit {
            let fix = "give the synthetic head a size";
            return Err(Error::config(key, format!("1 to {limit}"), size, fix));
        }
    }
    if spec.dtype == DType::I8 {
        let fix = "ask for w8a8 or w8a16 of a float head";
        return Err(Error::dtype("synthetic head", "f32, f16 or bf16", spec.dtype, fix));
    }
    if vocab.start > vocab.end || vocab.end > spec.vocab_size {
        return Err(Error::shape(
            "shard",
            format!("vocabulary ids within 0..{}", spec.vocab_size),
            format!("{}..{}", vocab.start, vocab.end),
            "cut shards with layout::shard_range",
        ));
    }
    if quantization == Quantization::W8a8 && spec.hidden_size > MAX_INT8_HIDDEN {
        let wanted = format!("at most {MAX_INT8_HIDDEN} (int32 accumulators)");
        let fix = "use w8a16 or 16-bit weights";
        return Err(Error::shape("hidden_size of a w8a8 head", wanted, spec.hidden_size, fix));
    }
    Ok(())
}

/// Hidden row `row`, with unit variance: `hidden` values of `dtype`, little-endian.
///
/// # Panics
/// For [`DType::I8`]: hidden rows are floats.
pub fn hidden_row(seed: u64, row: u64, hidden: usize, dtype: DType) -> Vec<u8> {
    let mut wide = vec![0.0; hidden];
    fill(keys(seed, HIDDEN, row), 1.0 / BYTE_SUM_STD, &mut wide);
    let mut bytes = vec![0; hidden * dtype.size()];
    dtype.round_into(&wide, &mut bytes);
    bytes
}

/// Makes the rows of one shard.
struct Maker {
    seed: u64,
    /// Vocabulary id of the shard's first row.
    first: usize,
    hidden: usize,
    step: f32,
}

impl Maker {
    fn row(&self, row: usize, wide: &mut [f32]) {
        fill(keys(self.seed, WEIGHTS, (self.first + row) as u64), self.step, wide);
    }

    /// Fills `values` `[rows, hidden]`; `round` rounds each row from f32.
    fn fill<T: Send>(&self, values: &mut [T], round: impl Fn(&[f32], &mut [T]) + Sync, meter: &Meter<'_>) {
        let task = rows_per_task(self.hidden * size_of::<T>());
        values.par_chunks_mut(task * self.hidden).enumerate().for_each_init(
            || vec![0.0f32; self.hidden],
            |wide, (i, chunk)| {
                for (j, row) in chunk.chunks_mut(self.hidden).enumerate() {
                    self.row(i * task + j, wide);
                    round(wide, row);
                }
                meter.add(size_of_val(chunk));
            },
        );
    }

    /// Fills `values` `[rows, hidden]` and `scales` `[rows]` from rows rounded to `dtype`.
    fn quantized(&self, dtype: DType, values: &mut [i8], scales: &mut [f32], meter: &Meter<'_>) {
        let row_bytes = self.hidden * dtype.size();
        let task = rows_per_task(row_bytes);
        let chunks = values.par_chunks_mut(task * self.hidden).zip(scales.par_chunks_mut(task));
        chunks.enumerate().for_each_init(
            || (vec![0.0f32; self.hidden], vec![0u8; row_bytes]),
            |(wide, rounded), (i, (values, scales))| {
                for (j, (q, scale)) in values.chunks_mut(self.hidden).zip(scales.iter_mut()).enumerate() {
                    self.row(i * task + j, wide);
                    match dtype {
                        DType::Bf16 => round_bf16_in_place(wide),
                        _ => {
                            dtype.round_into(wide, rounded);
                            dtype.widen(rounded, wide);
                        }
                    }
                    *scale = quantize_row(wide, q);
                }
                meter.add(scales.len() * row_bytes);
            },
        );
    }
}

/// The two keys of a row.
fn keys(seed: u64, domain: u64, row: u64) -> [u32; 2] {
    let key = mix64(mix64(mix64(seed).wrapping_add(domain)).wrapping_add(row));
    [key as u32, (key >> 32) as u32]
}

/// One row of values, unrounded. Integer operations on 32-bit lanes only, so that it vectorises.
fn fill([k0, k1]: [u32; 2], step: f32, out: &mut [f32]) {
    for (column, value) in out.iter_mut().enumerate() {
        let mut h = (column as u32).wrapping_mul(0x9e37_79b9).wrapping_add(k0);
        h ^= h >> 16;
        h = h.wrapping_mul(0x7feb_352d);
        h ^= k1;
        h ^= h >> 15;
        h = h.wrapping_mul(0x846c_a68b);
        h ^= h >> 16;
        let pairs = (h & 0x00ff_00ff).wrapping_add((h >> 8) & 0x00ff_00ff);
        let sum = (pairs & 0xffff).wrapping_add(pairs >> 16);
        *value = (sum as i32).wrapping_sub(510) as f32 * step;
    }
}

/// Rounds half to even. All values are finite, so there is no case for NaN, which would keep this from
/// vectorising.
fn rounded_bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16
}

fn round_bf16(wide: &[f32], row: &mut [bf16]) {
    for (out, value) in row.iter_mut().zip(wide) {
        *out = bf16::from_bits(rounded_bf16_bits(*value) as u16);
    }
}

fn round_bf16_in_place(wide: &mut [f32]) {
    for value in wide {
        *value = f32::from_bits(rounded_bf16_bits(*value) << 16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::shard_range;
    use std::sync::Mutex;

    fn wide(shard: &HeadShard) -> (Vec<f32>, Vec<f32>) {
        match shard.matrix() {
            Matrix::F32(s) => (s.to_vec(), Vec::new()),
            Matrix::F16(s) => (s.iter().map(|v| v.to_f32()).collect(), Vec::new()),
            Matrix::Bf16(s) => (s.iter().map(|v| v.to_f32()).collect(), Vec::new()),
            Matrix::E4m3 { .. } => unreachable!("no preset is FP8"),
            Matrix::I8 { values, scales } => (values.iter().map(|v| f32::from(*v)).collect(), scales.clone()),
        }
    }

    /// The module's formula, one value at a time.
    fn naive(seed: u64, domain: u64, row: u64, column: u32, step: f32) -> f32 {
        let key = mix64(mix64(mix64(seed).wrapping_add(domain)).wrapping_add(row));
        let mut h = (key as u32).wrapping_add(column.wrapping_mul(0x9e37_79b9));
        h = (h ^ (h >> 16)).wrapping_mul(0x7feb_352d) ^ (key >> 32) as u32;
        h = (h ^ (h >> 15)).wrapping_mul(0x846c_a68b);
        h ^= h >> 16;
        let sum: i32 = h.to_le_bytes().iter().map(|b| i32::from(*b)).sum();
        (sum - 510) as f32 * step
    }

    #[test]
    fn any_sharding_equals_the_whole_and_the_formula() {
        use Quantization::{None, W8a8, W8a16};
        for (dtype, quantization) in [
            (DType::Bf16, None),
            (DType::F16, None),
            (DType::F32, None),
            (DType::Bf16, W8a8),
            (DType::F16, W8a16),
            (DType::F32, W8a8),
        ] {
            let spec = Spec { vocab_size: 203, hidden_size: 37, dtype };
            let whole = shard(&spec, 7, 0..203, quantization, Option::None).unwrap();
            let (values, scales) = wide(&whole);
            for row in [0usize, 100, 202] {
                let step = LOGIT_STD / 37f32.sqrt() / BYTE_SUM_STD;
                let exact: Vec<f32> = (0..37).map(|k| naive(7, WEIGHTS, row as u64, k, step)).collect();
                let (mut bytes, mut rounded) = (vec![0; 37 * dtype.size()], vec![0.0; 37]);
                dtype.round_into(&exact, &mut bytes);
                dtype.widen(&bytes, &mut rounded);
                if quantization != None {
                    let mut q = vec![0; 37];
                    assert_eq!(quantize_row(&rounded, &mut q), scales[row]);
                    rounded = q.iter().map(|q| f32::from(*q)).collect();
                }
                assert_eq!(values[row * 37..(row + 1) * 37], rounded);
            }
            for shards in [2, 3, 5] {
                for index in 0..shards {
                    let range = shard_range(203, shards, index);
                    let part = shard(&spec, 7, range.clone(), quantization, Option::None).unwrap();
                    assert_eq!(part.quantization(), quantization);
                    let (part_values, part_scales) = wide(&part);
                    assert_eq!(part_values, values[range.start * 37..range.end * 37]);
                    if quantization != None {
                        assert_eq!(part_scales, scales[range]);
                    }
                }
            }
            let other = shard(&spec, 8, 0..203, quantization, Option::None).unwrap();
            let (other_values, _) = wide(&other);
            let equal = other_values.iter().zip(&values).filter(|(a, b)| a == b).count();
            assert!(equal < values.len() / 50, "another seed gives other values, {equal} are equal");
        }
    }

    /// Mean, variance, skewness and excess kurtosis.
    fn moments(values: &[f32]) -> [f64; 4] {
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let about = |p: i32| values.iter().map(|v| (f64::from(*v) - mean).powi(p)).sum::<f64>() / n;
        let variance = about(2);
        [mean, variance, about(3) / variance.powf(1.5), about(4) / variance.powi(2) - 3.0]
    }

    #[test]
    fn values_are_nearly_gaussian_and_logits_have_the_promised_spread() {
        let (vocab, hidden) = (2000, 512);
        let spec = Spec { vocab_size: vocab, hidden_size: hidden, dtype: DType::F32 };
        let (w, _) = wide(&shard(&spec, 1, 0..vocab, Quantization::None, None).unwrap());
        let [mean, variance, skew, kurtosis] = moments(&w);
        let std = f64::from(LOGIT_STD) / (hidden as f64).sqrt();
        assert!(mean.abs() < 0.005 * std && (variance / (std * std) - 1.0).abs() < 0.01, "{mean} {variance}");
        assert!(skew.abs() < 0.02 && (kurtosis + 0.3).abs() < 0.03, "{skew} {kurtosis}");

        let x: Vec<f32> = (0..50)
            .flat_map(|row| {
                let mut wide = vec![0.0; hidden];
                DType::F32.widen(&hidden_row(1, row, hidden, DType::F32), &mut wide);
                wide
            })
            .collect();
        let [mean, variance, ..] = moments(&x);
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
        let logits: Vec<f32> = x
            .chunks(hidden)
            .flat_map(|x| w.chunks(hidden).map(|w| x.iter().zip(w).map(|(a, b)| a * b).sum::<f32>()))
            .collect();
        let [mean, variance, _, kurtosis] = moments(&logits);
        assert!(mean.abs() < 0.05 && (variance.sqrt() - 3.0).abs() < 0.1, "{mean} {variance}");
        assert!(kurtosis.abs() < 0.1, "{kurtosis}");
    }

    #[test]
    fn neighbouring_rows_columns_and_seeds_are_uncorrelated() {
        let row = |seed, domain, row| {
            let mut out = vec![0.0; 20_000];
            fill(keys(seed, domain, row), 1.0 / BYTE_SUM_STD, &mut out);
            out
        };
        let base = row(3, WEIGHTS, 10);
        let shifted = base[1..].to_vec();
        for other in
            [row(3, WEIGHTS, 11), row(4, WEIGHTS, 10), row(3, HIDDEN, 10), row(2, HIDDEN, 10), shifted]
        {
            let dot: f64 = base.iter().zip(&other).map(|(a, b)| f64::from(a * b)).sum();
            assert!((dot / 20_000.0).abs() < 0.03, "correlation {}", dot / 20_000.0);
        }
    }

    #[test]
    fn hidden_rows_depend_on_seed_and_row_and_round_to_their_type() {
        let f32_row = hidden_row(5, 2, 9, DType::F32);
        assert_ne!(f32_row, hidden_row(5, 3, 9, DType::F32));
        assert_ne!(f32_row, hidden_row(6, 2, 9, DType::F32));
        assert_eq!(
            f32_row[..16],
            hidden_row(5, 2, 4, DType::F32),
            "a shorter row is the start of a longer one"
        );
        let mut wide = vec![0.0; 9];
        DType::F32.widen(&f32_row, &mut wide);
        for dtype in [DType::F16, DType::Bf16] {
            let mut rounded = vec![0; 18];
            dtype.round_into(&wide, &mut rounded);
            assert_eq!(hidden_row(5, 2, 9, dtype), rounded);
        }
        assert!(hidden_row(1, 1, 0, DType::Bf16).is_empty());
    }

    #[test]
    fn presets_by_name() {
        for p in presets() {
            assert_eq!(preset(p.name).unwrap(), p);
            assert_eq!((p.model.vocab_size, p.model.hidden_size), (Some(p.vocab_size), Some(p.hidden_size)));
        }
        assert_eq!(preset("gemma-2-9b").unwrap().model.final_logit_softcapping, Some(30.0));
        assert_ne!(preset("tiny").unwrap().vocab_size % 64, 0);
        assert_eq!(
            preset("gpt-5").unwrap_err().to_string(),
            "preset: wanted one of deepseek-v3, llama-3-8b, qwen2.5-7b, gemma-2-9b, tiny, got `gpt-5`; use one of those"
        );
    }

    #[test]
    fn refusals_and_progress() {
        let spec = Spec { vocab_size: 3000, hidden_size: 1000, dtype: DType::Bf16 };
        let text = |spec: Spec, range, q| shard(&spec, 0, range, q, None).unwrap_err().to_string();
        let none = Quantization::None;
        assert!(text(Spec { vocab_size: 0, ..spec }, 0..0, none).starts_with("vocab_size: wanted 1 to"));
        assert!(text(Spec { hidden_size: 0, ..spec }, 0..0, none).starts_with("hidden_size: wanted 1 to"));
        assert!(text(Spec { dtype: DType::I8, ..spec }, 0..0, none).contains("got i8"));
        assert!(text(spec, 1..3001, none).contains("within 0..3000, got 1..3001"));
        assert!(
            text(Spec { hidden_size: 132_105, ..spec }, 0..1, Quantization::W8a8).contains("at most 132104")
        );
        let huge = Spec { vocab_size: i32::MAX as usize, hidden_size: i32::MAX as usize, dtype: DType::F32 };
        assert!(text(huge, 0..i32::MAX as usize, none).contains("bytes of memory"));
        for quantization in [none, Quantization::W8a8] {
            let told = Mutex::new(Vec::new());
            let progress = |done, total| told.lock().unwrap().push((done, total));
            shard(&spec, 0, 0..3000, quantization, Some(&progress)).unwrap();
            let told = told.into_inner().unwrap();
            assert_eq!(told.last(), Some(&(6_000_000, 6_000_000)));
            assert!(told.len() > 1 && told.iter().all(|(done, _)| *done <= 6_000_000));
        }
    }
}
