//! The last stage of a step: messages of all shards -> the answer for this rank's rows.
//!
//! A [`Finish`] describes the messages and where the answer goes; [`on_host`] runs it in host memory.
//! Backends with memory of their own run it there.
//!
//! * [`columns`]: turns messages of logits into rows; the only place that knows their layout.

pub mod columns;

use crate::call::Operation;
use crate::error::{Error, Result};
use crate::memory::{Memory, Span, SpanMut};
use crate::merge::Candidate;
use crate::merge::{Merge, NO_TARGET, PartialSpec};
use crate::params::{LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE};
use crate::result::RowStatus;
use crate::sampling::score::Drawn;
use crate::sampling::{DrawKind, SamplingParams};
use std::ops::Range;

/// The messages of all shards. Each has `rows` rows, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Messages<'a> {
    pub bytes: Span<'a>,
    /// Where the message of each shard begins, in bytes.
    pub starts: &'a [usize],
    /// The vocabulary ids of each shard, ascending.
    pub shards: &'a [Range<usize>],
    pub rows: usize,
    /// How many of the `rows` are answered; those behind are padding.
    pub answered: usize,
    /// Status words u32 `[answered]` that are or'ed into those of the messages; may be empty.
    pub own: Span<'a>,
}

/// The answer to make, from which messages. All spans of a variant are in one memory, unless it says
/// otherwise.
#[derive(Debug)]
pub enum Finish<'a> {
    /// Status of rows of logits that are already in their place: `words` is u32 `[rows]`.
    Status { words: Span<'a>, row_status: SpanMut<'a> },
    /// From messages of logits ([`columns`]): rows of the whole vocabulary, `stride` bytes apart.
    Logits {
        from: Messages<'a>,
        dtype: crate::dtype::DType,
        logits: SpanMut<'a>,
        stride: usize,
        row_status: SpanMut<'a>,
    },
    /// From partials with k = 1: `ids` `[rows]`.
    Argmax { from: Messages<'a>, ids: SpanMut<'a>, row_status: SpanMut<'a> },
    /// From partials: `ids` and `values` `[rows, k]`, `logsumexp` `[rows]`.
    TopK {
        from: Messages<'a>,
        k: usize,
        ids: SpanMut<'a>,
        values: SpanMut<'a>,
        logsumexp: SpanMut<'a>,
        row_status: SpanMut<'a>,
    },
    /// From partials: `logprobs` and `ranks` `[rows, spec.targets]`, and `top_ids` and `top_logprobs` `[rows,
    /// top_n]`. `targets` has a [`Candidate`] for each target, its id and logit; it may be in host memory
    /// where all else is on a device.
    Logprobs {
        from: Messages<'a>,
        spec: PartialSpec,
        targets: Span<'a>,
        top_n: usize,
        /// The targets are sampled tokens: a `row_status` that is not good already is kept.
        drawn: bool,
        logprobs: SpanMut<'a>,
        ranks: SpanMut<'a>,
        top_ids: SpanMut<'a>,
        top_logprobs: SpanMut<'a>,
        row_status: SpanMut<'a>,
    },
    /// From candidates, 8 bytes each: one sampled id per row, `ids` `[rows]`. `tokens`, u32 `[rows]` or
    /// empty, gets the same ids, and [`NO_TARGET`] for rows without one; it may be in host memory where all
    /// else is on a device.
    Draw {
        from: Messages<'a>,
        sampling: RowSampling<'a>,
        places: Places,
        vocab_size: usize,
        ids: SpanMut<'a>,
        tokens: SpanMut<'a>,
        row_status: SpanMut<'a>,
    },
}

/// How each row is sampled.
#[derive(Debug, Clone, Copy)]
pub enum RowSampling<'a> {
    /// Parameters that were checked already.
    Host(&'a [SamplingParams]),
    /// [`SamplingRow`](crate::params::SamplingRow)s in the device's memory, aligned to 16 bytes. A row with
    /// illegal parameters gets the status `BadInput`.
    Device(Span<'a>),
}

/// How many places for candidates a message has per row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Places {
    /// As many as the row's parameters need from the shard.
    ByKind,
    /// This many for every row; places beyond those that the row's parameters need are ignored. On a device a
    /// row that needs more gets the status `BadInput`.
    Each(usize),
}

impl Places {
    /// Places of a row of this kind in the message of a shard of `ids` ids.
    pub(crate) fn of(self, kind: DrawKind, ids: usize) -> usize {
        match self {
            Places::ByKind => places(kind, ids),
            Places::Each(n) => n,
        }
    }
}

/// Memory that is reused from one `Finish` to the next, so that a step allocates nothing.
#[derive(Debug, Default)]
pub struct FinishScratch {
    merge: Merge,
    candidates: Vec<Candidate>,
    starts: Vec<usize>,
}

