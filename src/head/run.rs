//! What a step runs on, and the requests `Logits`, `Argmax` and `TopK`. It reads top to bottom like the line
//! `hidden rows -> gather -> matmul -> epilogue -> exchange -> result`.

use super::buffers::{Arena, bytes_of, put_before_each, starts_of, sum};
use super::wire::{Via, Who, Wire};
use super::{adjusting, logprobs, placed, sampling};
use crate::backend::cuts::Cuts;
use crate::backend::{Backend, HeldLogits, Inputs, Job, LoadedShard, LogitsOut, On, Out, Status};
use crate::config::HeadConfig;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::exchange::Operation;
use crate::finish::{self, Finish, Messages, columns};
use crate::memory::{Memory, Span, SpanMut, Stream};
use crate::merge::PartialSpec;
use crate::result::{AnswerBuffers, Request, RowInputs};
use crate::rows::HiddenRows;
use crate::step::HEADER_BYTES;
use std::ops::Range;
use std::time::Instant;

/// Memory that lives from step to step.
#[derive(Default)]
pub(super) struct StepScratch {
    /// Own rows that had to be brought together for sending; in capacity mode with header and padding.
    pub own_rows: Arena,
    /// Status words of these rows.
    pub own_status: Arena,
    /// Rows of the group `[rows, hidden]`; in capacity mode before that the padded payloads.
    pub gathered: Arena,
    /// For a capacity step on a device: headers and positions of rows.
    pub contract: Arena,
    /// Results by destination (`send`) and by source (`recv`).
    pub send: Arena,
    pub recv: Arena,
    /// Status words of logits that are written straight into the answer.
    pub words: Arena,
    pub lists: Lists,
    pub small: Small,
    pub adjusting: adjusting::AdjustmentBuffers,
    /// Status words for what is wrong with this rank's rows' inputs in device memory.
    pub input_status: Arena,
    pub placed: placed::PlacedBuffers,
    pub logprobs: logprobs::LogprobsBuffers,
    pub sampling: sampling::SamplingBuffers,
    pub finish: finish::FinishScratch,
}

impl StepScratch {
    /// Tells all buffers whether the next steps are captured in a CUDA graph.
    pub fn capture(&mut self, capturing: bool) {
        let StepScratch { own_rows, own_status, gathered, contract, send, recv, words, input_status, .. } =
            self;
        let own = [own_rows, own_status, gathered, contract, send, recv, words, input_status];
        let of_inputs = self.placed.arenas().into_iter().chain(self.logprobs.target_buffers.placed.arenas());
        for arena in own.into_iter().chain(of_inputs).chain(self.sampling.arenas()) {
            arena.capturing = capturing;
        }
    }
}

/// Sizes and places of messages.
#[derive(Default)]
pub(super) struct Lists {
    /// Rows of each replica that are computed.
    pub parts: Vec<Range<usize>>,
    pub sizes: Vec<usize>,
    pub outgoing: Vec<Range<usize>>,
    pub starts: Vec<usize>,
}

/// Small messages, always in host memory.
#[derive(Default)]
pub(super) struct Small {
    pub send: Vec<u8>,
    pub recv: Vec<u8>,
}

/// What a step computes with.
pub(super) struct Compute<'s> {
    pub loaded: &'s mut dyn LoadedShard,
    pub stream: Stream,
    pub workspace: Option<SpanMut<'s>>,
}

impl Compute<'_> {
    pub fn on(&mut self) -> (&mut dyn LoadedShard, On<'_>) {
        let workspace = self.workspace.as_mut().map(SpanMut::reborrow);
        (&mut *self.loaded, On { stream: self.stream, workspace })
    }

    pub fn run(&mut self, job: &Job<'_>, out: Out<'_>) -> Result<()> {
        let (loaded, mut on) = self.on();
        loaded.run(job, out, &mut on)
    }

    pub fn hold(&mut self, job: &Job<'_>, raw: bool) -> Result<()> {
        let workspace = self.workspace.as_mut().map(SpanMut::reborrow);
        self.loaded.hold(job, raw, &mut On { stream: self.stream, workspace }).map(|_| ())
    }

    fn held(&mut self) -> Result<&mut dyn HeldLogits> {
        // SAFETY: this has borrowed the workspace for as long as it lives.
        unsafe { self.loaded.held() }.ok_or_else(|| Error::Device {
            what: "held logits".into(),
            problem: "there are none".into(),
            fix: "report it: a pass comes after its product".into(),
        })
    }

    pub fn pass(&mut self, pass: crate::backend::Pass<'_>) -> Result<()> {
        self.held()?.pass(pass)
    }

    pub fn cut(&mut self, pass: Cuts<'_>) -> Result<()> {
        self.held()?.cut(pass)
    }

    pub fn inputs(&mut self, what: Inputs<'_>) -> Result<()> {
        let (loaded, mut on) = self.on();
        loaded.inputs(what, &mut on)
    }

    pub fn finish(&mut self, what: Finish<'_>, scratch: &mut finish::FinishScratch) -> Result<()> {
        let (loaded, mut on) = self.on();
        loaded.finish(what, scratch, &mut on)
    }
}

