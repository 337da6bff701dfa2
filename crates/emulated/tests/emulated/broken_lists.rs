//! Answers from sorted lists that shards sent, with one mistake each.

use crate::broken_matmul::Outcome;
use crate::broken_partials::best_of;
use crate::planted::{Broken, Compared, before, check_compared, outcome};
use lmhead::backend::params::{
    FinishLogprobsParams, FinishParams, LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_NONFINITE, PartialParts,
    PlaceListsParams,
};
use lmhead::layout::shard_range;
use lmhead::merge::{Candidate, ExpSum, PartialMut, PartialSpec};
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::{Buffer, Device, LaunchConfig, emulated_kernel};
use std::ptr::null_mut;

/// Three shards of 128 ids, one of 64 and one of 2, whose lists have 100, 64 and 2 places.
const SHARDS: usize = 5;
const VOCAB: usize = 7 * 64 + 2;
const SPEC: PartialSpec = PartialSpec { k: 100, sum: true, targets: 1 };
const GAP: usize = 16;

/// What is wrong with each row is in `messages`. Row 5 is one of those that the kernel before says have no
/// answer; row 7 has few candidates.
const STATUS: [u8; ROWS] = [0, 2, 3, 3, 3, 1, 3, 0, 0, 0];
const ROWS: usize = 10;

/// Few values, so that ids tie.
fn row_of(row: usize) -> Vec<f32> {
    let is_there = |id: usize| row != 1 && (row != 7 || id.is_multiple_of(9));
    let logit = |id: usize| ((id * 37 + row * 5) % 11) as f32 - 5.0;
    (0..VOCAB).map(|id| if is_there(id) { logit(id) } else { f32::NEG_INFINITY }).collect()
}

/// Numbers as different as they can be: of a shard's ids that beat the target.
fn count(shard: usize, row: usize) -> u32 {
    (1000 * shard + row) as u32
}

fn messages() -> Vec<u64> {
    let mut all = Vec::new();
    for shard in 0..SHARDS {
        all.extend([0u64; GAP / 8]);
        for row in 0..ROWS {
            let ids = shard_range(VOCAB, SHARDS, shard);
            let logits = &row_of(row)[ids.clone()];
            let mut bytes = vec![0u64; SPEC.stride(ids.len()) / 8];
            let mut partial = PartialMut::new(bytemuck::cast_slice_mut(&mut bytes), &SPEC, ids.len());
            let mut best = best_of(logits, ids.start as u32, SPEC.k);
            match (row, shard) {
                // No id of this shard; the list still falls.
                (2, 3) => best[63].id += 64,
                // Two ids that tie, the higher one first.
                (4, 2) => best.swap(0, 1),
                // Logits that do not fall, behind the first 64.
                (6, 1) => best.swap(70, 90),
                _ => {}
            }
            partial.set_status(LMHEAD_STATUS_ALLOWED);
            partial.set_sum(&ExpSum::of(logits));
            partial.set_candidates(&best);
            partial.num_greater()[0] = count(shard, row);
            if (row, shard) == (3, 1) {
                bytes[4] = 1 << 20; // the number of candidates
            }
            all.extend(bytes);
        }
    }
    all
}

fn of_shards(device: &mut Device, status: Buffer) -> PartialParts {
    PartialParts {
        data: device.upload_read_only(&messages()).pointer::<u64>().cast(),
        status: status.pointer(),
        gap: GAP as u64,
        nonfinite: LMHEAD_STATUS_NONFINITE,
        rows: ROWS as u32,
        k: SPEC.k as u32,
        targets: SPEC.targets as u32,
        vocab: VOCAB as u32,
        parts: SHARDS as u32,
        part_ids: 0,
        whole_parts: 0,
        tail_ids: 0,
        shards: SHARDS as u32,
    }
}

