//! Reads the machine code of the embedded kernels back: `cargo test --features cuda --test machine_code`.
//! Needs the CUDA toolkit's programs and no GPU. Without the feature only the reader itself is tested, on
//! recorded text.

#[cfg(feature = "cuda")]
mod answers;
mod expectations;
mod faults;
mod wrappers;

use expectations::Expectation;
use faults::{all_faults, faults};
use lmhead_gpu::code::{Code, parse};

/// cuobjdump 13.2 on a fatbin of two kernels: `multiply` (one mma.sync) and `pick` (an array in local
/// memory).
const RESOURCES: &str = include_str!("samples/res_usage.txt");
const SASS: &str = include_str!("samples/sass.txt");

fn sample(kernel: &str, architecture: &str) -> Code {
    let codes = parse("sample", RESOURCES, SASS).expect("recorded text");
    let wanted = |code: &Code| code.kernel == kernel && code.architecture == architecture;
    codes.into_iter().find(wanted).expect("a recorded kernel")
}

#[test]
fn recorded_output_is_read_by_kernel_and_architecture() {
    let codes = parse("sample", RESOURCES, SASS).expect("recorded text");
    let numbers: Vec<_> = codes
        .iter()
        .map(|c| {
            (
                c.kernel.as_str(),
                c.architecture.as_str(),
                c.registers,
                c.stack,
                c.local,
                c.shared,
                c.instructions(),
            )
        })
        .collect();
    assert_eq!(
        numbers,
        [
            ("pick", "sm_80", 10, 256, 0, 0, 25),
            ("multiply", "sm_80", 14, 0, 0, 0, 15),
            ("pick", "sm_90a", 12, 256, 0, 0, 26),
            ("multiply", "sm_90a", 16, 0, 0, 0, 16),
        ]
    );
}

#[test]
fn instructions_are_counted_by_operation_and_modifiers() {
    let multiply = sample("multiply", "sm_90a");
    for (pattern, count) in [
        ("IMMA", 1),
        ("IMMA.16832.S8", 1),
        ("LDG.E.128", 2),
        ("LDG.128", 2),
        ("LDG.64", 0),
        ("STG.128", 1),
        ("EXIT", 2),
        ("HMMA", 0),
        ("LDG.E.12", 0),
        ("LD", 0),
    ] {
        assert_eq!(multiply.count(pattern), count, "{pattern}");
    }
    let pick = sample("pick", "sm_80");
    assert_eq!(
        (pick.count("LDL"), pick.count("STL"), pick.count("BRA")),
        (1, 1, 2),
        "@P0 is not an operation"
    );
}

#[test]
fn text_of_another_form_is_refused() {
    for (resources, sass, wanted) in [
        ("", "", "found no machine code"),
        (&RESOURCES.replace("REG:", "REG "), SASS, "has no line of multiply for sm_80"),
        (&RESOURCES.replace("STACK:256", "STACK:many"), SASS, "-res-usage: not understood"),
        (&RESOURCES.replace("arch = sm_80", ""), SASS, "-res-usage: not understood"),
        (
            RESOURCES,
            &SASS.replace("Function : multiply", "Function : other"),
            "-sass has no code of multiply",
        ),
        (RESOURCES, &SASS.replace("arch = ", ""), "no architecture before pick"),
        (RESOURCES, "/*0010*/  NOP;", "-sass: not understood"),
    ] {
        let error = parse("sample", resources, sass).expect_err("not the recorded text");
        assert!(error.contains(wanted), "wanted \"{wanted}\", got \"{error}\"");
    }
}

fn multiply() -> Expectation {
    Expectation {
        kernel: "multiply",
        architectures: &["sm_80", "sm_90a"],
        present: vec![("IMMA", 1), ("LDG.128", 2)],
        absent: &["HMMA"],
        registers: 16,
        calls: 0,
    }
}