/// One step while it runs.
pub(super) struct Run<'s> {
    pub config: &'s HeadConfig,
    pub wire: &'s mut Wire,
    pub backend: &'s dyn Backend,
    /// Where rows and answers are.
    pub memory: Memory,
    pub stream: Stream,
    /// Bytes of this rank's weights.
    pub shard_bytes: u64,
    /// The first of this rank's rows that this run computes, as the caller numbers them.
    pub first_row: usize,
}

impl Run<'_> {
    /// Runs a whole request.
    pub fn request(
        &mut self,
        compute: &mut Compute<'_>,
        hidden: HiddenRows<'_>,
        inputs: &RowInputs<'_>,
        mut answer: AnswerBuffers<'_>,
        scratch: &mut StepScratch,
    ) -> Result<()> {
        match self.wire.open.request {
            Request::Logprobs { targets, top_n, .. } => {
                return self.logprobs(compute, hidden, inputs, (targets, top_n), answer, scratch);
            }
            Request::Sample { logprobs } => {
                return self.sampled(compute, hidden, inputs, logprobs, answer, scratch);
            }
            _ => {}
        }
        let StepScratch {
            own_rows,
            own_status,
            input_status,
            gathered,
            contract,
            send,
            recv,
            words,
            lists,
            small,
            adjusting,
            placed,
            ..
        } = scratch;
        let mut status = self.begin_status(compute, inputs, hidden.len(), input_status)?;
        let (rows, own) = match self.wire.open.padded {
            true => {
                let arenas = (own_rows, own_status, gathered, contract);
                self.gather_padded(compute, (hidden, &inputs.on_device, Span::EMPTY), arenas, lists)?
            }
            false => self.gather(compute, hidden, (own_rows, own_status, gathered), lists)?,
        };
        self.count_product(rows.len());
        let adjustments = self.gather_adjustments(inputs.adjustments.as_ref(), lists, small, adjusting)?;
        let placed = self.place_adjustments(compute, &inputs.on_device, status.reborrow(), lists, placed)?;
        let own = self.with_status(compute, own, status)?;
        let own = self.of_answered(own);
        let job = Job { rows, epilogue: self.config.epilogue(), adjustments, placed };
        let spec = match self.wire.open.request {
            Request::Logits { dtype } => {
                let buffers = (send, recv, words);
                return self.logits(compute, &job, own, dtype, buffers, lists, answer, &mut scratch.finish);
            }
            Request::TopK { k } => PartialSpec { k, sum: true, targets: 0 },
            _ => PartialSpec { k: 1, sum: false, targets: 0 },
        };
        let (from, rows) = self.best(compute, &job, spec, (send, recv), lists)?;
        let (starts, shards, answered) = (&lists.starts[..], self.wire.shards(), self.answered_of(rows));
        let from = Messages { bytes: from, starts, shards, rows, answered, own };
        let began = Instant::now();
        let row_status = answer.row_status.reborrow();
        let ids = answer.ids.reborrow();
        let finish = match self.wire.open.request {
            Request::TopK { k } => {
                let (values, logsumexp) = (answer.values.reborrow(), answer.logsumexp.reborrow());
                Finish::TopK { from, k, ids, values, logsumexp, row_status }
            }
            _ => Finish::Argmax { from, ids, row_status },
        };
        compute.finish(finish, &mut scratch.finish)?;
        self.wire.open.stats.exchange += began.elapsed();
        Ok(())
    }

    /// hidden rows -> gather: the rows of all replicas, in group order, and the status words of this rank's
    /// rows.
    pub fn gather<'b>(
        &mut self,
        compute: &mut Compute<'_>,
        hidden: HiddenRows<'b>,
        (own_rows, own_status, gathered): (&'b mut Arena, &'b mut Arena, &'b mut Arena),
        lists: &mut Lists,
    ) -> Result<(HiddenRows<'b>, Span<'b>)> {
        if !self.wire.open.counts.is_empty() {
            lists.parts.clear();
            lists.parts.extend(self.wire.open.counts.iter().map(|&rows| 0..rows));
            return self.gather_parts(compute, hidden, (own_rows, own_status, gathered), lists);
        }
        // Capacity: [header, capacity rows] from each; the headers are the contract.
        let began = Instant::now();
        let (bytes, what) = (hidden.row_bytes(), "gathered rows");
        let capacity = self.wire.open.capacity;
        let payload = sum(&[HEADER_BYTES, bytes_of(what, [capacity, bytes])?], what)?;
        let mut send = own_rows.at_least(self.backend, Memory::Host, payload, what)?;
        if let Some(send) = send.reborrow().into_host() {
            send[..HEADER_BYTES].copy_from_slice(&self.wire.open.header.encode());
            let (own, padding) = send[HEADER_BYTES..].split_at_mut(hidden.len() * bytes);
            hidden.copy_into(own);
            padding.fill(0);
        }
        let replicas = self.wire.group.replicas();
        let all = bytes_of(what, [payload, replicas])?;
        let mut recv = gathered.at_least(self.backend, Memory::Host, all, what)?;
        lists.sizes.clear();
        lists.sizes.resize(replicas, payload);
        let gather = (Operation::GatherRows, Who::Replicas);
        let places = (recv.reborrow(), &lists.sizes[..]);
        self.wire.all_gather(gather, send.as_span(), places, true, Via::Rows(self.stream))?;
        self.wire.learn_counts(Who::Replicas);
        let counts = &self.wire.open.counts;
        lists.parts.clear();
        lists.parts.extend(counts.iter().map(|&rows| 0..rows));
        if let Some(replica) = counts.iter().position(|&rows| rows > capacity) {
            return Err(Error::shape(
                format!("rows of replica {replica}"),
                format!("at most the capacity, {capacity}"),
                counts[replica],
                "use a larger capacity on every rank",
            ));
        }
        // Close the gaps that headers and padding leave.
        let mut end = 0;
        if let Some(gathered) = recv.reborrow().into_host() {
            for (i, rows) in counts.iter().enumerate() {
                let start = i * payload + HEADER_BYTES;
                gathered.copy_within(start..start + rows * bytes, end);
                end += rows * bytes;
            }
        }
        self.wire.open.stats.gather += began.elapsed();
        let rows = recv.into_span().part(0..end);
        let total = self.wire.open.counts.iter().sum();
        Ok((HiddenRows::strided(rows, hidden.dtype(), total, hidden.hidden(), bytes)?, Span::EMPTY))
    }

    /// Gathers the rows `lists.parts[replica]` of every replica, in group order; `hidden` are this rank's.
    pub fn gather_parts<'b>(
        &mut self,
        compute: &mut Compute<'_>,
        hidden: HiddenRows<'b>,
        (own_rows, own_status, gathered): (&'b mut Arena, &'b mut Arena, &'b mut Arena),
        lists: &mut Lists,
    ) -> Result<(HiddenRows<'b>, Span<'b>)> {
        let one = self.wire.group.replicas() == 1;
        // A matmul itself marks bad indices in device memory; the candidates of held logits do not.
        let sampled = matches!(self.wire.open.request, Request::Sample { .. });
        if one && !(sampled && self.memory != Memory::Host && hidden.selection().is_some()) {
            return Ok((hidden, Span::EMPTY));
        }
        let began = Instant::now();
        let (bytes, what) = (hidden.row_bytes(), "gathered rows");
        let (dtype, columns) = (hidden.dtype(), hidden.hidden());
        let mut own = Span::EMPTY;
        let send = match hidden.contiguous() {
            Some(rows) => rows,
            None => {
                let size = bytes_of(what, [hidden.len(), bytes])?;
                let mut packed = own_rows.at_least(self.backend, self.memory, size, what)?;
                let words = if self.memory == Memory::Host { 0 } else { 4 * hidden.len() };
                let mut status = own_status.at_least(self.backend, self.memory, words, what)?;
                let (loaded, mut on) = compute.on();
                loaded.pack(&hidden, packed.reborrow(), status.reborrow(), &mut on)?;
                own = status.into_span();
                packed.into_span()
            }
        };
        if one {
            return Ok((HiddenRows::strided(send, dtype, hidden.len(), columns, bytes)?, own));
        }
        lists.sizes.clear();
        for part in &lists.parts {
            lists.sizes.push(bytes_of(what, [part.len(), bytes])?);
        }
        let total = sum(&lists.sizes, what)?;
        let mut recv = gathered.at_least(self.backend, self.memory, total, what)?;
        let gather = (Operation::GatherRows, Who::Replicas);
        let places = (recv.reborrow(), &lists.sizes[..]);
        self.wire.all_gather(gather, send, places, false, Via::Rows(self.stream))?;
        self.wire.open.stats.gather += began.elapsed();
        let rows = lists.parts.iter().map(ExactSizeIterator::len).sum();
        Ok((HiddenRows::strided(recv.into_span(), dtype, rows, columns, bytes)?, own))
    }

    /// Counts a matmul of `rows` rows.
    pub fn count_product(&mut self, rows: usize) {
        let stats = &mut self.wire.open.stats;
        stats.rows_computed += rows as u64;
        if rows > 0 {
            stats.weight_bytes += self.shard_bytes;
        }
    }

    /// The rows, among all of the group, that `member` is answered.
    pub fn answered(&self, member: usize) -> Range<usize> {
        self.wire.answered(member, self.config.split_rows_over_tp)
    }

    /// How many of `rows` rows that come back are the caller's own: in a padded step fewer.
    pub fn answered_of(&self, rows: usize) -> usize {
        if !self.wire.open.padded {
            return rows;
        }
        let (own, group) = (self.wire.open.header.rows as usize, &self.wire.group);
        group.answered_rows(own, group.me(), self.config.split_rows_over_tp).len()
    }

    /// The status words of the answered rows. `own`: those of all rows of this rank's replica.
    pub fn of_answered<'b>(&self, own: Span<'b>) -> Span<'b> {
        let group = &self.wire.group;
        // In a group of one rank only the answered rows are computed.
        let split = self.config.split_rows_over_tp && !self.wire.is_alone();
        let part = group.answered_rows(own.len() / 4, group.me(), split);
        own.part(4 * part.start..4 * part.end)
    }

    /// matmul -> epilogue -> exchange of whole logits -> result.
    #[allow(clippy::too_many_arguments, reason = "what the step before has made, and where all of it goes")]
    fn logits(
        &mut self,
        compute: &mut Compute<'_>,
        job: &Job<'_>,
        own: Span<'_>,
        dtype: DType,
        (send, recv, words): (&mut Arena, &mut Arena, &mut Arena),
        lists: &mut Lists,
        mut answer: AnswerBuffers<'_>,
        scratch: &mut finish::FinishScratch,
    ) -> Result<()> {
        let (began, rows) = (Instant::now(), job.rows.len());
        let (stride, row_status) = (answer.logits_stride, answer.row_status.reborrow());
        if self.wire.is_alone() {
            // One rank has all columns: logits are written straight into the answer.
            let mut words = words.at_least(self.backend, self.memory, 4 * rows, "row status")?;
            let (data, status) =
                (answer.logits.reborrow(), Status::Apart { words: words.reborrow(), stride: 4 });
            compute.run(job, Out::Logits(LogitsOut { data, stride, dtype, status }))?;
            if !own.is_empty() {
                compute.inputs(Inputs::Status { from: own, into: words.reborrow() })?;
            }
            compute.finish(Finish::Status { words: words.into_span(), row_status }, scratch)?;
            self.wire.open.stats.matmul += began.elapsed();
            return Ok(());
        }
        let ids = self.wire.shards()[self.wire.group.me()].len();
        let row_stride = columns::row_stride(ids, dtype);
        let size = self.with_headers(bytes_of("logits of the shard", [rows, row_stride])?);
        let mut send = send.at_least(self.backend, self.memory, size, "logits of the shard")?;
        let status = Status::Inside { at: columns::status_at(ids, dtype) };
        let data = send.reborrow().part(0..rows * row_stride);
        compute.run(job, Out::Logits(LogitsOut { data, stride: row_stride, dtype, status }))?;
        self.wire.open.stats.matmul += began.elapsed();

        let began = Instant::now();
        let stride_of = |ids: usize| columns::row_stride(ids, dtype);
        let (bytes, rows) = self.results(send, &stride_of, recv, lists)?;
        let (starts, shards, answered) = (&lists.starts[..], self.wire.shards(), self.answered_of(rows));
        let from = Messages { bytes, starts, shards, rows, answered, own };
        let logits = answer.logits.reborrow();
        compute.finish(Finish::Logits { from, dtype, logits, stride, row_status }, scratch)?;
        self.wire.open.stats.exchange += began.elapsed();
        Ok(())
    }

    /// matmul -> epilogue -> exchange of candidates. Returns the messages, and how many rows they have.
    fn best<'b>(
        &mut self,
        compute: &mut Compute<'_>,
        job: &Job<'_>,
        spec: PartialSpec,
        (send, recv): (&'b mut Arena, &'b mut Arena),
        lists: &mut Lists,
    ) -> Result<(Span<'b>, usize)> {
        let (began, rows) = (Instant::now(), job.rows.len());
        let stride = spec.stride(self.wire.shards()[self.wire.group.me()].len());
        let bytes = bytes_of("candidates", [rows, stride])?;
        let size = self.with_headers(bytes);
        let mut send = send.at_least(self.backend, self.memory, size, "candidates")?;
        compute.run(job, Out::Partials(spec, send.reborrow().part(0..bytes)))?;
        self.wire.open.stats.matmul += began.elapsed();
        let began = Instant::now();
        let results = self.results(send, &|ids| spec.stride(ids), recv, lists)?;
        self.wire.open.stats.exchange += began.elapsed();
        Ok(results)
    }

    /// Bytes of a buffer with room for a header before each message.
    pub fn with_headers(&self, bytes: usize) -> usize {
        let shares = self.wire.shares_inputs() && !self.wire.open.compared;
        bytes + if shares { self.wire.group.size() * HEADER_BYTES } else { 0 }
    }

    /// The all_to_all of results: sends each member its rows of `send`, `stride(own ids)` bytes each. Returns
    /// the members' messages, which begin at `lists.starts`, and how many rows they have.
    pub fn results<'b>(
        &mut self,
        send: SpanMut<'b>,
        stride: &dyn Fn(usize) -> usize,
        recv: &'b mut Arena,
        lists: &mut Lists,
    ) -> Result<(Span<'b>, usize)> {
        let split = self.config.split_rows_over_tp;
        lists.outgoing.clear();
        lists.outgoing.extend((0..self.wire.group.size()).map(|member| self.wire.answered(member, split)));
        let mine = lists.outgoing[self.wire.group.me()].len();
        self.exchange_results(send, stride, mine, recv, lists).map(|bytes| (bytes, mine))
    }

    /// [`Run::results`] with the rows `lists.outgoing[member]` for each member; the caller is answered `mine`
    /// rows.
    pub fn exchange_results<'b>(
        &mut self,
        mut send: SpanMut<'b>,
        stride: &dyn Fn(usize) -> usize,
        mine: usize,
        recv: &'b mut Arena,
        lists: &mut Lists,
    ) -> Result<Span<'b>> {
        let (size, me) = (self.wire.group.size(), self.wire.group.me());
        let own = stride(self.wire.shards()[me].len());
        lists.outgoing.iter_mut().for_each(|rows| *rows = rows.start * own..rows.end * own);
        let headers = self.wire.compares_now();
        let extra = if headers { HEADER_BYTES } else { 0 };
        if headers && let Some(send) = send.reborrow().into_host() {
            put_before_each(send, &mut lists.outgoing, &self.wire.open.header.encode());
        }
        lists.sizes.clear();
        for member in 0..size {
            let ids = self.wire.shards()[member].len();
            lists.sizes.push(sum(&[bytes_of("results", [mine, stride(ids)])?, extra], "results")?);
        }
        let bytes = self.deliver(send, recv, lists, headers)?;
        lists.starts.iter_mut().for_each(|start| *start += extra);
        Ok(bytes)
    }

    /// Sends member m the bytes `lists.outgoing[m]` of `send`. Returns the members' messages, of
    /// `lists.sizes` bytes, which begin at `lists.starts`. In a group of one rank that is what was sent.
    pub fn deliver<'b>(
        &mut self,
        send: SpanMut<'b>,
        recv: &'b mut Arena,
        lists: &mut Lists,
        headers: bool,
    ) -> Result<Span<'b>> {
        starts_of(lists.sizes.iter().copied(), &mut lists.starts);
        if self.wire.is_alone() {
            return Ok(send.into_span().part(lists.outgoing[0].clone()));
        }
        let total = sum(&lists.sizes, "results")?;
        let mut recv = recv.at_least(self.backend, self.memory, total, "results of the other shards")?;
        let outgoing = (send.as_span(), &lists.outgoing[..]);
        let places = (recv.reborrow(), &lists.sizes[..]);
        let via = Via::Rows(self.stream);
        self.wire.all_to_all(Operation::ExchangeResults, outgoing, places, headers, via)?;
        Ok(recv.into_span())
    }
}
