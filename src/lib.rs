//! A sharded LM head for LLM inference engines.
//!
//! The LM head is `logits[rows, vocab] = hidden_states[rows, hidden] · Wᵀ`. In data-parallel serving each
//! rank often streams the whole `W` for its own few rows. Here a group of ranks shares one head: each holds a
//! shard of the vocabulary, and one step is
//!
//! ```text
//! hidden rows -> gather -> matmul -> epilogue -> exchange -> result
//! ```
//!
//! | stage | what it does | where |
//! |---|---|---|
//! | hidden rows | views, selection by index, row counts | [`rows`] |
//! | gather | all_gather of the group's rows | [`head`], [`exchange`] |
//! | matmul | rows x own vocabulary shard | [`backend`], [`plan`], [`weights`] |
//! | epilogue | dequantise, bias, softcap, scale; adjustments | [`epilogue`], [`adjust`] |
//! | exchange | all_to_all of logits, or of candidates only | [`exchange`], [`merge`] |
//! | result | logits, argmax, top-k with logsumexp, logprobs, sampled tokens, row status | [`result`], [`sampling`] |
//!
//! Around them: [`config`] and [`layout`] decide which ranks share a head, [`step`] is the contract between
//! ranks, and [`mod@reference`] computes the float64 truth that everything is compared with.
//!
#![doc = include_str!("../docs/promises.md")]
//!
//! ```
//! use lmhead::backend::cpu::CpuBackend;
//! use lmhead::config::{HeadConfig, Quantization};
//! use lmhead::exchange::local;
//! use lmhead::weights::synthetic;
//! use lmhead::{HeadGroup, HiddenRows, LmHead, Output, Request, RowCounts};
//! use std::sync::Arc;
//!
//! # fn main() -> lmhead::Result<()> {
//! let preset = synthetic::preset("tiny")?; // a 1000 x 256 head in bf16
//! let config = HeadConfig::new(preset.vocab_size, preset.hidden_size);
//! let backend = Arc::new(CpuBackend::new(None)?);
//! let rows_of = [3, 0]; // rank 1 is idle, and takes part like any other
//! let ranks = local::group(2).into_iter().enumerate().map(|(rank, exchange)| {
//!     let (config, backend, preset) = (config.clone(), backend.clone(), &preset);
//!     move || -> lmhead::Result<Vec<i64>> {
//!         let group = HeadGroup::data_parallel(2, rank)?; // who shares the head
//!         let vocab = group.shard(config.vocab_size, rank); // the ids of this rank's shard
//!         let shard = synthetic::shard(&preset.spec(), 0, vocab, Quantization::None, None)?;
//!         let mut head = LmHead::new(&config, group, Arc::new(shard), Arc::new(exchange), backend)?;
//!         head.warm_up(4, &[Request::argmax()])?;
//!         let bytes: Vec<u8> = (0..rows_of[rank])
//!             .flat_map(|row| synthetic::hidden_row(0, row as u64, preset.hidden_size, preset.dtype))
//!             .collect();
//!         let hidden = HiddenRows::new(&bytes, preset.dtype, rows_of[rank], preset.hidden_size)?;
//!         // The contract is checked here.
//!         let step = head.step(RowCounts::exact(&rows_of), &Request::argmax())?;
//!         let Output::Argmax { ids } = step.run(hidden)?.output else { unreachable!() };
//!         Ok(ids)
//!     }
//! });
//! let answers: Vec<_> = std::thread::scope(|scope| {
//!     let threads: Vec<_> = ranks.map(|rank| scope.spawn(rank)).collect();
//!     threads.into_iter().map(|thread| thread.join().expect("no rank panics")).collect()
//! });
//! assert_eq!(answers[0].as_ref().map(Vec::len), Ok(3));
//! assert_eq!(answers[1].as_ref().map(Vec::len), Ok(0));
//! # Ok(())
//! # }
//! ```

pub mod adjust;
pub mod backend;
pub mod call;
pub mod config;
pub mod cost;
mod digest;
pub mod doctor;
pub mod dtype;
pub mod epilogue;
pub mod error;
pub mod exchange;
mod exponential;
pub mod fidelity;
pub mod finish;
pub mod head;
pub mod layout;
mod lock;
#[allow(unsafe_code, reason = "addresses with a length, of memory that Rust may not know")]
pub mod memory;
pub mod merge;
#[allow(unsafe_code, reason = "that structs of both languages are one")]
pub mod params;
pub mod plan;
mod process;
pub mod quantize;
pub mod reference;
pub mod result;
pub mod rows;
pub mod sampling;
pub mod step;
pub mod weights;

pub use adjust::Adjustments;
pub use config::{HeadConfig, LmheadTpSize, Quantization, Settings};
pub use dtype::DType;
pub use error::{Error, Result};
pub use head::{LmHead, Step};
pub use layout::{HeadGroup, ParallelLayout, RankOrder};
pub use result::{Answer, Output, Request, RowInputs, RowStatus};
pub use rows::{HiddenRows, RowCounts};
pub use sampling::{Filters, SamplingParams};
pub use weights::{Checkpoint, HeadShard};

/// Compiles and runs the Rust of the README and of docs/.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/engines.md")]
    struct Engines;
}
