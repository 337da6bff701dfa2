//! Checkpoints and synthetic heads -> one rank's shard of the head, in memory or mapped from its file.

mod checkpoint;
mod folder;
#[allow(unsafe_code, reason = "an engine's memory")]
mod foreign;
mod hf_config;
mod int8_file;
mod load;
#[allow(unsafe_code, reason = "mapped files")]
mod safetensors_file;
#[allow(unsafe_code, reason = "mapped files, and an engine's memory")]
mod storage;
mod stored;
pub mod synthetic;
mod widened;

pub use checkpoint::{Checkpoint, LoadOptions};
pub use foreign::{DeviceMatrix, DeviceWeights};
pub use int8_file::WeightError;
pub use load::Progress;
pub use safetensors::Dtype as StoredDtype;
pub use safetensors_file::{FloatMatrix, SafetensorsFile, TensorInfo};
pub use storage::Storage;

use crate::dtype::DType;
use crate::dtype::Quantization;
use crate::error::{Error, Result};
use crate::quantize::MAX_INT8_HIDDEN;
use half::{bf16, f16};
use std::ops::Range;

/// Weights of a shard, row-major `[vocab.len(), hidden_size]`.
#[derive(Debug)]
pub enum Matrix {
    F32(Storage<f32>),
    F16(Storage<f16>),
    Bf16(Storage<bf16>),
    /// `values[v, k] * scales[v]` is the weight; `scales` `[vocab.len()]`, finite.
    I8 {
        values: Storage<i8>,
        scales: Vec<f32>,
    },
    /// FP8 E4M3 codes, as [`lmhead_cpu::e4m3`] defines them; scales as for int8. A code of NaN gives NaN
    /// logits.
    E4m3 {
        values: Storage<u8>,
        scales: Vec<f32>,
    },
}

impl Matrix {
    /// Type of the stored elements.
    pub fn dtype(&self) -> DType {
        match self {
            Matrix::F32(_) => DType::F32,
            Matrix::F16(_) => DType::F16,
            Matrix::Bf16(_) => DType::Bf16,
            Matrix::I8 { .. } => DType::I8,
            Matrix::E4m3 { .. } => DType::E4m3,
        }
    }

    /// The stored elements, row-major.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Matrix::F32(w) => bytemuck::cast_slice(w),
            Matrix::F16(w) => bytemuck::cast_slice(w),
            Matrix::Bf16(w) => bytemuck::cast_slice(w),
            Matrix::I8 { values, .. } => bytemuck::cast_slice(values),
            Matrix::E4m3 { values, .. } => values,
        }
    }

    fn len(&self) -> usize {
        self.as_bytes().len() / self.dtype().size()
    }
}

/// The part of the LM head that one rank holds: vocabulary ids `vocab` of a `[vocab_size, hidden_size]` head.
#[derive(Debug)]
pub struct HeadShard {
    vocab: Range<usize>,
    vocab_size: usize,
    hidden_size: usize,
    quantization: Quantization,
    /// Has no rows where the weights are on a device.
    matrix: Matrix,
    on_device: Option<DeviceWeights>,
    /// Scales of float weights, where they have some.
    float_scales: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
    fingerprint: Option<u64>,
}

/// A description of a shard, without its weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardInfo {
    /// The vocabulary ids of the shard. May be empty.
    pub vocab: Range<usize>,
    /// Vocabulary size of the whole head.
    pub vocab_size: usize,
    /// Columns of W.
    pub hidden_size: usize,
    /// Type of the stored weights.
    pub dtype: DType,
    pub quantization: Quantization,
    pub has_bias: bool,
    /// Which checkpoint the shard comes from, where that is known.
    pub fingerprint: Option<u64>,
    /// Bytes of weights, scales and bias.
    pub bytes: u64,
}

/// Bytes of one vocabulary id: `hidden_size` weights of `dtype`, and an f32 each for the scale and the bias
/// where there is one.
pub fn row_bytes(hidden_size: usize, dtype: DType, scaled: bool, bias: bool) -> u64 {
    (hidden_size * dtype.size()) as u64 + 4 * (u64::from(scaled) + u64::from(bias))
}

impl HeadShard {
    /// A description of the shard, without its weights.
    pub fn info(&self) -> ShardInfo {
        ShardInfo {
            vocab: self.vocab(),
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            dtype: self.matrix.dtype(),
            quantization: self.quantization,
            has_bias: self.has_bias(),
            fingerprint: self.fingerprint,
            bytes: self.bytes(),
        }
    }

