//! What belongs to rows and lies in device memory, with one mistake each.

use crate::broken_capacity_steps::{hash, sum};
use crate::broken_matmul::Outcome;
use crate::planted::{Broken, Compared, before, check_compared, outcome};
use lmhead::backend::params::{
    AdjustmentPlaces, EncodeTargetsParams, LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE, OrStatusParams,
    PackAdjustmentsParams, PickTargetsParams, SamplingRow, SamplingRowsParams, UnpackAdjustmentsParams,
};
use lmhead::layout::shard_range;
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::{Buffer, Device, LaunchConfig, emulated_kernel};
use std::ptr::null;

/// Rows, or targets, of two blocks.
const COUNT: usize = 300;
const VOCAB: usize = 7 * 64 + 10;

fn config(seed: u64) -> LaunchConfig {
    LaunchConfig::new([COUNT.div_ceil(256) as u32, 1, 1], [256, 1, 1]).seed(seed).threads(1)
}

/// Ids of the vocabulary; none; ids below and behind the vocabulary, and one of which the low word is none of
/// these.
fn target(n: usize) -> i64 {
    match n {
        10 => -1,
        22 => VOCAB as i64,
        31 => (1 << 32) + 5,
        40 => -100,
        _ => (n * 37 % VOCAB) as i64,
    }
}

/// The target as ranks exchange it.
fn encoded(n: usize) -> u32 {
    u32::try_from(target(n)).ok().filter(|id| (*id as usize) < VOCAB).unwrap_or(u32::MAX)
}

fn encode(how: u32, seed: u64) -> Outcome {
    const PER_ROW: usize = 3;
    let ids: Vec<i64> = (0..COUNT).map(target).collect();
    let mut statuses = [0u32; COUNT / PER_ROW];
    statuses[10 / PER_ROW] = LMHEAD_STATUS_NONFINITE;
    let mut device = Device::new();
    let status = device.upload(&statuses);
    let out = device.upload(&[7u32; COUNT]);
    let right = EncodeTargetsParams {
        ids: device.upload_read_only(&ids).pointer(),
        out: out.pointer(),
        status: status.pointer(),
        count: COUNT as u64,
        per_row: PER_ROW as u32,
        vocab: VOCAB as u32,
    };
    before(&mut device, status, 10 / PER_ROW, LMHEAD_STATUS_NONFINITE);
    let kernel = emulated_kernel!(broken_encode_targets: Broken<EncodeTargetsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(seed));
    outcome(ran, || {
        [10, 22, 31].iter().for_each(|n| statuses[n / PER_ROW] |= LMHEAD_STATUS_BAD_INDEX);
        let out = device.download::<u32>(out).expect("the device's own buffer");
        (0..COUNT).map(encoded).eq(out)
            && device.download::<u32>(status).expect("the device's own buffer") == statuses
    })
}

fn pick(how: u32, seed: u64) -> Outcome {
    const SHARDS: usize = 3;
    let logit = |shard: usize, n: usize| (1000 * shard + n) as f32;
    let logits: Vec<f32> = (0..SHARDS).flat_map(|shard| (0..COUNT).map(move |n| logit(shard, n))).collect();
    let mut targets: Vec<u32> = (0..COUNT).map(encoded).collect();
    targets[0] = 5;
    let mut device = Device::new();
    let of_rows = device.upload(&targets);
    let out = device.upload(&[7u64; COUNT]);
    let right = PickTargetsParams {
        targets: of_rows.pointer(),
        logits: device.upload_read_only(&logits).pointer(),
        out: out.pointer(),
        count: COUNT as u64,
        vocab: VOCAB as u32,
        shards: SHARDS as u32,
    };
    targets[0] = VOCAB as u32 - 1;
    before(&mut device, of_rows, 0, targets[0]);
    let kernel = emulated_kernel!(broken_pick_targets: Broken<PickTargetsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(seed));
    outcome(ran, || {
        let wanted = targets.iter().enumerate().map(|(n, id)| {
            let has = |shard: &usize| shard_range(VOCAB, SHARDS, *shard).contains(&(*id as usize));
            let value = (0..SHARDS).find(has).map_or(f32::NAN, |shard| logit(shard, n));
            u64::from(value.to_bits()) | u64::from(*id) << 32
        });
        wanted.eq(device.download::<u64>(out).expect("the device's own buffer"))
    })
}

