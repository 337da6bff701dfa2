//! Requests and answers: what a step can be asked for, what it takes beside hidden rows, and what it returns.

mod buffers;
mod device_inputs;

pub use buffers::{AnswerBuffers, OwnedAnswer};
pub use device_inputs::{DeviceInputs, LogitBiasSpans, PenaltySpans, SamplingSpans};

use crate::adjust::{Adjustments, in_vocabulary};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::sampling::SamplingParams;
use serde::Serialize;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::time::Duration;

/// What one step computes for every row. All but `Logits` exchange partials, never whole logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// All logits, rounded to `dtype` (f32, f16 or bf16).
    Logits { dtype: DType },
    /// The id of the largest logit; ties go to the lowest id.
    Argmax,
    /// The `k` largest logits, ordered by value descending then id ascending, and the logsumexp over the
    /// whole vocabulary.
    TopK { k: usize },
    /// Logprobs and ranks of `targets` ids per row ([`RowInputs::targets`]), and the `top_n` best ids with
    /// their logprobs; from the raw logits, or with `processed` from the adjusted ones. Rows are computed in
    /// chunks: see `logprobs_chunk_bytes` in the configuration.
    Logprobs { targets: usize, top_n: usize, processed: bool },
    /// One token per row, sampled with the row's own parameters ([`RowInputs::sampling`]): see
    /// [`sampling`](crate::sampling). With `logprobs`, also what `Logprobs` answers for one target, the
    /// token. A step holds the f32 logits of all rows of the group over the rank's own shard.
    Sample { logprobs: Option<TokenLogprobs> },
}

/// What is answered about a sampled token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenLogprobs {
    /// How many of the best ids are answered beside it.
    pub top_n: usize,
    /// Whether logprobs are of the adjusted logits (before the temperature) or of the raw ones.
    pub processed: bool,
}

/// The most targets of a row: their number has 16 bits in a step's header.
const MAX_TARGETS: usize = 0xffff;

/// Stands for "no target" in `RowInputs::targets`, as `ignore_index` does in other libraries.
pub const NO_TARGET_ID: i64 = -100;

impl Request {
    /// All logits in `dtype`.
    pub fn logits(dtype: DType) -> Self {
        Request::Logits { dtype }
    }

    /// The largest logit's id.
    pub fn argmax() -> Self {
        Request::Argmax
    }

    /// The `k` largest logits and the logsumexp.
    pub fn top_k(k: usize) -> Self {
        Request::TopK { k }
    }

    /// Logprob and rank of one target id per row, and the `top_n` best ids (0: none) with their logprobs,
    /// from raw logits.
    pub fn logprobs(top_n: usize) -> Self {
        Request::Logprobs { targets: 1, top_n, processed: false }
    }

    /// As `Request::logprobs`, from logits with the step's adjustments.
    pub fn processed_logprobs(top_n: usize) -> Self {
        Request::Logprobs { targets: 1, top_n, processed: true }
    }

    /// One sampled token of each row.
    pub fn sample() -> Self {
        Request::Sample { logprobs: None }
    }

    /// One sampled token of each row, with its logprob and rank, and the `top_n` best ids with their
    /// logprobs, from raw logits.
    pub fn sample_with_logprobs(top_n: usize) -> Self {
        Request::Sample { logprobs: Some(TokenLogprobs { top_n, processed: false }) }
    }

    /// Candidates that a shard sends of each row: `k` or `top_n`, at least one; `None` where whole logits are
    /// exchanged. A step that samples with filters may send more.
    pub fn candidates(&self) -> Option<usize> {
        match *self {
            Request::Logits { .. } => None,
            Request::TopK { k } => Some(k),
            Request::Logprobs { top_n, .. } => Some(top_n.max(1)),
            Request::Argmax | Request::Sample { .. } => Some(1),
        }
    }

