//! Comparisons, as JSON in the file that `LMHEAD_GPU_RESULTS` names.

use lmhead::backend::cuda::CudaDevice;
use lmhead_gpu::about::{about, write_whole};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// How a kernel computes, as far as its bits could depend on it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Way {
    pub kernel: &'static str,
    pub instruction: &'static str,
    /// m x n of one instruction.
    pub tile: &'static str,
    pub orientation: &'static str,
    /// Where the instruction takes its weights from.
    pub weights_from: &'static str,
    pub rows_from: &'static str,
}

/// The difference between the two results compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Aspect {
    PlainProduct,
    EmulatedDevice,
    Tile,
    Orientation,
    OperandSource,
    Position,
}

#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub aspect: Aspect,
    pub kernel: &'static str,
    pub what: String,
    pub vocab: u32,
    pub rows: u32,
    pub hidden: u32,
    /// Number of values compared.
    pub values: usize,
    /// How many of them differ in a bit.
    pub differing: usize,
}

/// Summary of all comparisons of one kind.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    aspect: Aspect,
    kernel: &'a str,
    what: &'a str,
    shapes: usize,
    values: usize,
    differing: usize,
    same_bits: bool,
}

fn summaries(all: &[Comparison]) -> Vec<Summary<'_>> {
    let mut kinds = BTreeMap::new();
    for Comparison { aspect, kernel, what, values, differing, .. } in all {
        let sums = kinds.entry((*aspect, *kernel, what.as_str())).or_insert([0; 3]);
        for (sum, more) in sums.iter_mut().zip([1, *values, *differing]) {
            *sum += more;
        }
    }
    kinds
        .into_iter()
        .map(|((aspect, kernel, what), [shapes, values, differing])| Summary {
            aspect,
            kernel,
            what,
            shapes,
            values,
            differing,
            same_bits: differing == 0,
        })
        .collect()
}

static ALL: Mutex<Vec<Comparison>> = Mutex::new(Vec::new());

pub fn add(comparison: Comparison) {
    ALL.lock().unwrap_or_else(PoisonError::into_inner).push(comparison);
}

/// Does nothing where the variable is unset.
///
/// # Errors
/// If the file cannot be written.
pub fn write(device: &Result<CudaDevice, String>) -> Result<(), String> {
    let Some(path) = std::env::var_os("LMHEAD_GPU_RESULTS").map(PathBuf::from) else { return Ok(()) };
    let comparisons = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let mut text = match device {
        Ok(device) => about(device),
        Err(reason) => serde_json::json!({ "device": null, "none": reason }),
    };
    text["method"] =
        "each microkernel through the driver API; bits compared value by value; seeded operands".into();
    text["kernels"] = serde_json::json!(crate::microkernels::WAYS);
    text["summary"] = serde_json::json!(summaries(&comparisons));
    text["comparisons"] = serde_json::json!(*comparisons);
    let text = serde_json::to_string_pretty(&text).expect("this is JSON");
    write_whole(&path, &(text + "\n"))
}
