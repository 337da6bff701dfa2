//! The transport of one head: its communicator and its collectives.

use super::communicator::{ABORT_GRACE, Communicator, Group, Refused};
use super::library::Failed;
use super::watchdog::Watchdog;
use super::windows::Windows;
use super::{Nccl, UniqueId};
use crate::exchange::blame::{Beat, blame, late, told};
use crate::exchange::peers::MOST_MEMBERS;
use crate::exchange::{
    Call, Caps, DeviceExchange, Exchange, Fault, Pending, Piece, Reset, StreamMarks, check_members,
    check_pieces, wait_for_mark,
};
use crate::lock::lock;
use crate::memory::Stream;
use crate::process::Maker;
use std::cell::Cell;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// How much longer than the host a kernel waits for its peers: the host, which knows who is late, ends it
/// first.
const AFTER_THE_HOST: Duration = Duration::from_secs(2);

/// Device memory between the ranks of a head group, over NCCL. Each head that is made on it has a
/// communicator of its own, or all of them use one that is given.
pub struct NcclExchange {
    pub(super) nccl: Nccl,
    pub(super) marks: Arc<dyn StreamMarks>,
    pub(super) me: usize,
    pub(super) size: usize,
    /// A communicator that all heads use.
    pub(super) given: Option<Arc<Communicator>>,
    /// The head's host channel; `None` before a head has opened its channel here.
    control: Option<Arc<dyn Exchange>>,
    maker: Maker,
    /// Shared with the watchdog.
    state: Arc<Mutex<State>>,
    watchdog: Mutex<Option<Watchdog>>,
}

fn broken(problem: String, fix: &str) -> Fault {
    Fault::Broken { problem, fix: fix.into() }
}

#[derive(Default)]
struct State {
    /// Why this channel takes no more calls.
    fault: Option<Fault>,
    /// The windows that collectives go through, if there are any; dropped before the communicator.
    windows: Option<Arc<Windows>>,
    communicator: Option<Arc<Communicator>>,
    /// Windows are being made: the device uses memory that an abort of the communicator takes away.
    makes_windows: bool,
    /// Marks that somebody will wait for, with their calls, in the order of the stream.
    marks: Vec<(Call, Pending)>,
}

impl State {
    /// Poisons the channel, and ends what its communicator does.
    fn give_up(&mut self, why: &Fault) {
        self.fault.get_or_insert_with(|| why.clone());
        match (&self.windows, &self.communicator) {
            // What is queued ends without the communicator, and before it: its abort takes the peers' memory
            // away.
            (Some(windows), _) => windows.peers.end(),
            // Whoever makes the windows aborts it.
            (None, _) if self.makes_windows => {}
            (None, Some(communicator)) => communicator.abort(),
            (None, None) => {}
        }
    }
}

impl NcclExchange {
    /// Member `me`'s side of a group of `size`: each head makes a communicator of its own. `marks` are of the
    /// GPU that this member's memory is in ([`stream_marks`](crate::backend::device::stream_marks)).
    pub fn new(nccl: Nccl, marks: Arc<dyn StreamMarks>, (me, size): (usize, usize)) -> Self {
        Self::with(nccl, marks, (me, size), None, None)
    }

    /// All heads use `communicator`, whose ranks are the group's members in their order. Its heads are
    /// stepped one after the other, in the same order on every rank. A fault in one of them ends all, and
    /// none can be rebuilt: the communicator, the exchange and the heads are made anew.
    pub fn over(nccl: Nccl, marks: Arc<dyn StreamMarks>, communicator: Arc<Communicator>) -> Self {
        let place = (communicator.rank(), communicator.size());
        Self::with(nccl, marks, place, Some(communicator), None)
    }

