//! What one member knows of a group's channels: messages that have come, faults, who is where.

use super::frame::{self, FrameKind, HEADER_BYTES, Header, Progress};
use super::{Event, Key, WHOLE};
use crate::exchange::{Call, Fault};
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// A call that a member noted, and when that was heard.
pub(super) type Noted = Option<(Call, Instant)>;

/// What a member's calls and its link share, under one lock.
pub(super) struct State {
    pub me: usize,
    pub size: usize,
    pub channels: HashMap<Key, Channel>,
    /// By head: the number of channels that this member has opened or passed over.
    pub opened: HashMap<u32, u32>,
    /// Members that have left for good.
    pub gone: Vec<bool>,
    /// Why nothing can be exchanged any more.
    pub broken: Option<Fault>,
    /// The last place of each member, in whatever channel.
    pub places: Vec<Noted>,
    /// Whether a thread receives for all that wait.
    pub receiving: bool,
    /// Threads that wait for the one that receives.
    pub waiting: usize,
    /// The members have agreed to end.
    pub disbanded: bool,
}

pub(super) struct Channel {
    /// Counts resets. What belongs to an earlier generation is dropped, what belongs to a later one is kept
    /// until that begins.
    pub generation: u32,
    /// By sender.
    pub queues: Vec<VecDeque<Message>>,
    pub faults: Vec<KnownFault>,
    /// The generation that each member wants.
    pub wanted: Vec<u32>,
    /// Members that have dropped the channel.
    pub left: Vec<bool>,
    /// Collectives of this generation that were begun here.
    pub begun: u64,
    pub progress: Progress,
    /// The last place of each member in this channel.
    pub places: Vec<Noted>,
}

/// A piece of a collective.
pub(super) struct Message {
    pub generation: u32,
    pub call: Call,
    /// The whole frame, as the link handed it over.
    pub frame: Vec<u8>,
}

impl Message {
    pub fn payload(&self) -> &[u8] {
        &self.frame[HEADER_BYTES..]
    }
}

/// A fault, found here or told by a peer.
pub(super) struct KnownFault {
    pub generation: u32,
    pub call: Call,
    pub fault: Fault,
    /// How far the member that found it had come.
    pub progress: Progress,
}

impl State {
    pub fn new(me: usize, size: usize) -> Self {
        State {
            me,
            size,
            channels: HashMap::new(),
            opened: HashMap::new(),
            gone: vec![false; size],
            broken: None,
            places: vec![None; size],
            receiving: false,
            waiting: 0,
            disbanded: false,
        }
    }

    pub fn channel(&mut self, key: Key) -> &mut Channel {
        let size = self.size;
        self.channels.entry(key).or_insert_with(|| Channel::new(size))
    }

    /// Takes an event from the link; returns a buffer that nobody needs any more.
    pub fn take(&mut self, event: Event) -> Option<Vec<u8>> {
        match event {
            Event::Frame { from, bytes } if from < self.size && from != self.me => {
                self.take_frame(from, bytes)
            }
            Event::Frame { bytes, .. } => Some(bytes),
            Event::Gone { member } => {
                if let Some(gone) = self.gone.get_mut(member) {
                    *gone = true;
                }
                self.forget_left_channels();
                None
            }
            Event::Broken { problem, fix } => {
                self.broken.get_or_insert(Fault::Broken { problem, fix });
                None
            }
        }
    }

    fn take_frame(&mut self, from: usize, bytes: Vec<u8>) -> Option<Vec<u8>> {
        let Some(Header { kind, generation, call }) = frame::decode(&bytes) else {
            self.refuse(from);
            return Some(bytes);
        };
        let key = (call.head, call.instance);
        if matches!(kind, FrameKind::Data | FrameKind::Note) {
            self.places[from] = Some((call, Instant::now()));
        }
        if key == WHOLE && kind == FrameKind::Leave {
            self.gone[from] = true;
            self.forget_left_channels();
            return Some(bytes);
        }
        let (me, size) = (self.me, self.size);
        let place = self.places[from];
        let channel = self.channel(key);
        if channel.left[me] && kind != FrameKind::Leave {
            return Some(bytes);
        }
        match kind {
            FrameKind::Data => {
                channel.places[from] = place;
                channel.queues[from].push_back(Message { generation, call, frame: bytes });
                return None;
            }
            FrameKind::Note => channel.places[from] = place,
            FrameKind::Reset => channel.wanted[from] = channel.wanted[from].max(generation),
            FrameKind::Leave => {
                channel.left[from] = true;
                self.forget_left_channels();
            }
            FrameKind::Fault => match frame::decode_fault(&bytes[HEADER_BYTES..], size) {
                // Only the first fault of a generation is ever looked at.
                Some(_) if channel.faults.iter().any(|known| known.generation == generation) => {}
                Some((fault, progress)) => {
                    channel.faults.push(KnownFault { generation, call, fault, progress })
                }
                None => self.refuse(from),
            },
        }
        Some(bytes)
    }

