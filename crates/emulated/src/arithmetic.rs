//! The arithmetic of one 16-bit matrix instruction of the emulated device, for tests and for references that
//! want the hardware's own bits.

use super::ffi;

/// Operands of a 16-bit matrix instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    Bf16,
    F16,
}

/// Which code computes; all give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// The model, one element at a time.
    Model,
    /// What the device uses: vectors of columns, by this processor's instructions.
    Fast,
    /// The same with the instructions that every processor has.
    Portable,
    /// The same with AVX2; as [`Path::Fast`] where the processor has none.
    Avx2,
}

/// How many products one 16-bit matrix instruction adds up for each element.
pub const STEP: usize = 16;

/// `d[m, n] += sum over 16 products of a[m, k]·b[n, k]`, with the bits of `mma.sync m16n8k16` and `wgmma
/// m64nNk16` on an H100.
///
/// `a` `[m, 16]`, `b` `[n, 16]` are bits of `half`, `d` `[m, n]` is f32.
///
/// # Panics
/// When lengths do not fit each other, `m` is odd or `n` is not a multiple of 8 up to 256.
pub fn multiply_step(path: Path, half: Half, a: &[u16], b: &[u16], d: &mut [f32]) {
    let (m, n) = (a.len() / STEP, b.len() / STEP);
    assert!(
        a.len().is_multiple_of(STEP) && b.len().is_multiple_of(STEP) && d.len() == m * n,
        "multiply_step: wanted a [m, 16], b [n, 16], d [m, n]; got {}, {}, {} values",
        a.len(),
        b.len(),
        d.len()
    );
    assert!(n.is_multiple_of(8) && n <= 256, "multiply_step: wanted n a multiple of 8 up to 256, got {n}");
    let path = match path {
        Path::Model => 0,
        Path::Fast => 1,
        Path::Portable => 2,
        Path::Avx2 => 3,
    };
    let call = |path: i32, d: &mut [f32]| {
        // SAFETY: the lengths were checked above, and the function reads and writes nothing else.
        unsafe {
            ffi::lmhead_emulated_multiply_k16(
                path,
                i32::from(half == Half::F16),
                a.as_ptr(),
                b.as_ptr(),
                d.as_mut_ptr(),
                m as i32,
                n as i32,
            )
        }
    };
    if call(path, d) != 0 {
        call(1, d);
    }
}

/// The operands' type in the tile of one `mma.sync`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    Half(Half),
    Int8,
}

/// `d[16, 8] += a[16, k]·b[8, k]ᵀ` as `mma.sync m16n8k16` and `m16n8k32` compute it, by this processor's
/// instructions or in the portable form. Operands are words of two 16-bit or four int8 values along k: `a`
/// `[16][8]`, `b` `[8 words of k][8 columns]`.
pub fn warp_tile(portable: bool, element: Element, a: &[u32; 128], b: &[u32; 64], d: &mut [u32; 128]) {
    let kind = match element {
        Element::Half(Half::Bf16) => 0,
        Element::Half(Half::F16) => 1,
        Element::Int8 => 2,
    };
    // SAFETY: reads and writes whole tiles of these sizes.
    unsafe {
        ffi::lmhead_emulated_warp_tile(i32::from(portable), kind, a.as_ptr(), b.as_ptr(), d.as_mut_ptr());
    }
}

/// One step of 8 products, as `mma.sync m16n8k8` has them; no kernel uses it, but its bits were recorded too.
pub fn step_of_8(half: Half, a: &[u16; 8], b: &[u16; 8], c: f32) -> f32 {
    let is_f16 = i32::from(half == Half::F16);
    // SAFETY: reads eight values of each.
    f32::from_bits(unsafe { ffi::lmhead_emulated_step_of_8(is_f16, a.as_ptr(), b.as_ptr(), c.to_bits()) })
}

/// [`multiply_step`] of bf16, as the device computes it.
///
/// # Panics
/// As [`multiply_step`].
pub fn bf16_step(a: &[u16], b: &[u16], d: &mut [f32]) {
    multiply_step(Path::Fast, Half::Bf16, a, b, d);
}
