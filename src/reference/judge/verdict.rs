//! What a judgement found: errors and mistakes.

use super::logsumexp_and_error;
use crate::dtype::DType;
use crate::reference::{Truth, judge_top_k, logsumexp_allowed, ratio};
use crate::result::{NO_TARGET_ID, OwnedAnswer, Request};
use serde::Serialize;

/// What was compared and how far it was off.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Verdict {
    /// Whether there are no mistakes.
    pub passed: bool,
    /// Whether every row and column was compared.
    pub everything: bool,
    /// Rows that were compared.
    pub rows: usize,
    /// Values that were compared.
    pub values: u64,
    /// Values that are rightly not finite, or belong to rows that rightly have no answer.
    pub not_finite: u64,
    /// Largest error of a value.
    pub largest_error: f64,
    /// The error allowed for the value with the largest one.
    pub allowed_there: f64,
    /// Largest error / allowed error of all values.
    pub worst_ratio: f64,
    /// Largest error of raw f32 logits in units of their rms, where the data is Gaussian.
    pub error_over_rms: Option<f64>,
    /// The limit of `error_over_rms`.
    pub rms_limit: f64,
    /// The first mistakes, in words.
    pub mistakes: Vec<String>,
    #[serde(skip)]
    rms: Rms,
}

/// The errors of raw f32 logits of rows that are good, for comparison with their root mean square.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Rms {
    /// Sum of the squares of so many logits.
    squares: f64,
    counted: u64,
    largest_error: f64,
}

impl Verdict {
    /// A verdict before any comparison.
    pub(super) fn new(everything: bool, rows: usize, rms_limit: f64) -> Self {
        Verdict {
            passed: true,
            everything,
            rows,
            values: 0,
            not_finite: 0,
            largest_error: 0.0,
            allowed_there: 0.0,
            worst_ratio: 0.0,
            error_over_rms: None,
            rms_limit,
            mistakes: Vec::new(),
            rms: Rms::default(),
        }
    }

    /// Judges the logits' errors by their root mean square, too, as is promised of Gaussian data.
    pub(super) fn judge_rms(&mut self) {
        let Rms { squares, counted, largest_error } = self.rms;
        if squares > 0.0 {
            let (over_rms, limit) = (largest_error / (squares / counted as f64).sqrt(), self.rms_limit);
            self.error_over_rms = Some(over_rms);
            if over_rms > limit {
                self.mistake(format!(
                    "the largest error is {over_rms:.2e} of the logits' rms, allowed {limit:.0e}"
                ));
            }
        }
    }

    pub(super) fn mistake(&mut self, text: String) {
        self.passed = false;
        if self.mistakes.len() < 5 {
            self.mistakes.push(text);
        }
    }

    pub(super) fn value(&mut self, error: f64, allowed: f64, what: impl Fn() -> String) {
        self.values += 1;
        let ratio = ratio(error, allowed);
        if error > self.largest_error || error.is_nan() {
            (self.largest_error, self.allowed_there) = (error, allowed);
        }
        self.worst_ratio = if ratio.is_nan() { f64::INFINITY } else { self.worst_ratio.max(ratio) };
        // Not "error > allowed": NaN must fail.
        let within = error <= allowed;
        if !within {
            self.mistake(format!("{}, error {error:.3e}, allowed {allowed:.3e}", what()));
        }
    }

    /// Compares the logit of a row and an id. `good`: the row's status is.
    pub(super) fn logit(
        &mut self,
        (row, id): (usize, usize),
        got: f64,
        truth: &Truth,
        dtype: DType,
        good: bool,
    ) {
        let (error, allowed) = if !truth.logit.is_finite() {
            self.not_finite += 1;
            let same = got == truth.logit || (got.is_nan() && truth.logit.is_nan());
            (if same { 0.0 } else { f64::INFINITY }, 0.0)
        } else if !truth.raw.is_finite() {
            // The softcap of an infinity is the cap, up to the rounding of tanh, product and scale.
            let near = Truth { allowed: 8.0 * f64::from(f32::EPSILON) * truth.logit.abs(), ..*truth };
            (near.error_of(got, dtype), near.allowed_as(dtype))
        } else if truth.may_overflow() && !got.is_finite() {
            self.not_finite += 1;
            (0.0, 0.0)
        } else {
            (truth.error_of(got, dtype), truth.allowed_as(dtype))
        };
        self.value(error, allowed, || format!("row {row}, id {id}: {got}, truth {}", truth.logit));
        if dtype == DType::F32 && good && truth.logit.is_finite() {
            self.rms.squares += truth.logit * truth.logit;
            self.rms.counted += 1;
            self.rms.largest_error = self.rms.largest_error.max(error);
        }
    }

