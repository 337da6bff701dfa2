//! Hidden rows -> packed rows: gathered by index, widened or quantised once, in the order in which the tiles
//! read them.

use crate::block::quads;
use crate::convert::RowType;
use crate::isa::{Arith, Isa, Work};
use crate::lanes::{BYTE, Chunk};
use crate::product::HiddenRowsRef;
use crate::quantize::quantize;
use bytemuck::cast_slice_mut;
use rayon::prelude::*;
use std::ops::Range;

/// Chunks of k in a k-block; all rows go over a k-block before the next one. A k-block of widened weights of
/// 16 vocabulary ids has 16 KiB, half of an L1 cache.
pub(crate) const K_BLOCK: usize = 64;

/// Bytes of packed rows of one pass over the weights. They are read again for every block of vocabulary ids,
/// so they must stay in the last-level cache, which is shared with others.
const PASS_BYTES: usize = 8 << 20;
/// The most rows of one pass: their k-blocks and their sums, 256 KiB each, stay in the L2 cache.
const PASS_ROWS: usize = 256;
/// The most bytes of packed rows in several tiles whose weights come straight from memory. All of them are
/// read again for every eight ids, so they must fit the L2 cache beside the weights of these ids and of the
/// next.
const DIRECT_BYTES: usize = 512 << 10;

/// How many rows are packed at a time for this hidden size.
pub fn pass_rows(hidden: usize) -> usize {
    (PASS_BYTES / 4 / hidden.max(1)).clamp(4, PASS_ROWS)
}

/// Packed rows: tile after tile, in each tile chunk after chunk of k, one for each row. For panels, k is
/// first cut into k-blocks: k-block after k-block, and in each k-block tile after tile.
#[derive(Debug)]
pub(crate) struct Packed {
    /// `[rows, per_row]`. May be longer, from larger rows before.
    chunks: Vec<Chunk>,
    rows: usize,
    layout: Layout,
    tiling: Tiling,
}

/// The layout of a packed row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Chunks of each row, padded to whole steps of k.
    per_row: usize,
    /// Parts of a step of the weights that it is packed for.
    parts: usize,
}

impl Layout {
    /// For rows that are packed as AMX tiles instead.
    pub const NONE: Layout = Layout { per_row: 0, parts: 1 };

    /// f32 rows, for weights that are read `step` at a time.
    pub fn float(hidden: usize, step: usize) -> Layout {
        Layout { per_row: hidden.next_multiple_of(step) / 4, parts: step / 16 }
    }

    /// bf16 rows, for weights that are read `step` at a time.
    pub fn bf16(hidden: usize, step: usize) -> Layout {
        Layout { per_row: hidden.next_multiple_of(step) / 8, parts: step / 32 }
    }

    /// Quantised rows that are kept as int16.
    pub fn int16(hidden: usize) -> Layout {
        Layout { per_row: hidden.next_multiple_of(BYTE) / 8, parts: 2 }
    }

    /// Quantised rows that are kept as bytes.
    pub fn bytes(hidden: usize) -> Layout {
        Layout { per_row: hidden.next_multiple_of(BYTE) / 16, parts: 1 }
    }
}

