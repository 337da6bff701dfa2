//! FP8 E4M3 without infinities (OCP's E4M3, `torch.float8_e4m3fn`): a sign, four bits of exponent with bias
//! 7, three of mantissa; the largest magnitude is 448, the smallest 2^-9, and the codes 0x7f and 0xff are
//! NaN. f16, bf16 and f32 hold every value exactly, as normal numbers.

/// The value of a code.
pub const fn widen(code: u8) -> f32 {
    let sign = (code as u32 & 0x80) << 24;
    let magnitude = code as u32 & 0x7f;
    let bits = match magnitude {
        0x7f => 0x7fc0_0000,
        // Shifted to the places of an f32, the exponent is too small by 127 - 7 = 120.
        _ => (f32::from_bits(magnitude << 20) * f32::from_bits((127 + 120) << 23)).to_bits(),
    };
    f32::from_bits(sign | bits)
}

/// Whether a code is NaN.
pub const fn is_nan(code: u8) -> bool {
    code & 0x7f == 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_what_the_format_says() {
        for code in 0..=u8::MAX {
            let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
            let magnitude = match (exponent, code & 7) {
                (15, 7) => f64::NAN,
                (0, _) => mantissa * 2f64.powi(-9),
                _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
            };
            let (value, wanted) = (widen(code), if code < 0x80 { magnitude } else { -magnitude });
            assert_eq!(value.is_nan(), is_nan(code), "{code:#04x}");
            assert!(value.is_nan() || f64::from(value).to_bits() == wanted.to_bits(), "{code:#04x}: {value}");
        }
        assert_eq!((widen(0x7e), widen(0x01)), (448.0, 2f32.powi(-9)));
    }
}
