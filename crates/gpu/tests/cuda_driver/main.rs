//! The CUDA backend without a GPU: a fake `libcuda.so` (`crates/gpu/fake_driver`) stands in for drivers that are too old, find no device,
//! know older devices or fail. Kernels run on the emulated device inside of it, or are written down. The program on it:
//! `crates/cli/tests/cuda_driver`.
#![allow(unsafe_code, reason = "the driver's interface")]
#![cfg(target_os = "linux")]

mod backend;
mod calls;
use lmhead::backend::cuda::{CudaDevice, Launch, encode};
use lmhead::backend::params::MmaCarrierParams;
use lmhead::backend::tensor_map::{Swizzle, Tiled2d};
use lmhead_gpu::{products, table};
use std::ffi::c_char;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const KERNEL: &str = "carrier_mma_s8_sm80";

/// The folder of the fake `libcuda.so`.
fn fake_driver() -> &'static Path {
    lmhead_gpu::fake_driver::folder(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// This program again, running one of the tests below that need the fake driver, with what it shall say: the child's output.
fn child(test: &str, says: &[(&str, &str)]) -> String {
    let (text, end) = child_and_end(test, says);
    // Whatever a child does: kernels and graphs are on the device before they are launched.
    assert!(end.ends_with("\n0 kernels and 0 graphs loaded by a launch\n"), "{test}, {says:?}: {end}");
    text
}

/// The same, with what the fake driver wrote at its end.
fn child_and_end(test: &str, says: &[(&str, &str)]) -> (String, String) {
    let end = tempfile::NamedTempFile::new().expect("a file");
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("LD_LIBRARY_PATH", fake_driver());
    let output = command.env("FAKE_ENDS", end.path()).envs(says.iter().copied()).output();
    let output = output.expect("the program runs");
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "{says:?}: {text}");
    (text, std::fs::read_to_string(end.path()).expect("an end"))
}

/// What the fake driver, in a child, has done so far: "waits", "allocations", "loads", "lazy kernels", "lazy graphs", "slow
/// copies".
fn count(what: &str) -> i64 {
    let what = std::ffi::CString::new(what).expect("a name");
    // SAFETY: the fake driver's own function, which takes a C string and answers a long long.
    let count = unsafe {
        let function =
            cudarc::driver::sys::culib().get::<unsafe extern "C" fn(*const c_char) -> i64>(b"fake_count\0");
        function.expect("the fake driver")(what.as_ptr())
    };
    assert!(count >= 0, "the fake driver does not count {what:?}");
    count
}

#[test]
fn what_is_launched_is_what_was_asked() {
    let log = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fake-driver-launches");
    let _ = std::fs::remove_file(&log);
    child("in_child_launches", &[("FAKE_LOG", log.to_str().expect("text"))]);
    assert_eq!(
        std::fs::read_to_string(log).expect("a log"),
        "carrier_mma_s8_sm80 grid 4 2 1 block 128 1 1 shared 81920 carveout 100 sizes 100 3 48\n\
         carrier_mma_s8_sm80 grid 4 2 1 block 128 1 1 shared 0 carveout 100 cluster 2 1 1 programmatic 1 sizes 100 3 48\n"
    );
}

#[test]
fn failures_are_told_with_kernel_shape_and_the_drivers_words() {
    for (says, wanted) in [
        (("FAKE_DEVICES", "0"), "CUDA device: wanted at least one, got none; look at nvidia-smi"),
        (("FAKE_VERSION", "11080"), "got one for CUDA 11.8; install NVIDIA's driver (5"),
        (("FAKE_CAPABILITY", "75"), "kernels/carriers/mma_s8_sm80.cu: wanted a device that runs sm_80, "),
        (
            ("FAKE_LOAD", "209"),
            "kernels/carriers/mma_s8_sm80.cu on Fake 0: CUDA_ERROR_NO_BINARY_FOR_GPU: the driver's own words; the driver is older",
        ),
        (
            ("FAKE_LAUNCH", "700"),
            "kernel carrier_mma_s8_sm80 (sm_90), grid [4, 2, 1], block [128, 1, 1], 81920 bytes of shared memory: \
             CUDA_ERROR_ILLEGAL_ADDRESS: the driver's own words; the device is lost to this process",
        ),
        (
            ("FAKE_RUN", "700"),
            "Fake 0, after kernel carrier_mma_s8_sm80 (sm_90), grid [4, 2, 1], block [128, 1, 1], 81920 bytes of shared memory: \
             CUDA_ERROR_ILLEGAL_ADDRESS",
        ),
    ] {
        let text = child("in_child_fails", &[says, ("FAKE_LOG", "/dev/null")]);
        assert!(text.contains(wanted), "wanted \"{wanted}\", got \"{text}\"");
    }
}

