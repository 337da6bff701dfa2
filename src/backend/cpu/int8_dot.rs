//! The W8A8 inner loop of instruction sets that add four products of bytes at once: int8 weights as they are stored, int8 rows, int32
//! sums. Exact in any order.
//!
//! The instruction multiplies unsigned by signed bytes. So rows are packed as `q + 128`, and with them a row of ones, whose sums are
//! those of the weights: `Σ q w = Σ (q + 128) w - 128 Σ w`. The sums on the way may wrap; modulo 2^32 the difference is what it
//! should be, and that fits.

use super::isa::{Arith, Work};
use super::lanes::{BYTE, Kind, Quad};
use crate::merge::BLOCK;
use bytemuck::cast;

/// int8 weights, int8 rows, int32 sums.
pub(super) struct Int8Dot;

/// A lane takes four neighbours of k in one step, as `vpdpbusd` does.
impl Kind<BYTE> for Int8Dot {
    type Weight = i8;

    #[inline(always)]
    fn widen<A: Arith>(weights: &[i8; BYTE]) -> A::Quad {
        A::load(&cast(*weights))
    }

    #[inline(always)]
    fn mul_add<A: Arith>(x: A::Splat, w: A::Quad, sum: A::Quad) -> A::Quad {
        A::mul_add_i8(x, w, sum)
    }

    /// The sums' bits: [`Offset`] has still to subtract from them.
    #[inline(always)]
    fn reduce<A: Arith>(sums: &[Quad; 4]) -> [f32; 16] {
        cast(A::reduce_i32(sums))
    }
}

/// Takes the offset from the sums of all rows but the last, which are the weights' own, and makes f32 of them.
pub(super) struct Offset<'a> {
    /// `[rows + 1, BLOCK]` bits of int32.
    pub logits: &'a mut [f32],
}

impl Work for Offset<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arith>(self) {
        let (logits, weights) = self.logits.split_at_mut(self.logits.len() - BLOCK);
        for row in logits.chunks_exact_mut(BLOCK) {
            for (logit, sum) in row.iter_mut().zip(weights.iter()) {
                let offset = (sum.to_bits() as i32).wrapping_mul(128);
                *logit = (logit.to_bits() as i32).wrapping_sub(offset) as f32;
            }
        }
    }
}
