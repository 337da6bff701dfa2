//! Steps of every kind before the first real one: buffers are allocated, code is loaded, weights are paged
//! in.

use super::buffers::{Arena, bytes_of, fill};
use super::{LmHead, StepOptions};
use crate::adjust::{Adjustments, Counts, DeviceAdjustments, LogitBias, Penalties};
use crate::backend::On;
use crate::error::Result;
use crate::layout::even_part;
use crate::memory::{Memory, Span, Stream};
use crate::result::{AnswerBuffers, DeviceInputs, Request, RowInputs};
use crate::rows::{HiddenRows, RowCounts};
use crate::sampling::cut::Digits;
use crate::sampling::{Filters, LISTED, SamplingParams};

impl LmHead {
    /// Runs steps of every kind with up to `rows` zero rows per replica, so that no later step of up to as
    /// many rows is the first of its kind. Collective, with the same arguments on every rank; it runs its
    /// steps by [`LmHead::begin`] and [`LmHead::run_into`].
    ///
    /// `rows` counts output rows: an engine that verifies k draft tokens of each sequence passes `sequences *
    /// (1 + k)`. For each request it runs
    ///
    /// * steps of `rows` rows with exact counts, learned counts and a capacity, each without and with
    ///   adjustments (where the request takes them). Logprobs of more rows than fit a chunk run through
    ///   several chunks, and also with the rows of each replica alone;
    /// * exact steps of no rows, and of every power of two of the group's rows, by which a device picks its
    ///   kernels.
    ///
    /// Adjustments in host memory have one entry of each kind a row, and no step has a workspace of the
    /// engine's. So later steps may allocate once more where they have more entries, or partials of a device
    /// in such a workspace.
    ///
    /// # Errors
    /// As [`LmHead::begin`] and [`LmHead::run_into`].
    pub fn warm_up(&mut self, rows: usize, requests: &[Request]) -> Result<()> {
        self.warm_up_in(Memory::Host, Stream::NONE, rows, (requests, DeviceAdjustments::default()))
    }

    /// [`LmHead::warm_up`] for steps on a stream whose rows and answers are in the memory of the backend's
    /// device. Where `adjustments` names any, each kind of step is also run with such adjustments in device
    /// memory: they must be the [`StepOptions::device_adjustments`] of the steps to come.
    ///
    /// # Errors
    /// As `warm_up`; `Unsupported` where the exchange does not take that memory.
    pub fn warm_up_on_device(
        &mut self,
        stream: Stream,
        rows: usize,
        requests: &[Request],
        adjustments: DeviceAdjustments,
    ) -> Result<()> {
        self.warm_up_in(self.backend.memory(), stream, rows, (requests, adjustments))
    }

    fn warm_up_in(
        &mut self,
        memory: Memory,
        stream: Stream,
        rows: usize,
        kinds: (&[Request], DeviceAdjustments),
    ) -> Result<()> {
        // If a step panics this stays set; the head is then poisoned, and rebuild() clears both.
        self.warming_up = true;
        let result = self.run_warm_up(memory, stream, rows, kinds);
        self.warming_up = false;
        result
    }

