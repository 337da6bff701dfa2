//! The flight recorder: a rank's last steps, for whoever asks what happened before a fault. It allocates when
//! it is made; recording a step allocates nothing.

use super::abort::AbortHandle;
use super::guard;
use crate::backend::CapacitySteps;
use crate::error::{Error, Evidence};
use crate::exchange::{Exchange, Operation};
use crate::layout::HeadGroup;
use crate::result::Request;
use crate::step::{Header, Mode};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Steps that are kept.
const STEPS: usize = 32;

/// More than there are kinds of operations in a step.
const OPERATIONS: usize = Operation::ALL.len();

/// One step as a rank has seen it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct StepRecord {
    /// Number of the step since the head was made or rebuilt.
    pub step: u64,
    pub epoch: u32,
    pub request: Option<Request>,
    pub mode: Mode,
    /// Rows that this rank's replica brought.
    pub rows: u64,
    /// Rows of the whole group, once the step has learnt them.
    pub group_rows: Option<u64>,
    /// From the beginning of the step to its end; 0 while it runs.
    pub time: Duration,
    pub outcome: Outcome,
    operations: [OperationRecord; OPERATIONS],
    used: usize,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    Running,
    Finished,
    Failed,
}

/// The collective operations of one kind in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationRecord {
    pub operation: Operation,
    pub calls: u32,
    /// To and from other ranks.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Includes the wait for the peers.
    pub time: Duration,
}

const NONE: OperationRecord = OperationRecord {
    operation: Operation::Idle,
    calls: 0,
    bytes_sent: 0,
    bytes_received: 0,
    time: Duration::ZERO,
};

impl StepRecord {
    /// One record for each kind, in the order in which each came first.
    pub fn operations(&self) -> &[OperationRecord] {
        &self.operations[..self.used]
    }
}

/// The same as `Display`: a derived one would list the places that are not used.
impl fmt::Debug for StepRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StepRecord({self})")
    }
}

impl fmt::Display for StepRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} (epoch {}): ", self.step, self.epoch)?;
        if let Some(request) = self.request {
            write!(f, "{request}, ")?;
        }
        write!(f, "{}, {} rows", self.mode, self.rows)?;
        if let Some(rows) = self.group_rows {
            write!(f, " of {rows}")?;
        }
        match self.outcome {
            Outcome::Running => write!(f, ", running")?,
            Outcome::Finished => write!(f, ", finished in {:.0} us", self.time.as_secs_f64() * 1e6)?,
            Outcome::Failed => write!(f, ", failed after {:.0} us", self.time.as_secs_f64() * 1e6)?,
        }
        for (i, o) in self.operations().iter().enumerate() {
            let comma = if i == 0 { ":" } else { "," };
            let times = if o.calls == 1 { String::new() } else { format!("{} x ", o.calls) };
            let micros = o.time.as_secs_f64() * 1e6;
            let (operation, sent, received) = (o.operation, o.bytes_sent, o.bytes_received);
            write!(f, "{comma} {times}{operation} ({sent} bytes sent, {received} received, {micros:.0} us)")?;
        }
        Ok(())
    }
}

/// Keeps the last steps. Clones share them.
#[derive(Clone)]
pub(super) struct Recorder(Arc<Mutex<Steps>>);

struct Steps {
    /// Has room for [`STEPS`] from the beginning, and never has more.
    steps: VecDeque<StepRecord>,
    began: Instant,
}

impl Steps {
    fn running(&mut self) -> Option<&mut StepRecord> {
        self.steps.back_mut().filter(|step| step.outcome == Outcome::Running)
    }
}

impl Recorder {
    pub fn new() -> Self {
        let steps = Steps { steps: VecDeque::with_capacity(STEPS), began: Instant::now() };
        Recorder(Arc::new(Mutex::new(steps)))
    }

    fn lock(&self) -> MutexGuard<'_, Steps> {
        // Where the lock is poisoned the state is still good: each write to it is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step begins.
    pub fn begin(&self, header: &Header, began: Instant) {
        let mut state = self.lock();
        if state.steps.len() == STEPS {
            state.steps.pop_front();
        }
        state.began = began;
        state.steps.push_back(StepRecord {
            step: header.sequence,
            epoch: header.epoch,
            request: header.request,
            mode: header.mode,
            rows: header.rows,
            group_rows: None,
            time: Duration::ZERO,
            outcome: Outcome::Running,
            operations: [NONE; OPERATIONS],
            used: 0,
        });
    }

