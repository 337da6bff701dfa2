//! Packed rows x one block of the vocabulary -> raw f32 logits.
//!
//! Few rows (`direct.rs`): weights go from memory to registers, where they are transposed, widened and
//! multiplied with one or two tiles of rows. More rows (`panels.rs`): for each k-block, 16 weight rows are
//! transposed and widened into a panel that stays in the L1 cache, and every tile of rows is multiplied with
//! it. Both ways compute the same sums in the same order.
//!
//! Only the inner loops are compiled for each instruction set and tile size, each as a function of its own
//! ([`Loops`]); the walks over weights and rows around them are compiled once for each type of weights.

use crate::BLOCK;
use crate::amx;
use crate::isa::{Arith, Isa, Sets, Work};
use crate::lanes::{Chunk, Dot, Operands, Quad};
use crate::pack::{K_BLOCK, Packed};
use bytemuck::Zeroable;
use std::marker::PhantomData;
use std::sync::atomic::{Ordering, compiler_fence};

/// Vocabulary ids of a panel and of a tile; their sums are four quads.
const GROUP: usize = 16;
const GROUPS: usize = BLOCK / GROUP;
/// Bytes of a cache line.
const LINE: usize = 64;

/// `for $i in 0..$n { $body }`, unrolled, for a constant `$n` of at most 4 (or 11 rows). An array stays in
/// registers only if all indices are constants before the optimiser runs, and it does not unroll loops of
/// this size itself.
macro_rules! unrolled {
    ($i:ident in 0..$n:expr => $body:block) => {
        const { assert!($n <= 4) };
        unrolled!(@ $i $n, $body, 0 1 2 3)
    };
    ($i:ident in rows 0..$n:expr => $body:block) => {
        const { assert!($n <= 11) };
        unrolled!(@ $i $n, $body, 0 1 2 3 4 5 6 7 8 9 10)
    };
    (@ $i:ident $n:expr, $body:block, $($k:literal)*) => {
        $(if const { $k < $n } { let $i = $k; $body })*
    };
}

mod direct;
mod panels;

pub(crate) use direct::quads;

/// Memory of one thread, reused from block to block: a panel (16 KiB), the sums of its logits (1 KiB for each
/// row of the pass), and the memory of AMX tiles.
#[derive(Debug, Default)]
pub struct BlockScratch {
    pub(crate) tiles: amx::AmxScratch,
    panel: Vec<Quad>,
    /// `[groups of 16 ids at a time, rows]`
    sums: Vec<[Quad; 4]>,
}

impl BlockScratch {
    /// Makes room for passes of up to `rows` rows.
    pub fn reserve(&mut self, isa: Isa, rows: usize) {
        if isa.has_tiles() {
            self.tiles.reserve(rows);
        }
        if self.panel.len() < 4 * K_BLOCK {
            self.panel.resize(4 * K_BLOCK, Quad::zeroed());
        }
        self.sums.reserve((GROUPS * rows).saturating_sub(self.sums.len()));
    }
}

/// Weights `[ids, hidden]`, and the weights that follow them in memory, which are prefetched.
#[derive(Clone, Copy)]
pub(crate) struct WeightRows<'a, W> {
    pub weights: &'a [W],
    pub hidden: usize,
    pub ids: usize,
}

impl<'a, W: Copy> WeightRows<'a, W> {
    /// The weights of `id`, or of the last id where `id` is beyond it.
    #[inline(always)]
    fn row(&self, id: usize) -> &'a [W] {
        &self.weights[id.min(self.ids - 1) * self.hidden..][..self.hidden]
    }

    /// `count` whole steps, from step `first` on, of the four rows from `id` on.
    #[inline(always)]
    fn steps<const S: usize>(&self, id: usize, first: usize, count: usize) -> [&'a [[W; S]]; 4] {
        let row = |i: usize| {
            let at = (id + i).min(self.ids - 1) * self.hidden + first * S;
            self.weights[at..][..count * S].as_chunks().0
        };
        [row(0), row(1), row(2), row(3)]
    }

    /// Copies the ends of four rows, behind their whole steps, to the beginnings of steps of zeros.
    fn tail<const S: usize>(&self, id: usize, padded: &mut [[W; S]; 4]) {
        for (i, padded) in padded.iter_mut().enumerate() {
            let tail = self.row(id + i).as_chunks::<S>().1;
            padded[..tail.len()].copy_from_slice(tail);
        }
    }
}

/// The matmul `logits[r * BLOCK + v] = rows[r] · weights[v]`, for every packed row and vocabulary row.
/// Columns beyond the last id in its group of 16 are meaningless.
pub(crate) struct Matmul<'a, W> {
    pub rows: &'a Packed,
    pub weights: WeightRows<'a, W>,
    /// `[rows, BLOCK]`
    pub logits: &'a mut [f32],
    pub scratch: &'a mut BlockScratch,
}

