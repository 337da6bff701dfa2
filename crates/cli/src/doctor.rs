//! `lmhead doctor`: prints what [`lmhead::doctor`] found, and what the program itself adds.

use crate::{Failure, print, terminal};
use clap::Args;
use lmhead::doctor::{Check, Status, examine};

#[derive(Args)]
pub struct DoctorArgs {
    /// Print a JSON array instead
    #[arg(long)]
    json: bool,
}

/// False (exit 1) where a part of this build does not work here.
pub fn doctor(args: &DoctorArgs) -> Result<bool, Failure> {
    let mut checks = examine();
    checks.push(emulated_backend());
    let good = checks.iter().all(|check| check.status != Status::Missing);
    if args.json {
        print(&serde_json::to_string_pretty(&checks).expect("checks are JSON"))?;
        return Ok(good);
    }
    if terminal::width().is_some() {
        let mut table = terminal::table(["", "what", "found", "what to do"], &[0, 1, 2, 3]);
        table.add_rows(
            checks.iter().map(|check| [mark(check), &check.name, &check.message, &check.suggestion]),
        );
        print(&table.to_string())?;
    } else {
        // A table's columns would be as wide as their longest sentence.
        let lines: Vec<String> = checks.iter().map(line).collect();
        print(&lines.join("\n"))?;
    }
    Ok(good)
}

fn mark(check: &Check) -> &'static str {
    match check.status {
        Status::Ok => "ok",
        Status::Note => "note",
        Status::Missing => "missing",
    }
}

/// `status name: message; suggestion`.
fn line(check: &Check) -> String {
    let Check { name, message, suggestion, .. } = check;
    let end = if suggestion.is_empty() { String::new() } else { format!("; {suggestion}") };
    format!("{} {name}: {message}{end}", mark(check))
}

fn emulated_backend() -> Check {
    if cfg!(feature = "emulated") {
        let message =
            "the CUDA kernels on the processor, as compute capability 9.0; bf16, f16, w8a8, w8a16, fp8; slow";
        Check::new("backend emulated", Status::Ok, message, "")
    } else {
        let suggestion = "build with --features emulated; it needs g++ to build";
        Check::new("backend emulated", Status::Note, "not in this build", suggestion)
    }
}
