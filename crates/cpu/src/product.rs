//! Chooses the inner loop for a type of rows and a format of weights, and calls it.

use crate::BLOCK;
use crate::amx::emulated::Emulated;
use crate::amx::{self, PackedTiles, TileMatmul};
use crate::bf16_dot::{Bf16, Bf16E4m3, Bf16Int8};
use crate::block::{BlockScratch, Matmul, WeightRows};
use crate::convert::RowType;
use crate::float::{Float, FloatE4m3, FloatInt8};
use crate::int8::Int8;
use crate::int8_dot::{Int8Dot, Offset, RowSums};
use crate::isa::Isa;
use crate::lanes::{BYTE, HALF, Operands, WIDE};
use crate::pack::{self, Layout, Packed, Quantized};
use bytemuck::cast_slice;
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// Bytes of packed rows that stay in the L2 cache of a processor with tiles (2 MiB), beside weights and sums.
const CACHED_BYTES: usize = 1 << 20;

/// How weights are stored, and what is done with hidden rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Float weights of the rows' type.
    Float,
    /// Float weights of another type than the rows': both are widened to f32, which is exact.
    Mixed,
    /// int8 weights; rows are quantised.
    W8a8,
    /// int8 or E4M3 weights; rows stay as they are.
    W8a16,
}

/// Weights `[ids, hidden]` as they are stored.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
    I8(&'a [i8]),
    /// Codes of [`e4m3`](crate::e4m3).
    E4m3(&'a [u8]),
}

/// Hidden rows, each of which may lie anywhere.
#[derive(Clone, Copy)]
pub struct HiddenRowsRef<'a> {
    pub dtype: RowType,
    /// Elements of a row.
    pub hidden: usize,
    /// The bytes of row `i`, little-endian.
    pub row: &'a (dyn Fn(usize) -> &'a [u8] + Sync),
}

/// Rows packed for one inner loop. The memory is reused from one packing to the next.
#[derive(Debug)]
pub struct PackedRows {
    isa: Isa,
    packed: Packed,
    /// The rows packed for AMX tiles, in place of `packed`.
    tiles: PackedTiles,
    hidden: usize,
    inner: Inner,
    /// The quantised rows; none where rows are not quantised.
    quantized: Quantized,
}

/// The inner loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inner {
    Float,
    Bf16,
    Int8,
    /// For rows that are packed with an offset of 128.
    Int8Dot,
    /// For rows that are packed for AMX tiles; so is `Int8Tiles`.
    Bf16Tiles,
    Int8Tiles,
}

impl PackedRows {
    /// No rows.
    pub fn new(isa: Isa) -> PackedRows {
        let quantized = Quantized::default();
        let (packed, tiles) = (Packed::empty(), PackedTiles::empty());
        PackedRows { isa, packed, tiles, hidden: 0, inner: Inner::Float, quantized }
    }

    /// The loop for rows of this type and weights of this format, and how rows are packed for it.
    fn inner(&self, format: Format, dtype: RowType, hidden: usize) -> (Inner, Layout) {
        // Elements of a weight row that an inner loop reads at a time.
        let step = |wide| if matches!(format, Format::Float | Format::Mixed) { wide } else { BYTE };
        let tiles = self.isa.has_tiles();
        match format {
            // Tiles have a layout of their own.
            _ if tiles && self.isa.multiplies_bf16(format, Some(dtype)) => (Inner::Bf16Tiles, Layout::NONE),
            Format::W8a8 if tiles => (Inner::Int8Tiles, Layout::NONE),
            _ if self.isa.multiplies_bf16(format, Some(dtype)) => {
                (Inner::Bf16, Layout::bf16(hidden, step(HALF)))
            }
            Format::W8a8 if self.isa.multiplies_bytes() => (Inner::Int8Dot, Layout::bytes(hidden)),
            Format::W8a8 => (Inner::Int8, Layout::int16(hidden)),
            Format::Float | Format::Mixed | Format::W8a16 => {
                (Inner::Float, Layout::float(hidden, step(WIDE)))
            }
        }
    }

