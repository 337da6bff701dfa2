//! One opened device: its context, a stream, and the modules that were loaded into it.
//!
//! * `operations`: what it does for others.

mod operations;

use super::context::Context;
use super::driver::{DeviceInfo, describe, devices, driver, failed, loses_device};
use super::fatbins::{self, Fatbin};
use super::launch::Launched;
use super::stream::CudaStream;
use crate::backend::device::{DeviceBackend, KernelDevice};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::plan::Precision;
use cudarc::driver::{DriverError, result, sys};
use std::collections::{HashMap, VecDeque};
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a wait for the device may take, unless [`CudaDevice::set_patience`] says otherwise: the longest
/// matmul takes a hundredth.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// A wait polls without a pause until `SPIN`, then yields to other threads until `YIELD`, then sleeps between
/// polls.
const SPIN: Duration = Duration::from_micros(200);
const YIELD: Duration = Duration::from_millis(5);
const SLEEP: Duration = Duration::from_micros(100);

/// Launches that are remembered, to name the one that may have failed.
const REMEMBERED: usize = 32;

/// A device that any number of threads share; a clone is the same device.
///
/// Every call makes the device's context current for its own duration: threads need not.
///
/// ```no_run
/// use lmhead::backend::cuda::{CudaDevice, CudaStream};
/// # fn engine_context() -> *mut std::ffi::c_void { unimplemented!() }
/// # fn engine_stream() -> *mut std::ffi::c_void { unimplemented!() }
/// # fn main() -> lmhead::Result<()> {
/// // The primary context of device 0, as PyTorch and the runtime API use it,
/// let device = CudaDevice::open(0)?;
/// // or the engine's own context; and launches on the engine's own stream.
/// // SAFETY: both live longer than the device.
/// let device = unsafe { CudaDevice::in_context(engine_context()) }?;
/// let stream = unsafe { CudaStream::from_raw(engine_stream()) };
/// # let _ = (device, stream);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct CudaDevice(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    info: DeviceInfo,
    /// Bytes of shared memory: the most that one block may have, and what an SM has for all of its blocks.
    shared_limit: usize,
    shared_per_sm: usize,
    own_stream: CudaStream,
    /// Our own streams: some driver calls wait for the work on them.
    streams: Mutex<Vec<CudaStream>>,
    /// How long a wait may take, in nanoseconds.
    patience: AtomicU64,
    /// Why the device can do nothing more for this process.
    lost: OnceLock<String>,
    modules: Mutex<HashMap<&'static str, Module>>,
    /// Pinned host memory that was made here: first address and bytes.
    pinned: Mutex<Vec<(u64, usize)>>,
    /// The latest launches: the driver reports a failure at its next call, and not which launch it was.
    launches: Mutex<VecDeque<(CudaStream, Launched)>>,
    /// Streams that a [`Graph`](super::Graph) is recording, with the launches so far: these run when the
    /// graph is launched.
    recordings: Mutex<Vec<(CudaStream, Vec<Launched>)>>,
    /// Dropped after everything that lives in it.
    context: Context,
}

#[derive(Debug)]
struct Module(sys::CUmodule);

// SAFETY: a handle, which the driver takes from any thread.
unsafe impl Send for Module {}

impl Opened {
    /// Whether the work on our stream ends in time; nobody may have waited for it yet.
    fn ends(&self) -> bool {
        let (began, patience) = (Instant::now(), Duration::from_nanos(self.patience.load(Ordering::Relaxed)));
        let Ok(_bound) = self.context.bind() else { return false };
        // SAFETY: our stream, of this context.
        while unsafe { sys::cuStreamQuery(self.own_stream.0) } == sys::CUresult::CUDA_ERROR_NOT_READY {
            if began.elapsed() >= patience {
                return false;
            }
            std::thread::sleep(SLEEP);
        }
        true
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // Destroying would wait for work that never ends; the end of the process gives everything back.
        if self.lost.get().is_some() || !self.ends() {
            self.context.leak();
            return;
        }
        let Ok(_bound) = self.context.bind() else { return };
        // SAFETY: ours, and nothing uses them any more: kernels and buffers keep the device.
        let _ = unsafe { result::stream::destroy(self.own_stream.0) };
        for (_, module) in self.modules.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
            // SAFETY: as above.
            let _ = unsafe { result::module::unload(module.0) };
        }
    }
}

impl CudaDevice {
    /// Opens the device of that ordinal, in its primary context.
    ///
    /// # Errors
    /// As [`super::driver()`]; `Unsupported` where there is no such device; `Device` where it does not
    /// answer.
    pub fn open(ordinal: usize) -> Result<Self> {
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
        let context = result::device::get(i32::try_from(ordinal).unwrap_or(i32::MAX))
            .and_then(Context::primary)
            .map_err(|e| failed(format!("CUDA device {ordinal}"), e))?;
        Self::with(context, info)
    }

