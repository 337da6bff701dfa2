//! Tests of the check: right answers pass, and every kind of wrong one fails.

use super::*;
use lmhead::config::Quantization;
use lmhead::result::{Logprobs, NO_TARGET_ID, Request};
use lmhead::sampling::SamplingParams;
use lmhead::weights::synthetic;

const ROWS: usize = 3;
const SEED: u64 = 11;
const DATA: Data = Data { gaussian: true, flushes: false, accuracy: Accuracy::Rounded };

/// A small head in two shards, rows, and the answer that the reference itself gives, rounded to f32.
fn right_answer(request: Request) -> (Assembled, Rows, Vec<Arc<HeadShard>>, HeadConfig) {
    let preset = synthetic::preset("tiny").unwrap();
    let config = HeadConfig::new(preset.vocab_size, preset.hidden_size);
    let cuts = [0..512, 512..preset.vocab_size];
    let shard = |ids| synthetic::shard(&preset.spec(), SEED, ids, Quantization::None, None).unwrap();
    let shards: Vec<Arc<HeadShard>> = cuts.into_iter().map(|ids| Arc::new(shard(ids))).collect();
    let bytes = (0..ROWS as u64)
        .flat_map(|row| synthetic::hidden_row(SEED, row, preset.hidden_size, preset.dtype))
        .collect();
    let data = crate::row_data::RowData::synthetic(SEED, ROWS, config.vocab_size, &request)
        .sampled(matches!(request, Request::Sample { .. }).then(SamplingParams::default), ROWS);
    let data = match request {
        // The last target of each row is NO_TARGET_ID.
        Request::Logprobs { targets, .. } if targets > 1 => {
            let id =
                |i| if (i + 1) % targets == 0 { NO_TARGET_ID } else { (i * 137 % config.vocab_size) as i64 };
            data.with_targets((0..ROWS * targets).map(id).collect(), targets)
        }
        _ => data,
    };
    let origin = "test".into();
    let rows = Rows { bytes, dtype: preset.dtype, origin, counts: vec![ROWS], indices: None, data };
    let mut answer = Assembled::new(&request, ROWS, config.vocab_size).unwrap();
    let everything: Vec<usize> = (0..config.vocab_size).collect();
    let size = config.hidden_size * rows.dtype.size();
    for row in 0..ROWS {
        let own = &rows.bytes[row * size..(row + 1) * size];
        let (truths, _) = truths(&shards, &config, own, rows.dtype, &everything, DATA).unwrap();
        let logits: Vec<f64> = truths.iter().map(|t| t.logit).collect();
        match &mut answer.output {
            Output::Logits { dtype, vocab_size, bytes } => {
                let wide: Vec<f32> = logits.iter().map(|l| *l as f32).collect();
                let stride = *vocab_size * dtype.size();
                dtype.round_into(&wide, &mut bytes[row * stride..(row + 1) * stride]);
            }
            Output::Argmax { ids } => ids[row] = reference::top_k(&logits, 1)[0] as i64,
            Output::Sample { ids, logprobs } => {
                let wide: Vec<f32> = logits.iter().map(|l| *l as f32).collect();
                let params = rows.data.with(|inputs| inputs.sampling.unwrap()[row]);
                ids[row] = reference::sample(&wide, &params).unwrap() as i64;
                logprobs.iter_mut().for_each(|told| tell(told, row, &logits, &ids[row..=row]));
            }
            Output::TopK { k, values, ids, logsumexp } => {
                for (place, id) in reference::top_k(&logits, *k).into_iter().enumerate() {
                    ids[row * *k + place] = id as i64;
                    values[row * *k + place] = logits[id] as f32;
                }
                logsumexp[row] = reference::logsumexp(&logits) as f32;
            }
            Output::Logprobs(told) => rows.data.with(|inputs| {
                let own = row * told.targets..(row + 1) * told.targets;
                tell(told, row, &logits, &inputs.targets.unwrap()[own]);
            }),
            _ => unreachable!(),
        }
    }
    (answer, rows, shards, config)
}

/// Fills in a row's targets and best ids from the definitions.
fn tell(told: &mut Logprobs, row: usize, logits: &[f64], targets: &[i64]) {
    let lse = reference::logsumexp(logits);
    let order = reference::top_k(logits, logits.len());
    for (place, target) in (row * told.targets..).zip(targets) {
        if *target == NO_TARGET_ID {
            (told.logprobs[place], told.ranks[place]) = (f32::NAN, -1);
            continue;
        }
        told.logprobs[place] = (logits[*target as usize] - lse) as f32;
        told.ranks[place] = 1 + order.iter().position(|id| *id as i64 == *target).unwrap() as i64;
    }
    for (place, id) in (row * told.top_n..(row + 1) * told.top_n).zip(order) {
        told.top_ids[place] = id as i64;
        told.top_logprobs[place] = (logits[id] - lse) as f32;
    }
}

