//! Collectives of device memory by kernels of this crate (`kernels/exchange_peers_sm80.cu`), which store what
//! they send straight into the memory of their peers. A transport finds the *windows*: memory of each member
//! that the kernels of all members reach. A backend launches the kernels.

use super::{Fault, Piece};
use crate::memory::Stream;
use crate::params;
use std::time::Duration;

/// The most members of a group that has windows.
pub const MOST_MEMBERS: usize = params::LMHEAD_MAX_PEERS as usize;
/// Alignment of a window, in bytes.
pub const WINDOW_ALIGNMENT: usize = 128;

/// Bytes of a member's window in a group of `size` members.
pub const fn window_bytes(size: usize) -> usize {
    let lanes = size * params::LMHEAD_PEER_LANES as usize;
    let slots = (params::LMHEAD_PEER_SLOTS * params::LMHEAD_PEER_SLOT_BYTES) as usize;
    lanes * (size_of::<params::PeerFlags>() + slots)
}

/// One member's kernels, and its own window. A backend makes it
/// ([`StreamMarks::peer_exchange`](super::StreamMarks::peer_exchange)).
pub trait PeerExchange: Send + Sync {
    /// Queues one collective: member m is sent `send[m]`, and what it sends comes into `recv[m]`. Both
    /// members of a pair give the same length. Neither allocates nor waits; a CUDA graph may capture it.
    ///
    /// The kernel waits for the peers' kernels, for `timeout` at most; then it gives up, and what it receives
    /// is undefined. From then on this member's kernels send nothing.
    ///
    /// # Errors
    /// `Broken` where the device refuses, or there are not as many pieces as members.
    ///
    /// # Safety
    /// As [`DeviceExchange::all_to_all_v`](super::DeviceExchange::all_to_all_v). All members queue the same
    /// collectives in the same order, and their windows live until the work has ended on all members.
    unsafe fn exchange(
        &self,
        send: &[Piece],
        recv: &[Piece],
        timeout: Duration,
        stream: Stream,
    ) -> Result<(), Fault>;

    /// Ends every wait of this member's kernels, for good: of those that run, and of those that begin later.
    /// From any thread; does not call the device.
    fn end(&self);

    /// Why a kernel has given up: `Timeout` with the member for which it has waited in vain, or `Length` with
    /// the member whose piece has another length than is wanted (lengths modulo 2^32). Does not call the
    /// device.
    fn fault(&self) -> Option<Fault>;
}
