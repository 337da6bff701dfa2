//! Right answers pass, and every kind of wrong one fails.

use super::*;
use crate::config::Quantization;
use crate::reference::{self, top_k};
use crate::result::{AnswerBuffers, Logprobs, NO_TARGET_ID};
use crate::sampling::SamplingParams;
use crate::weights::synthetic;

const ROWS: usize = 3;
const SEED: u64 = 11;

/// An answer, and what it is judged by.
struct Case {
    answer: OwnedAnswer,
    /// `[ROWS, hidden]`.
    bytes: Vec<u8>,
    dtype: DType,
    targets: Vec<i64>,
    sampling: Vec<SamplingParams>,
    shards: Vec<Arc<HeadShard>>,
    config: HeadConfig,
}

impl Case {
    fn judge_of(&self) -> Judge<'_> {
        let Case { shards, config, .. } = self;
        Judge { shards, config, gaussian: true, flushes: false, accuracy: Accuracy::Rounded }
    }

    fn row(&self, row: usize) -> &[u8] {
        let size = self.config.hidden_size * self.dtype.size();
        &self.bytes[row * size..(row + 1) * size]
    }

    /// The true logits of a row, and whether the row is finite.
    fn truths(&self, row: usize) -> (Vec<Truth>, bool) {
        let everything: Vec<usize> = (0..self.config.vocab_size).collect();
        self.judge_of().truths(self.row(row), self.dtype, &everything).unwrap()
    }

    fn inputs(&self) -> RowInputs<'_> {
        let request = self.answer.request;
        RowInputs {
            targets: matches!(request, Request::Logprobs { .. }).then_some(&self.targets[..]),
            sampling: matches!(request, Request::Sample { .. }).then_some(&self.sampling[..]),
            ..RowInputs::default()
        }
    }

    fn judge(&self) -> Verdict {
        let rows = self.answer.rows();
        let hidden = HiddenRows::new(&self.bytes, self.dtype, rows, self.config.hidden_size).unwrap();
        self.judge_of().judge(&self.answer, hidden, &self.inputs(), SEED).unwrap()
    }
}

/// A small head in two shards, rows, and the answer that the reference itself gives, rounded to f32.
fn right_answer(request: Request) -> Case {
    let preset = synthetic::preset("tiny").unwrap();
    let config = HeadConfig::new(preset.vocab_size, preset.hidden_size);
    let cuts = [0..512, 512..preset.vocab_size];
    let shard = |ids| synthetic::shard(&preset.spec(), SEED, ids, Quantization::None, None).unwrap();
    let of_a_row = if let Request::Logprobs { targets, .. } = request { targets } else { 1 };
    // If a row has several targets, the last one is "no target".
    let target = |i: usize| match of_a_row > 1 && (i + 1).is_multiple_of(of_a_row) {
        true => NO_TARGET_ID,
        false => (i * 137 % config.vocab_size) as i64,
    };
    let mut case = Case {
        answer: OwnedAnswer::new(&request, ROWS, config.vocab_size).unwrap(),
        bytes: (0..ROWS as u64)
            .flat_map(|row| synthetic::hidden_row(SEED, row, preset.hidden_size, preset.dtype))
            .collect(),
        dtype: preset.dtype,
        targets: (0..ROWS * of_a_row).map(target).collect(),
        sampling: (0..ROWS as u64)
            .map(|position| SamplingParams { position, ..SamplingParams::default() })
            .collect(),
        shards: cuts.into_iter().map(|ids| Arc::new(shard(ids))).collect(),
        config,
    };
    for row in 0..ROWS {
        let logits: Vec<f64> = case.truths(row).0.iter().map(|t| t.logit).collect();
        let wide: Vec<f32> = logits.iter().map(|l| *l as f32).collect();
        let own = row * of_a_row..(row + 1) * of_a_row;
        let answer = &mut case.answer;
        match request {
            Request::Logits { dtype } => {
                let stride = wide.len() * dtype.size();
                dtype.round_into(&wide, &mut answer.logits[row * stride..(row + 1) * stride]);
            }
            Request::Argmax => answer.ids[row] = top_k(&logits, 1)[0] as i64,
            Request::Sample { logprobs } => {
                answer.ids[row] = reference::sample(&wide, &case.sampling[row]).unwrap() as i64;
                if logprobs.is_some() {
                    tell(&mut answer.logprobs, row, &logits, &answer.ids[row..=row]);
                }
            }
            Request::TopK { k } => {
                for (place, id) in top_k(&logits, k).into_iter().enumerate() {
                    answer.ids[row * k + place] = id as i64;
                    answer.values[row * k + place] = logits[id] as f32;
                }
                answer.logsumexp[row] = logsumexp(&logits) as f32;
            }
            Request::Logprobs { .. } => tell(&mut answer.logprobs, row, &logits, &case.targets[own]),
        }
    }
    case
}

