//! Logprobs whose targets are counted in the matmul's epilogue: ranks by the definition over full logits, at
//! any group size, without storing logits.

use crate::whole::KINDS;
use lmhead::backend::Backend;
use lmhead::config::Quantization;
use lmhead::head::StepOptions;
use lmhead::layout::shard_range;
use lmhead::reference::logsumexp;
use lmhead::result::{Answer, Logprobs, NO_TARGET_ID, Output, Request, RowInputs, RowStatus};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::{DType, HeadGroup, LmHead};
use lmhead_emulated::EmulatedDevice;
use lmhead_testkit::adjusting::OwnAdjustments;
use lmhead_testkit::product::bits_of;
use lmhead_testkit::{Random, TestHead, each_rank};
use std::sync::Arc;

/// Tiles of 64 and of 128 ids, shards that end within a tile, and a last id alone in its block.
const VOCAB: usize = 449;
/// In no type a multiple of 16 bytes: rows are not aligned.
const HIDDEN: usize = 21;

/// A head with few different values, whose logits tie within tiles, across them and across shards.
fn test_head(dtype: DType, quantization: Quantization, seed: u64) -> TestHead {
    let mut test = TestHead::random(VOCAB, HIDDEN, dtype, quantization, seed);
    let mut random = Random(seed);
    test.weights.iter_mut().for_each(|w| *w = random.below(3) as f32 - 1.0);
    test
}

/// Rows of small integers; row `broken` is not finite.
fn rows(test: &TestHead, n: usize, broken: Option<usize>) -> Vec<u8> {
    let mut random = Random(n as u64);
    let mut values: Vec<f32> = (0..n * HIDDEN).map(|_| random.below(3) as f32 - 1.0).collect();
    if let Some(row) = broken {
        values[row * HIDDEN] = f32::NAN;
    }
    let mut bytes = vec![0; values.len() * test.dtype.size()];
    test.dtype.round_into(&values, &mut bytes);
    bytes
}

/// The first rank's answer to `n` rows of its own; the other ranks have no rows.
fn answered(
    test: &TestHead,
    (ranks, n): (usize, usize),
    request: Request,
    bytes: &[u8],
    (targets, mask): (Option<&[i64]>, Option<&OwnAdjustments>),
) -> Answer {
    let counts: Vec<usize> = (0..ranks).map(|me| if me == 0 { n } else { 0 }).collect();
    let run = |me: usize, exchange| {
        let group = HeadGroup::data_parallel(ranks, me).expect("a group");
        let shard = test.shard(group.shard(VOCAB, me));
        let backend = EmulatedDevice::new(ranks as u64).backend();
        let mut own = LmHead::new(&test.config(), group, shard, exchange, Arc::new(backend)).expect("a head");
        let mine = counts[me];
        let bytes = if me == 0 { bytes } else { &[] };
        let hidden = HiddenRows::new(bytes, test.dtype, mine, HIDDEN).expect("rows");
        let begin = if mask.is_some() { LmHead::step_adjusted } else { LmHead::step };
        let step = begin(&mut own, RowCounts::exact(&counts), &request).expect("a step");
        let targets = targets.filter(|_| me == 0).or(targets.map(|_| &[][..]));
        match mask.filter(|_| me == 0) {
            Some(mask) => mask.with(|adjustments| {
                let adjustments = Some(adjustments);
                step.run_with(hidden, &RowInputs { targets, adjustments, ..RowInputs::default() })
            }),
            None => step.run_with(hidden, &RowInputs { targets, ..RowInputs::default() }),
        }
        .expect("an answer")
    };
    each_rank(ranks, run).remove(0)
}

/// Targets of each row: at the edges of a shard, at those of a tile, anywhere, and none.
fn targets(ranks: usize, n: usize, seed: u64) -> Vec<i64> {
    let mut random = Random(seed);
    let of_row = |row: usize| {
        let own = shard_range(VOCAB, ranks, row % ranks);
        let edge = if (row / ranks).is_multiple_of(2) { own.start } else { own.end - 1 };
        let tile = (64 * random.below(VOCAB / 64) + [0, 63][row % 2]) as i64;
        [edge as i64, tile, random.below(VOCAB) as i64, NO_TARGET_ID]
    };
    (0..n).flat_map(of_row).collect()
}

const EACH: usize = 4;

fn check(told: &Logprobs, targets: &[i64], logits: &[f32], bad: Option<usize>, what: &str) {
    for (row, (logits, targets)) in logits.chunks(VOCAB).zip(targets.chunks(EACH)).enumerate() {
        for (n, &target) in targets.iter().enumerate() {
            let (rank, logprob) = (told.ranks[row * EACH + n], told.logprobs[row * EACH + n]);
            if target == NO_TARGET_ID || bad == Some(row) {
                assert!(rank == -1 && logprob.is_nan(), "{what}, row {row}: {rank}, {logprob}");
                continue;
            }
            let own = logits[target as usize];
            let beats = |(id, l): (usize, &f32)| *l > own || (*l == own && (id as i64) < target);
            let wanted = 1 + logits.iter().enumerate().filter(|(id, l)| beats((*id, l))).count() as i64;
            assert_eq!(rank, wanted, "{what}, row {row}, target {target}");
            if own == f32::NEG_INFINITY {
                assert_eq!(logprob, own, "{what}, row {row}: a target that is not allowed");
                continue;
            }
            let all: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
            let wanted = f64::from(own) - logsumexp(&all);
            assert!((f64::from(logprob) - wanted).abs() < 1e-5, "{what}, row {row}: {logprob}, {wanted}");
        }
    }
}

