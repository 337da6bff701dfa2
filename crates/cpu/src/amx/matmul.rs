//! Packed rows x vocabulary ids -> raw logits, by tiles.
//!
//! Logits are computed in blocks of 32 ids x 32 rows, two tiles of each, with one load per instruction. Where
//! only one tile of rows is left, the other half of a block is unused.
//!
//! A block goes over k in parts, k-blocks. Up to 32 rows, the sums stay in their tiles for the whole of k,
//! and a k-block only decides what is prefetched or widened together. With more rows, all rows are
//! multiplied with a k-block of 32 weight rows before the next k-block, while that k-block is in the caches;
//! the sums of the other rows wait in memory. Rows that do not fit the L2 cache are read from beyond it in
//! each call. Then a call takes several blocks of the vocabulary, and with each k-block goes over all of
//! their ids.
//!
//! While a k-block is multiplied, later ones are made ready, a part at each step ([`Lookahead`]). Weights
//! that are multiplied as stored are prefetched one k-block ahead. Bytes for bf16 rows are prefetched two
//! k-blocks ahead, and widened one k-block ahead into the second of two panels: so the vector units work
//! while the tile unit does.

use super::{Line, PackedTiles, STEP, Shape, TILE, TILE_BYTES, Tiles};
use crate::BLOCK;
use crate::isa::{Arith, Isa, Work, prefetch};
use bytemuck::{Zeroable, cast_slice, cast_slice_mut};
use std::marker::PhantomData;
use std::ops::Range;

/// How weights are stored, and what they are multiplied as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AmxOperands {
    Bf16,
    /// int8 weights with rows that were quantised.
    Int8,
    /// int8 weights widened to bf16, which holds them exactly.
    Int8ToBf16,
    E4m3ToBf16,
}

impl AmxOperands {
    /// Whether weights are widened into a panel of bf16 before they are loaded into tiles.
    fn widens(self) -> bool {
        matches!(self, AmxOperands::Int8ToBf16 | AmxOperands::E4m3ToBf16)
    }

    /// Stored bytes of a weight row that one step of k takes.
    fn step(self) -> usize {
        if self.widens() { STEP / 2 } else { STEP }
    }
}

/// The shape of a block of logits: tiles of ids x tiles of rows.
const ID_TILES: usize = 2;
const ROW_TILES: usize = 2;
/// Ids of a block.
const IDS: usize = ID_TILES * TILE;
/// Lines that hold the sums of a block.
const BLOCK_SUMS: usize = ID_TILES * ROW_TILES * TILE;
/// Steps of k in a k-block. An even number, since 64 bytes of weights that are widened are two steps.
const K_BLOCK_STEPS: usize = 16;
/// Lines of a panel of widened weights: 32 KiB.
const PANEL: usize = K_BLOCK_STEPS * IDS;

/// The most blocks of the vocabulary that a call with `rows` rows takes. With 256 rows the sums of these are
/// 256 KiB.
pub(crate) fn blocks_at_once(rows: usize) -> usize {
    if rows > ROW_TILES * TILE { 4 } else { 1 }
}

/// Memory of one thread, reused from call to call: 64 KiB of widened weights, and 256 bytes of sums for each
/// block of a call and each of its rows, rounded up to 32.
#[derive(Debug, Default)]
pub(crate) struct AmxScratch {
    /// `[groups of ids, sets of rows, 4 tiles, 16 ids]`, each line 16 rows.
    sums: Vec<Line>,
    /// Widened weights `[2, steps of a k-block, ids of a block]`, each line 32 bf16.
    panels: Vec<Line>,
    /// `[ids of a block]`: the end of weight rows, behind their whole steps, padded with zeros.
    tail: Vec<Line>,
}

impl AmxScratch {
    /// Makes room for calls with up to `rows` rows.
    pub fn reserve(&mut self, rows: usize) {
        let ids = blocks_at_once(rows) * BLOCK;
        let blocks = ids.div_ceil(IDS) * rows.div_ceil(ROW_TILES * TILE);
        for (lines, wanted) in
            [(&mut self.sums, blocks * BLOCK_SUMS), (&mut self.panels, 2 * PANEL), (&mut self.tail, IDS)]
        {
            if lines.len() < wanted {
                lines.resize(wanted, Line::zeroed());
            }
        }
    }
}

