//! What belongs to rows and lies in device memory, on its way to products and passes.

use crate::error::{Error, Result};
use crate::memory::{Span, SpanMut};
use crate::params::{AdjustmentPlaces, SamplingRow};
use crate::result::{DeviceInputs, SamplingSpans};
use std::fmt;
use std::ops::Range;

/// Adjustments that some row of the group has in device memory, and the most entries of a row: the same on
/// every rank, so that messages have one shape, whatever the rows have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceAdjustments {
    /// Some row has a mask.
    pub allowed: bool,
    /// The most additions of a row; 0: no row has any. A row with more is one of bad input.
    pub additions: u32,
    /// The most ids that came before, of a row with penalties; 0: no row has penalties.
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
    /// No row has any.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn places(&self) -> AdjustmentPlaces {
        let DeviceAdjustments { allowed, additions, counts } = *self;
        AdjustmentPlaces { masks: u32::from(allowed), additions, counts, none: 0 }
    }

    /// Words of a row's mask in a message for so many ids.
    pub(crate) fn mask_words(&self, ids: usize) -> usize {
        if self.allowed { 2 * ids.div_ceil(64) } else { 0 }
    }

    /// Bytes of a row's message to a shard of so many ids: see `AdjustmentPlaces` of `kernels/params.h`.
    pub(crate) fn message_bytes(&self, ids: usize) -> usize {
        let counts = if self.counts > 0 { 16 + 8 * self.counts as usize } else { 0 };
        if ids == 0 { 0 } else { 4 * self.mask_words(ids) + 8 * self.additions as usize + counts }
    }

    /// Bytes of what is made of the entries of so many rows: see `PlacedAdjustments::carve`.
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
    /// In the shard, ascending within a row; `u32::MAX` in places that are left.
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
    /// And f32 `[rows]`: repetition, frequency, presence.
    pub counts: Option<(PlacedEntries<'a>, [Span<'a>; 3])>,
}

impl<'a> PlacedAdjustments<'a> {
    /// Entries of `rows` rows in [`DeviceAdjustments::placed_bytes`] bytes.
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

/// What is made of inputs in device memory. Spans are the backend's memory unless it says otherwise. Words of
/// `status`, u32, are or'ed with `LMHEAD_STATUS_BAD_INDEX` where what a row was given cannot be.
#[derive(Debug)]
pub enum Inputs<'a> {
    /// All words, u32, become `value`.
    Fill { words: SpanMut<'a>, value: u32 },
    /// Status words of the same rows: `into |= from`.
    Status { from: Span<'a>, into: SpanMut<'a> },
    /// Targets i64 `[rows, per_row]`, also of the host, become u32 as ranks exchange them;
    /// [`NO_TARGET`](crate::merge::NO_TARGET) where there is none.
    Targets { ids: Span<'a>, per_row: usize, vocab_size: usize, out: SpanMut<'a>, status: SpanMut<'a> },
    /// Bytes `parts` of `from`, which may be the host's, one behind the other.
    Parts { from: Span<'a>, parts: &'a [Range<usize>], out: SpanMut<'a> },
    /// Targets u32 `[n]`, and of each shard their logits f32 `[shards, n]`, become candidates `[n]` with the
    /// logit of the shard that has the id.
    Candidates { targets: Span<'a>, logits: Span<'a>, shards: &'a [Range<usize>], out: SpanMut<'a> },
    /// Sampling parameters become rows of the host's memory: waited for. Those of bad rows are greedy.
    Sampling {
        from: &'a SamplingSpans<'a>,
        vocab_size: usize,
        out: &'a mut [SamplingRow],
        status: SpanMut<'a>,
    },
    /// Sampling parameters become rows; those of bad rows are greedy. With `unfiltered` a row with a filter
    /// that counts is bad.
    SamplingRows {
        from: &'a SamplingSpans<'a>,
        vocab_size: usize,
        unfiltered: bool,
        out: SpanMut<'a>,
        status: SpanMut<'a>,
    },
    /// Of the adjustments of each row a digest: u64 `[rows]`.
    DigestAdjustments {
        from: &'a DeviceInputs<'a>,
        rows: usize,
        of: DeviceAdjustments,
        vocab_size: usize,
        out: SpanMut<'a>,
    },
    /// Adjustments of `rows` rows become messages to the shards `to`, one behind the other in `out`.
    PackAdjustments {
        from: &'a DeviceInputs<'a>,
        rows: usize,
        /// Of each message the parts, which share the rows evenly, and for how many rows each has room. Rows
        /// that are nobody's have no adjustments.
        parts: (usize, usize),
        of: DeviceAdjustments,
        shards: &'a [Range<usize>],
        /// The first, how far the next one is, and how many.
        to: (usize, usize, usize),
        out: SpanMut<'a>,
        status: SpanMut<'a>,
    },
    /// Messages of `rows` rows to the own shard become entries: see `PlacedAdjustments::carve`.
    UnpackAdjustments { from: Span<'a>, rows: usize, of: DeviceAdjustments, out: SpanMut<'a> },
}