#[test]
fn memory_and_tensor_maps_reach_the_driver_whole() {
    child("in_child_memory", &[]);
}

#[test]
fn the_gpus_tests_pass_on_the_fake_driver() {
    child("in_child_products", &[("LMHEAD_GPU_SMALL", "1")]);
}

#[test]
#[ignore = "needs the fake driver: the_gpus_tests_pass_on_the_fake_driver runs it"]
fn in_child_products() {
    let device = CudaDevice::open(0).expect("a device");
    for test in products::TESTS {
        assert_eq!(test.needs.met_by(&device), Ok(()), "{}", test.name);
        if let Err(failed) = (test.run)(&device) {
            panic!("{}: {}", test.name, failed.message().unwrap_or_default());
        }
    }
}

#[test]
fn the_benchs_table_is_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, smi) = (folder.path().join("table.json"), folder.path().join("nvidia-smi"));
    // It takes its time, and knows the device that is asked for.
    let script = "#!/bin/sh\nsleep 0.05\ncase \"$*\" in\n*driver_version*) echo 580.1 ;;\n\
                  *clocks.sm,*--id=7) echo '1965 MHz, 2619 MHz, 612.34 W, 54' ;;\n*) exit 1 ;;\nesac\n";
    std::fs::write(&smi, script).expect("a file");
    std::fs::set_permissions(&smi, std::fs::Permissions::from_mode(0o755)).expect("an owner");
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap_or_default());
    let says = [("LMHEAD_GPU_SMALL", "1"), ("TABLE", file.to_str().expect("text"))];
    child("in_child_table", &[&says[..], &[("PATH", &path), ("CUDA_VISIBLE_DEVICES", "7,1")]].concat());
    let table: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("JSON");
    // A head, whole and halved; five kinds of product, two numbers of rows.
    for (list, count) in [("products", 20), ("left_out", 0)] {
        assert_eq!(table[list].as_array().map(Vec::len), Some(count), "{list}");
    }
    for product in table["products"].as_array().expect("a list") {
        for timed in [product, &product["read_roof"], &product["copy_roof"]] {
            let [p10, median, p90] =
                ["p10_us", "median_us", "p90_us"].map(|key| timed[key].as_f64().expect("a number"));
            assert!(0.0 < p10 && p10 <= median && median <= p90, "{product}");
        }
        let number = |key: &str| product[key].as_u64().expect("a number");
        let (vocab, hidden, rows) = (number("vocab"), number("hidden"), number("rows"));
        let (weight, row, scales) = match product["kind"].as_str().expect("text") {
            "bf16" | "f16" => (2, 2 * hidden, 0),
            "w8a8 of quantised rows" => (1, hidden + 4, 4),
            _ => (1, 2 * hidden, 4),
        };
        assert_eq!(
            number("bytes"),
            vocab * (weight * hidden + scales) + rows * (row + 2 * vocab),
            "{product}"
        );
        assert_eq!(
            (&product["clocks"]["sm"], &product["clocks"]["temperature_c"]),
            (&"1965 MHz".into(), &"54".into())
        );
    }
    assert_eq!((&table["device"]["name"], &table["device"]["driver"]), (&"Fake 0".into(), &"580.1".into()));
}

#[test]
#[ignore = "needs the fake driver: the_benchs_table_is_whole runs it"]
fn in_child_table() {
    let device = CudaDevice::open(0).expect("a device");
    let file = PathBuf::from(std::env::var_os("TABLE").expect("a file"));
    table::write(&device, &file).expect("a table");
}

