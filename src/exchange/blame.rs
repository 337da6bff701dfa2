//! Finds who keeps a device waiting: a device cannot say it, so the host transport beside it is asked.
//!
//! A member that waits for its device notes its place again and again, as a sign of life. When a wait has
//! failed, the members that have come to the collective by their place, but have been silent since, are the
//! ones that were killed or stopped in it. The first to find out tells the others, so that all name the same
//! members.

use super::{Call, Exchange, Fault, Place};
use std::time::{Duration, Instant};

/// How often a member that waits for its device notes its place.
const BEAT: Duration = Duration::from_millis(100);

/// How often a wait near its deadline looks for members that wait in two heads.
const LOOK: Duration = Duration::from_millis(5);

/// How long a wait that has failed listens for members that still live.
const LISTENS: Duration = Duration::from_millis(400);

/// The signs of life of one wait.
pub(super) struct Beat {
    last: Instant,
    looked: Instant,
    /// Members that were seen in another head as well, near the deadline.
    crossed: Vec<usize>,
}

impl Beat {
    /// To be made when the head has just noted the call.
    pub fn new() -> Self {
        let now = Instant::now();
        Beat { last: now, looked: now, crossed: Vec::new() }
    }

    pub fn keep(&mut self, call: &Call, control: &dyn Exchange) {
        self.keep_at(call, || *call, control);
    }

    /// As `keep`, for a caller that computes its place only when it is to be noted.
    pub fn keep_at(&mut self, call: &Call, place: impl FnOnce() -> Call, control: &dyn Exchange) {
        // The period differs from head to head: of two heads that always note at the same moments, an
        // observer would only ever see the one that comes last.
        if self.last.elapsed() >= BEAT - Duration::from_millis(u64::from(call.head % 32)) {
            control.note(&place());
            self.last = Instant::now();
        }
        // A member that waits in two heads, by two threads, notes them in turns.
        if self.crossed.is_empty() && call.left() <= 2 * BEAT && self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            let (places, elsewhere) = (control.places(), control.places_elsewhere());
            let members = Members { call, places: &places, elsewhere: &elsewhere, me: control.me() };
            self.crossed = members.in_others();
        }
    }

    /// [`late`] for a wait that has kept this beat.
    pub fn late(self, call: &Call, control: &dyn Exchange) -> Fault {
        // A member that is gone or silent keeps the others waiting, whatever heads they are in.
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

/// The channel's fault, where it ends a wait in `call`. One of a later step does not: the member that found
/// it has completed this step.
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
    // At once, and in this rank's name: the others are looking for who keeps them waiting.
    control.notify_abort(call, &format!("{}: {problem}", call.operation));
    let fix =
        "look at the kernels before it and at this rank's GPU (nvidia-smi); timeout_ms sets the deadline";
    Fault::Broken { problem, fix: fix.into() }
}

/// The fault of a wait that has reached the deadline.
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

/// The fault that a peer has told; else `Lost` with the members that are gone, or `named` of those that have
/// not come or do not answer; `None` where all answer. Past the deadline it is clear at once who has not
/// come; before it a peer may still say more.
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
            let mut ways = [absent, silent, members.in_another_operation()].into_iter();
            match ways.find(|members| !members.is_empty()) {
                Some(members) => Some(named(members)),
                // A peer whose own device does not come to the collective says so at its own deadline, a
                // moment later.
                None if since < LISTENS => None,
                None => return None,
            }
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

/// The fault where all members have come to the call, but `members` have come to another head too.
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

    /// Members that have not come to the step; if there are none, those that have left it for another
    /// channel.
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

    /// Where every member has come to the call: the members whose last place is in another head, by another
    /// thread. They are in both, since a head waits for its device.
    fn in_others(&self) -> Vec<usize> {
        let this = self.call.place(Duration::ZERO);
        let has_come = |place: &Place| Place { age: this.age, ..*place } == this;
        if self.others(|_, place| has_come(place)).len() + 1 < self.places.len() {
            return Vec::new();
        }
        self.others(|member, _| self.elsewhere.get(member).is_some_and(Option::is_some))
    }

    /// Members in the step that have been silent for longer than `since`.
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
