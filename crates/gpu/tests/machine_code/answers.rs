//! The functions of `kernels/answers` and of the epilogue as nvcc compiles them: few instructions for each
//! logit, and f64 only where a row is finished or a candidate scored. (Many GPUs have one f64 unit for 64 of
//! f32: thirty f64 operations a logit would take longer than the matmul that the logits come from.)

use lmhead_gpu::answer_costs::*;
use lmhead_gpu::code::Code;
use lmhead_gpu::tools::Tools;
use std::sync::OnceLock;

/// Fewest and most instructions for each logit, on any architecture. Most: measured with nvcc 13.0, plus one.
/// Fewer than a polynomial, the random words or a comparison need: something was optimised away.
const BOUNDS: [(&str, f64, f64); 10] = [
    ("sum", 15.0, 38.5),
    ("mass", 15.0, 42.0),
    ("screen", 15.0, 34.0),
    ("bar", 4.0, 6.1),
    ("count", 7.0, 10.8),
    ("tile_best", 7.0, 18.5),
    ("tile_argmax", 4.0, 8.0),
    ("tile_greater", 7.0, 13.5),
    ("tile_sum", 15.0, 40.9),
    ("tile_draw", 40.0, 75.5),
];

/// Their code, compiled once for all tests.
pub fn compiled() -> &'static [Code] {
    static CODES: OnceLock<Vec<Code>> = OnceLock::new();
    CODES.get_or_init(|| {
        let tools = Tools::find().unwrap_or_else(|problem| panic!("{problem}"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        compile(&tools, folder.path()).unwrap_or_else(|problem| panic!("{problem}"))
    })
}

#[test]
fn answers_take_few_instructions_a_logit_and_none_of_f64() {
    let codes = compiled();
    assert_eq!(BOUNDS.map(|(what, ..)| what), PER_LOGIT.map(|(what, _)| what));
    for architecture in ARCHITECTURES {
        for (what, least, most) in BOUNDS {
            let cost = per_logit(codes, what, architecture);
            assert!(
                (least..=most).contains(&cost),
                "{what} on {architecture}: wanted {least} to {most}, got {cost}"
            );
            // Scores are f64, and stand in the kernel that draws.
            if what == "tile_draw" {
                let round = round(codes, what, 128, architecture);
                assert!(!round.iter().any(|name| is_f64(name)), "{what} on {architecture}: {round:?}");
                continue;
            }
            let of_tile = what.starts_with("tile_");
            for count in if of_tile { [64, 128] } else { [8, 24] } {
                let code = find(codes, &format!("{what}_{count}"), architecture);
                assert_eq!(
                    f64_instructions(code),
                    0,
                    "{} on {architecture}: {:?}",
                    code.kernel,
                    code.operations
                );
                // The IEEE division of f32 calls a subroutine of ptxas; nothing else is called.
                let calls = if what == "mass" { count } else { 0 };
                // Where the warps of a loop converge, ptxas calls functions of its own.
                assert!(of_tile || code.count("CALL") <= calls, "{} on {architecture}", code.kernel);
            }
        }
        for (what, _) in RARE {
            let code = find(codes, what, architecture);
            assert!(f64_instructions(code) > 20, "{what} on {architecture}: f64 is no longer found");
        }
    }
    for code in codes {
        assert_eq!([code.stack, code.local], [0; 2], "{} on {}: memory", code.kernel, code.architecture);
        assert!(
            code.registers <= 80,
            "{} on {}: {} registers",
            code.kernel,
            code.architecture,
            code.registers
        );
    }
}
