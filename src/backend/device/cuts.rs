//! The rounds of [`Cuts`] by kernels: queued, without a wait.

use super::partials::{SHARED_BYTES, THREADS};
use super::shard::{DeviceShard, count_of, product_of};
use super::{Grid, KernelDevice};
use crate::backend::Which;
use crate::backend::cuts::{Cuts, SEARCH_BYTES, SearchOffsets};
use crate::backend::params::{
    CutRowsParams, HeldCandidatesParams, HeldHistogramsParams, HeldMatrix, HeldMaximaParams, HeldTiesParams,
    HeldWanted, LearnCutsParams, SamplingRow,
};
use crate::error::Result;
use crate::memory::Span;
use crate::merge::Candidate;
use crate::params::Params;
use crate::sampling::cut::{BINS, CUT_BYTES, Digit, Sum};
use crate::sampling::mass::largest_mass;
use std::ptr::{null, null_mut};

/// The kernels of kernels/cuts_sm80.cu.
pub(super) struct Kernels<D: KernelDevice> {
    begin: D::Kernel<CutRowsParams>,
    next: D::Kernel<CutRowsParams>,
    end: D::Kernel<CutRowsParams>,
    learn: D::Kernel<LearnCutsParams>,
}

impl<D: KernelDevice> Kernels<D> {
    /// # Errors
    /// As [`KernelDevice::kernel`].
    pub fn load(device: &D) -> Result<Self> {
        Ok(Kernels {
            begin: device.kernel("begin_cuts")?,
            next: device.kernel("next_cuts")?,
            end: device.kernel("end_cuts")?,
            learn: device.kernel("learn_cuts")?,
        })
    }
}

/// Shared memory of `learn_cuts`: bins, and a word for each warp.
const LEARN_BYTES: usize = 8 * BINS + THREADS as usize / 32 * 4;

impl<D: KernelDevice> DeviceShard<D> {
    pub(super) fn run_cut(&mut self, pass: Cuts<'_>) -> Result<()> {
        let rows = self.held.rows;
        if rows == 0 {
            return Ok(());
        }
        // A shard without ids takes part too: it has no logits, and what it sends says so.
        let held = self.held.matrix(Which::Adjusted).unwrap_or(HeldMatrix {
            data: null(),
            status: null(),
            pitch: 0,
            nonfinite: 0,
            rows: count_of(rows)?,
            ids: 0,
            first_id: self.weights.info.vocab.start as u32,
        });
        let in_threads = (rows.div_ceil(THREADS as usize), 0);
        match pass {
            Cuts::Maxima { out } => {
                let out = self.at("largest logits", out.as_span(), [rows, 4], 4)? as *mut f32;
                let params = HeldMaximaParams { held, rows: null(), out };
                self.queue(|shard| &shard.weights.kernels.maxima, (rows, 32), params)
            }
            Cuts::Begin { sampling, maxima, shards, digit, room, bare } => {
                let mut params = self.rows_params(sampling, room.as_span(), Sum::Ids, Some(digit))?;
                let bytes = product_of(&[rows, 4])?;
                params.maxima = self.at("largest logits", maxima, [shards, bytes], 4)? as *const f32;
                params.status = held.status;
                params.shards = count_of(shards)?;
                params.bare =
                    self.at("sampling parameters", bare.as_span(), [rows, size_of::<SamplingRow>()], 16)?
                        as *mut _;
                self.queue(|shard| &shard.weights.kernels.cuts.begin, in_threads, params)
            }
            Cuts::Histograms { digit, room, out } => {
                let bins = digit.bins();
                let out = self.at("histograms", out.as_span(), [rows, 8 * bins], 8)? as *mut u64;
                let queries = self.room(room)?.histograms as *const _;
                let unit = largest_mass(self.weights.info.vocab_size).trailing_zeros();
                let params = HeldHistogramsParams { held, queries, out, bins: bins as u32, unit };
                self.queue(|shard| &shard.weights.kernels.histograms, (rows, 8 * bins), params)
            }
            Cuts::Learn { sum, digit, histograms, shards, first, sampling, room, searches, out } => {
                let n = searches.len() / SEARCH_BYTES;
                let of_shard = product_of(&[n, 8 * digit.bins()])?;
                let histograms = self.at("histograms", histograms, [shards, of_shard], 8)? as *const u64;
                let sampling =
                    self.at("sampling parameters", sampling, [rows, size_of::<SamplingRow>()], 16)?;
                let out_bytes = product_of(&[n, CUT_BYTES])?;
                let params = LearnCutsParams {
                    histograms,
                    sampling: (sampling + first * size_of::<SamplingRow>()) as *const _,
                    wanted: (self.room(room)?.wanted + first * size_of::<HeldWanted>()) as *const _,
                    searches: self.at("searches", searches.as_span(), [n, SEARCH_BYTES], 16)? as *mut _,
                    found: self.at("cuts", out.as_span(), [shards, out_bytes], 8)? as *mut _,
                    count: count_of(n)?,
                    vocab: self.weights.info.vocab_size as u32,
                    shards: count_of(shards)?,
                    bins: digit.bins() as u32,
                    masses: u32::from(sum == Sum::Masses),
                    known: digit.known_bits(),
                    shift: digit.shift(),
                    reserved: 0,
                };
                self.queue(|shard| &shard.weights.kernels.cuts.learn, (n, LEARN_BYTES), params)
            }
            Cuts::Next { sum, found, next, sampling, room } => {
                let mut params = self.rows_params(sampling, room.as_span(), sum, next)?;
                params.found = self.at("cuts", found, [rows, CUT_BYTES], 8)? as *const _;
                self.queue(|shard| &shard.weights.kernels.cuts.next, in_threads, params)
            }
            Cuts::End { sum, digit, sampling, room } => {
                let params = self.rows_params(sampling, room.as_span(), sum, Some(digit))?;
                let ties = HeldTiesParams { held, queries: params.ties, out: params.ends.cast_mut() };
                self.queue(|shard| &shard.weights.kernels.ties, (rows, 64), ties)?;
                self.queue(|shard| &shard.weights.kernels.cuts.end, in_threads, params)
            }
            Cuts::Candidates { room, out } => {
                let out = self.at("candidates", out.as_span(), [rows, size_of::<Candidate>()], 8)? as *mut _;
                let queries = self.room(room)?.wanted as *const _;
                let params = HeldCandidatesParams { held, queries, out };
                let grid = Grid { blocks: count_of(rows)?, threads: THREADS, shared_bytes: SHARED_BYTES };
                // The last kernel that reads the held logits, which may lie in the shard's own memory: its
                // end is remembered.
                let on = self.held_on();
                let stream = self.begin(&on, false)?;
                let kernel = &self.weights.kernels.candidates;
                // SAFETY: as of the other kernels.
                let done = unsafe { self.common.device.launch(stream, kernel, &grid, &params) };
                self.synchronize_on_error(stream, done)?;
                self.end(&on, stream, false)
            }
        }
    }

