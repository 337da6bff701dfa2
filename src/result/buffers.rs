//! Buffers that an answer is written to: the caller's ([`AnswerBuffers`]) or owned ones ([`OwnedAnswer`]).

use super::{Answer, DeviceInputs, Logprobs, Output, Request, RowStatus, StepStats, TokenLogprobs};
use crate::error::{Error, Result};
use crate::memory::{Memory, Span, SpanMut};
use bytemuck::cast_slice;

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
        AnswerBuffers::from_spans(std::array::from_fn(|_| SpanMut::EMPTY))
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
    /// The spans in the order of the fields; rows of logits are contiguous.
    fn from_spans(spans: [SpanMut<'a>; BUFFERS]) -> Self {
        let [row_status, logits, ids, values, logsumexp, logprobs, ranks, top_ids, top_logprobs] = spans;
        AnswerBuffers {
            row_status,
            logits,
            logits_stride: 0,
            ids,
            values,
            logsumexp,
            logprobs,
            ranks,
            top_ids,
            top_logprobs,
        }
    }

    fn into_spans(self) -> [SpanMut<'a>; BUFFERS] {
        [
            self.row_status,
            self.logits,
            self.ids,
            self.values,
            self.logsumexp,
            self.logprobs,
            self.ranks,
            self.top_ids,
            self.top_logprobs,
        ]
    }

    /// The same buffers, for a shorter lifetime: lends them to one of several steps.
    pub fn reborrow(&mut self) -> AnswerBuffers<'_> {
        AnswerBuffers {
            row_status: self.row_status.reborrow(),
            logits: self.logits.reborrow(),
            logits_stride: self.logits_stride,
            ids: self.ids.reborrow(),
            values: self.values.reborrow(),
            logsumexp: self.logsumexp.reborrow(),
            logprobs: self.logprobs.reborrow(),
            ranks: self.ranks.reborrow(),
            top_ids: self.top_ids.reborrow(),
            top_logprobs: self.top_logprobs.reborrow(),
        }
    }

    /// The bytes of `row_status`, `logits`, `ids`, `values`, `logsumexp`, `logprobs`, `ranks`, `top_ids` and
    /// `top_logprobs`; empty for a buffer in device memory.
    pub fn into_host(self) -> [&'a mut [u8]; BUFFERS] {
        self.into_spans().map(|span| span.into_host().unwrap_or_default())
    }

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
        AnswerBuffers::from_spans(
            row_bytes(request, vocab_size)
                .map(|row| left.take((rows * row).next_multiple_of(ALIGNED)).part(0..rows * row)),
        )
    }

    /// Copies an answer from buffers of the same request and rows; both must be in host memory.
    pub(crate) fn copy_from(self, from: AnswerBuffers<'_>) {
        for (to, from) in self.into_host().into_iter().zip(from.into_host()) {
            to.copy_from_slice(from);
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

/// An answer that owns its memory, while it is being filled: by a step, or by the steps of several ranks of
/// this process, each with the rows that it answers ([`OwnedAnswer::split`]).
#[derive(Debug)]
pub struct OwnedAnswer {
    pub(crate) request: Request,
    pub(crate) vocab_size: usize,
    row_status: Vec<u8>,
    pub(crate) logits: Vec<u8>,
    pub(crate) ids: Vec<i64>,
    pub(crate) values: Vec<f32>,
    pub(crate) logsumexp: Vec<f32>,
    /// Empty if the request has no targets and no best ids.
    pub(crate) logprobs: Logprobs,
}

impl OwnedAnswer {
    /// Zeroed memory for the answers to `rows` rows of `request` over `vocab_size` ids. The system maps its
    /// pages as they are written.
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

    /// Rows that there is room for.
    pub fn rows(&self) -> usize {
        self.row_status.len()
    }

    /// The status of row `row`.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row_status(&self, row: usize) -> RowStatus {
        RowStatus::of_byte(self.row_status[row])
    }

    /// Row `row` of one of the buffers.
    pub(crate) fn row<'b, T>(&self, buffer: &'b [T], row: usize) -> &'b [T] {
        let of_a_row = buffer.len() / self.rows();
        &buffer[row * of_a_row..(row + 1) * of_a_row]
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

    /// The buffers of consecutive parts of the rows, `parts[i]` rows each.
    ///
    /// # Panics
    /// When `parts` adds up to more rows than there are.
    pub fn split(&mut self, parts: &[usize]) -> Vec<AnswerBuffers<'_>> {
        let bytes = row_bytes(&self.request, self.vocab_size);
        let mut rest = self.buffers().into_spans();
        let mut part =
            |rows: usize| AnswerBuffers::from_spans(std::array::from_fn(|i| rest[i].take(rows * bytes[i])));
        parts.iter().map(|rows| part(*rows)).collect()
    }

    /// The bytes of each buffer, `[rows, bytes of a row]`, in the order of [`AnswerBuffers::into_host`];
    /// empty where the request does not fill it.
    pub fn columns(&self) -> [&[u8]; BUFFERS] {
        [
            &self.row_status,
            &self.logits,
            cast_slice(&self.ids),
            cast_slice(&self.values),
            cast_slice(&self.logsumexp),
            cast_slice(&self.logprobs.logprobs),
            cast_slice(&self.logprobs.ranks),
            cast_slice(&self.logprobs.top_ids),
            cast_slice(&self.logprobs.top_logprobs),
        ]
    }

    /// Whether the rows from `first` on have the same bits as all rows of `other`, which answers the same
    /// request; NaN equals NaN of the same bits.
    pub fn has_rows(&self, first: usize, other: &OwnedAnswer) -> bool {
        if (self.request, self.vocab_size) != (other.request, other.vocab_size) {
            return false;
        }
        let (end, bytes) = (first + other.rows(), row_bytes(&self.request, self.vocab_size));
        let mut columns = self.columns().into_iter().zip(other.columns()).zip(bytes);
        columns.all(|((own, other), row)| own.get(first * row..end * row) == Some(other))
    }

    /// Moves row `i` to `places[i]`, for every row, without a second copy of them: from the order in which
    /// ranks answer to that of a batch.
    ///
    /// # Panics
    /// When `places` is no permutation of the rows.
    pub fn reorder(&mut self, places: &[usize]) {
        let rows = self.rows();
        assert_eq!(places.len(), rows, "every row has a place");
        if places.iter().enumerate().all(|(row, place)| row == *place) {
            return;
        }
        for column in self.buffers().into_host() {
            let size = column.len() / rows;
            let mut held = vec![0; size];
            let mut moved = vec![false; rows];
            for start in 0..rows {
                if moved[start] {
                    continue;
                }
                // Follow one cycle of the permutation; `held` is the row displaced last.
                held.copy_from_slice(&column[start * size..][..size]);
                let mut at = start;
                loop {
                    at = places[at];
                    assert!(!moved[at], "two rows have the place {at}");
                    moved[at] = true;
                    held.swap_with_slice(&mut column[at * size..][..size]);
                    if at == start {
                        break;
                    }
                }
            }
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

    const VOCAB: usize = 70;

    fn requests() -> [Request; 10] {
        [
            Request::logits(DType::F32),
            Request::logits(DType::Bf16),
            Request::argmax(),
            Request::sample(),
            Request::sample_with_logprobs(0),
            Request::sample_with_logprobs(2),
            Request::top_k(3),
            Request::logprobs(0),
            Request::logprobs(2),
            Request::Logprobs { targets: 4, top_n: 3, processed: true },
        ]
    }

    /// Fills a part with rows `rows` of an answer whose rows all differ.
    fn fill(part: AnswerBuffers<'_>, rows: &[usize]) {
        assert_eq!(part.row_status.len(), rows.len());
        for (number, bytes) in part.into_host().into_iter().enumerate() {
            let size = bytes.len() / rows.len().max(1);
            for (i, byte) in bytes.iter_mut().enumerate() {
                let (row, at) = (rows[i / size], i % size);
                *byte = (row * 83 + at * 7 + number) as u8;
            }
        }
    }

    /// The answer to rows 0, 1, .. in this order.
    fn answer(request: &Request, rows: usize) -> OwnedAnswer {
        let mut whole = OwnedAnswer::new(request, rows, VOCAB).unwrap();
        fill(whole.buffers(), &(0..rows).collect::<Vec<_>>());
        whole
    }

    #[test]
    fn parts_of_ranks_become_the_answer_in_output_order() {
        for request in requests() {
            let want = answer(&request, 6);
            // Permutations with longer cycles, rows that stay, and a rank without rows.
            for parts in
                [&[&[0, 1][..], &[2, 3, 4, 5]][..], &[&[3, 1, 0], &[], &[2, 5, 4]], &[&[5, 4, 3, 2, 1, 0]]]
            {
                let mut whole = OwnedAnswer::new(&request, 6, VOCAB).unwrap();
                let sizes: Vec<usize> = parts.iter().map(|rows| rows.len()).collect();
                whole.split(&sizes).into_iter().zip(parts).for_each(|(part, rows)| fill(part, rows));
                let addresses = whole.columns().map(<[u8]>::as_ptr);
                whole.reorder(&parts.concat());
                assert_eq!(whole.columns(), want.columns(), "{request} {parts:?}");
                assert_eq!(whole.columns().map(<[u8]>::as_ptr), addresses, "{request}: in place");
            }
        }
    }

    #[test]
    #[should_panic(expected = "two rows have the place 1")]
    fn rows_do_not_share_a_place() {
        answer(&Request::argmax(), 3).reorder(&[1, 1, 2]);
    }

    /// The tensor-parallel ranks of a replica must answer the same bits: every byte and every status counts.
    #[test]
    fn an_answer_of_other_bits_is_another_answer() {
        for request in requests() {
            let whole = answer(&request, 5);
            let part = || {
                let mut part = OwnedAnswer::new(&request, 3, VOCAB).unwrap();
                fill(part.buffers(), &[1, 2, 3]);
                part
            };
            assert!(whole.has_rows(1, &part()), "{request}");
            assert!(!whole.has_rows(0, &part()) && !whole.has_rows(3, &part()), "{request}");
            for column in 0..whole.columns().len() {
                let bytes = part().columns()[column].len();
                for at in [0, bytes / 2, bytes.saturating_sub(1)].into_iter().filter(|_| bytes > 0) {
                    let mut spoiled = part();
                    spoiled.buffers().into_host()[column][at] ^= 1;
                    assert!(!whole.has_rows(1, &spoiled), "{request}: byte {at} of column {column}");
                }
            }
        }
    }
}
