//! Whole heads on the emulated backend: int8 has the CPU backend's bits to the last answer; a row sharded has those of the row alone.

use crate::common::adjusting::OwnAdjustments;
use crate::common::{Random, TestHead, each_rank, row_bits};
use lmhead::adjust::Adjustments;
use lmhead::backend::Backend;
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::emulated::EmulatedDevice;
use lmhead::config::Quantization;
use lmhead::result::{Answer, Output, Request, RowInputs, RowStatus};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead::{DType, Error, HeadGroup, LmHead};
use proptest::prelude::*;
use proptest::sample::select;
use std::sync::Arc;

fn cpu() -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(Some(2)).expect("the CPU backend"))
}

fn emulated(seed: u64) -> Arc<dyn Backend> {
    Arc::new(EmulatedDevice::new(seed).backend(CpuBackend::new(Some(2)).expect("the CPU backend")))
}

#[derive(Debug, Clone)]
struct Job {
    head: TestHead,
    softcap: Option<f32>,
    scale: f32,
    request: Request,
    /// Per rank.
    counts: Vec<usize>,
    /// Of each rank: none at all, or of kinds that may all be absent.
    adjustments: Vec<Option<OwnAdjustments>>,
    hidden: Vec<Vec<u8>>,
    seed: u64,
}

impl Job {
    fn new(
        kind: (DType, Quantization),
        (vocab, hidden, ranks): (usize, usize, usize),
        (softcap, scale): (Option<f32>, f32),
        request: Request,
        seed: u64,
    ) -> Self {
        let mut random = Random(seed);
        let mut head = TestHead::random(vocab, hidden, kind.0, kind.1, seed);
        if random.below(2) == 0 {
            head = head.with_bias(seed);
        }
        let counts: Vec<usize> = (0..ranks).map(|_| random.below(4)).collect();
        // Raw logprobs take no adjustments.
        let takes = !matches!(request, Request::Logprobs { processed: false, .. });
        let adjustments = counts
            .iter()
            .map(|&rows| match random.below(3) {
                0 => None,
                _ if !takes => None,
                1 => Some(OwnAdjustments { vocab, rows, mask: None, additions: None, penalties: None }),
                _ => Some(OwnAdjustments::random(rows, vocab, &mut random)),
            })
            .collect();
        let rows = |rows: &usize, random: &mut Random| {
            let mut values = random.normals(rows * hidden);
            if random.below(3) == 0
                && let Some(value) = values.last_mut()
            {
                *value = [f32::NAN, f32::INFINITY, 1e38][random.below(3)];
            }
            let mut bytes = vec![0; values.len() * kind.0.size()];
            kind.0.round_into(&values, &mut bytes);
            bytes
        };
        let hidden = counts.iter().map(|count| rows(count, &mut random)).collect();
        Job { head, softcap, scale, request, counts, adjustments, hidden, seed }
    }

    /// Each rank's answer; `adjusted` steps also where there is nothing to adjust.
    fn run(&self, backend: &Arc<dyn Backend>, adjusted: bool) -> Vec<Answer> {
        each_rank(self.counts.len(), |me, exchange| {
            self.rank(backend, adjusted, me, (self.counts.clone(), me), exchange)
        })
    }

    /// Rank `of`'s rows by a head that has nobody beside it.
    fn alone(&self, backend: &Arc<dyn Backend>, adjusted: bool, of: usize) -> Answer {
        let run = |_, exchange| self.rank(backend, adjusted, of, (vec![self.counts[of]], 0), exchange);
        each_rank(1, run).remove(0)
    }

    fn rank(
        &self,
        backend: &Arc<dyn Backend>,
        adjusted: bool,
        of: usize,
        (counts, me): (Vec<usize>, usize),
        exchange: Arc<dyn lmhead::exchange::Exchange>,
    ) -> Answer {
        let mut config = self.head.config();
        (config.final_logit_softcapping, config.logit_scale) = (self.softcap, self.scale);
        let group = HeadGroup::data_parallel(counts.len(), me).expect("a group");
        let shard = self.head.shard(group.shard(self.head.vocab, me));
        let mut head = LmHead::new(&config, group, shard, exchange, backend.clone()).expect("a head");
        let rows = counts[me];
        let hidden =
            HiddenRows::new(&self.hidden[of], self.head.dtype, rows, self.head.hidden).expect("rows");
        let counts = RowCounts::exact(&counts);
        let step = if adjusted {
            head.step_adjusted(counts, &self.request)
        } else {
            head.step(counts, &self.request)
        };
        let targets: Vec<i64> = (0..rows).map(|i| ((i * 37 + of) % self.head.vocab) as i64).collect();
        let sampling: Vec<SamplingParams> = (0..rows)
            .map(|i| {
                let mut one = SamplingParams::default();
                (one.seed, one.position, one.temperature) = (self.seed, (of * 10 + i) as u64, 0.8);
                (one.top_k, one.top_p) = ([0, 5][i % 2], [1.0, 0.9][i / 2 % 2]);
                one
            })
            .collect();
        let none =
            OwnAdjustments { vocab: self.head.vocab, rows, mask: None, additions: None, penalties: None };
        let own = self.adjustments[of].as_ref().unwrap_or(&none);
        own.with(|adjustments: Adjustments| {
            let inputs = RowInputs {
                adjustments: (adjusted && self.adjustments[of].is_some()).then_some(adjustments),
                targets: matches!(self.request, Request::Logprobs { .. }).then_some(&targets[..]),
                sampling: matches!(self.request, Request::Sample).then_some(&sampling[..]),
            };
            step.expect("a step").run_with(hidden, &inputs).expect("an answer")
        })
    }
}

