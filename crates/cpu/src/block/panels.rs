//! The matmul for many rows: weights are transposed and widened into panels, with which all tiles of rows are
//! multiplied.

use super::{GROUP, GROUPS, LINE, Loops, Matmul, Reduce, WeightRows};
use crate::isa::{Arith, Sets, Work, prefetch};
use crate::lanes::{Chunk, Dot, Operands, Quad};
use bytemuck::Zeroable;
use std::marker::PhantomData;

impl<W: Copy> Matmul<'_, W> {
    /// The matmul for any number of rows, through panels.
    pub(super) fn panels<const S: usize>(self, loops: &Loops<S, W>) {
        let rows = self.rows.rows();
        let mut panel = std::mem::take(&mut self.scratch.panel);
        let mut sums = std::mem::take(&mut self.scratch.sums);
        sums.clear();
        sums.resize(GROUPS * rows, [Quad::zeroed(); 4]);
        let WeightRows { weights, hidden, ids } = self.weights;
        let groups = ids.div_ceil(GROUP);
        let calls = groups * self.rows.tiles().len();
        // Weights in four chunks of k.
        let step = S / self.rows.parts();
        let mut k_blocks = self.rows.k_blocks().peekable();
        while let Some(k_block) = k_blocks.next() {
            // While the tiles run over this k-block, the next k-block of the same weight rows is prefetched;
            // after the last, the first k-block of the next block.
            let next = k_blocks.peek().map_or(ids * hidden, |next| next.start / 4 * step);
            let mut ahead = Ahead {
                line: weights.as_ptr().wrapping_add(next).cast(),
                stride: hidden * size_of::<W>(),
                rows: (groups * GROUP).div_ceil(calls),
                left: groups * GROUP,
            };
            panel.resize(4 * k_block.len(), Quad::zeroed());
            let first = k_block.start / 4 * step / S;
            for group in 0..groups {
                (loops.widen)(&mut Widen {
                    weights: &self.weights,
                    id: group * GROUP,
                    first,
                    panel: &mut panel,
                });
                let sums = &mut sums[group * rows..][..rows];
                for (row, tile_rows, rows) in self.rows.runs() {
                    if rows > 0 {
                        (loops.panel)(&mut Tiles {
                            x: self.rows.k_block(&k_block, row, rows),
                            panel: &panel,
                            sums: &mut sums[row..][..rows],
                            tile_rows,
                            ahead: &mut ahead,
                        });
                    }
                }
            }
        }
        for (group, sums) in sums.chunks_exact(rows).enumerate().take(groups) {
            (loops.reduce)(&mut Reduce { sums, logits: self.logits, column: group * GROUP });
        }
        (self.scratch.panel, self.scratch.sums) = (panel, sums);
    }
}

/// Widens the steps from `first` on, of the 16 weight rows from `id` on, into a panel: `[4 / N, chunks, N]`
/// quads of four rows each, where `N` is `TILE.0` of [`Arith::TILE`].
pub(super) struct Widen<'a, W> {
    weights: &'a WeightRows<'a, W>,
    id: usize,
    first: usize,
    panel: &'a mut [Quad],
}

/// `Widen` for one kind of weights.
pub(super) struct WidenOf<'c, 'a, const S: usize, const G: usize, K: Operands<S, G>>(
    pub &'c mut Widen<'a, K::Weight>,
    pub PhantomData<K>,
);

impl<const S: usize, const G: usize, K: Operands<S, G>> Work for WidenOf<'_, '_, S, G, K> {
    type Output = ();
    const SETS: Sets = K::Dot::SETS;

    #[inline(always)]
    fn run<A: Arith>(self) {
        let Widen { weights, id, first, ref mut panel } = *self.0;
        let chunks = panel.len() / 4;
        for quad in 0..4 {
            let id = id + 4 * quad;
            if const { A::TILE.0 == 4 } {
                widen_rows::<S, G, K, A, 4>(weights, id, first, panel, quad);
            } else {
                let column = &mut panel[quad * chunks..][..chunks];
                widen_rows::<S, G, K, A, 1>(weights, id, first, column, 0);
            }
        }
    }
}