impl FinishScratch {
    /// Makes room for partials of `spec`, and for rows with up to `candidates` candidates from `shards`
    /// shards.
    pub fn prepare(&mut self, spec: PartialSpec, candidates: usize, shards: usize) {
        self.merge.reset(spec);
        self.candidates.clear();
        self.candidates.reserve(candidates);
        self.starts.clear();
        self.starts.reserve(shards);
    }
}

/// Candidates that a shard of `ids` ids sends for a row of this kind.
pub(crate) fn places(kind: DrawKind, ids: usize) -> usize {
    match kind {
        DrawKind::Listed { k } => k.min(ids),
        _ => 1,
    }
}

/// A row's status from the or'ed status words of all shards. `nothing_allowed`: no logit is above minus
/// infinity.
pub(crate) fn status(words: u32, nothing_allowed: bool) -> RowStatus {
    if words & LMHEAD_STATUS_BAD_INDEX != 0 {
        RowStatus::BadInput
    } else if words & LMHEAD_STATUS_NONFINITE != 0 {
        RowStatus::NonFinite
    } else if nothing_allowed {
        RowStatus::NothingAllowed
    } else {
        RowStatus::Good
    }
}

fn of_word(word: u32) -> RowStatus {
    status(word, word & LMHEAD_STATUS_ALLOWED == 0)
}

impl<'a> Messages<'a> {
    /// The bytes of all messages, in host memory.
    fn host(&self) -> Result<&'a [u8]> {
        self.bytes.host_elements("messages of the shards")
    }

    /// Row `row` of shard `shard`, whose rows are `stride` bytes.
    fn row(bytes: &'a [u8], start: usize, row: usize, stride: usize) -> &'a [u8] {
        &bytes[start + row * stride..][..stride]
    }
}

