//! Bytes between the ranks of a head group. Two operations carry everything: [`Exchange::all_gather_v`] and
//! [`Exchange::all_to_all_v`]. A transport knows ranks, bytes and deadlines; it knows nothing of logits.
//!
//! * [`local`]: ranks are threads of one process.
//! * [`callbacks`]: the engine's own transport, by functions that it hands in.
//! * [`messages`]: ranks that send each other messages, over any transport that carries them.
//! * `mpi` (a feature): ranks are processes of an MPI job.
//! * [`DeviceExchange`]: the same on device memory, on a stream; [`WithDevice`] joins it with a host
//!   transport.
//! * `nccl`: device memory between GPUs (feature `nccl`).
//! * [`peers`]: the same by kernels that store into each other's memory, where a transport finds it.
//! * [`Call`], [`Place`] and [`Fault`]: which collective it is, where a member is, and how a collective ends
//!   badly.

mod blame;
#[allow(unsafe_code, reason = "an interface for addresses that an engine's functions use")]
pub mod callbacks;
#[allow(unsafe_code, reason = "an interface for device addresses")]
mod device;
mod fault;
pub mod local;
pub mod messages;
#[cfg(feature = "mpi")]
#[allow(unsafe_code, reason = "MPI's interface")]
pub mod mpi;
#[cfg(feature = "nccl")]
#[allow(unsafe_code, reason = "NCCL's interface")]
pub mod nccl;
#[allow(unsafe_code, reason = "an interface for device addresses")]
pub mod peers;
mod with_device;

pub use crate::call::{Call, Operation, Place};
#[cfg(feature = "nccl")]
use device::pause;
pub use device::{Caps, DeviceExchange, Pending, Piece, Scratch, StreamCounters, StreamMarks, wait_for_mark};
pub use fault::Fault;
pub use with_device::WithDevice;

use std::sync::Arc;

/// What a transport did to bring a group back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reset {
    /// The channel works again, with everything undelivered dropped.
    Done,
    /// This transport cannot: a new exchange and new heads are needed on every rank.
    Reconnect,
}

/// A transport between the members `0..size` of one head group.
///
/// **Channels.** Every head opens a channel of its own with [`Exchange::channel`]. Calls of different
/// channels never meet, and may come from different threads at the same time. Within one channel every member
/// makes the same calls in the same order, one at a time.
///
/// **Deadlines.** A call returns by its [`Call::deadline`], whatever the peers do.
///
/// **Bad arguments** (members out of range or out of order, a wrong number of pieces) are a [`Fault::Broken`]
/// at once, before anything is sent; [`check_members`] and [`check_pieces`] say what is legal.
///
/// Buffers are host memory. Pieces of 0 bytes are legal everywhere, and their pointers are never read.
pub trait Exchange: Send + Sync {
    /// `local`, `mpi`, ...
    fn name(&self) -> &'static str;

    /// Number of members.
    fn size(&self) -> usize;

    /// The caller's member number.
    fn me(&self) -> usize;

    /// Opens this member's next channel for the heads of id `head`, and says which it is: 0 for the first of
    /// that head, then 1, and so on. Members that open their channels of a head in the same order get
    /// channels that belong together. Never waits for the peers.
    ///
    /// A channel that a peer gave up before this member came belongs to a creation that has failed. A
    /// transport that can passes such channels over, so that the next creation of all members meets.
    ///
    /// A transport without channels of its own (tags, communicators) may return itself under another number;
    /// its heads are then stepped one after the other, in the same order on every rank.
    ///
    /// # Errors
    /// `Broken` where the transport has no channel left.
    fn channel(&self, head: u32) -> Result<(u32, Arc<dyn Exchange>), Fault>;

    /// Every member of `members` (ascending, the caller among them) sends `send` to all of them; `recv[i]` is
    /// what `members[i]` sent, the caller's own included. Sizes may differ by member. Members of no common
    /// list gather at the same point, each list by itself: transports may count on it.
    ///
    /// # Errors
    /// A [`Fault`]; see there what the buffers then hold.
    fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: &[u8],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault>;

    /// Member m is sent `send[m]`; `recv[m]` is what m sent, the caller's own included. Both have one entry
    /// per member.
    ///
    /// # Errors
    /// A [`Fault`]; see there what the buffers then hold.
    fn all_to_all_v(&self, call: &Call, send: &[&[u8]], recv: &mut [&mut [u8]]) -> Result<(), Fault>;

