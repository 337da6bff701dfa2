//! Sums of exponentials by their definition ([promise 1](crate#promises)): term by term, with every digit
//! kept.

use crate::params as c;
use std::collections::BTreeMap;

/// `a·b + c` rounded once, without a fused instruction: the product is exact in f64; the sum is rounded to
/// odd in f64 and then to f32 (S. Boldo, G. Melquiond, "Emulation of FMA and Correctly Rounded Sums: Proved
/// Algorithms Using Rounding to Odd", IEEE TC 2008).
fn fma(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    // The rounding error of the sum (D. Knuth, TAOCP volume 2, 4.2.2, theorem B).
    let part = sum - product;
    let lost = (product - (sum - part)) + (c - part);
    if lost == 0.0 || sum.to_bits() & 1 == 1 {
        return sum as f32;
    }
    // The last bit is even, so the f64 on the other side of the exact sum is the odd one.
    let away = (lost > 0.0) == (sum > 0.0);
    f64::from_bits(if away { sum.to_bits() + 1 } else { sum.to_bits() - 1 }) as f32
}

/// `e^x` as `(significand, exponent)`: the significand is an integer of 24 bits, the value is `significand ·
/// 2^exponent`. `None` where x adds nothing to a sum: minus infinity, and magnitudes above 2^21. x must not
/// be NaN.
pub fn exp_term(x: f32) -> Option<(u32, i32)> {
    let float = f32::from_bits;
    if x.abs() > float(c::LMHEAD_EXP_LIMIT) {
        return None;
    }
    let shift = float(c::LMHEAD_EXP_SHIFT);
    let n = fma(x, float(c::LMHEAD_EXP_LOG2E), shift) - shift;
    let r = fma(-n, float(c::LMHEAD_EXP_LN2_LO), fma(-n, float(c::LMHEAD_EXP_LN2_HI), x));
    let mut p = float(c::LMHEAD_EXP_C6);
    for bits in [c::LMHEAD_EXP_C5, c::LMHEAD_EXP_C4, c::LMHEAD_EXP_C3, c::LMHEAD_EXP_C2] {
        p = fma(p, r, float(bits));
    }
    p = fma(fma(p, r, 1.0), r, 1.0);
    // p lies between 1/2 and 2, so scaling it to an integer is exact in f64.
    let below_one = p < 1.0;
    let significand = (f64::from(p) * f64::from(1u32 << if below_one { 24 } else { 23 })) as u32;
    Some((significand, n as i32 - if below_one { 24 } else { 23 }))
}

/// The sum of `e^l` over a row as `(top, words)`: word i counts units of `2^(32 (top - 2 + i))`. `None` where
/// no logit has a term.
pub fn exp_sum(logits: &[f32]) -> Option<(i32, [u64; 3])> {
    let mut digits: BTreeMap<i32, u64> = BTreeMap::new();
    for (significand, exponent) in logits.iter().filter_map(|l| exp_term(*l)) {
        let digit = exponent.div_euclid(32);
        let shifted = u64::from(significand) << exponent.rem_euclid(32);
        *digits.entry(digit).or_default() += shifted & u64::from(u32::MAX);
        *digits.entry(digit + 1).or_default() += shifted >> 32;
    }
    let (&top, _) = digits.last_key_value()?;
    Some((top, [-2, -1, 0].map(|below| digits.get(&(top + below)).copied().unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Magnitudes from 2^-32 to 2^32: with them, as in the definition, no result is subnormal.
    fn float() -> impl Strategy<Value = f32> {
        (any::<u32>(), 95u32..159)
            .prop_map(|(bits, exponent)| f32::from_bits(bits & 0x807f_ffff | exponent << 23))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

        /// Compares with the machine's FMA, or its C library's, which are taken to be right.
        #[test]
        fn fma_rounds_once(a in float(), b in float(), c in float(), near in any::<bool>()) {
            // With `near`, the product and `c` nearly cancel.
            let c = if near { -(a * b) } else { c };
            prop_assert_eq!(fma(a, b, c), a.mul_add(b, c));
        }
    }
}