/// Widens the steps from `first` on of four weight rows into quad `c` of the `N` of each chunk of a panel.
#[inline(always)]
fn widen_rows<const S: usize, const G: usize, K: Operands<S, G>, A: Arith, const N: usize>(
    weights: &WeightRows<'_, K::Weight>,
    id: usize,
    first: usize,
    panel: &mut [Quad],
    c: usize,
) {
    let steps = panel.as_chunks_mut::<N>().0.as_chunks_mut::<4>().0.as_chunks_mut::<G>().0;
    let count = steps.len().min(weights.hidden / S - first);
    let rows = weights.steps::<S>(id, first, count);
    let (whole, last) = steps.split_at_mut(count);
    for step in 0..count {
        let rows = [&rows[0][step], &rows[1][step], &rows[2][step], &rows[3][step]];
        widen::<S, G, K, A, N>(rows, &mut whole[step], c);
    }
    if let [last, ..] = last {
        let mut padded = [[K::Weight::default(); S]; 4];
        weights.tail(id, &mut padded);
        widen::<S, G, K, A, N>(padded.each_ref(), last, c);
    }
}

/// Transposes and widens one step of four weight rows into quad `c` of the `N` of each of its chunks in a
/// panel.
#[inline(always)]
fn widen<const S: usize, const G: usize, K: Operands<S, G>, A: Arith, const N: usize>(
    rows: [&[K::Weight; S]; 4],
    panel: &mut [[[Quad; N]; 4]; G],
    c: usize,
) {
    let step = A::transpose([
        K::load::<A>(rows[0]),
        K::load::<A>(rows[1]),
        K::load::<A>(rows[2]),
        K::load::<A>(rows[3]),
    ]);
    unrolled!(g in 0..G => {
        let quads = K::part::<A>(&step, g);
        unrolled!(j in 0..4 => {
            A::store(quads[j], &mut panel[g][j][c]);
        });
    });
}

/// Weights that a tile prefetches: cache line after cache line of `rows` weight rows.
struct Ahead {
    line: *const u8,
    /// Bytes of a weight row.
    stride: usize,
    rows: usize,
    /// Weight rows left for this tile and all later ones.
    left: usize,
}

impl Ahead {
    /// Moves on to the rows of the next tile.
    #[inline(always)]
    fn advance(&mut self) {
        self.line = self.line.wrapping_add(self.rows * self.stride);
        self.left -= self.rows;
        self.rows = self.rows.min(self.left);
    }
}

/// Adds the products of rows with the 16 weight rows of a panel, over a k-block, to the rows' sums; for
/// all tiles of one size. One call takes all of these tiles, since a call for each cost two to four percent.
pub(super) struct Tiles<'a> {
    /// `[tiles, chunks, rows]`
    x: &'a [Chunk],
    /// `[4 / N, chunks, N]`
    panel: &'a [Quad],
    /// `[tiles, rows]`
    sums: &'a mut [[Quad; 4]],
    tile_rows: usize,
    ahead: &'a mut Ahead,
}

/// The loops over panels for a kind: those of its [`Dot`] that prefetch a cache line at every fourth, eighth
/// or sixteenth chunk (`L`). On AVX-512 they take as many chunks at a time (`C`) where a step of the weights
/// is whole lines, since a test in the loop costs up to six percent.
pub(super) fn tiles_of<const S: usize, const G: usize, K: Operands<S, G>, A: Arith>() -> fn(&mut Tiles<'_>) {
    // Chunks of k in a cache line of weights.
    const fn line<const S: usize, const G: usize, W>() -> usize {
        4 * LINE / (S / G * size_of::<W>())
    }
    match const { (line::<S, G, K::Weight>(), G) } {
        (4, _) if const { line::<S, G, K::Weight>() == 4 } => tiles::<K::Dot, A, 4, 4>,
        (8, 1) if const { line::<S, G, K::Weight>() == 8 && G == 1 } => tiles::<K::Dot, A, 8, 4>,
        (8, 2) if const { line::<S, G, K::Weight>() == 8 && G == 2 } => tiles::<K::Dot, A, 8, 8>,
        (16, 4) if const { line::<S, G, K::Weight>() == 16 && G == 4 } => tiles::<K::Dot, A, 16, 16>,
        _ => unreachable!("kinds have steps of one to four lines"),
    }
}