/// Whether the check passes after `spoil`.
fn passes(request: Request, spoil: impl FnOnce(&mut Assembled)) -> bool {
    let (mut answer, rows, shards, config) = right_answer(request);
    spoil(&mut answer);
    let report = check(&answer, &request, &rows, &shards, &config, SEED, DATA).unwrap();
    assert_eq!(report.passed, report.mistakes.is_empty());
    assert!(report.everything && report.rows == ROWS);
    report.passed
}

fn set_logit(answer: &mut Assembled, at: usize, change: impl FnOnce(f32) -> f32) {
    let Output::Logits { dtype, bytes, .. } = &mut answer.output else { unreachable!() };
    let (size, value) = (dtype.size(), dtype.read(bytes, at));
    dtype.round_into(&[change(value)], &mut bytes[at * size..(at + 1) * size]);
}

#[test]
fn an_infinity_is_right_exactly_where_rounding_makes_one() {
    let truth = |logit: f64| Truth { logit, allowed: 1.0, raw: logit, raw_allowed: 1.0 };
    assert_eq!(truth(70_000.0).error_of(f64::INFINITY, DType::F16), 0.0);
    assert_eq!(truth(65_519.5).error_of(f64::INFINITY, DType::F16), 0.0, "within the allowed error");
    assert_eq!(truth(65_000.0).error_of(f64::INFINITY, DType::F16), f64::INFINITY);
    assert_eq!(truth(70_000.0).error_of(f64::NEG_INFINITY, DType::F16), f64::INFINITY);
    assert!(truth(70_000.0).error_of(65_504.0, DType::F16) > truth(70_000.0).allowed_as(DType::F16));
    assert!(truth(1e39).may_overflow() && !truth(1e37).may_overflow());
    assert!(Truth { logit: 1.0, ..truth(1e39) }.may_overflow(), "a softcap hides nothing");
}

#[test]
fn the_right_answer_passes_and_every_kind_of_wrong_one_fails() {
    for dtype in [DType::F32, DType::Bf16, DType::F16] {
        let request = Request::logits(dtype);
        assert!(passes(request, |_| ()));
        // The last column of the last row, off by 2 % of a typical logit: more than any rounding.
        assert!(!passes(request, |a| set_logit(a, ROWS * 1000 - 1, |v| v + 0.06)), "{dtype}");
        assert!(!passes(request, |a| set_logit(a, 1700, |_| f32::NAN)), "{dtype}");
        assert!(!passes(request, |a| a.row_status[1] = RowStatus::NonFinite as u8), "{dtype}");
    }
    assert!(
        !passes(Request::logits(DType::F32), |a| set_logit(a, 5, |v| v + 5e-4)),
        "beyond 5e-5 of the rms"
    );
    assert!(passes(Request::argmax(), |_| ()));
    let spoil_id = |answer: &mut Assembled| {
        let Output::Argmax { ids } = &mut answer.output else { unreachable!() };
        ids[2] = (ids[2] + 1) % 1000;
    };
    assert!(!passes(Request::argmax(), spoil_id));
    let top = Request::top_k(4);
    assert!(passes(top, |_| ()));
    fn parts(answer: &mut Assembled) -> (&mut Vec<f32>, &mut Vec<i64>, &mut Vec<f32>) {
        let Output::TopK { values, ids, logsumexp, .. } = &mut answer.output else { unreachable!() };
        (values, ids, logsumexp)
    }
    assert!(!passes(top, |a| parts(a).1.swap(4, 5)));
    assert!(!passes(top, |a| parts(a).0[3] += 0.06));
    assert!(!passes(top, |a| parts(a).2[0] += 0.06));
    assert!(!passes(top, |a| parts(a).2[0] = f32::NAN));
}

/// The last column of row 1 of the hidden states is replaced by `value`, and the answer by what the reference
/// makes of it.
#[test]
fn rows_that_are_not_finite_are_compared_value_by_value() {
    let with = |value: f32, request: Request, spoil: &dyn Fn(&mut Assembled)| {
        let (mut answer, mut rows, shards, config) = right_answer(Request::logits(DType::F32));
        let size = config.hidden_size * rows.dtype.size();
        rows.dtype.round_into(&[value], &mut rows.bytes[2 * size - rows.dtype.size()..2 * size]);
        let everything: Vec<usize> = (0..config.vocab_size).collect();
        let own = &rows.bytes[size..2 * size];
        let (truths, finite) = truths(&shards, &config, own, rows.dtype, &everything, DATA).unwrap();
        assert!(!finite);
        match request {
            Request::Logits { .. } => {
                for (id, truth) in truths.iter().enumerate() {
                    set_logit(&mut answer, config.vocab_size + id, |_| truth.logit as f32);
                }
            }
            _ => answer.output = Output::Argmax { ids: vec![0, -1, 0] },
        }
        answer.row_status[1] = RowStatus::NonFinite as u8;
        spoil(&mut answer);
        check(&answer, &request, &rows, &shards, &config, SEED, DATA).unwrap()
    };
    let logits = Request::logits(DType::F32);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let report = with(value, logits, &|_| ());
        assert!(report.passed, "{:?}", report.mistakes);
        assert_eq!((report.values, report.not_finite), (3000, 1000));
        let wrong = |change: fn(f32) -> f32| !with(value, logits, &|a| set_logit(a, 1007, change)).passed;
        assert!(wrong(|_| 0.5), "{value}: a number");
        assert!(wrong(|v| if v.is_nan() { f32::INFINITY } else { f32::NAN }), "{value}");
        assert!(wrong(|v| if v.is_nan() { f32::NEG_INFINITY } else { -v }), "{value}: the other sign");
    }
    let report = with(f32::NAN, Request::argmax(), &|_| ());
    assert_eq!((report.values, report.not_finite), (3, 1));
    let one = with(f32::NAN, Request::argmax(), &|a| a.output = Output::Argmax { ids: vec![0, 4, 0] });
    assert!(one.mistakes.iter().any(|m| m.contains("row 1: answered although")), "{:?}", one.mistakes);
}

