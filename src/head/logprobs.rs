//! Logprobs and ranks of target ids, and of the best ids, over prompts of any length: rows are computed in chunks, and full logits
//! are never exchanged nor held for more than a chunk.
//!
//! ```text
//! targets [rows] u32  all_gather over replicas                                        (once)
//! per chunk, of rows of every replica that has some left:
//!   hidden rows           all_gather over replicas
//!   adjustments           two all_to_alls, in a step that has them
//!   matmul -> epilogue -> adjustments     [rows of the chunk, shard] f32, held
//!   target logits         all_gather from the shards that have the targets, f32 a row
//!   partials, and how many ids of the shard beat the target         all_to_all to the rows' owners
//! ```
//!
//! Held beside the weights: [`HeadConfig::logprobs_chunk_bytes`](crate::HeadConfig::logprobs_chunk_bytes) for the hidden rows, the logits and the
//! candidates of a chunk, the slice of its adjustments (1/32 of the logits for a mask), 4 bytes a row for the targets of all rows,
//! and the answer.

use super::buffers::{hold, resize, sum};
use super::pipeline::{encoded_stride, status};
use super::{LmHead, Scratch, Step};
use crate::adjust::in_vocabulary;
use crate::backend::{Job, LogitsOut, Tally};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::exchange::Operation;
use crate::merge::{Candidate, PartialSpec, RowPartial};
use crate::result::{Answer, Output, Request, RowInputs, RowStatus};
use crate::rows::HiddenRows;
use crate::step::HEADER_BYTES;
use std::ops::Range;
use std::time::Instant;

/// Buffers of one chunk.
#[derive(Default)]
pub(super) struct Chunk {
    /// `[rows, shard]`
    logits: Vec<f32>,
    nonfinite: Vec<bool>,
    targets: Vec<Candidate>,
    better: Vec<u32>,
}

impl LmHead {
    /// What a request of logprobs asks of the head, beyond the request itself.
    pub(super) fn check_logprobs(&self, request: &Request, adjusted: bool) -> Result<()> {
        let Request::Logprobs { processed, top_n } = *request else { return Ok(()) };
        if adjusted && !processed {
            return Err(Error::request(
                "request logprobs",
                "processed logprobs in a step with adjustments",
                "logprobs of the raw logits",
                "ask for processed logprobs, or begin the step without adjustments",
            ));
        }
        self.chunk_rows(top_n).map(|_| ())
    }

    /// Rows of the group in a chunk.
    fn chunk_rows(&self, top_n: usize) -> Result<usize> {
        self.config.logprobs_chunk_rows(self.group.size(), self.hidden_dtype, top_n)
    }
}

