//! The functions of `kernels/answers` as nvcc compiles them: few instructions for each logit, and f64 only
//! where a row is finished or a candidate scored. (Many GPUs have one f64 unit for 64 of f32: thirty f64
//! operations a logit would take longer there than the product that the logits come from.)

use lmhead_gpu::answer_costs::*;
use lmhead_gpu::tools::Tools;

/// At most so many instructions for each logit, on any architecture. Measured with nvcc 13.0, and one to
/// spare.
const MOST: [(&str, f64); 3] = [("sum", 38.5), ("mass", 42.0), ("screen", 34.0)];

#[test]
fn answers_take_few_instructions_a_logit_and_none_of_f64() {
    let tools = Tools::find().unwrap_or_else(|problem| panic!("{problem}"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let codes = compile(&tools, folder.path()).unwrap_or_else(|problem| panic!("{problem}"));
    assert_eq!(MOST.map(|(what, _)| what), PER_LOGIT.map(|(what, _)| what));
    for architecture in ARCHITECTURES {
        for (what, most) in MOST {
            let cost = per_logit(&codes, what, architecture);
            // Fewer than the polynomial or the random words alone need: something was left out.
            assert!(
                (15.0..=most).contains(&cost),
                "{what} on {architecture}: wanted at most {most}, got {cost}"
            );
            for count in [8, 24] {
                let code = find(&codes, &format!("{what}_{count}"), architecture);
                assert_eq!(
                    f64_instructions(code),
                    0,
                    "{} on {architecture}: {:?}",
                    code.kernel,
                    code.operations
                );
                // The IEEE division of f32 has a subroutine of ptxas; nothing else is called.
                let calls = if what == "mass" { count } else { 0 };
                assert!(code.count("CALL") <= calls, "{} on {architecture}", code.kernel);
            }
        }
        for (what, _) in RARE {
            let code = find(&codes, what, architecture);
            assert!(f64_instructions(code) > 20, "{what} on {architecture}: f64 is no longer found");
        }
    }
    for code in &codes {
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
