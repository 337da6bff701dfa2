//! What parts of a vocabulary know of rows, joined with one mistake each.

use crate::broken_matmul::Outcome;
use crate::planted::{Broken, Compared, before, check_compared, outcome};
use lmhead::backend::params::{
    FinishLogitsParams, FinishLogprobsParams, FinishParams, LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_BAD_INDEX,
    LMHEAD_STATUS_NONFINITE, MergePartialsParams, PartialParts,
};
use lmhead::layout::shard_range;
use lmhead::merge::{Candidate, ExpSum, PartialMut, PartialSpec};
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::{Buffer, Device, LaunchConfig, emulated_kernel};

/// Parts of 64 ids, for lanes of two warps; the last has fewer ids than there are places.
const SHARDS: usize = 41;
const VOCAB: usize = 64 * (SHARDS - 1) + 2;
/// The same ids in a product's tiles: 39 whole ones, then tail tiles of 32, 32 and 2.
const WHOLE_TILES: usize = 39;
const TAIL_IDS: usize = 32;
const TILES: usize = WHOLE_TILES + 3;
const ROWS: usize = 5;
const FIRST_ID: u32 = 640;
const SPEC: PartialSpec = PartialSpec { k: 3, sum: true, targets: 1 };
/// Shared memory of `Warps<8>`: of each warp a list of 128 candidates, and 40 bytes.
pub const SHARED: u32 = 8 * (128 * 8 + 40);

/// Few values, so that ids tie. In row 0 the last part's terms are of another digit than the others'.
fn logit(row: usize, id: usize) -> f32 {
    let value = ((id * 37 + row * 5) % 11) as f32 - 5.0;
    if row == 0 && id >= VOCAB - 2 { value + 25.0 } else { value }
}

fn ids_of(part: usize, shards: bool) -> std::ops::Range<usize> {
    let whole = if shards { part } else { part.min(WHOLE_TILES) };
    let first = 64 * whole + TAIL_IDS * (part - whole);
    first..VOCAB.min(first + if part == whole && (shards || part < WHOLE_TILES) { 64 } else { TAIL_IDS })
}

/// The best of these logits, the best first.
pub fn best_of(logits: &[f32], first_id: u32, k: usize) -> Vec<Candidate> {
    let candidate = |(id, &value)| Candidate { value, id };
    let mut all: Vec<_> = (first_id..).zip(logits).map(candidate).collect();
    all.retain(|candidate| candidate.value > f32::NEG_INFINITY);
    all.sort_by(|a, b| b.value.total_cmp(&a.value).then(a.id.cmp(&b.id)));
    all.truncate(k);
    all
}

/// Numbers as different as they can be: of a part's ids that beat the target.
fn count(part: usize, row: usize) -> u32 {
    (1000 * part + row) as u32
}

/// PartialRows of all parts, `gap` bytes in front of each. Where `shards`, as shards send them: row 1 has an
/// id of another shard, row 2 a logit that is not finite. Else as tiles leave them.
fn partials(gap: usize, shards: bool) -> Vec<u64> {
    let mut all = Vec::new();
    for part in 0..if shards { SHARDS } else { TILES } {
        all.extend(vec![0u64; gap / 8]);
        for row in 0..ROWS {
            let logits: Vec<f32> = ids_of(part, shards).map(|id| logit(row, id)).collect();
            let mut bytes = vec![0u64; SPEC.stride(logits.len()) / 8];
            let mut partial = PartialMut::new(bytemuck::cast_slice_mut(&mut bytes), &SPEC, logits.len());
            let mut best = best_of(&logits, ids_of(part, shards).start as u32, SPEC.k);
            match (shards, row, part) {
                (false, ..) => best.reverse(),
                (true, 1, 7) => best[2].id += 64,
                (true, 2, 5) => partial.set_status(LMHEAD_STATUS_NONFINITE),
                _ => partial.set_status(LMHEAD_STATUS_ALLOWED),
            }
            partial.set_sum(&ExpSum::of(&logits));
            partial.set_candidates(&best);
            partial.num_greater()[0] = count(part, row);
            all.extend(bytes);
        }
    }
    all
}

fn row_of(row: usize) -> Vec<f32> {
    (0..VOCAB).map(|id| logit(row, id)).collect()
}

