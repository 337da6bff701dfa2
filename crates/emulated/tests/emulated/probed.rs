//! Each wrapper of `kernels/ptx` is called by a probe kernel whose results a test checks.
//! (`crates/gpu/tests/machine_code` tests that nvcc makes the instruction of it.)

use lmhead_emulated::FaultKind;
use lmhead_emulated::probe::*;
use std::collections::BTreeSet;

// Compiled into the program, because the GPU bundle runs it where there is no source.
macro_rules! headers {
    ($($name:ident)*) => {
        [$((stringify!($name), include_str!(concat!("../../kernels/ptx/", stringify!($name), ".cuh")))),*]
    };
}
const HEADERS: [(&str, &str); 14] = headers!(
    arithmetic arithmetic_f64 async_copy barrier cluster control core global mbarrier mma shared tma warp
    wgmma
);
const PROBES: [&str; 5] = [
    include_str!("kernels/probes_sm80.cu"),
    include_str!("kernels/probes_sm90a.cu"),
    include_str!("kernels/probes_matmul_sm80.cu"),
    include_str!("kernels/probes_answers_sm80.cu"),
    include_str!("kernels/probes_flags_sm90a.cu"),
];

#[test]
fn every_wrapper_is_called() {
    let named = include_str!("../../kernels/ptx.cuh")
        .lines()
        .filter_map(|line| line.strip_prefix("#include \"ptx/")?.strip_suffix(".cuh\""));
    let named: BTreeSet<&str> = named.collect();
    assert_eq!(named, HEADERS.iter().map(|(name, _)| *name).collect(), "kernels/ptx.cuh and the list above");
    // Lines `PTX void name(`; the macro's own definition has no name after it.
    let lines = HEADERS.iter().flat_map(|(_, text)| text.lines());
    let names = lines.filter_map(|line| line.strip_prefix("PTX ")?.split('(').next());
    let names: BTreeSet<&str> = names.filter_map(|head| head.split_whitespace().last()).collect();
    assert!(names.contains("mbarrier_init") && names.contains("wgmma_m64k16"), "{names:?}");
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let calls = |text: &'static str| {
        let ends = text.match_indices(['(', '<']).map(|(end, _)| end);
        ends.filter_map(move |end| text[..end].rsplit(|c| !word(c)).next())
    };
    let called: BTreeSet<&str> = PROBES.into_iter().flat_map(calls).collect();
    let missing: Vec<_> = names.difference(&called).collect();
    assert!(
        missing.is_empty(),
        "call these in crates/emulated/tests/emulated/kernels/probes_*.cu, with a test: {missing:?}"
    );
}

#[test]
fn one_lane_of_a_warp_is_elected_and_it_stays_the_same() {
    let mut lanes = BTreeSet::new();
    for seed in 0..100 {
        let out = Probe::new(probe_elect(), 64, 0, 128).config(|c| c.seed(seed)).output();
        let (first, second) = out.split_at(64);
        assert_eq!(first, second, "seed {seed}");
        for warp in first.chunks(32) {
            assert_eq!(warp.iter().sum::<u32>(), 1, "seed {seed}: {warp:?}");
            lanes.insert(warp.iter().position(|&elected| elected == 1));
        }
    }
    assert!(lanes.len() > 16, "always the same few lanes: {lanes:?}");
}

#[test]
fn copies_tell_an_mbarrier() {
    let input: Vec<u32> = (0..512).map(|i: u32| i.wrapping_mul(0x9e37_79b9)).collect();
    for seed in 0..20 {
        let probe = Probe::new(probe_noinc(), 64, 64 * 16 + 8, 512).input(&input);
        let out = probe.config(|c| c.seed(seed)).output();
        for (phase, thread) in (0..2).flat_map(|phase| (0..64).map(move |thread| (phase, thread))) {
            let (got, wanted) = (4 * (64 * phase + thread), 4 * (64 * phase + 63 - thread));
            assert_eq!(
                out[got..got + 4],
                input[wanted..wanted + 4],
                "phase {phase}, thread {thread}, seed {seed}"
            );
        }
    }
}

#[test]
fn trap_ends_the_launch() {
    let run = |thread: u32| Probe::new(probe_trap(), 64, 0, 64).n(&[thread]).run();
    assert_eq!(run(64), Ok(vec![1; 64]));
    let fault = run(41).expect_err("a trap");
    assert_eq!((fault.kind, fault.thread, fault.instruction.as_str()), (FaultKind::Trap, Some(41), "trap"));
}