    fn with(
        nccl: Nccl,
        marks: Arc<dyn StreamMarks>,
        (me, size): (usize, usize),
        given: Option<Arc<Communicator>>,
        control: Option<Arc<dyn Exchange>>,
    ) -> Self {
        let (state, maker) = (Arc::default(), Maker::here());
        NcclExchange { nccl, marks, me, size, given, control, maker, state, watchdog: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn fault(&self) -> Option<Fault> {
        let state = self.state();
        state.fault.clone().or_else(|| state.windows.as_ref()?.peers.fault())
    }

    /// Refuses in a forked process, which has neither NCCL's threads nor this one's.
    fn check_process(&self) -> Result<(), Fault> {
        let fix = "fork first, and make backend, exchange and head in the child";
        self.maker.check("the exchange").map_err(|error| broken(error.to_string(), fix))
    }

    pub(super) fn has_windows(&self) -> bool {
        self.state().windows.is_some()
    }

    /// Why a wait must end: a fault of this channel or of the host transport, or the deadline.
    pub(super) fn ended(&self, call: &Call, control: Option<&dyn Exchange>) -> Option<Fault> {
        let late = || call.left().is_zero().then(|| Fault::Timeout { missing: Vec::new() });
        let told = || control.and_then(|control| told(call, control));
        self.fault().or_else(told).or_else(late)
    }

    /// The communicator, where there is one and the channel has no fault.
    fn communicator(&self) -> Result<Arc<Communicator>, Fault> {
        let state = self.state();
        if let Some(fault) = &state.fault {
            return Err(fault.clone());
        }
        state.communicator.clone().ok_or_else(|| {
            let fix =
                "step the head that opened this channel, or call DeviceExchange::connect on every member";
            broken("the channel is not connected".into(), fix)
        })
    }

    /// The first call whose work has not ended, of those that are queued; `call` where there is none.
    fn first(&self, call: &Call) -> Call {
        // A driver that takes long to answer must not keep others from ending the communicator.
        let marks = self.state().marks.clone();
        let unended = marks.iter().find(|(_, mark)| self.marks.is_reached(*mark) != Ok(true));
        unended.map_or(*call, |(first, _)| *first)
    }

    /// Queues a collective: to member m `send(m)`, from it `recv(m)`. Through windows, where there are any,
    /// it is one kernel; else `queue` names the operations of NCCL.
    fn issue(
        &self,
        call: &Call,
        stream: Stream,
        (send, recv): (impl Fn(usize) -> Piece, impl Fn(usize) -> Piece),
        queue: impl FnOnce(&Group) -> Result<(), Failed>,
    ) -> Result<(), Fault> {
        self.check_process()?;
        let windows = self.state().windows.clone();
        let Some(windows) = windows else { return self.issue_to_nccl(call, stream, queue) };
        self.fault().map_or(Ok(()), Err)?;
        let (mut to, mut from) = ([Piece::default(); MOST_MEMBERS], [Piece::default(); MOST_MEMBERS]);
        for member in 0..self.size {
            (to[member], from[member]) = (send(member), recv(member));
        }
        let timeout = call.timeout() + AFTER_THE_HOST;
        // SAFETY: the caller's promise. Members queue the same collectives in the same order, and the windows
        // live until the channel is connected anew or dropped, when what was queued has ended.
        unsafe { windows.peers.exchange(&to[..self.size], &from[..self.size], timeout, stream) }
    }

    /// Queues a group of operations and waits until NCCL has put them on the stream. Where that takes long,
    /// the peers are told, and faults of peers name, the first collective that has not ended: it may be one
    /// that was queued before.
    fn issue_to_nccl(
        &self,
        call: &Call,
        stream: Stream,
        queue: impl FnOnce(&Group) -> Result<(), Failed>,
    ) -> Result<(), Fault> {
        let communicator = self.communicator()?;
        let control = self.control.as_deref();
        let mut beat = Beat::new();
        let mut ended = || {
            control.inspect(|control| beat.keep_at(call, || self.first(call), *control));
            self.ended(call, control)
        };
        let issued =
            communicator.group(stream, queue).and_then(|()| communicator.wait_async_done(&mut ended));
        issued.map_err(|refused| {
            let of_peers = matches!(&refused, Refused::Failed(failed) if failed.is_of_peers());
            // Asked before the communicator is aborted, which ends all of them.
            let first = self.first(call);
            let named = if matches!(refused, Refused::Failed(_)) && !of_peers { *call } else { first };
            let fault = self.failed(&named, control, refused.into_fault(), of_peers);
            if named == *call { fault } else { Fault::Earlier { call: named.into(), fault: fault.into() } }
        })
    }

    /// The fault that the caller reports where `fault` has ended its call. Ends the channel's work on the
    /// device.
    fn failed(&self, call: &Call, control: Option<&dyn Exchange>, fault: Fault, of_peers: bool) -> Fault {
        let until = Instant::now() + ABORT_GRACE;
        let fault = match (fault, control) {
            (Fault::Timeout { missing }, Some(control)) if missing.is_empty() => late(call, control),
            (fault, Some(control)) if of_peers => told_soon(call, control).unwrap_or(fault),
            (fault, _) => fault,
        };
        self.state().give_up(&fault);
        if !self.has_windows() {
            self.await_abort(until);
        }
        fault
    }

    /// Ends the channel's windows, and after a fault its communicator: their kernels must have ended before.
    fn end_windows(&self) {
        // Waits for the device, on which no kernel of the channel waits any longer.
        let windows = self.state().windows.take();
        drop(windows);
        let state = self.state();
        if let Some(communicator) = state.communicator.as_ref().filter(|_| state.fault.is_some()) {
            communicator.abort();
        }
    }

    /// Waits until the communicator of a channel in a fault is aborted; false where that takes longer.
    pub(super) fn await_abort(&self, until: Instant) -> bool {
        let communicator = self.state().communicator.clone();
        communicator.is_none_or(|communicator| communicator.await_end(until))
    }

    /// Runs `queue` with the channel's watchdog, which is made where there is none.
    fn watched(&self, queue: impl FnOnce(&Watchdog) -> Result<(), Fault>) -> Result<(), Fault> {
        self.check_process()?;
        let communicator = self.communicator()?;
        let mut watchdog = lock(&self.watchdog);
        if let Some(watchdog) = &*watchdog {
            return queue(watchdog);
        }
        let Some(control) = self.control.clone() else {
            return Err(broken(
                "only the channel of a head is watched".into(),
                "open a channel on the exchange",
            ));
        };
        let (state, teller) = (Arc::clone(&self.state), Arc::clone(&control));
        let trouble = move |call: &Call| {
            told(call, &*control).or_else(|| communicator.progress().err().map(Refused::into_fault))
        };
        let end = move |call: &Call, fault: &Fault| {
            // Names who has not come, if the host has queued the step. The host knows nothing of a replay.
            let named = late(call, &*teller);
            let is_named = matches!(&named, Fault::Timeout { missing } if !missing.is_empty());
            let is_overdue = matches!(fault, Fault::Broken { .. }) && call.left().is_zero();
            lock(&state).give_up(if is_overdue && is_named { &named } else { fault });
            if let Fault::Broken { problem, .. } = fault {
                teller.notify_abort(call, problem);
            }
        };
        queue(watchdog.insert(Watchdog::new(self.marks.counters()?, trouble, end)?))
    }

    /// The communicator of this channel: the given one, or a new one.
    fn make(&self, call: &Call, control: &dyn Exchange) -> Result<Arc<Communicator>, Fault> {
        if let Some(given) = &self.given {
            return Ok(Arc::clone(given));
        }
        let id = UniqueId::share(self.nccl, call, control)?;
        let ended = || self.ended(call, Some(control));
        let made = Communicator::polled(self.nccl, &self.marks, (self.me, self.size), &id, ended);
        made.map(Arc::new).map_err(|refused| match refused.into_fault() {
            Fault::Timeout { .. } => late(call, control),
            fault => fault,
        })
    }
}

impl Drop for NcclExchange {
    /// A communicator without a fault is destroyed when it is dropped, and waits for its peers.
    fn drop(&mut self) {
        if self.maker.is_here() {
            self.end_windows();
        }
    }
}

/// What the host transport learns, within a short time, of an error that a peer has caused: that peer's
/// fault, or who is gone.
fn told_soon(call: &Call, control: &dyn Exchange) -> Option<Fault> {
    blame(call, control, |members| Fault::Lost { members })
}

/// Refuses a member's piece for itself that is not as long as the piece it wants from itself.
fn check_own(me: usize, send: usize, recv: usize) -> Result<(), Fault> {
    if send == recv {
        return Ok(());
    }
    Err(Fault::Length { peers: vec![(me, recv, send)] })
}

/// Refuses pieces that do not lie one behind the other.
fn check_adjacent(recv: &[Piece]) -> Result<(), Fault> {
    let mut pieces = recv.iter().filter(|piece| piece.len > 0);
    let Some(first) = pieces.next() else { return Ok(()) };
    let mut end = first.address + first.len as u64;
    for piece in pieces {
        if piece.address != end {
            let problem =
                format!("wanted the next piece of a gather at {end:#x}, got it at {:#x}", piece.address);
            return Err(broken(problem, "receive a gather into one buffer, in the order of the members"));
        }
        end += piece.len as u64;
    }
    Ok(())
}

// SAFETY: NCCL writes the receive pieces and reads the send pieces, by the addresses and lengths that are
// given.
unsafe impl DeviceExchange for NcclExchange {
    fn name(&self) -> &'static str {
        "nccl"
    }

    fn channel(
        &self,
        _head: u32,
        _instance: u32,
        control: &Arc<dyn Exchange>,
    ) -> Result<Arc<dyn DeviceExchange>, Fault> {
        self.check_process()?;
        let (marks, given) = (Arc::clone(&self.marks), self.given.clone());
        let control = Some(Arc::clone(control));
        Ok(Arc::new(Self::with(self.nccl, marks, (self.me, self.size), given, control)))
    }

    fn marks(&self) -> &dyn StreamMarks {
        &*self.marks
    }

    fn caps(&self) -> Caps {
        Caps { capture: true, windows: self.has_windows() }
    }

    fn connect(&self, call: &Call, control: &dyn Exchange) -> Result<(), Fault> {
        self.check_process()?;
        if (control.me(), control.size()) != (self.me, self.size) {
            let member = |me: usize, size: usize| format!("member {me} of {size}");
            let (wanted, got) = (member(control.me(), control.size()), member(self.me, self.size));
            let problem = format!("the host transport is {wanted}, NCCL's side {got}");
            return Err(broken(problem, "make both from the same group, its members in the same order"));
        }
        let communicator = self.make(call, control)?;
        {
            let mut state = self.state();
            if let Some(fault) = &state.fault {
                return Err(fault.clone());
            }
            state.communicator = Some(Arc::clone(&communicator));
            state.makes_windows = true;
        }
        let made = self.windows(&communicator, call, control);
        {
            let mut state = self.state();
            state.makes_windows = false;
            let fault = made.as_ref().err().cloned().or_else(|| state.fault.clone());
            if let Some(fault) = fault {
                state.give_up(&fault);
                return Err(fault);
            }
            state.windows = made?.map(Arc::new);
        }
        self.test(call, control).inspect_err(|fault| self.state().give_up(fault))
    }

    unsafe fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: Piece,
        recv: &[Piece],
        stream: Stream,
    ) -> Result<(), Fault> {
        let (me, size) = (self.me, self.size);
        check_members(size, me, members, recv.len())?;
        check_adjacent(recv)?;
        let own = members.iter().position(|&member| member == me).unwrap_or_default();
        check_own(me, send.len, recv[own].len)?;
        if recv.iter().all(|piece| piece.len == 0) {
            return Ok(());
        }
        let place = |member| members.iter().position(|&other| other == member);
        let pieces = (
            |member| place(member).map_or(Piece::default(), |_| send),
            |member| place(member).map_or(Piece::default(), |at| recv[at]),
        );
        if members.len() < size {
            return self.issue(call, stream, pieces, |group| {
                let pieces = members.iter().map(|&member| (member, send)).zip(recv);
                pieces
                    .into_iter()
                    .try_for_each(|((member, send), recv)| to_and_from(group, (me, member), send, *recv))
            });
        }
        let even = recv.iter().all(|piece| piece.len == send.len);
        self.issue(call, stream, pieces, |group| {
            if even {
                return group.all_gather(send, recv[0].address);
            }
            let pieces = recv.iter().enumerate().filter(|(_, piece)| piece.len > 0);
            pieces.into_iter().try_for_each(|(root, piece)| {
                let from = if root == me { send.address } else { piece.address };
                group.broadcast(from, *piece, root)
            })
        })
    }

