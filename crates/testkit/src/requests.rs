//! Tests requests with adjustments, for any dp, tp, group size, mode and rows, on any backend: the answers
//! are those that the definitions give over the full row of f32 logits, which one rank computes, and have the
//! same bits as the answers for the row alone.

#[allow(unsafe_code, reason = "copies to and from a device")]
mod resident;

pub use resident::{OnDevice, Resident, ResidentRank, bad_inputs, refused_inputs, steady_steps};

use crate::adjusting::OwnAdjustments;
use crate::caller_memory::{Scattered, run_into};
use crate::{Random, TestHead, chunk_row, local_group, row_bits};
use lmhead::backend::Backend;
use lmhead::config::{HeadConfig, LOGPROBS_CHUNK_BYTES, Quantization, Verify};
use lmhead::dtype::DType;
use lmhead::exchange::{Exchange, local};
use lmhead::head::LmHead;
use lmhead::layout::{HeadGroup, ParallelLayout, RankOrder, shard_range};
use lmhead::reference::{logsumexp, logsumexp_allowed, sample, top_k};
use lmhead::result::{Answer, Logprobs, NO_TARGET_ID, Output, Request, RowInputs, RowStatus, TokenLogprobs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead::weights::HeadShard;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread;

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    Exact,
    Capacity,
    Discover,
}

#[derive(Debug, Clone)]
pub struct Case {
    head: TestHead,
    config: HeadConfig,
    layout: ParallelLayout,
    size: usize,
    mode: Mode,
    request: Request,
    /// Per dp rank.
    rows: Vec<usize>,
    adjustments: Vec<Option<OwnAdjustments>>,
    caller_memory: Option<CallerMemory>,
    seed: u64,
}

/// One rank's part in a case: creates a head together with the other ranks, warms it up, and runs one step.
pub struct RankStep<'a> {
    pub config: &'a HeadConfig,
    pub group: HeadGroup,
    pub shard: Arc<HeadShard>,
    pub exchange: Arc<dyn Exchange>,
    /// Rows of the warm-up.
    pub warm_up: usize,
    pub counts: RowCounts,
    pub request: Request,
    pub adjusted: bool,
    pub hidden: HiddenRows<'a>,
    pub inputs: RowInputs<'a>,
    /// Elements between rows of logits in the caller's buffers; `None`: the head may own the answer.
    pub gap: Option<usize>,
}

