//! Steps of every kind before the first real one: buffers are allocated, code is loaded, weights are paged
//! in.

use super::LmHead;
use super::buffers::{fill, resize};
use crate::adjust::{Additions, Adjustments, Counts, Penalties};
use crate::error::Result;
use crate::layout::even_part;
use crate::result::{Request, RowInputs};
use crate::rows::{HiddenRows, RowCounts};
use crate::sampling::{LISTED, SamplingParams};

impl LmHead {
    /// Runs steps of every kind with up to `rows` zero rows per replica, so that no later step of up to as
    /// many rows is the first of its kind. Collective, with the same arguments on every rank, and nothing but
    /// [`LmHead::step`] and [`Step::run_with`](super::Step::run_with).
    ///
    /// `rows` counts output rows: an engine that verifies k draft tokens of each sequence passes
    /// `sequences * (1 + k)`. Of each request there are
    ///
    /// * steps of `rows` rows with exact counts, learned counts and a capacity, without and with adjustments
    ///   (where the request takes them): logprobs of more rows than a chunk has run through several chunks;
    /// * exact steps of no rows, and of every power of two of the group's rows, since a device's kernels go
    ///   by these.
    ///
    /// # Errors
    /// As those two.
    pub fn warm_up(&mut self, rows: usize, requests: &[Request]) -> Result<()> {
        // Should a step panic, the head is poisoned, and rebuild() clears this too.
        self.warming_up = true;
        let result = self.run_warm_up(rows, requests);
        self.warming_up = false;
        result
    }

    fn run_warm_up(&mut self, rows: usize, requests: &[Request]) -> Result<()> {
        if requests.is_empty() {
            return Ok(());
        }
        let mut zeros = Vec::new();
        let shape = [rows, self.config.hidden_size, self.hidden_dtype.size()];
        resize(&mut zeros, shape, "rows of the warm-up")?;
        let inputs = Inputs::new(rows, self.config.vocab_size)?;
        let (replicas, replica) = (self.group.replicas(), self.group.replica_of(self.group.me()));
        let all = rows.saturating_mul(replicas);
        let powers = std::iter::successors(Some(1usize), |n| n.checked_mul(2)).take_while(|n| *n < all);
        for request in requests {
            let adjustable = !matches!(request, Request::Logprobs { processed: false, .. });
            for adjusted in [false, true] {
                if adjusted && !adjustable {
                    continue;
                }
                for total in [0].into_iter().chain(powers.clone()).chain([all]) {
                    let counts: Vec<usize> =
                        (0..replicas).map(|r| even_part(total, replicas, r).len()).collect();
                    let mine = counts[replica];
                    self.warm_up_step(RowCounts::Exact(counts), mine, request, &zeros, &inputs, adjusted)?;
                }
                for counts in [RowCounts::discover(rows), RowCounts::capacity(rows, rows)] {
                    self.warm_up_step(counts, rows, request, &zeros, &inputs, adjusted)?;
                }
            }
        }
        Ok(())
    }

    fn warm_up_step(
        &mut self,
        counts: RowCounts,
        rows: usize,
        request: &Request,
        zeros: &[u8],
        inputs: &Inputs,
        adjusted: bool,
    ) -> Result<()> {
        let (hidden, dtype) = (self.config.hidden_size, self.hidden_dtype);
        let zeros = HiddenRows::new(&zeros[..rows * hidden * dtype.size()], dtype, rows, hidden)?;
        let inputs = RowInputs {
            targets: matches!(request, Request::Logprobs { .. }).then_some(&inputs.targets[..rows]),
            sampling: (*request == Request::Sample).then_some(&inputs.sampling[..rows]),
            adjustments: adjusted.then(|| inputs.adjustments(rows)),
        };
        let begin = if adjusted { LmHead::step_adjusted } else { LmHead::step };
        begin(self, counts, request)?.run_with(zeros, &inputs).map(|_| ())
    }
}

/// What belongs to the rows: of every kind that there is.
struct Inputs {
    targets: Vec<i64>,
    sampling: Vec<SamplingParams>,
    allowed: Vec<i32>,
    /// One entry a row.
    offsets: Vec<usize>,
    ones: Vec<f32>,
    counts: Vec<u32>,
    in_prompt: Vec<bool>,
}

impl Inputs {
    fn new(rows: usize, vocab_size: usize) -> Result<Self> {
        const WHAT: &str = "inputs of the warm-up";
        // The first takes every round that there is; the others are drawn in other ways.
        let plain = SamplingParams::default();
        let kinds = [
            SamplingParams { top_k: LISTED + 1, top_p: 0.5, min_p: 0.1, ..plain },
            plain,
            SamplingParams { temperature: 0.0, ..plain },
            SamplingParams { top_k: 20, top_p: 0.5, ..plain },
            SamplingParams { min_p: 0.1, ..plain },
        ];
        let mut inputs = Inputs {
            targets: Vec::new(),
            sampling: Vec::new(),
            allowed: Vec::new(),
            offsets: (0..=rows).collect(),
            ones: Vec::new(),
            counts: Vec::new(),
            in_prompt: Vec::new(),
        };
        fill(&mut inputs.targets, 0, rows, WHAT)?;
        fill(&mut inputs.sampling, plain, rows, WHAT)?;
        inputs.sampling.iter_mut().zip(kinds.iter().cycle()).for_each(|(params, kind)| *params = *kind);
        fill(&mut inputs.allowed, -1, rows * vocab_size.div_ceil(32), WHAT)?;
        fill(&mut inputs.ones, 1.0, rows, WHAT)?;
        fill(&mut inputs.counts, 1, rows, WHAT)?;
        fill(&mut inputs.in_prompt, true, rows, WHAT)?;
        Ok(inputs)
    }

    /// Those of the first `rows` rows.
    fn adjustments(&self, rows: usize) -> Adjustments<'_> {
        let words = self.allowed.len() / self.targets.len().max(1);
        let (offsets, ids, ones) = (&self.offsets[..=rows], &self.targets[..rows], &self.ones[..rows]);
        Adjustments {
            allowed: Some(&self.allowed[..rows * words]),
            additions: Some(Additions { offsets, ids, values: ones }),
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
