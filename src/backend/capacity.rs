//! Capacity steps on a device, whose shape is static (padded): what the host passes when it queues one or
//! captures it in a CUDA graph, and what the device reports back.

use crate::error::Error;
use crate::memory::{Span, SpanMut};
use crate::rows::HiddenRows;
use crate::step::HEADER_BYTES;

/// One rank's rows and header on their way to the peers. All spans are the device's.
#[derive(Debug)]
pub struct Payload<'a> {
    /// At most `capacity` rows. A row with a bad index becomes zeros.
    pub rows: HiddenRows<'a>,
    pub capacity: usize,
    /// An encoded [`Header`](crate::step::Header). The device fills in the number of the step and, where
    /// there is room for `digests`, the digest of the rows.
    pub header: [u8; HEADER_BYTES],
    /// `[capacity, hidden]`: zeros behind the last row.
    pub out: SpanMut<'a>,
    /// `[HEADER_BYTES]`.
    pub header_out: SpanMut<'a>,
    /// u32 `[capacity]`: `LMHEAD_STATUS_BAD_INDEX` for a row with a bad index, else 0.
    pub status: SpanMut<'a>,
    /// Room for a digest of each row, u64 `[capacity]`, or empty.
    pub digests: SpanMut<'a>,
    /// Digests of the rows' adjustments, u64 `[rows]`, or empty: see
    /// [`Inputs::DigestAdjustments`](crate::backend::Inputs::DigestAdjustments).
    pub adjusted: Span<'a>,
    /// Other words that go into the digest.
    pub inputs: Span<'a>,
}

/// Headers that came, and where to write which rows are to be multiplied. All spans are the device's.
#[derive(Debug)]
pub struct Arrivals<'a> {
    pub own: Span<'a>,
    /// The headers of `members` ranks, `pitch` bytes apart; those of a replica's `ranks` ranks are side by
    /// side. The own header is number `me`.
    pub headers: Span<'a>,
    pub pitch: usize,
    pub members: usize,
    pub ranks: usize,
    pub me: usize,
    pub capacity: usize,
    /// i32 `[replicas, parts, part_rows]`: positions of the rows to multiply; -1 where there is none. All are
    /// -1 where headers differ.
    pub positions: SpanMut<'a>,
    /// Parts in which a replica's rows are answered, as even as can be.
    pub parts: usize,
    /// Rows of the largest part of `capacity` rows.
    pub part_rows: usize,
    /// In rows: where the first replica's rows begin, and how far apart two replicas' rows begin.
    pub first_row: usize,
    pub replica_rows: usize,
}

/// What a device has reported of its capacity steps. Calls no device: it may be asked while steps run.
pub trait CapacitySteps: Send + Sync {
    /// The first step whose headers differed, counted from 1; the member whose header differed from this
    /// rank's; this rank's header and that member's.
    fn mismatch(&self) -> Option<(u64, usize, [[u8; HEADER_BYTES]; 2])>;
}

pub(super) fn of_the_host() -> Error {
    let fix = "begin capacity steps in host memory, or with the backend of a device";
    Error::unsupported("this backend", "steps that the host begins", "a step that the device begins", fix)
}
