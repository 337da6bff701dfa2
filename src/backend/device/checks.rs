//! Checks the rows and buffers of a call, before anything is queued.

use crate::backend::{Job, LogitsOut, Status};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::memory::{Memory, Span, SpanMut};
use crate::merge::PartialSpec;
use crate::weights::ShardInfo;
use std::ops::Range;

/// Refuses memory that is neither the host's nor `own`.
fn foreign(what: &str, span: Span<'_>, own: Memory) -> Result<()> {
    let memory = span.memory();
    if span.is_empty() || memory == Memory::Host || memory == own {
        return Ok(());
    }
    let fix = "copy it there, or use the backend of that device";
    Err(Error::shape(what, format!("host memory or {own}"), memory, fix))
}

/// Refuses a job whose rows or adjustments do not fit this shard.
pub(super) fn job(job: &Job<'_>, info: &ShardInfo, hidden: DType, own: Memory) -> Result<()> {
    let rows = &job.rows;
    if rows.hidden() != info.hidden_size {
        let (wanted, fix) =
            (format!("{} columns", info.hidden_size), "use the hidden states of this head's model");
        return Err(Error::shape("hidden_states", wanted, rows.hidden(), fix));
    }
    if rows.dtype() != hidden {
        let fix = "load the shard for the type of its rows";
        return Err(Error::dtype("hidden_states", hidden, rows.dtype(), fix));
    }
    foreign("hidden_states", rows.source().0, own)?;
    if let Some(adjustments) = job.adjustments
        && (adjustments.len(), adjustments.vocab()) != (rows.len(), info.vocab.clone())
    {
        let said = |rows: usize, vocab: &Range<usize>| format!("{rows} rows for ids {vocab:?}");
        let (wanted, got) = (said(rows.len(), &info.vocab), said(adjustments.len(), &adjustments.vocab()));
        let fix = "slice them for the rows of the job and the shard";
        return Err(Error::shape("adjustments", wanted, got, fix));
    }
    Ok(())
}

/// Refuses an output buffer in foreign memory, not aligned to `to`, or not apart from the rows.
fn output(what: &str, span: &SpanMut<'_>, to: usize, job: &Job<'_>, own: Memory) -> Result<()> {
    foreign(what, span.as_span(), own)?;
    span.check_aligned(what, to)?;
    apart(what, span.as_span(), "hidden_states", job.rows.source().0)?;
    match job.rows.selection() {
        Some(selection) => apart(what, span.as_span(), "logits_indices", selection.data()),
        None => Ok(()),
    }
}

fn apart(what: &str, span: Span<'_>, other_what: &str, other: Span<'_>) -> Result<()> {
    if !span.overlaps(other) {
        return Ok(());
    }
    let (wanted, got) = (format!("memory apart from {other_what}"), format!("{span:?} and {other:?}"));
    Err(Error::shape(what, wanted, got, "use another buffer"))
}

/// Bytes of `n` elements that begin `stride` bytes apart, where the last has `last` bytes; `None` on
/// overflow.
fn strided(n: usize, stride: usize, last: usize) -> Option<usize> {
    n.checked_sub(1).map_or(Some(0), |before| before.checked_mul(stride)?.checked_add(last))
}

