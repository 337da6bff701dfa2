//! One channel: the members' messages and waits under one lock.
//!
//! Every sender has a log of its messages; every receiver has a cursor in each log. A message is in memory
//! once, whatever the number of its receivers.
//!
//! In a group of P threads a round is P^2 deliveries, so what counts is how often a delivery writes to memory
//! that other threads read. Small messages are copied under the lock without a count of their readers; their
//! senders drop them a few at a time. Large ones are copied outside of the lock, and leave the log when the
//! last receiver has them. A message that nobody holds any more is a buffer of its sender again: see `post`.

use super::post::{KEPT, Outgoing, Post, SendBuffers};
use crate::exchange::{Call, Fault, Operation};
use crate::lock::lock;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What was wrong with a call's messages, beside their bytes.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    /// `(member, wanted, got)` of messages that are not as long as their buffers.
    pub(super) wrong: Vec<(usize, usize, usize)>,
    /// The first member that is in another call.
    pub(super) other: Option<Fault>,
}

impl Delivery {
    /// Copies what `post` of `member` has for `me`, and notes what does not fit.
    fn add(&mut self, call: &Call, me: usize, member: usize, post: &Post, buffer: &mut [u8]) {
        let bytes = post.piece(me);
        let common = buffer.len().min(bytes.len());
        buffer[..common].copy_from_slice(&bytes[..common]);
        if buffer.len() != bytes.len() {
            self.wrong.push((member, buffer.len(), bytes.len()));
        }
        if self.other.is_none() && !post.call.same_as(call) {
            self.other = Some(Fault::OtherCall { member, theirs: post.call.told_to(call) });
        }
    }
}

/// What a member that has not opened a channel finds there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Creation {
    /// All who opened it are there.
    Open,
    /// A peer gave the creation up for a reason of its own.
    Refused,
    /// A peer left without one, or waited in vain.
    Failed,
}

/// One channel of a group.
#[derive(Debug)]
pub(super) struct Channel {
    state: Mutex<State>,
    /// One for each member that waits for some others only: so nobody is woken for another's message.
    wake: Vec<Condvar>,
    /// For all members that wait for everyone: the last to come readies all of them, and one call of the
    /// system wakes them.
    wake_all: Condvar,
    /// The last call that each member noted in this channel, and when.
    pub(super) places: Vec<Mutex<Option<(Call, Instant)>>>,
    /// Memory of each member's calls, kept from one to the next.
    own: Vec<Mutex<Own>>,
}

/// A member's memory for its calls. Lists are empty between calls; only their room stays.
#[derive(Debug, Default)]
struct Own {
    buffers: SendBuffers,
    /// Members that this member's message lets go on, and that wait for some others only.
    ready: Vec<usize>,
    /// Large messages that were taken, each with its place in the list of senders.
    large: Vec<(usize, Arc<Post>)>,
    /// Places of the senders whose messages have not come yet.
    lacking: Vec<usize>,
}

#[derive(Debug)]
struct State {
    /// By sender.
    logs: Vec<Log>,
    /// `cursors[to * size + from]`: number of the next message of `from` that `to` has not looked at.
    cursors: Vec<u64>,
    /// By receiver: the call in which it waits at this moment, whether for everyone, and how many messages it
    /// lacks.
    waiting: Vec<Option<Call>>,
    for_everyone: Vec<bool>,
    missing: Vec<usize>,
    /// By sender, `words` words each: the receivers that wait for its next message, a bit each.
    awaited: Vec<u64>,
    words: usize,
    /// The first fault since the last reset, and the call that it happened in. A member that lacks a message
    /// reports it instead of waiting.
    fault: Option<(Call, Fault)>,
    /// The fault was found by a member that had itself come after the deadline.
    is_of_late: bool,
    /// Members that have left the channel.
    gone: Vec<bool>,
    /// Whether one of them has left since the channel was made.
    left: bool,
    /// Members that wait in [`Channel::reset`].
    resetting: Vec<bool>,
    /// Why a member's wait there ended without a reset, until that member has seen it. Only waits in progress
    /// are ended: a member that comes later waits for those who try again, however often they tried before.
    ended: Vec<Option<Fault>>,
    /// Counts resets.
    generation: u64,
}

