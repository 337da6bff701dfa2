//! Where filters cut held rows whose sampling parameters only the device knows: the searches of
//! [`sampling::cut`](crate::sampling::cut) over all rows at once. What is launched and exchanged depends on
//! the number of rows alone, so that a graph replays it for any parameters.

use crate::error::{Error, Result};
use crate::memory::{Span, SpanMut};
use crate::params::{CutSearch, HeldHistogram, HeldTies, HeldWanted};
use crate::sampling::cut::{Digit, Sum};

/// One pass of these rounds. All spans are the device's; rows are all that are held, `shards` how many shards
/// the vocabulary has.
#[derive(Debug)]
pub enum Cuts<'a> {
    /// f32 `[rows]`: the largest logit of each row; minus infinity where nothing is allowed, NaN where a
    /// logit is not finite.
    Maxima { out: SpanMut<'a> },
    /// Of `maxima` f32 `[shards, rows]` the rows begin their first search, for [`Sum::Ids`], whose first
    /// digit is `digit`. `bare` `[rows]` are the parameters without the filters: what is left for the rows'
    /// owners.
    Begin {
        sampling: Span<'a>,
        maxima: Span<'a>,
        shards: usize,
        digit: Digit,
        room: SpanMut<'a>,
        bare: SpanMut<'a>,
    },
    /// u64 `[rows, digit.bins()]`: of each row the ids, or masses, by the digit that is counted next.
    Histograms { digit: Digit, room: Span<'a>, out: SpanMut<'a> },
    /// Of all shards' histograms `[shards, rows decided here, digit.bins()]` their next digit, for each
    /// shard: `out` `[shards, rows decided here]` of [`CUT_BYTES`](crate::sampling::cut). `sampling` and
    /// `room` are those of all held rows, of which those from `first` on are decided here; `searches` of
    /// [`SEARCH_BYTES`] each.
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
    /// What all owners have found, `[rows]` of `CUT_BYTES`: the digit that is counted `next`, or none.
    Next { sum: Sum, found: Span<'a>, next: Option<Digit>, sampling: Span<'a>, room: SpanMut<'a> },
    /// The end of a search. That of [`Sum::Ids`] is followed by the one for [`Sum::Masses`], whose first
    /// digit is `digit`.
    End { sum: Sum, digit: Digit, sampling: Span<'a>, room: SpanMut<'a> },
    /// `[rows]` [`Candidate`](crate::merge::Candidate)s: what each row draws of what is kept, as
    /// [`Out::Drawn`](crate::backend::Out::Drawn) says.
    Candidates { room: Span<'a>, out: SpanMut<'a> },
}

/// What is known of each held row between passes: one array behind the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub wanted: usize,
    pub histograms: usize,
    pub ties: usize,
    pub ends: usize,
    pub bytes: usize,
}

impl Room {
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
                Ok(Room { wanted, histograms, ties, ends, bytes: end })
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

/// Bytes of what is known of so many held rows between passes, aligned to 16.
///
/// # Errors
/// `Shape` for more rows than memory has bytes.
pub fn room_bytes(rows: usize) -> Result<usize> {
    Room::of(rows).map(|room| room.bytes)
}

/// Bytes of a row's search, of the rows that a rank decides.
pub const SEARCH_BYTES: usize = size_of::<CutSearch>();

pub(crate) fn of_the_host() -> Error {
    let fix = "search with histograms and ties, or with the backend of a device";
    Error::unsupported("the host's memory", "passes over histograms", "searches of a device", fix)
}
