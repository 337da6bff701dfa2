//! Hidden rows -> packed rows: gathered by index, widened (or quantised) once, in the order that the tiles
//! read.

use crate::block::quads;
use crate::convert::RowType;
use crate::isa::{Arith, Isa, Work};
use crate::lanes::{BYTE, Chunk};
use crate::product::Rows;
use crate::quantize::quantize;
use bytemuck::cast_slice_mut;
use rayon::prelude::*;
use std::ops::Range;

/// Chunks of k in a piece, over which all rows go before the next piece: as widened weights of 16 vocabulary
/// ids they are 16 KiB, half of a first-level cache.
pub(crate) const PIECE: usize = 64;

/// Bytes of packed rows that one pass over the weights works on: they are read again for every block of
/// vocabulary ids, and stay in a last-level cache that others use too.
const PASS_BYTES: usize = 8 << 20;
/// Rows of one pass at most: their pieces and their sums, 256 KiB each, stay in a second-level cache.
const PASS_ROWS: usize = 256;
/// Bytes of packed rows of several tiles that weights go to straight: all of them are read again for every
/// eight ids, from a second-level cache where there is room for these weights and for the next ones beside
/// them.
const DIRECT_BYTES: usize = 512 << 10;

/// Rows that are packed at a time for this hidden size.
pub fn pass_rows(hidden: usize) -> usize {
    (PASS_BYTES / 4 / hidden.max(1)).clamp(4, PASS_ROWS)
}

/// Packed rows: tile after tile, in each tile chunk after chunk of k, one for each row. Tiles over panels are
/// cut further: then it is piece after piece of k, and in each piece tile after tile.
#[derive(Debug)]
pub(crate) struct Packed {
    chunks: Vec<Chunk>,
    rows: usize,
    /// Chunks of each row: those of whole steps of k.
    per_row: usize,
    /// Parts of a step of the weights that they are packed for.
    parts: usize,
    tiling: Tiling,
}

impl Packed {
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The chunks of each piece.
    pub fn pieces(&self) -> impl Iterator<Item = Range<usize>> {
        let per_row = self.per_row;
        (0..per_row).step_by(PIECE).map(move |first| first..per_row.min(first + PIECE))
    }

    /// First row and number of rows of each tile.
    pub fn tiles(&self) -> impl ExactSizeIterator<Item = (usize, usize)> {
        tiles(self.rows, self.tiling.tile_rows)
    }

    /// The tiles as runs of one size: first row, rows of a tile and of the run.
    pub fn runs(&self) -> [(usize, usize, usize); 2] {
        let tiles = self.tiles().len().max(1);
        let (rows, larger) = (self.rows / tiles, self.rows % tiles);
        let rows_of_larger = larger * (rows + 1);
        [(0, rows + 1, rows_of_larger), (rows_of_larger, rows, self.rows - rows_of_larger)]
    }

    /// Parts of a step ([`Kind`](crate::lanes::Kind)'s `G`) of the weights that they are packed for.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Quads of weights that go to the tiles straight from memory, or `None` where they go through panels.
    pub fn direct(&self) -> Option<usize> {
        self.tiling.direct
    }

    /// The chunks of a tile, of packed rows that are [`direct`](Self::direct): its first row, and its number
    /// of rows.
    pub fn tile(&self, row: usize, rows: usize) -> &[Chunk] {
        debug_assert!(self.tiling.direct.is_some(), "the pieces of other tiles lie apart");
        &self.chunks[row * self.per_row..][..rows * self.per_row]
    }

    /// The chunks of a piece of tiles from such a row on, so many rows together, of packed rows that are not.
    pub fn piece(&self, piece: &Range<usize>, row: usize, rows: usize) -> &[Chunk] {
        debug_assert!(self.tiling.direct.is_none(), "a tile's pieces lie one behind the other");
        &self.chunks[piece.start * self.rows + row * piece.len()..][..rows * piece.len()]
    }

