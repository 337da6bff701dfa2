//! The instruction sets that the inner loops are compiled for, and how loops are called for one of them.

use crate::amx::{self, Amx, emulated::Emulated};
use crate::convert::RowType;
use crate::lanes::{Chunk, Quad};
use crate::product::Format;
use bytemuck::{cast, cast_ref};
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::fmt;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use avx512::Avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::bytes_to_bf16;
use portable::Portable;

/// An instruction set that the loops of this backend are compiled for.
#[allow(clippy::manual_non_exhaustive, reason = "the hidden one is for tests, not room for others")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Instructions that every CPU of the target has; multiplications and additions are rounded separately.
    Portable,
    /// AVX2 and FMA: Haswell, Zen and later.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI: Cascade Lake, Ice Lake, Zen 4 and later.
    Avx512,
    /// AVX-512 as above, with BF16 and VBMI: Sapphire Rapids, Zen 4 and later. bf16 hidden states with bf16
    /// or W8A16 heads use `vdpbf16ps`, which has twice the products of an FMA; all else is computed as by
    /// [`Isa::Avx512`].
    Avx512Bf16,
    /// All of these, and AMX with bf16 and int8 where the system grants it: Sapphire Rapids and later. bf16
    /// hidden states with bf16 or W8A16 heads, and any hidden states with W8A8 heads, use its tiles; all else
    /// is computed as by [`Isa::Avx512`].
    Amx,
    /// For tests: tiles emulated in plain Rust; all else as by [`Isa::Portable`]. Not in [`Isa::ALL`].
    #[doc(hidden)]
    EmulatedAmx,
}

