//! Kernels that are wrong on purpose: each kind of fault is found, and named as what it is.

use crate::probe::*;
use lmhead::backend::emulated::FaultKind::{self, *};
use lmhead::backend::emulated::{Buffer, Device, Fault, Kernel, LaunchConfig};
use lmhead::backend::params::TensorMap;

/// One way of being wrong: variant, in words, what it must be called (any of these), and in how many of 8 seeds at least.
type Row = (u32, &'static str, &'static [FaultKind], u32);

const SEEDS: u64 = 8;

/// Faults of these kinds name the address that they are about.
const OF_AN_ADDRESS: [FaultKind; 9] =
    [SharedBounds, GlobalBounds, Misaligned, Race, Incomplete, Proxy, Transactions, TensorMap, Dependency];

fn check(name: &str, rows: &[Row], run: impl Fn(u32, u64) -> Result<Vec<u32>, Fault>) {
    // Some have three right variants, by seed: a hundred of each.
    for seed in 0..300 {
        if let Err(fault) = run(0, seed) {
            panic!("{name}: a false alarm: {fault}");
        }
    }
    for &(how, what, kinds, least) in rows {
        let mut found = 0;
        let mut said = Vec::new();
        for seed in 0..SEEDS {
            match run(how, seed) {
                Ok(_) => said.push("-".into()),
                Err(fault) => {
                    assert!(kinds.contains(&fault.kind), "{name}, {what}: wanted {kinds:?}, got {fault}");
                    let whole = !fault.text.is_empty() && fault.kernel == name && fault.seed == seed;
                    let who = fault.thread.is_some() && !fault.instruction.is_empty();
                    let place = fault.address.is_some() || !OF_AN_ADDRESS.contains(&fault.kind);
                    assert!(whole && who && place, "{name}, {what}: an incomplete report: {fault:?}");
                    found += 1;
                    said.push(format!("{:?} in {}", fault.kind, fault.instruction));
                }
            }
        }
        record(name, how, what, &said);
        assert!(found >= least, "{name}, {what}: wanted it found in {least} of {SEEDS} seeds, got {found}");
    }
}

/// Appends a row to the file that `LMHEAD_FAULT_TABLE` names (scripts/fault-table): what the device said of each seed.
fn record(name: &str, how: u32, what: &str, said: &[String]) {
    let Some(path) = std::env::var_os("LMHEAD_FAULT_TABLE") else { return };
    let mut by_seed: Vec<(&str, Vec<String>)> = Vec::new();
    for (seed, said) in said.iter().enumerate() {
        match by_seed.iter_mut().find(|(text, _)| text == said) {
            Some((_, seeds)) => seeds.push(seed.to_string()),
            None => by_seed.push((said, vec![seed.to_string()])),
        }
    }
    let cells = by_seed.iter().map(|(text, seeds)| format!("{text} ({})", seeds.join(" ")));
    let row = format!("| `{name}` {how:02} | {what} | {} |\n", cells.collect::<Vec<_>>().join("; "));
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, row.as_bytes()));
    written.unwrap_or_else(|e| panic!("LMHEAD_FAULT_TABLE {}: {e}", path.display()));
}

fn plain(
    kernel: fn() -> Kernel<ProbeParams>,
    threads: u32,
    shared: u32,
) -> impl Fn(u32, u64) -> Result<Vec<u32>, Fault> {
    move |how, seed| Probe::new(kernel(), threads, shared, 64).n(&[how]).config(|c| c.seed(seed)).run()
}

#[test]
fn memory() {
    let rows: &[Row] = &[
        (1, "no barrier between a write and another thread's read", &[Race], 8),
        (2, "a read past the end of shared memory", &[SharedBounds], 8),
        (3, "a shared address that is not aligned", &[Misaligned], 8),
        (4, "a read past the end of a buffer", &[GlobalBounds], 8),
        (5, "a global address that is not aligned", &[Misaligned], 8),
        (6, "a write to a buffer for reading", &[GlobalBounds], 8),
        (7, "a write to what others still read", &[Race], 8),
        (8, "a vector store that is not aligned", &[Misaligned], 8),
        (9, "a read before shared memory", &[SharedBounds], 8),
        (10, "trap", &[Trap], 8),
    ];
    check("broken_memory", rows, plain(broken_memory, 64, 256));
}

