//! Symmetric int8 quantisation of one row: the rule of promise 2, for hidden rows and for weights alike.
//!
//! `scale = absmax / 127`, `q = clamp(round_half_even(x / scale), -127, 127)`, every operation one IEEE f32
//! operation. A row whose scale would be below [`f32::MIN_POSITIVE`] gets scale 1 and zeros. A row with NaN
//! or infinity gets scale NaN (and zeros), so that every logit computed from it is NaN.

/// Quantises `values` into `out` and returns the scale.
///
/// # Panics
/// When the lengths differ.
#[inline]
pub fn quantize_row(values: &[f32], out: &mut [i8]) -> f32 {
    assert_eq!(values.len(), out.len(), "quantize_row: lengths differ");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: this machine has AVX2.
        return unsafe { quantize_row_avx2(values, out) };
    }
    quantize(values, out)
}

/// `quantize` compiled for AVX2: twice the lanes, the same IEEE operations.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn quantize_row_avx2(values: &[f32], out: &mut [i8]) -> f32 {
    quantize(values, out)
}

/// [`quantize_row`] with the instructions of the function that this is compiled into.
#[inline(always)]
pub(crate) fn quantize(values: &[f32], out: &mut [i8]) -> f32 {
    // Magnitudes of finite floats compare as their bits do, and NaN and infinity have bits of at least
    // INFINITY: one integer maximum finds both in a pass that vectorises.
    let absmax = values.iter().fold(0u32, |m, v| m.max(v.to_bits() & 0x7fff_ffff));
    if absmax >= f32::INFINITY.to_bits() {
        out.fill(0);
        return f32::NAN;
    }
    let scale = f32::from_bits(absmax) / 127.0;
    if scale < f32::MIN_POSITIVE {
        out.fill(0);
        return 1.0;
    }
    for (q, v) in out.iter_mut().zip(values) {
        *q = round_half_even_i8(v / scale);
    }
    scale
}

/// `clamp(round_half_even(x), -127, 127)` for finite `|x| < 2^22`; here `|x|` is at most a few ulps above
/// 127.
#[inline(always)]
fn round_half_even_i8(x: f32) -> i8 {
    // Adding 1.5 * 2^23 rounds to an integer in the current mode, half to even, and leaves it, in two's
    // complement, in the low bits. `round_ties_even` and a saturating `as i32` would not vectorise on every
    // instruction set.
    const MAGIC: f32 = 12_582_912.0;
    (x.clamp(-127.0, 127.0) + MAGIC).to_bits() as i8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(values: &[f32]) -> (Vec<i8>, f32) {
        if values.iter().any(|v| !v.is_finite()) {
            return (vec![0; values.len()], f32::NAN);
        }
        let scale = values.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
        if scale < f32::MIN_POSITIVE {
            return (vec![0; values.len()], 1.0);
        }
        let q = values.iter().map(|v| (v / scale).round_ties_even().clamp(-127.0, 127.0) as i8).collect();
        (q, scale)
    }

    proptest! {
        #[test]
        fn equals_the_rule_word_by_word(values in prop::collection::vec(any::<f32>(), 0..70)) {
            let (want, want_scale) = naive(&values);
            // With the best instructions of this machine, and with those of every machine.
            for quantize in [quantize_row, quantize] {
                let mut got = vec![99i8; values.len()];
                let scale = quantize(&values, &mut got);
                prop_assert_eq!(&got, &want);
                prop_assert!(
                    scale.to_bits() == want_scale.to_bits() || (scale.is_nan() && want_scale.is_nan())
                );
            }
        }

        #[test]
        fn halves_go_to_even(n in -126i32..126) {
            // absmax 127 makes the scale exactly 1, so n + 0.5 is a tie.
            let mut q = [0i8; 2];
            prop_assert_eq!(quantize_row(&[127.0, n as f32 + 0.5], &mut q), 1.0);
            let even = if n % 2 == 0 { n } else { n + 1 };
            prop_assert_eq!(i32::from(q[1]), even);
        }
    }

    #[test]
    fn tiny_zero_and_broken_rows() {
        let mut q = [7i8; 3];
        assert_eq!(quantize_row(&[0.0, -0.0, 1e-40], &mut q), 1.0);
        assert_eq!(q, [0; 3]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(quantize_row(&[1.0, bad, 2.0], &mut q).is_nan());
            assert_eq!(q, [0; 3]);
        }
        assert_eq!(quantize_row(&[], &mut []), 1.0);
    }
}