/// Runs a `Finish` whose spans are in host memory.
///
/// # Errors
/// `Shape` where a span is not in host memory, not aligned or not as long as it must be; `Exchange` where a
/// message is not one that this version sends.
pub fn on_host(what: Finish<'_>, scratch: &mut FinishScratch) -> Result<()> {
    match what {
        Finish::Status { words, row_status } => {
            let words: &[u32] = words.host_elements("status words")?;
            let row_status = slots(row_status, "row_status", words.len())?;
            row_status.iter_mut().zip(words).for_each(|(slot, &word)| *slot = of_word(word) as u8);
            Ok(())
        }
        Finish::Logits { from, dtype, logits, stride, row_status } => {
            let row_status: &mut [u8] = slots(row_status, "row_status", from.answered)?;
            let logits: &mut [u8] = logits.into_host_elements("logits")?;
            let bytes = from.host()?;
            row_status.fill(0);
            let own: &[u32] = from.own.host_elements("status of the rows")?;
            row_status.iter_mut().zip(own).for_each(|(slot, &word)| *slot |= word as u8);
            for (&start, shard) in from.starts.iter().zip(from.shards) {
                let own = columns::row_stride(shard.len(), dtype);
                let message = &bytes[start..start + from.answered * own];
                columns::place(message, shard, dtype, logits, stride, row_status);
            }
            row_status.iter_mut().for_each(|slot| *slot = of_word(u32::from(*slot)) as u8);
            Ok(())
        }
        Finish::Argmax { from, ids, row_status } => {
            let ids: &mut [i64] = slots(ids, "ids", from.answered)?;
            let row_status: &mut [u8] = slots(row_status, "row_status", from.answered)?;
            let spec = PartialSpec { k: 1, sum: false, targets: 0 };
            merge_rows(from, spec, scratch, |row, merge| {
                let best = merge.sorted().first().copied();
                let status = status(merge.status(), best.is_none());
                row_status[row] = status as u8;
                ids[row] = match (status, best) {
                    (RowStatus::Good, Some(best)) => i64::from(best.id),
                    _ => -1,
                };
            })
        }
        Finish::TopK { from, k, ids, values, logsumexp, row_status } => {
            let ids: &mut [i64] = slots(ids, "ids", from.answered * k)?;
            let values: &mut [f32] = slots(values, "values", from.answered * k)?;
            let logsumexp: &mut [f32] = slots(logsumexp, "logsumexp", from.answered)?;
            let row_status: &mut [u8] = slots(row_status, "row_status", from.answered)?;
            let spec = PartialSpec { k, sum: true, targets: 0 };
            merge_rows(from, spec, scratch, |row, merge| {
                let lse = merge.logsumexp() as f32;
                let status = status(merge.status(), merge.sorted().is_empty());
                row_status[row] = status as u8;
                let places = row * k..(row + 1) * k;
                let good = status == RowStatus::Good;
                logsumexp[row] = if good { lse } else { f32::NAN };
                fill_best(&mut ids[places.clone()], &mut values[places], good, merge.sorted(), |l| l);
            })
        }
        Finish::Logprobs {
            from,
            spec,
            targets,
            top_n,
            drawn,
            logprobs,
            ranks,
            top_ids,
            top_logprobs,
            row_status,
        } => {
            let n = spec.targets;
            targets.check_len("targets", from.answered * n * size_of::<Candidate>())?;
            let targets: &[Candidate] = targets.host_elements("targets")?;
            let logprobs: &mut [f32] = slots(logprobs, "logprobs", from.answered * n)?;
            let ranks: &mut [i64] = slots(ranks, "ranks", from.answered * n)?;
            let top_ids: &mut [i64] = slots(top_ids, "top_ids", from.answered * top_n)?;
            let top_logprobs: &mut [f32] = slots(top_logprobs, "top_logprobs", from.answered * top_n)?;
            let row_status: &mut [u8] = slots(row_status, "row_status", from.answered)?;
            merge_rows(from, spec, scratch, |row, merge| {
                let lse = merge.logsumexp();
                // Rounding may leave the logsumexp just below the largest logit: no logprob is above 0.
                let logprob = |logit: f32| (f64::from(logit) - lse).min(0.0) as f32;
                let status = match RowStatus::of_byte(row_status[row]) {
                    known if drawn && known != RowStatus::Good => known,
                    _ => status(merge.status(), merge.sorted().is_empty()),
                };
                let good = status == RowStatus::Good;
                row_status[row] = status as u8;
                for i in 0..n {
                    let target = targets[row * n + i];
                    (logprobs[row * n + i], ranks[row * n + i]) = if good && target.id != NO_TARGET {
                        (logprob(target.value), i64::from(merge.num_greater()[i]) + 1)
                    } else {
                        (f32::NAN, -1)
                    };
                }
                let places = row * top_n..(row + 1) * top_n;
                let best = merge.sorted();
                let best = &best[..best.len().min(top_n)];
                fill_best(&mut top_ids[places.clone()], &mut top_logprobs[places], good, best, logprob);
            })
        }
        Finish::Draw { from, sampling, places, vocab_size, ids, tokens, row_status } => {
            let ids: &mut [i64] = slots(ids, "ids", from.answered)?;
            let row_status: &mut [u8] = slots(row_status, "row_status", from.answered)?;
            let wanted = tokens_of(&from, &tokens);
            let tokens: &mut [u32] = slots(tokens, "tokens", wanted)?;
            let own: &[u32] = from.own.host_elements("status of the rows")?;
            let params = host_sampling(&sampling, from.answered)?;
            draw(from, params, places, vocab_size, scratch, |row, nonfinite, nothing, id| {
                let nonfinite = if nonfinite { LMHEAD_STATUS_NONFINITE } else { 0 };
                let status = status(nonfinite | own.get(row).copied().unwrap_or(0), nothing);
                let id = id.filter(|_| status == RowStatus::Good);
                row_status[row] = status as u8;
                ids[row] = id.map_or(-1, i64::from);
                if let Some(token) = tokens.get_mut(row) {
                    *token = id.unwrap_or(NO_TARGET);
                }
            })
        }
    }
}

/// The length that `tokens` must have: 0 where no tokens are wanted, else one per answered row.
pub(crate) fn tokens_of(from: &Messages<'_>, tokens: &SpanMut<'_>) -> usize {
    if tokens.is_empty() { 0 } else { from.answered }
}

/// The parameters of `rows` rows, which must be in host memory.
pub(crate) fn host_sampling<'a>(sampling: &RowSampling<'a>, rows: usize) -> Result<&'a [SamplingParams]> {
    match *sampling {
        RowSampling::Host(params) if params.len() == rows => Ok(params),
        RowSampling::Host(params) => {
            Err(Error::shape("sampling parameters", rows, params.len(), "pass one for each row"))
        }
        RowSampling::Device(_) if rows == 0 => Ok(&[]),
        RowSampling::Device(span) => {
            let fix = "draw where the parameters are, or pass them in host memory";
            Err(Error::shape("sampling parameters", Memory::Host, span.memory(), fix))
        }
    }
}

/// The elements of a buffer that must hold exactly `n`.
fn slots<'a, T: bytemuck::Pod>(span: SpanMut<'a>, what: &str, n: usize) -> Result<&'a mut [T]> {
    span.check_len(what, n * size_of::<T>())?;
    span.into_host_elements(what)
}

