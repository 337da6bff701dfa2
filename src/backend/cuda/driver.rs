//! Is there a driver, and which devices does it know?

use super::fatbins::Capability;
use crate::error::{Error, Result};
use cudarc::driver::{DriverError, result, sys};
use std::fmt;
use std::sync::OnceLock;

/// The newest CUDA version that a driver supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DriverVersion(pub u32, pub u32);

impl fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The version that the bindings are made for (Cargo.toml). An older driver lacks functions, and the bindings
/// panic where they look up a missing one.
const OLDEST: DriverVersion = DriverVersion(12, 8);

/// The major version of the nvcc that made the kernels; 0 on docs.rs, which has none.
fn compiled() -> u32 {
    option_env!("LMHEAD_NVCC_MAJOR").and_then(|major| major.parse().ok()).unwrap_or(0)
}

/// The driver that kernels of an nvcc of major version `compiled` need: an older one does not load their code
/// (CUDA compatibility guide, "Minor Version Compatibility").
fn needed(compiled: u32) -> DriverVersion {
    OLDEST.max(DriverVersion(compiled, 0))
}

/// How to get that driver, by the names of NVIDIA's branches (CUDA toolkit release notes, "CUDA Toolkit and
/// Corresponding Driver Versions").
fn install(needed: DriverVersion) -> String {
    let branch = match needed {
        OLDEST => "570 or newer",
        DriverVersion(13, 0) => "580 or newer",
        _ => "of that CUDA version or newer",
    };
    format!(
        "install NVIDIA's driver ({branch}; in a container, start it with the GPUs), or use the cpu backend"
    )
}

/// One device of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The driver's number for it; `CUDA_VISIBLE_DEVICES` changes which devices there are.
    pub ordinal: usize,
    pub name: String,
    pub capability: Capability,
    /// Bytes of device memory.
    pub memory: usize,
    /// Streaming multiprocessors.
    pub num_sms: u32,
}

/// Loads the driver's library and starts it, once per process.
///
/// # Errors
/// `Unsupported`: no driver, or one that is too old. `Device`: it does not start, as where its kernel module
/// is missing.
pub fn driver() -> Result<DriverVersion> {
    static FOUND: OnceLock<Result<DriverVersion>> = OnceLock::new();
    FOUND.get_or_init(start).clone()
}

fn start() -> Result<DriverVersion> {
    // SAFETY: loading the driver's library runs its initialisers, as every CUDA program does.
    if !unsafe { sys::is_culib_present() } {
        let needed = needed(compiled());
        let wanted = format!("libcuda of a driver for CUDA {needed} or newer");
        return Err(Error::unsupported("CUDA driver", wanted, "none on this machine", install(needed)));
    }
    // The version first: the error of an old driver names that, not the first function that it lacks.
    complete(&FUNCTIONS[..1])?;
    let mut version = 0;
    // SAFETY: a pointer to an int of this frame; the function is in every driver and may be called before
    // cuInit.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|e| failed("CUDA driver: its version", e))?;
    let version = new_enough(version, compiled())?;
    complete(FUNCTIONS)?;
    result::init().map_err(|e| failed("CUDA driver: cuInit", e))?;
    Ok(version)
}

/// Every function of the driver that is called here; the first tells its version.
const FUNCTIONS: &[&str] = &[
    "cuDriverGetVersion",
    "cuCtxGetCurrent",
    "cuCtxGetDevice",
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventQuery",
    "cuEventRecord",
    "cuFuncGetAttribute",
    "cuFuncGetParamInfo",
    "cuFuncLoad",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernelEx",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD32Async",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamIsCapturing",
    "cuStreamQuery",
    "cuTensorMapEncodeTiled",
];

/// The bindings look a function up when it is first called, and panic where it is missing: a library that is
/// only a part of a driver, as a simulator's or a stub's, is refused here.
fn complete(functions: &[&str]) -> Result<()> {
    // SAFETY: the library is there; its functions are looked up, not called.
    let missing = functions.iter().find(|name| unsafe {
        sys::culib().get::<unsafe extern "C" fn()>(format!("{name}\0").as_bytes()).is_err()
    });
    match missing {
        None => Ok(()),
        Some(name) => {
            let wanted = format!("a libcuda with the function {name}");
            Err(Error::unsupported("CUDA driver", wanted, "one without it", install(needed(compiled()))))
        }
    }
}

/// `cuDriverGetVersion` counts 1000 x major + 10 x minor. `compiled`: see [`needed`].
fn new_enough(said: i32, compiled: u32) -> Result<DriverVersion> {
    let said = u32::try_from(said).unwrap_or(0);
    let (version, needed) = (DriverVersion(said / 1000, said % 1000 / 10), needed(compiled));
    if version >= needed {
        return Ok(version);
    }
    let (mut wanted, mut fix) = (format!("one for CUDA {needed} or newer"), install(needed));
    if needed > OLDEST {
        wanted += ", as the nvcc that compiled the kernels";
        fix += ", or build with an nvcc of the driver's major version";
    }
    Err(Error::unsupported("CUDA driver", wanted, format!("one for CUDA {version}"), fix))
}