    /// Rows of `per_row` chunks, for weights of which a step is so many parts; `fill(row, piece, chunks)`
    /// writes a piece of a row over zeros.
    fn new<F>(isa: Isa, rows: usize, per_row: usize, parts: usize, fill: F) -> Packed
    where
        F: Fn(usize, usize, &mut [Chunk]) + Sync,
    {
        let tiling = isa.run(ChooseTiling { rows, per_row, parts });
        let mut chunks = vec![Chunk::default(); rows * per_row];
        let mut rest = &mut chunks[..];
        // A tile that weights go to straight takes the whole of k; tiles over panels take a piece of it in
        // turn.
        for (first, rows) in tiles(rows, if tiling.direct.is_some() { tiling.tile_rows } else { rows }) {
            let together = rest.split_off_mut(..rows * per_row).expect("there are so many chunks");
            together.par_chunks_mut((rows * PIECE).max(1)).enumerate().for_each(|(piece, chunks)| {
                let len = chunks.len() / rows;
                for (row, rows) in tiles(rows, tiling.tile_rows) {
                    let chunks = &mut chunks[row * len..][..rows * len];
                    for r in 0..rows {
                        let mut chunks_of_row = [Chunk::default(); PIECE];
                        fill(first + row + r, piece, &mut chunks_of_row[..len]);
                        for (to, from) in chunks[r..].iter_mut().step_by(rows).zip(&chunks_of_row) {
                            *to = *from;
                        }
                    }
                }
            });
        }
        Packed { chunks, rows, per_row, parts, tiling }
    }
}

/// As few tiles as may be, of about the same size: the larger ones first.
fn tiles(rows: usize, tile_rows: usize) -> impl ExactSizeIterator<Item = (usize, usize)> {
    let tiles = rows.div_ceil(tile_rows.max(1));
    let (each, larger) = (rows / tiles.max(1), rows % tiles.max(1));
    (0..tiles).map(move |tile| (tile * each + tile.min(larger), each + usize::from(tile < larger)))
}

/// How packed rows meet the weights.
#[derive(Debug, Clone, Copy)]
struct Tiling {
    /// Rows of a tile at most.
    tile_rows: usize,
    /// Quads of weights of a tile that weights go to straight.
    direct: Option<usize>,
}

/// Few rows are a tile, or a few, that weights go to straight.
struct ChooseTiling {
    rows: usize,
    per_row: usize,
    parts: usize,
}

impl Work for ChooseTiling {
    type Output = Tiling;

    #[inline(always)]
    fn run<A: Arith>(self) -> Tiling {
        let tile_rows = A::DIRECT_ROWS[self.parts.ilog2() as usize];
        let tiles = if self.parts == 1 { A::DIRECT_TILES } else { 1 };
        let bytes = self.rows * self.per_row * size_of::<Chunk>();
        let direct = self.rows <= tile_rows || (self.rows <= tile_rows * tiles && bytes <= DIRECT_BYTES);
        if !direct {
            return Tiling { tile_rows: A::TILE.1, direct: None };
        }
        // Those of the largest tile: several take the same number.
        let most = self.rows.div_ceil(self.rows.div_ceil(tile_rows).max(1));
        Tiling { tile_rows, direct: Some(quads::<A>(self.parts, most)) }
    }
}

/// Widens rows `range` to f32, for weights that are read `step` at a time.
pub(crate) fn float(isa: Isa, rows: &Rows<'_>, range: Range<usize>, step: usize) -> Packed {
    let (hidden, size) = (rows.hidden, rows.dtype.size());
    Packed::new(isa, range.len(), hidden.next_multiple_of(step) / 4, step / 16, |row, piece, chunks| {
        let out: &mut [f32] = cast_slice_mut(chunks);
        let k = piece * PIECE * 4..hidden.min(piece * PIECE * 4 + out.len());
        let bytes = &(rows.row)(range.start + row)[k.start * size..k.end * size];
        isa.run(WidenRow { bytes, dtype: rows.dtype, out: &mut out[..k.len()] });
    })
}

