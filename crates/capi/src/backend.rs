//! Backends: where the arithmetic runs.

use crate::boundary::{Outcome, argument, call, call_silently, place};
use crate::handles;
use crate::structs::sized;
use crate::sys::{self, lmhead_backend, lmhead_backend_config, lmhead_status};
use lmhead::backend::cpu::CpuBackend;
use lmhead::exchange::StreamMarks;
use std::sync::Arc;

pub struct Backend {
    pub backend: Arc<dyn lmhead::backend::Backend>,
    /// Makes the marks with which transports of the device's memory wait for streams; `None` on the host.
    marks: Option<Box<dyn Fn() -> Arc<dyn StreamMarks> + Send + Sync>>,
}

impl Backend {
    /// Stream marks for one member of a device transport.
    pub fn marks(&self) -> Outcome<Arc<dyn StreamMarks>> {
        let marks = self.marks.as_ref().ok_or_else(|| {
            let fix = "leave it NULL for a transport of host memory";
            argument("device", "the backend of a device", self.backend.name(), fix)
        })?;
        Ok(marks())
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_backend_open(
    config: *const lmhead_backend_config,
    backend: *mut *mut lmhead_backend,
) -> lmhead_status {
    call(|| {
        let backend = place("backend", backend)?;
        // SAFETY: the caller's promise.
        let config = unsafe { sized("config", config)? };
        let threads = match config.threads {
            0 => None,
            n => Some(crate::structs::count("threads", n.into())?),
        };
        let opened = match config.device_type as u32 {
            0 | sys::LMHEAD_HOST => Backend { backend: Arc::new(CpuBackend::new(threads)?), marks: None },
            sys::LMHEAD_CUDA => cuda(config.device_id)?,
            other => {
                let fix = "use one of those";
                return Err(argument("device_type", "LMHEAD_HOST or LMHEAD_CUDA", other, fix));
            }
        };
        let handle = handles::keep(opened)?;
        // SAFETY: `backend` is non-null and aligned (checked); the header requires it to be writable.
        unsafe { backend.write(handle) };
        Ok(())
    })
}

#[cfg(feature = "cuda")]
fn cuda(device: i32) -> Outcome<Backend> {
    let device = lmhead::backend::cuda::CudaDevice::open(crate::structs::count("device_id", device.into())?)?;
    let own = device.clone();
    let marks = move || lmhead::backend::device::stream_marks(&own);
    Ok(Backend { backend: Arc::new(device.backend()), marks: Some(Box::new(marks)) })
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: i32) -> Outcome<Backend> {
    let fix = "build the library with `--features cuda`";
    Err(lmhead::Error::unsupported("backend cuda", "a build with CUDA kernels", "one without", fix).into())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_backend_free(backend: *mut lmhead_backend) {
    call_silently("lmhead_backend_free", || handles::free::<Backend>("backend", backend));
}