/// The matmul `logits[r * BLOCK + v] = rows[r] · weights[v]`, for every packed row and the first `ids` rows
/// of `weights`; logits of several blocks lie block after block.
pub(crate) struct TileMatmul<'a> {
    pub kind: AmxOperands,
    pub rows: &'a PackedTiles,
    /// `[ids, row_bytes]`, and the weights that follow them in memory, which are prefetched.
    pub weights: &'a [u8],
    pub row_bytes: usize,
    /// At most [`BLOCK`], or up to [`blocks_at_once`] whole blocks.
    pub ids: usize,
    /// `[blocks, rows, BLOCK]`
    pub logits: &'a mut [f32],
    pub scratch: &'a mut AmxScratch,
}

impl TileMatmul<'_> {
    /// Runs the matmul with the tiles `T`; `isa` is used for the work that is not done by tiles.
    pub fn run<T: Tiles>(self, isa: Isa) {
        if self.rows.rows() == 0 || self.ids == 0 {
            return;
        }
        if self.rows.steps() == 0 {
            return self.logits.fill(0.0);
        }
        let steps = self.row_bytes.div_ceil(self.kind.step());
        assert_eq!(self.rows.steps(), steps, "rows packed for such weights");
        self.scratch.reserve(self.rows.rows());
        let (exact, shape) = (self.kind == AmxOperands::Int8, self.shape());
        let AmxScratch { sums, panels, tail } = &mut *self.scratch;
        let walk = Walk {
            kind: self.kind,
            rows: self.rows,
            weights: self.weights,
            row_bytes: self.row_bytes,
            ids: self.ids,
            shape,
        };
        match self.kind {
            AmxOperands::Bf16 => walk.run_stored::<T, Bf16>(sums, tail),
            AmxOperands::Int8 => walk.run_stored::<T, Int8>(sums, tail),
            AmxOperands::Int8ToBf16 | AmxOperands::E4m3ToBf16 => walk.run_widened::<T, Bf16>(sums, panels),
        }
        isa.run(Deliver { walk: &walk, sums, exact, logits: self.logits });
    }

    /// Fewer than 16 ids make a shorter tile. Otherwise all tiles are whole: the last one repeats some ids of
    /// the one before, so that nothing behind the last id is read.
    fn shape(&self) -> Shape {
        Shape { ids: self.ids.min(TILE), rows: self.rows.tile_rows() }
    }
}

/// The walk over the blocks of a call.
struct Walk<'a> {
    kind: AmxOperands,
    rows: &'a PackedTiles,
    weights: &'a [u8],
    row_bytes: usize,
    ids: usize,
    shape: Shape,
}

