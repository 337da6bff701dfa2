//! An id's mass, its unnormalised probability in top_p: `exp((l - l_max) / T)` in fixed point. Sums of masses
//! are sums of integers, so they do not depend on order or sharding.
//!
//! `(l - l_max) / T` is f32, and its exponential is a term of [`ExpSum`](crate::merge::ExpSum): the same bits
//! on every CPU and GPU.
//!
//! The unit is `2^-40` for vocabularies of up to `2^23` ids, and doubles with each doubling beyond, so that
//! the sum of all ids fits 63 bits. The rounding errors of 262144 ids add up to less than `2^-23` of the
//! largest mass, those of any vocabulary to less than `2^-18`.

use super::SamplingParams;
use crate::exponential::Term;

/// Turns the logits of one row into masses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// The row's largest logit.
    max: f32,
    temperature: f32,
    /// `ln(min_p)`; minus infinity keeps all ids.
    least: f32,
    /// The largest logit's mass is `2^23 << shift`.
    shift: u32,
}

impl Scale {
    /// The scale of a row whose largest logit is `max`, for a temperature above 0.
    pub fn new(params: &SamplingParams, max: f32, vocab_size: usize) -> Self {
        let least = libm::log(f64::from(params.min_p)) as f32;
        let shift = largest_mass(vocab_size).trailing_zeros() - 23;
        Scale { max, temperature: params.temperature, least, shift }
    }

    /// The row's largest logit, the temperature, and the least value of `(l - max) / T` that is kept.
    pub(crate) fn parts(&self) -> (f32, f32, f32) {
        (self.max, self.temperature, self.least)
    }

    /// The largest mass is 2 to this power.
    pub(crate) fn unit(&self) -> u32 {
        23 + self.shift
    }

    /// The mass of logit `l`, which must not be above the row's largest; 0 for minus infinity. Rounded to the
    /// nearest, halves up.
    #[inline(always)]
    pub fn mass(&self, l: f32) -> u64 {
        // Below this, a mass is less than half a unit and rounds to 0, and the shift would not fit 6 bits.
        const LEAST: f32 = -43.0;
        let x = self.below_max(l);
        let term = Term::exp(x);
        let right = term.exponent.wrapping_add(23).wrapping_neg() as u32 & 63;
        let half = (1u64 << right) >> 1;
        let mass = ((u64::from(term.significand) << self.shift) + half) >> right;
        if x >= LEAST { mass } else { 0 }
    }

    /// The min_p filter: whether `exp((l - max) / T) >= min_p`, by the logarithms of both.
    #[inline(always)]
    pub fn reaches(&self, l: f32) -> bool {
        self.below_max(l) >= self.least
    }

    /// `(l - max) / T`, each operation rounded: the natural logarithm of the probability relative to the
    /// largest.
    #[inline(always)]
    fn below_max(&self, l: f32) -> f32 {
        (l - self.max) / self.temperature
    }
}

/// The mass of a row's largest logit, which is 1.0 in fixed point: 2^40 units, down to 2^31 for the largest
/// vocabularies. No id has more.
pub fn largest_mass(vocab_size: usize) -> u64 {
    let bits = usize::BITS - vocab_size.saturating_sub(1).leading_zeros();
    1 << (63 - bits.clamp(23, 32))
}

/// The mass that the nucleus must reach: `top_p · total` rounded up, and at least 1.
/// Exact for top_p in (0, 1].
pub fn share(top_p: f32, total: u64) -> u64 {
    // top_p = significand · 2^-shift, at most 1.
    let bits = top_p.to_bits();
    let (exponent, fraction) = (bits >> 23, u128::from(bits & 0x7f_ffff));
    let (significand, shift) = match exponent {
        0 => (fraction, 149),
        _ => (fraction | 0x80_0000, 150u32.saturating_sub(exponent)),
    };
    let product = significand * u128::from(total); // below 2^88
    let part = if shift >= 100 { u128::from(product > 0) } else { product.div_ceil(1 << shift) };
    (part as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scale(max: f32, temperature: f32, min_p: f32) -> Scale {
        Scale::new(&SamplingParams { temperature, min_p, ..SamplingParams::default() }, max, 1000)
    }

    proptest! {
        #[test]
        fn a_mass_is_the_exponential(
            l in -90f32..=0.0, max in -1e3f32..1e3, temperature in 0.05f32..20.0, vocab_bits in 0u32..33,
        ) {
            let params = SamplingParams { temperature, ..SamplingParams::default() };
            let (l, scale) = (max + l, Scale::new(&params, max, 1 << vocab_bits));
            let truth = f64::from(scale.below_max(l)).exp() * largest_mass(1 << vocab_bits) as f64;
            let got = scale.mass(l) as f64;
            prop_assert!((got - truth).abs() <= 0.5 + truth * 1e-7, "{} {}", got, truth);
        }

        #[test]
        fn all_of_a_vocabulary_fits(
            vocab_size in prop_oneof![1usize..1 << 20, (0u32..31).prop_map(|bits| 1 << bits)],
        ) {
            let all = u128::from(largest_mass(vocab_size)) * vocab_size as u128;
            prop_assert!(all <= 1 << 63 && largest_mass(vocab_size) <= 1 << 40);
            prop_assert!(all > 1 << 62 || largest_mass(vocab_size) == 1 << 40, "no coarser than it must be");
        }

        #[test]
        fn a_share_is_rounded_up(
            top_p in prop_oneof![0f32..=1.0, (1u32..0x3f80_0000).prop_map(f32::from_bits)],
            total in 1u64..1 << 62,
        ) {
            prop_assume!(top_p > 0.0);
            let got = share(top_p, total);
            // f64 has 53 bits: judged to within its rounding.
            let truth = f64::from(top_p) * total as f64;
            prop_assert!(got as f64 >= truth * (1.0 - 1e-15) && got as f64 <= truth * (1.0 + 1e-15) + 1.0);
        }
    }

    #[test]
    fn the_edges() {
        assert_eq!(scale(3.0, 0.1, 0.0).mass(3.0), 1 << 40);
        assert_eq!(scale(3.0, 1.0, 0.0).mass(f32::NEG_INFINITY), 0);
        assert_eq!(scale(3e38, 1e-45, 0.0).mass(-3e38), 0);
        assert_eq!(share(1.0, 12), 12);
        assert_eq!(share(0.5, 12), 6);
        assert_eq!(share(0.5, 13), 7);
        assert_eq!(share(f32::from_bits(1), u64::MAX), 1);
        assert!(scale(1.0, 0.5, 1.0).reaches(1.0) && !scale(1.0, 0.5, 1.0).reaches(0.999));
        assert!(
            scale(f32::MAX, 1.0, 0.0).reaches(f32::MIN) && scale(0.0, 1.0, 0.0).reaches(f32::NEG_INFINITY)
        );
    }
}
