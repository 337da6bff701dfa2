//! Memory of a device.

use super::device::Device;
use super::driver::failed;
use crate::error::{Error, Result};
use cudarc::driver::{CudaSlice, DevicePtr, DriverError, result};
use std::sync::Arc;

/// Memory of one device, freed on its stream when dropped.
#[derive(Debug)]
pub struct Buffer {
    device: Arc<Device>,
    /// At least one byte, since the driver allocates no less.
    memory: CudaSlice<u8>,
    bytes: usize,
}

impl Buffer {
    pub(super) fn filled(device: Arc<Device>, bytes: usize, value: u8) -> Result<Self> {
        let fill = || -> std::result::Result<_, DriverError> {
            // SAFETY: every byte is set before anything else can be queued behind the allocation.
            let memory = unsafe { device.stream.alloc::<u8>(bytes.max(1)) }?;
            let (address, guard) = memory.device_ptr(&device.stream);
            // SAFETY: the whole of the allocation, on the stream that it belongs to.
            unsafe { result::memset_d8_async(address, value, bytes.max(1), device.stream.cu_stream()) }?;
            drop(guard);
            Ok(memory)
        };
        let memory = fill().map_err(|e| failed(format!("{bytes} bytes on {}", device.info().name), e))?;
        Ok(Buffer { device, memory, bytes })
    }

    pub(super) fn upload(device: Arc<Device>, values: &[u8]) -> Result<Self> {
        let mut buffer = Self::filled(device, values.len(), 0)?;
        buffer.write(values)?;
        Ok(buffer)
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
        if values.is_empty() {
            return Ok(());
        }
        let copied = self.device.stream.memcpy_htod(values, &mut self.memory);
        copied.map_err(|e| failed(format!("{} bytes to {}", self.bytes, self.device.info().name), e))?;
        // The source is the caller's again when this returns.
        self.device.synchronize()
    }

    /// Waits for the device, then copies the buffer here.
    ///
    /// # Errors
    /// `Shape` where the size is no multiple of an element's. `Device` where the copy, or a kernel before it, failed.
    pub fn read<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&self) -> Result<Vec<T>> {
        let size = size_of::<T>().max(1);
        if !self.bytes.is_multiple_of(size) {
            let wanted = format!("a multiple of {size} bytes");
            return Err(Error::shape("device buffer", wanted, self.bytes, "read it as what was written"));
        }
        self.device.synchronize()?;
        let mut values = vec![T::zeroed(); self.bytes / size];
        if !values.is_empty() {
            let into: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
            let copied = self.device.stream.memcpy_dtoh(&self.memory, into);
            copied
                .map_err(|e| failed(format!("{} bytes from {}", self.bytes, self.device.info().name), e))?;
            self.device.synchronize()?;
        }
        Ok(values)
    }

    /// The device's address of the first byte, at least 256-byte aligned.
    pub fn address(&self) -> u64 {
        self.memory.device_ptr(&self.device.stream).0
    }

    /// The address as a field of a parameter struct.
    pub fn pointer<T>(&self) -> *mut T {
        self.address() as usize as *mut T
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}