    /// Makes room for `rows` rows, so that packing up to as many allocates nothing.
    pub fn reserve(&mut self, format: Format, dtype: RowType, hidden: usize, rows: usize) {
        let (inner, layout) = self.inner(format, dtype, hidden);
        match inner {
            Inner::Bf16Tiles => self.tiles.reserve(rows, 2 * hidden),
            Inner::Int8Tiles => self.tiles.reserve(rows, hidden),
            _ => self.packed.reserve(layout, rows),
        }
        if matches!(inner, Inner::Int8 | Inner::Int8Dot | Inner::Int8Tiles) {
            self.quantized.reserve(rows, hidden);
        }
    }

    /// Packs rows `range` for weights of `format`, on the threads of the current pool.
    pub fn pack(&mut self, rows: &HiddenRowsRef<'_>, format: Format, range: Range<usize>) {
        let (inner, layout) = self.inner(format, rows.dtype, rows.hidden);
        (self.inner, self.hidden) = (inner, rows.hidden);
        self.quantized.clear();
        let (isa, packed, tiles) = (self.isa, &mut self.packed, &mut self.tiles);
        match inner {
            Inner::Float => pack::float(packed, isa, layout, rows, range),
            Inner::Bf16 => pack::bf16(packed, isa, layout, rows, range),
            Inner::Int8 => {
                self.quantized.quantize(isa, rows, range);
                pack::quantized(packed, isa, layout, &self.quantized);
            }
            Inner::Int8Dot => {
                self.quantized.quantize(isa, rows, range);
                pack::quantized_bytes(packed, isa, layout, &self.quantized);
            }
            Inner::Bf16Tiles => {
                tiles.pack(range.len(), 2 * rows.hidden, |row| (rows.row)(range.start + row));
            }
            Inner::Int8Tiles => {
                let count = range.len();
                self.quantized.quantize(isa, rows, range);
                tiles.pack(count, rows.hidden, |row| cast_slice(self.quantized.row(row)));
            }
        }
    }

    /// The scale of each row; empty where rows are not quantised.
    pub fn scales(&self) -> &[f32] {
        self.quantized.scales()
    }

    /// The most blocks of [`BLOCK`] ids that one call of [`multiply`](Self::multiply) takes. Rows that fill
    /// the L2 cache are read from beyond it, tile by tile; several blocks per call then share one read.
    pub fn blocks_at_once(&self) -> usize {
        let tiles = matches!(self.inner, Inner::Bf16Tiles | Inner::Int8Tiles);
        let larger = tiles && self.tiles.bytes().len() > CACHED_BYTES;
        if larger { Self::most_blocks_at_once(self.isa, self.tiles.rows()) } else { 1 }
    }

    /// The most that `blocks_at_once` can be for `rows` rows, whatever the hidden
    /// size.
    pub fn most_blocks_at_once(isa: Isa, rows: usize) -> usize {
        if isa.has_tiles() { amx::blocks_at_once(rows) } else { 1 }
    }

