//! `lmhead run --backend cuda` on the fake driver: the whole path through the driver's functions, and the
//! errors where they fail.

#![cfg(target_os = "linux")]

use lmhead_gpu::fake_driver::library;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folder of the fake `libcuda.so`.
fn fake_driver() -> &'static Path {
    lmhead_gpu::fake_driver::folder(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// `lmhead run` of a small job with `args`, the driver's folder, and the driver's variables.
fn run(args: &[&str], driver: &Path, says: &[(&str, &str)]) -> Output {
    let preset = if args.contains(&"--head") { &[][..] } else { &["--preset", "tiny"] };
    Command::new(env!("CARGO_BIN_EXE_lmhead"))
        .args(["run", "--threads", "1"])
        .args(preset)
        .args(args)
        .env_remove("LMHEAD_CPU_ISA")
        .env("LD_LIBRARY_PATH", driver)
        .envs(says.iter().copied())
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().expect("a folder"))
    }

    fn file(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("text").to_string()
    }
}

#[test]
fn answers_have_the_emulated_backends_bits_and_everything_is_given_back() {
    let folder = Folder::new();
    for (quantize, more) in [
        ("none", &["--request", "logits"][..]),
        ("none", &["--logits-dtype", "bf16", "--request", "logits"]),
        ("w8a8", &["--request", "logits"]),
        ("w8a8", &["--request", "sample", "--temperature", "0.7", "--top-p", "0.9"]),
        ("w8a16", &["--request", "topk:5"]),
    ] {
        let out = |backend: &str| folder.file(&format!("{backend}.safetensors"));
        let ends = folder.file("ends");
        for backend in ["cuda", "emulated"] {
            let to = out(backend);
            let mut args = vec!["--rows", "3,0,2", "--lmhead-tp-size", "3", "--check", "--json"];
            args.extend(["--quantize", quantize, "--backend", backend, "--out", &to]);
            args.extend(more);
            let output = run(&args, fake_driver(), &[("FAKE_ENDS", &ends)]);
            let (said, problem) = (text(&output.stdout), text(&output.stderr));
            assert!(output.status.success(), "{args:?}: {}: {said}{problem}", output.status);
            let wanted =
                if backend == "cuda" { "cuda Fake 0 (9.0)" } else { "emulated compute capability 9.0" };
            let report: serde_json::Value = serde_json::from_str(&said).expect("JSON");
            assert_eq!(report["backend"], wanted);
            assert_eq!(report["check"]["passed"], true, "{args:?}");
            if backend == "cuda" {
                let left = std::fs::read_to_string(&ends).expect("an end");
                let wanted = "0 allocations, 0 streams, 0 graphs, 0 events, 0 modules, 0 contexts\n\
                              0 kernels and 0 graphs loaded by a launch\n";
                assert_eq!(left, wanted, "{args:?}");
            }
        }
        let [cuda, emulated] =
            ["cuda", "emulated"].map(|backend| std::fs::read(out(backend)).expect("a file"));
        assert!(cuda == emulated, "{quantize} {more:?}: other bits than the emulated backend's");
    }
}

