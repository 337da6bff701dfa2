//! What the memory can do with as many bytes as a product moves: only reading them, and copying them.

use crate::clocked::Clocked;
use crate::operands::values;
use cudarc::driver::result;
use lmhead::backend::cuda::{Buffer, CudaDevice, CudaStream, Kernel};
use lmhead::backend::device::{Grid, KernelDevice};
use lmhead::backend::params::ReadStreamParams;
use lmhead::{DType, Error, Result};

/// Random bytes, again and again.
const PATTERN: usize = 16 << 20;

/// Memory to read and to copy, of which each pass takes another window, so that the second-level cache holds nothing of it.
pub struct Roofs<'d> {
    device: &'d CudaDevice,
    stream: CudaStream,
    read: Kernel<ReadStreamParams>,
    from: Buffer,
    to: Buffer,
    sum: Buffer,
    /// Sums of the pattern's words before each word, and of all.
    sums: Vec<u32>,
}

impl<'d> Roofs<'d> {
    /// For products that move at most `largest` bytes; windows come again after `rotate` bytes at the earliest.
    pub fn new(device: &'d CudaDevice, stream: CudaStream, largest: usize, rotate: usize) -> Result<Self> {
        let bytes = (largest + rotate).next_multiple_of(256);
        let pattern = values(DType::I8, PATTERN.min(bytes), 77);
        let mut sums = vec![0u32];
        for word in pattern.chunks_exact(4) {
            let word = u32::from_le_bytes(word.try_into().expect("four bytes"));
            sums.push(sums[sums.len() - 1].wrapping_add(word));
        }
        let from = device.alloc(bytes)?;
        for at in (0..bytes).step_by(pattern.len()) {
            device.write(&from, at, &pattern[..pattern.len().min(bytes - at)])?;
        }
        let (to, sum) = (device.alloc(bytes)?, device.filled(4, 0)?);
        Ok(Roofs { device, stream, read: device.kernel("read_stream")?, from, to, sum, sums })
    }

    /// Where pass `i` over so many bytes begins: windows lie one behind the other.
    fn window(&self, i: usize, bytes: usize) -> usize {
        let step = bytes.next_multiple_of(256);
        i % ((self.from.len() - bytes) / step + 1) * step
    }

    /// Reading so many bytes, rounded to 16, and nothing else.
    pub fn reading(&self, bytes: usize, passes: usize) -> Result<Clocked> {
        // No more than have something to read.
        let most = u32::try_from(bytes.div_ceil(16 * 512)).unwrap_or(u32::MAX).max(1);
        let blocks = most.min(self.device.info().processors * 4);
        let grid = Grid { blocks, threads: 512, shared_bytes: 0 };
        Clocked::new(self.device, self.stream, passes, |i| {
            let params = ReadStreamParams {
                data: (self.from.address() as usize + self.window(i, bytes)) as *const _,
                pieces: bytes as u64 / 16,
                out: self.sum.pointer(),
            };
            // SAFETY: the window is within the buffer, which lives as long as whoever replays borrows `self`.
            unsafe { self.device.launch(self.stream, &self.read, &grid, &params) }
        })
    }

    /// Copying half of so many bytes, so that all of them move.
    pub fn copying(&self, bytes: usize, passes: usize) -> Result<Clocked> {
        Clocked::new(self.device, self.stream, passes, |i| {
            let half = bytes / 32 * 16;
            let at = self.window(i, half) as u64;
            // SAFETY: as above.
            let copy = || unsafe {
                let (to, from) = (self.to.address() + at, self.from.address() + at);
                result::memcpy_dtod_async(to, from, half, self.stream.as_raw().cast())
            };
            self.device.bound(copy)?.map_err(|e| Error::Device {
                what: "a copy on the device".into(),
                problem: e.to_string(),
                fix: "free device memory".into(),
            })
        })
    }

    /// Whether `replays` of one graph of reading passes, since the last call, have read every word.
    ///
    /// # Errors
    /// The sum that they must have found and the one that they did.
    pub fn check(&mut self, bytes: usize, passes: usize, replays: usize) -> std::result::Result<(), String> {
        let (words, pattern) = (bytes / 16 * 4, self.sums.len() - 1);
        // Of the first `n` words of the buffer.
        let before = |n: usize| {
            let all = self.sums[pattern].wrapping_mul((n / pattern) as u32);
            all.wrapping_add(self.sums[n % pattern])
        };
        let pass = |i: usize| {
            let at = self.window(i, bytes) / 4;
            before(at + words).wrapping_sub(before(at))
        };
        let once = (0..passes).fold(0u32, |sum, i| sum.wrapping_add(pass(i)));
        let want = once.wrapping_mul(replays as u32);
        let said = |e: Error| e.to_string();
        let got = self.sum.read::<u32>().map_err(said)?[0];
        self.sum.write(&[0u32]).map_err(said)?;
        if got == want {
            return Ok(());
        }
        Err(format!(
            "the read stream of {bytes} bytes: wanted the sum {want:#x}, got {got:#x}: it left words out"
        ))
    }
}