    /// Computes `logits[r * BLOCK + v] = rows[r] · weights[v]` for every row and the first `ids` rows of
    /// `weights`; products of int8 and E4M3 weights are not scaled yet. There are at most [`BLOCK`] ids, or
    /// those of several blocks (`blocks_at_once`); each block has logits `[rows,
    /// BLOCK]` of its own. Columns of `logits` beyond the ids are meaningless. Weights behind the `ids` rows
    /// are prefetched for the next call. `sums` `[ids]` are [`weight_sums`], where they are needed.
    ///
    /// # Panics
    /// Where the rows were packed for another format of weights.
    pub fn multiply(
        &self,
        weights: Weights<'_>,
        ids: usize,
        sums: &[i32],
        logits: &mut [f32],
        scratch: &mut BlockScratch,
    ) {
        match (self.inner, weights) {
            (Inner::Float, Weights::F32(w)) => self.run::<WIDE, 1, Float<f32>>(w, ids, logits, scratch),
            (Inner::Float, Weights::F16(w)) => self.run::<WIDE, 1, Float<f16>>(w, ids, logits, scratch),
            (Inner::Float, Weights::Bf16(w)) => self.run::<WIDE, 1, Float<bf16>>(w, ids, logits, scratch),
            (Inner::Float, Weights::I8(w)) => self.run::<BYTE, 4, FloatInt8>(w, ids, logits, scratch),
            (Inner::Float, Weights::E4m3(w)) => self.run::<BYTE, 4, FloatE4m3>(w, ids, logits, scratch),
            (Inner::Bf16, Weights::Bf16(w)) => self.run::<HALF, 1, Bf16>(w, ids, logits, scratch),
            (Inner::Bf16, Weights::I8(w)) => self.run::<BYTE, 2, Bf16Int8>(w, ids, logits, scratch),
            (Inner::Bf16, Weights::E4m3(w)) => self.run::<BYTE, 2, Bf16E4m3>(w, ids, logits, scratch),
            (Inner::Int8, Weights::I8(w)) => self.run::<BYTE, 2, Int8>(w, ids, logits, scratch),
            (Inner::Int8Dot, Weights::I8(w)) => {
                self.run::<BYTE, 1, Int8Dot>(w, ids, logits, scratch);
                self.isa.run(Offset { logits, weights: sums });
            }
            (Inner::Bf16Tiles, Weights::Bf16(w)) => {
                self.tiles(amx::AmxOperands::Bf16, cast_slice(w), 2, ids, logits, scratch);
            }
            (Inner::Bf16Tiles, Weights::I8(w)) => {
                self.tiles(amx::AmxOperands::Int8ToBf16, cast_slice(w), 1, ids, logits, scratch);
            }
            (Inner::Bf16Tiles, Weights::E4m3(w)) => {
                self.tiles(amx::AmxOperands::E4m3ToBf16, w, 1, ids, logits, scratch);
            }
            (Inner::Int8Tiles, Weights::I8(w)) => {
                self.tiles(amx::AmxOperands::Int8, cast_slice(w), 1, ids, logits, scratch);
            }
            (inner, _) => panic!("the rows were packed for weights of another format ({inner:?})"),
        }
    }

    fn run<const S: usize, const G: usize, K: Operands<S, G>>(
        &self,
        weights: &[K::Weight],
        ids: usize,
        logits: &mut [f32],
        scratch: &mut BlockScratch,
    ) {
        let weights = WeightRows { weights, hidden: self.hidden, ids };
        Matmul { rows: &self.packed, weights, logits, scratch }.run::<S, G, K>(self.isa);
    }
}

impl PackedRows {
    /// `multiply` by tiles, for weights of `size` bytes each.
    fn tiles(
        &self,
        kind: amx::AmxOperands,
        weights: &[u8],
        size: usize,
        ids: usize,
        logits: &mut [f32],
        scratch: &mut BlockScratch,
    ) {
        let (row_bytes, scratch) = (self.hidden * size, &mut scratch.tiles);
        // A last block that is not whole is a call of its own.
        let whole = if ids > BLOCK { ids / BLOCK * BLOCK } else { ids };
        let (logits, last) = logits.split_at_mut(self.tiles.rows() * whole.next_multiple_of(BLOCK));
        let rest = &weights[whole * row_bytes..];
        for (weights, ids, logits) in [(weights, whole, logits), (rest, ids - whole, last)] {
            let (rows, scratch) = (&self.tiles, &mut *scratch);
            let matmul = TileMatmul { kind, rows, weights, row_bytes, ids, logits, scratch };
            match self.isa {
                #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                Isa::Amx => {
                    assert!(self.isa.is_available(), "this machine does not have {}", self.isa);
                    matmul.run::<amx::hardware::Hardware>(self.isa);
                }
                Isa::EmulatedAmx => matmul.run::<Emulated>(self.isa),
                isa => unreachable!("{isa} has no tiles"),
            }
        }
    }
}

/// The sums of int8 weights `[ids, hidden]` over `hidden`, which [`PackedRows::multiply`] needs where
/// [`Isa::multiplies_bytes`]. Runs on the threads of the current pool.
pub fn weight_sums(isa: Isa, weights: &[i8], hidden: usize) -> Vec<i32> {
    let Some(ids) = weights.len().checked_div(hidden) else { return Vec::new() };
    let mut sums = vec![0; ids];
    let blocks = weights.par_chunks(BLOCK * hidden).zip(sums.par_chunks_mut(BLOCK));
    blocks.for_each(|(weights, sums)| isa.run(RowSums { weights, hidden, sums }));
    sums
}
