//! Guards creations, steps and rebuildings: one that fails or panics on one rank tells the peers at once, and
//! poisons the head.

use super::recorder::{Outcome, Recorder};
use super::{LmHead, from_now};
use crate::error::{Error, Evidence, LastSeen, Result};
use crate::exchange::{Call, Exchange, Operation, Place};
use crate::layout::HeadGroup;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Names of the heads that this process has made, by id: errors say in which head a rank was last seen.
static NAMES: Mutex<BTreeMap<u32, String>> = Mutex::new(BTreeMap::new());

/// Remembers the name of a head.
pub(super) fn remember(id: u32, name: &str) {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names.entry(id).or_insert_with(|| name.into());
}

/// Opens the channel of the heads of id `head`. Where that fails or panics, the peers are told on the
/// exchange itself, as far as the transport can.
pub(super) fn open_channel(
    exchange: &dyn Exchange,
    head: u32,
    timeout: Duration,
) -> Result<(u32, Arc<dyn Exchange>)> {
    const OPENING: &str = "opening of the head's channel";
    let (began, deadline) = from_now(timeout);
    let operation = Operation::Create;
    let call = Call { head, instance: 0, epoch: 0, step: 0, operation, terms: 0, began, deadline };
    // A second panic is dropped: it means only that the peers may not have been told.
    let tell = |reason: &str| {
        if exchange.size() > 1 {
            let _ = catch_unwind(AssertUnwindSafe(|| exchange.notify_abort(&call, reason)));
        }
    };
    match catch_unwind(AssertUnwindSafe(|| exchange.channel(head))) {
        Ok(opened) => opened.map_err(|fault| {
            let error = fault.without_call(OPENING);
            tell(&error.cause());
            error
        }),
        Err(panic) => {
            tell(&format!("its thread panicked in the {OPENING}"));
            resume_unwind(panic)
        }
    }
}

/// Gives up the step when a panic drops it; disarmed once its part has returned.
struct Guard<'h> {
    head: &'h mut LmHead,
    call: Call,
    doing: &'static str,
    armed: bool,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.armed {
            let reason = format!("its thread panicked in the {}", self.doing);
            self.head.give_up(&self.call, &reason);
        }
    }
}

impl LmHead {
    /// Runs `part` of a creation, a step or a rebuilding. Where it fails or panics, the peers are told and
    /// the head is poisoned.
    pub(super) fn guarded<T>(
        &mut self,
        call: &Call,
        doing: &'static str,
        part: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let mut guard = Guard { head: self, call: *call, doing, armed: true };
        let result = part(guard.head);
        guard.armed = false;
        drop(guard);
        result.map_err(|error| self.failed(call, error))
    }

    /// Records that `call` has failed: poisons the head and tells the peers where the error requires it.
    /// Returns the error with this rank's evidence.
    pub(super) fn failed(&mut self, call: &Call, error: Error) -> Error {
        self.wire.recorder.end(Outcome::Failed, None);
        let error = error.with_evidence(|| self.evidence());
        // In a group of one rank a refused input leaves nobody waiting and nothing half done.
        if self.is_shared() || !error.is_bad_input() {
            self.poisoned = Some(error.cause());
            if !error.was_told() {
                self.notify_abort(call, &error.cause());
            }
            self.end_queued(call, &error.cause());
        }
        error
    }

    /// Gives up `call`'s step for `reason`, without an error to return.
    pub(super) fn give_up(&mut self, call: &Call, reason: &str) {
        self.wire.recorder.end(Outcome::Failed, None);
        let text = match reason.strip_prefix("its ") {
            Some(owned) => format!("this rank's {owned}"),
            None => format!("this rank {reason}"),
        };
        self.poisoned = Some(format!("step {}: {text}", call.step));
        self.notify_abort(call, reason);
        // A second panic must not get out here either.
        let _ = catch_unwind(AssertUnwindSafe(|| self.end_queued(call, reason)));
    }

    /// Whether there are peers to tell.
    fn is_shared(&self) -> bool {
        self.wire.group.size() > 1 || self.wire.exchange.size() > 1
    }

    /// Tells the peers. May run while a panic unwinds: a second panic, of the transport, must not get out.
    fn notify_abort(&self, call: &Call, reason: &str) {
        if self.is_shared() {
            let exchange = AssertUnwindSafe(&self.wire.exchange);
            // The transport's panic says no more than that the peers may not have been told.
            let _ = catch_unwind(|| exchange.notify_abort(call, reason));
        }
    }

    /// Where each rank was last seen, and this rank's last steps.
    pub(super) fn evidence(&self) -> Evidence {
        let known = evidence(&*self.wire.exchange, &self.wire.group, &self.wire.recorder);
        // Ranks that are tasks of one pool can only meet where each has a thread.
        let threads = rayon::current_num_threads();
        let small = rayon::current_thread_index().is_some() && threads < self.wire.group.size();
        let small_pool = small.then_some((threads, self.wire.group.size()));
        Evidence { small_pool, no_head: !self.is_made, ..known }
    }
}

/// Where the ranks of `group` are, and the last steps of the caller's.
pub(super) fn evidence(exchange: &dyn Exchange, group: &HeadGroup, recorder: &Recorder) -> Evidence {
    let exchange = AssertUnwindSafe(exchange);
    let places = catch_unwind(|| exchange.places()).unwrap_or_default();
    let elsewhere = catch_unwind(|| exchange.places_elsewhere()).unwrap_or_default();
    let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let seen = |(member, &rank): (usize, &usize)| {
        let place = places.get(member).copied().flatten();
        let name = |place: Place| names.get(&place.head).cloned();
        let elsewhere = elsewhere.get(member).copied().flatten().map(|place| (place, name(place)));
        LastSeen { rank, place, head: place.and_then(name), elsewhere }
    };
    let last_seen = group.ranks().iter().enumerate().map(seen).collect();
    let recent_steps = recorder.steps().iter().map(ToString::to_string).collect();
    Evidence { last_seen, recent_steps, ..Evidence::default() }
}
