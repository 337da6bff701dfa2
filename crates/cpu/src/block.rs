//! Packed rows x one block of the vocabulary -> raw f32 logits.
//!
//! Few rows (`direct.rs`): the weights go from memory through the registers, transposed and widened on the way, for a tile or two of
//! rows. More rows (`panels.rs`): a piece of k after the other; 16 weight rows of it are transposed and widened into a panel that stays
//! in the first-level cache, and every tile of rows runs over it. Both ways are the same sums in the same order.

use crate::BLOCK;
use crate::isa::{Arith, Work};
use crate::lanes::{Chunk, Kind, Quad};
use crate::pack::Packed;

/// Vocabulary ids whose sums are four quads: those of a panel, and of a tile's sums.
const GROUP: usize = 16;
const GROUPS: usize = BLOCK / GROUP;
/// Bytes of a cache line.
const LINE: usize = 64;

/// `for $i in 0..$n { $body }` for a constant `$n` of at most 4, or 11 rows, written out: arrays of registers stay in registers only
/// where every index is a constant before the optimiser looks at them, and it leaves loops of this size as they are.
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

/// Memory of one thread, reused from block to block: a panel (16 KiB) and the sums of its logits (1 KiB for each row of the pass).
#[derive(Debug, Default)]
pub struct Scratch {
    panel: Vec<Quad>,
    /// `[groups of 16 ids that are under way, rows]`
    sums: Vec<[Quad; 4]>,
}

/// `logits[r * BLOCK + v] = rows[r] · weights[v]`, for every packed row and `ids` vocabulary rows; what lies beyond `ids` in the
/// last group of 16 is not to be used.
pub(crate) struct Matmul<'a, const S: usize, const G: usize, K: Kind<S, G>> {
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
    const BF16: bool = K::BF16;

    #[inline(always)]
    fn run<A: Arith>(self) {
        if self.hidden == 0 {
            self.logits.fill(0.0);
            return;
        }
        debug_assert_eq!(self.rows.parts(), G, "rows are packed for weights of this kind");
        match (self.rows.direct(), A::TILE.0) {
            (true, _) => self.direct::<A>(),
            (false, 4) => self.panels::<A, 4>(),
            (false, _) => self.panels::<A, 1>(),
        }
    }
}

impl<const S: usize, const G: usize, K: Kind<S, G>> Matmul<'_, S, G, K> {
    /// A vocabulary row; behind the last one, the last one again.
    #[inline(always)]
    fn row(&self, id: usize) -> &[K::Weight] {
        &self.weights[id.min(self.ids - 1) * self.hidden..][..self.hidden]
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
            unrolled!(r in rows 0..M => {
                let x = A::splat(&x[g][j][r]);
                unrolled!(c in 0..N => {
                    sums[c][r] = K::mul_add::<A>(x, quads[c][j], sums[c][r]);
                });
            });
        });
    });
}