/// Fills in a row's targets and best ids from the definitions.
fn tell(told: &mut Logprobs, row: usize, logits: &[f64], targets: &[i64]) {
    let lse = logsumexp(logits);
    let order = top_k(logits, logits.len());
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

/// Whether the answer passes after `spoil`.
fn passes(request: Request, spoil: impl FnOnce(&mut OwnedAnswer)) -> bool {
    let mut case = right_answer(request);
    spoil(&mut case.answer);
    let verdict = case.judge();
    assert_eq!(verdict.passed, verdict.mistakes.is_empty());
    assert!(verdict.everything && verdict.rows == ROWS);
    verdict.passed
}

fn set_status(answer: &mut OwnedAnswer, row: usize, status: RowStatus) {
    let AnswerBuffers { row_status, .. } = answer.buffers();
    row_status.into_host().unwrap()[row] = status as u8;
}

fn set_logit(answer: &mut OwnedAnswer, at: usize, change: impl FnOnce(f32) -> f32) {
    let Request::Logits { dtype } = answer.request else { unreachable!() };
    let (size, value) = (dtype.size(), dtype.read(&answer.logits, at));
    dtype.round_into(&[change(value)], &mut answer.logits[at * size..(at + 1) * size]);
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
        assert!(!passes(request, |a| set_status(a, 1, RowStatus::NonFinite)), "{dtype}");
    }
    assert!(
        !passes(Request::logits(DType::F32), |a| set_logit(a, 5, |v| v + 5e-4)),
        "beyond 5e-5 of the rms"
    );
    assert!(passes(Request::argmax(), |_| ()));
    assert!(!passes(Request::argmax(), |a| a.ids[2] = (a.ids[2] + 1) % 1000));
    let top = Request::top_k(4);
    assert!(passes(top, |_| ()));
    assert!(!passes(top, |a| a.ids.swap(4, 5)));
    assert!(!passes(top, |a| a.values[3] += 0.06));
    assert!(!passes(top, |a| a.logsumexp[0] += 0.06));
    assert!(!passes(top, |a| a.logsumexp[0] = f32::NAN));
}

/// The last column of row 1 of the hidden states is replaced by `value`, and the answer by what the reference
/// makes of it.
#[test]
fn rows_that_are_not_finite_are_compared_value_by_value() {
    let with = |value: f32, request: Request, spoil: &dyn Fn(&mut OwnedAnswer)| {
        let mut case = right_answer(request);
        let size = case.row(1).len();
        let last = 2 * size - case.dtype.size()..2 * size;
        case.dtype.round_into(&[value], &mut case.bytes[last]);
        let (truths, finite) = case.truths(1);
        assert!(!finite);
        let Case { answer, config, .. } = &mut case;
        match request {
            Request::Logits { .. } => {
                for (id, truth) in truths.iter().enumerate() {
                    set_logit(answer, config.vocab_size + id, |_| truth.logit as f32);
                }
            }
            _ => answer.ids[1] = -1,
        }
        set_status(answer, 1, RowStatus::NonFinite);
        spoil(answer);
        case.judge()
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
    let one = with(f32::NAN, Request::argmax(), &|a| a.ids[1] = 4);
    assert!(one.mistakes.iter().any(|m| m.contains("row 1: answered although")), "{:?}", one.mistakes);
}

#[test]
fn comparing_nothing_is_no_pass() {
    let mut case = right_answer(Request::argmax());
    case.answer = OwnedAnswer::new(&Request::argmax(), 0, case.config.vocab_size).unwrap();
    case.bytes.clear();
    let verdict = case.judge();
    assert!(!verdict.passed && verdict.values == 0);
    assert_eq!(verdict.mistakes, ["nothing was compared: there are 0 output rows"]);
}

#[test]
fn a_token_that_cannot_be_sampled_fails() {
    let request = Request::sample();
    let spoil = |id: i64| passes(request, |answer| answer.ids[1] = if id < 0 { answer.ids[1] } else { id });
    assert!(spoil(-1), "the right one");
    // The row's noise draws one id; every other is wrong.
    let wrong = (0..1000).filter(|id| !spoil(*id)).count();
    assert_eq!(wrong, 999);
}

#[test]
fn what_is_told_of_no_target_fails() {
    let request = Request::Logprobs { targets: 3, top_n: 1, processed: false };
    let spoil = |change: fn(&mut Logprobs)| passes(request, |answer| change(&mut answer.logprobs));
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
        let spoil = |change: fn(&mut Logprobs)| passes(request, |answer| change(&mut answer.logprobs));
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

#[test]
fn what_does_not_belong_together_is_refused_by_name() {
    let request = Request::Logprobs { targets: 3, top_n: 1, processed: false };
    let said = |spoil: &dyn Fn(&mut Case), rows: usize| {
        let mut case = right_answer(request);
        spoil(&mut case);
        let hidden = HiddenRows::new(&case.bytes, case.dtype, ROWS, case.config.hidden_size).unwrap();
        let judged = case.judge_of().judge(&case.answer, hidden.range(0..rows), &case.inputs(), SEED);
        judged.unwrap_err().to_string()
    };
    let text = said(&|case| case.shards.reverse(), ROWS);
    assert!(text.starts_with("shards: wanted those of ids 0..1000, in this order"), "{text}");
    let text = said(&|case| case.shards.truncate(1), ROWS);
    assert!(text.contains("got [0..512], and an answer over 1000 ids"), "{text}");
    let text = said(&|case| case.answer = OwnedAnswer::new(&request, ROWS, 999).unwrap(), ROWS);
    assert!(text.contains("and an answer over 999 ids"), "{text}");
    assert!(said(&|_| (), 2).starts_with("hidden_states: wanted 3 rows, got 2"));
    assert!(
        said(&|case| case.targets[4] = 1000, ROWS).contains("target of row 1: wanted an id from 0 to 999")
    );
    assert!(said(&|case| case.targets.truncate(8), ROWS).contains("targets: wanted 9 ids"));
}
