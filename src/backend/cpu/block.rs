//! Packed rows x one block of the vocabulary -> raw f32 logits.
//!
//! Few rows: the weights go from memory through the registers, transposed and widened on the way, 16 ids at a time.
//! More rows: a piece of k after the other. 16 weight rows of it are transposed and widened into a panel that stays in the
//! first-level cache, and every tile of rows runs over it. Both ways are the same sums in the same order.

use super::isa::{Arith, Work, prefetch};
use super::lanes::{Chunk, Kind, Quad};
use super::pack::Packed;
use crate::merge::BLOCK;
use bytemuck::Zeroable;

/// Vocabulary ids whose sums are four quads: those of a panel, and of a tile's sums.
const GROUP: usize = 16;
const GROUPS: usize = BLOCK / GROUP;
/// Where weights go straight through the registers, how far ahead they are asked for: about what memory delivers in a
/// microsecond. Within a row the hardware would do, but each row is the beginning of another stream.
const AHEAD_BYTES: usize = 2048;
/// For each number of rows, whether weights go straight through the registers four quads at a time, so that each chunk of a row is read
/// once for all of them. It pays where the chunks of a step are more than registers hold; 20 sums leave no room for it. Weights that are
/// widened after they were transposed take more registers: of three rows and more, two quads go through together.
const SHARED: [bool; 6] = [false, false, false, true, true, false];
/// Bytes of a cache line.
const LINE: usize = 64;

/// `for $i in 0..$n { $body }` for a constant `$n` of at most 6, written out: arrays of registers stay in registers only where every
/// index is a constant before the optimiser looks at them, and it leaves loops of this size as they are.
macro_rules! unrolled {
    ($i:ident in 0..$n:expr => $body:block) => {
        unrolled!(@ $i $n, $body, 0 1 2 3 4 5)
    };
    (@ $i:ident $n:expr, $body:block, $($k:literal)*) => {
        $(if $k < $n { let $i = $k; $body })*
    };
}

/// Memory of one thread, reused from block to block: a panel (16 KiB) and the sums of its logits (1 KiB for each row of the pass).
#[derive(Debug, Default)]
pub(super) struct Scratch {
    panel: Vec<Quad>,
    /// `[GROUPS, rows]`
    sums: Vec<[Quad; 4]>,
}

/// `logits[r * BLOCK + v] = rows[r] · weights[v]`, for every packed row and `ids` vocabulary rows; what lies beyond `ids` in the
/// last group of 16 is not to be used.
pub(super) struct Matmul<'a, const S: usize, const G: usize, K: Kind<S, G>> {
    pub rows: &'a Packed,
    /// `[ids, hidden]`, and whatever follows: what is read next, if anything is.
    pub weights: &'a [K::Weight],
    pub hidden: usize,
    pub ids: usize,
    /// `[rows, BLOCK]`
    pub logits: &'a mut [f32],
    pub scratch: &'a mut Scratch,
}

impl<const S: usize, const G: usize, K: Kind<S, G>> Work for Matmul<'_, S, G, K> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arith>(self) {
        if self.hidden == 0 {
            self.logits.fill(0.0);
            return;
        }
        let direct = self.rows.rows() <= A::DIRECT_ROWS;
        match (A::TILE.0, self.rows.rows()) {
            (_, 0) => {}
            (4, 1) if direct => self.direct::<A, 1, 4>(),
            (4, 2) if direct => self.direct::<A, 2, 4>(),
            (4, 3) if direct && G > 1 => self.direct::<A, 3, 2>(),
            (4, 4) if direct && G > 1 => self.direct::<A, 4, 2>(),
            (4, 5) if direct && G > 1 => self.direct::<A, 5, 2>(),
            (4, 3) if direct => self.direct::<A, 3, 4>(),
            (4, 4) if direct => self.direct::<A, 4, 4>(),
            (4, 5) if direct => self.direct::<A, 5, 4>(),
            (4, _) => self.panels::<A, 4>(),
            (_, 1) if direct => self.direct::<A, 1, 2>(),
            (_, 2) if direct => self.direct::<A, 2, 1>(),
            (_, _) => self.panels::<A, 1>(),
        }
    }
}