const PARAMS: MmaCarrierParams = MmaCarrierParams {
    weights: std::ptr::null(),
    rows: std::ptr::null(),
    out: std::ptr::null_mut(),
    vocab: 100,
    row_count: 3,
    hidden: 48,
};

fn launch() -> Launch {
    Launch { dynamic_shared: 81920, ..Launch::new([4, 2, 1], [128, 1, 1]) }
}

#[test]
#[ignore = "needs the fake driver: what_is_launched_is_what_was_asked runs it"]
fn in_child_launches() {
    let device = CudaDevice::open(0).expect("a device");
    let kernel = device.kernel::<MmaCarrierParams>(KERNEL).expect("a kernel");
    assert_eq!((kernel.architecture(), kernel.attributes().registers), ("sm_90", 107));
    assert_eq!(kernel.attributes().max_dynamic_shared, 231_424);
    let second = Launch { dynamic_shared: 0, cluster: [2, 1, 1], programmatic: true, ..launch() };
    // What cannot be is refused before the driver hears of it.
    let refused = Launch { grid: [3, 2, 1], ..second };
    for (launch, good) in [(launch(), true), (refused, false), (second, true)] {
        // SAFETY: the fake driver follows no address.
        let launched = unsafe { kernel.launch(&launch, &PARAMS) };
        assert_eq!(launched.is_ok(), good, "{launch}: {launched:?}");
    }
    device.synchronize().expect("nothing fails");
    let error = device.kernel::<u64>(KERNEL).expect_err("another parameter").to_string();
    assert!(error.contains("wanted one of 8 bytes, got parameters of [40] bytes"), "{error}");
    let error = device.kernel::<u64>("no_such_kernel").expect_err("no kernel").to_string();
    assert!(error.contains("got \"no_such_kernel\""), "{error}");
}

#[test]
#[ignore = "needs the fake driver: failures_are_told_with_kernel_shape_and_the_drivers_words runs it"]
fn in_child_fails() {
    let all = || -> lmhead::Result<()> {
        let device = CudaDevice::open(0)?;
        let kernel = device.kernel::<MmaCarrierParams>(KERNEL)?;
        // SAFETY: the fake driver follows no address.
        unsafe { kernel.launch(&launch(), &PARAMS) }?;
        device.synchronize()
    };
    println!("{}", all().expect_err("the fake driver fails somewhere"));
}

#[test]
#[ignore = "needs the fake driver: memory_and_tensor_maps_reach_the_driver_whole runs it"]
fn in_child_memory() {
    let device = CudaDevice::open(0).expect("a device");
    for count in [0u32, 1, 1000] {
        let values: Vec<u32> = (0..count).collect();
        let mut buffer = device.upload(&values).expect("memory");
        assert_eq!((buffer.len(), buffer.is_empty()), (count as usize * 4, count == 0));
        assert_eq!(buffer.read::<u32>(), Ok(values.clone()));
        let error = buffer.write(&[0u32; 7]).expect_err("another size").to_string();
        assert!(error.starts_with("device buffer: wanted "), "{error}");
        buffer.write(&values.iter().map(|v| v ^ 1).collect::<Vec<_>>()).expect("the same size");
        assert_eq!(buffer.read::<u32>().map(|read| read.len()), Ok(values.len()));
    }
    assert_eq!(device.filled(5, 0xab).and_then(|buffer| buffer.read::<u8>()), Ok(vec![0xab; 5]));
    let error = device.filled(1 << 50, 0).expect_err("too much").to_string();
    assert!(error.contains("CUDA_ERROR_OUT_OF_MEMORY") && error.contains("free device memory"), "{error}");

    let matrix = device.filled(1 << 16, 0).expect("memory");
    let tiled = Tiled2d {
        address: matrix.address(),
        element_bytes: 2,
        columns: 72,
        rows: 100,
        pitch: 160,
        box_columns: 64,
        box_rows: 32,
        swizzle: Swizzle::Bytes128,
    };
    let map = encode(&tiled).expect("a map");
    let said: &[u64] = bytemuck::cast_slice(&map.opaque[..64]);
    // Type UINT16, address, sizes, pitch, box, swizzle 128B.
    assert_eq!(said, [1, matrix.address(), 72, 100, 160, 64, 32, 3]);
}
