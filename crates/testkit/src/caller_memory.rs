//! A caller's memory for [`LmHead::run_into`]: answer buffers filled with garbage, and hidden rows that are
//! not contiguous.

use crate::Random;
use lmhead::backend::On;
use lmhead::dtype::DType;
use lmhead::error::Result;
use lmhead::head::{LmHead, StepOptions};
use lmhead::memory::{Span, SpanMut};
use lmhead::result::{Answer, AnswerBuffers, OwnedAnswer, Request, RowInputs, StepStats};
use lmhead::rows::{HiddenRows, RowCounts};

/// The byte that fills buffers before an answer; no number of any answer consists of it.
const GARBAGE: u8 = 0xa5;

fn garbage<T: bytemuck::Pod>(elements: usize) -> Vec<T> {
    let mut all = vec![T::zeroed(); elements];
    bytemuck::cast_slice_mut::<T, u8>(&mut all).fill(GARBAGE);
    all
}

/// Room for one answer, full of garbage.
pub struct OwnBuffers {
    answer: OwnedAnswer,
    /// The logits, with gaps between the rows.
    logits: Vec<u8>,
    /// Bytes of a row of logits, and from one to the next.
    row: usize,
    stride: usize,
}

impl OwnBuffers {
    /// Buffers for `rows` rows over `vocab` ids; rows of logits have a gap of `gap` elements between them.
    pub fn new(request: &Request, rows: usize, vocab: usize, gap: usize) -> Self {
        let mut answer = OwnedAnswer::new(request, rows, vocab).expect("memory for a test's answer");
        answer.buffers().into_host().into_iter().for_each(|column| column.fill(GARBAGE));
        let (row, stride) = match request {
            Request::Logits { dtype } => (vocab * dtype.size(), (vocab + gap) * dtype.size()),
            _ => (0, 0),
        };
        OwnBuffers { answer, logits: garbage(rows * stride), row, stride }
    }

    pub fn lend(&mut self) -> AnswerBuffers<'_> {
        let logits = SpanMut::host(&mut self.logits);
        AnswerBuffers { logits, logits_stride: self.stride, ..self.answer.buffers() }
    }

    /// The answer that a step has written.
    ///
    /// # Panics
    /// Where the step has written between rows of logits.
    pub fn into_answer(mut self, stats: StepStats) -> Answer {
        let logits = self.answer.buffers().logits.into_host().expect("host memory");
        let rows = logits.chunks_mut(self.row.max(1)).zip(self.logits.chunks(self.stride.max(1)));
        for (to, row) in rows {
            let (own, gap) = row.split_at(self.row);
            to.copy_from_slice(own);
            assert!(gap.iter().all(|byte| *byte == GARBAGE), "written between rows of logits");
        }
        self.answer.into_answer(stats)
    }
}

/// Runs one step as two calls, `begin` and `run_into`, into buffers of garbage. `gap`: elements between rows
/// of logits.
///
/// # Errors
/// As the two calls.
pub fn run_into(
    head: &mut LmHead,
    counts: &RowCounts,
    request: &Request,
    adjusted: bool,
    hidden: HiddenRows<'_>,
    inputs: &RowInputs<'_>,
    gap: usize,
) -> Result<Answer> {
    let options = StepOptions { adjusted, ..StepOptions::default() };
    let ticket = head.begin(counts, request, options)?;
    let rows = head.answered_rows(hidden.len()).len();
    let mut buffers = OwnBuffers::new(request, rows, head.config().vocab_size, gap);
    let stats = head.run_into(ticket, hidden, inputs, buffers.lend(), On::default())?;
    Ok(buffers.into_answer(stats))
}

/// Hidden rows in another order than the wanted one, with garbage between and behind them.
pub struct Scattered {
    /// Aligned to any element.
    words: Vec<u64>,
    dtype: DType,
    hidden: usize,
    stride: usize,
    rows: usize,
    selection: Vec<i64>,
    short: Vec<i32>,
}

impl Scattered {
    /// `bytes` are the wanted rows, `[rows, hidden]`.
    pub fn new(bytes: &[u8], dtype: DType, hidden: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let row_bytes = hidden * dtype.size();
        let (wanted, stride) = (bytes.len() / row_bytes, row_bytes + random.below(4) * dtype.size());
        let rows = wanted + random.below(4);
        let mut words: Vec<u64> = garbage((rows * stride).div_ceil(8));
        let mut places: Vec<usize> = (0..rows).collect();
        let mut selection = Vec::new();
        for row in bytes.chunks(row_bytes) {
            let place = places.swap_remove(random.below(places.len()));
            bytemuck::cast_slice_mut::<u64, u8>(&mut words)[place * stride..][..row_bytes]
                .copy_from_slice(row);
            selection.push(place as i64);
        }
        let short = selection.iter().map(|&place| place as i32).collect();
        Scattered { words, dtype, hidden, stride, rows, selection, short }
    }

    /// The wanted rows, selected by indices of 4 or 8 bytes.
    ///
    /// # Errors
    /// Never, as these rows are valid.
    pub fn rows(&self, index_bytes: usize) -> Result<HiddenRows<'_>> {
        let data = Span::host(&self.words);
        let all = HiddenRows::strided(data, self.dtype, self.rows, self.hidden, self.stride)?;
        match index_bytes {
            4 => all.select_i32(&self.short),
            _ => all.select_i64(&self.selection),
        }
    }
}
