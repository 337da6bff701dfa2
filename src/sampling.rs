//! Sampling: one token per row from its logits, the same whatever the sharding, the batch and the row's place
//! in it.
//!
//! For the row's logits `l_v` (f32, after adjustments), temperature T > 0 and `z_v = l_v / T` in f64, an id v
//! survives
//!
//! 1. **min_p**: where `p_v >= min_p · p_max`, that is `(l_v - l_max) / T >= ln(min_p)`, both sides in f32;
//! 2. **top_k**: among the k largest of those, ties by lowest id;
//! 3. **top_p**: in the smallest set of the largest of those, ties by lowest id, whose mass is at least
//!    `top_p` of all of theirs.
//!
//! The answer is the survivor with the largest `z_v + g_v`, ties by lowest id, where `g_v` is the row's
//! Gumbel noise for that id (the Gumbel-max trick: it is distributed as the softmax of the survivors' z).
//! Temperature 0 is greedy: the largest logit.
//!
//! ```
//! use lmhead::backend::cpu::CpuBackend;
//! use lmhead::exchange::local;
//! use lmhead::weights::synthetic;
//! use lmhead::{HeadConfig, HeadGroup, HiddenRows, LmHead, Output, Quantization, Request, RowCounts};
//! use lmhead::{RowInputs, SamplingParams};
//! use std::sync::Arc;
//!
//! # fn main() -> lmhead::Result<()> {
//! let preset = synthetic::preset("tiny")?;
//! let config = HeadConfig::new(preset.vocab_size, preset.hidden_size);
//! let group = HeadGroup::data_parallel(1, 0)?; // one rank; several give the same tokens
//! let shard = synthetic::shard(&preset.spec(), 0, 0..preset.vocab_size, Quantization::None, None)?;
//! let (exchange, backend) = (Arc::new(local::group(1).remove(0)), Arc::new(CpuBackend::new(None)?));
//! let mut head = LmHead::new(&config, group, Arc::new(shard), exchange, backend)?;
//!
//! // A mixed batch: one request's 17th token at temperature 0.8 within a nucleus, another one's first,
//! // greedily.
//! let params = [
//!     SamplingParams { seed: 42, position: 17, temperature: 0.8, top_p: 0.95, ..SamplingParams::default() },
//!     SamplingParams { temperature: 0.0, ..SamplingParams::default() },
//! ];
//! for (row, params) in params.iter().enumerate() {
//!     params.check(row)?; // when a request comes in
//! }
//! let bytes: Vec<u8> =
//!     (0..2).flat_map(|row| synthetic::hidden_row(0, row, preset.hidden_size, preset.dtype)).collect();
//! let hidden = HiddenRows::new(&bytes, preset.dtype, 2, preset.hidden_size)?;
//! let inputs = RowInputs { sampling: Some(&params), ..RowInputs::default() };
//! let answer = head.step(RowCounts::exact(&[2]), &Request::sample())?.run_with(hidden, &inputs)?;
//! let Output::Sample { ids, .. } = answer.output else { unreachable!() };
//! assert!(ids.iter().all(|id| (0..preset.vocab_size as i64).contains(id)));
//! # Ok(())
//! # }
//! ```
//!
//! * [`philox`]: the noise, a function of (seed, position, id) alone.
//! * [`mass`]: an id's unnormalised probability as a fixed-point number, so that sums do not depend on order.
//! * `score`: compares `z_v + g_v` without rounding.
//! * [`cut`]: finds the k-th largest logit, or the end of the nucleus, from histograms and in a number of
//!   rounds that does not depend on the logits.

pub mod cut;
pub mod mass;
pub mod philox;
pub(crate) mod score;

use crate::error::{Error, Result};
use crate::merge::Candidate;
use crate::params::{LMHEAD_LISTED, SamplingRow};
use mass::Scale;
use score::Drawn;

/// How one row is sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingParams {
    /// Seed of the row's request. Rows with the same seed and position get the same noise.
    pub seed: u64,
    /// Absolute position of the token that is sampled, so that no two tokens of a request share noise.
    pub position: u64,
    /// Finite and at least 0. 0 takes the largest logit, whatever the filters are.
    pub temperature: f32,
    /// Keeps only the k largest logits; 0, or the vocabulary size and above, keeps all.
    pub top_k: usize,
    /// Keeps only the smallest set of ids with at least this probability, in (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keeps only ids with at least this fraction of the largest probability, in [0, 1]; 0 keeps all.
    pub min_p: f32,
}

