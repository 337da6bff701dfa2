//! Where the arithmetic runs. A backend knows rows and a shard; it does not know that there are other ranks.

mod capacity;
pub mod cpu;
#[cfg(feature = "cuda")]
#[allow(unsafe_code, reason = "the driver's interface")]
pub mod cuda;
pub mod cuts;
#[allow(unsafe_code, reason = "launches and copies that the device does later")]
pub mod device;
mod inputs;
#[allow(unsafe_code, reason = "memory of a caller that outlives a call")]
mod loaded;
pub mod tensor_map;

pub use crate::adjust::DeviceAdjustments;
pub use crate::params;
pub use capacity::{Arrivals, CapacitySteps, Payload};
pub use inputs::{Inputs, PlacedAdjustments, PlacedEntries};
pub use loaded::{Ask, Backend, HeldLogits, Job, LoadedShard, LogitsOut, On, Out, Pass, Status, Which};

use crate::dtype::{DType, Quantization};
use crate::error::{Error, Result};
use crate::layout::BLOCK;
use crate::sampling::SamplingParams;
use crate::sampling::cut::{Digit, Kept, Sum};
use crate::weights::HeadShard;

/// Which candidates of a row are wanted.
#[derive(Debug, Clone, Copy)]
pub enum Wanted {
    /// The k with the largest logits: k places. The shard has at least k ids.
    Best { k: usize },
    /// The one with the largest score, among what is kept: one place. `None` keeps all.
    Drawn { params: SamplingParams, kept: Option<Kept> },
}

impl Wanted {
    /// Candidates in the answer.
    pub fn places(&self) -> usize {
        match self {
            Wanted::Best { k } => *k,
            Wanted::Drawn { .. } => 1,
        }
    }
}

/// Asks where the ids end that are kept and tie with the last logit that is kept.
#[derive(Debug, Clone, Copy)]
pub struct TiesQuery {
    pub row: usize,
    pub kept: Kept,
    pub logit: f32,
    pub allowance: u32,
}

/// A histogram over one digit of the order keys of a row's kept logits.
#[derive(Debug, Clone, Copy)]
pub struct HistogramQuery {
    pub row: usize,
    pub kept: Kept,
    pub sum: Sum,
    /// The digit that is counted, of logits whose keys begin with the bits of `key` above it.
    pub digit: Digit,
    pub key: u32,
}

/// The types that decide how a head is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadTypes {
    pub weights: DType,
    pub quantization: Quantization,
    /// Type of the hidden states.
    pub hidden: DType,
}

impl HeadTypes {
    /// The types of a shard and of hidden states.
    pub fn of(shard: &HeadShard, hidden: DType) -> Self {
        HeadTypes { weights: shard.matrix().dtype(), quantization: shard.quantization(), hidden }
    }
}

/// Refuses shards that do not begin at a multiple of 64 ids: a word of a mask has 32 ids, a kernel's tile 64
/// or 128. No sum depends on it.
pub(crate) fn check_boundaries(shard: &HeadShard) -> Result<()> {
    let vocab = shard.vocab();
    let whole = vocab.start.is_multiple_of(BLOCK)
        && (vocab.end.is_multiple_of(BLOCK) || vocab.end == shard.vocab_size());
    if !whole && !vocab.is_empty() {
        return Err(Error::shape(
            "shard",
            format!("boundaries that are multiples of {BLOCK}, or the end of the vocabulary"),
            format!("{}..{} of {}", vocab.start, vocab.end, shard.vocab_size()),
            "cut shards with layout::shard_range",
        ));
    }
    Ok(())
}

fn check_len(what: &str, got: usize, wanted: usize) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    Err(Error::shape(what, wanted, got, "pass one for each"))
}
