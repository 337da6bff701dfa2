//! Device memory between guard zones, which show writes outside of it.

use lmhead::backend::device::KernelDevice;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of a guard zone, a multiple of the alignment of allocations.
const GUARD: usize = 256;

/// Bytes that no kernel writes by chance. They differ from place to place, and at each place from one `time`
/// to the next, so that results of an earlier launch are not taken for this one's.
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

/// A buffer, and a host copy of what it held before the launches.
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

    /// The bytes between the guard zones now.
    ///
    /// # Errors
    /// Where a guard zone was written to, or the device reports a fault.
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
    /// The first byte that has changed and is not in `written`.
    pub fn unchanged(
        &self,
        device: &D,
        what: &str,
        written: impl Fn(usize) -> bool,
    ) -> Result<Vec<u8>, String> {
        let now = self.read(device, what)?;
        let before = &self.image[self.guard..][..now.len()];
        // The fast path, for weights of gigabytes.
        if now == before {
            return Ok(now);
        }
        match (0..now.len()).find(|&at| now[at] != before[at] && !written(at)) {
            Some(at) => Err(format!("{what}: byte {at} was written to")),
            None => Ok(now),
        }
    }
}
