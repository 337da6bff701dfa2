//! Collectives that are queued one behind the other: the host waits for them once, at the end of their step.
//!
//! At the end it waits for each in order, as if nothing were queued behind it. So the first collective that
//! has not ended decides which place the peers are told, whom this rank blames and what an error names, as in
//! a step that waits for each at once.
//!
//! Work that is queued behind a collective may wait for a peer that never comes. Queueing it must therefore
//! not block the host without the step's deadline, as allocating or freeing device memory would. So the first
//! step of each kind waits for each collective, and so does a step with more rows than any before it.

use super::LmHead;
use super::wire::Wire;
use crate::adjust::DeviceAdjustments;
use crate::backend::On;
use crate::error::Result;
use crate::exchange::{Call, Fault, Pending};
use crate::memory::Stream;
use crate::result::{Request, RowInputs};
use crate::rows::HiddenRows;
use crate::sampling::Filters;
use crate::sampling::cut::Digits;
use std::ops::Range;
use std::time::{Duration, Instant};

/// How long a failed step waits for its stream after its queued collectives were aborted.
const LEAVES: Duration = Duration::from_millis(250);

/// The most kinds of steps that are remembered.
const MOST: usize = 256;

/// Collectives of a step for which memory is reserved at creation: four for each digit of a search, and those
/// before and after it.
pub(super) const OPERATIONS: usize = 4 * Digits::MOST as usize + 8;

/// A collective that was queued and not waited for.
#[derive(Clone, Copy)]
pub(super) struct Deferred {
    pub call: Call,
    /// Marks before and behind it.
    pub before: Pending,
    pub behind: Pending,
    pub sent: u64,
    pub received: u64,
    /// Time that queueing it took.
    pub took: Duration,
}

/// Kinds of steps that have run. Remembering one allocates nothing.
pub(super) struct Known {
    kinds: Vec<StepKind>,
    /// The most rows of the group, then of each replica, in any step of each kind, `[kinds, 1 + replicas]`.
    most: Vec<usize>,
    replicas: usize,
    marks: Vec<Pending>,
}

/// Steps of one kind take the same kernels and memory, as long as none has more rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StepKind {
    request: Request,
    filters: Filters,
    placed: DeviceAdjustments,
    /// The workspace is the caller's.
    caller_workspace: bool,
    /// The own rows are not contiguous: they are packed before they are sent.
    picked: bool,
    /// Rows of the group, rounded up to a power of two: a device's kernels, and what NCCL connects when it
    /// first moves as many bytes, go by these.
    rows: usize,
    /// Rounds of the histogram search for cuts: with fewer rounds a row takes more bytes.
    rounds: usize,
}

impl Known {
    pub fn new(replicas: usize) -> Self {
        let (kinds, most) = (Vec::with_capacity(MOST), Vec::with_capacity(MOST * (1 + replicas)));
        Known { kinds, most, replicas, marks: Vec::with_capacity(2 * OPERATIONS) }
    }

    fn place(&self, kind: StepKind) -> Option<Range<usize>> {
        let at = self.kinds.iter().position(|known| *known == kind)?;
        Some(at * (1 + self.replicas)..(at + 1) * (1 + self.replicas))
    }

    /// What a step's memory grows with: rows of the group, then of each replica.
    fn rows(counts: &[usize]) -> impl Iterator<Item = usize> {
        std::iter::once(counts.iter().sum()).chain(counts.iter().copied())
    }

    fn has(&self, kind: StepKind, counts: &[usize]) -> bool {
        // Rows that are picked take more memory than those that lie in order.
        [kind, StepKind { picked: true, ..kind }].into_iter().filter_map(|kind| self.place(kind)).any(|at| {
            let mut each = self.most[at].iter().zip(Self::rows(counts));
            each.all(|(most, rows)| rows <= *most)
        })
    }

