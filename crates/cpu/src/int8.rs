//! The W8A8 inner loop: int8 weights and int8 rows are widened to int16; int32 sums. Exact in any order.

use crate::isa::{Arith, Sets};
use crate::lanes::{BYTE, Dot, Operands, Quad};
use bytemuck::cast;

/// int8 weights, int8 rows, int32 sums.
pub(crate) struct Int8;

impl Operands<BYTE, 2> for Int8 {
    type Weight = i8;
    type Dot = DotI16;

    #[inline(always)]
    fn load<A: Arith>(weights: &[i8; BYTE]) -> A::Quad {
        A::load(&cast(*weights))
    }

    #[inline(always)]
    fn part<A: Arith>(step: &[A::Quad; 4], part: usize) -> [A::Quad; 4] {
        let ([a, b], [c, d]) = (A::i8_to_i16(step[2 * part]), A::i8_to_i16(step[2 * part + 1]));
        [a, b, c, d]
    }
}

/// Products of int16: a lane takes two neighbours of k in one step, as `pmaddwd` does. Since |x| <= 127 and
/// |w| <= 128, MAX_INT8_HIDDEN keeps every sum below 2^31.
pub(crate) struct DotI16;

impl Dot for DotI16 {
    const SETS: Sets = Sets::NoBytes;
    const EXACT: bool = true;

    #[inline(always)]
    fn mul_add<A: Arith>(x: A::Splat, w: A::Quad, sum: A::Quad) -> A::Quad {
        A::mul_add_i16(x, w, sum)
    }

    #[inline(always)]
    fn reduce<A: Arith>(sums: &[Quad; 4]) -> [f32; 16] {
        let mut logits = [0.0; 16];
        for (logit, sum) in logits.iter_mut().zip(A::reduce_i32(sums)) {
            *logit = sum as f32;
        }
        logits
    }
}
