//! The roofs of this machine: how fast its memory can be read, and how fast it multiplies in registers.
//! Benchmarks compare the matmul with them; nothing else calls this.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use crate::amx::{STEP, Shape, TILE, TILE_BYTES, Tiles, hardware::Hardware};
use crate::convert::RowType;
use crate::isa::{Isa, prefetch};
use crate::product::Format;
use rayon::prelude::*;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes that one task reads.
const PART: usize = 1 << 20;
/// Bytes of a cache line.
const LINE: usize = 64;
/// How many bytes ahead `read_stream` prefetches.
const AHEAD: usize = 4096;

/// Independent sums: more than the latency of an instruction times the number issued per cycle, and few
/// enough for 16 registers.
const CHAINS: usize = 12;
/// Rounds over the chains between two looks at the clock.
const ROUNDS: usize = 1 << 14;

/// Reads `bytes` once, on all threads of the current pool, and returns the sum of their 64-bit words
/// (little-endian; a last, partial cache line is skipped). A matmul over these weights takes as long at
/// least, as far as these loads get all that the memory can deliver.
pub fn read_stream(bytes: &[u8]) -> u64 {
    // Measured: faster on an Intel Xeon with AMX, slower on Zen 4.
    if Isa::Amx.is_available() { read::<true>(bytes) } else { read::<false>(bytes) }
}

fn read<const PREFETCH: bool>(bytes: &[u8]) -> u64 {
    let read = |part: &[u8]| {
        let mut sums = [0u64; LINE / 8];
        for line in part.as_chunks::<LINE>().0 {
            if PREFETCH {
                prefetch(line.as_ptr().wrapping_add(AHEAD));
            }
            for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
        }
        sums.iter().fold(0u64, |a, b| a.wrapping_add(*b))
    };
    bytes.par_chunks(PART).map(read).reduce(|| 0, u64::wrapping_add)
}

/// Measures for `time` the operations per second (a multiplication and an addition are two) of the
/// instruction that multiplies rows of type `rows` with weights of `format`, on all threads of the current
/// pool, with all operands in registers. `None` where there is no such loop, as on processors other than
/// x86-64.
///
/// # Panics
/// Where this machine lacks the instruction set.
pub fn arithmetic_rate(isa: Isa, format: Format, rows: RowType, time: Duration) -> Option<f64> {
    assert!(isa.is_available(), "this machine does not have {isa}");
    let spin = spinner(isa, format, rows)?;
    let rates = rayon::broadcast(|_| {
        let (began, mut operations) = (Instant::now(), 0);
        loop {
            operations += spin();
            let elapsed = began.elapsed();
            if elapsed >= time {
                return operations as f64 / elapsed.as_secs_f64();
            }
        }
    });
    Some(rates.iter().sum())
}

/// A loop over registers; a call returns the number of its operations. Must not be called where the
/// instruction set is not available.
#[cfg(target_arch = "x86_64")]
fn spinner(isa: Isa, format: Format, rows: RowType) -> Option<fn() -> u64> {
    let exact = format == Format::W8a8;
    Some(match isa {
        // The speed of emulated tiles means nothing.
        Isa::EmulatedAmx => return None,
        #[cfg(target_os = "linux")]
        Isa::Amx if exact => || {
            tiles::<{ 2 * 64 }>(|tiles| {
                tiles.dot_i8::<0, 4, 6>();
                tiles.dot_i8::<1, 4, 7>();
                tiles.dot_i8::<2, 5, 6>();
                tiles.dot_i8::<3, 5, 7>();
            })
        },
        #[cfg(target_os = "linux")]
        Isa::Amx if isa.multiplies_bf16(format, Some(rows)) => || {
            tiles::<{ 2 * 32 }>(|tiles| {
                tiles.dot_bf16::<0, 4, 6>();
                tiles.dot_bf16::<1, 4, 7>();
                tiles.dot_bf16::<2, 5, 6>();
                tiles.dot_bf16::<3, 5, 7>();
            })
        },
        // SAFETY: `arithmetic_rate` has asked for the instruction set.
        _ if isa.multiplies_bf16(format, Some(rows)) => || unsafe { bf16_avx512() },
        // SAFETY: `arithmetic_rate` has asked for the instruction set.
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx if exact => || unsafe { int8_avx512() },
        // SAFETY: `arithmetic_rate` has asked for the instruction set.
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => || unsafe { f32_avx512() },
        // SAFETY: `arithmetic_rate` has asked for the instruction set.
        Isa::Avx2 if exact => || unsafe { int8_avx2() },
        // SAFETY: `arithmetic_rate` has asked for the instruction set.
        Isa::Avx2 => || unsafe { f32_avx2() },
        Isa::Portable if exact => int8_portable,
        Isa::Portable => f32_portable,
    })
}

