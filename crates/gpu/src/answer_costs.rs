//! What `kernels/answers` and the epilogue of the matmuls cost in machine code: instructions for each logit,
//! and where f64 is.
//!
//! The kernels of `tests/machine_code/answers_sm80.cu` do the same for eight logits and for twenty-four,
//! without a loop. The difference of the two is what sixteen logits cost, without what is done once. Those of
//! the epilogue have the loops of the matmuls: [`per_logit`] says what is counted of each.

use crate::code::Code;
use crate::rounds::shortest_round;
use crate::tools::Tools;
use std::path::Path;
use std::process::Command;

pub const ARCHITECTURES: [&str; 5] = ["sm_80", "sm_89", "sm_90", "sm_100", "sm_120"];

/// What is done for every logit: the name in the kernels, and in words.
pub const PER_LOGIT: [(&str, &str); 10] = [
    ("sum", "add e^l to a sum of exponentials, eight logits at a time"),
    ("mass", "add a mass of top_p, its IEEE division included"),
    ("screen", "bound z + g for the draw, its random word included"),
    ("bar", "compare with the bar of the best k, four logits at a time"),
    ("count", "count it where it beats a target, ties by id"),
    ("tile_best", "epilogue: offer it to the best k, where it is below their bar"),
    ("tile_argmax", "epilogue: take it where it is the best of the lane's (k = 1)"),
    ("tile_greater", "epilogue: count it where it beats a target"),
    ("tile_sum", "epilogue: load eight, add e^l to the row's sum"),
    ("tile_draw", "epilogue: a row's draw without a score, of four logits a lane"),
];

/// What is done once a row, and for the few candidates that the screen leaves.
pub const RARE: [(&str, &str); 2] = [
    ("finish", "merge the lanes' sums, take the logarithm"),
    ("score", "score a candidate, merge the lanes' winners"),
];

/// The kernels, compiled for all of [`ARCHITECTURES`]; `folder` is for the file in between.
///
/// # Errors
/// nvcc's or cuobjdump's own words.
pub fn compile(tools: &Tools, folder: &Path) -> Result<Vec<Code>, String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let fatbin = folder.join("answers_sm80.fatbin");
    let mut nvcc = Command::new(&tools.nvcc);
    nvcc.args(["-fatbin", "-std=c++17", "-O3", "-fmad=false", "-I"]).arg(here.join("../../kernels"));
    nvcc.args(ARCHITECTURES.map(lmhead_nvcc::architectures::gencode)).arg("-o").arg(&fatbin);
    tools.run(nvcc.arg(here.join("tests/machine_code/answers_sm80.cu")))?;
    tools.read("answers_sm80", &fatbin)
}

/// One of the kernels.
///
/// # Panics
/// When there is no such kernel among `codes`.
pub fn find<'a>(codes: &'a [Code], kernel: &str, architecture: &str) -> &'a Code {
    let found = codes.iter().find(|code| code.kernel == kernel && code.architecture == architecture);
    found.unwrap_or_else(|| panic!("answers_sm80.cu: no kernel {kernel} for {architecture}"))
}

/// Instructions for each logit; for those of the epilogue, for each logit of a lane.
pub fn per_logit(codes: &[Code], what: &str, architecture: &str) -> f64 {
    let all = |n: usize| find(codes, &format!("{what}_{n}"), architecture).instructions() as f64;
    let round = |n: usize| round(codes, what, n, architecture).len() as f64;
    match what {
        // A lane has two more logits in a row of 128 ids than in one of 64. Each has its own code that sorts
        // a full list, which is rare: only the shortest path is without it.
        "tile_best" | "tile_greater" => (round(128) - round(64)) / 2.0,
        // All of the code: what is added is never rare, but the shortest path skips it, as it does for ids
        // after the last.
        "tile_argmax" => (all(128) - all(64)) / 2.0,
        // A wider tile has more rounds, or more lanes for a row, with the same code. A round has eight logits
        // of a lane, or four.
        "tile_sum" => round(128) / 8.0,
        "tile_draw" => round(128) / 4.0,
        _ => (all(24) - all(8)) / 16.0,
    }
}

/// The operations on the shortest path around one of the epilogue's loops, in tiles of `block_n` ids.
///
/// # Panics
/// When the machine code has no such loop.
pub fn round<'a>(codes: &'a [Code], what: &str, block_n: usize, architecture: &str) -> Vec<&'a str> {
    let waypoints: &[&str] = match what {
        "tile_best" => &["LDG STRONG"], // the row's bar
        "tile_greater" => &["LDG 64"],  // a target
        "tile_sum" => &["LDS 128"],     // four of eight logits
        // Four logits; 1 / temperature and Philox's second constant, which temperature 0 skips; the result,
        // which one lane stores.
        "tile_draw" => &["LDS 128", "MUFU RCP", "-0x326172a9", "STG 64"],
        _ => panic!("{what}: no loop of the epilogue"),
    };
    let code = find(codes, &format!("{what}_{block_n}"), architecture);
    shortest_round(code, waypoints).unwrap_or_else(|problem| panic!("{problem}"))
}

/// Whether an instruction computes in f64 or converts from or to it.
pub fn is_f64(name: &str) -> bool {
    let mut parts = name.split('.');
    let operation = parts.next().unwrap_or_default();
    // A reciprocal's first bits are taken from the upper half of an f64.
    ["DADD", "DMUL", "DFMA", "DSETP", "DMNMX"].contains(&operation)
        || parts.any(|modifier| modifier == "F64" || modifier.ends_with("64H"))
}

/// Instructions that compute in f64 or convert from or to it.
pub fn f64_instructions(code: &Code) -> usize {
    code.operations.iter().filter(|(name, _)| is_f64(name)).map(|(_, count)| count).sum()
}

/// A Markdown table of both kinds.
pub fn table(codes: &[Code]) -> String {
    let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let head = |first: &str| {
        let names = ARCHITECTURES.iter().map(|name| name.to_string());
        let line = row([first.to_string()].into_iter().chain(names).collect());
        line + &row(vec!["---".into(); 1 + ARCHITECTURES.len()])
    };
    let line = |words: &str, cell: &dyn Fn(&str) -> String| {
        row([words.to_string()].into_iter().chain(ARCHITECTURES.map(cell)).collect())
    };
    let mut text = head("for every logit: instructions");
    for (what, words) in PER_LOGIT {
        text += &line(words, &|architecture| format!("{:.1}", per_logit(codes, what, architecture)));
    }
    text += "\n";
    text += &head("rarely: instructions (of f64)");
    for (what, words) in RARE {
        text += &line(words, &|architecture| {
            let code = find(codes, what, architecture);
            format!("{} ({})", code.instructions(), f64_instructions(code))
        });
    }
    text
}