impl Walk<'_> {
    /// Number of blocks over the ids.
    fn groups(&self) -> usize {
        self.ids.div_ceil(IDS)
    }

    /// Number of blocks over the rows.
    fn sets(&self) -> usize {
        self.rows.tiles().div_ceil(ROW_TILES)
    }

    /// The first id of tile `i` of a group. Tiles beyond the ids repeat the last tile; their sums are not
    /// used.
    fn first_id(&self, group: usize, i: usize) -> usize {
        ((group * ID_TILES + i) * TILE).min(self.ids - self.shape.ids)
    }

    /// Number of k-blocks.
    fn k_blocks(&self) -> usize {
        self.rows.steps().div_ceil(K_BLOCK_STEPS)
    }

    /// Number of work items: every k-block of every group.
    fn items(&self) -> usize {
        self.k_blocks() * self.groups()
    }

    /// The group and the k-block of work item `item`. Where sums stay in their tiles, it is group after
    /// group; otherwise k-block after k-block, each for all groups, so that the rows' part of the k-block
    /// stays in a cache.
    fn item(&self, item: usize) -> (usize, usize) {
        let k_blocks = self.k_blocks();
        if self.sets() == 1 {
            (item / k_blocks, item % k_blocks)
        } else {
            (item % self.groups(), item / self.groups())
        }
    }

    /// The first step of k-block `k_block`, and the number of its steps.
    fn steps_of(&self, k_block: usize) -> (usize, usize) {
        let first = k_block * K_BLOCK_STEPS;
        (first, K_BLOCK_STEPS.min(self.rows.steps() - first))
    }

    /// The weights of work item `item` to prefetch during `over` steps; behind the last one, those with which
    /// the next call begins.
    fn prefetch(&self, item: usize, over: usize) -> Prefetch {
        let (id, k_block) = match item.checked_sub(self.items()) {
            None => {
                let (group, k_block) = self.item(item);
                (self.first_id(group, 0), k_block)
            }
            Some(n) if self.sets() == 1 => (self.ids, n.min(self.k_blocks() - 1)),
            Some(n) => (self.ids + n * IDS, 0),
        };
        let (first, steps) = self.steps_of(k_block);
        let at = id * self.row_bytes + first * self.kind.step();
        let ids = (IDS, self.row_bytes);
        let lines = ((steps * self.kind.step()).div_ceil(STEP), STEP);
        let along_k = self.rows.tiles() == 1 || self.kind.widens();
        let (outer, inner) = if along_k { (ids, lines) } else { (lines, ids) };
        Prefetch::new(self.weights.as_ptr().wrapping_add(at), outer, inner, over)
    }

    /// Weights that are widened.
    fn run_widened<T: Tiles, D: Dot>(&self, sums: &mut [Line], panels: &mut [Line]) {
        let sums: &mut [u8] = cast_slice_mut(sums);
        let mut tiles = T::configure(self.shape);
        let (mut panel, mut next_panel) = panels[..2 * PANEL].split_at_mut(PANEL);
        self.widening::<T>(0, 1, panel).finish();
        for item in 0..self.items() {
            let (group, k_block) = self.item(item);
            let (first, steps) = self.steps_of(k_block);
            let mut ahead = self.widening::<T>(item + 1, steps * self.sets(), next_panel);
            let w = Operand::lines(panel, IDS * STEP);
            for set in 0..self.sets() {
                self.begin(&mut tiles, sums, group, set, k_block);
                self.multiply::<T, D>(&mut tiles, &w, set, first, steps, &mut ahead);
                self.end(&tiles, sums, group, set, k_block);
            }
            ahead.finish();
            (panel, next_panel) = (next_panel, panel);
        }
    }

    /// Weights that are loaded as stored.
    fn run_stored<T: Tiles, D: Dot>(&self, sums: &mut [Line], tail: &mut [Line]) {
        let sums: &mut [u8] = cast_slice_mut(sums);
        let mut tiles = T::configure(self.shape);
        for item in 0..self.items() {
            let (group, k_block) = self.item(item);
            let (first, steps) = self.steps_of(k_block);
            let mut ahead = self.prefetch(item + 1, steps * self.sets());
            // Whole steps are read from the weights, a partial last one from `tail`.
            let whole = steps.min(self.row_bytes / STEP - first);
            if whole < steps {
                self.copy_tail(group, tail);
            }
            let w = self.weights_of(group, first);
            for set in 0..self.sets() {
                self.begin(&mut tiles, sums, group, set, k_block);
                self.multiply::<T, D>(&mut tiles, &w, set, first, whole, &mut ahead);
                if whole < steps {
                    let w = Operand::lines(tail, 0);
                    self.multiply::<T, D>(&mut tiles, &w, set, first + whole, 1, &mut ahead);
                }
                self.end(&tiles, sums, group, set, k_block);
            }
        }
    }

    /// Where the sums of a group and set are in memory.
    fn sums_at(&self, group: usize, set: usize) -> usize {
        (group * self.sets() + set) * BLOCK_SUMS * STEP
    }

    /// Brings the sums that a k-block is added to into their tiles.
    fn begin<T: Tiles>(&self, tiles: &mut T, sums: &[u8], group: usize, set: usize, k_block: usize) {
        if k_block == 0 {
            clear(tiles);
        } else if self.sets() > 1 {
            load(tiles, sums, self.sums_at(group, set));
        }
    }

    /// Stores the sums, unless they stay in their tiles.
    fn end<T: Tiles>(&self, tiles: &T, sums: &mut [u8], group: usize, set: usize, k_block: usize) {
        if self.sets() > 1 || k_block + 1 == self.k_blocks() {
            store(tiles, sums, self.sums_at(group, set));
        }
    }

    /// Adds `steps` steps of weights `w` and of the rows of a set, from step `first` on, to the sums.
    fn multiply<T: Tiles, D: Dot>(
        &self,
        tiles: &mut T,
        w: &Operand<'_>,
        set: usize,
        first: usize,
        steps: usize,
        ahead: &mut impl Lookahead,
    ) {
        let x = self.rows_of(set, first);
        if self.rows.tiles() - set * ROW_TILES >= ROW_TILES {
            two_by_two::<T, D>(tiles, w, &x, steps, ahead);
        } else {
            two_by_one::<T, D>(tiles, w, &x, steps, ahead);
        }
    }

    /// The weights of a group from step `first` on, as stored.
    fn weights_of(&self, group: usize, first: usize) -> Operand<'_> {
        let first = [0, 1].map(|i| self.first_id(group, i) * self.row_bytes + first * STEP);
        Operand { bytes: self.weights, first, stride: self.row_bytes, step: STEP }
    }

    /// The rows of a set from step `first` on.
    fn rows_of(&self, set: usize, first: usize) -> Operand<'_> {
        let (rows, tile) = (self.rows, set * ROW_TILES);
        Operand {
            bytes: rows.bytes(),
            first: [0, 1].map(|j| ((tile + j) * rows.steps() + first) * rows.step_bytes()),
            stride: 4 * rows.tile_rows(),
            step: rows.step_bytes(),
        }
    }

    /// The weights of work item `item`, if there is one, to widen during `over` steps.
    fn widening<'w, T: Tiles>(&'w self, item: usize, over: usize, panel: &'w mut [Line]) -> Widening<'w, T> {
        let there = item < self.items();
        let (group, k_block) = if there { self.item(item) } else { (0, 0) };
        let rows = if there { ID_TILES * self.shape.ids } else { 0 };
        Widening {
            walk: self,
            group,
            steps: self.steps_of(k_block),
            panel,
            rows: 0..rows,
            rows_per_step: rows.div_ceil(over),
            prefetch: self.prefetch(item + 1, over),
            tiles: PhantomData,
        }
    }

    /// Copies the end of a group's weight rows, behind their whole steps, and pads it with zeros.
    fn copy_tail(&self, group: usize, tail: &mut [Line]) {
        let whole = self.row_bytes / STEP * STEP;
        for i in 0..ID_TILES {
            for row in 0..self.shape.ids {
                let line = &mut tail[i * TILE + row].0;
                let from = (self.first_id(group, i) + row) * self.row_bytes;
                let (left, zeros) = line.split_at_mut(self.row_bytes - whole);
                left.copy_from_slice(&self.weights[from + whole..from + self.row_bytes]);
                zeros.fill(0);
            }
        }
    }
}

