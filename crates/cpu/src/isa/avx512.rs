//! AVX-512 with VNNI, and with BF16 and VBMI where `BF16` is true: a quad is one register.

use super::{Arith, Work};
use crate::e4m3;
use crate::lanes::{Chunk, Quad};
use std::arch::x86_64::*;

/// Every `unsafe` block here relies on this: only [`Isa::run`](super::Isa::run) uses this type, after
/// checking that AVX-512 F, BW, DQ, VL and VNNI, and for `BF16` also BF16 and VBMI, were detected.
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
    // 16 sums, 4 quads of weights, a chunk of a row. Enough independent sums for two instructions per cycle
    // with a latency of 6 cycles.
    const TILE: (usize, usize) = (4, 4);
    // With two quads of weights: 22 sums, and registers to transpose in. Where weights are also widened, only
    // ten sums (5 rows) fit; the others are spilled, which by measurement costs less than a panel up to these
    // numbers of rows.
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
        // SAFETY: AVX-512 F as above.
        let value = |top| unsafe { _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top))) };
        [0, 1, 2, 3].map(|i| value(bytes_to_dword_tops(quad, i)))
    }

    /// As for AVX2.
    #[inline(always)]
    fn e4m3_to_f32(quad: __m512i) -> [__m512i; 4] {
        // SAFETY: AVX-512 F as above.
        let value = |top| unsafe {
            let magnitude = _mm512_set1_epi32(0x7f00_0000);
            let nan = _mm512_cmpeq_epi32_mask(_mm512_and_si512(top, magnitude), magnitude);
            let moved =
                _mm512_and_si512(_mm512_srai_epi32::<4>(top), _mm512_set1_epi32(0x87f0_0000_u32 as i32));
            let shift_exponent = _mm512_castsi512_ps(_mm512_set1_epi32((127 + 120) << 23));
            let value = _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(moved), shift_exponent));
            _mm512_mask_mov_epi32(value, nan, _mm512_set1_epi32(-1))
        };
        [0, 1, 2, 3].map(|i| value(bytes_to_dword_tops(quad, i)))
    }

    #[inline(always)]
    fn i8_to_i16(_: __m512i) -> [__m512i; 2] {
        unreachable!("Isa::multiplies_bytes")
    }

    #[inline(always)]
    fn i8_to_bf16(quad: __m512i) -> [__m512i; 2] {
        if !BF16 {
            unreachable!("Isa::multiplies_bf16");
        }
        unpack(bf16_of_i8(quad))
    }

    #[inline(always)]
    fn e4m3_to_bf16(quad: __m512i) -> [__m512i; 2] {
        if !BF16 {
            unreachable!("Isa::multiplies_bf16");
        }
        unpack(bf16_of_e4m3(quad))
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

/// For each chunk of a and b: lane 0 plus lane 2 and lane 1 plus lane 3, those of a and b interleaved.
#[inline(always)]
fn add_halves(a: __m512i, b: __m512i) -> __m512d {
    // SAFETY: private to this file, whose callers run where AVX-512 F was detected.
    unsafe {
        let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        _mm512_castps_pd(_mm512_add_ps(_mm512_castsi512_ps(low), _mm512_castsi512_ps(high)))
    }
}

/// The permutation that moves lane `4 c + q` to lane `4 q + c`.
#[inline(always)]
fn by_quad() -> __m512i {
    // SAFETY: private to this file, whose callers run where AVX-512 F was detected.
    unsafe { _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15) }
}

/// Moves byte 4i + j of each chunk to the top of its dword j, with zeros below.
#[inline(always)]
fn bytes_to_dword_tops(quad: __m512i, i: i8) -> __m512i {
    let (a, zero) = (4 * i, -128);
    // SAFETY: private to this file, whose callers run where AVX-512 F and BW were detected.
    unsafe {
        let chunk = _mm_setr_epi8(
            zero,
            zero,
            zero,
            a,
            zero,
            zero,
            zero,
            a + 1,
            zero,
            zero,
            zero,
            a + 2,
            zero,
            zero,
            zero,
            a + 3,
        );
        _mm512_shuffle_epi8(quad, _mm512_broadcast_i32x4(chunk))
    }
}

/// Looks up each byte's lower seven bits in a table.
#[inline(always)]
fn look_up(table: &[Quad; 2], bytes: __m512i) -> __m512i {
    // SAFETY: private to this file, whose callers run where VBMI was detected; a table is two registers.
    unsafe {
        let half = |half: &Quad| _mm512_loadu_si512(std::ptr::from_ref(half).cast());
        _mm512_permutex2var_epi8(half(&table[0]), bytes, half(&table[1]))
    }
}

