//! `lmhead doctor`: prints what [`lmhead::doctor`] found.

use crate::Failure;
use clap::Args;
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use lmhead::doctor::{Status, examine};

#[derive(Args)]
pub struct DoctorArgs {
    /// Print a JSON array instead of the table
    #[arg(long)]
    json: bool,
}

/// Always good: a missing part is a finding, not a failure.
pub fn doctor(args: &DoctorArgs) -> Result<bool, Failure> {
    let checks = examine();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&checks).expect("checks are JSON"));
        return Ok(true);
    }
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(["", "what", "found", "what to do"]);
    for check in checks {
        let mark = match check.status {
            Status::Ok => "ok",
            Status::Note => "note",
            Status::Missing => "missing",
        };
        table.add_row([mark, &check.name, &check.message, &check.suggestion]);
    }
    println!("{table}");
    Ok(true)
}