/// Writes ids and values of the best, best first. Places left over get -1 and minus infinity; all places of a
/// row that is not good get -1 and NaN.
fn fill_best(
    ids: &mut [i64],
    values: &mut [f32],
    good: bool,
    best: &[Candidate],
    value: impl Fn(f32) -> f32,
) {
    ids.fill(-1);
    values.fill(if good { f32::NEG_INFINITY } else { f32::NAN });
    if good {
        for ((id, slot), candidate) in ids.iter_mut().zip(values).zip(best) {
            (*id, *slot) = (i64::from(candidate.id), value(candidate.value));
        }
    }
}

fn merge_rows(
    from: Messages<'_>,
    spec: PartialSpec,
    scratch: &mut FinishScratch,
    mut row: impl FnMut(usize, &mut Merge),
) -> Result<()> {
    let bytes = from.host()?;
    let own: &[u32] = from.own.host_elements("status of the rows")?;
    let merge = &mut scratch.merge;
    for i in 0..from.answered {
        merge.reset(spec);
        merge.add_status(own.get(i).copied().unwrap_or(0));
        for (&start, shard) in from.starts.iter().zip(from.shards) {
            merge.add(Messages::row(bytes, start, i, spec.stride(shard.len())), shard)?;
        }
        row(i, merge);
    }
    Ok(())
}

/// Draws each row's id and calls `row(row, nonfinite, nothing_allowed, id)`.
fn draw(
    from: Messages<'_>,
    params: &[SamplingParams],
    places: Places,
    vocab_size: usize,
    scratch: &mut FinishScratch,
    mut row: impl FnMut(usize, bool, bool, Option<u32>),
) -> Result<()> {
    let bytes = from.host()?;
    let FinishScratch { candidates: all, starts, .. } = scratch;
    starts.clear();
    starts.extend_from_slice(from.starts);
    for (i, params) in params.iter().enumerate() {
        let kind = params.kind(vocab_size);
        all.clear();
        for (start, shard) in starts.iter_mut().zip(from.shards) {
            let bytes = &bytes[*start..][..places.of(kind, shard.len()) * size_of::<Candidate>()];
            *start += bytes.len();
            let own = self::places(kind, shard.len());
            let Some(message) = bytes.as_chunks::<8>().0.get(..own) else {
                let got = format!("row {i} asks for {own}");
                let wanted = format!("at most {places:?} of each shard");
                return Err(Error::shape("candidates", wanted, got, "send more places of each row"));
            };
            for candidate in message.iter().map(|bytes| bytemuck::pod_read_unaligned::<Candidate>(bytes)) {
                let Candidate { value, id } = candidate;
                let foreign = value > f32::NEG_INFINITY && !shard.contains(&(id as usize));
                if value == f32::INFINITY || foreign {
                    let problem = format!("id {id} with logit {value} came from ids {shard:?}");
                    return Err(broken(Operation::ExchangeResults, problem));
                }
                all.push(candidate);
            }
        }
        let nonfinite = all.iter().any(|c| c.value.is_nan());
        all.retain(|c| c.value > f32::NEG_INFINITY);
        let id = match kind {
            _ if nonfinite => None,
            DrawKind::Listed { .. } => {
                let value = |a: &Candidate, b: &Candidate| b.value.partial_cmp(&a.value).expect("no NaN");
                all.sort_unstable_by(|a, b| value(a, b).then(a.id.cmp(&b.id)));
                params.choose(all, vocab_size)
            }
            _ => {
                let mut best = Drawn::nothing();
                all.iter().for_each(|candidate| best.offer(params, *candidate));
                best.id()
            }
        };
        row(i, nonfinite, all.is_empty(), id);
    }
    Ok(())
}

/// The parameters of `rows` rows, in host memory. Refuses filters: a draw in the matmul's epilogue cannot
/// apply them.
pub(crate) fn unfiltered<'a>(
    sampling: &RowSampling<'a>,
    rows: usize,
    vocab_size: usize,
) -> Result<&'a [SamplingParams]> {
    let params = host_sampling(sampling, rows)?;
    match params.iter().enumerate().find(|(_, params)| params.kind(vocab_size) != DrawKind::Best) {
        None => Ok(params),
        Some((row, params)) => {
            let wanted = "temperature 0, or no top_k, top_p and min_p";
            let fix = "hold the logits, and draw in a pass";
            Err(Error::request(format!("filters of row {row}"), wanted, format!("{params:?}"), fix))
        }
    }
}

/// The error for a message that no peer of this version sends.
pub(crate) fn broken(operation: Operation, problem: impl std::fmt::Display) -> Error {
    Error::Exchange {
        operation: operation.to_string(),
        problem: problem.to_string(),
        fix: "run the same version of lmhead on every rank".into(),
    }
}
