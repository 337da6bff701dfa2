//! An exchange over point-to-point messages: the collectives, channels, deadlines and faults of
//! [`Exchange`], for any transport that carries frames of bytes between its members, in order.
//!
//! * [`Link`]: what such a transport does. MPI (`exchange::mpi`, a feature) is one.
//! * [`MessageExchange`]: the exchange over a link.
//! * `frame`: the bytes of a message.
//! * `channel`: what has come, by channel.
//! * `buffers`: memory that is kept from call to call.
//!
//! A call sends its pieces, which never waits, and then receives until it has one piece of each member. So
//! every wait has a deadline, also where a peer has stopped and takes nothing. One thread receives for all
//! threads that wait, whatever channels they wait in.
//!
//! A fault that one member finds is told to the others. It may overtake messages that a third member sent
//! before. So the finder also says how far it had come: a member that lacks only such messages waits for
//! them, and all members come to the same end of a step.
//!
//! Data frames say where their sender is. A note is sent only where no data follow soon: when a step begins,
//! when it has ended, and while a device is waited for.
//!
//! All members count their collectives alike: where not all members gather, the others gather at the same
//! point, in lists of their own. With these numbers a fault says how far its finder had come.

mod buffers;
mod channel;
mod frame;
#[cfg(test)]
mod tests;

pub use buffers::ReceiveBuffers;

use super::{Call, Exchange, Fault, Operation, Place, Reset, check_members, check_pieces};
use crate::process::Maker;
use buffers::SendBuffers;
use channel::{KnownFault, Message, State};
use frame::{FrameKind, HEADER_BYTES, Header};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Point-to-point messages between the members `0..size` of a group. Frames between two members arrive whole
/// and in the order in which they were sent; frames of different senders in any order.
pub trait Link: Send + Sync {
    /// `mpi`, ...
    fn name(&self) -> &'static str;

    /// Number of members.
    fn size(&self) -> usize;

    /// The caller's member number.
    fn me(&self) -> usize;

    /// Tells exchanges that share one transport apart: every frame carries it, and all members have the same.
    /// See [`frame_id`].
    fn id(&self) -> u64 {
        0
    }

    /// Sends a frame to another member, and drops it when it has gone out. From any thread; never waits. A
    /// peer that is gone is no error here.
    fn send(&self, to: usize, frame: Arc<Vec<u8>>);

    /// Hands over what has come. Where there is nothing it waits, until `until` at the longest, for something
    /// to come or for a frame to have gone out. Called by one thread at a time. `take` may wait for threads
    /// that are in [`Link::send`]: a lock that `send` needs must not be held meanwhile.
    fn receive(&self, until: Instant, take: &mut dyn FnMut(Event));

    /// Whether frames go out by themselves. Otherwise only [`Link::receive`] moves long ones, and a call does
    /// not return before its own frames have gone out.
    fn sends_by_itself(&self) -> bool;

    /// Takes back the bytes of a frame that was handed over, once they are read: their memory may serve the
    /// next.
    fn give_back(&self, bytes: Vec<u8>) {
        drop(bytes);
    }

    /// Gives back memory that is kept for frames.
    fn release_memory(&self) {}
}

/// What a [`Link`] hands over.
#[derive(Debug)]
pub enum Event {
    /// A frame of another member.
    Frame { from: usize, bytes: Vec<u8> },
    /// The member has left for good; nothing of it will come any more.
    Gone { member: usize },
    /// The transport has failed: nothing can be exchanged any more.
    Broken { problem: String, fix: String },
}

/// The [`Link::id`] of the exchange that a frame belongs to; `None` where the bytes are no frame.
pub fn frame_id(bytes: &[u8]) -> Option<u64> {
    frame::id_of(bytes)
}

/// Bytes of a frame up to its payload: enough for [`frame_length`].
pub const FRAME_HEADER_BYTES: usize = HEADER_BYTES;

