//! Whole steps of W8A8 heads: the answers have the same bits whatever instruction set a rank computes with,
//! so that ranks of one group may differ in theirs.

use crate::cases::{backend, isas};
use lmhead::adjust::Adjustments;
use lmhead::backend::cpu::CpuBackend;
use lmhead::backend::{Backend, HeadTypes};
use lmhead::config::{HeadConfig, Quantization};
use lmhead::dtype::DType;
use lmhead::head::LmHead;
use lmhead::layout::HeadGroup;
use lmhead::result::{Request, RowInputs, RowStatus};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead_testkit::adjusting::OwnAdjustments;
use lmhead_testkit::{Random, TestHead, each_rank, row_bits};
use proptest::prelude::*;
use proptest::sample::select;
use std::sync::Arc;

/// Rows of the two ranks.
const COUNTS: [usize; 2] = [5, 3];

#[derive(Debug)]
struct GroupCase {
    head: TestHead,
    config: HeadConfig,
    /// Hidden rows of each rank, as bytes.
    hidden: Vec<Vec<u8>>,
    adjustments: Vec<OwnAdjustments>,
    seed: u64,
}

impl GroupCase {
    fn new(
        dtype: DType,
        vocab: usize,
        hidden: usize,
        whole_numbers: bool,
        epilogue: Epilogue,
        seed: u64,
    ) -> GroupCase {
        let mut random = Random(seed);
        let mut head = TestHead::random(vocab, hidden, dtype, Quantization::W8a8, seed);
        if whole_numbers {
            // Many logits tie, also over the shards.
            head.weights.iter_mut().for_each(|w| *w = random.below(3) as f32 - 1.0);
        }
        if epilogue.bias {
            head = head.with_bias(seed);
        }
        let mut config = head.config();
        (config.final_logit_softcapping, config.logit_scale) = (epilogue.softcap, epilogue.scale);
        let mut rows = |count: usize| -> Vec<u8> {
            let mut values: Vec<f32> = match whole_numbers {
                true => (0..count * hidden).map(|_| random.below(5) as f32 - 2.0).collect(),
                false => random.normals(count * hidden),
            };
            // The first rank's last row is not finite; the row before it is too small to be quantised.
            if count == COUNTS[0] {
                values[(count - 1) * hidden + hidden / 2] = f32::INFINITY;
                values[(count - 2) * hidden..][..hidden].fill(1e-38);
            }
            let mut bytes = vec![0; values.len() * dtype.size()];
            dtype.round_into(&values, &mut bytes);
            bytes
        };
        let hidden = COUNTS.map(&mut rows).into();
        let adjustments = COUNTS.map(|count| OwnAdjustments::random(count, vocab, &mut random)).into();
        GroupCase { head, config, hidden, adjustments, seed }
    }

    fn types(&self) -> HeadTypes {
        HeadTypes { weights: DType::I8, quantization: Quantization::W8a8, hidden: self.head.dtype }
    }

    /// Every kind of request, and whether its logits are adjusted.
    fn requests(&self) -> Vec<(Request, bool)> {
        let vocab = self.head.vocab;
        vec![
            (Request::logits(DType::F32), false),
            (Request::logits(DType::F32), true),
            (Request::logits(DType::Bf16), false),
            (Request::logits(DType::F16), true),
            (Request::argmax(), false),
            (Request::argmax(), true),
            (Request::top_k(1), false),
            (Request::top_k(vocab.min(70)), true),
            (Request::logprobs(0), false),
            (Request::logprobs(vocab.min(9)), false),
            (Request::processed_logprobs(3), true),
            (Request::sample(), false),
            (Request::sample(), true),
        ]
    }

