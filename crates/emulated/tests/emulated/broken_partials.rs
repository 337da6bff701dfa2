//! What parts of a vocabulary know of rows, joined with one mistake each.

use crate::broken_matmul::Outcome;
use crate::planted::{Broken, Compared, before, check_compared, outcome};
use lmhead::backend::params::{
    FinishParams, LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_NONFINITE, MergePartialsParams, PartialParts,
};
use lmhead::merge::{Candidate, ExpSum, PartialMut, PartialSpec};
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::{Device, LaunchConfig, emulated_kernel};

/// Parts of 64 ids, for lanes of two warps; the last has fewer ids than there are places.
const PARTS: usize = 41;
const VOCAB: usize = 64 * (PARTS - 1) + 2;
const ROWS: usize = 4;
const FIRST_ID: u32 = 640;
const SPEC: PartialSpec = PartialSpec { k: 3, sum: true, targets: 1 };
/// Shared memory of `Warps<8>`: of each warp a list of 128 candidates, and 40 bytes.
pub const SHARED: u32 = 8 * (128 * 8 + 40);

/// Few values, so that ids tie. In row 0 the last part's terms are of another digit than the others'.
fn logit(row: usize, id: usize) -> f32 {
    let value = ((id * 37 + row * 5) % 11) as f32 - 5.0;
    if row == 0 && id >= VOCAB - 2 { value + 25.0 } else { value }
}

fn ids_of(part: usize) -> std::ops::Range<usize> {
    64 * part..VOCAB.min(64 * part + 64)
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
/// id of another shard, row 2 a logit that is not finite.
fn partials(gap: usize, shards: bool) -> Vec<u64> {
    let mut all = Vec::new();
    for part in 0..PARTS {
        all.extend(vec![0u64; gap / 8]);
        for row in 0..ROWS {
            let logits: Vec<f32> = ids_of(part).map(|id| logit(row, id)).collect();
            let mut bytes = vec![0u64; SPEC.stride(logits.len()) / 8];
            let mut partial = PartialMut::new(bytemuck::cast_slice_mut(&mut bytes), &SPEC, logits.len());
            let mut best = best_of(&logits, 64 * part as u32, SPEC.k);
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
        parts: PARTS as u32,
        part_ids: 64,
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
            partial.num_greater()[0] = (0..PARTS).map(|part| count(part, row)).sum();
        }
        device.download::<u64>(out).expect("the device's own buffer") == wanted
    })
}

fn finish(how: u32, seed: u64) -> Outcome {
    const K: usize = SPEC.k;
    let mut device = Device::new();
    let status = device.upload(&[0u32; ROWS]);
    let ids = device.upload(&[7i64; ROWS * K]);
    let values = device.upload(&[7f32; ROWS * K]);
    let logsumexp = device.upload(&[7f32; ROWS]);
    let row_status = device.upload(&[7u8; ROWS]);
    let from = PartialParts {
        data: device.upload_read_only(&partials(16, true)).pointer::<u64>().cast(),
        status: status.pointer(),
        gap: 16,
        nonfinite: LMHEAD_STATUS_NONFINITE,
        rows: ROWS as u32,
        k: K as u32,
        targets: SPEC.targets as u32,
        vocab: VOCAB as u32,
        parts: PARTS as u32,
        part_ids: 0,
        shards: PARTS as u32,
    };
    let right = FinishParams {
        from,
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
        statuses == [0, 3, 1, 0]
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

#[test]
fn parts_that_are_merged() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "what warps have found read before all have stored it", &[Race]),
        (3, "the best of all warps in no order", &[]),
        (4, "lanes behind the last part", &[GlobalBounds]),
        (5, "rows of the last part as long as the others'", &[]),
        (6, "a tie won by the higher id", &[]),
        (7, "words of sums added whatever their digits", &[]),
        (8, "the sum of a row without an answer", &[]),
        (9, "ids that count from the shard's first", &[]),
    ];
    check_compared("broken_merge", rows, merge);
}

#[test]
fn answers_from_shards() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "what warps have found read before all have stored it", &[Race]),
        (3, "the best of all warps in no order", &[]),
        (10, "one gap in front of all shards", &[]),
        (11, "the status that one lane has seen", &[]),
        (12, "a candidate of another shard's ids", &[]),
    ];
    check_compared("broken_finish", rows, finish);
}
