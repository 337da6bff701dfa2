//! What tiles and shards have drawn, joined with one mistake each.

use crate::broken_matmul::Outcome;
use crate::planted::{Broken, Compared, before, check_compared, outcome};
use lmhead::SamplingParams;
use lmhead::backend::params::{
    FinishDrawParams, LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE, MergeDrawsParams, SamplingRow,
};
use lmhead::layout::shard_range;
use lmhead::merge::Candidate;
use lmhead::sampling::mass::{Scale, share};
use lmhead::sampling::philox::{Words, gumbel};
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::{Device, LaunchConfig, emulated_kernel};

/// A greedy row's parameters.
const GREEDY: SamplingRow =
    SamplingRow { seed: 5, position: 0, temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

const NOTHING: f32 = f32::NEG_INFINITY;

/// The draws of two warps, and 256 bins and what warps have seen in front of them.
fn config(rows: usize, seed: u64) -> LaunchConfig {
    let shared = 8 * 256 + 16 * 2 + 24 * 2;
    LaunchConfig::new([rows as u32, 1, 1], [64, 1, 1]).shared(shared).seed(seed).threads(1)
}

/// The candidate with the largest `z + g`, the lowest id of equal ones. No two scores of these tests are so
/// close that f64 does not tell them apart, but those that are equal.
fn drawn(candidates: &[Candidate], row: &SamplingRow) -> Option<Candidate> {
    let words = Words::new(row.seed, row.position);
    let score = |of: &Candidate| match row.temperature {
        0.0 => f64::from(of.value),
        temperature => f64::from(of.value) / f64::from(temperature) + gumbel(words.of(of.id)),
    };
    let order = |a: &&Candidate, b: &&Candidate| score(a).total_cmp(&score(b)).then(b.id.cmp(&a.id));
    candidates.iter().filter(|of| of.value > NOTHING).max_by(order).copied()
}

/// Candidates of a shard's tiles -> its candidate of each row.
fn merge(how: u32, seed: u64) -> Outcome {
    const TILES: usize = 100;
    let plain = SamplingRow { temperature: 1.5, ..GREEDY };
    let filtered = SamplingRow { top_k: 3, ..plain };
    let sampling: Vec<_> = [plain, GREEDY, plain, GREEDY, filtered, plain, GREEDY, plain]
        .into_iter()
        .zip(100..)
        .map(|(row, position)| SamplingRow { position, ..row })
        .collect();
    // Few values, so that ids tie. Row 3 has nothing; of row 6 the best is the last tile's.
    let candidate = |row: usize, tile: usize| {
        let value = match (row, tile) {
            (3, _) => NOTHING,
            (_, 30..40) => NOTHING,
            (6, 99) => 9.0,
            _ => ((tile * 37 + row * 5) % 11) as f32 - 5.0,
        };
        Candidate { value, id: (64 * tile + (tile * 7 + row) % 64) as u32 }
    };
    let rows = sampling.len();
    let of_row = |row| (0..TILES).map(move |tile| candidate(row, tile));
    let candidates: Vec<_> = (0..rows).flat_map(of_row).collect();
    let mut words = vec![0u32; rows];
    words[5] = LMHEAD_STATUS_BAD_INDEX;
    let mut device = Device::new();
    let status = device.upload(&words);
    let out = device.upload(&vec![u64::MAX; rows]);
    let right = MergeDrawsParams {
        candidates: device.upload_read_only(&candidates).pointer(),
        status: status.pointer(),
        sampling: device.upload_read_only(&sampling).pointer(),
        out: out.pointer(),
        nonfinite: LMHEAD_STATUS_NONFINITE,
        tiles: TILES as u32,
        vocab: 2 * 64 * TILES as u32,
    };
    before(&mut device, status, 2, LMHEAD_STATUS_NONFINITE);
    let kernel = emulated_kernel!(broken_merge_draws: Broken<MergeDrawsParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(rows, seed));
    outcome(ran, || {
        let out = device.download::<Candidate>(out).expect("the device's own buffer");
        out.iter().enumerate().all(|(row, out)| {
            let found = drawn(&candidates[row * TILES..][..TILES], &sampling[row]);
            let (value, id) = found.map_or((NOTHING, 0), |of| (of.value, of.id));
            let value = match row {
                2 => f32::NAN,
                4 | 5 => f32::INFINITY,
                _ => value,
            };
            (out.value.to_bits(), out.id) == (value.to_bits(), id)
        })
    })
}

/// Candidates of 41 shards, lanes of two warps, of which the last has fewer ids than there are places.
const SHARDS: usize = 41;
const VOCAB: usize = 64 * (SHARDS - 1) + 2;
const PLACES: usize = 4;

/// Rows with a good answer: one that is drawn from all, and some with filters. Then one each of: a candidate
/// of another shard's ids, infinity, NaN, nothing, parameters that are not legal, a bad index; the last row's
/// last candidates lie behind the message's end.
const GOOD: usize = 7;

fn sampling() -> Vec<SamplingRow> {
    let plain = SamplingRow { temperature: 1.5, ..GREEDY };
    let listed = SamplingRow { temperature: 2.5, top_k: 4, ..GREEDY };
    let good: [_; GOOD] = [
        plain,
        SamplingRow { top_k: 3, ..listed },
        listed,
        SamplingRow { top_p: 0.4, ..listed },
        SamplingRow { min_p: 0.95, temperature: 20.0, ..listed },
        SamplingRow { top_k: 2, top_p: 0.7, ..listed },
        GREEDY,
    ];
    let bad = [listed, plain, plain, listed, SamplingRow { top_p: 1.5, ..plain }, plain, listed];
    let at = |(row, position)| SamplingRow { position, ..row };
    good.into_iter().chain(bad).zip(40..).map(at).collect()
}

/// The candidates that a shard sends of a row, and places without one.
fn sent(row: usize, shard: usize) -> [Candidate; PLACES] {
    let ids = shard_range(VOCAB, SHARDS, shard);
    std::array::from_fn(|n| {
        let id = ids.start + (shard * 5 + 11 * n + row) % ids.len();
        let value = match (row - row.min(GOOD), shard, n) {
            _ if n >= ids.len() => NOTHING,
            (1, 37, 0) => f32::INFINITY,
            (2, 35, 0) => f32::NAN,
            _ if row == GOOD + 3 => NOTHING,
            // In two rows no ids tie, in the others many.
            _ if row == 3 || row == 4 => ((shard * PLACES + n) * 37 % 167) as f32 / 2.0,
            _ => [0.0, 2.0, 3.0, 3.0, 4.0][(shard * 3 + n + row) % 5] - (shard as f32 / 41.0).round(),
        };
        let other = if (row, shard, n) == (GOOD, 33, 0) { 64 } else { 0 };
        Candidate { value, id: id as u32 - other }
    })
}

/// The id drawn from what the filters keep.
fn answer(row: usize, sampling: &SamplingRow) -> u32 {
    let listed = sampling.top_k > 0;
    let of_shard =
        |shard| sent(row, shard).into_iter().take(if listed { sampling.top_k as usize } else { 1 });
    let mut kept: Vec<Candidate> = (0..SHARDS).flat_map(of_shard).filter(|of| of.value > NOTHING).collect();
    kept.sort_by(|a, b| b.value.total_cmp(&a.value).then(a.id.cmp(&b.id)));
    if listed {
        kept.truncate(sampling.top_k as usize);
        let SamplingRow { temperature, min_p, .. } = *sampling;
        let params = SamplingParams { temperature, min_p, ..SamplingParams::default() };
        let scale = Scale::new(&params, kept[0].value, VOCAB);
        kept.retain(|of| scale.reaches(of.value));
        let goal = share(sampling.top_p, kept.iter().map(|of| scale.mass(of.value)).sum());
        let mut sum = 0;
        kept.retain(|of| {
            let before = sum;
            sum += scale.mass(of.value);
            before < goal
        });
    }
    drawn(&kept, sampling).expect("a candidate").id
}

fn finish(how: u32, seed: u64) -> Outcome {
    let sampling = sampling();
    let rows = sampling.len();
    let mut candidates: Vec<_> =
        (0..SHARDS).flat_map(|shard| (0..rows).flat_map(move |row| sent(row, shard))).collect();
    candidates.truncate(candidates.len() - 3);
    let mut device = Device::new();
    let status = device.upload(&vec![0u32; rows]);
    let ids = device.upload(&vec![7i64; rows]);
    let tokens = device.upload(&vec![7u32; rows]);
    let row_status = device.upload(&vec![7u8; rows]);
    let right = FinishDrawParams {
        candidates: device.upload_read_only(&candidates).pointer(),
        count: candidates.len() as u64,
        status: status.pointer(),
        sampling: device.upload_read_only(&sampling).pointer(),
        ids: ids.pointer(),
        tokens: tokens.pointer(),
        row_status: row_status.pointer(),
        rows: rows as u32,
        vocab: VOCAB as u32,
        shards: SHARDS as u32,
        places: PLACES as u32,
    };
    before(&mut device, status, GOOD + 5, LMHEAD_STATUS_BAD_INDEX);
    let kernel = emulated_kernel!(broken_finish_draw: Broken<FinishDrawParams>);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config(rows, seed));
    outcome(ran, || {
        let mut wanted: Vec<u32> = (0..GOOD).map(|row| answer(row, &sampling[row])).collect();
        wanted.resize(rows, u32::MAX);
        let as_id = |token: &u32| if *token == u32::MAX { -1 } else { i64::from(*token) };
        let statuses = device.download::<u8>(row_status).expect("the device's own buffer");
        statuses[..GOOD] == [0; GOOD]
            && statuses[GOOD..] == [3, 3, 1, 2, 3, 3, 3]
            && device.download::<u32>(tokens).expect("the device's own buffer") == wanted
            && wanted.iter().map(as_id).eq(device.download::<i64>(ids).expect("the device's own buffer"))
    })
}

