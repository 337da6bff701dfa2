//! [`Step::run`]: the pipeline. It reads top to bottom like the line
//! `hidden rows -> gather -> matmul -> epilogue -> exchange -> result`.

use super::buffers::{cut, cut_shared, put_before_each, resize, sum};
use super::recorder::Outcome;
use super::{LmHead, Scratch, inputs};
use crate::adjust::ShardAdjustments;
use crate::backend::{Job, LogitsOut};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::exchange::Operation;
use crate::exchange::columns::{self, Seen};
use crate::merge::{PartialSpec, RowPartial};
use crate::result::{Answer, Output, Request, RowInputs, RowStatus, StepStats};
use crate::rows::{HiddenRows, RowCounts};
use crate::step::{HEADER_BYTES, Mode, Ticket};
use std::ops::Range;
use std::time::Instant;

/// A step that has begun. It must be run; dropped instead, it tells the other ranks and poisons the head.
#[must_use = "a step that is not run breaks the contract with the other ranks: call run()"]
pub struct Step<'h> {
    pub(super) head: &'h mut LmHead,
    pub(super) ticket: Ticket,
    /// Rows by replica, once they are known.
    pub(super) counts: Option<Vec<usize>>,
    /// Whether any rank has adjustments.
    pub(super) adjusted: bool,
    /// The tensor-parallel ranks of each replica have compared their inputs.
    pub(super) compared: bool,
    pub(super) stats: StepStats,
    pub(super) done: bool,
}