    /// Says where this member is. The head does so before every operation and at the beginning of every step;
    /// a member that waits for a device repeats it now and then, as a sign of life. A transport that can lets
    /// the peers know. Of several operations that are queued on a device the first that has not ended counts.
    /// Never blocks.
    fn note(&self, call: &Call) {
        let _ = call;
    }

    /// The last known place of each member in this channel; where it was never seen here, its last place in
    /// any channel of this transport; `None` where nothing is known.
    fn places(&self) -> Vec<Option<Place>> {
        vec![None; self.size()]
    }

    /// The last known place of each member in another channel, where that is later than its place in this
    /// one.
    fn places_elsewhere(&self) -> Vec<Option<Place>> {
        vec![None; self.size()]
    }

    /// Gives back memory of this member that was kept for messages as large as those so far: the next one
    /// allocates again. Called between steps.
    fn release_memory(&self) {}

    /// The fault that this channel is in, and the call that it happened in: polled while a device is waited
    /// for. One of a later step does not end that wait.
    fn pending_fault(&self) -> Option<(Call, Fault)> {
        None
    }

    /// The members that have left this channel for good, as far as the transport knows, with or without a
    /// fault. Asked where a wait for a device has failed: a member that has ended its last step may leave
    /// while others still wait for theirs.
    fn gone(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Tells the peers of this channel, as far as the transport can, that the caller will not finish `call`'s
    /// step, and why. Their waits end at once. Never blocks. On the exchange from which the heads open their
    /// channels, a call of the creation says that the caller could not open its next channel of that head.
    fn notify_abort(&self, call: &Call, reason: &str);

    /// As [`Exchange::notify_abort`], of a fault that the caller has found: peers name the same members,
    /// where the transport can tell them.
    fn notify_fault(&self, call: &Call, fault: &Fault) {
        self.notify_abort(call, &format!("{fault:?}"));
    }

    /// Brings a channel back after a fault: returns when all members have called it and everything
    /// undelivered is dropped; or says that this transport cannot. A peer that is still in another call is
    /// told. Members that wait here are told of any fault but `Broken`; those that come later wait for those
    /// that call it again.
    ///
    /// # Errors
    /// `Timeout` naming the members that did not come, `Lost` naming those that cannot.
    fn reset(&self, call: &Call) -> Result<Reset, Fault>;

    /// This channel's side for device memory, where it has one.
    fn device(&self) -> Option<&dyn DeviceExchange> {
        None
    }
}

/// Refuses members that an exchange of `size` members, of which the caller is `me`, cannot gather over, and a
/// number of receive buffers that is not theirs.
///
/// # Errors
/// `Broken`, saying what was wanted.
pub fn check_members(size: usize, me: usize, members: &[usize], buffers: usize) -> Result<(), Fault> {
    let ascending = members.windows(2).all(|pair| pair[0] < pair[1]);
    let in_range = members.last().is_none_or(|&last| last < size);
    if !ascending || !in_range || !members.contains(&me) {
        return Err(Fault::Broken {
            problem: format!("wanted ascending members of 0..{size} with {me} among them, got {members:?}"),
            fix: "make the exchange for as many ranks as the head group has".into(),
        });
    }
    check_count("receive buffers", members.len(), buffers)
}

/// Refuses numbers of pieces that an exchange of `size` members does not take.
///
/// # Errors
/// `Broken`, saying what was wanted.
pub fn check_pieces(size: usize, send: usize, recv: usize) -> Result<(), Fault> {
    check_count("pieces to send", size, send)?;
    check_count("receive buffers", size, recv)
}

fn check_count(what: &str, wanted: usize, got: usize) -> Result<(), Fault> {
    if wanted == got {
        return Ok(());
    }
    Err(Fault::Broken {
        problem: format!("wanted {wanted} {what}, one for each member, got {got}"),
        fix: "make the exchange for as many ranks as the head group has".into(),
    })
}

/// A gather that ends in `ms`, of step `step`.
#[cfg(test)]
fn test_call(step: u64, ms: u64) -> Call {
    let (operation, began) = (Operation::GatherRows, std::time::Instant::now());
    let deadline = began + std::time::Duration::from_millis(ms);
    Call { head: 1, instance: 0, epoch: 0, step, operation, terms: 0, began, deadline }
}