    /// Checks the request against a vocabulary.
    ///
    /// # Errors
    /// `Dtype` for logits of a type that is not a float; `Request` for k = 0, for k or top_n above the
    /// vocabulary, and for a number of targets that is 0 or above 65535.
    pub fn check(&self, vocab_size: usize) -> Result<()> {
        match *self {
            Request::Logits { dtype } if !dtype.is_float() => {
                Err(Error::dtype("request logits", "f32, bf16 or f16", dtype, "use one of those"))
            }
            Request::TopK { k } if k == 0 || k > vocab_size => {
                let wanted = format!("k from 1 to the vocabulary size, {vocab_size}");
                Err(Error::request(
                    "request topk",
                    wanted,
                    format!("k = {k}"),
                    "ask for at least one and at most all",
                ))
            }
            Request::Logprobs { targets, .. } if !(1..=MAX_TARGETS).contains(&targets) => {
                Err(Error::request(
                    "request logprobs",
                    format!("1 to {MAX_TARGETS} targets of each row"),
                    targets,
                    "ask for one at least; -100 is none",
                ))
            }
            Request::Logprobs { top_n, .. }
            | Request::Sample { logprobs: Some(TokenLogprobs { top_n, .. }) }
                if top_n > vocab_size =>
            {
                Err(Error::request(
                    "request logprobs",
                    format!("at most the vocabulary size, {vocab_size}, of best ids"),
                    format!("top_n = {top_n}"),
                    "ask for fewer",
                ))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Logits { dtype } => write!(f, "logits in {dtype}"),
            Request::Argmax => f.write_str("argmax"),
            Request::Sample { logprobs: None } => f.write_str("sample"),
            Request::Sample { logprobs: Some(TokenLogprobs { top_n, processed }) } => {
                write!(f, "sample with {}logprobs:{top_n}", if *processed { "processed " } else { "" })
            }
            Request::TopK { k } => write!(f, "topk:{k}"),
            Request::Logprobs { targets, top_n, processed } => {
                write!(f, "{}logprobs:{top_n}", if *processed { "processed " } else { "" })?;
                if *targets == 1 { Ok(()) } else { write!(f, " of {targets} targets") }
            }
        }
    }
}

/// A request in a word, as programs take it: `logits` (f32), `argmax`, `topk:K`, `sample`, `sample:N` (with
/// logprobs), `logprobs` or `logprobs:N` (of one target), N being `top_n`, from raw logits. Other requests
/// have no such word; their `Display` is for readers.
///
/// ```
/// use lmhead::Request;
///
/// assert_eq!("topk:8".parse(), Ok(Request::top_k(8)));
/// let error = "topk".parse::<Request>().unwrap_err().to_string();
/// assert!(error.starts_with("request: wanted logits, argmax, topk:K"), "{error}");
/// ```
impl FromStr for Request {
    type Err = Error;

    /// # Errors
    /// `Request` for another word, and where K or N is no number. [`Request::check`] says whether it is too
    /// large.
    fn from_str(text: &str) -> Result<Self> {
        let (name, number) = match text.split_once(':') {
            Some((name, number)) => (name, Some(number)),
            None => (text, None),
        };
        let refused = |what: &str, wanted: &str, fix: &str| {
            Error::request(format!("request{what}"), wanted, format!("`{text}`"), fix)
        };
        let top_n = |number: &str| {
            let (what, fix) = (format!(" {name}:N"), format!("write it as in {name}:5"));
            number.parse().map_err(|_| refused(&what, "N from 0 to the vocabulary size", &fix))
        };
        match (name, number) {
            ("logits", None) => Ok(Request::logits(DType::F32)),
            ("argmax", None) => Ok(Request::argmax()),
            ("sample", None) => Ok(Request::sample()),
            ("sample", Some(number)) => Ok(Request::sample_with_logprobs(top_n(number)?)),
            ("logprobs", None) => Ok(Request::logprobs(0)),
            ("logprobs", Some(number)) => Ok(Request::logprobs(top_n(number)?)),
            ("topk", Some(number)) => number
                .parse()
                .map(Request::top_k)
                .map_err(|_| refused(" topk:K", "K from 1 to the vocabulary size", "write it as in topk:8")),
            _ => {
                let wanted = "logits, argmax, topk:K, sample[:N] or logprobs[:N]";
                Err(refused("", wanted, "use one of those"))
            }
        }
    }
}

/// Inputs of a step beside the hidden states: each rank passes those of its own rows, in their order.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RowInputs<'a> {
    /// `[rows, targets]`, for `Logprobs` only: the ids whose logprobs are asked for; [`NO_TARGET_ID`] (−100)
    /// for none.
    pub targets: Option<&'a [i64]>,
    /// `[rows]`, for `Sample` only: how each row is sampled. Call [`SamplingParams::check`] when a request
    /// comes in: parameters that a step refuses end it on all ranks.
    pub sampling: Option<&'a [SamplingParams]>,
    /// Masks, logit bias and penalties, in a step that was begun with
    /// [`LmHead::step_adjusted`](crate::LmHead::step_adjusted).
    pub adjustments: Option<Adjustments<'a>>,
    /// The same inputs in device memory, for a step on a device. Each kind may be passed here or above, not
    /// in both.
    pub on_device: DeviceInputs<'a>,
}