/// The whole length of the frame that begins with `bytes`, for transports that are streams; `None` where they
/// begin no frame.
pub fn frame_length(bytes: &[u8]) -> Option<usize> {
    frame::length(bytes)
}

/// Head and instance of a channel.
type Key = (u32, u32);

/// The channel that an endpoint is before any head opens one. No head's instance is as high.
const WHOLE: Key = (0, u32::MAX);

/// A receive waits no longer than this, so that the receiving thread sees in time what other threads of its
/// member have done, such as a notice of [`Exchange::notify_abort`].
const SLICE: Duration = Duration::from_millis(2);

/// A wait that ends later than `OVERSLEPT` after its deadline was not run in time, as in a stopped process.
/// What its peers have sent is then still in the transport, and the member has `CATCHING_UP` more to receive
/// it.
const OVERSLEPT: Duration = Duration::from_millis(1);
const CATCHING_UP: Duration = Duration::from_millis(100);

/// One member's endpoint: of the first channel, from which heads open theirs, or of a head's own.
pub struct MessageExchange {
    member: Arc<Member>,
    key: Key,
    own: Mutex<Own>,
}

/// A member's side of the transport: lives as long as any of its endpoints.
struct Member {
    link: Box<dyn Link>,
    maker: Maker,
    everyone: Vec<usize>,
    state: Mutex<State>,
    arrived: Condvar,
}

/// A member's memory for the calls of one channel. Lists are empty between calls; only their room stays.
#[derive(Default)]
struct Own {
    buffers: SendBuffers,
    /// Frames of the call under way, and what has come for it, in the order of the members.
    sent: Vec<Arc<Vec<u8>>>,
    came: Vec<Option<Message>>,
}

/// What a call sends.
#[derive(Clone, Copy)]
enum Outgoing<'a> {
    /// The same bytes to all members of the call.
    Same(&'a [u8]),
    /// To each member its piece.
    Pieces(&'a [&'a [u8]]),
}

impl<'a> Outgoing<'a> {
    fn piece(self, to: usize) -> &'a [u8] {
        match self {
            Outgoing::Same(bytes) => bytes,
            Outgoing::Pieces(pieces) => pieces[to],
        }
    }
}

impl Member {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs with the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, state: &State) {
        if state.waiting > 0 {
            self.arrived.notify_all();
        }
    }

    /// Waits for whatever comes next, until `until` at the longest. May return earlier.
    fn wait<'s>(&'s self, mut state: MutexGuard<'s, State>, until: Instant) -> MutexGuard<'s, State> {
        if state.receiving {
            state.waiting += 1;
            let left = until.saturating_duration_since(Instant::now());
            state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
            return state;
        }
        state.receiving = true;
        drop(state);
        // On drop, also where the link panics, another thread may take over.
        struct Receiving<'m>(&'m Member);
        impl Drop for Receiving<'_> {
            fn drop(&mut self) {
                let mut state = self.0.lock();
                state.receiving = false;
                self.0.wake(&state);
            }
        }
        let receiving = Receiving(self);
        self.link.receive(until.min(Instant::now() + SLICE), &mut |event| {
            let mut state = self.lock();
            let read = state.take(event);
            self.wake(&state);
            drop(state);
            if let Some(bytes) = read {
                self.link.give_back(bytes);
            }
        });
        drop(receiving);
        self.lock()
    }

    /// The state with everything that has come by now.
    fn up_to_date(&self) -> MutexGuard<'_, State> {
        let state = self.lock();
        if state.receiving { state } else { self.wait(state, Instant::now()) }
    }

    fn is_here(&self) -> bool {
        self.maker.is_here()
    }

    /// Refuses in a forked process.
    fn check_process(&self) -> Result<(), Fault> {
        self.maker.check("the exchange").map_err(|error| Fault::Broken {
            problem: error.to_string(),
            fix: "start ranks as programs of their own, not by fork".into(),
        })
    }

    fn send_all(&self, buffers: &mut SendBuffers, header: &Header, payload: &[u8]) {
        let write = |out: &mut Vec<u8>| frame::encode(out, self.link.id(), header, payload);
        let frame = buffers.fill(HEADER_BYTES + payload.len(), write);
        let peers = self.everyone.iter().copied().filter(|&to| to != self.link.me());
        peers.for_each(|to| self.link.send(to, Arc::clone(&frame)));
    }

    /// Tells the peers that this member has left the channel.
    fn leave(&self, state: &mut State, key: Key) {
        let now = Instant::now();
        let call = Call {
            head: key.0,
            instance: key.1,
            epoch: 0,
            step: 0,
            operation: Operation::Create,
            terms: 0,
            began: now,
            deadline: now,
        };
        self.send_all(
            &mut SendBuffers::default(),
            &Header { kind: FrameKind::Leave, generation: 0, call },
            &[],
        );
        if key != WHOLE {
            let me = state.me;
            state.channel(key).left[me] = true;
            state.forget_left_channels();
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // A forked process leaves its parent's sockets and job alone.
        if self.is_here() {
            let mut state = self.lock();
            if !state.disbanded {
                self.leave(&mut state, WHOLE);
            }
        }
    }
}

