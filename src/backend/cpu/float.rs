//! The float inner loop: f32, f16, bf16 and (W8A16) int8 weights, widened to f32, f32 sums.

use super::isa::Arith;
use super::lanes::{Kind, Quad, WIDE, Widen};
use bytemuck::cast;
use std::marker::PhantomData;

/// Weights of type `W`, f32 rows, f32 sums.
pub(super) struct Float<W>(PhantomData<W>);

impl<W: Widen> Kind<WIDE> for Float<W> {
    type Weight = W;

    #[inline(always)]
    fn widen<A: Arith>(weights: &[W; WIDE]) -> A::Quad {
        let mut step = [0.0f32; WIDE];
        for (s, w) in step.iter_mut().zip(weights) {
            *s = w.widen();
        }
        A::load(&cast(step))
    }

    #[inline(always)]
    fn mul_add<A: Arith>(x: A::Splat, w: A::Quad, sum: A::Quad) -> A::Quad {
        A::mul_add(x, w, sum)
    }

    #[inline(always)]
    fn reduce<A: Arith>(sums: &[Quad; 4]) -> [f32; 16] {
        A::reduce_f32(sums)
    }
}