/// Rows `range`, which are bf16, as they are: little-endian, as the machines are that multiply them so. For
/// weights that are read `step` at a time.
pub(crate) fn bf16(isa: Isa, rows: &Rows<'_>, range: Range<usize>, step: usize) -> Packed {
    Packed::new(isa, range.len(), rows.hidden.next_multiple_of(step) / 8, step / 32, |row, piece, chunks| {
        let out: &mut [u8] = cast_slice_mut(chunks);
        let bytes = &(rows.row)(range.start + row)[piece * PIECE * 16..];
        let bytes = &bytes[..bytes.len().min(out.len())];
        out[..bytes.len()].copy_from_slice(bytes);
    })
}

/// Rows that are widened to f32 and quantised (promise 2).
struct Quantized {
    /// `[rows, hidden]`
    values: Vec<i8>,
    /// `[rows]`
    scales: Vec<f32>,
    hidden: usize,
}

impl Quantized {
    fn new(isa: Isa, rows: &Rows<'_>, range: Range<usize>) -> Quantized {
        let hidden = rows.hidden;
        let mut values = vec![0; range.len() * hidden];
        let mut scales = vec![1.0; range.len()];
        values.par_chunks_mut(hidden.max(1)).zip(&mut scales).enumerate().for_each_init(
            || vec![0.0; hidden],
            |wide, (row, (out, scale))| {
                let bytes = (rows.row)(range.start + row);
                isa.run(WidenRow { bytes, dtype: rows.dtype, out: wide });
                *scale = isa.run(QuantizeRow { values: wide, out });
            },
        );
        Quantized { values, scales, hidden }
    }

    /// The values of a row from `first` on.
    fn rest(&self, row: usize, first: usize) -> &[i8] {
        &self.values[row * self.hidden + first..(row + 1) * self.hidden]
    }
}

/// Rows `range` quantised and offset by 128 to be unsigned; and their scales.
pub(crate) fn quantized_bytes(isa: Isa, rows: &Rows<'_>, range: Range<usize>) -> (Packed, Vec<f32>) {
    let (count, hidden) = (range.len(), rows.hidden);
    let quantized = Quantized::new(isa, rows, range);
    let packed = Packed::new(isa, count, hidden.next_multiple_of(BYTE) / 16, 1, |row, piece, chunks| {
        let out: &mut [u8] = cast_slice_mut(chunks);
        for (out, q) in out.iter_mut().zip(quantized.rest(row, piece * PIECE * 16)) {
            *out = (*q as u8) ^ 0x80; // + 128
        }
    });
    (packed, quantized.scales)
}

/// Rows `range` quantised, the int8 values kept as int16; and their scales.
pub(crate) fn quantized(isa: Isa, rows: &Rows<'_>, range: Range<usize>) -> (Packed, Vec<f32>) {
    let (count, hidden) = (range.len(), rows.hidden);
    let quantized = Quantized::new(isa, rows, range);
    let packed = Packed::new(isa, count, hidden.next_multiple_of(BYTE) / 8, 2, |row, piece, chunks| {
        let out: &mut [i16] = cast_slice_mut(chunks);
        for (out, q) in out.iter_mut().zip(quantized.rest(row, piece * PIECE * 8)) {
            *out = i16::from(*q);
        }
    });
    (packed, quantized.scales)
}

/// One row by the rule of promise 2; IEEE on every instruction set.
struct QuantizeRow<'a> {
    values: &'a [f32],
    out: &'a mut [i8],
}

impl Work for QuantizeRow<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<A: Arith>(self) -> f32 {
        quantize(self.values, self.out)
    }
}

/// One hidden row to f32, infinities and NaN included.
struct WidenRow<'a> {
    bytes: &'a [u8],
    dtype: RowType,
    out: &'a mut [f32],
}

impl Work for WidenRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arith>(self) {
        self.dtype.widen(self.bytes, self.out);
    }
}
