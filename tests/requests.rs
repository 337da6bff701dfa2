//! Requests with adjustments, against whole f32 logits that one rank computes: for any dp, tp, group size, mode and rows the answers
//! are those that the definitions give over the full row, and the same bits as for the row alone.

mod common;

use common::adjusting::OwnAdjustments;
use common::{Random, TestHead, backend, each_rank, head_of, row_bits};
use lmhead::adjust::Adjustments;
use lmhead::config::{HeadConfig, LOGPROBS_CHUNK_BYTES, Quantization, Verify};
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::exchange::{Exchange, local};
use lmhead::head::LmHead;
use lmhead::layout::{HeadGroup, ParallelLayout, RankOrder, shard_range};
use lmhead::reference::{logsumexp, sample, top_k};
use lmhead::result::{Answer, Output, Request, RowInputs, RowStatus};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Exact,
    Capacity,
    Discover,
}

#[derive(Debug, Clone)]
struct Case {
    head: TestHead,
    config: HeadConfig,
    layout: ParallelLayout,
    size: usize,
    mode: Mode,
    request: Request,
    /// Per dp rank.
    rows: Vec<usize>,
    adjustments: Vec<Option<OwnAdjustments>>,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let kinds = prop::sample::select(vec![
        (DType::F32, Quantization::None),
        (DType::Bf16, Quantization::None),
        (DType::F16, Quantization::W8a8),
        (DType::F32, Quantization::W8a16),
    ]);
    let vocab = prop_oneof![3 => 1usize..5, 3 => 60usize..70, 3 => 1usize..500, 1 => 1000usize..2500];
    let request = prop_oneof![
        Just(Request::Argmax),
        prop::sample::select(vec![DType::F32, DType::Bf16, DType::F16]).prop_map(Request::logits),
        (1usize..80).prop_map(Request::top_k),
        (0usize..80, any::<bool>()).prop_map(|(top_n, processed)| Request::Logprobs { top_n, processed }),
        (0usize..5).prop_map(Request::processed_logprobs),
        Just(Request::Sample),
        Just(Request::Sample),
    ];
    let epilogue =
        (any::<bool>(), prop::option::of(1f32..40.0), prop::sample::select(vec![1.0f32, 0.0625, -2.5]));
    let shape = (1usize..5, 1usize..4, any::<bool>(), any::<prop::sample::Index>());
    let mode = prop::sample::select(vec![Mode::Exact, Mode::Capacity, Mode::Discover]);
    // Sizes of logits; 0: small integers, so that many tie.
    let magnitude = prop::sample::select(vec![1.0f32, 1.0, 0.0, 0.0, 1e30, 1e-30]);
    (kinds, vocab, 1usize..40, request, epilogue, shape, mode, magnitude, any::<u64>()).prop_map(
        |((dtype, quantization), vocab, hidden, request, epilogue, shape, mode, magnitude, seed)| {
            let (dp, tp, split, pick) = shape;
            let layout = ParallelLayout { dp, tp, pp: 1, order: RankOrder::default() };
            let sizes = layout.group_sizes();
            let request = match request {
                Request::TopK { k } => Request::top_k(k.min(vocab)),
                Request::Logprobs { top_n, processed } => {
                    Request::Logprobs { top_n: top_n.min(vocab), processed }
                }
                other => other,
            };
            let mut random = Random(seed);
            let mut head = TestHead::random(vocab, hidden, dtype, quantization, seed);
            for w in &mut head.weights {
                *w = match (magnitude == 0.0, dtype) {
                    (true, _) => random.below(3) as f32 - 1.0,
                    (_, DType::F16) => *w,
                    _ => *w * magnitude,
                };
            }
            let (bias, softcap, scale) = epilogue;
            if bias && magnitude == 1.0 {
                head = head.with_bias(seed);
            }
            let mut config = head.config();
            config.final_logit_softcapping = softcap;
            config.logit_scale = scale;
            config.split_rows_over_tp = split;
            config.verify = [Verify::Always, Verify::WarmUp, Verify::Every(2)][random.below(3)];
            let rows: Vec<usize> = (0..dp).map(|_| random.below(5) * random.below(2)).collect();
            let raw = match request {
                Request::Logprobs { top_n, .. } => Request::logprobs(top_n),
                _ => Request::logprobs(usize::MAX),
            };
            let adjustments = rows
                .iter()
                .map(|&n| {
                    (random.below(3) > 0 && request != raw)
                        .then(|| OwnAdjustments::random(n, vocab, &mut random))
                })
                .collect();
            let size = sizes[pick.index(sizes.len())];
            // Chunks of one to three rows, or all at once.
            let top_n = if let Request::Logprobs { top_n, .. } = request { top_n } else { 0 };
            let row =
                common::chunk_row(shard_range(vocab, size, 0).len(), hidden * dtype.size(), top_n, size);
            if let n @ 1.. = random.below(4) as u64 {
                config.logprobs_chunk_bytes = n * row + random.below(row as usize) as u64;
            }
            Case { head, config, layout, size, mode, request, rows, adjustments, seed }
        },
    )
}

