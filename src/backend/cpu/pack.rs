//! Hidden rows -> packed rows: gathered by index, widened (or quantised) once, in the order that the tiles read.

use super::int8::Int8;
use super::isa::{Arith, Isa, Work};
use super::lanes::{Kind, LANES, Lanes, PAIRS, Pairs};
use crate::dtype::DType;
use crate::quantize::quantize_row;
use crate::rows::HiddenRows;
use half::bf16;
use rayon::prelude::*;
use std::ops::Range;

/// Rows of one tile of the inner loop; the last tile may have fewer.
pub(super) const TILE_ROWS: usize = 4;

/// Bytes of packed rows that one pass over the weights works on: they are read again for every few vocabulary
/// ids, and stay in a last-level cache that others use too. (At 16 MiB the time of a row doubles.)
const PASS_BYTES: usize = 4 << 20;
/// Rows of one pass at most: long before that the weights' way from memory is paid.
const PASS_ROWS: usize = 512;

/// Rows that are packed at a time for this hidden size; a multiple of [`TILE_ROWS`].
pub(super) fn pass_rows(hidden: usize) -> usize {
    (PASS_BYTES / 4 / hidden.max(1)).clamp(TILE_ROWS, PASS_ROWS) / TILE_ROWS * TILE_ROWS
}

/// Packed rows: tile after tile, in each tile step after step of k, in each step one vector for each row.
#[derive(Debug)]
pub(super) struct Packed<V> {
    steps: Vec<V>,
    rows: usize,
    per_row: usize,
    /// `[rows]`: scale of each quantised row; empty for float rows.
    pub scales: Vec<f32>,
}

impl<V> Packed<V> {
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Steps of k in each row.
    pub fn per_row(&self) -> usize {
        self.per_row
    }

    /// First row and number of rows of each tile.
    pub fn tiles(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.rows).step_by(TILE_ROWS).map(|row| (row, TILE_ROWS.min(self.rows - row)))
    }

    /// The steps of the tile whose first row is `row`; `M` is its number of rows.
    #[inline(always)]
    pub fn tile<const M: usize>(&self, row: usize) -> &[[V; M]] {
        self.steps[row * self.per_row..][..M * self.per_row].as_chunks().0
    }
}

/// Widens rows `range` to f32.
pub(super) fn float(isa: Isa, rows: &HiddenRows<'_>, range: Range<usize>) -> Packed<Lanes<f32>> {
    let per_row = rows.hidden().div_ceil(LANES);
    let mut steps = vec![Lanes::default(); range.len() * per_row];
    steps.par_chunks_mut((TILE_ROWS * per_row).max(1)).enumerate().for_each(|(tile, steps)| {
        let first = range.start + tile * TILE_ROWS;
        let mut wide = vec![0.0; rows.hidden()];
        let tile_rows = TILE_ROWS.min(range.end - first);
        for r in 0..tile_rows {
            isa.run(WidenRow { bytes: rows.row(first + r), dtype: rows.dtype(), out: &mut wide });
            for (k, chunk) in wide.chunks(LANES).enumerate() {
                steps[k * tile_rows + r].0[..chunk.len()].copy_from_slice(chunk);
            }
        }
    });
    Packed { steps, rows: range.len(), per_row, scales: Vec::new() }
}

/// Rows `range`, which are bf16, as they are.
pub(super) fn bf16(rows: &HiddenRows<'_>, range: Range<usize>) -> Packed<Pairs<bf16>> {
    let per_row = rows.hidden().div_ceil(PAIRS);
    let mut steps = vec![Pairs::default(); range.len() * per_row];
    steps.par_chunks_mut((TILE_ROWS * per_row).max(1)).enumerate().for_each(|(tile, steps)| {
        let first = range.start + tile * TILE_ROWS;
        let tile_rows = TILE_ROWS.min(range.end - first);
        for r in 0..tile_rows {
            for (k, chunk) in rows.row(first + r).chunks(2 * PAIRS).enumerate() {
                for (element, bytes) in steps[k * tile_rows + r].0.iter_mut().zip(chunk.as_chunks::<2>().0) {
                    *element = bf16::from_le_bytes(*bytes);
                }
            }
        }
    });
    Packed { steps, rows: range.len(), per_row, scales: Vec::new() }
}

/// Widens rows `range` to f32 and quantises them (promise 2); the int8 values are kept as int16.
pub(super) fn quantized(isa: Isa, rows: &HiddenRows<'_>, range: Range<usize>) -> Packed<Pairs<i16>> {
    let per_row = rows.hidden().div_ceil(PAIRS);
    let mut steps = vec![Pairs::default(); range.len() * per_row];
    let mut scales = vec![1.0; range.len()];
    let tiles = steps.par_chunks_mut((TILE_ROWS * per_row).max(1));
    tiles.zip(scales.par_chunks_mut(TILE_ROWS)).enumerate().for_each(|(tile, (steps, scales))| {
        let first = range.start + tile * TILE_ROWS;
        let mut wide = vec![0.0; rows.hidden()];
        let mut quantized = vec![0; rows.hidden()];
        let tile_rows = scales.len();
        for (r, scale) in scales.iter_mut().enumerate() {
            isa.run(WidenRow { bytes: rows.row(first + r), dtype: rows.dtype(), out: &mut wide });
            *scale = quantize_row(&wide, &mut quantized);
            for (k, chunk) in quantized.chunks(PAIRS).enumerate() {
                steps[k * tile_rows + r] = Int8::widen_tail(chunk);
            }
        }
    });
    Packed { steps, rows: range.len(), per_row, scales }
}

/// One hidden row to f32, infinities and NaN included.
struct WidenRow<'a> {
    bytes: &'a [u8],
    dtype: DType,
    out: &'a mut [f32],
}

impl Work for WidenRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arith>(self) {
        self.dtype.widen(self.bytes, self.out);
    }
}
