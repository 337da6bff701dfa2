//! Logprobs and ranks of target ids, and of the best ids, over prompts of any length: rows are computed in
//! chunks, and full logits are never exchanged nor held for more than a chunk.
//!
//! ```text
//! targets [rows, targets] u32  all_gather over replicas                                   (once)
//! per chunk, of rows of every replica that has some left:
//!   hidden rows           all_gather over replicas
//!   adjustments           two all_to_alls, in a step that has them
//!   target logits         each row times the weights of its own targets; all_gather, f32 for each
//!                         target; each is read from the message of the shard that has its id
//!   matmul -> epilogue -> adjustments -> partials, with how many ids of the shard beat each target
//!   partials              all_to_all to the rows' owners
//! ```
//!
//! A backend whose matmuls do not [count](crate::backend::LoadedShard::counts_targets) first makes the logits
//! of a chunk, f32 `[rows of the chunk, shard]`, holds them, and reads target logits and ranks from these.
//! What the ranks exchange is the same.
//!
//! On a device all of this is queued on the step's stream; `placed` handles targets in device memory.
//!
//! Memory beside the weights: [`HeadConfig::logprobs_chunk_bytes`](crate::HeadConfig::logprobs_chunk_bytes)
//! for a chunk's hidden rows, its logits where they are held, and its candidates; the slice of its
//! adjustments (a mask has 1/32 of the bytes of the logits); 4 bytes for each target of all rows; the answer.

use super::buffers::{Arena, bytes_of, fill, starts_of, sum};
use super::run::{Compute, Lists, Run, Small, StepScratch};
use super::wire::Who;
use super::{LmHead, placed};
use crate::backend::{Job, Out, Pass, Which};
use crate::error::{Error, Result};
use crate::exchange::Operation;
use crate::finish::{self, Finish, Messages};
use crate::memory::{Span, SpanMut};
use crate::merge::Candidate;
use crate::merge::{NO_TARGET, PartialSpec};
use crate::result::{AnswerBuffers, NO_TARGET_ID, Request, RowInputs};
use crate::rows::HiddenRows;
use crate::step::HEADER_BYTES;
use std::ops::Range;
use std::time::Instant;

/// Memory that lives from step to step.
#[derive(Default)]
pub(super) struct LogprobsBuffers {
    /// Targets of all rows of the group.
    ids: Vec<u32>,
    pub target_buffers: TargetBuffers,
    /// The first row of each replica that is not computed yet.
    next: Vec<usize>,
    /// Where each replica's rows begin.
    firsts: Vec<usize>,
    /// Byte ranges of the targets at hand among the targets of all rows.
    of_parts: Vec<Range<usize>>,
}

/// Buffers of [`Run::tell`].
#[derive(Default)]
pub(super) struct TargetBuffers {
    /// Targets of the rows at hand, `[rows, targets]`.
    pub targets: Vec<u32>,
    logits: Vec<f32>,
    candidates: Vec<Candidate>,
    /// The same in device memory, in a step on a device. There the host knows targets only where they are
    /// tokens that it has drawn itself.
    pub placed: placed::Targets,
    /// Which of the rows at hand each member is answered.
    pub answered: Vec<Range<usize>>,
}

/// What [`Run::tell`] is to find out about the rows at hand.
#[derive(Clone, Copy)]
pub(super) struct Telling<'a> {
    /// The matmul of these rows, which also counts the logits that beat each target; `None`: the logits are
    /// held.
    pub job: Option<Job<'a>>,
    /// Which of the held logits to read.
    pub of: Which,
    pub rows: usize,
    pub targets: usize,
    pub top_n: usize,
    /// The rows have a status already: see [`Finish::Logprobs`].
    pub drawn: bool,
    /// Status words of the rows that the caller is answered.
    pub own: Span<'a>,
}

impl Telling<'_> {
    fn spec(&self) -> PartialSpec {
        PartialSpec { k: self.top_n.max(1), sum: true, targets: self.targets }
    }
}

impl LmHead {
    /// Checks a request of logprobs against the step's adjustments and the room of a chunk.
    pub(super) fn check_logprobs(&self, request: &Request, adjusted: bool) -> Result<()> {
        let Request::Logprobs { targets, processed, top_n } = *request else { return Ok(()) };
        if adjusted && !processed {
            return Err(Error::request(
                "request logprobs",
                "processed logprobs in a step with adjustments",
                "logprobs of the raw logits",
                "ask for processed logprobs, or begin the step without adjustments",
            ));
        }
        let size = self.wire.group.size();
        self.config.logprobs_chunk_rows(size, self.hidden_dtype, targets, top_n).map(|_| ())
    }
}

