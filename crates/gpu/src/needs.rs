//! A GPU test, and what it asks of the device.

use libtest_mimic::Failed;
use lmhead::Error;
use lmhead::backend::cuda::CudaDevice;
use lmhead::backend::cuda::fatbins::{self, Capability};

/// What a test asks of the device.
pub enum Needs {
    /// At least this compute capability.
    Capability(Capability),
    /// One that runs this embedded kernel.
    Kernel(&'static str),
    /// One that runs the products' kernels and has that many bytes of memory.
    Memory(usize),
    /// One that runs the products' kernels, of exactly this capability.
    Exactly(Capability),
}

pub struct GpuTest {
    pub name: &'static str,
    pub needs: Needs,
    pub run: fn(&CudaDevice) -> Result<(), Failed>,
}

impl Needs {
    /// # Errors
    /// Why the device does not meet it.
    pub fn met_by(&self, device: &CudaDevice) -> Result<(), String> {
        let info = device.info();
        let runs = |kernel: &str| {
            let code = fatbins::with_kernel(kernel).and_then(|f| f.code_for(info.capability));
            code.map(drop).map_err(|e| first_sentence(&e))
        };
        match self {
            Needs::Capability(least) if info.capability < *least => {
                Err(format!("compute capability {least} or newer, {} has {}", info.name, info.capability))
            }
            Needs::Capability(_) => Ok(()),
            Needs::Kernel(name) => runs(name),
            Needs::Memory(bytes) if info.memory < *bytes && !small() => {
                let gb = |bytes: usize| bytes as f64 / 1e9;
                Err(format!(
                    "{:.0} GB of device memory, {} has {:.0}",
                    gb(*bytes),
                    info.name,
                    gb(info.memory)
                ))
            }
            Needs::Memory(_) => runs("gather_matmul_bf16_128x8"),
            Needs::Exactly(one) if info.capability != *one => {
                Err(format!("compute capability {one}, {} has {}", info.name, info.capability))
            }
            Needs::Exactly(_) => runs("gather_matmul_bf16_128x8"),
        }
    }
}

/// Whether shapes must be small: under compute-sanitizer and on an emulated device, which are slow.
pub fn small() -> bool {
    std::env::var_os("LMHEAD_GPU_SMALL").is_some()
}

/// The error without its advice, which is the same for every test.
pub fn first_sentence(error: &Error) -> String {
    let text = error.to_string();
    text.split("; ").next().unwrap_or(&text).to_string()
}