    fn run_warm_up(
        &mut self,
        memory: Memory,
        stream: Stream,
        rows: usize,
        (requests, placed): (&[Request], DeviceAdjustments),
    ) -> Result<()> {
        const WHAT: &str = "rows of the warm-up";
        if requests.is_empty() {
            return Ok(());
        }
        let row_bytes = self.config.hidden_size * self.hidden_dtype.size();
        let zeros = self.backend.allocate(memory, bytes_of(WHAT, [rows, row_bytes])?, WHAT)?;
        // All rows are the first one: rows that are picked take more memory than contiguous ones.
        let picked = self.backend.allocate(memory, bytes_of(WHAT, [rows, 8])?, WHAT)?;
        let mask_bytes = if placed.allowed { 4 * self.config.vocab_size.div_ceil(32) } else { 0 };
        let mask = self.backend.allocate(memory, bytes_of(WHAT, [rows, mask_bytes])?, WHAT)?;
        let mut answer = Answer { stream, memory: Arena::default() };
        let inputs = Inputs::new(rows, requests, self.config.vocab_size)?;
        let on_device = Adjusted::OnDevice(placed, mask.span());
        let all_kinds = [Adjusted::Not, Adjusted::OnHost, on_device];
        let adjusted_kinds = if placed.is_empty() { &all_kinds[..2] } else { &all_kinds[..] };
        let (replicas, replica) =
            (self.wire.group.replicas(), self.wire.group.replica_of(self.wire.group.me()));
        let all = rows.saturating_mul(replicas);
        let powers = std::iter::successors(Some(1usize), |n| n.checked_mul(2)).take_while(|n| *n < all);
        // With more rows a search takes more rounds, each of fewer bytes a row.
        let rounds = |mine: usize| {
            let group = &self.wire.group;
            let decided = (0..group.size()).map(|member| group.answered_rows(mine, member, true).len());
            Digits::planned(decided.max().unwrap_or(0), group.size()).rounds()
        };
        let most_of_rounds: Vec<usize> = (1..rows).filter(|&mine| rounds(mine) != rounds(mine + 1)).collect();
        for request in requests {
            let adjustable = !matches!(request, Request::Logprobs { processed: false, .. });
            for &adjusted in adjusted_kinds.iter().take(if adjustable { adjusted_kinds.len() } else { 1 }) {
                let options = StepOptions { device_adjustments: adjusted.placed(), ..StepOptions::default() };
                let mut step = |head: &mut Self, counts: RowCounts, mine: usize, sampled: usize| {
                    let inputs = inputs.of(request, mine, sampled, adjusted);
                    let hidden = (zeros.span(), picked.span().part(0..8 * mine));
                    head.warm_up_step(&counts, request, hidden, (&inputs, options), &mut answer)
                };
                for total in [0].into_iter().chain(powers.clone()).chain([all]) {
                    let counts: Vec<usize> =
                        (0..replicas).map(|r| even_part(total, replicas, r).len()).collect();
                    let mine = counts[replica];
                    step(self, RowCounts::Exact(counts), mine, 0)?;
                }
                for counts in [RowCounts::discover(rows), RowCounts::capacity(rows, rows)] {
                    step(self, counts, rows, 0)?;
                }
                if !adjusted.placed().is_empty() {
                    // Masks of fewer rows than the shape has are sent; masks of as many rows may be read in
                    // place.
                    let fewer = rows.saturating_sub(1);
                    step(self, RowCounts::capacity(rows, fewer), fewer, 0)?;
                }
                match request {
                    Request::Sample { .. } => {
                        for sampled in 1..inputs.sampling.len() {
                            step(self, RowCounts::Exact(vec![rows; replicas]), rows, sampled)?;
                        }
                        for &mine in &most_of_rounds {
                            step(self, RowCounts::Exact(vec![mine; replicas]), mine, CUT)?;
                        }
                    }
                    // A replica has most rows of a chunk where no other has any left.
                    Request::Logprobs { .. } if replicas > 1 => {
                        for alone in 0..replicas {
                            let of = |r| if r == alone { rows } else { 0 };
                            let counts: Vec<usize> = (0..replicas).map(of).collect();
                            let mine = counts[replica];
                            step(self, RowCounts::Exact(counts), mine, 0)?;
                        }
                    }
                    _ => {}
                }
            }
            let on_device = [Adjusted::Not, on_device];
            let adjusted = &on_device[..if placed.is_empty() { 1 } else { 2 }];
            let unseen = match *request {
                _ if memory == Memory::Host => &[][..],
                Request::Sample { logprobs: None } => &[Filters::None, Filters::ByDevice],
                Request::Sample { .. } => &[Filters::ByDevice],
                _ => &[],
            };
            for (&filters, &adjusted) in
                unseen.iter().flat_map(|of| adjusted.iter().map(move |how| (of, how)))
            {
                let device_adjustments = adjusted.placed();
                let options = StepOptions { filters, device_adjustments, ..StepOptions::default() };
                // As above, with the rows of a capacity, and with the most rows of each number of rounds.
                let fewer = (!device_adjustments.is_empty()).then(|| (rows, rows.saturating_sub(1)));
                let searched = if filters == Filters::ByDevice { &most_of_rounds[..] } else { &[] };
                let whole = searched.iter().chain([&rows]).map(|&all| (all, all));
                for (all, mine) in whole.chain(fewer) {
                    let hidden = (zeros.span(), picked.span().part(0..8 * mine));
                    let inputs = inputs.of(request, mine, PLAIN, adjusted);
                    let exact = (all == mine).then(|| RowCounts::Exact(vec![mine; replicas]));
                    for counts in exact.into_iter().chain([RowCounts::capacity(all, mine)]) {
                        self.warm_up_step(&counts, request, hidden, (&inputs, options), &mut answer)?;
                    }
                }
            }
        }
        if memory == Memory::Host { Ok(()) } else { self.prepare_watch(stream) }
    }

