//! AVX-512 with VNNI, and with BF16 and VBMI where `BF16` is true: a quad is one register.

use super::{Arith, Work};
use crate::lanes::{Chunk, Quad};
use std::arch::x86_64::*;

/// Named by [`Isa::run`](super::Isa::run) alone, which asks whether AVX-512 F, BW, DQ, VL and VNNI, and with
/// `BF16` those and VBMI, were detected: what every `unsafe` block here rests on.
pub(crate) struct Avx512<const BF16: bool>;

#[inline(never)]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn run<W: Work>(work: W) -> W::Output {
    work.run::<Avx512<false>>()
}

#[inline(never)]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx512vbmi")]
fn run_bf16<W: Work>(work: W) -> W::Output {
    work.run::<Avx512<true>>()
}

impl<const BF16: bool> Arith for Avx512<BF16> {
    // 16 sums, 4 quads of weights, a chunk of a row; enough sums for two multiplications a cycle of 6 cycles
    // each.
    const TILE: (usize, usize) = (4, 4);
    // Of two quads of weights: 22 sums and what transposes. Where weights are widened besides, registers hold
    // only ten sums (of 5 rows); the others move to memory and back, which up to these rows was measured to
    // cost less than a panel.
    const DIRECT_ROWS: [usize; 3] = [11, 10, 11];
    const DIRECT_TILES: usize = 2;

    type Splat = __m512i;
    type Quad = __m512i;

    #[inline(always)]
    fn call<W: Work>(work: W) -> W::Output {
        // SAFETY: the features as above.
        unsafe { if const { BF16 } { run_bf16(work) } else { run(work) } }
    }

