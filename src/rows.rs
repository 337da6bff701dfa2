//! Views of hidden rows, the selection of rows from them, and how many rows each rank brings. All shape
//! checks of rows are here.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::memory::{Memory, Span};

/// Hidden states `[rows, hidden]`, row-major, little-endian, in host or device memory, and which of their
/// rows are wanted (the output rows).
///
/// Without a selection these are all rows, in order. With a selection (`logits_indices`), output row `i` is
/// row `selection[i]`: unordered and repeated rows are legal, and so is an empty selection. Indices in device
/// memory are checked there: an index that is not a row gives its output row the status `BadInput`.
#[derive(Debug, Clone, Copy)]
pub struct HiddenRows<'a> {
    data: Span<'a>,
    dtype: DType,
    rows: usize,
    hidden: usize,
    /// Bytes from one row to the next.
    stride: usize,
    selection: Option<Selection<'a>>,
}

/// Indices of the selected rows, i32 or i64.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    data: Span<'a>,
    /// Bytes of an index: 4 or 8.
    size: usize,
}

impl<'a> Selection<'a> {
    /// How many rows are selected.
    pub fn len(&self) -> usize {
        self.data.len() / self.size
    }

    /// Whether no row is selected.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// The memory of the indices.
    pub fn data(&self) -> Span<'a> {
        self.data
    }

    /// Bytes of an index: 4 or 8.
    pub fn index_bytes(&self) -> usize {
        self.size
    }

    /// Index `i` of the selection.
    ///
    /// # Panics
    /// When `i >= self.len()`, and in device memory.
    pub fn get(&self, i: usize) -> i64 {
        let bytes = self.data.as_host().expect("indices in host memory");
        let bytes = &bytes[i * self.size..][..self.size];
        match bytes.try_into() {
            Ok(wide) => i64::from_le_bytes(wide),
            Err(_) => i64::from(i32::from_le_bytes(bytes.try_into().expect("four bytes"))),
        }
    }
}

impl<'a> HiddenRows<'a> {
    /// A view of `bytes` as `[rows, hidden]` of `dtype` (f32, f16 or bf16).
    ///
    /// # Errors
    /// When `bytes` does not hold exactly `rows * hidden` elements, or `dtype` is int8.
    pub fn new(bytes: &'a [u8], dtype: DType, rows: usize, hidden: usize) -> Result<Self> {
        check_float(dtype)?;
        let wanted = rows.checked_mul(hidden).and_then(|n| n.checked_mul(dtype.size()));
        if wanted != Some(bytes.len()) {
            return Err(Error::shape(
                "hidden_states",
                match wanted {
                    Some(wanted) => format!("[{rows}, {hidden}] {dtype}, {wanted} bytes"),
                    None => format!("[{rows}, {hidden}] {dtype}, more bytes than can exist"),
                },
                format!("{} bytes", bytes.len()),
                "pass whole rows, contiguous; or say how far apart they are (HiddenRows::strided)",
            ));
        }
        let (data, stride) = (Span::host(bytes), hidden * dtype.size());
        Ok(HiddenRows { data, dtype, rows, hidden, stride, selection: None })
    }

    /// A view of `data`, in host or device memory, as `[rows, hidden]` of `dtype`, with `stride` bytes from
    /// one row to the next.
    ///
    /// # Errors
    /// `Shape` where the stride is shorter than a row or not a multiple of an element, where `data` ends
    /// before the last row does, or is not aligned to its elements; `Dtype` for int8.
    pub fn strided(data: Span<'a>, dtype: DType, rows: usize, hidden: usize, stride: usize) -> Result<Self> {
        check_float(dtype)?;
        let what = "hidden_states";
        let row_bytes = hidden.checked_mul(dtype.size());
        if row_bytes.is_none_or(|row| stride < row) || !stride.is_multiple_of(dtype.size()) {
            let wanted = format!("at least {hidden} elements of {dtype} from row to row, whole ones");
            let fix = "give the stride in bytes";
            return Err(Error::shape("stride of hidden_states", wanted, format!("{stride} bytes"), fix));
        }
        let row_bytes = row_bytes.unwrap_or_default();
        let wanted = match rows.checked_sub(1) {
            None => Some(0),
            Some(before) => before.checked_mul(stride).and_then(|bytes| bytes.checked_add(row_bytes)),
        };
        if wanted.is_none_or(|wanted| wanted > data.len()) {
            let wanted = format!("[{rows}, {hidden}] {dtype}, {stride} bytes from row to row");
            return Err(Error::shape(what, wanted, format!("{} bytes", data.len()), "pass whole rows"));
        }
        data.check_aligned(what, dtype.size())?;
        Ok(HiddenRows { data, dtype, rows, hidden, stride, selection: None })
    }

