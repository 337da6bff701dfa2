//! Where filters cut held rows, with one mistake each.

use crate::broken_matmul::Outcome;
use crate::planted::{Broken, Compared, before, check_compared, outcome};
use lmhead::SamplingParams;
use lmhead::backend::params::{
    CutRowsParams, HeldHistogram, HeldTies, HeldWanted, KeptLogits, LMHEAD_DAMAGED, LMHEAD_LISTED,
    LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE, LearnCutsParams, SamplingRow,
};
use lmhead::sampling::mass::{Scale, share};
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::{Buffer, Device, LaunchConfig, emulated_kernel};
use std::ptr::{null, null_mut};

const NONE: f32 = f32::NEG_INFINITY;
const PLAIN: SamplingRow =
    SamplingRow { seed: 5, position: 0, temperature: 1.5, top_k: 0, top_p: 1.0, min_p: 0.0 };
const LISTED: SamplingRow = SamplingRow { top_k: 3, min_p: 0.25, ..PLAIN };

/// One row of each kind; then those of which something cannot be: parameters, the status of rows 7 and 8
/// (which the kernel before stores, and which is none that damages), a maximum.
const ROWS: [SamplingRow; 10] = [
    PLAIN,
    LISTED,
    SamplingRow { top_k: LMHEAD_LISTED + 1, top_p: 0.5, ..PLAIN },
    SamplingRow { top_p: 0.75, ..PLAIN },
    SamplingRow { temperature: 0.0, ..LISTED },
    SamplingRow { top_p: 1.5, ..PLAIN },
    SamplingRow { min_p: 0.5, ..PLAIN },
    LISTED,
    PLAIN,
    PLAIN,
];
const SHARDS: usize = 3;
const SHARD_IDS: u32 = 704;
const VOCAB: u32 = SHARDS as u32 * SHARD_IDS;

fn sampling() -> Vec<SamplingRow> {
    ROWS.into_iter().zip(40..).map(|(row, position)| SamplingRow { position, ..row }).collect()
}

/// Whether the row needs the search for the end of the nucleus, or for the last of top_k.
fn wants(row: &SamplingRow, masses: bool) -> bool {
    let filters = if masses { row.top_p < 1.0 } else { row.top_k > 0 && row.top_k < VOCAB };
    row.temperature > 0.0 && filters
}

/// The largest logit that a shard tells of a row: it is the second shard's, or NaN or infinity.
fn maximum(shard: usize, row: usize) -> f32 {
    match (row, shard) {
        (8, 0) => f32::NAN,
        (9, 2) => f32::INFINITY,
        _ => [1.0, 20.0, -7.0][shard] + row as f32,
    }
}

/// What is kept of a row when the first search begins.
fn wanted(row: usize) -> HeldWanted {
    let SamplingRow { seed, position, temperature, top_k, top_p, min_p } = sampling()[row];
    let max =
        if row == 8 { f32::NAN } else { (0..SHARDS).map(|shard| maximum(shard, row)).fold(NONE, f32::max) };
    let least = libm::log(f64::from(min_p)) as f32;
    let kept = KeptLogits { max, temperature, least, cut: NONE, ties_end: 0, row: row as u32 };
    let is_filtered = temperature > 0.0 && (top_k > 0 || top_p < 1.0 || min_p > 0.0);
    let filtered = if [5, 7, 9].contains(&row) { LMHEAD_DAMAGED } else { is_filtered.into() };
    HeldWanted { kept, filtered, k: 0, seed, position, place: row as u64 }
}

/// A search of the row begins with that query.
fn begun(row: usize, masses: bool, kept: KeptLogits) -> HeldHistogram {
    let least = if wants(&sampling()[row], masses) { kept.least } else { f32::INFINITY };
    HeldHistogram { kept: KeptLogits { least, ..kept }, masses: masses.into(), known: 0, key: 0, shift: 24 }
}

fn each<T>(of: impl FnMut(usize) -> T) -> Vec<T> {
    (0..ROWS.len()).map(of).collect()
}

/// Whether the buffer has these values, bit for bit: some are NaN.
fn has<T: bytemuck::NoUninit>(device: &Device, buffer: Buffer, wanted: &[T]) -> bool {
    device.download::<u8>(buffer).expect("the device's own buffer") == bytemuck::cast_slice::<T, u8>(wanted)
}

