//! What nvidia-smi says of the device: who it is, and how fast its clocks run while it works.

use crate::clocked::Clocked;
use serde_json::{Value, json};
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// nvidia-smi is given up after so long, and not asked again.
const PATIENCE: Duration = Duration::from_secs(5);
static GIVEN_UP: AtomicBool = AtomicBool::new(false);

fn command(fields: &str) -> Command {
    // As CUDA counts: the first device that this process may see.
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
            // Nobody waits for one that hangs in the driver.
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

/// The driver's version.
pub fn driver_version() -> String {
    let wait = || {
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    };
    let said = asked("driver_version", wait).ok().flatten();
    said.map_or("unknown".into(), |values| values[0].clone())
}

/// Clocks, power and temperature while the work is replayed.
///
/// # Errors
/// Of the replays.
pub fn clocks_under(work: &Clocked) -> lmhead::Result<Value> {
    let silent = || json!("unknown: nvidia-smi does not answer");
    if GIVEN_UP.load(Ordering::Relaxed) {
        return Ok(silent());
    }
    // Until the clocks have settled; on an emulated device there are none.
    let (began, settle) =
        (Instant::now(), Duration::from_millis(if crate::table::small() { 0 } else { 100 }));
    while began.elapsed() < settle {
        work.replay()?;
    }
    let said = asked("clocks.sm,clocks.mem,power.draw,temperature.gpu", || work.replay().map(drop))?;
    let Some(said) = said else { return Ok(silent()) };
    Ok(json!({ "sm": said[0], "memory": said[1], "power": said[2], "temperature_c": said[3] }))
}
