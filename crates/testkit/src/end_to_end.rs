//! Property tests of whole steps: sharded answers equal unsharded ones in every bit, and both are within the
//! promised error of the float64 reference; for any dp, tp, group size, rows, selection, vocabulary, hidden
//! size, dtype, mode and request, and on any backend.

use crate::{TestHead, local_group, row_bits};
use lmhead::backend::{Backend, HeadTypes, On};
use lmhead::config::{HeadConfig, Quantization};
use lmhead::dtype::DType;
use lmhead::exchange::{Exchange, local};
use lmhead::head::{LmHead, StepOptions};
use lmhead::layout::{HeadGroup, ParallelLayout, RankOrder};
use lmhead::reference::Judge;
use lmhead::result::{Answer, OwnedAnswer, Request, RowInputs};
use lmhead::rows::{HiddenRows, RowCounts};
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
    /// Per dp rank: hidden rows, and perhaps a selection from them.
    rows: Vec<(usize, Option<Vec<usize>>)>,
    seed: u64,
}

/// Steps on heads of these kinds (type of the hidden rows, and quantisation), with rows of at most
/// `most_hidden` elements.
pub fn cases(kinds: &[(DType, Quantization)], most_hidden: usize) -> impl Strategy<Value = Case> + use<> {
    let kinds = prop::sample::select(kinds.to_vec());
    let vocab = prop_oneof![1usize..5, 60usize..70, 1usize..700];
    let hidden = prop_oneof![1usize..5, 1..=most_hidden];
    let request = prop_oneof![
        Just(Request::Argmax),
        prop::sample::select(vec![DType::F32, DType::Bf16, DType::F16]).prop_map(Request::logits),
        (1usize..80).prop_map(Request::top_k),
    ];
    let epilogue =
        (any::<bool>(), prop::option::of(1f32..40.0), prop::sample::select(vec![1.0f32, 0.0625, -2.5]));
    let shape = (1usize..6, 1usize..4, 1usize..3, any::<bool>(), any::<bool>(), any::<prop::sample::Index>());
    let mode = prop::sample::select(vec![Mode::Exact, Mode::Capacity, Mode::Discover]);
    (kinds, vocab, hidden, request, epilogue, shape, mode, any::<u64>()).prop_flat_map(
        |((dtype, quantization), vocab, hidden, request, epilogue, shape, mode, seed)| {
            let (dp, tp, pp, megatron, split, pick) = shape;
            let order = if megatron { RankOrder::PpDpTp } else { RankOrder::DpPpTp };
            let layout = ParallelLayout { dp, tp, pp, order };
            let sizes = layout.group_sizes();
            let size = sizes[pick.index(sizes.len())];
            let request = match request {
                Request::TopK { k } => Request::top_k(k.min(vocab)),
                other => other,
            };
            let mut head = TestHead::random(vocab, hidden, dtype, quantization, seed);
            let (bias, softcap, scale) = epilogue;
            if bias {
                head = head.with_bias(seed);
            }
            let mut config = head.config();
            config.final_logit_softcapping = softcap;
            config.logit_scale = scale;
            config.split_rows_over_tp = split;
            // Includes idle ranks, and selections that repeat and reorder.
            let one = prop_oneof![2 => Just(0usize), 5 => 1usize..6].prop_flat_map(|n| {
                let selection = if n == 0 {
                    Just(None).boxed()
                } else {
                    prop::option::of(prop::collection::vec(0..n, 0..9)).boxed()
                };
                (Just(n), selection)
            });
            let rows = prop::collection::vec(one, dp);
            (Just(head), Just(config), rows).prop_map(move |(head, config, rows)| Case {
                head,
                config,
                layout,
                size,
                mode,
                request,
                rows,
                seed,
            })
        },
    )
}

impl Case {
    /// Hidden rows of a dp rank.
    fn hidden(&self, dp: usize) -> Vec<u8> {
        self.head.rows(self.rows[dp].0, self.seed ^ (dp as u64 + 1))
    }

    /// Which hidden rows the output rows of a dp rank are.
    fn wanted(&self, dp: usize) -> Vec<usize> {
        let (rows, selection) = &self.rows[dp];
        selection.clone().unwrap_or_else(|| (0..*rows).collect())
    }

