//! [`LmHead`](lmhead::LmHead) whole, over groups of ranks on threads: answers against float64, golden files and the unsharded head;
//! the contract between ranks.

mod contract;
mod end_to_end;
mod golden;
mod golden_adjusted;
mod golden_sampled;
mod golden_sums;
mod pools;
mod reports;
mod requests;
mod sampling;
#[cfg(target_os = "linux")]
mod transports;
mod wrong_transports;