/// The low and the high bytes of 64 int8 as bf16. VBMI's lookup takes an index of seven bits, so that
/// magnitudes 0 and 128 share an entry, which has 128. Its low byte is right for 0, too; the high byte is
/// zeroed where the weight is 0.
#[inline(always)]
fn bf16_of_i8(quad: __m512i) -> [__m512i; 2] {
    // SAFETY: private to this file, whose callers run where AVX-512 BW and VBMI were detected.
    unsafe {
        let magnitude = _mm512_abs_epi8(quad);
        let not_0 = _mm512_test_epi8_mask(quad, quad);
        let high = _mm512_maskz_mov_epi8(not_0, look_up(&INT8_HIGH, magnitude));
        [look_up(&INT8_LOW, magnitude), signed(high, quad)]
    }
}

/// The same for E4M3 codes.
#[inline(always)]
fn bf16_of_e4m3(quad: __m512i) -> [__m512i; 2] {
    [look_up(&E4M3_LOW, quad), signed(look_up(&E4M3_HIGH, quad), quad)]
}

/// These bytes with the signs of the bytes of `quad`.
#[inline(always)]
fn signed(high: __m512i, quad: __m512i) -> __m512i {
    const OR_OF_AND: i32 = 0xf8; // a | (b & c)
    // SAFETY: private to this file, whose callers run where AVX-512 F and BW were detected.
    unsafe { _mm512_ternarylogic_epi32::<OR_OF_AND>(high, quad, _mm512_set1_epi8(i8::MIN)) }
}

/// The bf16 made of low and high bytes: the first half of each 16 in one register, the second in the other.
#[inline(always)]
fn unpack([low, high]: [__m512i; 2]) -> [__m512i; 2] {
    // SAFETY: private to this file, whose callers run where AVX-512 F and BW were detected.
    unsafe { [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)] }
}

/// Widens 64 int8, or E4M3 codes, to bf16, exactly and in order. The caller must have AVX-512 BW and VBMI.
#[inline(always)]
pub(crate) fn bytes_to_bf16<const E4M3: bool>(bytes: &[u8; 64]) -> [[u8; 64]; 2] {
    let quad = Avx512::<true>::load(&bytemuck::cast(*bytes));
    let [low, high] = if E4M3 { bf16_of_e4m3(quad) } else { bf16_of_i8(quad) };
    let mut lines = [[0; 64]; 2];
    // SAFETY: private to this crate, whose callers run where AVX-512 VBMI was detected; a line is 64 bytes.
    unsafe {
        for (line, order) in lines.iter_mut().zip(&IN_ORDER) {
            let order = _mm512_loadu_si512(order.as_ptr().cast());
            let line = line.as_mut_ptr().cast();
            _mm512_storeu_si512(line, _mm512_permutex2var_epi8(low, order, high));
        }
    }
    lines
}

/// Low and high bytes, which are 64 apart, by turns: those of the first 32 values, and of the others.
static IN_ORDER: [[u8; 64]; 2] = {
    let mut order = [[0; 64]; 2];
    let mut i = 0;
    while i < 128 {
        order[i / 64][i % 64] = (i / 2 + i % 2 * 64) as u8;
        i += 1;
    }
    order
};

/// The low and the high bytes of 1 to 128 as bf16; n is at index n modulo 128.
static INT8_LOW: [Quad; 2] = bf16_bytes(int8_magnitudes(), 0);
static INT8_HIGH: [Quad; 2] = bf16_bytes(int8_magnitudes(), 8);
/// The low and the high bytes of the E4M3 codes without a sign as bf16.
static E4M3_LOW: [Quad; 2] = bf16_bytes(e4m3_magnitudes(), 0);
static E4M3_HIGH: [Quad; 2] = bf16_bytes(e4m3_magnitudes(), 8);

const fn int8_magnitudes() -> [f32; 128] {
    let mut values = [0.0; 128];
    let mut i = 1;
    while i <= 128 {
        values[i % 128] = i as f32;
        i += 1;
    }
    values
}

const fn e4m3_magnitudes() -> [f32; 128] {
    let mut values = [0.0; 128];
    let mut i = 0;
    while i < 128 {
        values[i] = e4m3::widen(i as u8);
        i += 1;
    }
    values
}

/// The low (`shift` 0) or high (8) byte of each value as bf16, which holds all of these values exactly.
const fn bf16_bytes(values: [f32; 128], shift: u32) -> [Quad; 2] {
    let mut table = [Quad([Chunk([0; 16]); 4]); 2];
    let mut i = 0;
    while i < 128 {
        table[i / 64].0[i % 64 / 16].0[i % 16] = (values[i].to_bits() >> 16 >> shift) as u8;
        i += 1;
    }
    table
}