    /// Breaks the exchange: `from` has sent bytes that are no frame.
    fn refuse(&mut self, from: usize) {
        self.broken.get_or_insert(Fault::Broken {
            problem: format!("member {from} has sent bytes that are no message of this version of lmhead"),
            fix: "run the same version of lmhead on every rank, and nothing else on its transport".into(),
        });
    }

    /// Forgets channels that every member has left: each member's messages come in order, so that nothing can
    /// follow.
    pub fn forget_left_channels(&mut self) {
        let (me, gone) = (self.me, &self.gone);
        self.channels.retain(|_, channel| {
            let all = |m: usize| channel.left[m] || (m != me && gone[m]);
            !(0..gone.len()).all(all)
        });
    }

    /// The members among `missing` that have not come to this step: one that was last heard of in it is held
    /// up itself. All of them, where that leaves nobody.
    pub fn to_blame(&self, call: &Call, missing: Vec<usize>) -> Vec<usize> {
        let held_up = |m: &usize| self.places[*m].is_some_and(|(theirs, _)| theirs.same_step(call));
        let absent: Vec<usize> = missing.iter().copied().filter(|m| !held_up(m)).collect();
        if absent.is_empty() { missing } else { absent }
    }

    /// The members among `members` that have left the channel, or the exchange.
    pub fn lost_of(&mut self, key: Key, members: &[usize]) -> Vec<usize> {
        let gone = std::mem::take(&mut self.gone);
        let channel = self.channel(key);
        let lost = members.iter().copied().filter(|&m| gone[m] || channel.left[m]).collect();
        self.gone = gone;
        lost
    }
}

impl Channel {
    fn new(size: usize) -> Self {
        Channel {
            generation: 0,
            queues: (0..size).map(|_| VecDeque::new()).collect(),
            faults: Vec::new(),
            wanted: vec![0; size],
            left: vec![false; size],
            begun: 0,
            progress: Progress::none(size),
            places: vec![None; size],
        }
    }

    /// Whether a message of `from` is there, for the generation that this channel is in.
    pub fn has(&self, from: usize) -> bool {
        self.queues[from].front().is_some_and(|message| message.generation == self.generation)
    }

    /// The first fault of this generation.
    pub fn fault(&self) -> Option<&KnownFault> {
        self.faults.iter().find(|known| known.generation == self.generation)
    }

    /// The fault that ends the wait of `me` for messages of `missing` in the collective that was begun last.
    pub fn ending_fault(&self, call: &Call, me: usize, missing: &[usize]) -> Option<Fault> {
        // Where the member that found the fault has completed this collective or a later one with us and with
        // those whose messages are missing, these were sent before: they are on their way. Not so from a
        // member whose wish for a reset has come: messages sent before it would have come before it.
        let on_their_way = |known: &KnownFault| {
            let was_heard = |member: &usize| known.progress.heard[*member] >= self.begun;
            let will_come = |member: &usize| was_heard(member) && self.wanted[*member] <= self.generation;
            !missing.is_empty() && was_heard(&me) && missing.iter().all(will_come)
        };
        let known = self.fault().filter(|known| !on_their_way(known))?;
        // A timeout of another length is reported with its own length; frames carry microseconds.
        let [theirs, ours] = [&known.call, call].map(|call| call.timeout().as_micros());
        let waited_longer = matches!(known.fault, Fault::Timeout { .. }) && theirs != ours;
        Some(match known.call.same_operation(call) && !waited_longer {
            true => known.fault.clone(),
            false => Fault::Earlier { call: Box::new(known.call), fault: Box::new(known.fault.clone()) },
        })
    }

    /// Begins generation `wanted`, with everything of earlier ones dropped; the buffers of those messages
    /// are added to `read`.
    pub fn begin(&mut self, wanted: u32, read: &mut Vec<Message>) {
        self.generation = wanted;
        self.faults.retain(|known| known.generation >= wanted);
        self.begun = 0;
        self.progress.heard.fill(0);
        for queue in &mut self.queues {
            while queue.front().is_some_and(|message| message.generation < wanted) {
                read.extend(queue.pop_front());
            }
        }
    }
}
