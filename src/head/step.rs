//! A step's two halves: [`LmHead::begin`] fixes its arguments and checks the contract, [`LmHead::run_into`]
//! runs it into the caller's memory. [`Step`] is both for callers who keep the head borrowed in between.

use super::recorder::Outcome;
use super::run::{Compute, Run};
use super::wire::{Who, check_memory};
use super::{LmHead, inputs};
use crate::adjust::DeviceAdjustments;
use crate::backend::{Ask, On};
use crate::error::{Error, Result};
use crate::exchange::{Call, Operation};
use crate::memory::{Memory, Span};
use crate::merge::PartialSpec;
use crate::result::{Answer, AnswerBuffers, OwnedAnswer, Request, RowInputs, StepStats};
use crate::rows::{HiddenRows, RowCounts};
use crate::sampling::Filters;
use crate::step::{self, HEADER_BYTES, Header, Mode};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A step that has begun, of the head that began it. It must be run.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a step that is not run breaks the contract with the other ranks: pass it to run_into()"]
pub struct Ticket(u64);

/// Counts over all heads: so a ticket of one head is never another's.
static NEXT_TICKET: AtomicU64 = AtomicU64::new(1);

/// What a step has besides counts and request; the same on every rank of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepOptions {
    /// Some row of the group has [`Adjustments`](crate::adjust::Adjustments). With exact counts or a capacity
    /// every rank says the same, also where it has none itself. With `discover` it is learned: a rank that
    /// says no takes part in the others' adjustments.
    pub adjusted: bool,
    /// Rows and answers are in the memory of the backend's device.
    pub on_device: bool,
    /// Adjustments that some row of the group has in device memory ([`RowInputs::on_device`]), in a step on a
    /// device. Every rank says the same in every mode, also where it has none itself. A kind that is
    /// announced here must not come in host memory. Tensor-parallel ranks pass the same adjustments; like the
    /// parameters of [`StepOptions::filters`] these are compared only in replays of a graph in capacity mode.
    pub device_adjustments: DeviceAdjustments,
    /// Who knows the filters of a sampling step. Where the host does not read parameters, tensor-parallel
    /// ranks must pass the same ones: they are compared only in replays of a graph in capacity mode.
    pub filters: Filters,
    /// [`LmHead::run_into`] returns once the step is queued. Allowed for capturable steps
    /// ([`LmHead::is_capturable`]), outside a capture.
    ///
    /// - It must be the same on every rank: if ranks differ, the step ends at the timeout. In capacity mode
    ///   the device compares the contract.
    /// - Rows, inputs, workspace and answer must stay valid until the stream has passed the step.
    /// - The answer counts if no fault is known then. The transport finds faults within the timeout;
    ///   [`FlightRecorder::fault`] and the next step report them.
    /// - A step on another stream or in host memory, `rebuild`, `release_memory` and dropping the head wait
    ///   for the step, at most for the timeout.
    /// - Warm up first, with as many rows ([`LmHead::warm_up_on_device`]): memory not warmed up is allocated
    ///   on the stream after earlier work.
    ///
    /// [`FlightRecorder::fault`]: super::FlightRecorder::fault
    pub asynchronous: bool,
}

impl LmHead {
    /// Begins a step: fixes its arguments and, where the mode and the verification setting say so, checks the
    /// contract with the other ranks. Collective. The ticket must be given to [`LmHead::run_into`]; until
    /// then this head begins no other step.
    ///
    /// # Errors
    /// `Request`, `Config` or `Shape` for arguments that no head or group could take. The peers of this rank
    /// have begun the step or will: they are told at once, and the head is poisoned, also where all ranks are
    /// refused alike. A head of one rank stays usable. `StepMismatch`, `Timeout`, `RankLost` as the contract
    /// says; `Poisoned` after an earlier fault.
    pub fn begin(&mut self, counts: &RowCounts, request: &Request, options: StepOptions) -> Result<Ticket> {
        self.maker.check("the head")?;
        self.notice_abort();
        if let Some(cause) = &self.poisoned {
            return Err(Error::Poisoned { cause: cause.clone() });
        }
        self.check_queued()?;
        if self.begun.is_some() {
            let call = self.wire.open.call(Operation::Idle);
            self.give_up(&call, "began another step without running this one");
            let fix = "run a step before you begin the next, and rebuild the head now";
            let (wanted, got) = ("the step that has begun to be run", "another step");
            return Err(Error::request("a step", wanted, got, fix));
        }
        let call = self.call_from_now(Operation::Contract, self.config.timeout);
        self.guarded(&call, "step", |head| head.open(call, counts, *request, options))?;
        let number = NEXT_TICKET.fetch_add(1, Ordering::Relaxed);
        self.begun = Some(number);
        Ok(Ticket(number))
    }

