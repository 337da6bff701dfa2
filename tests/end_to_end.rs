//! The whole way, property by property: sharded equals unsharded in every bit, and both are within the promised error of the
//! float64 reference, for any dp, tp, group size, rows, selection, vocabulary, hidden size, dtype, mode and request.

mod common;

use common::{TestHead, backend, each_rank, row_bits};
use lmhead::config::{HeadConfig, Quantization};
use lmhead::dtype::DType;
use lmhead::exchange::{Exchange, local};
use lmhead::head::LmHead;
use lmhead::layout::{HeadGroup, ParallelLayout, RankOrder};
use lmhead::reference::{Reference, judge_top_k, logsumexp};
use lmhead::result::{Answer, Output, Request, RowStatus};
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
    /// Per dp rank: hidden rows, and perhaps a selection from them.
    rows: Vec<(usize, Option<Vec<usize>>)>,
    seed: u64,
}

fn cases() -> impl Strategy<Value = Case> {
    let kinds = prop::sample::select(vec![
        (DType::F32, Quantization::None),
        (DType::F16, Quantization::None),
        (DType::Bf16, Quantization::None),
        (DType::F32, Quantization::W8a8),
        (DType::F16, Quantization::W8a8),
        (DType::Bf16, Quantization::W8a8),
        (DType::F32, Quantization::W8a16),
        (DType::Bf16, Quantization::W8a16),
    ]);
    let vocab = prop_oneof![1usize..5, 60usize..70, 1usize..700];
    let hidden = prop_oneof![1usize..5, 1usize..150];
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
            // Idle ranks, and selections that repeat and reorder.
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

    /// Output rows of a dp rank, as hidden row numbers.
    fn wanted(&self, dp: usize) -> Vec<usize> {
        let (rows, selection) = &self.rows[dp];
        selection.clone().unwrap_or_else(|| (0..*rows).collect())
    }

    /// The answers of every last-stage rank, with its dp and tp index.
    fn run_sharded(&self) -> Vec<(usize, usize, Answer)> {
        let mut endpoints: BTreeMap<Vec<usize>, Vec<Option<local::LocalExchange>>> = BTreeMap::new();
        let mut ranks = Vec::new();
        for rank in 0..self.layout.world_size().unwrap() {
            let Some(group) = HeadGroup::of(rank, &self.layout, self.size).unwrap() else { continue };
            let all = endpoints
                .entry(group.ranks().to_vec())
                .or_insert_with(|| local::group(group.size()).into_iter().map(Some).collect());
            let endpoint = all[group.me()].take().unwrap();
            let at = self.layout.coordinates(rank).unwrap();
            ranks.push((at, group, endpoint));
        }
        thread::scope(|scope| {
            let threads: Vec<_> = ranks
                .into_iter()
                .map(|(at, group, endpoint)| {
                    scope.spawn(move || (at.dp, at.tp, self.run_rank(at.dp, group, Arc::new(endpoint))))
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        })
    }

    fn run_rank(&self, dp: usize, group: HeadGroup, exchange: Arc<dyn Exchange>) -> Answer {
        let shard = self.head.shard(group.shard(self.head.vocab, group.me()));
        let first = dp - group.replica_of(group.me());
        let counts: Vec<usize> = (first..first + group.replicas()).map(|d| self.wanted(d).len()).collect();
        let own = self.wanted(dp).len();
        let bytes = self.hidden(dp);
        let mut hidden = HiddenRows::new(&bytes, self.head.dtype, self.rows[dp].0, self.head.hidden).unwrap();
        if let Some(selection) = &self.rows[dp].1 {
            hidden = hidden.select(selection).unwrap();
        }
        let mut head = LmHead::new(&self.config, group, shard, exchange, backend()).unwrap();
        head.warm_up(1, &[self.request]).unwrap();
        let counts = match self.mode {
            Mode::Exact => RowCounts::exact(&counts),
            Mode::Capacity => RowCounts::capacity(counts.iter().copied().max().unwrap() + 1, own),
            Mode::Discover => RowCounts::discover(own),
        };
        head.step(counts, &self.request).unwrap().run(hidden).unwrap()
    }

    /// One output row on one rank with the whole head and no other row beside it.
    fn run_alone(&self, dp: usize, row: usize) -> Answer {
        let bytes = self.hidden(dp);
        let selection = [row];
        let hidden = HiddenRows::new(&bytes, self.head.dtype, self.rows[dp].0, self.head.hidden).unwrap();
        let hidden = hidden.select(&selection).unwrap();
        let group = HeadGroup::data_parallel(1, 0).unwrap();
        let exchange = Arc::new(local::group(1).remove(0));
        let shard = self.head.shard(0..self.head.vocab);
        let mut head = LmHead::new(&self.config, group, shard, exchange, backend()).unwrap();
        head.step(RowCounts::exact(&[1]), &self.request).unwrap().run(hidden).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn sharded_equals_alone_in_every_bit_and_the_reference_within_the_promise(case in cases()) {
        let answers = case.run_sharded();
        for dp in 0..case.layout.dp {
            let wanted = case.wanted(dp);
            let alone: Vec<Answer> = wanted.iter().map(|&row| case.run_alone(dp, row)).collect();
            // Every tp rank is answered all rows of its replica, or its part of them.
            let mut next = 0;
            for (_, _, answer) in answers.iter().filter(|(d, _, _)| *d == dp) {
                let first = if case.config.split_rows_over_tp { next } else { 0 };
                if !case.config.split_rows_over_tp {
                    prop_assert_eq!(answer.rows(), wanted.len());
                }
                for row in 0..answer.rows() {
                    prop_assert_eq!(row_bits(answer, row), row_bits(&alone[first + row], 0));
                }
                next += answer.rows();
            }
            let expected = if case.config.split_rows_over_tp { wanted.len() } else { wanted.len() * case.layout.tp };
            prop_assert_eq!(next, expected);
            for (row, answer) in wanted.iter().zip(&alone) {
                judge(&case, dp, *row, answer)?;
            }
        }
    }
}

/// One row's answer against the float64 reference.
fn judge(case: &Case, dp: usize, row: usize, answer: &Answer) -> Result<(), TestCaseError> {
    let shard = case.head.shard(0..case.head.vocab);
    let flushes = backend().flushes_subnormals(lmhead::backend::HeadTypes::of(&shard, case.head.dtype));
    let reference = Reference::new(&shard, case.config.epilogue()).flushing(flushes);
    let size = case.head.hidden * case.head.dtype.size();
    let hidden = &case.hidden(dp)[row * size..(row + 1) * size];
    let prepared = reference.row(hidden, case.head.dtype).unwrap();
    let truths: Vec<_> = (0..case.head.vocab).map(|v| reference.logit(&prepared, v)).collect();
    prop_assert_eq!(&answer.row_status, &vec![RowStatus::Good]);
    match &answer.output {
        Output::Logits { dtype, bytes, .. } => {
            for (v, truth) in truths.iter().enumerate() {
                let got = f64::from(dtype.read(bytes, v));
                let allowed = truth.allowed_as(*dtype);
                prop_assert!(
                    (got - truth.logit).abs() <= allowed,
                    "id {}: {} {:?} {}",
                    v,
                    got,
                    truth,
                    allowed
                );
            }
        }
        Output::Argmax { ids } => prop_assert!(judge_top_k(&truths, ids, None).is_ok()),
        Output::TopK { values, ids, logsumexp: sum, .. } => {
            let judged = judge_top_k(&truths, ids, Some(values));
            prop_assert!(judged.as_ref().is_ok_and(|worst| *worst <= 1.0), "{:?}", judged);
            let truth = logsumexp(&truths.iter().map(|t| t.logit).collect::<Vec<_>>());
            let moved = truths.iter().map(|t| t.allowed).fold(0.0, f64::max);
            let allowed = 1e-6 * truth.abs().max(1.0) + moved;
            prop_assert!((f64::from(sum[0]) - truth).abs() <= allowed, "{} {}", sum[0], truth);
        }
        other => panic!("unknown output {other:?}"),
    }
    Ok(())
}

/// Rows with NaN or infinity are marked and answered −1 and NaN; the others, in the same step, keep their bits.
#[test]
fn broken_rows_do_not_disturb_the_others() {
    for quantization in [Quantization::None, Quantization::W8a8, Quantization::W8a16] {
        let head = TestHead::random(300, 40, DType::F32, quantization, 5);
        let config = head.config();
        let good = head.rows(4, 9);
        let mut broken = good.clone();
        let put = |bytes: &mut [u8], row: usize, k: usize, value: f32| {
            bytes[(row * 40 + k) * 4..][..4].copy_from_slice(&value.to_le_bytes());
        };
        put(&mut broken, 1, 3, f32::NAN);
        put(&mut broken, 3, 39, f32::NEG_INFINITY);
        for request in [Request::argmax(), Request::top_k(3), Request::logits(DType::Bf16)] {
            let run = |bytes: &[u8]| {
                each_rank(2, |me, exchange| {
                    let mut head = common::head_of(&head, &config, 2, me, exchange).unwrap();
                    let part = &bytes[me * 320..(me + 1) * 320];
                    let hidden = HiddenRows::new(part, DType::F32, 2, 40).unwrap();
                    head.step(RowCounts::exact(&[2, 2]), &request).unwrap().run(hidden).unwrap()
                })
            };
            let (want, got) = (run(&good), run(&broken));
            for rank in 0..2 {
                assert_eq!(row_bits(&got[rank], 0), row_bits(&want[rank], 0), "{quantization} {request}");
                assert_eq!(
                    got[rank].row_status,
                    [RowStatus::Good, RowStatus::NonFinite],
                    "{quantization} {request}"
                );
                match &got[rank].output {
                    Output::Argmax { ids } => assert_eq!(ids[1], -1),
                    Output::TopK { values, ids, logsumexp, .. } => {
                        assert_eq!(ids[3..], [-1, -1, -1]);
                        assert!(values[3..].iter().all(|v| v.is_nan()) && logsumexp[1].is_nan());
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The bytes that a step reports are those that the formulas of the design give.
#[test]
fn only_candidates_cross_for_top_k() {
    let (size, rows, k) = (4, 3, 8);
    let head = TestHead::random(1000, 64, DType::Bf16, Quantization::None, 1);
    let config = head.config();
    let stats = |request: Request| {
        each_rank(size, |me, exchange| {
            let mut own = common::head_of(&head, &config, size, me, exchange).unwrap();
            let bytes = head.rows(rows, me as u64);
            let hidden = HiddenRows::new(&bytes, DType::Bf16, rows, 64).unwrap();
            own.step(RowCounts::exact(&[rows; 4]), &request).unwrap().run(hidden).unwrap().stats
        })
    };
    let peers = size as u64 - 1;
    let gathered = peers * rows as u64 * 64 * 2 + peers * 64;
    for stats in stats(Request::top_k(k)) {
        assert_eq!(stats.rounds, 3);
        assert_eq!(stats.bytes_received, gathered + peers * rows as u64 * (8 * k as u64 + 32));
        assert_eq!(stats.bytes_sent, stats.bytes_received);
    }
    // More candidates than a shard has ids are not sent: 256, 256, 256 and 232 of them here.
    for (me, stats) in stats(Request::top_k(900)).into_iter().enumerate() {
        let others: u64 = (0..size)
            .filter(|m| *m != me)
            .map(|m| lmhead::layout::shard_range(1000, size, m).len() as u64)
            .sum();
        assert_eq!(stats.bytes_received, gathered + rows as u64 * (8 * others + 32 * peers));
    }
    for (me, stats) in stats(Request::logits(DType::Bf16)).into_iter().enumerate() {
        let others = 1000 - lmhead::layout::shard_range(1000, size, me).len() as u64;
        assert_eq!(stats.bytes_received, gathered + rows as u64 * (2 * others + 4 * peers));
    }
}