fn or(how: u32, seed: u64) -> Outcome {
    let from: Vec<u32> = (0..COUNT as u32).map(|row| row % 3).collect();
    let known: Vec<u32> = (0..COUNT as u32).map(|row| row % 5).collect();
    let mut device = Device::new();
    let into = device.upload(&known);
    let of_rows = device.upload_read_only(&from);
    let right =
        OrStatusParams { from: of_rows.pointer(), into: into.pointer(), rows: COUNT as u32, reserved: 0 };
    before(&mut device, into, 7, known[7]);
    let kernel = emulated_kernel!(broken_or_status: Broken<OrStatusParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(seed));
    outcome(ran, || {
        let wanted = from.iter().zip(&known).map(|(from, known)| from | known);
        wanted.eq(device.download::<u32>(into).expect("the device's own buffer"))
    })
}

/// Rows of the second block have what may not be, one thing each; before them are some that may.
fn sampling(how: u32, seed: u64) -> Outcome {
    let is_unfiltered = [11, 12].contains(&how) || (how == 0 && seed % 2 == 1);
    let is_placed = how != 5 && (how != 0 || seed % 4 < 2);
    let mut seeds: Vec<u64> = (0..COUNT as u64).map(|row| (row + 1) << 30).collect();
    let mut positions: Vec<i64> = (0..COUNT as i64).map(|row| (row + 3) << 31).collect();
    let mut temperatures: Vec<f32> = (0..COUNT).map(|row| row as f32 / 8.0).collect();
    let mut top_k: Vec<i32> = (0..COUNT as i32).map(|row| row % 20 * 40).collect();
    let mut top_p: Vec<f32> = (0..COUNT).map(|row| 1.0 - (row % 4) as f32 / 8.0).collect();
    let mut min_p: Vec<f32> = (0..COUNT).map(|row| (row % 3) as f32 / 2.0).collect();
    (temperatures[100], min_p[101]) = (-0.0, -0.0);
    (positions[260], top_k[261]) = (-1, -1);
    (temperatures[262], temperatures[263]) = (f32::INFINITY, -0.5);
    (top_p[264], top_p[265], min_p[266]) = (0.0, 1.5, 1.5);
    temperatures[267] = f32::NAN;
    let mut device = Device::new();
    let first_seed = std::mem::take(&mut seeds[0]);
    let of_rows = device.upload(&seeds);
    seeds[0] = first_seed;
    let out = device.upload(&[[7u64; 4]; COUNT]);
    let status = device.upload(&[LMHEAD_STATUS_NONFINITE; COUNT]);
    let right = SamplingRowsParams {
        seeds: of_rows.pointer(),
        positions: if is_placed { device.upload_read_only(&positions).pointer() } else { null() },
        temperatures: device.upload_read_only(&temperatures).pointer(),
        top_k: device.upload_read_only(&top_k).pointer(),
        top_p: device.upload_read_only(&top_p).pointer(),
        min_p: device.upload_read_only(&min_p).pointer(),
        out: out.pointer(),
        status: status.pointer(),
        rows: COUNT as u32,
        vocab: VOCAB as u32,
        unfiltered: is_unfiltered.into(),
        reserved: 0,
    };
    before(&mut device, of_rows, 0, first_seed as u32);
    let kernel = emulated_kernel!(broken_sampling_rows: Broken<SamplingRowsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(seed));
    outcome(ran, || {
        let wanted: Vec<Option<SamplingRow>> = (0..COUNT)
            .map(|row| {
                let (temperature, top_p, min_p) = (temperatures[row] + 0.0, top_p[row], min_p[row] + 0.0);
                let top_k = usize::try_from(top_k[row]).ok()?;
                let position = if is_placed { u64::try_from(positions[row]).ok()? } else { 0 };
                let top_k = if top_k < VOCAB { top_k as u32 } else { 0 };
                let is_legal = (0.0..f32::INFINITY).contains(&temperature)
                    && top_p > 0.0
                    && top_p <= 1.0
                    && (0.0..=1.0).contains(&min_p);
                let is_filtered = temperature > 0.0 && (top_k > 0 || top_p < 1.0 || min_p > 0.0);
                let of_row = SamplingRow { seed: seeds[row], position, temperature, top_k, top_p, min_p };
                (is_legal && !(is_unfiltered && is_filtered)).then_some(of_row)
            })
            .collect();
        let bad = |row: &Option<SamplingRow>| if row.is_some() { 0 } else { LMHEAD_STATUS_BAD_INDEX };
        let statuses = wanted.iter().map(|row| LMHEAD_STATUS_NONFINITE | bad(row));
        let greedy = SamplingRow { seed: 0, position: 0, temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };
        let rows: Vec<_> = wanted.iter().map(|row| row.unwrap_or(greedy)).collect();
        statuses.eq(device.download::<u32>(status).expect("the device's own buffer"))
            && device.download::<u8>(out).expect("the device's own buffer")
                == bytemuck::cast_slice::<SamplingRow, u8>(&rows)
    })
}

