//! Sampled tokens: shards send candidates, largest logits or histograms, and never logits.
//!
//! ```text
//! parameters of all rows   all_gather over the group, which compares them between the tp ranks of a replica
//! adjustments              two all_to_alls, in a step that has them
//! matmul -> epilogue -> adjustments     [rows of the group, shard] f32, held; or one candidate of each row
//!                          at once, where no row has a filter and no logprobs are asked for
//! largest logits           all_gather, where shards filter: min_p, or top_p without top_k, or top_k > 1024
//! cut at top_k             n x (histograms to the rows' owners, cuts back), where a top_k is above 1024
//! cut at top_p             n x the same, where there is a top_p and either no top_k or one above 1024
//! candidates               all_to_all to the rows' owners, who draw
//! tokens                   all_gather, where logprobs are asked for; then target logits and partials, as
//!                          `logprobs` does
//! ```
//!
//! Which of these rounds a step takes depends on its parameters alone, never on logits; every rank knows all
//! of them. Where the host reads no parameters ([`Filters`]), a step takes all rounds, or draws during the
//! matmul. The n of a cut is 4 to 16: it follows from the size of the group and from how many rows have that
//! cut and the same owner ([`Digits`](crate::sampling::cut::Digits)).
//!
//! * `cuts`: the two searches.
//! * `on_device`: steps in which the host reads no parameters.

mod cuts;
mod on_device;

use super::buffers::{Arena, bytes_of, fill, sum};
use super::logprobs::{TargetBuffers, Telling};
use super::run::{Compute, Lists, Run, Small, StepScratch};
use super::wire::Who;
use crate::backend::{Inputs, Job, Out, Pass, Wanted, Which};
use crate::error::{Error, Result};
use crate::exchange::Operation;
use crate::finish::{self, Finish, Messages, Places, RowSampling, broken, places};
use crate::memory::{Span, SpanMut};
use crate::merge::Candidate;
use crate::merge::NO_TARGET;
use crate::params::SamplingRow;
use crate::result::{AnswerBuffers, RowInputs, TokenLogprobs};
use crate::rows::HiddenRows;
use crate::sampling::cut::{Kept, Sum};
use crate::sampling::mass::Scale;
use crate::sampling::{DrawKind, Filters, PARAMS_BYTES, SamplingParams};
use crate::step::{self, HEADER_BYTES};
use bytemuck::Zeroable;
use std::ops::Range;
use std::time::Instant;

/// Memory that lives from step to step.
#[derive(Default)]
pub(super) struct SamplingBuffers {
    /// Parameters of all rows that are computed.
    params: Vec<SamplingParams>,
    /// Buffers of steps in which the host reads no parameters.
    unseen: on_device::DeviceBuffers,
    /// Parameters of this rank's rows, where these are in device memory.
    placed: Vec<SamplingParams>,
    placed_rows: Vec<SamplingRow>,
    kinds: Vec<DrawKind>,
    /// Rows that need their largest logit, and these logits.
    maxima_rows: Vec<usize>,
    maxima: Vec<f32>,
    filtered: Vec<Filtered>,
    wanted: Vec<(usize, Wanted)>,
    /// Where each row's candidates begin, and where the last ones end.
    firsts: Vec<usize>,
    cuts: cuts::CutBuffers,
    tokens: Vec<u32>,
    target_buffers: TargetBuffers,
}

/// A row that its shards draw from after all know its largest logit.
#[derive(Debug, Clone, Copy)]
struct Filtered {
    /// Index among the rows that are computed.
    row: usize,
    params: SamplingParams,
    kind: DrawKind,
    kept: Kept,
}

impl SamplingBuffers {
    /// Buffers of steps that a CUDA graph may capture.
    pub fn arenas(&mut self) -> [&mut Arena; 4] {
        self.unseen.arenas()
    }
}