impl MessageExchange {
    /// The endpoint of member `link.me()`. Every member makes one over its own end of the same transport.
    pub fn new(link: impl Link + 'static) -> Self {
        let (me, size) = (link.me(), link.size());
        let member = Member {
            link: Box::new(link),
            maker: Maker::here(),
            everyone: (0..size).collect(),
            state: Mutex::new(State::new(me, size)),
            arrived: Condvar::new(),
        };
        MessageExchange { member: Arc::new(member), key: WHOLE, own: Mutex::default() }
    }

    /// Notes that all members have agreed to end: this one goes without telling the others.
    #[cfg(feature = "mpi")]
    pub(super) fn disband(&self) {
        self.member.lock().disbanded = true;
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        // After a panic these lists have too much at the worst.
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a fault that was found here and tells the peers.
    fn fail(&self, state: &mut State, call: &Call, fault: Fault) {
        let me = state.me;
        let channel = state.channel(self.key);
        let (generation, progress) = (channel.generation, channel.progress.clone());
        let call = call.in_channel(self.key);
        let header = Header { kind: FrameKind::Fault, generation, call };
        let told = frame::encode_fault(me, &fault, &progress);
        self.member.send_all(&mut SendBuffers::default(), &header, &told);
        channel.faults.push(KnownFault { generation, call, fault, progress });
        self.member.wake(state);
    }

    /// Sends each member of `from` its piece, and puts the next message of each into `recv`, in the same
    /// order.
    fn exchange(
        &self,
        call: &Call,
        outgoing: Outgoing<'_>,
        from: &[usize],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault> {
        // Taken out and put back, so that no call waits for its lock. A second call of this member at the
        // same time, which the contract forbids, finds nothing there and allocates.
        let mut own = std::mem::take(&mut *self.own());
        let result = self.exchange_with(&mut own, &call.in_channel(self.key), outgoing, from, recv);
        own.sent.clear();
        own.came.drain(..).flatten().for_each(|message| self.member.link.give_back(message.frame));
        *self.own() = own;
        result
    }

    fn exchange_with(
        &self,
        own: &mut Own,
        call: &Call,
        outgoing: Outgoing<'_>,
        from: &[usize],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault> {
        let Own { buffers, sent, came } = own;
        let Member { link, .. } = &*self.member;
        let me = link.me();
        let generation = {
            let mut state = self.member.lock();
            let channel = state.channel(self.key);
            channel.begun += 1;
            channel.generation
        };
        let header = Header { kind: FrameKind::Data, generation, call: *call };
        let mut framed = |piece: &[u8]| {
            let write = |out: &mut Vec<u8>| frame::encode(out, link.id(), &header, piece);
            sent.push(buffers.fill(HEADER_BYTES + piece.len(), write));
            Arc::clone(&sent[sent.len() - 1])
        };
        let peers = || from.iter().copied().filter(|&to| to != me);
        match outgoing {
            Outgoing::Same(bytes) => {
                let frame = framed(bytes);
                peers().for_each(|to| link.send(to, Arc::clone(&frame)));
            }
            Outgoing::Pieces(pieces) => peers().for_each(|to| link.send(to, framed(pieces[to]))),
        }

        self.wait_for_messages(call, from)?;
        let mut state = self.member.lock();
        let channel = state.channel(self.key);
        from.iter().for_each(|&member| channel.progress.heard[member] = channel.begun);
        came.extend(from.iter().map(|&m| if m == me { None } else { channel.queues[m].pop_front() }));
        let told = channel.ending_fault(call, me, &[]);
        drop(state);

        let (mut wrong, mut other) = (Vec::new(), None);
        for ((&member, message), buffer) in from.iter().zip(&*came).zip(recv) {
            // A member sends nothing to itself: it has the piece.
            let bytes = message.as_ref().map_or_else(|| outgoing.piece(me), Message::payload);
            let common = buffer.len().min(bytes.len());
            buffer[..common].copy_from_slice(&bytes[..common]);
            if buffer.len() != bytes.len() {
                wrong.push((member, buffer.len(), bytes.len()));
            }
            let theirs = message.as_ref().map(|message| &message.call);
            if let Some(theirs) = theirs.filter(|theirs| !theirs.same_as(call)) {
                other.get_or_insert(Fault::OtherCall { member, theirs: theirs.told_to(call) });
            }
        }
        if !link.sends_by_itself() {
            self.wait_until_sent(call, sent);
        }
        match (wrong.is_empty(), other) {
            (false, _) => Err(Fault::Length { peers: wrong }),
            // Why a member went on to another call says more than that call does; headers say still more.
            (true, Some(fault)) if call.operation.has_headers() => Err(fault),
            (true, Some(fault)) => Err(told.unwrap_or(fault)),
            (true, None) => Ok(()),
        }
    }

    /// Waits until a message of each of `from` is there.
    fn wait_for_messages(&self, call: &Call, from: &[usize]) -> Result<(), Fault> {
        let mut state = self.member.lock();
        let me = state.me;
        let channel = state.channel(self.key);
        // A head of which only a part is made must not be taken for whole.
        if call.operation.is_creation()
            && channel.fault().is_some_and(|known| known.call.operation.is_creation())
            && let Some(fault) = channel.ending_fault(call, me, from)
        {
            return Err(fault);
        }
        let mut deadline = call.deadline;
        loop {
            let channel = state.channel(self.key);
            if from.iter().all(|&m| m == me || channel.has(m)) {
                return Ok(());
            }
            if let Some(broken) = &state.broken {
                return Err(broken.clone());
            }
            let channel = state.channel(self.key);
            let told = channel.fault().is_some();
            let now = Instant::now();
            if deadline == call.deadline && deadline + OVERSLEPT < now {
                deadline = now + CATCHING_UP;
            }
            let over = now >= deadline;
            let left = state.channel(self.key).left.contains(&true) || state.gone.contains(&true);
            // Most waits end well: what follows is worked out only where something has happened.
            if told || over || left {
                let channel = state.channel(self.key);
                let missing: Vec<usize> =
                    from.iter().copied().filter(|&m| m != me && !channel.has(m)).collect();
                if let Some(fault) = channel.ending_fault(call, me, &missing) {
                    return Err(fault);
                }
                let lost = state.lost_of(self.key, &missing);
                let fault = match lost.is_empty() {
                    false => Some(Fault::Lost { members: lost }),
                    true => over.then(|| Fault::Timeout { missing: state.to_blame(call, missing) }),
                };
                if let Some(fault) = fault {
                    self.fail(&mut state, call, fault.clone());
                    return Err(fault);
                }
            }
            state = self.member.wait(state, deadline);
        }
    }

    /// Waits until this call's frames have gone out. Nothing that goes wrong here ends the call, which has
    /// all that it wants: a peer that does not take them is found by the next call.
    fn wait_until_sent(&self, call: &Call, sent: &[Arc<Vec<u8>>]) {
        // This call and its buffers hold one reference each; the link holds another until the frame has gone
        // out.
        let is_out = |frame: &Arc<Vec<u8>>| Arc::strong_count(frame) <= 2;
        while !sent.iter().all(is_out) && !call.left().is_zero() {
            let mut state = self.member.lock();
            if state.broken.is_some() || state.channel(self.key).fault().is_some() {
                return;
            }
            drop(self.member.wait(state, call.deadline.min(Instant::now() + SLICE)));
        }
    }
}

impl Exchange for MessageExchange {
    fn name(&self) -> &'static str {
        self.member.link.name()
    }

    fn size(&self) -> usize {
        self.member.everyone.len()
    }

    fn me(&self) -> usize {
        self.member.link.me()
    }

    fn channel(&self, head: u32) -> Result<(u32, Arc<dyn Exchange>), Fault> {
        self.member.check_process()?;
        let mut state = self.member.up_to_date();
        let first = state.opened.get(&head).copied().unwrap_or_default();
        // A channel that a peer gave up before this member came belongs to a creation that has failed. Where
        // the peers have begun another one, this member joins that. Otherwise it joins the last one that a
        // peer refused, since it has yet to learn of that; one in which a peer waited for it in vain is
        // passed over.
        let (mut instance, mut refused) = (first, None);
        while let Some(channel) = state.channels.get(&(head, instance)) {
            match channel.fault().map(|known| &known.fault) {
                Some(Fault::Aborted { .. }) => refused = Some(instance),
                None if !channel.left.contains(&true) => {
                    refused = None;
                    break;
                }
                _ => {}
            }
            instance += 1;
        }
        let instance = refused.unwrap_or(instance);
        for passed in first..instance {
            self.member.leave(&mut state, (head, passed));
        }
        state.opened.insert(head, instance + 1);
        state.channel((head, instance));
        let member = Arc::clone(&self.member);
        Ok((instance, Arc::new(MessageExchange { member, key: (head, instance), own: Mutex::default() })))
    }

    fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: &[u8],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault> {
        self.member.check_process()?;
        check_members(self.size(), self.me(), members, recv.len())?;
        self.exchange(call, Outgoing::Same(send), members, recv)
    }

    fn all_to_all_v(&self, call: &Call, send: &[&[u8]], recv: &mut [&mut [u8]]) -> Result<(), Fault> {
        self.member.check_process()?;
        check_pieces(self.size(), send.len(), recv.len())?;
        self.exchange(call, Outgoing::Pieces(send), &self.member.everyone, recv)
    }

    fn note(&self, call: &Call) {
        if !self.member.is_here() {
            return;
        }
        let call = call.in_channel(self.key);
        let noted = Some((call, Instant::now()));
        let mut state = self.member.lock();
        let me = state.me;
        state.places[me] = noted;
        let before = std::mem::replace(&mut state.channel(self.key).places[me], noted);
        drop(state);
        // Within a step data frames say it. Not so for a member that notes the same operation again after a
        // while: it waits for its device.
        let goes_on = before.is_some_and(|(before, at)| {
            before.same_step(&call) && !(before.same_operation(&call) && at.elapsed() > SLICE)
        });
        if !goes_on || call.operation == Operation::Idle {
            let header = Header { kind: FrameKind::Note, generation: 0, call };
            self.member.send_all(&mut self.own().buffers, &header, &[]);
        }
    }

    fn places(&self) -> Vec<Option<Place>> {
        if !self.member.is_here() {
            return vec![None; self.size()];
        }
        let mut state = self.member.up_to_date();
        let here = state.channel(self.key).places.clone();
        let seen = here.iter().zip(&state.places).map(|(here, anywhere)| here.or(*anywhere));
        seen.map(|noted| noted.map(|(call, at)| call.place(at.elapsed()))).collect()
    }

    fn places_elsewhere(&self) -> Vec<Option<Place>> {
        if !self.member.is_here() {
            return vec![None; self.size()];
        }
        let mut state = self.member.up_to_date();
        let here = state.channel(self.key).places.clone();
        let later = here.iter().zip(&state.places).map(|(here, anywhere)| {
            let ((_, seen), (call, at)) = ((*here)?, (*anywhere)?);
            ((call.head, call.instance) != self.key && seen < at).then(|| call.place(at.elapsed()))
        });
        later.collect()
    }

    fn release_memory(&self) {
        if self.member.is_here() {
            self.own().buffers.release();
            self.member.link.release_memory();
        }
    }

    fn pending_fault(&self) -> Option<(Call, Fault)> {
        if !self.member.is_here() {
            return None;
        }
        let mut state = self.member.up_to_date();
        state.channel(self.key).fault().map(|known| (known.call, known.fault.clone()))
    }

    fn gone(&self) -> Vec<usize> {
        if !self.member.is_here() {
            return Vec::new();
        }
        let others: Vec<usize> = (0..self.size()).filter(|&member| member != self.me()).collect();
        self.member.up_to_date().lost_of(self.key, &others)
    }

    fn notify_abort(&self, call: &Call, reason: &str) {
        if !self.member.is_here() {
            return;
        }
        if self.key == WHOLE && call.operation == Operation::Create {
            if let Ok((instance, own)) = self.channel(call.head) {
                own.notify_abort(&Call { instance, ..*call }, reason);
            }
            return;
        }
        self.notify_fault(call, &Fault::Aborted { member: self.me(), reason: reason.into() });
    }

    fn notify_fault(&self, call: &Call, fault: &Fault) {
        if !self.member.is_here() {
            return;
        }
        let mut state = self.member.lock();
        if state.channel(self.key).fault().is_none() {
            self.fail(&mut state, call, fault.clone());
        }
    }

    fn reset(&self, call: &Call) -> Result<Reset, Fault> {
        self.member.check_process()?;
        // Tells a peer that is still in a step.
        self.notify_abort(call, "it rebuilds the head");
        let mut state = self.member.lock();
        let me = state.me;
        let channel = state.channel(self.key);
        let wanted = channel.generation + 1;
        channel.wanted[me] = wanted;
        let header = Header { kind: FrameKind::Reset, generation: wanted, call: call.in_channel(self.key) };
        self.member.send_all(&mut SendBuffers::default(), &header, &[]);
        loop {
            if let Some(broken) = &state.broken {
                return Err(broken.clone());
            }
            let channel = state.channel(self.key);
            let missing: Vec<usize> =
                self.member.everyone.iter().copied().filter(|&m| channel.wanted[m] < wanted).collect();
            if missing.is_empty() {
                let mut read = Vec::new();
                channel.begin(wanted, &mut read);
                drop(state);
                read.into_iter().for_each(|message| self.member.link.give_back(message.frame));
                return Ok(Reset::Done);
            }
            let lost = state.lost_of(self.key, &missing);
            if !lost.is_empty() {
                return Err(Fault::Lost { members: lost });
            }
            if call.left().is_zero() {
                return Err(Fault::Timeout { missing });
            }
            state = self.member.wait(state, call.deadline);
        }
    }
}

impl Drop for MessageExchange {
    fn drop(&mut self) {
        if self.key != WHOLE && self.member.is_here() {
            let mut state = self.member.lock();
            self.member.leave(&mut state, self.key);
        }
    }
}