/// Adjustments of five rows. Rows 1, 2 and 4 have what may not be: a count of one id twice, an id that is
/// none, and entries behind the last with a penalty of 0.
const ROWS: usize = 5;
const BIAS_IDS: [&[i64]; ROWS] = [&[3, 70, 130, 195], &[195, 7, 7, 2], &[300], &[], &[]];
const COUNT_IDS: [&[i64]; ROWS] = [&[5, 195], &[9, 9], &[], &[201, 64, 0], &[]];
const REPETITION: [f32; ROWS] = [1.5, 2.0, 1.25, 0.5, 0.0];
const FREQUENCY: [f32; ROWS] = [0.5, 0.0, 1.0, -0.5, 2.0];
const PRESENCE: [f32; ROWS] = [0.25, 1.0, 0.0, -1.0, 0.0];
const SHARDS: usize = 3;
const IDS: usize = 3 * 64 + 10;
const WORDS: usize = IDS.div_ceil(32);
const PLACES: AdjustmentPlaces = AdjustmentPlaces { masks: 1, logit_bias: 4, counts: 3, reserved: 0 };

/// Word `i` of a row's mask.
fn allowed(row: usize, i: usize) -> u32 {
    ((row * WORDS + i) as u32).wrapping_mul(0x9e37_79b9)
}

/// The number of the row's first entry among all rows' entries.
fn first_entry(ids: &[&[i64]; ROWS], row: usize) -> usize {
    ids[..row].concat().len()
}

fn bias(entry: usize) -> u32 {
    (entry as f32 - 2.5).to_bits()
}

/// How often an id is in the output, and whether it is in the prompt.
fn times(entry: usize) -> (u32, u8) {
    (3 * entry as u32, entry as u8 % 2)
}

/// The adjustments, in two parts that each have a place for four rows, to the first and the last of three
/// shards. The kernel before stores the first count.
fn adjustments(device: &mut Device, out: Buffer, status: Buffer) -> PackAdjustmentsParams {
    let offsets = |ids| (0..=ROWS).map(|row| first_entry(ids, row) as i64).collect::<Vec<_>>();
    let mut bias_offsets = offsets(&BIAS_IDS);
    bias_offsets[ROWS] += 100;
    let (bias_ids, count_ids) = (BIAS_IDS.concat(), COUNT_IDS.concat());
    let masks: Vec<_> = (0..ROWS * WORDS).map(|i| allowed(0, i)).collect();
    let values: Vec<_> = (0..bias_ids.len()).map(bias).collect();
    let (counts, in_prompt): (Vec<_>, Vec<_>) = (0..count_ids.len()).map(times).unzip();
    let counts = device.upload(&counts);
    before(device, counts, 0, times(0).0);
    PackAdjustmentsParams {
        allowed: device.upload_read_only(&masks).pointer(),
        logit_bias_offsets: device.upload_read_only(&bias_offsets).pointer(),
        logit_bias_ids: device.upload_read_only(&bias_ids).pointer(),
        logit_bias_values: device.upload_read_only(&values).pointer(),
        count_offsets: device.upload_read_only(&offsets(&COUNT_IDS)).pointer(),
        count_ids: device.upload_read_only(&count_ids).pointer(),
        counts: counts.pointer(),
        in_prompt: device.upload_read_only(&in_prompt).pointer(),
        repetition: device.upload_read_only(&REPETITION).pointer(),
        frequency: device.upload_read_only(&FREQUENCY).pointer(),
        presence: device.upload_read_only(&PRESENCE).pointer(),
        logit_bias_entries: bias_ids.len() as u64,
        count_entries: count_ids.len() as u64,
        out: out.pointer(),
        status: status.pointer(),
        places: PLACES,
        rows: ROWS as u32,
        parts: 2,
        part_rows: 4,
        vocab: IDS as u32,
        shards: SHARDS as u32,
        first_shard: 0,
        shard_step: 2,
        reserved: 0,
    }
}