impl Run<'_> {
    /// The whole request, chunk by chunk.
    pub(super) fn logprobs(
        &mut self,
        compute: &mut Compute<'_>,
        hidden: HiddenRows<'_>,
        inputs: &RowInputs<'_>,
        (per_row, top_n): (usize, usize),
        mut answer: AnswerBuffers<'_>,
        scratch: &mut StepScratch,
    ) -> Result<()> {
        if self.wire.open.padded {
            return self.padded_logprobs(compute, hidden, inputs, (per_row, top_n), answer, scratch);
        }
        let group = self.wire.group.clone();
        let (me, size, tp) = (group.me(), group.size(), group.tp());
        let (replica, split) = (group.replica_of(me), self.config.split_rows_over_tp);
        let StepScratch {
            own_rows: packed,
            own_status,
            input_status,
            gathered,
            send,
            recv,
            lists,
            small,
            adjusting,
            placed,
            logprobs,
            finish,
            ..
        } = scratch;
        let counts = &self.wire.open.counts;
        bytes_of("targets", [sum(counts, "row counts")?, 4 * per_row])?;
        starts_of(counts.iter().copied(), &mut logprobs.firsts);
        let mut status = self.begin_status(compute, inputs, hidden.len(), input_status)?;
        if self.is_on_device() {
            let placed = &mut logprobs.target_buffers.placed;
            self.encode_targets(compute, inputs, per_row, status.reborrow(), placed)?;
            self.share_targets(per_row, lists, placed)?;
        } else {
            self.gather_targets(inputs.targets.unwrap_or_default(), per_row, lists, small, logprobs)?;
        }

        let room = self.config.logprobs_chunk_rows(size, hidden.dtype(), per_row, top_n)?;
        let counts = self.wire.open.counts.len();
        let LogprobsBuffers { ids, target_buffers, next, firsts, of_parts } = logprobs;
        fill(next, 0, counts, "row counts")?;
        let mut done = 0;
        while *next != self.wire.open.counts {
            next_chunk(next, &self.wire.open.counts, room, &mut lists.parts);
            next.iter_mut().zip(&lists.parts).for_each(|(next, part)| *next = part.end);
            target_buffers.targets.clear();
            of_parts.clear();
            for (part, first) in lists.parts.iter().zip(firsts.iter()) {
                let of_part = (first + part.start) * per_row..(first + part.end) * per_row;
                if part.is_empty() {
                    continue;
                }
                of_parts.push(4 * of_part.start..4 * of_part.end);
                if !self.is_on_device() {
                    target_buffers.targets.extend_from_slice(&ids[of_part]);
                }
            }
            // Rows of the chunk that each member is answered.
            target_buffers.answered.clear();
            let (mut before, mut first_own) = (0, 0);
            for (at, part) in lists.parts.iter().enumerate() {
                first_own = if at == replica { before } else { first_own };
                for member in at * tp..(at + 1) * tp {
                    let all = self.wire.answered(member, split);
                    let clamp =
                        |row: usize| (row - firsts[at]).clamp(part.start, part.end) - part.start + before;
                    target_buffers.answered.push(clamp(all.start)..clamp(all.end));
                }
                before += part.len();
            }
            let of_own =
                target_buffers.answered[me].start - first_own..target_buffers.answered[me].end - first_own;
            let mine = of_own.len();

            let of_chunk = hidden.range(lists.parts[replica].clone());
            let arenas = (&mut *packed, &mut *own_status, &mut *gathered);
            let (rows, own) = self.gather_parts(compute, of_chunk, arenas, lists)?;
            let adjustments =
                self.gather_adjustments(inputs.adjustments.as_ref(), lists, small, adjusting)?;
            let mut status = match status.reborrow() {
                none if none.is_empty() => none,
                of_all => of_all.part(4 * lists.parts[replica].start..4 * lists.parts[replica].end),
            };
            let known = status.reborrow();
            let placed = self.place_adjustments(compute, &inputs.on_device, known, lists, placed)?;
            let own = self.with_status(compute, own, status)?;
            let own = if own.is_empty() { own } else { own.part(4 * of_own.start..4 * of_own.end) };

            let began = Instant::now();
            let n = rows.len();
            let job = Job { rows, epilogue: self.config.epilogue(), adjustments, placed };
            let job = compute.hold_or_count(job)?;
            self.count_product(n);
            self.wire.open.stats.matmul += began.elapsed();
            let out = AnswerBuffers {
                row_status: answer.row_status.reborrow().part(done..done + mine),
                logprobs: answer.logprobs.reborrow().part(4 * per_row * done..4 * per_row * (done + mine)),
                ranks: answer.ranks.reborrow().part(8 * per_row * done..8 * per_row * (done + mine)),
                top_ids: answer.top_ids.reborrow().part(8 * top_n * done..8 * top_n * (done + mine)),
                top_logprobs: answer
                    .top_logprobs
                    .reborrow()
                    .part(4 * top_n * done..4 * top_n * (done + mine)),
                ..AnswerBuffers::default()
            };
            let of = Which::Adjusted;
            let telling = Telling { job, of, rows: n, targets: per_row, top_n, drawn: false, own };
            let buffers = (&mut *send, &mut *recv);
            self.tell(compute, telling, target_buffers, of_parts, buffers, lists, small, out, finish)?;
            let stride = |member: usize| telling.spec().stride(self.wire.shards()[member].len());
            let exchanged = n * stride(me) + mine * (0..size).map(stride).sum::<usize>();
            let logits = if job.is_some() { 0 } else { 4 * n * self.wire.shards()[me].len() };
            let held = logits + n * hidden.row_bytes() + exchanged;
            let stats = &mut self.wire.open.stats;
            stats.chunk_bytes = stats.chunk_bytes.max(held as u64);
            done += mine;
        }
        Ok(())
    }

    /// The whole request in a step of padded rows, which are one chunk.
    fn padded_logprobs(
        &mut self,
        compute: &mut Compute<'_>,
        hidden: HiddenRows<'_>,
        inputs: &RowInputs<'_>,
        (per_row, top_n): (usize, usize),
        answer: AnswerBuffers<'_>,
        scratch: &mut StepScratch,
    ) -> Result<()> {
        let StepScratch {
            own_rows,
            own_status,
            input_status,
            gathered,
            contract,
            send,
            recv,
            lists,
            small,
            placed,
            logprobs,
            finish,
            ..
        } = scratch;
        let TargetBuffers { targets, placed: of_targets, answered, .. } = &mut logprobs.target_buffers;
        let mut status = self.begin_status(compute, inputs, hidden.len(), input_status)?;
        let own = self.encode_targets(compute, inputs, per_row, status.reborrow(), of_targets)?;
        let arenas = (own_rows, own_status, gathered, contract);
        let (rows, own) = self.gather_padded(compute, (hidden, &inputs.on_device, own), arenas, lists)?;
        self.share_targets(per_row, lists, of_targets)?;
        let placed = self.place_adjustments(compute, &inputs.on_device, status.reborrow(), lists, placed)?;
        let own = self.with_status(compute, own, status)?;
        let own = self.of_answered(own);
        let n = rows.len();
        let job = Job { rows, epilogue: self.config.epilogue(), adjustments: None, placed };
        let job = compute.hold_or_count(job)?;
        self.count_product(n);
        let split = self.config.split_rows_over_tp;
        targets.clear();
        answered.clear();
        answered.extend((0..self.wire.group.size()).map(|member| self.wire.answered(member, split)));
        let of = Which::Adjusted;
        let telling = Telling { job, of, rows: n, targets: per_row, top_n, drawn: false, own };
        let (all, target_buffers) = (0..4 * per_row * n, &mut logprobs.target_buffers);
        let parts = std::slice::from_ref(&all);
        self.tell(compute, telling, target_buffers, parts, (send, recv), lists, small, answer, finish)
    }

    /// Answers `telling` for the caller's rows: target logits, partials, their exchange, the result. `parts`
    /// (on a device): byte ranges of the targets at hand, in `target_buffers.targets` where the host knows
    /// them, else in what [`Run::share_targets`] has gathered.
    #[allow(clippy::too_many_arguments, reason = "of two requests the last part")]
    pub(super) fn tell(
        &mut self,
        compute: &mut Compute<'_>,
        telling: Telling<'_>,
        target_buffers: &mut TargetBuffers,
        parts: &[Range<usize>],
        (send, recv): (&mut Arena, &mut Arena),
        lists: &mut Lists,
        small: &mut Small,
        out: AnswerBuffers<'_>,
        scratch: &mut finish::FinishScratch,
    ) -> Result<()> {
        let began = Instant::now();
        let (me, spec) = (self.wire.group.me(), telling.spec());
        if !self.is_on_device() {
            self.share_target_logits(compute, &telling, target_buffers, lists, small)?;
        }
        let TargetBuffers { targets, candidates, placed, answered, .. } = target_buffers;
        let targets = if self.is_on_device() {
            let host = (!targets.is_empty()).then_some(&targets[..]);
            self.place_candidates(compute, &telling, (host, parts), lists, placed)?
        } else {
            Span::host(&candidates[..])
        };
        let stride = spec.stride(self.wire.shards()[me].len());
        let size = bytes_of("partials", [telling.rows, stride])?;
        let mut send = send.at_least(self.backend, self.memory, size, "partials")?;
        let (of, to) = (telling.of, send.reborrow());
        match &telling.job {
            Some(job) => compute.run(job, Out::Counted { spec, targets, again: true, out: to })?,
            None => compute.pass(Pass::Partials { of, spec, targets, out: to })?,
        }
        let mine = answered[me].clone();
        lists.outgoing.clear();
        lists.outgoing.extend_from_slice(answered);
        let bytes = self.exchange_results(send, &|ids| spec.stride(ids), mine.len(), recv, lists)?;
        let (starts, shards) = (&lists.starts[..], self.wire.shards());
        let answered = self.answered_of(mine.len());
        let from = Messages { bytes, starts, shards, rows: mine.len(), answered, own: telling.own };
        let each = spec.targets * size_of::<Candidate>();
        let finish = Finish::Logprobs {
            from,
            spec,
            targets: targets.part(mine.start * each..(mine.start + answered) * each),
            top_n: telling.top_n,
            drawn: telling.drawn,
            logprobs: out.logprobs,
            ranks: out.ranks,
            top_ids: out.top_ids,
            top_logprobs: out.top_logprobs,
            row_status: out.row_status,
        };
        compute.finish(finish, scratch)?;
        self.wire.open.stats.exchange += began.elapsed();
        Ok(())
    }

    /// Gathers the targets of all replicas' rows, in group order.
    fn gather_targets(
        &mut self,
        own: &[i64],
        per_row: usize,
        lists: &mut Lists,
        small: &mut Small,
        room: &mut LogprobsBuffers,
    ) -> Result<()> {
        let began = Instant::now();
        let Small { send, recv } = small;
        send.clear();
        send.extend(own.iter().flat_map(|&id| encode_target(id).to_le_bytes()));
        lists.sizes.clear();
        lists.sizes.extend(self.wire.open.counts.iter().map(|rows| rows * 4 * per_row));
        let gather = (Operation::Targets, Who::Replicas);
        self.wire.gather_small(gather, Span::host(&send[..]), (recv, &lists.sizes), false)?;
        room.ids.clear();
        room.ids.extend(recv.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)));
        let vocab_size = self.config.vocab_size;
        if let Some(id) = room.ids.iter().find(|&&id| id != NO_TARGET && id as usize >= vocab_size) {
            let problem = format!("target {id} came, the vocabulary has {vocab_size} ids");
            return Err(finish::broken(Operation::Targets, problem));
        }
        self.wire.open.stats.gather += began.elapsed();
        Ok(())
    }

    /// Gathers the logits of the targets at hand, each from the shard that has its id.
    fn share_target_logits(
        &mut self,
        compute: &mut Compute<'_>,
        telling: &Telling<'_>,
        target_buffers: &mut TargetBuffers,
        lists: &mut Lists,
        small: &mut Small,
    ) -> Result<()> {
        let TargetBuffers { targets, logits, candidates, .. } = target_buffers;
        fill(logits, 0.0, targets.len(), "target logits")?;
        compute.target_logits(telling, Span::host(&targets[..]), SpanMut::host(&mut logits[..]))?;
        let (members, headers) = (self.wire.group.size(), self.wire.compares_now());
        let extra = if headers { HEADER_BYTES } else { 0 };
        let Small { send, recv } = small;
        send.clear();
        if headers {
            send.extend(self.wire.open.header.encode());
        }
        send.extend(logits.iter().flat_map(|logit| logit.to_le_bytes()));
        lists.sizes.clear();
        lists.sizes.resize(members, send.len());
        let gather = (Operation::TargetLogits, Who::Everyone);
        self.wire.gather_small(gather, Span::host(&send[..]), (recv, &lists.sizes), headers)?;
        let shards = self.wire.shards();
        candidates.clear();
        candidates.extend(targets.iter().enumerate().map(|(i, &id)| {
            if id == NO_TARGET {
                return Candidate { value: f32::NAN, id };
            }
            let owner = shards.partition_point(|shard| shard.end <= id as usize);
            let message = &recv[owner * send.len() + extra..];
            let value = message.as_chunks::<4>().0[i];
            Candidate { value: f32::from_le_bytes(value), id }
        }));
        Ok(())
    }
}