impl Step<'_> {
    /// Rows of every replica of the group, in order; `None` in capacity mode before the step has run.
    pub fn counts(&self) -> Option<&[usize]> {
        self.counts.as_deref()
    }

    /// Runs the step on this rank's hidden rows. Collective; returns by the deadline that its beginning set.
    /// With tensor parallelism every rank of a replica passes the same rows (a verified step compares their
    /// digests), and is answered all of them, or with `split_rows_over_tp` its part.
    ///
    /// # Errors
    /// `Shape` or `Dtype` where the rows are not those announced; `StepMismatch`, `Timeout`, `RankLost` where a peer is
    /// at fault. The head is poisoned then.
    pub fn run(self, hidden: HiddenRows<'_>) -> Result<Answer> {
        self.run_with(hidden, &RowInputs::default())
    }

    /// [`Step::run`] with what else belongs to the rows. The tensor-parallel ranks of a replica pass the same inputs, as they pass
    /// the same rows; a verified step compares their digests.
    ///
    /// # Errors
    /// As [`Step::run`], and `Shape` or `Request` naming the row where the inputs do not fit the rows or the vocabulary.
    pub fn run_with(mut self, hidden: HiddenRows<'_>, inputs: &RowInputs<'_>) -> Result<Answer> {
        let mut scratch = std::mem::take(&mut self.head.scratch);
        let result = self.pipeline(hidden, inputs, &mut scratch);
        self.head.scratch = scratch;
        let outcome = if result.is_ok() { Outcome::Finished } else { Outcome::Failed };
        let group_rows = self.counts.as_ref().map(|counts| counts.iter().map(|n| *n as u64).sum());
        self.head.recorder.end(outcome, group_rows);
        let call = self.ticket.call(Operation::Idle);
        let result = result.map_err(|error| self.head.failed(&call, error));
        if result.is_ok() {
            self.head.exchange.note(&call);
        }
        // Not before: a panic in any of this is seen by `drop`.
        self.done = true;
        result
    }

    fn pipeline(
        &mut self,
        hidden: HiddenRows<'_>,
        inputs: &RowInputs<'_>,
        scratch: &mut Scratch,
    ) -> Result<Answer> {
        self.head.maker.check("the head")?;
        self.check_rows(&hidden)?;
        self.check_targets(inputs)?;
        self.check_sampling(inputs)?;
        self.check_adjustments(inputs)?;
        if self.shares_inputs() {
            self.ticket.header.inputs = inputs::digest(&hidden, inputs);
        }
        if let Request::Logprobs { top_n, .. } = self.ticket.request {
            return self.logprobs(hidden, inputs, top_n, scratch);
        }
        if self.ticket.request == Request::Sample {
            return self.sampled(hidden, inputs, scratch);
        }
        let Scratch { send_rows, gathered, send, recv, seen, partials, .. } = scratch;
        let (rows, counts) = self.gather(hidden, send_rows, gathered)?;
        let (rows, parts) = self.computed(rows, &counts);
        let adjustments = self.gather_adjustments(inputs.adjustments.as_ref(), &parts)?;
        let input = (rows, adjustments.as_ref());
        match self.ticket.request {
            Request::Logits { dtype } => self.logits(input, &counts, dtype, send, recv, seen),
            Request::Argmax => {
                self.best(input, &counts, PartialSpec { k: 1, sum: false }, send, recv, partials)
            }
            Request::TopK { k } => {
                self.best(input, &counts, PartialSpec { k, sum: true }, send, recv, partials)
            }
            Request::Logprobs { .. } | Request::Sample => unreachable!("answered above"),
        }
    }

    /// The tensor-parallel ranks of a replica compare their inputs in this step: where headers are exchanged
    /// at all.
    fn shares_inputs(&self) -> bool {
        let group = &self.head.group;
        group.size() > 1
            && group.tp() > 1
            && (self.ticket.verified || self.ticket.header.mode == Mode::Capacity)
    }

    /// Whether the next operation of all members carries headers: the first one in which the inputs are
    /// known. In capacity mode only ranks of one tensor-parallel index have seen each other's headers before.
    pub(super) fn compares_now(&mut self) -> bool {
        let now = self.shares_inputs() && !self.compared;
        self.compared |= now;
        now
    }

    /// The rows must be those that the ticket announced.
    fn check_rows(&self, hidden: &HiddenRows<'_>) -> Result<()> {
        let head = &self.head;
        if hidden.hidden() != head.config.hidden_size {
            let fix = "pass hidden states of this head's model";
            return Err(Error::shape(
                "hidden_states",
                format!("hidden size {}", head.config.hidden_size),
                hidden.hidden(),
                fix,
            ));
        }
        if hidden.dtype() != head.hidden_dtype {
            let fix = match head.shard.matrix().dtype() {
                DType::I8 => "set hidden_dtype in the configuration, or convert them",
                _ => "hidden states have the type of the weights: convert them",
            };
            return Err(Error::dtype("hidden_states", head.hidden_dtype, hidden.dtype(), fix));
        }
        if hidden.len() as u64 != self.ticket.header.rows {
            let wanted = format!("{} rows, as announced in step()", self.ticket.header.rows);
            return Err(Error::shape(
                "hidden_states",
                wanted,
                format!("{} rows", hidden.len()),
                "announce the rows that you bring",
            ));
        }
        Ok(())
    }

    /// hidden rows -> gather: the rows of all replicas, in group order, and how many each brought.
    pub(super) fn gather<'b>(
        &mut self,
        hidden: HiddenRows<'b>,
        send_rows: &'b mut Vec<u8>,
        gathered: &'b mut Vec<u8>,
    ) -> Result<(HiddenRows<'b>, Vec<usize>)> {
        let group = &self.head.group;
        if group.replicas() == 1 {
            return Ok((hidden, vec![hidden.len()]));
        }
        let began = Instant::now();
        let members = group.row_members();
        let (bytes, what, operation) = (hidden.row_bytes(), "gathered rows", Operation::GatherRows);
        let books = (&self.ticket, &mut self.stats);
        let counts = match &self.counts {
            Some(counts) => {
                let send = match hidden.contiguous() {
                    Some(bytes) => bytes,
                    None => {
                        resize(send_rows, [hidden.len(), bytes, 1], what)?;
                        hidden.copy_into(send_rows);
                        send_rows
                    }
                };
                let total = sum(counts, "row counts")?;
                resize(gathered, [total, bytes, 1], what)?;
                let mut slices = cut(gathered, counts.iter().map(|rows| rows * bytes));
                self.head.gather_pieces(books, operation, &members, send, &mut slices, false)?;
                counts.clone()
            }
            None => {
                // Capacity: [header, max rows] from each; the headers are the contract.
                let RowCounts::Capacity { max, .. } = self.ticket.counts else {
                    unreachable!("exact and discover counts are known by now")
                };
                let payload = HEADER_BYTES + resize(send_rows, [max, bytes, 1], what)?;
                resize(send_rows, [payload, 1, 1], what)?;
                send_rows[..HEADER_BYTES].copy_from_slice(&self.ticket.header.encode());
                let (own, padding) = send_rows[HEADER_BYTES..].split_at_mut(hidden.len() * bytes);
                hidden.copy_into(own);
                padding.fill(0);
                resize(gathered, [payload, members.len(), 1], what)?;
                let mut slices = cut(gathered, members.iter().map(|_| payload));
                let agreed =
                    self.head.gather_pieces(books, operation, &members, send_rows, &mut slices, true)?;
                let counts = agreed.expect("headers were asked for").rows;
                if let Some(replica) = counts.iter().position(|&rows| rows > max) {
                    return Err(Error::shape(
                        format!("rows of replica {replica}"),
                        format!("at most the capacity, {max}"),
                        counts[replica],
                        "use a larger capacity on every rank",
                    ));
                }
                // Close the gaps that headers and padding leave.
                let mut end = 0;
                for (i, rows) in counts.iter().enumerate() {
                    let start = i * payload + HEADER_BYTES;
                    gathered.copy_within(start..start + rows * bytes, end);
                    end += rows * bytes;
                }
                gathered.truncate(end);
                counts
            }
        };
        self.stats.gather = began.elapsed();
        self.counts = Some(counts.clone());
        let total = counts.iter().sum();
        Ok((HiddenRows::new(gathered, hidden.dtype(), total, hidden.hidden())?, counts))
    }

    /// The gathered rows that this rank computes, and which those are of each replica's: alone, only those that are answered.
    pub(super) fn computed<'b>(
        &mut self,
        rows: HiddenRows<'b>,
        counts: &[usize],
    ) -> (HiddenRows<'b>, Vec<Range<usize>>) {
        let mine = self.answered(counts, self.head.group.me());
        let alone = self.head.group.size() == 1;
        let rows = if alone { rows.range(mine.clone()) } else { rows };
        let parts = if alone { vec![mine] } else { counts.iter().map(|&rows| 0..rows).collect() };
        self.stats.rows_computed = rows.len() as u64;
        self.stats.weight_bytes = if rows.is_empty() { 0 } else { self.head.shard.bytes() };
        (rows, parts)
    }

    /// The rows, among all of the group, that `member` is answered.
    pub(super) fn answered(&self, counts: &[usize], member: usize) -> Range<usize> {
        let (group, split) = (&self.head.group, self.head.config.split_rows_over_tp);
        let replica = group.replica_of(member);
        let first: usize = counts[..replica].iter().sum();
        let part = group.answered_rows(counts[replica], member, split);
        first + part.start..first + part.end
    }

    /// matmul -> epilogue -> exchange of whole logits -> result.
    fn logits(
        &mut self,
        (rows, adjustments): (HiddenRows<'_>, Option<&ShardAdjustments>),
        counts: &[usize],
        dtype: DType,
        send: &mut Vec<u8>,
        recv: &mut Vec<u8>,
        seen: &mut Vec<Seen>,
    ) -> Result<Answer> {
        let head = &*self.head;
        let (vocab_size, own) = (head.config.vocab_size, head.shard.vocab());
        let job = Job { rows, shard: &head.shard, epilogue: head.config.epilogue(), adjustments };
        let alone = head.group.size() == 1;
        let (mut nonfinite, mut allowed) = (vec![false; rows.len()], vec![adjustments.is_none(); rows.len()]);
        let nonfinite = &mut nonfinite[..];
        let any_allowed = adjustments.is_some().then_some(&mut allowed[..]);

        let began = Instant::now();
        let mut logits = Vec::new();
        if alone {
            resize(&mut logits, [rows.len(), vocab_size, dtype.size()], "logits")?;
            let stride = vocab_size * dtype.size();
            head.backend
                .logits(&job, LogitsOut { bytes: &mut logits, stride, dtype, nonfinite, any_allowed })?;
        } else {
            let stride = columns::row_stride(own.len(), dtype);
            resize(send, [rows.len(), stride, 1], "logits of the shard")?;
            head.backend.logits(&job, LogitsOut { bytes: send, stride, dtype, nonfinite, any_allowed })?;
        }
        seen.clear();
        let each = nonfinite.iter().zip(&allowed);
        seen.extend(each.map(|(&nonfinite, &any_allowed)| Seen { nonfinite, any_allowed }));
        if !alone {
            for (row, &seen) in send.chunks_exact_mut(columns::row_stride(own.len(), dtype)).zip(seen.iter())
            {
                columns::set_status(row, own.len(), dtype, seen);
            }
        }
        self.stats.matmul = began.elapsed();

        if !alone {
            let began = Instant::now();
            let mine = self.answered(counts, self.head.group.me()).len();
            resize(&mut logits, [mine, vocab_size, dtype.size()], "logits")?;
            seen.clear();
            seen.resize(mine, Seen::default());
            let group = self.head.group.clone();
            let shard = |member| group.shard(vocab_size, member);
            let stride = |member| columns::row_stride(shard(member).len(), dtype);
            let messages = self.exchange_rows(counts, &stride, send, recv)?;
            for (member, message) in messages.iter().enumerate() {
                columns::place(message, shard(member), dtype, vocab_size, &mut logits, seen);
            }
            self.stats.exchange += began.elapsed();
        }
        let row_status = seen.iter().map(|seen| status(seen.nonfinite, !seen.any_allowed)).collect();
        let output = Output::Logits { dtype, vocab_size, bytes: logits };
        Ok(Answer { row_status, output, stats: self.stats })
    }

    /// matmul -> epilogue -> exchange of candidates -> merge -> result.
    fn best(
        &mut self,
        (rows, adjustments): (HiddenRows<'_>, Option<&ShardAdjustments>),
        counts: &[usize],
        spec: PartialSpec,
        send: &mut Vec<u8>,
        recv: &mut Vec<u8>,
        partials: &mut Vec<RowPartial>,
    ) -> Result<Answer> {
        let head = &*self.head;
        let job = Job { rows, shard: &head.shard, epilogue: head.config.epilogue(), adjustments };
        let began = Instant::now();
        partials.resize_with(rows.len(), || RowPartial::new(spec)); // overwritten by the backend
        head.backend.partials(&job, spec, partials)?;
        self.stats.matmul = began.elapsed();

        if head.group.size() > 1 {
            let began = Instant::now();
            let (shards, vocab_size) = (self.head.group.clone(), self.head.config.vocab_size);
            // A shard of fewer ids than k has no more candidates than ids.
            let stride_of = |member| encoded_stride(spec, shards.shard(vocab_size, member).len());
            let stride = stride_of(shards.me());
            resize(send, [rows.len(), stride, 1], "candidates")?;
            for (row, partial) in send.chunks_exact_mut(stride).zip(partials.iter()) {
                partial.encode(row);
            }
            let mine = self.answered(counts, self.head.group.me()).len();
            partials.resize_with(mine, || RowPartial::new(spec));
            partials.iter_mut().for_each(|p| p.reset(spec));
            for (member, message) in self.exchange_rows(counts, &stride_of, send, recv)?.iter().enumerate() {
                for (bytes, partial) in message.chunks_exact(stride_of(member)).zip(partials.iter_mut()) {
                    partial.merge_encoded(bytes)?;
                }
            }
            self.stats.exchange += began.elapsed();
        }
        let row_status = partials.iter().map(|p| status(p.nonfinite(), p.nothing_allowed())).collect();
        let output = match self.ticket.request {
            Request::TopK { k } => top_k(k, partials)?,
            _ => Output::Argmax { ids: partials.iter().map(best_id).collect() },
        };
        Ok(Answer { row_status, output, stats: self.stats })
    }

    /// The all_to_all: each member is sent its rows of `send` (`[rows of the group, stride(me)]`); returned are the members'
    /// messages `[own rows, stride(member)]`.
    fn exchange_rows<'b>(
        &mut self,
        counts: &[usize],
        stride: &dyn Fn(usize) -> usize,
        send: &mut Vec<u8>,
        recv: &'b mut Vec<u8>,
    ) -> Result<Vec<&'b [u8]>> {
        let (size, me) = (self.head.group.size(), self.head.group.me());
        let mine = self.answered(counts, me).len();
        let with_header = self.compares_now();
        let extra = if with_header { HEADER_BYTES } else { 0 };
        let mut outgoing: Vec<Range<usize>> = (0..size)
            .map(|member| self.answered(counts, member))
            .map(|rows| rows.start * stride(me)..rows.end * stride(me))
            .collect();
        if with_header {
            put_before_each(send, &mut outgoing, &self.ticket.header.encode())?;
        }
        let messages: Vec<&[u8]> = outgoing.into_iter().map(|bytes| &send[bytes]).collect();
        let sizes: Vec<usize> = (0..size).map(|member| mine * stride(member) + extra).collect();
        resize(recv, [sum(&sizes, "results")?, 1, 1], "results of the other shards")?;
        let mut slices = cut(recv, sizes.iter().copied());
        let books = (&self.ticket, &mut self.stats);
        let operation = Operation::ExchangeResults;
        self.head.exchange_pieces(books, operation, &messages, &mut slices, with_header)?;
        Ok(cut_shared(recv, &sizes).into_iter().map(|message| &message[extra..]).collect())
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let reason = if std::thread::panicking() {
            "its thread panicked in the step"
        } else {
            "dropped the step without running it"
        };
        self.head.give_up(&self.ticket.call(Operation::Idle), reason);
    }
}