/// Two warps, with a list of 128 candidates each and 40 bytes.
fn config(blocks: usize, seed: u64) -> LaunchConfig {
    LaunchConfig::new([blocks as u32, 1, 1], [64, 1, 1]).shared(2 * (128 * 8 + 40)).seed(seed).threads(1)
}

/// The row's logsumexp; `None` for a row without an answer.
fn logsumexp(row: usize) -> Option<f64> {
    let logits = row_of(row);
    (STATUS[row] == 0).then(|| ExpSum::of(&logits).ln(best_of(&logits, 0, 1)[0].value))
}

fn logprob(logit: f32, logsumexp: f64) -> f32 {
    (f64::from(logit) - logsumexp).min(0.0) as f32
}

fn finish(how: u32, seed: u64) -> Outcome {
    let mut device = Device::new();
    let status = device.upload(&[0u32; ROWS]);
    let logsumexps = device.upload(&[7f32; ROWS]);
    let row_status = device.upload(&[7u8; ROWS]);
    let right = FinishParams {
        from: of_shards(&mut device, status),
        ids: null_mut(),
        values: null_mut(),
        logsumexp: logsumexps.pointer(),
        row_status: row_status.pointer(),
    };
    before(&mut device, status, 5, LMHEAD_STATUS_NONFINITE);
    let kernel = emulated_kernel!(broken_finish_lists: Broken<FinishParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(ROWS, seed));
    outcome(ran, || {
        let wanted = (0..ROWS).map(|row| logsumexp(row).map_or(f32::NAN, |sum| sum as f32).to_bits());
        device.download::<u8>(row_status).expect("the device's own buffer") == STATUS
            && wanted.eq(device.download::<u32>(logsumexps).expect("the device's own buffer"))
    })
}

/// Logprobs of one target. Row 7 has none; of row 8 a draw has found that nothing is allowed.
fn logprobs(how: u32, seed: u64) -> Outcome {
    let mut device = Device::new();
    let status = device.upload(&[0u32; ROWS]);
    let target = |row: usize| match row {
        7 => Candidate { value: 0.0, id: u32::MAX },
        _ => Candidate { value: row_of(row)[100 + row], id: 100 + row as u32 },
    };
    let targets = device.upload_read_only(&std::array::from_fn::<_, ROWS, _>(target));
    let logprobs = device.upload(&[7f32; ROWS]);
    let ranks = device.upload(&[7i64; ROWS]);
    let row_status = device.upload(&std::array::from_fn::<u8, ROWS, _>(|row| if row == 8 { 2 } else { 0 }));
    let right = FinishLogprobsParams {
        from: of_shards(&mut device, status),
        targets: targets.pointer(),
        logprobs: logprobs.pointer(),
        ranks: ranks.pointer(),
        top_ids: null_mut(),
        top_logprobs: null_mut(),
        row_status: row_status.pointer(),
        top_n: 0,
        drawn: 1,
    };
    before(&mut device, status, 5, LMHEAD_STATUS_NONFINITE);
    let kernel = emulated_kernel!(broken_lists_logprobs: Broken<FinishLogprobsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(ROWS, seed));
    outcome(ran, || {
        let own = "the device's own buffer";
        let mut statuses = STATUS;
        statuses[8] = 2;
        let of_row = |row| {
            let rank = 1 + (0..SHARDS).map(|shard| i64::from(count(shard, row))).sum::<i64>();
            let sum = logsumexp(row).filter(|_| row != 7 && row != 8);
            sum.map_or((f32::NAN.to_bits(), -1), |sum| (logprob(target(row).value, sum).to_bits(), rank))
        };
        let got = device.download::<u32>(logprobs).expect(own);
        device.download::<u8>(row_status).expect(own) == statuses
            && (0..ROWS).map(of_row).eq(got.into_iter().zip(device.download::<i64>(ranks).expect(own)))
    })
}

