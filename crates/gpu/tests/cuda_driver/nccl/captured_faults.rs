//! Captured steps of ranks that disagree or do not come; and calls that a capture refuses.

use super::captured::each_ranked;
use super::{all_are_destroyed, on_nccl};
use lmhead::backend::DeviceAdjustments;
use lmhead::backend::cuda::Graph;
use lmhead::backend::device::KernelDevice;
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::head::StepOptions;
use lmhead::result::Request;
use lmhead::rows::RowCounts;
use lmhead::sampling::Filters;
use lmhead_gpu::captured_steps::{CapturedKind, Stepper};
use std::sync::Barrier;
use std::time::{Duration, Instant};

const KIND: CapturedKind = CapturedKind {
    tp: 1,
    split: false,
    padded: true,
    request: Request::Argmax,
    filters: Filters::ByHost,
    adjustments: DeviceAdjustments { allowed: false, logit_bias: 0, counts: 0 },
    quantization: Quantization::None,
    dtype: DType::Bf16,
    hidden: 32,
    vocab: 200,
};
const SOON: Duration = Duration::from_secs(60);

#[test]
fn ranks_that_capture_different_steps_are_named() {
    on_nccl("captured_faults::in_child_mismatch", &[]);
}

#[test]
#[ignore = "needs the fake libraries: ranks_that_capture_different_steps_are_named runs it"]
fn in_child_mismatch() {
    for kind in [KIND, CapturedKind { tp: 2, split: true, ..KIND }] {
        let meeting = Barrier::new(4);
        each_ranked(4, |ranked| {
            let me = ranked.exchange.me();
            let mut stepper = Stepper::new(&ranked.device, ranked.exchange.clone(), kind, SOON);
            stepper.bring_rows(1);
            let graph = stepper.capture().expect("a graph");
            stepper.replay(&graph);
            let good = stepper.statuses();
            assert!(good.iter().all(|status| *status == 0), "rank {me}: {good:?}");
            // Rank 1 has other weights when this step is captured.
            if me == 1 {
                stepper.head.set_weights_version(7);
            }
            let error = stepper.capture().map(drop).expect_err("a mismatch");
            assert!(matches!(error, Error::StepMismatch { .. }), "rank {me}: {error}");
            let text = error.to_string();
            assert!(text.contains("weights_version") && text.contains("[1]"), "rank {me}: {text}");
            assert!(matches!(stepper.step(), Err(Error::Poisoned { .. })), "rank {me}");
            drop(graph);
            meeting.wait();
            stepper.head.set_weights_version(7);
            stepper.head.rebuild().expect("a rebuilding");
            assert!(stepper.head.flight_recorder().fault().is_none(), "rank {me}");
            stepper.prepare();
            let graph = stepper.capture().expect("a graph");
            stepper.bring_rows(2);
            stepper.replay(&graph);
            assert!(stepper.statuses().iter().all(|status| *status == 0), "rank {me}");
            meeting.wait();
        });
    }
    all_are_destroyed();
}

/// The tensor-parallel ranks of a replica pass different rows.
#[test]
fn a_replicas_ranks_with_other_rows_are_named() {
    on_nccl("captured_faults::in_child_inputs", &[]);
}

#[test]
#[ignore = "needs the fake libraries: a_replicas_ranks_with_other_rows_are_named runs it"]
fn in_child_inputs() {
    let kind = CapturedKind { tp: 2, hidden: 33, ..KIND };
    for (request, filters) in [
        (kind.request, Filters::ByHost),
        (Request::sample(), Filters::None),
        (Request::sample(), Filters::ByDevice),
        (Request::logprobs(0), Filters::ByHost),
    ] {
        other_rows(CapturedKind { request, filters, ..kind });
    }
}

/// Rank 1 does not come to a step that nobody waits for.
#[test]
fn a_rank_that_does_not_come_to_an_asynchronous_step_is_named() {
    on_nccl("captured_faults::in_child_unwaited", &[]);
}

#[test]
#[ignore = "needs the fake libraries: a_rank_that_does_not_come_to_an_asynchronous_step_is_named runs it"]
fn in_child_unwaited() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let meeting = Barrier::new(3);
    each_ranked(3, |ranked| {
        let me = ranked.exchange.me();
        let mut stepper = Stepper::new(&ranked.device, ranked.exchange.clone(), KIND, TIMEOUT);
        stepper.asynchronous = true;
        stepper.bring_rows(1);
        stepper.step().expect("a step");
        assert!(stepper.statuses().iter().all(|status| *status == 0), "rank {me}");
        meeting.wait();
        if me != 1 {
            let began = Instant::now();
            stepper.step().expect("it is queued");
            let queued = began.elapsed();
            // Queued behind it, and not by rank 2, which is not to blame.
            if me == 0 {
                stepper.step().expect("it is queued");
            }
            ranked.device.wait(stepper.on()).expect("a stream that ends");
            assert!(began.elapsed() < TIMEOUT + Duration::from_secs(2), "rank {me}: {:?}", began.elapsed());
            assert!(queued < Duration::from_secs(1), "rank {me}: {queued:?}");
            let error = stepper.head.flight_recorder().fault().expect("a fault");
            let Error::Timeout { missing, .. } = &error else { panic!("rank {me}: {error}") };
            assert_eq!(missing[..], [1], "rank {me}: {error}");
            assert!(stepper.step().is_err(), "rank {me}");
        }
        meeting.wait();
    });
    all_are_destroyed();
}

