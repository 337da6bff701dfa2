//! The float inner loop: f32, f16, bf16 and (W8A16) int8 weights, widened to f32, f32 sums.

use super::isa::Arith;
use super::lanes::{Kind, LANES, Lanes, Widen};
use std::marker::PhantomData;

/// Weights of type `W`, f32 rows, f32 sums.
pub(super) struct Float<W>(PhantomData<W>);

impl<W: Widen> Kind<LANES> for Float<W> {
    type Weight = W;
    type Step = Lanes<f32>;
    type Sum = f32;

    #[inline(always)]
    fn widen(weights: &[W; LANES]) -> Lanes<f32> {
        let mut step = Lanes([0.0; LANES]);
        for (s, w) in step.0.iter_mut().zip(weights) {
            *s = w.widen();
        }
        step
    }

    #[inline(always)]
    fn widen_tail(weights: &[W]) -> Lanes<f32> {
        let mut padded = [W::default(); LANES];
        padded[..weights.len()].copy_from_slice(weights);
        Self::widen(&padded)
    }

    #[inline(always)]
    fn mul_add<A: Arith, const L: usize>(x: &Lanes<f32>, w: &Lanes<f32>, group: usize, sums: &mut [f32; L]) {
        let (x, w) = (&x.0.as_chunks::<L>().0[group], &w.0.as_chunks::<L>().0[group]);
        for l in 0..L {
            sums[l] = A::mul_add(x[l], w[l], sums[l]);
        }
    }

    #[inline(always)]
    fn reduce(sums: &Lanes<f32>) -> f32 {
        sums.sum()
    }
}