#[cfg(not(target_arch = "x86_64"))]
fn spinner(_: Isa, _: Format, _: RowType) -> Option<fn() -> u64> {
    None
}

/// Runs `$step` on every chain, `ROUNDS` times, and returns the number of operations, `$each` per step. Every
/// step takes the chain's own sum, so that the compiler cannot move it out of the loop.
#[cfg(target_arch = "x86_64")]
macro_rules! spin {
    ($start:expr, $each:expr, $step:expr) => {{
        let mut sums = [black_box($start); CHAINS];
        let step = $step;
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = step(*sum);
            }
        }
        black_box(sums);
        (ROUNDS * CHAINS * $each) as u64
    }};
}

/// Products of tiles: `four` runs four instructions, each of which adds to 16 x 16 sums with `PRODUCTS`
/// operations per sum.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tiles<const PRODUCTS: usize>(four: impl Fn(&mut Hardware)) -> u64 {
    // 0x3f is 63 in int8; 0x3f3f is about 3/4 in bf16.
    let bytes = black_box([0x3f; TILE_BYTES]);
    let mut tiles = Hardware::configure(Shape { ids: TILE, rows: TILE });
    tiles.load::<4>(&bytes, 0, STEP);
    tiles.load::<5>(&bytes, 0, STEP);
    tiles.load::<6>(&bytes, 0, STEP);
    tiles.load::<7>(&bytes, 0, STEP);
    for _ in 0..ROUNDS {
        four(&mut tiles);
    }
    (ROUNDS * 4 * TILE * TILE * PRODUCTS) as u64
}

/// `vdpbf16ps`: two products for each of 16 sums.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16_avx512() -> u64 {
    let half = black_box(_mm512_set1_ps(0.5));
    let x = _mm512_cvtne2ps_pbh(half, half);
    spin!(_mm512_setzero_ps(), 2 * 32, |sum| _mm512_dpbf16_ps(sum, x, x))
}

/// `vpdpbusd`: four products for each of 16 sums.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn int8_avx512() -> u64 {
    let x = black_box(_mm512_set1_epi8(3));
    spin!(_mm512_setzero_si512(), 2 * 64, |sum| _mm512_dpbusd_epi32(sum, x, x))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn f32_avx512() -> u64 {
    let x = black_box(_mm512_set1_ps(0.5));
    spin!(_mm512_setzero_ps(), 2 * 16, |sum| _mm512_fmadd_ps(sum, x, x))
}

/// `vpmaddwd` and an addition: two products for each of 8 sums.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn int8_avx2() -> u64 {
    let x = black_box(_mm256_set1_epi16(3));
    spin!(_mm256_setzero_si256(), 2 * 16, |sum| _mm256_add_epi32(sum, _mm256_madd_epi16(sum, x)))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn f32_avx2() -> u64 {
    let x = black_box(_mm256_set1_ps(0.5));
    spin!(_mm256_setzero_ps(), 2 * 8, |sum| _mm256_fmadd_ps(sum, x, x))
}

/// `pmaddwd` and an addition: two products for each of 4 sums.
#[cfg(target_arch = "x86_64")]
fn int8_portable() -> u64 {
    // SAFETY: every x86-64 has SSE2.
    unsafe {
        let x = black_box(_mm_set1_epi16(3));
        spin!(_mm_setzero_si128(), 2 * 8, |sum| _mm_add_epi32(sum, _mm_madd_epi16(sum, x)))
    }
}

#[cfg(target_arch = "x86_64")]
fn f32_portable() -> u64 {
    // SAFETY: every x86-64 has SSE2.
    unsafe {
        let x = black_box(_mm_set1_ps(0.5));
        spin!(_mm_setzero_ps(), 2 * 4, |sum| _mm_add_ps(_mm_mul_ps(sum, x), x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_reads_every_word() {
        for words in [0usize, 7, 8, 100_000, 300_000] {
            let values: Vec<u64> = (0..words as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
            // Whole lines of each part are read; parts are whole lines but for the last.
            let whole = words / 8 * 8;
            let want = values[..whole].iter().fold(0u64, |a, b| a.wrapping_add(*b));
            assert_eq!(read_stream(bytemuck::cast_slice(&values)), want, "{words}");
        }
    }

    #[test]
    fn every_instruction_set_of_this_machine_has_its_rates() {
        for isa in Isa::available() {
            for rows in [RowType::Bf16, RowType::F16, RowType::F32] {
                for format in [Format::Float, Format::Mixed, Format::W8a8, Format::W8a16] {
                    let rate = arithmetic_rate(isa, format, rows, Duration::from_micros(100));
                    assert_eq!(rate.is_some(), cfg!(target_arch = "x86_64"), "{isa} {format:?}");
                    assert!(
                        rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()),
                        "{isa} {format:?}: {rate:?}"
                    );
                }
            }
        }
    }
}
