//! The CUDA backend without a GPU: a fake `libcuda.so` (`crates/gpu/fake_driver`) stands in for drivers that
//! are too old, find no device, know older devices or fail. It runs kernels on the emulated device or logs
//! them. Tests of the command-line program on it: `crates/cli/tests/cuda_driver`.
#![allow(unsafe_code, reason = "the driver's interface")]
#![cfg(target_os = "linux")]

mod backend;
mod calls;
mod lost;
#[cfg(feature = "nccl")]
mod nccl;
mod shards;

use lmhead::backend::cuda::{CudaDevice, Launch, encode};
use lmhead::backend::params::MmaMicrokernelParams;
use lmhead::backend::tensor_map::{Swizzle, Tiled2d};
use lmhead::plan::Tuning;
use lmhead_gpu::about::about;
use lmhead_gpu::{answers, heads, kernels, probes, products, tune, windows};
use std::ffi::c_char;
use std::path::{Path, PathBuf};
use std::process::Command;

const KERNEL: &str = "microkernel_mma_s8_sm80";

/// The folder of the fake `libcuda.so`.
fn fake_driver() -> &'static Path {
    lmhead_gpu::fake_driver::folder(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// Runs this program again with one of the tests below that need the fake driver, whose behaviour `says`
/// sets; returns the child's output.
fn child(test: &str, says: &[(&str, &str)]) -> String {
    let (text, end) = child_and_end(test, says);
    // Whatever a child does, kernels and graphs are loaded before they are launched.
    assert!(end.ends_with("\n0 kernels and 0 graphs loaded by a launch\n"), "{test}, {says:?}: {end}");
    text
}

/// As `child`, with what the fake driver wrote at its end.
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

/// How often the fake driver, in a child, has done something on all devices: `Counts` of
/// `crates/gpu/fake_driver`.
fn count(what: &str) -> i64 {
    counted(what, -1)
}

/// As `count`, on one device.
#[cfg(feature = "nccl")]
fn count_on(what: &str, device: u32) -> i64 {
    counted(what, device as i32)
}

fn counted(what: &str, device: i32) -> i64 {
    type Function = unsafe extern "C" fn(*const c_char, i32) -> i64;
    let what = std::ffi::CString::new(what).expect("a name");
    // SAFETY: the fake driver's own function, with its type.
    let count = unsafe {
        let function = cudarc::driver::sys::culib().get::<Function>(b"fake_count\0");
        function.expect("the fake driver")(what.as_ptr(), device)
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
        "microkernel_mma_s8_sm80 grid 4 2 1 block 128 1 1 shared 81920 carveout 100 sizes 100 3 48\n\
         microkernel_mma_s8_sm80 grid 4 2 1 block 128 1 1 shared 0 carveout 100 cluster 2 1 1 programmatic 1 sizes 100 3 48\n"
    );
}

#[test]
fn failures_are_told_with_kernel_shape_and_the_drivers_words() {
    for (says, wanted) in [
        (("FAKE_DEVICES", "0"), "CUDA device: wanted at least one, got none; look at nvidia-smi"),
        (("FAKE_VERSION", "11080"), "got one for CUDA 11.8; install NVIDIA's driver (5"),
        (("FAKE_CAPABILITY", "75"), "kernels/microkernels/mma_s8_sm80.cu: wanted a device that runs sm_80, "),
        (
            ("FAKE_LOAD", "209"),
            "kernels/microkernels/mma_s8_sm80.cu on Fake 0: CUDA_ERROR_NO_BINARY_FOR_GPU: the driver's own words; the driver is older",
        ),
        (
            ("FAKE_LAUNCH", "700"),
            "kernel microkernel_mma_s8_sm80 (sm_90), grid [4, 2, 1], block [128, 1, 1], 81920 bytes of shared memory: \
             CUDA_ERROR_ILLEGAL_ADDRESS: the driver's own words; the device is lost to this process",
        ),
        (
            ("FAKE_RUN", "700"),
            "Fake 0, after kernel microkernel_mma_s8_sm80 (sm_90), grid [4, 2, 1], block [128, 1, 1], 81920 bytes of shared memory: \
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
    for test in products::TESTS.iter().chain(kernels::TESTS).chain(windows::TESTS) {
        assert_eq!(test.needs.met_by(&device), Ok(()), "{}", test.name);
        if let Err(failed) = (test.run)(&device) {
            panic!("{}: {}", test.name, failed.message().unwrap_or_default());
        }
    }
}

/// With stand-in programs for nvidia-smi and PyTorch. Tests begin in the order of their names: as one of the
/// last, this long one would leave a core idle.
#[test]
fn heads_are_measured_with_their_roofs_and_peers() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let (stand_ins, peers) = (root.join("stand_ins"), root.join("../../benches/gpu_peers.py"));
    let text = |path: PathBuf| path.to_str().expect("text").to_string();
    let path = format!("{}:{}", stand_ins.display(), std::env::var("PATH").unwrap_or_default());
    let (stand_ins, peers, file) = (text(stand_ins), text(peers), text(folder.path().join("out.json")));
    let measured = |what: &str, more: &[(&str, &str)]| -> serde_json::Value {
        let says = [("LMHEAD_GPU_SMALL", "1"), ("WHAT", what), ("FILE", &file), ("PATH", &path)];
        // An existing file of the same run would be extended.
        let _ = std::fs::remove_file(&file);
        let date = [("LMHEAD_DATE", "2026-01-02T03:04:05Z"), ("PYTHONDONTWRITEBYTECODE", "1")];
        child("in_child_measures", &[&says[..], &date, more].concat());
        serde_json::from_slice(&std::fs::read(&file).expect("a file")).expect("JSON")
    };
    let heads = measured("heads", &[("PYTHONPATH", &stand_ins), ("LMHEAD_GPU_PEERS", &peers)]);
    assert_eq!((&heads["device"]["name"], &heads["device"]["driver"]), (&"Fake 0".into(), &"580.1".into()));
    assert_eq!(heads["date"], "2026-01-02T03:04:05Z");
    assert_eq!(heads["peers"]["torch"], "0.0+stand.in");
    // One head, four kinds of kernels, two row counts.
    let products = heads["products"].as_array().expect("a list");
    assert_eq!(
        (products.len(), &heads["left_out"], &heads["problem"]),
        (8, &().into(), &().into()),
        "{heads}"
    );
    for product in products {
        let peers = product["peers"].as_array().expect("peers");
        let is_bf16 = product["kind"] == "bf16";
        let int8 = !is_bf16 && product["kind"] != "fp8";
        assert_eq!(peers.len(), if int8 { 4 } else { 2 }, "{product}");
        let refused = product["refusals"].as_array().expect("refusals");
        assert_eq!(refused.len(), usize::from(int8), "{product}");
        assert!(refused.iter().all(|one| one["peer"] == "torch._weight_int8pack_mm"), "{product}");
        for timed in [product, &product["read_roof"], &product["copy_roof"]].into_iter().chain(peers) {
            let [p10, median, p90] =
                ["p10_us", "median_us", "p90_us"].map(|key| timed[key].as_f64().expect("a number"));
            assert!(0.0 < p10 && p10 <= median && median <= p90, "{product}");
        }
        assert_eq!(
            product["reads"].as_array().map(Vec::len),
            Some(2),
            "by loads and by bulk copies: {product}"
        );
        assert_eq!((&product["correct"], &product["exact"]), (&true.into(), &true.into()), "{product}");
        let number = |key: &str| product[key].as_u64().expect("a number");
        let (vocab, hidden, rows) = (number("vocab"), number("hidden"), number("rows"));
        let (weight, scales) = if is_bf16 { (2, 0) } else { (1, 4) };
        let bytes = vocab * (weight * hidden + scales) + rows * (2 * hidden + 2 * vocab);
        assert_eq!((number("bytes"), number("weight_copies")), (bytes, 2), "{product}");
        assert_eq!(
            (&product["clocks"]["sm"], &product["clocks"]["temperature_c"]),
            (&"1965 MHz".into(), &"54".into())
        );
    }
    // Without PyTorch only the peers are missing; on an older device only bulk copies.
    let alone = measured("heads", &[("LMHEAD_GPU_PEERS", &peers), ("FAKE_CAPABILITY", "80")]);
    assert!(alone["peers"]["none"].as_str().is_some_and(|why| why.contains("no PyTorch here")), "{alone}");
    assert!(alone["no_bulk_copies"].as_str().is_some_and(|why| why.contains("sm_90a")), "{alone}");
    let products = alone["products"].as_array().expect("a list");
    assert!(products.len() == 8 && products.iter().all(|p| p["correct"] == true), "{alone}");
    assert!(
        products
            .iter()
            .all(|p| p["peers"] == serde_json::json!([])
                && p["reads"].as_array().is_some_and(|r| r.len() == 1))
    );

    // Bulk copies that leave words out are no roof, and do not end the run.
    let loads = measured("heads", &[("FAKE_FLIP", "read_bulk")]);
    let why = loads["no_bulk_copies"].as_str().unwrap_or_default();
    assert!(why.starts_with("bulk copies of 32 KB") && why.ends_with("it left words out"), "{loads}");
    let products = loads["products"].as_array().expect("a list");
    assert!(
        products.len() == 8 && products.iter().all(|p| p["read_roof"]["way"] == "16-byte loads"),
        "{loads}"
    );
    assert_eq!((&loads["trying"], &loads["left_out"]), (&().into(), &().into()), "{loads}");

    // They are not tried again if a process has hung in them.
    let loads = measured("after bulk copies", &[]);
    let why = loads["no_bulk_copies"].as_str().unwrap_or_default();
    assert!(why.contains("did not come back"), "{loads}");
    assert_eq!(
        (loads["products"].as_array().map(Vec::len), &loads["trying"]),
        (Some(8), &().into()),
        "{loads}"
    );

    // A lost device: every case without a time is named with its reason.
    let lost = measured("lost heads", &[("FAKE_RUN", "214"), ("FAKE_FROM", "60")]);
    let left_out = lost["left_out"].as_array().expect("a list").len();
    assert_eq!(left_out + lost["products"].as_array().map_or(0, Vec::len), 8, "{lost}");
    let problem = lost["problem"].as_str().unwrap_or_default();
    assert!(problem.starts_with("bf16: ") && problem.contains("CUDA_ERROR_ECC_UNCORRECTABLE"), "{lost}");

    // One wrong bit in the last logit of one kernel: every proof of that kernel fails, and no other kernel's.
    // Once in a head's own kernel, once in the portable one beside it.
    for flipped in ["wgmma_matmul_w8a8_64x8", "quant_matmul_64x8"] {
        let wrong = measured("wrong heads", &[("FAKE_FLIP", flipped)]);
        let mut blamed = 0;
        for product in wrong["products"].as_array().expect("a list") {
            let said = |value: &serde_json::Value| value.to_string();
            let rows = product["rows"].as_u64().expect("a number");
            for (row, is_own) in [(product, true), (&product["portable"], false)] {
                let by_it = row["kernel"]["name"] == flipped;
                assert!(row.is_null() || row["correct"] == !by_it, "{product}");
                if by_it {
                    blamed += 1;
                    let wanted = format!("1 have other bits, as row {}, id 199: wanted 0x", rows - 1);
                    assert!(said(&row["same_bits"]["problem"]).contains(&wanted), "{product}");
                    let wanted = format!("1 of {rows} rows are wrong, the first {}", rows - 1);
                    assert!(!is_own || said(&row["exact"]).contains(&wanted), "{product}");
                }
            }
        }
        assert!(blamed > 0, "{flipped}: {wrong}");
    }

    // The fastest plans: a choice for each kind and number of rows; none whose logits are wrong.
    let table = measured("tuning", &[]);
    let choices = table["choices"].as_array().expect("a list");
    assert_eq!((choices.len(), &table["device"]), (8, &"Fake 0".into()), "{table}");
    assert!(choices.iter().all(|choice| choice["median_us"].as_f64() > Some(0.0)), "{table}");
    measured("wrong tuning", &[("FAKE_FLIP", "wgmma_matmul_bf16")]);

    // Requests over their matmul alone.
    let answers = measured("answers", &[("PYTHONPATH", &stand_ins), ("LMHEAD_GPU_PEERS", &peers)]);
    assert!(answers["peers"]["absent"]["flashinfer"].is_string(), "{answers}");
    let answered = answers["answers"].as_array().expect("a list");
    assert_eq!((answered.len(), &answers["problem"]), (1, &().into()), "{answers}");
    for rows in answered {
        let requests = rows["requests"].as_array().expect("a list");
        let names: Vec<_> = requests.iter().filter_map(|one| one["request"].as_str()).collect();
        assert_eq!(names, ["argmax", "topk:8", "logprobs:0", "sample", "sample top_p:0.9"]);
        let of_peers: Vec<_> = rows["peers"].as_array().expect("peers").iter().collect();
        assert_eq!(of_peers.len(), 6, "{rows}");
        // Each request has a peer to be compared with.
        assert!(names.iter().all(|name| of_peers.iter().any(|peer| peer["request"] == *name)), "{rows}");
        for timed in requests.iter().chain(of_peers).chain([&rows["product"]]) {
            assert!(timed["median_us"].as_f64().is_some_and(|us| us > 0.0), "{timed}");
        }
        for one in requests {
            assert_eq!(one["correct"], true, "{one}");
            assert!(one["step"] == "graph" || one["step"] == "eager", "{one}");
        }
    }

    let probes = measured("probes", &[]);
    let patterns: std::collections::BTreeSet<_> = probes["reads"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|read| read["pattern"].as_str())
        .collect();
    assert!(patterns.len() >= 4 && patterns.contains("boxes of 128 rows x 128 bytes"), "{probes}");
    let wrong = measured("wrong probes", &[("FAKE_FLIP", "read_boxes")]);
    for (read, right) in probes["reads"].as_array().into_iter().flatten().map(|read| (read, true)).chain(
        wrong["reads"].as_array().into_iter().flatten().map(|read| {
            (read, !read["pattern"].as_str().is_some_and(|pattern| pattern.starts_with("boxes")))
        }),
    ) {
        assert_eq!((&read["read_all"], read["alone"].is_null()), (&right.into(), right), "{read}");
    }
    assert!(wrong["problem"].as_str().is_some_and(|p| p.contains("it left words out")), "{wrong}");
    let none = measured("probes", &[("FAKE_CAPABILITY", "80")]);
    assert!(none["none"].as_str().is_some_and(|why| why.contains("sm_90a")), "{none}");
}

#[test]
#[ignore = "needs the fake driver: heads_are_measured_with_their_roofs_and_peers runs it"]
fn in_child_measures() {
    let device = CudaDevice::open(0).expect("a device");
    let file = PathBuf::from(std::env::var_os("FILE").expect("a file"));
    let what = std::env::var("WHAT").expect("what to measure");
    // As a process for each would, one after the other.
    let all = || heads::KINDS.map(|kind| heads::write(&device, &file, 60.0, kind));
    match what.as_str() {
        "answers" => answers::write(&device, &file, 60.0).expect("answers"),
        "heads" => all().into_iter().for_each(|done| done.expect("whole heads")),
        "after bulk copies" => {
            let mut begun = about(&device);
            begun["method"] = heads::METHOD.into();
            begun["trying"] = "bulk copies".into();
            std::fs::write(&file, begun.to_string()).expect("a file");
            all().into_iter().for_each(|done| done.expect("whole heads"));
        }
        "lost heads" => drop(all().into_iter().find_map(Result::err).expect("a lost device")),
        "wrong heads" => {
            let error = all().into_iter().find_map(Result::err).expect("a wrong product");
            assert!(error.contains(" products are not right: "), "{error}");
        }
        "wrong probes" => {
            let error = probes::write(&device, &file, 60.0).expect_err("words left out");
            assert!(error.starts_with("boxes of 64 rows") && error.contains("left words out"), "{error}");
        }
        "tuning" => {
            tune::write(&device, &file, 60.0).expect("a table");
            let table = Tuning::from_json(&std::fs::read_to_string(&file).expect("a file"));
            device.backend().tuned(table.expect("a table")).expect("a table that it can follow");
        }
        "wrong tuning" => {
            let error = tune::write(&device, &file, 60.0).expect_err("a wrong product");
            assert!(
                error.starts_with("bf16 200x64, 1 rows: ") && error.contains("1 have other bits"),
                "{error}"
            );
            std::fs::write(&file, "{}").expect("a file");
        }
        _ => probes::write(&device, &file, 60.0).expect("probes"),
    }
}

const PARAMS: MmaMicrokernelParams = MmaMicrokernelParams {
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
    let kernel = device.kernel::<MmaMicrokernelParams>(KERNEL).expect("a kernel");
    assert_eq!((kernel.architecture(), kernel.attributes().registers), ("sm_90", 107));
    assert_eq!(kernel.attributes().max_dynamic_shared, 231_424);
    let second = Launch { dynamic_shared: 0, cluster: [2, 1, 1], programmatic: true, ..launch() };
    // Impossible launches are refused before the driver is called.
    let refused = Launch { grid: [3, 2, 1], ..second };
    for (launch, good) in [(launch(), true), (refused, false), (second, true)] {
        // SAFETY: the fake driver dereferences no address.
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
        let kernel = device.kernel::<MmaMicrokernelParams>(KERNEL)?;
        // SAFETY: the fake driver dereferences no address.
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
    let said: &[u64] = bytemuck::cast_slice(&map.opaque[8..56]);
    // Address, sizes, pitch, box, element size of two bytes, swizzle 128B.
    assert_eq!(said, [matrix.address(), 72, 100, 160, 32 << 32 | 64, 1 << 32 | 2]);
}
