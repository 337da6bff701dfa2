//! Deliberately wrong kernels: each kind of fault is found and classified.

use crate::broken_matmul::Outcome;
use crate::planted::{Compared, Row, check, check_compared, plain, record};
use lmhead::sampling::philox;
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::probe::*;
use lmhead_emulated::{Device, LaunchConfig};

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
        (3, "a wait, but no barrier for the others", &[Race], 8),
        (4, "cp.async into what others still read", &[Race], 8),
        (5, "cp.async that outlives its thread", &[Incomplete], 8),
        (6, "a group that was never committed", &[Incomplete], 8),
        (7, "cp.async to an address that is not aligned", &[Misaligned], 8),
        (8, "cp.async reads more bytes than its size", &[Operand], 8),
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
        // 20 and 21 are correct: the block's barrier does not wait for threads that have ended.
        let how = if how == 0 { [0, 20, 21][(seed % 3) as usize] } else { how };
        plain(broken_barriers, 96, 0)(how, seed)
    };
    check("broken_barriers", rows, run);
}

#[test]
fn constant_memory_that_is_not() {
    let run = |how: u32, seed: u64| {
        let probe = Probe::new(broken_constant(), 32, 0, 128).input(&[7; 64]).n(&[how]).grid(2);
        probe.config(|c| c.seed(seed).threads(1 + (seed % 2) as usize)).run()
    };
    let rows: &[Row] = &[
        (1, "a word loaded by .nc and then stored to", &[Dependency], 8),
        (2, "a word stored and then loaded by .nc", &[Dependency], 8),
        (3, "a word loaded by .nc that another block stores", &[Dependency], 8),
        (4, "16 bytes loaded by .nc, some of which are stored to", &[Dependency], 8),
        (5, "a store to half of a word that was loaded by .nc", &[Dependency], 8),
        (6, "an atomic on a word loaded by .nc", &[Dependency], 8),
    ];
    check("broken_constant", rows, run);
}

#[test]
fn lists_of_candidates_and_histograms() {
    let words: Vec<u32> =
        (0..64u32).map(|i| (f32::from((i * 37 % 50) as u8) - 20.0).to_bits() | (i % 5)).collect();
    let run = |how: u32, seed: u64| {
        let probe = Probe::new(broken_answers(), 64, 2 * 1024 + 64, 24).input(&words).n(&[how]);
        let out = probe.config(|c| c.seed(seed)).run()?;
        let best = |of: std::ops::Range<usize>| {
            let mut ids: Vec<usize> = of.collect();
            let value = |id: &usize| f32::from_bits(words[*id]);
            ids.sort_by(|a, b| value(b).total_cmp(&value(a)).then(a.cmp(b)));
            ids[..3].iter().map(|id| *id as u32).collect::<Vec<_>>()
        };
        assert_eq!(out[..9], [best(0..32), best(32..64), best(0..64)].concat(), "mistake {how}, seed {seed}");
        let counts = (0..8).map(|bin| words.iter().filter(|word| **word % 8 == bin).count() as u32);
        assert_eq!(out[16..], counts.collect::<Vec<_>>(), "mistake {how}, seed {seed}");
        Ok(out)
    };
    let rows: &[Row] = &[
        (1, "another warp's list read without a barrier", &[Race], 8),
        (2, "the next row's candidates before the last ones are read", &[Race], 8),
        (3, "bins added to before they are cleared", &[Race], 8),
        (4, "bins read while others add to them", &[Race], 8),
        (5, "a sum without an atomic", &[Race], 8),
        (6, "candidates offered by only part of a warp", &[Divergence], 8),
        (7, "an atomic at an address that is not aligned", &[Misaligned], 8),
    ];
    check("broken_answers", rows, run);
}

#[test]
fn the_best_alone() {
    // In each turn two lanes have the largest value; that of the second turn is the largest of all.
    let value = |i: u32| [0.0, 4.0, -4.0][i as usize / 32] + (i * 37 % 16) as f32;
    let words: Vec<u32> = (0..96).map(|i| value(i).to_bits()).collect();
    let best = (32..64).find(|i| value(*i) == 19.0).expect("an id");
    let run = |how: u32, seed: u64| {
        let probe = Probe::new(broken_replace(), 32, 1024, 2).input(&words).n(&[how]);
        match probe.config(|c| c.seed(seed)).run() {
            Ok(out) if out == [words[best as usize], best] => Outcome::Right,
            Ok(_) => Outcome::Wrong,
            Err(fault) => Outcome::Fault(fault),
        }
    };
    let rows: &[Compared] = &[
        (1, "the highest id wins a tie", &[]),
        (2, "all lanes that have the largest value store theirs", &[Race]),
        (3, "the best of a turn stored while another lane's is", &[Race]),
        (4, "the bar not raised for later candidates", &[]),
    ];
    check_compared("broken_replace", rows, run);
}

