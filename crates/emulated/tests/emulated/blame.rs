//! A fault names the block, the thread, the instruction and the address, in grids and clusters of several
//! dimensions.

use lmhead_emulated::FaultKind::{self, *};
use lmhead_emulated::probe::*;
use lmhead_emulated::{Device, Fault};

const GRID: [u32; 3] = [3, 2, 2];
const CLUSTER: [u32; 3] = [1, 2, 1];
const BLOCK: [u32; 3] = [2, 1, 1];
const THREAD: u32 = 37;
/// Where shared memory begins.
const SHARED: u64 = 1024;

/// Runs the kernel with mistake `what`; also returns the address of its input.
fn run(what: u32, seed: u64) -> (Result<(), Fault>, u64) {
    let mut device = Device::new();
    let (input, out) = (device.upload_read_only(&[0u32; 64]), device.upload(&[0u32; 64]));
    let block = (BLOCK[2] * GRID[1] + BLOCK[1]) * GRID[0] + BLOCK[0];
    let n = [what, block, THREAD, 0, 0, 0];
    let params = ProbeParams { map: NO_MAP, map_out: NO_MAP, input: input.pointer(), out: out.pointer(), n };
    let config = lmhead_emulated::LaunchConfig::new(GRID, [128, 1, 1]);
    let config = config.cluster(CLUSTER).shared(1024).seed(seed).threads(1 + (seed % 2) as usize);
    (device.launch(&broken_one(), &params, &config), input.address())
}

#[test]
fn a_fault_names_the_block_and_the_thread_that_did_it() {
    let shared = |at: u64| move |_: u64| Some(SHARED + at);
    type Address = Box<dyn Fn(u64) -> Option<u64>>;
    let global = |at: u64| move |input: u64| Some(input + at);
    let none = |_: u64| None;
    let rows: [(u32, FaultKind, &str, Address); 12] = [
        (1, SharedBounds, "ld.shared.b32", Box::new(shared(1024))),
        (2, Misaligned, "ld.shared.b32", Box::new(shared(6))),
        (3, GlobalBounds, "ld.global.b32", Box::new(global(256))),
        (4, GlobalBounds, "st.global.b32", Box::new(global(20))),
        (5, Trap, "trap", Box::new(none)),
        (6, Barrier, "st.shared.b32", Box::new(shared(512))),
        (7, SharedBounds, "ld.shared::cluster.b32", Box::new(shared(1024))),
        (8, Barrier, "mbarrier.arrive", Box::new(shared(520))),
        (9, Divergence, "shfl.sync.idx.b32", Box::new(none)),
        (10, Misaligned, "cp.async.cg", Box::new(shared(8))),
        (11, Race, "st.shared.b32", Box::new(shared(4 * 36))),
        (12, Incomplete, "exit", Box::new(shared(4 * 37))),
    ];
    for seed in 0..100 {
        if let (Err(fault), _) = run(0, seed) {
            panic!("a false alarm: {fault}");
        }
    }
    for (what, kind, instruction, address) in &rows {
        for seed in 0..8 {
            let (outcome, input) = run(*what, seed);
            let fault = outcome.expect_err("one thread is wrong");
            assert_eq!(fault.text.contains("of the cluster's block 0"), *what == 7, "{fault}");
            let got = (fault.kind, fault.block, fault.thread, fault.instruction.as_str(), fault.address);
            let wanted = (*kind, BLOCK, Some(THREAD), *instruction, address(input));
            // A race may be found at either of the two accesses, whichever comes last.
            let other = (Race, BLOCK, Some(THREAD - 1), "ld.shared.b32", address(input));
            assert!(
                got == wanted || (*what == 11 && got == other),
                "{what}, seed {seed}: wanted {wanted:?}, got {fault}"
            );
        }
    }
}
