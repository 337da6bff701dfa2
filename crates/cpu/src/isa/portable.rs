//! Instructions that every CPU of the target has; a quad is four registers of four f32.

use super::{Arith, Work};
use crate::lanes::{Chunk, Quad};
use bytemuck::cast;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

pub(crate) struct Portable;

impl Arith for Portable {
    // 8 sums, a quad of weights, a chunk of a row and a product are 14 registers; another row's four sums
    // would not fit.
    const TILE: (usize, usize) = (1, 2);
    const DIRECT_ROWS: [usize; 3] = [1; 3];
    const DIRECT_TILES: usize = 1;

    type Splat = Chunk;
    type Quad = [Chunk; 4];

    #[inline(never)]
    fn call<W: Work>(work: W) -> W::Output {
        work.run::<Portable>()
    }

    #[inline(always)]
    fn splat(chunk: &Chunk) -> Chunk {
        *chunk
    }

    #[inline(always)]
    fn load(quad: &Quad) -> [Chunk; 4] {
        quad.0
    }

    #[inline(always)]
    fn store(value: [Chunk; 4], quad: &mut Quad) {
        quad.0 = value;
    }

    #[inline(always)]
    fn transpose([a, b, c, d]: [[Chunk; 4]; 4]) -> [[Chunk; 4]; 4] {
        // Written out: the compiler would put a loop's arrays into memory.
        [
            [a[0], b[0], c[0], d[0]],
            [a[1], b[1], c[1], d[1]],
            [a[2], b[2], c[2], d[2]],
            [a[3], b[3], c[3], d[3]],
        ]
    }

    #[inline(always)]
    fn mul_add(x: Chunk, w: [Chunk; 4], sum: [Chunk; 4]) -> [Chunk; 4] {
        let (x, w): ([f32; 4], [[f32; 4]; 4]) = (cast(x), cast(w));
        let mut sum: [[f32; 4]; 4] = cast(sum);
        for (sum, w) in sum.iter_mut().zip(&w) {
            for l in 0..4 {
                sum[l] += x[l] * w[l];
            }
        }
        cast(sum)
    }

    #[inline(always)]
    fn mul_add_i16(x: Chunk, w: [Chunk; 4], sum: [Chunk; 4]) -> [Chunk; 4] {
        let mut sum = sum;
        for (sum, w) in sum.iter_mut().zip(&w) {
            // An intrinsic: the compiler does not recognise pmaddwd where a factor is used twice, as all
            // factors of a tile are.
            #[cfg(target_arch = "x86_64")]
            // SAFETY: every x86-64 has SSE2.
            unsafe {
                let (x, w, before): (__m128i, __m128i, __m128i) = (cast(x), cast(*w), cast(*sum));
                *sum = cast(_mm_add_epi32(before, _mm_madd_epi16(x, w)));
            }
            #[cfg(not(target_arch = "x86_64"))]
            {
                let (x, w): ([[i16; 2]; 4], [[i16; 2]; 4]) = (cast(x), cast(*w));
                let mut lanes: [i32; 4] = cast(*sum);
                for l in 0..4 {
                    let pair =
                        i32::from(x[l][0]) * i32::from(w[l][0]) + i32::from(x[l][1]) * i32::from(w[l][1]);
                    lanes[l] = lanes[l].wrapping_add(pair);
                }
                *sum = cast(lanes);
            }
        }
        sum
    }

    #[inline(always)]
    fn mul_add_i8(_: Chunk, _: [Chunk; 4], _: [Chunk; 4]) -> [Chunk; 4] {
        unreachable!("Isa::multiplies_bytes")
    }

    #[inline(always)]
    fn mul_add_bf16(_: Chunk, _: [Chunk; 4], _: [Chunk; 4]) -> [Chunk; 4] {
        unreachable!("Isa::multiplies_bf16")
    }

    #[inline(always)]
    fn i8_to_f32([a, b, c, d]: [Chunk; 4]) -> [[Chunk; 4]; 4] {
        Self::transpose([i8_to_f32(a), i8_to_f32(b), i8_to_f32(c), i8_to_f32(d)])
    }

    #[inline(always)]
    fn i8_to_i16([a, b, c, d]: [Chunk; 4]) -> [[Chunk; 4]; 2] {
        let (a, b, c, d) = (i8_to_i16(a), i8_to_i16(b), i8_to_i16(c), i8_to_i16(d));
        [[a[0], b[0], c[0], d[0]], [a[1], b[1], c[1], d[1]]]
    }

