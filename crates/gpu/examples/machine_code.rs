//! Prints `docs/machine-code.md`: what nvcc made of every embedded kernel (registers, memory and the
//! instructions that matter, by architecture; architectures with equal counts share a row), and the cost of
//! the functions in `kernels/answers` and of the epilogue, compiled by themselves.
//!
//!     scripts/machine-code            the page
//!     scripts/machine-code --json     the kernels alone, with every operation's count
//!
//! Needs the CUDA toolkit's programs (`scripts/cuda-toolkit`) and no GPU.

use lmhead::backend::cuda::fatbins::EMBEDDED;
use lmhead_gpu::answer_costs;
use lmhead_gpu::code_page::page;
use lmhead_gpu::tools::Tools;
use std::process::ExitCode;

fn main() -> ExitCode {
    let json = match std::env::args().skip(1).collect::<Vec<_>>().join(" ").as_str() {
        "" => false,
        "--json" => true,
        other => {
            eprintln!("machine-code: wanted --json or nothing, got {other}");
            return ExitCode::from(2);
        }
    };
    match text(json) {
        Ok(text) => print!("{text}"),
        Err(problem) => {
            eprintln!("machine-code: {problem}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn text(json: bool) -> Result<String, String> {
    let folder = tempfile::tempdir().map_err(|e| format!("a temporary folder: {e}"))?;
    let tools = Tools::find()?;
    let codes = tools.embedded(EMBEDDED, folder.path())?;
    if json {
        return Ok(serde_json::to_string_pretty(&codes).expect("codes are JSON") + "\n");
    }
    Ok(page(&codes, &answer_costs::compile(&tools, folder.path())?))
}