    fn open(&mut self, call: Call, counts: &RowCounts, request: Request, options: StepOptions) -> Result<()> {
        self.wire.exchange.note(&call);
        request.check(self.config.vocab_size)?;
        let placed = options.device_adjustments;
        self.check_logprobs(&request, options.adjusted || !placed.is_empty())?;
        if !placed.is_empty() && !options.on_device {
            let fix = "begin the step with on_device, or announce adjustments in host memory";
            return Err(Error::request(
                "device_adjustments",
                "a step on a device",
                "one of host memory",
                fix,
            ));
        }
        if options.on_device {
            if self.backend.memory() == Memory::Host {
                let backend = format!("the {} backend", self.backend.name());
                let fix = "begin steps without on_device";
                return Err(Error::unsupported(backend, "rows in host memory", "a step on a device", fix));
            }
            let size = self.wire.group.size();
            check_memory(&*self.wire.exchange, self.backend.memory(), size)?;
        }
        let samples = match options.filters {
            Filters::ByHost => true,
            Filters::None => options.on_device && request == Request::sample(),
            Filters::ByDevice => options.on_device && matches!(request, Request::Sample { .. }),
        };
        if !samples {
            let without = if options.filters == Filters::None { " without logprobs" } else { "" };
            let (wanted, fix) = (format!("a step on a device that samples{without}"), "leave it out");
            return Err(Error::request("filters of a step", wanted, request, fix));
        }
        let queues = self.queues(counts, &request, options);
        if options.asynchronous && !self.is_capturable(counts, &request, options) {
            let wanted = "a step that could be captured (LmHead::is_capturable)";
            let got = format!("{request}, {}", step::counts_field(counts).0);
            let fix = "leave it out; or use a capacity or counts that are not verified, filters by the device, \
                       and a transport that watches it (NCCL)";
            return Err(Error::request("an asynchronous step", wanted, got, fix));
        }
        let group = &self.wire.group;
        let own = counts.own(group.replica_of(group.me()), group.replicas())?;
        let (mode, counts_field) = step::counts_field(counts);
        let header = Header {
            head: self.id,
            instance: self.instance,
            epoch: self.epoch,
            mode,
            verify: self.config.verify,
            request: Some(request),
            adjusted: options.adjusted,
            on_device: options.on_device,
            filters: options.filters,
            placed,
            sequence: self.sequence,
            rows: own as u64,
            counts: counts_field,
            agreement: self.agreement,
            weights_version: self.weights_version,
            inputs: 0,
        };
        self.sequence += 1;
        self.wire.recorder.begin(&header, call.began);
        let open = &mut self.wire.open;
        open.header = header;
        open.request = request;
        open.call = Call { terms: header.terms(), ..call };
        open.padded = false;
        open.verified = match mode {
            Mode::Exact => self.config.verify.applies(header.sequence, self.warming_up),
            Mode::Discover => true,
            // For other requests the header rides in the payload, and the host reads it there. Logprobs need
            // the counts first: their chunks follow from these. On a device the header rides there for
            // steps that no host waits for.
            Mode::Capacity if options.asynchronous => false,
            Mode::Capacity => options.on_device || matches!(request, Request::Logprobs { .. }),
            Mode::Create => false,
        };
        open.asynchronous = options.asynchronous;
        open.queued = queues && (group.size() == 1 || mode == Mode::Capacity || !open.verified);
        open.defers = queues && group.size() > 1;
        (open.deferred, open.stream) = (false, None);
        open.capacity = if let RowCounts::Capacity { max, .. } = counts { *max } else { 0 };
        open.adjusted = options.adjusted;
        open.compared = false;
        open.stats = StepStats::default();
        open.counts.clear();
        match counts {
            RowCounts::Exact(list) => open.counts.extend_from_slice(list),
            _ if self.wire.group.replicas() == 1 => open.counts.push(own),
            _ => {}
        }
        self.tell_aborts(&self.wire.open.call);
        if self.wire.open.verified && !self.wire.is_alone() { self.check_contract() } else { Ok(()) }
    }

