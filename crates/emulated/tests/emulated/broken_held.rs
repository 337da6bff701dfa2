//! Passes over logits in device memory, with one mistake each.

use crate::broken_matmul::Outcome;
use crate::broken_partials::{SHARED, best_of};
use crate::planted::{Broken, Compared, before, check_compared, outcome};
use lmhead::backend::params::{
    HeldCandidatesParams, HeldHistogram, HeldHistogramsParams, HeldMatrix, HeldMaximaParams,
    HeldTargetsParams, HeldTies, HeldTiesParams, HeldWanted, KeptLogits, LMHEAD_STATUS_NONFINITE,
    SummariseHeldParams,
};
use lmhead::merge::{Candidate, ExpSum, PartialMut, PartialSpec};
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::{Device, LaunchConfig, emulated_kernel};
use std::ptr::null;

/// Two rounds of 1024 ids and a third, which ends within 16 bytes and within a warp.
const IDS: usize = 2075;
const ROWS: usize = 3;
const PITCH: usize = IDS.next_multiple_of(4);
const FIRST_ID: u32 = 640;
const K: usize = 3;

/// Few values, so that ids tie; those of row 2 are all negative.
fn row_of(row: usize) -> Vec<f32> {
    let below = if row == 2 { 25.0 } else { 5.0 };
    (0..IDS).map(|id| ((id * 37 + row * 5) % 11) as f32 - below).collect()
}

/// Row 2 with two logits above minus infinity.
fn sparse_row_of(row: usize) -> Vec<f32> {
    let mut logits = row_of(row);
    if row == 2 {
        let kept = |id: usize| id == 300 || id == 2073;
        logits.iter_mut().enumerate().filter(|(id, _)| !kept(*id)).for_each(|(_, l)| *l = f32::NEG_INFINITY);
    }
    logits
}

/// The rows on the device. The kernel before says that row 1 has no answer.
fn hold(device: &mut Device, row_of: fn(usize) -> Vec<f32>) -> HeldMatrix {
    // A load behind the last row's end is out of bounds.
    let mut data = vec![f32::NAN; (ROWS - 1) * PITCH + IDS];
    (0..ROWS).for_each(|row| data[row * PITCH..][..IDS].copy_from_slice(&row_of(row)));
    let status = device.upload(&[0u32; ROWS]);
    before(device, status, 1, LMHEAD_STATUS_NONFINITE);
    HeldMatrix {
        data: device.upload_read_only(&data).pointer(),
        status: status.pointer(),
        pitch: 4 * PITCH as u64,
        nonfinite: LMHEAD_STATUS_NONFINITE,
        rows: ROWS as u32,
        ids: IDS as u32,
        first_id: FIRST_ID,
    }
}

fn config(blocks: usize, seed: u64) -> LaunchConfig {
    LaunchConfig::new([blocks as u32, 1, 1], [256, 1, 1]).shared(SHARED).seed(seed).threads(1)
}

/// All logits above `cut`, and of those equal to it the ids below 1640.
fn kept(row: usize, cut: f32) -> KeptLogits {
    let (max, temperature, least) = (10.0, 1.0, f32::NEG_INFINITY);
    KeptLogits { max, temperature, least, cut, ties_end: FIRST_ID + 1000, row: row as u32 }
}

