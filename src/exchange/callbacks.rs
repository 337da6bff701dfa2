//! The engine's own transport, by functions that it hands in: torch.distributed, MPI, UCX, whatever it has.
//!
//! An engine implements [`Transport`]. One function is required: [`Transport::all_to_all`], one collective
//! over pieces of bytes, as `MPI_Alltoallv`. [`exchange`] makes an [`Exchange`] of it, [`with_device`] the
//! same for device memory. A C function table is one implementation of the trait among others, so arguments
//! are addresses and numbers, and nothing is allocated for a call.
//!
//! What an engine's functions may do wrong ends in a named [`Fault`] here:
//!
//! | the function | the fault |
//! |---|---|
//! | returns a failing [`Status`] | the one that it names |
//! | returns or marks a number that is no status, or contradicts itself | `Broken` |
//! | panics | `Broken` |
//! | returns after the deadline, whatever it says | `Timeout`; `Aborted` where it was called too late |
//!
//! Peers are told of each of these faults through [`Transport::notify_abort`], unless a peer has told this
//! member of it. The channel then stays in its fault until [`Transport::reset`]. Only a function that never
//! returns blocks its step: nothing here can end it.
//!
//! **Creation.** Each member counts the channels of a head. A rank that did not come to a creation has
//! counted one less than those that waited for it. Where [`Transport::pending`] reports their notices, it
//! passes over the channels in which they waited in vain, and meets them in the next creation. Without that,
//! all ranks must make a new exchange after a creation that timed out.

mod channel;
mod device;
mod host;
mod notice;
mod report;

pub use report::{PeerStatus, Report, Status, TEXT_BYTES};

use super::{Call, Exchange, Fault, Piece, Place, StreamMarks, WithDevice};
use crate::error::{Error, Result};
use crate::memory::{Memory, Stream};
use channel::{Channel, Member};
use device::DeviceCallbacks;
use std::sync::Arc;

/// An engine's transport between the members of one head group. Every member makes the same calls in the same
/// order within a channel.
///
/// **Channels.** `call.head` and `call.instance` name the channel of a head. A transport with tags or several
/// communicators keeps channels apart by them; then heads may be stepped from different threads at the same
/// time. A transport without serves one head after the other, in the same order on every rank.
///
/// **Deadlines.** A function gives up when `call.deadline` has passed, and names in its report who did not
/// come.
///
/// **Notices.** `call.epoch`, `call.step` and `call.operation` say where a notice belongs:
/// * A notice of a step ends the waits in that step and in later ones. A wait of an earlier step goes on:
///   what it waits for was sent before. The notice is kept until the member comes to its step.
/// * A notice of [`Operation::Rebuild`](super::Operation::Rebuild) ends the waits in `reset` that are under
///   way, and nothing else. It is not kept. No other notice ends a wait in `reset`.
/// * A notice of an earlier epoch is dropped.
///
/// # Safety
/// Implementations write no other bytes than the receive pieces, and read no others than the send pieces. In
/// host memory they do so only until they return; in device memory only on the stream.
pub unsafe trait Transport: Send + Sync {
    /// Where the pieces lie.
    fn memory(&self) -> Memory {
        Memory::Host
    }

    /// Member m is sent `send[m]`; `recv[m]` comes from m, the caller itself included. Both have one entry
    /// per member. A piece of 0 bytes has the address 0.
    ///
    /// A transport of device memory queues this on `stream` and returns; else `stream` is none.
    ///
    /// # Safety
    /// Pieces are in [`Transport::memory`], nobody else writes what is sent or uses what is received until
    /// the work has ended, and they live until then; where it is captured, until the graph is dropped.
    unsafe fn all_to_all(
        &self,
        call: &Call,
        stream: Stream,
        send: &[Piece],
        recv: &[Piece],
        report: &mut Report,
    ) -> Status;

    /// The members listed (ascending, the caller among them) send `send` to all of them; `recv[i]` comes from
    /// `members[i]`. The report has one entry per member of the whole group, as always.
    ///
    /// `None`: there is no such function, and [`Transport::all_to_all`] is called instead, by all members at
    /// the same point, with empty pieces for members of other lists. That is right because a head gathers
    /// over all members, or over those of equal tensor-parallel index: then each member is in the list of its
    /// own index, and all lists gather at the same point.
    ///
    /// # Safety
    /// As [`Transport::all_to_all`].
    unsafe fn all_gather(
        &self,
        call: &Call,
        members: &[usize],
        stream: Stream,
        send: Piece,
        recv: &[Piece],
        report: &mut Report,
    ) -> Option<Status> {
        let _ = (call, members, stream, send, recv, report);
        None
    }