/// Parameters of which each kernel needs some more.
fn params(device: &mut Device) -> CutRowsParams {
    CutRowsParams {
        sampling: device.upload_read_only(&sampling()).pointer(),
        status: null(),
        maxima: null(),
        found: null(),
        ends: null(),
        bare: null_mut(),
        wanted: null_mut(),
        histograms: null_mut(),
        ties: null_mut(),
        rows: ROWS.len() as u32,
        vocab: VOCAB,
        shards: SHARDS as u32,
        ids: SHARD_IDS,
        masses: 0,
        known: 0,
        shift: 24,
        reserved: 0,
    }
}

fn config(blocks: usize, seed: u64) -> LaunchConfig {
    let shared = 8 * 256 + 4 * 8;
    LaunchConfig::new([blocks as u32, 1, 1], [256, 1, 1]).shared(shared).seed(seed).threads(1)
}

fn begin(how: u32, seed: u64) -> Outcome {
    let mut device = Device::new();
    let maxima: Vec<f32> = (0..SHARDS).flat_map(|shard| each(|row| maximum(shard, row))).collect();
    let status = device.upload(&each(|row| if row == 8 { LMHEAD_STATUS_NONFINITE } else { 0 }));
    let bare = device.upload(&each(|_| PLAIN));
    let all = device.upload(&each(|_| wanted(0)));
    let histograms = device.upload(&each(|_| begun(0, false, wanted(0).kept)));
    let right = CutRowsParams {
        status: status.pointer(),
        maxima: device.upload_read_only(&maxima).pointer(),
        bare: bare.pointer(),
        wanted: all.pointer(),
        histograms: histograms.pointer(),
        ..params(&mut device)
    };
    before(&mut device, status, 7, LMHEAD_STATUS_BAD_INDEX);
    let kernel = emulated_kernel!(broken_begin_cuts: Broken<CutRowsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(1, seed));
    outcome(ran, || {
        let without = |row: SamplingRow| SamplingRow { top_k: 0, top_p: 1.0, min_p: 0.0, ..row };
        has(&device, bare, &sampling().into_iter().map(without).collect::<Vec<_>>())
            && has(&device, all, &each(wanted))
            && has(&device, histograms, &each(|row| begun(row, false, wanted(row).kept)))
    })
}

/// A logit's bits as an integer of the same order; logits of these tests are positive.
fn order(logit: f32) -> u32 {
    logit.to_bits() | 1 << 31
}

fn next(how: u32, seed: u64) -> Outcome {
    let (known, shift) = (0xff00_0000, 16);
    let logit = |row: usize| 2.0 + row as f32;
    let mut found = each(|row| [order(logit(row)), row as u32 + 1]);
    let key = std::mem::take(&mut found[2][0]);
    let mut device = Device::new();
    let found = device.upload(&found);
    let ties = device.upload(&each(|_| HeldTies { kept: wanted(0).kept, logit: 7.0, allowance: 7 }));
    let histograms = device.upload(&each(|row| begun(row, false, wanted(row).kept)));
    let right = CutRowsParams {
        found: found.pointer(),
        wanted: device.upload(&each(wanted)).pointer(),
        histograms: histograms.pointer(),
        ties: ties.pointer(),
        known,
        shift,
        ..params(&mut device)
    };
    before(&mut device, found, 4, key);
    let kernel = emulated_kernel!(broken_next_cuts: Broken<CutRowsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(1, seed));
    outcome(ran, || {
        let query = |row| HeldHistogram {
            known,
            key: order(logit(row)),
            shift,
            ..begun(row, false, wanted(row).kept)
        };
        let of_ties = |row| {
            let allowance = if wants(&sampling()[row], false) { row as u32 + 1 } else { 0 };
            HeldTies { kept: wanted(row).kept, logit: logit(row), allowance }
        };
        has(&device, histograms, &each(query)) && has(&device, ties, &each(of_ties))
    })
}