impl Default for SamplingParams {
    /// The softmax at temperature 1, unfiltered; seed and position 0.
    fn default() -> Self {
        SamplingParams { seed: 0, position: 0, temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0 }
    }
}

/// Who knows which filters (top_k, top_p, min_p) the rows of a sampling step have. The same on every rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Filters {
    /// The host looks at the parameters of all rows, and the step takes no more rounds than they need.
    #[default]
    ByHost = 0,
    /// No row has an effective filter. For steps on a device, without logprobs: each shard draws in the
    /// epilogue of its matmul. The host does not look at the parameters; a row that has a filter after all
    /// gets the status of bad input.
    None = 1,
    /// Only the device knows them. For steps on a device: every step takes the rounds of all filters,
    /// whatever its rows have, so that a CUDA graph can replay it with any parameters.
    ByDevice = 2,
}

impl Filters {
    pub(crate) fn of_byte(byte: u8) -> Option<Self> {
        [Filters::ByHost, Filters::None, Filters::ByDevice].into_iter().find(|filters| *filters as u8 == byte)
    }
}

impl std::fmt::Display for Filters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Filters::ByHost => "the host knows them",
            Filters::None => "no row has one",
            Filters::ByDevice => "the device alone knows them",
        })
    }
}

/// Bytes of a row's parameters as they are sent to the shards.
pub(crate) const PARAMS_BYTES: usize = size_of::<SamplingRow>();

/// Up to this k, shards send their k best candidates in one round. Above it the k-th largest logit is
/// searched for, which then costs no more bytes: 8 per candidate, against four histograms of 256 words (or
/// more histograms with fewer words in total).
pub(crate) const LISTED: usize = LMHEAD_LISTED as usize;

/// What must be known about a row before its token can be drawn. Depends only on the parameters, which every
/// rank knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DrawKind {
    /// The best id of every shard: by logit at temperature 0, else by score.
    Best,
    /// The k best logits of every shard; the row's owner filters and draws.
    Listed { k: usize },
    /// The largest logit, with which the shards filter and draw.
    Threshold,
    /// The largest logit; then the k-th largest and the end of the nucleus, each by a search.
    Cut { top_k: Option<u32>, nucleus: bool },
}

impl SamplingParams {
    /// Checks the parameters; `row` is only named in errors. Best called when a request comes in: in a step
    /// of several ranks a refused row ends the step on all of them, and the head has to be rebuilt.
    ///
    /// # Errors
    /// `Request` naming the row, the parameter and what it may be.
    pub fn check(&self, row: usize) -> Result<()> {
        let refuse = |name: &str, wanted: &str, got: f32, fix: &str| {
            Err(Error::request(format!("{name} of row {row}"), wanted, got, fix))
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            let wanted = "a finite number of at least 0";
            return refuse(
                "temperature",
                wanted,
                self.temperature,
                "0 is greedy, 1 the model's distribution",
            );
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", "a number above 0 and at most 1", self.top_p, "1 filters nothing");
        }
        if !(0.0..=1.0).contains(&self.min_p) {
            return refuse("min_p", "a number from 0 to 1", self.min_p, "0 filters nothing");
        }
        Ok(())
    }

    /// What must be known before a token can be drawn from a vocabulary of this size.
    pub(crate) fn kind(&self, vocab_size: usize) -> DrawKind {
        let top_k = (self.top_k > 0 && self.top_k < vocab_size).then_some(self.top_k);
        let nucleus = self.top_p < 1.0;
        match top_k {
            _ if self.temperature == 0.0 => DrawKind::Best,
            Some(k) if k <= LISTED => DrawKind::Listed { k },
            Some(k) => DrawKind::Cut { top_k: Some(k as u32), nucleus },
            None if nucleus => DrawKind::Cut { top_k: None, nucleus },
            None if self.min_p > 0.0 => DrawKind::Threshold,
            None => DrawKind::Best,
        }
    }

