//! `e^x` of one f32 as an integer times a power of two, computed with f32 operations that every CPU and GPU
//! rounds alike. Used for sums of exponentials and the masses of `top_p`.
//!
//! The method is range reduction after Cody and Waite ("Software Manual for the Elementary Functions", 1980)
//! and a polynomial of degree 6; `kernels/params.h` has the formula and the constants, which host and device
//! share. The device's version is under `kernels/answers`.

use crate::params as c;

const LOG2E: f32 = f32::from_bits(c::LMHEAD_EXP_LOG2E);
const SHIFT: f32 = f32::from_bits(c::LMHEAD_EXP_SHIFT);
const LN2_HI: f32 = f32::from_bits(c::LMHEAD_EXP_LN2_HI);
const LN2_LO: f32 = f32::from_bits(c::LMHEAD_EXP_LN2_LO);
/// Coefficients of the polynomial, from r^6 down to r^2.
const COEFFICIENTS: [f32; 5] = [
    f32::from_bits(c::LMHEAD_EXP_C6),
    f32::from_bits(c::LMHEAD_EXP_C5),
    f32::from_bits(c::LMHEAD_EXP_C4),
    f32::from_bits(c::LMHEAD_EXP_C3),
    f32::from_bits(c::LMHEAD_EXP_C2),
];

/// The largest magnitude of x that `Term::exp` takes, 2^21.
pub(crate) const LIMIT: f32 = f32::from_bits(c::LMHEAD_EXP_LIMIT);

/// `significand · 2^exponent`; the significand has 24 bits, the highest of them set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Term {
    pub significand: u32,
    pub exponent: i32,
}

impl Term {
    /// `e^x` for `|x| <= LIMIT`, with a relative error below 1e-7. For other x the result is unspecified.
    ///
    /// Without branches, so that a loop over it vectorises. Where the instruction set has no FMA, `mul_add`
    /// calls the system's `fmaf`, which is slow but gives the same bits.
    #[inline(always)]
    pub fn exp(x: f32) -> Term {
        let shifted = x.mul_add(LOG2E, SHIFT);
        let n = shifted - SHIFT;
        let r = (-n).mul_add(LN2_LO, (-n).mul_add(LN2_HI, x));
        let [c6, c5, c4, c3, c2] = COEFFICIENTS;
        let p =
            c6.mul_add(r, c5).mul_add(r, c4).mul_add(r, c3).mul_add(r, c2).mul_add(r, 1.0).mul_add(r, 1.0);
        // The unit in the last place of SHIFT is 1, so n is also the difference of the bits.
        let n = shifted.to_bits().wrapping_sub(SHIFT.to_bits()) as i32;
        Term {
            significand: p.to_bits() & 0x7f_ffff | 0x80_0000,
            exponent: ((p.to_bits() >> 23) as i32).wrapping_add(n).wrapping_sub(127 + 23),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::exp_term;
    use proptest::prelude::*;

    /// Largest relative error over the floats with these bits, with either sign, against f64.
    fn worst(bits: impl Iterator<Item = u32>) -> f64 {
        bits.flat_map(|bits| [bits, bits | 1 << 31]).fold(0.0, |worst: f64, bits| {
            let x = f32::from_bits(bits);
            let Term { significand, exponent } = Term::exp(x);
            assert!((1 << 23..1 << 24).contains(&significand), "{x:e}");
            // e^x / 2^exponent, without overflow: ln 2 in two parts.
            let n = f64::from(exponent);
            let rest = (f64::from(x) - n * f64::from_bits(c::LMHEAD_LN2_HI64))
                - n * f64::from_bits(c::LMHEAD_LN2_LO64);
            worst.max((f64::from(significand) / rest.exp() - 1.0).abs())
        })
    }

    #[test]
    fn the_error_is_below_1e_7_up_to_the_limit() {
        let step = 10_007; // a prime: all last bits are met
        let error = worst((0..=LIMIT.to_bits()).step_by(step));
        assert!(error < 1e-7, "{error:e}");
        // |r| is largest where n changes.
        for n in [0, 1, 2, 3, 10, 100, 1000, 10_000, 1_000_000, 3_000_000] {
            let border = ((f64::from(n) + 0.5) * std::f64::consts::LN_2) as f32;
            let error =
                worst((border.to_bits() - 300..border.to_bits() + 300).filter(|b| *b <= LIMIT.to_bits()));
            assert!(error < 1e-7, "{n}: {error:e}");
        }
    }

    #[test]
    fn one_is_exact_and_nothing_below_zero_is_above_it() {
        let one = Term { significand: 1 << 23, exponent: -23 };
        for x in [0.0, -0.0, f32::from_bits(1), -f32::from_bits(1), 1e-30, -1e-30] {
            assert_eq!(Term::exp(x), one, "{x:e}");
        }
        for bits in (0..=1f32.to_bits()).step_by(101) {
            let term = Term::exp(-f32::from_bits(bits));
            assert!(term.exponent < -23 || term == one, "{:e}", f32::from_bits(bits));
        }
    }

    proptest! {
        #[test]
        fn the_reference_has_the_same_bits(x in prop_oneof![-100f32..100.0, -2e6f32..2e6, any::<f32>()]) {
            prop_assume!(x.abs() <= LIMIT);
            let Term { significand, exponent } = Term::exp(x);
            prop_assert_eq!(Some((significand, exponent)), exp_term(x));
        }
    }
}
