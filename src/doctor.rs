//! `lmhead doctor`: what this machine and this build can run, and what is in the way.

#[cfg(feature = "cuda")]
mod cuda;

use crate::backend::cpu::{Amx, ISA_VARIABLE, Isa, choose_isa};
use serde::Serialize;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Works here.
    Ok,
    /// Works, but there is something to know; or is optional and absent.
    Note,
    /// Does not work here.
    Missing,
}

/// One thing that was examined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: String,
    pub status: Status,
    pub message: String,
    /// What to do; empty where there is nothing to do.
    pub suggestion: String,
}

impl Check {
    pub fn new(
        name: &str,
        status: Status,
        message: impl Into<String>,
        suggestion: impl Into<String>,
    ) -> Self {
        Check { name: name.into(), status, message: message.into(), suggestion: suggestion.into() }
    }
}

/// Examines processor, threads, memory, and the backends and exchanges of this build. Changes nothing and
/// never fails.
pub fn examine() -> Vec<Check> {
    let mut checks = vec![processor(), amx(Amx::here()), threads(), memory(), cpu_backend()];
    #[cfg(feature = "cuda")]
    checks.extend(cuda::examine());
    #[cfg(not(feature = "cuda"))]
    checks.push(not_built("backend", "cuda", "nvcc to build (scripts/cuda-toolkit) and a driver to run"));
    checks.extend([local_exchange(), nccl(), mpi()]);
    checks
}

/// The processor, the system and the architecture, with which measured results are labelled.
pub fn machine_name() -> String {
    format!("{}, {} {}", processor_name(), std::env::consts::OS, std::env::consts::ARCH)
}

/// The processor's name.
fn processor_name() -> String {
    let brand = brand().filter(|name| !name.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.into());
    match family_and_model() {
        Some((family, model)) => format!("{brand} (family {family}, model {model})"),
        None => brand,
    }
}

/// Family and model by CPUID. They tell processors apart that rented machines show under one name.
#[cfg(target_arch = "x86_64")]
fn family_and_model() -> Option<(u32, u32)> {
    let signature = std::arch::x86_64::__cpuid(1).eax;
    let bits = |low: u32, count: u32| signature >> low & ((1 << count) - 1);
    let (family, model) = (bits(8, 4), bits(4, 4));
    // The extended fields only count for families 6 and 15 (Intel's manual, volume 2, CPUID).
    let family_in_all = if family == 15 { family + bits(20, 8) } else { family };
    Some((family_in_all, if family == 6 || family == 15 { bits(16, 4) << 4 | model } else { model }))
}

/// The brand string: 48 bytes of text in three CPUID leaves (Intel's manual, volume 2, CPUID).
#[cfg(target_arch = "x86_64")]
fn brand() -> Option<String> {
    use std::arch::x86_64::__cpuid;
    let leaves = 0x8000_0002..=0x8000_0004u32;
    if __cpuid(0x8000_0000).eax < *leaves.end() {
        return None;
    }
    let words = leaves.map(__cpuid).flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).take_while(|byte| *byte != 0).collect();
    Some(String::from_utf8_lossy(&bytes).trim().to_string())
}

#[cfg(not(target_arch = "x86_64"))]
fn brand() -> Option<String> {
    None
}

#[cfg(not(target_arch = "x86_64"))]
fn family_and_model() -> Option<(u32, u32)> {
    None
}

fn processor() -> Check {
    let features = features();
    let message = format!(
        "{}: {}",
        processor_name(),
        if features.is_empty() {
            "no vector extensions known to this build".into()
        } else {
            features.join(" ")
        }
    );
    Check::new("processor", if features.is_empty() { Status::Note } else { Status::Ok }, message, "")
}

/// The extensions that matter for matrix products, by their vendors' names.
fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("sse4.1", is_x86_feature_detected!("sse4.1")),
            ("avx2", is_x86_feature_detected!("avx2")),
            ("fma", is_x86_feature_detected!("fma")),
            ("f16c", is_x86_feature_detected!("f16c")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512bw", is_x86_feature_detected!("avx512bw")),
            ("avx512vl", is_x86_feature_detected!("avx512vl")),
            ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
            ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
            ("avx512vbmi", is_x86_feature_detected!("avx512vbmi")),
        ];
        known.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// Whether the CPU backend can use AMX tiles.
fn amx(here: Amx) -> Check {
    let suggestion = match here {
        Amx::Granted | Amx::NotInProcessor => "",
        Amx::NotSaved => "update the kernel (Linux 5.16 or newer), or ask who runs the virtual machine",
        Amx::Refused(_) => "allow arch_prctl in the sandbox, or update the kernel (Linux 5.16 or newer)",
    };
    let status = if here == Amx::Granted { Status::Ok } else { Status::Note };
    Check::new("amx", status, here.to_string(), suggestion)
}

fn threads() -> Check {
    match std::thread::available_parallelism() {
        Ok(n) => Check::new("threads", Status::Ok, format!("{n} for the CPU backend"), ""),
        Err(e) => Check::new("threads", Status::Note, format!("unknown ({e}); 1 is used"), "pass --threads"),
    }
}

