//! The CUDA part of `lmhead doctor`: kernels of this build, driver, devices, and which device runs which
//! kernels.

use super::{Check, Status};
use crate::backend::cuda::fatbins::{EMBEDDED, Fatbin, LEFT_OUT, listed};
use crate::backend::cuda::{DeviceInfo, devices, driver};
use crate::dtype::DType;
use crate::error::Error;
use crate::plan::Precision;

/// One check each for the kernels, the driver, every device, and the backend. None is ever `Missing`, since
/// the CPU backend can do the work.
pub fn examine() -> Vec<Check> {
    let mut checks = vec![kernels(EMBEDDED, LEFT_OUT)];
    let found = driver().map_err(|e| problem("cuda driver", &e)).and_then(|version| {
        checks.push(Check::new("cuda driver", Status::Ok, format!("for CUDA {version}"), ""));
        devices().map_err(|e| problem("cuda devices", &e))
    });
    match found {
        Ok(devices) => {
            checks.extend(devices.iter().map(|info| device(info, EMBEDDED)));
            checks.push(backend(devices.first(), EMBEDDED));
        }
        Err(check) => {
            let text = format!("see {}; --backend auto takes the cpu", check.name);
            checks.push(check);
            checks.push(Check::new("backend cuda", Status::Note, "nothing to run on", text));
        }
    }
    checks
}

/// Which heads `--backend cuda`, which uses device 0, could run.
fn backend(first: Option<&DeviceInfo>, fatbins: &[Fatbin]) -> Check {
    let Some(DeviceInfo { name, capability, .. }) = first else {
        let advice = "look at nvidia-smi and CUDA_VISIBLE_DEVICES; --backend auto takes the cpu";
        return Check::new("backend cuda", Status::Note, "no device", advice);
    };
    let (mut runs, mut not) = (Vec::new(), Vec::new());
    for (name, precision) in [
        ("bf16", Precision::Bf16),
        ("f16", Precision::F16),
        ("w8a8", Precision::W8a8(DType::Bf16)),
        ("w8a16", Precision::W8a16(DType::Bf16)),
        ("fp8", Precision::Fp8(DType::Bf16)),
    ] {
        let mut kernels = precision.kernels();
        let here = |kernel: &str| {
            let with = |fatbin: &&Fatbin| fatbin.kernels.contains(&kernel);
            fatbins.iter().find(with).is_some_and(|fatbin| fatbin.code_for(*capability).is_ok())
        };
        if kernels.all(here) { runs.push(name) } else { not.push(name) }
    }
    let on = format!("{name} ({capability})");
    if not.is_empty() {
        return Check::new("backend cuda", Status::Ok, format!("{} on device 0, {on}", runs.join(", ")), "");
    }
    let message = format!("device 0, {on}: no code of this build for {}", not.join(", "));
    let advice = "use a GPU from Ampere on, or build for this one (LMHEAD_CUDA_ARCHS); --backend auto takes the cpu where it must";
    Check::new("backend cuda", Status::Note, message, advice)
}

fn kernels(fatbins: &[Fatbin], left_out: &[(&str, &[&str])]) -> Check {
    let files: Vec<_> = fatbins.iter().map(|f| (f.name, f.architectures)).collect();
    let mut message = if files.is_empty() { "none in this build".into() } else { listed(&files) };
    let status = if files.is_empty() { Status::Note } else { Status::Ok };
    if !left_out.is_empty() {
        message += &format!("; left out by LMHEAD_CUDA_ARCHS: {}", listed(left_out));
    }
    Check::new("cuda kernels", status, message, "")
}

/// A note with an error's message, its advice as the suggestion.
fn problem(name: &str, error: &Error) -> Check {
    let (message, fix) = match error {
        Error::Unsupported { wanted, got, fix, .. } => (format!("wanted {wanted}, got {got}"), fix.as_str()),
        Error::Device { problem, fix, .. } => (problem.clone(), fix.as_str()),
        other => (other.to_string(), ""),
    };
    Check::new(name, Status::Note, message, fix)
}

