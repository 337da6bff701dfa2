//! Prints what nvcc made of every embedded kernel: registers, memory and the instructions that matter, by
//! architecture; architectures with equal counts share a row. Then the cost of the functions in
//! `kernels/answers` and of the epilogue, compiled by themselves.
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

/// Matrix instructions of each generation, copies that bypass registers, wide loads, and instructions that
/// must not occur.
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

/// The page's section on the functions of `kernels/answers` and of the epilogue by themselves.
fn answers() -> Result<String, String> {
    let folder = tempfile::tempdir().map_err(|e| format!("a temporary folder: {e}"))?;
    let codes = answer_costs::compile(&Tools::find()?, folder.path())?;
    let text = "\n## Sums, masses and noise\n\n\
        Costs of the functions of `kernels/answers` and of the matmuls' epilogue, each compiled by itself\n\
        (`crates/gpu/tests/machine_code/answers_sm80.cu`). What is done for every logit has no f64:\n\
        `crates/gpu/tests/machine_code/answers.rs` holds that, and bounds for these numbers. Those of the\n\
        epilogue are for each logit of a lane where nothing rare happens; `crates/gpu/src/answer_costs.rs`\n\
        says what is counted.\n\n";
    Ok(text.to_string() + &answer_costs::table(&codes))
}

/// A row for each kernel and each set of its architectures that have equal counts of [`COLUMNS`].
fn table(codes: &[Code]) -> String {
    let mut rows: Vec<(Vec<usize>, Vec<&Code>)> = Vec::new();
    for code in codes {
        let counts: Vec<_> = COLUMNS.iter().map(|pattern| code.count(pattern)).collect();
        let same = |(others, of): &&mut (Vec<usize>, Vec<&Code>)| {
            *others == counts && (&of[0].file, &of[0].kernel) == (&code.file, &code.kernel)
        };
        match rows.iter_mut().find(same) {
            Some((_, of)) => of.push(code),
            None => rows.push((counts, vec![code])),
        }
    }
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let fixed = ["kernel", "architectures", "registers", "stack", "local", "shared", "instructions"];
    let mut text = line(fixed.iter().chain(COLUMNS).map(|name| name.to_string()).collect());
    text += &line(vec!["---".into(); fixed.len() + COLUMNS.len()]);
    for (counts, mut of) in rows {
        of.sort_by_key(|code| number(&code.architecture));
        let architectures: Vec<_> = of.iter().map(|code| code.architecture.as_str()).collect();
        let mut cells = vec![of[0].kernel.clone(), architectures.join(" ")];
        // A single number where all are equal.
        let numbers = |of_one: &dyn Fn(&Code) -> usize| {
            let mut numbers: Vec<_> = of.iter().map(|code| of_one(code).to_string()).collect();
            if numbers.iter().all(|number| *number == numbers[0]) {
                numbers.truncate(1);
            }
            numbers.join(" ")
        };
        cells.push(numbers(&|code| code.registers as usize));
        cells.push(numbers(&|code| code.stack as usize));
        cells.push(numbers(&|code| code.local as usize));
        cells.push(numbers(&|code| code.shared as usize));
        cells.push(numbers(&Code::instructions));
        cells.extend(counts.iter().map(usize::to_string));
        text += &line(cells);
    }
    text
}

/// 90 for `sm_90` and `sm_90a`.
fn number(architecture: &str) -> u32 {
    let digits: String = architecture.chars().filter(char::is_ascii_digit).collect();
    digits.parse().expect("an architecture's number")
}
