//! `--backend`: which one runs, and its description in reports.

use crate::args::BackendName;
use crate::input::HeadSource;
use lmhead::backend::Backend;
use lmhead::backend::cpu::CpuBackend;
use lmhead::config::HeadConfig;
use lmhead::error::{Error, Result};
use lmhead::{DType, plan::Precision};
use std::sync::Arc;

/// A backend, its description, and the number of CPU threads.
pub struct Chosen {
    pub backend: Arc<dyn Backend>,
    pub description: String,
    pub threads: usize,
}

/// The backend of that name. `auto` is the GPU where this build has the kernels, there is a device that runs
/// them, and they take the head; otherwise the CPU, and the report says so.
pub fn choose(
    name: BackendName,
    threads: Option<usize>,
    config: &HeadConfig,
    source: &HeadSource,
    hidden: DType,
) -> Result<Chosen> {
    let weights = source.loaded_dtype(config.quantization);
    let precision = match source.has_float_scales(config.quantization) {
        true => Err(Error::Unsupported {
            what: "device kernels".into(),
            wanted: "float weights without scales".into(),
            got: "NVFP4's scale for all weights".into(),
            fix: "use the cpu backend, or --quantize w8a8 or w8a16".into(),
        }),
        false => Precision::of(weights, config.quantization, hidden),
    };
    match name {
        BackendName::Cpu => cpu(threads),
        BackendName::Cuda => cuda(threads, precision?),
        BackendName::Emulated => precision.and_then(|_| emulated(threads)),
        BackendName::Auto => {
            precision.and_then(|precision| cuda(threads, precision)).or_else(|error| {
                // No warning where the build or the machine has no GPU, only where a GPU fails.
                if matches!(&error, Error::Device { problem, .. } if !problem.starts_with("CUDA_ERROR_NO_DEVICE")) {
                    crate::tell(format_args!("warning: not on the GPU: {error}"));
                }
                cpu(threads)
            })
        }
    }
}

fn cpu(threads: Option<usize>) -> Result<Chosen> {
    let cpu = CpuBackend::new(threads)?;
    Ok(Chosen { description: format!("cpu {}", cpu.isa()), threads: cpu.threads(), backend: Arc::new(cpu) })
}

/// Device 0, if it runs `precision`.
#[cfg(feature = "cuda")]
fn cuda(threads: Option<usize>, precision: Precision) -> Result<Chosen> {
    use lmhead::backend::cuda::CudaDevice;
    let cpu = CpuBackend::new(threads)?;
    let threads = cpu.threads();
    let device = CudaDevice::open(0)?;
    device.runs(precision)?;
    let info = device.info();
    let description = format!("cuda {} ({})", info.name, info.capability);
    Ok(Chosen { backend: Arc::new(device.backend()), description, threads })
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: Option<usize>, _: Precision) -> Result<Chosen> {
    Err(missing("cuda", "it needs nvcc to build (scripts/cuda-toolkit) and a driver to run"))
}

#[cfg(feature = "emulated")]
fn emulated(threads: Option<usize>) -> Result<Chosen> {
    use lmhead_emulated::EmulatedDevice;
    let cpu = CpuBackend::new(threads)?;
    let threads = cpu.threads();
    let backend = EmulatedDevice::new(0).backend();
    Ok(Chosen { backend: Arc::new(backend), description: "emulated compute capability 9.0".into(), threads })
}

#[cfg(not(feature = "emulated"))]
fn emulated(_: Option<usize>) -> Result<Chosen> {
    Err(missing("emulated", "it needs g++ to build"))
}

#[cfg(not(all(feature = "cuda", feature = "emulated")))]
fn missing(name: &str, needs: &str) -> Error {
    Error::Unsupported {
        what: "--backend".into(),
        wanted: "a backend of this build".into(),
        got: format!("`{name}`"),
        fix: format!("build with --features {name} ({needs}), or use --backend cpu"),
    }
}
