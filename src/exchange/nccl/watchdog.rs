//! A thread that ends a head's overdue work on the device if nobody waits for it with a deadline. An engine
//! that replays a graph, or runs an asynchronous step, waits for its stream without one.

use crate::exchange::{Call, Fault, StreamCounters};
use crate::memory::Stream;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The pause between two looks at the counters.
const LOOK: Duration = Duration::from_millis(2);

/// Watches one channel's work. Its thread ends when this is dropped.
pub(super) struct Watchdog(Arc<Shared>);

struct Shared {
    counters: Arc<dyn StreamCounters>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Queued calls, oldest first, each with the value that the device's end counter has when it is done.
    /// Replays of a graph count as the latest call.
    calls: VecDeque<(u32, Call)>,
    closed: bool,
}

/// Most calls remembered. If there are more, a fault of a forgotten one names the next.
const CALLS: usize = 64;

impl State {
    fn add(&mut self, call: Call, ended: u32) {
        let before = self.calls.back().map_or(ended, |(before, _)| *before);
        // Counters wrap.
        let queued = if (before.wrapping_sub(ended) as i32) < 0 { ended } else { before };
        if self.calls.len() == CALLS {
            self.calls.pop_front();
        }
        self.calls.push_back((queued.wrapping_add(1), call));
    }

