//! Device memory between the ranks of a head group, on a stream: the second, optional side of a transport.

use super::blame::{Beat, stuck, told};
use super::peers::PeerExchange;
use super::{Call, Exchange, Fault, Reset};
use crate::memory::{Memory, Stream};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes by address and length: of a device or, in [callbacks](super::callbacks), of the host. 0 bytes are
/// legal, and their address is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
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
    /// Its calls are kernels that store into the peers' memory ([`peers`](super::peers)), once it is
    /// connected.
    pub windows: bool,
}

/// What [`DeviceExchange::mark`] returns for [`DeviceExchange::wait`]: a number of the transport's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending(pub u64);

/// Collectives on device memory, queued on the caller's stream: [`Exchange`]'s, with the same rules for
/// channels, order and arguments. The host transport beside it ([`WithDevice`](super::WithDevice)) stays the
/// control plane: headers, notices and places go over it.
///
/// A call returns when its work is queued. It may wait, until the call's deadline, for the peers' calls, but
/// not for their streams.
///
/// # Safety
/// Implementations write no other bytes than the receive pieces, and read no others than the send pieces.
pub unsafe trait DeviceExchange: Send + Sync {
    /// `nccl`, ...
    fn name(&self) -> &'static str;

    /// This member's side of the channel that its head has just opened on the host transport: `control`.
    ///
    /// # Errors
    /// `Broken` where there is no channel left, or the device refuses.
    fn channel(
        &self,
        head: u32,
        instance: u32,
        control: &Arc<dyn Exchange>,
    ) -> Result<Arc<dyn DeviceExchange>, Fault>;

    /// The marks that tell when queued work has ended.
    fn marks(&self) -> &dyn StreamMarks;

    /// The memory that pieces lie in.
    fn memory(&self) -> Memory {
        self.marks().memory()
    }

    fn caps(&self) -> Caps;

    /// Connects this member's side of the channel with its peers', once all members have agreed to make the
    /// head, or to make it again after [`DeviceExchange::reset`]. Collective over all members; waits for them
    /// until the call's deadline. `control` is the channel's host transport, over which it may meet them.
    ///
    /// # Errors
    /// As [`Exchange::all_gather_v`].
    fn connect(&self, call: &Call, control: &dyn Exchange) -> Result<(), Fault> {
        let (_, _) = (call, control);
        Ok(())
    }

    /// As [`Exchange::all_gather_v`]. The receive pieces that are not empty lie one behind the other, in the
    /// order of the members.
    ///
    /// # Errors
    /// A [`Fault`]; what was queued by then ends without harm, and the receive pieces have undefined content.
    /// Where the peers are missed in a collective that was queued before, [`Fault::Earlier`] names that one.
    ///
    /// # Safety
    /// The pieces are in [`DeviceExchange::memory`], nobody else writes what is sent or uses what is received
    /// until the work has ended, and they live until then; where it is captured, until the graph is dropped.
    /// A graph that has captured collectives is dropped before the channel is reset, and before the channel
    /// itself is: a transport's end may wait for such graphs.
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

    /// Marks the end of what is on the stream so far. Each mark is waited for once, also after a fault.
    /// Several collectives may be queued before the first is waited for, in their order.
    ///
    /// # Errors
    /// `Broken` where the device refuses.
    fn mark(&self, call: &Call, stream: Stream) -> Result<Pending, Fault> {
        let _ = call;
        self.marks().mark(stream)
    }

    /// Waits for what was marked: until it has ended, the device or the transport has failed, `control` has a
    /// fault pending, or the call's deadline has passed. `before`, a mark that was made before the
    /// collective, is given back too: where it is not reached at the deadline, this rank's own device keeps
    /// the others waiting.
    ///
    /// # Errors
    /// The fault. `Timeout` names the members that did not come, or do not answer.
    fn wait(
        &self,
        before: Option<Pending>,
        pending: Pending,
        call: &Call,
        control: &dyn Exchange,
    ) -> Result<(), Fault> {
        wait_for_mark(self.marks(), before, pending, call, control, || self.ended(call))
    }