#[test]
fn counts_and_comparisons_of_capacity_steps() {
    let words: Vec<u32> = (0..64u32).map(|i| 100 + (i * 37 + 11) % 64).collect();
    let least = words.iter().min().copied().expect("words");
    let counts = |how: u32, seed: u64| {
        let probe = Probe::new(broken_capacity(), 64, 8, 64).input(&words).n(&[how]);
        let out = probe.config(|c| c.seed(seed)).run()?;
        assert_eq!(out[40], least, "mistake {how}, seed {seed}");
        let before = out[1];
        let is_right = out[0] == before.wrapping_add(1) && out[1..33].iter().all(|seen| *seen == before);
        Ok((out, is_right))
    };
    let run = |how: u32, seed: u64| {
        let (out, is_right) = counts(how, seed)?;
        assert!(is_right, "mistake {how}, seed {seed}");
        Ok(out)
    };
    // Accesses of one block's threads to global memory are not checked for races: the lanes' numbers show the
    // mistake.
    let wrong = (0..8).filter(|seed| !counts(1, *seed).expect("no fault").1).count();
    assert!(wrong > 0, "a number that is counted up before all lanes have read it");
    let rows: &[Row] = &[
        (2, "the least of only part of a warp", &[Divergence], 8),
        (3, "another warp's number read without a barrier", &[Race], 8),
    ];
    check("broken_capacity", rows, run);
}

#[test]
fn selections_and_lists() {
    let words: Vec<u32> = (0..64u32).map(|i| i * 37 % 101).collect();
    let run = |how: u32, seed: u64| {
        let probe = Probe::new(broken_select(), 64, 560, 137 + 64).input(&words).n(&[how]);
        let mut out = probe.config(|c| c.seed(seed)).run()?;
        let sorted = |words: &mut [u32]| words.sort_unstable_by(|a, b| b.cmp(a));
        let (mut all, mut odd) = (words.clone(), words.clone());
        sorted(&mut all);
        odd.retain(|word| word % 2 == 1);
        let fifth = words.iter().position(|word| *word == odd[4]).expect("a word") as u32;
        sorted(&mut odd);
        let counts = (0..8).map(|bin| words.iter().filter(|word| **word % 8 == bin).count() as u32);
        assert_eq!(out[..64], all, "mistake {how}, seed {seed}");
        assert_eq!(out[64..72], counts.collect::<Vec<_>>(), "mistake {how}, seed {seed}");
        assert_eq!(out[72..137], [vec![fifth; 64], vec![odd.len() as u32]].concat(), "seed {seed}");
        sorted(&mut out[137..]);
        assert_eq!(out[137..137 + odd.len()], odd, "mistake {how}, seed {seed}");
        Ok(out)
    };
    let rows: &[Row] = &[
        (1, "bins of a digit added to before they are cleared", &[Race], 8),
        (2, "a word's atomic at an address that is not aligned", &[Misaligned], 8),
        (3, "bins of a digit read while others add to them", &[Race], 8),
        (4, "another warp's sum read without a barrier", &[Race], 8),
        (5, "what one thread has found read without a barrier", &[Race], 8),
        (6, "a vote of a part of a warp on what is wanted", &[Divergence], 8),
        (7, "more keys stored than there is room for", &[GlobalBounds], 8),
        (8, "keys to be sorted stored beyond their places", &[SharedBounds, Race], 8),
        (9, "a step of a sort without a barrier", &[Race], 8),
        (10, "sorted keys read before the last step has ended", &[Race], 8),
        (11, "a search beyond the end of a list", &[GlobalBounds], 8),
        (12, "what one warp makes known read without a barrier", &[Race], 8),
    ];
    check("broken_select", rows, run);
}

