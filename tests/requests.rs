//! Requests with adjustments, against whole f32 logits that one rank computes: for any dp, tp, group size, mode and rows the answers
//! are those that the definitions give over the full row, and the same bits as for the row alone.

mod common;

use common::adjusting::OwnAdjustments;
use common::{Random, TestHead, backend, each_rank, head_of, row_bits};
use lmhead::adjust::Adjustments;
use lmhead::config::{HeadConfig, Quantization, Verify};
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::exchange::{Exchange, local};
use lmhead::head::LmHead;
use lmhead::layout::{HeadGroup, ParallelLayout, RankOrder};
use lmhead::reference::{logsumexp, top_k};
use lmhead::result::{Answer, Output, Request, RowInputs, RowStatus};
use lmhead::rows::{HiddenRows, RowCounts};
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
    let vocab = prop_oneof![1usize..5, 60usize..70, 1usize..500];
    let request = prop_oneof![
        Just(Request::Argmax),
        prop::sample::select(vec![DType::F32, DType::Bf16, DType::F16]).prop_map(Request::logits),
        (1usize..80).prop_map(Request::top_k),
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
            let rows: Vec<usize> = (0..dp).map(|_| random.below(5) * random.below(2)).collect();
            let adjustments = rows
                .iter()
                .map(|&n| (random.below(3) > 0).then(|| OwnAdjustments::random(n, vocab, &mut random)))
                .collect();
            let size = sizes[pick.index(sizes.len())];
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
        match own {
            Some(own) => own.with(|a| step.run_with(hidden, &RowInputs { adjustments: Some(a) })),
            None => step.run(hidden),
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
        let mut head = LmHead::new(&self.config, group, shard, exchange, backend()).unwrap();
        match &self.adjustments[dp] {
            _ if plain => {
                head.step(RowCounts::exact(&[1]), &Request::logits(DType::F32)).unwrap().run(hidden)
            }
            None => head.step(RowCounts::exact(&[1]), &self.request).unwrap().run(hidden),
            Some(own) => own.only(row).with(|a| {
                let step = head.step_adjusted(RowCounts::exact(&[1]), &self.request).unwrap();
                step.run_with(hidden, &RowInputs { adjustments: Some(a) })
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
            other => panic!("no judge for {other:?}"),
        }
        Ok(())
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
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

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
        let answer = step?.run_with(hidden, &RowInputs { adjustments });
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
