//! [`LmHead`](lmhead::LmHead) over groups of ranks on threads: answers against float64, golden files and the
//! unsharded head; the contract between ranks.

mod aborts;
mod contract;
mod end_to_end;
mod golden;
mod golden_adjusted;
mod golden_sampled;
mod golden_sums;
#[allow(unsafe_code, reason = "buffers that are refused")]
mod into;
mod pools;
mod reports;
mod requests;
mod sampling;
mod tickets;
mod token_logprobs;
#[cfg(target_os = "linux")]
mod transports;
mod wrong_transports;