    /// As `HiddenRows::new`, from f32 values (on little-endian machines).
    ///
    /// # Errors
    /// When `values` does not hold exactly `rows * hidden` elements.
    pub fn from_f32(values: &'a [f32], rows: usize, hidden: usize) -> Result<Self> {
        Self::new(bytemuck::cast_slice(values), DType::F32, rows, hidden)
    }

    /// No rows: what an idle rank brings.
    pub fn none(dtype: DType, hidden: usize) -> Self {
        let stride = hidden * dtype.size();
        HiddenRows { data: Span::EMPTY, dtype, rows: 0, hidden, stride, selection: None }
    }

    /// Output row `i` becomes row `selection[i]` of this view.
    ///
    /// # Errors
    /// [`Error::Index`] for the first index that is not a row.
    pub fn select(self, selection: &'a [usize]) -> Result<Self> {
        let limit = self.rows;
        if let Some(position) = selection.iter().position(|&row| row >= limit) {
            let index = i64::try_from(selection[position]).unwrap_or(i64::MAX);
            return Err(Error::Index { what: "logits_indices".into(), position, index, limit });
        }
        Ok(self.with_selection(Span::host(selection), size_of::<usize>()))
    }

    /// [`HiddenRows::select`] by i64 indices.
    ///
    /// # Errors
    /// As `HiddenRows::select`.
    pub fn select_i64(self, selection: &'a [i64]) -> Result<Self> {
        check_indices(selection.iter().copied(), self.rows)?;
        Ok(self.with_selection(Span::host(selection), 8))
    }

    /// [`HiddenRows::select`] by i32 indices.
    ///
    /// # Errors
    /// As `HiddenRows::select`.
    pub fn select_i32(self, selection: &'a [i32]) -> Result<Self> {
        check_indices(selection.iter().map(|&index| i64::from(index)), self.rows)?;
        Ok(self.with_selection(Span::host(selection), 4))
    }

    /// [`HiddenRows::select`] by indices of 4 (i32) or 8 (i64) bytes, in the same memory as the rows.
    ///
    /// # Errors
    /// As `HiddenRows::select` for indices in host memory; those on a device are checked there. `Shape`
    /// where they lie in another memory than the rows, or the span does not hold whole indices.
    pub fn select_span(self, selection: Span<'a>, index_bytes: usize) -> Result<Self> {
        let what = "logits_indices";
        selection.check_memory(what, self.data.memory())?;
        match index_bytes {
            4 if selection.memory() == Memory::Host => self.select_i32(selection.host_elements(what)?),
            8 if selection.memory() == Memory::Host => self.select_i64(selection.host_elements(what)?),
            4 | 8 => {
                selection.check_aligned(what, index_bytes)?;
                if !selection.len().is_multiple_of(index_bytes) {
                    let (wanted, got) = (format!("whole numbers of {index_bytes} bytes"), selection.len());
                    return Err(Error::shape(
                        what,
                        wanted,
                        format!("{got} bytes"),
                        "pass all of their bytes",
                    ));
                }
                Ok(self.with_selection(selection, index_bytes))
            }
            other => Err(Error::shape(what, "indices of 4 or 8 bytes", other, "pass i32 or i64")),
        }
    }

    fn with_selection(mut self, data: Span<'a>, size: usize) -> Self {
        self.selection = Some(Selection { data, size });
        self
    }