    /// The parameters that all kernels with one row per thread have in common.
    fn rows_params(
        &self,
        sampling: Span<'_>,
        room: Span<'_>,
        sum: Sum,
        digit: Option<Digit>,
    ) -> Result<CutRowsParams> {
        let rows = self.held.rows;
        let room = self.room(room)?;
        Ok(CutRowsParams {
            sampling: self.at("sampling parameters", sampling, [rows, size_of::<SamplingRow>()], 16)?
                as *const _,
            status: null(),
            maxima: null(),
            found: null(),
            ends: room.ends as *const u32,
            bare: null_mut(),
            wanted: room.wanted as *mut _,
            histograms: room.histograms as *mut _,
            ties: room.ties as *mut _,
            rows: count_of(rows)?,
            vocab: self.weights.info.vocab_size as u32,
            shards: 0,
            ids: self.ids() as u32,
            masses: u32::from(sum == Sum::Masses),
            known: digit.map_or(0, Digit::known_bits),
            shift: digit.map_or(0, Digit::shift),
            reserved: 0,
        })
    }

    /// The addresses of the state of the held rows.
    fn room(&self, span: Span<'_>) -> Result<SearchOffsets> {
        let room = SearchOffsets::of(self.held.rows)?;
        let at = self.at("rooms of the rows", span, [room.bytes, 1], SearchOffsets::ALIGNED)?;
        Ok(SearchOffsets {
            wanted: at + room.wanted,
            histograms: at + room.histograms,
            ties: at + room.ties,
            ends: at + room.ends,
            bytes: room.bytes,
        })
    }

    /// Checks a span of the device's memory, of `size[0]` elements of `size[1]` bytes, aligned to `to`;
    /// returns its address.
    fn at(&self, what: &str, span: Span<'_>, size: [usize; 2], to: usize) -> Result<usize> {
        span.check_len(what, product_of(&size)?)?;
        span.check_aligned(what, to)?;
        if !span.is_empty() {
            span.check_memory(what, self.common.memory())?;
        }
        Ok(span.address() as usize)
    }

    /// Queues a kernel on the stream of the held logits.
    fn queue<P: Params>(
        &mut self,
        kernel: impl Fn(&Self) -> &D::Kernel<P>,
        blocks_and_bytes: (usize, usize),
        params: P,
    ) -> Result<()> {
        let on = self.held_on();
        self.launch_blocks(&on, kernel, blocks_and_bytes, params)
    }
}
