//! The W8A8 inner loop of instruction sets that add four products of bytes at once: int8 weights as they are
//! stored, int8 rows, int32 sums. Exact in any order.
//!
//! The instruction multiplies unsigned by signed bytes, so rows are packed as `q + 128`: `Σ q w = Σ (q + 128)
//! w - 128 Σ w`. The sums of the weights are computed once for a shard. Intermediate sums may wrap, but the
//! difference fits an int32 and is right modulo 2^32.

use crate::BLOCK;
use crate::isa::{Arith, Sets, Work};
use crate::lanes::{BYTE, Chunk, Dot, Operands, Quad};
use bytemuck::{Zeroable, cast};

/// int8 weights, int8 rows, int32 sums.
pub(crate) struct Int8Dot;

impl Operands<BYTE, 1> for Int8Dot {
    type Weight = i8;
    type Dot = DotI8;

    #[inline(always)]
    fn load<A: Arith>(weights: &[i8; BYTE]) -> A::Quad {
        A::load(&cast(*weights))
    }
}

/// Products of unsigned and signed bytes: a lane takes four neighbours of k in one step, as `vpdpbusd` does.
pub(crate) struct DotI8;

impl Dot for DotI8 {
    const SETS: Sets = Sets::Bytes;
    const EXACT: bool = true;

    #[inline(always)]
    fn mul_add<A: Arith>(x: A::Splat, w: A::Quad, sum: A::Quad) -> A::Quad {
        A::mul_add_i8(x, w, sum)
    }

    /// Returns the bits of the int32 sums, from which [`Offset`] must still subtract.
    #[inline(always)]
    fn reduce<A: Arith>(sums: &[Quad; 4]) -> [f32; 16] {
        cast(A::reduce_i32(sums))
    }
}

/// Subtracts the offset from the sums of all rows, and converts them to f32.
pub(crate) struct Offset<'a> {
    /// `[rows, BLOCK]` bits of int32.
    pub logits: &'a mut [f32],
    /// The sums of the weights, `[ids]`.
    pub weights: &'a [i32],
}

impl Work for Offset<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arith>(self) {
        for row in self.logits.chunks_exact_mut(BLOCK) {
            for (logit, sum) in row.iter_mut().zip(self.weights) {
                *logit = (logit.to_bits() as i32).wrapping_sub(sum.wrapping_mul(128)) as f32;
            }
        }
    }
}

/// Computes the sums of rows of weights.
pub(crate) struct RowSums<'a> {
    /// `[rows, hidden]`, and `hidden` is not 0.
    pub weights: &'a [i8],
    pub hidden: usize,
    /// `[rows]`
    pub sums: &'a mut [i32],
}

impl Work for RowSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arith>(self) {
        let ones = A::splat(&Chunk([1; 16]));
        for (row, total) in self.weights.chunks_exact(self.hidden).zip(self.sums) {
            let (steps, tail) = row.as_chunks::<BYTE>();
            let mut sum = A::load(&Quad::zeroed());
            for step in steps {
                sum = A::mul_add_i8(ones, A::load(&cast(*step)), sum);
            }
            let mut lanes = Quad::zeroed();
            A::store(sum, &mut lanes);
            let lanes: [i32; 16] = cast(lanes);
            *total = lanes.iter().sum::<i32>() + tail.iter().map(|w| i32::from(*w)).sum::<i32>();
        }
    }
}
