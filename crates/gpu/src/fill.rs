//! Arrays of known values: on a device made there (`kernels/check/fill_sm80.cu`), on the host by the same
//! rule (`kernels/check/values.cuh`).

use lmhead::DType;
use lmhead::backend::params as p;
use lmhead_testkit::Random;

/// What an array holds: a function of the seed and the place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Every byte alike.
    Bytes(u8),
    /// Random values of both signs; of floats magnitudes from 2^-8 to 1, of E4M3 any below 2.
    Random(DType, u64),
    /// Integers from -8 to 7. The first of every `row` elements is 127, so that a row of them is quantised
    /// with the scale 1. With `row` 0 no element is, which E4M3 needs.
    Small { dtype: DType, seed: u64, row: usize },
}

/// 64 random bits of a place: number `place` of splitmix64 from that seed.
pub fn random(seed: u64, place: u64) -> u64 {
    Random(seed.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15))).next()
}

/// The `LMHEAD_FILL_SMALL_*` of a type.
pub fn small_kind(dtype: DType) -> u32 {
    match dtype {
        DType::I8 => p::LMHEAD_FILL_SMALL_I8,
        DType::E4m3 => p::LMHEAD_FILL_SMALL_E4M3,
        DType::Bf16 => p::LMHEAD_FILL_SMALL_BF16,
        DType::F16 => p::LMHEAD_FILL_SMALL_F16,
        DType::F32 => p::LMHEAD_FILL_SMALL_F32,
    }
}

/// A small integer in E4M3, as `check::bits_of` (`kernels/check/values.cuh`).
fn e4m3(value: i32) -> u8 {
    assert!((-8..8).contains(&value), "an integer from -8 to 7, got {value}; fill rows of bf16 with 127");
    let magnitude = (value.abs() as f32).to_bits() >> 20;
    magnitude.saturating_sub((127 - 7) << 3) as u8 | if value < 0 { 0x80 } else { 0 }
}

impl Fill {
    /// For `vectors` of 16 bytes at `out`, the first of which is vector `first` of a larger array.
    pub fn params(&self, out: u64, vectors: usize, first: usize) -> p::FillParams {
        let (kind, seed, row) = match *self {
            Fill::Bytes(value) => (p::LMHEAD_FILL_BYTES, u64::from(value), 0),
            Fill::Random(dtype, seed) => {
                let kind = match dtype {
                    DType::I8 => p::LMHEAD_FILL_I8,
                    DType::E4m3 => p::LMHEAD_FILL_E4M3,
                    DType::Bf16 => p::LMHEAD_FILL_BF16,
                    DType::F16 => p::LMHEAD_FILL_F16,
                    DType::F32 => p::LMHEAD_FILL_F32,
                };
                (kind, seed, 0)
            }
            Fill::Small { dtype, seed, row } => (small_kind(dtype), seed, row),
        };
        let (vectors, first, row) = (vectors as u64, first as u64, row as u32);
        p::FillParams { out: out as usize as *mut _, vectors, first, seed, row, kind }
    }

    /// The eight bytes at that place.
    fn word(&self, place: u64) -> u64 {
        match *self {
            Fill::Bytes(value) => u64::from_le_bytes([value; 8]),
            Fill::Random(dtype, seed) => {
                let word = random(seed, place);
                match dtype {
                    DType::I8 => word,
                    // No NaN: without the highest bit of the exponent.
                    DType::E4m3 => word & 0xbfbf_bfbf_bfbf_bfbf,
                    // For each element: sign and mantissa are kept, and three random bits and a base make the
                    // exponent.
                    DType::Bf16 => {
                        let low = (word >> 5) & 0x0007_0007_0007_0007;
                        (word & 0x807f_807f_807f_807f) | ((low + 0x0077_0077_0077_0077) << 7)
                    }
                    DType::F16 => {
                        let low = (word >> 7) & 0x0007_0007_0007_0007;
                        (word & 0x83ff_83ff_83ff_83ff) | ((low + 0x0007_0007_0007_0007) << 10)
                    }
                    DType::F32 => {
                        let low = (word >> 11) & 0x0000_0007_0000_0007;
                        (word & 0x807f_ffff_807f_ffff) | ((low + 0x0000_0077_0000_0077) << 23)
                    }
                }
            }
            Fill::Small { dtype, seed, row } => {
                let (word, size) = (random(seed, place), dtype.size());
                let mut bytes = [0; 8];
                for (i, to) in bytes.chunks_mut(size).enumerate() {
                    let element = place as usize * (8 / size) + i;
                    let first = row != 0 && element.is_multiple_of(row);
                    let value = if first { 127 } else { (word >> (8 * size * i) & 15) as i32 - 8 };
                    match dtype {
                        DType::I8 => to[0] = value as i8 as u8,
                        DType::E4m3 => to[0] = e4m3(value),
                        _ => dtype.round_into(&[value as f32], to),
                    }
                }
                u64::from_le_bytes(bytes)
            }
        }
    }

    /// `len` bytes from byte `at` on, which is a multiple of 8.
    pub fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at.is_multiple_of(8), "a whole word's place, got byte {at}");
        let mut bytes = Vec::with_capacity(len.next_multiple_of(8));
        for place in at / 8..(at + len).div_ceil(8) {
            bytes.extend_from_slice(&self.word(place as u64).to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}
