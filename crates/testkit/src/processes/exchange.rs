//! A transport between processes: a Unix socket for each pair of ranks, a thread that reads and one that
//! writes for each peer.
//!
//! Nothing that a rank calls waits for a socket: what is sent goes to the peer's writing thread, what has
//! come is in queues under one lock. So every wait has its deadline, also where a peer is stopped and its
//! socket is full. A peer whose process ends is seen at once, since its sockets close.
//!
//! A fault that one rank finds is told to the others. It may overtake messages of a third rank that were sent
//! before: the teller says how far it had come, so that a rank that lacks only such messages waits for them,
//! and all ranks come to the same end of a step.

use super::frame::{self, Kind, Progress};
use lmhead::exchange::{Call, Exchange, Fault, Place, Reset, check_members, check_pieces};
use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long ranks wait for each other's sockets, and a rank that leaves for what it has sent last.
const CONNECTING: Duration = Duration::from_secs(30);
const LEAVING: Duration = Duration::from_secs(2);

/// A wait that ends so long after its deadline was not run, as in a process that was stopped. What its peers
/// have sent meanwhile is then still in the sockets, and so long the threads that read have to bring it.
const OVERSLEPT: Duration = Duration::from_millis(1);
const CATCHING_UP: Duration = Duration::from_millis(100);

/// Head and instance of a channel.
type Key = (u32, u32);

/// The channel that an endpoint is before any head opens one. No head's instance is as high.
const FIRST: Key = (0, u32::MAX);

/// One rank's endpoint: of the first channel, or of a head's own.
pub struct ProcessExchange {
    links: Arc<Links>,
    key: Key,
}

/// The sockets of one rank. They close when its last endpoint is dropped.
struct Links {
    me: usize,
    size: usize,
    shared: Arc<Shared>,
    /// By peer; nothing for the rank itself.
    outboxes: Vec<Option<Sender<Arc<[u8]>>>>,
    writers: Vec<JoinHandle<()>>,
    streams: Vec<UnixStream>,
}

/// What reading threads and calls share.
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
}

struct State {
    size: usize,
    channels: HashMap<Key, Channel>,
    /// By head: the number of channels that this rank has opened or passed over.
    opened: HashMap<u32, u32>,
    /// Peers whose sockets have closed.
    gone: Vec<bool>,
    places: Vec<Option<(Call, Instant)>>,
}

struct Channel {
    /// Counts resets. What belongs to an earlier one is dropped, what belongs to a later one is kept until
    /// then.
    generation: u32,
    /// By sender.
    queues: Vec<VecDeque<Message>>,
    faults: Vec<Told>,
    /// The generation that each member wants.
    wanted: Vec<u32>,
    /// Members that have dropped the channel.
    left: Vec<bool>,
    /// Collectives of this generation that were begun here.
    begun: u64,
    progress: Progress,
}

struct Message {
    generation: u32,
    call: Call,
    bytes: Vec<u8>,
}

/// A fault, found here or told by a peer.
struct Told {
    generation: u32,
    call: Call,
    fault: Fault,
    /// How far the member that found it had come.
    progress: Progress,
}

/// Connects this rank with the others of its scenario, which meet in `folder`.
pub(super) fn connect(folder: &Path, me: usize, size: usize) -> io::Result<ProcessExchange> {
    let began = Instant::now();
    let late = || io::Error::new(io::ErrorKind::TimedOut, "a peer does not come");
    let socket = |rank: usize| folder.join(format!("{rank}.socket"));
    let listener = UnixListener::bind(socket(me))?;
    listener.set_nonblocking(true)?;
    let mut streams: Vec<Option<UnixStream>> = (0..size).map(|_| None).collect();
    for (rank, stream) in streams.iter_mut().enumerate().take(me) {
        *stream = Some(loop {
            match UnixStream::connect(socket(rank)) {
                Ok(stream) => break stream,
                Err(_) if began.elapsed() < CONNECTING => thread::sleep(Duration::from_millis(1)),
                Err(error) => return Err(error),
            }
        });
        stream.as_mut().expect("connected above").write_all(&[me as u8])?;
    }
    while streams.iter().flatten().count() + 1 < size {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false)?;
                let mut rank = [0];
                stream.read_exact(&mut rank)?;
                streams[usize::from(rank[0])] = Some(stream);
            }
            Err(_) if began.elapsed() < CONNECTING => thread::sleep(Duration::from_millis(1)),
            Err(_) => return Err(late()),
        }
    }

    let state = State {
        size,
        channels: HashMap::new(),
        opened: HashMap::new(),
        gone: vec![false; size],
        places: vec![None; size],
    };
    let shared = Arc::new(Shared { state: Mutex::new(state), arrived: Condvar::new() });
    let mut links =
        Links { me, size, shared, outboxes: Vec::new(), writers: Vec::new(), streams: Vec::new() };
    for (peer, stream) in streams.into_iter().enumerate() {
        let Some(stream) = stream else {
            links.outboxes.push(None);
            continue;
        };
        let (outbox, frames) = mpsc::channel();
        let (reading, writing, shared) =
            (stream.try_clone()?, stream.try_clone()?, Arc::clone(&links.shared));
        thread::spawn(move || read_all(peer, reading, &shared));
        links.writers.push(thread::spawn(move || write_all(writing, &frames)));
        links.outboxes.push(Some(outbox));
        links.streams.push(stream);
    }
    Ok(ProcessExchange { links: Arc::new(links), key: FIRST })
}

