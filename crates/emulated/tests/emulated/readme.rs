//! The example in kernels/README.md compiles, runs and is correct.

use lmhead_emulated::emulated_kernel;
use lmhead_emulated::{Device, Fault, LaunchConfig, Params};

/// The struct that `scripts/bindings` generates.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct AddOneParams {
    data: *mut u32,
    count: u32,
}

// SAFETY: mirrors the struct of add_one_sm80.cu.
unsafe impl Params for AddOneParams {}

#[test]
fn the_example_runs() -> Result<(), Fault> {
    let mut device = Device::new();
    let data = device.upload(&[1u32; 300]);
    let params = AddOneParams { data: data.pointer(), count: 300 };
    let config = LaunchConfig::new([3, 1, 1], [128, 1, 1]);
    device.launch(&emulated_kernel!(add_one: AddOneParams), &params, &config)?;
    assert_eq!(device.download::<u32>(data)?, [2; 300]);
    Ok(())
}

#[test]
fn the_page_shows_what_runs() {
    let page = include_str!("../../kernels/README.md");
    let between = |begin: &str, end: &str| {
        let from =
            page.find(begin).unwrap_or_else(|| panic!("kernels/README.md: no {begin:?}")) + begin.len();
        let length = page[from..]
            .find(end)
            .unwrap_or_else(|| panic!("kernels/README.md: no {end:?} behind {begin:?}"));
        page[from..from + length].trim()
    };
    let kernel = include_str!("kernels/add_one_sm80.cu");
    for shown in [
        between("// kernels/params.h\n", "// kernels/add_one_sm80.cu"),
        between("// kernels/add_one_sm80.cu\n", "```"),
    ] {
        assert!(
            kernel.contains(shown),
            "crates/emulated/tests/emulated/kernels/add_one_sm80.cu: wanted what kernels/README.md shows:\n{shown}"
        );
    }
    let test = include_str!("readme.rs").lines().map(str::trim).collect::<Vec<_>>().join("\n");
    let shown = between("// A test.\n", "// crates/gpu/tests/machine_code");
    assert!(
        test.contains(shown),
        "crates/emulated/tests/emulated/readme.rs: wanted what kernels/README.md shows:\n{shown}"
    );
}
