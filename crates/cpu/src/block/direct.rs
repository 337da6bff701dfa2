//! The matmul for few rows: weights go from memory straight to registers, for one or two tiles of rows.

use super::{GROUP, LINE, Loops, Matmul, Reduce, join};
use crate::isa::{Arith, Sets, Work, prefetch};
use crate::lanes::{Chunk, Dot, Operands, Quad};
use bytemuck::Zeroable;

/// With one tile, how many bytes ahead each weight row is prefetched; the best by measurement. The hardware
/// would prefetch within a row, but each row begins a new stream.
const AHEAD_BYTES: usize = 2048;

/// Quads of weights that a tile of `rows` rows takes, where a step of weights has `parts` parts. Each weight
/// row is a stream, and memory delivers few streams faster than many. More quads are only taken where
/// products would otherwise wait for each other, or hidden rows would be read too often.
pub(crate) const fn quads<A: Arith>(parts: usize, rows: usize) -> usize {
    match A::TILE.0 {
        4 if parts == 1 && rows <= 4 => 1,
        4 => 2,
        _ if rows == 1 => 2,
        _ => 1,
    }
}

impl<W: Copy + Default> Matmul<'_, W> {
    /// Computes one or two tiles of rows x `quads` quads of weights at a time, over the whole of k. With one
    /// tile the weights come from memory, with two from the L2 cache.
    pub(super) fn direct<const S: usize>(self, loops: &Loops<S, W>, quads: usize) {
        let mut sums = std::mem::take(&mut self.scratch.sums);
        let tiles = self.rows.tiles().len();
        let hidden = self.weights.hidden;
        let whole = hidden / S;
        // One tile prefetches what it will soon use itself. Two tiles have the time to prefetch all of the
        // weight rows that come next, half of them each.
        let steps = if tiles == 1 { (AHEAD_BYTES / (S * size_of::<W>())).min(whole) } else { whole };
        let mut padded = [[[W::default(); S]; 4]; 4];
        for group in (0..self.weights.ids).step_by(GROUP) {
            sums.clear();
            sums.resize(self.rows.rows(), [Quad::zeroed(); 4]);
            // The last, shorter step is a call of its own, with padded weights.
            let (mut weights, mut tails) = ([[&[][..]; 4]; 4], [[&[][..]; 4]; 4]);
            for (quad, weights) in weights.iter_mut().enumerate() {
                *weights = self.weights.steps(group + 4 * quad, 0, whole);
            }
            if whole * S < hidden {
                for (quad, (padded, tails)) in padded.iter_mut().zip(&mut tails).enumerate() {
                    self.weights.tail(group + 4 * quad, padded);
                    for (padded, tail) in padded.iter().zip(tails) {
                        *tail = std::slice::from_ref(padded);
                    }
                }
            }
            for column in (0..4).step_by(quads) {
                // Prefetches `steps` steps ahead in the same rows; beyond their last whole step, in the rows
                // that come next.
                let (row, turn) = (self.weights.row(group + 4 * column).as_ptr(), whole - steps);
                let near = row.wrapping_add(steps * S);
                let far = row.wrapping_add(4 * quads * hidden).wrapping_sub(turn * S);
                let ahead = Ahead { near, far, turn, hidden };
                for (tile, (row, tile_rows)) in self.rows.tiles().enumerate() {
                    let (x, x_tail) =
                        self.rows.tile(row, tile_rows).split_at(4 * self.rows.parts() * whole * tile_rows);
                    let asked = [tiles == 1 || tile == 0, tiles == 1 || tile == 1];
                    for (x, weights) in [(x, &weights), (x_tail, &tails)] {
                        if !x.is_empty() {
                            let (weights, sums) =
                                (&weights[column..][..quads], &mut sums[row..][..tile_rows]);
                            (loops.direct)(&mut Tile { x, weights, sums, column, ahead: &ahead, asked });
                        }
                    }
                }
            }
            (loops.reduce)(&mut Reduce { sums: &sums, logits: self.logits, column: group });
        }
        self.scratch.sums = sums;
    }
}

/// What a tile prefetches: at step `s` of k, step `s` counted from `near`, or, from step `turn` on, counted
/// from `far`. Both point into a weight row; the tile prefetches that row and the ones after it, as many as
/// it multiplies.
struct Ahead<W> {
    near: *const W,
    far: *const W,
    turn: usize,
    /// Elements of a weight row.
    hidden: usize,
}

/// Adds all steps of the products of a tile's rows with one or two quads of weights to the rows' sums.
pub(super) struct Tile<'a, const S: usize, W> {
    /// `[chunks, rows]`
    x: &'a [Chunk],
    /// `[quads]`
    weights: &'a [[&'a [[W; S]]; 4]],
    /// `[rows]`; quads `column..` of each are added to.
    sums: &'a mut [[Quad; 4]],
    column: usize,
    ahead: &'a Ahead<W>,
    /// Whether the tile prefetches each of the next two quads.
    asked: [bool; 2],
}