#[test]
fn draws_that_are_merged() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "every row uses the first row's parameters", &[]),
        (3, "tiles rounded up to whole warps in a row's address", &[GlobalBounds]),
        (4, "lanes without a tile that leave the others", &[Divergence]),
        (5, "lanes after the last tile read, too", &[GlobalBounds]),
        (6, "noise by the tile's number, not by the id", &[]),
        (7, "a tie won by the higher id", &[]),
        (8, "only what a warp's first lane has drawn used", &[]),
        (9, "a row without a candidate gets a logit", &[]),
        (10, "a bad index not reported", &[]),
        (11, "a row with filters drawn without them", &[]),
        (12, "a row without a candidate gets an id", &[]),
        (13, "places of warps overlap", &[Race]),
        (14, "what warps have drawn read before all have stored it", &[Race]),
        (15, "only what the first warp has drawn used", &[]),
    ];
    check_compared("broken_merge_draws", rows, merge);
}

#[test]
fn draws_that_are_finished() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "all places of a shard read, whatever top_k is", &[]),
        (3, "candidates read as [rows, shards]", &[]),
        (4, "every shard taken to have one place", &[]),
        (5, "candidates beyond the end of the messages read", &[GlobalBounds]),
        (6, "a candidate with another shard's id accepted", &[]),
        (7, "a candidate of infinity accepted", &[]),
        (8, "what warps have seen read before all have stored it", &[Race]),
        (9, "only what the first warp has seen used", &[]),
        (10, "bins cleared while others read them", &[Race]),
        (11, "bins added to before they are cleared", &[Race]),
        (12, "bins read while others add to them", &[Race]),
        (13, "candidates with other known digits counted", &[]),
        (14, "the whole goal searched again in each digit", &[]),
        (15, "all ties of the last candidate kept", &[]),
        (16, "illegal parameters accepted", &[]),
        (17, "the further status ignored", &[]),
        (18, "min_p ignored", &[]),
        (19, "the last candidate that is kept left out", &[]),
        (20, "the nucleus searched among candidates that top_k cut", &[]),
        (21, "draws stored where others read bins", &[Race]),
        (22, "a row without a candidate gets an id", &[]),
    ];
    check_compared("broken_finish_draw", rows, finish);
}
