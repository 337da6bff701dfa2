//! Data types of weights, hidden states and logits, and the rounding between them.

use crate::error::{Error, Result};
use half::{bf16, f16};
use lmhead_cpu::{RowType, e4m3};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The type of one element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F32,
    F16,
    Bf16,
    I8,
    /// FP8 without infinities ([`lmhead_cpu::e4m3`]); only for weights.
    #[serde(skip_deserializing)]
    E4m3,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
            DType::I8 | DType::E4m3 => 1,
        }
    }

    /// Whether hidden states and logits can have this type. Weights of other types have scales.
    pub const fn is_float(self) -> bool {
        self.float().is_some()
    }

    /// The name used in options, messages and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::Bf16 => "bf16",
            DType::I8 => "i8",
            DType::E4m3 => "e4m3",
        }
    }

    /// The code used in step headers; never changes.
    pub(crate) const fn code(self) -> u8 {
        match self {
            DType::F32 => 1,
            DType::F16 => 2,
            DType::Bf16 => 3,
            DType::I8 => 4,
            DType::E4m3 => 5,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Self> {
        [DType::F32, DType::F16, DType::Bf16, DType::I8, DType::E4m3].into_iter().find(|d| d.code() == code)
    }

    /// Element `i` of little-endian `bytes` as f32. Exact for every type.
    ///
    /// # Panics
    /// When `bytes` ends before element `i`.
    pub fn read(self, bytes: &[u8], i: usize) -> f32 {
        match self {
            DType::F32 => f32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().expect("four bytes")),
            DType::F16 => f16::from_le_bytes(bytes[2 * i..2 * i + 2].try_into().expect("two bytes")).to_f32(),
            DType::Bf16 => {
                bf16::from_le_bytes(bytes[2 * i..2 * i + 2].try_into().expect("two bytes")).to_f32()
            }
            DType::I8 => f32::from(bytes[i] as i8),
            DType::E4m3 => e4m3::widen(bytes[i]),
        }
    }

    /// Widens little-endian `bytes` to f32, one element each. Exact for every type.
    ///
    /// # Panics
    /// When `bytes` does not hold exactly `out.len()` elements.
    #[inline(always)]
    pub fn widen(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), out.len() * self.size(), "widen: bytes and elements differ");
        match (self, self.float()) {
            (_, Some(float)) => float.widen(bytes, out),
            (DType::E4m3, None) => {
                for (o, b) in out.iter_mut().zip(bytes) {
                    *o = e4m3::widen(*b);
                }
            }
            (_, None) => {
                for (o, b) in out.iter_mut().zip(bytes) {
                    *o = f32::from(*b as i8);
                }
            }
        }
    }

    /// Rounds `values` to this type (half to even) into little-endian `out`.
    /// Finite values beyond the type's range become infinite, as IEEE 754 says.
    ///
    /// # Panics
    /// When `out` does not hold exactly `values.len()` elements, and for [`DType::I8`]
    /// and [`DType::E4m3`], which are quantised ([`crate::quantize`]), never rounded to.
    #[inline(always)]
    pub fn round_into(self, values: &[f32], out: &mut [u8]) {
        assert_eq!(out.len(), values.len() * self.size(), "round_into: bytes and elements differ");
        self.float()
            .expect("round_into: int8 and E4M3 are quantised, not rounded to")
            .round_into(values, out);
    }

    /// The float type for the loops of `crates/cpu`; `None` for int8 and E4M3.
    pub(crate) const fn float(self) -> Option<RowType> {
        match self {
            DType::F32 => Some(RowType::F32),
            DType::F16 => Some(RowType::F16),
            DType::Bf16 => Some(RowType::Bf16),
            DType::I8 | DType::E4m3 => None,
        }
    }

    /// The smallest magnitude that rounds to infinity in this type (int8 and E4M3 have none).
    pub fn rounds_to_infinity(self) -> f64 {
        // Halfway between the largest finite value and the next power of two.
        let (precision, max_exponent) = match self {
            DType::F32 => (24, 127),
            DType::F16 => (11, 15),
            DType::Bf16 => (8, 127),
            DType::I8 | DType::E4m3 => return f64::INFINITY,
        };
        libm::ldexp(2.0 - libm::ldexp(1.0, -precision), max_exponent)
    }

    /// Half the distance between `value` and its neighbour in this type: the most that rounding moves it.
    pub fn half_ulp(self, value: f64) -> f64 {
        // (bits of the significand with the implied one, smallest normal exponent)
        let (precision, min_exponent) = match self {
            DType::F32 => (24, -126),
            DType::F16 => (11, -14),
            DType::Bf16 => (8, -126),
            DType::E4m3 => (4, -6),
            DType::I8 => return 0.5,
        };
        let exponent = if value == 0.0 { min_exponent } else { libm::ilogb(value).max(min_exponent) };
        libm::ldexp(1.0, exponent - precision)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for DType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "f32" => Ok(DType::F32),
            "f16" => Ok(DType::F16),
            "bf16" => Ok(DType::Bf16),
            "i8" => Ok(DType::I8),
            _ => Err(Error::dtype("dtype", "f32, f16, bf16 or i8", format!("`{text}`"), "use one of those")),
        }
    }
}