/// The devices of this machine, by ordinal.
///
/// # Errors
/// As [`driver`]; `Device` where there is no device.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    driver()?;
    let count = result::device::get_count().map_err(|e| failed("CUDA devices", e))?;
    (0..count)
        .map(|ordinal| describe(ordinal).map_err(|e| failed(format!("CUDA device {ordinal}"), e)))
        .collect()
}

pub(super) fn describe(ordinal: i32) -> std::result::Result<DeviceInfo, DriverError> {
    use sys::CUdevice_attribute as A;
    let device = result::device::get(ordinal)?;
    let attribute = |name| {
        // SAFETY: `device` came from the driver just now.
        unsafe { result::device::get_attribute(device, name) }.map(|n| u32::try_from(n).unwrap_or(0))
    };
    let capability = Capability(
        attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    );
    let num_sms = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device) }?;
    let name = result::device::get_name(device)?;
    Ok(DeviceInfo { ordinal: usize::try_from(ordinal).unwrap_or(0), name, capability, memory, num_sms })
}

/// The driver's error with its own name and words for it.
pub(super) fn failed(what: impl Into<String>, error: DriverError) -> Error {
    use sys::cudaError_enum as E;
    let text = |words: std::result::Result<&std::ffi::CStr, DriverError>| {
        words.map_or_else(|_| format!("{:?}", error.0), |words| words.to_string_lossy().into_owned())
    };
    let fix = match error.0 {
        E::CUDA_ERROR_OUT_OF_MEMORY => "free device memory, or ask for less",
        E::CUDA_ERROR_NO_DEVICE => "look at nvidia-smi and CUDA_VISIBLE_DEVICES",
        E::CUDA_ERROR_NO_BINARY_FOR_GPU
        | E::CUDA_ERROR_INVALID_IMAGE
        | E::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            "the driver is older than the nvcc that compiled the kernels, or the device is: compare both in lmhead doctor"
        }
        E::CUDA_ERROR_ECC_UNCORRECTABLE | E::CUDA_ERROR_NVLINK_UNCORRECTABLE => {
            "the device is lost to this process, and its memory may be failing: look at nvidia-smi -q -d ECC before it is used again"
        }
        E::CUDA_ERROR_LAUNCH_TIMEOUT => {
            "the device is lost to this process: start it again, on a device without a display's time limit"
        }
        other if loses_device(other) => {
            "the device is lost to this process: start it again, and run it under compute-sanitizer"
        }
        _ => "look up the code in NVIDIA's driver API reference",
    };
    let problem = format!("{}: {}", text(error.error_name()), text(error.error_string()));
    Error::Device { what: what.into(), problem, fix: fix.into() }
}

/// Whether a context that has met this error answers every later call with an error, too (CUDA driver API
/// reference, "the process must be terminated and relaunched" and errors of the hardware).
pub(super) fn loses_device(error: sys::CUresult) -> bool {
    use sys::cudaError_enum as E;
    matches!(
        error,
        E::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | E::CUDA_ERROR_ECC_UNCORRECTABLE
            | E::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | E::CUDA_ERROR_ILLEGAL_ADDRESS
            | E::CUDA_ERROR_LAUNCH_TIMEOUT
            | E::CUDA_ERROR_ASSERT
            | E::CUDA_ERROR_HARDWARE_STACK_ERROR
            | E::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | E::CUDA_ERROR_MISALIGNED_ADDRESS
            | E::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | E::CUDA_ERROR_INVALID_PC
            | E::CUDA_ERROR_LAUNCH_FAILED
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_driver_is_refused_by_version() {
        assert_eq!(new_enough(13000, 13), Ok(DriverVersion(13, 0)));
        assert_eq!(new_enough(12080, 12), Ok(DriverVersion(12, 8)));
        for (said, got) in [(12060, "12.6"), (11040, "11.4"), (-1, "0.0")] {
            let error = new_enough(said, 12).expect_err("too old").to_string();
            let wanted = format!("CUDA driver: wanted one for CUDA 12.8 or newer, got one for CUDA {got}; ");
            assert!(error.starts_with(&wanted), "{error}");
        }
        let error = new_enough(12060, 12).expect_err("too old").to_string();
        assert!(error.contains("install NVIDIA's driver (570 or newer; "), "{error}");
        for said in [12090, 11040] {
            let error = new_enough(said, 13).expect_err("older than the code").to_string();
            assert!(error.contains("wanted one for CUDA 13.0 or newer, as the nvcc"), "{error}");
            assert!(error.contains("; install NVIDIA's driver (580 or newer; "), "{error}");
            assert!(error.contains(", or build with an nvcc of the driver's major version"), "{error}");
        }
        let error = new_enough(13010, 14).expect_err("older than the code").to_string();
        assert!(error.contains("install NVIDIA's driver (of that CUDA version or newer; "), "{error}");
    }

    #[test]
    fn without_a_driver_there_is_an_error_that_says_so_and_no_panic() {
        match driver() {
            Ok(version) => assert!(version >= needed(compiled())),
            Err(Error::Unsupported { what, fix, .. }) => {
                assert_eq!(what, "CUDA driver");
                assert!(fix.starts_with(&install(needed(compiled()))), "{fix}");
                assert_eq!(devices(), Err(driver().expect_err("the same answer every time")));
            }
            Err(Error::Device { problem, .. }) => assert!(problem.starts_with("CUDA_ERROR_"), "{problem}"),
            Err(other) => panic!("{other}"),
        }
    }
}
