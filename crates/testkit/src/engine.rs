//! A stand-in for an engine: ranks as threads of one process, and the callbacks that an engine hands to the
//! library.
//!
//! The last member that comes to a collective carries it out: it copies the pieces of all members, from
//! memory to memory, under one lock. So a collective happens for all members or for none, and allocates
//! nothing. The engine knows nothing of a call but what the callbacks are told.

use lmhead::backend::device::{CopyRows, KernelDevice, stream_marks};
use lmhead::exchange::callbacks::{PeerStatus, Report, Status, Transport};
use lmhead::exchange::{Call, Exchange, Operation, Piece, Place, callbacks};
use lmhead::memory::{Memory, Stream};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Which optional callbacks an engine has, beside `all_to_all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Functions {
    pub all_gather: bool,
    pub notify_abort: bool,
    pub place: bool,
    pub reset: bool,
}

impl Functions {
    pub const ALL: Functions = Functions { all_gather: true, notify_abort: true, place: true, reset: true };
    pub const LEAST: Functions =
        Functions { all_gather: false, notify_abort: false, place: false, reset: false };
}

/// What a callback does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Odd {
    /// It panics before it does anything.
    Panics,
    /// It does its work, then returns this status.
    Returns(Status),
    /// It does its work, then marks this member with the first status and returns the second.
    Marks(usize, Status, Status),
    /// It does its work, and returns this long after the deadline.
    Late(Duration),
}

type Hook = Arc<dyn Fn(&'static str, &Call) -> Option<Odd> + Send + Sync>;

/// One rank's side of the engine.
pub struct Engine {
    shared: Arc<Shared>,
    me: usize,
    functions: Functions,
    hook: Hook,
}

struct Shared {
    size: usize,
    state: Mutex<State>,
    arrived: Condvar,
}

struct State {
    channels: HashMap<(u32, u32), Channel>,
    /// Ranks whose engine has ended.
    gone: Vec<bool>,
    places: Vec<Option<(Call, Instant)>>,
}

struct Channel {
    /// For each member, the collective that it waits in.
    slots: Vec<Slot>,
    notices: Vec<(Call, usize, String)>,
    /// Which members wait in a reset; and for each, who ended that wait and why.
    resetting: Vec<bool>,
    ended: Vec<Option<(usize, String)>>,
    resets: u64,
    left: Vec<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CollectiveKind {
    Gather,
    AllToAll,
}

/// The pieces with which a member waits in a collective. Their memory stays valid until the wait is over.
struct Slot {
    call: Option<Call>,
    kind: CollectiveKind,
    /// One piece for all members, or one for each.
    send: Vec<Piece>,
    members: Vec<usize>,
    recv: Vec<Piece>,
    /// How its collective ended.
    done: Option<Status>,
    /// The collective that the member last left because of its deadline.
    gave_up: Option<Call>,
    peers: Vec<PeerStatus>,
    text: String,
}

impl Slot {
    fn to(&self, member: usize) -> Option<Piece> {
        match self.kind {
            CollectiveKind::Gather => self.members.contains(&member).then(|| self.send[0]),
            CollectiveKind::AllToAll => self.send.get(member).copied(),
        }
    }
}

impl Channel {
    fn new(size: usize) -> Self {
        let slot = || Slot {
            call: None,
            kind: CollectiveKind::AllToAll,
            send: Vec::with_capacity(size),
            members: Vec::with_capacity(size),
            recv: Vec::with_capacity(size),
            done: None,
            gave_up: None,
            peers: vec![PeerStatus::default(); size],
            text: String::new(),
        };
        Channel {
            slots: (0..size).map(|_| slot()).collect(),
            notices: Vec::new(),
            resetting: vec![false; size],
            ended: vec![None; size],
            resets: 0,
            left: vec![false; size],
        }
    }

    /// Whether `from` waits with a piece for `to`. (A gather among other members has none.)
    fn has(&self, from: usize, to: usize) -> bool {
        self.slots[from].call.is_some() && self.slots[from].to(to).is_some()
    }

    fn is_complete(&self, member: usize) -> bool {
        let slot = &self.slots[member];
        slot.call.is_some() && slot.members.iter().all(|&from| self.has(from, member))
    }

    /// Delivers the pieces to every member whose peers have all come, and ends the waits of these members.
    fn deliver(&mut self) {
        for member in 0..self.slots.len() {
            if self.is_complete(member) {
                self.deliver_to(member);
            }
        }
        for slot in self.slots.iter_mut().filter(|slot| slot.done.is_some()) {
            slot.call = None;
        }
    }

    fn deliver_to(&mut self, me: usize) {
        let mut slot = std::mem::take(&mut self.slots[me].peers);
        slot.fill(PeerStatus::default());
        let (own, mut status, mut text) = (&self.slots[me], Status::GOOD, String::new());
        let call = own.call.expect("it waits");
        for (i, &from) in own.members.iter().enumerate() {
            let theirs = &self.slots[from];
            let (sent, wanted) = (theirs.to(me).unwrap_or_default(), own.recv[i]);
            copy(sent, wanted);
            if sent.len != wanted.len {
                status = Status::LENGTH;
                (slot[from].status, slot[from].bytes) = (Status::LENGTH, sent.len as u64);
            } else if !theirs.call.is_some_and(|theirs| theirs.same_as(&call)) && status == Status::GOOD {
                status = Status::OTHER_CALL;
                slot[from].status = status;
                text = theirs.call.expect("it waits").told_to(&call);
            }
        }
        let own = &mut self.slots[me];
        (own.peers, own.done, own.text) = (slot, Some(status), text);
    }

    /// The notice that ends a wait in `call`, if there is one.
    fn notice(&self, call: &Call) -> Option<&(Call, usize, String)> {
        self.notices.iter().find(|(of, ..)| of.epoch == call.epoch && of.step <= call.step)
    }
}

/// Copies as many bytes as both pieces have.
fn copy(from: Piece, to: Piece) {
    let bytes = from.len.min(to.len);
    if bytes > 0 {
        let from = std::ptr::with_exposed_provenance::<u8>(from.address as usize);
        let to = std::ptr::with_exposed_provenance_mut::<u8>(to.address as usize);
        // SAFETY: host memory of members that wait in this collective, which nobody else uses meanwhile.
        unsafe { std::ptr::copy(from, to, bytes) };
    }
}

/// The engines of `size` ranks, all with the same callbacks. At the beginning of each callback, `hook`
/// decides what it does wrong.
pub fn engines(
    size: usize,
    functions: Functions,
    hook: impl Fn(usize, &'static str, &Call) -> Option<Odd> + Send + Sync + 'static,
) -> Vec<Engine> {
    let state = State { channels: HashMap::new(), gone: vec![false; size], places: vec![None; size] };
    let shared = Arc::new(Shared { size, state: Mutex::new(state), arrived: Condvar::new() });
    let hook = Arc::new(hook);
    let engine = |me| {
        let (shared, hook) = (Arc::clone(&shared), Arc::clone(&hook));
        Engine { shared, me, functions, hook: Arc::new(move |function, call| hook(me, function, call)) }
    };
    (0..size).map(engine).collect()
}

/// The exchanges of `size` ranks over engines that have all callbacks and make no mistake.
pub fn group(size: usize) -> Vec<Arc<dyn Exchange>> {
    group_of(size, Functions::ALL, |_, _, _| None)
}

/// The exchanges over [`engines`].
pub fn group_of(
    size: usize,
    functions: Functions,
    hook: impl Fn(usize, &'static str, &Call) -> Option<Odd> + Send + Sync + 'static,
) -> Vec<Arc<dyn Exchange>> {
    let engines = engines(size, functions, hook).into_iter().enumerate();
    let exchange = |(me, engine)| callbacks::exchange(size, me, Arc::new(engine)).expect("an exchange");
    engines.map(exchange).collect()
}

impl Engine {
    /// The number of channels that the engine remembers, over all ranks.
    pub fn channels(&self) -> usize {
        self.lock().channels.len()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn channel<'s>(&self, state: &'s mut State, call: &Call) -> &'s mut Channel {
        let channel = state.channels.entry((call.head, call.instance));
        channel.or_insert_with(|| Channel::new(self.shared.size))
    }

    fn wait<'s>(&self, state: MutexGuard<'s, State>, call: &Call) -> MutexGuard<'s, State> {
        let waited = self.shared.arrived.wait_timeout(state, call.left());
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Runs `work`, with the mistake that the hook asks for.
    fn odd(
        &self,
        function: &'static str,
        call: &Call,
        report: &mut Report,
        work: impl FnOnce(&mut Report) -> Status,
    ) -> Status {
        let odd = (self.hook)(function, call);
        if odd == Some(Odd::Panics) {
            std::panic::resume_unwind(Box::new(format!("an engine's bug in {function}")));
        }
        let status = work(report);
        match odd {
            Some(Odd::Returns(status)) => status,
            Some(Odd::Marks(member, mark, status)) => {
                report.mark(member, mark);
                status
            }
            Some(Odd::Late(by)) => {
                std::thread::sleep(call.left() + by);
                status
            }
            _ => status,
        }
    }

    /// Waits with these pieces until all members have come, or one of them will not.
    fn collective(
        &self,
        call: &Call,
        (kind, members): (CollectiveKind, &[usize]),
        send: &[Piece],
        recv: &[Piece],
        report: &mut Report,
    ) -> Status {
        let mut state = self.lock();
        let channel = self.channel(&mut state, call);
        let slot = &mut channel.slots[self.me];
        (slot.call, slot.kind, slot.done) = (Some(*call), kind, None);
        for (list, pieces) in [(&mut slot.send, send), (&mut slot.recv, recv)] {
            list.clear();
            list.extend_from_slice(pieces);
        }
        slot.members.clear();
        match kind {
            CollectiveKind::Gather => slot.members.extend_from_slice(members),
            CollectiveKind::AllToAll => slot.members.extend(0..self.shared.size),
        }
        channel.deliver();
        self.shared.arrived.notify_all();
        loop {
            let State { channels, gone, .. } = &mut *state;
            let channel = channels.get_mut(&(call.head, call.instance)).expect("made above");
            if let Some(status) = channel.slots[self.me].done.take() {
                report.peers_mut().copy_from_slice(&channel.slots[self.me].peers);
                report.set_text(&channel.slots[self.me].text);
                return status;
            }
            let lacks = |member: &usize| !channel.has(*member, self.me);
            let lost = |member: &usize| gone[*member] || channel.left[*member];
            let missing = channel.slots[self.me].members.iter().copied().filter(lacks);
            let status = if let Some((_, member, notice)) = channel.notice(call) {
                report.mark(*member, Status::ABORTED);
                report.set_text(notice);
                Status::ABORTED
            } else if missing.clone().any(|member| lost(&member)) {
                missing.filter(lost).for_each(|member| report.mark(member, Status::LOST));
                Status::LOST
            } else if call.left().is_zero() {
                // The deadlines of several members may end at once. A member that had come is not named as
                // missing beside one that had not.
                let came = |member: &usize| channel.slots[*member].gave_up.is_some_and(|of| of.same_as(call));
                let nobody_else = missing.clone().all(|member| came(&member));
                let late = missing.filter(|member| nobody_else || !came(member));
                late.for_each(|member| report.mark(member, Status::TIMEOUT));
                channel.slots[self.me].gave_up = Some(*call);
                Status::TIMEOUT
            } else {
                state = self.wait(state, call);
                continue;
            };
            channel.slots[self.me].call = None;
            return status;
        }
    }

    fn meet(&self, call: &Call, report: &mut Report) -> Status {
        let mut state = self.lock();
        let channel = self.channel(&mut state, call);
        let before = channel.resets;
        channel.resetting[self.me] = true;
        channel.ended[self.me] = None;
        loop {
            let gone = state.gone.clone();
            let channel = self.channel(&mut state, call);
            if channel.resets != before {
                return Status::GOOD;
            }
            if let Some((member, notice)) = channel.ended[self.me].take() {
                report.mark(member, Status::ABORTED);
                report.set_text(&notice);
                return Status::ABORTED;
            }
            let missing: Vec<usize> = (0..gone.len()).filter(|&m| !channel.resetting[m]).collect();
            if missing.is_empty() {
                channel.notices.retain(|(of, ..)| of.epoch > call.epoch);
                channel.resetting.fill(false);
                channel.resets += 1;
                self.shared.arrived.notify_all();
                return Status::GOOD;
            }
            let lost: Vec<usize> = missing.iter().copied().filter(|&m| gone[m] || channel.left[m]).collect();
            let (status, members) = match (lost.is_empty(), call.left().is_zero()) {
                (false, _) => (Status::LOST, lost),
                (true, true) => (Status::TIMEOUT, missing),
                (true, false) => {
                    state = self.wait(state, call);
                    continue;
                }
            };
            channel.resetting[self.me] = false;
            members.into_iter().for_each(|member| report.mark(member, status));
            return status;
        }
    }
}

// SAFETY: `copy` writes within a receive piece and reads within a send piece, while both members wait.
unsafe impl Transport for Engine {
    unsafe fn all_to_all(
        &self,
        call: &Call,
        _: Stream,
        send: &[Piece],
        recv: &[Piece],
        report: &mut Report,
    ) -> Status {
        self.odd("all_to_all", call, report, |report| {
            self.collective(call, (CollectiveKind::AllToAll, &[]), send, recv, report)
        })
    }

    unsafe fn all_gather(
        &self,
        call: &Call,
        members: &[usize],
        _: Stream,
        send: Piece,
        recv: &[Piece],
        report: &mut Report,
    ) -> Option<Status> {
        self.functions.all_gather.then(|| {
            self.odd("all_gather", call, report, |report| {
                self.collective(call, (CollectiveKind::Gather, members), &[send], recv, report)
            })
        })
    }

    fn notify_abort(&self, call: &Call, notice: &str) {
        if (self.hook)("notify_abort", call) == Some(Odd::Panics) {
            std::panic::resume_unwind(Box::new("an engine's bug in notify_abort"));
        }
        if !self.functions.notify_abort {
            return;
        }
        let mut state = self.lock();
        let (me, channel) = (self.me, self.channel(&mut state, call));
        if call.operation == Operation::Rebuild {
            for (resetting, ended) in channel.resetting.iter_mut().zip(&mut channel.ended) {
                if std::mem::take(resetting) {
                    *ended = Some((me, notice.into()));
                }
            }
        } else {
            channel.notices.push((*call, me, notice.into()));
        }
        self.shared.arrived.notify_all();
    }

    fn note(&self, call: &Call) {
        self.lock().places[self.me] = Some((*call, Instant::now()));
    }

    fn place(&self, member: usize) -> Option<Place> {
        let (call, at) = self.lock().places[member].filter(|_| self.functions.place)?;
        Some(call.place(at.elapsed()))
    }

    fn pending(&self, call: &Call, report: &mut Report) -> Status {
        self.odd("pending", call, report, |report| {
            let mut state = self.lock();
            let Some((_, member, notice)) = self.channel(&mut state, call).notice(call) else {
                return Status::GOOD;
            };
            report.mark(*member, Status::ABORTED);
            report.set_text(notice);
            Status::ABORTED
        })
    }

    fn reset(&self, call: &Call, report: &mut Report) -> Option<Status> {
        self.functions.reset.then(|| self.odd("reset", call, report, |report| self.meet(call, report)))
    }

    fn leave(&self, head: u32, instance: u32) {
        let mut state = self.lock();
        let channel = state.channels.entry((head, instance));
        let channel = channel.or_insert_with(|| Channel::new(self.shared.size));
        channel.left[self.me] = true;
        if !channel.left.contains(&false) {
            state.channels.remove(&(head, instance));
        }
        self.shared.arrived.notify_all();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.lock().gone[self.me] = true;
        self.shared.arrived.notify_all();
    }
}

/// An engine for pieces in a device's memory, which it copies through the host.
struct DeviceEngine<D: KernelDevice> {
    engine: Engine,
    device: D,
}

/// The exchanges of `size` ranks over two engines: rows and results go over callbacks for the device's
/// memory, headers over callbacks for host memory. The hook is only asked for the former.
pub fn device_group<D: KernelDevice>(
    device: &D,
    size: usize,
    hook: impl Fn(usize, &'static str, &Call) -> Option<Odd> + Send + Sync + 'static,
) -> Vec<Arc<dyn Exchange>> {
    let engines = engines(size, Functions::ALL, hook).into_iter();
    let exchange = |(engine, control)| {
        let engine = DeviceEngine { engine, device: device.clone() };
        callbacks::with_device(Arc::new(engine), stream_marks(device), control).expect("an exchange")
    };
    engines.zip(group(size)).map(exchange).collect()
}

impl<D: KernelDevice> DeviceEngine<D> {
    /// Copies each piece to the host, or from it, on the stream, and waits for the copies.
    fn stage(&self, stream: Stream, pieces: &[Piece], host: &mut [Vec<u8>], to_host: bool) {
        // SAFETY: the promise of the caller of the function.
        let on = unsafe { self.device.stream_from(stream) };
        for (piece, bytes) in pieces.iter().zip(host.iter_mut()).filter(|(piece, _)| piece.len > 0) {
            let own = (Memory::Device(self.device.ordinal()), piece.address);
            let host = (Memory::Host, bytes.as_mut_ptr().expose_provenance() as u64);
            let (to, from) = if to_host { (host, own) } else { (own, host) };
            // SAFETY: pieces of the caller, and host memory that lives until the wait below.
            unsafe { self.device.copy_rows(on, &CopyRows::whole(to, from, piece.len)) }.expect("a copy");
        }
        self.device.wait(on).expect("the end of the copies");
    }

    /// Runs `work` on host copies of the device's pieces: copies `send` to the host before, and the results
    /// back to `recv` after.
    fn through_host(
        &self,
        stream: Stream,
        send: &[Piece],
        recv: &[Piece],
        work: impl FnOnce(&[Piece], &[Piece]) -> Status,
    ) -> Status {
        let buffers = |pieces: &[Piece]| pieces.iter().map(|piece| vec![0u8; piece.len]).collect();
        let (mut sent, mut came): (Vec<Vec<u8>>, Vec<Vec<u8>>) = (buffers(send), buffers(recv));
        self.stage(stream, send, &mut sent, true);
        let piece = |bytes: &mut Vec<u8>| Piece {
            address: bytes.as_mut_ptr().expose_provenance() as u64,
            len: bytes.len(),
        };
        let pieces = |buffers: &mut Vec<Vec<u8>>| buffers.iter_mut().map(piece).collect::<Vec<_>>();
        let status = work(&pieces(&mut sent), &pieces(&mut came));
        self.stage(stream, recv, &mut came, false);
        status
    }
}

// SAFETY: copies read send pieces and write receive pieces, within their lengths.
unsafe impl<D: KernelDevice> Transport for DeviceEngine<D> {
    fn memory(&self) -> Memory {
        Memory::Device(self.device.ordinal())
    }

    unsafe fn all_to_all(
        &self,
        call: &Call,
        stream: Stream,
        send: &[Piece],
        recv: &[Piece],
        report: &mut Report,
    ) -> Status {
        self.through_host(stream, send, recv, |send, recv| {
            // SAFETY: host memory that lives until this returns.
            unsafe { self.engine.all_to_all(call, Stream::NONE, send, recv, report) }
        })
    }

    fn notify_abort(&self, call: &Call, notice: &str) {
        self.engine.notify_abort(call, notice);
    }

    fn pending(&self, call: &Call, report: &mut Report) -> Status {
        self.engine.pending(call, report)
    }

    fn reset(&self, call: &Call, report: &mut Report) -> Option<Status> {
        self.engine.reset(call, report)
    }

    fn leave(&self, head: u32, instance: u32) {
        self.engine.leave(head, instance);
    }
}