    /// The answers of every last-stage rank, with its dp and tp index.
    fn run_sharded(
        &self,
        backend: &Arc<dyn Backend>,
        connect: &dyn Fn(usize) -> Vec<Arc<dyn Exchange>>,
    ) -> Vec<(usize, usize, Answer)> {
        let mut endpoints: BTreeMap<Vec<usize>, Vec<Option<Arc<dyn Exchange>>>> = BTreeMap::new();
        let mut ranks = Vec::new();
        for rank in 0..self.layout.world_size().unwrap() {
            let Some(group) = HeadGroup::of(rank, &self.layout, self.size).unwrap() else { continue };
            let all = endpoints
                .entry(group.ranks().to_vec())
                .or_insert_with(|| connect(group.size()).into_iter().map(Some).collect());
            let endpoint = all[group.me()].take().unwrap();
            let at = self.layout.coordinates(rank).unwrap();
            ranks.push((at, group, endpoint));
        }
        thread::scope(|scope| {
            let threads: Vec<_> = ranks
                .into_iter()
                .map(|(at, group, endpoint)| {
                    scope.spawn(move || (at.dp, at.tp, self.run_rank(backend, at.dp, group, endpoint)))
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    fn run_rank(
        &self,
        backend: &Arc<dyn Backend>,
        dp: usize,
        group: HeadGroup,
        exchange: Arc<dyn Exchange>,
    ) -> Answer {
        let shard = self.head.shard(group.shard(self.head.vocab, group.me()));
        let first = dp - group.replica_of(group.me());
        let counts: Vec<usize> = (first..first + group.replicas()).map(|d| self.wanted(d).len()).collect();
        let own = self.wanted(dp).len();
        let bytes = self.hidden(dp);
        let mut hidden = HiddenRows::new(&bytes, self.head.dtype, self.rows[dp].0, self.head.hidden).unwrap();
        if let Some(selection) = &self.rows[dp].1 {
            hidden = hidden.select(selection).unwrap();
        }
        // Large groups warm up without rows: with rows it is a dozen steps, which take minutes on an emulated
        // device that many ranks share.
        let warm_up = usize::from(group.size() <= 2);
        let mut head = LmHead::new(&self.config, group, shard, exchange, backend.clone()).unwrap();
        head.warm_up(warm_up, &[self.request]).unwrap();
        let counts = match self.mode {
            Mode::Exact => RowCounts::exact(&counts),
            Mode::Capacity => RowCounts::capacity(counts.iter().copied().max().unwrap() + 1, own),
            Mode::Discover => RowCounts::discover(own),
        };
        head.step(counts, &self.request).unwrap().run(hidden).unwrap()
    }

    /// Runs one output row alone, on one rank with the whole head, and judges its answer by the float64
    /// reference.
    fn run_alone(&self, backend: &Arc<dyn Backend>, dp: usize, row: usize) -> Result<Answer, TestCaseError> {
        let bytes = self.hidden(dp);
        let selection = [row];
        let hidden = HiddenRows::new(&bytes, self.head.dtype, self.rows[dp].0, self.head.hidden).unwrap();
        let hidden = hidden.select(&selection).unwrap();
        let group = HeadGroup::data_parallel(1, 0).unwrap();
        let exchange = Arc::new(local::group(1).remove(0));
        let shard = self.head.shard(0..self.head.vocab);
        let mut head = LmHead::new(&self.config, group, shard.clone(), exchange, backend.clone()).unwrap();
        let (inputs, options) = (RowInputs::default(), StepOptions::default());
        let mut answer = OwnedAnswer::new(&self.request, 1, self.head.vocab).unwrap();
        let ticket = head.begin(&RowCounts::exact(&[1]), &self.request, options).unwrap();
        let stats = head.run_into(ticket, hidden, &inputs, answer.buffers(), On::default()).unwrap();
        let flushes = backend.flushes_subnormals(HeadTypes::of(&shard, self.head.dtype));
        let (shards, config, accuracy) = (&[shard][..], &self.config, backend.accuracy());
        let judge = Judge { shards, config, gaussian: false, flushes, accuracy };
        let verdict = judge.judge(&answer, hidden, &inputs, 0).unwrap();
        prop_assert!(verdict.passed && verdict.everything, "{:?}", verdict.mistakes);
        Ok(answer.into_answer(stats))
    }

    /// Checks that every rank's answers equal those of each row alone, in every bit, and are within the
    /// promised error of the float64 reference.
    pub fn holds(&self, backend: &Arc<dyn Backend>) -> Result<(), TestCaseError> {
        self.holds_over(backend, &local_group)
    }

    /// `Case::holds` over the exchanges that `connect` makes for a group of a given size.
    pub fn holds_over(
        &self,
        backend: &Arc<dyn Backend>,
        connect: &dyn Fn(usize) -> Vec<Arc<dyn Exchange>>,
    ) -> Result<(), TestCaseError> {
        let answers = self.run_sharded(backend, connect);
        for dp in 0..self.layout.dp {
            let wanted = self.wanted(dp);
            let alone = wanted.iter().map(|&row| self.run_alone(backend, dp, row));
            let alone: Vec<Answer> = alone.collect::<Result<_, _>>()?;
            // Every tp rank gets the answers to all rows of its replica, or to its part of them.
            let mut next = 0;
            for (_, _, answer) in answers.iter().filter(|(d, _, _)| *d == dp) {
                let first = if self.config.split_rows_over_tp { next } else { 0 };
                if !self.config.split_rows_over_tp {
                    prop_assert_eq!(answer.rows(), wanted.len());
                }
                for row in 0..answer.rows() {
                    prop_assert_eq!(row_bits(answer, row), row_bits(&alone[first + row], 0));
                }
                next += answer.rows();
            }
            let expected =
                if self.config.split_rows_over_tp { wanted.len() } else { wanted.len() * self.layout.tp };
            prop_assert_eq!(next, expected);
        }
        Ok(())
    }
}