    /// Gives back a mark that nobody will wait for.
    fn forget(&self, mark: Pending) {
        self.marks().give_back(mark);
    }

    /// Why a wait in this call must end, where the transport itself knows. Never waits.
    fn ended(&self, call: &Call) -> Option<Fault> {
        let _ = call;
        self.fault()
    }

    /// Watches the stream from here to [`DeviceExchange::watch_end`], each time that the device comes here,
    /// in replays of a CUDA graph too. Where it does not come to the end within the call's whole timeout, the
    /// channel is given up as by [`DeviceExchange::abort`], and `control` tells the peers: so a thread that
    /// waits for the stream without a deadline comes back. One stream of a channel is watched at a time. The
    /// first call of a channel allocates: make it before a graph is captured. A graph that has captured this
    /// is replayed neither after a fault nor after the channel's end.
    ///
    /// # Errors
    /// `Broken` where the device refuses, or the transport cannot watch.
    fn watch_begin(&self, call: &Call, stream: Stream) -> Result<(), Fault> {
        let (_, _) = (call, stream);
        Err(Fault::Broken {
            problem: format!("the transport `{}` watches no stream", self.name()),
            fix: "wait with a deadline (DeviceExchange::wait)".into(),
        })
    }

    /// The end of what [`DeviceExchange::watch_begin`] began.
    ///
    /// # Errors
    /// As [`DeviceExchange::watch_begin`].
    fn watch_end(&self, call: &Call, stream: Stream) -> Result<(), Fault> {
        self.watch_begin(call, stream)
    }

    /// Why this channel takes no more calls, where that is so. Never waits.
    fn fault(&self) -> Option<Fault> {
        None
    }

    /// Ends everything that waits on this channel, on this rank, for `why`. Idempotent, from any thread,
    /// never blocks.
    fn abort(&self, why: &Fault);

    /// Forgets a fault, once all members have met on `control`: what was queued has ended on this rank, and
    /// the channel may be connected anew.
    ///
    /// # Errors
    /// As [`Exchange::reset`].
    fn reset(&self, call: &Call, control: &dyn Exchange) -> Result<Reset, Fault>;

    /// As [`Exchange::release_memory`].
    fn release_memory(&self) {}
}

/// A wait polls without a pause until `SPIN`, then sleeps between polls.
const SPIN: Duration = Duration::from_millis(1);
const SLEEP: Duration = Duration::from_micros(50);

/// The pause between two polls of a wait that began then.
pub(super) fn pause(began: Instant) {
    if began.elapsed() < SPIN { std::hint::spin_loop() } else { std::thread::sleep(SLEEP) }
}

/// Marks on the streams of one device: how a transport learns that queued work has ended. A backend of that
/// device makes them ([`stream_marks`](crate::backend::device::stream_marks)).
pub trait StreamMarks: Send + Sync {
    /// The device's memory.
    fn memory(&self) -> Memory;

    /// Marks the end of what is on `stream` so far.
    ///
    /// # Errors
    /// `Broken` where the device refuses.
    fn mark(&self, stream: Stream) -> Result<Pending, Fault>;

    /// Whether everything before the mark has ended. Never waits.
    ///
    /// # Errors
    /// `Broken` where the device has failed, or the mark is not one that is awaited.
    fn is_reached(&self, mark: Pending) -> Result<bool, Fault>;

    /// Gives back a mark that nobody waits for any longer. Only its maker may: channels of several heads have
    /// their marks from here.
    fn give_back(&self, mark: Pending);

    /// New counters of work on the device's streams.
    ///
    /// # Errors
    /// `Broken` where the device refuses.
    fn counters(&self) -> Result<Arc<dyn StreamCounters>, Fault>;

    /// Device memory of `bytes` bytes, with a stream of its own.
    ///
    /// # Errors
    /// `Broken` where the device refuses.
    fn scratch(&self, bytes: usize) -> Result<Box<dyn Scratch>, Fault>;

