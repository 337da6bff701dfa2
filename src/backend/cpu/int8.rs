//! The W8A8 inner loop: int8 weights and int8 rows, widened to int16, int32 sums. Exact in any order.

use super::isa::Arith;
use super::lanes::{HALF, Kind, Quad};
use bytemuck::cast;

/// int8 weights, int8 rows, int32 sums.
pub(super) struct Int8;

/// A lane takes two neighbours of k in one step, as `pmaddwd` and `vpdpwssd` do. |x| <= 127 and |w| <= 128: MAX_INT8_HIDDEN keeps
/// every sum below 2^31.
impl Kind<HALF> for Int8 {
    type Weight = i8;

    #[inline(always)]
    fn widen<A: Arith>(weights: &[i8; HALF]) -> A::Quad {
        let mut step = [0i16; HALF];
        for (s, &w) in step.iter_mut().zip(weights) {
            *s = i16::from(w);
        }
        A::load(&cast(step))
    }

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