#[test]
fn warps() {
    let rows: &[Row] = &[
        (1, "no bar.warp.sync between a write and another lane's read", &[Race], 8),
        (2, "ldmatrix by half of a warp", &[Divergence], 8),
        (3, "a shuffle with a lane that has ended", &[Divergence], 8),
        (4, "two instructions at once", &[Divergence], 8),
        (5, "two masks at once", &[Divergence], 8),
        (6, "a shuffle from outside of the mask", &[Divergence], 8),
        (7, "a lane that does not come", &[Divergence], 8),
    ];
    check("broken_warp", rows, plain(broken_warp, 32, 256));
}

#[test]
fn copies() {
    let rows: &[Row] = &[
        (1, "cp.async without a wait", &[Incomplete], 8),
        (2, "a wait for the wrong group", &[Incomplete], 8),
        (3, "a wait, but no barrier for the others", &[Incomplete, Race], 8),
        (4, "cp.async into what others still read", &[Race], 8),
        (5, "cp.async that outlives its thread", &[Incomplete], 8),
        (6, "a group that was never committed", &[Incomplete], 8),
        (7, "cp.async to an address that is not aligned", &[Misaligned], 8),
        (8, "cp.async of more than its size", &[Operand], 8),
    ];
    check("broken_copies", rows, plain(broken_copies, 64, 512));
}

#[test]
fn barriers() {
    let rows: &[Row] = &[
        (1, "a barrier that half of the block reaches", &[Deadlock], 8),
        (7, "halves of two warps at a barrier for one", &[Divergence], 8),
        (8, "two barriers for the lanes of one warp", &[Divergence], 8),
        (9, "bar.arrive without a count", &[Operand], 8),
        (2, "a named barrier that too few reach", &[Deadlock], 8),
        (3, "a named barrier with two counts", &[Barrier, Deadlock], 8),
        (4, "a barrier that does not exist", &[Operand], 8),
        (5, "a count that is no multiple of a warp", &[Operand], 8),
        (6, "two barriers for one meeting", &[Deadlock], 8),
    ];
    let run = |how: u32, seed: u64| {
        // 20 and 21: threads that have ended are not waited for by the block's barrier.
        let how = if how == 0 { [0, 20, 21][(seed % 3) as usize] } else { how };
        plain(broken_barriers, 96, 0)(how, seed)
    };
    check("broken_barriers", rows, run);
}

/// 64 + 8 rows of 128 bytes, padded to the pattern of the swizzle; two of them and four barriers.
const STAGE: u32 = 10240;
const PIPELINE: u32 = 2 * STAGE + 32;

fn pipeline(how: u32, seed: u64) -> Result<Vec<u32>, Fault> {
    let steps = 6;
    let input: Vec<u32> = (0..(72 * steps * 32)).map(|i: u32| i.wrapping_mul(0x9e37_79b9)).collect();
    let probe = Probe::new(broken_pipeline(), 256, PIPELINE, 512)
        .input(&input)
        .n(&[how, steps])
        .config(|c| c.seed(seed));
    probe.run_with(|input, _| {
        let columns = u64::from(steps) * 128;
        (bytes_map(input, columns, 64, 128, 64), bytes_map(input, columns, 8, 128, 8))
    })
}

#[test]
fn pipelines() {
    // In the order of the enum of broken_sm90a.cu.
    let rows: &[Row] = &[
        (1, "no wait for the stage to be full", &[Incomplete, Race], 8),
        (2, "no wait for the stage to be empty", &[Race, Incomplete, Barrier, Transactions], 8),
        (3, "a stage that is released before wgmma has read it", &[Race, Incomplete], 8),
        (4, "expect_tx of more bytes than come", &[Transactions], 8),
        (5, "expect_tx of fewer bytes than come", &[Transactions], 8),
        (6, "no fence after mbarrier.init", &[Proxy], 8),
        (7, "no barrier after mbarrier.init", &[Race, Barrier], 8),
        (8, "an arrival too many", &[Barrier], 8),
        (9, "no wgmma.fence", &[Wgmma], 8),
        (10, "accumulators used before the wait", &[Wgmma], 8),
        (11, "accumulators changed without a fence", &[Wgmma], 8),
        (12, "a descriptor that starts within the swizzle's pattern", &[Wgmma], 8),
        (13, "a descriptor that points outside", &[SharedBounds], 8),
        (14, "try_wait whose answer is not looked at", &[Incomplete, Race], 1),
        (15, "a thread that skips a wgmma", &[Divergence, Deadlock, Wgmma], 8),
        (16, "a producer that stops early", &[Deadlock], 8),
        (17, "a block that ends while TMA writes its memory", &[Incomplete], 1),
        (18, "a wrong parity", &[Deadlock], 8),
        (19, "setmaxnreg by one warp of four", &[Registers], 8),
        (20, "registers that nobody gives up", &[Deadlock], 8),
        (21, "an ordinary store to an mbarrier", &[Barrier], 8),
        (22, "no tensor map", &[TensorMap], 8),
        (23, "a tile outside of shared memory", &[SharedBounds], 8),
        (24, "descriptors that differ within the warpgroup", &[Divergence], 8),
        (25, "one thread that does not wait", &[Incomplete, Race], 1),
        (26, "wgmma under way at the end", &[Wgmma], 8),
    ];
    check("broken_pipeline", rows, pipeline);
}