/// The end of the first search, or of the second.
fn end(how: u32, seed: u64) -> Outcome {
    let masses = how == 0 && seed % 2 == 1;
    let logit = |row: usize| 2.0 + row as f32;
    // More ids than the shard has, of a row that has a search and of one that has none.
    let allowance = |row: usize| if [0, 1, 3].contains(&row) { SHARD_IDS + 1 } else { SHARD_IDS };
    let end = |row: usize| 100 + row as u32;
    let mut device = Device::new();
    let ends = device.upload(&each(|row| if row == 2 { 0 } else { end(row) }));
    let ties = each(|row| HeldTies { kept: wanted(row).kept, logit: logit(row), allowance: allowance(row) });
    let all = device.upload(&each(wanted));
    let histograms = device.upload(&each(|row| begun(row, false, wanted(row).kept)));
    let right = CutRowsParams {
        ends: ends.pointer(),
        wanted: all.pointer(),
        histograms: histograms.pointer(),
        ties: device.upload(&ties).pointer(),
        masses: masses.into(),
        ..params(&mut device)
    };
    before(&mut device, ends, 2, end(2));
    let kernel = emulated_kernel!(broken_end_cuts: Broken<CutRowsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(1, seed));
    outcome(ran, || {
        let cut = |row| {
            let mut of_row = wanted(row);
            if wants(&sampling()[row], masses) {
                (of_row.kept.cut, of_row.kept.ties_end) = (logit(row), end(row));
                if allowance(row) > SHARD_IDS {
                    of_row.filtered = LMHEAD_DAMAGED;
                }
            }
            of_row
        };
        let query = |row| match masses {
            true => begun(row, false, wanted(row).kept),
            false => begun(row, true, cut(row).kept),
        };
        has(&device, all, &each(cut)) && has(&device, histograms, &each(query))
    })
}

/// Histograms of nine shards, one more than there are warps, of which the last has fewer ids. Row 2 counts
/// more than all ids of a shard, row 3 has no search, and row 4 is to find more than there is.
fn learn(how: u32, seed: u64) -> Outcome {
    const SHARDS: usize = 9;
    const VOCAB: usize = 8 * 64 + 10;
    const BINS: usize = 64;
    const COUNT: usize = 5;
    const TOP_K: u32 = 23;
    let (masses, last) = match how {
        0 => (seed & 1 == 0, seed & 2 == 0),
        8 => (false, false),
        13..=15 => (true, true),
        _ => (true, false),
    };
    let shift = if last { 0 } else { 26 };
    // The digits that are known to the last search: of a logit of 8.
    let known_key = if last { order(8.0) } else { 0 };
    let kept = KeptLogits { max: 10.0, temperature: 1.5, least: NONE, cut: NONE, ties_end: 0, row: 0 };
    let scale = Scale::new(&SamplingParams { temperature: 1.5, ..SamplingParams::default() }, 10.0, VOCAB);
    let weight = |bin: usize| match (masses, last) {
        (false, _) => 1,
        (true, true) => scale.mass(f32::from_bits((known_key | bin as u32) & !(1 << 31))),
        (true, false) => (1 << 30) + bin as u64,
    };
    let ties = |shard: usize, row: usize, bin: usize| match row {
        2 if shard == 5 && bin == 9 => 1 << 20,
        3 => 0,
        _ if (shard * 3 + bin + row).is_multiple_of(7) && bin > 40 => 1 + (shard % 2) as u64,
        _ => 0,
    };
    let word = |shard, row, bin| ties(shard, row, bin) * weight(bin);
    let bins_of = |row, bin| (0..SHARDS).map(|shard| word(shard, row, bin)).sum::<u64>();
    let total = |row| (0..BINS).map(|bin| bins_of(row, bin)).sum::<u64>();
    // Each goal ends amid the ties of a bin.
    let row_of = |row: usize| match row {
        1 => SamplingRow { top_k: 1000, top_p: 0.25, ..PLAIN },
        _ => SamplingRow { top_k: TOP_K, top_p: 0.6, ..PLAIN },
    };
    let left = |row: usize| match (row, last) {
        (3, true) => 0,
        (4, true) => total(4) + 1,
        (_, true) => bins_of(row, 63) + bins_of(row, 62) / 2 + 1,
        (_, false) if masses => {
            if row == 3 {
                0
            } else {
                share(row_of(row).top_p, total(row))
            }
        }
        (_, false) => total(row).min(row_of(row).top_k.into()),
    };
    let mut words = Vec::new();
    for shard in 0..SHARDS {
        for row in 0..COUNT {
            words.extend((0..BINS).map(|bin| word(shard, row, bin)));
        }
    }
    // What another step has left, or the search so far.
    let searches: Vec<[u64; 2]> =
        (0..COUNT).map(|row| if last { [left(row), known_key.into()] } else { [3, 5] }).collect();
    let mut device = Device::new();
    let histograms = device.upload(&words);
    let searches = device.upload(&searches);
    let found = device.upload(&[7u64; SHARDS * COUNT]);
    let wanted = [HeldWanted { kept, filtered: 0, k: 0, seed: 0, position: 0, place: 0 }; COUNT];
    let right = LearnCutsParams {
        histograms: histograms.pointer(),
        sampling: device.upload_read_only(&[0, 1, 2, 3, 4].map(row_of)).pointer(),
        wanted: device.upload_read_only(&wanted).pointer(),
        searches: searches.pointer(),
        found: found.pointer(),
        count: COUNT as u32,
        vocab: VOCAB as u32,
        shards: SHARDS as u32,
        bins: BINS as u32,
        masses: masses.into(),
        known: if last { !63 } else { 0 },
        shift,
        reserved: 0,
    };
    before(&mut device, histograms, 0, 0);
    let kernel = emulated_kernel!(broken_learn_cuts: Broken<LearnCutsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(COUNT, seed));
    outcome(ran, || {
        let (mut searched, mut of_shards) = (Vec::new(), vec![0u64; SHARDS * COUNT]);
        for row in 0..COUNT {
            let mut left = left(row);
            let is_damaged = row == 2 || left > total(row);
            let mut bin = BINS - 1;
            while !is_damaged && left > bins_of(row, bin) {
                left -= bins_of(row, bin);
                bin -= 1;
            }
            let key = known_key | (bin as u32) << shift;
            searched.push([left, u64::from(key) | u64::from(is_damaged) << 32]);
            let mut kept = left.div_ceil(weight(bin));
            for shard in 0..SHARDS {
                let of_shard = ties(shard, row, bin).min(kept);
                kept -= of_shard;
                let allowance = match (is_damaged, last) {
                    (true, _) => u64::from(u32::MAX),
                    (false, true) => of_shard,
                    (false, false) => 0,
                };
                of_shards[shard * COUNT + row] = u64::from(key) | allowance << 32;
            }
        }
        has(&device, searches, searched.as_flattened()) && has(&device, found, &of_shards)
    })
}

