//! The instruction sets that the inner loops are compiled for, and the one way to call them.

use crate::error::{Error, Result};
use std::fmt;

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
}

impl Isa {
    /// Every instruction set, least to most capable.
    pub const ALL: [Isa; 3] = [Isa::Portable, Isa::Avx2, Isa::Avx512];

    /// The name used in [`ISA_VARIABLE`] and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
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

    /// The family whose members give the same bits: the lane layout and the order of the sums are the same in
    /// every loop, so only fused or separate rounding tells them apart.
    pub const fn family(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 | Isa::Avx512 => "fma",
        }
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
}

pub(super) struct Portable;
impl Arith for Portable {
    const FUSED: bool = false;
    const LANES: usize = 4;
}

pub(super) struct Avx2;
impl Arith for Avx2 {
    const FUSED: bool = true;
    const LANES: usize = 8;
}

pub(super) struct Avx512;
impl Arith for Avx512 {
    const FUSED: bool = true;
    const LANES: usize = 16;
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
