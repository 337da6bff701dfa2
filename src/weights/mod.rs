//! Checkpoints and synthetic heads -> one rank's shard of the head, in memory or mapped from its file.

mod checkpoint;
mod folder;
mod hf_config;
mod int8_file;
mod load;
#[allow(unsafe_code, reason = "mapped files")]
mod safetensors_file;
#[allow(unsafe_code, reason = "mapped files")]
mod storage;
mod stored;
pub mod synthetic;

pub use checkpoint::{Checkpoint, LoadOptions};
pub use int8_file::WeightError;
pub use load::Progress;
pub use safetensors::Dtype as StoredDtype;
pub use safetensors_file::{FloatMatrix, SafetensorsFile, TensorInfo};
pub use storage::Storage;

use crate::config::Quantization;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::quantize::MAX_INT8_HIDDEN;
use half::{bf16, f16};
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

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
}

impl Matrix {
    /// Type of the stored elements.
    pub fn dtype(&self) -> DType {
        match self {
            Matrix::F32(_) => DType::F32,
            Matrix::F16(_) => DType::F16,
            Matrix::Bf16(_) => DType::Bf16,
            Matrix::I8 { .. } => DType::I8,
        }
    }

    fn len(&self) -> usize {
        match self {
            Matrix::F32(s) => s.len(),
            Matrix::F16(s) => s.len(),
            Matrix::Bf16(s) => s.len(),
            Matrix::I8 { values, .. } => values.len(),
        }
    }
}

/// The part of the LM head that one rank holds: vocabulary ids `vocab` of a `[vocab_size, hidden_size]` head.
#[derive(Debug)]
pub struct HeadShard {
    number: u64,
    vocab: Range<usize>,
    vocab_size: usize,
    hidden_size: usize,
    quantization: Quantization,
    matrix: Matrix,
    bias: Option<Vec<f32>>,
    fingerprint: Option<u64>,
    /// Of int8 weights, `[vocab.len()]`, once a backend asked for them.
    row_sums: OnceLock<Vec<i32>>,
}