fn device(info: &DeviceInfo, fatbins: &[Fatbin]) -> Check {
    let DeviceInfo { ordinal, name, capability, memory, .. } = info;
    let (mut runs, mut not) = (Vec::new(), Vec::new());
    for fatbin in fatbins {
        match fatbin.code_for(*capability) {
            Ok(code) => runs.push(format!("{} ({code})", fatbin.name)),
            Err(_) => not.push(format!("{} (made for {})", fatbin.name, fatbin.architectures.join(" "))),
        }
    }
    let mut message = format!("{name}, compute capability {capability}, {:.1} GB", *memory as f64 / 1e9);
    for (what, files) in [("runs", &runs), ("cannot run", &not)] {
        if !files.is_empty() {
            message += &format!("; {what} {}", files.join(", "));
        }
    }
    let status = if not.is_empty() { Status::Ok } else { Status::Note };
    Check::new(&format!("cuda device {ordinal}"), status, message, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::fatbins::Capability;

    const FATBINS: &[Fatbin] = &[
        Fatbin {
            name: "a",
            kernels: &["a"],
            architectures: &["sm_80", "compute_80"],
            warnings: "",
            bytes: &[],
        },
        Fatbin { name: "b", kernels: &["b"], architectures: &["sm_90a"], warnings: "", bytes: &[] },
    ];

    #[test]
    fn a_device_is_told_with_what_it_runs_and_what_not() {
        let info = |capability| DeviceInfo {
            ordinal: 1,
            name: "GPU".into(),
            capability,
            memory: 80_000_000_000,
            num_sms: 1,
        };
        for (capability, status, wanted) in [
            (Capability(9, 0), Status::Ok, "9.0, 80.0 GB; runs a (compute_80), b (sm_90a)"),
            (Capability(8, 6), Status::Note, "8.6, 80.0 GB; runs a (sm_80); cannot run b (made for sm_90a)"),
            (
                Capability(7, 0),
                Status::Note,
                "7.0, 80.0 GB; cannot run a (made for sm_80 compute_80), b (made for sm_90a)",
            ),
        ] {
            let check = device(&info(capability), FATBINS);
            assert_eq!(check.message, format!("GPU, compute capability {wanted}"));
            assert_eq!((check.name.as_str(), check.status), ("cuda device 1", status));
        }
    }

    #[test]
    fn the_backend_is_there_where_device_0_runs_every_product() {
        let info =
            |capability| DeviceInfo { ordinal: 0, name: "GPU".into(), capability, memory: 1, num_sms: 1 };
        const PRODUCTS: &[Fatbin] = &[
            Fatbin {
                name: "quant",
                kernels: &[
                    "quant_matmul_128x128",
                    "quant_matmul_128x16",
                    "quant_matmul_128x32",
                    "quant_matmul_128x64",
                    "quant_matmul_128x8",
                    "quant_matmul_64x16",
                    "quant_matmul_64x32",
                    "quant_matmul_64x64",
                    "quant_matmul_64x8",
                ],
                architectures: &["sm_80"],
                warnings: "",
                bytes: &[],
            },
            Fatbin {
                name: "quantize",
                kernels: &["quantize_rows_bf16"],
                architectures: &["sm_80"],
                warnings: "",
                bytes: &[],
            },
        ];
        for (capability, wanted) in [
            (Capability(8, 6), "device 0, GPU (8.6): no code of this build for bf16, f16, w8a16, fp8"),
            (Capability(7, 5), "device 0, GPU (7.5): no code of this build for bf16, f16, w8a8, w8a16, fp8"),
        ] {
            let check = backend(Some(&info(capability)), PRODUCTS);
            assert_eq!((check.status, check.message.as_str()), (Status::Note, wanted));
        }
        assert_eq!(backend(None, PRODUCTS).message, "no device");
    }

    #[test]
    fn a_build_without_kernels_says_so() {
        assert_eq!(kernels(&[], &[]).message, "none in this build");
        assert_eq!(kernels(FATBINS, &[]).message, "a (sm_80 compute_80), b (sm_90a)");
        assert_eq!(
            kernels(&FATBINS[..1], &[("b", &["sm_90a"])]).message,
            "a (sm_80 compute_80); left out by LMHEAD_CUDA_ARCHS: b (sm_90a)"
        );
    }
}