impl Isa {
    /// Every instruction set, least to most capable.
    pub const ALL: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];

    /// The name used in settings and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
            Isa::EmulatedAmx => "emulated amx",
        }
    }

    /// True where this machine has it and the system allows it. The first call for [`Isa::Amx`] asks the
    /// system for permission.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable | Isa::EmulatedAmx => true,
            Isa::Amx => Amx::here() == Amx::Granted,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => {
                Isa::Avx512.is_available()
                    && is_x86_feature_detected!("avx512bf16")
                    && is_x86_feature_detected!("avx512vbmi")
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The instruction sets that this machine can run, least to most capable.
    pub fn available() -> Vec<Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The most capable instruction set of this machine.
    pub fn detect() -> Isa {
        Self::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Portable)
    }

    /// The family of instruction sets that give the same bits for heads of this format and rows of this type.
    /// W8A8 is exact everywhere. Lane layout and order of sums are the same in every loop except those of
    /// tiles, so these loops only differ by fused or separate rounding. How `vdpbf16ps` and `tdpbf16ps` round
    /// is up to the processor, and may change with a generation: their families' names contain a hash of this
    /// machine's results.
    pub fn family(self, format: Format, rows: Option<RowType>) -> &'static str {
        match self {
            _ if format == Format::W8a8 => "exact",
            Isa::Portable => "portable",
            _ if self.multiplies_bf16(format, rows) => self.bf16_family(),
            Isa::EmulatedAmx => "portable",
            Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => "fma",
        }
    }

    /// Whether W8A8 uses an instruction that adds four products of unsigned and signed bytes.
    pub fn multiplies_bytes(self) -> bool {
        matches!(self, Isa::Avx512 | Isa::Avx512Bf16)
    }

    /// Whether bf16 and quantised rows are multiplied by tiles.
    pub(crate) fn has_tiles(self) -> bool {
        matches!(self, Isa::Amx | Isa::EmulatedAmx)
    }

    /// Makes this thread use tiles once, so that no later call waits while the system makes room for them.
    pub fn warm_up_thread(self) {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if self == Isa::Amx {
            assert!(self.is_available(), "this machine does not have {self}");
            amx::touch::<amx::hardware::Hardware>();
        }
    }

    /// Whether rows are multiplied as bf16, without widening: bf16 rows with weights that bf16 holds exactly.
    /// Subnormal numbers then count as zeros.
    pub fn multiplies_bf16(self, format: Format, rows: Option<RowType>) -> bool {
        let weights_fit = matches!(format, Format::Float | Format::W8a16);
        let has_bf16 = self == Isa::Avx512Bf16 || self.has_tiles();
        has_bf16 && rows == Some(RowType::Bf16) && weights_fit
    }

    /// The family of this machine's bf16 products.
    fn bf16_family(self) -> &'static str {
        static DOT: OnceLock<String> = OnceLock::new();
        static TILES: OnceLock<String> = OnceLock::new();
        static EMULATED: OnceLock<String> = OnceLock::new();
        let tiles = |rounding: u64| format!("amx-{rounding:016x}");
        match self {
            // Any caller can name an `Isa` that this machine does not have.
            _ if !self.is_available() => "bf16",
            Isa::EmulatedAmx => EMULATED.get_or_init(|| tiles(amx::rounding::<Emulated>())),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Isa::Amx => TILES.get_or_init(|| tiles(amx::rounding::<amx::hardware::Hardware>())),
            _ => DOT.get_or_init(|| {
                format!("bf16-{:016x}", rounding(|x, w, sums| Isa::Avx512Bf16.run(Bf16Step { x, w, sums })))
            }),
        }
    }

    /// Runs `work` compiled for this instruction set.
    pub fn run<W: Work>(self, work: W) -> W::Output {
        // Any caller can name an `Isa` that this machine does not have. The check costs a load or two per
        // block of the vocabulary.
        assert!(self.is_available(), "this machine does not have {self}");
        match self {
            Isa::Portable | Isa::EmulatedAmx if const { W::SETS.portable_and_avx2() } => Portable::call(work),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 if const { W::SETS.portable_and_avx2() } => Avx2::call(work),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx if const { W::SETS.avx512() } => {
                Avx512::<false>::call(work)
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 if const { W::SETS.avx512_bf16() } => Avx512::<true>::call(work),
            _ => unreachable!("{self} has no {:?} products", W::SETS),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Loops that are compiled once per instruction set. `run`, and every function that it calls in its inner
/// loops, must be `#[inline(always)]` or called by [`Arith::call`]: anything else is compiled for the
/// baseline CPU.
pub trait Work {
    type Output;
    /// The instruction sets that it is compiled for.
    const SETS: Sets = Sets::All;
    fn run<A: Arith>(self) -> Self::Output;
}

/// The instruction sets that a [`Work`] is compiled for: those that have its products. Work that does not
/// need bf16 is not compiled for [`Isa::Avx512Bf16`], which runs what was compiled for [`Isa::Avx512`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sets {
    All,
    /// Those that multiply bf16 ([`Isa::multiplies_bf16`]).
    Bf16,
    /// Those that multiply bytes ([`Isa::multiplies_bytes`]).
    Bytes,
    /// Those that do not, and widen bytes first.
    NoBytes,
}

impl Sets {
    const fn portable_and_avx2(self) -> bool {
        matches!(self, Sets::All | Sets::NoBytes)
    }

    #[cfg(target_arch = "x86_64")]
    const fn avx512(self) -> bool {
        matches!(self, Sets::All | Sets::Bytes)
    }

    #[cfg(target_arch = "x86_64")]
    const fn avx512_bf16(self) -> bool {
        matches!(self, Sets::Bf16)
    }
}

/// What the generic loops need from an instruction set: its registers, and one step of every inner loop. Each
/// set is a file of its own below `isa/`.
pub trait Arith {
    /// Quads of weights of a tile over a panel, and the most rows of such a tile: as many as the registers
    /// hold.
    const TILE: (usize, usize);
    /// The most rows (at most 11) of a tile whose weights come straight from memory, without a panel; where a
    /// step of weights is one part, two, four.
    const DIRECT_ROWS: [usize; 3];
    /// The most such tiles, where a step of weights is one part. The weights are transposed again for each
    /// tile.
    const DIRECT_TILES: usize;

    /// One chunk, repeated for each chunk of a quad that a register holds.
    type Splat: Copy;
    /// A quad, in as many registers as it takes.
    type Quad: Copy;

    /// Runs `work` as a function of its own, which is compiled once, however many callers it has. Several
    /// small functions also take less time to optimise than a large one.
    fn call<W: Work>(work: W) -> W::Output;

    fn splat(chunk: &Chunk) -> Self::Splat;
    fn load(quad: &Quad) -> Self::Quad;
    fn store(value: Self::Quad, quad: &mut Quad);

    /// Four rows of four chunks -> four columns: chunk `i` of column `j` is chunk `j` of row `i`.
    fn transpose(rows: [Self::Quad; 4]) -> [Self::Quad; 4];

    /// `sum[l] += x[l] * w[l]` over f32 lanes.
    fn mul_add(x: Self::Splat, w: Self::Quad, sum: Self::Quad) -> Self::Quad;

    /// `sum[l] += x[2l] * w[2l] + x[2l + 1] * w[2l + 1]` over int16 x and w, int32 sums, exact, wrapping.
    /// Only called for instruction sets that have no `mul_add_i8`.
    fn mul_add_i16(x: Self::Splat, w: Self::Quad, sum: Self::Quad) -> Self::Quad;

    /// `sum[l] += Σ x[4l + i] * w[4l + i]` over four unsigned x and signed w, int32 sums, exact, wrapping.
    /// Only called for instruction sets that have an instruction for it ([`Isa::multiplies_bytes`]).
    fn mul_add_i8(x: Self::Splat, w: Self::Quad, sum: Self::Quad) -> Self::Quad;

    /// `sum[l] += x[2l + 1] * w[2l + 1] + x[2l] * w[2l]` over bf16 x and w, f32 sums, rounded as the hardware
    /// does. Only called for instruction sets that have an instruction for it ([`Isa::multiplies_bf16`]).
    fn mul_add_bf16(x: Self::Splat, w: Self::Quad, sum: Self::Quad) -> Self::Quad;

    /// Widens the four chunks of int8 of a quad to f32, exactly: quad `i` gets elements `4i..4i + 4` of each
    /// chunk.
    fn i8_to_f32(quad: Self::Quad) -> [Self::Quad; 4];

    /// Widens int8 to int16, exactly: quad `i` gets elements `8i..8i + 8` of each chunk. Only called for
    /// instruction sets that have no `mul_add_i8`.
    fn i8_to_i16(quad: Self::Quad) -> [Self::Quad; 2];

    /// Widens int8 to bf16, exactly: quad `i` gets elements `8i..8i + 8` of each chunk. Only called for
    /// instruction sets that multiply bf16 ([`Isa::multiplies_bf16`]).
    fn i8_to_bf16(quad: Self::Quad) -> [Self::Quad; 2];

    /// [`Arith::i8_to_f32`] for E4M3 codes ([`e4m3`](crate::e4m3)). Exact; NaN stays NaN.
    fn e4m3_to_f32(quad: Self::Quad) -> [Self::Quad; 4];

    /// [`Arith::i8_to_bf16`] for E4M3 codes, for the same instruction sets. Exact; NaN stays NaN.
    fn e4m3_to_bf16(quad: Self::Quad) -> [Self::Quad; 2];

    /// Reduces the sums of sixteen logits to the logits: `(lane 0 + lane 2) + (lane 1 + lane 3)` of each
    /// chunk.
    fn reduce_f32(sums: &[Quad; 4]) -> [f32; 16] {
        let lanes: &[[f32; 4]; 16] = cast_ref(sums);
        let mut logits = [0.0; 16];
        for (logit, l) in logits.iter_mut().zip(lanes) {
            *logit = (l[0] + l[2]) + (l[1] + l[3]);
        }
        logits
    }

    /// Adds the four lanes of int32 sums, wrapping.
    fn reduce_i32(sums: &[Quad; 4]) -> [i32; 16] {
        let lanes: &[[i32; 4]; 16] = cast_ref(sums);
        let mut logits = [0; 16];
        for (logit, l) in logits.iter_mut().zip(lanes) {
            *logit = l.iter().fold(0, |sum: i32, lane| sum.wrapping_add(*lane));
        }
        logits
    }
}

/// One step of the bf16 loops: 8 bf16 of a row, 8 of each of four weight rows, four sums of each.
struct Bf16Step {
    x: [u16; 8],
    w: [u16; 32],
    sums: [f32; 16],
}

impl Work for Bf16Step {
    type Output = [f32; 16];
    const SETS: Sets = Sets::Bf16;

    #[inline(always)]
    fn run<A: Arith>(self) -> [f32; 16] {
        let after =
            A::mul_add_bf16(A::splat(&cast(self.x)), A::load(&cast(self.w)), A::load(&cast(self.sums)));
        let mut sums = Quad([Chunk::default(); 4]);
        A::store(after, &mut sums);
        cast(sums)
    }
}

/// A hash of the results of steps for operands where their way of rounding shows: products and sums of mixed
/// sizes, some that nearly cancel, some subnormal.
fn rounding(step: impl Fn([u16; 8], [u16; 32], [f32; 16]) -> [f32; 16]) -> u64 {
    let mut random = 1u64;
    // The linear congruential generator of Knuth's MMIX, of which the high bits are random enough.
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 32) as u32
    };
    let mut hash = 0xcbf2_9ce4_8422_2325u64; // FNV-1a
    for round in 0..4096 {
        // Least exponent and number of exponents, for weights and sums. They are so close that adding a
        // product changes a sum; in some rounds they are subnormal and the smallest normal numbers.
        let (of_w, of_sum) = if round % 16 == 0 { ((0, 2), (0, 8)) } else { ((120, 16), (112, 32)) };
        let mut bf16 = |(least, count): (u32, u32)| (next() & 0x807f | (least + next() % count) << 7) as u16;
        let x: [u16; 8] = std::array::from_fn(|_| bf16((120, 16)));
        let w: [u16; 32] = std::array::from_fn(|_| bf16(of_w));
        let sums: [f32; 16] = std::array::from_fn(|i| {
            // Every other sum is one that the first product nearly cancels.
            let product = -widen(x[i % 4 * 2]) * widen(w[2 * i]);
            let any = f32::from_bits(next() & 0x807f_ffff | (of_sum.0 + next() % of_sum.1) << 23);
            if i % 2 == 0 { product } else { any }
        });
        for byte in step(x, w, sums).into_iter().flat_map(f32::to_le_bytes) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// A bf16 from its bits.
fn widen(bf16: u16) -> f32 {
    f32::from_bits(u32::from(bf16) << 16)
}

/// Prefetches a cache line. Only a hint: any address is allowed.
#[inline(always)]
pub(crate) fn prefetch<T>(line: *const T) {
    // SAFETY: every x86-64 has the instruction, and it accepts any address.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(line.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytemuck::Zeroable;
    use half::bf16;

    /// Checks that `widened`, an instruction set's widening of the bytes `narrow`, has the elements that
    /// `widen` gives, in the right places.
    fn check<A: Arith, T: bytemuck::AnyBitPattern + PartialEq + fmt::Debug, const N: usize>(
        narrow: [i8; 64],
        widened: [A::Quad; N],
        widen: impl Fn(i8) -> T,
    ) {
        let each = 16 / N;
        for (i, quad) in widened.into_iter().enumerate() {
            let mut bytes = Quad::zeroed();
            A::store(quad, &mut bytes);
            let wide: &[T] = bytemuck::cast_slice(bytemuck::bytes_of(&bytes));
            let narrow = narrow.chunks(16).flat_map(|chunk| &chunk[each * i..each * (i + 1)]);
            assert!(wide.iter().copied().eq(narrow.map(|narrow| widen(*narrow))), "{wide:?}");
        }
    }

    struct ToF32([i8; 64]);
    struct ToI16([i8; 64]);
    struct ToBf16([i8; 64]);
    struct E4m3ToF32([i8; 64]);
    struct E4m3ToBf16([i8; 64]);

    impl Work for ToF32 {
        type Output = ();

        #[inline(always)]
        fn run<A: Arith>(self) {
            let widen = |narrow| f32::from(narrow).to_bits();
            check::<A, u32, 4>(self.0, A::i8_to_f32(A::load(&cast(self.0))), widen);
        }
    }

    impl Work for ToI16 {
        type Output = ();
        const SETS: Sets = Sets::NoBytes;

        #[inline(always)]
        fn run<A: Arith>(self) {
            check::<A, i16, 2>(self.0, A::i8_to_i16(A::load(&cast(self.0))), i16::from);
        }
    }

    impl Work for ToBf16 {
        type Output = ();
        const SETS: Sets = Sets::Bf16;

        #[inline(always)]
        fn run<A: Arith>(self) {
            let widen = |narrow| bf16::from_f32(f32::from(narrow)).to_bits();
            check::<A, u16, 2>(self.0, A::i8_to_bf16(A::load(&cast(self.0))), widen);
        }
    }

    /// The f32 bits of a code; all NaN are made equal.
    fn e4m3_bits(code: i8) -> u32 {
        let value = crate::e4m3::widen(code as u8);
        if value.is_nan() { u32::MAX } else { value.to_bits() }
    }

    /// The bits of an f32; all NaN compare equal.
    #[derive(Debug, Clone, Copy, bytemuck::Pod, Zeroable)]
    #[repr(transparent)]
    struct F32(u32);

    /// The bits of a bf16; all NaN compare equal.
    #[derive(Debug, Clone, Copy, bytemuck::Pod, Zeroable)]
    #[repr(transparent)]
    struct HalfF32(u16);

    impl PartialEq for F32 {
        fn eq(&self, other: &Self) -> bool {
            let one = |bits: u32| if f32::from_bits(bits).is_nan() { u32::MAX } else { bits };
            one(self.0) == one(other.0)
        }
    }

    impl PartialEq for HalfF32 {
        fn eq(&self, other: &Self) -> bool {
            F32(u32::from(self.0) << 16) == F32(u32::from(other.0) << 16)
        }
    }

    impl Work for E4m3ToF32 {
        type Output = ();

        #[inline(always)]
        fn run<A: Arith>(self) {
            check::<A, F32, 4>(self.0, A::e4m3_to_f32(A::load(&cast(self.0))), |code| F32(e4m3_bits(code)));
        }
    }

    impl Work for E4m3ToBf16 {
        type Output = ();
        const SETS: Sets = Sets::Bf16;

        #[inline(always)]
        fn run<A: Arith>(self) {
            let widen = |code| HalfF32((e4m3_bits(code) >> 16) as u16);
            check::<A, HalfF32, 2>(self.0, A::e4m3_to_bf16(A::load(&cast(self.0))), widen);
        }
    }

    /// `ways` has several ways in which a processor may add two products, each exact in f32, to a sum.
    #[test]
    fn the_bf16_family_tells_ways_of_rounding_apart() {
        type Way = fn(f32, [f32; 2], [f32; 2]) -> f32;
        let ways: [Way; 5] = [
            |sum, x, w| x[0].mul_add(w[0], x[1].mul_add(w[1], sum)),
            |sum, x, w| x[1].mul_add(w[1], x[0].mul_add(w[0], sum)),
            |sum, x, w| sum + (x[0] * w[0] + x[1] * w[1]),
            |sum, x, w| (f64::from(sum) + (f64::from(x[0] * w[0]) + f64::from(x[1] * w[1]))) as f32,
            // The first way, with subnormal numbers treated as zeros, as vdpbf16ps does.
            |sum, x, w| {
                let flushed = |v: f32| if v.is_subnormal() { 0.0f32.copysign(v) } else { v };
                let (x, w) = (x.map(flushed), w.map(flushed));
                flushed(x[0].mul_add(w[0], flushed(x[1].mul_add(w[1], flushed(sum)))))
            },
        ];
        let mut numbers = ways.map(|way| {
            rounding(|x, w, sums| {
                std::array::from_fn(|i| {
                    let pair = |of: &[u16], at: usize| [widen(of[at]), widen(of[at + 1])];
                    way(sums[i], pair(&x, i % 4 * 2), pair(&w, 2 * i))
                })
            })
        });
        numbers.sort_unstable();
        assert!(numbers.windows(2).all(|two| two[0] != two[1]), "{numbers:x?}");
        for isa in Isa::ALL {
            assert!(!isa.family(Format::Float, Some(RowType::Bf16)).is_empty(), "{isa}");
        }
    }

    #[test]
    fn every_byte_widens_exactly_and_to_its_place() {
        for isa in Isa::available() {
            for first in (0..256).step_by(64) {
                // 37 and 256 have no common factor: every value occurs once, in an irregular order.
                let narrow = std::array::from_fn(|i| ((first + i) * 37) as i8);
                isa.run(ToF32(narrow));
                isa.run(E4m3ToF32(narrow));
                if matches!(isa, Isa::Portable | Isa::Avx2) {
                    isa.run(ToI16(narrow));
                }
                if isa == Isa::Avx512Bf16 {
                    isa.run(ToBf16(narrow));
                    isa.run(E4m3ToBf16(narrow));
                }
            }
        }
    }
}
