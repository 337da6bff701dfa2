//! One opened device: its context, a stream, and the modules that were loaded into it.

use super::buffer::Buffer;
use super::driver::{DeviceInfo, devices, failed};
use super::fatbins::{self, Fatbin};
use super::kernel::{Kernel, Launched};
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, CudaModule, CudaStream, DriverError, sys};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A device with one stream, on which everything happens in order.
#[derive(Debug)]
pub struct Device {
    info: DeviceInfo,
    context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    /// Bytes of shared memory that one block may have.
    pub(super) shared_limit: usize,
    modules: Mutex<HashMap<&'static str, Arc<CudaModule>>>,
    /// The launch that a later failure is reported with: the device tells of it when it is next asked.
    last_launch: Mutex<Option<Launched>>,
}

impl Device {
    /// Opens the device of that ordinal.
    ///
    /// # Errors
    /// As [`super::driver()`]; `Unsupported` where there is no such device; `Device` where it does not answer.
    pub fn open(ordinal: usize) -> Result<Arc<Self>> {
        let devices = devices()?;
        let count = devices.len();
        let Some(info) = devices.into_iter().nth(ordinal) else {
            let (wanted, got) = match count {
                0 => ("at least one".to_string(), "none".to_string()),
                n => (format!("0 to {}", n - 1), ordinal.to_string()),
            };
            let fix = "look at nvidia-smi and CUDA_VISIBLE_DEVICES";
            return Err(Error::unsupported("CUDA device", wanted, got, fix));
        };
        let open = || -> std::result::Result<_, DriverError> {
            let context = CudaContext::new(ordinal)?;
            // SAFETY: events order the streams of a context; this one's buffers are used on one stream only.
            unsafe { context.disable_event_tracking() };
            let stream = context.new_stream()?;
            let shared = context
                .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
            Ok((context, stream, shared))
        };
        let (context, stream, shared) = open().map_err(|e| failed(format!("CUDA device {ordinal}"), e))?;
        Ok(Arc::new(Device {
            info,
            context,
            stream,
            shared_limit: usize::try_from(shared).unwrap_or(0),
            modules: Mutex::default(),
            last_launch: Mutex::default(),
        }))
    }

    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The embedded kernel of that name, which takes one struct `P` of [`crate::backend::params`]. Loads its file on first use.
    ///
    /// # Errors
    /// `Unsupported`: no such kernel, no code for this device, or a parameter of another size. `Device`: the driver refuses it.
    pub fn kernel<P: Copy>(self: &Arc<Self>, name: &str) -> Result<Kernel<P>> {
        let fatbin = fatbins::with_kernel(name)?;
        let architecture = fatbin.code_for(self.info.capability)?;
        let module = self.module(fatbin)?;
        let loading = |e| failed(format!("kernel {name} ({architecture}, {})", self.info.name), e);
        let function = module.load_function(name).map_err(loading)?;
        Kernel::new(self.clone(), name, architecture, function)
    }

    fn module(&self, fatbin: &'static Fatbin) -> Result<Arc<CudaModule>> {
        let mut modules = lock(&self.modules);
        if let Some(module) = modules.get(fatbin.name) {
            return Ok(module.clone());
        }
        let what = || format!("kernels/{}.cu on {}", fatbin.name, self.info.name);
        let image = Ptx::from_binary(fatbin.bytes.to_vec());
        let module = self.context.load_module(image).map_err(|e| failed(what(), e))?;
        modules.insert(fatbin.name, module.clone());
        Ok(module)
    }

    /// Device memory with every byte set to `value`.
    ///
    /// # Errors
    /// `Device`, as where memory is short.
    pub fn filled(self: &Arc<Self>, bytes: usize, value: u8) -> Result<Buffer> {
        Buffer::filled(self.clone(), bytes, value)
    }

    /// Device memory with a copy of `values`.
    ///
    /// # Errors
    /// As [`Device::filled`].
    pub fn upload<T: bytemuck::NoUninit>(self: &Arc<Self>, values: &[T]) -> Result<Buffer> {
        Buffer::upload(self.clone(), bytemuck::cast_slice(values))
    }

    /// Waits for everything that was launched.
    ///
    /// # Errors
    /// `Device`, naming the last launch: one that was not told of yet has failed.
    pub fn synchronize(&self) -> Result<()> {
        self.bind().and_then(|()| self.stream.synchronize()).map_err(|e| {
            let last = lock(&self.last_launch).as_ref().map_or("no kernel".into(), Launched::to_string);
            failed(format!("{}, after {last}", self.info.name), e)
        })
    }

    pub(super) fn bind(&self) -> std::result::Result<(), DriverError> {
        self.context.bind_to_thread()
    }

    pub(super) fn launched(&self, what: Launched) {
        *lock(&self.last_launch) = Some(what);
    }
}

/// What these locks guard is whole at every moment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
