//! `docs/machine-code.md`: what nvcc made of every kernel.

use crate::answer_costs;
use crate::code::Code;

/// Matrix instructions of each generation, copies that bypass registers, wide loads, and instructions that
/// must not occur.
const COLUMNS: &[&str] = &[
    "HMMA", "IMMA", "HGMMA", "IGMMA", "UTMALDG", "LDGSTS", "LDG.128", "LDS.128", "LDSM", "STG.128", "LDL",
    "STL",
];

/// The page. `codes` are of the embedded kernels, `answers` those of [`answer_costs::compile`].
pub fn page(codes: &[Code], answers: &[Code]) -> String {
    let head = "\
# The kernels' machine code

`scripts/machine-code --write` writes this page with the toolkit of `scripts/cuda-toolkit`, and the test
`machine_code` compares it with what nvcc makes. Registers, stack and local memory are per thread. Shared
memory is what the kernel itself declares: a launch adds the stages, and since sm_90 1024 bytes of it belong
to the system. The other columns count instructions in the code. A cell has one number for each of the row's
architectures, or one for all of them. `crates/gpu/tests/machine_code/expectations.rs` says what is required.

";
    let by_themselves = "
## Sums, masses and noise

Costs of the functions of `kernels/answers` and of the matmuls' epilogue, each compiled by itself
(`crates/gpu/tests/machine_code/answers_sm80.cu`). What is done for every logit has no f64:
`crates/gpu/tests/machine_code/answers.rs` holds that, and bounds for these numbers. Those of the
epilogue are for each logit of a lane where nothing rare happens; `crates/gpu/src/answer_costs.rs`
says what is counted.

";
    format!("{head}{}{by_themselves}{}", table(codes), answer_costs::table(answers))
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