#[test]
fn each_broken_expectation_is_a_fault_that_says_what_came() {
    let code = sample("multiply", "sm_90a");
    assert_eq!(faults(&code, &multiply()), [""; 0]);
    for (row, wanted) in [
        (Expectation { registers: 15, ..multiply() }, "wanted at most 15 registers, got 16"),
        (Expectation { present: vec![("HGMMA", 1)], ..multiply() }, "wanted 1 HGMMA, got 0"),
        (Expectation { present: vec![("LDG.128", 8)], ..multiply() }, "wanted 8 LDG.128, got 2"),
        (Expectation { present: vec![("LDG.128", 1)], ..multiply() }, "wanted 1 LDG.128, got 2"),
        (Expectation { absent: &["IMMA"], ..multiply() }, "wanted no IMMA, got 1"),
    ] {
        assert_eq!(faults(&code, &row), [format!("sample multiply sm_90a: {wanted}")]);
    }
    let pick = Expectation { kernel: "pick", present: vec![], registers: 255, ..multiply() };
    let found = faults(&sample("pick", "sm_80"), &pick).join("\n");
    for wanted in [
        "wanted no stack frame, got 256 bytes",
        "no local loads (LDL), got 1",
        "no local stores (STL), got 1",
    ] {
        assert!(found.contains(wanted), "{found}");
    }
}

#[test]
fn a_kernel_without_a_row_and_a_row_without_a_kernel_are_faults() {
    let codes = [sample("multiply", "sm_80"), sample("pick", "sm_80")];
    let found = all_faults(&codes, &[multiply()], &["sm_80"]);
    assert_eq!(
        found,
        ["sample pick sm_80: wanted one row in crates/gpu/tests/machine_code/expectations.rs, got 0"]
    );
    let twice = all_faults(&codes[..1], &[multiply(), multiply()], &["sm_80"]);
    assert_eq!(
        twice,
        ["sample multiply sm_80: wanted one row in crates/gpu/tests/machine_code/expectations.rs, got 2"]
    );
    let gone = all_faults(&codes[..1], &[multiply()], &["sm_80", "sm_90a"]);
    assert_eq!(gone, ["multiply sm_90a: the table has a row, the fatbins have no code"]);
}

#[cfg(feature = "cuda")]
mod with_the_toolkit {
    use super::*;
    use expectations::{Other, PORTABLE, expected};
    use lmhead::backend::cuda::fatbins::EMBEDDED;
    use lmhead_gpu::code_page::page;
    use lmhead_gpu::tools::Tools;
    use lmhead_nvcc::architectures::gencode;
    use std::fs;
    use std::path::Path;
    use std::process::Command;
    use std::sync::OnceLock;

