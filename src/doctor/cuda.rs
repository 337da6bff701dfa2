//! The CUDA side of the examination: kernels of this build, driver, devices, and which runs which.

use super::{Check, Status};
use crate::backend::cuda::fatbins::{EMBEDDED, Fatbin, LEFT_OUT, listed};
use crate::backend::cuda::{DeviceInfo, devices, driver};
use crate::error::Error;

/// One check for the kernels, one for the driver, one for each device. Nothing of it is `Missing`: the CPU does the work.
pub fn examine() -> Vec<Check> {
    let version = match driver() {
        Ok(version) => version,
        Err(error) => return vec![kernels(EMBEDDED, LEFT_OUT), problem("cuda driver", &error)],
    };
    let mut checks = vec![
        kernels(EMBEDDED, LEFT_OUT),
        Check::new("cuda driver", Status::Ok, format!("for CUDA {version}"), ""),
    ];
    match devices() {
        Ok(devices) => checks.extend(devices.iter().map(|info| device(info, EMBEDDED))),
        Err(error) => checks.push(problem("cuda devices", &error)),
    }
    checks
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

/// The wanted and the got of an error, and its advice apart.
fn problem(name: &str, error: &Error) -> Check {
    let (message, fix) = match error {
        Error::Unsupported { wanted, got, fix, .. } => (format!("wanted {wanted}, got {got}"), fix.as_str()),
        Error::Device { problem, fix, .. } => (problem.clone(), fix.as_str()),
        other => (other.to_string(), ""),
    };
    Check::new(name, Status::Note, message, fix)
}

fn device(info: &DeviceInfo, fatbins: &[Fatbin]) -> Check {
    let DeviceInfo { ordinal, name, capability, memory } = info;
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
        Fatbin { name: "a", kernels: &["a"], architectures: &["sm_80", "compute_80"], bytes: &[] },
        Fatbin { name: "b", kernels: &["b"], architectures: &["sm_90a"], bytes: &[] },
    ];

    #[test]
    fn a_device_is_told_with_what_it_runs_and_what_not() {
        let info =
            |capability| DeviceInfo { ordinal: 1, name: "GPU".into(), capability, memory: 80_000_000_000 };
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
    fn a_build_without_kernels_says_so() {
        assert_eq!(kernels(&[], &[]).message, "none in this build");
        assert_eq!(kernels(FATBINS, &[]).message, "a (sm_80 compute_80), b (sm_90a)");
        assert_eq!(
            kernels(&FATBINS[..1], &[("b", &["sm_90a"])]).message,
            "a (sm_80 compute_80); left out by LMHEAD_CUDA_ARCHS: b (sm_90a)"
        );
    }
}