pub(super) fn status(nonfinite: bool, nothing_allowed: bool) -> RowStatus {
    match (nonfinite, nothing_allowed) {
        (true, _) => RowStatus::NonFinite,
        (false, true) => RowStatus::NothingAllowed,
        (false, false) => RowStatus::Good,
    }
}

/// Bytes of a row's partial from a shard of `ids` ids.
pub(super) fn encoded_stride(spec: PartialSpec, ids: usize) -> usize {
    RowPartial::encoded_len(PartialSpec { k: spec.k.min(ids), ..spec })
}

fn best_id(partial: &RowPartial) -> i64 {
    if partial.nonfinite() { -1 } else { partial.sorted().first().map_or(-1, |c| i64::from(c.id)) }
}

fn top_k(k: usize, partials: &[RowPartial]) -> Result<Output> {
    let too_large = |_| {
        let got = format!("{} rows x {k} candidates", partials.len());
        Error::shape(
            "top-k answer",
            "a buffer that fits this machine's memory",
            got,
            "send fewer rows in one step",
        )
    };
    let places = partials.len().saturating_mul(k);
    let (mut values, mut ids) = (Vec::new(), Vec::new());
    values.try_reserve_exact(places).map_err(too_large)?;
    ids.try_reserve_exact(places).map_err(too_large)?;
    for partial in partials {
        if partial.nonfinite() || partial.nothing_allowed() {
            values.extend(std::iter::repeat_n(f32::NAN, k));
            ids.extend(std::iter::repeat_n(-1, k));
        } else {
            for candidate in partial.sorted() {
                values.push(candidate.value);
                ids.push(i64::from(candidate.id));
            }
        }
        // Fewer than k are allowed.
        values.resize(ids.len().next_multiple_of(k), f32::NEG_INFINITY);
        ids.resize(values.len(), -1);
    }
    let logsumexp =
        partials.iter().map(|p| if p.nothing_allowed() { f32::NAN } else { p.logsumexp() }).collect();
    Ok(Output::TopK { k, values, ids, logsumexp })
}
