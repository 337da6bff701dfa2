//! Fills, comparisons and proofs on a device (`kernels/check`): the host sees counts and a few of the
//! mismatches.

use crate::fill::{Fill, random, small_kind};
use lmhead::backend::device::{Grid, KernelDevice};
use lmhead::backend::params::{
    CompareParams, FillParams, LMHEAD_DTYPE_BF16, LMHEAD_DTYPE_F16, LMHEAD_DTYPE_F32, Mismatch, Mismatches,
    PackRowsParams, ProjectRowsParams, ProjectWeightsParams, RowMatrix, WeightMatrix,
};
use lmhead::plan::hopper::{COLUMN_BYTES, PACKED_IDS};
use lmhead::{DType, Result};
use std::fmt;

/// Seed of a projection's random factors: any will do that the operands do not depend on.
const SEED: u64 = 0x5eed_0fc0_1234_5678;
const THREADS: u32 = 256;
/// Ids of a block of `project_weights`.
const IDS: usize = 64;

/// The kernels of `kernels/check`, loaded.
pub struct Checker<D: KernelDevice> {
    fill: D::Kernel<FillParams>,
    compare: D::Kernel<CompareParams>,
    pack: D::Kernel<PackRowsParams>,
    project_weights: D::Kernel<ProjectWeightsParams>,
    project_rows: D::Kernel<ProjectRowsParams>,
    found: D::Buffer,
}

/// A matrix on a device.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub address: u64,
    /// Bytes from row to row.
    pub pitch: usize,
    pub dtype: DType,
}

/// Elements that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub count: u64,
    /// Row, column, bits wanted, bits found; a few of them, in order.
    pub some: Vec<(u32, u32, u32, u32)>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} have other bits", self.count)?;
        for (i, (row, column, want, got)) in self.some.iter().enumerate() {
            let and = if i == 0 { ", as" } else { "," };
            write!(f, "{and} row {row}, id {column}: wanted {want:#x}, got {got:#x}")?;
        }
        Ok(())
    }
}

/// The `LMHEAD_DTYPE_*` of a type of logits.
pub fn code(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => LMHEAD_DTYPE_F32,
        DType::F16 => LMHEAD_DTYPE_F16,
        _ => LMHEAD_DTYPE_BF16,
    }
}

/// A grid for `work` pieces, of which a block may do any number.
fn blocks<D: KernelDevice>(device: &D, work: usize) -> Grid {
    let most = device.limits().num_sms * 8;
    Grid { blocks: work.clamp(1, most) as u32, threads: THREADS, shared_bytes: 0 }
}

impl<D: KernelDevice> Checker<D> {
    pub fn new(device: &D) -> Result<Self> {
        Ok(Checker {
            fill: device.kernel("fill")?,
            compare: device.kernel("count_mismatches")?,
            pack: device.kernel("pack_weights")?,
            project_weights: device.kernel("project_weights")?,
            project_rows: device.kernel("project_rows")?,
            found: device.alloc(size_of::<Mismatches>())?,
        })
    }

    /// Fills `bytes` bytes, up to the next multiple of 16, from byte `at` of the buffer on, as the part of a
    /// larger array that begins at byte `first` of it. `at` and `first` are multiples of 16. Waits for
    /// nothing.
    pub fn fill(
        &self,
        device: &D,
        buffer: &D::Buffer,
        at: usize,
        bytes: usize,
        (fill, first): (Fill, usize),
    ) -> Result<()> {
        let (address, vectors) = (device.address(buffer) + at as u64, bytes.div_ceil(16));
        let params = fill.params(address, vectors, first / 16);
        let grid = blocks(device, vectors.div_ceil(THREADS as usize));
        // SAFETY: callers fill what they have allocated, in multiples of 16 bytes.
        unsafe { device.launch(device.stream(), &self.fill, &grid, &params) }
    }

    /// Packs weights `[vocab, row_bytes]` that lie row behind row, `pitch` bytes apart, into a buffer of
    /// [`packed_bytes`](lmhead::backend::device::hopper::packed_bytes). Waits for nothing.
    pub fn pack(
        &self,
        device: &D,
        (from, pitch): (&D::Buffer, usize),
        out: &D::Buffer,
        (vocab, row_bytes): (usize, usize),
    ) -> Result<()> {
        let params = PackRowsParams {
            rows: RowMatrix {
                data: device.address(from) as usize as *const _,
                pitch: pitch as u64,
                indices: std::ptr::null(),
                index_bytes: 4,
                source_rows: vocab as u32,
            },
            out: device.address(out) as usize as *mut u8,
            out_pitch: row_bytes.next_multiple_of(COLUMN_BYTES) as u64,
            status: std::ptr::null_mut(),
            row_count: vocab.next_multiple_of(2 * PACKED_IDS) as u32,
            row_bytes: row_bytes as u32,
            status_before: 0,
        };
        let vectors = params.row_count as usize * params.out_pitch as usize / 16;
        let grid = blocks(device, vectors.div_ceil(THREADS as usize));
        // SAFETY: the owners have allocated both.
        unsafe { device.launch(device.stream(), &self.pack, &grid, &params) }
    }