    /// Exchanges headers over the whole group, and compares them.
    fn check_contract(&mut self) -> Result<()> {
        let began = Instant::now();
        let own = self.wire.open.header.encode();
        let (lists, recv) = (&mut self.scratch.lists, &mut self.scratch.small.recv);
        let size = self.wire.group.size();
        lists.sizes.clear();
        lists.sizes.resize(size, HEADER_BYTES);
        let gather = (Operation::Contract, Who::Everyone);
        self.wire.gather_small(gather, Span::host(&own[..]), (recv, &lists.sizes), true)?;
        self.wire.learn_counts(Who::Everyone);
        self.wire.open.stats.contract = began.elapsed();
        Ok(())
    }

    /// Rows of every replica of the group in the step that has begun, in order; `None` in capacity mode
    /// before it has run, and where none has begun.
    pub fn counts(&self) -> Option<&[usize]> {
        let known = self.begun.is_some() && !self.wire.open.counts.is_empty();
        known.then_some(&self.wire.open.counts[..])
    }

    /// Which of this rank's rows are answered: all, or with `split_rows_over_tp` this rank's part.
    pub fn answered_rows(&self, rows: usize) -> Range<usize> {
        let group = &self.wire.group;
        group.answered_rows(rows, group.me(), self.config.split_rows_over_tp)
    }

    /// Runs the step of `ticket` on this rank's hidden rows, and puts the answer to its [answered
    /// rows](LmHead::answered_rows) in `answer`. Collective. Rows and buffers lie in host memory, or all of
    /// them in the backend's: then the work goes on `on.stream`.
    ///
    /// With tensor parallelism every rank of a replica passes the same rows and inputs (a verified step in
    /// host memory compares their digests). Returns by the deadline that the step's beginning set. Buffers in
    /// host memory are written only on success; one exception: whole logits of a device that fails while they
    /// are copied.
    ///
    /// # Errors
    /// `Shape`, `Dtype` or `Request` naming the row or the buffer where these do not fit the step, the
    /// vocabulary or each other, before anything is sent; `StepMismatch`, `Timeout`, `RankLost` where a peer
    /// is at fault. A head of several ranks is poisoned then. `Request` for a ticket of another step, which
    /// changes nothing.
    pub fn run_into(
        &mut self,
        ticket: Ticket,
        hidden: HiddenRows<'_>,
        inputs: &RowInputs<'_>,
        answer: AnswerBuffers<'_>,
        on: On<'_>,
    ) -> Result<StepStats> {
        if self.begun != Some(ticket.0) {
            let fix = "use each ticket once, with the head that began the step, and before it is rebuilt";
            let got = "that of a step that has ended, or of another head";
            return Err(Error::request("ticket", "that of the step that has begun", got, fix));
        }
        self.begun = None;
        let call = self.wire.open.call(Operation::Idle);
        self.guarded(&call, "step", |head| {
            head.pipeline(hidden, inputs, answer, on)?;
            let open = &head.wire.open;
            let rows = open.counts.iter().map(|rows| *rows as u64).sum();
            head.wire.recorder.end(Outcome::Finished, Some(rows));
            head.wire.exchange.note(&call);
            Ok(head.wire.open.stats)
        })
    }

    /// Ends the step of `ticket` with an error of the caller's own, for example where it cannot make sense of
    /// its rows. The peers are told, and the error comes back as the head's own errors do. A ticket of
    /// another step changes nothing.
    pub fn fail(&mut self, ticket: Ticket, error: Error) -> Error {
        if self.begun != Some(ticket.0) {
            return error;
        }
        self.begun = None;
        self.failed(&self.wire.open.call(Operation::Idle), error)
    }