    unsafe fn all_to_all_v(
        &self,
        call: &Call,
        send: &[Piece],
        recv: &[Piece],
        stream: Stream,
    ) -> Result<(), Fault> {
        let me = self.me;
        check_pieces(self.size, send.len(), recv.len())?;
        check_own(me, send[me].len, recv[me].len)?;
        if send.iter().chain(recv).all(|piece| piece.len == 0) {
            return Ok(());
        }
        self.issue(call, stream, (|member| send[member], |member| recv[member]), |group| {
            let mut pieces = send.iter().zip(recv).enumerate();
            pieces.try_for_each(|(member, (send, recv))| to_and_from(group, (me, member), *send, *recv))
        })
    }

    fn mark(&self, call: &Call, stream: Stream) -> Result<Pending, Fault> {
        self.check_process()?;
        let mark = self.marks.mark(stream)?;
        self.state().marks.push((*call, mark));
        Ok(mark)
    }

    fn forget(&self, mark: Pending) {
        self.state().marks.retain(|(_, known)| *known != mark);
        self.marks.give_back(mark);
    }

    fn wait(
        &self,
        before: Option<Pending>,
        pending: Pending,
        call: &Call,
        control: &dyn Exchange,
    ) -> Result<(), Fault> {
        self.check_process()?;
        let of_peers = Cell::new(false);
        let communicator = self.state().communicator.clone();
        let own = || {
            self.fault().or_else(|| match communicator.as_ref()?.progress() {
                Ok(_) => None,
                Err(refused) => {
                    of_peers.set(matches!(&refused, Refused::Failed(failed) if failed.is_of_peers()));
                    Some(refused.into_fault())
                }
            })
        };
        self.state().marks.retain(|(_, mark)| *mark != pending && Some(*mark) != before);
        let waited = wait_for_mark(&*self.marks, before, pending, call, control, own);
        // A kernel that has given up has ended, too.
        let waited = waited.and_then(|()| self.fault().map_or(Ok(()), Err));
        waited.map_err(|fault| self.failed(call, Some(control), fault, of_peers.get()))
    }