/// The instruction that adds products of weights and rows to the sums.
trait Dot {
    fn dot<T: Tiles, const C: usize, const A: usize, const B: usize>(tiles: &mut T);
}

struct Bf16;
struct Int8;

impl Dot for Bf16 {
    #[inline(always)]
    fn dot<T: Tiles, const C: usize, const A: usize, const B: usize>(tiles: &mut T) {
        tiles.dot_bf16::<C, A, B>();
    }
}

impl Dot for Int8 {
    #[inline(always)]
    fn dot<T: Tiles, const C: usize, const A: usize, const B: usize>(tiles: &mut T) {
        tiles.dot_i8::<C, A, B>();
    }
}

/// Where the tiles of an operand lie in memory.
struct Operand<'a> {
    bytes: &'a [u8],
    /// Where each tile's first step begins.
    first: [usize; 2],
    /// Bytes from one row of a tile to the next.
    stride: usize,
    /// Bytes from one step to the next.
    step: usize,
}

impl<'a> Operand<'a> {
    /// An operand whose tiles lie one behind the other.
    fn lines(lines: &'a [Line], step: usize) -> Operand<'a> {
        let first = [0, 1].map(|i| i * TILE_BYTES);
        Operand { bytes: cast_slice(lines), first, stride: STEP, step }
    }

    /// Loads tile `i` at a step into tile register `TO`.
    #[inline(always)]
    fn load<T: Tiles, const TO: usize>(&self, tiles: &mut T, i: usize, step: usize) {
        tiles.load::<TO>(self.bytes, self.first[i] + step * self.step, self.stride);
    }
}

/// What is done for later k-blocks while one is multiplied.
trait Lookahead {
    /// Does the part that belongs to a step.
    fn step(&mut self);
}

/// Weights to prefetch: cache lines in an outer and an inner order, a fixed number at each step.
///
/// Where steps are short (one tile of rows) or weights are widened, the inner order is along k: a processor
/// recognises such a sequence, and reads ahead of it. Else it is that of the tiles, one line of each id.
/// Measured on an Intel Xeon with AMX: the first order is faster with one row, the second one with 28.
struct Prefetch {
    /// The first line of the inner order.
    first: *const u8,
    /// Bytes from one line to the next, in each order.
    outer_bytes: usize,
    inner_bytes: usize,
    /// How many runs of lines an inner order has, and which one is next.
    runs: usize,
    run: usize,
    /// Runs that are left in all.
    left: usize,
    runs_per_step: usize,
}

impl Prefetch {
    /// Lines of a run, which are prefetched together. The last run of an inner order may go beyond it.
    const RUN: usize = 8;

