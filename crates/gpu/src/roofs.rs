//! What the memory can do with as many bytes as a product moves: reading them only, by plain loads or by bulk
//! copies, and copying them.

use crate::check::Checker;
use crate::clocked::Clocked;
use crate::fill::Fill;
use cudarc::driver::result;
use lmhead::backend::cuda::{Buffer, CudaDevice, CudaStream, Kernel, encode};
use lmhead::backend::device::{Grid, KernelDevice};
use lmhead::backend::params::{ReadBoxesParams, ReadBulkParams, ReadStreamParams};
use lmhead::backend::tensor_map::{Swizzle, Tiled2d};
use lmhead::{DType, Error, Result};
use std::collections::BTreeMap;

/// Bytes of the random pattern that memory is filled with, again and again.
const PATTERN: usize = 16 << 20;
/// The ring of `kernels/read_bulk_sm90a.cu`: six stages, two barriers each.
const STAGE: usize = 32768;
const BULK_SHARED: usize = 6 * (STAGE + 16);
const BULK_THREADS: u32 = 160;

/// A way of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Loads of 16 bytes, four blocks per SM.
    Loads,
    /// Bulk copies of 32 KB by `blocks` blocks, each of which copies `run` consecutive ones at a time.
    Bulk { blocks: u32, run: u32 },
    /// Boxes of `rows` rows x 128 bytes of a matrix with rows of `pitch` bytes.
    Boxes { blocks: u32, rows: u32, pitch: usize },
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Way::Loads => write!(f, "16-byte loads"),
            Way::Bulk { blocks, run } => write!(f, "bulk copies of 32 KB, {blocks} blocks, {run} in a run"),
            Way::Boxes { blocks, rows, .. } => write!(f, "boxes of {rows} rows x 128 bytes, {blocks} blocks"),
        }
    }
}

/// `bytes` bytes, read again and again in one way, each pass in another window.
pub struct Reading {
    pub way: Way,
    pub bytes: usize,
    pub work: Clocked,
}

/// Memory to read and to copy, of which each pass takes another window, so that the second-level cache holds
/// nothing of it.
pub struct Roofs<'d> {
    pub device: &'d CudaDevice,
    stream: CudaStream,
    read: Kernel<ReadStreamParams>,
    /// Bulk copies and boxes need compute capability 9.0: the kernels, or why there are none.
    bulk: std::result::Result<(Kernel<ReadBulkParams>, Kernel<ReadBoxesParams>), String>,
    from: Buffer,
    to: Buffer,
    /// One word for each way that was ever asked for.
    found: Buffer,
    ways: BTreeMap<Way, usize>,
    /// Sums of the pattern's words before each word, and of all.
    sums: Vec<u32>,
}

const WAYS: usize = 256;

impl<'d> Roofs<'d> {
    /// For products that move at most `largest` bytes. A window comes again after `rotate` bytes at the
    /// earliest. The buffer has room for two of the largest windows.
    pub fn new(device: &'d CudaDevice, stream: CudaStream, largest: usize, rotate: usize) -> Result<Self> {
        let bytes = (largest + rotate).max(2 * largest.next_multiple_of(256)).next_multiple_of(256);
        let pattern = Fill::Random(DType::I8, 77);
        let mut sums = vec![0u32];
        for word in pattern.bytes(0, PATTERN.min(bytes)).chunks_exact(4) {
            let word = u32::from_le_bytes(word.try_into().expect("four bytes"));
            sums.push(sums[sums.len() - 1].wrapping_add(word));
        }
        let check = Checker::new(device)?;
        // Copies read one half of what moves, and write the other.
        let to = device.alloc((bytes / 2).next_multiple_of(256))?;
        let (from, found) = (device.alloc(bytes)?, device.filled(4 * WAYS, 0)?);
        for at in (0..bytes).step_by(PATTERN) {
            check.fill(device, &from, at, PATTERN.min(bytes - at), (pattern, 0))?;
        }
        device.synchronize()?;
        let read: Kernel<ReadStreamParams> = device.kernel("read_stream")?;
        read.leave_carveout()?;
        let both = || Ok((device.kernel("read_bulk")?, device.kernel("read_boxes")?));
        let bulk = both().map_err(|e: Error| crate::needs::first_sentence(&e));
        Ok(Roofs { device, stream, read, bulk, from, to, found, ways: BTreeMap::new(), sums })
    }

    /// Why bulk copies are not measured here.
    pub fn no_bulk(&self) -> Option<&str> {
        self.bulk.as_ref().err().map(String::as_str)
    }

    /// From now on nothing is read by bulk copies, for that reason.
    pub fn without_bulk(&mut self, reason: String) {
        self.bulk = Err(reason);
    }

    /// Where pass `i` over `bytes` bytes of a buffer begins: windows lie one behind the other.
    fn window(buffer: &Buffer, i: usize, bytes: usize) -> usize {
        let step = bytes.next_multiple_of(256);
        i % ((buffer.len() - bytes) / step + 1) * step
    }

    /// Readings of `bytes` bytes, rounded to 16: by loads and, where the device has them, by bulk copies.
    pub fn reading(&mut self, bytes: usize, passes: usize) -> Result<Vec<Reading>> {
        let blocks = self.device.info().num_sms.min(bytes.div_ceil(STAGE) as u32);
        let bulk = self.bulk.is_ok().then_some(Way::Bulk { blocks, run: 1 });
        let ways = [Way::Loads].into_iter().chain(bulk);
        ways.map(|way| self.reading_by(way, bytes, passes)).collect()
    }