impl HeadShard {
    /// Joins the parts of a shard. `bias` `[vocab.len()]` f32 is added to the dequantised logit.
    /// Reads all of it once: weights, scales and bias must be finite.
    ///
    /// # Errors
    /// When the lengths do not fit `vocab` and `hidden_size`, when `quantization` does not fit the
    /// matrix (int8 is `w8a8` or `w8a16`, everything else `none`), when `hidden_size` is above
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
        // The largest magnitude by its bits, as in the loaders: one pass that vectorises; the place only where it matters.
        let first = match &shard.matrix {
            Matrix::F32(w) => first_not_finite(w, |v| v.to_bits() & 0x7fff_ffff, f32::INFINITY.to_bits()),
            Matrix::F16(w) => first_not_finite(w, |v| v.to_bits() & 0x7fff, f16::INFINITY.to_bits()),
            Matrix::Bf16(w) => first_not_finite(w, |v| v.to_bits() & 0x7fff, bf16::INFINITY.to_bits()),
            Matrix::I8 { scales, .. } => {
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

    /// [`HeadShard::new`] for loaders, which have looked at every value already and can name its file.
    pub(crate) fn from_finite(
        vocab: Range<usize>,
        vocab_size: usize,
        hidden_size: usize,
        quantization: Quantization,
        matrix: Matrix,
        bias: Option<Vec<f32>>,
    ) -> Result<Self> {
        if vocab.start > vocab.end || vocab.end > vocab_size {
            return Err(Error::shape(
                "shard",
                format!("vocabulary ids within 0..{vocab_size}"),
                format!("{}..{}", vocab.start, vocab.end),
                "cut shards with layout::shard_range",
            ));
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
        if let Matrix::I8 { scales, .. } = &matrix
            && scales.len() != rows
        {
            return Err(Error::shape("shard scales", rows, scales.len(), "pass one scale per row"));
        }
        if let Some(bias) = &bias
            && bias.len() != rows
        {
            return Err(Error::shape("shard bias", rows, bias.len(), "pass one bias per row"));
        }
        if (matrix.dtype() == DType::I8) != (quantization != Quantization::None) {
            return Err(Error::dtype(
                "quantization",
                if matrix.dtype() == DType::I8 { "w8a8 or w8a16 for int8 weights" } else { "none" },
                quantization,
                "quantise the weights at load, or name the quantisation that they have",
            ));
        }
        if quantization == Quantization::W8a8 && hidden_size > MAX_INT8_HIDDEN {
            return Err(Error::shape(
                "hidden_size of a w8a8 head",
                format!("at most {MAX_INT8_HIDDEN} (int32 accumulators)"),
                hidden_size,
                "use w8a16 or 16-bit weights",
            ));
        }
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let row_sums = OnceLock::new();
        let fingerprint = None;
        Ok(HeadShard {
            number,
            vocab,
            vocab_size,
            hidden_size,
            quantization,
            matrix,
            bias,
            fingerprint,
            row_sums,
        })
    }

    /// Says which checkpoint the shard is of: a number that is the same for all shards of one head, and
    /// another for any other head. Loaders set it; whoever joins the parts of a shard may.
    #[must_use]
    pub fn with_fingerprint(mut self, fingerprint: u64) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }

    /// Which checkpoint the shard is of, where that is known. Ranks of a group compare it when a head is
    /// created.
    pub fn fingerprint(&self) -> Option<u64> {
        self.fingerprint
    }

    /// No other shard of this process has it, nor had it: what a backend keeps of a shard is found by that.
    pub(crate) fn number(&self) -> u64 {
        self.number
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

    /// How int8 weights are multiplied; `None` for the other types.
    pub fn quantization(&self) -> Quantization {
        self.quantization
    }

    /// The weights, row-major `[vocab().len(), hidden_size()]`.
    pub fn matrix(&self) -> &Matrix {
        &self.matrix
    }

    /// The sum of each row of int8 weights, which belongs to every product of bytes with an offset: `sum` works them out, the first
    /// time. It may run more than once where calls come at the same time; none waits for another, as threads of a pool must not.
    pub(crate) fn row_sums(&self, sum: impl FnOnce(&[i8]) -> Vec<i32>) -> &[i32] {
        let Matrix::I8 { values, .. } = &self.matrix else { return &[] };
        if self.row_sums.get().is_none() {
            let sums = sum(values);
            return self.row_sums.get_or_init(|| sums);
        }
        self.row_sums.get().map_or(&[], Vec::as_slice)
    }

    /// `[vocab().len()]`, added to the dequantised logit.
    pub fn bias(&self) -> Option<&[f32]> {
        self.bias.as_deref()
    }

    /// Bytes of weights, scales and bias of this shard.
    pub fn bytes(&self) -> u64 {
        let scales = if let Matrix::I8 { scales, .. } = &self.matrix { 4 * scales.len() as u64 } else { 0 };
        let bias = self.bias.as_ref().map_or(0, |b| 4 * b.len() as u64);
        self.matrix.len() as u64 * self.matrix.dtype().size() as u64 + scales + bias
    }

    /// True where the weights are read from their file's mapping, which must stay as it is
    /// ([`LoadOptions::copy`] takes them out of it).
    pub fn is_mapped(&self) -> bool {
        match &self.matrix {
            Matrix::F32(s) => s.is_mapped(),
            Matrix::F16(s) => s.is_mapped(),
            Matrix::Bf16(s) => s.is_mapped(),
            Matrix::I8 { values, .. } => values.is_mapped(),
        }
    }

    /// True where hidden states of `dtype` can be multiplied with these weights: any float type. (Whether a
    /// backend has a product for the two types, [`Backend::check`](crate::backend::Backend::check) says.)
    pub fn takes(&self, dtype: DType) -> bool {
        dtype != DType::I8
    }
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

    /// Nobody waits for who works the sums out at the same time, and all see those of the first to finish.
    #[test]
    fn row_sums_are_worked_out_by_many_at_once() {
        let matrix = Matrix::I8 { values: vec![1, 2, 3, -4].into(), scales: vec![1.0; 2] };
        let shard = HeadShard::new(0..2, 2, 2, Quantization::W8a8, matrix, None).unwrap();
        let sums = |values: &[i8]| -> Vec<i32> {
            values.chunks(2).map(|row| row.iter().map(|w| i32::from(*w)).sum()).collect()
        };
        let mut inner = None;
        let outer = shard.row_sums(|values| {
            // While these are under way, another thread begins and finishes its own.
            inner = std::thread::scope(|scope| scope.spawn(|| shard.row_sums(sums)).join().ok());
            sums(values)
        });
        assert_eq!(outer, [3, -1]);
        assert!(inner.is_some_and(|inner| std::ptr::eq(inner, outer)));
        assert!(std::ptr::eq(shard.row_sums(|_| unreachable!("they are kept")), outer));
    }

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