fn jobs(kinds: Vec<(DType, Quantization)>) -> impl Strategy<Value = (Job, bool)> {
    let request = prop_oneof![
        select(vec![DType::F32, DType::Bf16, DType::F16]).prop_map(Request::logits),
        Just(Request::Argmax),
        Just(Request::top_k(1)),
        Just(Request::logprobs(1)),
        Just(Request::processed_logprobs(0)),
        Just(Request::Sample),
    ];
    let epilogue = (prop::option::of(1f32..40.0), select(vec![1.0f32, 0.0625, -2.5]));
    let size = (1usize..400, 1usize..100, 1usize..5);
    (select(kinds), size, epilogue, request, any::<u64>(), any::<bool>()).prop_map(
        |(kind, size, epilogue, request, seed, adjusted)| {
            let adjusted = adjusted && !matches!(request, Request::Logprobs { processed: false, .. });
            (Job::new(kind, size, epilogue, request, seed), adjusted)
        },
    )
}

fn rows_of(answers: &[Answer]) -> Vec<(u8, Vec<u64>)> {
    answers.iter().flat_map(|answer| (0..answer.row_status.len()).map(|row| row_bits(answer, row))).collect()
}

/// Rows whose values are numbers: which NaN it is, is not promised.
fn same(got: &[(u8, Vec<u64>)], want: &[(u8, Vec<u64>)]) -> bool {
    got.len() == want.len() && got.iter().zip(want).all(|(a, b)| a.0 == b.0 && (a.0 == 1 || a.1 == b.1))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn int8_answers_have_the_cpu_backend_s_bits(
        (job, adjusted) in jobs([DType::F32, DType::F16, DType::Bf16].map(|dtype| (dtype, Quantization::W8a8)).into()),
    ) {
        let (got, want) = (rows_of(&job.run(&emulated(job.seed), adjusted)), rows_of(&job.run(&cpu(), adjusted)));
        prop_assert!(same(&got, &want), "{got:?}, on the CPU {want:?}");
    }

    #[test]
    fn sharded_is_alone_in_every_bit(
        (job, adjusted) in jobs(vec![
            (DType::Bf16, Quantization::None), (DType::F16, Quantization::None), (DType::F32, Quantization::W8a8),
            (DType::Bf16, Quantization::W8a16), (DType::F16, Quantization::W8a16),
        ]),
    ) {
        let backend = emulated(job.seed);
        let sharded = job.run(&backend, adjusted);
        for (of, answer) in sharded.iter().enumerate() {
            let (got, want) = (rows_of(std::slice::from_ref(answer)), rows_of(&[job.alone(&backend, adjusted, of)]));
            prop_assert!(same(&got, &want), "rank {of}: {got:?}, alone {want:?}");
        }
    }
}

/// Shards without ids say of such a row that its largest logit is minus infinity, after the shard that knows better.
#[test]
fn rows_that_are_no_numbers_do_not_break_the_step_of_others() {
    for backend in [cpu(), emulated(1)] {
        let mut job = Job::new((DType::Bf16, Quantization::None), (2, 8, 4), (None, 1.0), Request::Sample, 5);
        (job.counts, job.adjustments) = (vec![4, 0, 3, 1], vec![None; 4]);
        job.hidden = job.counts.iter().map(|&rows| job.head.rows(rows, 1)).collect();
        for row in job.hidden[0].chunks_mut(2 * 8) {
            row[14..].copy_from_slice(&half::bf16::INFINITY.to_le_bytes());
        }
        let sharded = job.run(&backend, false);
        for (of, answer) in sharded.iter().enumerate() {
            let wanted = if of == 0 { RowStatus::NonFinite } else { RowStatus::Good };
            assert!(answer.row_status.iter().all(|status| *status == wanted), "{:?}", answer.row_status);
            let (got, want) =
                (rows_of(std::slice::from_ref(answer)), rows_of(&[job.alone(&backend, false, of)]));
            assert!(same(&got, &want), "rank {of}: {got:?}, alone {want:?}");
        }
    }
}

#[test]
fn adjustments_of_no_kind_forbid_nothing() {
    let none = OwnAdjustments { vocab: 100, rows: 2, mask: None, additions: None, penalties: None };
    for given in [None, Some(none)] {
        let mut job = Job::new(
            (DType::Bf16, Quantization::None),
            (100, 20, 1),
            (None, 1.0),
            Request::logits(DType::F32),
            3,
        );
        (job.counts, job.adjustments) = (vec![2], vec![given]);
        job.hidden = vec![job.head.rows(2, 1)];
        let answer = job.run(&emulated(1), true).remove(0);
        assert_eq!(answer.row_status, [RowStatus::Good; 2]);
        assert!(matches!(answer.output, Output::Logits { .. }));
    }
}

#[test]
fn heads_without_a_kernel_are_refused_by_name() {
    for (dtype, quantization, wanted) in [
        (
            DType::F32,
            Quantization::None,
            "bf16, f16 or int8 weights, got f32; use the cpu backend for f32 heads",
        ),
        (DType::F32, Quantization::W8a16, "f16 or bf16 hidden states for w8a16, got f32"),
    ] {
        let head = TestHead::random(70, 16, dtype, quantization, 1);
        let config = head.config();
        let exchange = Arc::new(lmhead::exchange::local::group(1).remove(0));
        let group = HeadGroup::data_parallel(1, 0).expect("a group");
        let error =
            LmHead::new(&config, group, head.shard(0..70), exchange, emulated(1)).err().expect("no kernel");
        assert!(matches!(error, Error::Dtype { .. }) && error.to_string().contains(wanted), "{error}");
    }
}