    fn root() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
    }

    /// The machine code of every embedded kernel, read once for all tests.
    fn embedded() -> &'static [Code] {
        static CODES: OnceLock<Vec<Code>> = OnceLock::new();
        CODES.get_or_init(|| {
            let tools = Tools::find().unwrap_or_else(|problem| panic!("{problem}"));
            let folder = tempfile::tempdir().expect("a temporary folder");
            tools.embedded(EMBEDDED, folder.path()).unwrap_or_else(|problem| panic!("{problem}"))
        })
    }

    #[test]
    fn every_embedded_kernel_is_as_the_table_says() {
        let architectures: Vec<_> =
            EMBEDDED.iter().flat_map(|fatbin| fatbin.architectures).copied().collect();
        let faults = all_faults(embedded(), &expected(), &architectures);
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    #[test]
    fn the_page_says_what_nvcc_makes() {
        let kept = fs::read_to_string(root().join("docs/machine-code.md")).unwrap_or_default();
        let page = page(embedded(), super::answers::compiled());
        let differs = || {
            let lines = page.lines().zip(kept.lines()).find(|(line, kept)| line != kept);
            lines.map_or("another length".into(), |(line, kept)| format!("{line}\nin place of\n{kept}"))
        };
        assert!(kept == page, "docs/machine-code.md: run scripts/machine-code --write; {}", differs());
    }

    /// The CUDA backend lets every kernel overlap with the previous one if its code's architecture supports
    /// that: there the kernel must wait, and use no .nc loads, which ptxas may move before the wait. The
    /// microkernels are launched only by tests.
    #[test]
    fn kernels_wait_where_the_backend_counts_on_it() {
        for code in embedded() {
            let counts = (code.count("ACQBULK"), code.count("PREEXIT"));
            let number = code.architecture.trim_start_matches("sm_").trim_end_matches('a').parse::<u32>();
            let since_9 = usize::from(number.expect("a number") >= 90);
            let name = format!("{} {}", code.kernel, code.architecture);
            let of_step = match &code.file[..] {
                file if file.starts_with("microkernels/") => 0,
                // The threads that multiply, the thread that copies, and the others of its warps.
                file if file.starts_with("wgmma_matmul") => 3,
                _ => 1,
            };
            assert_eq!(counts, (since_9 * of_step, since_9 * of_step), "{name}");
            // read_stream may use .nc: it reads data from before the step or the benchmark.
            if of_step > 0 && code.kernel != "read_stream" {
                assert_eq!(code.count("LDG.CONSTANT"), 0, "{name}");
            }
        }
    }

    /// ptxas warns when it serialises wgmma or reorders its registers: nothing else shows it.
    #[test]
    fn nvcc_had_nothing_to_say() {
        for fatbin in EMBEDDED {
            assert_eq!(fatbin.warnings, "", "kernels/{}.cu", fatbin.name);
        }
    }

    /// The example in kernels/README.md, against the row that it shows.
    #[test]
    fn the_readmes_kernel_is_as_its_row_says() {
        macro_rules! with_text {
            ($row:expr) => {
                ($row, stringify!($row))
            };
        }
        let (row, text) = with_text!(Other {
            kernel: "add_one",
            architectures: PORTABLE,
            present: &[("LDG", 1)],
            absent: &[],
            registers: 16,
            calls: 0
        });
        let row = Expectation::from(row);
        let here = root();
        let page = fs::read_to_string(here.join("kernels/README.md")).expect("the page");
        let bare = |text: &str| text.split_whitespace().collect::<String>().replace(",}", "}");
        assert!(bare(&page).contains(&bare(text)), "kernels/README.md: wanted {text}");
        let tools = Tools::find().unwrap_or_else(|problem| panic!("{problem}"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let fatbin = folder.path().join("add_one.fatbin");
        let mut nvcc = Command::new(&tools.nvcc);
        nvcc.args(["-fatbin", "-std=c++17", "-I"]).arg(here.join("kernels"));
        nvcc.args(row.architectures.iter().map(|name| gencode(name)));
        nvcc.arg("-o").arg(&fatbin).arg(here.join("crates/emulated/tests/emulated/kernels/add_one_sm80.cu"));
        tools.run(&mut nvcc).unwrap_or_else(|problem| panic!("{problem}"));
        let codes = tools.read("add_one", &fatbin).unwrap_or_else(|problem| panic!("{problem}"));
        let found = all_faults(&codes, std::slice::from_ref(&row), row.architectures);
        assert!(found.is_empty(), "{}", found.join("\n"));
    }

    /// 48 interdependent sums in 32 registers.
    const SPILLS: &str = r#"
extern "C" __global__ void __launch_bounds__(1024, 2) spills(const float *in, float *out) {
  float held[48];
#pragma unroll
  for (int i = 0; i < 48; ++i) held[i] = in[i * 1024 + threadIdx.x];
#pragma unroll
  for (int i = 0; i < 48; ++i)
#pragma unroll
    for (int j = 0; j < 48; ++j) held[i] += held[j] * held[47 - i];
#pragma unroll
  for (int i = 0; i < 48; ++i) out[i * 1024 + threadIdx.x] = held[i];
}
"#;

    #[test]
    fn a_kernel_that_spills_on_purpose_is_caught() {
        let tools = Tools::find().unwrap_or_else(|problem| panic!("{problem}"));
        let folder = tempfile::tempdir().expect("a temporary folder");
        let [source, fatbin] = ["spills.cu", "spills.fatbin"].map(|name| folder.path().join(name));
        fs::write(&source, SPILLS).expect("a file");
        let mut nvcc = Command::new(&tools.nvcc);
        nvcc.args(["-fatbin", "-arch=sm_80", "-o"]).arg(&fatbin).arg(&source);
        tools.run(&mut nvcc).unwrap_or_else(|problem| panic!("{problem}"));
        let codes = tools.read("spills", &fatbin).unwrap_or_else(|problem| panic!("{problem}"));
        let row = Expectation { kernel: "spills", present: vec![], ..multiply() };
        let found = all_faults(&codes, &[Expectation { registers: 32, ..row }], &["sm_80"]).join("\n");
        for wanted in ["wanted no stack frame", "wanted no local loads", "wanted no local stores"] {
            assert!(found.contains(wanted), "wanted \"{wanted}\", got \"{found}\"");
        }
    }
}
