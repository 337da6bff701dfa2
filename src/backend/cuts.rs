//! The search for the cuts of filters in held rows whose sampling parameters only the device knows: the
//! rounds of [`sampling::cut`](crate::sampling::cut), for all rows at once. What is launched and exchanged
//! depends on the number of rows alone, so that a CUDA graph can be replayed with any parameters.

use crate::error::{Error, Result};
use crate::memory::{Span, SpanMut};
use crate::params::{CutSearch, HeldHistogram, HeldTies, HeldWanted};
use crate::sampling::cut::{Digit, Sum};

/// One pass of these rounds. All spans are the device's; they have a place for each held row, and the
/// vocabulary has `shards` shards.
#[derive(Debug)]
pub enum Cuts<'a> {
    /// f32 `[rows]`: the largest logit of each row; minus infinity where nothing is allowed, NaN where a
    /// logit is not finite.
    Maxima { out: SpanMut<'a> },
    /// Begins the rows' first search, for [`Sum::Ids`], whose first digit is `digit`. `maxima` are f32
    /// `[shards, rows]`. `bare` `[rows]` gets the parameters without the filters, for the rows' owners.
    Begin {
        sampling: Span<'a>,
        maxima: Span<'a>,
        shards: usize,
        digit: Digit,
        room: SpanMut<'a>,
        bare: SpanMut<'a>,
    },
    /// u64 `[rows, digit.bins()]`: the ids of each row, or their masses, by the digit that is counted next.
    Histograms { digit: Digit, room: Span<'a>, out: SpanMut<'a> },
    /// Learns the rows' next digit from all shards' histograms, `[shards, rows decided here, digit.bins()]`.
    /// `out` is what each shard is told: `[shards, rows decided here]` of
    /// [`CUT_BYTES`](crate::sampling::cut). `sampling` and `room` are those of all held rows, of which those
    /// from `first` on are decided here; `searches` are of [`SEARCH_BYTES`] each.
    Learn {
        sum: Sum,
        digit: Digit,
        histograms: Span<'a>,
        shards: usize,
        first: usize,
        sampling: Span<'a>,
        room: Span<'a>,
        searches: SpanMut<'a>,
        out: SpanMut<'a>,
    },
    /// Takes what all owners have found, `[rows]` of `CUT_BYTES`; `next` is the digit to count next, if any.
    Next { sum: Sum, found: Span<'a>, next: Option<Digit>, sampling: Span<'a>, room: SpanMut<'a> },
    /// Ends a search. After the one for [`Sum::Ids`] that for [`Sum::Masses`] begins, whose first digit is
    /// `digit`.
    End { sum: Sum, digit: Digit, sampling: Span<'a>, room: SpanMut<'a> },
    /// `[rows]` [`Candidate`](crate::merge::Candidate)s: what each row draws from the logits that are kept,
    /// as [`Out::Drawn`](crate::backend::Out::Drawn) says.
    Candidates { room: Span<'a>, out: SpanMut<'a> },
}

/// Where the state of the held rows between passes lies: four arrays, one behind the other, by their first
/// byte.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SearchOffsets {
    pub wanted: usize,
    pub histograms: usize,
    pub ties: usize,
    pub ends: usize,
    pub bytes: usize,
}

impl SearchOffsets {
    pub const ALIGNED: usize = 16;

    /// # Errors
    /// `Shape` for more rows than memory has bytes.
    pub fn of(rows: usize) -> Result<Self> {
        let mut end = 0usize;
        let mut take = |each: usize| {
            let at = end;
            let bytes = rows.checked_mul(each)?.checked_next_multiple_of(Self::ALIGNED)?;
            end = at.checked_add(bytes)?;
            Some(at)
        };
        let places =
            [size_of::<HeldWanted>(), size_of::<HeldHistogram>(), size_of::<HeldTies>(), 4].map(&mut take);
        match places {
            [Some(wanted), Some(histograms), Some(ties), Some(ends)] => {
                Ok(SearchOffsets { wanted, histograms, ties, ends, bytes: end })
            }
            _ => Err(Error::shape(
                "rows that are sampled",
                "fewer than memory has bytes",
                rows,
                "send fewer rows",
            )),
        }
    }
}

/// Bytes of the state of `rows` held rows between passes, aligned to 16.
///
/// # Errors
/// `Shape` for more rows than memory has bytes.
pub fn room_bytes(rows: usize) -> Result<usize> {
    SearchOffsets::of(rows).map(|room| room.bytes)
}

/// Bytes of the search of one row that a rank decides.
pub const SEARCH_BYTES: usize = size_of::<CutSearch>();

pub(crate) fn of_the_host() -> Error {
    let fix = "search with histograms and ties, or with the backend of a device";
    Error::unsupported("the host's memory", "passes over histograms", "searches of a device", fix)
}
