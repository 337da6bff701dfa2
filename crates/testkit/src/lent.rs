//! A caller's memory for [`LmHead::run_into`]: answer buffers filled with garbage, and hidden rows that are
//! not contiguous.

use crate::Random;
use lmhead::backend::On;
use lmhead::dtype::DType;
use lmhead::error::Result;
use lmhead::head::{LmHead, StepOptions};
use lmhead::memory::{Span, SpanMut};
use lmhead::result::{
    Answer, AnswerBuffers, Logprobs, Output, Request, RowInputs, RowStatus, StepStats, TokenLogprobs,
};
use lmhead::rows::{HiddenRows, RowCounts};

/// The byte that fills buffers before an answer; no number of any answer consists of it.
const GARBAGE: u8 = 0xa5;

fn garbage<T: bytemuck::Pod>(elements: usize) -> Vec<T> {
    let mut all = vec![T::zeroed(); elements];
    bytemuck::cast_slice_mut::<T, u8>(&mut all).fill(GARBAGE);
    all
}

/// Room for one answer.
pub struct OwnBuffers {
    request: Request,
    vocab: usize,
    logits_stride: usize,
    pub row_status: Vec<u8>,
    pub logits: Vec<u8>,
    pub ids: Vec<i64>,
    pub values: Vec<f32>,
    pub logsumexp: Vec<f32>,
    pub logprobs: Vec<f32>,
    pub ranks: Vec<i64>,
    pub top_ids: Vec<i64>,
    pub top_logprobs: Vec<f32>,
}

impl OwnBuffers {
    /// Buffers for `rows` rows over `vocab` ids; rows of logits have a gap of `gap` elements between them.
    pub fn new(request: &Request, rows: usize, vocab: usize, gap: usize) -> Self {
        let logits_stride = match request {
            Request::Logits { dtype } => (vocab + gap) * dtype.size(),
            _ => 0,
        };
        let ids = match *request {
            Request::Argmax | Request::Sample { .. } => 1,
            Request::TopK { k } => k,
            _ => 0,
        };
        let k = if let Request::TopK { k } = *request { k } else { 0 };
        let (targets, top_n) = match *request {
            Request::Logprobs { targets, top_n, .. } => (targets, top_n),
            Request::Sample { logprobs: Some(TokenLogprobs { top_n, .. }) } => (1, top_n),
            _ => (0, 0),
        };
        OwnBuffers {
            request: *request,
            vocab,
            logits_stride,
            row_status: garbage(rows),
            logits: garbage(rows * logits_stride),
            ids: garbage(rows * ids),
            values: garbage(rows * k),
            logsumexp: garbage(rows * k.min(1)),
            logprobs: garbage(rows * targets),
            ranks: garbage(rows * targets),
            top_ids: garbage(rows * top_n),
            top_logprobs: garbage(rows * top_n),
        }
    }

    pub fn lend(&mut self) -> AnswerBuffers<'_> {
        AnswerBuffers {
            row_status: SpanMut::host(&mut self.row_status),
            logits: SpanMut::host(&mut self.logits),
            logits_stride: self.logits_stride,
            ids: SpanMut::host(&mut self.ids),
            values: SpanMut::host(&mut self.values),
            logsumexp: SpanMut::host(&mut self.logsumexp),
            logprobs: SpanMut::host(&mut self.logprobs),
            ranks: SpanMut::host(&mut self.ranks),
            top_ids: SpanMut::host(&mut self.top_ids),
            top_logprobs: SpanMut::host(&mut self.top_logprobs),
        }
    }

    /// The answer that a step has written.
    ///
    /// # Panics
    /// Where the step has written between rows of logits.
    pub fn into_answer(self, stats: StepStats) -> Answer {
        let told = |targets, top_n| Logprobs {
            targets,
            top_n,
            logprobs: self.logprobs.clone(),
            ranks: self.ranks.clone(),
            top_ids: self.top_ids.clone(),
            top_logprobs: self.top_logprobs.clone(),
        };
        let output = match self.request {
            Request::Logits { dtype } => {
                let mut bytes = Vec::new();
                for row in self.logits.chunks(self.logits_stride) {
                    let (own, gap) = row.split_at(self.vocab * dtype.size());
                    bytes.extend_from_slice(own);
                    assert!(gap.iter().all(|byte| *byte == GARBAGE), "written between rows of logits");
                }
                Output::Logits { dtype, vocab_size: self.vocab, bytes }
            }
            Request::Argmax => Output::Argmax { ids: self.ids },
            Request::TopK { k } => {
                Output::TopK { k, values: self.values, ids: self.ids, logsumexp: self.logsumexp }
            }
            Request::Logprobs { targets, top_n, .. } => Output::Logprobs(told(targets, top_n)),
            Request::Sample { logprobs } => Output::Sample {
                logprobs: logprobs.map(|TokenLogprobs { top_n, .. }| told(1, top_n)),
                ids: self.ids,
            },
            other => panic!("no buffers known of {other}"),
        };
        let row_status = self.row_status.into_iter().map(RowStatus::of_byte).collect();
        Answer { row_status, output, stats }
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