/// Runs ranks' steps, by this library's own interface or by another one on top of it.
pub type Runner<'r> = &'r (dyn Fn(RankStep<'_>) -> Answer + Sync);

impl RankStep<'_> {
    /// Runs the step by this library's own interface.
    fn run(self, backend: &Arc<dyn Backend>) -> Answer {
        let mut head =
            LmHead::new(self.config, self.group, self.shard, self.exchange, backend.clone()).unwrap();
        head.warm_up(self.warm_up, &[self.request]).unwrap();
        match self.gap {
            Some(gap) => {
                let (counts, request) = (&self.counts, &self.request);
                run_into(&mut head, counts, request, self.adjusted, self.hidden, &self.inputs, gap)
            }
            None => {
                let begin = if self.adjusted { LmHead::step_adjusted } else { LmHead::step };
                begin(&mut head, self.counts, &self.request).unwrap().run_with(self.hidden, &self.inputs)
            }
        }
        .unwrap()
    }
}

/// The caller's memory that sharded steps use.
#[derive(Debug, Clone, Copy)]
struct CallerMemory {
    /// Elements between rows of logits.
    gap: usize,
    /// Bytes of the indices that select scattered rows; `None`: rows are contiguous.
    index_bytes: Option<usize>,
}

/// Steps on heads of these kinds: type of the hidden rows, and quantisation.
pub fn cases(kinds: &[(DType, Quantization)]) -> impl Strategy<Value = Case> + use<> {
    let kinds = prop::sample::select(kinds.to_vec());
    let vocab = prop_oneof![3 => 1usize..5, 3 => 60usize..70, 3 => 1usize..500, 1 => 1000usize..2500];
    let request = prop_oneof![
        Just(Request::Argmax),
        prop::sample::select(vec![DType::F32, DType::Bf16, DType::F16]).prop_map(Request::logits),
        prop_oneof![3 => 1usize..80, 1 => 80usize..2500].prop_map(Request::top_k),
        (1usize..4, prop_oneof![3 => 0usize..80, 1 => 80usize..2500], any::<bool>())
            .prop_map(|(targets, top_n, processed)| Request::Logprobs { targets, top_n, processed }),
        (0usize..5).prop_map(Request::processed_logprobs),
        Just(Request::sample()),
        (0usize..9, any::<bool>()).prop_map(|(top_n, processed)| Request::Sample {
            logprobs: Some(TokenLogprobs { top_n, processed })
        }),
    ];
    let epilogue =
        (any::<bool>(), prop::option::of(1f32..40.0), prop::sample::select(vec![1.0f32, 0.0625, -2.5]));
    let shape = (1usize..5, 1usize..4, any::<bool>(), any::<prop::sample::Index>());
    let mode = prop::sample::select(vec![Mode::Exact, Mode::Capacity, Mode::Discover]);
    // Magnitudes of logits; 0 stands for small integers, many of which tie.
    let magnitude = prop::sample::select(vec![1.0f32, 1.0, 0.0, 0.0, 1e30, 1e-30]);
    (kinds, vocab, 1usize..40, request, epilogue, shape, mode, magnitude, any::<u64>()).prop_map(
        |((dtype, quantization), vocab, hidden, request, epilogue, shape, mode, magnitude, seed)| {
            let (dp, tp, split, pick) = shape;
            let layout = ParallelLayout { dp, tp, pp: 1, order: RankOrder::default() };
            let sizes = layout.group_sizes();
            let request = match request {
                Request::TopK { k } => Request::top_k(k.min(vocab)),
                Request::Logprobs { targets, top_n, processed } => {
                    Request::Logprobs { targets, top_n: top_n.min(vocab), processed }
                }
                Request::Sample { logprobs: Some(TokenLogprobs { top_n, processed }) } => {
                    Request::Sample { logprobs: Some(TokenLogprobs { top_n: top_n.min(vocab), processed }) }
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
            let raw = matches!(request, Request::Logprobs { processed: false, .. });
            let adjustments = rows
                .iter()
                .map(|&n| {
                    (random.below(3) > 0 && !raw).then(|| OwnAdjustments::random(n, vocab, &mut random))
                })
                .collect();
            let size = sizes[pick.index(sizes.len())];
            // Logprobs in chunks of one to three rows, or all rows at once.
            let (targets, top_n) = match request {
                Request::Logprobs { targets, top_n, .. } => (targets, top_n),
                _ => (1, 0),
            };
            let row =
                chunk_row(shard_range(vocab, size, 0).len(), hidden * dtype.size(), targets, top_n, size);
            if let n @ 1.. = random.below(4) as u64 {
                config.logprobs_chunk_bytes = n * row + random.below(row as usize) as u64;
            }
            let index_bytes = [None, Some(4), Some(8)][random.below(3)];
            let caller_memory =
                (random.below(3) > 0).then(|| CallerMemory { gap: random.below(4), index_bytes });
            Case { head, config, layout, size, mode, request, rows, adjustments, caller_memory, seed }
        },
    )
}

impl Case {
    /// Ranks of a group.
    pub fn group_size(&self) -> usize {
        self.size
    }

    /// Hidden rows of a dp rank: integers where the weights are integers; sometimes a broken row.
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

    /// Targets of a dp rank's rows, for logprobs; some stand for "no target".
    fn targets(&self, dp: usize) -> Option<Vec<i64>> {
        let Request::Logprobs { targets, .. } = self.request else { return None };
        let mut random = Random(self.seed ^ 0x7a6 ^ dp as u64);
        let id = |random: &mut Random| match random.below(5) {
            0 => NO_TARGET_ID,
            _ => random.below(self.head.vocab) as i64,
        };
        Some((0..self.rows[dp] * targets).map(|_| id(&mut random)).collect())
    }

    /// How a dp rank's rows are sampled, in one mixed batch.
    fn sampling(&self, dp: usize) -> Option<Vec<SamplingParams>> {
        let mut random = Random(self.seed ^ 0x5a3 ^ dp as u64);
        let mut params: Vec<_> =
            (0..self.rows[dp]).map(|_| random_params(&mut random, self.head.vocab)).collect();
        // In some cases no row has a filter.
        if self.seed.is_multiple_of(3) {
            for params in &mut params {
                (params.top_k, params.top_p, params.min_p) = (0, 1.0, 0.0);
            }
        }
        matches!(self.request, Request::Sample { .. }).then_some(params)
    }

    /// Whether a rank announces adjustments; `own`: whether it has some of its own.
    fn says_adjusted(&self, own: bool) -> bool {
        if self.mode == Mode::Discover { own } else { self.adjustments.iter().any(Option::is_some) }
    }

    /// A rank's row counts, where its group's replicas bring `counts` rows and the rank brings `mine`.
    fn counts(&self, counts: &[usize], mine: usize) -> RowCounts {
        match self.mode {
            Mode::Exact => RowCounts::exact(counts),
            Mode::Capacity => RowCounts::capacity(counts.iter().copied().max().unwrap() + 1, mine),
            Mode::Discover => RowCounts::discover(mine),
        }
    }

    /// The answers of every rank, with its dp index.
    pub fn run_sharded(
        &self,
        backend: &Arc<dyn Backend>,
        connect: &dyn Fn(usize) -> Vec<Arc<dyn Exchange>>,
    ) -> Vec<(usize, Answer)> {
        self.run_sharded_by(&|step| step.run(backend), connect)
    }

    fn run_sharded_by(
        &self,
        runner: Runner<'_>,
        connect: &dyn Fn(usize) -> Vec<Arc<dyn Exchange>>,
    ) -> Vec<(usize, Answer)> {
        let mut endpoints: BTreeMap<Vec<usize>, Vec<Option<Arc<dyn Exchange>>>> = BTreeMap::new();
        let mut ranks = Vec::new();
        for rank in 0..self.layout.world_size().unwrap() {
            let group = HeadGroup::of(rank, &self.layout, self.size).unwrap().unwrap();
            let all = endpoints
                .entry(group.ranks().to_vec())
                .or_insert_with(|| connect(group.size()).into_iter().map(Some).collect());
            let endpoint = all[group.me()].take().unwrap();
            ranks.push((self.layout.coordinates(rank).unwrap().dp, group, endpoint));
        }
        thread::scope(|scope| {
            let threads: Vec<_> = ranks
                .into_iter()
                .map(|(dp, group, endpoint)| {
                    scope.spawn(move || (dp, self.run_rank(runner, dp, group, endpoint)))
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    fn run_rank(
        &self,
        runner: Runner<'_>,
        dp: usize,
        group: HeadGroup,
        exchange: Arc<dyn Exchange>,
    ) -> Answer {
        let shard = self.head.shard(group.shard(self.head.vocab, group.me()));
        let first = dp - group.replica_of(group.me());
        let counts = &self.rows[first..first + group.replicas()];
        let bytes = self.hidden(dp);
        let scattered = Scattered::new(&bytes, self.head.dtype, self.head.hidden, self.seed ^ dp as u64);
        let hidden = match self.caller_memory.and_then(|memory| memory.index_bytes) {
            Some(index_bytes) => scattered.rows(index_bytes),
            None => HiddenRows::new(&bytes, self.head.dtype, self.rows[dp], self.head.hidden),
        };
        let hidden = hidden.unwrap();
        // Large groups warm up without rows: with rows it is a dozen steps, which take minutes on an emulated
        // device that many ranks share.
        let warm_up = usize::from(group.size() <= 2);
        let counts = self.counts(counts, self.rows[dp]);
        let own = self.adjustments[dp].as_ref();
        let (targets, sampling) = (self.targets(dp), self.sampling(dp));
        let (targets, sampling) = (targets.as_deref(), sampling.as_deref());
        let run = |inputs: RowInputs<'_>| {
            runner(RankStep {
                config: &self.config,
                group,
                shard,
                exchange,
                warm_up,
                counts,
                request: self.request,
                adjusted: self.says_adjusted(own.is_some()),
                hidden,
                inputs,
                gap: self.caller_memory.map(|memory| memory.gap),
            })
        };
        match own {
            Some(own) => own
                .with(|a| run(RowInputs { targets, sampling, adjustments: Some(a), ..RowInputs::default() })),
            None => run(RowInputs { targets, sampling, ..RowInputs::default() }),
        }
    }

    /// Runs one row alone, on one rank with the whole head; with `plain`, asks for all unadjusted f32 logits.
    fn run_alone(&self, backend: &Arc<dyn Backend>, dp: usize, row: usize, plain: bool) -> Answer {
        let bytes = self.hidden(dp);
        let selection = [row];
        let hidden = HiddenRows::new(&bytes, self.head.dtype, self.rows[dp], self.head.hidden).unwrap();
        let hidden = hidden.select(&selection).unwrap();
        let shard = self.head.shard(0..self.head.vocab);
        let exchange = Arc::new(local::group(1).remove(0));
        let group = HeadGroup::data_parallel(1, 0).unwrap();
        let mut config = self.config.clone();
        config.logprobs_chunk_bytes = LOGPROBS_CHUNK_BYTES;
        let mut head = LmHead::new(&config, group, shard, exchange, backend.clone()).unwrap();
        let targets = self.targets(dp).map(|t| {
            let each = t.len() / self.rows[dp];
            t[row * each..(row + 1) * each].to_vec()
        });
        let sampling = self.sampling(dp).map(|s| vec![s[row]]);
        let (targets, sampling) = (targets.as_deref(), sampling.as_deref());
        match &self.adjustments[dp] {
            _ if plain => {
                head.step(RowCounts::exact(&[1]), &Request::logits(DType::F32)).unwrap().run(hidden)
            }
            None => {
                let step = head.step(RowCounts::exact(&[1]), &self.request).unwrap();
                step.run_with(hidden, &RowInputs { targets, sampling, ..RowInputs::default() })
            }
            Some(own) => own.only(row).with(|a| {
                let step = head.step_adjusted(RowCounts::exact(&[1]), &self.request).unwrap();
                step.run_with(
                    hidden,
                    &RowInputs { targets, sampling, adjustments: Some(a), ..RowInputs::default() },
                )
            }),
        }
        .unwrap()
    }

    /// Judges the answer for one row by the whole row of logits.
    fn judge(
        &self,
        backend: &Arc<dyn Backend>,
        dp: usize,
        row: usize,
        answer: &Answer,
    ) -> Result<(), TestCaseError> {
        let plain = self.run_alone(backend, dp, row, true);
        let raw = plain.output.logits_f32().unwrap();
        let mut logits = raw.clone();
        if let Some(own) = &self.adjustments[dp] {
            own.by_definition(row, &mut logits);
        }
        // The delivered logits count: one may be finite in f32 and infinite in 16 bits.
        let overflows = |dtype: DType| {
            let (mut bytes, mut wide) = (vec![0; logits.len() * dtype.size()], vec![0.0; logits.len()]);
            dtype.round_into(&logits, &mut bytes);
            dtype.widen(&bytes, &mut wide);
            logits.iter().zip(&wide).any(|(l, w)| l.is_finite() && w.is_infinite())
        };
        let broken = plain.row_status[0] != RowStatus::Good
            || logits.iter().any(|l| l.is_nan() || *l == f32::INFINITY)
            || matches!(self.request, Request::Logits { dtype } if overflows(dtype));
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
                // -0 and +0 count as equal.
                prop_assert_eq!(bits(&plus_zero(values)), bits(&plus_zero(&want_values)));
                let truth = logsumexp(&wide);
                let error = (f64::from(sums[0]) - truth).abs();
                let allowed = logsumexp_allowed(truth, wide.len());
                prop_assert!(error <= allowed, "logsumexp {} truth {}", sums[0], truth);
            }
            Output::Logprobs(told) => {
                let targets = self.targets(dp).unwrap();
                let own = &targets[row * told.targets..(row + 1) * told.targets];
                judge_logprobs(told, own, &logits, status == RowStatus::Good)?;
            }
            Output::Sample { ids, logprobs } => {
                let params = self.sampling(dp).unwrap()[row];
                let want = (status == RowStatus::Good).then(|| sample(&logits, &params)).flatten();
                prop_assert_eq!(ids[0], want.map_or(-1, |id| id as i64), "{:?}", params);
                let Request::Sample { logprobs: asked } = self.request else { unreachable!() };
                prop_assert_eq!(asked.is_some(), logprobs.is_some());
                if let (Some(asked), Some(told)) = (asked, logprobs) {
                    let of = if asked.processed { &logits } else { &raw };
                    judge_logprobs(told, ids, of, status == RowStatus::Good)?;
                }
            }
            other => panic!("no judge for {other:?}"),
        }
        Ok(())
    }

    /// Checks that every rank's answers equal those of each row alone, and what the definitions give over
    /// full logits.
    pub fn holds(&self, backend: &Arc<dyn Backend>) -> Result<(), TestCaseError> {
        self.holds_over(backend, &local_group)
    }

    /// `Case::holds` over the exchanges that `connect` makes for a group of a given size.
    pub fn holds_over(
        &self,
        backend: &Arc<dyn Backend>,
        connect: &dyn Fn(usize) -> Vec<Arc<dyn Exchange>>,
    ) -> Result<(), TestCaseError> {
        self.holds_by(backend, &|step| step.run(backend), connect)
    }

    /// `Case::holds_over` for ranks whose steps `runner` runs, on backends like this one.
    pub fn holds_by(
        &self,
        backend: &Arc<dyn Backend>,
        runner: Runner<'_>,
        connect: &dyn Fn(usize) -> Vec<Arc<dyn Exchange>>,
    ) -> Result<(), TestCaseError> {
        let answers = self.run_sharded_by(runner, connect);
        for dp in 0..self.layout.dp {
            let alone: Vec<Answer> =
                (0..self.rows[dp]).map(|row| self.run_alone(backend, dp, row, false)).collect();
            for (row, answer) in alone.iter().enumerate() {
                self.judge(backend, dp, row, answer)?;
            }
            let mut next = 0;
            for (_, answer) in answers.iter().filter(|(d, _)| *d == dp) {
                prop_assert!(answer.stats.chunk_bytes <= self.config.logprobs_chunk_bytes);
                let first = if self.config.split_rows_over_tp { next } else { 0 };
                for row in 0..answer.rows() {
                    prop_assert_eq!(row_bits(answer, row), row_bits(&alone[first + row], 0));
                }
                next += answer.rows();
            }
            let times = if self.config.split_rows_over_tp { 1 } else { self.layout.tp };
            prop_assert_eq!(next, self.rows[dp] * times);
        }
        Ok(())
    }
}

/// Judges the logprobs and ranks of one row's targets by its logits.
fn judge_logprobs(told: &Logprobs, targets: &[i64], logits: &[f32], good: bool) -> Result<(), TestCaseError> {
    let Logprobs { top_n, logprobs, ranks, top_ids, top_logprobs, .. } = told;
    prop_assert_eq!(
        (told.targets, logprobs.len(), ranks.len()),
        (targets.len(), targets.len(), targets.len())
    );
    if !good {
        prop_assert!(logprobs.iter().all(|v| v.is_nan()) && ranks.iter().all(|rank| *rank == -1));
        prop_assert!(top_ids.iter().all(|id| *id == -1) && top_logprobs.iter().all(|v| v.is_nan()));
        return Ok(());
    }
    let wide: Vec<f64> = logits.iter().map(|l| f64::from(*l)).collect();
    let (want_ids, want_values) = best(&wide, *top_n);
    prop_assert_eq!(top_ids, &want_ids);
    let truth = logsumexp(&wide);
    let judge = |logit: f32, got: f32| {
        let (want, got) = (f64::from(logit) - truth, f64::from(got));
        let allowed = logsumexp_allowed(truth, wide.len()) + DType::F32.half_ulp(want.abs());
        let good = got <= 0.0 && (got == want || (got - want).abs() <= allowed);
        prop_assert!(good, "logprob {} truth {}", got, want);
        Ok(())
    };
    want_values.iter().zip(top_logprobs).try_for_each(|(logit, got)| judge(*logit, *got))?;
    for ((&target, &logprob), &got) in targets.iter().zip(logprobs).zip(ranks) {
        if target == NO_TARGET_ID {
            prop_assert!(logprob.is_nan() && got == -1);
            continue;
        }
        let target = target as usize;
        let better = |(v, l): (usize, &f32)| *l > logits[target] || (*l == logits[target] && v < target);
        prop_assert_eq!(got, 1 + logits.iter().enumerate().filter(|at| better(*at)).count() as i64);
        judge(logits[target], logprob)?;
    }
    Ok(())
}

/// Parameters of every kind: each filter is on in about half of the rows.
pub(crate) fn random_params(random: &mut Random, vocab: usize) -> SamplingParams {
    let uniform = |random: &mut Random| (random.below(1 << 20) + 1) as f32 / (1 << 20) as f32;
    SamplingParams {
        seed: random.next() >> (random.below(2) * 62),
        // Fits an i64, since other interfaces have no u64.
        position: random.next() >> (1 + random.below(2) * 60),
        temperature: [0.0, 1.0, 0.3, 2.5, 1e-30, 1e20][random.below(6)],
        top_k: [0, 0, 1, 1 + random.below(vocab), 1 + random.below(vocab), usize::MAX][random.below(6)],
        top_p: [1.0, 1.0, uniform(random), uniform(random), 0.9, 1e-40][random.below(6)],
        min_p: [0.0, 0.0, 0.0, uniform(random), 0.05, 1.0][random.below(6)],
    }
}

fn plus_zero(values: &[f32]) -> Vec<f32> {
    values.iter().map(|v| v + 0.0).collect()
}

/// The k best allowed ids and their values, padded with -1 and minus infinity.
fn best(logits: &[f64], k: usize) -> (Vec<i64>, Vec<f32>) {
    let allowed = top_k(logits, k).into_iter().filter(|&id| logits[id] > f64::NEG_INFINITY);
    let mut ids: Vec<i64> = allowed.map(|id| id as i64).collect();
    let mut values: Vec<f32> = ids.iter().map(|&id| logits[id as usize] as f32).collect();
    ids.resize(k, -1);
    values.resize(k, f32::NEG_INFINITY);
    (ids, values)
}