#[test]
fn comparing_nothing_is_no_pass() {
    let (_, mut rows, shards, config) = right_answer(Request::argmax());
    (rows.counts, rows.bytes) = (vec![0], Vec::new());
    let answer = Assembled::new(&Request::argmax(), 0, config.vocab_size).unwrap();
    let report = check(&answer, &Request::argmax(), &rows, &shards, &config, SEED, DATA).unwrap();
    assert!(!report.passed && report.values == 0);
    assert_eq!(report.mistakes, ["nothing was compared: there are 0 output rows"]);
}

#[test]
fn a_token_that_cannot_be_sampled_fails() {
    let request = Request::sample();
    let spoil = |id: i64| {
        passes(request, |answer| {
            let Output::Sample { ids, .. } = &mut answer.output else { unreachable!() };
            ids[1] = if id < 0 { ids[1] } else { id };
        })
    };
    assert!(spoil(-1), "the right one");
    // The row's noise draws one id; every other is wrong.
    let wrong = (0..1000).filter(|id| !spoil(*id)).count();
    assert_eq!(wrong, 999);
}

#[test]
fn what_is_told_of_no_target_fails() {
    let request = Request::Logprobs { targets: 3, top_n: 1, processed: false };
    let spoil = |change: fn(&mut Logprobs)| {
        passes(request, |answer| {
            let Output::Logprobs(told) = &mut answer.output else { unreachable!() };
            change(told);
        })
    };
    assert!(spoil(|_| ()));
    assert!(!spoil(|told| told.logprobs[2] = -1.0));
    assert!(!spoil(|told| told.ranks[5] = 1));
    // A real target in the same row.
    assert!(!spoil(|told| told.logprobs[4] -= 0.06));
    assert!(!spoil(|told| told.ranks[7] += 1));
}

/// The status of a row whose logits round to infinity is 1; within the allowed error it may be either.
#[test]
fn an_overflow_is_that_of_the_delivered_type() {
    let of = |logit: f64, dtype| {
        let truth = Truth { logit, allowed: 1.0, raw: logit, raw_allowed: 1.0 };
        let small = Truth { logit: 0.5, raw: 0.5, ..truth };
        Overflow::of_delivered(&[small, truth, small], dtype)
    };
    for (logit, f16) in [
        (70_000.0, Overflow::Surely),
        (-70_000.0, Overflow::Surely),
        (65_520.5, Overflow::Perhaps),
        (-65_519.5, Overflow::Perhaps),
        (65_504.0, Overflow::No),
        (f64::NEG_INFINITY, Overflow::No),
    ] {
        assert!(of(logit, DType::F16) == f16, "{logit}");
        assert!(of(logit, DType::Bf16) == Overflow::No && of(logit, DType::F32) == Overflow::No, "{logit}");
    }
    // Between bf16's largest number and f32's.
    assert!(of(3.4e38, DType::Bf16) == Overflow::Surely && of(3.4e38, DType::F32) == Overflow::No);
}

#[test]
fn wrong_logprobs_and_ranks_fail() {
    for request in [Request::logprobs(3), Request::sample_with_logprobs(3)] {
        let spoil = |change: fn(&mut Logprobs)| {
            passes(request, |answer| match &mut answer.output {
                Output::Logprobs(told) | Output::Sample { logprobs: Some(told), .. } => change(told),
                _ => unreachable!(),
            })
        };
        assert!(spoil(|_| ()));
        assert!(!spoil(|told| told.logprobs[1] += 0.06));
        assert!(!spoil(|told| told.logprobs[2] = f32::NAN));
        assert!(!spoil(|told| told.ranks[0] += 1));
        assert!(!spoil(|told| told.ranks[2] = 0));
        assert!(!spoil(|told| told.top_ids.swap(0, 1)));
        assert!(!spoil(|told| told.top_ids[8] = -1));
        assert!(!spoil(|told| told.top_logprobs[4] -= 0.06));
    }
}