    /// The call that runs when the device has come to `ended` ends. Forgets those that have ended.
    fn running(&mut self, ended: u32) -> Option<Call> {
        while let (Some((end, _)), true) = (self.calls.front(), self.calls.len() > 1) {
            if (end.wrapping_sub(ended) as i32) > 0 {
                break;
            }
            self.calls.pop_front();
        }
        self.calls.front().map(|(_, call)| *call)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Where the lock is poisoned the state is still good: each write to it is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watchdog {
    /// `trouble` says why running work will not end, where something has happened; `end` ends it. Neither may
    /// call this, nor block.
    ///
    /// # Errors
    /// `Broken` where there is no thread.
    pub fn new(
        counters: Arc<dyn StreamCounters>,
        trouble: impl Fn(&Call) -> Option<Fault> + Send + 'static,
        end: impl Fn(&Call, &Fault) + Send + 'static,
    ) -> Result<Self, Fault> {
        let state = Mutex::new(State { calls: VecDeque::with_capacity(CALLS), closed: false });
        let shared = Arc::new(Shared { counters, state, changed: Condvar::new() });
        let watched = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("lmhead-watchdog".into());
        thread.spawn(move || watched.watch(trouble, end)).map_err(|error| Fault::Broken {
            problem: format!("no thread that watches the device's work: {error}"),
            fix: "look at the limit of threads (ulimit -u)".into(),
        })?;
        Ok(Watchdog(shared))
    }

    /// Queues the beginning of work that must end within the call's timeout.
    pub fn begin(&self, call: &Call, stream: Stream) -> Result<(), Fault> {
        self.0.counters.begin(stream)?;
        let (_, ended) = self.0.counters.counted();
        self.0.state().add(*call, ended);
        self.0.changed.notify_all();
        Ok(())
    }

    /// Queues the end of that work.
    pub fn end(&self, stream: Stream) -> Result<(), Fault> {
        self.0.counters.end(stream)
    }

    /// From here on nothing is ended; waits where that is being done now. The counters live until this is
    /// dropped.
    pub fn close(&self) {
        self.0.state().closed = true;
        self.0.changed.notify_all();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn watch(&self, trouble: impl Fn(&Call) -> Option<Fault>, end: impl Fn(&Call, &Fault)) {
        // The counters as they were when work was first seen to run, and when that was.
        let mut running: Option<((u32, u32), Instant)> = None;
        let mut state = self.state();
        while !state.closed {
            let (begun, ended) = self.counters.counted();
            let Some(call) = state.running(ended) else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            if begun == ended {
                running = None;
            } else if running.is_none_or(|(counted, _)| counted != (begun, ended)) {
                running = Some(((begun, ended), Instant::now()));
            }
            let fault =
                running.and_then(|(_, since)| trouble(&call).or_else(|| overdue(&call, since, begun)));
            if let Some(fault) = fault {
                // Under the lock: once this is closed, the channel may be connected anew.
                let state = self.state();
                if !state.closed {
                    end(&call, &fault);
                }
                // Nothing is watched any longer: the channel is given up.
                return;
            }
            state = self.changed.wait_timeout(self.state(), LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The fault of work that has run for longer than it may.
fn overdue(call: &Call, since: Instant, begun: u32) -> Option<Fault> {
    let timeout = call.timeout();
    (since.elapsed() >= timeout).then(|| Fault::Broken {
        problem: format!("run {begun} of the watched work did not end on the device within {timeout:?}"),
        fix: "look at the other ranks (one that did not replay its graph, or crashed), and at each rank's \
              GPU and links (nvidia-smi, NCCL_DEBUG=WARN); timeout_ms sets the deadline"
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Operation;
    use std::sync::mpsc;

    /// Counters that a test increments.
    #[derive(Default)]
    struct Counted(Mutex<(u32, u32)>);

    impl StreamCounters for Counted {
        fn begin(&self, _: Stream) -> Result<(), Fault> {
            self.0.lock().expect("no panic").0 += 1;
            Ok(())
        }

        fn end(&self, _: Stream) -> Result<(), Fault> {
            self.0.lock().expect("no panic").1 += 1;
            Ok(())
        }

        fn counted(&self) -> (u32, u32) {
            *self.0.lock().expect("no panic")
        }
    }

    fn call(timeout: Duration) -> Call {
        let (began, operation) = (Instant::now(), Operation::GatherRows);
        let deadline = began + timeout;
        Call { head: 7, instance: 0, epoch: 0, step: 3, operation, terms: 0, began, deadline }
    }

    fn watchdog(trouble: Option<Fault>) -> (Watchdog, mpsc::Receiver<(Call, Fault)>) {
        let (told, tells) = mpsc::channel();
        let end = move |call: &Call, fault: &Fault| told.send((*call, fault.clone())).expect("a receiver");
        (
            Watchdog::new(Arc::new(Counted::default()), move |_: &Call| trouble.clone(), end)
                .expect("a thread"),
            tells,
        )
    }

    #[test]
    fn work_that_goes_on_is_left_alone_and_work_that_does_not_is_ended_once() {
        let (dog, tells) = watchdog(None);
        let call = call(Duration::from_millis(300));
        // Together longer than the timeout, but each time a new beginning.
        for _ in 0..40 {
            dog.begin(&call, Stream::NONE).expect("counted");
            std::thread::sleep(Duration::from_millis(10));
            dog.end(Stream::NONE).expect("counted");
        }
        assert!(tells.try_recv().is_err());
        dog.begin(&call, Stream::NONE).expect("counted");
        let began = Instant::now();
        let (watched, fault) = tells.recv_timeout(Duration::from_secs(60)).expect("an end");
        assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
        assert_eq!(watched, call);
        let Fault::Broken { problem, .. } = fault else { panic!("{fault:?}") };
        assert_eq!(problem, "run 41 of the watched work did not end on the device within 300ms");
        assert!(tells.recv_timeout(Duration::from_millis(500)).is_err(), "once, and the thread has ended");
    }

    #[test]
    fn trouble_ends_work_that_runs_before_its_timeout() {
        let lost = Fault::Lost { members: vec![1] };
        let (dog, tells) = watchdog(Some(lost.clone()));
        let call = call(Duration::from_secs(3600));
        assert!(tells.recv_timeout(Duration::from_millis(50)).is_err(), "nothing runs");
        dog.begin(&call, Stream::NONE).expect("counted");
        assert_eq!(tells.recv_timeout(Duration::from_secs(60)), Ok((call, lost)));
    }

    #[test]
    fn the_call_that_runs_is_told_not_those_that_are_queued_behind_it() {
        let (dog, tells) = watchdog(None);
        let numbered = |step| Call { step, ..call(Duration::from_millis(300)) };
        // As a device counts that has come to the end of the first two, of five that are queued.
        dog.begin(&numbered(1), Stream::NONE).expect("counted");
        dog.end(Stream::NONE).expect("counted");
        for step in 2..6 {
            dog.0.state().add(numbered(step), 1);
        }
        dog.0.counters.begin(Stream::NONE).expect("counted");
        dog.0.counters.end(Stream::NONE).expect("counted");
        dog.0.counters.begin(Stream::NONE).expect("counted");
        let (watched, _) = tells.recv_timeout(Duration::from_secs(60)).expect("an end");
        assert_eq!(watched.step, 3);
    }

    #[test]
    fn calls_are_found_though_counters_wrap_and_more_are_queued_than_remembered() {
        let numbered = |step| Call { step, ..call(Duration::from_secs(1)) };
        let mut state = State { calls: VecDeque::new(), closed: false };
        let first = u32::MAX - 2;
        for step in 0..8 {
            state.add(numbered(step), first);
        }
        for ended in 0..8 {
            let running = state.running(first.wrapping_add(ended)).expect("a call");
            assert_eq!(running.step, u64::from(ended));
        }
        // Behind the last, replays of a graph may run: they are the last's.
        assert_eq!(state.running(first.wrapping_add(20)).expect("a call").step, 7);
        for step in 8..8 + 2 * CALLS as u64 {
            state.add(numbered(step), first.wrapping_add(20));
        }
        assert_eq!(state.calls.len(), CALLS);
        assert_eq!(state.running(first.wrapping_add(20)).expect("a call").step, 8 + CALLS as u64);
    }

    #[test]
    fn trouble_that_is_seen_while_it_is_closed_ends_nothing() {
        let (told, tells) = mpsc::channel();
        let ((enter, entered), (go, going)) = (mpsc::channel(), mpsc::channel());
        let trouble = move |_: &Call| {
            enter.send(()).expect("a receiver");
            going.recv().expect("a sender");
            Some(Fault::Lost { members: vec![1] })
        };
        let end = move |call: &Call, fault: &Fault| told.send((*call, fault.clone())).expect("a receiver");
        let dog = Watchdog::new(Arc::new(Counted::default()), trouble, end).expect("a thread");
        dog.begin(&call(Duration::from_secs(3600)), Stream::NONE).expect("counted");
        entered.recv_timeout(Duration::from_secs(60)).expect("a look");
        dog.close();
        go.send(()).expect("a receiver");
        // The thread has ended without a word.
        assert_eq!(tells.recv_timeout(Duration::from_secs(60)), Err(mpsc::RecvTimeoutError::Disconnected));
    }

    #[test]
    fn a_watchdog_that_is_dropped_ends() {
        let (dog, tells) = watchdog(None);
        dog.begin(&call(Duration::from_millis(100)), Stream::NONE).expect("counted");
        drop(dog);
        // The thread drops its end of the channel, and says nothing before.
        assert_eq!(tells.recv_timeout(Duration::from_secs(60)), Err(mpsc::RecvTimeoutError::Disconnected));
    }
}
