//! The CPU backend against its promises: the same bits whatever the batch, position, shard, threads and
//! selection (promise 1); int8 operation by operation, on every instruction set (promise 2); the accuracy of
//! raw logits; non-finite rows; strided output.

mod accuracy;
mod answers;
mod bits;
mod cases;
mod held;
mod int8;
mod outputs;
#[allow(unsafe_code, reason = "spans that are refused before anybody reads them")]
mod refused;