#[test]
fn cuts_from_histograms_of_shards() {
    // The goal of 29 is reached in bin 20, whose last tie is on the second shard.
    let mut words = vec![0u32; 64];
    (0..20).for_each(|bin| words[bin] = 3 * (bin as u32 % 3));
    (words[20], words[32 + 20], words[25], words[32 + 31]) = (3, 9, 18, 6);
    let probe = |how: u32, seed: u64| {
        let probe = Probe::new(broken_cuts(), 64, 8 * 256 + 8, 5).input(&words).n(&[how]);
        probe.config(|c| c.seed(seed)).run()
    };
    let right = [1, 20, 5, 1, 1];
    let run = |how: u32, seed: u64| {
        let out = probe(how, seed)?;
        assert_eq!(out, right, "mistake {how}, seed {seed}");
        Ok(out)
    };
    let rows: &[Row] = &[
        (1, "a shard's sum of only part of a warp", &[Divergence], 8),
        (2, "bins stored beyond their places", &[SharedBounds, Race], 8),
        (3, "sums of all shards read without a barrier", &[Race], 8),
    ];
    check("broken_cuts", rows, run);
    for (how, what) in
        [(10, "a tie that the goal still needs left out"), (11, "ties of one shard kept again by the next")]
    {
        // No fault is reported, so the result must be wrong in every schedule.
        let said: Vec<String> = (0..8)
            .map(|seed| {
                let out = probe(how, seed).unwrap_or_else(|fault| panic!("{what}: {fault}"));
                if out == right { "-".into() } else { "wrong cut".into() }
            })
            .collect();
        assert!(said.iter().any(|said| said != "-"), "{what}: nothing differs");
        record("broken_cuts", how, what, &said);
    }
}

#[test]
fn cuts_and_draws_of_candidates() {
    // Close to each other, so that the noise decides.
    let logits: Vec<f32> = (0..64u32).map(|i| (i * 37 % 64) as f32 / 16.0 - 2.0).collect();
    let words: Vec<u32> = logits.iter().map(|logit| logit.to_bits()).collect();
    let order = |logit: f32| logit.to_bits() ^ if logit < 0.0 { u32::MAX } else { 1 << 31 };
    let mut best: Vec<u32> = (0..64).collect();
    best.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    let score = |seed: u64, id: u32| {
        f64::from(logits[id as usize]) + philox::gumbel(philox::Words::new(seed, 0).of(id))
    };
    let right = |seed: u64| {
        let winner = best[..3].iter().max_by(|a, b| score(seed, **a).total_cmp(&score(seed, **b)));
        [order(logits[best[2] as usize]), *winner.expect("three"), order(logits[best[0] as usize])]
    };
    let run = |how: u32, seed: u64| {
        let probe = Probe::new(broken_draws(), 64, 8 * 256 + 16 + 48, 3).input(&words).n(&[how, seed as u32]);
        probe.config(|c| c.seed(seed)).run()
    };
    let held = |how: u32, seed: u64| {
        let out = run(how, seed)?;
        assert_eq!(out, right(seed), "mistake {how}, seed {seed}");
        Ok(out)
    };
    let rows: &[Row] = &[
        (1, "what another warp has seen read without a barrier", &[Race], 8),
        (2, "bins cleared that others still read", &[Race], 8),
        (3, "bins added to before they are cleared", &[Race], 8),
        (4, "bins read while others add to them", &[Race], 8),
        (5, "what warps have drawn in place of bins that others still read", &[Race], 8),
        (6, "candidates offered by only part of a warp", &[Divergence], 8),
    ];
    check("broken_draws", rows, held);
    for (how, what) in [
        (10, "the last candidate that is kept left out"),
        (11, "a floor raised by candidates that are not kept"),
        (12, "candidates of other digits counted again"),
    ] {
        let said = |seed| match run(how, seed).map(|out| out == right(seed)) {
            Ok(true) => "-",
            Ok(false) => "wrong draw",
            Err(fault) => panic!("{what}: {fault}"),
        };
        let said: Vec<String> = (0..8).map(|seed| said(seed).into()).collect();
        assert!(said.iter().any(|said| said != "-"), "{what}: nothing differs");
        record("broken_draws", how, what, &said);
    }
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
}