impl Step<'_> {
    /// A target for each row, in the vocabulary, where the request has any; nothing of them has been sent yet.
    pub(super) fn check_targets(&self, inputs: &RowInputs<'_>) -> Result<()> {
        let wanted = matches!(self.ticket.request, Request::Logprobs { .. });
        let rows = self.ticket.header.rows;
        let targets = match (inputs.targets, wanted) {
            (Some(targets), true) => targets,
            (None, false) => return Ok(()),
            (None, true) if rows == 0 => return Ok(()),
            (None, true) => {
                let wanted = format!("{rows} ids, one for each row");
                return Err(Error::shape(
                    "targets",
                    wanted,
                    "none",
                    "pass the ids whose logprobs are wanted",
                ));
            }
            (Some(_), false) => {
                let what = format!("none with {}", self.ticket.request);
                return Err(Error::request("targets", what, "some", "ask for logprobs, or leave them out"));
            }
        };
        if targets.len() as u64 != rows {
            let fix = "pass the ids of the rows that you bring";
            return Err(Error::shape("targets", format!("{rows} ids, one for each row"), targets.len(), fix));
        }
        let vocab_size = self.head.config.vocab_size;
        match targets.iter().position(|&id| !in_vocabulary(id, vocab_size)) {
            None => Ok(()),
            Some(row) => Err(Error::request(
                format!("target of row {row}"),
                format!("an id from 0 to {}", vocab_size - 1),
                targets[row],
                "pass ids of this head's vocabulary",
            )),
        }
    }

    /// The whole request, chunk by chunk.
    pub(super) fn logprobs(
        &mut self,
        hidden: HiddenRows<'_>,
        inputs: &RowInputs<'_>,
        top_n: usize,
        scratch: &mut Scratch,
    ) -> Result<Answer> {
        let group = self.head.group.clone();
        let (me, vocab_size) = (group.me(), self.head.config.vocab_size);
        let spec = PartialSpec { k: top_n.max(1), sum: true };
        // Alone, only the rows that are answered are computed.
        let known =
            self.counts.clone().expect("exact counts are given, all others were learned with the headers");
        let own_rows = if group.size() == 1 { self.answered(&known, me) } else { 0..hidden.len() };
        let counts = if group.size() == 1 { vec![own_rows.len()] } else { known };
        let hidden = hidden.range(own_rows.clone());
        let own_targets = inputs.targets.map_or(&[][..], |t| &t[own_rows.clone()]);
        let (targets, firsts) = self.gather_targets(own_targets, &counts, &mut scratch.recv)?;

        let room = self.head.chunk_rows(top_n)?;
        let answered: usize = self.answered(&counts, me).len();
        let mut answer = Rows::with_room(answered, top_n)?;
        let mut next: Vec<usize> = vec![0; counts.len()];
        while next != counts {
            let parts = next_chunk(&next, &counts, room);
            next = parts.iter().map(|part| part.end).collect();
            let chunk_targets = parts
                .iter()
                .zip(&firsts)
                .flat_map(|(part, first)| &targets[first + part.start..first + part.end]);
            let unknown = |&id: &u32| Candidate { value: f32::NAN, id };
            scratch.chunk.targets.clear();
            scratch.chunk.targets.extend(chunk_targets.map(unknown));
            self.chunk(hidden, &own_rows, inputs, &counts, &parts, vocab_size, spec, scratch, &mut answer)?;
        }
        Ok(Answer {
            row_status: answer.status,
            output: Output::Logprobs {
                top_n,
                logprobs: answer.logprobs,
                ranks: answer.ranks,
                top_ids: answer.top_ids,
                top_logprobs: answer.top_logprobs,
            },
            stats: self.stats,
        })
    }

    /// One chunk: rows `parts[replica]` of every replica.
    #[allow(clippy::too_many_arguments, reason = "the loop above, in two functions")]
    fn chunk(
        &mut self,
        hidden: HiddenRows<'_>,
        own_rows: &Range<usize>,
        inputs: &RowInputs<'_>,
        counts: &[usize],
        parts: &[Range<usize>],
        vocab_size: usize,
        spec: PartialSpec,
        scratch: &mut Scratch,
        answer: &mut Rows,
    ) -> Result<()> {
        let group = self.head.group.clone();
        let (me, size) = (group.me(), group.size());
        let Scratch { send_rows, gathered, send, recv, partials, chunk, .. } = scratch;
        // gather
        let mine = parts[group.replica_of(me)].clone();
        let rows = self.gather_chunk(hidden.range(mine), parts, send_rows, gathered)?;
        // Adjustments are numbered as the caller brought them.
        let shifted: Vec<Range<usize>> = match size {
            1 => parts.iter().map(|p| own_rows.start + p.start..own_rows.start + p.end).collect(),
            _ => parts.to_vec(),
        };
        let adjustments = self.gather_adjustments(inputs.adjustments.as_ref(), &shifted)?;

        // matmul -> epilogue
        let began = Instant::now();
        let shard = self.head.shard.clone();
        let own = shard.vocab();
        let (n, columns) = (rows.len(), own.len());
        let fix = "lower logprobs_chunk_bytes on every rank";
        hold(&mut chunk.logits, n, columns, "logits of a chunk", fix)?;
        let gathered = if group.replicas() > 1 { n * rows.row_bytes() } else { 0 };
        chunk.nonfinite.clear();
        chunk.nonfinite.resize(n, false);
        let job = Job {
            rows,
            shard: &shard,
            epilogue: self.head.config.epilogue(),
            adjustments: adjustments.as_ref(),
        };
        self.head.backend.logits(
            &job,
            LogitsOut {
                bytes: bytemuck::cast_slice_mut(&mut chunk.logits),
                stride: columns * 4,
                dtype: DType::F32,
                nonfinite: &mut chunk.nonfinite,
                any_allowed: None,
            },
        )?;
        self.stats.matmul += began.elapsed();
        self.stats.rows_computed += n as u64;
        self.stats.weight_bytes += if n == 0 { 0 } else { shard.bytes() };

        // exchange: every rank learns the targets' logits, every owner what the shards know of its rows
        let began = Instant::now();
        self.share_target_logits(chunk, vocab_size, send, recv)?;
        partials.resize_with(n, || RowPartial::new(spec));
        chunk.better.resize(n, 0);
        self.head.backend.tally(Tally {
            logits: &chunk.logits,
            vocab: own,
            nonfinite: &chunk.nonfinite,
            targets: &chunk.targets,
            spec,
            partials,
            better: &mut chunk.better,
        })?;
        // Rows of the chunk, as `partials` numbers them, that a member is answered.
        let split = self.head.config.split_rows_over_tp && size > 1;
        let answered = |member: usize| {
            let replica = group.replica_of(member);
            let (all, part) = (group.answered_rows(counts[replica], member, split), &parts[replica]);
            let before: usize = parts[..replica].iter().map(ExactSizeIterator::len).sum();
            let clamp = |row: usize| row.clamp(part.start, part.end) - part.start + before;
            clamp(all.start)..clamp(all.end)
        };
        let mine = answered(me);
        let targets = &chunk.targets[mine.clone()];
        if size > 1 {
            let stride_of = |member| encoded_stride(spec, group.shard(vocab_size, member).len()) + 4;
            let stride = stride_of(me);
            resize(send, [n, stride, 1], "partials")?;
            for (row, (partial, better)) in
                send.chunks_exact_mut(stride).zip(partials.iter().zip(&chunk.better))
            {
                partial.encode(&mut row[..stride - 4]);
                row[stride - 4..].copy_from_slice(&better.to_le_bytes());
            }
            let messages: Vec<&[u8]> =
                (0..size).map(answered).map(|rows| &send[rows.start * stride..rows.end * stride]).collect();
            let sizes: Vec<usize> = (0..size).map(|member| mine.len() * stride_of(member)).collect();
            partials.resize_with(mine.len(), || RowPartial::new(spec));
            partials.iter_mut().for_each(|p| p.reset(spec));
            chunk.better.clear();
            chunk.better.resize(mine.len(), 0);
            let received = self.all_to_all(Operation::ExchangeResults, &messages, &sizes, recv)?;
            for (member, message) in received.into_iter().enumerate() {
                let (theirs, rows) = (stride_of(member), partials.iter_mut().zip(&mut chunk.better));
                for (bytes, (partial, better)) in message.chunks_exact(theirs).zip(rows) {
                    let (encoded, count) = bytes.split_at(theirs - 4);
                    partial.merge_encoded(encoded)?;
                    *better += u32::from_le_bytes(count.try_into().expect("four bytes"));
                }
            }
        }
        let exchanged = if size > 1 { send.len() + recv.len() } else { 0 };
        let kept = 16 * spec.k * n; // at the most: the vectors grow by doubling
        let held = chunk.logits.capacity() * 4 + gathered + exchanged + kept;
        self.stats.chunk_bytes = self.stats.chunk_bytes.max(held as u64);
        for ((partial, better), target) in partials.iter().zip(&chunk.better).zip(targets) {
            answer.push(partial, *better, target);
        }
        self.stats.exchange += began.elapsed();
        Ok(())
    }

    /// The targets of all replicas' rows, in group order, and where each replica's begin.
    fn gather_targets(
        &mut self,
        own: &[i64],
        counts: &[usize],
        recv: &mut Vec<u8>,
    ) -> Result<(Vec<u32>, Vec<usize>)> {
        sum(counts, "row counts")?;
        let firsts = counts
            .iter()
            .scan(0, |next, &n| {
                let first = *next;
                *next += n;
                Some(first)
            })
            .collect();
        let own: Vec<u32> = own.iter().map(|&id| id as u32).collect();
        if self.head.group.replicas() == 1 {
            return Ok((own, firsts));
        }
        let began = Instant::now();
        let send: Vec<u8> = own.iter().flat_map(|id| id.to_le_bytes()).collect();
        let members = self.head.group.row_members();
        let too_many = || Error::shape("row counts", "fewer rows", format!("{counts:?}"), "send fewer rows");
        let sizes: Option<Vec<usize>> = counts.iter().map(|n| n.checked_mul(4)).collect();
        let sizes = sizes.ok_or_else(too_many)?;
        let pieces = self.all_gather(Operation::Targets, &members, &send, &sizes, recv)?;
        let targets: Vec<u32> =
            pieces.into_iter().flat_map(|p| p.as_chunks::<4>().0).map(|id| u32::from_le_bytes(*id)).collect();
        let vocab_size = self.head.config.vocab_size;
        if let Some(id) = targets.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::Exchange {
                operation: Operation::Targets.to_string(),
                problem: format!("target {id} came, the vocabulary has {vocab_size} ids"),
                fix: "run the same version of lmhead on every rank".into(),
            });
        }
        self.stats.gather += began.elapsed();
        Ok((targets, firsts))
    }

    /// The hidden rows `parts[replica]` of every replica, in group order.
    fn gather_chunk<'b>(
        &mut self,
        own: HiddenRows<'b>,
        parts: &[Range<usize>],
        send_rows: &'b mut Vec<u8>,
        gathered: &'b mut Vec<u8>,
    ) -> Result<HiddenRows<'b>> {
        if self.head.group.replicas() == 1 {
            return Ok(own);
        }
        let began = Instant::now();
        let bytes = own.row_bytes();
        let send = match own.contiguous() {
            Some(bytes) => bytes,
            None => {
                resize(send_rows, [own.len(), bytes, 1], "gathered rows")?;
                own.copy_into(send_rows);
                send_rows
            }
        };
        let members = self.head.group.row_members();
        let sizes: Vec<usize> = parts.iter().map(|part| part.len() * bytes).collect();
        self.all_gather(Operation::GatherRows, &members, send, &sizes, gathered)?;
        self.stats.gather += began.elapsed();
        let total = parts.iter().map(ExactSizeIterator::len).sum();
        HiddenRows::new(gathered, own.dtype(), total, own.hidden())
    }

    /// Fills in the logits of the chunk's targets: each comes from the shard that has its id.
    fn share_target_logits(
        &mut self,
        chunk: &mut Chunk,
        vocab_size: usize,
        send: &mut Vec<u8>,
        recv: &mut Vec<u8>,
    ) -> Result<()> {
        let (group, own) = (self.head.group.clone(), self.head.shard.vocab());
        let logits = &chunk.logits;
        let inside = |(row, target): (usize, &Candidate)| {
            let id = target.id as usize;
            own.contains(&id).then(|| logits[row * own.len() + id - own.start])
        };
        let known: Vec<f32> = chunk.targets.iter().enumerate().filter_map(inside).collect();
        if group.size() == 1 {
            chunk.targets.iter_mut().zip(known).for_each(|(target, value)| target.value = value);
            return Ok(());
        }
        let shards: Vec<Range<usize>> = (0..group.size()).map(|m| group.shard(vocab_size, m)).collect();
        let owner = |id: u32| shards.partition_point(|shard| shard.end <= id as usize);
        let with_header = self.compares_now();
        let extra = if with_header { HEADER_BYTES } else { 0 };
        let mut sizes = vec![extra; group.size()];
        chunk.targets.iter().for_each(|target| sizes[owner(target.id)] += 4);
        send.clear();
        if with_header {
            send.extend(self.ticket.header.encode());
        }
        send.extend(known.iter().flat_map(|value| value.to_le_bytes()));
        let members: Vec<usize> = (0..group.size()).collect();
        let mut pieces: Vec<_> = self
            .all_gather_with(Operation::TargetLogits, &members, send, &sizes, recv, with_header)?
            .into_iter()
            .map(|piece| piece[extra..].as_chunks::<4>().0.iter())
            .collect();
        for target in &mut chunk.targets {
            let bytes = pieces[owner(target.id)].next().expect("as many as were counted");
            target.value = f32::from_le_bytes(*bytes);
        }
        Ok(())
    }
}