impl Run<'_> {
    /// Runs the whole request.
    pub(super) fn sampled(
        &mut self,
        compute: &mut Compute<'_>,
        hidden: HiddenRows<'_>,
        inputs: &RowInputs<'_>,
        logprobs: Option<TokenLogprobs>,
        mut answer: AnswerBuffers<'_>,
        scratch: &mut StepScratch,
    ) -> Result<()> {
        if self.wire.open.header.filters != Filters::ByHost {
            return self.sampled_unseen(compute, hidden, inputs, logprobs, answer, scratch);
        }
        let StepScratch {
            own_rows,
            own_status,
            gathered,
            send,
            recv,
            lists,
            small,
            adjusting,
            input_status,
            placed,
            sampling,
            finish,
            ..
        } = scratch;
        let mut status = self.begin_status(compute, inputs, hidden.len(), input_status)?;
        let (rows, own) = self.gather(compute, hidden, (own_rows, own_status, gathered), lists)?;
        self.place_sampling(compute, inputs, status.reborrow(), sampling)?;
        let own_params =
            if sampling.placed.is_empty() { inputs.sampling } else { Some(&sampling.placed[..]) };
        self.gather_sampling(own_params.unwrap_or_default(), lists, small, &mut sampling.params)?;
        self.count_product(rows.len());
        let adjustments = self.gather_adjustments(inputs.adjustments.as_ref(), lists, small, adjusting)?;
        let placed = self.place_adjustments(compute, &inputs.on_device, status.reborrow(), lists, placed)?;
        let own = self.with_status(compute, own, status)?;
        let own = self.of_answered(own);

        let vocab_size = self.config.vocab_size;
        sampling.kinds.clear();
        sampling.kinds.extend(sampling.params.iter().map(|params| params.kind(vocab_size)));
        let (began, n) = (Instant::now(), rows.len());
        let job = Job { rows, epilogue: self.config.epilogue(), adjustments, placed };
        if logprobs.is_none() && sampling.kinds.iter().all(|kind| *kind == DrawKind::Best) {
            let candidates = self.draw_in_product(compute, &job, &sampling.params, send)?;
            self.wire.open.stats.matmul += began.elapsed();
            let began = Instant::now();
            self.draw(compute, own, false, (candidates, recv), lists, sampling, &mut answer, finish)?;
            self.wire.open.stats.exchange += began.elapsed();
            return Ok(());
        }
        let raw = logprobs.is_some_and(|told| !told.processed) && job.is_adjusted();
        compute.hold(&job, raw)?;
        self.wire.open.stats.matmul += began.elapsed();

        let began = Instant::now();
        self.share_maxima(compute, lists, small, sampling)?;
        self.cut(compute, Sum::Ids, lists, small, sampling)?;
        self.cut(compute, Sum::Masses, lists, small, sampling)?;
        let tokens = logprobs.is_some();
        let candidates = self.candidates(compute, sampling, send)?;
        self.draw(compute, own, tokens, (candidates, recv), lists, sampling, &mut answer, finish)?;
        self.wire.open.stats.exchange += began.elapsed();
        let Some(TokenLogprobs { top_n, .. }) = logprobs else { return Ok(()) };

        self.share_tokens(lists, small, sampling)?;
        let of = if raw { Which::Raw } else { Which::Adjusted };
        let SamplingBuffers { target_buffers, .. } = sampling;
        let telling = Telling { job: None, of, rows: n, targets: 1, top_n, drawn: true, own };
        let all = 0..4 * target_buffers.targets.len();
        let parts = std::slice::from_ref(&all);
        self.tell(compute, telling, target_buffers, parts, (send, recv), lists, small, answer, finish)
    }

    /// Reads this rank's parameters if they are in device memory. The host waits for them, because they
    /// decide what the step exchanges.
    fn place_sampling(
        &mut self,
        compute: &mut Compute<'_>,
        inputs: &RowInputs<'_>,
        status: SpanMut<'_>,
        room: &mut SamplingBuffers,
    ) -> Result<()> {
        room.placed.clear();
        let Some(from) = &inputs.on_device.sampling else { return Ok(()) };
        fill(&mut room.placed_rows, SamplingRow::zeroed(), status.len() / 4, "sampling parameters")?;
        let (out, vocab_size) = (&mut room.placed_rows[..], self.config.vocab_size);
        compute.inputs(Inputs::Sampling { from, vocab_size, out, status })?;
        room.placed.extend(room.placed_rows.iter().map(|row| SamplingParams {
            seed: row.seed,
            position: row.position,
            temperature: row.temperature,
            top_k: row.top_k as usize,
            top_p: row.top_p,
            min_p: row.min_p,
        }));
        Ok(())
    }

    /// Gathers the parameters of the rows of all replicas, in group order.
    fn gather_sampling(
        &mut self,
        own: &[SamplingParams],
        lists: &mut Lists,
        small: &mut Small,
        all: &mut Vec<SamplingParams>,
    ) -> Result<()> {
        let began = Instant::now();
        all.clear();
        if self.wire.is_alone() {
            all.extend_from_slice(own);
            return Ok(());
        }
        let headers = self.wire.compares_now();
        let extra = if headers { HEADER_BYTES } else { 0 };
        let Small { send, recv } = small;
        send.clear();
        if headers {
            send.extend(self.wire.open.header.encode());
        }
        let (vocab_size, what) = (self.config.vocab_size, "sampling parameters");
        own.iter().for_each(|params| send.extend_from_slice(bytemuck::bytes_of(&params.to_row(vocab_size))));
        lists.sizes.clear();
        for member in 0..self.wire.group.size() {
            let rows = self.wire.open.counts[self.wire.group.replica_of(member)];
            lists.sizes.push(sum(&[bytes_of(what, [rows, PARAMS_BYTES])?, extra], what)?);
        }
        let gather = (Operation::SamplingParams, Who::Everyone);
        self.wire.gather_small(gather, Span::host(&send[..]), (recv, &lists.sizes), headers)?;
        let decode =
            |bytes: &[u8; PARAMS_BYTES]| SamplingParams::of_row(&bytemuck::pod_read_unaligned(bytes));
        let tp = self.wire.group.tp();
        let mut rest = &recv[..];
        for (replica, &rows) in self.wire.open.counts.iter().enumerate() {
            let each = extra + rows * PARAMS_BYTES;
            let (ranks, after) = rest.split_at(tp * each);
            rest = after;
            let of_rank = |rank: usize| &ranks[rank * each + extra..(rank + 1) * each];
            let first = of_rank(0);
            let differing = (1..tp).filter_map(|rank| differing_row(first, of_rank(rank))).min();
            if let Some(row) = differing {
                let of_row = |rank: usize| decode(&of_rank(rank).as_chunks().0[row]);
                let said = (0..tp).map(|rank| format!("row {row}: {:?}", of_row(rank)));
                let ranks = self.wire.group.ranks()[replica * tp..].iter().copied();
                let disagreements = step::disagreement(what, ranks.zip(said)).into_iter().collect();
                return Err(Error::mismatch(self.wire.open.header.sequence, disagreements));
            }
            all.extend(first.as_chunks::<PARAMS_BYTES>().0.iter().map(decode));
        }
        // The sending rank has checked them: what is wrong now was damaged on the way.
        for (row, params) in all.iter().enumerate() {
            params.check(row).map_err(|error| broken(Operation::SamplingParams, error))?;
        }
        self.wire.open.stats.gather += began.elapsed();
        Ok(())
    }

    /// Shares the largest logits of the rows that need them. A row without a finite one gets NaN or minus
    /// infinity, and keeps nothing.
    fn share_maxima(
        &mut self,
        compute: &mut Compute<'_>,
        lists: &mut Lists,
        small: &mut Small,
        room: &mut SamplingBuffers,
    ) -> Result<()> {
        let SamplingBuffers { params, kinds, maxima_rows, maxima, filtered, .. } = room;
        filtered.clear();
        maxima_rows.clear();
        let needs = |row: &usize| matches!(kinds[*row], DrawKind::Threshold | DrawKind::Cut { .. });
        maxima_rows.extend((0..kinds.len()).filter(needs));
        if maxima_rows.is_empty() {
            return Ok(());
        }
        fill(maxima, 0.0, maxima_rows.len(), "largest logits")?;
        compute.pass(Pass::Maxima { rows: maxima_rows, out: maxima })?;
        let Small { recv, .. } = small;
        let (members, bytes) = (self.wire.group.size(), 4 * maxima.len());
        lists.sizes.clear();
        lists.sizes.resize(members, bytes);
        let gather = (Operation::LargestLogits, Who::Everyone);
        self.wire.gather_small(gather, Span::host(&maxima[..]), (recv, &lists.sizes), false)?;
        let rows = maxima.len();
        maxima.fill(f32::NEG_INFINITY);
        for (i, bytes) in recv.as_chunks::<4>().0.iter().enumerate() {
            let (max, theirs) = (&mut maxima[i % rows], f32::from_le_bytes(*bytes));
            if theirs == f32::INFINITY {
                return Err(broken(Operation::LargestLogits, "infinity came"));
            }
            // NaN stays: its shard may have logits above the largest of the others, whose masses would be
            // meaningless.
            *max = if max.is_nan() || theirs <= *max { *max } else { theirs };
        }
        let vocab_size = self.config.vocab_size;
        filtered.extend(maxima_rows.iter().zip(&*maxima).map(|(&row, &max)| {
            let scale = Scale::new(&params[row], max, vocab_size);
            Filtered { row, params: params[row], kind: kinds[row], kept: Kept::new(scale) }
        }));
        Ok(())
    }

    /// One candidate of each row, drawn during the matmul: no logits are kept.
    fn draw_in_product<'b>(
        &mut self,
        compute: &mut Compute<'_>,
        job: &Job<'_>,
        params: &[SamplingParams],
        send: &'b mut Arena,
    ) -> Result<SpanMut<'b>> {
        let bytes = bytes_of("candidates", [params.len(), size_of::<Candidate>()])?;
        let mut candidates = send.at_least(self.backend, self.memory, bytes, "candidates")?;
        compute.run(job, Out::Drawn(RowSampling::Host(params), candidates.reborrow()))?;
        Ok(candidates)
    }

    /// The candidates of all rows, from held logits.
    fn candidates<'b>(
        &mut self,
        compute: &mut Compute<'_>,
        room: &mut SamplingBuffers,
        send: &'b mut Arena,
    ) -> Result<SpanMut<'b>> {
        let SamplingBuffers { params, kinds, filtered, wanted, .. } = room;
        let own_ids = self.wire.shards()[self.wire.group.me()].len();
        wanted.clear();
        wanted.extend(kinds.iter().zip(&*params).enumerate().map(|(row, (kind, params))| match kind {
            DrawKind::Listed { .. } => (row, Wanted::Best { k: places(*kind, own_ids) }),
            _ => (row, Wanted::Drawn { params: *params, kept: None }),
        }));
        for own in &*filtered {
            wanted[own.row].1 = Wanted::Drawn { params: own.params, kept: Some(own.kept) };
        }
        let places = wanted.iter().map(|(_, wanted)| wanted.places()).sum();
        let bytes = bytes_of("candidates", [places, size_of::<Candidate>()])?;
        let mut candidates = send.at_least(self.backend, self.memory, bytes, "candidates")?;
        compute.pass(Pass::Candidates { rows: wanted, out: candidates.reborrow() })?;
        Ok(candidates)
    }

    /// Sends the shards' candidates to the rows' owners, who draw.
    #[allow(clippy::too_many_arguments, reason = "what the rounds before it have found, and where all goes")]
    fn draw(
        &mut self,
        compute: &mut Compute<'_>,
        own: Span<'_>,
        with_tokens: bool,
        (candidates, recv): (SpanMut<'_>, &mut Arena),
        lists: &mut Lists,
        room: &mut SamplingBuffers,
        answer: &mut AnswerBuffers<'_>,
        scratch: &mut finish::FinishScratch,
    ) -> Result<()> {
        let SamplingBuffers { params, kinds, firsts, tokens, .. } = room;
        let (me, vocab_size) = (self.wire.group.me(), self.config.vocab_size);
        let (own_ids, each) = (self.wire.shards()[me].len(), size_of::<Candidate>());
        firsts.clear();
        firsts.push(0);
        let mut end = 0;
        firsts.extend(kinds.iter().map(|kind| {
            end += places(*kind, own_ids);
            end
        }));

        lists.outgoing.clear();
        lists.outgoing.extend((0..self.wire.group.size()).map(|member| {
            let rows = self.answered(member);
            firsts[rows.start] * each..firsts[rows.end] * each
        }));
        let mine = self.answered(me);
        lists.sizes.clear();
        for shard in self.wire.shards() {
            let of_row = |row: usize| places(kinds[row], shard.len()) * each;
            lists.sizes.push(mine.clone().map(of_row).sum());
        }
        let bytes = self.deliver(candidates, recv, lists, false)?;
        tokens.clear();
        tokens.resize(if with_tokens { mine.len() } else { 0 }, NO_TARGET);
        let (starts, shards) = (&lists.starts[..], self.wire.shards());
        let finish = Finish::Draw {
            from: Messages { bytes, starts, shards, rows: mine.len(), answered: mine.len(), own },
            sampling: RowSampling::Host(&params[mine]),
            places: Places::ByKind,
            vocab_size,
            ids: answer.ids.reborrow(),
            tokens: SpanMut::host(&mut tokens[..]),
            row_status: answer.row_status.reborrow(),
        };
        compute.finish(finish, scratch)
    }

    /// Tells every shard the tokens of all rows, whose logprobs are asked for.
    fn share_tokens(
        &mut self,
        lists: &mut Lists,
        small: &mut Small,
        room: &mut SamplingBuffers,
    ) -> Result<()> {
        let began = Instant::now();
        let SamplingBuffers { tokens, target_buffers, .. } = room;
        target_buffers.answered.clear();
        target_buffers.targets.clear();
        let (me, size) = (self.wire.group.me(), self.wire.group.size());
        target_buffers.answered.extend((0..size).map(|member| self.answered(member)));
        // One rank sends the token of each row: the tp ranks of a replica have drawn the same tokens, unless
        // each has a part of the rows.
        let speaks = |member: usize| -> Range<usize> { self.wire.answered(member, true) };
        let (mine, first) = (speaks(me), target_buffers.answered[me].start);
        let own = &tokens[mine.start - first..mine.end - first];
        lists.sizes.clear();
        lists.sizes.extend((0..size).map(|member| 4 * speaks(member).len()));
        let Small { recv, .. } = small;
        let gather = (Operation::Tokens, Who::Everyone);
        self.wire.gather_small(gather, Span::host(own), (recv, &lists.sizes), false)?;
        target_buffers.targets.extend(recv.as_chunks::<4>().0.iter().map(|id| u32::from_le_bytes(*id)));
        let vocab_size = self.config.vocab_size;
        if let Some(id) =
            target_buffers.targets.iter().find(|&&id| id != NO_TARGET && id as usize >= vocab_size)
        {
            let problem = format!("token {id} came, the vocabulary has {vocab_size} ids");
            return Err(broken(Operation::Tokens, problem));
        }
        self.wire.open.stats.exchange += began.elapsed();
        Ok(())
    }
}

/// The first row whose parameters are not the same in both.
fn differing_row(a: &[u8], b: &[u8]) -> Option<usize> {
    a.chunks(PARAMS_BYTES).zip(b.chunks(PARAMS_BYTES)).position(|(a, b)| a != b)
}
