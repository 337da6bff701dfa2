//! Bytes between host and device through locked host memory: one copy each way, and one wait, for calls that fit it.

use super::KernelDevice;
use crate::error::Result;

/// Pieces on their way to a buffer of the device, one behind the other: one copy where they fit the staged memory, and none that anybody
/// waits for.
pub(super) struct Upload<'a, D: KernelDevice> {
    device: &'a D,
    stream: D::Stream,
    buffer: &'a D::Buffer,
    staging: &'a mut [u8],
    /// Bytes in `staging`, and where in the buffer they belong.
    filled: usize,
    sent: usize,
}

impl<'a, D: KernelDevice> Upload<'a, D> {
    /// `staging` is not in use.
    pub fn new(device: &'a D, stream: D::Stream, buffer: &'a D::Buffer, staging: &'a mut [u8]) -> Self {
        Upload { device, stream, buffer, staging, filled: 0, sent: 0 }
    }

    /// Device address of what is pushed next.
    pub fn address(&self) -> u64 {
        self.device.address(self.buffer) + (self.sent + self.filled) as u64
    }

    /// # Errors
    /// As [`KernelDevice::queue_write`]; as [`KernelDevice::wait`] where the pieces are more than the staged memory holds.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.filled == self.staging.len() {
                self.send()?;
                // It is filled anew.
                self.device.wait(self.stream)?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.staging.len() - self.filled));
            self.staging[self.filled..][..now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
        }
        Ok(())
    }

    /// Zeros up to a multiple of 16 bytes.
    ///
    /// # Errors
    /// As [`Upload::push`].
    pub fn pad(&mut self) -> Result<()> {
        let at = self.sent + self.filled;
        self.push(&[0; 16][..at.next_multiple_of(16) - at])
    }

    /// Queues what is left.
    ///
    /// # Errors
    /// As [`KernelDevice::queue_write`].
    pub fn send(&mut self) -> Result<()> {
        let bytes = &self.staging[..self.filled];
        // SAFETY: whoever made this lends the staged memory again only after a wait; `push` waits itself.
        unsafe { self.device.queue_write(self.stream, self.buffer, self.sent, bytes)? };
        self.sent += self.filled;
        self.filled = 0;
        Ok(())
    }
}
