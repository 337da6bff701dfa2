//! AVX2 and FMA: a quad is two registers.

use super::{Arith, Work};
use crate::lanes::{Chunk, Quad};
use std::arch::x86_64::*;

/// Every `unsafe` block here relies on this: only [`Isa::run`](super::Isa::run) uses this type, after
/// checking that AVX2 and FMA were detected.
pub(crate) struct Avx2;

#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn run<W: Work>(work: W) -> W::Output {
    work.run::<Avx2>()
}

impl Arith for Avx2 {
    // 12 sums, a quad of weights, a chunk of a row and a product: all 16 registers.
    const TILE: (usize, usize) = (1, 6);
    const DIRECT_ROWS: [usize; 3] = [5, 5, 2];
    const DIRECT_TILES: usize = 1;

    type Splat = __m256i;
    type Quad = [__m256i; 2];

    #[inline(always)]
    fn call<W: Work>(work: W) -> W::Output {
        // SAFETY: AVX2 and FMA as above.
        unsafe { run(work) }
    }

    #[inline(always)]
    fn splat(chunk: &Chunk) -> __m256i {
        // SAFETY: AVX2 as above; a chunk is 16 bytes.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(chunk.0.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load(quad: &Quad) -> [__m256i; 2] {
        // SAFETY: AVX2 as above; two chunks, twice, are 32 bytes each.
        unsafe {
            let half = std::ptr::from_ref(quad).cast::<__m256i>();
            [_mm256_loadu_si256(half), _mm256_loadu_si256(half.add(1))]
        }
    }

    #[inline(always)]
    fn store(value: [__m256i; 2], quad: &mut Quad) {
        // SAFETY: as in `load`.
        unsafe {
            let half = std::ptr::from_mut(quad).cast::<__m256i>();
            _mm256_storeu_si256(half, value[0]);
            _mm256_storeu_si256(half.add(1), value[1]);
        }
    }

    #[inline(always)]
    fn transpose([a, b, c, d]: [[__m256i; 2]; 4]) -> [[__m256i; 2]; 4] {
        // SAFETY: AVX2 as above.
        unsafe {
            [
                [
                    _mm256_permute2x128_si256::<0x20>(a[0], b[0]),
                    _mm256_permute2x128_si256::<0x20>(c[0], d[0]),
                ],
                [
                    _mm256_permute2x128_si256::<0x31>(a[0], b[0]),
                    _mm256_permute2x128_si256::<0x31>(c[0], d[0]),
                ],
                [
                    _mm256_permute2x128_si256::<0x20>(a[1], b[1]),
                    _mm256_permute2x128_si256::<0x20>(c[1], d[1]),
                ],
                [
                    _mm256_permute2x128_si256::<0x31>(a[1], b[1]),
                    _mm256_permute2x128_si256::<0x31>(c[1], d[1]),
                ],
            ]
        }
    }

    #[inline(always)]
    fn mul_add(x: __m256i, w: [__m256i; 2], sum: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: FMA as above.
        unsafe {
            let x = _mm256_castsi256_ps(x);
            let low = _mm256_fmadd_ps(x, _mm256_castsi256_ps(w[0]), _mm256_castsi256_ps(sum[0]));
            let high = _mm256_fmadd_ps(x, _mm256_castsi256_ps(w[1]), _mm256_castsi256_ps(sum[1]));
            [_mm256_castps_si256(low), _mm256_castps_si256(high)]
        }
    }

    #[inline(always)]
    fn mul_add_i16(x: __m256i, w: [__m256i; 2], sum: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: AVX2 as above.
        unsafe {
            [
                _mm256_add_epi32(sum[0], _mm256_madd_epi16(x, w[0])),
                _mm256_add_epi32(sum[1], _mm256_madd_epi16(x, w[1])),
            ]
        }
    }

    #[inline(always)]
    fn mul_add_i8(_: __m256i, _: [__m256i; 2], _: [__m256i; 2]) -> [__m256i; 2] {
        unreachable!("Isa::multiplies_bytes")
    }

    #[inline(always)]
    fn mul_add_bf16(_: __m256i, _: [__m256i; 2], _: [__m256i; 2]) -> [__m256i; 2] {
        unreachable!("Isa::multiplies_bf16")
    }

    #[inline(always)]
    fn i8_to_f32(quad: [__m256i; 2]) -> [[__m256i; 2]; 4] {
        // SAFETY: AVX2 as above.
        let value = |top| unsafe { _mm256_castps_si256(_mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(top))) };
        let both = |i| [value(bytes_to_dword_tops(quad[0], i)), value(bytes_to_dword_tops(quad[1], i))];
        [both(0), both(1), both(2), both(3)]
    }

    /// Sign and magnitude are moved to their places in an f32, where the exponent is too small by 127 - 7 =
    /// 120: multiplying by 2^120 corrects that, exactly.
    #[inline(always)]
    fn e4m3_to_f32(quad: [__m256i; 2]) -> [[__m256i; 2]; 4] {
        // SAFETY: AVX2 as above.
        let value = |top| unsafe {
            let magnitude = _mm256_set1_epi32(0x7f00_0000);
            let nan = _mm256_cmpeq_epi32(_mm256_and_si256(top, magnitude), magnitude);
            let moved =
                _mm256_and_si256(_mm256_srai_epi32::<4>(top), _mm256_set1_epi32(0x87f0_0000_u32 as i32));
            let shift_exponent = _mm256_castsi256_ps(_mm256_set1_epi32((127 + 120) << 23));
            let value = _mm256_mul_ps(_mm256_castsi256_ps(moved), shift_exponent);
            _mm256_or_si256(_mm256_castps_si256(value), nan)
        };
        let both = |i| [value(bytes_to_dword_tops(quad[0], i)), value(bytes_to_dword_tops(quad[1], i))];
        [both(0), both(1), both(2), both(3)]
    }

    #[inline(always)]
    fn i8_to_i16([a, b]: [__m256i; 2]) -> [[__m256i; 2]; 2] {
        // SAFETY: AVX2 as above.
        unsafe {
            let low = |half| _mm256_srai_epi16::<8>(_mm256_unpacklo_epi8(half, half));
            let high = |half| _mm256_srai_epi16::<8>(_mm256_unpackhi_epi8(half, half));
            [[low(a), low(b)], [high(a), high(b)]]
        }
    }

    #[inline(always)]
    fn i8_to_bf16(_: [__m256i; 2]) -> [[__m256i; 2]; 2] {
        unreachable!("Isa::multiplies_bf16")
    }

    #[inline(always)]
    fn e4m3_to_bf16(_: [__m256i; 2]) -> [[__m256i; 2]; 2] {
        unreachable!("Isa::multiplies_bf16")
    }
}

/// Moves byte 4i + j of each chunk to the top of its dword j, with zeros below.
#[inline(always)]
fn bytes_to_dword_tops(half: __m256i, i: i8) -> __m256i {
    let top = |j| 4 * i + j;
    let ([a, b, c, d], zero) = ([top(0), top(1), top(2), top(3)], -1);
    // SAFETY: private to this file, whose callers run where AVX2 was detected.
    unsafe {
        let chunk =
            _mm_setr_epi8(zero, zero, zero, a, zero, zero, zero, b, zero, zero, zero, c, zero, zero, zero, d);
        _mm256_shuffle_epi8(half, _mm256_broadcastsi128_si256(chunk))
    }
}
