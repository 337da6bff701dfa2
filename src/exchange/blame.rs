//! Who keeps a device waiting: a device cannot say it, so the host transport beside it is asked.
//!
//! Whoever waits for a device notes its place again and again, as a sign that it lives. When a wait has
//! failed, members whose place says that they have come, and of whom nothing is heard any more, are the ones
//! that were killed or stopped in the collective. The first to find out tells the others, so that all name
//! the same members.

use super::{Call, Exchange, Fault, Place};
use std::time::{Duration, Instant};

/// How often a member that waits for its device says so.
const BEAT: Duration = Duration::from_millis(100);

/// How often a wait near its deadline looks for members that wait in two heads.
const LOOK: Duration = Duration::from_millis(5);

/// How long a wait that has failed listens for who still lives.
const LISTENS: Duration = Duration::from_millis(400);

/// The signs of life of one wait.
pub(super) struct Beat {
    last: Instant,
    looked: Instant,
    /// Members that were seen in another head, too, near the deadline.
    crossed: Vec<usize>,
}

impl Beat {
    /// The head has noted the call just now.
    pub fn new() -> Self {
        let now = Instant::now();
        Beat { last: now, looked: now, crossed: Vec::new() }
    }

    pub fn keep(&mut self, call: &Call, control: &dyn Exchange) {
        // Two heads whose steps began at once do not say so at once each time: who looks would only ever see
        // the one that speaks last.
        if self.last.elapsed() >= BEAT - Duration::from_millis(u64::from(call.head % 32)) {
            control.note(call);
            self.last = Instant::now();
        }
        // Who waits in two heads, by two threads, says so in turns.
        if self.crossed.is_empty() && call.left() <= 2 * BEAT && self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            let (places, elsewhere) = (control.places(), control.places_elsewhere());
            let members = Members { call, places: &places, elsewhere: &elsewhere, me: control.me() };
            self.crossed = members.in_others();
        }
    }

    /// [`late`] of a wait that has kept it.
    pub fn late(self, call: &Call, control: &dyn Exchange) -> Fault {
        // Whoever is gone or says nothing keeps the others waiting, in whatever heads they are.
        let places = control.places();
        let members = Members { call, places: &places, elsewhere: &[], me: control.me() };
        let absent = !control.gone().is_empty() || !members.silent(3 * BEAT).is_empty();
        if self.crossed.is_empty() || absent {
            return late(call, control);
        }
        let fault = crossed(call, &self.crossed);
        control.notify_fault(call, &fault);
        fault
    }
}

/// The fault of the channel that ends a wait in `call`. One of a later step does not: the member that found
/// it has ended this step.
pub(super) fn told(call: &Call, control: &dyn Exchange) -> Option<Fault> {
    let ends = |theirs: &Call| !call.is_before(theirs) || theirs.operation.is_creation();
    control.pending_fault().filter(|(theirs, _)| ends(theirs)).map(earlier)
}

fn earlier((call, fault): (Call, Fault)) -> Fault {
    Fault::Earlier { call: Box::new(call), fault: Box::new(fault) }
}

/// The fault of a wait whose own device has not come to the collective by the deadline.
pub(super) fn stuck(call: &Call, control: &dyn Exchange) -> Fault {
    let problem = format!(
        "this rank's device has not come to it within {:?}: what was queued before it does not end",
        call.timeout()
    );
    // At once, in this rank's name: the others look for who keeps them waiting.
    control.notify_abort(call, &format!("{}: {problem}", call.operation));
    let fix =
        "look at the kernels before it and at this rank's GPU (nvidia-smi); timeout_ms sets the deadline";
    Fault::Broken { problem, fix: fix.into() }
}

/// The fault of a wait that came to the deadline.
pub(super) fn late(call: &Call, control: &dyn Exchange) -> Fault {
    blame(call, control, |missing| Fault::Timeout { missing }).unwrap_or_else(|| {
        let places = control.places();
        let known = |(member, place): (usize, &Option<Place>)| member == control.me() || place.is_some();
        let who = match places.iter().enumerate().all(known) {
            true => "every member has come to it",
            false => "the host transport does not know who has come to it",
        };
        Fault::Broken {
            problem: format!("no end on the device within {:?}; {who}", call.timeout()),
            fix: "look at each rank's GPU and links (nvidia-smi, NCCL_DEBUG=WARN); timeout_ms sets the \
                  deadline"
                .into(),
        }
    })
}

