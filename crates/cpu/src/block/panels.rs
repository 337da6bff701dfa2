//! Weights that are transposed and widened into panels, over which all tiles of rows run.

use super::{GROUP, GROUPS, LINE, Matmul};
use crate::BLOCK;
use crate::isa::{Arith, prefetch};
use crate::lanes::{Chunk, Kind, Quad};
use bytemuck::Zeroable;

impl<const S: usize, const G: usize, K: Kind<S, G>> Matmul<'_, S, G, K> {
    /// Any number of rows, through panels, tiles of `N` quads of weights.
    #[inline(always)]
    pub(super) fn panels<A: Arith, const N: usize>(self) {
        let rows = self.rows.rows();
        let mut panel = std::mem::take(&mut self.scratch.panel);
        let mut sums = std::mem::take(&mut self.scratch.sums);
        sums.clear();
        sums.resize(GROUPS * rows, [Quad::zeroed(); 4]);
        let groups = self.ids.div_ceil(GROUP);
        let calls = groups * self.rows.tiles().len();
        let mut pieces = self.rows.pieces().peekable();
        while let Some(piece) = pieces.next() {
            // While the tiles run over this piece, the next one of the same weight rows comes from memory; after the last, the
            // first of the block that follows.
            let next = pieces.peek().map_or(self.ids * self.hidden, |next| next.start / 4 * (S / G));
            let mut ahead = Ahead {
                line: self.weights.as_ptr().wrapping_add(next),
                stride: self.hidden,
                step: S / G,
                rows: (groups * GROUP).div_ceil(calls),
                left: groups * GROUP,
            };
            for group in 0..groups {
                panel.resize(4 * piece.len(), Quad::zeroed());
                self.widen_into::<A, N>(group * GROUP, piece.start / (4 * G), &mut panel);
                let sums = &mut sums[group * rows..][..rows];
                for (row, tile_rows) in self.rows.tiles() {
                    let sums = &mut sums[row..][..tile_rows];
                    macro_rules! tile {
                        ($m:literal) => {{
                            let x = self.rows.tile::<$m>(&piece, row);
                            for (column, panel) in panel.chunks_exact(N * piece.len()).enumerate() {
                                tile::<S, G, K, A, $m, N>(x, panel, sums, column * N, &ahead);
                            }
                        }};
                    }
                    match tile_rows {
                        1 => tile!(1),
                        2 => tile!(2),
                        3 => tile!(3),
                        4 if const { A::TILE.1 >= 4 } => tile!(4),
                        5 if const { A::TILE.1 >= 5 } => tile!(5),
                        6 if const { A::TILE.1 >= 6 } => tile!(6),
                        _ => unreachable!("tiles have at most A::TILE.1 rows, and that at most 6"),
                    }
                    ahead.advance();
                }
            }
        }
        for group in 0..groups {
            let sums = &sums[group * rows..][..rows];
            for (sums, logits) in sums.iter().zip(self.logits.chunks_exact_mut(BLOCK)) {
                logits[group * GROUP..][..GROUP].copy_from_slice(&K::reduce::<A>(sums));
            }
        }
        (self.scratch.panel, self.scratch.sums) = (panel, sums);
    }

    /// Widens the steps from `first` on of 16 weight rows into a panel: `[4 / N, chunks, N]` quads of four rows.
    #[inline(always)]
    fn widen_into<A: Arith, const N: usize>(&self, id: usize, first: usize, panel: &mut [Quad]) {
        let whole = self.hidden / S;
        for (column, panel) in panel.chunks_exact_mut(panel.len() / 4 * N).enumerate() {
            for c in 0..N {
                let id = id + 4 * (column * N + c);
                let steps = panel.as_chunks_mut::<N>().0.as_chunks_mut::<4>().0.as_chunks_mut::<G>().0;
                let n = steps.len().min(whole - first.min(whole));
                let row = |i| &self.row(id + i).as_chunks::<S>().0[first.min(whole)..][..n];
                let rows = [row(0), row(1), row(2), row(3)];
                for step in 0..n {
                    let transposed = A::transpose([
                        K::load::<A>(&rows[0][step]),
                        K::load::<A>(&rows[1][step]),
                        K::load::<A>(&rows[2][step]),
                        K::load::<A>(&rows[3][step]),
                    ]);
                    store::<S, G, K, A, N>(&transposed, &mut steps[step], c);
                }
                if let Some(step) = steps.get_mut(n) {
                    store::<S, G, K, A, N>(&A::transpose(self.tail::<A>(id, whole)), step, c);
                }
            }
        }
    }
}

/// One step of four weight rows, transposed -> quad `c` of `N` of each of its chunks in a panel.
#[inline(always)]
fn store<const S: usize, const G: usize, K: Kind<S, G>, A: Arith, const N: usize>(
    step: &[A::Quad; 4],
    panel: &mut [[[Quad; N]; 4]; G],
    c: usize,
) {
    unrolled!(g in 0..G => {
        let quads = K::part::<A>(step, g);
        unrolled!(j in 0..4 => {
            A::store(quads[j], &mut panel[g][j][c]);
        });
    });
}

/// Weights that a tile asks for on its way: at each of its steps, one line of each of so many rows.
struct Ahead<W> {
    line: *const W,
    stride: usize,
    step: usize,
    rows: usize,
    /// Rows that this and all later tiles ask for.
    left: usize,
}

impl<W> Ahead<W> {
    /// The next tile's.
    #[inline(always)]
    fn advance(&mut self) {
        self.line = self.line.wrapping_add(self.rows * self.stride);
        self.left -= self.rows;
        self.rows = self.rows.min(self.left);
    }
}

/// A piece of k: adds `M` packed rows x `N` quads of widened weights to quads `column..` of `sums` `[M]`.
#[inline(always)]
fn tile<const S: usize, const G: usize, K: Kind<S, G>, A: Arith, const M: usize, const N: usize>(
    x: &[[Chunk; M]],
    panel: &[Quad],
    sums: &mut [[Quad; 4]],
    column: usize,
    ahead: &Ahead<K::Weight>,
) {
    let sums = &mut sums[..M];
    let mut registers = [[A::load(&Quad::zeroed()); N]; M];
    for r in 0..M {
        for c in 0..N {
            registers[r][c] = A::load(&sums[r][column + c]);
        }
    }
    let steps = x.as_chunks::<4>().0.iter().zip(panel.as_chunks::<N>().0.as_chunks::<4>().0);
    for (step, (x, w)) in steps.enumerate() {
        if column == 0 && (step * ahead.step * size_of::<K::Weight>()).is_multiple_of(LINE) {
            // The line of the last byte: weights are aligned as their file left them, and a line that two pieces share came
            // with the first of them.
            let line = ahead.line.wrapping_add(step * ahead.step).wrapping_byte_add(LINE - 1);
            for row in 0..ahead.rows {
                prefetch(line.wrapping_add(row * ahead.stride));
            }
        }
        for j in 0..4 {
            let mut quads = [registers[0][0]; N];
            for c in 0..N {
                quads[c] = A::load(&w[j][c]);
            }
            for r in 0..M {
                let x = A::splat(&x[j][r]);
                for c in 0..N {
                    registers[r][c] = K::mul_add::<A>(x, quads[c], registers[r][c]);
                }
            }
        }
    }
    for r in 0..M {
        for c in 0..N {
            A::store(registers[r][c], &mut sums[r][column + c]);
        }
    }
}
