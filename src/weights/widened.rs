//! Heads in formats that no matmul reads as they are: at load their rows are widened to f32, then kept as
//! bf16 (or f32 or int8, where that is asked for). Each such format is a source file of its own that
//! implements [`Widened`], and an entry in `stored.rs`.

use super::load::{How, Meter, rows_per_task};
use super::safetensors_file::{Tensor, float_dtype};
use super::storage::Fresh;
use super::{Matrix, Storage};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::quantize::quantize_row;
use bytemuck::Pod;
use half::bf16;
use lmhead_cpu::e4m3;
use rayon::prelude::*;
use safetensors::Dtype;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// A head whose rows are widened at load.
pub(super) trait Widened: fmt::Debug + Send + Sync {
    /// The format's name, as `GGUF Q6_K`.
    fn name(&self) -> String;

    /// Writes the weights of these vocabulary rows to `out`, f32 `[rows.len(), hidden]`, without
    /// [`Self::global_scale`]. Reads the file, never its mapping; `buffer` is reused memory.
    ///
    /// # Errors
    /// `Tensor` naming the tensor and its first illegal scale or index; `File` where it cannot be read.
    fn widen(&self, rows: Range<usize>, out: &mut [f32], buffer: &mut Vec<u8>) -> Result<()>;

    /// A scale that multiplies all weights; the epilogue applies it.
    ///
    /// # Errors
    /// `Tensor` naming the tensor where it is not finite.
    fn global_scale(&self) -> Result<Option<f32>> {
        Ok(None)
    }
}

/// A widened shard.
pub(super) struct Loaded {
    pub matrix: Matrix,
    /// One scale for all rows, of float weights.
    pub scale: Option<f32>,
    /// The largest relative change that rounding to bf16 has made to a weight.
    pub rounding: f32,
}

/// Loads rows `vocab`, widened to f32 and then kept as int8 or f32 where `how` says so, else as bf16.
pub(super) fn load(
    head: &dyn Widened,
    weight: &Tensor,
    vocab: Range<usize>,
    hidden: usize,
    how: How,
    meter: &Meter<'_>,
) -> Result<Loaded> {
    let (rows, scale) = (vocab.len(), head.global_scale()?);
    let source = Source { head, weight, vocab, hidden };
    if how.quantize {
        let mut scales = vec![0.0f32; rows];
        let scale = scale.unwrap_or(1.0);
        let values =
            source.each_task("int8 weights", &mut scales, meter, |wide, values: &mut [i8], scales| {
                for ((q, s), wide) in values.chunks_mut(hidden).zip(scales).zip(wide.chunks_mut(hidden)) {
                    wide.iter_mut().for_each(|w| *w *= scale);
                    *s = quantize_row(wide, q);
                }
            })?;
        return Ok(Loaded { matrix: Matrix::I8 { values, scales }, scale: None, rounding: 0.0 });
    }
    if how.widen {
        let values = source.each_task("f32 weights", &mut [], meter, |wide, values: &mut [f32], _| {
            values.copy_from_slice(wide);
        })?;
        return Ok(Loaded { matrix: Matrix::F32(values), scale, rounding: 0.0 });
    }
    let rounding = AtomicU32::new(0);
    let values = source.each_task("bf16 weights", &mut [], meter, |wide, values: &mut [bf16], _| {
        DType::Bf16.round_into(wide, bytemuck::cast_slice_mut(values));
        let moved = wide
            .iter()
            .zip(&*values)
            .map(|(w, r)| if *w == 0.0 { 0.0 } else { ((r.to_f32() - w) / w).abs() });
        // Floats of one sign compare as their bits do.
        rounding.fetch_max(moved.fold(0.0, f32::max).to_bits(), Ordering::Relaxed);
    })?;
    Ok(Loaded { matrix: Matrix::Bf16(values), scale, rounding: f32::from_bits(rounding.into_inner()) })
}

/// The rows of a shard.
struct Source<'a> {
    head: &'a dyn Widened,
    weight: &'a Tensor,
    vocab: Range<usize>,
    hidden: usize,
}