/// A sender's last messages, in order.
#[derive(Debug)]
struct Log {
    /// Number of the first.
    first: u64,
    entries: VecDeque<Entry>,
}

impl Default for Log {
    fn default() -> Self {
        Log { first: 0, entries: VecDeque::with_capacity(2 * KEPT) }
    }
}

impl Log {
    /// Makes the log as it was in the beginning.
    fn clear(&mut self) {
        self.first = 0;
        self.entries.clear();
    }
}

#[derive(Debug)]
struct Entry {
    /// `None`: all have read it.
    post: Option<Arc<Post>>,
    /// Addressees that have not read a large message.
    unread: usize,
}

impl State {
    fn size(&self) -> usize {
        self.logs.len()
    }

    /// The pending fault, as a member in `call` reports it.
    fn told(&self, call: &Call) -> Option<Fault> {
        let (earlier, fault) = self.fault.as_ref()?;
        // A timeout of another length is reported with its own length.
        let waited_longer = matches!(fault, Fault::Timeout { .. }) && earlier.timeout() != call.timeout();
        Some(match earlier.same_operation(call) && !waited_longer {
            true => fault.clone(),
            false => Fault::Earlier { call: Box::new(*earlier), fault: Box::new(fault.clone()) },
        })
    }

    /// Whether the pending fault says that another member than `me` did not come in time.
    fn blames_another(&self, me: usize) -> bool {
        match &self.fault {
            Some((_, Fault::Timeout { missing })) => !missing.contains(&me),
            Some((_, Fault::Aborted { .. })) => self.is_of_late,
            _ => false,
        }
    }

    /// Ends all waits for a reset.
    fn end_resetting(&mut self, fault: &Fault) {
        for (resetting, ended) in self.resetting.iter_mut().zip(&mut self.ended) {
            if std::mem::take(resetting) {
                *ended = Some(fault.clone());
            }
        }
    }

    /// Takes the next message of `from` for `to`, where there is one: a small one is delivered at once, a
    /// large one is returned.
    fn take(&mut self, to: usize, from: usize, deliver: &mut impl FnMut(&Post)) -> Option<Option<Arc<Post>>> {
        let at = to * self.size() + from;
        let (log, cursor) = (&mut self.logs[from], &mut self.cursors[at]);
        *cursor = (*cursor).max(log.first);
        loop {
            let entry = log.entries.get_mut((*cursor - log.first) as usize)?;
            *cursor += 1;
            match &entry.post {
                Some(post) if post.is_for(to) => {
                    if post.is_small() {
                        deliver(post);
                        return Some(None);
                    }
                    let large = Arc::clone(post);
                    entry.unread -= 1;
                    if entry.unread == 0 {
                        entry.post = None;
                    }
                    return Some(Some(large));
                }
                _ => {}
            }
        }
    }

    /// Drops the messages of `from` that all their addressees have read.
    fn trim(&mut self, from: usize) {
        let size = self.size();
        let (log, cursors, gone) = (&mut self.logs[from], &self.cursors, &self.gone);
        while let Some(entry) = log.entries.front() {
            let read = |to: usize| gone[to] || cursors[to * size + from] > log.first;
            let done = match &entry.post {
                None => true,
                Some(post) => match post.members() {
                    None => (0..size).all(read),
                    Some(members) => members.iter().copied().all(read),
                },
            };
            if !done {
                return;
            }
            log.entries.pop_front();
            log.first += 1;
        }
    }

