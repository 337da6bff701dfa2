//! Device memory with a frontier: what is written outside of it shows.

use lmhead::backend::device::KernelDevice;

/// Bytes before and behind, a multiple of what allocations are aligned to.
const GUARD: usize = 256;

/// Bytes that no kernel writes by chance, another at each place.
pub fn poison(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i.wrapping_mul(167) >> 3 ^ 0xa5) as u8).collect()
}

/// A buffer of which the host knows what it held before the launches.
pub struct Guarded<D: KernelDevice> {
    buffer: D::Buffer,
    guard: usize,
    image: Vec<u8>,
    address: u64,
}

impl<D: KernelDevice> Guarded<D> {
    /// An input: exactly `content`, so that the emulated device sees a read past its end.
    pub fn input(device: &D, content: &[u8]) -> Result<Self, String> {
        Self::with(device, content.to_vec(), 0)
    }

    /// An output of `bytes` bytes between two guard zones, all poison.
    pub fn output(device: &D, bytes: usize) -> Result<Self, String> {
        Self::with(device, poison(bytes + 2 * GUARD), GUARD)
    }

    fn with(device: &D, image: Vec<u8>, guard: usize) -> Result<Self, String> {
        let buffer = device.alloc(image.len()).map_err(|e| e.to_string())?;
        device.write(&buffer, 0, &image).map_err(|e| e.to_string())?;
        let address = device.address(&buffer) + guard as u64;
        Ok(Guarded { buffer, guard, image, address })
    }

    pub fn address(&self) -> u64 {
        self.address
    }

    /// What is between the guard zones now.
    ///
    /// # Errors
    /// Where a guard zone was written to, or the device has a fault to tell of.
    pub fn read(&self, device: &D, what: &str) -> Result<Vec<u8>, String> {
        let mut now = vec![0; self.image.len()];
        device.read(&self.buffer, 0, &mut now).map_err(|e| e.to_string())?;
        let end = now.len() - self.guard;
        let outside = |at: &usize| *at < self.guard || *at >= end;
        if let Some(at) = (0..now.len()).filter(outside).find(|&at| now[at] != self.image[at]) {
            return Err(format!("{what}: byte {} was written to", at as i64 - self.guard as i64));
        }
        now.truncate(end);
        now.drain(..self.guard);
        Ok(now)
    }

    /// # Errors
    /// The first byte that is another one than before, but for those in `written`.
    pub fn unchanged(
        &self,
        device: &D,
        what: &str,
        written: impl Fn(usize) -> bool,
    ) -> Result<Vec<u8>, String> {
        let now = self.read(device, what)?;
        let before = &self.image[self.guard..];
        match (0..now.len()).find(|&at| now[at] != before[at] && !written(at)) {
            Some(at) => Err(format!("{what}: byte {at} was written to")),
            None => Ok(now),
        }
    }
}