    /// A row whose status is not good must answer id -1 and NaN, for every request but all logits.
    pub(super) fn unanswered(&mut self, row: usize, answer: &OwnedAnswer) {
        let told = &answer.logprobs;
        let ids = [&answer.ids, &told.ranks, &told.top_ids].map(|ids| answer.row(ids, row));
        let floats = [&answer.values, &answer.logsumexp, &told.logprobs, &told.top_logprobs];
        let floats = floats.map(|floats| answer.row(floats, row)).concat();
        let tokens = matches!(answer.request, Request::Argmax | Request::Sample { .. });
        let values = floats.len() as u64 + u64::from(tokens);
        self.values += values;
        self.not_finite += values;
        if ids.concat().iter().any(|id| *id != -1) || !floats.iter().all(|value| value.is_nan()) {
            self.mistake(format!("row {row}: answered although its status is not good"));
        }
    }

    /// Compares the logprobs and ranks of a row's targets, and its best ids.
    pub(super) fn logprobs(&mut self, row: usize, truths: &[Truth], targets: &[i64], answer: &OwnedAnswer) {
        let told = &answer.logprobs;
        let top_ids = answer.row(&told.top_ids, row);
        self.best(row, truths, top_ids, None);
        let (lse, moved) = logsumexp_and_error(truths);
        let logprob = |report: &mut Self, id: usize, got: f32| {
            let (truth, got) = (truths[id].logit - lse, f64::from(got));
            if truth == f64::NEG_INFINITY {
                let error = if got == truth { 0.0 } else { f64::INFINITY };
                report.value(error, 0.0, || format!("row {row}, id {id}: logprob {got}, not allowed"));
                return;
            }
            let of_lse = logsumexp_allowed(lse, truths.len());
            let allowed = truths[id].allowed + moved + of_lse + DType::F32.half_ulp(truth.abs());
            report.value((got - truth).abs(), allowed, || {
                format!("row {row}, id {id}: logprob {got}, truth {truth}")
            });
        };
        for (&id, &got) in top_ids.iter().zip(answer.row(&told.top_logprobs, row)) {
            match usize::try_from(id).ok().filter(|id| *id < truths.len()) {
                Some(id) => logprob(self, id, got),
                // An unused entry. `best` checks that its id is -1.
                None if got == f32::NEG_INFINITY => self.values += 1,
                None => self.mistake(format!("row {row}: logprob {got} of no id")),
            }
        }
        let own = answer.row(&told.logprobs, row).iter().zip(answer.row(&told.ranks, row));
        for (&target, (&got, &rank)) in targets.iter().zip(own) {
            if target == NO_TARGET_ID {
                self.values += 2;
                self.not_finite += 2;
                if !got.is_nan() || rank != -1 {
                    self.mistake(format!("row {row}: logprob {got}, rank {rank} of no target"));
                }
                continue;
            }
            // Targets were checked before, and so were sampled tokens.
            let target = target as usize;
            logprob(self, target, got);
            self.rank(row, truths, target, rank);
        }
    }

    /// Compares the rank of a target. Ids within rounding error of it may count either way.
    fn rank(&mut self, row: usize, truths: &[Truth], target: usize, rank: i64) {
        let own = truths[target];
        // Ids that surely beat the target, and those that may.
        let others = || truths.iter().enumerate().filter(|(id, _)| *id != target);
        let sure = others().filter(|(_, t)| t.logit - t.allowed > own.logit + own.allowed).count() as i64;
        let perhaps = others()
            .filter(|(id, t)| match own.logit == f64::NEG_INFINITY && t.logit == f64::NEG_INFINITY {
                true => *id < target,
                false => t.logit + t.allowed >= own.logit - own.allowed,
            })
            .count() as i64;
        self.values += 1;
        if !(1 + sure..=1 + perhaps).contains(&rank) {
            self.mistake(format!(
                "row {row}: rank {rank} of target {target}, wanted {} to {}",
                1 + sure,
                1 + perhaps
            ));
        }
    }

    pub(super) fn best(&mut self, row: usize, truths: &[Truth], ids: &[i64], values: Option<&[f32]>) {
        // Entries beyond the allowed ids hold -1 and minus infinity.
        let allowed = truths.iter().filter(|t| t.logit > f64::NEG_INFINITY).count().min(ids.len());
        let rest_is_empty = ids[allowed..].iter().all(|id| *id == -1)
            && values.is_none_or(|v| v[allowed..].iter().all(|v| *v == f32::NEG_INFINITY));
        if !rest_is_empty {
            self.mistake(format!("row {row}: {allowed} ids are allowed, more were answered"));
            return;
        }
        let (ids, values) = (&ids[..allowed], values.map(|v| &v[..allowed]));
        if let Err(text) = judge_top_k(truths, ids, values) {
            self.values += ids.len() as u64;
            self.mistake(format!("row {row}: {text}"));
            return;
        }
        match values {
            None => self.values += ids.len() as u64,
            Some(values) => {
                for (&id, &value) in ids.iter().zip(values) {
                    let truth = &truths[id as usize];
                    self.value((f64::from(value) - truth.logit).abs(), truth.allowed, || {
                        format!("row {row}, id {id}: {value}, truth {}", truth.logit)
                    });
                }
            }
        }
    }
}