/// Calls the loop for the size of the tile.
pub(super) fn tile<const S: usize, const G: usize, K: Operands<S, G>, A: Arith>(
    tile: &mut Tile<'_, S, K::Weight>,
) {
    const {
        let most = A::DIRECT_ROWS[0];
        assert!(most <= 11 && A::DIRECT_ROWS[1] <= most && A::DIRECT_ROWS[2] <= most);
        // Where there are several tiles, each has at least half of the rows. All must take the same number of
        // quads, and that must be the number of tiles, since each tile prefetches one quad.
        let (few, many) = (quads::<A>(1, most.div_ceil(2)), quads::<A>(1, most));
        assert!(A::DIRECT_TILES == 1 || (few == many && many == A::DIRECT_TILES));
    }
    macro_rules! sizes {
        ($($rows:literal)*) => {
            match tile.sums.len() {
                $($rows if const { $rows <= A::DIRECT_ROWS[G.ilog2() as usize] } => {
                    if const { quads::<A>(G, $rows) == 2 } {
                        A::call(TileOf::<S, G, K, $rows, 2>(tile));
                    } else {
                        A::call(TileOf::<S, G, K, $rows, 1>(tile));
                    }
                })*
                _ => unreachable!("tiles have at most as many rows as `A::DIRECT_ROWS` says"),
            }
        };
    }
    sizes!(1 2 3 4 5 6 7 8 9 10 11);
}

/// A tile of `M` rows and `N` quads of weights.
struct TileOf<'c, 'a, const S: usize, const G: usize, K: Operands<S, G>, const M: usize, const N: usize>(
    &'c mut Tile<'a, S, K::Weight>,
);

impl<const S: usize, const G: usize, K: Operands<S, G>, const M: usize, const N: usize> Work
    for TileOf<'_, '_, S, G, K, M, N>
{
    type Output = ();
    const SETS: Sets = K::Dot::SETS;

    #[inline(always)]
    fn run<A: Arith>(self) {
        // A local value of a whole cache line aligns the stack frame, and with it the registers that are
        // spilled. Without it they lie across two lines, which costs up to four percent.
        std::hint::black_box(&mut Quad::zeroed());
        let Tile { x, weights: rows, ref mut sums, column, ahead, asked } = *self.0;
        let x = x.as_chunks::<M>().0.as_chunks::<4>().0.as_chunks::<G>().0;
        let count = x.len();
        let mut weights = [[&[][..]; 4]; N];
        for c in 0..N {
            for i in 0..4 {
                weights[c][i] = &rows[c][i][..count];
            }
        }
        let sums = &mut sums[..M];
        let mut registers = [[A::load(&Quad::zeroed()); M]; N];
        for c in 0..N {
            for r in 0..M {
                registers[c][r] = A::load(&sums[r][column + c]);
            }
        }
        for step in 0..count {
            if (step * S * size_of::<K::Weight>()).is_multiple_of(LINE) {
                let mut line = if step < ahead.turn { ahead.near } else { ahead.far }.wrapping_add(step * S);
                for asked in asked.into_iter().take(N) {
                    // A single tile prefetches everything, so the test of `asked` is left out at compile
                    // time: with few rows the number of instructions is the limit.
                    if const { N == 1 || G > 1 || A::DIRECT_TILES == 1 } || asked {
                        // One address that moves from row to row: an address per row would take too many
                        // registers.
                        for _ in 0..4 {
                            prefetch(line);
                            line = line.wrapping_add(ahead.hidden);
                        }
                    } else {
                        line = line.wrapping_add(4 * ahead.hidden);
                    }
                }
            }
            let mut steps = [[registers[0][0]; 4]; N];
            unrolled!(c in 0..N => {
                steps[c] = A::transpose([
                    K::load::<A>(&weights[c][0][step]),
                    K::load::<A>(&weights[c][1][step]),
                    K::load::<A>(&weights[c][2][step]),
                    K::load::<A>(&weights[c][3][step]),
                ]);
                // One row fits the registers quad by quad. More rows, or weights that are widened, do not:
                // then each chunk of a row is read once for both quads.
                if const { G == 1 && M == 1 } {
                    let registers = std::array::from_mut(&mut registers[c]);
                    join::<S, G, K, A, M, 1>(&x[step], &[steps[c]], registers);
                }
            });
            if const { G > 1 || M > 1 } {
                join::<S, G, K, A, M, N>(&x[step], &steps, &mut registers);
            }
        }
        for c in 0..N {
            for r in 0..M {
                A::store(registers[c][r], &mut sums[r][column + c]);
            }
        }
    }
}