fn told(answer: &Answer) -> &Logprobs {
    let Output::Logprobs(told) = &answer.output else { panic!("{:?}", answer.output) };
    told
}

#[test]
fn ranks_are_counted_across_tiles_and_shards() {
    for (i, (dtype, quantization)) in KINDS.into_iter().enumerate() {
        let test = test_head(dtype, quantization, 31 + i as u64);
        // One row, and more rows than any tile has.
        for n in [1, 130] {
            let bad = (n > 1).then_some(7);
            let bytes = rows(&test, n, bad);
            let full = answered(&test, (1, n), Request::logits(DType::F32), &bytes, (None, None));
            let Output::Logits { bytes: logits, .. } = &full.output else { panic!("{:?}", full.output) };
            let logits: Vec<f32> = bytemuck::pod_collect_to_vec(logits);
            let request = Request::Logprobs { targets: EACH, top_n: 3, processed: false };
            for ranks in [1, 3] {
                let asked = targets(ranks, n, 5);
                let what = format!("{dtype} {quantization:?}, {n} rows, {ranks} ranks");
                let answer = answered(&test, (ranks, n), request, &bytes, (Some(&asked), None));
                check(told(&answer), &asked, &logits, bad, &what);
                assert_eq!(
                    answer.row_status.iter().filter(|s| **s != RowStatus::Good).count(),
                    usize::from(n > 1)
                );
                if ranks == 1 {
                    continue;
                }
                let alone = answered(&test, (1, n), request, &bytes, (Some(&asked), None));
                let bits =
                    |told: &Logprobs| (bits_of(&told.logprobs), told.ranks.clone(), told.top_ids.clone());
                assert_eq!(bits(told(&answer)), bits(told(&alone)), "{what}: the bits of one rank's");
            }
        }
    }
}

#[test]
fn targets_that_a_mask_forbids_are_behind_all_that_it_allows() {
    let (n, words) = (9, VOCAB.div_ceil(32));
    let test = test_head(DType::Bf16, Quantization::None, 3);
    let bytes = rows(&test, n, None);
    let mut random = Random(8);
    // The last row allows nothing.
    let word = |i: usize| if i / words + 1 < n { random.next() as i32 } else { 0 };
    let mask = Some((0..n * words).map(word).collect());
    let mask = OwnAdjustments { vocab: VOCAB, rows: n, mask, logit_bias: None, penalties: None };
    let full = answered(&test, (1, n), Request::logits(DType::F32), &bytes, (None, Some(&mask)));
    let Output::Logits { bytes: logits, .. } = &full.output else { panic!("{:?}", full.output) };
    let logits: Vec<f32> = bytemuck::pod_collect_to_vec(logits);
    assert!(logits.contains(&f32::NEG_INFINITY));
    let request = Request::Logprobs { targets: EACH, top_n: 2, processed: true };
    for ranks in [1, 2] {
        let asked = targets(ranks, n, 6);
        let answer = answered(&test, (ranks, n), request, &bytes, (Some(&asked), Some(&mask)));
        check(told(&answer), &asked, &logits, Some(n - 1), &format!("{ranks} ranks"));
        assert_eq!(answer.row_status[n - 1], RowStatus::NothingAllowed);
    }
}

#[test]
fn a_step_of_logprobs_stores_no_logits_and_multiplies_once() {
    let (n, test) = (40, test_head(DType::Bf16, Quantization::None, 4));
    let device = EmulatedDevice::new(2);
    let backend: Arc<dyn Backend> = Arc::new(device.clone().backend());
    let run = |_, exchange| {
        let (config, group) = (test.config(), HeadGroup::data_parallel(1, 0).expect("a group"));
        let mut own = LmHead::new(&config, group, test.shard(0..VOCAB), exchange, Arc::clone(&backend))
            .expect("a head");
        for top_n in [0, 8] {
            let (counts, request) =
                (RowCounts::exact(&[n]), Request::Logprobs { targets: 1, top_n, processed: false });
            let options = StepOptions { on_device: true, ..StepOptions::default() };
            let workspace = own.workspace(&counts, &request, options).expect("a size");
            // For each row a status word, a bar, and for each tile its partial: 40 bytes, candidates and a
            // count. So few ids are all in tail tiles, of 16.
            let tiles = VOCAB.div_ceil(16) * (40 + 8 * top_n.max(1) + 8);
            // And the rows in the layout of stages, up to a tile's 64.
            let staged = 64 * (2 * HIDDEN).next_multiple_of(128);
            assert!(workspace <= n * tiles + staged + 1024, "top {top_n}: {workspace} bytes");
            assert!(workspace - staged < 4 * VOCAB * n || top_n > 0, "fewer bytes than logits");
            let bytes = rows(&test, n, None);
            let hidden = HiddenRows::new(&bytes, test.dtype, n, HIDDEN).expect("rows");
            let asked: Vec<i64> = (0..n as i64).collect();
            let before = device.counts().products;
            let step = own.step(counts, &request).expect("a step");
            let inputs = RowInputs { targets: Some(&asked), ..RowInputs::default() };
            let answer = step.run_with(hidden, &inputs).expect("an answer");
            assert_eq!(device.counts().products - before, 1, "W is read once");
            assert_eq!(answer.stats.weight_bytes, (VOCAB * HIDDEN * 2) as u64);
        }
    };
    each_rank(1, run);
}