/// Puts what `peer` sends where it belongs, until its socket closes.
fn read_all(peer: usize, mut stream: UnixStream, shared: &Shared) {
    while let Ok(frame) = frame::read(&mut stream) {
        let mut state = shared.lock();
        let (call, generation) = (frame.call, frame.generation);
        let channel = state.channel((call.head, call.instance));
        match frame.kind {
            Kind::Data => channel.queues[peer].push_back(Message { generation, call, bytes: frame.bytes }),
            Kind::Reset => channel.wanted[peer] = channel.wanted[peer].max(generation),
            Kind::Leave => channel.left[peer] = true,
            Kind::Note => state.places[peer] = Some((call, Instant::now())),
            Kind::Fault => match frame::decode_fault(&frame.bytes) {
                Some((fault, progress)) => channel.faults.push(Told { generation, call, fault, progress }),
                None => break,
            },
        }
        drop(state);
        shared.arrived.notify_all();
    }
    shared.lock().gone[peer] = true;
    shared.arrived.notify_all();
}

/// Sends what comes, and closes this direction when nothing can come any more.
fn write_all(mut stream: UnixStream, frames: &Receiver<Arc<[u8]>>) {
    for bytes in frames {
        // A peer that is gone is seen by the thread that reads.
        if stream.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs with the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for whatever comes next, at the longest until then.
    fn wait<'s>(&self, state: MutexGuard<'s, State>, until: Instant) -> MutexGuard<'s, State> {
        let left = until.saturating_duration_since(Instant::now());
        self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
    }
}

impl State {
    fn channel(&mut self, key: Key) -> &mut Channel {
        let size = self.size;
        self.channels.entry(key).or_insert_with(|| Channel {
            generation: 0,
            queues: (0..size).map(|_| VecDeque::new()).collect(),
            faults: Vec::new(),
            wanted: vec![0; size],
            left: vec![false; size],
            begun: 0,
            progress: Progress::default(),
        })
    }

    /// Of the members whose messages are missing, those that have not come to this step: one that was last
    /// heard of in it is held up by another. All of them, where that leaves nobody.
    fn to_blame(&self, call: &Call, missing: Vec<usize>) -> Vec<usize> {
        let held_up = |m: &usize| self.places[*m].is_some_and(|(theirs, _)| theirs.same_step(call));
        let absent: Vec<usize> = missing.iter().copied().filter(|m| !held_up(m)).collect();
        if absent.is_empty() { missing } else { absent }
    }
}

impl Channel {
    /// Whether a message of `from` is there, for the generation that this channel is in.
    fn has(&mut self, from: usize) -> bool {
        let (queue, generation) = (&mut self.queues[from], self.generation);
        while queue.front().is_some_and(|message| message.generation < generation) {
            queue.pop_front();
        }
        queue.front().is_some_and(|message| message.generation == generation)
    }

    /// The first fault of this generation.
    fn fault(&self) -> Option<&Told> {
        self.faults.iter().find(|told| told.generation == self.generation)
    }

    /// The fault that ends the wait of `me` for messages of `missing` in the collective that was begun last.
    fn told(&self, call: &Call, me: usize, missing: &[usize]) -> Option<Fault> {
        // Where the member that found the fault has completed this collective or a later one with all of us,
        // our messages were sent before: they are on their way.
        let on_their_way = |told: &Told| {
            let Progress { completed, heard } = &told.progress;
            !missing.is_empty()
                && *completed >= self.begun
                && heard.contains(&me)
                && missing.iter().all(|member| heard.contains(member))
        };
        let told = self.fault().filter(|told| !on_their_way(told))?;
        // Who waited in vain says how long; frames carry microseconds.
        let [theirs, ours] = [&told.call, call].map(|call| call.timeout().as_micros());
        let waited_longer = matches!(told.fault, Fault::Timeout { .. }) && theirs != ours;
        Some(match told.call.same_operation(call) && !waited_longer {
            true => told.fault.clone(),
            false => Fault::Earlier { call: Box::new(told.call), fault: Box::new(told.fault.clone()) },
        })
    }
}