fn merge(how: u32, seed: u64) -> Outcome {
    let mut device = Device::new();
    let status = device.upload(&[0u32; ROWS]);
    let out = device.upload(&vec![u64::MAX; ROWS * SPEC.stride(64) / 8]);
    let from = PartialParts {
        data: device.upload_read_only(&partials(0, false)).pointer::<u64>().cast(),
        status: status.pointer(),
        gap: 0,
        nonfinite: LMHEAD_STATUS_NONFINITE,
        rows: ROWS as u32,
        k: SPEC.k as u32,
        targets: SPEC.targets as u32,
        vocab: VOCAB as u32,
        parts: TILES as u32,
        part_ids: 64,
        whole_parts: WHOLE_TILES as u32,
        tail_ids: TAIL_IDS as u32,
        shards: 0,
    };
    let (out_bytes, places) = (out.pointer::<u64>().cast(), SPEC.k as u32);
    let right = MergePartialsParams { from, out: out_bytes, first_id: FIRST_ID, places };
    before(&mut device, status, 2, LMHEAD_STATUS_NONFINITE);
    let kernel = emulated_kernel!(broken_merge: Broken<MergePartialsParams>);
    let config = LaunchConfig::new([ROWS as u32, 1, 1], [256, 1, 1]).shared(SHARED).seed(seed).threads(1);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config);
    outcome(ran, || {
        let mut wanted = vec![0u64; ROWS * SPEC.stride(64) / 8];
        let rows = bytemuck::cast_slice_mut(&mut wanted).chunks_mut(SPEC.stride(64));
        for (row, bytes) in rows.enumerate() {
            let (logits, mut partial) = (row_of(row), PartialMut::new(bytes, &SPEC, 64));
            if row == 2 {
                partial.set_status(LMHEAD_STATUS_NONFINITE);
                partial.set_candidates(&[]);
                continue;
            }
            partial.set_status(LMHEAD_STATUS_ALLOWED);
            partial.set_sum(&ExpSum::of(&logits));
            partial.set_candidates(&best_of(&logits, FIRST_ID, SPEC.k));
            partial.num_greater()[0] = (0..TILES).map(|part| count(part, row)).sum();
        }
        device.download::<u64>(out).expect("the device's own buffer") == wanted
    })
}

