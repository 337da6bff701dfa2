//! Packed rows x vocabulary ids -> raw logits, by tiles.
//!
//! Up to 16 rows are computed in blocks of 64 ids x 16 rows: a tile of rows is loaded once for four tiles of
//! weights. More rows take blocks of 32 ids x 32 rows, two tiles of each, with one load per instruction.
//!
//! Both go over k in blocks, k-blocks. Up to 32 rows, the sums stay in their tiles for the whole of k, and a
//! k-block only decides how far ahead weights are prefetched. With more rows, all rows are multiplied with a
//! k-block of 32 weight rows before the next k-block, while that k-block is in the caches; the sums of the
//! other rows wait in memory. Rows that do not fit the L2 cache are read from beyond it in each call. Then a
//! call takes several blocks of the vocabulary, and with each k-block goes over all of their ids.

use super::{Line, PackedTiles, STEP, Shape, TILE, TILE_BYTES, Tiles};
use crate::BLOCK;
use crate::isa::{Arith, Isa, Work, prefetch};
use bytemuck::{Zeroable, cast_slice, cast_slice_mut};

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

/// The shape of a block of logits: tiles of ids x tiles of rows, four tiles of sums at most.
#[derive(Debug, Clone, Copy)]
struct Form {
    id_tiles: usize,
    row_tiles: usize,
    /// Steps of k in a k-block. An even number; a k-block of widened weights is 32 KiB.
    k_block: usize,
}

const FEW_ROWS: Form = Form { id_tiles: 4, row_tiles: 1, k_block: 8 };
const MORE_ROWS: Form = Form { id_tiles: 2, row_tiles: 2, k_block: 16 };

impl Form {
    fn of(row_tiles: usize) -> Form {
        if row_tiles <= 1 { FEW_ROWS } else { MORE_ROWS }
    }

    /// Ids of a block.
    fn ids(self) -> usize {
        self.id_tiles * TILE
    }

    /// Lines of a k-block of widened weights.
    fn panel(self) -> usize {
        self.k_block * self.ids()
    }
}

/// Lines that hold the sums of a block.
const BLOCK_SUMS: usize = 4 * TILE;

/// The most blocks of the vocabulary that a call with `rows` rows takes. With 256 rows the sums of these are
/// 256 KiB.
pub(crate) fn blocks_at_once(rows: usize) -> usize {
    if rows > MORE_ROWS.row_tiles * TILE { 4 } else { 1 }
}

/// Memory of one thread, reused from call to call: 32 KiB of widened weights, and 256 bytes of sums for each
/// row and block of a call.
#[derive(Debug, Default)]
pub(crate) struct AmxScratch {
    /// `[groups of ids, sets of rows, 4 tiles, 16 ids]`, each line 16 rows.
    sums: Vec<Line>,
    /// Widened weights `[steps of a k-block, ids of a block]`, each line 32 bf16.
    panel: Vec<Line>,
    /// `[ids of a block]`: the end of weight rows, behind their whole steps, padded with zeros.
    tail: Vec<Line>,
}

