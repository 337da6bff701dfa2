//! Inputs that belong to rows and lie in device memory, on their way to matmuls and passes.

use crate::adjust::DeviceAdjustments;
use crate::memory::{Span, SpanMut};
use crate::params::SamplingRow;
use crate::result::{DeviceInputs, SamplingSpans};
use std::ops::Range;

/// Entries by row: u32 `[rows + 1]`, `[rows, places]` and `[rows, places]`.
#[derive(Debug, Clone, Copy)]
pub struct PlacedEntries<'a> {
    pub offsets: Span<'a>,
    /// Relative to the shard, ascending within a row; `u32::MAX` in unused places.
    pub ids: Span<'a>,
    pub values: Span<'a>,
}

/// Adjustments of a job's rows for the shard's vocabulary, in the backend's memory. A kind that is absent
/// changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlacedAdjustments<'a> {
    /// The first row's mask words, and how many words there are from row to row.
    pub allowed: Option<(Span<'a>, usize)>,
    pub logit_bias: Option<PlacedEntries<'a>>,
    /// Entries, and f32 `[rows]` each of repetition, frequency and presence.
    pub counts: Option<(PlacedEntries<'a>, [Span<'a>; 3])>,
}

impl<'a> PlacedAdjustments<'a> {
    /// Cuts [`DeviceAdjustments::placed_bytes`] bytes into the entries of `rows` rows.
    pub(crate) fn carve(from: Span<'a>, rows: usize, of: &DeviceAdjustments) -> Self {
        let mut at = 0;
        let mut take = |words: usize| {
            at += 4 * words;
            from.part(at - 4 * words..at)
        };
        let mut entries = |each: u32| {
            let each = rows * each as usize;
            PlacedEntries { offsets: take(rows + 1), ids: take(each), values: take(each) }
        };
        let logit_bias = (of.logit_bias > 0).then(|| entries(of.logit_bias));
        let counts = (of.counts > 0).then(|| entries(of.counts));
        let counts = counts.map(|counts| (counts, [(); 3].map(|()| take(rows))));
        PlacedAdjustments { allowed: None, logit_bias, counts }
    }
}

/// What is to be made of inputs in device memory. Spans are the backend's memory unless a variant says
/// otherwise. Words of `status`, u32, are or'ed with `LMHEAD_STATUS_BAD_INDEX` for rows with an input that
/// cannot be.
#[derive(Debug)]
pub enum Inputs<'a> {
    /// Sets all words, u32, to `value`.
    Fill { words: SpanMut<'a>, value: u32 },
    /// Status words of the same rows: `into |= from`.
    Status { from: Span<'a>, into: SpanMut<'a> },
    /// Encodes targets i64 `[rows, per_row]`, which may be in host memory, as ranks exchange them: u32,
    /// [`NO_TARGET`](crate::merge::NO_TARGET) where there is none.
    Targets { ids: Span<'a>, per_row: usize, vocab_size: usize, out: SpanMut<'a>, status: SpanMut<'a> },
    /// Copies bytes `parts` of `from`, which may be in host memory, one behind the other.
    Parts { from: Span<'a>, parts: &'a [Range<usize>], out: SpanMut<'a> },
    /// Makes candidates `[n]` of targets u32 `[n]` and their logits of each shard, f32 `[shards, n]`: each
    /// gets the logit of the shard that has its id.
    Candidates { targets: Span<'a>, logits: Span<'a>, shards: &'a [Range<usize>], out: SpanMut<'a> },
    /// Copies sampling parameters to rows in host memory, and waits for that. Bad rows become greedy.
    Sampling {
        from: &'a SamplingSpans<'a>,
        vocab_size: usize,
        out: &'a mut [SamplingRow],
        status: SpanMut<'a>,
    },
    /// Makes rows of sampling parameters; bad rows become greedy. With `unfiltered` a row whose filter has an
    /// effect is bad.
    SamplingRows {
        from: &'a SamplingSpans<'a>,
        vocab_size: usize,
        unfiltered: bool,
        out: SpanMut<'a>,
        status: SpanMut<'a>,
    },
    /// A digest of the adjustments of each row: u64 `[rows]`.
    DigestAdjustments {
        from: &'a DeviceInputs<'a>,
        rows: usize,
        of: DeviceAdjustments,
        vocab_size: usize,
        out: SpanMut<'a>,
    },
    /// Makes messages to the shards `to` of the adjustments of `rows` rows, one behind the other in `out`.
    PackAdjustments {
        from: &'a DeviceInputs<'a>,
        rows: usize,
        /// How many parts each message has, which share the rows evenly, and for how many rows each part has
        /// room. Rows of padding have no adjustments.
        parts: (usize, usize),
        of: DeviceAdjustments,
        shards: &'a [Range<usize>],
        /// The first shard, the step to the next one, and how many.
        to: (usize, usize, usize),
        out: SpanMut<'a>,
        status: SpanMut<'a>,
    },
    /// Unpacks messages of `rows` rows to this rank's shard into entries: see `PlacedAdjustments::carve`.
    UnpackAdjustments { from: Span<'a>, rows: usize, of: DeviceAdjustments, out: SpanMut<'a> },
}
