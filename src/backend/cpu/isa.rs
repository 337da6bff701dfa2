//! The instruction sets that the inner loops are compiled for, and the one way to call them.

use crate::dtype::DType;
use crate::error::{Error, Result};
use half::bf16;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;
use std::fmt;
use std::sync::OnceLock;

/// The environment variable that names the instruction set; read once, when a backend is made.
pub const ISA_VARIABLE: &str = "LMHEAD_CPU_ISA";

/// An instruction set that the loops of this backend are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every CPU of the target has: multiplications and additions rounded separately.
    Portable,
    /// AVX2 and FMA: Haswell, Zen and later.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI: Cascade Lake, Ice Lake, Zen 4 and later.
    Avx512,
    /// Those and BF16: Cooper Lake, Sapphire Rapids, Zen 4 and later. Heads in bf16 take its `vdpbf16ps`, twice the products of an
    /// FMA; all others are computed as by [`Isa::Avx512`].
    Avx512Bf16,
}

impl Isa {
    /// Every instruction set, least to most capable.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    /// The name used in [`ISA_VARIABLE`] and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }

    /// True where this machine can run it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
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
            Isa::Avx512Bf16 => Isa::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// Those that this machine can run, least to most capable.
    pub fn available() -> Vec<Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The most capable one of this machine.
    pub fn detect() -> Isa {
        Self::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Portable)
    }

    /// What `name` (the value of [`ISA_VARIABLE`]) asks for; the best of this machine where it is `None`.
    ///
    /// # Errors
    /// `Config` when the name is none of ours, or names a set that this machine lacks.
    pub fn choose(name: Option<&str>) -> Result<Isa> {
        let Some(name) = name else { return Ok(Self::detect()) };
        let refused = |fix: &str| {
            let here: Vec<_> = Self::available().into_iter().map(Isa::name).collect();
            let fix = format!("{fix}: unset {ISA_VARIABLE} to take the best of this machine");
            Err(Error::config(ISA_VARIABLE, here.join(" or "), format!("`{name}`"), fix))
        };
        match Self::ALL.into_iter().find(|isa| isa.name() == name) {
            None => refused("no such instruction set"),
            Some(isa) if !isa.is_available() => refused("this machine does not have it"),
            Some(isa) => Ok(isa),
        }
    }

    /// The family whose members give the same bits for heads of `weights`: the lane layout and the order of the sums are the same in
    /// every loop, so only fused or separate rounding tells them apart. `vdpbf16ps` rounds as its maker chose, so the maker is named.
    pub fn family(self, weights: DType) -> &'static str {
        match self {
            Isa::Portable => "portable",
            _ if self.takes_bf16(weights) => match processor_vendor() {
                Some("AuthenticAMD") => "bf16-amd",
                Some("GenuineIntel") => "bf16-intel",
                _ => "bf16",
            },
            Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 => "fma",
        }
    }

    /// Whether products of bf16 are added without widening them first.
    pub(super) fn takes_bf16(self, weights: DType) -> bool {
        self == Isa::Avx512Bf16 && weights == DType::Bf16
    }

    /// Runs `work` compiled for this instruction set.
    pub(super) fn run<W: Work>(self, work: W) -> W::Output {
        // An `Isa` can be written down by anyone; asking again costs a load or two per block of the vocabulary.
        assert!(self.is_available(), "this machine does not have {self}");
        match self {
            Isa::Portable => work.run::<Portable>(),
            // SAFETY: the features that the function was compiled with were detected on this machine just above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { run_avx2(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { run_avx512(work) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => unsafe { run_avx512_bf16(work) },
            #[cfg(not(target_arch = "x86_64"))]
            _ => unreachable!("not available"),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Loops that are compiled once per instruction set. `run` and all that it calls in its inner loops are
/// `#[inline(always)]`: what is not inlined is compiled for the baseline.
pub(super) trait Work {
    type Output;
    fn run<A: Arith>(self) -> Self::Output;
}

/// What the generic loops must know of the instruction set.
pub(super) trait Arith {
    /// Whether `x * w + sum` is rounded once.
    const FUSED: bool;
    /// f32 lanes of one register. Sums always have 16 lanes; narrower sets walk them in groups.
    const LANES: usize;

    #[inline(always)]
    fn mul_add(x: f32, w: f32, sum: f32) -> f32 {
        if Self::FUSED { x.mul_add(w, sum) } else { sum + x * w }
    }

    /// `sums[l] += x[l][0] * w[l][0] + x[l][1] * w[l][1]`, exact, wrapping. Every x86 has one instruction for
    /// it, and the compiler does not find it where a factor is used twice, as every factor of a tile is.
    #[inline(always)]
    fn mul_add_pairs<const L: usize>(x: &[[i16; 2]; L], w: &[[i16; 2]; L], sums: &mut [i32; L]) {
        for l in 0..L {
            let pair = i32::from(x[l][0]) * i32::from(w[l][0]) + i32::from(x[l][1]) * i32::from(w[l][1]);
            sums[l] = sums[l].wrapping_add(pair);
        }
    }

    /// `sums[l] += x[l][1] * w[l][1] + x[l][0] * w[l][0]` in f32, as the hardware rounds it. Only asked of the instruction sets that
    /// have an instruction for it ([`Isa::takes_bf16`]); here it is what that does in two steps.
    #[inline(always)]
    fn mul_add_bf16_pairs<const L: usize>(x: &[[bf16; 2]; L], w: &[[bf16; 2]; L], sums: &mut [f32; L]) {
        for l in 0..L {
            for i in [1, 0] {
                sums[l] = Self::mul_add(x[l][i].to_f32(), w[l][i].to_f32(), sums[l]);
            }
        }
    }
}

pub(super) struct Portable;
impl Arith for Portable {
    const FUSED: bool = false;
    const LANES: usize = 4;

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn mul_add_pairs<const L: usize>(x: &[[i16; 2]; L], w: &[[i16; 2]; L], sums: &mut [i32; L]) {
        for ((x, w), sums) in
            x.as_chunks::<4>().0.iter().zip(w.as_chunks::<4>().0).zip(sums.as_chunks_mut::<4>().0)
        {
            // SAFETY: every x86-64 has SSE2; each pointer is to an array of exactly 16 bytes.
            unsafe {
                let pairs =
                    _mm_madd_epi16(_mm_loadu_si128(x.as_ptr().cast()), _mm_loadu_si128(w.as_ptr().cast()));
                let sum = _mm_add_epi32(_mm_loadu_si128(sums.as_ptr().cast()), pairs);
                _mm_storeu_si128(sums.as_mut_ptr().cast(), sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) struct Avx2;
#[cfg(target_arch = "x86_64")]
impl Arith for Avx2 {
    const FUSED: bool = true;
    const LANES: usize = 8;

    #[inline(always)]
    fn mul_add_pairs<const L: usize>(x: &[[i16; 2]; L], w: &[[i16; 2]; L], sums: &mut [i32; L]) {
        for ((x, w), sums) in
            x.as_chunks::<8>().0.iter().zip(w.as_chunks::<8>().0).zip(sums.as_chunks_mut::<8>().0)
        {
            // SAFETY: this type is named by run_avx2 alone, which is called where AVX2 was detected; each pointer
            // is to an array of exactly 32 bytes.
            unsafe {
                let pairs = _mm256_madd_epi16(
                    _mm256_loadu_si256(x.as_ptr().cast()),
                    _mm256_loadu_si256(w.as_ptr().cast()),
                );
                let sum = _mm256_add_epi32(_mm256_loadu_si256(sums.as_ptr().cast()), pairs);
                _mm256_storeu_si256(sums.as_mut_ptr().cast(), sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) struct Avx512;
#[cfg(target_arch = "x86_64")]
impl Arith for Avx512 {
    const FUSED: bool = true;
    const LANES: usize = 16;

    #[inline(always)]
    fn mul_add_pairs<const L: usize>(x: &[[i16; 2]; L], w: &[[i16; 2]; L], sums: &mut [i32; L]) {
        for ((x, w), sums) in
            x.as_chunks::<16>().0.iter().zip(w.as_chunks::<16>().0).zip(sums.as_chunks_mut::<16>().0)
        {
            // SAFETY: this type is named by run_avx512 alone, which is called where AVX-512 F and VNNI were
            // detected; each pointer is to an array of exactly 64 bytes.
            unsafe {
                let (x, w) = (_mm512_loadu_si512(x.as_ptr().cast()), _mm512_loadu_si512(w.as_ptr().cast()));
                let sum = _mm512_dpwssd_epi32(_mm512_loadu_si512(sums.as_ptr().cast()), x, w);
                _mm512_storeu_si512(sums.as_mut_ptr().cast(), sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) struct Avx512Bf16;
#[cfg(target_arch = "x86_64")]
impl Arith for Avx512Bf16 {
    const FUSED: bool = true;
    const LANES: usize = 16;

    #[inline(always)]
    fn mul_add_pairs<const L: usize>(x: &[[i16; 2]; L], w: &[[i16; 2]; L], sums: &mut [i32; L]) {
        Avx512::mul_add_pairs(x, w, sums);
    }

    #[inline(always)]
    fn mul_add_bf16_pairs<const L: usize>(x: &[[bf16; 2]; L], w: &[[bf16; 2]; L], sums: &mut [f32; L]) {
        for ((x, w), sums) in
            x.as_chunks::<16>().0.iter().zip(w.as_chunks::<16>().0).zip(sums.as_chunks_mut::<16>().0)
        {
            // SAFETY: this type is named by run_avx512_bf16 alone, which is called where AVX-512 F and BF16 were
            // detected; each pointer is to an array of exactly 64 bytes; __m512bh is any 64 bytes.
            unsafe {
                let load = |pairs: &[[bf16; 2]; 16]| -> __m512bh {
                    std::mem::transmute(_mm512_loadu_si512(pairs.as_ptr().cast()))
                };
                let sum = _mm512_dpbf16_ps(_mm512_loadu_ps(sums.as_ptr()), load(x), load(w));
                _mm512_storeu_ps(sums.as_mut_ptr(), sum);
            }
        }
    }
}

/// Who made this machine's processor.
fn processor_vendor() -> Option<&'static str> {
    static VENDOR: OnceLock<Option<String>> = OnceLock::new();
    let ask = || {
        #[cfg(target_arch = "x86_64")]
        {
            let id = __cpuid(0);
            let bytes = [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat();
            String::from_utf8(bytes).ok()
        }
        #[cfg(not(target_arch = "x86_64"))]
        None
    };
    VENDOR.get_or_init(ask).as_deref()
}

/// Asks for the cache line of `value` before it is needed. A hint: it reads nothing.
#[inline(always)]
pub(super) fn prefetch<T>(value: &T) {
    // SAFETY: every x86-64 has the instruction, and it accepts any address.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<W: Work>(work: W) -> W::Output {
    work.run::<Avx2>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn run_avx512<W: Work>(work: W) -> W::Output {
    work.run::<Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
fn run_avx512_bf16<W: Work>(work: W) -> W::Output {
    work.run::<Avx512Bf16>()
}
