//! The W8A8 inner loop: int8 weights and int8 rows, widened to int16, int32 sums. Exact in any order.

use super::isa::Arith;
use super::lanes::{Kind, Lanes, PAIRS, Pairs};

/// int8 weights, int8 rows, int32 sums.
pub(super) struct Int8;

/// A lane takes two neighbours of k in one step, as `pmaddwd` and `vpdpwssd` do.
impl Kind<PAIRS> for Int8 {
    type Weight = i8;
    type Step = Pairs<i16>;
    type Sum = i32;

    #[inline(always)]
    fn widen(weights: &[i8; PAIRS]) -> Pairs<i16> {
        let mut step = Pairs([0; PAIRS]);
        for (s, &w) in step.0.iter_mut().zip(weights) {
            *s = i16::from(w);
        }
        step
    }

    #[inline(always)]
    fn widen_tail(weights: &[i8]) -> Pairs<i16> {
        let mut padded = [0; PAIRS];
        padded[..weights.len()].copy_from_slice(weights);
        Self::widen(&padded)
    }

    #[inline(always)]
    fn mul_add<A: Arith, const L: usize>(x: &Pairs<i16>, w: &Pairs<i16>, group: usize, sums: &mut [i32; L]) {
        // |x| <= 127 and |w| <= 128: MAX_INT8_HIDDEN keeps every sum below 2^31.
        let (x, w) = (x.0.as_chunks::<2>().0, w.0.as_chunks::<2>().0);
        A::mul_add_pairs(&x.as_chunks::<L>().0[group], &w.as_chunks::<L>().0[group], sums);
    }

    #[inline(always)]
    fn reduce(sums: &Lanes<i32>) -> f32 {
        sums.0.iter().sum::<i32>() as f32
    }
}
