//! Sixteen lanes: the layout that every sum of this backend has, whatever the registers are.
//!
//! Lane `l` of a float sum adds the products of `k = l, l + 16, l + 32, ...` from zero, `k` ascending (the
//! last step is padded with zeros); then the lanes are added in one fixed tree. That is all that a logit's
//! bits depend on (promise 1). Integer sums are exact in any order and use the same sixteen lanes.

use super::isa::Arith;
use half::{bf16, f16};

/// Lanes of every sum.
pub(super) const LANES: usize = 16;

/// Sixteen partial sums of one logit, or sixteen widened elements.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Lanes<E>(pub [E; LANES]);

impl<E: Default + Copy> Default for Lanes<E> {
    fn default() -> Self {
        Lanes([E::default(); LANES])
    }
}

impl Lanes<f32> {
    /// The lanes' sum, in the one order that there is.
    #[inline(always)]
    pub fn sum(&self) -> f32 {
        let mut lanes = self.0;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
        }
        lanes[0]
    }
}

/// Thirty-two elements of 16 bits, two for each lane: widened int8, or bf16 as it is.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Pairs<E>(pub [E; PAIRS]);

/// Elements of [`Pairs`].
pub(super) const PAIRS: usize = 2 * LANES;

impl<E: Default + Copy> Default for Pairs<E> {
    fn default() -> Self {
        Pairs([E::default(); PAIRS])
    }
}

/// A kind of inner loop: what one step of `S` elements of k is, and how it joins the sums.
pub(super) trait Kind<const S: usize> {
    /// A weight as it is stored.
    type Weight: Copy + Sync;
    /// `S` elements of a row or of the weights, widened.
    type Step: Copy + Default + Send + Sync;
    /// One lane of a sum.
    type Sum: Copy + Default + Send;

    /// Widens one step of weights. Exact.
    fn widen(weights: &[Self::Weight; S]) -> Self::Step;

    /// Widens a last, shorter step; zeros follow.
    fn widen_tail(weights: &[Self::Weight]) -> Self::Step;

    /// Adds the products of lanes `group * L .. (group + 1) * L` to `sums`.
    fn mul_add<A: Arith, const L: usize>(
        x: &Self::Step,
        w: &Self::Step,
        group: usize,
        sums: &mut [Self::Sum; L],
    );

    /// Adds the lanes in the fixed order, and rounds the sum to f32 where it is an integer.
    fn reduce(sums: &Lanes<Self::Sum>) -> f32;
}

/// A stored weight that the float loop can widen to f32, exactly.
pub(super) trait Widen: Copy + Default + Send + Sync {
    fn widen(self) -> f32;
}

impl Widen for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Widen for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Widen for f16 {
    /// Exact for every finite value, subnormals included; weights are known to be finite (an infinity would
    /// come out as 65536). Sign and magnitude move to their places in an f32, whose exponent is then too
    /// small by 127 - 15 = 112: multiplying by 2^112 mends it, and is exact.
    #[inline(always)]
    fn widen(self) -> f32 {
        const SHIFT_EXPONENT: f32 = f32::from_bits((127 + 112) << 23);
        let moved = ((u32::from(self.to_bits()) << 16) as i32 >> 3) as u32 & 0x8fff_ffff;
        f32::from_bits(moved) * SHIFT_EXPONENT
    }
}

impl Widen for i8 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_16_bit_weight_widens_exactly() {
        for bits in 0..=u16::MAX {
            let (h, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            if h.is_finite() {
                assert_eq!(Widen::widen(h).to_bits(), h.to_f32_const().to_bits(), "{bits:#06x}");
            }
            if b.is_finite() {
                assert_eq!(Widen::widen(b).to_bits(), b.to_f32_const().to_bits(), "{bits:#06x}");
            }
        }
    }
}
