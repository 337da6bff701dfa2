//! What an id weighs in the nucleus: `exp((l - l_max) / T)` in units of `2^-40`, rounded to the nearest. Sums of these are integers: they
//! have no order, so no shard shows in them. A vocabulary of up to `2^23` ids fits 64 bits; together its roundings are under
//! `2^-18` of the largest mass, those of 262144 ids under `2^-23`.

use crate::merge::exp_nonpositive;

const UNITS: f64 = (1u64 << 40) as f64;

/// The mass of logit `l` where `max` is the row's largest, both finite; 0 for minus infinity.
#[inline(always)]
pub fn mass(l: f32, max: f32, temperature: f32) -> u64 {
    // 2^52 has a unit of 1 in its last place: adding it rounds, and leaves the integer in the low bits.
    const SHIFTER: f64 = (1u64 << 52) as f64;
    let scaled = exp_nonpositive(below_max(l, max, temperature)) * UNITS;
    (scaled + SHIFTER).to_bits() & ((1 << 52) - 1)
}

/// `(l - max) / T`: the natural logarithm of the probability relative to the largest.
#[inline(always)]
pub fn below_max(l: f32, max: f32, temperature: f32) -> f64 {
    (f64::from(l) - f64::from(max)) / f64::from(temperature)
}

/// The min_p filter: whether `exp((l - max) / T) >= min_p`.
#[inline]
pub fn reaches(l: f32, max: f32, temperature: f32, min_p: f32) -> bool {
    below_max(l, max, temperature) >= libm::log(f64::from(min_p))
}

/// The mass that the nucleus has to reach: the smallest integer not below `top_p · total`, and not below 1. Exact.
pub fn share(top_p: f32, total: u64) -> u64 {
    // top_p = significand · 2^-shift, at most 1.
    let bits = top_p.to_bits();
    let (exponent, fraction) = (bits >> 23, u128::from(bits & 0x7f_ffff));
    let (significand, shift) = match exponent {
        0 => (fraction, 149),
        _ => (fraction | 0x80_0000, 150 - exponent),
    };
    let product = significand * u128::from(total); // below 2^88
    let part = if shift >= 100 { u128::from(product > 0) } else { product.div_ceil(1 << shift) };
    (part as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_mass_is_the_exponential(l in -90f32..=0.0, max in -1e3f32..1e3, temperature in 0.05f32..20.0) {
            let l = max + l;
            let truth = (below_max(l, max, temperature)).exp() * UNITS;
            let got = mass(l, max, temperature) as f64;
            prop_assert!((got - truth).abs() <= 0.5 + truth * 1e-13, "{} {}", got, truth);
        }

        #[test]
        fn a_share_is_rounded_up(top_p in prop_oneof![0f32..=1.0, (1u32..0x3f80_0000).prop_map(f32::from_bits)], total in 1u64..1 << 62) {
            prop_assume!(top_p > 0.0);
            let got = share(top_p, total);
            // f64 has 53 bits: judged to within its rounding.
            let truth = f64::from(top_p) * total as f64;
            prop_assert!(got as f64 >= truth * (1.0 - 1e-15) && got as f64 <= truth * (1.0 + 1e-15) + 1.0);
        }
    }

    #[test]
    fn the_edges() {
        assert_eq!(mass(3.0, 3.0, 0.1), 1 << 40);
        assert_eq!(mass(f32::NEG_INFINITY, 3.0, 1.0), 0);
        assert_eq!(mass(-3e38, 3e38, 1e-45), 0);
        assert_eq!(share(1.0, 12), 12);
        assert_eq!(share(0.5, 12), 6);
        assert_eq!(share(0.5, 13), 7);
        assert_eq!(share(f32::from_bits(1), u64::MAX), 1);
        assert!(reaches(1.0, 1.0, 0.5, 1.0) && !reaches(0.999, 1.0, 0.5, 1.0));
        assert!(reaches(f32::MIN, f32::MAX, 1.0, 0.0) && reaches(f32::NEG_INFINITY, 0.0, 1.0, 0.0));
    }
}
