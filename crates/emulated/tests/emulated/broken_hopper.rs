//! Deliberately wrong kernels for sm_90a.

use crate::planted::{Row, check};
use lmhead::backend::params::TensorMap;
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::probe::*;
use lmhead_emulated::{Buffer, Device, Fault, LaunchConfig};

/// 64 + 8 rows of 128 bytes, padded to the swizzle's period, twice, and four barriers.
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
    // In the order of the enum in broken_sm90a.cu.
    let rows: &[Row] = &[
        (1, "no wait for the stage to be full", &[Incomplete, Race], 8),
        (2, "no wait for the stage to be empty", &[Barrier], 8),
        (3, "a stage that is released before wgmma has read it", &[Race, Incomplete], 8),
        (4, "expect_tx of more bytes than come", &[Transactions], 8),
        (5, "expect_tx of fewer bytes than come", &[Transactions], 8),
        (6, "no fence after mbarrier.init", &[Proxy], 8),
        (7, "no barrier after mbarrier.init", &[Barrier], 8),
        (8, "an arrival too many", &[Barrier], 8),
        (9, "no wgmma.fence", &[Wgmma], 8),
        (10, "accumulators used before the wait", &[Wgmma], 8),
        (11, "accumulators changed without a fence", &[Wgmma], 8),
        (12, "a descriptor that starts within the swizzle's pattern", &[Wgmma], 8),
        (13, "a descriptor that points outside", &[SharedBounds], 8),
        (14, "try_wait whose answer is not looked at", &[Race], 8),
        (15, "a thread that skips a wgmma", &[Divergence], 8),
        (16, "a producer that stops early", &[Deadlock], 8),
        (17, "a block that ends while TMA writes its memory", &[Incomplete], 8),
        (18, "a wrong parity", &[Deadlock], 8),
        (19, "setmaxnreg by one warp of four", &[Registers], 8),
        (20, "registers that nobody gives up", &[Deadlock], 8),
        (21, "an ordinary store to an mbarrier", &[Barrier], 8),
        (22, "no tensor map", &[TensorMap], 8),
        (23, "a tile outside of shared memory", &[SharedBounds], 8),
        (24, "descriptors that differ within the warpgroup", &[Divergence], 8),
        (25, "one thread that does not wait", &[Race], 8),
        (26, "wgmma under way at the end", &[Wgmma], 8),
    ];
    check("broken_pipeline", rows, pipeline);
}

#[test]
fn bulk_copies() {
    let run = |how: u32, seed: u64| {
        let probe =
            Probe::new(broken_bulk(), 64, 1056, 64).input(&[3; 512]).n(&[how]).config(|c| c.seed(seed));
        let out = probe.run()?;
        assert!(how != 0 || out[..32] == [48; 32], "{out:?}");
        Ok(out)
    };
    let rows: &[Row] = &[
        (1, "no wait for the stage to be full", &[Incomplete, Race], 8),
        (2, "no wait for the stage to be empty", &[Race, Barrier, Incomplete], 8),
        (3, "a copy from an address that is no multiple of 16", &[Misaligned], 8),
        (4, "a copy of a size that is no multiple of 16", &[Operand], 8),
        (5, "a copy beyond the end of an array", &[GlobalBounds], 8),
        (6, "a copy beyond the end of shared memory", &[SharedBounds], 8),
        (7, "a copy to an address that is no multiple of 16", &[Misaligned], 8),
        (8, "no fence after mbarrier.init", &[Proxy], 8),
        (9, "expect_tx of more bytes than come", &[Transactions], 8),
        (10, "expect_tx of fewer bytes than come", &[Transactions], 8),
        (11, "copies for which nobody waits", &[Incomplete], 8),
        (12, "a stage that is released before it was read", &[Race, Incomplete], 8),
        (13, "a copy to another block's memory", &[Cluster], 8),
    ];
    check("broken_bulk", rows, run);
}

#[test]
fn proxies() {
    let run = |how: u32, seed: u64| {
        // 0 stands for the correct variant of each pair.
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
        (11, "copies that arrive on an mbarrier for which nobody waits", &[Incomplete], 8),
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
        (10, "accumulators written between wgmma.fence and wgmma", &[Wgmma], 8),
        (11, "fragments written between wgmma.fence and wgmma", &[Wgmma], 8),
        (12, "fragments that are new to wgmma written after the fence", &[Wgmma], 8),
        (13, "accumulators that are new to wgmma written after the fence", &[Wgmma], 8),
        (14, "fragments that were waited for and rewritten after the fence", &[Wgmma], 8),
    ];
    check("broken_registers", rows, run);
    for how in 10..=14 {
        let fault = run(how, 0).expect_err("written too late");
        assert!(fault.text.contains("has written after wgmma.fence"), "{how}: {fault}");
    }
}