/// What shards have sent, each a part.
fn of_shards(device: &mut Device, status: Buffer) -> PartialParts {
    PartialParts {
        data: device.upload_read_only(&partials(16, true)).pointer::<u64>().cast(),
        status: status.pointer(),
        gap: 16,
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

fn finish(how: u32, seed: u64) -> Outcome {
    const K: usize = SPEC.k;
    let mut device = Device::new();
    let status = device.upload(&[0u32; ROWS]);
    let ids = device.upload(&[7i64; ROWS * K]);
    let values = device.upload(&[7f32; ROWS * K]);
    let logsumexp = device.upload(&[7f32; ROWS]);
    let row_status = device.upload(&[7u8; ROWS]);
    let right = FinishParams {
        from: of_shards(&mut device, status),
        ids: ids.pointer(),
        values: values.pointer(),
        logsumexp: logsumexp.pointer(),
        row_status: row_status.pointer(),
    };
    before(&mut device, status, 0, 0);
    let kernel = emulated_kernel!(broken_finish: Broken<FinishParams>);
    let config = LaunchConfig::new([ROWS as u32, 1, 1], [256, 1, 1]).shared(SHARED).seed(seed).threads(1);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config);
    outcome(ran, || {
        let statuses = device.download::<u8>(row_status).expect("the device's own buffer");
        let ids = device.download::<i64>(ids).expect("the device's own buffer");
        let values = device.download::<u32>(values).expect("the device's own buffer");
        let sums = device.download::<u32>(logsumexp).expect("the device's own buffer");
        let nan = f32::NAN.to_bits();
        statuses == [0, 3, 1, 0, 0]
            && (0..ROWS).all(|row| {
                let (logits, of_row) = (row_of(row), row * K..row * K + K);
                let best = best_of(&logits, 0, K);
                let is_good = statuses[row] == 0;
                let sum = (ExpSum::of(&logits).ln(best[0].value) as f32).to_bits();
                let wanted = best
                    .iter()
                    .map(|c| if is_good { (i64::from(c.id), c.value.to_bits()) } else { (-1, nan) });
                sums[row] == if is_good { sum } else { nan }
                    && wanted.eq(ids[of_row.clone()].iter().copied().zip(values[of_row].iter().copied()))
            })
    })
}

/// Logprobs of the two best and of one target. Row 0 has no target; of row 4 a draw has found that nothing is
/// allowed.
fn logprobs(how: u32, seed: u64) -> Outcome {
    const TOP_N: usize = 2;
    let mut device = Device::new();
    let status = device.upload(&[0u32; ROWS]);
    let target = |row| match row {
        0 => Candidate { value: 0.0, id: u32::MAX },
        _ => Candidate { value: logit(row, 100 + row), id: 100 + row as u32 },
    };
    let targets = device.upload_read_only(&std::array::from_fn::<_, ROWS, _>(target));
    let logprobs = device.upload(&[7f32; ROWS]);
    let ranks = device.upload(&[7i64; ROWS]);
    let top_ids = device.upload(&[7i64; ROWS * TOP_N]);
    let top_logprobs = device.upload(&[7f32; ROWS * TOP_N]);
    let row_status = device.upload(&[0u8, 0, 0, 0, 2]);
    let right = FinishLogprobsParams {
        from: of_shards(&mut device, status),
        targets: targets.pointer(),
        logprobs: logprobs.pointer(),
        ranks: ranks.pointer(),
        top_ids: top_ids.pointer(),
        top_logprobs: top_logprobs.pointer(),
        row_status: row_status.pointer(),
        top_n: TOP_N as u32,
        drawn: 1,
    };
    before(&mut device, status, 0, 0);
    let kernel = emulated_kernel!(broken_logprobs: Broken<FinishLogprobsParams>);
    let config = LaunchConfig::new([ROWS as u32, 1, 1], [256, 1, 1]).shared(SHARED).seed(seed).threads(1);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config);
    outcome(ran, || {
        let own = "the device's own buffer";
        let statuses = device.download::<u8>(row_status).expect(own);
        let of_targets = device.download::<u32>(logprobs).expect(own);
        let ranks = device.download::<i64>(ranks).expect(own);
        let ids = device.download::<i64>(top_ids).expect(own);
        let of_best = device.download::<u32>(top_logprobs).expect(own);
        let nan = f32::NAN.to_bits();
        statuses == [0, 3, 1, 0, 2]
            && (0..ROWS).all(|row| {
                let (logits, of_row) = (row_of(row), row * TOP_N..(row + 1) * TOP_N);
                let (best, is_good) = (best_of(&logits, 0, TOP_N), statuses[row] == 0);
                let logsumexp = ExpSum::of(&logits).ln(best[0].value);
                let logprob = |value: f32| ((f64::from(value) - logsumexp).min(0.0) as f32).to_bits();
                let rank = 1 + (0..SHARDS).map(|part| i64::from(count(part, row))).sum::<i64>();
                let of_target = match is_good && row != 0 {
                    true => (logprob(target(row).value), rank),
                    false => (nan, -1),
                };
                let wanted = best.iter().map(|best| match is_good {
                    true => (i64::from(best.id), logprob(best.value)),
                    false => (-1, nan),
                });
                (of_targets[row], ranks[row]) == of_target
                    && wanted.eq(ids[of_row.clone()].iter().copied().zip(of_best[of_row].iter().copied()))
            })
    })
}

