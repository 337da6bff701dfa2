//! Device memory with a frontier: what is written outside of it shows.

use lmhead::backend::device::KernelDevice;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes before and behind, a multiple of what allocations are aligned to.
const GUARD: usize = 256;

/// Bytes that no kernel writes by chance, another at each place, and each time another at every place: what an earlier launch left, or
/// was given, is not what this one must leave.
fn poison(bytes: usize, time: usize) -> Vec<u8> {
    // Odd, so that 256 times in a row differ.
    let time = time.wrapping_mul(0x9d);
    (0..bytes).map(|i| (i.wrapping_mul(167) >> 3 ^ 0xa5 ^ time) as u8).collect()
}

#[test]
fn poison_differs_from_time_to_time_at_every_place() {
    for (earlier, later) in [(0, 1), (7, 8), (3, 100), (1, 256), (255, 256)] {
        assert!(poison(1000, earlier).iter().zip(poison(1000, later)).all(|(a, b)| *a != b));
    }
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
        static TIMES: AtomicUsize = AtomicUsize::new(0);
        let time = TIMES.fetch_add(1, Ordering::Relaxed);
        Self::with(device, poison(bytes + 2 * GUARD, time), GUARD)
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
        let mut outside = (0..self.guard).chain(end..now.len());
        if let Some(at) = outside.find(|&at| now[at] != self.image[at]) {
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
        let before = &self.image[self.guard..][..now.len()];
        // Weights of gigabytes are compared at once.
        if now == before {
            return Ok(now);
        }
        match (0..now.len()).find(|&at| now[at] != before[at] && !written(at)) {
            Some(at) => Err(format!("{what}: byte {at} was written to")),
            None => Ok(now),
        }
    }
}