/// How the weights are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// 16- or 32-bit weights as they are.
    None,
    /// int8 weights and int8 activations (quantised per row), int32 accumulation: exact everywhere.
    W8a8,
    /// int8 or E4M3 weights, 16- or 32-bit activations, f32 accumulation.
    W8a16,
}

impl Quantization {
    /// The name used in options, messages and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Quantization::None => "none",
            Quantization::W8a8 => "w8a8",
            Quantization::W8a16 => "w8a16",
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Quantization {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        [Quantization::None, Quantization::W8a8, Quantization::W8a16]
            .into_iter()
            .find(|q| q.name() == text)
            .ok_or_else(|| {
                Error::config("quantization", "none, w8a8 or w8a16", format!("`{text}`"), "use one of those")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_ulp_is_half_the_gap_to_the_next_value() {
        for value in [1.0f32, 1.5, 3.0, 1e-30, 7.5e20, f32::MIN_POSITIVE, 1e-45] {
            let up = f64::from(f32::from_bits(value.to_bits() + 1));
            assert_eq!(DType::F32.half_ulp(f64::from(value)), (up - f64::from(value)) / 2.0, "{value}");
            let b = bf16::from_f32(value);
            let up = f64::from(bf16::from_bits(b.to_bits() + 1).to_f32());
            let b = f64::from(b.to_f32());
            assert_eq!(DType::Bf16.half_ulp(b), (up - b) / 2.0, "{value}");
        }
        for bits in [0x0001u16, 0x0400, 0x3c00, 0x7bfe] {
            let (lo, up) = (f16::from_bits(bits).to_f64(), f16::from_bits(bits + 1).to_f64());
            assert_eq!(DType::F16.half_ulp(lo), (up - lo) / 2.0, "{bits:#06x}");
        }
    }

    /// Tests every 16-bit value, the midpoints between neighbours, and the f32 next to those; then every
    /// 4099th f32.
    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let mut values: Vec<f32> = Vec::new();
        for bits in 0..=u16::MAX {
            for wide in [f16::from_bits(bits).to_f32_const(), bf16::from_bits(bits).to_f32_const()] {
                for step in [0, 0x1000, 0x8000] {
                    let middle = wide.to_bits().wrapping_add(step);
                    values
                        .extend([middle.wrapping_sub(1), middle, middle.wrapping_add(1)].map(f32::from_bits));
                }
                // Midpoints of subnormal f16 lie elsewhere.
                values.push(wide + 2f32.powi(-25));
            }
        }
        values.extend((0..u32::MAX).step_by(4099).map(f32::from_bits));
        let mut bytes = vec![0; 2 * values.len()];
        DType::F16.round_into(&values, &mut bytes);
        for (b, v) in bytes.as_chunks::<2>().0.iter().zip(&values) {
            let (got, want) = (f16::from_le_bytes(*b), f16::from_f32_const(*v));
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{v:e} {got} {want}");
        }
        DType::Bf16.round_into(&values, &mut bytes);
        for (b, v) in bytes.as_chunks::<2>().0.iter().zip(&values) {
            let (got, want) = (bf16::from_le_bytes(*b), bf16::from_f32_const(*v));
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan(), "{v:e} {got} {want}");
        }
    }

    #[test]
    fn infinity_begins_where_rounding_says() {
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            let limit = dtype.rounds_to_infinity() as f32; // f32's own limit becomes infinite itself
            let mut bytes = vec![0; dtype.size()];
            dtype.round_into(&[limit], &mut bytes);
            assert!(dtype.read(&bytes, 0).is_infinite(), "{dtype}");
            let below = f32::from_bits(limit.to_bits() - 1);
            dtype.round_into(&[below], &mut bytes);
            assert!(dtype.read(&bytes, 0).is_finite(), "{dtype}");
        }
        assert_eq!(DType::F16.rounds_to_infinity(), 65520.0);
    }

    #[test]
    fn widen_and_round_are_inverse_for_every_16_bit_value() {
        for dtype in [DType::F16, DType::Bf16] {
            let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let mut wide = vec![0.0; 65536];
            dtype.widen(&bytes, &mut wide);
            let mut back = vec![0u8; bytes.len()];
            dtype.round_into(&wide, &mut back);
            for (i, value) in wide.iter().enumerate() {
                assert_eq!(dtype.read(&bytes, i).is_nan(), value.is_nan());
                if !value.is_nan() {
                    assert_eq!(dtype.read(&bytes, i).to_bits(), value.to_bits());
                    assert_eq!(bytes[2 * i..2 * i + 2], back[2 * i..2 * i + 2], "{dtype} {i:#06x}");
                }
            }
        }
    }
}