    /// Makes a shard from its parts. `bias` `[vocab.len()]` f32 is added to the dequantised logit. Reads
    /// every value once to check it: weights, scales and bias must be finite.
    ///
    /// # Errors
    /// When the lengths do not fit `vocab` and `hidden_size`, when `quantization` does not fit the
    /// matrix (int8 is `w8a8` or `w8a16`, E4M3 `w8a16`, everything else `none`), when `hidden_size` is above
    /// [`MAX_INT8_HIDDEN`] for `w8a8`, or when something is NaN or infinite.
    pub fn new(
        vocab: Range<usize>,
        vocab_size: usize,
        hidden_size: usize,
        quantization: Quantization,
        matrix: Matrix,
        bias: Option<Vec<f32>>,
    ) -> Result<Self> {
        let shard = Self::from_finite(vocab, vocab_size, hidden_size, quantization, matrix, bias)?;
        let bad = |what: &str, row: usize| {
            Error::shape(
                what,
                "finite values",
                format!("NaN or infinity in vocabulary row {}", shard.vocab.start + row),
                "repair the weights",
            )
        };
        let row = |i: usize| i / hidden_size.max(1);
        // The largest magnitude by its bits, as in the loaders: one pass that vectorises. The position is
        // only looked for where a value is not finite.
        let first = match &shard.matrix {
            Matrix::F32(w) => first_not_finite(w, |v| v.to_bits() & 0x7fff_ffff, f32::INFINITY.to_bits()),
            Matrix::F16(w) => first_not_finite(w, |v| v.to_bits() & 0x7fff, f16::INFINITY.to_bits()),
            Matrix::Bf16(w) => first_not_finite(w, |v| v.to_bits() & 0x7fff, bf16::INFINITY.to_bits()),
            Matrix::I8 { scales, .. } | Matrix::E4m3 { scales, .. } => {
                if let Some(row) = scales.iter().position(|s| !s.is_finite()) {
                    return Err(bad("shard scales", row));
                }
                None
            }
        };
        if let Some(i) = first {
            return Err(bad("shard weights", row(i)));
        }
        if let Some(row) = shard.bias.as_ref().and_then(|b| b.iter().position(|v| !v.is_finite())) {
            return Err(bad("shard bias", row));
        }
        Ok(shard)
    }

    /// A shard of an engine's weights on a device, whose parts were checked already.
    fn with_weights_on_device(
        vocab: Range<usize>,
        vocab_size: usize,
        hidden_size: usize,
        quantization: Quantization,
        weights: DeviceWeights,
    ) -> Result<Self> {
        let none = match weights.dtype {
            DType::F32 => Matrix::F32(Vec::new().into()),
            DType::F16 => Matrix::F16(Vec::new().into()),
            DType::Bf16 => Matrix::Bf16(Vec::new().into()),
            DType::I8 => Matrix::I8 { values: Vec::new().into(), scales: Vec::new() },
            DType::E4m3 => Matrix::E4m3 { values: Vec::new().into(), scales: Vec::new() },
        };
        // `from_finite` checks the rest, as for a shard without ids.
        let start = vocab.start;
        let mut shard = Self::from_finite(start..start, vocab_size, hidden_size, quantization, none, None)?;
        if vocab.start > vocab.end || vocab.end > vocab_size {
            return Err(beyond(&vocab, vocab_size));
        }
        (shard.vocab, shard.on_device) = (vocab, Some(weights));
        Ok(shard)
    }

    /// The weights, where they are an engine's own in device memory; [`HeadShard::matrix`] then has no rows.
    pub fn device_weights(&self) -> Option<&DeviceWeights> {
        self.on_device.as_ref()
    }

