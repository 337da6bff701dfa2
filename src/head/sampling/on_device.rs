//! Sampled tokens of a step on a device in which the host reads no parameters. If the parameters are in
//! device memory, everything is queued, so that a CUDA graph can capture it. If rows may have filters,
//! kernels make the searches of `cuts`, for every row in every step.

use crate::backend::cuts::{Cuts, SEARCH_BYTES, room_bytes};
use crate::backend::{Inputs, Job, Out, Which};
use crate::error::{Error, Result};
use crate::exchange::Operation;
use crate::finish::{Finish, Messages, Places, RowSampling};
use crate::head::buffers::{Arena, bytes_of, sum};
use crate::head::capacity::{ALIGNED, take};
use crate::head::logprobs::Telling;
use crate::head::run::{Compute, Lists, Run, StepScratch};
use crate::head::wire::{Via, Who};
use crate::memory::{Span, SpanMut};
use crate::merge::{Candidate, NO_TARGET};
use crate::params::SamplingRow;
use crate::result::{AnswerBuffers, RowInputs, TokenLogprobs};
use crate::rows::HiddenRows;
use crate::sampling::cut::{BINS, CUT_BYTES, Digits, Sum};
use crate::sampling::{DrawKind, Filters, SamplingParams};
use std::ops::Range;
use std::time::Instant;

const WHAT: &str = "sampling parameters";

/// Memory that lives from step to step.
#[derive(Default)]
pub(super) struct DeviceBuffers {
    /// [`SamplingRow`]s of this rank's rows, and of all rows.
    own: Arena,
    all: Arena,
    /// What the searches keep and send, and the parameters without the filters.
    cuts: Arena,
    tokens: Arena,
}

impl DeviceBuffers {
    pub fn arenas(&mut self) -> [&mut Arena; 4] {
        let DeviceBuffers { own, all, cuts, tokens } = self;
        [own, all, cuts, tokens]
    }
}

/// What the searches for cuts work with, all in device memory.
struct Searches<'a> {
    /// Parameters of all rows, with their filters.
    sampling: Span<'a>,
    /// What the passes know of each row.
    room: SpanMut<'a>,
    /// Searches of the rows decided here.
    searches: SpanMut<'a>,
    histograms: SpanMut<'a>,
    /// Histograms that came, `[shards, rows decided here]`.
    theirs: SpanMut<'a>,
    learned: SpanMut<'a>,
    found: SpanMut<'a>,
}