/// The best 90 of each row with their logprobs. The kernel before says which rows have an answer.
fn place(how: u32, seed: u64) -> Outcome {
    const N: usize = 90;
    let blocks = SHARDS * SPEC.k.div_ceil(64);
    let mut device = Device::new();
    let status = device.upload(&[0u32; ROWS]);
    let mut statuses = [0u8; ROWS.next_multiple_of(4)];
    statuses[4..ROWS].copy_from_slice(&STATUS[4..]);
    let row_status = device.upload(&statuses);
    let ids = device.upload(&[7i64; ROWS * N]);
    let values = device.upload(&[7f32; ROWS * N]);
    let right = PlaceListsParams {
        from: of_shards(&mut device, status),
        row_status: row_status.pointer(),
        ids: ids.pointer(),
        values: values.pointer(),
        n: N as u32,
        blocks: blocks as u32,
        logprobs: 1,
    };
    before(&mut device, row_status, 0, u32::from_le_bytes(std::array::from_fn(|row| STATUS[row])));
    let kernel = emulated_kernel!(broken_place_lists: Broken<PlaceListsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(blocks * ROWS, seed));
    outcome(ran, || {
        let wanted = (0..ROWS).flat_map(|row| {
            let of_best = |sum: f64| {
                let best = best_of(&row_of(row), 0, N).into_iter();
                best.map(|of| (i64::from(of.id), logprob(of.value, sum).to_bits())).collect::<Vec<_>>()
            };
            let (mut places, none) = match logsumexp(row) {
                Some(sum) => (of_best(sum), f32::NEG_INFINITY),
                None => (Vec::new(), f32::NAN),
            };
            places.resize(N, (-1, none.to_bits()));
            places
        });
        let ids = device.download::<i64>(ids).expect("the device's own buffer");
        wanted.eq(ids.into_iter().zip(device.download::<u32>(values).expect("the device's own buffer")))
    })
}

#[test]
fn lists_that_are_checked() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "one gap before all shards, not before each", &[]),
        (3, "messages read with a place for every id", &[GlobalBounds]),
        (4, "all messages read as long as the first", &[GlobalBounds]),
        (5, "rows of the last shard read as long as the others'", &[GlobalBounds]),
        (6, "a candidate with another shard's id accepted", &[]),
        (7, "only the first list read", &[]),
        (8, "a number of candidates that no shard can have sent accepted", &[GlobalBounds]),
        (9, "only as many candidates checked as there are threads", &[]),
        (10, "the last candidate compared with what follows it", &[]),
        (11, "a tie with the higher id first accepted", &[]),
        (12, "the further status ignored", &[]),
        (13, "a row without an answer gets a sum", &[]),
    ];
    check_compared("broken_finish_lists", rows, finish);
}

#[test]
fn logprobs_of_targets_from_lists() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (14, "the status of a draw overwritten", &[]),
        (15, "counts looked for after as many places as the longest list has", &[GlobalBounds]),
        (16, "only the first shard's count used", &[]),
        (17, "every row uses the first row's targets", &[]),
        (18, "'no target' gets an answer", &[]),
        (19, "ranks counted from 0", &[]),
    ];
    check_compared("broken_lists_logprobs", rows, logprobs);
}

#[test]
fn candidates_in_their_places() {
    let rows: &[Compared] = &[
        // A block of a row without an answer has nothing to do.
        (1, "no wait for the kernel before", &[Dependency, Turn]),
        (20, "the lists of a row without an answer placed", &[GlobalBounds]),
        (21, "rows of the answer taken to be as long as the lists", &[GlobalBounds]),
        (22, "unused places not written", &[]),
        (23, "only the first shard's sum used", &[]),
        (24, "the logsumexp read before it is stored", &[Race]),
        (25, "blocks of all lists counted as one list's", &[]),
        (26, "threads after the last candidate write, too", &[GlobalBounds]),
        (27, "a tie won by the higher id", &[]),
        (28, "candidates after the last place stored", &[GlobalBounds]),
        (29, "logits stored in place of logprobs", &[]),
    ];
    check_compared("broken_place_lists", rows, place);
}