impl Case {
    /// Hidden rows of a dp rank: integers where the weights are, and here and there a broken row.
    fn hidden(&self, dp: usize) -> Vec<u8> {
        let mut random = Random(self.seed ^ (dp as u64 + 1));
        let integers = self.head.weights.iter().all(|w| w.fract() == 0.0);
        let mut values = random.normals(self.rows[dp] * self.head.hidden);
        if integers {
            values.iter_mut().for_each(|v| *v = v.round());
        }
        if random.below(4) == 0
            && let Some(value) = values.first_mut()
        {
            *value = f32::NAN;
        }
        let mut bytes = vec![0; values.len() * self.head.dtype.size()];
        self.head.dtype.round_into(&values, &mut bytes);
        bytes
    }

    /// Targets of a dp rank's rows, for logprobs.
    fn targets(&self, dp: usize) -> Option<Vec<i64>> {
        let mut random = Random(self.seed ^ 0x7a6 ^ dp as u64);
        let targets = (0..self.rows[dp]).map(|_| random.below(self.head.vocab) as i64).collect();
        matches!(self.request, Request::Logprobs { .. }).then_some(targets)
    }

    /// How a dp rank's rows are sampled, in one mixed batch.
    fn sampling(&self, dp: usize) -> Option<Vec<SamplingParams>> {
        let mut random = Random(self.seed ^ 0x5a3 ^ dp as u64);
        let params = (0..self.rows[dp]).map(|_| random_params(&mut random, self.head.vocab)).collect();
        (self.request == Request::Sample).then_some(params)
    }

