//! The float inner loops: f32 sums of f32 rows and of f32, f16, bf16 or (W8A16) int8 or E4M3 weights, which
//! are widened to f32.

use crate::isa::Arith;
use crate::lanes::{BYTE, Dot, Operands, WIDE, Widen};
use bytemuck::cast;
use std::marker::PhantomData;

/// Weights of type `W`, f32 rows, f32 sums.
pub(crate) struct Float<W>(PhantomData<W>);

/// int8 weights (W8A16), f32 rows, f32 sums.
pub(crate) struct FloatInt8;

/// E4M3 weights (W8A16), f32 rows, f32 sums.
pub(crate) struct FloatE4m3;

impl<W: Widen> Operands<WIDE, 1> for Float<W> {
    type Weight = W;
    type Dot = DotF32;

    #[inline(always)]
    fn load<A: Arith>(weights: &[W; WIDE]) -> A::Quad {
        let mut step = [0.0f32; WIDE];
        for (s, w) in step.iter_mut().zip(weights) {
            *s = w.widen();
        }
        A::load(&cast(step))
    }
}

impl Operands<BYTE, 4> for FloatInt8 {
    type Weight = i8;
    type Dot = DotF32;

    #[inline(always)]
    fn load<A: Arith>(weights: &[i8; BYTE]) -> A::Quad {
        A::load(&cast(*weights))
    }

    #[inline(always)]
    fn part<A: Arith>(step: &[A::Quad; 4], part: usize) -> [A::Quad; 4] {
        A::i8_to_f32(step[part])
    }
}

impl Operands<BYTE, 4> for FloatE4m3 {
    type Weight = u8;
    type Dot = DotF32;

    #[inline(always)]
    fn load<A: Arith>(weights: &[u8; BYTE]) -> A::Quad {
        A::load(&cast(*weights))
    }

    #[inline(always)]
    fn part<A: Arith>(step: &[A::Quad; 4], part: usize) -> [A::Quad; 4] {
        A::e4m3_to_f32(step[part])
    }
}

/// Products of f32: one per lane and step.
pub(crate) struct DotF32;

impl Dot for DotF32 {
    #[inline(always)]
    fn mul_add<A: Arith>(x: A::Splat, w: A::Quad, sum: A::Quad) -> A::Quad {
        A::mul_add(x, w, sum)
    }
}