fn memory() -> Check {
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let Some((free, total)) = free_and_total() else {
        return Check::new("memory", Status::Note, "unknown on this system", "");
    };
    // The largest preset, deepseek-v3 in bf16, and 1 GiB to spare.
    let needed = 129_280 * 7168 * 2 + (1 << 30);
    let message = format!("{:.1} of {:.1} GB free", gb(free), gb(total));
    if free < needed {
        let text = format!(
            "--preset deepseek-v3 needs about {:.1} GB: use a smaller preset or --quantize w8a16",
            gb(needed)
        );
        return Check::new("memory", Status::Note, message, text);
    }
    Check::new("memory", Status::Ok, message, "")
}

/// Bytes of memory, free and in all, from Linux's /proc/meminfo (proc(5)); `None` on other systems.
fn free_and_total() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let bytes = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    };
    Some((bytes("MemAvailable:")?, bytes("MemTotal:")?))
}

fn cpu_backend() -> Check {
    let name = std::env::var_os(ISA_VARIABLE);
    match choose_isa(name.as_ref().map(|name| name.to_string_lossy()).as_deref()) {
        Ok(isa) => Check::new(
            "backend cpu",
            Status::Ok,
            format!("instruction set {isa}; bf16, f16, f32, w8a8, w8a16, fp8"),
            "",
        ),
        Err(_) => {
            let here: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
            let message = format!("{ISA_VARIABLE} names an instruction set that this machine or build lacks");
            let suggestion = format!("unset it, or set it to {}", here.join(" or "));
            Check::new("backend cpu", Status::Missing, message, suggestion)
        }
    }
}

#[allow(dead_code, reason = "a build with every feature lacks nothing")]
fn not_built(what: &str, name: &str, needs: &str) -> Check {
    let suggestion = format!("build with --features {name}; it needs {needs}");
    Check::new(&format!("{what} {name}"), Status::Note, "not in this build", suggestion)
}

fn local_exchange() -> Check {
    Check::new("exchange local", Status::Ok, "ranks as threads of one process", "")
}

#[cfg(feature = "nccl")]
fn nccl() -> Check {
    match crate::exchange::nccl::Nccl::load(None) {
        Ok(nccl) => {
            let found = format!("NCCL {} at {}", nccl.version(), nccl.path().display());
            Check::new("exchange nccl", Status::Ok, found, "")
        }
        Err(crate::Error::Unsupported { what, got, fix, .. }) => {
            Check::new("exchange nccl", Status::Note, format!("{what}: {got}"), fix)
        }
        Err(other) => Check::new("exchange nccl", Status::Note, other.to_string(), "see the message"),
    }
}

#[cfg(not(feature = "nccl"))]
fn nccl() -> Check {
    let suggestion = "for engines: build the library with --features cuda,nccl (needs nvcc to build and \
        NVIDIA's libnccl.so.2 to run); the program lmhead has no NCCL exchange";
    Check::new("exchange nccl", Status::Note, "not in this build", suggestion)
}

#[cfg(feature = "mpi")]
fn mpi() -> Check {
    let launch = match crate::layout::Launch::from_env() {
        Ok(Some(launch)) => format!("rank {} of {}, by {}", launch.rank, launch.world_size, launch.launcher),
        Ok(None) => "ranks as processes that mpirun starts".into(),
        Err(error) => {
            return Check::new("exchange mpi", Status::Missing, error.to_string(), "see the message");
        }
    };
    Check::new("exchange mpi", Status::Ok, launch, "")
}

#[cfg(not(feature = "mpi"))]
fn mpi() -> Check {
    not_built("exchange", "mpi", "an MPI library and libclang to build (scripts/mpi)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_this_build_is_examined_and_problems_come_with_advice() {
        let checks = examine();
        for name in [
            "processor",
            "amx",
            "threads",
            "memory",
            "backend cpu",
            "backend cuda",
            "exchange local",
            "exchange nccl",
            "exchange mpi",
        ] {
            assert!(checks.iter().any(|c| c.name == name), "{name}");
        }
        for check in checks {
            assert!(check.status != Status::Missing || !check.suggestion.is_empty(), "{check:?}");
        }
    }

    #[test]
    fn amx_is_granted_or_what_is_in_the_way_is_told() {
        let granted = amx(Amx::Granted);
        assert_eq!((granted.status, granted.suggestion), (Status::Ok, String::new()));
        for (here, message, suggestion) in [
            (Amx::NotInProcessor, "the processor has no AMX", ""),
            (Amx::NotSaved, "does not save AMX tiles", "kernel"),
            (Amx::Refused(1), "refuses permission for AMX tiles (arch_prctl", "sandbox"),
        ] {
            let check = amx(here);
            assert_eq!(check.status, Status::Note);
            assert!(check.message.contains(message) && check.suggestion.contains(suggestion), "{check:?}");
        }
    }
}