/// The fault that a peer has told, or `named` of the members that have not come or do not answer, or those
/// that are gone; `None` where all answer. Past the deadline it is known at once who has not come; before, a
/// peer may still say more.
pub(super) fn blame(call: &Call, control: &dyn Exchange, named: fn(Vec<usize>) -> Fault) -> Option<Fault> {
    let (asked, late) = (Instant::now(), call.left().is_zero());
    control.note(call);
    let mut beat = Beat::new();
    loop {
        if let Some(told) = control.pending_fault() {
            return Some(earlier(told));
        }
        let since = asked.elapsed();
        let gone = control.gone();
        let (places, elsewhere) = (control.places(), control.places_elsewhere());
        let members = Members { call, places: &places, elsewhere: &elsewhere, me: control.me() };
        let (absent, silent) = (members.absent(), members.silent(since));
        let found = if !gone.is_empty() {
            Some(Fault::Lost { members: gone })
        } else if late && !absent.is_empty() {
            Some(named(absent))
        } else if since >= LISTENS || (late && silent.is_empty()) {
            let ways = [absent, silent, members.in_another_operation()];
            Some(named(ways.into_iter().find(|members| !members.is_empty())?))
        } else {
            None
        };
        if let Some(fault) = found {
            control.notify_fault(call, &fault);
            return Some(fault);
        }
        beat.keep(call, control);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Members that have come to the call have come to another head, too.
fn crossed(call: &Call, members: &[usize]) -> Fault {
    Fault::Broken {
        problem: format!(
            "no end on the device within {:?}; every member has come to it, and members {members:?} have come \
             to another head meanwhile",
            call.timeout()
        ),
        fix:
            "step the heads of one device in one order on all ranks: by one thread, or by threads that take \
              turns"
                .into(),
    }
}

/// The members' last places, as one that is in `call` knows them.
struct Members<'a> {
    call: &'a Call,
    places: &'a [Option<Place>],
    elsewhere: &'a [Option<Place>],
    me: usize,
}

impl Members<'_> {
    fn others(&self, which: impl Fn(usize, &Place) -> bool) -> Vec<usize> {
        let others = self.places.iter().enumerate().filter(|(member, _)| *member != self.me);
        others.filter(|&(m, place)| place.as_ref().is_some_and(|p| which(m, p))).map(|(m, _)| m).collect()
    }

    fn is_in_step(&self, place: &Place) -> bool {
        let Call { head, instance, epoch, step, .. } = *self.call;
        (place.head, place.instance, place.epoch, place.step) == (head, instance, epoch, step)
    }

    /// Those that have not come to the step; else those that have left it for another channel.
    fn absent(&self) -> Vec<usize> {
        let call = self.call;
        let here = |place: &Place| (place.head, place.instance) == (call.head, call.instance);
        let before =
            self.others(|_, place| !here(place) || (place.epoch, place.step) < (call.epoch, call.step));
        if !before.is_empty() {
            return before;
        }
        self.others(|member, _| self.elsewhere.get(member).is_some_and(Option::is_some))
    }

    /// Where every member has come to the call: those whose last place is in another head, by another thread.
    /// A head waits for its device, so that they are in both.
    fn in_others(&self) -> Vec<usize> {
        let this = self.call.place(Duration::ZERO);
        let has_come = |place: &Place| Place { age: this.age, ..*place } == this;
        if self.others(|_, place| has_come(place)).len() + 1 < self.places.len() {
            return Vec::new();
        }
        self.others(|member, _| self.elsewhere.get(member).is_some_and(Option::is_some))
    }

    /// Those in the step of which nothing was heard for so long.
    fn silent(&self, since: Duration) -> Vec<usize> {
        self.others(|_, place| self.is_in_step(place) && place.age > since)
    }

    fn in_another_operation(&self) -> Vec<usize> {
        self.others(|_, place| self.is_in_step(place) && place.operation != self.call.operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Operation;

    fn call(step: u64, operation: Operation) -> Call {
        let began = Instant::now();
        Call { head: 7, instance: 1, epoch: 2, step, operation, terms: 3, began, deadline: began }
    }

    #[test]
    fn who_keeps_a_device_waiting_is_told_by_the_places() {
        let this = call(5, Operation::GatherRows);
        let at = |step, operation, ms| Some(call(step, operation).place(Duration::from_millis(ms)));
        let here = at(5, Operation::GatherRows, 10);
        let stopped = at(5, Operation::GatherRows, 90);
        let before = at(4, Operation::Idle, 90);
        let within = at(5, Operation::Contract, 10);
        let after = at(6, Operation::GatherRows, 90);
        let other = Some(Call { head: 8, ..this }.place(Duration::ZERO));
        let none = [None; 4];
        for (places, elsewhere, absent, silent, within) in [
            ([here, here, here, here], none, vec![], vec![], vec![]),
            ([before, here, before, here], none, vec![2], vec![], vec![]),
            ([here, here, within, before], none, vec![3], vec![], vec![2]),
            ([stopped, within, stopped, after], none, vec![], vec![2], vec![1]),
            ([here, None, other, here], none, vec![2], vec![], vec![]),
            ([here, here, here, within], [None, other, None, None], vec![1], vec![], vec![3]),
        ] {
            let members = Members { call: &this, places: &places, elsewhere: &elsewhere, me: 0 };
            let silent_for = members.silent(Duration::from_millis(50));
            let got = (members.absent(), silent_for, members.in_another_operation());
            assert_eq!(got, (absent, silent, within), "{places:?} {elsewhere:?}");
        }
        let both = [None, other, None, None];
        for (places, elsewhere, wanted) in [
            ([here; 4], both, vec![1]),
            // The own place is known.
            ([None, here, here, here], both, vec![1]),
            ([here; 4], none, vec![]),
            ([here, here, within, here], both, vec![]),
        ] {
            let members = Members { call: &this, places: &places, elsewhere: &elsewhere, me: 0 };
            assert_eq!(members.in_others(), wanted, "{places:?} {elsewhere:?}");
        }
    }
}