    /// [`HeadShard::new`] without the check for finite values: loaders do that themselves, since they can
    /// name the file.
    pub(crate) fn from_finite(
        vocab: Range<usize>,
        vocab_size: usize,
        hidden_size: usize,
        quantization: Quantization,
        matrix: Matrix,
        bias: Option<Vec<f32>>,
    ) -> Result<Self> {
        if vocab.start > vocab.end || vocab.end > vocab_size {
            return Err(beyond(&vocab, vocab_size));
        }
        let rows = vocab.len();
        if rows.checked_mul(hidden_size) != Some(matrix.len()) {
            return Err(Error::shape(
                "shard weights",
                format!("{rows} x {hidden_size} elements"),
                matrix.len(),
                "pass exactly the rows of the shard",
            ));
        }
        if let Matrix::I8 { scales, .. } | Matrix::E4m3 { scales, .. } = &matrix
            && scales.len() != rows
        {
            return Err(Error::shape("shard scales", rows, scales.len(), "pass one scale per row"));
        }
        if let Some(bias) = &bias
            && bias.len() != rows
        {
            return Err(Error::shape("shard bias", rows, bias.len(), "pass one bias per row"));
        }
        let wanted = match matrix.dtype() {
            DType::I8 if quantization == Quantization::None => Some("w8a8 or w8a16 for int8 weights"),
            DType::E4m3 if quantization != Quantization::W8a16 => Some("w8a16 for E4M3 weights"),
            dtype if dtype.is_float() && quantization != Quantization::None => Some("none"),
            _ => None,
        };
        if let Some(wanted) = wanted {
            let fix = "quantise the weights at load, or name the quantisation that they have";
            return Err(Error::dtype("quantization", wanted, quantization, fix));
        }
        if quantization == Quantization::W8a8 && hidden_size > MAX_INT8_HIDDEN {
            return Err(Error::shape(
                "hidden_size of a w8a8 head",
                format!("at most {MAX_INT8_HIDDEN} (int32 accumulators)"),
                hidden_size,
                "use w8a16 or 16-bit weights",
            ));
        }
        let fingerprint = None;
        Ok(HeadShard {
            vocab,
            vocab_size,
            hidden_size,
            quantization,
            matrix,
            on_device: None,
            float_scales: None,
            bias,
            fingerprint,
        })
    }

    /// Gives float weights a scale for each vocabulary row: a raw logit is multiplied by it before the bias
    /// is added, as with int8 weights. Only the CPU backend takes such a shard.
    ///
    /// # Errors
    /// `Shape` where there is not one finite scale for each row, or the weights have scales already.
    pub fn with_scales(mut self, scales: Vec<f32>) -> Result<Self> {
        let (rows, what) = (self.vocab.len(), "shard scales");
        if self.scales().is_some() || self.on_device.is_some() {
            let fix = "give scales to float weights in host memory";
            return Err(Error::shape(what, "none beside those of the matrix", "others", fix));
        }
        if scales.len() != rows {
            return Err(Error::shape(what, rows, scales.len(), "pass one scale per row"));
        }
        if let Some(row) = scales.iter().position(|scale| !scale.is_finite()) {
            let got = format!("NaN or infinity in vocabulary row {}", self.vocab.start + row);
            return Err(Error::shape(what, "finite values", got, "repair the weights"));
        }
        self.float_scales = Some(scales);
        Ok(self)
    }

    /// Scales `[vocab().len()]`, by which raw logits are multiplied before the bias is added; `None` for
    /// plain float weights.
    pub fn scales(&self) -> Option<&[f32]> {
        match &self.matrix {
            Matrix::I8 { scales, .. } | Matrix::E4m3 { scales, .. } => Some(scales),
            _ => self.float_scales.as_deref(),
        }
    }

