//! Flags in global memory that announce data to other kernels, and bulk copies to several blocks.

use lmhead_emulated::probe::*;

#[test]
fn blocks_hand_each_other_words() {
    let rounds = 25;
    let (mut words, mut out) = ([[0u32; 32]; 2], [[0u32; 32]; 2]);
    for round in 1..=rounds {
        for (block, words) in words.iter_mut().enumerate() {
            for (lane, word) in words.iter_mut().enumerate() {
                *word = out[block][lane].wrapping_mul(3) + (lane + block) as u32;
            }
        }
        out = [1, 0].map(|other: usize| words[other].map(|word| word + round));
    }
    for seed in 0..20 {
        // Each block has an OS thread of its own, because it waits for the other block.
        let probe = Probe::new(probe_flags(), 32, 0, 144).n(&[rounds]).grid(2);
        let got = probe.config(|c| c.seed(seed).threads(2)).output();
        assert_eq!(got[..4], [rounds, rounds, 32 * rounds, 32 * rounds], "seed {seed}");
        assert_eq!(got[16..80], *words.as_flattened(), "seed {seed}");
        assert_eq!(got[80..], *out.as_flattened(), "seed {seed}");
    }
}

#[test]
fn what_another_block_stored_is_copied_by_tma() {
    let input: Vec<u32> = (0..1024u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    for seed in 0..20 {
        let probe = Probe::new(probe_flags_bulk(), 32, 4096 + 8, 16 + 2048).input(&input).n(&[1024]).grid(2);
        let got = probe.config(|c| c.seed(seed).threads(2)).output();
        assert_eq!(got[16..1040], input, "seed {seed}");
        assert_eq!(got[1040..], input, "seed {seed}");
    }
}

#[test]
fn bulk_copies_reach_every_block() {
    let input: Vec<u32> = (0..2048u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    for blocks in [1, 2, 4] {
        for (words, to) in [(16, 16), (16, 48), (2048, 128)] {
            for seed in 0..10 {
                let probe = Probe::new(probe_bulk_multicast(), 32, to + 4 * words, (words * blocks) as usize)
                    .input(&input)
                    .n(&[words, blocks, to])
                    .grid(blocks);
                let got = probe.config(|c| c.cluster([blocks, 1, 1]).seed(seed)).output();
                for block in got.chunks(words as usize) {
                    assert_eq!(
                        block,
                        &input[..words as usize],
                        "{blocks} blocks, {words} words, seed {seed}"
                    );
                }
            }
        }
    }
}

#[test]
fn the_timer_counts_on() {
    let out = Probe::new(probe_timer(), 64, 0, 256).output();
    let time = |at: usize| u64::from(out[at]) | u64::from(out[at + 1]) << 32;
    for thread in 0..64 {
        let (before, after) = (time(4 * thread), time(4 * thread + 2));
        assert!(after > before, "thread {thread}: {before}, then {after}");
    }
}
