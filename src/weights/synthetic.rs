//! Heads and hidden rows made up by a formula: every value is a pure function of a seed and its place, so it is the
//! same at any sharding, on any thread and in any process.
//!
//! The value at `(seed, row, column)` is `(b - 510) * step` in one f32 multiplication, where `b` is the sum of the four bytes of a hash:
//!
//! ```text
//! k0, k1 = the low and the high 32 bits of mix64(mix64(mix64(seed) + domain) + row)     (per row; domain: weights 1, hidden rows 2)
//! h = k0 + column * 0x9e3779b9;  h ^= h >> 16;  h *= 0x7feb352d;  h ^= k1;  h ^= h >> 15;  h *= 0x846ca68b;  h ^= h >> 16
//! mix64(z): z += 0x9e3779b97f4a7c15;  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;  z = (z ^ z >> 27) * 0x94d049bb133111eb;  z ^ z >> 31
//! ```
//!
//! (`mix64` is SplitMix64's output function, the rest is the 32-bit mixer "lowbias32" with a second key, so that no two rows of
//! a vocabulary coincide.) A sum of four uniform bytes has mean 510, standard deviation `sqrt(4 * (256^2 - 1) / 12) = 147.80`
//! and is close to Gaussian within 3.4 standard deviations, its bounds. `step` makes the standard deviation 1 for hidden
//! rows and `3 / sqrt(hidden)` for weights, so that logits have one of about 3. Values are then rounded to their type,
//! half to even; int8 heads quantise the rounded values row by row ([`crate::quantize`]).

use super::load::{Meter, Progress, rows_per_task, zeros};
use super::{HeadShard, Matrix};
use crate::config::{ModelConfig, Quantization};
use crate::dtype::DType;
use crate::error::{Error, Result};
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

/// The head of a known model: its sizes, its type, and what its `config.json` says of logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Preset {
    pub name: &'static str,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub dtype: DType,
    pub model: ModelConfig,
}

impl Preset {
    /// What [`shard`] needs.
    pub fn spec(&self) -> Spec {
        Spec { vocab_size: self.vocab_size, hidden_size: self.hidden_size, dtype: self.dtype }
    }
}

/// Every preset. `tiny` has a vocabulary that no block of 64 divides.
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

/// Vocabulary ids `vocab` of the head of `spec` and `seed`, made on the caller's rayon pool. `quantization`: `None` in the
/// spec's type, otherwise int8, quantised from the values rounded to that type. `progress` counts bytes of the spec's type.
///
/// # Errors
/// `Config` for a size of 0; `Dtype` for int8 in the spec (name a quantisation instead); `Shape` for a range outside of the
/// vocabulary and for `w8a8` with a hidden size above [`MAX_INT8_HIDDEN`]; `Unsupported` where memory is refused.
pub fn shard(
    spec: &Spec,
    seed: u64,
    vocab: Range<usize>,
    quantization: Quantization,
    progress: Option<Progress<'_>>,
) -> Result<HeadShard> {
    check(spec, &vocab, quantization)?;
    let hidden = spec.hidden_size;
    let elements = vocab.len().saturating_mul(hidden);
    let meter = Meter::new(elements as u64 * spec.dtype.size() as u64, progress);
    let maker =
        Maker { seed, first: vocab.start, hidden, step: LOGIT_STD / (hidden as f32).sqrt() / BYTE_SUM_STD };
    let matrix = if quantization == Quantization::None {
        match spec.dtype {
            DType::F32 => {
                let mut values = zeros::<f32>(elements, "synthetic weights")?;
                maker.fill(&mut values, |wide, row| row.copy_from_slice(wide), &meter);
                Matrix::F32(values.into())
            }
            DType::F16 => {
                let mut values = zeros::<f16>(elements, "synthetic weights")?;
                maker.fill(
                    &mut values,
                    |wide, row| spec.dtype.round_into(wide, bytemuck::cast_slice_mut(row)),
                    &meter,
                );
                Matrix::F16(values.into())
            }
            _ => {
                let mut values = zeros::<bf16>(elements, "synthetic weights")?;
                maker.fill(&mut values, round_bf16, &meter);
                Matrix::Bf16(values.into())
            }
        }
    } else {
        let mut values = zeros::<i8>(elements, "synthetic int8 weights")?;
        let mut scales = vec![0.0f32; vocab.len()];
        maker.quantized(spec.dtype, &mut values, &mut scales, &meter);
        Matrix::I8 { values: values.into(), scales }
    };
    meter.finish();
    HeadShard::new(vocab, spec.vocab_size, hidden, quantization, matrix, None)
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

/// Hidden row `row` of unit variance: `hidden` values of `dtype`, little-endian.
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

    /// Fills `values` `[rows, hidden]`, each row rounded from f32 by `round`.
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

fn mix64(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
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
        let pairs = (h & 0x00ff_00ff) + ((h >> 8) & 0x00ff_00ff);
        let sum = (pairs & 0xffff) + (pairs >> 16);
        *value = (sum as i32 - 510) as f32 * step;
    }
}

/// Rounds half to even. The values are finite, so the case of NaN, which keeps the general rounding from vectorising, is left out.
fn rounded_bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    (bits + 0x7fff + ((bits >> 16) & 1)) >> 16
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
