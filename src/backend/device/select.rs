//! The best of held rows where more are wanted than a warp collects: kernels/select_sm80.cu.

use super::partials::THREADS;
use super::shard::{DeviceShard, product_of, sum_of};
use super::words::words;
use super::{Grid, KernelDevice};
use crate::backend::params::{
    HeldMatrix, HeldWanted, LMHEAD_SELECT_CHUNK, LMHEAD_SELECT_DIGIT, SelectParams, SelectState,
};
use crate::error::Result;

/// Keys that are sorted at once.
const CHUNK: usize = LMHEAD_SELECT_CHUNK as usize;

/// Values of a digit.
const BINS: usize = 1 << LMHEAD_SELECT_DIGIT;

/// Shared memory of a block of the search: its bins, the sums of its warps, and what was found.
const SEARCH_BYTES: usize = 4 * BINS + 4 * (THREADS as usize / 32) + 16;

/// The kernels of a selection.
pub(super) struct Kernels<D: KernelDevice> {
    bins: D::Kernel<SelectParams>,
    keys: D::Kernel<SelectParams>,
    sort: D::Kernel<SelectParams>,
    merge: D::Kernel<SelectParams>,
}

impl<D: KernelDevice> Kernels<D> {
    /// # Errors
    /// As [`KernelDevice::kernel`].
    pub fn load(device: &D) -> Result<Self> {
        Ok(Kernels {
            bins: device.kernel("select_bins")?,
            keys: device.kernel("select_keys")?,
            sort: device.kernel("select_sort")?,
            merge: device.kernel("select_merge")?,
        })
    }
}

/// What is selected.
#[derive(Clone, Copy)]
pub(super) enum Wanted {
    /// The k best of each held row, to partials that lie `stride` bytes apart.
    Rows { k: usize, stride: usize },
    /// What `count` queries ask for, of which `k` is the largest number and `least` the smallest.
    Queries { address: u64, count: usize, k: usize, least: usize },
}

impl Wanted {
    /// The number of queries, and the most and fewest candidates of one.
    fn sizes(&self, rows: usize) -> (usize, usize, usize) {
        match *self {
            Wanted::Rows { k, .. } => (rows, k, k),
            Wanted::Queries { count, k, least, .. } => (count, k, least),
        }
    }
}

/// Where the parts of a selection's memory lie, in bytes from its beginning. How many keys each query has
/// comes first, and then the bins: both must be zeros before.
struct Places {
    bins: usize,
    states: usize,
    keys: usize,
    total: usize,
    rounds: usize,
}

/// Bits that tell ids apart.
fn id_bits(ids: usize) -> usize {
    (usize::BITS - ids.saturating_sub(1).leading_zeros()) as usize
}

/// Ids of a part of a row: so few that few rows still have many blocks.
fn part_ids(ids: usize) -> usize {
    ids.div_ceil(64).max(2048).next_multiple_of(64)
}

impl Places {
    /// For queries of up to `k` candidates among `ids`; `some_left`: one wants fewer than all.
    fn of(count: usize, k: usize, ids: usize, some_left: bool) -> Result<Self> {
        let rounds = if some_left { (32 + id_bits(ids)).div_ceil(LMHEAD_SELECT_DIGIT as usize) } else { 0 };
        let bins = (4 * count).next_multiple_of(16);
        let states = sum_of(&[bins, product_of(&[4 * BINS, rounds, count])?])?;
        let keys = sum_of(&[states, product_of(&[size_of::<SelectState>(), rounds, count])?])?;
        let total = sum_of(&[keys, product_of(&[8, count, k.min(ids)])?])?;
        Ok(Places { bins, states, keys, total, rounds })
    }
}

/// Bytes that a selection needs, aligned to 16, for any k up to `k` of each of `count` rows.
pub(super) fn select_bytes(count: usize, k: usize, ids: usize) -> Result<usize> {
    Ok(Places::of(count, k, ids, true)?.total)
}

impl<D: KernelDevice> DeviceShard<D> {
    /// Queues the best of held rows, best first, to `out`. `room` has [`select_bytes`].
    pub(super) fn select(
        &self,
        stream: D::Stream,
        held: HeldMatrix,
        wanted: Wanted,
        room: u64,
        out: u64,
    ) -> Result<()> {
        let (device, kernels) = (&self.common.device, &self.weights.kernels.select);
        let ids = held.ids as usize;
        let (count, k, least) = wanted.sizes(held.rows as usize);
        if count == 0 || k == 0 {
            return Ok(());
        }
        let (queries, stride) = match wanted {
            Wanted::Rows { stride, .. } => (0, stride),
            Wanted::Queries { address, .. } => (address, 0),
        };
        let places = Places::of(count, k, ids, least < ids)?;
        let (k, part_ids) = (k.min(ids), part_ids(ids));
        let at = |bytes: usize| room as usize + bytes;
        let mut params = SelectParams {
            held,
            queries: queries as usize as *const HeldWanted,
            out: out as usize as *mut u8,
            out_pitch: stride as u64,
            bins: at(places.bins) as *mut u32,
            states: at(places.states) as *mut SelectState,
            found: at(0) as *mut u32,
            keys: at(places.keys) as *mut u64,
            count: count as u32,
            k: k as u32,
            part_ids: part_ids as u32,
            id_bits: id_bits(ids) as u32,
            rounds: places.rounds as u32,
            round: 0,
        };
        let blocks = |of: usize, shared_bytes| -> Result<Grid> {
            Ok(Grid {
                blocks: super::shard::count_of(product_of(&[count, of])?)?,
                threads: THREADS,
                shared_bytes,
            })
        };
        let search = blocks(ids.div_ceil(part_ids), SEARCH_BYTES)?;
        let (chunks, each) = (k.div_ceil(CHUNK), k.min(CHUNK).next_power_of_two().max(2));
        // SAFETY: held logits, the caller's room of that size, and places for candidates that were checked.
        unsafe {
            self.set_words(stream, words(room, places.states / 4, 0))?;
            for round in 0..params.rounds {
                params.round = round;
                device.launch(stream, &kernels.bins, &search, &params)?;
            }
            params.round = params.rounds;
            device.launch(stream, &kernels.keys, &search, &params)?;
            device.launch(stream, &kernels.sort, &blocks(chunks, 8 * each)?, &params)?;
            if chunks > 1 {
                let grid = blocks(k.div_ceil(THREADS as usize), 0)?;
                device.launch(stream, &kernels.merge, &grid, &params)?;
            }
        }
        Ok(())
    }
}