#[test]
fn proxies() {
    let run = |how: u32, seed: u64| {
        // 0 stands for the correct one of each pair.
        let how = if how == 0 && seed.is_multiple_of(2) { 9 } else { how };
        let probe = Probe::new(broken_proxies(), 128, 72 * 128 + 16, 2304).n(&[how]).config(|c| c.seed(seed));
        probe.run_with(|_, out: Buffer| -> (TensorMap, TensorMap) {
            (bytes_map(out, 128, 64, 128, 64), bytes_map(out, 128, 64, 128, 64))
        })
    };
    let rows: &[Row] = &[
        (1, "wgmma reads ordinary stores without a fence", &[Proxy], 8),
        (2, "the fence comes from one thread only", &[Proxy], 8),
        (3, "a TMA store reads ordinary stores without a fence", &[Proxy], 8),
        (4, "a TMA store's tile is overwritten before the wait", &[Race], 8),
        (5, "a thread ends before its TMA store has read", &[Incomplete], 8),
        (6, "wgmma reads cp.async without a fence", &[Proxy], 8),
        (7, "the arrival comes before the copies", &[Incomplete], 8),
        (8, "TMA overwrites ordinary stores without a fence", &[Proxy], 8),
        (10, "the fence comes before the stores", &[Proxy], 8),
    ];
    check("broken_proxies", rows, run);
}

#[test]
fn registers_of_wgmma() {
    let run = |how: u32, seed: u64| {
        Probe::new(broken_registers(), 128, 72 * 128, 512).n(&[how]).config(|c| c.seed(seed)).run()
    };
    let rows: &[Row] = &[
        (1, "fragments rewritten without a fence", &[Wgmma], 8),
        (2, "fragments rewritten after the wait, without a fence", &[Wgmma], 8),
        (3, "some of several fragments rewritten without a fence", &[Wgmma], 8),
        (4, "a second tile in accumulators that were read and written", &[Wgmma], 8),
        (5, "a second tile in accumulators that were read", &[Wgmma], 8),
        (6, "accumulators of another shape without a fence", &[Wgmma], 8),
        (7, "wgmma.fence by one lane", &[Divergence], 8),
        (8, "wgmma.commit_group by one lane", &[Divergence], 8),
        (9, "wgmma.wait_group by one lane", &[Divergence], 8),
    ];
    check("broken_registers", rows, run);
}

#[test]
fn clusters() {
    let run = |how: u32, seed: u64| {
        let probe = Probe::new(broken_cluster(), 32, 256, 64).n(&[how]).grid(2);
        let probe = probe.config(|c| c.seed(seed).cluster([2, 1, 1]));
        probe.run_with(|_, out: Buffer| (bytes_map(out, 128, 1, 128, 1), bytes_map(out, 128, 1, 128, 1)))
    };
    let rows: &[Row] = &[
        (1, "another block's memory without a barrier", &[Race], 8),
        (2, "the memory of a block that has ended", &[Cluster], 1),
        (3, "a shared::cluster address with an instruction of the own block", &[Cluster], 8),
        (4, "a block that the cluster does not have", &[Cluster], 8),
        (5, "barrier.cluster.wait without an arrival", &[Barrier], 8),
        (6, "mbarrier.arrive on another block's barrier", &[Cluster], 8),
        (7, "mbarrier.arrive.expect_tx on another block's barrier", &[Cluster], 8),
        (8, "mbarrier.try_wait on another block's barrier", &[Cluster], 8),
        (9, "ldmatrix from another block", &[Cluster], 8),
        (10, "stmatrix to another block", &[Cluster], 8),
        (11, "cp.async to another block", &[Cluster], 8),
        (12, "an arrival of cp.async on another block's barrier", &[Cluster], 8),
        (13, "TMA to another block", &[Cluster], 8),
        (14, "TMA with another block's barrier", &[Cluster], 8),
        (15, "a TMA store from another block", &[Cluster], 8),
        (16, "multicast to no block", &[Operand], 8),
        (18, "lane 0 taken for the elected one", &[Trap], 1),
        (17, "barrier.cluster.arrive by half of a warp", &[Divergence], 8),
    ];
    check("broken_cluster", rows, run);
}