impl Run<'_> {
    /// Runs the whole request.
    pub(super) fn sampled_unseen(
        &mut self,
        compute: &mut Compute<'_>,
        hidden: HiddenRows<'_>,
        inputs: &RowInputs<'_>,
        logprobs: Option<TokenLogprobs>,
        mut answer: AnswerBuffers<'_>,
        scratch: &mut StepScratch,
    ) -> Result<()> {
        let StepScratch {
            own_rows,
            own_status,
            gathered,
            contract,
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
        let super::SamplingBuffers { unseen, placed_rows, target_buffers, .. } = sampling;
        let DeviceBuffers { own: own_params, all: all_params, cuts, tokens } = unseen;
        let (me, size, one) = (self.wire.group.me(), self.wire.group.size(), self.wire.group.replicas() == 1);
        let mut status = self.begin_status(compute, inputs, hidden.len(), input_status)?;
        let of_own = self.unseen_rows(compute, inputs, status.reborrow(), (own_params, placed_rows))?;
        let (rows, own) = match self.wire.open.padded {
            true => {
                let arenas = (own_rows, own_status, gathered, contract);
                self.gather_padded(compute, (hidden, &inputs.on_device, of_own), arenas, lists)?
            }
            false => self.gather(compute, hidden, (own_rows, own_status, gathered), lists)?,
        };
        let each = size_of::<SamplingRow>();
        let all = match one {
            true => own_params.at_least(self.backend, self.memory, rows.len() * each, WHAT)?.into_span(),
            false => {
                self.share_inputs((WHAT, Operation::SamplingParams), each, lists, (own_params, all_params))?
            }
        };
        self.count_product(rows.len());
        let adjustments = self.gather_adjustments(inputs.adjustments.as_ref(), lists, small, adjusting)?;
        let placed = self.place_adjustments(compute, &inputs.on_device, status.reborrow(), lists, placed)?;
        let own = self.with_status(compute, own, status)?;
        let own = self.of_answered(own);

        let (began, n) = (Instant::now(), rows.len());
        let job = Job { rows, epilogue: self.config.epilogue(), adjustments, placed };
        let bytes = bytes_of("candidates", [n, size_of::<Candidate>()])?;
        let mut candidates = send.at_least(self.backend, self.memory, bytes, "candidates")?;
        let raw = logprobs.is_some_and(|told| !told.processed) && job.is_adjusted();
        let bare = if self.wire.open.header.filters == Filters::None {
            compute.run(&job, Out::Drawn(RowSampling::Device(all), candidates.reborrow()))?;
            all
        } else {
            compute.hold(&job, raw)?;
            self.filtered(compute, all, candidates.reborrow(), lists, cuts)?
        };
        self.wire.open.stats.matmul += began.elapsed();

        let began = Instant::now();
        let place =
            |rows: Range<usize>| rows.start * size_of::<Candidate>()..rows.end * size_of::<Candidate>();
        lists.outgoing.clear();
        lists.outgoing.extend((0..size).map(|member| place(self.answered(member))));
        let mine = self.answered(me);
        lists.sizes.clear();
        lists.sizes.resize(size, place(mine.clone()).len());
        let bytes = self.deliver(candidates, recv, lists, false)?;
        let answered = self.answered_of(mine.len());
        let wanted = logprobs.is_some();
        let of_mine = if wanted { 4 * mine.len() } else { 0 };
        let mut tokens = tokens.at_least(self.backend, self.memory, of_mine, "tokens")?;
        if wanted {
            compute.inputs(Inputs::Fill { words: tokens.reborrow(), value: NO_TARGET })?;
        }
        let (starts, shards) = (&lists.starts[..], self.wire.shards());
        let finish_draw = Finish::Draw {
            from: Messages { bytes, starts, shards, rows: mine.len(), answered, own },
            sampling: RowSampling::Device(bare.part(mine.start * each..(mine.start + answered) * each)),
            places: Places::Each(1),
            vocab_size: self.config.vocab_size,
            ids: answer.ids.reborrow(),
            tokens: tokens.reborrow().part(0..if wanted { 4 * answered } else { 0 }),
            row_status: answer.row_status.reborrow(),
        };
        compute.finish(finish_draw, finish)?;
        self.wire.open.stats.exchange += began.elapsed();
        let Some(TokenLogprobs { top_n, .. }) = logprobs else { return Ok(()) };

        // Every shard learns the tokens of all rows. One rank sends the token of each row: the tp ranks of a
        // replica have drawn the same tokens, unless each has a part of the rows.
        target_buffers.targets.clear();
        target_buffers.answered.clear();
        target_buffers.answered.extend((0..size).map(|member| self.answered(member)));
        let all_tokens = 0..4 * n;
        let speaks = |run: &Self, member: usize| run.wire.answered(member, true);
        let of_me = speaks(self, me);
        let mine = tokens.into_span().part(4 * (of_me.start - mine.start)..4 * (of_me.end - mine.start));
        let mut all =
            target_buffers.placed.all().at_least(self.backend, self.memory, all_tokens.end, "tokens")?;
        if size == 1 {
            let parts = std::slice::from_ref(&all_tokens);
            compute.inputs(Inputs::Parts { from: mine, parts, out: all.reborrow() })?;
        } else {
            lists.sizes.clear();
            lists.sizes.extend((0..size).map(|member| 4 * speaks(self, member).len()));
            let gather = (Operation::Tokens, Who::Everyone);
            let places = (all.reborrow(), &lists.sizes[..]);
            self.wire.all_gather(gather, mine, places, false, Via::Rows(self.stream))?;
        }
        let of = if raw { Which::Raw } else { Which::Adjusted };
        let telling = Telling { job: None, of, rows: n, targets: 1, top_n, drawn: true, own };
        let parts = std::slice::from_ref(&all_tokens);
        self.tell(compute, telling, target_buffers, parts, (send, recv), lists, small, answer, finish)
    }

    /// Draws each row's candidate from what its filters keep of the held logits. Returns the parameters
    /// without the filters, for the rows' owners.
    fn filtered<'b>(
        &mut self,
        compute: &mut Compute<'_>,
        sampling: Span<'b>,
        candidates: SpanMut<'_>,
        lists: &mut Lists,
        arena: &'b mut Arena,
    ) -> Result<Span<'b>> {
        let (me, size) = (self.wire.group.me(), self.wire.group.size());
        let n = sampling.len() / size_of::<SamplingRow>();
        // One member decides a row: the tp ranks of a replica divide its rows.
        let mine = self.wire.answered(me, true);
        let busiest = (0..size).map(|member| self.wire.answered(member, true).len()).max().unwrap_or(0);
        let digits = Digits::planned(busiest, size);
        let of_row = 8 * digits.each().map(crate::sampling::cut::Digit::bins).max().unwrap_or(BINS);
        let sizes = [
            4 * n,
            bytes_of("largest logits", [size, 4 * n])?,
            bytes_of(WHAT, [n, size_of::<SamplingRow>()])?,
            room_bytes(n)?,
            mine.len() * SEARCH_BYTES,
            bytes_of("histograms", [n, of_row])?,
            bytes_of("histograms", [size, mine.len() * of_row])?,
            bytes_of("cuts", [size, mine.len() * CUT_BYTES])?,
            n * CUT_BYTES,
        ];
        let all = sum(&sizes.map(|bytes| bytes.next_multiple_of(ALIGNED)), "searches of the rows")?;
        let mut left = arena.at_least(self.backend, self.memory, all, "searches of the rows")?;
        let [mut own, mut maxima, mut bare, mut room, searches, histograms, theirs, learned, found] =
            sizes.map(|bytes| take(&mut left, bytes));

        compute.cut(Cuts::Maxima { out: own.reborrow() })?;
        let maxima = if size == 1 {
            own.into_span()
        } else {
            lists.sizes.clear();
            lists.sizes.resize(size, 4 * n);
            let gather = (Operation::LargestLogits, Who::Everyone);
            let places = (maxima.reborrow(), &lists.sizes[..]);
            self.wire.all_gather(gather, own.into_span(), places, false, Via::Rows(self.stream))?;
            maxima.into_span()
        };
        let digit = digits.each().next().expect("a round");
        let (to, rooms) = (bare.reborrow(), room.reborrow());
        compute.cut(Cuts::Begin { sampling, maxima, shards: size, digit, room: rooms, bare: to })?;
        let mut searches = Searches { sampling, room, searches, histograms, theirs, learned, found };
        for sum in [Sum::Ids, Sum::Masses] {
            self.search(compute, sum, digits, lists, &mut searches)?;
        }
        compute.cut(Cuts::Candidates { room: searches.room.as_span(), out: candidates })?;
        Ok(bare.into_span())
    }

    /// Runs the search for `sum` over all rows.
    fn search(
        &mut self,
        compute: &mut Compute<'_>,
        sum: Sum,
        digits: Digits,
        lists: &mut Lists,
        on: &mut Searches<'_>,
    ) -> Result<()> {
        let (me, shards) = (self.wire.group.me(), self.wire.group.size());
        let decided = |run: &Self, member: usize| run.wire.answered(member, true);
        let (first, mine) = (decided(self, me).start, decided(self, me).len());
        let mut rounds = digits.each().peekable();
        let begins = rounds.peek().copied();
        while let Some(digit) = rounds.next() {
            let of_row = 8 * digit.bins();
            let n = on.sampling.len() / size_of::<SamplingRow>();
            let mut own = on.histograms.reborrow().part(0..n * of_row);
            compute.cut(Cuts::Histograms { digit, room: on.room.as_span(), out: own.reborrow() })?;
            let histograms = if shards == 1 {
                own.into_span()
            } else {
                lists.outgoing.clear();
                lists.outgoing.extend((0..shards).map(|member| {
                    let rows = decided(self, member);
                    rows.start * of_row..rows.end * of_row
                }));
                lists.sizes.clear();
                lists.sizes.resize(shards, mine * of_row);
                let mut theirs = on.theirs.reborrow().part(0..shards * mine * of_row);
                let (send, places) =
                    ((own.as_span(), &lists.outgoing[..]), (theirs.reborrow(), &lists.sizes[..]));
                self.wire.all_to_all(Operation::Histograms, send, places, false, Via::Rows(self.stream))?;
                theirs.into_span()
            };
            let (sampling, room) = (on.sampling, on.room.as_span());
            let (searches, out) = (on.searches.reborrow(), on.learned.reborrow());
            compute.cut(Cuts::Learn {
                sum,
                digit,
                histograms,
                shards,
                first,
                sampling,
                room,
                searches,
                out,
            })?;
            let found = if shards == 1 {
                on.learned.as_span()
            } else {
                let each = mine * CUT_BYTES;
                lists.outgoing.clear();
                lists.outgoing.extend((0..shards).map(|member| member * each..(member + 1) * each));
                lists.sizes.clear();
                lists.sizes.extend((0..shards).map(|member| decided(self, member).len() * CUT_BYTES));
                let (send, places) =
                    ((on.learned.as_span(), &lists.outgoing[..]), (on.found.reborrow(), &lists.sizes[..]));
                self.wire.all_to_all(Operation::Cuts, send, places, false, Via::Rows(self.stream))?;
                on.found.as_span()
            };
            let (next, room) = (rounds.peek().copied(), on.room.reborrow());
            compute.cut(Cuts::Next { sum, found, next, sampling, room })?;
        }
        let (sampling, room) = (on.sampling, on.room.reborrow());
        match begins {
            Some(digit) => compute.cut(Cuts::End { sum, digit, sampling, room }),
            None => Ok(()),
        }
    }

    /// The own parameters as [`SamplingRow`]s in device memory; a padded step has padding among them.
    fn unseen_rows<'b>(
        &mut self,
        compute: &mut Compute<'_>,
        inputs: &RowInputs<'_>,
        mut status: SpanMut<'_>,
        (room, of_host): (&'b mut Arena, &mut Vec<SamplingRow>),
    ) -> Result<Span<'b>> {
        let (vocab_size, each) = (self.config.vocab_size, size_of::<SamplingRow>());
        let params = inputs.sampling.unwrap_or_default();
        let mine = if inputs.on_device.sampling.is_some() { status.len() / 4 } else { params.len() };
        let bytes = bytes_of(WHAT, [self.rows_of_replica(mine), each])?;
        let mut out = room.at_least(self.backend, self.memory, bytes, WHAT)?;
        if self.wire.open.padded {
            // Padding: nobody is answered these rows.
            compute.inputs(Inputs::Fill { words: out.reborrow(), value: 0 })?;
        }
        let unfiltered = self.wire.open.header.filters == Filters::None;
        let is_wrong = |params: &SamplingParams| unfiltered && params.kind(vocab_size) != DrawKind::Best;
        if let Some(row) = params.iter().position(is_wrong) {
            let (wanted, got) = ("none in a step that has no filters", format!("{:?}", params[row]));
            let fix = "begin the step with Filters::ByDevice or ByHost";
            return Err(Error::request(format!("filter of row {row}"), wanted, got, fix));
        }
        of_host.clear();
        of_host.extend(params.iter().map(|params| params.to_row(vocab_size)));
        for (part, at) in self.own_parts(mine) {
            let out = out.reborrow().part(at * each..(at + part.len()) * each);
            match &inputs.on_device.sampling {
                Some(from) => {
                    let (from, status) =
                        (from.rows(part.clone()), status.reborrow().part(4 * part.start..4 * part.end));
                    let from = &from;
                    compute.inputs(Inputs::SamplingRows { from, vocab_size, unfiltered, out, status })?;
                }
                None => {
                    let from = Span::host(bytemuck::cast_slice::<_, u8>(of_host));
                    let bytes = part.start * each..part.end * each;
                    compute.inputs(Inputs::Parts { from, parts: std::slice::from_ref(&bytes), out })?;
                }
            }
        }
        Ok(out.into_span())
    }
}