    /// Opens the device of an engine's own context: its `CUcontext`.
    ///
    /// # Errors
    /// As [`super::driver()`]; `Device` where the context does not answer.
    ///
    /// # Safety
    /// A context that lives until the device, its clones, kernels, buffers and streams are dropped.
    pub unsafe fn in_context(context: *mut c_void) -> Result<Self> {
        driver()?;
        // SAFETY: the caller's promise.
        let context = unsafe { Context::borrowed(context.cast()) };
        let described = || {
            let _bound = context.bind()?;
            let mut device = 0;
            // SAFETY: a pointer to an int of this frame.
            unsafe { sys::cuCtxGetDevice(&mut device) }.result()?;
            describe(device)
        };
        let info = described().map_err(|e| failed("the engine's CUDA context", e))?;
        Self::with(context, info)
    }

    fn with(context: Context, info: DeviceInfo) -> Result<Self> {
        let open = || -> std::result::Result<_, DriverError> {
            let _bound = context.bind()?;
            use sys::CUdevice_attribute as A;
            let mut device = 0;
            // SAFETY: a pointer to an int of this frame; then a device that came from the driver.
            let shared = unsafe {
                sys::cuCtxGetDevice(&mut device).result()?;
                [
                    result::device::get_attribute(
                        device,
                        A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
                    )?,
                    result::device::get_attribute(
                        device,
                        A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
                    )?,
                ]
            };
            let shared = shared.map(|bytes| usize::try_from(bytes).unwrap_or(0));
            Ok((result::stream::create(result::stream::StreamKind::NonBlocking)?, shared))
        };
        let (stream, [shared_limit, shared_per_sm]) =
            open().map_err(|e| failed(format!("CUDA device {}", info.ordinal), e))?;
        Ok(CudaDevice(Arc::new(Opened {
            info,
            shared_limit,
            shared_per_sm,
            own_stream: CudaStream(stream),
            streams: Mutex::new(vec![CudaStream(stream)]),
            patience: AtomicU64::new(nanoseconds(PATIENCE)),
            lost: OnceLock::new(),
            modules: Mutex::default(),
            pinned: Mutex::default(),
            launches: Mutex::new(VecDeque::with_capacity(REMEMBERED)),
            recordings: Mutex::default(),
            context,
        })))
    }

    pub fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    /// Sets how long every wait for the device may take ([`PATIENCE`] otherwise). After a longer one the
    /// device counts as lost: what was launched may still run, and write.
    pub fn set_patience(&self, patience: Duration) {
        self.0.patience.store(nanoseconds(patience), Ordering::Relaxed);
    }

    /// Why the device can do nothing more for this process, where that is so: a kernel failed, or work or the
    /// freeing of memory did not end in time. Every later call returns this as its error, and what the device
    /// holds is left to the end of the process.
    pub fn lost(&self) -> Option<&str> {
        self.0.lost.get().map(String::as_str)
    }

    /// A whole backend on this device.
    pub fn backend(self) -> DeviceBackend<Self> {
        DeviceBackend::new(self)
    }

    /// Whether this build has code for this device, for every kernel of that precision.
    ///
    /// # Errors
    /// `Unsupported`, naming the kernel file and what it was compiled for.
    pub fn runs(&self, precision: Precision) -> Result<()> {
        for kernel in precision.kernels() {
            fatbins::with_kernel(kernel)?.code_for(self.info().capability)?;
        }
        Ok(())
    }

    fn module(&self, fatbin: &'static Fatbin) -> Result<sys::CUmodule> {
        let mut modules = lock(&self.0.modules);
        if let Some(module) = modules.get(fatbin.name) {
            return Ok(module.0);
        }
        let what = || format!("kernels/{}.cu on {}", fatbin.name, self.info().name);
        // SAFETY: a whole fatbin of nvcc's, which says itself how long it is.
        let load = || unsafe { result::module::load_data(fatbin.bytes.as_ptr().cast()) };
        let module = self.call(what, load)?;
        modules.insert(fatbin.name, Module(module));
        Ok(module)
    }

    /// Waits for everything on the device's own stream.
    ///
    /// # Errors
    /// `Device`, naming the last launch, where one has failed that was not reported yet.
    pub fn synchronize(&self) -> Result<()> {
        self.wait(self.stream())
    }

    /// Runs `call` with the device's context current on this thread, as a caller's own driver calls need it.
    ///
    /// # Errors
    /// `Device` where the context cannot be made current; `call` is not run then.
    pub fn bound<T>(&self, call: impl FnOnce() -> T) -> Result<T> {
        self.call(|| format!("the context of {}", self.info().name), || Ok(call()))
    }

    pub(super) fn context(&self) -> &Context {
        &self.0.context
    }

    pub(super) fn shared_limit(&self) -> usize {
        self.0.shared_limit
    }

