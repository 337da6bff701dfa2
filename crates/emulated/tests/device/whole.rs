//! Whole heads on the emulated backend: every request, layout and mode through the same code as on the CPU
//! backend; all int8 answers have the CPU backend's bits.

use crate::seeds::seeds;
use lmhead::backend::Backend;
use lmhead::backend::cpu::CpuBackend;
use lmhead::config::Quantization;
use lmhead::result::{Answer, Output, Request, RowInputs, RowStatus, TokenLogprobs};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::{DType, Error, HeadGroup, LmHead};
use lmhead_emulated::EmulatedDevice;
use lmhead_testkit::adjusting::OwnAdjustments;
use lmhead_testkit::{TestHead, each_rank, local_group, row_bits};
use lmhead_testkit::{end_to_end, requests};
use proptest::prelude::*;
use std::sync::Arc;

/// Types of heads that the kernels take.
pub const KINDS: [(DType, Quantization); 7] = [
    (DType::Bf16, Quantization::None),
    (DType::F16, Quantization::None),
    (DType::F32, Quantization::W8a8),
    (DType::F16, Quantization::W8a8),
    (DType::Bf16, Quantization::W8a8),
    (DType::Bf16, Quantization::W8a16),
    (DType::F16, Quantization::W8a16),
];

fn cpu() -> Arc<dyn Backend> {
    Arc::new(CpuBackend::new(Some(2)).expect("the CPU backend"))
}

/// `seed` determines the schedules, the kernels that heads take, the number of SMs, and how much host memory
/// a call may lock: some calls transfer in parts.
fn emulated(seed: u64) -> Arc<dyn Backend> {
    let device = EmulatedDevice::new(seed);
    let device = match seed % 8 {
        ..6 => device.portable(),
        6 => device,
        // Few SMs: blocks have several tiles, and the last wave is cut.
        _ => device.sms(3),
    };
    let backend = device.backend();
    Arc::new(if seed.is_multiple_of(2) { backend } else { backend.staged(4096) })
}

fn bits(answers: &[(usize, Answer)]) -> Vec<(u8, Vec<u64>)> {
    let rows = |(_, answer): &(usize, Answer)| {
        (0..answer.rows()).map(|row| row_bits(answer, row)).collect::<Vec<_>>()
    };
    answers.iter().flat_map(rows).collect()
}

/// Equal bits, except in rows with NaN: which NaN it is, is not promised.
fn same(got: &[(u8, Vec<u64>)], want: &[(u8, Vec<u64>)]) -> bool {
    got.len() == want.len() && got.iter().zip(want).all(|(a, b)| a.0 == b.0 && (a.0 == 1 || a.1 == b.1))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150 * seeds() as u32 / 100))]

    #[test]
    fn every_request_is_what_the_definitions_say_over_full_logits(
        case in requests::cases(&KINDS), schedule in any::<u64>(),
    ) {
        case.holds(&emulated(schedule))?;
    }

    #[test]
    fn steps_that_stay_on_the_device_have_the_bits_of_the_host_s(
        case in requests::cases(&KINDS), schedule in any::<u64>(),
    ) {
        let device = EmulatedDevice::new(schedule);
        let backend = device.clone().backend();
        case.stays_on(&requests::Resident::new(device, Arc::new(backend)))?;
    }

    #[test]
    fn sharded_equals_alone_in_every_bit_and_the_reference_within_the_promise(
        case in end_to_end::cases(&KINDS, 149), schedule in any::<u64>(),
    ) {
        case.holds(&emulated(schedule))?;
    }

    #[test]
    fn int8_answers_have_the_cpu_backend_s_bits(
        case in requests::cases(&KINDS[2..5]), schedule in any::<u64>(),
    ) {
        let got = bits(&case.run_sharded(&emulated(schedule), &local_group));
        let want = bits(&case.run_sharded(&cpu(), &local_group));
        prop_assert!(same(&got, &want), "{got:?}, on the CPU {want:?}");
    }
}

/// An index of no row affects its own row only, wherever the matmul runs.
#[test]
fn steps_that_stay_on_the_device_make_nothing_there_and_see_bad_indices() {
    let told = TokenLogprobs { top_n: 2, processed: false };
    for request in [
        Request::logits(DType::Bf16),
        Request::argmax(),
        Request::top_k(3),
        Request::top_k(1000),
        Request::Logprobs { targets: 2, top_n: 3, processed: false },
        Request::Logprobs { targets: 2, top_n: 100, processed: false },
        Request::sample(),
        Request::Sample { logprobs: Some(told) },
    ] {
        for ranks in [1, 2] {
            let device = EmulatedDevice::new(ranks as u64);
            let backend = device.clone().backend();
            let resident = requests::Resident::new(device.clone(), Arc::new(backend));
            requests::steady_steps(&resident, &|| device.counts().made, ranks, request);
        }
    }
}

#[test]
fn adjustments_of_no_kind_forbid_nothing() {
    let head = TestHead::random(100, 20, DType::Bf16, Quantization::None, 3);
    let none = OwnAdjustments { vocab: 100, rows: 2, mask: None, logit_bias: None, penalties: None };
    for given in [None, Some(none)] {
        let run = |_, exchange| {
            let (config, group) = (head.config(), HeadGroup::data_parallel(1, 0).expect("a group"));
            let mut own =
                LmHead::new(&config, group, head.shard(0..100), exchange, emulated(1)).expect("a head");
            let bytes = head.rows(2, 1);
            let hidden = HiddenRows::new(&bytes, DType::Bf16, 2, 20).expect("rows");
            let step =
                own.step_adjusted(RowCounts::exact(&[2]), &Request::logits(DType::F32)).expect("a step");
            match &given {
                None => step.run(hidden),
                Some(given) => given.with(|adjustments| {
                    step.run_with(
                        hidden,
                        &RowInputs { adjustments: Some(adjustments), ..RowInputs::default() },
                    )
                }),
            }
            .expect("an answer")
        };
        let answer = each_rank(1, run).remove(0);
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
            "bf16, f16, int8 or FP8 weights, got f32; use the cpu backend for f32 heads",
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

#[test]
fn inputs_in_device_memory_that_cannot_be_are_told_of_their_rows() {
    for ranks in [1, 2, 3] {
        let device = EmulatedDevice::new(ranks as u64);
        let backend = device.clone().backend();
        requests::bad_inputs(&requests::Resident::new(device, Arc::new(backend)), ranks);
    }
}

#[test]
fn inputs_in_device_memory_that_do_not_fit_are_refused() {
    let device = EmulatedDevice::new(3);
    let backend = device.clone().backend();
    requests::refused_inputs(&requests::Resident::new(device, Arc::new(backend)));
}