    /// Bytes of device memory that a step of `request` takes as [`On::workspace`]: what its largest matmul
    /// takes. 0 on the CPU, and for `discover`, where the rows are not known before. Depends on the arguments
    /// and the head alone: not collective.
    ///
    /// # Errors
    /// As [`LmHead::begin`] for arguments that no head or group could take.
    pub fn workspace(&self, counts: &RowCounts, request: &Request, options: StepOptions) -> Result<usize> {
        request.check(self.config.vocab_size)?;
        let group = &self.wire.group;
        let own = counts.own(group.replica_of(group.me()), group.replicas())?;
        let too_many =
            || Error::shape("row counts", "fewer rows than 2^64", "more", "send fewer rows in one step");
        let rows = match counts {
            _ if self.wire.is_alone() => self.answered_rows(own).len(),
            RowCounts::Exact(list) => {
                list.iter().try_fold(0usize, |sum, n| sum.checked_add(*n)).ok_or_else(too_many)?
            }
            RowCounts::Capacity { max, .. } => {
                // All parts of a replica's rows are as large as the largest.
                let parts = if self.config.split_rows_over_tp { group.tp() } else { 1 };
                let padded = max.div_ceil(parts).checked_mul(parts);
                padded.and_then(|rows| rows.checked_mul(group.replicas())).ok_or_else(too_many)?
            }
            RowCounts::Discover { .. } => return Ok(0),
        };
        let best = |k, sum| Ask::Partials(PartialSpec { k, sum, targets: 0 });
        let (rows, ask) = match *request {
            Request::Logits { dtype } => (rows, Ask::Logits { dtype }),
            Request::Argmax => (rows, best(1, false)),
            Request::TopK { k } => (rows, best(k, true)),
            Request::Logprobs { targets, top_n, .. } => {
                let (size, hidden) = (group.size(), self.hidden_dtype);
                let chunk = self.config.logprobs_chunk_rows(size, hidden, targets, top_n)?;
                let spec = PartialSpec { k: top_n.max(1), sum: true, targets };
                let counts = self.loaded.as_ref().is_some_and(|loaded| loaded.counts_targets());
                (rows.min(chunk), if counts { Ask::Partials(spec) } else { Ask::Hold { raw: false } })
            }
            Request::Sample { logprobs } => {
                let adjusted = options.adjusted || !options.device_adjustments.is_empty();
                let raw = adjusted && logprobs.is_some_and(|told| !told.processed);
                (rows, Ask::Hold { raw })
            }
        };
        self.loaded.as_ref().map_or(Ok(0), |loaded| loaded.workspace(rows, ask))
    }

