//! Inputs that belong to rows and lie in device memory, on their way to matmuls and passes.

use crate::error::{Error, Result};
use crate::memory::{Span, SpanMut};
use crate::params::{AdjustmentPlaces, SamplingRow};
use crate::result::{DeviceInputs, SamplingSpans};
use std::fmt;
use std::ops::Range;

/// Which adjustments some row of the group has in device memory, and the most entries of a row. The same on
/// every rank, so that messages have one shape whatever the rows have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceAdjustments {
    /// Some row has a mask.
    pub allowed: bool,
    /// The most additions (logit bias) of a row; 0: no row has any. A row with more is bad input.
    pub additions: u32,
    /// The most ids with counts of a row with penalties; 0: no row has penalties.
    pub counts: u32,
}

impl fmt::Display for DeviceAdjustments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceAdjustments { allowed, additions, counts } = self;
        let masks = if *allowed { "masks" } else { "no masks" };
        write!(f, "{masks}, up to {additions} additions and {counts} counts of a row")
    }
}

impl DeviceAdjustments {
    /// Whether no row has any.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn places(&self) -> AdjustmentPlaces {
        let DeviceAdjustments { allowed, additions, counts } = *self;
        AdjustmentPlaces { masks: u32::from(allowed), additions, counts, none: 0 }
    }

    /// Words of a row's mask in a message for `ids` ids.
    pub(crate) fn mask_words(&self, ids: usize) -> usize {
        if self.allowed { 2 * ids.div_ceil(64) } else { 0 }
    }

    /// Bytes of a row's message to a shard of `ids` ids: see `AdjustmentPlaces` of `kernels/params.h`.
    pub(crate) fn message_bytes(&self, ids: usize) -> usize {
        let counts = if self.counts > 0 { 16 + 8 * self.counts as usize } else { 0 };
        if ids == 0 { 0 } else { 4 * self.mask_words(ids) + 8 * self.additions as usize + counts }
    }

    /// Bytes of the unpacked entries of `rows` rows: see `PlacedAdjustments::carve`.
    ///
    /// # Errors
    /// `Shape` for more entries than kernels count.
    pub(crate) fn placed_bytes(&self, rows: usize) -> Result<usize> {
        let each = self.additions.max(self.counts) as usize;
        if rows.checked_mul(each).is_none_or(|n| u32::try_from(n).is_err()) {
            let wanted = "fewer than 2^32 entries of all rows of the group";
            let got = format!("{rows} rows of up to {each}");
            return Err(Error::shape("adjustments in device memory", wanted, got, "state a smaller bound"));
        }
        let entries = |each: u32| if each > 0 { rows + 1 + 2 * rows * each as usize } else { 0 };
        let floats = if self.counts > 0 { 3 * rows } else { 0 };
        Ok(4 * (entries(self.additions) + entries(self.counts) + floats))
    }
}

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
    pub additions: Option<PlacedEntries<'a>>,
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
        let additions = (of.additions > 0).then(|| entries(of.additions));
        let counts = (of.counts > 0).then(|| entries(of.counts));
        let counts = counts.map(|counts| (counts, [(); 3].map(|()| take(rows))));
        PlacedAdjustments { allowed: None, additions, counts }
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
    /// Unpacks messages of `rows` rows to the own shard into entries: see `PlacedAdjustments::carve`.
    UnpackAdjustments { from: Span<'a>, rows: usize, of: DeviceAdjustments, out: SpanMut<'a> },
}