impl<const S: usize, const G: usize, K: Kind<S, G>> Matmul<'_, S, G, K> {
    /// A vocabulary row; behind the last one, the last one again.
    #[inline(always)]
    fn row(&self, id: usize) -> &[K::Weight] {
        &self.weights[id.min(self.ids - 1) * self.hidden..][..self.hidden]
    }

    /// `M` rows, the only tile there is, x `N` quads of weights at a time, straight from memory.
    #[inline(always)]
    fn direct<A: Arith, const M: usize, const N: usize>(self) {
        let whole = self.hidden / S;
        let shared = if G == 1 { SHARED[M] } else { N == 2 };
        let ahead_steps = (AHEAD_BYTES / (S * size_of::<K::Weight>())).min(whole);
        for group in (0..self.ids).step_by(GROUP) {
            let mut done = [[Quad::zeroed(); 4]; M];
            for column in (0..4).step_by(N) {
                let id = group + 4 * column;
                let mut rows = [[&[][..]; 4]; N];
                for (i, row) in rows.as_flattened_mut().iter_mut().enumerate() {
                    *row = &self.row(id + i).as_chunks::<S>().0[..whole];
                }
                let first = self.row(id).as_ptr();
                let mut registers = [[A::load(&Quad::zeroed()); M]; N];
                for piece in self.rows.pieces() {
                    let x = self.rows.tile::<M>(&piece, 0).as_chunks::<4>().0.as_chunks::<G>().0;
                    let first_step = piece.start / (4 * G);
                    for (step, x) in (first_step..whole).zip(x) {
                        // What comes `ahead_steps` later: in these rows, or in the next ones.
                        if (step * S * size_of::<K::Weight>()).is_multiple_of(LINE) {
                            let ahead = step + ahead_steps;
                            let ahead = if ahead < whole {
                                ahead * S
                            } else {
                                4 * N * self.hidden + (ahead - whole) * S
                            };
                            for i in 0..4 * N {
                                prefetch(first.wrapping_add(ahead + i * self.hidden));
                            }
                        }
                        let mut steps = [[registers[0][0]; 4]; N];
                        unrolled!(c in 0..N => {
                            steps[c] = A::transpose([
                                K::load::<A>(&rows[c][0][step]),
                                K::load::<A>(&rows[c][1][step]),
                                K::load::<A>(&rows[c][2][step]),
                                K::load::<A>(&rows[c][3][step]),
                            ]);
                            if !shared {
                                let registers = std::array::from_mut(&mut registers[c]);
                                join::<S, G, K, A, M, 1>(x, &[steps[c]], registers);
                            }
                        });
                        if shared {
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
                    for (done, register) in done.iter_mut().zip(registers) {
                        A::store(*register, &mut done[column + c]);
                    }
                }
            }
            for (done, logits) in done.iter().zip(self.logits.chunks_exact_mut(BLOCK)) {
                logits[group..][..GROUP].copy_from_slice(&K::reduce::<A>(done));
            }
        }
    }

    /// The last, shorter step of four rows, padded with zeros.
    #[inline(always)]
    fn tail<A: Arith>(&self, id: usize, whole: usize) -> [A::Quad; 4] {
        let mut padded = [[K::Weight::default(); S]; 4];
        for (i, padded) in padded.iter_mut().enumerate() {
            let tail = &self.row(id + i)[whole * S..];
            padded[..tail.len()].copy_from_slice(tail);
        }
        [
            K::load::<A>(&padded[0]),
            K::load::<A>(&padded[1]),
            K::load::<A>(&padded[2]),
            K::load::<A>(&padded[3]),
        ]
    }

    /// Any number of rows, through panels, tiles of `N` quads of weights.
    #[inline(always)]
    fn panels<A: Arith, const N: usize>(self) {
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
                        4 if A::TILE.1 >= 4 => tile!(4),
                        5 if A::TILE.1 >= 5 => tile!(5),
                        6 if A::TILE.1 >= 6 => tile!(6),
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

/// One step of k: its chunks of `M` rows x `N` times four weight rows, transposed. Each chunk of a row is read once for all of them.
#[inline(always)]
fn join<const S: usize, const G: usize, K: Kind<S, G>, A: Arith, const M: usize, const N: usize>(
    x: &[[[Chunk; M]; 4]; G],
    steps: &[[A::Quad; 4]; N],
    sums: &mut [[A::Quad; M]; N],
) {
    unrolled!(g in 0..G => {
        let mut quads = [steps[0]; N];
        unrolled!(c in 0..N => {
            quads[c] = K::part::<A>(&steps[c], g);
        });
        unrolled!(j in 0..4 => {
            unrolled!(r in 0..M => {
                let x = A::splat(&x[g][j][r]);
                unrolled!(c in 0..N => {
                    sums[c][r] = K::mul_add::<A>(x, quads[c][j], sums[c][r]);
                });
            });
        });
    });
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
