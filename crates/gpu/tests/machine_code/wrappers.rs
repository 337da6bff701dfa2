//! The wrappers of `kernels/ptx.cuh` under nvcc: each compiles and becomes the instruction that it is named
//! after. (The emulated device's tests cover its semantics there.)

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const SM80: &str = include_str!("wrappers/sm80.cu");
const SM90A: &str = include_str!("wrappers/sm90a.cu");

#[test]
fn every_wrapper_is_called() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/ptx");
    let mut wrappers = BTreeSet::new();
    for entry in fs::read_dir(&folder).expect("the headers' folder") {
        let text = fs::read_to_string(entry.expect("a file").path()).expect("text");
        // Lines `PTX void name(`; the macro's own definition has no name after it.
        let names = text.lines().filter_map(|line| line.strip_prefix("PTX ")?.split('(').next());
        wrappers.extend(names.filter_map(|head| head.split_whitespace().last()).map(str::to_string));
    }
    assert!(wrappers.contains("mbarrier_init") && wrappers.contains("wgmma_m64k16"), "{wrappers:?}");
    let called = |name: &String| {
        [SM80, SM90A]
            .iter()
            .any(|text| ["(", "<"].iter().any(|behind| text.contains(&format!("ptx::{name}{behind}"))))
    };
    let missing: Vec<_> = wrappers.iter().filter(|name| !called(name)).collect();
    assert!(missing.is_empty(), "call these in crates/gpu/tests/machine_code/wrappers/*.cu: {missing:?}");
}

/// Kernel of the wrapper files -> instructions that it must contain.
#[cfg(feature = "cuda")]
const BECOMES: &[(&str, &[&str])] = &[
    (
        "shared_memory",
        &[
            "LDS.128",
            "LDS.64",
            "LDS.U16",
            "STS.U8",
            "STS.U16",
            "STS.64",
            "STS.128",
            "LDSM.M88",
            "LDSM.M88.2",
            "LDSM.M88.4",
            "LDSM.MT88",
            "LDSM.MT88.2",
            "LDSM.MT88.4",
            "ATOMS.ADD",
        ],
    ),
    (
        "global_memory",
        &[
            "LDG.128",
            "LDG.NA.128.CONSTANT",
            "LDG.U16",
            "LDG.U16.CONSTANT",
            "STG.128",
            "STG.64",
            "STG.U16",
            "STG.U8",
            "LDG.U8",
            "ATOMG.ADD.64",
            "ATOMG.MAX.64",
            "ATOMG.ADD",
            "ATOMG.MAX",
            "ATOMG.OR",
            "ATOMG.EXCH",
            "ATOMG.CAS",
            "MEMBAR.ALL.GPU",
        ],
    ),
    (
        "copies_and_barriers",
        &[
            "LDGSTS.E",
            "LDGSTS.64.ZFILL",
            "LDGSTS.128",
            "LDGSTS.BYPASS.128.ZFILL",
            "LDGSTS.BYPASS.LTC256B.128.ZFILL",
            "LDGDEPBAR",
            "DEPBAR",
            "ARRIVES.LDGSTSBAR",
            "BAR.SYNC",
            "BAR.ARV",
        ],
    ),
    (
        "warps",
        &[
            "SHFL.BFLY",
            "SHFL.UP",
            "SHFL.DOWN",
            "SHFL.IDX",
            "VOTE.ALL",
            "VOTE.ANY",
            "REDUX.MAX",
            "REDUX.OR",
            "BPT.TRAP",
        ],
    ),
    ("arithmetic", &["FADD", "FMUL", "FFMA", "I2F", "F2I", "F2I.TRUNC", "HADD2", "PRMT"]),
    (
        "wide_arithmetic",
        &[
            "DADD",
            "DMUL",
            "DFMA",
            "F2F.F32.F64",
            "F2F.F64.F32",
            "I2F.F64",
            "I2F.F64.U32",
            "I2F.F64.U64",
            "I2F.U32",
            "MUFU.LG2",
            "SHF.L.W.U32.HI",
            "SHF.R.U64",
            "FLO.U32",
            "POPC",
        ],
    ),
    ("mma_sync", &["HMMA.16816.F32", "HMMA.16816.F32.BF16", "IMMA.16832.S8"]),
    (
        "clusters",
        &[
            "ACQBULK",
            "PREEXIT",
            "UCGABAR_ARV",
            "UCGABAR_WAIT",
            "SYNCS.PHASECHK.TRYWAIT",
            "STSM.M88",
            "STSM.M88.2",
            "STSM.M88.4",
            "STSM.MT88",
            "STSM.MT88.2",
            "STSM.MT88.4",
        ],
    ),
    ("registers", &["USETMAXREG.DEALLOC", "USETMAXREG.TRY_ALLOC"]),
    (
        "tma",
        &[
            "UTMALDG.2D",
            "UTMALDG.2D.MULTICAST",
            "UBLKCP.S.G",
            "UTMASTG.2D",
            "UTMACCTL.PF",
            "UTMACMDFLUSH",
            "ELECT",
            "FENCE.VIEW.ASYNC",
            "SYNCS.ARRIVE",
        ],
    ),
    (
        "flags",
        &[
            "LDG.STRONG.SYS",
            "CCTL.IVALL",
            "STG.STRONG.SYS",
            "REDG.ADD.STRONG.SYS",
            "MEMBAR.ALL.SYS",
            "FENCE.VIEW.ASYNC.G",
            "UBLKCP.S.G.MULTICAST",
            "CS2R",
        ],
    ),
];