    fn warm_up_step(
        &mut self,
        counts: &RowCounts,
        request: &Request,
        (zeros, picked): (Span<'_>, Span<'_>),
        (inputs, options): (&RowInputs<'_>, StepOptions),
        answer: &mut Answer,
    ) -> Result<()> {
        let (dtype, hidden) = (self.hidden_dtype, self.config.hidden_size);
        let row_bytes = hidden * dtype.size();
        let (all, rows) = (zeros.len().checked_div(row_bytes).unwrap_or(0), picked.len() / 8);
        let memory = zeros.memory();
        let hidden = HiddenRows::strided(zeros, dtype, all, hidden, row_bytes)?.select_span(picked, 8)?;
        let (answered, vocab_size) = (self.answered_rows(rows).len(), self.config.vocab_size);
        let bytes = AnswerBuffers::bytes(request, answered, vocab_size)?;
        let place = answer.memory.at_least(&*self.backend, memory, bytes, "answer of the warm-up")?;
        let buffers = AnswerBuffers::carve(place, request, answered, vocab_size);
        let options = StepOptions {
            adjusted: inputs.adjustments.is_some(),
            on_device: memory != Memory::Host,
            ..options
        };
        let ticket = self.begin(counts, request, options)?;
        let on = On { stream: answer.stream, workspace: None };
        self.run_into(ticket, hidden, inputs, buffers, on).map(|_| ())
    }
}

/// Which adjustments a step has.
#[derive(Clone, Copy)]
enum Adjusted<'a> {
    Not,
    OnHost,
    /// In device memory: at most so many, and masks of all rows. Their content does not matter: messages have
    /// one shape.
    OnDevice(DeviceAdjustments, Span<'a>),
}

impl Adjusted<'_> {
    fn placed(self) -> DeviceAdjustments {
        if let Adjusted::OnDevice(of, _) = self { of } else { DeviceAdjustments::default() }
    }
}

/// Buffers for answers that nobody reads.
struct Answer {
    stream: Stream,
    memory: Arena,
}

/// Index in [`Inputs::sampling`] of rows that all search for cuts.
const CUT: usize = 1;
/// Index there of rows without a filter.
const PLAIN: usize = 3;

/// Inputs of every kind for all rows.
struct Inputs {
    /// As many per row as the request with the most targets has.
    targets: Vec<i64>,
    /// Ways to sample the rows: all ways mixed; all rows in one of the two ways that take the most memory,
    /// then in the other; all rows without a filter.
    sampling: [Vec<SamplingParams>; 4],
    allowed: Vec<i32>,
    /// One entry a row, of id 0.
    offsets: Vec<usize>,
    ids: Vec<i64>,
    ones: Vec<f32>,
    counts: Vec<u32>,
    in_prompt: Vec<bool>,
}