/// Left-over contents of memory are not part of what a replica's ranks compare.
#[test]
fn a_rank_that_has_released_its_memory_agrees_with_its_replica() {
    on_nccl("captured_faults::in_child_released", &[]);
}

#[test]
#[ignore = "needs the fake libraries: a_rank_that_has_released_its_memory_agrees_with_its_replica runs it"]
fn in_child_released() {
    each_ranked(4, |ranked| {
        let mut stepper =
            Stepper::new(&ranked.device, ranked.exchange.clone(), CapturedKind { tp: 2, ..KIND }, SOON);
        stepper.bring_rows(1);
        if ranked.exchange.me() == 2 {
            stepper.head.release_memory();
        }
        stepper.prepare();
        let graph = stepper.capture().expect("a graph");
        stepper.replay(&graph);
        let statuses = stepper.statuses();
        assert!(statuses.iter().all(|status| *status == 0), "{statuses:?}");
        assert!(stepper.head.flight_recorder().fault().is_none());
    });
    all_are_destroyed();
}

fn other_rows(kind: CapturedKind) {
    each_ranked(4, |ranked| {
        let me = ranked.exchange.me();
        let mut stepper = Stepper::new(&ranked.device, ranked.exchange.clone(), kind, SOON);
        stepper.bring_rows(1);
        let graph = stepper.capture().expect("a graph");
        stepper.replay(&graph);
        assert!(stepper.statuses().iter().all(|status| *status == 0), "rank {me}");
        // Rank 1 passes other rows than rank 0 of the same replica. The other replica is idle.
        stepper.bring_rows(if me == 1 { 3 } else { 2 });
        stepper.replay(&graph);
        let poisoned = stepper.statuses();
        // The idle replica learns of it, too.
        assert!(poisoned.iter().all(|status| *status == 3), "rank {me}: {poisoned:?}");
        let fault = stepper.head.flight_recorder().fault().expect("a mismatch").to_string();
        let words = if me < 2 { "inputs of replica 0" } else { "ranks [1] say another header" };
        assert!(fault.contains(words), "rank {me}: {fault}");
    });
    all_are_destroyed();
}

/// The tensor-parallel ranks of a replica pass different adjustments.
#[test]
fn a_replicas_ranks_with_other_adjustments_are_named() {
    on_nccl("captured_faults::in_child_adjustments", &[]);
}

#[test]
#[ignore = "needs the fake libraries: a_replicas_ranks_with_other_adjustments_are_named runs it"]
fn in_child_adjustments() {
    let adjustments = DeviceAdjustments { allowed: true, logit_bias: 2, counts: 1 };
    each_ranked(4, |ranked| {
        let me = ranked.exchange.me();
        let kind = CapturedKind { tp: 2, adjustments, ..KIND };
        let mut stepper = Stepper::new(&ranked.device, ranked.exchange.clone(), kind, SOON);
        stepper.bring_biased(1, 3.0);
        let graph = stepper.capture().expect("a graph");
        stepper.replay(&graph);
        assert!(stepper.statuses().iter().all(|status| *status == 0), "rank {me}");
        stepper.bring_biased(1, if me == 1 { 2.0 } else { 3.0 });
        stepper.replay(&graph);
        let poisoned = stepper.statuses();
        assert!(poisoned.iter().all(|status| *status == 3), "rank {me}: {poisoned:?}");
        let fault = stepper.head.flight_recorder().fault().expect("a mismatch").to_string();
        let words = if me < 2 { "inputs of replica 0" } else { "ranks [1] say another header" };
        assert!(fault.contains(words), "rank {me}: {fault}");
    });
    all_are_destroyed();
}

/// Rank 1 does not replay: the others' streams end, and the head gives the reason.
#[test]
fn a_rank_that_does_not_replay_is_waited_for_until_the_deadline() {
    on_nccl("captured_faults::in_child_missing", &[]);
}