/// The next rows of every replica, `room` in all, from those that are left: as many of each as of the others, as long as it has any.
/// A replica alone with its prompt fills whole chunks. The same on every rank.
fn next_chunk(next: &[usize], counts: &[usize], mut room: usize) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = next.iter().map(|&at| at..at).collect();
    loop {
        let left = parts.iter().zip(counts).filter(|(part, n)| part.end < **n).count();
        if left == 0 || room == 0 {
            return parts;
        }
        let share = (room / left).max(1);
        for (part, &n) in parts.iter_mut().zip(counts) {
            let more = share.min(n - part.end).min(room);
            part.end += more;
            room -= more;
        }
    }
}

/// Answers, row by row.
#[derive(Default)]
struct Rows {
    top_n: usize,
    status: Vec<RowStatus>,
    logprobs: Vec<f32>,
    ranks: Vec<i64>,
    top_ids: Vec<i64>,
    top_logprobs: Vec<f32>,
}

impl Rows {
    /// Room for `rows` answers, without aborting where there is no such memory.
    fn with_room(rows: usize, top_n: usize) -> Result<Self> {
        let too_large = |_| {
            let got = format!("{rows} rows with {top_n} best ids each");
            Error::shape(
                "logprobs answer",
                "a buffer that fits this machine's memory",
                got,
                "send fewer rows in one step",
            )
        };
        let mut answer = Rows { top_n, ..Rows::default() };
        let places = rows.saturating_mul(top_n);
        answer.status.try_reserve_exact(rows).map_err(too_large)?;
        answer.logprobs.try_reserve_exact(rows).map_err(too_large)?;
        answer.ranks.try_reserve_exact(rows).map_err(too_large)?;
        answer.top_ids.try_reserve_exact(places).map_err(too_large)?;
        answer.top_logprobs.try_reserve_exact(places).map_err(too_large)?;
        Ok(answer)
    }