#[test]
fn searches_that_begin() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "threads after the last row write, too", &[GlobalBounds]),
        (3, "rows that need no search are searched", &[]),
        (4, "any flag of a status taken for a bad index", &[]),
        (5, "maxima read as [rows, shards]", &[]),
        (6, "a maximum of infinity accepted", &[]),
        (7, "a maximum of NaN ignored", &[]),
        (8, "rows without a filter filtered", &[]),
        (9, "filters kept that the shards have applied already", &[]),
    ];
    check_compared("broken_begin_cuts", rows, begin);
}

#[test]
fn searches_that_go_on() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "threads after the last row write, too", &[GlobalBounds]),
        (3, "the digits that were known before", &[]),
        (4, "the digit that was counted before", &[]),
        (5, "ties of rows that need no search", &[]),
        (6, "ties among what the search has counted", &[]),
    ];
    check_compared("broken_next_cuts", rows, next);
}

#[test]
fn searches_that_end() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "threads after the last row write, too", &[GlobalBounds]),
        (3, "rows that need no search are searched", &[]),
        (4, "rows without a search get a cut", &[]),
        (5, "no ties of the cut kept", &[]),
        (6, "more ties than the shard has ids accepted", &[]),
        (7, "the second search looks at all logits", &[]),
        (8, "the first search made again", &[]),
    ];
    check_compared("broken_end_cuts", rows, end);
}

#[test]
fn digits_that_are_learned() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "histograms read as [rows, shards]", &[]),
        (3, "the first digit continues an older search", &[]),
        (4, "masses checked as numbers of ids", &[]),
        (5, "threads after the last bin add, too", &[GlobalBounds]),
        (6, "sums read before all threads have stored theirs", &[Race]),
        (7, "only this warp's check used", &[]),
        (8, "a goal of more ids than there are accepted", &[]),
        (9, "the whole goal searched again in each digit", &[]),
        (10, "the digit not shifted to its place in the key", &[]),
        (11, "results stored as [rows, shards]", &[]),
        (12, "damage not reported to the shards", &[]),
        (13, "the number of ties rounded down", &[]),
        (14, "masses counted as ties", &[]),
        (15, "every shard keeps the same number of ties", &[]),
    ];
    check_compared("broken_learn_cuts", rows, learn);
}