    /// Filters and draws the row's token from candidates, best first, that include the `top_k` best of a
    /// vocabulary of this size.
    pub(crate) fn choose(&self, candidates: &[Candidate], vocab_size: usize) -> Option<u32> {
        let scale = Scale::new(self, candidates.first()?.value, vocab_size);
        let kept = &candidates[..candidates.len().min(self.top_k)];
        let mut kept = &kept[..kept.partition_point(|c| scale.reaches(c.value))];
        if self.top_p < 1.0 {
            let masses = || kept.iter().map(|c| scale.mass(c.value));
            let goal = mass::share(self.top_p, masses().sum());
            let mut sum = 0;
            let short = masses().take_while(|mass| {
                sum += mass;
                sum < goal
            });
            kept = &kept[..kept.len().min(short.count() + 1)];
        }
        let mut best = Drawn::nothing();
        kept.iter().for_each(|&candidate| best.offer(self, candidate));
        best.id()
    }

    /// The form that kernels and other ranks read. Parameters that mean the same for this vocabulary have the
    /// same bytes.
    pub fn to_row(&self, vocab_size: usize) -> SamplingRow {
        SamplingRow {
            seed: self.seed,
            position: self.position,
            // Adding 0 makes +0 of -0.
            temperature: self.temperature + 0.0,
            top_k: if self.top_k < vocab_size { self.top_k as u32 } else { 0 },
            top_p: self.top_p,
            min_p: self.min_p + 0.0,
        }
    }

    pub(crate) fn of_row(row: &SamplingRow) -> Self {
        let SamplingRow { seed, position, temperature, top_k, top_p, min_p } = *row;
        SamplingParams { seed, position, temperature, top_k: top_k as usize, top_p, min_p }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_survive_the_wire() {
        let params = SamplingParams {
            seed: u64::MAX - 1,
            position: 1 << 40,
            temperature: 0.7,
            top_k: 50,
            top_p: 0.9,
            min_p: 0.05,
        };
        assert_eq!(SamplingParams::of_row(&params.to_row(51)), params);
        let none = SamplingParams { top_k: 0, min_p: 0.0, temperature: 0.0, ..params };
        for top_k in [50, 51, usize::MAX] {
            let same = SamplingParams { top_k, min_p: -0.0, temperature: -0.0, ..none };
            let bytes = |params: SamplingParams| bytemuck::bytes_of(&params.to_row(50)).to_vec();
            assert_eq!(bytes(same), bytes(none), "all ids are kept");
        }
    }

    #[test]
    fn a_row_needs_no_more_than_its_filters_ask() {
        let plain = SamplingParams::default();
        let kinds = [
            (plain, DrawKind::Best),
            (SamplingParams { temperature: -0.0, top_p: 0.5, ..plain }, DrawKind::Best),
            (SamplingParams { top_k: 1000, ..plain }, DrawKind::Best),
            (SamplingParams { top_k: 999, top_p: 0.5, min_p: 0.1, ..plain }, DrawKind::Listed { k: 999 }),
            (SamplingParams { min_p: 0.1, ..plain }, DrawKind::Threshold),
            (SamplingParams { top_p: 0.5, ..plain }, DrawKind::Cut { top_k: None, nucleus: true }),
        ];
        for (params, wanted) in kinds {
            assert_eq!(params.kind(1000), wanted, "{params:?}");
        }
        let many = SamplingParams { top_k: LISTED + 1, ..plain };
        assert_eq!(many.kind(1 << 20), DrawKind::Cut { top_k: Some(LISTED as u32 + 1), nucleus: false });
    }

    #[test]
    fn what_no_row_can_be_sampled_with_is_refused_by_name() {
        let plain = SamplingParams::default();
        for (params, name) in [
            (SamplingParams { temperature: -0.5, ..plain }, "temperature"),
            (SamplingParams { temperature: f32::NAN, ..plain }, "temperature"),
            (SamplingParams { temperature: f32::INFINITY, ..plain }, "temperature"),
            (SamplingParams { top_p: 0.0, ..plain }, "top_p"),
            (SamplingParams { top_p: 1.5, ..plain }, "top_p"),
            (SamplingParams { top_p: f32::NAN, ..plain }, "top_p"),
            (SamplingParams { min_p: -0.1, ..plain }, "min_p"),
            (SamplingParams { min_p: 1.1, ..plain }, "min_p"),
            (SamplingParams { min_p: f32::NAN, ..plain }, "min_p"),
        ] {
            let text = params.check(7).unwrap_err().to_string();
            assert!(text.contains(&format!("{name} of row 7")), "{text}");
        }
        assert!(plain.check(0).is_ok());
    }
}