/// Calls the loop for the size of the tiles.
fn tiles<D: Dot, A: Arith, const L: usize, const C: usize>(tiles: &mut Tiles<'_>) {
    match tiles.tile_rows {
        1 => A::call(TilesOf::<D, 1, L, C>(tiles, PhantomData)),
        2 => A::call(TilesOf::<D, 2, L, C>(tiles, PhantomData)),
        3 if const { A::TILE.1 >= 3 } => A::call(TilesOf::<D, 3, L, C>(tiles, PhantomData)),
        4 if const { A::TILE.1 >= 4 } => A::call(TilesOf::<D, 4, L, C>(tiles, PhantomData)),
        5 if const { A::TILE.1 >= 5 } => A::call(TilesOf::<D, 5, L, C>(tiles, PhantomData)),
        6 if const { A::TILE.1 >= 6 } => A::call(TilesOf::<D, 6, L, C>(tiles, PhantomData)),
        _ => unreachable!("tiles have at most A::TILE.1 rows, and that at most 6"),
    }
}

/// `Tiles` of `M` rows.
struct TilesOf<'c, 'a, D, const M: usize, const L: usize, const C: usize>(&'c mut Tiles<'a>, PhantomData<D>);

impl<D: Dot, const M: usize, const L: usize, const C: usize> Work for TilesOf<'_, '_, D, M, L, C> {
    type Output = ();
    const SETS: Sets = D::SETS;

    #[inline(always)]
    fn run<A: Arith>(self) {
        let Tiles { x, panel, ref mut sums, ref mut ahead, .. } = *self.0;
        for (x, sums) in x.chunks_exact(panel.len() / 4 * M).zip(sums.as_chunks_mut::<M>().0) {
            let x = x.as_chunks::<M>().0;
            if const { A::TILE.0 == 4 } {
                tile::<D, A, M, 4, C, L>(x, panel, sums, 0, ahead);
            } else {
                for column in 0..4 {
                    let panel = &panel[column * x.len()..];
                    // With 12 sums none of the 16 registers is free. Given several chunks at a time, the
                    // optimiser would reorder exact sums, which takes more registers: up to a quarter slower.
                    if const { D::EXACT && A::TILE.1 == 6 } {
                        tile::<D, A, M, 1, 1, L>(x, panel, sums, column, ahead);
                    } else {
                        tile::<D, A, M, 1, 4, L>(x, panel, sums, column, ahead);
                    }
                }
            }
            ahead.advance();
        }
    }
}

/// Adds the products of `M` rows with the first `N` quads of a panel to quads `column..` of `sums`, `C`
/// chunks at a time.
#[inline(always)]
fn tile<D: Dot, A: Arith, const M: usize, const N: usize, const C: usize, const L: usize>(
    x: &[[Chunk; M]],
    panel: &[Quad],
    sums: &mut [[Quad; 4]; M],
    column: usize,
    ahead: &Ahead,
) {
    let mut registers = [[A::load(&Quad::zeroed()); N]; M];
    for r in 0..M {
        for c in 0..N {
            registers[r][c] = A::load(&sums[r][column + c]);
        }
    }
    let steps = x.as_chunks::<C>().0.iter().zip(panel.as_chunks::<N>().0.as_chunks::<C>().0);
    let Ahead { line, stride, rows, .. } = *ahead;
    // Addresses the last byte, since weights may begin within a cache line: a line that two k-blocks share
    // has come with the first of them.
    let mut line = line.wrapping_add(LINE - 1);
    for (step, (x, w)) in steps.enumerate() {
        if column == 0 && (step * C).is_multiple_of(L) {
            for row in 0..rows {
                prefetch(line.wrapping_add(row * stride));
            }
            line = line.wrapping_add(LINE);
        }
        for j in 0..C {
            let mut quads = [registers[0][0]; N];
            for c in 0..N {
                quads[c] = A::load(&w[j][c]);
            }
            for r in 0..M {
                let x = A::splat(&x[j][r]);
                for c in 0..N {
                    registers[r][c] = D::mul_add::<A>(x, quads[c], registers[r][c]);
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
