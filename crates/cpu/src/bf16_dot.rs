//! The bf16 inner loops of instruction sets that multiply bf16 without widening: bf16, int8 or E4M3 weights,
//! bf16 rows, f32 sums. The hardware decides how a step rounds, and treats subnormal numbers as zeros.

use crate::isa::{Arith, Sets};
use crate::lanes::{BYTE, Dot, HALF, Operands};
use bytemuck::cast;
use half::bf16;

/// bf16 weights, bf16 rows, f32 sums.
pub(crate) struct Bf16;

/// int8 weights (W8A16), which bf16 holds exactly, bf16 rows, f32 sums.
pub(crate) struct Bf16Int8;

/// E4M3 weights (W8A16), which bf16 holds exactly, bf16 rows, f32 sums.
pub(crate) struct Bf16E4m3;

impl Operands<HALF, 1> for Bf16 {
    type Weight = bf16;
    type Dot = DotBf16;

    #[inline(always)]
    fn load<A: Arith>(weights: &[bf16; HALF]) -> A::Quad {
        A::load(&cast(*weights))
    }
}

impl Operands<BYTE, 2> for Bf16Int8 {
    type Weight = i8;
    type Dot = DotBf16;

    #[inline(always)]
    fn load<A: Arith>(weights: &[i8; BYTE]) -> A::Quad {
        A::load(&cast(*weights))
    }

    #[inline(always)]
    fn part<A: Arith>(step: &[A::Quad; 4], part: usize) -> [A::Quad; 4] {
        let ([a, b], [c, d]) = (A::i8_to_bf16(step[2 * part]), A::i8_to_bf16(step[2 * part + 1]));
        [a, b, c, d]
    }
}

impl Operands<BYTE, 2> for Bf16E4m3 {
    type Weight = u8;
    type Dot = DotBf16;

    #[inline(always)]
    fn load<A: Arith>(weights: &[u8; BYTE]) -> A::Quad {
        A::load(&cast(*weights))
    }

    #[inline(always)]
    fn part<A: Arith>(step: &[A::Quad; 4], part: usize) -> [A::Quad; 4] {
        let ([a, b], [c, d]) = (A::e4m3_to_bf16(step[2 * part]), A::e4m3_to_bf16(step[2 * part + 1]));
        [a, b, c, d]
    }
}

/// Products of bf16: a lane takes two neighbours of k in one step, as `vdpbf16ps` does.
pub(crate) struct DotBf16;

impl Dot for DotBf16 {
    const SETS: Sets = Sets::Bf16;

    #[inline(always)]
    fn mul_add<A: Arith>(x: A::Splat, w: A::Quad, sum: A::Quad) -> A::Quad {
        A::mul_add_bf16(x, w, sum)
    }
}