    fn watch_begin(&self, call: &Call, stream: Stream) -> Result<(), Fault> {
        self.watched(|watchdog| watchdog.begin(call, stream))
    }

    fn watch_end(&self, _: &Call, stream: Stream) -> Result<(), Fault> {
        self.watched(|watchdog| watchdog.end(stream))
    }

    fn fault(&self) -> Option<Fault> {
        NcclExchange::fault(self)
    }

    fn abort(&self, why: &Fault) {
        if self.maker.is_here() {
            self.state().give_up(why);
        }
    }

    fn reset(&self, call: &Call, _: &dyn Exchange) -> Result<Reset, Fault> {
        self.check_process()?;
        if let Some(given) = &self.given {
            return given.unended().map_or(Ok(Reset::Reconnect), Err);
        }
        // Closed first: it would take the end of the old communicator for a fault, and poison the channel
        // that is made anew.
        if let Some(watchdog) = &*lock(&self.watchdog) {
            watchdog.close();
        }
        // Also where this rank has seen no fault: its peers have lost their side.
        self.state().give_up(&broken("the head is rebuilt".into(), "wait for it"));
        self.end_windows();
        if !self.await_abort(call.deadline) {
            let problem = format!("ncclCommAbort of NCCL {} has not come back", self.nccl.version());
            let fix = "drop the CUDA graphs that have captured collectives of the channel, for which NCCL \
                       waits, and rebuild again; where there are none, end this process: the GPU or its \
                       driver does not answer";
            return Err(broken(problem, fix));
        }
        // Kept until the old communicator has ended: up to then the device counts in it.
        *lock(&self.watchdog) = None;
        *self.state() = State::default();
        Ok(Reset::Done)
    }
}

/// A piece to `member` and one from it. A member's piece for itself is not sent where it is in its place
/// already.
fn to_and_from(group: &Group, (me, member): (usize, usize), send: Piece, recv: Piece) -> Result<(), Failed> {
    if member == me && send.address == recv.address {
        return Ok(());
    }
    if send.len > 0 {
        group.send(send, member)?;
    }
    if recv.len > 0 {
        group.recv(recv, member)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_gather_lie_one_behind_the_other() {
        let piece = |address, len| Piece { address, len };
        let nothing = Piece::default();
        assert_eq!(check_adjacent(&[nothing, piece(8, 4), nothing, piece(12, 2)]), Ok(()));
        assert_eq!(check_adjacent(&[nothing, nothing]), Ok(()));
        for apart in [[piece(8, 4), piece(16, 4)], [piece(12, 4), piece(8, 4)]] {
            assert!(matches!(check_adjacent(&apart), Err(Fault::Broken { .. })), "{apart:?}");
        }
    }
}