    /// Tells the peers of this channel that the caller gives up `call`'s step, and ends the caller's own wait
    /// in it, should another thread wait there. Peers pass `notice` on as it is: their functions return
    /// [`Status::ABORTED`] with it as the report's text. Never blocks; from any thread.
    ///
    /// Without it peers learn of a given-up step by the deadline.
    fn notify_abort(&self, call: &Call, notice: &str) {
        let _ = (call, notice);
    }

    /// Notes where the caller is: before every operation, and at the beginning and the end of a step. For
    /// transports that let the peers know. A caller that waits for its device repeats it every 0.1 s, so that
    /// peers see by the age of its place that it lives. Never blocks.
    fn note(&self, call: &Call) {
        let _ = call;
    }

    /// Where `member` was last seen, in whatever channel: for blame. Never blocks.
    fn place(&self, member: usize) -> Option<Place> {
        let _ = member;
        None
    }

    /// The state of the channel of `call`, asked while a device is waited for, and before a member's first
    /// call of that channel: [`Status::GOOD`], or what a wait in that call would return now. Never blocks.
    fn pending(&self, call: &Call, report: &mut Report) -> Status {
        let _ = (call, report);
        Status::GOOD
    }

    /// Returns when all members have called it for the channel of `call`, with everything undelivered
    /// dropped: messages, and notices of this epoch.
    ///
    /// `None`: this transport cannot, and after a fault the engine makes a new exchange and new heads.
    fn reset(&self, call: &Call, report: &mut Report) -> Option<Status> {
        let _ = (call, report);
        None
    }

    /// The caller's head of that channel is gone; nothing more is called for it.
    fn leave(&self, head: u32, instance: u32) {
        let _ = (head, instance);
    }
}

/// The most members. A member keeps a few bytes for each: a size by mistake must not take all memory.
const MOST_MEMBERS: usize = 1 << 20;

/// The exchange of member `me` of `size`, over a transport of host memory.
///
/// # Errors
/// `Config` where there is no such member, or there are more than 2^20; `Unsupported` for a transport of
/// device memory.
pub fn exchange(size: usize, me: usize, transport: Arc<dyn Transport>) -> Result<Arc<dyn Exchange>> {
    if size > MOST_MEMBERS {
        let fix = "pass how many members the head group has";
        return Err(Error::config("members of an exchange", format!("at most {MOST_MEMBERS}"), size, fix));
    }
    if me >= size {
        let fix = "pass the caller's number among the members of the head group";
        return Err(Error::config("member of an exchange", format!("one of 0..{size}"), me, fix));
    }
    check_memory(&*transport, Memory::Host, "make it with its stream marks and a host exchange beside it")?;
    let member = Member::new(transport, size, me);
    Ok(Arc::new(Channel::first(&Arc::new(member))))
}

/// An exchange whose rows and results lie in device memory and go over `transport`. `control` is a host
/// exchange of the same members, for headers, notices and places; `marks` are the device's.
///
/// # Errors
/// `Unsupported` where transport and marks are not of one device.
pub fn with_device(
    transport: Arc<dyn Transport>,
    marks: Arc<dyn StreamMarks>,
    control: Arc<dyn Exchange>,
) -> Result<Arc<dyn Exchange>> {
    check_memory(&*transport, marks.memory(), "take the marks of the transport's device")?;
    let member = Arc::new(Member::new(transport, control.size(), control.me()));
    let device = DeviceCallbacks::first(&member, marks);
    Ok(Arc::new(WithDevice::new(control, Arc::new(device))))
}

fn check_memory(transport: &dyn Transport, wanted: Memory, fix: &str) -> Result<()> {
    let own = transport.memory();
    if own == wanted {
        return Ok(());
    }
    let what = "a transport by callbacks";
    Err(Error::unsupported(what, wanted, format!("callbacks for {own}"), fix))
}

/// Host bytes as a piece for the callbacks.
fn piece_of(bytes: &[u8]) -> Piece {
    let address = if bytes.is_empty() { 0 } else { bytes.as_ptr().expose_provenance() as u64 };
    Piece { address, len: bytes.len() }
}

fn piece_of_mut(bytes: &mut [u8]) -> Piece {
    let address = if bytes.is_empty() { 0 } else { bytes.as_mut_ptr().expose_provenance() as u64 };
    Piece { address, len: bytes.len() }
}

/// The name of every exchange made here.
const NAME: &str = "callbacks";

/// The fault of a broken transport, and what an engine does about it.
fn broken(problem: impl Into<String>) -> Fault {
    let fix =
        "mend the transport; then rebuild the head, or make a new exchange and new heads, on every rank";
    Fault::Broken { problem: problem.into(), fix: fix.into() }
}
