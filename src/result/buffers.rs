//! Buffers that an answer is written to: the caller's (`AnswerBuffers`) or owned ones.

use super::{Answer, DeviceInputs, Logprobs, Output, Request, RowStatus, StepStats, TokenLogprobs};
use crate::error::{Error, Result};
use crate::memory::{Memory, Span, SpanMut};

/// Where an answer goes: the caller's memory, of the same kind (host or device) as the hidden rows. Spans
/// that the request does not fill are ignored and may be empty.
///
/// | | element | shape | filled by |
/// |---|---|---|---|
/// | `row_status` | u8, [`RowStatus`] | `[rows]` | every request |
/// | `logits` | the request's dtype | `[rows, vocab]`, `logits_stride` bytes from row to row | `Logits` |
/// | `ids` | i64 | `[rows]`; `TopK`: `[rows, k]` | `Argmax`, `TopK`, `Sample` |
/// | `values` | f32 | `[rows, k]` | `TopK` |
/// | `logsumexp` | f32 | `[rows]` | `TopK` |
/// | `logprobs` | f32 | `[rows, targets]` | `Logprobs`, `Sample` with logprobs: `[rows]` |
/// | `ranks` | i64 | `[rows, targets]` | the same |
/// | `top_ids` | i64 | `[rows, top_n]` | the same |
/// | `top_logprobs` | f32 | `[rows, top_n]` | the same |
#[derive(Debug)]
pub struct AnswerBuffers<'a> {
    pub row_status: SpanMut<'a>,
    pub logits: SpanMut<'a>,
    /// Bytes from one row of logits to the next; 0: rows are contiguous.
    pub logits_stride: usize,
    pub ids: SpanMut<'a>,
    pub values: SpanMut<'a>,
    pub logsumexp: SpanMut<'a>,
    pub logprobs: SpanMut<'a>,
    pub ranks: SpanMut<'a>,
    pub top_ids: SpanMut<'a>,
    pub top_logprobs: SpanMut<'a>,
}

impl Default for AnswerBuffers<'_> {
    /// No memory at all: for a rank that gets no answers.
    fn default() -> Self {
        AnswerBuffers {
            row_status: SpanMut::EMPTY,
            logits: SpanMut::EMPTY,
            logits_stride: 0,
            ids: SpanMut::EMPTY,
            values: SpanMut::EMPTY,
            logsumexp: SpanMut::EMPTY,
            logprobs: SpanMut::EMPTY,
            ranks: SpanMut::EMPTY,
            top_ids: SpanMut::EMPTY,
            top_logprobs: SpanMut::EMPTY,
        }
    }
}

/// How many numbers a row has in each buffer.
#[derive(Debug, Clone, Copy, Default)]
struct PerRow {
    ids: usize,
    values: usize,
    logsumexp: usize,
    targets: usize,
    top: usize,
}

impl PerRow {
    fn of(request: &Request) -> Self {
        let none = PerRow::default();
        match *request {
            Request::Logits { .. } => none,
            Request::Argmax | Request::Sample { logprobs: None } => PerRow { ids: 1, ..none },
            Request::TopK { k } => PerRow { ids: k, values: k, logsumexp: 1, ..none },
            Request::Logprobs { targets, top_n, .. } => PerRow { targets, top: top_n, ..none },
            Request::Sample { logprobs: Some(TokenLogprobs { top_n, .. }) } => {
                PerRow { ids: 1, targets: 1, top: top_n, ..none }
            }
        }
    }
}

/// Number of buffers of an answer.
const BUFFERS: usize = 9;
/// Alignment of each buffer in bytes, where they are carved from one allocation.
const ALIGNED: usize = 256;

/// Bytes of a row in each buffer, in the order of [`AnswerBuffers`].
fn row_bytes(request: &Request, vocab_size: usize) -> [usize; BUFFERS] {
    let PerRow { ids, values, logsumexp, targets, top } = PerRow::of(request);
    let logits = match request {
        Request::Logits { dtype } => vocab_size * dtype.size(),
        _ => 0,
    };
    [1, logits, 8 * ids, 4 * values, 4 * logsumexp, 4 * targets, 8 * targets, 8 * top, 4 * top]
}

