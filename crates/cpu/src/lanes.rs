//! Four chains: the layout of every sum of this backend, whatever the size of registers. (Sums in AMX tiles
//! have one chain: `amx.rs`.)
//!
//! A row, of hidden states or of weights, is a sequence of *chunks* of 16 bytes: 4 f32, 8 bf16, 8 int16 or 16
//! int8, neighbours in k; the last is padded with zeros. A logit has four partial sums (lanes), one for each
//! f32 (int32) of a chunk. Lane `l` adds, from zero and `k` ascending, the products of the `l`-th f32 of each
//! chunk (the `l`-th pair of bf16 or int16, the `l`-th four of int8). Then the lanes are added: `(0 + 2) + (1
//! + 3)`. That is all that a logit's bits depend on (promise 1). Integer sums are exact in any order.
//!
//! A *quad* has one chunk of each of four weight rows, and is one register of AVX-512: a chunk of a hidden
//! row, repeated four times, is multiplied with all four. Other layouts cost more. Sixteen f32 of one row in
//! a register would need no shuffling of weights, but four times the memory for partial sums and hidden rows;
//! one f32 each of sixteen rows would need twice the shuffling.

use crate::isa::{Arith, Sets};
use bytemuck::{Pod, Zeroable};
use half::{bf16, f16};

/// Sixteen bytes of one row, or the four partial sums of one logit.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C, align(16))]
pub struct Chunk(pub [u8; 16]);

/// One chunk of each of four rows, or four chunks of one row; the sums of four logits.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C, align(64))]
pub struct Quad(pub [Chunk; 4]);

/// Elements of one row in a quad: f32; 16 bits; 8 bits.
pub(crate) const WIDE: usize = 16;
pub(crate) const HALF: usize = 32;
pub(crate) const BYTE: usize = 64;

/// A kind of inner loop: how weights are stored, and how they become chunks that are multiplied with those of
/// hidden rows. A step is `S` elements of k; widened and transposed, its weights are `G` parts of four quads,
/// part after part in k.
///
/// Narrow weights are transposed before they are widened, part by part: the other way round there would be
/// `G` times as many registers to transpose.
pub(crate) trait Operands<const S: usize, const G: usize> {
    /// A weight as it is stored.
    type Weight: Copy + Default + Sync;
    /// How its chunks are multiplied with those of hidden rows.
    type Dot: Dot;

    /// Loads one step of a weight row as four chunks; kinds with one part widen it here, exactly.
    fn load<A: Arith>(weights: &[Self::Weight; S]) -> A::Quad;

    /// Part `part` of a transposed step of four weight rows; widens it where that was not done before. Exact.
    #[inline(always)]
    fn part<A: Arith>(step: &[A::Quad; 4], part: usize) -> [A::Quad; 4] {
        let _ = part;
        *step
    }
}

/// How the products of a chunk of a hidden row and one of a weight row are added to the sums. Kinds with the
/// same `Dot` share the loops over panels, however their weights are stored.
pub(crate) trait Dot {
    /// The instruction sets that have it.
    const SETS: Sets = Sets::All;
    /// Whether sums are exact, so that the optimiser may add in any order.
    const EXACT: bool = false;

    /// Adds the products of one chunk of a hidden row with those of four weight rows.
    fn mul_add<A: Arith>(x: A::Splat, w: A::Quad, sum: A::Quad) -> A::Quad;

    /// Adds the lanes of sixteen logits in the fixed order. (Kinds with integer sums convert them to f32 in
    /// their own way.)
    #[inline(always)]
    fn reduce<A: Arith>(sums: &[Quad; 4]) -> [f32; 16] {
        A::reduce_f32(sums)
    }
}

/// A stored weight that the float loop widens to f32 on its own, exactly.
pub(crate) trait Widen: Copy + Default + Send + Sync {
    fn widen(self) -> f32;
}

impl Widen for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Widen for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

impl Widen for f16 {
    /// Exact for every finite value, subnormals included; weights are known to be finite (an infinity would
    /// become 65536). Sign and magnitude are moved to their places in an f32, where the exponent is too small
    /// by 127 - 15 = 112: multiplying by 2^112 corrects that, exactly.
    #[inline(always)]
    fn widen(self) -> f32 {
        const SHIFT_EXPONENT: f32 = f32::from_bits((127 + 112) << 23);
        let moved = ((u32::from(self.to_bits()) << 16) as i32 >> 3) as u32 & 0x8fff_ffff;
        f32::from_bits(moved) * SHIFT_EXPONENT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_16_bit_weight_widens_exactly() {
        for bits in 0..=u16::MAX {
            let (h, b) = (f16::from_bits(bits), bf16::from_bits(bits));
            if h.is_finite() {
                assert_eq!(Widen::widen(h).to_bits(), h.to_f32_const().to_bits(), "{bits:#06x}");
            }
            if b.is_finite() {
                assert_eq!(Widen::widen(b).to_bits(), b.to_f32_const().to_bits(), "{bits:#06x}");
            }
        }
    }
}