    #[inline(always)]
    fn splat(chunk: &Chunk) -> __m512i {
        // SAFETY: AVX-512 F as above; a chunk is 16 bytes.
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(chunk.0.as_ptr().cast())) }
    }

    #[inline(always)]
    fn load(quad: &Quad) -> __m512i {
        // SAFETY: AVX-512 F as above; a quad is 64 bytes.
        unsafe { _mm512_loadu_si512(std::ptr::from_ref(quad).cast()) }
    }

    #[inline(always)]
    fn store(value: __m512i, quad: &mut Quad) {
        // SAFETY: as in `load`.
        unsafe { _mm512_storeu_si512(std::ptr::from_mut(quad).cast(), value) }
    }

    #[inline(always)]
    fn transpose([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
        // SAFETY: AVX-512 F as above.
        unsafe {
            let (ab, ab_high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xee>(a, b));
            let (cd, cd_high) = (_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xee>(c, d));
            [
                _mm512_shuffle_i32x4::<0x88>(ab, cd),
                _mm512_shuffle_i32x4::<0xdd>(ab, cd),
                _mm512_shuffle_i32x4::<0x88>(ab_high, cd_high),
                _mm512_shuffle_i32x4::<0xdd>(ab_high, cd_high),
            ]
        }
    }

    #[inline(always)]
    fn mul_add(x: __m512i, w: __m512i, sum: __m512i) -> __m512i {
        // SAFETY: AVX-512 F as above.
        unsafe {
            let (x, w, sum) = (_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), _mm512_castsi512_ps(sum));
            _mm512_castps_si512(_mm512_fmadd_ps(x, w, sum))
        }
    }

    #[inline(always)]
    fn mul_add_i16(_: __m512i, _: __m512i, _: __m512i) -> __m512i {
        unreachable!("Isa::multiplies_bytes")
    }

    #[inline(always)]
    fn mul_add_i8(x: __m512i, w: __m512i, sum: __m512i) -> __m512i {
        // SAFETY: VNNI as above.
        unsafe { _mm512_dpbusd_epi32(sum, x, w) }
    }

    #[inline(always)]
    fn mul_add_bf16(x: __m512i, w: __m512i, sum: __m512i) -> __m512i {
        if !BF16 {
            unreachable!("Isa::multiplies_bf16");
        }
        // SAFETY: BF16 as above; __m512bh is any 64 bytes.
        unsafe {
            let (x, w) =
                (std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(w));
            _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), x, w))
        }
    }

    #[inline(always)]
    fn i8_to_f32(quad: __m512i) -> [__m512i; 4] {
        // SAFETY: AVX-512 F and BW as above.
        unsafe {
            // Byte 4i + j of each chunk to the top of its dword j; a negative place gives zero.
            let spread = |i: i32| {
                let to_top = _mm_add_epi8(
                    _mm_set1_epi8(4 * i as i8),
                    _mm_setr_epi8(
                        -128, -128, -128, 0, -128, -128, -128, 1, -128, -128, -128, 2, -128, -128, -128, 3,
                    ),
                );
                let top = _mm512_shuffle_epi8(quad, _mm512_broadcast_i32x4(to_top));
                _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top)))
            };
            [spread(0), spread(1), spread(2), spread(3)]
        }
    }

    #[inline(always)]
    fn i8_to_i16(_: __m512i) -> [__m512i; 2] {
        unreachable!("Isa::multiplies_bytes")
    }

    /// By table: VBMI's lookup takes seven bits, which hold every magnitude but one of 0 and 128: they share
    /// the entry of 128. Its low byte is that of 0 too; the high byte is zeroed where the weight is 0.
    #[inline(always)]
    fn i8_to_bf16(quad: __m512i) -> [__m512i; 2] {
        if !BF16 {
            unreachable!("Isa::multiplies_bf16");
        }
        // SAFETY: AVX-512 BW and VBMI as above; a table is two registers.
        unsafe {
            let table = |of: &[Quad; 2]| (Self::load(&of[0]), Self::load(&of[1]));
            let ((low, low_64), (high, high_64)) = (table(&BF16_LOW), table(&BF16_HIGH));
            let magnitude = _mm512_abs_epi8(quad);
            let low = _mm512_permutex2var_epi8(low, magnitude, low_64);
            let not_0 = _mm512_test_epi8_mask(quad, quad);
            let high = _mm512_maskz_permutex2var_epi8(not_0, high, magnitude, high_64);
            const OR_OF_AND: i32 = 0xf8; // a | (b & c)
            let high = _mm512_ternarylogic_epi32::<OR_OF_AND>(high, quad, _mm512_set1_epi8(i8::MIN));
            [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)]
        }
    }

    #[inline(always)]
    fn reduce_f32(sums: &[Quad; 4]) -> [f32; 16] {
        // SAFETY: AVX-512 F as above.
        unsafe {
            let q = [Self::load(&sums[0]), Self::load(&sums[1]), Self::load(&sums[2]), Self::load(&sums[3])];
            let (ab, cd) = (add_halves(q[0], q[1]), add_halves(q[2], q[3]));
            let (even, odd) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
            let by_lane = _mm512_add_ps(_mm512_castpd_ps(even), _mm512_castpd_ps(odd));
            let mut logits = [0.0; 16];
            _mm512_storeu_ps(logits.as_mut_ptr(), _mm512_permutexvar_ps(by_quad(), by_lane));
            logits
        }
    }

    #[inline(always)]
    fn reduce_i32(sums: &[Quad; 4]) -> [i32; 16] {
        // SAFETY: AVX-512 F as above.
        unsafe {
            let q = [Self::load(&sums[0]), Self::load(&sums[1]), Self::load(&sums[2]), Self::load(&sums[3])];
            let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(q[0], q[1]), _mm512_unpackhi_epi32(q[0], q[1]));
            let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(q[2], q[3]), _mm512_unpackhi_epi32(q[2], q[3]));
            let by_lane = _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
            let mut logits = [0; 16];
            _mm512_storeu_si512(logits.as_mut_ptr().cast(), _mm512_permutexvar_epi32(by_quad(), by_lane));
            logits
        }
    }
}

/// Lanes 0 and 1 of each chunk of a and b in turn, with lanes 2 and 3 added to them.
#[inline(always)]
fn add_halves(a: __m512i, b: __m512i) -> __m512d {
    // SAFETY: private to this file, whose callers run where AVX-512 F was detected.
    unsafe {
        let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        _mm512_castps_pd(_mm512_add_ps(_mm512_castsi512_ps(low), _mm512_castsi512_ps(high)))
    }
}

/// Lane `4 c + q` -> lane `4 q + c`.
#[inline(always)]
fn by_quad() -> __m512i {
    // SAFETY: private to this file, whose callers run where AVX-512 F was detected.
    unsafe { _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15) }
}

/// The bits of a small integer in bf16.
const fn bf16_of(integer: f32) -> u16 {
    (integer.to_bits() >> 16) as u16
}

/// The low and the high byte of 1 to 128 in bf16, each at its number modulo 128.
static BF16_LOW: [Quad; 2] = bf16_bytes(0);
static BF16_HIGH: [Quad; 2] = bf16_bytes(8);

const fn bf16_bytes(shift: u32) -> [Quad; 2] {
    let mut table = [Quad([Chunk([0; 16]); 4]); 2];
    let mut i = 1;
    while i <= 128 {
        let at = i % 128;
        table[at / 64].0[at % 64 / 16].0[at % 16] = (bf16_of(i as f32) >> shift) as u8;
        i += 1;
    }
    table
}