    /// Appends a message of `from`. Adds to `ready` the members that now have all that they wait for, except
    /// those that wait for everyone; returns true where there are any of those.
    fn post(&mut self, from: usize, post: Arc<Post>, ready: &mut Vec<usize>) -> bool {
        let mut together = false;
        for word in 0..self.words {
            let at = from * self.words + word;
            let mut bits = self.awaited[at];
            while bits != 0 {
                let bit = bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let to = 64 * word + bit;
                if post.is_for(to) {
                    self.awaited[at] &= !(1 << bit);
                    self.missing[to] -= 1;
                    match (self.missing[to], self.for_everyone[to]) {
                        (0, true) => together = true,
                        (0, false) => ready.push(to),
                        _ => {}
                    }
                }
            }
        }
        if self.logs[from].entries.len() >= KEPT {
            self.trim(from);
        }
        let unread = post.members().map_or(self.size(), <[usize]>::len);
        self.logs[from].entries.push_back(Entry { post: Some(post), unread });
        together
    }

    /// Sets whether `to` waits for the next message of `from`.
    fn set_awaited(&mut self, from: usize, to: usize, awaited: bool) {
        let (word, bit) = (&mut self.awaited[from * self.words + to / 64], 1 << (to % 64));
        if awaited {
            *word |= bit;
        } else {
            *word &= !bit;
        }
    }

    /// The members among `from` whose messages `to` lacks.
    fn missing_of(&self, to: usize, from: &[usize]) -> Vec<usize> {
        let awaits = |m: &usize| self.awaited[m * self.words + to / 64] >> (to % 64) & 1 == 1;
        from.iter().copied().filter(awaits).collect()
    }

    /// The members among `missing` that have not come to this step: one that waits in it is held up itself.
    /// All of them, where that leaves nobody.
    fn to_blame(&self, call: &Call, missing: Vec<usize>) -> Vec<usize> {
        let held_up = |m: &usize| self.waiting[*m].is_some_and(|theirs| theirs.same_step(call));
        let absent: Vec<usize> = missing.iter().copied().filter(|m| !held_up(m)).collect();
        if absent.is_empty() { missing } else { absent }
    }
}

impl Channel {
    /// A channel with as many members as `gone` has entries, which say who has already left for good.
    pub(super) fn new(gone: Vec<bool>) -> Self {
        let size = gone.len();
        let words = size.div_ceil(64);
        let state = State {
            logs: (0..size).map(|_| Log::default()).collect(),
            cursors: vec![0; size * size],
            waiting: vec![None; size],
            for_everyone: vec![false; size],
            missing: vec![0; size],
            awaited: vec![0; size * words],
            words,
            fault: None,
            is_of_late: false,
            gone,
            left: false,
            resetting: vec![false; size],
            ended: vec![None; size],
            generation: 0,
        };
        let wake = (0..size).map(|_| Condvar::new()).collect();
        let places = (0..size).map(|_| Mutex::new(None)).collect();
        let own = (0..size).map(|_| Mutex::default()).collect();
        Channel { state: Mutex::new(state), wake, wake_all: Condvar::new(), places, own }
    }

