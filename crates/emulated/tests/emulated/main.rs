//! The emulated CUDA device: its instructions, its checks, and the microkernels on it.
#![allow(unsafe_code, reason = "parameters of kernels")]

mod answer_sampling;
mod answer_sums;
mod blame;
mod broken;
mod broken_capacity_steps;
mod broken_cut_rows;
mod broken_exchange_peers;
mod broken_flags;
mod broken_held;
mod broken_hopper;
mod broken_lists;
mod broken_matmul;
mod broken_merge_draws;
mod broken_partials;
mod broken_quant_matmul;
mod broken_row_inputs;
mod broken_rows;
mod broken_wgmma_matmul;
mod conversions;
mod flags;
mod hopper;
mod instructions;
mod matmul_parts;
mod microkernels;
mod peers;
mod planted;
mod probed;
mod readme;
mod reads;
mod refused;
mod tensor_core;