impl<W: Copy + Default> Matmul<'_, W> {
    pub fn run<const S: usize, const G: usize, K: Operands<S, G, Weight = W>>(self, isa: Isa) {
        if self.weights.hidden == 0 {
            self.logits.fill(0.0);
            return;
        }
        debug_assert_eq!(self.rows.parts(), G, "rows are packed for weights of this kind");
        let loops = isa.run(LoopsOf::<S, G, K>(PhantomData));
        match self.rows.direct() {
            Some(quads) => self.direct(&loops, quads),
            None => self.panels(&loops),
        }
    }
}

/// The inner loops of a kind for an instruction set, as function pointers. So the walks need not be compiled
/// for each set, and kinds with the same [`Dot`] share the loops over panels.
struct Loops<const S: usize, W> {
    direct: fn(&mut direct::Tile<'_, S, W>),
    widen: fn(&mut panels::Widen<'_, W>),
    panel: fn(&mut panels::Tiles<'_>),
    reduce: fn(&mut Reduce<'_>),
}

/// Looks up the `Loops` of a kind.
struct LoopsOf<const S: usize, const G: usize, K>(PhantomData<K>);

impl<const S: usize, const G: usize, K: Operands<S, G>> Work for LoopsOf<S, G, K> {
    type Output = Loops<S, K::Weight>;
    const SETS: Sets = K::Dot::SETS;

    #[inline(always)]
    fn run<A: Arith>(self) -> Self::Output {
        Loops {
            direct: direct::tile::<S, G, K, A>,
            widen: |call| A::call(panels::WidenOf::<S, G, K>(call, PhantomData)),
            panel: panels::tiles_of::<S, G, K, A>(),
            reduce: |call| A::call(ReduceOf::<K::Dot>(call, PhantomData)),
        }
    }
}

/// Reduces the sums `[rows]` of 16 ids to their logits: columns `column..` of `[rows, BLOCK]`.
struct Reduce<'a> {
    sums: &'a [[Quad; 4]],
    logits: &'a mut [f32],
    column: usize,
}

/// `Reduce` for one kind of sums.
struct ReduceOf<'c, 'a, D>(&'c mut Reduce<'a>, PhantomData<D>);

impl<D: Dot> Work for ReduceOf<'_, '_, D> {
    type Output = ();
    const SETS: Sets = D::SETS;

    #[inline(always)]
    fn run<A: Arith>(self) {
        let Reduce { sums, ref mut logits, column } = *self.0;
        for (sums, logits) in sums.iter().zip(logits.chunks_exact_mut(BLOCK)) {
            logits[column..][..GROUP].copy_from_slice(&D::reduce::<A>(sums));
        }
    }
}

/// Adds one step of k to the sums: the chunks of `M` rows x `N` times four transposed weight rows. Each chunk
/// of a row is read once for all weight rows.
#[inline(always)]
fn join<const S: usize, const G: usize, K: Operands<S, G>, A: Arith, const M: usize, const N: usize>(
    x: &[[[Chunk; M]; 4]; G],
    steps: &[[A::Quad; 4]; N],
    sums: &mut [[A::Quad; M]; N],
) {
    // A part only needs its own widened weights. The compiler would interleave the parts, which takes more
    // registers than there are. For two parts a fence, which costs nothing, prevents that; for four parts,
    // and (by measurement) for five rows, a loop.
    if const { M == 1 || G == 1 || (G == 2 && M != 5) } {
        unrolled!(g in 0..G => {
            join_part::<S, G, K, A, M, N>(&x[g], steps, g, sums);
            if g + 1 < G && const { M > 1 } {
                compiler_fence(Ordering::SeqCst);
            }
        });
        return;
    }
    for (g, x) in x.iter().enumerate() {
        join_part::<S, G, K, A, M, N>(x, steps, g, sums);
    }
}

/// Adds part `g` of a step.
#[inline(always)]
fn join_part<const S: usize, const G: usize, K: Operands<S, G>, A: Arith, const M: usize, const N: usize>(
    x: &[[Chunk; M]; 4],
    steps: &[[A::Quad; 4]; N],
    g: usize,
    sums: &mut [[A::Quad; M]; N],
) {
    let mut quads = [steps[0]; N];
    unrolled!(c in 0..N => {
        quads[c] = K::part::<A>(&steps[c], g);
    });
    unrolled!(j in 0..4 => {
        unrolled!(r in rows 0..M => {
            let x = A::splat(&x[j][r]);
            unrolled!(c in 0..N => {
                sums[c][r] = K::Dot::mul_add::<A>(x, quads[c][j], sums[c][r]);
            });
        });
    });
}