#[test]
fn dependent_launches() {
    let run = |how: u32, seed: u64| {
        let how = if how == 0 && seed.is_multiple_of(2) { 20 } else { how };
        let mut device = Device::new();
        let out = device.upload(&[0u32; 256]);
        let input = device.upload_read_only(&[0u32; 64]);
        let params = ProbeParams {
            map: NO_MAP,
            map_out: NO_MAP,
            input: input.pointer(),
            out: out.pointer(),
            n: [how, 0, 0, 0, 0, 0],
        };
        // One OS thread runs one kernel after the other, two overlap them; every third time nothing looks for races.
        let config = LaunchConfig::new([2, 1, 1], [32, 1, 1]).seed(seed).threads(1 + (seed % 2) as usize);
        let config = config.checks(how == 4 || how == 5 || !seed.is_multiple_of(3));
        let second = broken_secondary();
        let outcome =
            device.launch_dependent((&broken_primary(), &params, &config), (&second, &params, &config));
        if let Err(fault) = &outcome {
            assert_eq!(fault.kernel, "broken_secondary", "{fault}");
            assert!(
                fault.thread.is_some() && fault.address.is_some() && !fault.instruction.is_empty(),
                "{fault}"
            );
            assert_ne!(fault.instruction, "exit", "{fault}");
        }
        outcome.and_then(|()| device.download(out))
    };
    let rows: &[Row] = &[
        (1, "a load of what the kernel before stores", &[Dependency], 8),
        (2, "a store to what it still reads", &[Dependency], 8),
        (3, "a store to what it stores", &[Dependency], 8),
        (4, "one thread waits and does not tell the others", &[Dependency], 8),
        (5, "the same, and they store to what it reads", &[Dependency], 8),
        (6, "a load by .nc before the wait", &[Dependency], 8),
        (7, "nobody waits", &[Dependency], 8),
        (8, "a load by .nc after the wait", &[Dependency], 8),
    ];
    check("broken_secondary", rows, run);
}

#[test]
fn constant_memory_that_is_not() {
    let run = |how: u32, seed: u64| {
        let probe = Probe::new(broken_constant(), 32, 0, 128).input(&[7; 64]).n(&[how]).grid(2);
        probe.config(|c| c.seed(seed).threads(1 + (seed % 2) as usize)).run()
    };
    let rows: &[Row] = &[
        (1, "a word by .nc and then a store to it", &[Dependency], 8),
        (2, "a store and then .nc", &[Dependency], 8),
        (3, "a word by .nc that another block stores", &[Dependency], 8),
        (4, "16 bytes by .nc, some of which are stored to", &[Dependency], 8),
        (5, "a store to half of a word that was loaded by .nc", &[Dependency], 8),
        (6, "an atomic on it", &[Dependency], 8),
    ];
    check("broken_constant", rows, run);
}

#[test]
fn one_instruction_at_two_places() {
    let run = |how: u32, seed: u64| {
        let how = if how == 0 { [0, 20, 21][(seed % 3) as usize] } else { how };
        plain(broken_places, 64, 512)(how, seed)
    };
    let rows: &[Row] = &[
        (1, "bar.sync", &[Divergence], 8),
        (2, "ldmatrix", &[Divergence], 8),
        (3, "mma.sync of int8, by one lane elsewhere", &[Divergence], 8),
        (4, "mma.sync of bf16", &[Divergence], 8),
        (5, "bar.sync with a count", &[Divergence], 8),
        (6, "bar.arrive", &[Divergence], 8),
    ];
    check("broken_places", rows, run);
    let fault = plain(broken_places, 64, 512)(2, 0).expect_err("two places");
    assert!(fault.text.contains(" at broken_sm80.cu:"), "{fault}");

    let run = |how: u32, seed: u64| {
        // 10 is wrong, and not seen.
        let how = if how == 0 && seed.is_multiple_of(2) { 10 } else { how };
        Probe::new(broken_places_sm90a(), 128, 72 * 128, 512).n(&[how]).config(|c| c.seed(seed)).run()
    };
    let rows: &[Row] = &[
        (1, "wgmma.fence", &[Divergence], 8),
        (3, "wgmma", &[Divergence], 8),
        (5, "wgmma.commit_group, by one lane elsewhere", &[Divergence], 8),
        (7, "wgmma.wait_group", &[Divergence], 8),
        (9, "stmatrix", &[Divergence], 8),
        (11, "barrier.cluster.arrive", &[Divergence], 8),
        (13, "barrier.cluster.wait", &[Divergence], 8),
        (15, "setmaxnreg", &[Divergence], 8),
        (17, "wgmma by one warp of four elsewhere", &[Divergence], 8),
    ];
    check("broken_places_sm90a", rows, run);
}