impl<'a> AnswerBuffers<'a> {
    /// Checks the buffers and cuts them to what `request` answers for `rows` rows. Checked are lengths,
    /// alignment, kind of memory, and that no buffer overlaps another one, `inputs`, or `others`:
    /// `hidden_states`, `logits_indices` and `workspace`, in this order.
    ///
    /// # Errors
    /// `Shape` naming the buffer.
    pub(crate) fn checked(
        self,
        request: &Request,
        rows: usize,
        vocab_size: usize,
        memory: Memory,
        others: [Span<'_>; 3],
        inputs: &DeviceInputs<'_>,
    ) -> Result<Self> {
        let per_row = PerRow::of(request);
        let mut buffers = AnswerBuffers { row_status: self.row_status, ..AnswerBuffers::default() };
        check(&buffers.row_status, "row_status", rows, 1, 1, memory)?;
        if let Request::Logits { dtype } = *request {
            let row = vocab_size * dtype.size();
            let stride = if self.logits_stride == 0 { row } else { self.logits_stride };
            if stride < row || !stride.is_multiple_of(dtype.size()) {
                let wanted = format!("at least the {row} bytes of a row, whole elements");
                return Err(Error::shape("stride of the logits", wanted, stride, "give it in bytes"));
            }
            let bytes = match rows.checked_sub(1) {
                None => Some(0),
                Some(before) => before.checked_mul(stride).and_then(|bytes| bytes.checked_add(row)),
            };
            if bytes.is_none_or(|bytes| bytes > self.logits.len()) {
                let wanted = format!("{rows} rows, {stride} bytes from row to row");
                let (got, fix) =
                    (format!("{} bytes", self.logits.len()), "pass a buffer of the answer's size");
                return Err(Error::shape("logits", wanted, got, fix));
            }
            self.logits.check_memory("logits", memory)?;
            if memory != Memory::Host {
                self.logits.check_aligned("logits", dtype.size())?;
            }
            buffers.logits = self.logits.part(0..bytes.unwrap_or_default());
            buffers.logits_stride = stride;
        }
        let each = [
            ("ids", self.ids, &mut buffers.ids, per_row.ids, 8),
            ("values", self.values, &mut buffers.values, per_row.values, 4),
            ("logsumexp", self.logsumexp, &mut buffers.logsumexp, per_row.logsumexp, 4),
            ("logprobs", self.logprobs, &mut buffers.logprobs, per_row.targets, 4),
            ("ranks", self.ranks, &mut buffers.ranks, per_row.targets, 8),
            ("top_ids", self.top_ids, &mut buffers.top_ids, per_row.top, 8),
            ("top_logprobs", self.top_logprobs, &mut buffers.top_logprobs, per_row.top, 4),
        ];
        for (what, given, place, per_row, size) in each {
            if per_row > 0 {
                check(&given, what, rows, per_row, size, memory)?;
                *place = given;
            }
        }
        buffers.check_overlaps(others, inputs)?;
        Ok(buffers)
    }

    /// Bytes of memory for all buffers of an answer, as `AnswerBuffers::carve` lays them out.
    ///
    /// # Errors
    /// `Shape` where the size overflows.
    pub(crate) fn bytes(request: &Request, rows: usize, vocab_size: usize) -> Result<usize> {
        let too_many = || {
            let got = format!("{rows} rows of {request}");
            Error::shape("memory of an answer", "fewer bytes than 2^64", got, "send fewer rows in one step")
        };
        let row: usize = row_bytes(request, vocab_size).iter().sum();
        let room = rows.checked_mul(row).and_then(|bytes| bytes.checked_add(ALIGNED * BUFFERS));
        room.ok_or_else(too_many)
    }

    /// Carves the buffers, one behind the other, out of memory of [`AnswerBuffers::bytes`].
    ///
    /// # Panics
    /// When the memory is smaller.
    pub(crate) fn carve(memory: SpanMut<'a>, request: &Request, rows: usize, vocab_size: usize) -> Self {
        let mut left = memory;
        let mut spans = row_bytes(request, vocab_size).map(|row| {
            let whole = std::mem::replace(&mut left, SpanMut::EMPTY);
            let (taken, rest) = whole.split_at((rows * row).next_multiple_of(ALIGNED));
            left = rest;
            Some(taken.part(0..rows * row))
        });
        let mut next = spans.iter_mut().map(|span| span.take().unwrap_or(SpanMut::EMPTY));
        let mut span = || next.next().unwrap_or(SpanMut::EMPTY);
        AnswerBuffers {
            row_status: span(),
            logits: span(),
            logits_stride: 0,
            ids: span(),
            values: span(),
            logsumexp: span(),
            logprobs: span(),
            ranks: span(),
            top_ids: span(),
            top_logprobs: span(),
        }
    }

    /// Copies an answer from buffers of the same request and rows; both must be in host memory.
    pub(crate) fn copy_from(self, from: AnswerBuffers<'_>) {
        for (to, from) in [
            (self.row_status, from.row_status),
            (self.logits, from.logits),
            (self.ids, from.ids),
            (self.values, from.values),
            (self.logsumexp, from.logsumexp),
            (self.logprobs, from.logprobs),
            (self.ranks, from.ranks),
            (self.top_ids, from.top_ids),
            (self.top_logprobs, from.top_logprobs),
        ] {
            if let (Some(to), Some(from)) = (to.into_host(), from.into_host()) {
                to.copy_from_slice(from);
            }
        }
    }

    fn check_overlaps(
        &self,
        [hidden, indices, workspace]: [Span<'_>; 3],
        inputs: &DeviceInputs<'_>,
    ) -> Result<()> {
        let all = [
            ("hidden_states", hidden),
            ("logits_indices", indices),
            ("workspace", workspace),
            ("row_status", self.row_status.as_span()),
            ("logits", self.logits.as_span()),
            ("ids", self.ids.as_span()),
            ("values", self.values.as_span()),
            ("logsumexp", self.logsumexp.as_span()),
            ("logprobs", self.logprobs.as_span()),
            ("ranks", self.ranks.as_span()),
            ("top_ids", self.top_ids.as_span()),
            ("top_logprobs", self.top_logprobs.as_span()),
        ];
        for (i, (what, one)) in all.iter().enumerate().skip(2) {
            let input = inputs.spans().find(|input| one.overlaps(*input));
            let input = input.map(|input| ("the inputs in device memory", input));
            if let Some((other, _)) =
                all[..i].iter().find(|(_, other)| one.overlaps(*other)).or(input.as_ref())
            {
                let wanted = format!("memory that {other} does not use");
                return Err(Error::shape(*what, wanted, format!("{one:?}"), "pass buffers of their own"));
            }
        }
        Ok(())
    }
}

fn check(
    span: &SpanMut<'_>,
    what: &str,
    rows: usize,
    per_row: usize,
    size: usize,
    memory: Memory,
) -> Result<()> {
    let Some(bytes) = rows.checked_mul(per_row).and_then(|n| n.checked_mul(size)) else {
        let got = format!("{rows} rows of {per_row}");
        return Err(Error::shape(what, "fewer bytes than 2^64", got, "send fewer rows in one step"));
    };
    span.check_len(what, bytes)?;
    span.check_memory(what, memory)?;
    span.check_aligned(what, size)
}

/// An answer that owns its memory, while it is being filled.
pub(crate) struct OwnedAnswer {
    request: Request,
    vocab_size: usize,
    row_status: Vec<u8>,
    logits: Vec<u8>,
    ids: Vec<i64>,
    values: Vec<f32>,
    logsumexp: Vec<f32>,
    logprobs: Logprobs,
}

impl OwnedAnswer {
    /// Room for `rows` rows.
    ///
    /// # Errors
    /// `Shape` where this machine does not have that much memory.
    pub fn new(request: &Request, rows: usize, vocab_size: usize) -> Result<Self> {
        let per_row = PerRow::of(request);
        let logits = match request {
            Request::Logits { dtype } => zeros("logits", [rows, vocab_size, dtype.size()])?,
            _ => Vec::new(),
        };
        Ok(OwnedAnswer {
            request: *request,
            vocab_size,
            row_status: zeros("row_status", [rows, 1, 1])?,
            logits,
            ids: zeros("ids", [rows, per_row.ids, 1])?,
            values: zeros("values", [rows, per_row.values, 1])?,
            logsumexp: zeros("logsumexp", [rows, per_row.logsumexp, 1])?,
            logprobs: Logprobs {
                targets: per_row.targets,
                top_n: per_row.top,
                logprobs: zeros("logprobs", [rows, per_row.targets, 1])?,
                ranks: zeros("ranks", [rows, per_row.targets, 1])?,
                top_ids: zeros("top_ids", [rows, per_row.top, 1])?,
                top_logprobs: zeros("top_logprobs", [rows, per_row.top, 1])?,
            },
        })
    }

    /// The buffers to fill.
    pub fn buffers(&mut self) -> AnswerBuffers<'_> {
        AnswerBuffers {
            row_status: SpanMut::host(&mut self.row_status),
            logits: SpanMut::host(&mut self.logits),
            logits_stride: 0,
            ids: SpanMut::host(&mut self.ids),
            values: SpanMut::host(&mut self.values),
            logsumexp: SpanMut::host(&mut self.logsumexp),
            logprobs: SpanMut::host(&mut self.logprobs.logprobs),
            ranks: SpanMut::host(&mut self.logprobs.ranks),
            top_ids: SpanMut::host(&mut self.logprobs.top_ids),
            top_logprobs: SpanMut::host(&mut self.logprobs.top_logprobs),
        }
    }

    /// The answer, once it is filled.
    pub fn into_answer(self, stats: StepStats) -> Answer {
        let output = match self.request {
            Request::Logits { dtype } => {
                Output::Logits { dtype, vocab_size: self.vocab_size, bytes: self.logits }
            }
            Request::Argmax => Output::Argmax { ids: self.ids },
            Request::TopK { k } => {
                Output::TopK { k, values: self.values, ids: self.ids, logsumexp: self.logsumexp }
            }
            Request::Logprobs { .. } => Output::Logprobs(self.logprobs),
            Request::Sample { logprobs } => {
                Output::Sample { ids: self.ids, logprobs: logprobs.map(|_| self.logprobs) }
            }
        };
        let row_status = self.row_status.into_iter().map(RowStatus::of_byte).collect();
        Answer { row_status, output, stats }
    }
}

/// Zeroed memory, whose pages the system maps on first use; an error, not an abort, where there is too
/// little.
fn zeros<T: bytemuck::Pod>(what: &str, shape: [usize; 3]) -> Result<Vec<T>> {
    let n = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    let too_large = || {
        let (wanted, got) = ("a buffer that fits this machine's memory", format!("{shape:?} elements"));
        Error::shape(format!("{what} of the answer"), wanted, got, "send fewer rows in one step")
    };
    let n = n.ok_or_else(too_large)?;
    bytemuck::allocation::try_zeroed_vec(n).map_err(|()| too_large())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;

    #[test]
    fn buffers_that_do_not_fit_are_refused_by_name() {
        let request = Request::top_k(3);
        let mut owned = OwnedAnswer::new(&request, 2, 10).unwrap();
        let hidden = [0f32; 8];
        let said = |buffers: AnswerBuffers<'_>, request: &Request| {
            let others = [Span::host(&hidden[..]), Span::EMPTY, Span::EMPTY];
            buffers
                .checked(request, 2, 10, Memory::Host, others, &DeviceInputs::default())
                .map(|_| ())
                .map_err(|e| e.to_string())
        };
        assert_eq!(said(owned.buffers(), &request), Ok(()));
        let buffers = AnswerBuffers { values: SpanMut::EMPTY, ..owned.buffers() };
        assert!(said(buffers, &request).unwrap_err().contains("values: wanted 24 bytes, got 0 bytes"));
        let mut misaligned = [0u64; 7];
        let ids = SpanMut::host(&mut misaligned[..]).part(4..52);
        let text = said(AnswerBuffers { ids, ..owned.buffers() }, &request).unwrap_err();
        assert!(text.contains("ids: wanted an address that is a multiple of 8"), "{text}");
        // SAFETY: nobody looks at it.
        #[allow(unsafe_code, reason = "memory that no slice can be")]
        let device = unsafe { SpanMut::from_raw(Memory::Device(0), 0x100, 24) };
        let text = said(AnswerBuffers { values: device, ..owned.buffers() }, &request).unwrap_err();
        assert!(text.contains("values: wanted host memory, got memory of device 0"), "{text}");
        let shared = owned.values.as_mut_ptr().expose_provenance() as u64 + 8;
        // SAFETY: nobody looks at it.
        #[allow(unsafe_code, reason = "memory that overlaps")]
        let over = unsafe { SpanMut::from_raw(Memory::Host, shared, 8) };
        let text = said(AnswerBuffers { logsumexp: over, ..owned.buffers() }, &request).unwrap_err();
        assert!(text.contains("logsumexp: wanted memory that values does not use"), "{text}");
        let request = Request::logits(DType::Bf16);
        let mut logits = [0u8; 39];
        let buffers = AnswerBuffers { logits: SpanMut::host(&mut logits[..]), ..owned.buffers() };
        assert!(
            said(buffers, &request).unwrap_err().contains("logits: wanted 2 rows, 20 bytes from row to row")
        );
        let buffers = AnswerBuffers { logits_stride: 18, ..owned.buffers() };
        assert!(
            said(buffers, &request).unwrap_err().contains("stride of the logits: wanted at least the 20")
        );
        assert!(OwnedAnswer::new(&Request::top_k(3), usize::MAX / 2, 10).is_err());
    }
}
