//! Weights that go from memory through the registers, for a tile or two of rows.

use super::{GROUP, LINE, Matmul, join};
use crate::BLOCK;
use crate::isa::{Arith, prefetch};
use crate::lanes::{Kind, Quad};
use bytemuck::Zeroable;
use std::ops::Range;

/// Where there is one tile, how many bytes ahead of each weight row are asked for: measured. Within a row the hardware would do, but each
/// row is the beginning of another stream.
const AHEAD_BYTES: usize = 2048;

/// What a tile asks for before it is needed.
struct Prefetch {
    /// How far ahead, in steps of k: in the weight rows of the tile, or behind their end in as many that follow.
    steps: usize,
    /// Of which of these rows, counted from the tile's first.
    weight_rows: Range<usize>,
}

impl<const S: usize, const G: usize, K: Kind<S, G>> Matmul<'_, S, G, K> {
    /// Whether the instruction set has tiles of so many rows x `N` quads.
    const fn has_tile<A: Arith, const N: usize>(rows: usize) -> bool {
        rows <= A::DIRECT_ROWS[G.ilog2() as usize] && N == Self::quads::<A>(rows)
    }

    /// Quads of weights that a tile of so many rows takes. Each weight row is a stream, and memory delivers few streams faster than many;
    /// more quads where products would wait for each other, or hidden rows would be read too often.
    const fn quads<A: Arith>(rows: usize) -> usize {
        match A::TILE.0 {
            4 if G == 1 && rows <= 4 => 1,
            4 => 2,
            _ if rows == 1 => 2,
            _ => 1,
        }
    }

    /// One or two tiles of rows.
    #[inline(always)]
    pub(super) fn direct<A: Arith>(self) {
        const {
            let most = A::DIRECT_ROWS[0];
            assert!(most <= 11 && A::DIRECT_ROWS[1] <= most && A::DIRECT_ROWS[2] <= most);
            // Several tiles have at least half as many rows, and must take as many quads; and more than one, as a tile of
            // one quad asks for all of its weight rows alone.
            let (few, many) = (Self::quads::<A>(most.div_ceil(2)), Self::quads::<A>(most));
            assert!(A::DIRECT_TILES == 1 || (few == many && many > 1));
        }
        let most = self.rows.tiles().map(|(_, rows)| rows).max().unwrap_or(0);
        match Self::quads::<A>(most) {
            2 => self.direct_quads::<A, 2>(),
            _ => self.direct_quads::<A, 1>(),
        }
    }

    /// The tiles x `N` quads of weights at a time, the whole of k. One tile takes them from memory, two from a second-level cache.
    #[inline(always)]
    fn direct_quads<A: Arith, const N: usize>(self) {
        let rows = self.rows.rows();
        let mut sums = std::mem::take(&mut self.scratch.sums);
        sums.clear();
        sums.resize(rows, [Quad::zeroed(); 4]);
        let tiles = self.rows.tiles().len();
        // One tile asks for what it will soon take itself. Two have time to ask for all of the weight rows that follow, half of them each.
        let whole = self.hidden / S;
        let steps = if tiles == 1 { (AHEAD_BYTES / (S * size_of::<K::Weight>())).min(whole) } else { whole };
        for group in (0..self.ids).step_by(GROUP) {
            for column in (0..4).step_by(N) {
                for (tile, (row, tile_rows)) in self.rows.tiles().enumerate() {
                    let sums = &mut sums[row..][..tile_rows];
                    let id = group + 4 * column;
                    let weight_rows = 4 * N * tile / tiles..4 * N * (tile + 1) / tiles;
                    let ahead = Prefetch { steps, weight_rows };
                    macro_rules! tile {
                        ($($rows:literal)*) => {
                            match tile_rows {
                                $($rows if const { Self::has_tile::<A, N>($rows) } => {
                                    self.direct_tile::<A, $rows, N>(id, row, sums, column, ahead);
                                })*
                                _ => unreachable!("tiles have at most as many rows as `A::DIRECT_ROWS` says"),
                            }
                        };
                    }
                    tile!(1 2 3 4 5 6 7 8 9 10 11);
                }
            }
            for (sums, logits) in sums.iter().zip(self.logits.chunks_exact_mut(BLOCK)) {
                logits[group..][..GROUP].copy_from_slice(&K::reduce::<A>(sums));
            }
        }
        self.scratch.sums = sums;
    }

    /// Tile of `M` rows from `row` on x `N` quads from `id` on, whose sums are quads `column..`.
    #[inline(always)]
    fn direct_tile<A: Arith, const M: usize, const N: usize>(
        &self,
        id: usize,
        row: usize,
        sums: &mut [[Quad; 4]],
        column: usize,
        ahead: Prefetch,
    ) {
        let whole = self.hidden / S;
        let mut weights = [[&[][..]; 4]; N];
        for (i, weights) in weights.as_flattened_mut().iter_mut().enumerate() {
            *weights = &self.row(id + i).as_chunks::<S>().0[..whole];
        }
        let first = self.row(id).as_ptr();
        let mut registers = [[A::load(&Quad::zeroed()); M]; N];
        for piece in self.rows.pieces() {
            let x = self.rows.tile::<M>(&piece, row).as_chunks::<4>().0.as_chunks::<G>().0;
            let first_step = piece.start / (4 * G);
            for (step, x) in (first_step..whole).zip(x) {
                if (step * S * size_of::<K::Weight>()).is_multiple_of(LINE) {
                    let step = step + ahead.steps;
                    let at = if step < whole { step * S } else { 4 * N * self.hidden + (step - whole) * S };
                    // One quad means one tile, which asks for all four rows: a constant range, as counting was what bounded few rows.
                    let rows = if const { N == 1 } { 0..4 } else { ahead.weight_rows.clone() };
                    for i in rows {
                        prefetch(first.wrapping_add(at + i * self.hidden));
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
                    // One row on 16 registers: quad after quad. Of more rows, more chunks than registers hold: then each is read once for
                    // both quads. So it is with weights that are widened.
                    if const { G == 1 && M == 1 } {
                        let registers = std::array::from_mut(&mut registers[c]);
                        join::<S, G, K, A, M, 1>(x, &[steps[c]], registers);
                    }
                });
                if const { G > 1 || M > 1 } {
                    join::<S, G, K, A, M, N>(x, &steps, &mut registers);
                }
            }
            if let Some(x) = x.get(whole - first_step.min(whole)) {
                let mut steps = [[registers[0][0]; 4]; N];
                for (c, step) in steps.iter_mut().enumerate() {
                    *step = A::transpose(self.tail::<A>(id + 4 * c, whole));
                }
                join::<S, G, K, A, M, N>(x, &steps, &mut registers);
            }
        }
        for (c, registers) in registers.iter().enumerate() {
            for (sums, register) in sums.iter_mut().zip(registers) {
                A::store(*register, &mut sums[column + c]);
            }
        }
    }
}
