//! What was compared, as JSON in the file that `LMHEAD_GPU_RESULTS` names.

use lmhead::backend::cuda::{CudaDevice, driver};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub kernel: &'static str,
    pub what: String,
    pub vocab: u32,
    pub rows: u32,
    pub hidden: u32,
    /// Results that were compared.
    pub values: usize,
    /// Of those, how many differ in a bit.
    pub differing: usize,
}

static ALL: Mutex<Vec<Comparison>> = Mutex::new(Vec::new());

pub fn add(comparison: Comparison) {
    ALL.lock().unwrap_or_else(PoisonError::into_inner).push(comparison);
}

/// Nothing where the variable is unset.
///
/// # Errors
/// The file cannot be written.
pub fn write(device: &Result<CudaDevice, String>) -> Result<(), String> {
    let Some(path) = std::env::var_os("LMHEAD_GPU_RESULTS").map(PathBuf::from) else { return Ok(()) };
    let comparisons = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    let on = match device {
        Ok(device) => {
            let info = device.info();
            serde_json::json!({
                "name": info.name,
                "compute_capability": info.capability.to_string(),
                "memory_bytes": info.memory,
                "driver": driver().map(|version| format!("for CUDA {version}")).unwrap_or_default(),
            })
        }
        Err(reason) => serde_json::json!({ "none": reason }),
    };
    let text = serde_json::json!({
        "method": "each carrier kernel through the driver API; bits compared value by value; seeded operands (tests/emulated/cases.rs)",
        "device": on,
        "comparisons": *comparisons,
    });
    let text = serde_json::to_string_pretty(&text).expect("this is JSON");
    std::fs::write(&path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))
}