#[test]
fn failures_of_the_device_are_named_and_leave_no_file() {
    let folder = Folder::new();
    let (stage, launch) =
        ("kernel stage_rows (sm_90a), grid [", "kernel wgmma_matmul_bf16_64x8 (sm_90a), grid [");
    for (says, code, wanted) in [
        (
            &[("FAKE_MEMORY", "30000")][..],
            3,
            &["bytes on Fake 0: CUDA_ERROR_OUT_OF_MEMORY", "free device memory"][..],
        ),
        (
            &[("FAKE_LOAD", "209")],
            3,
            &["kernels/wgmma_matmul_bf16_sm90a.cu on Fake 0: CUDA_ERROR_NO_BINARY_FOR_GPU"],
        ),
        (
            &[("FAKE_LAUNCH", "701")],
            3,
            &["product [", "] x [", stage, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: the driver's own words"],
        ),
        (
            &[("FAKE_LAUNCH", "701"), ("FAKE_FROM", "1")],
            3,
            &["product [", launch, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"],
        ),
        (
            &[("FAKE_RUN", "700")],
            3,
            &["product [", "Fake 0, after ", launch, "CUDA_ERROR_ILLEGAL_ADDRESS", "the device is lost"],
        ),
        (
            &[("FAKE_CAPABILITY", "75")],
            2,
            &["kernels/gather_matmul_sm80.cu: wanted a device that runs sm_80", "got compute capability 7.5"],
        ),
        (&[("FAKE_DEVICES", "0")], 2, &["CUDA device: wanted at least one, got none"]),
        (
            &[("FAKE_VERSION", "11080")],
            2,
            &["CUDA driver: wanted one for CUDA ", "got one for CUDA 11.8; install NVIDIA's driver"],
        ),
        (&[("FAKE_INIT", "100")], 2, &["CUDA driver: cuInit: CUDA_ERROR_NO_DEVICE"]),
    ] {
        let (out, ends) = (folder.file("out.safetensors"), folder.file("ends"));
        let mut all = vec![("FAKE_ENDS", ends.as_str())];
        all.extend(says);
        let args = ["--rows", "3,2", "--lmhead-tp-size", "2", "--backend", "cuda", "--out", &out];
        let output = run(&args, fake_driver(), &all);
        let problem = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{says:?}: {problem}");
        for wanted in wanted {
            assert!(problem.contains(wanted), "{says:?}: wanted \"{wanted}\", got \"{problem}\"");
        }
        assert!(!problem.contains("panicked") && output.stdout.is_empty(), "{says:?}: {problem}");
        assert!(!Path::new(&out).exists(), "{says:?}: a file was written");
        // The memory of a lost device is lost with it; in all other cases it is freed.
        if says[0].0 != "FAKE_RUN" {
            let left = std::fs::read_to_string(&ends).expect("an end");
            assert!(left.starts_with("0 allocations, 0 streams"), "{says:?}: {left}");
        }
    }
}

#[test]
fn auto_takes_the_gpu_where_it_runs_the_head_and_the_cpu_otherwise() {
    for (says, wanted) in [
        (&[][..], "cuda Fake 0 (9.0)"),
        (&[("FAKE_CAPABILITY", "86")], "cuda Fake 0 (8.6)"),
        (&[("FAKE_CAPABILITY", "120")], "cuda Fake 0 (12.0)"),
        (&[("FAKE_CAPABILITY", "75")], "cpu "),
        (&[("FAKE_DEVICES", "0")], "cpu "),
        (&[("FAKE_VERSION", "12040")], "cpu "),
        (&[("FAKE_INIT", "100")], "cpu "),
    ] {
        let output = run(&["--rows", "2", "--json", "--check"], fake_driver(), says);
        let problem = text(&output.stderr);
        assert!(output.status.success() && problem.is_empty(), "{says:?}: {}: {problem}", output.status);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let backend = report["backend"].as_str().expect("text");
        assert!(backend.starts_with(wanted), "{says:?}: wanted {wanted}, got {backend}");
    }
}

#[test]
fn an_f32_head_is_the_cpus_and_refused_elsewhere() {
    let folder = Folder::new();
    let write = |name: &str, tensor: &str, rows: usize| {
        let bytes: Vec<u8> = (0..rows * 16).flat_map(|i| ((i % 7) as f32 - 3.0).to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![rows, 16], &bytes);
        let path = folder.file(name);
        let tensors = [(tensor, view.expect("a tensor"))];
        safetensors::serialize_to_file(tensors, None, Path::new(&path)).expect("a file");
        path
    };
    let (head, hidden) = (write("head", "lm_head.weight", 40), write("hidden", "hidden_states", 3));
    let args =
        |backend| ["--head", &head, "--hidden", &hidden, "--json", "--backend", backend].map(String::from);
    let with = |backend| {
        let args = args(backend);
        run(&args.each_ref().map(String::as_str), fake_driver(), &[])
    };
    let report: serde_json::Value = serde_json::from_slice(&with("auto").stdout).expect("JSON");
    assert!(report["backend"].as_str().is_some_and(|backend| backend.starts_with("cpu ")), "{report}");
    for backend in ["cuda", "emulated"] {
        let output = with(backend);
        let problem = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{problem}");
        let wanted =
            "error: device kernels: wanted bf16, f16, int8 or FP8 weights, got f32; use the cpu backend";
        assert!(problem.starts_with(wanted), "{problem}");
    }
}

/// Libraries that report themselves as a driver but lack functions: the bindings would panic at the first
/// missing one. An old driver is refused by its version, whatever it lacks.
#[test]
fn a_driver_that_lacks_a_function_is_refused_by_the_functions_name() {
    let version =
        |number| format!("extern \"C\" int cuDriverGetVersion(int *v) {{ return *v = {number}, 0; }}\n");
    let lacks = |name| {
        format!("wanted a libcuda with the function {name}, got one without it; install NVIDIA's driver (5")
    };
    for (name, functions, wanted) in [
        ("no-version", String::new(), lacks("cuDriverGetVersion")),
        ("old-driver", version(12030), "got one for CUDA 12.3; install NVIDIA's driver (5".into()),
        ("half-a-driver", version(13000), lacks("cuCtxGetCurrent")),
    ] {
        let source = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.cpp"));
        std::fs::write(&source, functions + "extern \"C\" int cuInit(unsigned) { return 0; }\n")
            .expect("a file");
        let driver = library(&Path::new(env!("CARGO_TARGET_TMPDIR")).join(name), |command| {
            command.arg(&source);
        });
        let output = run(&["--rows", "2", "--backend", "cuda"], &driver, &[]);
        let problem = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{problem}");
        assert!(
            problem.starts_with("error: CUDA driver: wanted ") && problem.contains(&wanted),
            "{name}: {problem}"
        );
        let output = run(&["--rows", "2", "--backend", "auto"], &driver, &[]);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}

#[test]
fn without_a_driver_cuda_says_so_and_auto_runs_on_the_cpu() {
    let Err(lmhead::Error::Unsupported { .. }) = lmhead::backend::cuda::driver() else { return };
    let nowhere = Path::new("/nonexistent");
    let output = run(&["--rows", "2", "--backend", "cuda"], nowhere, &[]);
    let problem = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{problem}");
    assert!(problem.starts_with("error: CUDA driver: wanted libcuda of a driver for CUDA 1"), "{problem}");
    let output = run(&["--rows", "2", "--json"], nowhere, &[]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(report["backend"].as_str().is_some_and(|backend| backend.starts_with("cpu ")), "{report}");
}

fn doctor(says: &[(&str, &str)]) -> Vec<(String, String, String)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lmhead"));
    command.args(["doctor", "--json"]).env("LD_LIBRARY_PATH", fake_driver()).envs(says.iter().copied());
    let output = command.output().expect("the program runs");
    let checks: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |check: &serde_json::Value, key: &str| check[key].as_str().expect("text").to_string();
    let checks = checks.as_array().expect("checks").iter();
    checks.map(|c| (text(c, "name"), text(c, "status"), text(c, "message"))).collect()
}

#[test]
fn doctor_tells_of_driver_and_devices() {
    for (says, name, status, message) in [
        (&[][..], "cuda driver", "ok", "for CUDA 13.0"),
        (&[("FAKE_VERSION", "12040")], "cuda driver", "note", "got one for CUDA 12.4"),
        (&[("FAKE_INIT", "100")], "cuda driver", "note", "CUDA_ERROR_NO_DEVICE: the driver's own words"),
        (&[("FAKE_CAPABILITY", "90")], "cuda device 0", "ok", "microkernels/wgmma_sm90a (sm_90a)"),
        (
            &[("FAKE_CAPABILITY", "120")],
            "cuda device 0",
            "note",
            "w8a16_matmul_sm80 (sm_120); cannot run microkernels/gather_bf16_sm90a (made for sm_90a)",
        ),
        (&[("FAKE_CAPABILITY", "103")], "cuda device 0", "note", "w8a16_matmul_sm80 (sm_100); cannot run "),
        (
            &[("FAKE_CAPABILITY", "110")],
            "cuda device 0",
            "note",
            "w8a16_matmul_sm80 (compute_90); cannot run ",
        ),
        (&[("FAKE_CAPABILITY", "75")], "cuda device 0", "note", "cannot run capacity_sm80 (made for sm_80"),
        (&[("FAKE_DEVICES", "3")], "cuda device 2", "ok", "Fake 2, compute capability 9.0, 80.0 GB; runs "),
        (&[], "backend cuda", "ok", "bf16, f16, w8a8, w8a16, fp8 on device 0, Fake 0 (9.0)"),
        (
            &[("FAKE_CAPABILITY", "75")],
            "backend cuda",
            "note",
            "device 0, Fake 0 (7.5): no code of this build for bf16",
        ),
        (&[("FAKE_DEVICES", "0")], "backend cuda", "note", "no device"),
        (&[("FAKE_INIT", "100")], "backend cuda", "note", "nothing to run on"),
        (&[], "backend emulated", "ok", "compute capability 9.0"),
    ] {
        let checks = doctor(says);
        let found = checks.iter().find(|check| check.0 == name);
        let (_, was, text) = found.unwrap_or_else(|| panic!("{says:?}: no {name} in {checks:?}"));
        assert!(was == status && text.contains(message), "{says:?}: {was}: {text}");
    }
}