#[test]
fn accumulators_read_before_the_wait() {
    let run = |how: u32, seed: u64| {
        let shared = 72 * 128 + 128 * 16;
        Probe::new(broken_accumulators(), 128, shared, 1024).n(&[how]).config(|c| c.seed(seed)).run()
    };
    let rows: &[Row] = &[
        (1, "accumulators stored to global memory before the wait", &[Wgmma], 8),
        (2, "accumulators stored to shared memory before the wait", &[Wgmma], 8),
        (3, "accumulators read before the wait and stored behind it", &[Wgmma], 8),
        (4, "accumulators shuffled before the wait", &[Wgmma], 8),
        (5, "int32 accumulators converted before the wait", &[Wgmma], 8),
        (6, "f32 accumulators multiplied before the wait", &[Wgmma], 8),
        (7, "f32 accumulators rounded to 16 bits before the wait", &[Wgmma], 8),
        (8, "accumulators given to stmatrix before the wait", &[Wgmma], 8),
        (9, "f32 accumulators stored before the wait", &[Wgmma], 8),
        (10, "one thread of 128 that stores its accumulators before the wait", &[Wgmma], 8),
        (11, "accumulators added to global memory before the wait", &[Wgmma], 8),
        (12, "accumulators given to mma.sync before the wait", &[Wgmma], 8),
        (13, "f32 accumulators rounded to integers before the wait", &[Wgmma], 8),
        (14, "accumulators given to the next wgmma before the wait", &[Wgmma], 8),
        (15, "accumulators stored behind the wait for another group", &[Wgmma], 8),
    ];
    check("broken_accumulators", rows, run);
    for how in 1..=15 {
        let fault = run(how, 0).expect_err("read too early");
        assert!(fault.text.contains("has read from accumulators while a wgmma"), "{how}: {fault}");
    }
}

#[test]
fn clusters() {
    let run = |how: u32, seed: u64| {
        let how = if how == 0 && seed % 2 == 1 { 25 } else { how };
        let probe = Probe::new(broken_cluster(), 32, 256, 64).n(&[how]).grid(2);
        let probe = probe.config(|c| c.seed(seed).cluster([2, 1, 1]));
        probe.run_with(|_, out: Buffer| (bytes_map(out, 128, 1, 128, 1), bytes_map(out, 128, 1, 128, 1)))
    };
    let rows: &[Row] = &[
        (1, "another block's memory read without a barrier", &[Cluster], 8),
        (2, "the memory of a block that may have ended read", &[Cluster], 8),
        (3, "a shared::cluster address with an instruction for this block's memory", &[Cluster], 8),
        (4, "an address in a block that the cluster does not have", &[Cluster], 8),
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
        (18, "lane 0 taken for the elected one", &[Trap], 8),
        (17, "barrier.cluster.arrive by half of a warp", &[Divergence], 8),
        (19, "a load from a block that may not have begun", &[Cluster], 8),
        (20, "a store to a block that may not have begun", &[Cluster], 8),
        (21, "multicast to a block that may not have begun", &[Cluster], 8),
        (22, "an arrival at a block that may have ended", &[Cluster], 8),
        (23, "another block's memory, written since the barrier", &[Race], 8),
        (24, "a store to a block that may have ended", &[Cluster], 8),
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
        // One OS thread runs the kernels one after the other, two overlap them; every third run is without
        // race detection.
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
fn kernels_of_a_step() {
    let run = |how: u32, seed: u64| {
        // Three more correct variants.
        let how = if how == 0 { [0, 6, 20][seed as usize % 3] } else { how };
        let mut device = Device::new();
        let out = device.upload(&[0u32; 256]);
        let input = device.upload_read_only(&[1u32; 64]);
        let config = LaunchConfig::new([2, 1, 1], [32, 1, 1]).seed(seed).threads(1 + (seed % 2) as usize);
        for how in [0, 0, how, 0] {
            let (map, map_out, n) = (NO_MAP, NO_MAP, [how, 0, 0, 0, 0, 0]);
            let params = ProbeParams { map, map_out, input: input.pointer(), out: out.pointer(), n };
            device.launch_in_turn(&broken_turn(), &params, &config)?;
        }
        device.download(out)
    };
    let rows: &[Row] = &[
        (1, "a load of what the kernel before stores, before the wait", &[Dependency], 8),
        (2, "a store before the wait, to what the kernel before leaves alone", &[Dependency], 8),
        (3, "an atomic before the wait", &[Dependency], 8),
        (4, "the next kernel let in before the wait", &[Turn], 8),
        (5, "a block that ends without the wait", &[Turn], 8),
        (7, "one thread waits and does not tell the others, which let the next kernel in", &[Turn], 8),
        (8, "a load by .nc of what the kernel before stores", &[Dependency], 8),
        (9, "one thread waits and does not tell the others, which go on", &[Dependency], 8),
    ];
    check("broken_turn", rows, run);
}

/// Accesses of a kernel are compared with those of the next one, also where buffers are allocated and freed
/// between the two.
#[test]
fn turns_go_on_where_buffers_come_and_go() {
    let mut device = Device::new();
    let out = device.upload(&[0u32; 256]);
    let input = device.upload_read_only(&[1u32; 64]);
    let config = LaunchConfig::new([2, 1, 1], [32, 1, 1]);
    let launch = |device: &mut Device, how| {
        let (map, map_out, n) = (NO_MAP, NO_MAP, [how, 0, 0, 0, 0, 0]);
        let params = ProbeParams { map, map_out, input: input.pointer(), out: out.pointer(), n };
        device.launch_in_turn(&broken_turn(), &params, &config)
    };
    launch(&mut device, 0).expect("no mistake");
    // Allocated last, at any address.
    let other = device.upload(&[0u32; 4096]);
    let fault = launch(&mut device, 1).expect_err("a load before the wait");
    assert_eq!(fault.kind, Dependency, "{fault}");
    device.free(other).expect("the device's own buffer");
    let larger = device.upload(&[0u32; 1 << 16]);
    launch(&mut device, 0).expect("no mistake, and marks of another size");
    launch(&mut device, 8).expect_err("a load by .nc");
    device.free(larger).expect("the device's own buffer");
    // Freeing memory waits for the device: afterwards no kernel runs that could race.
    launch(&mut device, 1).expect("nothing before it");
}

#[test]
fn one_instruction_at_two_places() {
    let run = |how: u32, seed: u64| {
        // 10 is wrong, but not detected.
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