    /// True where the kind is new. Where there is no room for it, the oldest one is forgotten.
    fn add(&mut self, kind: StepKind, counts: &[usize]) -> bool {
        if let Some(at) = self.place(kind) {
            self.most[at].iter_mut().zip(Self::rows(counts)).for_each(|(most, rows)| *most = rows.max(*most));
            return false;
        }
        if self.kinds.len() == MOST {
            self.kinds.remove(0);
            self.most.drain(..1 + self.replicas);
        }
        self.kinds.push(kind);
        self.most.extend(Self::rows(counts));
        true
    }

    /// Forgets all kinds: their memory was given back, or their channel is made anew.
    pub fn clear(&mut self) {
        self.kinds.clear();
        self.most.clear();
    }
}

impl LmHead {
    /// The kind of the step that has begun, where its collectives may be waited for at its end: the host
    /// decides nothing within it, and its inputs are in device memory.
    pub(super) fn kind(
        &self,
        hidden: &HiddenRows<'_>,
        inputs: &RowInputs<'_>,
        caller_workspace: bool,
    ) -> Option<StepKind> {
        let (open, group) = (&self.wire.open, &self.wire.group);
        let here = inputs.targets.is_none() && inputs.sampling.is_none() && inputs.adjustments.is_none();
        if !open.defers || open.queued || open.padded || open.adjusted || !(here || hidden.is_empty()) {
            return None;
        }
        let counts = &open.counts;
        let rows = counts.iter().try_fold(0usize, |sum, rows| sum.checked_add(*rows))?;
        if let Request::Logprobs { targets, top_n, .. } = open.request {
            // Beyond one chunk, the exact counts decide which rows share a chunk. `StepKind` does not have
            // them.
            let chunk = self.config.logprobs_chunk_rows(group.size(), self.hidden_dtype, targets, top_n);
            chunk.ok().filter(|chunk| rows <= *chunk)?;
        }
        let filters = open.header.filters;
        let decided = |member: usize| self.wire.answered(member, true).len();
        let rounds = match filters {
            Filters::ByDevice => {
                let busiest = (0..group.size()).map(decided).max().unwrap_or(0);
                Digits::planned(busiest, group.size()).rounds()
            }
            _ => 0,
        };
        let rows = rows.checked_next_power_of_two()?;
        let (request, placed, picked) = (open.request, open.header.placed, hidden.contiguous().is_none());
        Some(StepKind { request, filters, placed, caller_workspace, picked, rows, rounds })
    }

    /// Whether a step of this kind has run before, with at least as many rows of the group and of
    /// each replica.
    pub(super) fn knows(&self, kind: Option<StepKind>) -> bool {
        !self.warming_up && kind.is_some_and(|kind| self.known.has(kind, &self.wire.open.counts))
    }

    /// Remembers the kind of a step that has ended.
    pub(super) fn remember(&mut self, kind: StepKind, stream: Stream) -> Result<()> {
        let LmHead { wire: Wire { open, exchange, group, .. }, known, .. } = self;
        if !known.add(kind, &open.counts) {
            return Ok(());
        }
        // The next step of this kind uses the marks around all its collectives at once: they are made now.
        let Some(device) = exchange.device() else { return Ok(()) };
        let made = (0..2 * open.stats.rounds).try_for_each(|_| {
            known.marks.push(device.mark(&open.call, stream)?);
            Ok(())
        });
        known.marks.drain(..).for_each(|mark| device.forget(mark));
        made.map_err(|fault: Fault| fault.into_error(&open.call, group.ranks()))
    }