/// Refuses buffers that cannot take logits `[rows, columns]`; returns the bytes of one row.
pub(super) fn logits(out: &LogitsOut<'_>, job: &Job<'_>, columns: usize, own: Memory) -> Result<usize> {
    let rows = job.rows.len();
    let LogitsOut { data, stride, dtype, status } = out;
    if !dtype.is_float() {
        let fix = "logits are rounded to a float type";
        return Err(Error::dtype("logits", "f32, f16 or bf16", dtype, fix));
    }
    let row_bytes = columns * dtype.size();
    let short = |needed: usize| {
        let got = format!("{} bytes, {stride} a row", data.len());
        let wanted = format!("{rows} rows of {needed} bytes");
        Err(Error::shape("logits", wanted, got, "allocate rows x stride bytes"))
    };
    if *stride < row_bytes || strided(rows, *stride, row_bytes).is_none_or(|needed| needed > data.len()) {
        return short(row_bytes);
    }
    if rows > 1 && !stride.is_multiple_of(dtype.size()) {
        let wanted = format!("whole elements of {dtype} from row to row");
        return Err(Error::shape("stride of the logits", wanted, format!("{stride} bytes"), "pad the rows"));
    }
    output("logits", data, dtype.size(), job, own)?;
    match status {
        Status::Inside { at } => {
            let end = at.checked_add(4);
            if !at.is_multiple_of(4) || *at < row_bytes || end.is_none_or(|end| end > *stride) {
                let wanted =
                    format!("a multiple of 4 between the {row_bytes} bytes of a row and its end at {stride}");
                return Err(Error::shape("place of the status words", wanted, at, "use finish::columns"));
            }
            if !stride.is_multiple_of(4) {
                let got = format!("{stride} bytes");
                return Err(Error::shape(
                    "stride of the logits",
                    "a multiple of 4",
                    got,
                    "use finish::columns",
                ));
            }
            data.check_aligned("logits", 4)?;
            if strided(rows, *stride, at + 4).is_none_or(|needed| needed > data.len()) {
                return short(at + 4);
            }
        }
        Status::Apart { words, stride } => {
            let what = "status words";
            output(what, words, 4, job, own)?;
            words.check_memory(what, if data.is_empty() { words.memory() } else { data.memory() })?;
            apart(what, words.as_span(), "logits", data.as_span())?;
            if *stride < 4 && rows > 1 || !stride.is_multiple_of(4) {
                let got = format!("{stride} bytes");
                return Err(Error::shape(
                    "stride of the status words",
                    "a multiple of 4, at least 4",
                    got,
                    "use 4",
                ));
            }
            if strided(rows, *stride, 4).is_none_or(|needed| needed > words.len()) {
                let wanted = format!("{rows} words, {stride} bytes apart");
                return Err(Error::shape(what, wanted, format!("{} bytes", words.len()), "pass one a row"));
            }
        }
    }
    Ok(row_bytes)
}

/// Refuses a buffer that cannot take partials of `bytes` bytes.
pub(super) fn partials(out: &SpanMut<'_>, bytes: usize, job: &Job<'_>, own: Memory) -> Result<()> {
    out.check_len("partials", bytes)?;
    output("partials", out, 8, job, own)
}

/// Refuses a caller's workspace that is too small or in the wrong place; returns its address.
pub(super) fn workspace(span: &SpanMut<'_>, needed: usize, rows: usize, own: Memory) -> Result<u64> {
    let what = "workspace";
    if span.len() < needed {
        let (wanted, got) = (format!("{needed} bytes for {rows} rows"), format!("{} bytes", span.len()));
        return Err(Error::shape(what, wanted, got, "allocate what LoadedShard::workspace says"));
    }
    if needed > 0 {
        span.check_memory(what, own)?;
        span.check_aligned(what, 256)?;
    }
    Ok(span.address())
}

pub(super) fn check_candidates(spec: &PartialSpec) -> Result<()> {
    if spec.k == 0 {
        return Err(Error::request("candidates of a partial", "at least 1", 0, "ask for one"));
    }
    Ok(())
}

pub(super) fn check_spec(spec: &PartialSpec) -> Result<()> {
    check_candidates(spec)?;
    if spec.targets > 0 {
        let fix = "pass their logits beside them: Out::Counted";
        return Err(Error::request("targets of a product's partials", "none", spec.targets, fix));
    }
    Ok(())
}

pub(super) fn count_of(rows: usize) -> Result<u32> {
    let fix = "send fewer rows in one step";
    u32::try_from(rows).map_err(|_| Error::shape("rows of hidden_states", "fewer than 2^32", rows, fix))
}

pub(super) fn product_of(sizes: &[usize]) -> Result<usize> {
    sizes.iter().try_fold(1usize, |n, &size| n.checked_mul(size)).ok_or_else(|| too_large(sizes))
}

pub(super) fn sum_of(sizes: &[usize]) -> Result<usize> {
    sizes.iter().try_fold(0usize, |n, &size| n.checked_add(size)).ok_or_else(|| too_large(sizes))
}

fn too_large(sizes: &[usize]) -> Error {
    let fix = "send fewer rows in one step";
    Error::shape("device memory", "fewer bytes than 2^64", format!("{sizes:?}"), fix)
}