    #[inline(always)]
    fn i8_to_bf16(_: [Chunk; 4]) -> [[Chunk; 4]; 2] {
        unreachable!("Isa::multiplies_bf16")
    }

    #[inline(always)]
    fn e4m3_to_f32([a, b, c, d]: [Chunk; 4]) -> [[Chunk; 4]; 4] {
        Self::transpose([e4m3_to_f32(a), e4m3_to_f32(b), e4m3_to_f32(c), e4m3_to_f32(d)])
    }

    #[inline(always)]
    fn e4m3_to_bf16(_: [Chunk; 4]) -> [[Chunk; 4]; 2] {
        unreachable!("Isa::multiplies_bf16")
    }
}

/// Builds the bits of `2^23 + 128 + w`, whose lowest byte is `w + 128`, and subtracts `2^23 + 128`. This
/// takes two steps fewer than converting integers, and has no SSE2 step that depends on old contents of a
/// register.
#[inline(always)]
fn i8_to_f32(bytes: Chunk) -> [Chunk; 4] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE2.
    unsafe {
        let offset = _mm_xor_si128(cast(bytes), _mm_set1_epi8(i8::MIN));
        let exponent = _mm_set1_epi16((8_388_608.0f32.to_bits() >> 16) as i16);
        let value = |bits| cast(_mm_sub_ps(_mm_castsi128_ps(bits), _mm_set1_ps(8_388_608.0 + 128.0)));
        let low = _mm_unpacklo_epi8(offset, _mm_setzero_si128());
        let high = _mm_unpackhi_epi8(offset, _mm_setzero_si128());
        [
            value(_mm_unpacklo_epi16(low, exponent)),
            value(_mm_unpackhi_epi16(low, exponent)),
            value(_mm_unpacklo_epi16(high, exponent)),
            value(_mm_unpackhi_epi16(high, exponent)),
        ]
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let bytes: [i8; 16] = cast(bytes);
        let four = |first: usize| cast(std::array::from_fn::<f32, 4, _>(|i| f32::from(bytes[first + i])));
        [four(0), four(4), four(8), four(12)]
    }
}

/// As for AVX2.
#[inline(always)]
fn e4m3_to_f32(bytes: Chunk) -> [Chunk; 4] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE2.
    unsafe {
        let (bytes, zero): (__m128i, __m128i) = (cast(bytes), _mm_setzero_si128());
        let magnitude = _mm_set1_epi32(0x7f00_0000);
        let shift_exponent = _mm_castsi128_ps(_mm_set1_epi32((127 + 120) << 23));
        let value = |top: __m128i| {
            let nan = _mm_cmpeq_epi32(_mm_and_si128(top, magnitude), magnitude);
            let moved = _mm_and_si128(_mm_srai_epi32::<4>(top), _mm_set1_epi32(0x87f0_0000_u32 as i32));
            let value = _mm_mul_ps(_mm_castsi128_ps(moved), shift_exponent);
            cast(_mm_or_si128(_mm_castps_si128(value), nan))
        };
        let (low, high) = (_mm_unpacklo_epi8(zero, bytes), _mm_unpackhi_epi8(zero, bytes));
        [
            value(_mm_unpacklo_epi16(zero, low)),
            value(_mm_unpackhi_epi16(zero, low)),
            value(_mm_unpacklo_epi16(zero, high)),
            value(_mm_unpackhi_epi16(zero, high)),
        ]
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let four =
            |first: usize| cast(std::array::from_fn::<f32, 4, _>(|i| crate::e4m3::widen(bytes.0[first + i])));
        [four(0), four(4), four(8), four(12)]
    }
}

#[inline(always)]
fn i8_to_i16(bytes: Chunk) -> [Chunk; 2] {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE2.
    unsafe {
        let bytes: __m128i = cast(bytes);
        let signs = _mm_cmpgt_epi8(_mm_setzero_si128(), bytes);
        [cast(_mm_unpacklo_epi8(bytes, signs)), cast(_mm_unpackhi_epi8(bytes, signs))]
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        let bytes: [i8; 16] = cast(bytes);
        let half = |first: usize| cast(std::array::from_fn::<i16, 8, _>(|i| i16::from(bytes[first + i])));
        [half(0), half(8)]
    }
}