impl Inputs {
    fn new(rows: usize, requests: &[Request], vocab_size: usize) -> Result<Self> {
        const WHAT: &str = "inputs of the warm-up";
        // The first kind takes every round that there is; the others are drawn in other ways.
        let plain = SamplingParams::default();
        let cut = SamplingParams { top_k: LISTED + 1, top_p: 0.5, min_p: 0.1, ..plain };
        let listed = SamplingParams { top_k: LISTED.min(vocab_size.saturating_sub(1)), top_p: 0.5, ..plain };
        let kinds = [
            cut,
            plain,
            SamplingParams { temperature: 0.0, ..plain },
            SamplingParams { top_k: 20, top_p: 0.5, ..plain },
            SamplingParams { min_p: 0.1, ..plain },
        ];
        let mut inputs = Inputs {
            targets: Vec::new(),
            sampling: Default::default(),
            allowed: Vec::new(),
            offsets: (0..=rows).collect(),
            ids: Vec::new(),
            ones: Vec::new(),
            counts: Vec::new(),
            in_prompt: Vec::new(),
        };
        let per_row = |request: &Request| match *request {
            Request::Logprobs { targets, .. } => targets,
            _ => 0,
        };
        let targets = requests.iter().map(per_row).max().unwrap_or(0);
        fill(&mut inputs.targets, 0, bytes_of(WHAT, [rows, targets])?, WHAT)?;
        for (params, kinds) in inputs.sampling.iter_mut().zip([&kinds[..], &[cut], &[listed], &[plain]]) {
            fill(params, plain, rows, WHAT)?;
            params.iter_mut().zip(kinds.iter().cycle()).for_each(|(params, kind)| *params = *kind);
        }
        fill(&mut inputs.ids, 0, rows, WHAT)?;
        fill(&mut inputs.allowed, -1, rows * vocab_size.div_ceil(32), WHAT)?;
        fill(&mut inputs.ones, 1.0, rows, WHAT)?;
        fill(&mut inputs.counts, 1, rows, WHAT)?;
        fill(&mut inputs.in_prompt, true, rows, WHAT)?;
        Ok(inputs)
    }

    /// The inputs of a step of `rows` rows.
    fn of<'a>(
        &'a self,
        request: &Request,
        rows: usize,
        sampled: usize,
        adjusted: Adjusted<'a>,
    ) -> RowInputs<'a> {
        let targets = match *request {
            Request::Logprobs { targets, .. } => Some(&self.targets[..rows * targets]),
            _ => None,
        };
        let sampling = matches!(request, Request::Sample { .. }).then(|| &self.sampling[sampled][..rows]);
        let adjustments = matches!(adjusted, Adjusted::OnHost).then(|| self.adjustments(rows));
        let mut on_device = DeviceInputs::default();
        if let Adjusted::OnDevice(DeviceAdjustments { allowed: true, .. }, mask) = adjusted {
            let each = self.allowed.len() / self.ids.len().max(1);
            on_device.allowed = Some(mask.part(0..4 * each * rows));
        }
        RowInputs { targets, sampling, adjustments, on_device }
    }

    /// The adjustments of the first `rows` rows.
    fn adjustments(&self, rows: usize) -> Adjustments<'_> {
        let words = self.allowed.len() / self.ids.len().max(1);
        let (offsets, ids, ones) = (&self.offsets[..=rows], &self.ids[..rows], &self.ones[..rows]);
        Adjustments {
            allowed: Some(&self.allowed[..rows * words]),
            logit_bias: Some(LogitBias { offsets, ids, values: ones }),
            penalties: Some(Penalties {
                repetition: ones,
                frequency: ones,
                presence: ones,
                counts: Counts {
                    offsets,
                    ids,
                    counts: &self.counts[..rows],
                    in_prompt: &self.in_prompt[..rows],
                },
            }),
        }
    }
}