#[cfg(feature = "cuda")]
#[test]
fn every_wrapper_becomes_its_instruction() {
    use lmhead_gpu::tools::Tools;
    use std::process::Command;

    let tools = Tools::find().unwrap_or_else(|problem| panic!("{problem}"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let compile = |architecture: &str| {
        let source = here.join(format!("crates/gpu/tests/machine_code/wrappers/sm{architecture}.cu"));
        let fatbin = folder.path().join(format!("sm{architecture}.fatbin"));
        let mut nvcc = Command::new(&tools.nvcc);
        nvcc.args(["-fatbin", "-std=c++17", "-fmad=false", "-I"]).arg(here.join("kernels"));
        nvcc.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
        tools.run(nvcc.arg("-o").arg(&fatbin).arg(&source)).unwrap_or_else(|problem| panic!("{problem}"));
        tools.read(architecture, &fatbin).unwrap_or_else(|problem| panic!("{problem}"))
    };
    let codes = [compile("80"), compile("90a")].concat();
    let count = |kernel: &str, pattern: &str| {
        let code = codes.iter().find(|code| code.kernel == kernel);
        code.unwrap_or_else(|| panic!("no kernel {kernel}")).count(pattern)
    };
    let mut missing = Vec::new();
    for (kernel, patterns) in BECOMES {
        missing
            .extend(patterns.iter().filter(|p| count(kernel, p) == 0).map(|p| format!("{kernel}: no {p}")));
    }
    // Four loads before the wait, four after it.
    let loads = count("dependent_reads", "LDG");
    if loads != 8 {
        missing.push(format!("dependent_reads: wanted 8 LDG, got {loads}: some were merged"));
    }
    // a from shared memory and from registers: two instructions for each.
    for n in (8..=256).step_by(8) {
        let mut wanted = vec![
            (format!("wgmma_bf16_n{n}"), format!("HGMMA.64x{n}x16.F32.BF16")),
            (format!("wgmma_f16_n{n}"), format!("HGMMA.64x{n}x16.F32")),
        ];
        if n % 16 == 0 || n == 8 || n == 24 {
            wanted.push((format!("wgmma_s8_n{n}"), format!("IGMMA.64x{n}x32.S8")));
        }
        missing.extend(
            wanted
                .iter()
                .filter(|(kernel, p)| count(kernel, p) != 2)
                .map(|(k, p)| format!("{k}: wanted 2 {p}")),
        );
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    let local: Vec<_> =
        codes.iter().filter(|code| code.stack + code.local != 0).map(|code| &code.kernel).collect();
    assert!(local.is_empty(), "a stack frame in {local:?}");
}