    /// Output rows: the length of the selection, or all rows.
    pub fn len(&self) -> usize {
        self.selection.map_or(self.rows, |selection| selection.len())
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

    /// Bytes from one row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Where the rows lie.
    pub fn memory(&self) -> Memory {
        self.data.memory()
    }

    /// The memory and number of all rows that were given: what a selection picks from.
    pub fn source(&self) -> (Span<'a>, usize) {
        (self.data, self.rows)
    }

    /// Which rows of [`HiddenRows::source`] are wanted; `None`: all of them, in order.
    pub fn selection(&self) -> Option<Selection<'a>> {
        self.selection
    }

    /// The bytes of all output rows, where they already lie one after the other.
    pub fn contiguous(&self) -> Option<Span<'a>> {
        let whole = self.selection.is_none() && (self.stride == self.row_bytes() || self.rows <= 1);
        whole.then(|| self.data.part(0..self.rows * self.row_bytes()))
    }

    /// A view of the output rows `range` alone.
    ///
    /// # Panics
    /// When the range ends beyond [`HiddenRows::len`].
    #[must_use]
    pub fn range(mut self, range: std::ops::Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {} rows", self.len());
        match &mut self.selection {
            Some(Selection { data, size }) => *data = data.part(range.start * *size..range.end * *size),
            None if range.is_empty() => (self.data, self.rows) = (self.data.part(0..0), 0),
            None => {
                let end = (range.end - 1) * self.stride + self.row_bytes();
                self.data = self.data.part(range.start * self.stride..end);
                self.rows = range.len();
            }
        }
        self
    }

    /// Copies the output rows, in order, to the beginning of `out`.
    ///
    /// # Panics
    /// When `out` is too small, and in device memory.
    pub fn copy_into(&self, out: &mut [u8]) {
        let size = self.row_bytes();
        for i in 0..self.len() {
            out[i * size..(i + 1) * size].copy_from_slice(self.row(i));
        }
    }

    /// The bytes of output row `i`.
    ///
    /// # Panics
    /// When `i >= self.len()`, and in device memory.
    pub fn row(&self, i: usize) -> &'a [u8] {
        let row = self.selection.map_or(i, |selection| selection.get(i) as usize);
        let bytes = self.data.as_host().expect("rows in host memory");
        &bytes[row * self.stride..][..self.row_bytes()]
    }
}

fn check_float(dtype: DType) -> Result<()> {
    if dtype.is_float() {
        return Ok(());
    }
    let fix = "pass the hidden states unquantised; w8a8 heads quantise them themselves";
    Err(Error::dtype("hidden_states", "f32, f16 or bf16", dtype, fix))
}

fn check_indices(mut indices: impl Iterator<Item = i64>, limit: usize) -> Result<()> {
    let mut position = 0;
    let bad = indices.find(|&index| {
        let legal = usize::try_from(index).is_ok_and(|row| row < limit);
        position += usize::from(legal);
        !legal
    });
    match bad {
        None => Ok(()),
        Some(index) => Err(Error::Index { what: "logits_indices".into(), position, index, limit }),
    }
}

/// Checks and converts row indices that come from a file or a foreign interface as i64.
///
/// # Errors
/// [`Error::Index`] naming `what`, the position and the value of the first index that is not in `0..rows`.
pub fn row_numbers(what: &str, indices: &[i64], rows: usize) -> Result<Vec<usize>> {
    let number = |(position, &index): (usize, &i64)| match usize::try_from(index) {
        Ok(row) if row < rows => Ok(row),
        _ => Err(Error::Index { what: what.into(), position, index, limit: rows }),
    };
    indices.iter().enumerate().map(number).collect()
}

/// How many output rows each replica of a group brings to a step. With tp = 1 a replica is one rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowCounts {
    /// Every replica's rows are known, in group order; 0 is legal.
    Exact(Vec<usize>),
    /// A static (padded) shape: every replica sends `max` rows. Of those of the caller `mine` are real, the
    /// others are padding. Saves the exchange of headers, and a CUDA graph can replay it.
    Capacity { max: usize, mine: usize },
    /// Only the caller's number of rows is known; the step begins with an exchange of counts.
    Discover { mine: usize },
}