    /// Sets the fingerprint: a number that is the same for all shards of one head, and another for any other
    /// head. Loaders set it; callers of `HeadShard::new` may.
    #[must_use]
    pub fn with_fingerprint(mut self, fingerprint: u64) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }

    /// Which checkpoint the shard comes from, where that is known. Ranks of a group compare it when a head is
    /// created.
    pub fn fingerprint(&self) -> Option<u64> {
        self.fingerprint
    }

    /// The vocabulary ids of this shard. May be empty.
    pub fn vocab(&self) -> Range<usize> {
        self.vocab.clone()
    }

    /// Vocabulary size of the whole head.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Columns of W.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// How int8 and E4M3 weights are multiplied; `None` for the other types.
    pub fn quantization(&self) -> Quantization {
        self.quantization
    }

    /// The weights, row-major `[vocab().len(), hidden_size()]`.
    pub fn matrix(&self) -> &Matrix {
        &self.matrix
    }

    /// The bias `[vocab().len()]`, added to the dequantised logit.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    fn has_bias(&self) -> bool {
        self.bias.is_some() || self.on_device.as_ref().is_some_and(|weights| weights.bias != 0)
    }

    /// Bytes of weights, scales and bias of this shard.
    pub fn bytes(&self) -> u64 {
        let (scaled, bias) = (self.scales().is_some(), self.has_bias());
        self.vocab.len() as u64 * row_bytes(self.hidden_size, self.matrix.dtype(), scaled, bias)
    }

    /// True where the weights are read from a mapping of their file, which must not change meanwhile.
    /// [`LoadOptions::copy`] avoids the mapping.
    pub fn is_mapped(&self) -> bool {
        match &self.matrix {
            Matrix::F32(s) => s.is_mapped(),
            Matrix::F16(s) => s.is_mapped(),
            Matrix::Bf16(s) => s.is_mapped(),
            Matrix::I8 { values, .. } => values.is_mapped(),
            Matrix::E4m3 { values, .. } => values.is_mapped(),
        }
    }

    /// True where hidden states may have type `dtype`: any float type. Whether a backend has a matmul for the
    /// two types is up to [`Backend::check`](crate::backend::Backend::check).
    pub fn takes(&self, dtype: DType) -> bool {
        dtype.is_float()
    }
}

fn beyond(vocab: &Range<usize>, vocab_size: usize) -> Error {
    Error::shape(
        "shard",
        format!("vocabulary ids within 0..{vocab_size}"),
        format!("{}..{}", vocab.start, vocab.end),
        "cut shards with layout::shard_range",
    )
}

/// Index of the first value whose magnitude bits reach those of infinity.
fn first_not_finite<T, B: Ord + Copy + Default>(
    values: &[T],
    magnitude: impl Fn(&T) -> B,
    infinity: B,
) -> Option<usize> {
    let largest = values.iter().fold(B::default(), |largest, v| largest.max(magnitude(v)));
    if largest < infinity { None } else { values.iter().position(|v| magnitude(v) >= infinity) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let shard = |vocab: Range<usize>, hidden, quantization, matrix, bias| {
            HeadShard::new(vocab, 4, hidden, quantization, matrix, bias)
                .map(|_| ())
                .map_err(|e| e.to_string())
        };
        let f32s = |n: usize| Matrix::F32(vec![1.0; n].into());
        let int8 = |scales: Vec<f32>| Matrix::I8 { values: vec![1; 4].into(), scales };
        let half = |v: f32| Matrix::F16(vec![f16::ONE, f16::from_f32(v), f16::ONE, f16::ONE].into());
        let none = Quantization::None;
        assert_eq!(shard(0..2, 2, none, f32s(4), Some(vec![0.0; 2])), Ok(()));
        assert_eq!(shard(2..2, 2, none, f32s(0), None), Ok(()));
        let table = [
            (shard(2..5, 2, none, f32s(6), None), "wanted vocabulary ids within 0..4, got 2..5"),
            (shard(0..2, 2, none, f32s(5), None), "shard weights: wanted 2 x 2 elements, got 5"),
            (shard(0..2, usize::MAX, none, f32s(5), None), "shard weights: wanted 2 x"),
            (shard(0..2, 2, none, f32s(4), Some(vec![0.0])), "shard bias: wanted 2, got 1"),
            (shard(0..2, 2, Quantization::W8a8, f32s(4), None), "wanted none, got w8a8"),
            (
                shard(0..2, 2, none, int8(vec![1.0; 2]), None),
                "wanted w8a8 or w8a16 for int8 weights, got none",
            ),
            (shard(0..2, 2, Quantization::W8a8, int8(vec![1.0]), None), "shard scales: wanted 2, got 1"),
            (
                shard(0..2, 2, Quantization::W8a8, int8(vec![1.0, f32::NAN]), None),
                "shard scales: wanted finite values, got NaN or infinity in vocabulary row 1",
            ),
            (
                shard(1..3, 2, none, half(1e6), None),
                "shard weights: wanted finite values, got NaN or infinity in vocabulary row 1",
            ),
            (
                shard(0..2, 2, none, f32s(4), Some(vec![0.0, f32::INFINITY])),
                "shard bias: wanted finite values, got NaN or infinity in vocabulary row 1",
            ),
        ];
        for (got, want) in table {
            let got = got.unwrap_err();
            assert!(got.contains(want), "got {got}\nwant {want}");
        }
    }
}
