//! The bf16 inner loop of instruction sets that multiply bf16 as it is: bf16 weights, bf16 rows, f32 sums. What one step rounds,
//! and that it takes subnormal numbers for zeros, is the hardware's.

use super::isa::Arith;
use super::lanes::{Kind, Lanes, PAIRS, Pairs};
use half::bf16;

/// bf16 weights, bf16 rows, f32 sums.
pub(super) struct Bf16;

/// A lane takes two neighbours of k in one step, as `vdpbf16ps` does.
impl Kind<PAIRS> for Bf16 {
    type Weight = bf16;
    type Step = Pairs<bf16>;
    type Sum = f32;

    #[inline(always)]
    fn widen(weights: &[bf16; PAIRS]) -> Pairs<bf16> {
        Pairs(*weights)
    }

    #[inline(always)]
    fn widen_tail(weights: &[bf16]) -> Pairs<bf16> {
        let mut step = Pairs::default();
        step.0[..weights.len()].copy_from_slice(weights);
        step
    }

    #[inline(always)]
    fn mul_add<A: Arith, const L: usize>(
        x: &Pairs<bf16>,
        w: &Pairs<bf16>,
        group: usize,
        sums: &mut [f32; L],
    ) {
        let (x, w) = (x.0.as_chunks::<2>().0, w.0.as_chunks::<2>().0);
        A::mul_add_bf16_pairs(&x.as_chunks::<L>().0[group], &w.as_chunks::<L>().0[group], sums);
    }

    #[inline(always)]
    fn reduce(sums: &Lanes<f32>) -> f32 {
        sums.sum()
    }
}