    /// Elements of `got` `[rows, columns]` that are not those of `want`, rounded to its type; without `want`,
    /// that are not poison. Waits.
    pub fn mismatches(
        &self,
        device: &D,
        want: Option<Span>,
        got: Span,
        (rows, columns): (usize, usize),
    ) -> Result<Found> {
        if rows * columns == 0 {
            return Ok(Found { count: 0, some: Vec::new() });
        }
        let none = Span { address: 0, pitch: 0, dtype: got.dtype };
        let want = want.unwrap_or(none);
        let found = device.address(&self.found);
        let params = CompareParams {
            want: want.address as usize as *const _,
            got: got.address as usize as *const _,
            want_pitch: want.pitch as u64,
            got_pitch: got.pitch as u64,
            rows: rows as u32,
            columns: columns as u32,
            want_dtype: code(want.dtype),
            dtype: code(got.dtype),
            found: found as usize as *mut _,
        };
        let grid = blocks(device, rows * columns.div_ceil(THREADS as usize));
        // SAFETY: spans are of matrices that their owners have allocated; the answer is this checker's.
        unsafe {
            device.clear(device.stream(), found, size_of::<Mismatches>() / 4)?;
            device.launch(device.stream(), &self.compare, &grid, &params)?;
        }
        let mut bytes = [0; size_of::<Mismatches>()];
        device.read(&self.found, 0, &mut bytes)?;
        let (count, rest) = bytes.split_at(8);
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&rest[8..]);
        let noted = u32::from_le_bytes(rest[..4].try_into().expect("four bytes")) as usize;
        let all = words.chunks_exact(size_of::<Mismatch>() / 4).take(noted);
        let mut some: Vec<_> = all.map(|w| (w[0], w[1], w[2], w[3])).collect();
        some.sort_unstable();
        Ok(Found { count: u64::from_le_bytes(count.try_into().expect("eight bytes")), some })
    }

    /// Projects weights of integers to one number for each k, by which [`Checker::wrong_rows`] checks any
    /// number of products with these weights.
    pub fn projection(
        &self,
        device: &D,
        weights: WeightMatrix,
        dtype: DType,
        (vocab, hidden): (usize, usize),
    ) -> Result<D::Buffer> {
        let projection = device.alloc(8 * hidden)?;
        let vectors = (hidden * dtype.size()).div_ceil(16);
        let count = vectors.div_ceil(THREADS as usize) * vocab.div_ceil(IDS);
        let params = ProjectWeightsParams {
            weights,
            projection: device.address(&projection) as usize as *mut _,
            seed: SEED,
            kind: small_kind(dtype),
            vocab: vocab as u32,
            hidden: hidden as u32,
        };
        let grid = Grid { blocks: count as u32, threads: THREADS, shared_bytes: 0 };
        // SAFETY: as of `mismatches`.
        unsafe {
            device.clear(device.stream(), device.address(&projection), 2 * hidden)?;
            device.launch(device.stream(), &self.project_weights, &grid, &params)?;
        }
        device.wait(device.stream())?;
        Ok(projection)
    }

    /// Which of `count` rows of f32 logits are not the product with the weights that `projection` was made
    /// of. A wrong row is taken for right with a chance of 2^-40 at most. Waits.
    pub fn wrong_rows(
        &self,
        device: &D,
        projection: &D::Buffer,
        (rows, dtype, hidden): (RowMatrix, DType, usize),
        logits: Span,
        (count, vocab): (usize, usize),
    ) -> Result<Vec<usize>> {
        let words = 2 * count;
        let answer = device.alloc(4 * words)?;
        let address = device.address(&answer);
        // Several blocks a row where there are few rows, so that the device is busy.
        let parts =
            (4 * device.limits().num_sms).div_ceil(count.max(1)).min(vocab.div_ceil(THREADS as usize)).max(1);
        let params = ProjectRowsParams {
            rows,
            projection: device.address(projection) as usize as *const _,
            logits: logits.address as usize as *const _,
            pitch: logits.pitch as u64,
            difference: address as usize as *mut _,
            seed: SEED,
            kind: small_kind(dtype),
            row_count: count as u32,
            vocab: vocab as u32,
            hidden: hidden as u32,
            parts: parts as u32,
        };
        let grid = Grid { blocks: (count * parts) as u32, threads: THREADS, shared_bytes: 0 };
        // SAFETY: as of `mismatches`.
        unsafe {
            device.clear(device.stream(), address, words)?;
            device.launch(device.stream(), &self.project_rows, &grid, &params)?;
        }
        let mut all = vec![0u32; words];
        device.read(&answer, 0, bytemuck::cast_slice_mut(&mut all))?;
        Ok(all
            .chunks(2)
            .enumerate()
            .filter(|(_, difference)| **difference != [0, 0])
            .map(|(row, _)| row)
            .collect())
    }
}

/// Scales of the ids `first..first + vocab`, each a function of its id alone: random ones, or 1, 2 and 4,
/// which leave sums of integers exact.
pub fn scales(first: usize, vocab: usize, seed: u64, integers: bool) -> Vec<f32> {
    let scale = |id: usize| {
        let word = random(seed, id as u64);
        if integers {
            [1.0, 2.0, 4.0][(word % 3) as usize]
        } else {
            (1 + (word >> 44)) as f32 * 2f32.powi(-30)
        }
    };
    (first..first + vocab).map(scale).collect()
}
