//! Whether this process may use AMX: the processor must have it, and the system must save tiles when it
//! switches threads. Linux only does so after a request, once per process, since each thread that uses tiles
//! has 8 KiB more to be saved.

use std::fmt;
use std::sync::OnceLock;

/// Whether this process can use AMX, and if not, why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amx {
    /// Tiles can be used.
    Granted,
    /// The processor lacks AMX with bf16 and int8, or the AVX-512 BF16 that is used where tiles are not.
    NotInProcessor,
    /// The processor has AMX, but the system (or that of the virtual machine's host) does not save tiles.
    NotSaved,
    /// The system refuses permission, with this error number.
    Refused(i32),
}

impl Amx {
    /// The state of this process. The first call asks the system for permission.
    pub fn here() -> Amx {
        static HERE: OnceLock<Amx> = OnceLock::new();
        *HERE.get_or_init(|| decide(processor(), saved_state(), ask))
    }
}

impl fmt::Display for Amx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amx::Granted => f.write_str("the processor has AMX, and the system grants it"),
            Amx::NotInProcessor => f.write_str("the processor has no AMX for bf16 and int8"),
            Amx::NotSaved => f.write_str("the system does not save AMX tiles (XCR0 lacks bits 17 and 18)"),
            Amx::Refused(error) => {
                let refused = "the system refuses permission for AMX tiles (arch_prctl ARCH_REQ_XCOMP_PERM";
                write!(f, "{refused}: error {error})")
            }
        }
    }
}

/// XTILECFG and XTILEDATA (Intel's manual, volume 1, 13.1: state components 17 and 18).
const TILE_STATE: u64 = 1 << 17 | 1 << 18;

/// Decides from what the processor has and the system saves. Calls `ask` only if neither is in the way.
fn decide(processor: bool, saved_state: u64, ask: impl FnOnce() -> Result<(), i32>) -> Amx {
    if !processor {
        return Amx::NotInProcessor;
    }
    if saved_state & TILE_STATE != TILE_STATE {
        return Amx::NotSaved;
    }
    match ask() {
        Ok(()) => Amx::Granted,
        Err(error) => Amx::Refused(error),
    }
}

/// Whether the processor has the instructions that this backend uses, and tiles of the size it assumes.
#[cfg(target_arch = "x86_64")]
fn processor() -> bool {
    use super::{STEP, TILE, TILE_BYTES};
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    // Volume 2, CPUID: in leaf 7 AMX-BF16, AMX-TILE and AMX-INT8; in leaf 0x1d the sizes of palette 1.
    const WANTED: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    if __cpuid(0).eax < 0x1d || __cpuid_count(7, 0).edx & WANTED != WANTED {
        return false;
    }
    let palette = __cpuid_count(0x1d, 1);
    let tiles = palette.ebx >> 16 >= 8 && palette.eax >> 16 == TILE_BYTES as u32;
    let rows = palette.ebx & 0xffff == STEP as u32 && palette.ecx & 0xffff == TILE as u32;
    tiles && rows && crate::Isa::Avx512Bf16.is_available()
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> bool {
    false
}

/// The state that the system saves for a thread (XCR0); 0 where it cannot be read.
#[cfg(target_arch = "x86_64")]
fn saved_state() -> u64 {
    use std::arch::x86_64::{__cpuid, _xgetbv};
    #[target_feature(enable = "xsave")]
    fn xcr0() -> u64 {
        // SAFETY: register 0 is there wherever the instruction is.
        unsafe { _xgetbv(0) }
    }
    const OSXSAVE: u32 = 1 << 27;
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return 0;
    }
    // SAFETY: the system has enabled the instruction: OSXSAVE.
    unsafe { xcr0() }
}

#[cfg(not(target_arch = "x86_64"))]
fn saved_state() -> u64 {
    0
}

/// Asks Linux for permission (its documentation, arch/x86/xstate.rst), for all threads of this process and
/// for processes that it forks.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn ask() -> Result<(), i32> {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: this call reads and writes no memory of ours; the instruction also changes rcx and r11.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    if result == 0 { Ok(()) } else { Err(-result as i32) }
}

/// Other systems are not supported.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn ask() -> Result<(), i32> {
    const ENOSYS: i32 = 38;
    Err(ENOSYS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_that_is_in_the_way_is_named() {
        let grants = || Ok(());
        assert_eq!(decide(true, u64::MAX, grants), Amx::Granted);
        assert_eq!(decide(true, TILE_STATE, grants), Amx::Granted);
        for lacking in [1 << 17, 1 << 18] {
            assert_eq!(decide(true, !lacking, grants), Amx::NotSaved);
        }
        assert_eq!(decide(true, TILE_STATE, || Err(1)), Amx::Refused(1));
        assert!(Amx::Refused(1).to_string().ends_with("ARCH_REQ_XCOMP_PERM: error 1)"));
        // The system is not asked where the processor or the saved state rules AMX out.
        let asked = || -> Result<(), i32> { panic!("asked in vain") };
        assert_eq!(decide(false, u64::MAX, asked), Amx::NotInProcessor);
        assert_eq!(decide(true, 0, asked), Amx::NotSaved);
    }

    #[test]
    fn the_system_answers_the_question() {
        // Without AMX it refuses, and nothing breaks.
        let answer = ask();
        if Amx::here() == Amx::Granted {
            assert_eq!(answer, Ok(()));
        } else {
            assert!(answer.is_err_and(|error| error > 0 && error < 4096), "{answer:?}");
        }
        if cfg!(target_arch = "x86_64") && crate::Isa::Avx2.is_available() {
            // x87, SSE and AVX state.
            assert_eq!(saved_state() & 7, 7);
        }
    }
}