fn summarise(how: u32, seed: u64) -> Outcome {
    const SPEC: PartialSpec = PartialSpec { k: K, sum: true, targets: 2 };
    const PART_IDS: usize = 1088;
    let target = |row: usize, n: usize| {
        let value = if row == 2 { -18.0 } else { 2.0 };
        Candidate { value, id: FIRST_ID + 1000 + 500 * n as u32 }
    };
    let targets: Vec<_> = (0..ROWS).flat_map(|row| [target(row, 0), target(row, 1)]).collect();
    let parts = IDS.div_ceil(PART_IDS);
    let mut device = Device::new();
    let held = hold(&mut device, row_of);
    let out = device.upload(&vec![u64::MAX; parts * ROWS * SPEC.stride(PART_IDS) / 8]);
    let right = SummariseHeldParams {
        held,
        data: out.pointer::<u64>().cast(),
        targets: device.upload_read_only(&targets).pointer(),
        k: K as u32,
        sum: 1,
        target_count: 2,
        part_ids: PART_IDS as u32,
    };
    let kernel = emulated_kernel!(broken_summary: Broken<SummariseHeldParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(parts * ROWS, seed));
    outcome(ran, || {
        let mut wanted = vec![0u64; parts * ROWS * SPEC.stride(PART_IDS) / 8];
        let rows = bytemuck::cast_slice_mut(&mut wanted).chunks_mut(SPEC.stride(PART_IDS));
        for (i, bytes) in rows.enumerate() {
            let (row, first) = (i % ROWS, i / ROWS * PART_IDS);
            let logits = &row_of(row)[first..IDS.min(first + PART_IDS)];
            let mut partial = PartialMut::new(bytes, &SPEC, PART_IDS);
            partial.set_sum(&ExpSum::of(logits));
            partial.set_candidates(&best_of(logits, first as u32, K));
            for (n, count) in partial.num_greater().iter_mut().enumerate() {
                let ids = (FIRST_ID + first as u32..).zip(logits);
                let beats = |(id, &value): (u32, &f32)| Candidate { value, id }.beats(&target(row, n));
                *count = ids.filter(|of| beats(*of)).count() as u32;
            }
        }
        device.download::<u64>(out).expect("the device's own buffer") == wanted
    })
}

fn targets(how: u32, seed: u64) -> Outcome {
    let of_row = |row: usize| {
        let (own, end) = (FIRST_ID + 7 * row as u32, FIRST_ID + IDS as u32);
        [own, end, 3, u32::MAX, end - 1]
    };
    let ids: Vec<u32> = (0..ROWS).flat_map(of_row).collect();
    let mut device = Device::new();
    let held = hold(&mut device, row_of);
    let out = device.upload(&vec![7f32; ids.len()]);
    let targets = device.upload_read_only(&ids).pointer();
    let right = HeldTargetsParams { held, targets, out: out.pointer(), per_row: 5 };
    let kernel = emulated_kernel!(broken_held_targets: Broken<HeldTargetsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(1, seed));
    outcome(ran, || {
        let wanted = ids.iter().enumerate().map(|(i, id)| {
            row_of(i / 5).get(id.wrapping_sub(FIRST_ID) as usize).copied().unwrap_or(f32::NAN).to_bits()
        });
        wanted.eq(device.download::<u32>(out).expect("the device's own buffer"))
    })
}

fn maxima(how: u32, seed: u64) -> Outcome {
    let mut device = Device::new();
    let held = hold(&mut device, row_of);
    let out = device.upload(&[7f32; ROWS]);
    let right = HeldMaximaParams { held, rows: null(), out: out.pointer() };
    let kernel = emulated_kernel!(broken_maxima: Broken<HeldMaximaParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(ROWS, seed));
    outcome(ran, || {
        let wanted = [5.0, f32::NAN, -15.0].map(f32::to_bits);
        device.download::<u32>(out).expect("the device's own buffer") == wanted
    })
}

fn histograms(how: u32, seed: u64) -> Outcome {
    // Logits from 2 to 8 have the same highest eight bits; the next eight are counted.
    let order = |logit: f32| logit.to_bits() ^ if logit < 0.0 { u32::MAX } else { 1 << 31 };
    let (known, key, shift) = (0xff00_0000, 0xc000_0000, 16);
    let query = |row| HeldHistogram { kept: kept(row, -3.0), masses: 0, known, key, shift };
    let queries: Vec<_> = (0..ROWS).map(query).collect();
    let mut device = Device::new();
    let held = hold(&mut device, row_of);
    let out = device.upload(&[7u64; ROWS * 256]);
    let queries = device.upload_read_only(&queries).pointer();
    let right = HeldHistogramsParams { held, queries, out: out.pointer(), bins: 256, unit: 0 };
    let kernel = emulated_kernel!(broken_histograms: Broken<HeldHistogramsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(ROWS, seed));
    outcome(ran, || {
        let mut wanted = [0u64; ROWS * 256];
        for logit in row_of(0).into_iter().filter(|logit| order(*logit) & known == key) {
            wanted[(order(logit) >> shift & 255) as usize] += 1;
        }
        device.download::<u64>(out).expect("the device's own buffer") == wanted
    })
}

