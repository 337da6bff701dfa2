//! Conversions of slices. Everything here is `#[inline(always)]` integer code without branches, so that it
//! vectorises for the instruction set of the caller; the conversions of the crate `half` detect instructions
//! at every element.

/// The type of the elements of hidden rows, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowType {
    F32,
    F16,
    Bf16,
}

impl RowType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            RowType::F32 => 4,
            RowType::F16 | RowType::Bf16 => 2,
        }
    }

    /// Widens `bytes` to f32, one element each; infinities and NaN included. Exact.
    #[inline(always)]
    pub fn widen(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            RowType::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            RowType::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = widen_f16(u16::from_le_bytes(*b));
                }
            }
            RowType::Bf16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *o = widen_bf16(u16::from_le_bytes(*b));
                }
            }
        }
    }

    /// Rounds `values` to this type (half to even) into `out`. Finite values beyond the type's range become
    /// infinite, as IEEE 754 says.
    #[inline(always)]
    pub fn round_into(self, values: &[f32], out: &mut [u8]) {
        match self {
            RowType::F32 => {
                for (o, v) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                    *o = v.to_le_bytes();
                }
            }
            RowType::F16 => {
                for (o, v) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                    *o = round_f16(*v).to_le_bytes();
                }
            }
            RowType::Bf16 => {
                for (o, v) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                    *o = round_bf16(*v).to_le_bytes();
                }
            }
        }
    }
}

/// The bits of `value` as bf16, half to even.
#[inline(always)]
fn round_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    // Adds half of the last place that is kept, or one less than that if that place is even: so ties go to
    // even.
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let nan = (bits >> 16) | 0x40; // quiet, or the payload could round to infinity
    (if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded }) as u16
}

/// The bits of `value` as f16, half to even.
#[inline(always)]
fn round_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, magnitude) = ((bits >> 16) & 0x8000, bits & 0x7fff_ffff);
    // As for bf16, with the exponent moved from f32's bias of 127 to 15. From 65520 on the result is infinity
    // or above.
    let moved = magnitude.wrapping_add(0xfff + ((magnitude >> 13) & 1)).wrapping_sub(112 << 23) >> 13;
    // For x below 2^-14: the last place of 0.5 + x is 2^-24, f16's smallest step, so this addition rounds as
    // f16 would.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let rounded = if magnitude < 0x3880_0000 { small } else { moved.min(0x7c00) };
    let nan = 0x7e00;
    (sign | if magnitude > 0x7f80_0000 { nan } else { rounded }) as u16
}

/// The bf16 with these bits. Exact.
#[inline(always)]
fn widen_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// The f16 with these bits, infinities and NaN included. Exact.
#[inline(always)]
fn widen_f16(bits: u16) -> f32 {
    let (sign, magnitude) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff));
    // Shifted to the places of an f32, the exponent is too small by 127 - 15 = 112. Multiplying by 2^112
    // corrects that exactly, also for subnormals. Infinity and NaN keep their mantissa and get f32's highest
    // exponent.
    let finite = (f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23)).to_bits();
    let widened = if magnitude >= 0x7c00 { (magnitude << 13) | 0x7f80_0000 } else { finite };
    f32::from_bits(sign | widened)
}
