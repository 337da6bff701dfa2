//! `lmhead bench --on-demand`: times once for each line of standard input, so that another program can
//! alternate these timings with its own.

use super::report::{About, Ready};
use super::subject::Subject;
use super::{BenchSetup, Device, HeadType, Stage, micros};
use crate::values::refused;
use crate::{Failure, print};
use lmhead::error::{Error, Result};
use serde_json::{Value, json};

/// Answers every line of standard input until its end.
pub fn serve(setup: &BenchSetup, device: &Device) -> std::result::Result<bool, Failure> {
    let mut subjects: Vec<Subject<'_>> =
        setup.types.iter().map(|kind| Subject::new(setup, device, *kind)).collect::<Result<_>>()?;
    let ready = Ready {
        about: About::new(setup, device),
        weight_bytes: subjects.iter().map(Subject::weight_bytes).collect(),
    };
    print(&serde_json::to_string(&ready).expect("it is JSON"))?;
    for line in std::io::stdin().lines() {
        let line = line.map_err(|e| Error::File {
            path: "standard input".into(),
            problem: format!("cannot be read: {e}"),
            fix: "write lines of text".into(),
        })?;
        let answer = answer(setup, &mut subjects, &line)?;
        print(&answer.to_string())?;
    }
    Ok(true)
}

fn answer(setup: &BenchSetup, subjects: &mut [Subject<'_>], line: &str) -> Result<Value> {
    let wrong = || {
        let wanted = "lines such as `bf16 read`, `bf16 arithmetic` or `bf16 matmul 28`";
        refused("--on-demand", wanted, line, "write one of those")
    };
    let words: Vec<&str> = line.split_whitespace().collect();
    let Some(kind) = words.first() else { return Err(wrong()) };
    let kind = HeadType::parse(kind)?;
    let Some(subject) = setup.types.iter().position(|held| *held == kind).map(|at| &mut subjects[at]) else {
        let fix = "name the type there, too";
        return Err(refused("--on-demand", "a type of --dtypes", &kind.name(), fix));
    };
    match words[1..] {
        ["read"] => Ok(json!({"us": micros(subject.time_read()), "bytes": subject.weight_bytes()})),
        ["arithmetic"] => Ok(json!({"gop_per_s": subject.arithmetic_rate().map(|rate| rate / 1e9)})),
        [stage, rows] => {
            let stage = Stage::parse(stage)?;
            let held = |wanted: &str, got: &str| refused("--on-demand", wanted, got, "name it there, too");
            // Memory was allocated only for the stages that the options name.
            if !setup.stages.contains(&stage) {
                return Err(held("a stage of --stages", &stage.name()));
            }
            let most = subject.most_rows();
            let rows = rows.parse().ok().filter(|rows| (1..=most).contains(rows)).ok_or_else(|| {
                refused(
                    "--on-demand",
                    &format!("1 to {most} rows, the most of --rows"),
                    rows,
                    "ask for fewer",
                )
            })?;
            let sample = subject.time(stage, rows)?;
            let parts = sample.parts.map(|parts| {
                json!({
                    "contract_us": micros(parts.contract), "gather_us": micros(parts.gather),
                    "matmul_us": micros(parts.matmul), "after_us": micros(parts.after),
                })
            });
            Ok(json!({"us": micros(sample.time), "parts": parts}))
        }
        _ => Err(wrong()),
    }
}