fn config_of(blocks: usize, seed: u64) -> LaunchConfig {
    LaunchConfig::new([blocks as u32, 1, 1], [256, 1, 1]).shared(8 * 8).seed(seed).threads(1)
}

fn pack(how: u32, seed: u64) -> Outcome {
    const BAD: u32 = LMHEAD_STATUS_BAD_INDEX;
    // The messages: of each shard the parts' rows, a place without a row being 3, 6 or 7.
    let mut wanted: Vec<u32> = Vec::new();
    for shard in [0, 2] {
        let ids = shard_range(IDS, SHARDS, shard);
        for row in [Some(0), Some(1), Some(2), None, Some(3), Some(4), None, None] {
            let words = ids.len().div_ceil(64) * 2;
            let mask = (0..words).map(|i| match row {
                Some(row) if i < ids.len().div_ceil(32) => allowed(row, ids.start / 32 + i),
                _ => u32::MAX,
            });
            wanted.extend(mask);
            let entries = |all: &[&[i64]; ROWS], word: &dyn Fn(usize) -> u32, places: u32| {
                let row = row.filter(|row| !all[*row].contains(&300));
                let own = row.map_or(&[][..], |row| all[row]);
                let first = row.map_or(0, |row| first_entry(all, row));
                let mut entries: Vec<_> =
                    (first..).zip(own).map(|(entry, id)| (*id as usize, entry)).collect();
                entries.retain(|(id, _)| ids.contains(id));
                entries.sort_unstable();
                let entry = |&(id, entry): &(usize, usize)| [(id - ids.start) as u32, word(entry)];
                let mut message: Vec<u32> = entries.iter().flat_map(entry).collect();
                (entries.len()..places as usize).for_each(|_| message.extend([u32::MAX, 0]));
                message
            };
            wanted.extend(entries(&BIAS_IDS, &bias, PLACES.logit_bias));
            let row_or =
                |of: &[f32; ROWS], otherwise| row.filter(|row| *row != 4).map_or(otherwise, |row| of[row]);
            let penalties = [row_or(&REPETITION, 1.0), row_or(&FREQUENCY, 0.0), row_or(&PRESENCE, 0.0), 0.0];
            wanted.extend(penalties.map(f32::to_bits));
            let word = |entry: usize| times(entry).0 << 1 | u32::from(times(entry).1);
            wanted.extend(entries(&COUNT_IDS, &word, PLACES.counts));
        }
    }
    let mut device = Device::new();
    let out = device.upload(&vec![7u32; wanted.len()]);
    let status = device.upload(&[LMHEAD_STATUS_NONFINITE; ROWS]);
    let right = adjustments(&mut device, out, status);
    let kernel = emulated_kernel!(broken_pack_adjustments: Broken<PackAdjustmentsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config_of(2 * 8, seed));
    outcome(ran, || {
        let statuses = [0, BAD, BAD, 0, BAD].map(|bad| bad | LMHEAD_STATUS_NONFINITE);
        device.download::<u32>(status).expect("the device's own buffer") == statuses
            && device.download::<u32>(out).expect("the device's own buffer") == wanted
    })
}