    /// `outer` times `inner` lines from `first` on, in `steps` steps; each order is given as its number of
    /// lines and the bytes between them.
    fn new(first: *const u8, outer: (usize, usize), inner: (usize, usize), steps: usize) -> Prefetch {
        let runs = inner.0.div_ceil(Self::RUN);
        let left = outer.0 * runs;
        let runs_per_step = left.div_ceil(steps);
        Prefetch { first, outer_bytes: outer.1, inner_bytes: inner.1, runs, run: 0, left, runs_per_step }
    }

    /// The first line of the next run.
    #[inline(always)]
    fn next_run(&mut self) -> Option<*const u8> {
        self.left = self.left.checked_sub(1)?;
        let line = self.first.wrapping_add(self.run * Self::RUN * self.inner_bytes);
        self.run += 1;
        if self.run == self.runs {
            (self.run, self.first) = (0, self.first.wrapping_add(self.outer_bytes));
        }
        Some(line)
    }
}

impl Lookahead for Prefetch {
    #[inline(always)]
    fn step(&mut self) {
        for _ in 0..self.runs_per_step {
            let Some(mut line) = self.next_run() else { return };
            for _ in 0..Self::RUN {
                prefetch(line);
                line = line.wrapping_add(self.inner_bytes);
            }
        }
    }
}

/// Weights to widen into a panel, and those of the k-block behind them to prefetch.
struct Widening<'a, T> {
    walk: &'a Walk<'a>,
    group: usize,
    /// The first step, and the number of steps.
    steps: (usize, usize),
    panel: &'a mut [Line],
    /// Weight rows of the group that are left.
    rows: Range<usize>,
    rows_per_step: usize,
    prefetch: Prefetch,
    tiles: PhantomData<T>,
}

impl<T: Tiles> Widening<'_, T> {
    /// Widens the next row.
    fn row(&mut self, row: usize) {
        let Walk { kind, weights, row_bytes, shape, .. } = *self.walk;
        let (i, row) = (row / shape.ids, row % shape.ids);
        let (first, steps) = self.steps;
        let from = (self.walk.first_id(self.group, i) + row) * row_bytes;
        let bytes = first * kind.step()..row_bytes.min((first + steps) * kind.step());
        let bytes = &weights[from + bytes.start..from + bytes.end];
        let panel = &mut self.panel[i * TILE + row..];
        match kind {
            AmxOperands::E4m3ToBf16 => T::widen_e4m3(bytes, panel, 2 * IDS),
            _ => T::widen_i8(bytes, panel, 2 * IDS),
        }
    }

    /// Widens the rows that are left.
    fn finish(mut self) {
        while let Some(row) = self.rows.next() {
            self.row(row);
        }
    }
}

impl<T: Tiles> Lookahead for Widening<'_, T> {
    #[inline(always)]
    fn step(&mut self) {
        self.prefetch.step();
        for _ in 0..self.rows_per_step {
            let Some(row) = self.rows.next() else { return };
            self.row(row);
        }
    }
}

/// 32 ids x two tiles of rows; the sums of ids' tile `i` and rows' tile `j` are in tile register `2 i + j`.
fn two_by_two<T: Tiles, D: Dot>(
    tiles: &mut T,
    w: &Operand<'_>,
    x: &Operand<'_>,
    steps: usize,
    ahead: &mut impl Lookahead,
) {
    for step in 0..steps {
        ahead.step();
        x.load::<T, 6>(tiles, 0, step);
        w.load::<T, 4>(tiles, 0, step);
        D::dot::<T, 0, 4, 6>(tiles);
        x.load::<T, 7>(tiles, 1, step);
        D::dot::<T, 1, 4, 7>(tiles);
        w.load::<T, 5>(tiles, 1, step);
        D::dot::<T, 2, 5, 6>(tiles);
        D::dot::<T, 3, 5, 7>(tiles);
    }
}