impl Links {
    /// To one peer.
    fn send(&self, to: usize, frame: Arc<[u8]>) {
        // Where the writing thread has ended, the peer is gone: that is seen when something is wanted of it.
        if let Some(Some(outbox)) = self.outboxes.get(to) {
            let _ = outbox.send(frame);
        }
    }

    fn send_all(&self, frame: Vec<u8>) {
        let frame: Arc<[u8]> = frame.into();
        (0..self.size).for_each(|to| self.send(to, Arc::clone(&frame)));
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.outboxes.clear();
        // What was sent last, such as a notice, still goes out; a peer that is stopped takes nothing.
        let began = Instant::now();
        while !self.writers.iter().all(JoinHandle::is_finished) && began.elapsed() < LEAVING {
            thread::sleep(Duration::from_millis(1));
        }
        for stream in &self.streams {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl ProcessExchange {
    /// The call as this channel's frames name it.
    fn named(&self, call: &Call) -> Call {
        Call { head: self.key.0, instance: self.key.1, ..*call }
    }

    /// Records a fault that was found here and tells the peers.
    fn fail(&self, state: &mut State, call: &Call, fault: Fault) {
        let channel = state.channel(self.key);
        let (generation, progress) = (channel.generation, channel.progress.clone());
        self.links.send_all(frame::encode(
            Kind::Fault,
            generation,
            &self.named(call),
            &frame::encode_fault(&fault, &progress),
        ));
        channel.faults.push(Told { generation, call: *call, fault, progress });
        self.links.shared.arrived.notify_all();
    }

    /// Sends each `(member, bytes)` and takes the next message of each of `from`; pieces of `recv` in the
    /// same order.
    fn exchange<'a>(
        &self,
        call: &Call,
        send: impl Iterator<Item = (usize, &'a [u8])>,
        from: &[usize],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault> {
        let Links { me, shared, .. } = &*self.links;
        let mut state = shared.lock();
        let channel = state.channel(self.key);
        let generation = channel.generation;
        channel.begun += 1;
        for (to, bytes) in send {
            if to == *me {
                channel.queues[to].push_back(Message { generation, call: *call, bytes: bytes.into() });
            } else {
                self.links.send(to, frame::encode(Kind::Data, generation, &self.named(call), bytes).into());
            }
        }
        // A head of which only a part is made must not be taken for whole.
        if call.operation.is_creation()
            && channel.fault().is_some_and(|told| told.call.operation.is_creation())
            && let Some(fault) = channel.told(call, *me, from)
        {
            return Err(fault);
        }
        let mut deadline = call.deadline;
        loop {
            let gone = state.gone.clone();
            let channel = state.channel(self.key);
            let missing: Vec<usize> = from.iter().copied().filter(|&m| !channel.has(m)).collect();
            if missing.is_empty() {
                break;
            }
            if let Some(fault) = channel.told(call, *me, &missing) {
                return Err(fault);
            }
            let lost: Vec<usize> = missing.iter().copied().filter(|&m| gone[m] || channel.left[m]).collect();
            let now = Instant::now();
            if deadline == call.deadline && deadline + OVERSLEPT < now {
                deadline = now + CATCHING_UP;
            }
            let fault = match (lost.is_empty(), now >= deadline) {
                (false, _) => Fault::Lost { members: lost },
                (true, true) => Fault::Timeout { missing: state.to_blame(call, missing) },
                (true, false) => {
                    state = shared.wait(state, deadline);
                    continue;
                }
            };
            self.fail(&mut state, call, fault.clone());
            return Err(fault);
        }
        let channel = state.channel(self.key);
        channel.progress = Progress { completed: channel.begun, heard: from.to_vec() };
        let next = |&m: &usize| channel.queues[m].pop_front().expect("seen above");
        let messages: Vec<Message> = from.iter().map(next).collect();
        let told = channel.told(call, *me, &[]);
        drop(state);

        let (mut wrong, mut other) = (Vec::new(), None);
        for ((&member, message), buffer) in from.iter().zip(&messages).zip(recv) {
            let common = buffer.len().min(message.bytes.len());
            buffer[..common].copy_from_slice(&message.bytes[..common]);
            if buffer.len() != message.bytes.len() {
                wrong.push((member, buffer.len(), message.bytes.len()));
            }
            if !message.call.same_as(call) {
                other.get_or_insert(Fault::OtherCall { member, theirs: message.call.told_to(call) });
            }
        }
        match (wrong.is_empty(), other) {
            (false, _) => Err(Fault::Length { peers: wrong }),
            // Why a member went on to something else says more than what that is; headers say still more.
            (true, Some(fault)) if call.operation.has_headers() => Err(fault),
            (true, Some(fault)) => Err(told.unwrap_or(fault)),
            (true, None) => Ok(()),
        }
    }
}

impl Exchange for ProcessExchange {
    fn name(&self) -> &'static str {
        "processes"
    }

    fn size(&self) -> usize {
        self.links.size
    }

    fn me(&self) -> usize {
        self.links.me
    }

    fn channel(&self, head: u32) -> Result<(u32, Arc<dyn Exchange>), Fault> {
        let mut state = self.links.shared.lock();
        let first = state.opened.get(&head).copied().unwrap_or_default();
        // As `local` does: failed creations are passed over; a refusal is news where none has begun since.
        let (mut instance, mut refused) = (first, None);
        while let Some(channel) = state.channels.get(&(head, instance)) {
            match channel.fault().map(|told| &told.fault) {
                Some(Fault::Abandoned { .. }) => refused = Some(instance),
                None if !channel.left.contains(&true) => {
                    refused = None;
                    break;
                }
                _ => {}
            }
            instance += 1;
        }
        let instance = refused.unwrap_or(instance);
        state.opened.insert(head, instance + 1);
        Ok((instance, Arc::new(ProcessExchange { links: Arc::clone(&self.links), key: (head, instance) })))
    }

    fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: &[u8],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault> {
        check_members(self.links.size, self.links.me, members, recv.len())?;
        self.exchange(call, members.iter().map(|&to| (to, send)), members, recv)
    }

    fn all_to_all_v(&self, call: &Call, send: &[&[u8]], recv: &mut [&mut [u8]]) -> Result<(), Fault> {
        check_pieces(self.links.size, send.len(), recv.len())?;
        let everyone: Vec<usize> = (0..self.links.size).collect();
        self.exchange(call, send.iter().copied().enumerate(), &everyone, recv)
    }

    fn note(&self, call: &Call) {
        self.links.shared.lock().places[self.links.me] = Some((*call, Instant::now()));
        self.links.send_all(frame::encode(Kind::Note, 0, &self.named(call), &[]));
    }

    fn places(&self) -> Vec<Option<Place>> {
        let state = self.links.shared.lock();
        state.places.iter().map(|place| place.map(|(call, at)| call.place(at.elapsed()))).collect()
    }

    fn pending_fault(&self) -> Option<(Call, Fault)> {
        let mut state = self.links.shared.lock();
        state.channel(self.key).fault().map(|told| (told.call, told.fault.clone()))
    }

    fn notify_abort(&self, call: &Call, reason: &str) {
        let mut state = self.links.shared.lock();
        if state.channel(self.key).fault().is_none() {
            let fault = Fault::Abandoned { member: self.links.me, reason: reason.into() };
            self.fail(&mut state, call, fault);
        }
    }

    fn reset(&self, call: &Call) -> Result<Reset, Fault> {
        let Links { me, size, shared, .. } = &*self.links;
        // A peer that is in a step meanwhile is told.
        self.notify_abort(call, "it rebuilds the head");
        let mut state = shared.lock();
        let wanted = state.channel(self.key).generation + 1;
        state.channel(self.key).wanted[*me] = wanted;
        self.links.send_all(frame::encode(Kind::Reset, wanted, &self.named(call), &[]));
        loop {
            let gone = state.gone.clone();
            let channel = state.channel(self.key);
            let missing: Vec<usize> = (0..*size).filter(|&m| channel.wanted[m] < wanted).collect();
            if missing.is_empty() {
                channel.generation = wanted;
                channel.faults.retain(|told| told.generation >= wanted);
                (channel.begun, channel.progress) = (0, Progress::default());
                return Ok(Reset::Done);
            }
            let lost: Vec<usize> = missing.iter().copied().filter(|&m| gone[m] || channel.left[m]).collect();
            if !lost.is_empty() {
                return Err(Fault::Lost { members: lost });
            }
            if call.left().is_zero() {
                return Err(Fault::Timeout { missing });
            }
            state = shared.wait(state, call.deadline);
        }
    }
}

impl Drop for ProcessExchange {
    fn drop(&mut self) {
        if self.key == FIRST {
            return;
        }
        let now = Instant::now();
        let call = Call {
            head: self.key.0,
            instance: self.key.1,
            epoch: 0,
            step: 0,
            operation: lmhead::exchange::Operation::Create,
            terms: 0,
            began: now,
            deadline: now,
        };
        self.links.send_all(frame::encode(Kind::Leave, 0, &call, &[]));
    }
}