    /// Kernels of member `me` that exchange through `windows`: the address of each member's window, of which
    /// `me`'s is in [`StreamMarks::memory`]. Clears it and waits for that; peers store there only once all
    /// members have theirs.
    ///
    /// # Errors
    /// `Broken` where the device refuses, or has no such kernels.
    ///
    /// # Safety
    /// Each window has [`window_bytes`](super::peers::window_bytes) bytes, is aligned to
    /// [`WINDOW_ALIGNMENT`](super::peers::WINDOW_ALIGNMENT), and is used for nothing else until this is
    /// dropped. The device reaches all of them.
    unsafe fn peer_exchange(&self, me: usize, windows: &[u64]) -> Result<Box<dyn PeerExchange>, Fault> {
        let _ = (me, windows);
        let fix = "exchange without windows".into();
        Err(Fault::Broken { problem: "the device has no kernels that store into peers' memory".into(), fix })
    }

    /// Runs `run` on this thread with the context of the streams current, as other libraries that call the
    /// device need it. Then the context before is current again.
    ///
    /// # Errors
    /// `Broken` where the device refuses; `run` has not run then.
    fn with_context(&self, run: &mut dyn FnMut()) -> Result<(), Fault>;
}

/// Two counters that the device itself increments, in replays of a CUDA graph too: how often it has come to
/// the beginning of some work, and how often to its end.
pub trait StreamCounters: Send + Sync {
    /// Queues the count of a beginning. Neither allocates nor waits; may be captured.
    ///
    /// # Errors
    /// `Broken` where the device refuses.
    fn begin(&self, stream: Stream) -> Result<(), Fault>;

    /// Queues the count of an end.
    ///
    /// # Errors
    /// As [`StreamCounters::begin`].
    fn end(&self, stream: Stream) -> Result<(), Fault>;

    /// Beginnings and ends that the device has come to, modulo 2^32. Does not call the device.
    fn counted(&self) -> (u32, u32);
}

/// Device memory in which a transport tests itself.
pub trait Scratch {
    /// Address of its first byte; aligned to 256.
    fn address(&self) -> u64;

    fn stream(&self) -> Stream;

    /// Copies `bytes` to its beginning, and waits for that.
    ///
    /// # Errors
    /// `Broken` where the device refuses.
    fn write(&self, bytes: &[u8]) -> Result<(), Fault>;

    /// Copies from its beginning, behind what is on the stream, and waits for that.
    ///
    /// # Errors
    /// `Broken` where the device refuses.
    fn read(&self, bytes: &mut [u8]) -> Result<(), Fault>;
}

/// Waits until `mark` is reached, `own` or `control` have a fault, or the call's deadline has passed; then
/// gives both marks back. `own`, the transport's own state, is asked before the device. A fault of a later
/// step does not end the wait. Past the deadline `control` is asked who still lives, which takes 0.4 s at
/// most. But where `before`, a mark before the collective, is not reached either, this rank's own device is
/// at fault.
///
/// # Errors
/// The fault. At the deadline `Timeout` with the members that have not come, or do not answer; `Broken` where
/// all do.
pub fn wait_for_mark(
    marks: &dyn StreamMarks,
    before: Option<Pending>,
    mark: Pending,
    call: &Call,
    control: &dyn Exchange,
    mut own: impl FnMut() -> Option<Fault>,
) -> Result<(), Fault> {
    let _given_back = GivenBack { marks, both: [before, Some(mark)] };
    let (began, mut beat) = (Instant::now(), Beat::new());
    loop {
        if let Some(fault) = own() {
            return Err(fault);
        }
        match marks.is_reached(mark) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(fault) => return Err(fault),
        }
        if let Some(fault) = told(call, control) {
            return Err(fault);
        }
        if call.left().is_zero() {
            return Err(match before.map(|before| marks.is_reached(before)) {
                Some(Ok(false)) => stuck(call, control),
                Some(Err(fault)) => fault,
                _ => beat.late(call, control),
            });
        }
        beat.keep(call, control);
        pause(began);
    }
}

/// Gives back the marks of a wait at its end, also where the host transport panics in it.
struct GivenBack<'m> {
    marks: &'m dyn StreamMarks,
    both: [Option<Pending>; 2],
}

impl Drop for GivenBack<'_> {
    fn drop(&mut self) {
        self.both.into_iter().flatten().for_each(|mark| self.marks.give_back(mark));
    }
}