impl Packed {
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The range of chunks of each k-block.
    pub fn k_blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let per_row = self.layout.per_row;
        (0..per_row).step_by(K_BLOCK).map(move |first| first..per_row.min(first + K_BLOCK))
    }

    /// First row and number of rows of each tile.
    pub fn tiles(&self) -> impl ExactSizeIterator<Item = (usize, usize)> {
        tiles(self.rows, self.tiling.tile_rows)
    }

    /// The tiles as runs of equal size: first row, rows of a tile, and rows of the run.
    pub fn runs(&self) -> [(usize, usize, usize); 2] {
        let tiles = self.tiles().len().max(1);
        let (rows, larger) = (self.rows / tiles, self.rows % tiles);
        let rows_of_larger = larger * (rows + 1);
        [(0, rows + 1, rows_of_larger), (rows_of_larger, rows, self.rows - rows_of_larger)]
    }

    /// Parts of a step ([`Operands`](crate::lanes::Operands)'s `G`) of the weights that the rows are packed
    /// for.
    pub fn parts(&self) -> usize {
        self.layout.parts
    }

    /// Quads of weights of a tile, where weights come straight from memory; `None` where they go through
    /// panels.
    pub fn direct(&self) -> Option<usize> {
        self.tiling.direct
    }

    /// The chunks of the tile that begins at row `row` and has `rows` rows. Only where weights come straight
    /// from memory ([`direct`](Self::direct)).
    pub fn tile(&self, row: usize, rows: usize) -> &[Chunk] {
        debug_assert!(self.tiling.direct.is_some(), "the k-blocks of other tiles lie apart");
        &self.chunks[row * self.layout.per_row..][..rows * self.layout.per_row]
    }

    /// The chunks of a k-block, of the tiles from row `row` on that have `rows` rows together. Only where
    /// weights go through panels.
    pub fn k_block(&self, k_block: &Range<usize>, row: usize, rows: usize) -> &[Chunk] {
        debug_assert!(self.tiling.direct.is_none(), "a tile's k-blocks lie one behind the other");
        &self.chunks[k_block.start * self.rows + row * k_block.len()..][..rows * k_block.len()]
    }

    /// No rows, and no memory.
    pub fn empty() -> Packed {
        let tiling = Tiling { tile_rows: 1, direct: None };
        Packed { chunks: Vec::new(), rows: 0, layout: Layout::NONE, tiling }
    }

    /// Makes room for `rows` rows.
    pub fn reserve(&mut self, layout: Layout, rows: usize) {
        let wanted = rows * layout.per_row;
        if wanted > self.chunks.len() {
            self.chunks.resize(wanted, Chunk::default());
        }
    }

    /// Packs `rows` rows in place of those before; `fill(row, k_block, chunks)` writes a k-block of a row to
    /// zeroed chunks.
    fn pack<F>(&mut self, isa: Isa, layout: Layout, rows: usize, fill: F)
    where
        F: Fn(usize, usize, &mut [Chunk]) + Sync,
    {
        let Layout { per_row, parts } = layout;
        let tiling = isa.run(ChooseTiling { rows, per_row, parts });
        self.reserve(layout, rows);
        (self.rows, self.layout, self.tiling) = (rows, layout, tiling);
        let mut rest = &mut self.chunks[..rows * per_row];
        // For weights straight from memory, a tile has the whole of k; for panels, all tiles of a k-block
        // lie together.
        for (first, rows) in tiles(rows, if tiling.direct.is_some() { tiling.tile_rows } else { rows }) {
            let together = rest.split_off_mut(..rows * per_row).expect("there are so many chunks");
            together.par_chunks_mut((rows * K_BLOCK).max(1)).enumerate().for_each(|(k_block, chunks)| {
                let len = chunks.len() / rows;
                for (row, rows) in tiles(rows, tiling.tile_rows) {
                    let chunks = &mut chunks[row * len..][..rows * len];
                    for r in 0..rows {
                        let mut chunks_of_row = [Chunk::default(); K_BLOCK];
                        fill(first + row + r, k_block, &mut chunks_of_row[..len]);
                        for (to, from) in chunks[r..].iter_mut().step_by(rows).zip(&chunks_of_row) {
                            *to = *from;
                        }
                    }
                }
            });
        }
    }
}

/// Cuts rows into as few tiles as possible, of about the same size, the larger ones first.
fn tiles(rows: usize, tile_rows: usize) -> impl ExactSizeIterator<Item = (usize, usize)> {
    let tiles = rows.div_ceil(tile_rows.max(1));
    let (each, larger) = (rows / tiles.max(1), rows % tiles.max(1));
    (0..tiles).map(move |tile| (tile * each + tile.min(larger), each + usize::from(tile < larger)))
}

/// How rows are cut into tiles.
#[derive(Debug, Clone, Copy)]
struct Tiling {
    /// The most rows of a tile.
    tile_rows: usize,
    /// Quads of weights of a tile whose weights come straight from memory; `None`: through panels.
    direct: Option<usize>,
}

/// Chooses the tiling: for one or a few tiles of rows, weights come straight from memory.
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
        // As many as for the largest tile: all tiles take the same number of quads.
        let most = self.rows.div_ceil(self.rows.div_ceil(tile_rows).max(1));
        Tiling { tile_rows, direct: Some(quads::<A>(self.parts, most)) }
    }
}