#[test]
fn fragments_under_way() {
    let run = |how: u32, seed: u64| {
        Probe::new(broken_fragments(), 128, 1024, 512).n(&[how]).config(|c| c.seed(seed)).run()
    };
    let rows: &[Row] = &[
        (1, "one set of fragments for two groups under way", &[Wgmma], 8),
        (2, "a fragment of the group before, rewritten and used", &[Wgmma], 8),
    ];
    check("broken_fragments", rows, run);
}

#[test]
fn loops_without_an_end() {
    let run = |how: u32, seed: u64| {
        let probe = Probe::new(broken_spin(), 64, 0, 64).n(&[how]);
        probe.config(|c| c.seed(seed).instruction_limit(100_000)).run()
    };
    check("broken_spin", &[(1, "a loop that waits for nobody", &[Deadlock], 8)], run);
}

#[test]
fn a_deadlock_says_where_everybody_is() {
    let fault = pipeline(16, 3).expect_err("the producer stops early");
    assert_eq!(fault.kind, Deadlock);
    assert!(fault.text.contains("threads 128 to 255 in mbarrier.try_wait.parity"), "{fault}");
    assert!(
        fault.text.contains("thread 0 ended") || fault.text.contains("threads 0 to 127 ended"),
        "{fault}"
    );
    assert!(fault.text.contains("lacks 1 of 1 arrivals"), "{fault}");
}

#[test]
fn refused_launches() {
    type Change = fn(LaunchConfig) -> LaunchConfig;
    let launch = |change: Change| {
        let config = change(LaunchConfig::new([4, 1, 1], [64, 1, 1]));
        let mut device = Device::new();
        let out = device.alloc(256)?;
        let params =
            ProbeParams { map: NO_MAP, map_out: NO_MAP, input: out.pointer(), out: out.pointer(), n: [0; 6] };
        device.launch(&broken_memory(), &params, &config)
    };
    let rows: &[(Change, &str)] = &[
        (|c| LaunchConfig { grid: [0, 1, 1], ..c }, "grid x: wanted 1 to 2147483647 blocks, got 0"),
        (|c| LaunchConfig { grid: [1, 65536, 1], ..c }, "grid y: wanted 1 to 65535 blocks, got 65536"),
        (|c| LaunchConfig { block: [0, 1, 1], ..c }, "block x: wanted 1 to 1024 threads, got 0"),
        (|c| LaunchConfig { block: [32, 64, 1], ..c }, "at most 1024 threads, got 2048"),
        (
            |c| LaunchConfig { block: [96, 1, 1], ..c },
            "at most the 64 threads of the kernel's launch bounds, got 96",
        ),
        (|c| LaunchConfig { dynamic_shared: 50_000, ..c }, "the kernel's limit of 49152 bytes"),
        (|c| c.shared(232_449), "at most 232448 bytes (227 KB)"),
        (|c| LaunchConfig { shared_limit: 240_000, ..c }, "the kernel's limit was set to 240000"),
        (|c| c.cluster([3, 1, 1]), "cluster x: wanted a divisor of the grid's 4 blocks, got 3"),
        (|c| LaunchConfig { grid: [16, 1, 1], cluster: [16, 1, 1], ..c }, "at most 8 blocks, got 16"),
        (|c| c.threads(0), "threads: wanted at least 1"),
    ];
    for (change, wanted) in rows {
        match launch(*change) {
            Err(fault) => {
                assert_eq!(fault.kind, Launch, "{fault}");
                assert!(fault.text.contains(wanted), "wanted {wanted:?}, got {fault}");
            }
            Ok(()) => panic!("wanted a refusal with {wanted:?}"),
        }
    }
    let many = TooManyParams([0; 1040]);
    let config = LaunchConfig::new([1; 3], [32, 1, 1]);
    let fault = Device::new().launch(&broken_params(), &many, &config).expect_err("4160 bytes of parameters");
    assert!(fault.text.contains("wanted at most 4096 bytes, the kernel has 4160"), "{fault}");
}

#[test]
fn the_device_goes_on_after_a_fault() {
    for _ in 0..3 {
        let run = plain(broken_memory, 64, 256);
        assert!(run(2, 1).is_err());
        assert!(run(0, 1).is_ok());
    }
}

#[test]
#[ignore = "it damages memory: for scripts/emulated-asan, which must see it"]
fn a_plain_pointer_past_the_end() {
    let _ = plain(broken_plain_pointer, 32, 0)(0, 0);
}