impl RowCounts {
    /// Every replica's rows, in group order.
    pub fn exact(counts: &[usize]) -> Self {
        RowCounts::Exact(counts.to_vec())
    }

    /// `mine` rows in a static shape of `max`.
    pub fn capacity(max: usize, mine: usize) -> Self {
        RowCounts::Capacity { max, mine }
    }

    /// `mine` rows; the other replicas' numbers are not known.
    pub fn discover(mine: usize) -> Self {
        RowCounts::Discover { mine }
    }

    /// The number of the caller's own rows, after checking the counts against the group.
    ///
    /// # Errors
    /// `Shape` where an exact list has another length than the group has replicas, or `mine` is above `max`.
    pub(crate) fn own(&self, replica: usize, replicas: usize) -> Result<usize> {
        match self {
            RowCounts::Exact(counts) if counts.len() != replicas => Err(Error::shape(
                "exact row counts",
                format!("{replicas} entries, one per replica of the group"),
                if counts.len() == 1 { "1 entry".to_string() } else { format!("{} entries", counts.len()) },
                "list every replica's rows, idle ones as 0",
            )),
            RowCounts::Exact(counts) => Ok(counts[replica]),
            RowCounts::Capacity { max, mine } if mine > max => Err(Error::shape(
                "capacity row counts",
                format!("at most {max} rows"),
                mine,
                "use a larger capacity on every rank",
            )),
            RowCounts::Capacity { mine, .. } | RowCounts::Discover { mine } => Ok(*mine),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections_are_unordered_repeated_and_may_be_empty() {
        let values: Vec<f32> = (0..6).map(|v| v as f32).collect();
        let rows = HiddenRows::from_f32(&values, 3, 2).unwrap();
        assert_eq!((rows.len(), rows.row_bytes()), (3, 8));
        let selected = rows.select(&[2, 0, 2]).unwrap();
        let first = |i| DType::F32.read(selected.row(i), 0);
        assert_eq!([first(0), first(1), first(2)], [4.0, 0.0, 4.0]);
        assert!(rows.select(&[]).unwrap().is_empty());
        assert!(rows.contiguous().is_some() && selected.contiguous().is_none());
    }

    #[test]
    fn bad_rows_name_what_was_wanted() {
        let rows = HiddenRows::from_f32(&[0.0; 6], 3, 2).unwrap();
        let text = rows.select(&[0, 3]).unwrap_err().to_string();
        assert_eq!(
            text,
            "logits_indices: index 3 at position 1 is not a row: wanted 0 to 2, got 3; 3 rows were given: index those"
        );
        let text = row_numbers("logits_indices", &[1, -4], 3).unwrap_err().to_string();
        assert!(text.contains("index -4 at position 1") && text.contains("wanted 0 to 2"), "{text}");
        let text = row_numbers("logits_indices", &[0], 0).unwrap_err().to_string();
        assert!(text.contains("wanted no index, got 0; there are no rows"), "{text}");
        let text = HiddenRows::from_f32(&[0.0; 5], 3, 2).unwrap_err().to_string();
        assert_eq!(
            text,
            "hidden_states: wanted [3, 2] f32, 24 bytes, got 20 bytes; \
             pass whole rows, contiguous; or say how far apart they are (HiddenRows::strided)"
        );
        assert!(HiddenRows::new(&[], DType::I8, 0, 1).is_err());
        assert!(HiddenRows::new(&[], DType::F32, usize::MAX, usize::MAX).is_err());
    }

    #[test]
    fn counts_are_checked_against_the_group() {
        assert_eq!(RowCounts::exact(&[7, 0]).own(1, 2), Ok(0));
        let text = RowCounts::exact(&[7]).own(0, 2).unwrap_err().to_string();
        assert!(text.contains("wanted 2 entries, one per replica of the group, got 1 entry"), "{text}");
        let text = RowCounts::capacity(3, 4).own(0, 2).unwrap_err().to_string();
        assert!(text.contains("wanted at most 3 rows, got 4"), "{text}");
        assert_eq!(RowCounts::discover(9).own(0, 2), Ok(9));
    }
}
