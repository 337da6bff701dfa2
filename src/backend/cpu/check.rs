//! What the CPU backend refuses before anything runs.

use crate::adjust::ShardAdjustments;
use crate::backend::check_boundaries;
use crate::backend::{Job, LogitsOut, Status};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::memory::{Memory, Span};
use crate::merge::PartialSpec;
use crate::rows::HiddenRows;
use crate::weights::{HeadShard, ShardInfo};

/// Bytes of a status word.
pub(super) const WORD: usize = 4;

/// Refuses a shard, or a type of hidden states, that the CPU cannot multiply.
pub(super) fn shard(shard: &HeadShard, hidden: DType) -> Result<()> {
    if let Some(weights) = shard.device_weights() {
        let fix = "load the shard with the backend of the device that has its weights";
        return Err(Error::unsupported("weights of the shard", Memory::Host, weights.memory(), fix));
    }
    if !shard.takes(hidden) {
        return Err(Error::dtype(
            "hidden_states on the cpu backend",
            "f32, f16 or bf16",
            hidden,
            "pass them as floats: w8a8 heads quantise them",
        ));
    }
    check_boundaries(shard)
}

/// Refuses a job that does not fit the shard, which was loaded for rows of type `hidden`.
pub(super) fn job(job: &Job<'_>, shard: &ShardInfo, hidden: DType) -> Result<()> {
    rows(&job.rows, shard.hidden_size, hidden)?;
    job.adjustments.map_or(Ok(()), |given| adjustments(given, job.rows.len(), shard))
}

fn rows(rows: &HiddenRows<'_>, hidden_size: usize, hidden: DType) -> Result<()> {
    let what = "hidden_states";
    if rows.hidden() != hidden_size {
        let fix = "use the hidden states of this head's model";
        return Err(Error::shape(what, format!("{hidden_size} columns"), rows.hidden(), fix));
    }
    if rows.dtype() != hidden {
        let fix = "load the shard for rows of this type";
        return Err(Error::dtype(what, hidden, rows.dtype(), fix));
    }
    rows.source().0.check_memory(what, Memory::Host)?;
    rows.selection().map_or(Ok(()), |picked| picked.data().check_memory("logits_indices", Memory::Host))
}

fn adjustments(given: &ShardAdjustments, rows: usize, shard: &ShardInfo) -> Result<()> {
    if given.len() != rows {
        let fix = "slice them for the rows of the job";
        return Err(Error::shape("rows of the adjustments", rows, given.len(), fix));
    }
    if given.vocab() != shard.vocab {
        let (wanted, got) = (format!("{:?}", shard.vocab), format!("{:?}", given.vocab()));
        let fix = "slice them for the ids of the shard";
        return Err(Error::shape("ids of the adjustments", wanted, got, fix));
    }
    Ok(())
}

/// Refuses a buffer that cannot take logits `[rows, columns]`.
pub(super) fn logits(out: &LogitsOut<'_>, rows: &HiddenRows<'_>, columns: usize) -> Result<()> {
    let LogitsOut { data, stride, dtype, status } = out;
    let (count, row_bytes) = (rows.len(), columns * dtype.size());
    if !dtype.is_float() {
        let fix = "logits are rounded to a float type";
        return Err(Error::dtype("logits", "f32, f16 or bf16", dtype, fix));
    }
    data.check_memory("logits", Memory::Host)?;
    if *stride < row_bytes || !fits(count, *stride, row_bytes, data.len()) {
        let wanted = format!("{count} rows of {row_bytes} bytes");
        let got = format!("{} bytes, {stride} a row", data.len());
        return Err(Error::shape("logits", wanted, got, "allocate rows x stride bytes"));
    }
    check_stride("stride of the logits", *stride, dtype.size())?;
    data.check_aligned("logits", dtype.size())?;
    apart_from_rows("logits", data.as_span(), rows)?;
    match status {
        Status::Apart { words, stride } => {
            let what = "status words";
            words.check_memory(what, Memory::Host)?;
            if *stride < WORD || !fits(count, *stride, WORD, words.len()) {
                let got = format!("{} bytes, {stride} a row", words.len());
                let wanted = format!("{count} words of {WORD} bytes");
                return Err(Error::shape(what, wanted, got, "allocate rows x stride bytes"));
            }
            check_stride("stride of the status words", *stride, WORD)?;
            words.check_aligned(what, WORD)?;
            apart_from_rows(what, words.as_span(), rows)?;
            if words.overlaps(data.as_span()) {
                return Err(overlap(what, "the logits"));
            }
        }
        Status::Inside { at } => {
            let what = "status word in the stride of a row";
            let end = at.checked_add(WORD);
            let whole = end.is_some_and(|end| end <= *stride && fits(count, *stride, end, data.len()));
            if *at < row_bytes || !whole {
                let wanted = format!("{WORD} bytes between byte {row_bytes} and the stride's end, {stride}");
                return Err(Error::shape(what, wanted, format!("byte {at}"), "make the stride longer"));
            }
            check_stride("place of the status word", *at, WORD)?;
            check_stride("stride of the logits", *stride, WORD)?;
            data.check_aligned("logits with status words", WORD)?;
        }
    }
    Ok(())
}

/// Refuses a buffer that cannot take partials of a shard of `ids` ids.
pub(super) fn partials(out: Span<'_>, spec: PartialSpec, rows: usize, ids: usize) -> Result<()> {
    let what = "partials";
    if spec.k == 0 {
        return Err(Error::request("candidates of a partial", "at least 1", 0, "ask for one"));
    }
    out.check_memory(what, Memory::Host)?;
    let bytes = rows.checked_mul(spec.stride(ids));
    let fix = "send fewer rows in one step";
    let bytes = bytes.ok_or_else(|| Error::shape(what, "bytes that can be counted", rows, fix))?;
    out.check_len(what, bytes)?;
    out.check_aligned(what, 8)
}

/// Refuses a buffer for answers that overlaps what is read.
pub(super) fn apart_from_rows(what: &str, out: Span<'_>, rows: &HiddenRows<'_>) -> Result<()> {
    if out.overlaps(rows.source().0) {
        return Err(overlap(what, "hidden_states"));
    }
    if rows.selection().is_some_and(|picked| out.overlaps(picked.data())) {
        return Err(overlap(what, "logits_indices"));
    }
    Ok(())
}

fn overlap(what: &str, other: &str) -> Error {
    let wanted = format!("a buffer apart from {other}");
    Error::shape(what, wanted, "one that overlaps it", "pass memory that nothing else of the step uses")
}

/// Whether `rows` rows of `row_bytes` bytes, `stride` bytes apart, fit `bytes` bytes.
fn fits(rows: usize, stride: usize, row_bytes: usize, bytes: usize) -> bool {
    let Some(before) = rows.checked_sub(1) else { return true };
    let end = before.checked_mul(stride).and_then(|start| start.checked_add(row_bytes));
    end.is_some_and(|end| end <= bytes)
}

fn check_stride(what: &str, stride: usize, element: usize) -> Result<()> {
    if stride.is_multiple_of(element) {
        return Ok(());
    }
    let wanted = format!("a multiple of {element} bytes");
    Err(Error::shape(what, wanted, stride, "align rows to their elements"))
}
