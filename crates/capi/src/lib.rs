//! The C interface of lmhead: every function of `include/lmhead.h`, whose comments say what each does.
//!
//! * `boundary`: catches panics in calls from C, and keeps errors for `lmhead_last_error`.
//! * `handles`: maps handles to what they stand for.
//! * `structs`: checks structs that begin with their size, tensors and arrays.
//! * `about`, `group`, `backend`, `weights`, `exchange`, `head`: the functions, in the order of the header.
//! * `transport`: implements the library's transport trait for an engine's function table.
//! * `step`: converts an `lmhead_step` and an `lmhead_answer` to the library's own arguments.
//! * `sys`: the header, as bindgen reads it.
//!
//! Everything here uses only the library's public interface.
#![allow(unsafe_code, reason = "pointers from C")]

mod about;
mod backend;
mod boundary;
mod exchange;
mod group;
mod handles;
mod head;
mod step;
mod structs;
#[allow(clippy::undocumented_unsafe_blocks, reason = "declarations of the functions that are here")]
pub mod sys;
mod transport;
mod weights;

/// Checks at compile time that the functions have the types that the header declares: functions of different
/// types cannot be in one array.
const _: () = {
    let _ = [sys::lmhead_status_name, about::lmhead_status_name];
    let _ = [sys::lmhead_last_error, about::lmhead_last_error];
    let _ = [sys::lmhead_last_error_ranks, about::lmhead_last_error_ranks];
    let _ = [sys::lmhead_abi, about::lmhead_abi];
    let _ = [sys::lmhead_version, about::lmhead_version];
    let _ = [sys::lmhead_features, about::lmhead_features];
    let _ = [sys::lmhead_doctor, about::lmhead_doctor];
    let _ = [sys::lmhead_string_free, about::lmhead_string_free];
    let _ = [sys::lmhead_set_log, about::lmhead_set_log];
    let _ = [sys::lmhead_group_ranks, group::lmhead_group_ranks];
    let _ = [sys::lmhead_shard_range, group::lmhead_shard_range];
    let _ = [sys::lmhead_backend_open, backend::lmhead_backend_open];
    let _ = [sys::lmhead_backend_free, backend::lmhead_backend_free];
    let _ = [sys::lmhead_weights_load, weights::lmhead_weights_load];
    let _ = [sys::lmhead_weights_wrap, weights::lmhead_weights_wrap];
    let _ = [sys::lmhead_weights_free, weights::lmhead_weights_free];
    let _ = [sys::lmhead_weights_about, weights::lmhead_weights_about];
    let _ = [sys::lmhead_exchange_local, exchange::lmhead_exchange_local];
    let _ = [sys::lmhead_exchange_callbacks, exchange::lmhead_exchange_callbacks];
    let _ = [sys::lmhead_exchange_nccl, exchange::lmhead_exchange_nccl];
    let _ = [sys::lmhead_exchange_free, exchange::lmhead_exchange_free];
    let _ = [sys::lmhead_operation_name, exchange::lmhead_operation_name];
    let _ = [sys::lmhead_config_from_model, head::lmhead_config_from_model];
    let _ = [sys::lmhead_create, head::lmhead_create];
    let _ = [sys::lmhead_free, head::lmhead_free];
    let _ = [sys::lmhead_sampling_check, step::lmhead_sampling_check];
    let _ = [sys::lmhead_plan, head::lmhead_plan];
    let _ = [sys::lmhead_prepare, head::lmhead_prepare];
    let _ = [sys::lmhead_run, head::lmhead_run];
    let _ = [sys::lmhead_async_status, head::lmhead_async_status];
    let _ = [sys::lmhead_abort, head::lmhead_abort];
    let _ = [sys::lmhead_set_weights_version, head::lmhead_set_weights_version];
    let _ = [sys::lmhead_release_memory, head::lmhead_release_memory];
    let _ = [sys::lmhead_flight_recorder, head::lmhead_flight_recorder];
    let _ = [sys::lmhead_rebuild, head::lmhead_rebuild];
};
