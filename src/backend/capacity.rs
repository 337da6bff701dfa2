//! Capacity steps of a device, whose shape is fixed: what the host says of one when it is queued, or captured
//! in a graph; and what the device says back.

use crate::error::Error;
use crate::memory::{Span, SpanMut};
use crate::rows::HiddenRows;
use crate::step::HEADER_BYTES;

/// One rank's rows and header on their way to the peers. All spans are the device's.
#[derive(Debug)]
pub struct Payload<'a> {
    /// At most `capacity`. A row whose index is none becomes zeros.
    pub rows: HiddenRows<'a>,
    pub capacity: usize,
    /// An encoded [`Header`](crate::step::Header); the device puts in the number of the step, and the digest
    /// of the rows where there is room for `digests`.
    pub header: [u8; HEADER_BYTES],
    /// `[capacity, hidden]`: zeros behind the last row.
    pub out: SpanMut<'a>,
    /// `[HEADER_BYTES]`.
    pub header_out: SpanMut<'a>,
    /// u32 `[capacity]`: `LMHEAD_STATUS_BAD_INDEX` where an index is none, else 0.
    pub status: SpanMut<'a>,
    /// u64 `[capacity]`, or empty.
    pub digests: SpanMut<'a>,
    /// Of the rows' adjustments, u64 `[rows]`, or empty: see
    /// [`Inputs::DigestAdjustments`](crate::backend::Inputs::DigestAdjustments).
    pub adjusted: Span<'a>,
    /// Words that are part of the digest, too.
    pub inputs: Span<'a>,
}

/// Headers that came, and where to say which rows are to be multiplied. All spans are the device's.
#[derive(Debug)]
pub struct Arrivals<'a> {
    pub own: Span<'a>,
    /// Of `members` ranks, `pitch` bytes from one to the next; of each replica those of `ranks` ranks, side
    /// by side. The own one is number `me`.
    pub headers: Span<'a>,
    pub pitch: usize,
    pub members: usize,
    pub ranks: usize,
    pub me: usize,
    pub capacity: usize,
    /// i32 `[replicas, parts, part_rows]`: numbers of rows; -1 where there is none. All are -1 where headers
    /// differ.
    pub positions: SpanMut<'a>,
    /// The rows of a replica are answered in so many parts, as even as can be.
    pub parts: usize,
    /// Of the largest part of `capacity` rows.
    pub part_rows: usize,
    /// Where the rows of the first replica begin, and from one replica's rows to the next one's: in rows.
    pub first_row: usize,
    pub replica_rows: usize,
}

/// What a device has said of its capacity steps. Asks no device: it may be looked at while steps run.
pub trait CapacitySteps: Send + Sync {
    /// The first step whose headers differed, counted from 1; which member's was not the own one; and the own
    /// and that member's header.
    fn mismatch(&self) -> Option<(u64, usize, [[u8; HEADER_BYTES]; 2])>;
}

pub(super) fn of_the_host() -> Error {
    let fix = "begin capacity steps in host memory, or with the backend of a device";
    Error::unsupported("this backend", "steps that the host begins", "a step that the device begins", fix)
}