impl Compute<'_> {
    /// Where the backend counts targets during the matmul, returns the job to run it with; else runs it now,
    /// holds the logits and returns `None`.
    fn hold_or_count<'a>(&mut self, job: Job<'a>) -> Result<Option<Job<'a>>> {
        if self.loaded.counts_targets() {
            return Ok(Some(job));
        }
        self.hold(&job, false)?;
        Ok(None)
    }

    /// Writes the logits of targets: u32 `[rows, telling.targets]` in, f32 of the same shape out.
    pub(super) fn target_logits(
        &mut self,
        telling: &Telling<'_>,
        targets: Span<'_>,
        out: SpanMut<'_>,
    ) -> Result<()> {
        let Telling { of, targets: per_row, .. } = *telling;
        match &telling.job {
            Some(job) => self.run(job, Out::TargetLogits { targets, per_row, out }),
            None => self.pass(Pass::TargetLogits { of, targets, per_row, out }),
        }
    }
}

/// A target as ranks exchange it: an id that was checked to be in the vocabulary, or none.
fn encode_target(id: i64) -> u32 {
    if id == NO_TARGET_ID { NO_TARGET } else { id as u32 }
}

/// The next chunk: `room` rows in all of those that are left, equally many of each replica while it has any.
/// A replica alone with its prompt fills whole chunks. The same on every rank.
fn next_chunk(next: &[usize], counts: &[usize], mut room: usize, parts: &mut Vec<Range<usize>>) {
    parts.clear();
    parts.extend(next.iter().map(|&at| at..at));
    loop {
        let left = parts.iter().zip(counts).filter(|(part, n)| part.end < **n).count();
        if left == 0 || room == 0 {
            return;
        }
        let share = (room / left).max(1);
        for (part, &n) in parts.iter_mut().zip(counts) {
            let more = share.min(n - part.end).min(room);
            part.end += more;
            room -= more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_are_full_and_every_row_is_in_one(
            counts in prop::collection::vec(0usize..40, 1..7), room in 1usize..50,
        ) {
            let (mut next, mut chunks) = (vec![0; counts.len()], 0);
            while next != counts {
                let mut parts = Vec::new();
                next_chunk(&next, &counts, room, &mut parts);
                prop_assert!(parts.iter().zip(&next).all(|(part, at)| part.start == *at));
                let rows: usize = parts.iter().map(ExactSizeIterator::len).sum();
                let left: usize = counts.iter().zip(&next).map(|(n, at)| n - at).sum();
                prop_assert_eq!(rows, left.min(room));
                next = parts.iter().map(|part| part.end).collect();
                chunks += 1;
            }
            prop_assert_eq!(chunks, counts.iter().sum::<usize>().div_ceil(room));
        }
    }

    #[test]
    fn replicas_share_a_chunk_evenly_while_they_have_rows() {
        let chunk = |next: &[usize], counts: &[usize], room: usize| {
            let mut parts = Vec::new();
            next_chunk(next, counts, room, &mut parts);
            parts
        };
        assert_eq!(chunk(&[0, 0, 0], &[9, 1, 9], 7), [0..3, 0..1, 0..3]);
        assert_eq!(chunk(&[0, 0], &[100, 0], 64), [0..64, 0..0]);
        assert_eq!(chunk(&[0, 0], &[usize::MAX, 1], usize::MAX), [0..usize::MAX - 1, 0..1]);
    }
}
