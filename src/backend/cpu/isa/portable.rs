//! What every CPU of the target has; four f32 to a register.

use super::Arith;
use crate::backend::cpu::lanes::{Chunk, Quad};
use bytemuck::cast;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

pub(in crate::backend::cpu) struct Portable;

impl Arith for Portable {
    const TILE: (usize, usize) = (1, 3);
    const DIRECT_ROWS: usize = 1;

    type Splat = Chunk;
    type Quad = [Chunk; 4];

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
    fn transpose(rows: [[Chunk; 4]; 4]) -> [[Chunk; 4]; 4] {
        let mut columns = rows;
        for (j, column) in columns.iter_mut().enumerate() {
            for (chunk, row) in column.iter_mut().zip(&rows) {
                *chunk = row[j];
            }
        }
        columns
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
            // The compiler does not find pmaddwd where a factor is used twice, as every factor of a tile is.
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
        unreachable!("Isa::takes_int8")
    }

    #[inline(always)]
    fn mul_add_bf16(_: Chunk, _: [Chunk; 4], _: [Chunk; 4]) -> [Chunk; 4] {
        unreachable!("Isa::takes_bf16")
    }
    #[inline(always)]
    fn i8_to_bf16(_: &[i8; 32]) -> [Chunk; 4] {
        unreachable!("Isa::takes_bf16")
    }
}