/// What a row's adjustments are known by: hashes of their words, each by its kind and its number.
fn digest(how: u32, seed: u64) -> Outcome {
    let mut device = Device::new();
    let out = device.upload(&[7u64; ROWS]);
    let right = adjustments(&mut device, out, out);
    let kernel = emulated_kernel!(broken_digest_adjustments: Broken<PackAdjustmentsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config_of(ROWS, seed));
    outcome(ran, || {
        let wanted = (0..ROWS).map(|row| {
            let mut words: Vec<(u64, u32)> = (0..).zip((0..WORDS).map(|i| allowed(row, i))).collect();
            let mut add = |kind: u64, of: &[u32]| words.extend((kind << 28..).zip(of.iter().copied()));
            let entries = |ids: &[&[i64]; ROWS]| first_entry(ids, row)..first_entry(ids, row + 1);
            for (kind, ids, is_good) in [(1, &BIAS_IDS, row != 4), (5, &COUNT_IDS, true)] {
                add(kind, &[(ids[row].len() as u32) << 1 | u32::from(is_good)]);
                add(kind + 1, &ids[row].iter().map(|id| *id as u32).collect::<Vec<_>>());
                add(kind + 2, &vec![0; ids[row].len()]);
            }
            add(4, &entries(&BIAS_IDS).map(bias).collect::<Vec<_>>());
            let (counts, in_prompt): (Vec<_>, Vec<_>) =
                entries(&COUNT_IDS).map(times).map(|(count, prompt)| (count, u32::from(prompt))).unzip();
            add(8, &counts);
            add(9, &in_prompt);
            add(10, &[REPETITION[row], FREQUENCY[row], PRESENCE[row]].map(f32::to_bits));
            let of_row = sum(words.iter().map(|(place, word)| hash(*word, *place)));
            let own = |kind: u64| kind << 28 | row as u64;
            hash(of_row as u32, own(11)).wrapping_add(hash((of_row >> 32) as u32, own(12)))
        });
        wanted.eq(device.download::<u64>(out).expect("the device's own buffer"))
    })
}

/// Messages of three rows for a shard of 70 ids: what is behind the masks, word by word.
fn unpack(how: u32, seed: u64) -> Outcome {
    const ROWS: usize = 3;
    const MASKS: usize = 4;
    const BIASES: usize = PLACES.logit_bias as usize;
    const COUNTS: usize = PLACES.counts as usize;
    const MESSAGE: usize = MASKS + 2 * BIASES + 4 + 2 * COUNTS;
    let word = |row: usize, i: usize| (1000 * row + i) as u32;
    let mut data: Vec<u32> = (0..ROWS).flat_map(|row| (0..MESSAGE).map(move |i| word(row, i))).collect();
    data[MASKS] = 7;
    let mut device = Device::new();
    let data = device.upload(&data);
    let [bias_offsets, count_offsets] = [(); 2].map(|()| device.upload(&[7u32; ROWS + 1]));
    let [bias_ids, bias_values] = [(); 2].map(|()| device.upload(&[7u32; ROWS * BIASES]));
    let [count_ids, counts] = [(); 2].map(|()| device.upload(&[7u32; ROWS * COUNTS]));
    let [repetition, frequency, presence] = [(); 3].map(|()| device.upload(&[7u32; ROWS]));
    let right = UnpackAdjustmentsParams {
        data: data.pointer(),
        logit_bias_offsets: bias_offsets.pointer(),
        logit_bias_ids: bias_ids.pointer(),
        logit_bias_values: bias_values.pointer(),
        count_offsets: count_offsets.pointer(),
        count_ids: count_ids.pointer(),
        counts: counts.pointer(),
        repetition: repetition.pointer(),
        frequency: frequency.pointer(),
        presence: presence.pointer(),
        places: PLACES,
        rows: ROWS as u32,
        ids: 70,
    };
    before(&mut device, data, MASKS, word(0, MASKS));
    let kernel = emulated_kernel!(broken_unpack_adjustments: Broken<UnpackAdjustmentsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config_of(ROWS, seed));
    outcome(ran, || {
        // `count` words of each row, two apart.
        let words = |first: usize, count: usize| {
            let of_row = move |row| (0..count).map(move |i| word(row, first + 2 * i));
            (0..ROWS).flat_map(of_row).collect::<Vec<_>>()
        };
        let offsets = |places: usize| (0..=ROWS).map(|row| (row * places) as u32).collect::<Vec<_>>();
        let (penalties, entries) = (MASKS + 2 * BIASES, MASKS + 2 * BIASES + 4);
        let wanted = [
            (bias_offsets, offsets(BIASES)),
            (bias_ids, words(MASKS, BIASES)),
            (bias_values, words(MASKS + 1, BIASES)),
            (count_offsets, offsets(COUNTS)),
            (count_ids, words(entries, COUNTS)),
            (counts, words(entries + 1, COUNTS)),
            (repetition, words(penalties, 1)),
            (frequency, words(penalties + 1, 1)),
            (presence, words(penalties + 2, 1)),
        ];
        let has =
            |of: &(Buffer, Vec<u32>)| device.download::<u32>(of.0).expect("the device's own buffer") == of.1;
        wanted.iter().all(has)
    })
}

