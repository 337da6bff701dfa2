//! What every result says of its run: device, driver, commit and date; and how fast the clocks run under
//! load.

use crate::clocked::Clocked;
use cudarc::driver::{result, sys};
use lmhead::backend::cuda::{CudaDevice, driver};
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// After so long without an answer nvidia-smi is given up, and not asked again.
const PATIENCE: Duration = Duration::from_secs(5);
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

fn command(fields: &str) -> Command {
    // The first device that this process may see, which is CUDA's device 0.
    let visible = std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default();
    let id = visible.split(',').next().filter(|id| !id.is_empty()).unwrap_or("0");
    let mut command = Command::new("nvidia-smi");
    command.args([&format!("--query-gpu={fields}"), "--format=csv,noheader", &format!("--id={id}")]);
    command
}

/// The fields' values, while `meanwhile` is called again and again; none where nvidia-smi does not answer.
fn asked(
    fields: &str,
    mut meanwhile: impl FnMut() -> lmhead::Result<()>,
) -> lmhead::Result<Option<Vec<String>>> {
    if GIVEN_UP.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let started = command(fields).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = started else {
        GIVEN_UP.store(true, Ordering::Relaxed);
        return Ok(None);
    };
    let began = Instant::now();
    let ended = loop {
        if let Ok(Some(status)) = child.try_wait() {
            break status.success();
        }
        let worked = meanwhile();
        if worked.is_err() || began.elapsed() > PATIENCE {
            // Not waited for: it may hang in the driver.
            let _ = child.kill();
            worked?;
            GIVEN_UP.store(true, Ordering::Relaxed);
            break false;
        }
    };
    let mut text = String::new();
    let read = ended && child.stdout.take().is_some_and(|mut out| out.read_to_string(&mut text).is_ok());
    let values: Vec<String> = text.trim().split(", ").map(String::from).collect();
    Ok((read && values.len() == fields.split(',').count()).then_some(values))
}

/// The first line that the command prints; none where it fails.
fn first_line(command: &mut Command) -> Option<String> {
    let said = command.stderr(Stdio::null()).output().ok().filter(|said| said.status.success())?;
    Some(String::from_utf8_lossy(&said.stdout).trim().lines().next()?.to_string())
}

/// The driver's version, as nvidia-smi says, or else its kernel module.
fn driver_version() -> String {
    let wait = || {
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    };
    let said = asked("driver_version", wait).ok().flatten().map(|values| values[0].clone());
    // "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.159.04  Tue ..."
    let module = || {
        let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
        let version =
            |word: &&str| word.split('.').count() > 1 && word.split('.').all(|n| n.parse::<u32>().is_ok());
        text.lines().next()?.split_whitespace().find(version).map(String::from)
    };
    said.or_else(module).unwrap_or_else(|| "unknown".into())
}

/// Bytes of the second-level cache.
pub fn cache_bytes(device: &CudaDevice) -> usize {
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
    // SAFETY: the device of that number, which is open.
    let ask = || unsafe {
        result::device::get_attribute(result::device::get(device.info().ordinal as i32)?, attribute)
    };
    device
        .bound(ask)
        .ok()
        .and_then(std::result::Result::ok)
        .and_then(|n| usize::try_from(n).ok())
        .unwrap_or(50 << 20)
}

fn handed(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// When this run began, as `LMHEAD_DATE` says; now, where it says nothing.
pub fn date() -> Option<String> {
    handed("LMHEAD_DATE").or_else(|| first_line(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"])))
}

/// Writes a file so that at every moment there is either the old one or the new one, whole.
///
/// # Errors
/// The file cannot be written.
pub fn write_whole(file: &Path, text: &str) -> Result<(), String> {
    let mut name = file.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    let part = file.with_file_name(name);
    let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, file));
    written.map_err(|e| format!("{}: {e}", file.display()))
}

/// Device, driver, commit and date. The bundle's `run.sh` hands in commit and date, the same for all results
/// of a run.
pub fn about(device: &CudaDevice) -> Value {
    let commit =
        handed("LMHEAD_COMMIT").or_else(|| first_line(Command::new("git").args(["rev-parse", "HEAD"])));
    let (info, unknown) = (device.info(), || "unknown".to_string());
    json!({
        "device": {
            "name": info.name,
            "compute_capability": info.capability.to_string(),
            "memory_bytes": info.memory,
            "num_sms": info.num_sms,
            "cache_bytes": cache_bytes(device),
            "driver": driver_version(),
            "cuda": driver().map(|version| version.to_string()).unwrap_or_default(),
        },
        "commit": commit.unwrap_or_else(unknown),
        "date": date().unwrap_or_else(unknown),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// Clocks, power and temperature while the work is replayed.
///
/// # Errors
/// Errors of the replays.
pub fn clocks_under(work: &Clocked) -> lmhead::Result<Value> {
    let silent = || json!("unknown: nvidia-smi does not answer");
    if GIVEN_UP.load(Ordering::Relaxed) {
        return Ok(silent());
    }
    // Until the clocks are stable; on an emulated device there are none.
    let (began, warm_up) =
        (Instant::now(), Duration::from_millis(if crate::needs::small() { 0 } else { 50 }));
    while began.elapsed() < warm_up {
        work.replay()?;
    }
    let said = asked("clocks.sm,clocks.mem,power.draw,temperature.gpu", || work.replay().map(drop))?;
    let Some(said) = said else { return Ok(silent()) };
    Ok(json!({ "sm": said[0], "memory": said[1], "power": said[2], "temperature_c": said[3] }))
}
