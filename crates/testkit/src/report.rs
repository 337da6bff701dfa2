//! Shared by the benches that write JSON: medians, and the machine and circumstances of a run.

use lmhead::doctor::machine_name;
use serde_json::{Value, json};
use std::process::Command;

/// The environment variable `name` as a number, or `default`.
pub fn setting(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}: wanted a whole number, got `{text}`")),
        Err(_) => default,
    }
}

/// The value below which `share` of at least one value lies, interpolated between the two nearest.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place as usize], sorted[(place.ceil()) as usize]);
    low + place.fract() * (high - low)
}

/// The median, the tenth and ninetieth percentiles, and all values, rounded to `digits` decimals.
pub fn summary(values: &[f64], digits: i32) -> Value {
    let round = |value: f64| (value * 10f64.powi(digits)).round() / 10f64.powi(digits);
    let at = |share: f64| round(quantile(values, share));
    let samples: Vec<f64> = values.iter().map(|value| round(*value)).collect();
    json!({ "median": at(0.5), "p10": at(0.1), "p90": at(0.9), "samples": samples })
}

/// Commit, date, command, machine and load: the head of a result.
pub fn about(command: &str) -> Value {
    json!({
        "commit": said("git", &["describe", "--always", "--dirty", "--exclude", "*"]),
        "date": said("date", &["-u", "+%F"]),
        "command": command,
        "machine": machine_name(),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "load_average_before": load(),
    })
}

/// The load average of the last minute: the mean number of tasks that ran or waited for a CPU, near 0 on a
/// quiet machine.
pub fn load() -> Value {
    // Linux: proc(5), /proc/loadavg.
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let one = text.split_whitespace().next().and_then(|number| number.parse::<f64>().ok());
    one.map_or(Value::Null, |load| json!(load))
}

fn said(program: &str, arguments: &[&str]) -> String {
    let root = env!("CARGO_MANIFEST_DIR");
    let output = Command::new(program).args(arguments).current_dir(root).output();
    output.map_or_else(|_| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().into())
}

/// Writes the result to the file of `--out FILE` (relative to the package's folder, in which cargo starts
/// benches), else prints it.
pub fn report(result: &Value) {
    let text = compact(result, 0) + "\n";
    let mut arguments = std::env::args().skip_while(|argument| argument != "--out");
    match arguments.nth(1) {
        Some(out) => {
            std::fs::write(&out, text).unwrap_or_else(|e| panic!("{out} cannot be written: {e}"));
            println!("written: {out}");
        }
        None => print!("{text}"),
    }
}

/// JSON text with one line for each object that contains no other object.
fn compact(value: &Value, depth: usize) -> String {
    let flat = |value: &Value| match value {
        Value::Object(map) => !map.values().any(Value::is_object),
        _ => true,
    };
    match value {
        Value::Object(map) if depth == 0 || !flat(value) => {
            let indent = " ".repeat(depth + 1);
            let lines: Vec<String> = map
                .iter()
                .map(|(key, value)| format!("{indent}{}: {}", json!(key), compact(value, depth + 1)))
                .collect();
            format!("{{\n{}\n{}}}", lines.join(",\n"), " ".repeat(depth))
        }
        _ => value.to_string(),
    }
}
