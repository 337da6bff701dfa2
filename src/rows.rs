//! Views of hidden rows and the selection of rows from them; how many rows each rank brings.
//! Every shape check of rows is here.

use crate::dtype::DType;
use crate::error::{Error, Result};

/// Hidden states `[rows, hidden]`, row-major, little-endian, and which of their rows are wanted.
///
/// Without a selection every row is wanted, in order. With one (`logits_indices`), output row `i` is row
/// `selection[i]`: unordered and repeated rows are legal, and so is an empty selection.
#[derive(Debug, Clone, Copy)]
pub struct HiddenRows<'a> {
    bytes: &'a [u8],
    dtype: DType,
    rows: usize,
    hidden: usize,
    selection: Option<&'a [usize]>,
}

impl<'a> HiddenRows<'a> {
    /// A view of `bytes` as `[rows, hidden]` of `dtype` (f32, f16 or bf16).
    ///
    /// # Errors
    /// When `bytes` does not hold exactly `rows * hidden` elements, or `dtype` is int8.
    pub fn new(bytes: &'a [u8], dtype: DType, rows: usize, hidden: usize) -> Result<Self> {
        if dtype == DType::I8 {
            return Err(Error::dtype(
                "hidden_states",
                "f32, f16 or bf16",
                dtype,
                "pass the hidden states unquantised; w8a8 heads quantise them themselves",
            ));
        }
        let wanted = rows.checked_mul(hidden).and_then(|n| n.checked_mul(dtype.size()));
        if wanted != Some(bytes.len()) {
            return Err(Error::shape(
                "hidden_states",
                format!(
                    "[{rows}, {hidden}] {dtype}, {} bytes",
                    rows as u128 * hidden as u128 * dtype.size() as u128
                ),
                format!("{} bytes", bytes.len()),
                "pass whole rows, contiguous",
            ));
        }
        Ok(HiddenRows { bytes, dtype, rows, hidden, selection: None })
    }

    /// The same from f32 values (little-endian machines).
    ///
    /// # Errors
    /// When `values` does not hold exactly `rows * hidden` elements.
    pub fn from_f32(values: &'a [f32], rows: usize, hidden: usize) -> Result<Self> {
        Self::new(bytemuck::cast_slice(values), DType::F32, rows, hidden)
    }

    /// Output row `i` becomes row `selection[i]` of this view.
    ///
    /// # Errors
    /// [`Error::Index`] for the first index that is not a row.
    pub fn select(mut self, selection: &'a [usize]) -> Result<Self> {
        if let Some(position) = selection.iter().position(|&row| row >= self.rows) {
            return Err(Error::Index {
                what: "logits_indices".into(),
                position,
                index: i64::try_from(selection[position]).unwrap_or(i64::MAX),
                limit: self.rows,
            });
        }
        self.selection = Some(selection);
        Ok(self)
    }

    /// Output rows: the length of the selection, or all rows.
    pub fn len(&self) -> usize {
        self.selection.map_or(self.rows, <[usize]>::len)
    }

    /// True when there is no output row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements of one row.
    pub fn hidden(&self) -> usize {
        self.hidden
    }

    /// Type of one element.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.hidden * self.dtype.size()
    }

    /// The bytes of output row `i`.
    ///
    /// # Panics
    /// When `i >= self.len()`.
    pub fn row(&self, i: usize) -> &'a [u8] {
        let row = self.selection.map_or(i, |selection| selection[i]);
        &self.bytes[row * self.row_bytes()..][..self.row_bytes()]
    }
}

/// Checks row numbers as they come from a file or a foreign interface (i64, perhaps negative).
///
/// # Errors
/// [`Error::Index`] naming `what`, the position and the value of the first that is not in `0..rows`.
pub fn row_numbers(what: &str, indices: &[i64], rows: usize) -> Result<Vec<usize>> {
    let number = |(position, &index): (usize, &i64)| match usize::try_from(index) {
        Ok(row) if row < rows => Ok(row),
        _ => Err(Error::Index { what: what.into(), position, index, limit: rows }),
    };
    indices.iter().enumerate().map(number).collect()
}