    fn begin<'h>(&self, head: &'h mut LmHead, counts: RowCounts, own: bool) -> lmhead::Step<'h> {
        let any = self.adjustments.iter().any(Option::is_some);
        let say = if self.mode == Mode::Discover { own } else { any };
        let step =
            if say { head.step_adjusted(counts, &self.request) } else { head.step(counts, &self.request) };
        step.unwrap()
    }

    /// The answers of every rank, with its dp index.
    fn run_sharded(&self) -> Vec<(usize, Answer)> {
        let mut endpoints: BTreeMap<Vec<usize>, Vec<Option<local::LocalExchange>>> = BTreeMap::new();
        let mut ranks = Vec::new();
        for rank in 0..self.layout.world_size().unwrap() {
            let group = HeadGroup::of(rank, &self.layout, self.size).unwrap().unwrap();
            let all = endpoints
                .entry(group.ranks().to_vec())
                .or_insert_with(|| local::group(group.size()).into_iter().map(Some).collect());
            let endpoint = all[group.me()].take().unwrap();
            ranks.push((self.layout.coordinates(rank).unwrap().dp, group, endpoint));
        }
        thread::scope(|scope| {
            let threads: Vec<_> = ranks
                .into_iter()
                .map(|(dp, group, endpoint)| {
                    scope.spawn(move || (dp, self.run_rank(dp, group, Arc::new(endpoint))))
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    fn run_rank(&self, dp: usize, group: HeadGroup, exchange: Arc<dyn Exchange>) -> Answer {
        let shard = self.head.shard(group.shard(self.head.vocab, group.me()));
        let first = dp - group.replica_of(group.me());
        let counts = &self.rows[first..first + group.replicas()];
        let bytes = self.hidden(dp);
        let hidden = HiddenRows::new(&bytes, self.head.dtype, self.rows[dp], self.head.hidden).unwrap();
        let mut head = LmHead::new(&self.config, group, shard, exchange, backend()).unwrap();
        head.warm_up(1, &[self.request]).unwrap();
        let counts = match self.mode {
            Mode::Exact => RowCounts::exact(counts),
            Mode::Capacity => RowCounts::capacity(counts.iter().copied().max().unwrap() + 1, self.rows[dp]),
            Mode::Discover => RowCounts::discover(self.rows[dp]),
        };
        let own = self.adjustments[dp].as_ref();
        let step = self.begin(&mut head, counts, own.is_some());
        let (targets, sampling) = (self.targets(dp), self.sampling(dp));
        let (targets, sampling) = (targets.as_deref(), sampling.as_deref());
        match own {
            Some(own) => {
                own.with(|a| step.run_with(hidden, &RowInputs { targets, sampling, adjustments: Some(a) }))
            }
            None => step.run_with(hidden, &RowInputs { targets, sampling, adjustments: None }),
        }
        .unwrap()
    }

    /// One row on one rank with the whole head: the answer, or with `plain` all unadjusted f32 logits.
    fn run_alone(&self, dp: usize, row: usize, plain: bool) -> Answer {
        let bytes = self.hidden(dp);
        let selection = [row];
        let hidden = HiddenRows::new(&bytes, self.head.dtype, self.rows[dp], self.head.hidden).unwrap();
        let hidden = hidden.select(&selection).unwrap();
        let shard = self.head.shard(0..self.head.vocab);
        let exchange = Arc::new(local::group(1).remove(0));
        let group = HeadGroup::data_parallel(1, 0).unwrap();
        let mut config = self.config.clone();
        config.logprobs_chunk_bytes = LOGPROBS_CHUNK_BYTES;
        let mut head = LmHead::new(&config, group, shard, exchange, backend()).unwrap();
        let targets = self.targets(dp).map(|t| vec![t[row]]);
        let sampling = self.sampling(dp).map(|s| vec![s[row]]);
        let (targets, sampling) = (targets.as_deref(), sampling.as_deref());
        match &self.adjustments[dp] {
            _ if plain => {
                head.step(RowCounts::exact(&[1]), &Request::logits(DType::F32)).unwrap().run(hidden)
            }
            None => {
                let step = head.step(RowCounts::exact(&[1]), &self.request).unwrap();
                step.run_with(hidden, &RowInputs { targets, sampling, adjustments: None })
            }
            Some(own) => own.only(row).with(|a| {
                let step = head.step_adjusted(RowCounts::exact(&[1]), &self.request).unwrap();
                step.run_with(hidden, &RowInputs { targets, sampling, adjustments: Some(a) })
            }),
        }
        .unwrap()
    }

    /// Judges an answer of one row by the whole row of logits.
    fn judge(&self, dp: usize, row: usize, answer: &Answer) -> Result<(), TestCaseError> {
        let plain = self.run_alone(dp, row, true);
        let raw = plain.output.logits_f32().unwrap();
        let mut logits = raw.clone();
        if let Some(own) = &self.adjustments[dp] {
            own.by_definition(row, &mut logits);
        }
        let broken = plain.row_status[0] != RowStatus::Good
            || logits.iter().any(|l| l.is_nan() || *l == f32::INFINITY);
        let nothing = logits.iter().all(|l| *l == f32::NEG_INFINITY);
        let status = match (broken, nothing) {
            (true, _) => RowStatus::NonFinite,
            (_, true) => RowStatus::NothingAllowed,
            _ => RowStatus::Good,
        };
        prop_assert_eq!(answer.row_status[0], status);
        let wide: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        match &answer.output {
            Output::Logits { dtype, bytes, .. } => {
                let mut want = vec![0; bytes.len()];
                dtype.round_into(&logits, &mut want);
                if status != RowStatus::NonFinite {
                    prop_assert_eq!(bytes, &want);
                }
            }
            Output::Argmax { ids } => {
                let want = if status == RowStatus::Good { top_k(&wide, 1)[0] as i64 } else { -1 };
                prop_assert_eq!(ids[0], want);
            }
            Output::TopK { k, values, ids, logsumexp: sums } => {
                if status != RowStatus::Good {
                    prop_assert!(ids.iter().all(|id| *id == -1) && values.iter().all(|v| v.is_nan()));
                    prop_assert!(sums[0].is_nan());
                    return Ok(());
                }
                let (want_ids, want_values) = best(&wide, *k);
                prop_assert_eq!(ids, &want_ids);
                // -0 and +0 are equal.
                prop_assert_eq!(bits(&plus_zero(values)), bits(&plus_zero(&want_values)));
                let truth = logsumexp(&wide);
                let error = (f64::from(sums[0]) - truth).abs();
                prop_assert!(error <= 1e-6 * truth.abs().max(1.0), "logsumexp {} truth {}", sums[0], truth);
            }
            Output::Logprobs { top_n, logprobs, ranks, top_ids, top_logprobs } => {
                if status != RowStatus::Good {
                    prop_assert!(logprobs[0].is_nan() && ranks[0] == -1);
                    prop_assert!(
                        top_ids.iter().all(|id| *id == -1) && top_logprobs.iter().all(|v| v.is_nan())
                    );
                    return Ok(());
                }
                let target = self.targets(dp).unwrap()[row] as usize;
                let better =
                    |(v, l): (usize, &f32)| *l > logits[target] || (*l == logits[target] && v < target);
                let rank = 1 + logits.iter().enumerate().filter(|at| better(*at)).count();
                prop_assert_eq!(ranks[0], rank as i64);
                let (want_ids, want_values) = best(&wide, *top_n);
                prop_assert_eq!(top_ids, &want_ids);
                let truth = logsumexp(&wide);
                let pairs = want_values.iter().zip(top_logprobs).chain([(&logits[target], &logprobs[0])]);
                for (logit, got) in pairs {
                    let (want, got) = (f64::from(*logit) - truth, f64::from(*got));
                    let allowed = 1e-6 * truth.abs().max(1.0) + DType::F32.half_ulp(want.abs());
                    let good = got <= 0.0 && (got == want || (got - want).abs() <= allowed);
                    prop_assert!(good, "logprob {} truth {}", got, want);
                }
            }
            Output::Sample { ids } => {
                let params = self.sampling(dp).unwrap()[row];
                let want = (status == RowStatus::Good).then(|| sample(&logits, &params)).flatten();
                prop_assert_eq!(ids[0], want.map_or(-1, |id| id as i64), "{:?}", params);
            }
            other => panic!("no judge for {other:?}"),
        }
        Ok(())
    }
}

/// Parameters of every kind: each filter is on in about half of the rows.
fn random_params(random: &mut Random, vocab: usize) -> SamplingParams {
    let uniform = |random: &mut Random| (random.below(1 << 20) + 1) as f32 / (1 << 20) as f32;
    SamplingParams {
        seed: random.next() >> (random.below(2) * 62),
        position: random.next() >> (random.below(2) * 60),
        temperature: [0.0, 1.0, 0.3, 2.5, 1e-30, 1e20][random.below(6)],
        top_k: [0, 0, 1, 1 + random.below(vocab), 1 + random.below(vocab), usize::MAX][random.below(6)],
        top_p: [1.0, 1.0, uniform(random), uniform(random), 0.9, 1e-40][random.below(6)],
        min_p: [0.0, 0.0, 0.0, uniform(random), 0.05, 1.0][random.below(6)],
    }
}

fn plus_zero(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| v + 0.0).collect()
}

/// The k best allowed ids and their values, filled up with -1 and minus infinity.
fn best(logits: &[f64], k: usize) -> (Vec<i64>, Vec<f32>) {
    let allowed = top_k(logits, k).into_iter().filter(|&id| logits[id] > f64::NEG_INFINITY);
    let mut ids: Vec<i64> = allowed.map(|id| id as i64).collect();
    let mut values: Vec<f32> = ids.iter().map(|&id| logits[id as usize] as f32).collect();
    ids.resize(k, -1);
    values.resize(k, f32::NEG_INFINITY);
    (ids, values)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_what_the_definitions_say_over_full_logits(case in cases()) {
        let answers = case.run_sharded();
        for dp in 0..case.layout.dp {
            let alone: Vec<Answer> = (0..case.rows[dp]).map(|row| case.run_alone(dp, row, false)).collect();
            for (row, answer) in alone.iter().enumerate() {
                case.judge(dp, row, answer)?;
            }
            let mut next = 0;
            for (_, answer) in answers.iter().filter(|(d, _)| *d == dp) {
                prop_assert!(answer.stats.chunk_bytes <= case.config.logprobs_chunk_bytes);
                let first = if case.config.split_rows_over_tp { next } else { 0 };
                for row in 0..answer.rows() {
                    prop_assert_eq!(row_bits(answer, row), row_bits(&alone[first + row], 0));
                }
                next += answer.rows();
            }
            let times = if case.config.split_rows_over_tp { 1 } else { case.layout.tp };
            prop_assert_eq!(next, case.rows[dp] * times);
        }
    }
}

/// A head of 512 ids in 4 shards of 128, and 2 rows on each rank.
const SIZE: usize = 4;
const ROWS: usize = 2;

fn small() -> TestHead {
    TestHead::random(512, 8, DType::F32, Quantization::None, 5)
}

/// Runs a step on each rank of [`SIZE`]; `own` gives the mask that the rank brings, `announced` whether it says so.
fn masked_steps(
    verify: Verify,
    request: Request,
    announced: impl Fn(usize) -> bool + Sync,
    own: impl Fn(usize) -> Option<Vec<i32>> + Sync,
) -> Vec<lmhead::Result<Answer>> {
    let test = small();
    each_rank(SIZE, |me, exchange| {
        let mut config = test.config();
        config.verify = verify;
        let mut head = head_of(&test, &config, SIZE, me, exchange)?;
        let bytes = test.rows(ROWS, me as u64);
        let hidden = HiddenRows::new(&bytes, DType::F32, ROWS, 8)?;
        let counts = RowCounts::exact(&[ROWS; SIZE]);
        let step =
            if announced(me) { head.step_adjusted(counts, &request) } else { head.step(counts, &request) };
        let mask = own(me);
        let adjustments = mask.as_deref().map(Adjustments::allowed);
        let answer = step?.run_with(hidden, &RowInputs { adjustments, ..RowInputs::default() });
        if answer.is_err() {
            let refused = head.step(RowCounts::exact(&[ROWS; SIZE]), &request).map(|_| ()).unwrap_err();
            assert!(matches!(refused, Error::Poisoned { .. }), "{refused}");
        }
        answer
    })
}

#[test]
fn ranks_that_disagree_on_adjustments_are_named() {
    for verify in [Verify::Always, Verify::WarmUp] {
        let answers = masked_steps(verify, Request::argmax(), |me| me == 1, |_| None);
        for (rank, answer) in answers.into_iter().enumerate() {
            let error = answer.unwrap_err();
            assert!(matches!(error, Error::StepMismatch { .. }), "rank {rank}: {error}");
            let want = "adjustments: ranks [0, 2, 3] say none, ranks [1] say some rows have them";
            assert!(verify != Verify::Always || error.to_string().contains(want), "rank {rank}: {error}");
        }
    }
}

#[test]
fn bad_adjustments_are_refused_where_they_are_and_end_the_step_elsewhere() {
    for (announced, words, want) in [
        (true, 3, "allowed: wanted [2, 16] i32, a bit for each id of 512, got 3 words"),
        (false, 32, "adjustments: wanted none, as announced in step(), got some"),
    ] {
        let own = |me| (me == 2).then(|| vec![-1; words]);
        let errors = masked_steps(Verify::Always, Request::argmax(), |_| announced, own);
        for (rank, answer) in errors.into_iter().enumerate() {
            let error = answer.unwrap_err();
            assert!(error.to_string().contains(want), "rank {rank}: {error}");
            assert_eq!(matches!(error, Error::StepMismatch { .. }), rank != 2, "rank {rank}: {error}");
        }
    }
}

#[test]
fn each_shard_is_sent_its_slice_in_two_rounds() {
    let plain = masked_steps(Verify::Always, Request::argmax(), |_| false, |_| None);
    let masked =
        masked_steps(Verify::Always, Request::argmax(), |_| true, |me| (me < 2).then(|| vec![-1; ROWS * 16]));
    for (rank, (plain, masked)) in plain.into_iter().zip(masked).enumerate() {
        let (plain, masked) = (plain.unwrap(), masked.unwrap());
        assert_eq!(row_bits(&plain, 0), row_bits(&masked, 0), "all ids are allowed");
        // Header, gather, candidates; and sizes, slices.
        assert_eq!((plain.stats.rounds, masked.stats.rounds), (3, 5));
        let peers = SIZE as u64 - 1;
        // A size for each peer; the kinds and 2 rows of 128 bits of the ranks that have a mask.
        let slice = 4 + ROWS as u64 * 16;
        let sent = if rank < 2 { peers * slice } else { 0 };
        let received = if rank < 2 { slice } else { 2 * slice };
        assert_eq!(masked.stats.bytes_sent - plain.stats.bytes_sent, 8 * peers + sent);
        assert_eq!(masked.stats.bytes_received - plain.stats.bytes_received, 8 * peers + received);
    }
}

/// Logprobs of 2 rows on each rank of [`SIZE`], with targets from `target(rank, row)`.
fn logprob_steps(
    chunk_bytes: u64,
    request: Request,
    counts: &(impl Fn(usize) -> RowCounts + Sync),
    target: impl Fn(usize, usize) -> i64 + Sync,
) -> Vec<lmhead::Result<Answer>> {
    let test = small();
    each_rank(SIZE, |me, exchange| {
        let mut config = test.config();
        config.logprobs_chunk_bytes = chunk_bytes;
        let mut head = head_of(&test, &config, SIZE, me, exchange)?;
        let bytes = test.rows(ROWS, me as u64);
        let hidden = HiddenRows::new(&bytes, DType::F32, ROWS, 8)?;
        let targets: Vec<i64> = (0..ROWS).map(|row| target(me, row)).collect();
        let step = head.step(counts(me), &request)?;
        step.run_with(hidden, &RowInputs { targets: Some(&targets), ..RowInputs::default() })
    })
}

#[test]
fn logprobs_take_three_rounds_a_chunk_and_their_bytes_are_counted() {
    let target = |me: usize, row: usize| (me * 37 + row * 400) as i64 % 512;
    let modes: [&(dyn Fn(usize) -> RowCounts + Sync); 3] =
        [&|_| RowCounts::exact(&[ROWS; SIZE]), &|_| RowCounts::discover(ROWS), &|_| {
            RowCounts::capacity(ROWS + 3, ROWS)
        }];
    let mut first = None;
    for counts in modes {
        for top_n in [0, 5] {
            // Of a shard's 128 f32 logits and 8 f32 hidden states.
            let row = common::chunk_row(128, 8 * 4, top_n, SIZE);
            for (chunk_bytes, chunks) in
                [(row, 8), (4 * row - 1, 3), (8 * row - 1, 2), (8 * row, 1), (1 << 40, 1)]
            {
                let answers = logprob_steps(chunk_bytes, Request::logprobs(top_n), &|me| counts(me), target);
                for (rank, answer) in answers.into_iter().enumerate() {
                    let answer = answer.unwrap();
                    let (stats, peers) = (answer.stats, SIZE as u64 - 1);
                    // Header, targets; then for each chunk hidden rows, target logits, partials.
                    assert_eq!(stats.rounds, 2 + 3 * chunks);
                    let targets = (0..SIZE).flat_map(|r| (0..ROWS).map(move |row| target(r, row)));
                    let owned = targets.filter(|t| *t as usize / 128 == rank).count() as u64;
                    let all = (SIZE * ROWS) as u64;
                    let partial = 8 + 24 + 8 * (top_n as u64).max(1) + 4;
                    let fixed = peers * (64 + ROWS as u64 * (4 + 32) + ROWS as u64 * partial);
                    assert_eq!(stats.bytes_sent, fixed + peers * 4 * owned);
                    assert_eq!(stats.bytes_received, fixed + 4 * (all - owned));
                    assert_eq!(stats.rows_computed, all);
                    if top_n == 5 && rank == 0 {
                        let bits = row_bits(&answer, 0);
                        assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits);
                    }
                }
            }
        }
    }
}

#[test]
fn bad_logprobs_are_refused_with_the_row_and_the_rule() {
    let exact = &|_: usize| RowCounts::exact(&[ROWS; SIZE]);
    for bad in [512, -1, i64::MAX] {
        let target = |me, row| if (me, row) == (2, 1) { bad } else { 0 };
        for (rank, answer) in
            logprob_steps(1 << 20, Request::logprobs(0), exact, target).into_iter().enumerate()
        {
            let error = answer.unwrap_err();
            let want = format!("target of row 1: wanted an id from 0 to 511, got {bad}");
            assert!(error.to_string().contains(&want), "rank {rank}: {error}");
            assert_eq!(matches!(error, Error::StepMismatch { .. }), rank != 2, "rank {rank}: {error}");
        }
    }
    for (bytes, request, want) in [
        (
            779,
            Request::logprobs(0),
            "logprobs_chunk_bytes: wanted at least 780: a row of 32 bytes of hidden states",
        ),
        (8000, Request::logprobs(513), "request logprobs: wanted at most the vocabulary size, 512"),
        (8000, Request::argmax(), "targets: wanted none with argmax, got some"),
    ] {
        for answer in logprob_steps(bytes, request, exact, |_, _| 0) {
            let text = answer.unwrap_err().to_string();
            assert!(text.contains(want), "got {text}\nwant {want}");
        }
    }
    let test = small();
    let mut head =
        head_of(&test, &test.config(), 1, 0, Arc::new(local::group(1).remove(0)) as Arc<dyn Exchange>)
            .unwrap();
    let error = head
        .step_adjusted(RowCounts::exact(&[1]), &Request::logprobs(1))
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("wanted processed logprobs in a step with adjustments"), "{error}");
    let bytes = test.rows(1, 0);
    let hidden = HiddenRows::new(&bytes, DType::F32, 1, 8).unwrap();
    for (targets, want) in [(None, "wanted 1 ids, one for each row, got none"), (Some(&[1, 2][..]), "got 2")]
    {
        let step = head.step(RowCounts::exact(&[1]), &Request::logprobs(1)).unwrap();
        let error =
            step.run_with(hidden, &RowInputs { targets, ..RowInputs::default() }).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn the_memory_of_a_chunk_is_kept_for_any_number_of_rows() {
    // 3000 rows x 2000 ids would be 24 MB of logits; the bound is 1 MB for the two ranks each.
    let test = TestHead::random(2000, 8, DType::F32, Quantization::None, 9);
    let answers = each_rank(2, |me, exchange| {
        let mut config = test.config();
        config.logprobs_chunk_bytes = 1_000_000;
        let mut head = head_of(&test, &config, 2, me, exchange).unwrap();
        let rows = [3000, 1][me];
        let bytes = test.rows(rows, 4);
        let hidden = HiddenRows::new(&bytes, DType::F32, rows, 8).unwrap();
        let targets: Vec<i64> = (0..rows as i64).map(|row| row % 2000).collect();
        let step = head.step(RowCounts::exact(&[3000, 1]), &Request::logprobs(1)).unwrap();
        step.run_with(hidden, &RowInputs { targets: Some(&targets), ..RowInputs::default() }).unwrap()
    });
    // A row is (1024 logits + 8 hidden states) x 4 bytes and 148 for candidates: 233 to a chunk, rank 1's one row in the first.
    let chunks = 3001usize.div_ceil(233) as u32;
    for answer in &answers {
        assert_eq!(answer.stats.rounds, 2 + 3 * chunks);
        assert!(answer.row_status.iter().all(|s| *s == RowStatus::Good));
        assert!((500_000..1_000_000).contains(&answer.stats.chunk_bytes), "{}", answer.stats.chunk_bytes);
    }
    assert_eq!(row_bits(&answers[0], 0), row_bits(&answers[1], 0), "the same row and target on both");
}