    /// After a step failed for `reason`: ends the work that it has queued and not waited for, so that soon
    /// nothing uses the caller's memory. The peers have been told already.
    pub(super) fn end_queued(&mut self, call: &Call, reason: &str) {
        let Some(stream) = self.wire.open.stream.take() else { return };
        let exchange = &self.wire.exchange;
        let Some(device) = exchange.device() else { return };
        // A panic may have come when a collective was queued but not in the list, or in the wait for it.
        // Collectives of an asynchronous step are not in this list.
        if !self.wire.deferred.is_empty() || self.wire.open.asynchronous || std::thread::panicking() {
            device.abort(&Fault::Aborted { member: exchange.me(), reason: reason.into() });
        }
        for Deferred { before, behind, .. } in self.wire.deferred.drain(..) {
            device.forget(before);
            device.forget(behind);
        }
        // Without an end mark, wait the full time.
        let (end, until) = (device.mark(call, stream).ok(), Instant::now() + LEAVES);
        while Instant::now() < until && end.is_none_or(|end| device.marks().is_reached(end) == Ok(false)) {
            std::thread::sleep(Duration::from_micros(50));
        }
        end.into_iter().for_each(|end| device.forget(end));
        if let Some(loaded) = &mut self.loaded {
            // Where the device has failed, the error says it already.
            let _ = loaded.remember_queued(&On { stream, workspace: None });
        }
    }
}

impl Wire {
    /// Waits for the collectives that were queued, in their order.
    ///
    /// # Errors
    /// The fault of the first collective that does not end; [`LmHead::end_queued`] ends the others.
    pub fn wait_deferred(&mut self) -> Result<()> {
        while let Some(&Deferred { call, before, behind, sent, received, took }) = self.deferred.front() {
            let began = Instant::now();
            self.exchange.note(&call);
            // From here on the wait gives its marks back.
            self.deferred.pop_front();
            let waited = match self.exchange.device() {
                Some(device) => device.wait(Some(before), behind, &call, &*self.exchange),
                None => Ok(()),
            };
            let waiting = began.elapsed();
            self.recorder.operation(call.operation, sent, received, took + waiting);
            self.open.stats.exchange += waiting;
            waited.map_err(|fault| fault.into_error(&call, self.group.ranks()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_known_where_one_of_its_kind_had_as_many_rows_of_each_replica() {
        let kind = |request, rows| {
            let (filters, placed) = (Filters::ByHost, DeviceAdjustments::default());
            StepKind { request, filters, placed, caller_workspace: false, picked: false, rows, rounds: 0 }
        };
        let (argmax, other) = (kind(Request::argmax(), 8), kind(Request::top_k(3), 8));
        let mut known = Known::new(2);
        assert!(!known.has(argmax, &[0, 0]));
        assert!(known.add(argmax, &[4, 4]) && !known.add(argmax, &[2, 5]));
        assert!(known.has(argmax, &[3, 5]) && known.has(argmax, &[4, 4]) && known.has(argmax, &[0, 0]));
        // One replica has as many rows as before, but the group has more.
        assert!(!known.has(argmax, &[4, 5]) && !known.has(argmax, &[5, 2]) && !known.has(argmax, &[1, 6]));
        assert!(
            !known.has(other, &[1, 1]) && !known.has(StepKind { caller_workspace: true, ..argmax }, &[1, 1])
        );
        let picked = StepKind { picked: true, ..other };
        assert!(known.add(picked, &[3, 3]) && known.has(other, &[3, 2]) && !known.has(other, &[3, 4]));
        // Beyond what there is room for, the oldest kinds go.
        for rows in 0..2 * MOST {
            assert!(known.add(kind(Request::argmax(), 9 + rows), &[1, rows]));
        }
        let room = (known.kinds.capacity(), known.most.capacity());
        assert_eq!((known.kinds.len(), known.most.len(), room), (MOST, 3 * MOST, (MOST, 3 * MOST)));
        for (rows, is_known) in [(0, false), (MOST - 1, false), (MOST, true), (2 * MOST - 1, true)] {
            let kind = kind(Request::argmax(), 9 + rows);
            assert_eq!(known.has(kind, &[1, rows]), is_known, "{rows}");
            assert!(!known.has(kind, &[1, rows + 1]), "{rows}");
        }
        known.clear();
        assert!(!known.has(argmax, &[0, 0]));
    }
}