impl<'a> RowInputs<'a> {
    /// Checks targets and sampling parameters in host memory, for `rows` rows of `request`. Inputs in device
    /// memory are checked there, adjustments by [`Adjustments::check`].
    ///
    /// # Errors
    /// `Shape` where a length does not fit; `Request` for a target outside of the vocabulary, for parameters
    /// that are not legal, and for inputs that the request does not take.
    pub fn check(&self, request: &Request, rows: usize, vocab_size: usize) -> Result<()> {
        self.check_targets(request, rows, vocab_size)?;
        self.check_sampling(request, rows)
    }

    fn check_targets(&self, request: &Request, rows: usize, vocab_size: usize) -> Result<()> {
        let Request::Logprobs { targets: per_row, .. } = *request else {
            return match self.targets {
                None => Ok(()),
                Some(_) => {
                    let what = format!("none with {request}");
                    Err(Error::request("targets", what, "some", "ask for logprobs, or leave them out"))
                }
            };
        };
        let each = || match per_row {
            1 => format!("{rows} ids, one for each row"),
            n => format!("{} ids, {n} for each of {rows} rows", rows.saturating_mul(n)),
        };
        let targets = match self.targets {
            Some(targets) => targets,
            None if rows == 0 || self.on_device.targets.is_some() => return Ok(()),
            None => {
                let fix = "pass the ids whose logprobs are wanted";
                return Err(Error::shape("targets", each(), "none", fix));
            }
        };
        if rows.checked_mul(per_row) != Some(targets.len()) {
            let fix = "pass the ids of the rows that you bring";
            return Err(Error::shape("targets", each(), targets.len(), fix));
        }
        let bad = |id: i64| id != NO_TARGET_ID && !in_vocabulary(id, vocab_size);
        match targets.iter().position(|&id| bad(id)) {
            None => Ok(()),
            Some(at) => Err(Error::request(
                format!("target of row {}", at / per_row),
                format!("an id from 0 to {}, or {NO_TARGET_ID} for none", vocab_size.saturating_sub(1)),
                targets[at],
                "pass ids of this head's vocabulary",
            )),
        }
    }

    fn check_sampling(&self, request: &Request, rows: usize) -> Result<()> {
        let what = "sampling parameters";
        let each = || format!("{rows}, one for each row");
        let params = match (self.sampling, matches!(request, Request::Sample { .. })) {
            (Some(params), true) => params,
            (None, false) => return Ok(()),
            (None, true) if rows == 0 || self.on_device.sampling.is_some() => return Ok(()),
            (None, true) => return Err(Error::shape(what, each(), "none", "pass those of every row")),
            (Some(_), false) => {
                let fix = "ask for Request::sample(), or leave them out";
                return Err(Error::request(what, format!("none with {request}"), "some", fix));
            }
        };
        if params.len() != rows {
            let fix = "pass those of the rows that you bring";
            return Err(Error::shape(what, each(), params.len(), fix));
        }
        params.iter().enumerate().try_for_each(|(row, params)| params.check(row))
    }

    /// The inputs of the rows `range`, of `rows` in all; adjustments are not cut.
    pub(crate) fn rows(&self, range: Range<usize>, rows: usize) -> Self {
        let targets = self.targets.map(|targets| {
            let each = targets.len().checked_div(rows).unwrap_or(0);
            &targets[range.start * each..range.end * each]
        });
        let sampling = self.sampling.map(|params| &params[range.clone()]);
        let on_device = self.on_device.rows(range, rows);
        RowInputs { targets, sampling, adjustments: self.adjustments, on_device }
    }
}

/// Whether a row could be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[repr(u8)]
pub enum RowStatus {
    /// Answered.
    Good = 0,
    /// A logit of the row is NaN or infinite, in f32 or in the 16-bit type that was requested. The answer is
    /// id −1 and NaN; `Logits` delivers the values as computed. (Minus infinity from an adjustment is legal.)
    NonFinite = 1,
    /// Adjustments allow no id. The answer is id −1 and NaN; `Logits` delivers minus infinity.
    NothingAllowed = 2,
    /// Bad input that only the device could see: an index that is not a row, illegal inputs in its memory
    /// ([`RowInputs::on_device`]), or a message of another rank that cannot be right. Answered as
    /// `NonFinite`.
    BadInput = 3,
}

