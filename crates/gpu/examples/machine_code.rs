//! Prints what nvcc made of every embedded kernel: registers, memory and the instructions that matter, by
//! architecture. Then what the functions of `kernels/answers` cost, which no embedded kernel calls yet.
//!
//!     scripts/machine-code            Markdown tables
//!     scripts/machine-code --json     of the kernels alone, with every operation's count
//!
//! Needs the CUDA toolkit's programs (`scripts/cuda-toolkit`) and no GPU.

use lmhead::backend::cuda::fatbins::EMBEDDED;
use lmhead_gpu::answer_costs;
use lmhead_gpu::code::Code;
use lmhead_gpu::tools::Tools;
use std::process::ExitCode;

/// Matrix products of each generation, copies that need no registers, wide loads, and what must not be there.
const COLUMNS: &[&str] = &[
    "HMMA", "IMMA", "HGMMA", "IGMMA", "UTMALDG", "LDGSTS", "LDG.128", "LDS.128", "LDSM", "STG.128", "LDL",
    "STL",
];

fn main() -> ExitCode {
    let json = match std::env::args().skip(1).collect::<Vec<_>>().join(" ").as_str() {
        "" => false,
        "--json" => true,
        other => {
            eprintln!("machine-code: wanted --json or nothing, got {other}");
            return ExitCode::from(2);
        }
    };
    let printed = read().and_then(|codes| match json {
        true => Ok(serde_json::to_string_pretty(&codes).expect("codes are JSON") + "\n"),
        false => Ok(table(&codes) + &answers()?),
    });
    match printed {
        Ok(text) => print!("{text}"),
        Err(problem) => {
            eprintln!("machine-code: {problem}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn read() -> Result<Vec<Code>, String> {
    let folder = tempfile::tempdir().map_err(|e| format!("a temporary folder: {e}"))?;
    Tools::find()?.embedded(EMBEDDED, folder.path())
}

/// A section of the page for what no embedded kernel calls.
fn answers() -> Result<String, String> {
    let folder = tempfile::tempdir().map_err(|e| format!("a temporary folder: {e}"))?;
    let codes = answer_costs::compile(&Tools::find()?, folder.path())?;
    let text = "\n## Sums, masses and noise\n\n\
        Of the functions of `kernels/answers`, compiled by themselves\n\
        (`crates/gpu/tests/machine_code/answers_sm80.cu`). What is done for every logit has no f64:\n\
        `crates/gpu/tests/machine_code/answers.rs` holds that, and bounds for these numbers.\n\n";
    Ok(text.to_string() + &answer_costs::table(&codes))
}

fn table(codes: &[Code]) -> String {
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let fixed = ["kernel", "architecture", "registers", "stack", "local", "shared", "instructions"];
    let mut text = row(fixed.iter().chain(COLUMNS).map(|name| name.to_string()).collect());
    text += &row(vec!["---".into(); fixed.len() + COLUMNS.len()]);
    for code in codes {
        let numbers = [code.registers, code.stack, code.local, code.shared].map(|n| n.to_string());
        let counts = COLUMNS.iter().map(|pattern| code.count(pattern).to_string());
        let mut cells = vec![code.kernel.clone(), code.architecture.clone()];
        cells.extend(numbers.into_iter().chain([code.instructions().to_string()]).chain(counts));
        text += &row(cells);
    }
    text
}