impl AmxScratch {
    /// Makes room for calls with up to `rows` rows.
    pub fn reserve(&mut self, rows: usize) {
        let form = Form::of(rows.div_ceil(TILE));
        let ids = blocks_at_once(rows) * BLOCK;
        let blocks = ids.div_ceil(form.ids()) * rows.div_ceil(form.row_tiles * TILE);
        for (lines, wanted) in [
            (&mut self.sums, blocks * BLOCK_SUMS),
            (&mut self.panel, FEW_ROWS.panel().max(MORE_ROWS.panel())),
            (&mut self.tail, FEW_ROWS.ids()),
        ] {
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
        let AmxScratch { sums, panel, tail } = &mut *self.scratch;
        let walk = Walk {
            kind: self.kind,
            rows: self.rows,
            weights: self.weights,
            row_bytes: self.row_bytes,
            ids: self.ids,
            shape,
            form: Form::of(self.rows.tiles()),
        };
        if exact {
            walk.run::<T, Int8>(sums, panel, tail);
        } else {
            walk.run::<T, Bf16>(sums, panel, tail);
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
    form: Form,
}

impl Walk<'_> {
    /// Number of blocks over the ids.
    fn groups(&self) -> usize {
        self.ids.div_ceil(self.form.ids())
    }

    /// Number of blocks over the rows.
    fn sets(&self) -> usize {
        self.rows.tiles().div_ceil(self.form.row_tiles)
    }

    /// The first id of tile `i` of a group. Tiles beyond the ids repeat the last tile; their sums are not
    /// used.
    fn first_id(&self, group: usize, i: usize) -> usize {
        ((group * self.form.id_tiles + i) * TILE).min(self.ids - self.shape.ids)
    }

    /// The group and the k-block of work item `item`. Where sums stay in their tiles, it is group after
    /// group; otherwise k-block after k-block, each for all groups, so that the rows' part of the k-block
    /// stays in a cache.
    fn item(&self, item: usize) -> (usize, usize) {
        let k_blocks = self.rows.steps().div_ceil(self.form.k_block);
        if self.sets() == 1 {
            (item / k_blocks, item % k_blocks)
        } else {
            (item % self.groups(), item / self.groups())
        }
    }

    /// The byte of `weights` where work item `item` begins: its k-block of its group's first weight row. For
    /// the item behind the last one, where the ids of the next call begin.
    fn start(&self, item: usize) -> usize {
        let k_blocks = self.rows.steps().div_ceil(self.form.k_block);
        if item == k_blocks * self.groups() {
            return self.ids * self.row_bytes;
        }
        let (group, k_block) = self.item(item);
        self.first_id(group, 0) * self.row_bytes + k_block * self.form.k_block * self.kind.step()
    }

    fn run<T: Tiles, D: Dot>(&self, sums: &mut [Line], panel: &mut [Line], tail: &mut [Line]) {
        let Walk { rows, row_bytes, shape, form, .. } = *self;
        let (groups, sets, k_blocks) = (self.groups(), self.sets(), rows.steps().div_ceil(form.k_block));
        let sums: &mut [u8] = cast_slice_mut(sums);
        let mut tiles = T::configure(shape);
        for item in 0..groups * k_blocks {
            let (group, k_block) = self.item(item);
            let first = k_block * form.k_block;
            let steps = form.k_block.min(rows.steps() - first);
            let next = self.start(item + 1);
            // Whole steps are read from the weights, a partial last one from `tail`. The panel of widened
            // weights is padded already.
            let mut whole = steps;
            if self.kind.widens() {
                self.widen::<T>(group, first, steps, next, panel);
            } else {
                whole = steps.min(row_bytes / STEP - first);
                if whole < steps {
                    self.copy_tail(group, tail);
                }
            }
            let w = self.weights_of(group, first, panel);
            for set in 0..sets {
                let at = (group * sets + set) * BLOCK_SUMS * STEP;
                if k_block == 0 {
                    clear(&mut tiles);
                } else if sets > 1 {
                    load(&mut tiles, sums, at);
                }
                let row_tiles = form.row_tiles.min(rows.tiles() - set * form.row_tiles);
                let multiply = match (form.id_tiles, row_tiles) {
                    (4, _) => four_by_one::<T, D>,
                    (_, 2) => two_by_two::<T, D>,
                    _ => two_by_one::<T, D>,
                };
                multiply(&mut tiles, &w, &self.rows_of(set, first), whole, self.ahead(set, next));
                if whole < steps {
                    let w = Operand::lines(tail, 0);
                    multiply(&mut tiles, &w, &self.rows_of(set, first + whole), 1, Ahead::default());
                }
                if sets > 1 || k_block + 1 == k_blocks {
                    store(&tiles, sums, at);
                }
            }
        }
    }

    /// The weights of a group from step `first` on: as stored, or in the panel, which begins with that step.
    fn weights_of<'w>(&'w self, group: usize, first: usize, panel: &'w [Line]) -> Operand<'w> {
        if self.kind.widens() {
            return Operand::lines(panel, self.form.id_tiles * TILE_BYTES);
        }
        let first = [0, 1, 2, 3].map(|i| self.first_id(group, i) * self.row_bytes + first * STEP);
        Operand { bytes: self.weights, first, stride: self.row_bytes, step: STEP }
    }

    /// The rows of a set from step `first` on.
    fn rows_of(&self, set: usize, first: usize) -> Operand<'_> {
        let (rows, tile) = (self.rows, set * self.form.row_tiles);
        Operand {
            bytes: rows.bytes(),
            first: [0, 1, 2, 3].map(|j| ((tile + j) * rows.steps() + first) * rows.step_bytes()),
            stride: 4 * rows.tile_rows(),
            step: rows.step_bytes(),
        }
    }

    /// What a set prefetches. All sets together prefetch the item that begins at byte `next`, each its share.
    /// (For weights that are widened, `widen` does it.)
    fn ahead(&self, set: usize, next: usize) -> Ahead {
        if self.kind.widens() {
            return Ahead::default();
        }
        let share = self.form.ids().div_ceil(self.sets());
        Ahead {
            line: self.weights.as_ptr().wrapping_add(next + set * share * self.row_bytes),
            stride: self.row_bytes,
            rows: share.min(self.form.ids().saturating_sub(set * share)),
        }
    }

    /// Widens `steps` steps, from `first` on, of a group's weights into the panel, and prefetches the item
    /// that begins at byte `next`.
    fn widen<T: Tiles>(&self, group: usize, first: usize, steps: usize, next: usize, panel: &mut [Line]) {
        let (step, ids) = (self.kind.step(), self.form.ids());
        for i in 0..self.form.id_tiles {
            for row in 0..self.shape.ids {
                let line = self.weights.as_ptr().wrapping_add(next + (i * TILE + row) * self.row_bytes);
                for at in (0..self.form.k_block * step).step_by(STEP) {
                    prefetch(line.wrapping_add(at));
                }
                let from = (self.first_id(group, i) + row) * self.row_bytes;
                let bytes = first * step..self.row_bytes.min((first + steps) * step);
                let bytes = &self.weights[from + bytes.start..from + bytes.end];
                let panel = &mut panel[i * TILE + row..];
                match self.kind {
                    AmxOperands::E4m3ToBf16 => T::widen_e4m3(bytes, panel, 2 * ids),
                    _ => T::widen_i8(bytes, panel, 2 * ids),
                }
            }
        }
    }

    /// Copies the end of a group's weight rows, behind their whole steps, and pads it with zeros.
    fn copy_tail(&self, group: usize, tail: &mut [Line]) {
        let whole = self.row_bytes / STEP * STEP;
        for i in 0..self.form.id_tiles {
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
    first: [usize; 4],
    /// Bytes from one row of a tile to the next.
    stride: usize,
    /// Bytes from one step to the next.
    step: usize,
}

impl<'a> Operand<'a> {
    /// An operand whose tiles lie one behind the other.
    fn lines(lines: &'a [Line], step: usize) -> Operand<'a> {
        let first = [0, 1, 2, 3].map(|i| i * TILE_BYTES);
        Operand { bytes: cast_slice(lines), first, stride: STEP, step }
    }

    /// Loads tile `i` at a step into tile register `TO`.
    #[inline(always)]
    fn load<T: Tiles, const TO: usize>(&self, tiles: &mut T, i: usize, step: usize) {
        tiles.load::<TO>(self.bytes, self.first[i] + step * self.step, self.stride);
    }
}

/// Weights to prefetch during the matmul: at each step, the next cache line of `rows` weight rows.
#[derive(Clone, Copy)]
struct Ahead {
    line: *const u8,
    stride: usize,
    rows: usize,
}

impl Default for Ahead {
    /// Prefetches nothing.
    fn default() -> Self {
        Ahead { line: std::ptr::null(), stride: 0, rows: 0 }
    }
}

impl Ahead {
    #[inline(always)]
    fn ask(&self, step: usize) {
        let mut line = self.line.wrapping_add(step * STEP);
        for _ in 0..self.rows {
            prefetch(line);
            line = line.wrapping_add(self.stride);
        }
    }
}

/// 64 ids x one tile of rows; the sums of ids' tile `i` are in tile register `i`.
fn four_by_one<T: Tiles, D: Dot>(
    tiles: &mut T,
    w: &Operand<'_>,
    x: &Operand<'_>,
    steps: usize,
    ahead: Ahead,
) {
    for step in 0..steps {
        ahead.ask(step);
        x.load::<T, 6>(tiles, 0, step);
        w.load::<T, 4>(tiles, 0, step);
        D::dot::<T, 0, 4, 6>(tiles);
        w.load::<T, 5>(tiles, 1, step);
        D::dot::<T, 1, 5, 6>(tiles);
        w.load::<T, 4>(tiles, 2, step);
        D::dot::<T, 2, 4, 6>(tiles);
        w.load::<T, 5>(tiles, 3, step);
        D::dot::<T, 3, 5, 6>(tiles);
    }
}

/// 32 ids x two tiles of rows; the sums of ids' tile `i` and rows' tile `j` are in tile register `2 i + j`.
fn two_by_two<T: Tiles, D: Dot>(tiles: &mut T, w: &Operand<'_>, x: &Operand<'_>, steps: usize, ahead: Ahead) {
    for step in 0..steps {
        ahead.ask(step);
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
fn two_by_one<T: Tiles, D: Dot>(tiles: &mut T, w: &Operand<'_>, x: &Operand<'_>, steps: usize, ahead: Ahead) {
    for step in 0..steps {
        ahead.ask(step);
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
        let Walk { rows, ids, shape, form, .. } = *self.walk;
        let (groups, sets) = (self.walk.groups(), self.walk.sets());
        for (block, sums) in self.sums.chunks_exact(BLOCK_SUMS).enumerate().take(groups * sets) {
            let (group, set) = (block / sets, block % sets);
            for (tile, sums) in sums.chunks_exact(TILE).enumerate() {
                let (i, j) = (tile / form.row_tiles, set * form.row_tiles + tile % form.row_tiles);
                if (group * form.id_tiles + i) * TILE >= ids || j >= rows.tiles() {
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
