//! Memory of a device.

use super::device::CudaDevice;
use super::stream::CudaStream;
use crate::backend::device::KernelDevice;
use crate::error::{Error, Result};
use cudarc::driver::result;

/// Memory of one device, freed when dropped.
///
/// It is not tied to a stream: freeing it waits for everything that uses the memory, on an engine's streams
/// too. Where that takes longer than the device's patience, the device counts as lost, and the memory with
/// it.
#[derive(Debug)]
pub struct Buffer {
    device: CudaDevice,
    address: u64,
    bytes: usize,
}

impl Buffer {
    pub(super) fn new(device: CudaDevice, bytes: usize) -> Result<Self> {
        let what = || format!("{bytes} bytes on {}", device.info().name);
        // The driver allocates no less than a byte. SAFETY: what is in it is read by nobody before it is
        // written: that is the caller's to see to, as on any device.
        let address = device.call(what, || unsafe { result::malloc_sync(bytes.max(1)) })?;
        Ok(Buffer { device, address, bytes })
    }

    pub(super) fn fill(&self, value: u8) -> Result<()> {
        let (device, stream) = (&self.device, self.device.stream());
        let what = || format!("{} bytes on {} filled", self.bytes, device.info().name);
        // SAFETY: the whole of the allocation.
        let fill = || unsafe { result::memset_d8_async(self.address, value, self.bytes, stream.0) };
        device.call(what, fill)?;
        device.wait(stream)
    }

    /// # Safety
    /// As [`KernelDevice::queue_write`].
    pub(super) unsafe fn queue_write(&self, stream: CudaStream, at: usize, bytes: &[u8]) -> Result<()> {
        let to = self.within(at, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let what = || self.copied(bytes.len(), "to", stream);
        // SAFETY: within the allocation; the source is the caller's promise.
        self.device.call(what, || unsafe { result::memcpy_htod_async(to, bytes, stream.0) })
    }

    /// # Safety
    /// As [`KernelDevice::queue_read`].
    pub(super) unsafe fn queue_read(&self, stream: CudaStream, at: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.within(at, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let count = bytes.len();
        let what = || self.copied(count, "from", stream);
        // SAFETY: as above.
        self.device.call(what, || unsafe { result::memcpy_dtoh_async(bytes, from, stream.0) })
    }

    /// Names a copy in an error: the driver may report there that an earlier launch has failed.
    fn copied(&self, bytes: usize, direction: &str, stream: CudaStream) -> String {
        let (name, suspect) = (&self.device.info().name, self.device.suspect(stream));
        format!("{bytes} bytes {direction} {name}, after {suspect}")
    }

    fn within(&self, at: usize, bytes: usize) -> Result<u64> {
        if at.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            let wanted = format!("a range of its {} bytes", self.bytes);
            let fix = "allocate as much as is used";
            return Err(Error::shape("device buffer", wanted, format!("{bytes} from {at} on"), fix));
        }
        Ok(self.address + at as u64)
    }

    /// Overwrites the buffer.
    ///
    /// # Errors
    /// `Shape` where `values` has another size. `Device` where the copy fails.
    pub fn write<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> Result<()> {
        let values: &[u8] = bytemuck::cast_slice(values);
        if values.len() != self.bytes {
            let fix = "write the whole buffer";
            return Err(Error::shape("device buffer", format!("{} bytes", self.bytes), values.len(), fix));
        }
        self.device.write(self, 0, values)
    }

    /// Waits for the device's own stream, then copies the buffer here.
    ///
    /// # Errors
    /// `Shape` where the size is no multiple of an element's. `Device` where the copy, or a kernel before it,
    /// failed.
    pub fn read<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&self) -> Result<Vec<T>> {
        let size = size_of::<T>().max(1);
        if !self.bytes.is_multiple_of(size) {
            let wanted = format!("a multiple of {size} bytes");
            return Err(Error::shape("device buffer", wanted, self.bytes, "read it as what was written"));
        }
        let mut values = vec![T::zeroed(); self.bytes / size];
        self.device.read(self, 0, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// The device's address of the first byte, at least 256-byte aligned.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The address as a field of a parameter struct.
    pub fn pointer<T>(&self) -> *mut T {
        self.address as usize as *mut T
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Freeing waits in the driver, without a deadline, for a kernel that does not end. This waits first,
        // with one, and names such a kernel on our streams. A lost device has lost its memory too.
        let _ = self.device.wait_own_streams();
        let what = format!("{} bytes on {} freed", self.bytes, self.device.info().name);
        let address = self.address;
        // SAFETY: allocated by `new`, freed once.
        let _ = self.device.call_in_time(what, move || unsafe { result::free_sync(address) });
    }
}