/// The answers to the rows that this rank brought, or to its part of them, in their order.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// `[rows]`.
    pub row_status: Vec<RowStatus>,
    pub output: Output,
    pub stats: StepStats,
}

impl RowStatus {
    /// Decodes a byte of [`AnswerBuffers::row_status`].
    pub fn of_byte(byte: u8) -> Self {
        match byte {
            0 => RowStatus::Good,
            1 => RowStatus::NonFinite,
            2 => RowStatus::NothingAllowed,
            _ => RowStatus::BadInput,
        }
    }
}

impl Answer {
    /// Number of rows answered.
    pub fn rows(&self) -> usize {
        self.row_status.len()
    }
}

/// The part of an answer that the request determines.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Output {
    /// Row-major `[rows, vocab_size]`, little-endian elements of `dtype`.
    Logits {
        dtype: DType,
        vocab_size: usize,
        bytes: Vec<u8>,
    },
    /// `[rows]`; −1 where the row's status is not good.
    Argmax {
        ids: Vec<i64>,
    },
    /// `values` and `ids` are row-major `[rows, k]`, `logsumexp` is `[rows]`; NaN and −1 where the row's
    /// status is not good. Where fewer than k ids are allowed, the remaining places hold minus infinity and
    /// −1.
    TopK {
        k: usize,
        values: Vec<f32>,
        ids: Vec<i64>,
        logsumexp: Vec<f32>,
    },
    /// `ids` is `[rows]`; −1 where the row's status is not good. `logprobs`, where asked for, has one target
    /// per row: the token.
    Sample {
        ids: Vec<i64>,
        logprobs: Option<Logprobs>,
    },
    Logprobs(Logprobs),
}

/// Logprobs and ranks of targets, and the best ids with their logprobs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Logprobs {
    /// Targets per row.
    pub targets: usize,
    pub top_n: usize,
    /// `[rows, targets]`: `l_t - logsumexp`, at most 0; minus infinity for a target that is not allowed. NaN
    /// where there is no target, or the row's status is not good.
    pub logprobs: Vec<f32>,
    /// `[rows, targets]`: `1 + #{l_v > l_t, or l_v = l_t and v < t}`; −1 where the logprob is NaN.
    pub ranks: Vec<i64>,
    /// `[rows, top_n]`, ordered by value descending then id ascending; −1 where the row's status is not good,
    /// and in the remaining places where fewer than top_n ids are allowed.
    pub top_ids: Vec<i64>,
    /// `[rows, top_n]`; NaN where the row's status is not good, minus infinity in the remaining places.
    pub top_logprobs: Vec<f32>,
}

impl Output {
    /// Logits widened to f32, `[rows, vocab_size]`; `None` for other outputs.
    pub fn logits_f32(&self) -> Option<Vec<f32>> {
        let Output::Logits { dtype, bytes, .. } = self else { return None };
        let mut values = vec![0.0; bytes.len() / dtype.size()];
        dtype.widen(bytes, &mut values);
        Some(values)
    }
}

/// What one step cost this rank.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct StepStats {
    /// Time in the contract's header exchange.
    pub contract: Duration,
    /// Time in the gather of rows.
    pub gather: Duration,
    /// Time in the matmul with its epilogue.
    pub matmul: Duration,
    /// Time in the exchange of logits or candidates and in merging them; in a sampling step, in all that
    /// follows the logits. In a step that waits for all its collectives at its end, the time of that wait.
    pub exchange: Duration,
    /// Bytes received from other ranks, headers included.
    pub bytes_received: u64,
    /// Bytes sent to other ranks, headers included.
    pub bytes_sent: u64,
    /// Collective operations.
    pub rounds: u32,
    /// Bytes of weights that the matmul streamed.
    pub weight_bytes: u64,
    /// Memory of the largest chunk of a `logprobs` request: gathered hidden rows, logits and candidates; at
    /// most the head's `logprobs_chunk_bytes`.
    pub chunk_bytes: u64,
    /// Rows of the group that the matmul computed.
    pub rows_computed: u64,
}