#[test]
fn loops_without_an_end() {
    let run = |how: u32, seed: u64| {
        let probe = Probe::new(broken_spin(), 64, 0, 64).n(&[how]);
        probe.config(|c| c.seed(seed).instruction_limit(100_000)).run()
    };
    check("broken_spin", &[(1, "a loop that waits for nobody", &[Deadlock], 8)], run);
    let fault = run(1, 0).expect_err("no end");
    assert!(fault.text.contains("Threads:") && fault.text.contains(" in ld.global.b32 0x"), "{fault}");
}

#[test]
fn what_is_waited_for_comes_before_the_threads_and_a_report_that_is_cut_says_so() {
    let fault = plain(broken_barriers, 96, 0)(2, 0).expect_err("too few reach it");
    assert!(fault.text.contains(" Barrier 1: 32 of 64 threads came. Threads:"), "{fault}");
    assert!(fault.text.ends_with("threads 32 to 95 ended."), "{fault}");
    let fault = plain(broken_waits, 512, 16)(0, 0).expect_err("nobody arrives");
    let at = |part: &str| fault.text.find(part).unwrap_or_else(|| panic!("no {part}: {fault}"));
    assert!(at("mbarrier 0x408 in phase 0 lacks 3 of 3 arrivals") < at(" Threads: thread 0 in "), "{fault}");
    assert!(fault.text.len() > 6000 && fault.text.ends_with(" [cut]"), "{fault}");
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
    let mut device = Device::new();
    let out = device.upload(&[0u32; 1]);
    let mut most = ManyParams([7; 8191]);
    (most.0[0], most.0[1]) = (out.address() as u32, (out.address() >> 32) as u32);
    let config = LaunchConfig::new([1; 3], [1, 1, 1]);
    device.launch(&probe_params(), &most, &config).expect("32764 bytes of parameters");
    assert_eq!(device.download::<u32>(out), Ok(vec![7]));
    let many = TooManyParams([0; 8192]);
    let config = LaunchConfig::new([1; 3], [32, 1, 1]);
    let fault =
        Device::new().launch(&broken_params(), &many, &config).expect_err("32768 bytes of parameters");
    assert!(fault.text.contains("wanted at most 32764 bytes, the kernel has 32768"), "{fault}");
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

#[test]
fn inputs_in_device_memory() {
    let ids = |i: u32| i * 37 % 100 * 10;
    let target = |i: u32| -> u64 {
        match i % 5 {
            0 => u64::from(i) * 3,
            1 => 50 + u64::from(i),
            2 => (-100i64) as u64,
            3 => (1 << 32) + 3,
            _ => 49,
        }
    };
    let mut words: Vec<u32> = (0..16).flat_map(|i| [target(i) as u32, (target(i) >> 32) as u32]).collect();
    words.extend((0..32).map(ids));
    let run = |how: u32, seed: u64| {
        let probe = Probe::new(broken_inputs(), 64, 8, 66).input(&words).n(&[how]);
        let out = probe.config(|c| c.seed(seed)).run()?;
        let there = |i: u32| target(i) < 50;
        let encoded = (0..16).map(|i| if there(i) { target(i) as u32 } else { u32::MAX });
        let status = (0..8).map(|i| if there(i) && there(i + 8) { 0 } else { 4 });
        let mut sorted: Vec<u32> = (0..32).map(ids).collect();
        sorted.sort_unstable();
        let large = [900, 990].map(|least| u32::from(sorted.iter().any(|id| *id > least)));
        let row = |row: Option<u32>| row.map_or(0, ids);
        let padded = [Some(0), Some(1), Some(2), None, Some(3), Some(4), None, None].map(row);
        let wanted: Vec<u32> = encoded.chain(status).chain(sorted).chain(large).chain(padded).collect();
        assert_eq!(out, wanted, "mistake {how}, seed {seed}");
        Ok(out)
    };
    let rows: &[Row] = &[
        (1, "targets beyond the last read", &[GlobalBounds], 8),
        (2, "a target of 8 bytes at an address that is not aligned", &[Misaligned], 8),
        (3, "an id that is used before it is checked", &[GlobalBounds], 8),
        (4, "what warps say read before all have said it", &[Race], 8),
        (5, "what warps say written over before all have read it", &[Race], 8),
        (6, "the row of an unused place read", &[GlobalBounds], 8),
    ];
    check("broken_inputs", rows, run);
}