#[test]
#[ignore = "needs the fake libraries: a_rank_that_does_not_replay_is_waited_for_until_the_deadline runs it"]
fn in_child_missing() {
    const DEADLINE: Duration = Duration::from_secs(2);
    let meeting = Barrier::new(3);
    each_ranked(3, |ranked| {
        let me = ranked.exchange.me();
        let mut stepper = Stepper::new(&ranked.device, ranked.exchange.clone(), KIND, DEADLINE);
        stepper.bring_rows(1);
        let graph = stepper.capture().expect("a graph");
        stepper.replay(&graph);
        assert!(stepper.statuses().iter().all(|status| *status == 0), "rank {me}");
        meeting.wait();
        if me != 1 {
            let began = Instant::now();
            stepper.replay(&graph);
            ranked.device.wait(stepper.on()).expect("a stream that ends");
            let took = began.elapsed();
            assert!(took < DEADLINE + Duration::from_secs(1), "rank {me}: {took:?}");
            let fault = stepper.head.flight_recorder().fault().expect("a fault").to_string();
            let named = fault.contains("ranks [1] did not come within 2s");
            assert!(named || fault.contains("did not end on the device within 2s"), "rank {me}: {fault}");
            assert!(stepper.step().is_err(), "rank {me}");
        }
        meeting.wait();
        drop(graph);
        meeting.wait();
        stepper.head.rebuild().expect("a rebuilding");
        stepper.bring_rows(2);
        stepper.step().expect("a step");
        assert!(stepper.statuses().iter().all(|status| *status == 0), "rank {me}");
        meeting.wait();
    });
    all_are_destroyed();
}

#[test]
fn what_a_graph_cannot_have_is_refused() {
    on_nccl("captured_faults::in_child_refused", &[]);
}

#[test]
#[ignore = "needs the fake libraries: what_a_graph_cannot_have_is_refused runs it"]
fn in_child_refused() {
    each_ranked(1, |ranked| {
        let device = &ranked.device;
        let refused = |stepper: &mut Stepper<'_>, request: Request, words: &str| {
            let stream = stepper.on();
            let error = Graph::capture(device, stream, || stepper.step_of(request).map(drop));
            let error = error.map(drop).expect_err("refused").to_string();
            assert!(error.contains(words), "{error}");
        };
        let mut stepper = Stepper::new(device, ranked.exchange.clone(), KIND, SOON);
        refused(&mut stepper, Request::sample_with_logprobs(0), "a step for which no host waits");
        stepper.without_workspace();
        refused(&mut stepper, Request::Argmax, "workspace of a captured step");
        stepper.asynchronous = true;
        refused(&mut stepper, Request::Argmax, "got an asynchronous one");
    });
    each_ranked(2, |ranked| {
        let mut stepper = Stepper::new(&ranked.device, ranked.exchange.clone(), KIND, SOON);
        let options = StepOptions { on_device: true, asynchronous: true, ..StepOptions::default() };
        let error =
            stepper.head.begin(&RowCounts::discover(1), &Request::Argmax, options).expect_err("refused");
        assert!(error.to_string().contains("wanted a step that could be captured"), "{error}");
    });
    each_ranked(2, |ranked| {
        let me = ranked.exchange.me();
        let mut stepper = Stepper::new(&ranked.device, ranked.exchange.clone(), KIND, SOON);
        let options = StepOptions { on_device: true, ..StepOptions::default() };
        let exact = RowCounts::exact(&[1, 1]);
        let device_adjustments = DeviceAdjustments { allowed: true, logit_bias: 7, counts: 0 };
        for (counts, request, options, wanted) in [
            (RowCounts::capacity(5, 3), Request::Argmax, options, true),
            (RowCounts::capacity(5, 3), Request::Argmax, StepOptions { on_device: false, ..options }, false),
            (RowCounts::capacity(5, 3), Request::Argmax, StepOptions { adjusted: true, ..options }, false),
            (RowCounts::capacity(5, 3), Request::Argmax, StepOptions { device_adjustments, ..options }, true),
            (RowCounts::discover(3), Request::Argmax, options, false),
            (exact.clone(), Request::Argmax, options, true),
            (exact.clone(), Request::sample(), options, false),
            (exact.clone(), Request::sample(), StepOptions { filters: Filters::None, ..options }, true),
            (
                exact.clone(),
                Request::sample_with_logprobs(0),
                StepOptions { filters: Filters::ByDevice, ..options },
                true,
            ),
            (exact, Request::logprobs(3), options, true),
            // More rows than a chunk of logprobs holds.
            (RowCounts::capacity(1 << 30, 3), Request::logprobs(3), options, false),
        ] {
            assert_eq!(
                stepper.head.is_capturable(&counts, &request, options),
                wanted,
                "{counts:?} {request}"
            );
        }
        // More rows than were ever prepared.
        stepper.head.release_memory();
        let stream = stepper.on();
        let error = Graph::capture(&ranked.device, stream, || stepper.step().map(drop));
        let error = error.map(drop).expect_err("refused").to_string();
        assert!(error.contains("of a captured step") && error.contains("warm_up_on"), "rank {me}: {error}");
        assert!(matches!(stepper.step(), Err(Error::Poisoned { .. })), "rank {me}");
    });
    all_are_destroyed();
}