    fn push(&mut self, partial: &RowPartial, better: u32, target: &Candidate) {
        let status = status(partial.nonfinite(), partial.nothing_allowed());
        self.status.push(status);
        let end = self.top_ids.len() + self.top_n;
        if status != RowStatus::Good {
            self.logprobs.push(f32::NAN);
            self.ranks.push(-1);
            self.top_ids.resize(end, -1);
            self.top_logprobs.resize(end, f32::NAN);
            return;
        }
        let lse = partial.logsumexp_f64();
        // The sum's last bits may leave the logarithm just below the largest logit.
        let logprob = |logit: f32| (f64::from(logit) - lse).min(0.0) as f32;
        self.logprobs.push(logprob(target.value));
        self.ranks.push(i64::from(better) + 1);
        for candidate in partial.sorted().into_iter().take(self.top_n) {
            self.top_ids.push(i64::from(candidate.id));
            self.top_logprobs.push(logprob(candidate.value));
        }
        self.top_ids.resize(end, -1);
        self.top_logprobs.resize(end, f32::NEG_INFINITY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_are_full_and_every_row_is_in_one(counts in prop::collection::vec(0usize..40, 1..7), room in 1usize..50) {
            let (mut next, mut chunks) = (vec![0; counts.len()], 0);
            while next != counts {
                let parts = next_chunk(&next, &counts, room);
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
        assert_eq!(next_chunk(&[0, 0, 0], &[9, 1, 9], 7), [0..3, 0..1, 0..3]);
        assert_eq!(next_chunk(&[0, 0], &[100, 0], 64), [0..64, 0..0]);
        assert_eq!(next_chunk(&[0, 0], &[usize::MAX, 1], usize::MAX), [0..usize::MAX - 1, 0..1]);
    }
}