#[test]
fn adjustments_that_are_digested() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "mask words of whole blocks of ids digested", &[GlobalBounds]),
        (3, "sums of warps read before all have stored theirs", &[Race]),
        (4, "offsets beyond the last entry accepted", &[GlobalBounds]),
        (5, "only the first lane's sum used", &[]),
        (6, "ids and values digested alike", &[]),
        (7, "every row digests the first row's penalties", &[]),
        (8, "the row's number not in the digest", &[]),
    ];
    check_compared("broken_digest_adjustments", rows, digest);
}

#[test]
fn adjustments_that_are_unpacked() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "masks not padded to an even number of words", &[Misaligned]),
        (3, "entries looked for where the penalties are", &[]),
        (4, "every row uses the first row's places", &[]),
        (5, "no offset after the last row", &[]),
    ];
    check_compared("broken_unpack_adjustments", rows, unpack);
}

#[test]
fn adjustments_that_are_packed() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "words stored where others read those of the call before", &[Race]),
        (3, "words of warps read before all have stored theirs", &[Race]),
        (4, "offsets beyond the last entry accepted", &[GlobalBounds]),
        (5, "places without an entry left as they were", &[]),
        (6, "an id outside the vocabulary accepted", &[]),
        (7, "unsorted ids taken for ascending", &[GlobalBounds]),
        (8, "places counted from the vocabulary's first entry", &[]),
        (9, "two values of one id swapped", &[]),
        (10, "vocabulary ids sent in place of the shard's", &[]),
        (11, "an id that comes twice accepted", &[]),
        (12, "rows of padding read", &[GlobalBounds]),
        (13, "offsets of messages count only this rank's rows", &[]),
        (14, "mask words after the vocabulary read", &[GlobalBounds]),
        (15, "a penalty of 0 accepted", &[]),
        (16, "the status indexed by place, not by row", &[GlobalBounds]),
    ];
    check_compared("broken_pack_adjustments", rows, pack);
}

#[test]
fn targets_that_are_encoded() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "threads after the last target write, too", &[GlobalBounds]),
        (3, "only the low word of an id used", &[]),
        (4, "the id after the last accepted", &[]),
        (5, "the status indexed by target, not by row", &[]),
        (6, "'no target' taken for a bad one", &[]),
        (7, "the status overwritten, not or'ed", &[]),
    ];
    check_compared("broken_encode_targets", rows, encode);
}

#[test]
fn targets_of_shards() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "threads after the last target write, too", &[GlobalBounds]),
        (3, "the shard of 'no target' read", &[GlobalBounds]),
        (4, "all shards taken to have the same number of ids", &[GlobalBounds]),
        (5, "logits read as [targets, shards]", &[]),
        (6, "'no target' stored as id 0", &[]),
    ];
    check_compared("broken_pick_targets", rows, pick);
}

#[test]
fn statuses_of_two_kinds() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "threads after the last row write, too", &[GlobalBounds]),
        (3, "every block takes the first block's rows", &[]),
        (4, "the other status stored in place of both", &[]),
    ];
    check_compared("broken_or_status", rows, or);
}

#[test]
fn parameters_of_rows() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "threads after the last row write, too", &[GlobalBounds]),
        (3, "every block takes the first block's rows", &[]),
        (4, "only 32 bits of positions used", &[]),
        (5, "a null array read", &[GlobalBounds]),
        (6, "-0 kept", &[]),
        (7, "negative numbers accepted", &[]),
        (8, "every temperature accepted", &[]),
        (9, "a top_p of 0 accepted", &[]),
        (10, "every min_p accepted", &[]),
        (11, "a top_k of more than the vocabulary taken for a filter", &[]),
        (12, "filters of a greedy row refused", &[]),
        (13, "a bad row not reported", &[]),
        (14, "a top_k above the vocabulary size kept", &[]),
        (15, "parameters of a bad row not replaced", &[]),
    ];
    check_compared("broken_sampling_rows", rows, sampling);
}