    fn pipeline(
        &mut self,
        hidden: HiddenRows<'_>,
        inputs: &RowInputs<'_>,
        answer: AnswerBuffers<'_>,
        on: On<'_>,
    ) -> Result<()> {
        self.maker.check("the head")?;
        self.check_rows(&hidden)?;
        inputs.check(&self.wire.open.request, hidden.len(), self.config.vocab_size)?;
        self.check_adjustments(inputs)?;
        self.check_device_inputs(inputs)?;
        self.check_on(&on)?;
        let (request, answered) = (self.wire.open.request, self.answered_rows(hidden.len()));
        let memory = if self.wire.open.header.on_device { self.backend.memory() } else { Memory::Host };
        let (rows, vocab_size) = (answered.len(), self.config.vocab_size);
        let indices = hidden.selection().map_or(Span::EMPTY, |selection| selection.data());
        let workspace = on.workspace.as_ref().map_or(Span::EMPTY, |workspace| workspace.as_span());
        let others = [hidden.source().0, indices, workspace];
        let answer = answer.checked(&request, rows, vocab_size, memory, others, &inputs.on_device)?;
        if self.wire.shares_inputs() {
            self.wire.open.header.inputs = inputs::digest(&hidden, inputs);
        }
        // Inputs in host memory must be waited for: they go by way of memory that is used again.
        let here = inputs.targets.is_none() && inputs.sampling.is_none() && inputs.adjustments.is_none();
        let capturing = self.is_capturing(&on)?;
        if !capturing
            && self.unwaited.is_some_and(|(stream, _)| memory == Memory::Host || stream != on.stream)
        {
            let call = self.wire.open.call;
            self.await_unwaited(&call)?;
        }
        let (is_shared, warming_up) = (self.wire.group.size() > 1, self.warming_up);
        let open = &mut self.wire.open;
        let unwaited = capturing || open.asynchronous;
        // A graph has a static shape, whatever rows a replay has; a warm-up makes room for it.
        open.padded =
            is_shared && open.queued && open.header.mode == Mode::Capacity && (unwaited || warming_up);
        // Otherwise a step of several ranks is waited for, so that the host can report a fault by its name.
        open.queued &= (unwaited || !is_shared) && (here || hidden.is_empty());
        if capturing {
            self.check_capture(&on)?;
        } else if open.asynchronous && !open.queued {
            let wanted = "targets, sampling parameters and adjustments in device memory";
            let fix = "put them there, or leave out StepOptions::asynchronous";
            return Err(Error::request("an asynchronous step", wanted, "some in host memory", fix));
        }
        if memory == Memory::Host {
            // It takes the place of the memory that steps on the device have had.
            self.known.clear();
        }
        let kind = self.kind(&hidden, inputs, on.workspace.is_some());
        self.wire.open.deferred = self.knows(kind);
        let unwaited = is_shared && self.wire.open.asynchronous;
        let LmHead { config, wire, backend, loaded, info, scratch, answer: arena, queued, .. } = self;
        scratch.capture(capturing);
        if let Some(loaded) = loaded {
            loaded.capture(capturing);
            loaded.defer(wire.open.deferred || unwaited);
        }
        // Alone, only the rows that are answered are computed.
        let own = if wire.is_alone() { answered } else { 0..hidden.len() };
        if wire.is_alone() {
            wire.open.counts[0] = own.len();
        }
        let inputs = inputs.rows(own.clone(), hidden.len());
        let loaded = loaded.as_deref_mut().expect("a head that was made is loaded");
        let mut compute = Compute { loaded, stream: on.stream, workspace: on.workspace };
        let (backend, stream, shard_bytes, first_row) = (&**backend, on.stream, info.bytes, own.start);
        let mut run = Run { config, wire, backend, memory, stream, shard_bytes, first_row };
        let hidden = hidden.range(own);
        if run.wire.open.queued {
            // What fails in the middle ends what is queued already.
            run.wire.open.stream = unwaited.then_some(stream);
            run.watched(|run| run.request(&mut compute, hidden, &inputs, answer, scratch))?;
            if !capturing {
                compute.loaded.remember_queued(&On { stream, workspace: None })?;
            }
            run.wire.open.stream = None;
            if let Some(steps) = compute.loaded.capacity_steps() {
                // A loaded shard always returns the same ones: the first set stays.
                let _ = queued.steps.set(steps);
            }
            return if unwaited { self.remember_unwaited(stream) } else { Ok(()) };
        }
        if memory != Memory::Host || matches!(request, Request::Logits { .. }) {
            run.wire.open.stream = (is_shared && memory != Memory::Host).then_some(stream);
            run.request(&mut compute, hidden, &inputs, answer, scratch)?;
            run.wire.wait_deferred()?;
            run.wire.open.stream = None;
            return kind.map_or(Ok(()), |kind| self.remember(kind, stream));
        }
        // The caller's memory is written once nothing can fail any more. Whole logits are too large for a
        // copy: they went through the branch above, which puts them in their places last.
        let bytes = AnswerBuffers::bytes(&request, rows, vocab_size)?;
        let mut place = arena.at_least(backend, memory, bytes, "answer")?;
        let own = AnswerBuffers::carve(place.reborrow(), &request, rows, vocab_size);
        run.request(&mut compute, hidden, &inputs, own, scratch)?;
        answer.copy_from(AnswerBuffers::carve(place, &request, rows, vocab_size));
        Ok(())
    }

    /// Checks that a step on a device has a stream, and that the workspace lies where kernels use it.
    fn check_on(&self, on: &On<'_>) -> Result<()> {
        if self.wire.open.header.on_device && on.stream.is_none() && self.wire.group.size() > 1 {
            let (wanted, fix) = ("the stream that the rows are made on", "pass it in On::stream");
            return Err(Error::request("a step on a device", wanted, "no stream", fix));
        }
        let Some(workspace) = &on.workspace else { return Ok(()) };
        workspace.check_memory("workspace", self.backend.memory())?;
        workspace.check_aligned("workspace", 256)
    }

    /// The rows must be those that the step's beginning announced.
    fn check_rows(&self, hidden: &HiddenRows<'_>) -> Result<()> {
        let header = &self.wire.open.header;
        if hidden.hidden() != self.config.hidden_size {
            let (wanted, fix) = (
                format!("hidden size {}", self.config.hidden_size),
                "pass hidden states of this head's model",
            );
            return Err(Error::shape("hidden_states", wanted, hidden.hidden(), fix));
        }
        if hidden.dtype() != self.hidden_dtype {
            let fix = match self.info.dtype.is_float() {
                false => "set hidden_dtype in the configuration, or convert them",
                true => "hidden states have the type of the weights: convert them",
            };
            return Err(Error::dtype("hidden_states", self.hidden_dtype, hidden.dtype(), fix));
        }
        if hidden.len() as u64 != header.rows {
            let wanted = format!("{} rows, as announced in step()", header.rows);
            let (got, fix) = (format!("{} rows", hidden.len()), "announce the rows that you bring");
            return Err(Error::shape("hidden_states", wanted, got, fix));
        }
        let memory = if header.on_device { self.backend.memory() } else { Memory::Host };
        let (data, selection) = (hidden.source().0, hidden.selection().map(|selection| selection.data()));
        data.check_memory("hidden_states", memory)?;
        selection.map_or(Ok(()), |indices| indices.check_memory("logits_indices", memory))
    }