impl Source<'_> {
    /// Widens the rows, task by task. `keep` gets a task's f32 weights and writes the values and scales that
    /// are kept. `scales` is `[rows]` or empty.
    fn each_task<T: Pod + Send>(
        &self,
        what: &str,
        scales: &mut [f32],
        meter: &Meter<'_>,
        keep: impl Fn(&mut [f32], &mut [T], &mut [f32]) + Sync,
    ) -> Result<Storage<T>> {
        let (rows, hidden) = (self.vocab.len(), self.hidden);
        let task = rows_per_task(hidden * size_of::<f32>());
        let mut values = Fresh::<T>::zeros(rows * hidden, what)?;
        let mut scales: Vec<&mut [f32]> = scales.chunks_mut(task).collect();
        scales.resize_with(rows.div_ceil(task), Default::default);
        values.par_chunks_mut(task * hidden).zip(scales).enumerate().try_for_each_init(
            || (Vec::new(), Vec::new()),
            |(wide, buffer), (i, (values, scales))| {
                let first = self.vocab.start + i * task;
                let ids = first..first + values.len() / hidden;
                wide.resize(values.len(), 0.0f32);
                self.head.widen(ids, wide, buffer)?;
                self.check_finite(first, wide)?;
                keep(wide, values, scales);
                meter.add(values.len() * size_of::<bf16>());
                Ok(())
            },
        )?;
        values.finish(what)
    }

    fn check_finite(&self, first: usize, wide: &[f32]) -> Result<()> {
        // Values that bf16 would round to infinity are refused, too.
        let limit = DType::Bf16.rounds_to_infinity() as f32;
        let Some(at) = wide.iter().position(|w| w.is_nan() || w.abs() >= limit) else { return Ok(()) };
        let (row, column, value) = (first + at / self.hidden, at % self.hidden, wide[at]);
        let got = format!("{value} at vocabulary row {row}, column {column}");
        let fix = "the checkpoint is damaged or diverged: fetch or export it again";
        Err(self.weight.error("finite weights", got, fix))
    }
}

/// Reads bytes `range` of a tensor into `buffer`.
pub(super) fn read(tensor: &Tensor, range: Range<usize>, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.resize(range.len(), 0);
    tensor.file.read_at(tensor.info.bytes.start + range.start, buffer)
}

/// Whether a tensor has a type that [`scales`] widens.
pub(super) fn is_scale(dtype: Dtype) -> bool {
    float_dtype(dtype).is_some() || matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E8M0)
}

/// Elements `range` of a tensor of scales, widened exactly.
///
/// # Errors
/// `Tensor` naming the first that is not finite; `File` where they cannot be read.
pub(super) fn scales(tensor: &Tensor, range: Range<usize>) -> Result<Vec<f32>> {
    let (dtype, start) = (tensor.info.dtype, range.start);
    let mut values = vec![0.0f32; range.len()];
    let (mut bytes, size) = (Vec::new(), dtype.bitsize() / 8);
    read(tensor, range.start * size..range.end * size, &mut bytes)?;
    match float_dtype(dtype) {
        Some(float) => float.widen(&bytes, &mut values),
        None => {
            let widen = if dtype == Dtype::F8_E8M0 { power_of_two } else { e4m3::widen };
            values.iter_mut().zip(&bytes).for_each(|(value, byte)| *value = widen(*byte));
        }
    }
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(values),
        Some(i) => {
            let columns = tensor.info.shape.get(1).copied().unwrap_or(1).max(1);
            let (row, column) = ((start + i) / columns, (start + i) % columns);
            let fix = "quantise or export the checkpoint again";
            Err(tensor.error("finite scales", format!("{} at [{row}, {column}]", values[i]), fix))
        }
    }
}

/// The value of an E8M0 code; 0xff is NaN.
fn power_of_two(code: u8) -> f32 {
    match code {
        0xff => f32::NAN,
        0 => f32::from_bits(1 << 22),
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// Rows and columns of a matrix, neither of them 0.
pub(super) fn matrix(tensor: &Tensor, wanted: &str) -> Result<[usize; 2]> {
    match tensor.info.shape.as_slice() {
        &[rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
        _ => Err(tensor.error(wanted, &tensor.info, "export the checkpoint again")),
    }
}

/// The error for a tensor that a format needs and that is absent.
pub(super) fn missing(weight: &Tensor, name: String, wanted: impl fmt::Display, what: &str) -> Error {
    let got = format!("{what} without it");
    Error::tensor(weight.file.path(), name, wanted, got, "export the checkpoint whole")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e8m0_codes_are_powers_of_two() {
        for code in 0..255 {
            assert_eq!(f64::from(power_of_two(code)), 2f64.powi(i32::from(code) - 127), "{code}");
        }
        assert!(power_of_two(255).is_nan());
    }
}
