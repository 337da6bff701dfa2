//! # lmhead
//!
//! `hidden rows -> gather -> matmul -> epilogue -> exchange -> result`

pub mod backend;
pub mod config;
pub mod cost;
pub mod dtype;
pub mod epilogue;
pub mod error;
pub mod exchange;
pub mod head;
pub mod layout;
pub mod merge;
pub mod quantize;
pub mod result;
pub mod rows;
pub mod step;
pub mod weights;