fn ties(how: u32, seed: u64) -> Outcome {
    // Found in the second round, in the third, and not at all.
    let asked = [(3.0, 150), (2.0, 187), (-18.0, 1000)];
    let query = |row: usize| {
        let (logit, allowance) = asked[row];
        HeldTies { kept: kept(row, -100.0), logit, allowance }
    };
    let queries: Vec<_> = (0..ROWS).map(query).collect();
    let mut device = Device::new();
    let held = hold(&mut device, row_of);
    let out = device.upload(&[7u32; ROWS]);
    let queries = device.upload_read_only(&queries).pointer();
    let right = HeldTiesParams { held, queries, out: out.pointer() };
    let kernel = emulated_kernel!(broken_ties: Broken<HeldTiesParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(ROWS, seed));
    outcome(ran, || {
        let wanted = (0..ROWS).map(|row| {
            let (value, allowance) = asked[row];
            let logits = row_of(row);
            let last = (0..IDS).filter(|id| logits[*id] == value).nth(allowance as usize - 1);
            last.map_or(0, |id| FIRST_ID + id as u32 + 1)
        });
        wanted.eq(device.download::<u32>(out).expect("the device's own buffer"))
    })
}

fn candidates(how: u32, seed: u64) -> Outcome {
    // A place between the queries' is nobody's.
    let query = |row: usize| {
        let (kept, place) = (kept(row, -100.0), 4 * row as u64);
        HeldWanted { kept, filtered: 0, k: K as u32, seed: 0, position: 0, place }
    };
    let queries: Vec<_> = (0..ROWS).map(query).collect();
    let nobody = Candidate { value: 7.0, id: 7 };
    let mut device = Device::new();
    let held = hold(&mut device, sparse_row_of);
    let out = device.upload(&[nobody; 4 * ROWS]);
    let queries = device.upload_read_only(&queries).pointer();
    let right = HeldCandidatesParams { held, queries, out: out.pointer() };
    let kernel = emulated_kernel!(broken_candidates: Broken<HeldCandidatesParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(ROWS, seed));
    outcome(ran, || {
        let bits = |of: &Candidate| (of.value.to_bits(), of.id);
        let wanted = (0..ROWS).flat_map(|row| {
            let mut places = match row {
                1 => vec![Candidate { value: f32::NAN, id: 0 }],
                _ => best_of(&sparse_row_of(row), FIRST_ID, K),
            };
            places.resize(K, Candidate { value: f32::NEG_INFINITY, id: 0 });
            places.push(nobody);
            places
        });
        let out = device.download::<Candidate>(out).expect("the device's own buffer");
        wanted.map(|of| bits(&of)).eq(out.iter().map(bits))
    })
}

#[test]
fn summaries() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "candidates offered by only part of a warp", &[Divergence]),
        (3, "the last part taken for a whole one", &[GlobalBounds]),
        (4, "ties decided by ids of the shard, not of the vocabulary", &[]),
        (5, "only one lane's count used", &[]),
    ];
    check_compared("broken_summary", rows, summarise);
}

#[test]
fn targets_that_are_held() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "threads after the last target write, too", &[GlobalBounds]),
        (3, "the next shard's first id taken for one's own", &[GlobalBounds]),
        (4, "a vocabulary id used as an id of the shard", &[]),
    ];
    check_compared("broken_held_targets", rows, targets);
}

#[test]
fn maxima_of_rows() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "another warp's maximum without a barrier", &[Race]),
        (3, "the last ids taken for a whole vector", &[GlobalBounds]),
        (4, "negative logits compared by their bits", &[]),
        (5, "a row without an answer gets a maximum", &[]),
    ];
    check_compared("broken_maxima", rows, maxima);
}

#[test]
fn histograms_of_a_digit() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "bins added to before they are cleared", &[Race]),
        (3, "bins stored while others add to them", &[Race]),
        (4, "logits with other known digits counted", &[]),
    ];
    check_compared("broken_histograms", rows, histograms);
}

#[test]
fn ties_in_the_order_of_ids() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "one place for the numbers of all turns", &[Race]),
        (3, "another warp's number read without a barrier", &[Race]),
        (4, "only the ties of a warp's last lane counted", &[]),
        (5, "the last tie's id answered, not the id after it", &[]),
    ];
    check_compared("broken_ties", rows, ties);
}

#[test]
fn candidates_of_queries() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "candidates offered by only part of a warp", &[Divergence]),
        (3, "unused places not written", &[]),
        (4, "places of a query found by its number", &[]),
    ];
    check_compared("broken_candidates", rows, candidates);
}