    /// The same by one way. Bytes that boxes read are whole rows.
    pub fn reading_by(&mut self, way: Way, bytes: usize, passes: usize) -> Result<Reading> {
        let place = self.ways.len();
        let place = *self.ways.entry(way).or_insert(place);
        assert!(place < WAYS, "fewer ways than places");
        let out = (self.found.address() as usize + 4 * place) as *mut u32;
        let bulk = || {
            let why = |reason: &String| Error::Unsupported {
                what: way.to_string(),
                wanted: "compute capability 9.0".into(),
                got: reason.clone(),
                fix: "read by loads".into(),
            };
            self.bulk.as_ref().map_err(why)
        };
        let ring = |blocks| Grid { blocks, threads: BULK_THREADS, shared_bytes: BULK_SHARED };
        let start = |i| self.from.address() + Self::window(&self.from, i, bytes) as u64;
        let launch = |i: usize| {
            // SAFETY: the window is within the buffer, which lives as long as whoever replays borrows `self`.
            unsafe {
                match way {
                    Way::Loads => {
                        // No more blocks than have something to read.
                        let most = u32::try_from(bytes.div_ceil(16 * 512)).unwrap_or(u32::MAX).max(1);
                        let blocks = most.min(self.device.info().num_sms * 4);
                        let grid = Grid { blocks, threads: 512, shared_bytes: 0 };
                        let params = ReadStreamParams {
                            data: start(i) as usize as *const _,
                            vectors: bytes as u64 / 16,
                            out,
                        };
                        self.device.launch(self.stream, &self.read, &grid, &params)
                    }
                    Way::Bulk { blocks, run } => {
                        let (data, bytes) = (start(i) as usize as *const _, bytes as u64 / 16 * 16);
                        let params = ReadBulkParams { data, bytes, out, run };
                        self.device.launch(self.stream, &bulk()?.0, &ring(blocks), &params)
                    }
                    Way::Boxes { blocks, rows, pitch } => {
                        let (count, columns) = ((bytes / pitch) as u64, pitch.div_ceil(128) as u32);
                        let matrix = encode(&Tiled2d {
                            address: start(i),
                            element_bytes: 2,
                            columns: pitch as u64 / 2,
                            rows: count,
                            pitch: pitch as u64,
                            box_columns: 64,
                            box_rows: rows,
                            swizzle: Swizzle::Bytes128,
                        })?;
                        let params = ReadBoxesParams {
                            matrix,
                            out,
                            rows: count as u32,
                            columns,
                            box_rows: rows,
                            element_bytes: 2,
                        };
                        self.device.launch(self.stream, &bulk()?.1, &ring(blocks), &params)
                    }
                }
            }
        };
        Ok(Reading { way, bytes, work: Clocked::new(self.device, self.stream, passes, launch)? })
    }

    /// Copies half of `bytes` bytes, so that all of them move.
    pub fn copying(&self, bytes: usize, passes: usize) -> Result<Clocked> {
        Clocked::new(self.device, self.stream, passes, |i| {
            let half = bytes / 32 * 16;
            let at = |buffer: &Buffer| buffer.address() + Self::window(buffer, i, half) as u64;
            let (to, from) = (at(&self.to), at(&self.from));
            // SAFETY: as above.
            let copy = || unsafe { result::memcpy_dtod_async(to, from, half, self.stream.as_raw().cast()) };
            self.device.bound(copy)?.map_err(|e| Error::Device {
                what: "a copy on the device".into(),
                problem: e.to_string(),
                fix: "free device memory".into(),
            })
        })
    }

    /// Forgets what was read so far, as after a measurement that ended before it was checked.
    pub fn forget(&mut self) -> Result<()> {
        self.found.write(&vec![0u32; WAYS])
    }

    /// What is wrong with each reading: the sum that its replays must have found, and the one that they did.
    /// Since the last call, or since [`Roofs::forget`], nothing but these may have been read, and each way
    /// once.
    pub fn check(&mut self, readings: &[Reading]) -> Result<Vec<Option<String>>> {
        let found = self.found.read::<u32>()?;
        self.forget()?;
        let pattern = self.sums.len() - 1;
        // The sum of the first `n` words of the buffer.
        let before = |n: usize| {
            let all = self.sums[pattern].wrapping_mul((n / pattern) as u32);
            all.wrapping_add(self.sums[n % pattern])
        };
        let problem = |Reading { way, bytes, work }: &Reading| {
            let words = match way {
                Way::Boxes { pitch, .. } => bytes / pitch * pitch / 4,
                _ => bytes / 16 * 4,
            };
            let pass = |i: usize| {
                let at = Self::window(&self.from, i, *bytes) / 4;
                before(at + words).wrapping_sub(before(at))
            };
            let once = (0..work.launches).fold(0u32, |sum, i| sum.wrapping_add(pass(i)));
            let (want, got) = (once.wrapping_mul(work.replays() as u32), found[self.ways[way]]);
            (got != want).then(|| {
                format!("{way}, {bytes} bytes: wanted the sum {want:#x}, got {got:#x}: it left words out")
            })
        };
        Ok(readings.iter().map(problem).collect())
    }
}