    /// Each row's status and answer when the two ranks compute with these backends.
    fn run(
        &self,
        backends: [&Arc<CpuBackend>; 2],
        (request, adjusted): &(Request, bool),
    ) -> Vec<(u8, Vec<u64>)> {
        let answers = each_rank(COUNTS.len(), |me, exchange| {
            let group = HeadGroup::data_parallel(COUNTS.len(), me).expect("a group");
            let shard = self.head.shard(group.shard(self.head.vocab, me));
            let backend = Arc::clone(backends[me]) as Arc<dyn Backend>;
            let mut head = LmHead::new(&self.config, group, shard, exchange, backend).expect("a head");
            let rows = COUNTS[me];
            let hidden =
                HiddenRows::new(&self.hidden[me], self.head.dtype, rows, self.head.hidden).expect("rows");
            let targets: Vec<i64> = (0..rows).map(|i| ((i * 37 + me) % self.head.vocab) as i64).collect();
            let sampling: Vec<SamplingParams> =
                (0..rows).map(|row| self.sampling(me * COUNTS[0] + row)).collect();
            let counts = RowCounts::exact(&COUNTS);
            let step = match adjusted {
                true => head.step_adjusted(counts, request),
                false => head.step(counts, request),
            };
            self.adjustments[me].with(|adjustments: Adjustments| {
                let inputs = RowInputs {
                    adjustments: adjusted.then_some(adjustments),
                    targets: matches!(request, Request::Logprobs { .. }).then_some(&targets[..]),
                    sampling: matches!(request, Request::Sample { .. }).then_some(&sampling[..]),
                    ..RowInputs::default()
                };
                step.expect("a step").run_with(hidden, &inputs).expect("an answer")
            })
        });
        let rows = answers.iter().flat_map(|answer| (0..answer.rows()).map(|row| row_bits(answer, row)));
        // Which NaN a broken row's logit is, is not promised.
        rows.map(
            |(status, bits)| {
                if status == RowStatus::NonFinite as u8 { (status, vec![]) } else { (status, bits) }
            },
        )
        .collect()
    }

    /// Greedy, all ids, and each filter alone and together.
    fn sampling(&self, row: usize) -> SamplingParams {
        let (temperature, top_k, top_p, min_p) = [
            (0.0, 0, 1.0, 0.0),
            (1.0, 0, 1.0, 0.0),
            (0.8, 5, 1.0, 0.0),
            (1.0, 0, 0.9, 0.0),
            (1.0, 0, 1.0, 0.0),
            (1.3, 1100, 0.95, 0.0),
            (1.0, 0, 1.0, 0.05),
            (0.7, 40, 0.8, 0.01),
        ][row];
        SamplingParams { seed: self.seed, position: row as u64, temperature, top_k, top_p, min_p }
    }
}

#[derive(Debug, Clone, Copy)]
struct Epilogue {
    bias: bool,
    softcap: Option<f32>,
    scale: f32,
}

proptest! {
    // Each case is a step for each kind of answer and each pair of instruction sets.
    #![proptest_config(ProptestConfig::with_cases(6))]

    #[test]
    fn w8a8_answers_have_the_same_bits_on_every_pair_of_instruction_sets(
        dtype in select(vec![DType::F32, DType::F16, DType::Bf16]),
        vocab in prop_oneof![65usize..400, 1101usize..1300], tail in 1usize..64,
        whole_numbers in any::<bool>(),
        bias in any::<bool>(), softcap in prop::option::of(1f32..40.0),
        scale in select(vec![1.0f32, 0.0625, -2.5]),
        seed in any::<u64>(),
    ) {
        let epilogue = Epilogue { bias, softcap, scale };
        let case = GroupCase::new(dtype, vocab, 1024 + tail, whole_numbers, epilogue, seed);
        let backends: Vec<_> = isas().into_iter().map(|isa| Arc::new(backend(isa, 2))).collect();
        let fingerprints: Vec<String> =
            backends.iter().map(|backend| backend.fingerprint(case.types())).collect();
        prop_assert!(fingerprints.iter().all(|one| *one == fingerprints[0]), "{fingerprints:?}");
        for request in case.requests() {
            let want = case.run([&backends[0]; 2], &request);
            let broken = want.iter().filter(|row| row.0 == RowStatus::NonFinite as u8).count();
            // (A mask that allows nothing hides the broken row.)
            prop_assert!(broken == 1 || request.1);
            for (first, second) in backends.iter().flat_map(|a| backends.iter().map(move |b| (a, b))) {
                let got = case.run([first, second], &request);
                let other = got.iter().zip(&want).position(|(got, want)| got != want);
                let (a, b, base) = (first.isa(), second.isa(), backends[0].isa());
                prop_assert!(
                    got.len() == want.len() && other.is_none(),
                    "{}, adjusted {}: row {:?} has other bits on {} and {} than on {} alone",
                    request.0, request.1, other, a, b, base
                );
            }
        }
    }
}