/// `two_by_two` where only one tile of rows is left.
fn two_by_one<T: Tiles, D: Dot>(
    tiles: &mut T,
    w: &Operand<'_>,
    x: &Operand<'_>,
    steps: usize,
    ahead: &mut impl Lookahead,
) {
    for step in 0..steps {
        ahead.step();
        x.load::<T, 6>(tiles, 0, step);
        w.load::<T, 4>(tiles, 0, step);
        D::dot::<T, 0, 4, 6>(tiles);
        w.load::<T, 5>(tiles, 1, step);
        D::dot::<T, 2, 5, 6>(tiles);
    }
}

/// Sets the sums to zero.
fn clear<T: Tiles>(tiles: &mut T) {
    tiles.zero::<0>();
    tiles.zero::<1>();
    tiles.zero::<2>();
    tiles.zero::<3>();
}

/// Loads the sums of a block from memory.
fn load<T: Tiles>(tiles: &mut T, sums: &[u8], at: usize) {
    tiles.load::<0>(sums, at, STEP);
    tiles.load::<1>(sums, at + TILE_BYTES, STEP);
    tiles.load::<2>(sums, at + 2 * TILE_BYTES, STEP);
    tiles.load::<3>(sums, at + 3 * TILE_BYTES, STEP);
}

/// Stores the sums of a block to memory.
fn store<T: Tiles>(tiles: &T, sums: &mut [u8], at: usize) {
    tiles.store::<0>(sums, at, STEP);
    tiles.store::<1>(sums, at + TILE_BYTES, STEP);
    tiles.store::<2>(sums, at + 2 * TILE_BYTES, STEP);
    tiles.store::<3>(sums, at + 3 * TILE_BYTES, STEP);
}

/// Transposes sums `[ids, rows]`, tile by tile, to logits `[blocks, rows, BLOCK]`.
struct Deliver<'c, 'a> {
    walk: &'c Walk<'a>,
    /// [`AmxScratch::sums`]
    sums: &'c [Line],
    /// Whether the sums are int32.
    exact: bool,
    logits: &'c mut [f32],
}

impl Work for Deliver<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arith>(self) {
        let Walk { rows, ids, shape, .. } = *self.walk;
        let (groups, sets) = (self.walk.groups(), self.walk.sets());
        for (block, sums) in self.sums.chunks_exact(BLOCK_SUMS).enumerate().take(groups * sets) {
            let (group, set) = (block / sets, block % sets);
            for (tile, sums) in sums.chunks_exact(TILE).enumerate() {
                let (i, j) = (tile / ROW_TILES, set * ROW_TILES + tile % ROW_TILES);
                if (group * ID_TILES + i) * TILE >= ids || j >= rows.tiles() {
                    continue;
                }
                let (id, row) = (self.walk.first_id(group, i), j * shape.rows);
                let (block, id) = (id / BLOCK, id % BLOCK);
                let own = &mut self.logits[(block * rows.rows() + row) * BLOCK..];
                let own = own.chunks_exact_mut(BLOCK).take(shape.rows.min(rows.rows() - row));
                let sums: &[[u32; TILE]] = cast_slice(sums);
                for (r, logits) in own.enumerate() {
                    for (logit, sums) in logits[id..][..shape.ids].iter_mut().zip(sums) {
                        let bits = sums[r];
                        *logit = if self.exact { bits as i32 as f32 } else { f32::from_bits(bits) };
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares with all lines of both orders, for numbers of lines below and above a run's, in one step and
    /// in more steps than there are lines.
    #[test]
    fn every_line_is_prefetched_once_and_in_order() {
        for (outer, inner, steps) in
            [(32, 16, 16), (32, 16, 2), (32, 8, 1), (1, 1, 5), (3, 5, 1), (10, 32, 400)]
        {
            let mut prefetch = Prefetch::new(std::ptr::null(), (outer, 1 << 20), (inner, STEP), steps);
            assert!(prefetch.runs_per_step * steps >= outer * prefetch.runs, "all of it within the steps");
            let runs = std::iter::from_fn(|| prefetch.next_run());
            let got: Vec<usize> = runs.map(|line| line.addr()).collect();
            let of_inner = (0..inner).step_by(Prefetch::RUN);
            let want = (0..outer).flat_map(|o| of_inner.clone().map(move |i| (o << 20) + i * STEP));
            assert!(got.into_iter().eq(want), "{outer} x {inner} lines in {steps} steps");
        }
    }
}
