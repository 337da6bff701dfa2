//! The result of a check: errors, mistakes, and the verdict as a sentence.

use lmhead::dtype::DType;
use lmhead::reference::{self, Truth};
use lmhead::result::{Logprobs, NO_TARGET_ID, Output};
use serde::Serialize;

/// What was compared and how far it was off.
#[derive(Serialize)]
pub struct CheckReport {
    pub passed: bool,
    /// Whether every row and column was compared.
    pub everything: bool,
    pub rows: usize,
    pub values: u64,
    /// Values that are rightly not finite, or belong to rows that rightly have no answer.
    pub not_finite: u64,
    /// Largest error, and the error allowed for that value.
    pub largest_error: f64,
    pub allowed_there: f64,
    /// Largest error / allowed error of all values.
    pub worst_ratio: f64,
    /// Largest error of raw f32 logits in units of their rms, where the data is Gaussian.
    pub error_over_rms: Option<f64>,
    /// The limit of `error_over_rms`.
    pub rms_limit: f64,
    /// The first mistakes, in words.
    pub mistakes: Vec<String>,
}

const TOKENS: &str = "no token that a filter surely excludes or another surely beats";

impl CheckReport {
    /// The verdict in a sentence.
    pub fn sentence(&self, request: &str, quantization: &str) -> String {
        let verdict = if self.passed { "check passed" } else { "CHECK FAILED" };
        // The error of quantisation is not an error of the computation, and not measured here.
        let truth = match quantization {
            "none" => "float64".to_string(),
            how => format!("float64 arithmetic on the {how} head"),
        };
        let extent = if self.everything { "everything" } else { "a seeded sample" };
        let found = match (request, self.error_over_rms) {
            _ if self.values == 0 => "nothing was compared".into(),
            ("argmax", _) => "no id that another beats by more than rounding".into(),
            (sampled, _) if sampled.starts_with("sample with") => format!(
                "{TOKENS}; largest error of a logprob {:.1e} (no correct sum exceeds {:.1e})",
                self.largest_error, self.allowed_there
            ),
            (sampled, _) if sampled.starts_with("sample") => TOKENS.into(),
            (_, Some(over)) => format!(
                "largest error {over:.1e} of the logits' rms, allowed {:.0e}; \
                 largest absolute error {:.1e} (no correct sum exceeds {:.1e})",
                self.rms_limit, self.largest_error, self.allowed_there
            ),
            (_, None) => format!(
                "largest absolute error {:.1e} (no correct sum exceeds {:.1e}); nearest to its bound: {:.1e} of it",
                self.largest_error, self.allowed_there, self.worst_ratio
            ),
        };
        let broken = match self.not_finite {
            0 => String::new(),
            n => format!(", {n} of them not finite or without an answer, as in the truth"),
        };
        let (values, rows) = (self.values, self.rows);
        format!("{verdict} against {truth} ({extent}: {values} values of {rows} rows{broken}): {found}")
    }

    pub(super) fn mistake(&mut self, text: String) {
        self.passed = false;
        if self.mistakes.len() < 5 {
            self.mistakes.push(text);
        }
    }

    pub(super) fn value(&mut self, error: f64, allowed: f64, what: impl Fn() -> String) {
        self.values += 1;
        let ratio = reference::ratio(error, allowed);
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

    /// Compares a logit; returns its error, infinite where a non-finite logit does not match the truth.
    pub(super) fn logit(&mut self, row: usize, id: usize, got: f64, truth: &Truth, dtype: DType) -> f64 {
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
        error
    }

    /// A row whose status is not good must answer id -1 and NaN, for every request but all logits.
    pub(super) fn unanswered(&mut self, row: usize, output: &Output) {
        let nothing_told = |told: &Logprobs| {
            let (own, top) = (told.targets * row..told.targets * (row + 1), top_of(told, row));
            let none = told.logprobs[own.clone()].iter().chain(&told.top_logprobs[top.clone()]);
            let good = none.copied().all(f32::is_nan)
                && told.ranks[own].iter().chain(&told.top_ids[top]).all(|number| *number == -1);
            (good, told.targets + told.top_n)
        };
        let (good, values) = match output {
            Output::Argmax { ids } | Output::Sample { ids, logprobs: None } => (ids[row] == -1, 1),
            Output::Sample { ids, logprobs: Some(told) } => {
                let (good, values) = nothing_told(told);
                (good && ids[row] == -1, values + 1)
            }
            Output::TopK { k, values, ids, logsumexp } => {
                let own = row * k..(row + 1) * k;
                let good = ids[own.clone()].iter().all(|id| *id == -1)
                    && values[own].iter().all(|v| v.is_nan())
                    && logsumexp[row].is_nan();
                (good, k + 1)
            }
            Output::Logprobs(told) => nothing_told(told),
            _ => unreachable!("args knows these requests only, and logits have their own comparison"),
        };
        self.values += values as u64;
        self.not_finite += values as u64;
        if !good {
            self.mistake(format!("row {row}: answered although its status is not good"));
        }
    }

    /// Compares the logprobs and ranks of a row's targets, and its best ids.
    pub(super) fn logprobs(&mut self, row: usize, truths: &[Truth], targets: &[i64], told: &Logprobs) {
        let top = top_of(told, row);
        let (top_ids, top_logprobs) = (&told.top_ids[top.clone()], &told.top_logprobs[top]);
        self.best(row, truths, top_ids, None);
        let logits: Vec<f64> = truths.iter().map(|t| t.logit).collect();
        let lse = reference::logsumexp(&logits);
        let moved: f64 = truths.iter().map(|t| (t.logit - lse).exp() * t.allowed).sum();
        let logprob = |report: &mut Self, id: usize, got: f32| {
            let (truth, got) = (truths[id].logit - lse, f64::from(got));
            if truth == f64::NEG_INFINITY {
                let error = if got == truth { 0.0 } else { f64::INFINITY };
                report.value(error, 0.0, || format!("row {row}, id {id}: logprob {got}, not allowed"));
                return;
            }
            let of_lse = reference::logsumexp_allowed(lse, logits.len());
            let allowed = truths[id].allowed + moved + of_lse + DType::F32.half_ulp(truth.abs());
            report.value((got - truth).abs(), allowed, || {
                format!("row {row}, id {id}: logprob {got}, truth {truth}")
            });
        };
        for (&id, &got) in top_ids.iter().zip(top_logprobs) {
            match usize::try_from(id).ok().filter(|id| *id < truths.len()) {
                Some(id) => logprob(self, id, got),
                // An unused entry. `best` checks that its id is -1.
                None if got == f32::NEG_INFINITY => self.values += 1,
                None => self.mistake(format!("row {row}: logprob {got} of no id")),
            }
        }
        let own = row * told.targets..(row + 1) * told.targets;
        for ((&target, &got), &rank) in targets.iter().zip(&told.logprobs[own.clone()]).zip(&told.ranks[own])
        {
            if target == NO_TARGET_ID {
                self.values += 2;
                self.not_finite += 2;
                if !got.is_nan() || rank != -1 {
                    self.mistake(format!("row {row}: logprob {got}, rank {rank} of no target"));
                }
                continue;
            }
            let target = usize::try_from(target).expect("targets are checked when they are read");
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
        if let Err(text) = reference::judge_top_k(truths, ids, values) {
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

/// The range of a row's best ids.
fn top_of(told: &Logprobs, row: usize) -> std::ops::Range<usize> {
    row * told.top_n..(row + 1) * told.top_n
}