/// Messages of whole logits, of five shards of which the last has no ids, to rows of an odd number of bytes.
fn logits(how: u32, seed: u64) -> Outcome {
    const VOCAB: usize = 3 * 64 + 7;
    const SHARDS: usize = 5;
    const SENT: usize = 4; // rows of a message, of which one is padding
    const PITCH: usize = 2 * VOCAB + 4;
    const GAP: usize = 16;
    let element = |row: usize, id: usize| (1000 * row + id) as u16;
    let mut messages = Vec::new();
    for shard in 0..SHARDS {
        messages.extend([0xeeu8; GAP]);
        let ids = shard_range(VOCAB, SHARDS, shard);
        for row in 0..SENT {
            let begin = messages.len();
            messages.extend(ids.clone().flat_map(|id| element(row, id).to_le_bytes()));
            messages.resize(begin + (2 * ids.len() + 4).next_multiple_of(16), 0xee);
            let status = match (shard, row) {
                (4, 0) => LMHEAD_STATUS_ALLOWED | LMHEAD_STATUS_NONFINITE,
                _ => LMHEAD_STATUS_ALLOWED,
            };
            let at = messages.len() - 4;
            messages[at..].copy_from_slice(&status.to_le_bytes());
        }
    }
    let mut device = Device::new();
    let words = device.upload(&[0u32; 3]);
    let to = device.upload(&[0xccu8; 3 * PITCH]);
    let row_status = device.upload(&[7u8; 3]);
    let right = FinishLogitsParams {
        data: device.upload_read_only(&messages).pointer(),
        words: words.pointer(),
        logits: to.pointer(),
        logits_pitch: PITCH as u64,
        row_status: row_status.pointer(),
        gap: GAP as u64,
        rows: SENT as u32,
        answered: 3,
        vocab: VOCAB as u32,
        shards: SHARDS as u32,
        element_bytes: 2,
        part_ids: 128,
    };
    before(&mut device, words, 1, LMHEAD_STATUS_BAD_INDEX);
    let kernel = emulated_kernel!(broken_logits: Broken<FinishLogitsParams>);
    let config = LaunchConfig::new([2 * 3, 1, 1], [256, 1, 1]).seed(seed).threads(1);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config);
    outcome(ran, || {
        let mut wanted = Vec::new();
        for row in 0..3 {
            wanted.extend((0..VOCAB).flat_map(|id| element(row, id).to_le_bytes()));
            wanted.extend([0xcc; PITCH - 2 * VOCAB]);
        }
        device.download::<u8>(row_status).expect("the device's own buffer") == [1, 3, 0]
            && device.download::<u8>(to).expect("the device's own buffer") == wanted
    })
}

#[test]
fn parts_that_are_merged() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "what warps have found read before all have stored it", &[Race]),
        (3, "the best of all warps stored unsorted", &[]),
        (4, "lanes behind the last part", &[GlobalBounds]),
        (5, "rows of the last part as long as the others'", &[GlobalBounds]),
        (6, "a tie won by the higher id", &[]),
        (7, "words of sums added without comparing their digits", &[]),
        (8, "a row without an answer gets a sum", &[]),
        (9, "ids that count from the shard's first", &[]),
        (13, "tail tiles taken for whole tiles", &[]),
    ];
    check_compared("broken_merge", rows, merge);
}

#[test]
fn answers_from_shards() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "what warps have found read before all have stored it", &[Race]),
        (3, "the best of all warps stored unsorted", &[]),
        (10, "one gap before all shards, not before each", &[]),
        (11, "only the status that one lane has seen used", &[]),
        (12, "a candidate with another shard's id accepted", &[]),
    ];
    check_compared("broken_finish", rows, finish);
}

#[test]
fn logprobs_from_shards() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "what warps have found read before all have stored it", &[Race]),
        (7, "words of sums added without comparing their digits", &[]),
        (13, "the status of a draw overwritten", &[]),
        (14, "logprobs stored with k places a row, not top_n", &[GlobalBounds]),
        (15, "logits stored in place of logprobs", &[]),
        (16, "every row uses the first row's targets", &[]),
        (17, "every row uses the first row's counts", &[]),
        (18, "'no target' gets an answer", &[]),
        (19, "ranks counted from 0", &[]),
    ];
    check_compared("broken_logprobs", rows, logprobs);
}

#[test]
fn whole_logits_from_shards() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "rows of messages read without padding", &[GlobalBounds, Misaligned]),
        (3, "all ids of a part taken from one shard", &[]),
        (4, "16 bytes copied at a time, even if not aligned", &[Misaligned]),
        (5, "the pitch of the logits ignored", &[]),
        (6, "only the first shard's status used", &[]),
        (7, "one gap before all shards, not before each", &[]),
        (8, "messages read as if they had only the answered rows", &[]),
    ];
    check_compared("broken_logits", rows, logits);
}
