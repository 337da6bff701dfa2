//! Deliberately wrong flags and bulk copies to several blocks.

use crate::planted::{Row, check};
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::probe::*;

#[test]
fn flags() {
    let run = |how: u32, seed: u64| {
        let probe = Probe::new(broken_flags(), 64, 136, 68).n(&[how]);
        let out = probe.config(|c| c.seed(seed).instruction_limit(100_000)).run()?;
        assert!(how != 0 || (0..32).all(|i| out[36 + i] == 7 * i as u32), "{out:?}");
        Ok(out)
    };
    let rows: &[Row] = &[
        (1, "an ordinary store sets the flag", &[Race], 8),
        (2, "an ordinary load looks at the flag", &[Race], 8),
        (3, "a load by .nc looks at the flag", &[Dependency, Deadlock], 8),
        (4, "a flag that is not aligned", &[Misaligned], 8),
        (5, "no fence between the acquire and TMA", &[Proxy], 8),
        (6, "the fence before the acquire", &[Proxy], 8),
        (7, "the fence of shared memory instead of that of global memory", &[Proxy], 8),
        (8, "a flag that nobody sets", &[Deadlock], 8),
        (9, "a flag in memory that is only read", &[GlobalBounds], 8),
        (10, "a count in memory that is only read", &[GlobalBounds], 8),
        (11, "a count beyond the end of the memory", &[GlobalBounds], 8),
        (12, "an ordinary store clears the flag in the same launch", &[Race], 8),
    ];
    check("broken_flags", rows, run);
}

#[test]
fn bulk_copies_to_several_blocks() {
    let input: Vec<u32> = (0..512).collect();
    let wanted: Vec<u32> = (0..32).map(|lane| (0..16).map(|i| lane + 32 * i).sum()).collect();
    let run = |how: u32, seed: u64| {
        let probe = Probe::new(broken_bulk_multicast(), 64, 1056, 64).input(&input).n(&[how]).grid(2);
        let out = probe.config(|c| c.seed(seed).cluster([2, 1, 1])).run()?;
        assert!(how != 0 || (out[..32] == wanted && out[32..] == wanted), "{out:?}");
        Ok(out)
    };
    let rows: &[Row] = &[
        (1, "a stage that is released to this block alone", &[Race, Incomplete, Barrier], 8),
        (2, "a stage that is released before it was read", &[Race, Incomplete], 8),
        (3, "pieces copied only to the neighbour", &[Transactions, Divergence], 8),
        (4, "pieces copied only to this block", &[Transactions, Divergence], 8),
        (5, "a copy to a block that the cluster does not have", &[Cluster], 8),
        (6, "a copy to no block", &[Operand], 8),
        (7, "a copy to a block that may not have begun", &[Cluster], 8),
        (8, "an arrival at a block that may have ended", &[Cluster], 8),
        (9, "both blocks copy the same piece", &[Incomplete, Race], 8),
        (10, "expect_tx counts only this block's piece", &[Transactions, Incomplete, Race], 8),
        (11, "no wait for the stage to be empty", &[Race, Incomplete, Barrier, Transactions], 8),
        (12, "no wait for the stage to be full", &[Race, Incomplete], 8),
        (13, "a copy of a size that is no multiple of 16", &[Operand], 8),
        (14, "a copy from an address that is no multiple of 16", &[Misaligned], 8),
        (15, "a copy beyond the end of an array", &[GlobalBounds], 8),
        (16, "a copy with another block's barrier", &[Cluster], 8),
    ];
    check("broken_bulk_multicast", rows, run);
}
