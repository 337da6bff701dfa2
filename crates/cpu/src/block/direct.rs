//! Weights that go from memory through the registers, for a tile or two of rows.

use super::{GROUP, LINE, Loops, Matmul, Reduce, join};
use crate::isa::{Arith, Sets, Work, prefetch};
use crate::lanes::{Chunk, Dot, Kind, Quad};
use bytemuck::Zeroable;

/// Where there is one tile, how many bytes ahead of each weight row are asked for: measured. Within a row the
/// hardware would do, but each row is the beginning of another stream.
const AHEAD_BYTES: usize = 2048;

/// Quads of weights that a tile of so many rows takes, where a step of weights is so many parts. Each weight
/// row is a stream, and memory delivers few streams faster than many; more quads where products would wait
/// for each other, or hidden rows would be read too often.
pub(crate) const fn quads<A: Arith>(parts: usize, rows: usize) -> usize {
    match A::TILE.0 {
        4 if parts == 1 && rows <= 4 => 1,
        4 => 2,
        _ if rows == 1 => 2,
        _ => 1,
    }
}

impl<W: Copy + Default> Matmul<'_, W> {
    /// One or two tiles of rows x so many quads of weights at a time, the whole of k. One tile takes them
    /// from memory, two from a second-level cache.
    pub(super) fn direct<const S: usize>(self, loops: &Loops<S, W>, quads: usize) {
        let mut sums = std::mem::take(&mut self.scratch.sums);
        let tiles = self.rows.tiles().len();
        let hidden = self.weights.hidden;
        let whole = hidden / S;
        // One tile asks for what it will soon take itself. Two have time to ask for all of the weight rows
        // that follow, half of them each.
        let steps = if tiles == 1 { (AHEAD_BYTES / (S * size_of::<W>())).min(whole) } else { whole };
        let mut padded = [[[W::default(); S]; 4]; 4];
        for group in (0..self.weights.ids).step_by(GROUP) {
            sums.clear();
            sums.resize(self.rows.rows(), [Quad::zeroed(); 4]);
            // The last, shorter step is a call of its own, of weights that are padded.
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
                // So many steps further in the same rows. What would be behind their last whole step is asked
                // for in the rows that follow.
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

/// What a tile asks for before it is needed. At step `s` of k it is step `s` behind `near`, and from step
/// `turn` on behind `far`: of the first weight row, and of as many behind it as the tile has.
struct Ahead<W> {
    near: *const W,
    far: *const W,
    turn: usize,
    /// Elements of a weight row.
    hidden: usize,
}

/// Adds the products of rows and of one or two quads of weights, all steps of both, to the rows' sums.
pub(super) struct Tile<'a, const S: usize, W> {
    /// `[chunks, rows]`
    x: &'a [Chunk],
    /// `[quads]`
    weights: &'a [[&'a [[W; S]]; 4]],
    /// `[rows]`, of which it adds to quads `column..`.
    sums: &'a mut [[Quad; 4]],
    column: usize,
    ahead: &'a Ahead<W>,
    /// Which of the quads ahead it asks for.
    asked: [bool; 2],
}

/// Calls the loop of a tile's size.
pub(super) fn tile<const S: usize, const G: usize, K: Kind<S, G>, A: Arith>(
    tile: &mut Tile<'_, S, K::Weight>,
) {
    const {
        let most = A::DIRECT_ROWS[0];
        assert!(most <= 11 && A::DIRECT_ROWS[1] <= most && A::DIRECT_ROWS[2] <= most);
        // Several tiles have at least half as many rows, and must take as many quads: those are as many as
        // there are tiles, since each tile asks for the weights of one.
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
struct TileOf<'c, 'a, const S: usize, const G: usize, K: Kind<S, G>, const M: usize, const N: usize>(
    &'c mut Tile<'a, S, K::Weight>,
);

impl<const S: usize, const G: usize, K: Kind<S, G>, const M: usize, const N: usize> Work
    for TileOf<'_, '_, S, G, K, M, N>
{
    type Output = ();
    const SETS: Sets = K::Dot::SETS;

    #[inline(always)]
    fn run<A: Arith>(self) {
        // A local value of a whole line aligns the frame, and so what registers have no room for: the
        // compiler alone would lay it across two lines, which costs up to four percent.
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
                    // Where there is one tile it asks for all of them: no question, as counting was what
                    // bounded few rows.
                    if const { N == 1 || G > 1 || A::DIRECT_TILES == 1 } || asked {
                        // From row to row: the places of all rows would take more registers than there are.
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
                // One row on 16 registers: quad after quad. Of more rows, more chunks than registers hold:
                // then each is read once for both quads. So it is with weights that are widened.
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
