//! The kernels on one device as a backend.

use super::KernelDevice;
use super::room::{DeviceMemory, PinnedMemory};
use super::shard::{Common, DeviceShard};
use super::weights::{Weights, check_memory, precision};
use crate::backend::{Backend, LoadedShard};
use crate::backend::{HeadTypes, check_boundaries};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::memory::{Allocation, Memory, Stream};
use crate::plan::Tuning;
use crate::process::Maker;
use crate::reference::Accuracy;
use crate::weights::HeadShard;
use std::fmt;
use std::sync::Arc;

/// Bytes of host memory that a shard pins for sending, and as many for receiving.
const STAGED: usize = 64 << 20;

/// The most bytes of logits that are held at once for partials.
const HELD: usize = 256 << 20;

/// Part of the fingerprint: raised whenever a kernel's bits change, or those of sums and masses.
const VERSION: u32 = 2;

/// The kernels on one device as a [`Backend`]. Rows and answers in the device's
/// memory are used in place, on the caller's stream. Partials, passes over held logits and answers are made
/// by kernels, with the bits of the CPU backend's code.
pub struct DeviceBackend<D: KernelDevice> {
    common: Arc<Common<D>>,
}

impl<D: KernelDevice> fmt::Debug for DeviceBackend<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceBackend").field("device", &self.device().name()).finish_non_exhaustive()
    }
}

impl<D: KernelDevice> DeviceBackend<D> {
    /// The backend of `device`.
    pub fn new(device: D) -> Self {
        let common = Common { device, staged: STAGED, held: HELD, tuning: None, maker: Maker::here() };
        DeviceBackend { common: Arc::new(common) }
    }

    /// Sets about how many bytes of host memory a shard pins for sending, and as many for receiving (64 MiB
    /// otherwise). More than that goes through it in parts, with a wait for each.
    #[must_use]
    pub fn staged(self, bytes: usize) -> Self {
        self.with(|common| Common { staged: bytes.max(4096), ..common })
    }

    /// Sets about how many bytes of logits are held at once for partials (256 MiB otherwise): more rows are
    /// multiplied in parts.
    #[must_use]
    pub fn held(self, bytes: usize) -> Self {
        self.with(|common| Common { held: bytes, ..common })
    }

    /// Shards that are loaded from now on take the kernels that `table` names and, where it names none, those
    /// of the cost model. The bits are the same.
    ///
    /// # Errors
    /// As [`Tuning::check`]: `Config` for a table of another device, or one that this device cannot follow.
    pub fn tuned(self, table: Tuning) -> Result<Self> {
        table.check(&self.device().limits())?;
        Ok(self.with(|common| Common { tuning: Some(Arc::new(table)), ..common }))
    }

    fn with(self, change: impl FnOnce(Common<D>) -> Common<D>) -> Self {
        let Common { device, staged, held, tuning, maker } = &*self.common;
        let (device, tuning) = (device.clone(), tuning.clone());
        let common = Common { device, staged: *staged, held: *held, tuning, maker: *maker };
        DeviceBackend { common: Arc::new(change(common)) }
    }

    pub fn device(&self) -> &D {
        &self.common.device
    }

    /// A driver's context does not survive a fork.
    fn check_process(&self) -> Result<()> {
        self.common.maker.check("the device backend")
    }
}

impl<D: KernelDevice> Backend for DeviceBackend<D> {
    fn name(&self) -> &'static str {
        self.device().name()
    }

    fn memory(&self) -> Memory {
        self.common.memory()
    }

    /// `DEVICE/VERSION DTYPE`, without the host's CPU: what that makes of logits has the same bits
    /// everywhere.
    fn fingerprint(&self, types: HeadTypes) -> String {
        format!("{}/{VERSION} {}", self.device().fingerprint(), types.weights)
    }

    fn accuracy(&self) -> Accuracy {
        Accuracy::TensorCores
    }

    fn check(&self, shard: &HeadShard, hidden: DType) -> Result<()> {
        self.check_process()?;
        precision(shard, hidden)?;
        check_memory(self.device(), shard)?;
        check_boundaries(shard)
    }

    fn load(&self, shard: &Arc<HeadShard>, hidden: DType) -> Result<Box<dyn LoadedShard>> {
        self.check(shard, hidden)?;
        let device = self.device();
        let stream = device.open_stream()?;
        let tuning = self.common.tuning.clone();
        let weights = Weights::new(device, device.on(&stream), shard, hidden, tuning)?;
        Ok(Box::new(DeviceShard::new(&self.common, Arc::new(weights), stream)?))
    }

    fn is_capturing(&self, stream: Stream) -> Result<bool> {
        self.check_process()?;
        if stream.is_none() {
            return Ok(false);
        }
        let device = self.device();
        // SAFETY: the promise of whoever made the handle.
        device.is_capturing(unsafe { device.stream_from(stream) })
    }

    fn allocate(&self, memory: Memory, bytes: usize, what: &str) -> Result<Box<dyn Allocation>> {
        self.check_process()?;
        let named = |error| match error {
            Error::Device { what: of, problem, fix } => {
                Error::Device { what: format!("{what}, {of}"), problem, fix }
            }
            other => other,
        };
        let device = self.device();
        match memory {
            Memory::Host => Ok(Box::new(PinnedMemory::new(device, bytes).map_err(named)?)),
            own if own == self.common.memory() => {
                Ok(Box::new(DeviceMemory::new(device, bytes).map_err(named)?))
            }
            other => {
                let wanted = format!("host memory or {}", self.common.memory());
                Err(Error::shape(what, wanted, other, "use the backend of that device"))
            }
        }
    }
}