    /// A collective of the running step has ended, well or not.
    pub fn operation(&self, operation: Operation, sent: u64, received: u64, time: Duration) {
        let mut state = self.lock();
        let Some(step) = state.running() else { return };
        let known = step.operations().iter().position(|record| record.operation == operation);
        let at = known.unwrap_or(step.used.min(OPERATIONS - 1));
        step.used = step.used.max(at + 1);
        let record = &mut step.operations[at];
        record.operation = operation;
        record.calls += 1;
        record.bytes_sent += sent;
        record.bytes_received += received;
        record.time += time;
    }

    /// The running step has ended.
    pub fn end(&self, outcome: Outcome, group_rows: Option<u64>) {
        let mut state = self.lock();
        let time = state.began.elapsed();
        let Some(step) = state.running() else { return };
        step.outcome = outcome;
        step.group_rows = group_rows.or(step.group_rows);
        step.time = time;
    }

    /// The steps, the latest last.
    pub fn steps(&self) -> Vec<StepRecord> {
        self.lock().steps.iter().copied().collect()
    }
}

/// What one rank's head has done and where its peers are; any thread may ask, also while the head is in a
/// step. It may outlive the head: then it no longer knows where the peers are.
#[derive(Clone)]
pub struct FlightRecorder {
    pub(super) recorder: Recorder,
    pub(super) group: Arc<HeadGroup>,
    /// The head's exchange. Weak: a handle that outlives the head keeps no channel open.
    pub(super) exchange: Weak<dyn Exchange>,
    pub(super) queued: Arc<QueuedSteps>,
}

/// What is needed to say whether queued steps have failed.
pub(super) struct QueuedSteps {
    /// The head's name.
    pub name: String,
    /// Knows the call of the last step.
    pub aborts: AbortHandle,
    /// What the device reports of capacity steps, once one was queued.
    pub steps: OnceLock<Arc<dyn CapacitySteps>>,
}

impl fmt::Debug for FlightRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FlightRecorder")
    }
}

impl FlightRecorder {
    /// This rank's last steps, the latest last.
    pub fn steps(&self) -> Vec<StepRecord> {
        self.recorder.steps()
    }

    /// Why a queued or replayed step has no answer: a rank did not come, or headers differ. `None` where no
    /// fault is known. Does not wait; the head reports the same when it begins its next step, and is poisoned
    /// then.
    pub fn fault(&self) -> Option<Error> {
        let exchange = self.exchange.upgrade()?;
        self.queued.fault(&*exchange, &self.group)
    }

    /// This rank's last steps in words, and where every rank of the group was last seen.
    pub fn evidence(&self) -> Evidence {
        match self.exchange.upgrade() {
            Some(exchange) => guard::evidence(&*exchange, &self.group, &self.recorder),
            None => Evidence {
                recent_steps: self.steps().iter().map(ToString::to_string).collect(),
                ..Evidence::default()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Verify;
    use crate::sampling::Filters;

    #[test]
    fn the_last_steps_are_kept_in_the_memory_of_the_first() {
        let recorder = Recorder::new();
        let (memory, room) = {
            let state = recorder.lock();
            (state.steps.as_slices().0.as_ptr(), state.steps.capacity())
        };
        for sequence in 0..10 * STEPS as u64 {
            let header = Header {
                head: 1,
                instance: 0,
                epoch: 2,
                mode: Mode::Exact,
                verify: Verify::Always,
                request: Some(Request::argmax()),
                adjusted: false,
                on_device: false,
                filters: Filters::ByHost,
                placed: Default::default(),
                sequence,
                rows: sequence,
                counts: 0,
                agreement: 0,
                weights_version: 0,
                inputs: 0,
            };
            recorder.begin(&header, Instant::now());
            for operation in Operation::ALL.into_iter().chain([Operation::GatherRows; 100]) {
                recorder.operation(operation, 3, 5, Duration::from_micros(1));
            }
            recorder.end(Outcome::Finished, Some(7));
        }
        assert_eq!(recorder.lock().steps.capacity(), room);
        let steps = recorder.steps();
        assert!(steps.iter().map(|step| step.step).eq(9 * STEPS as u64..10 * STEPS as u64));
        let last = steps.last().unwrap();
        assert_eq!((last.outcome, last.group_rows), (Outcome::Finished, Some(7)));
        assert_eq!(last.operations().len(), Operation::ALL.len());
        let gather = last.operations().iter().find(|o| o.operation == Operation::GatherRows).unwrap();
        assert_eq!((gather.calls, gather.bytes_sent, gather.bytes_received), (101, 303, 505));
        let mut state = recorder.lock();
        state.steps.make_contiguous();
        assert_eq!(state.steps.as_slices().0.as_ptr(), memory, "moved to other memory");
    }
}