/// Widens rows `range` to f32.
pub(crate) fn float(
    packed: &mut Packed,
    isa: Isa,
    layout: Layout,
    rows: &HiddenRowsRef<'_>,
    range: Range<usize>,
) {
    let (hidden, size) = (rows.hidden, rows.dtype.size());
    packed.pack(isa, layout, range.len(), |row, k_block, chunks| {
        let out: &mut [f32] = cast_slice_mut(chunks);
        let k = k_block * K_BLOCK * 4..hidden.min(k_block * K_BLOCK * 4 + out.len());
        let bytes = &(rows.row)(range.start + row)[k.start * size..k.end * size];
        isa.run(WidenRow { bytes, dtype: rows.dtype, out: &mut out[..k.len()] });
    });
}

/// Packs rows `range`, which are bf16, unchanged. (Machines that multiply bf16 are little-endian, as the rows
/// are.)
pub(crate) fn bf16(
    packed: &mut Packed,
    isa: Isa,
    layout: Layout,
    rows: &HiddenRowsRef<'_>,
    range: Range<usize>,
) {
    packed.pack(isa, layout, range.len(), |row, k_block, chunks| {
        let out: &mut [u8] = cast_slice_mut(chunks);
        let bytes = &(rows.row)(range.start + row)[k_block * K_BLOCK * 16..];
        let bytes = &bytes[..bytes.len().min(out.len())];
        out[..bytes.len()].copy_from_slice(bytes);
    });
}

/// Rows that are widened to f32 and quantised (promise 2). The memory is reused.
#[derive(Debug, Default)]
pub(crate) struct Quantized {
    /// `[rows, hidden]`
    wide: Vec<f32>,
    /// `[rows, hidden]`
    values: Vec<i8>,
    /// `[rows]`
    scales: Vec<f32>,
    hidden: usize,
}

impl Quantized {
    /// Makes room for `rows` rows.
    pub fn reserve(&mut self, rows: usize, hidden: usize) {
        let elements = rows * hidden;
        if elements > self.values.len() {
            self.wide.resize(elements, 0.0);
            self.values.resize(elements, 0);
        }
        self.scales.reserve(rows.saturating_sub(self.scales.len()));
    }

    /// Quantises rows `range`, in place of those before.
    pub fn quantize(&mut self, isa: Isa, rows: &HiddenRowsRef<'_>, range: Range<usize>) {
        let hidden = rows.hidden;
        self.reserve(range.len(), hidden);
        self.hidden = hidden;
        self.scales.clear();
        self.scales.resize(range.len(), 1.0);
        let values = self.values.par_chunks_mut(hidden.max(1)).zip(self.wide.par_chunks_mut(hidden.max(1)));
        values.zip(&mut self.scales).enumerate().for_each(|(row, ((out, wide), scale))| {
            let bytes = (rows.row)(range.start + row);
            isa.run(WidenRow { bytes, dtype: rows.dtype, out: wide });
            *scale = isa.run(QuantizeRow { values: wide, out });
        });
    }

    /// The scale of each row.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Removes all rows.
    pub fn clear(&mut self) {
        self.scales.clear();
    }

    /// The values of a row.
    pub fn row(&self, row: usize) -> &[i8] {
        self.rest(row, 0)
    }

    /// The values of a row from `first` on.
    fn rest(&self, row: usize, first: usize) -> &[i8] {
        &self.values[row * self.hidden + first..(row + 1) * self.hidden]
    }
}

/// Packs quantised rows as bytes, offset by 128 to be unsigned.
pub(crate) fn quantized_bytes(packed: &mut Packed, isa: Isa, layout: Layout, quantized: &Quantized) {
    packed.pack(isa, layout, quantized.scales.len(), |row, k_block, chunks| {
        let out: &mut [u8] = cast_slice_mut(chunks);
        for (out, q) in out.iter_mut().zip(quantized.rest(row, k_block * K_BLOCK * 16)) {
            *out = (*q as u8) ^ 0x80; // + 128
        }
    });
}

/// Packs quantised rows, their int8 values widened to int16.
pub(crate) fn quantized(packed: &mut Packed, isa: Isa, layout: Layout, quantized: &Quantized) {
    packed.pack(isa, layout, quantized.scales.len(), |row, k_block, chunks| {
        let out: &mut [i16] = cast_slice_mut(chunks);
        for (out, q) in out.iter_mut().zip(quantized.rest(row, k_block * K_BLOCK * 8)) {
            *out = i16::from(*q);
        }
    });
}

/// Quantises one row by the rule of promise 2, with the same IEEE operations on every instruction set.
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

/// Widens one hidden row to f32, infinities and NaN included.
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
