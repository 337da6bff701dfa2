//! Heads that no product reads as they are stored: their rows are widened to f32 when they are loaded, and
//! kept as bf16 (or f32, or int8, where that is asked for). Each such format is a file of its own, which
//! implements [`Widened`] and has its line in `stored.rs`.

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
    /// How it is stored, in the words of the report: `GGUF Q6_K`.
    fn name(&self) -> String;

    /// Writes the f32 weights `[rows.len(), hidden]` of these vocabulary rows, without
    /// [`Self::global_scale`]. Reads the file, never its mapping; `buffer` is reused from call to call.
    ///
    /// # Errors
    /// `Tensor` naming the tensor and the first scale or index that cannot be; `File` where it cannot be
    /// read.
    fn widen(&self, rows: Range<usize>, out: &mut [f32], buffer: &mut Vec<u8>) -> Result<()>;

    /// What all weights are multiplied by besides: it goes to the epilogue.
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
    /// The most that rounding to bf16 has moved a weight, as a part of that weight.
    pub rounding: f32,
}

/// Widens rows `vocab`: to int8 where `how` says so, to f32, else to bf16.
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
        // Floats of one sign order like their bits.
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
    /// Widens the rows task by task; `keep` makes of each task's f32 what is kept of them. `scales` is
    /// `[rows]` or empty.
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
        // What bf16 rounds to infinity is of no use either.
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

/// The error for a tensor that a format needs and that is not there.
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
