//! NCCL: device memory between GPUs, beside a host transport for all else.
//!
//! * [`Nccl`]: the library, found and loaded at run time (`libnccl.so.2`, 2.18 or newer).
//! * [`UniqueId`]: by which members find each other; a control plane takes it to them.
//! * [`Communicator`]: one member's side of a communicator: made, split from another, or the engine's own.
//! * [`Window`]: a member's device memory that the peers' own kernels may read and write.
//! * [`NcclExchange`]: the transport. [`WithDevice`](super::WithDevice) joins it with a host transport.
//!
//! ```no_run
//! use lmhead::exchange::nccl::{Nccl, NcclExchange};
//! use lmhead::exchange::{Exchange, StreamMarks, WithDevice};
//! # fn control() -> std::sync::Arc<dyn Exchange> { unimplemented!() }
//! # fn marks() -> std::sync::Arc<dyn StreamMarks> { unimplemented!() }
//! # fn main() -> lmhead::Result<()> {
//! // A host transport of the same members, and this rank's GPU (`backend::device::stream_marks`).
//! let (control, marks) = (control(), marks());
//! let nccl = NcclExchange::new(Nccl::load(None)?, marks, (control.me(), control.size()));
//! let exchange = WithDevice::new(control, std::sync::Arc::new(nccl));
//! # Ok(())
//! # }
//! ```
//!
//! # Communicators
//! Each head has a communicator of its own, which its ranks make when they make the head: the ranks meet over
//! the head's host channel, so that heads which threads make at the same time do not mix their ids up, and
//! the abort of one head ends no other. It is used by one call at a time.
//!
//! NCCL asks that operations on several communicators of one device are queued **in one order on all ranks**:
//! heads that share a device are stepped by one thread, or by threads that keep one order, and so is whatever
//! the engine does with communicators of its own between two steps. A step that is not captured waits on the
//! host for its collectives before it returns, so that those of two steps are never mixed.
//! `NCCL_LAUNCH_ORDER_IMPLICIT=1` (2.26 and newer) lets NCCL keep the order of the calls on the device. Two
//! ranks that step two heads in opposite order end at the deadline, with each other's place; where two
//! threads do so, the error says that, too.
//!
//! When a channel is connected, its members exchange pieces on the device whose bytes only they know: a
//! communicator whose ranks are in another order than the group's, one with members of another run, or a path
//! that mixes bytes up, is refused by name.
//!
//! # Windows
//! If the kernels of each member reach the memory of all others (NVLink, or PCIe, within one host, as NCCL
//! finds it; NCCL 2.31.2 or newer), and [`LMHEAD_NCCL_WINDOWS`] is `on` on all ranks, a channel has
//! *windows*: each collective is one kernel of this crate, which stores what it sends into the windows of its
//! peers ([`peers`](super::peers)). All members have windows, or none has; [`Caps::windows`](super::Caps)
//! tells. An engine's own communicator has none. They have not run on GPUs yet: so they are off where nobody
//! asks for them.
//!
//! A fault ends these kernels at once, through a word of the host's memory, and none of them waits for longer
//! than the step's timeout and two seconds. The communicator is aborted later than said below, when the head
//! is rebuilt or dropped and they have ended: an abort takes the peers' memory away from them.
//!
//! # What is called
//! Without windows:
//!
//! | collective | calls of NCCL |
//! |---|---|
//! | gather over everyone, pieces of one length | `ncclAllGather` |
//! | gather over everyone, other lengths | one `ncclBroadcast` a member, grouped |
//! | gather over a part of the members | `ncclSend` and `ncclRecv` among them, grouped |
//! | exchange | one `ncclSend` and one `ncclRecv` a member, grouped |
//!
//! Which of them it is follows from lengths that all members know alike. Pieces without bytes are neither
//! sent nor received: both sides know their length. A gather over a part of the members needs no communicator
//! of its own: one more to make, to abort and to keep in order would cost more than its few messages.
//!
//! Members must agree on all lengths, as a step's contract sees to: NCCL does not check them, and would wait
//! for what is not sent, until the deadline.
//!
//! # Faults
//! Communicators do not block (`blocking` 0): NCCL works in the background, and the transport polls it, the
//! host transport's faults and the deadline, so that no call outlasts the deadline. A fault aborts the head's
//! communicator on this rank, which ends what waits on the stream;
//! [`LmHead::rebuild`](crate::LmHead::rebuild) makes another from a new id.
//! NCCL cannot say who is late or gone. The host transport can, and is asked: at the deadline for whoever has
//! left or has not come, and earlier where NCCL reports an error that a peer has caused.
//!
//! A communicator that is dropped without a fault is finalized and destroyed. There NCCL waits for the peers'
//! communicators and for graphs that have captured collectives. This happens in a thread; the drop returns
//! after half a second at most.
//!
//! A graph that has captured collectives is replayed without a call here. Between
//! [`watch_begin`](super::DeviceExchange::watch_begin) and `watch_end` the device counts its replays itself,
//! and a thread of the channel ends one that is overdue in the same way, so that an engine that waits for its
//! stream without a deadline comes back.
//!
//! `ncclCommAbort` is used even where there is `ncclCommRevoke`: a revoked communicator can only be
//! destroyed, or split again by all of its members, and a lost member takes no part in a split. An engine's
//! own communicator is revoked, where NCCL is 2.28.7 or newer, and left to the engine to destroy; in older
//! versions only the engine's `ncclCommAbort` ends it.

mod channel;
mod communicator;
#[allow(non_camel_case_types, reason = "NCCL's own name")]
mod config;
mod library;
mod self_test;
#[allow(dead_code, reason = "names of the header that come with those that are used")]
mod sys;
mod unique_id;
mod watchdog;
mod window;
mod windows;

pub use channel::NcclExchange;
pub use communicator::Communicator;
pub use library::{LMHEAD_NCCL, Nccl, Version};
pub use unique_id::UniqueId;
pub use window::Window;
pub use windows::LMHEAD_NCCL_WINDOWS;
