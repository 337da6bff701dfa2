//! Device memory between the ranks of a head group, on a stream: the second, optional side of a transport.

use super::{Call, Exchange, Fault};
use crate::memory::{Memory, Stream};

/// Device bytes: an address and a length. 0 bytes are legal, and their address is never looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Piece {
    pub address: u64,
    pub len: usize,
}

/// What a transport of device memory can do; agreed between the ranks at creation, never per step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Caps {
    /// Its calls may be captured in a CUDA graph.
    pub capture: bool,
}

/// What [`DeviceExchange::mark`] returns for [`DeviceExchange::wait`]: a number of the transport's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending(pub u64);

/// Collectives on device memory, queued on the caller's stream: [`Exchange`]'s, with the same rules for
/// channels, order and arguments. The host transport whose [`Exchange::device`] this is stays the control
/// plane: headers, notices and places go over it.
///
/// A call returns when its work is queued. It may wait for the peers to come, until the call's deadline, and
/// not for their streams.
///
/// # Safety
/// Implementations write no other bytes than the receive pieces, and read no others than the send pieces.
pub unsafe trait DeviceExchange: Send + Sync {
    /// The memory that pieces lie in.
    fn memory(&self) -> Memory;

    fn caps(&self) -> Caps;

    /// As [`Exchange::all_gather_v`].
    ///
    /// # Errors
    /// A [`Fault`]; what is queued by then ends without harm, and the receive pieces are of no particular
    /// content.
    ///
    /// # Safety
    /// The pieces are in [`DeviceExchange::memory`], nobody else writes what is sent or uses what is received
    /// until the work has ended, and they live until then; where it is captured, until the graph is dropped.
    unsafe fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: Piece,
        recv: &[Piece],
        stream: Stream,
    ) -> Result<(), Fault>;

    /// As [`Exchange::all_to_all_v`].
    ///
    /// # Errors
    /// As [`DeviceExchange::all_gather_v`].
    ///
    /// # Safety
    /// As [`DeviceExchange::all_gather_v`].
    unsafe fn all_to_all_v(
        &self,
        call: &Call,
        send: &[Piece],
        recv: &[Piece],
        stream: Stream,
    ) -> Result<(), Fault>;

    /// Marks the end of what is on the stream so far.
    ///
    /// # Errors
    /// `Broken` where the device refuses.
    fn mark(&self, call: &Call, stream: Stream) -> Result<Pending, Fault>;

    /// Waits for what was marked: until it has ended, the device or the transport has failed, `control` has a
    /// fault pending, or the call's deadline has passed.
    ///
    /// # Errors
    /// The fault. `Timeout` names members where the transport knows who did not come; else nobody.
    fn wait(&self, pending: Pending, call: &Call, control: &dyn Exchange) -> Result<(), Fault>;

    /// Ends everything that waits here, on this rank, for `why`. Idempotent, from any thread, never blocks.
    fn abort(&self, why: &Fault);
}