    /// Waits until `me` is woken, at the longest until the deadline of `call`.
    fn wait<'s>(&self, me: usize, call: &Call, mut state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        state.waiting[me] = Some(*call);
        let condition = if state.for_everyone[me] { &self.wake_all } else { &self.wake[me] };
        let woken = condition.wait_timeout(state, call.left());
        state = woken.unwrap_or_else(PoisonError::into_inner).0;
        state.waiting[me] = None;
        state
    }

    fn wake_everybody(&self) {
        self.wake_all.notify_all();
        self.wake.iter().for_each(Condvar::notify_one);
    }

    /// Sends `outgoing`, waits for the next message of each of `from` and copies them to `recv`, in the same
    /// order.
    pub(super) fn exchange(
        &self,
        me: usize,
        call: &Call,
        outgoing: Outgoing<'_>,
        from: &[usize],
        recv: &mut [&mut [u8]],
    ) -> Result<Delivery, Fault> {
        // Taken out and put back, so that no call waits for its lock. A second call of this member at the
        // same time, which the contract forbids, finds nothing there and allocates.
        let mut own = std::mem::take(&mut *lock(&self.own[me]));
        own.ready.reserve(self.wake.len());
        own.lacking.reserve(from.len());
        let post = own.buffers.post(*call, outgoing, self.wake.len());
        let result = self.exchange_post(me, call, post, &mut own, from, recv);
        own.ready.clear();
        own.large.clear();
        own.lacking.clear();
        *lock(&self.own[me]) = own;
        result
    }

    /// Frees the memory for large messages of `me`.
    pub(super) fn release_memory(&self, me: usize) {
        lock(&self.own[me]).buffers.release_large();
    }

    fn exchange_post(
        &self,
        me: usize,
        call: &Call,
        post: Arc<Post>,
        own: &mut Own,
        from: &[usize],
        recv: &mut [&mut [u8]],
    ) -> Result<Delivery, Fault> {
        let Own { ready, large, lacking, .. } = own;
        let late = Instant::now().checked_duration_since(call.deadline).filter(|by| !by.is_zero());
        let mut state = lock(&self.state);
        // Messages that arrived before a fault still count, so that all members come to the same end of a
        // step. The exception is a fault in the making of a head: one that is only half made must not be
        // taken for whole.
        if call.operation.is_creation()
            && state.fault.as_ref().is_some_and(|(earlier, _)| earlier.operation.is_creation())
            && let Some(fault) = state.told(call)
        {
            return Err(fault);
        }
        let together = state.post(me, post, ready);
        if together || !ready.is_empty() {
            drop(state);
            if together {
                self.wake_all.notify_all();
            }
            ready.iter().for_each(|&member| self.wake[member].notify_one());
            state = lock(&self.state);
        }

        let mut delivery = Delivery::default();
        let mut take = |state: &mut State, i: usize| {
            let member = from[i];
            let mut deliver = |post: &Post| delivery.add(call, me, member, post, recv[i]);
            match state.take(me, member, &mut deliver) {
                Some(Some(post)) => {
                    if large.is_empty() {
                        large.reserve(from.len());
                    }
                    large.push((i, post));
                }
                Some(None) => {}
                None => return false,
            }
            true
        };
        for (i, &member) in from.iter().enumerate() {
            if !take(&mut state, i) {
                lacking.push(i);
                state.set_awaited(member, me, true);
            }
        }
        state.missing[me] = lacking.len();
        state.for_everyone[me] = from.len() == self.wake.len();
        while state.missing[me] > 0 {
            // A member that came late itself has waited for nobody, and so has nobody to blame.
            let told = state.told(call).filter(|_| late.is_none() || !state.blames_another(me));
            let over = call.left().is_zero();
            if told.is_none() && !over && !state.gone.contains(&true) {
                state = self.wait(me, call, state);
                continue;
            }
            let missing = state.missing_of(me, from);
            let lost: Vec<usize> = missing.iter().copied().filter(|&m| state.gone[m]).collect();
            let found = match (told, lost.is_empty()) {
                (Some(told), _) => Err(told),
                (None, false) => Ok(Fault::Lost { members: lost }),
                (None, true) if late.is_some() => {
                    let by = late.unwrap_or_default();
                    let reason = format!(
                        "this rank came to the {} {:.3} s after the deadline of {:?}",
                        call.operation,
                        by.as_secs_f64(),
                        call.timeout()
                    );
                    Ok(Fault::Aborted { member: me, reason })
                }
                (None, true) if over => Ok(Fault::Timeout { missing: state.to_blame(call, missing) }),
                // Members have left, but none of those whose messages are missing.
                (None, true) => {
                    state = self.wait(me, call, state);
                    continue;
                }
            };
            from.iter().for_each(|&member| state.set_awaited(member, me, false));
            state.missing[me] = 0;
            return Err(match found {
                Err(told) => told,
                Ok(found) => {
                    state.is_of_late |= late.is_some();
                    state.fault.get_or_insert((*call, found.clone()));
                    self.wake_everybody();
                    found
                }
            });
        }
        for &i in lacking.iter() {
            let taken = take(&mut state, i);
            debug_assert!(taken, "a message that was counted");
        }
        drop(state);
        // A message is let go as soon as it is copied: its sender may want the buffer.
        for (i, post) in large.drain(..) {
            delivery.add(call, me, from[i], &post, recv[i]);
        }
        Ok(delivery)
    }

    /// The pending fault, as a member in `call` reports it.
    pub(super) fn told(&self, call: &Call) -> Option<Fault> {
        lock(&self.state).told(call)
    }

    /// What a member that has not opened the channel finds there.
    pub(super) fn state_of_creation(&self) -> Creation {
        let state = lock(&self.state);
        match (&state.fault, state.left) {
            (Some((_, Fault::Aborted { .. })), _) => Creation::Refused,
            (None, false) => Creation::Open,
            _ => Creation::Failed,
        }
    }

    /// The pending fault and its call.
    pub(super) fn pending_fault(&self) -> Option<(Call, Fault)> {
        lock(&self.state).fault.clone()
    }

    /// The members that have left.
    pub(super) fn gone(&self) -> Vec<usize> {
        let state = lock(&self.state);
        (0..state.size()).filter(|&member| state.gone[member]).collect()
    }

    /// Brings the channel into a fault that a member has found in `call`, where it is in none yet.
    pub(super) fn give_up(&self, call: &Call, fault: Fault) {
        let mut state = lock(&self.state);
        if call.operation == Operation::Rebuild {
            state.end_resetting(&fault);
        }
        state.fault.get_or_insert((*call, fault));
        drop(state);
        self.wake_everybody();
    }

    /// Meets all members, and drops everything undelivered. A peer that is still in a step is told.
    pub(super) fn reset(&self, me: usize, call: &Call) -> Result<(), Fault> {
        let mut state = lock(&self.state);
        let before = state.generation;
        state.resetting[me] = true;
        state.ended[me] = None;
        state.for_everyone[me] = true;
        if state.fault.is_none() {
            let reason = "it rebuilds the head".into();
            state.fault = Some((*call, Fault::Aborted { member: me, reason }));
            self.wake_everybody();
        }
        loop {
            if state.generation != before {
                return Ok(());
            }
            if let Some(fault) = state.ended[me].take() {
                return Err(fault);
            }
            let missing: Vec<usize> = (0..state.size()).filter(|&m| !state.resetting[m]).collect();
            if missing.is_empty() {
                state.logs.iter_mut().for_each(Log::clear);
                state.cursors.fill(0);
                state.awaited.fill(0);
                state.missing.fill(0);
                (state.fault, state.is_of_late) = (None, false);
                state.resetting.fill(false);
                state.generation += 1;
                self.wake_everybody();
                return Ok(());
            }
            let lost: Vec<usize> = missing.iter().copied().filter(|&m| state.gone[m]).collect();
            if !lost.is_empty() {
                // Every peer sees for itself who has left.
                state.resetting[me] = false;
                return Err(Fault::Lost { members: lost });
            }
            if call.left().is_zero() {
                state.resetting[me] = false;
                let fault = Fault::Timeout { missing };
                let told = Fault::Earlier { call: Box::new(*call), fault: Box::new(fault.clone()) };
                state.end_resetting(&told);
                self.wake_everybody();
                return Err(fault);
            }
            state = self.wait(me, call, state);
        }
    }

    /// Whether `member` waits in [`Channel::reset`].
    #[cfg(test)]
    pub(super) fn is_resetting(&self, member: usize) -> bool {
        lock(&self.state).resetting[member]
    }

    /// Messages that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        lock(&self.state).logs.iter().map(|log| log.entries.len()).sum()
    }

    /// `me` leaves for good; true where nobody is left.
    pub(super) fn leave(&self, me: usize) -> bool {
        let mut state = lock(&self.state);
        state.gone[me] = true;
        state.left = true;
        let empty = state.gone.iter().all(|&gone| gone);
        drop(state);
        self.wake_everybody();
        empty
    }
}
