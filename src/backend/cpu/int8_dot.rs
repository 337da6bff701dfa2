//! The W8A8 inner loop of instruction sets that add four products of bytes at once: int8 weights as they are stored, int8 rows, int32
//! sums. Exact in any order.
//!
//! The instruction multiplies unsigned by signed bytes. So rows are packed as `q + 128`, and with them a row of ones, whose sums are
//! those of the weights: `Σ q w = Σ (q + 128) w - 128 Σ w`. The sums on the way may wrap; modulo 2^32 the difference is what it
//! should be, and that fits.

use super::isa::{Arith, Work};
use super::lanes::{Kind, LANES, Lanes, QUADS, Quads};
use crate::merge::BLOCK;
use bytemuck::cast_ref;

/// int8 weights, int8 rows, int32 sums.
pub(super) struct Int8Dot;

/// A lane takes four neighbours of k in one step, as `vpdpbusd` does.
impl Kind<QUADS> for Int8Dot {
    type Weight = i8;
    type Step = Quads;
    type Sum = i32;

    #[inline(always)]
    fn widen(weights: &[i8; QUADS]) -> Quads {
        Quads(*cast_ref(weights))
    }

    #[inline(always)]
    fn widen_tail(weights: &[i8]) -> Quads {
        let mut padded = [0; QUADS];
        padded[..weights.len()].copy_from_slice(weights);
        Self::widen(&padded)
    }

    #[inline(always)]
    fn mul_add<A: Arith, const L: usize>(x: &Quads, w: &Quads, group: usize, sums: &mut [i32; L]) {
        let (x, w): (&[[u8; 4]; LANES], &[[u8; 4]; LANES]) = (cast_ref(&x.0), cast_ref(&w.0));
        A::mul_add_quads(&x.as_chunks::<L>().0[group], &w.as_chunks::<L>().0[group], sums);
    }

    /// The sum's bits: [`Offset`] has still to subtract from it.
    #[inline(always)]
    fn reduce(sums: &Lanes<i32>) -> f32 {
        f32::from_bits(sums.0.iter().fold(0, |sum: i32, lane| sum.wrapping_add(*lane)) as u32)
    }
}

/// A row as it is packed.
pub(super) fn offset(quantized: &[i8]) -> Quads {
    let mut step = Quads::default();
    for (out, q) in step.0.iter_mut().zip(quantized) {
        *out = (*q as u8) ^ 0x80; // + 128
    }
    step
}

/// The packed row whose sums are those of the weights: ones, for so many k.
pub(super) fn ones(k: usize) -> Quads {
    let mut step = Quads::default();
    step.0[..k].fill(1);
    step
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
