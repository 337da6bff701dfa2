//! The tile instructions themselves. Rust has no stable intrinsics for them, but its assembler knows them.
//!
//! Tile registers keep their contents from one `asm!` to the next, unknown to the compiler. That is sound:
//! the compiler never allocates tile registers, and functions called in between use none, since all code that
//! does is in this file.

use super::{Line, STEP, Shape, Tiles};
use crate::isa::bytes_to_bf16;
use std::arch::asm;
use std::marker::PhantomData;

/// The tiles of this thread. Every `unsafe` block here relies on this: only code chosen by
/// [`Isa::Amx`](crate::Isa) uses this type, and that set is available only where
/// [`Amx::here`](super::Amx::here) is `Granted`.
pub(crate) struct Hardware {
    shape: Shape,
    /// Tiles belong to their thread.
    of_this_thread: PhantomData<*mut ()>,
}

impl Drop for Hardware {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: AMX as above; nobody else has tiles on this thread.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
    }
}

impl Tiles for Hardware {
    #[inline(always)]
    fn configure(shape: Shape) -> Self {
        let config = shape.config();
        // SAFETY: AMX as above; it reads 64 bytes, which are a valid configuration of palette 1.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, preserves_flags, readonly))
        }
        Hardware { shape, of_this_thread: PhantomData }
    }

    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        // SAFETY: AMX as above; the tile is configured.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, preserves_flags, nomem)) }
    }

    #[inline(always)]
    fn load<const T: usize>(&mut self, from: &[u8], at: usize, stride: usize) {
        self.shape.check(T, at, stride, from.len());
        // SAFETY: AMX as above; the tile is configured, and all of its rows are in `from`.
        unsafe {
            asm!(
                "tileloadd tmm{t}, [{at} + {stride}*1]",
                t = const T,
                at = in(reg) from.as_ptr().add(at),
                stride = in(reg) stride,
                options(nostack, preserves_flags, readonly),
            );
        }
    }

    #[inline(always)]
    fn store<const T: usize>(&self, to: &mut [u8], at: usize, stride: usize) {
        self.shape.check(T, at, stride, to.len());
        // SAFETY: AMX as above; the tile is configured, and all of its rows are in `to`.
        unsafe {
            asm!(
                "tilestored [{at} + {stride}*1], tmm{t}",
                t = const T,
                at = in(reg) to.as_mut_ptr().add(at),
                stride = in(reg) stride,
                options(nostack, preserves_flags),
            );
        }
    }

    #[inline(always)]
    fn dot_bf16<const C: usize, const A: usize, const B: usize>(&mut self) {
        const { assert!(C < 4 && (A == 4 || A == 5) && (B == 6 || B == 7), "shapes that fit") }
        // SAFETY: AMX as above; the tiles are configured, and their shapes fit.
        unsafe {
            asm!(
                "tdpbf16ps tmm{c}, tmm{a}, tmm{b}",
                c = const C, a = const A, b = const B,
                options(nostack, preserves_flags, nomem),
            );
        }
    }

    #[inline(always)]
    fn dot_i8<const C: usize, const A: usize, const B: usize>(&mut self) {
        const { assert!(C < 4 && (A == 4 || A == 5) && (B == 6 || B == 7), "shapes that fit") }
        // SAFETY: AMX as above; the tiles are configured, and their shapes fit.
        unsafe {
            asm!(
                "tdpbssd tmm{c}, tmm{a}, tmm{b}",
                c = const C, a = const A, b = const B,
                options(nostack, preserves_flags, nomem),
            );
        }
    }

    #[inline(always)]
    fn widen_i8(from: &[u8], to: &mut [Line], distance: usize) {
        // SAFETY: `Isa::Amx` is there only where `Isa::Avx512Bf16` is, which has AVX-512 BW and VBMI.
        unsafe { widen::<false>(from, to, distance) }
    }

    #[inline(always)]
    fn widen_e4m3(from: &[u8], to: &mut [Line], distance: usize) {
        // SAFETY: as in `widen_i8`.
        unsafe { widen::<true>(from, to, distance) }
    }
}

/// Bytes to bf16, by table.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn widen<const E4M3: bool>(from: &[u8], to: &mut [Line], distance: usize) {
    let mut put = |i: usize, bytes: &[u8; STEP]| {
        let lines = bytes_to_bf16::<E4M3>(bytes);
        for (half, line) in lines.into_iter().enumerate() {
            to[i * distance + half * distance / 2] = Line(line);
        }
    };
    let (whole, rest) = from.as_chunks::<STEP>();
    for (i, bytes) in whole.iter().enumerate() {
        put(i, bytes);
    }
    if !rest.is_empty() {
        let mut padded = [0; STEP];
        padded[..rest.len()].copy_from_slice(rest);
        put(whole.len(), &padded);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amx::emulated::Emulated;
    use bytemuck::Zeroable;

    /// Runs on every machine whose AVX-512 has the lookup in tables (VBMI), with AMX or without.
    #[test]
    fn bytes_widen_as_in_the_emulation() {
        if !(is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vbmi")) {
            eprintln!("ignored: this machine has no AVX-512 VBMI");
            return;
        }
        for len in [0, 1, 31, 32, 33, 63, 64, 65, 100, 128, 256] {
            // 37 and 256 have no common factor: every value occurs once, in an irregular order.
            let bytes: Vec<u8> = (0..len).map(|i| (i * 37 + 11) as u8).collect();
            for distance in [2, 6, 64] {
                let (mut got, mut want) =
                    (vec![Line::zeroed(); 4 * distance], vec![Line::zeroed(); 4 * distance]);
                // SAFETY: asked for above.
                unsafe { widen::<false>(&bytes, &mut got, distance) }
                Emulated::widen_i8(&bytes, &mut want, distance);
                assert!(got.iter().zip(&want).all(|(got, want)| got.0 == want.0), "int8, {len}");
                // SAFETY: asked for above.
                unsafe { widen::<true>(&bytes, &mut got, distance) }
                Emulated::widen_e4m3(&bytes, &mut want, distance);
                let same = |(got, want): (&[u8; 2], &[u8; 2])| {
                    let [got, want] = [got, want].map(|bits| u16::from_le_bytes(*bits));
                    let is_nan = |bits: u16| bits & 0x7fff > 0x7f80;
                    got == want || (is_nan(got) && is_nan(want))
                };
                let halves = |lines: &[Line]| {
                    lines
                        .iter()
                        .flat_map(|l| *l.0.as_chunks::<2>().0.as_array::<32>().unwrap())
                        .collect::<Vec<_>>()
                };
                assert!(halves(&got).iter().zip(&halves(&want)).all(same), "E4M3, {len}");
            }
        }
    }
}