    /// Runs `call` with the context current; `what` names it in an error. A lost device is not called any
    /// more.
    pub(super) fn call<T>(
        &self,
        what: impl FnOnce() -> String,
        call: impl FnOnce() -> std::result::Result<T, DriverError>,
    ) -> Result<T> {
        if let Some(why) = self.lost() {
            let problem = format!("the device was lost before: {why}");
            let fix = "start the process again".into();
            return Err(Error::Device { what: what(), problem, fix });
        }
        let bound = self.context().bind();
        bound.and_then(|_bound| call()).map_err(|e| {
            let error = failed(what(), e);
            if loses_device(e.0) {
                let _ = self.0.lost.set(error.to_string());
            }
            error
        })
    }

    /// Polls until the answer is another one than "not ready", at most as long as the device's patience
    /// lasts.
    pub(super) fn poll(&self, what: impl Fn() -> String, ask: impl Fn() -> sys::CUresult) -> Result<()> {
        let began = Instant::now();
        let patience = Duration::from_nanos(self.0.patience.load(Ordering::Relaxed));
        loop {
            let ready = self.call(&what, || match ask() {
                sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
                answer => answer.result().map(|()| true),
            })?;
            if ready {
                return Ok(());
            }
            match began.elapsed() {
                waited if waited >= patience => break,
                waited if waited < SPIN => std::hint::spin_loop(),
                waited if waited < YIELD => std::thread::yield_now(),
                _ => std::thread::sleep(SLEEP),
            }
        }
        Err(self.expired(what(), patience))
    }

    /// Marks the device as lost: what `what` names did not end in time.
    fn expired(&self, what: String, patience: Duration) -> Error {
        let fix = "the device is lost to this process: start it again; \
                   what needs longer is given longer by CudaDevice::set_patience";
        let error = Error::Device { what, problem: format!("no end within {patience:?}"), fix: fix.into() };
        let _ = self.0.lost.set(error.to_string());
        error
    }

    /// Runs a call that waits, without a deadline, for all work of the context: also for what others have put
    /// on their own streams, which cannot be polled from here. It runs on a thread of its own, which is left
    /// behind when the device's patience ends.
    pub(super) fn call_in_time(
        &self,
        what: String,
        call: impl FnOnce() -> std::result::Result<(), DriverError> + Send + 'static,
    ) -> Result<()> {
        // Fails at once on a lost device, before a thread is started for it.
        self.call(|| what.clone(), || Ok(()))?;
        let patience = Duration::from_nanos(self.0.patience.load(Ordering::Relaxed));
        let (device, name, (done, answer)) = (self.clone(), what.clone(), channel());
        let run = move || {
            let answer = device.call(|| name, call);
            // Before the answer, so that this thread is never the last to drop the device.
            drop(device);
            let _ = done.send(answer);
        };
        let started = std::thread::Builder::new().name("lmhead cuda call".into()).spawn(run);
        let problem = |e: std::io::Error| {
            let fix = "let this process have more threads; the memory stays the device's until it ends";
            Error::Device { what: what.clone(), problem: format!("no thread for it: {e}"), fix: fix.into() }
        };
        started.map_err(problem)?;
        answer.recv_timeout(patience).unwrap_or_else(|_| Err(self.expired(what, patience)))
    }

    /// Remembers pinned host memory.
    pub(super) fn pins(&self, start: u64, bytes: usize) {
        lock(&self.0.pinned).push((start, bytes));
    }

    /// Forgets pinned host memory that is about to be freed.
    pub(super) fn unpins(&self, start: u64) {
        lock(&self.0.pinned).retain(|(known, _)| *known != start);
    }

    /// Adds a stream to our own ones.
    pub(super) fn owns(&self, stream: CudaStream) {
        lock(&self.0.streams).push(stream);
    }

    /// Removes a stream that is about to be destroyed.
    pub(super) fn disowns(&self, stream: CudaStream) {
        lock(&self.0.streams).retain(|known| *known != stream);
    }

    /// Remembers a launch. Never fails, and allocates only while a graph is recorded.
    pub(super) fn launched(&self, stream: CudaStream, what: Launched) {
        if let Some((_, recorded)) = lock(&self.0.recordings).iter_mut().find(|(on, _)| *on == stream) {
            recorded.push(what);
            return;
        }
        let mut launches = lock(&self.0.launches);
        if launches.len() == REMEMBERED {
            launches.pop_front();
        }
        launches.push_back((stream, what));
    }

    /// From now on launches on the stream are recorded in a graph.
    pub(super) fn recording_begins(&self, stream: CudaStream) {
        lock(&self.0.recordings).push((stream, Vec::new()));
    }

    /// What was launched on the stream since [`CudaDevice::recording_begins`].
    pub(super) fn recording_ends(&self, stream: CudaStream) -> Vec<Launched> {
        let mut recordings = lock(&self.0.recordings);
        let at = recordings.iter().position(|(on, _)| *on == stream);
        at.map_or_else(Vec::new, |at| recordings.swap_remove(at).1)
    }

    /// The launch that a failure on the stream is most likely of.
    pub(super) fn suspect(&self, stream: CudaStream) -> String {
        let launches = lock(&self.0.launches);
        let mine = launches.iter().rev().find(|(on, _)| *on == stream);
        mine.or(launches.back()).map_or("no launch".into(), |(_, launched)| launched.to_string())
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