    /// Begins a step, whose rows and answers are in host memory. Collective; see [`LmHead::begin`]. The step
    /// must be run; there is no other way to use it.
    ///
    /// # Errors
    /// As [`LmHead::begin`].
    pub fn step(&mut self, counts: RowCounts, request: &Request) -> Result<Step<'_>> {
        let ticket = self.begin(&counts, request, StepOptions::default())?;
        Ok(Step { head: self, ticket: Some(ticket) })
    }

    /// [`LmHead::step`] for rows of which some have [`Adjustments`](crate::adjust::Adjustments), which
    /// [`Step::run_with`] takes; see [`StepOptions::adjusted`].
    ///
    /// # Errors
    /// As [`LmHead::begin`].
    pub fn step_adjusted(&mut self, counts: RowCounts, request: &Request) -> Result<Step<'_>> {
        let options = StepOptions { adjusted: true, ..StepOptions::default() };
        let ticket = self.begin(&counts, request, options)?;
        Ok(Step { head: self, ticket: Some(ticket) })
    }
}

/// A step that has begun. It must be run; dropped instead, it tells the other ranks and poisons the head.
#[must_use = "a step that is not run breaks the contract with the other ranks: call run()"]
pub struct Step<'h> {
    head: &'h mut LmHead,
    /// `None` once the step is run.
    ticket: Option<Ticket>,
}

impl Step<'_> {
    /// Rows of every replica of the group, in order; `None` in capacity mode before the step has run.
    pub fn counts(&self) -> Option<&[usize]> {
        self.head.counts()
    }

    /// Runs the step on this rank's hidden rows: [`LmHead::run_into`], with an answer of its own.
    ///
    /// # Errors
    /// As [`LmHead::run_into`].
    pub fn run(self, hidden: HiddenRows<'_>) -> Result<Answer> {
        self.run_with(hidden, &RowInputs::default())
    }

    /// [`Step::run`] with the other inputs of the rows.
    ///
    /// # Errors
    /// As [`LmHead::run_into`]; `Shape` where the machine has no memory for the answer.
    pub fn run_with(mut self, hidden: HiddenRows<'_>, inputs: &RowInputs<'_>) -> Result<Answer> {
        let (request, vocab_size) = (self.head.wire.open.request, self.head.config.vocab_size);
        let rows = self.head.answered_rows(self.head.wire.open.header.rows as usize).len();
        let call = self.head.wire.open.call(Operation::Idle);
        let mut owned = match OwnedAnswer::new(&request, rows, vocab_size) {
            Ok(owned) => owned,
            Err(error) => {
                (self.ticket, self.head.begun) = (None, None);
                return Err(self.head.failed(&call, error));
            }
        };
        let Some(ticket) = self.ticket.take() else { unreachable!("it goes with the step") };
        let stats = self.head.run_into(ticket, hidden, inputs, owned.buffers(), On::default())?;
        Ok(owned.into_answer(stats))
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if self.ticket.is_some() {
            self.head.leave_step();
        }
    }
}

impl LmHead {
    /// Gives up the step that has begun, where there is one.
    pub(super) fn leave_step(&mut self) {
        if self.begun.take().is_none() {
            return;
        }
        let reason = if std::thread::panicking() {
            "its thread panicked in the step"
        } else {
            "dropped the step without running it"
        };
        let call = self.wire.open.call(Operation::Idle);
        self.give_up(&call, reason);
    }
}

impl Drop for LmHead {
    /// Gives up a step that has begun and is not run, and tells its peers. Waits for queued work, which uses
    /// memory that is freed now.
    fn drop(&mut self) {
        self.leave_step();
        self.leave_unwaited();
        if let (Some(loaded), Ok(())) = (&mut self.loaded, self.maker.check("the head")) {
            // There is nobody to report an error to.
            let _ = loaded.wait_queued();
        }
    }
}
