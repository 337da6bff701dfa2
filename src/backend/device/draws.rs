//! Draws on the device. Where no row has a filter, the matmul leaves one candidate for each row. A kernel
//! then draws one id for each row from the candidates of all shards.

use super::partials::{NO_ANSWER, NO_PARTIALS, THREADS, are_even, check_own, checked, words_of};
use super::shard::{DeviceShard, count_of, product_of, sum_of};
use super::{Grid, KernelDevice};
use crate::backend::params::{FinishDrawParams, MergeDrawsParams, SamplingRow, TilePartials};
use crate::backend::{Job, On};
use crate::error::{Error, Result};
use crate::finish::{Messages, Places, RowSampling, host_sampling, tokens_of, unfiltered};
use crate::memory::{Memory, Span, SpanMut};
use crate::merge::Candidate;
use crate::sampling::SamplingParams;
use std::ops::Range;

/// Shared memory of a block: bins, and what each of eight warps knows of a row (kernels/draws_sm80.cu).
const SHARED_BYTES: usize = 256 * 8 + 8 * (48 + 16 + 24);

/// The fields of [`Finish::Draw`](crate::finish::Finish::Draw).
pub(super) struct Drawing<'a> {
    pub from: Messages<'a>,
    pub sampling: RowSampling<'a>,
    pub places: Places,
    pub vocab_size: usize,
    pub ids: SpanMut<'a>,
    pub tokens: SpanMut<'a>,
    pub row_status: SpanMut<'a>,
}

/// Checks a device's [`SamplingRow`]s.
fn check_rows(span: &Span<'_>, rows: usize, own: Memory) -> Result<()> {
    let what = "sampling parameters";
    span.check_len(what, product_of(&[rows, size_of::<SamplingRow>()])?)?;
    if rows > 0 {
        span.check_memory(what, own)?;
        span.check_aligned(what, 16)?;
    }
    Ok(())
}

impl Drawing<'_> {
    /// Checks the messages, and where the parameters are. Where only the device knows the parameters, the
    /// kernel checks how long the messages are.
    fn check(&self, own: Memory) -> Result<()> {
        let Drawing { from, sampling, places, vocab_size, tokens, .. } = self;
        check_own(from)?;
        let (rows, each) = (from.rows, size_of::<Candidate>());
        if let RowSampling::Device(span) = sampling {
            check_rows(span, from.answered, own)?;
        }
        if !tokens.is_empty() && tokens.memory() != Memory::Host {
            tokens.check_memory("tokens", own)?;
        }
        tokens.check_len("tokens", 4 * tokens_of(from, tokens))?;
        tokens.check_aligned("tokens", 4)?;
        if *places == Places::Each(0) {
            return Err(Error::shape(
                "candidates of each row and shard",
                "at least one place",
                0,
                "send more",
            ));
        }
        let mut end = 0;
        let mut in_row = true;
        for (&start, shard) in from.starts.iter().zip(from.shards) {
            in_row &= start == end;
            end = sum_of(&[
                start,
                each * match (places, sampling) {
                    (Places::Each(n), _) => product_of(&[rows, *n])?,
                    (_, RowSampling::Host(_)) => host_sampling(sampling, rows)?
                        .iter()
                        .map(|params| places.of(params.kind(*vocab_size), shard.len()))
                        .sum(),
                    // The kernel finds the lengths.
                    _ => return self.check_shards(from.starts.is_empty()),
                },
            ])?;
        }
        self.check_shards(!in_row || from.starts.len() != from.shards.len() || end > from.bytes.len())
    }

    /// Refuses shards that are not those of the vocabulary, and messages that were found wrong.
    fn check_shards(&self, wrong: bool) -> Result<()> {
        let Drawing { from, vocab_size, .. } = self;
        let vocab = from.shards.last().map_or(0, |shard| shard.end);
        if !wrong && vocab == *vocab_size && are_even(from) && from.bytes.address().is_multiple_of(8) {
            return Ok(());
        }
        let shards = from.shards.len();
        let wanted = format!("one of each shard of shard_range, {shards} in a row, aligned to 8 bytes");
        let got = format!("messages at {:?} of {} bytes", from.starts, from.bytes.len());
        Err(Error::shape("candidates of the shards", wanted, got, "receive them in one buffer"))
    }
}

impl<D: KernelDevice> DeviceShard<D> {
    /// Checks the parameters of draws in a matmul. Filters in parameters that only the device knows are
    /// reported by the device.
    pub(super) fn check_drawn(&self, sampling: &RowSampling<'_>, rows: usize) -> Result<()> {
        match sampling {
            RowSampling::Host(_) => unfiltered(sampling, rows, self.weights.info.vocab_size).map(|_| ()),
            RowSampling::Device(span) => check_rows(span, rows, self.common.memory()),
        }
    }

    /// [`LoadedShard::run`](crate::backend::LoadedShard::run) for draws that were checked.
    pub(super) fn drawn(
        &mut self,
        stream: D::Stream,
        job: &Job<'_>,
        sampling: &RowSampling<'_>,
        out: SpanMut<'_>,
        on: &On<'_>,
    ) -> Result<()> {
        let n = job.rows.len();
        let sampling = match sampling {
            RowSampling::Host(params) => self.ask_sampling(stream, params, self.weights.info.vocab_size)?,
            RowSampling::Device(span) => span.address(),
        };
        let at_once = match &on.workspace {
            _ if self.ids() == 0 => n,
            // A workspace may be larger than it must be: all rows at once, where it has room for them.
            Some(given) if self.drawn_places(n)?.total <= given.len() => n,
            _ => self.drawn_at_once(n),
        };
        let mut left = out;
        for first in (0..n).step_by(at_once) {
            let rows = first..n.min(first + at_once);
            let (part, rest) = left.split_at(rows.len() * size_of::<Candidate>());
            let sampling = sampling + (first * size_of::<SamplingRow>()) as u64;
            self.begin_part(stream, job, first)?;
            self.drawn_rows(stream, job, rows, sampling, part, on)?;
            left = rest;
        }
        Ok(())
    }

    /// Draws `rows` of the job.
    fn drawn_rows(
        &mut self,
        stream: D::Stream,
        job: &Job<'_>,
        rows: Range<usize>,
        sampling: u64,
        out: SpanMut<'_>,
        on: &On<'_>,
    ) -> Result<()> {
        let (n, vocab) = (rows.len(), self.weights.info.vocab.clone());
        let mut params = MergeDrawsParams {
            candidates: std::ptr::null(),
            status: std::ptr::null(),
            sampling: sampling as usize as *const _,
            out: std::ptr::null_mut(),
            nonfinite: NO_ANSWER,
            tiles: 0,
            vocab: self.weights.info.vocab_size as u32,
        };
        if !vocab.is_empty() {
            let places = self.drawn_places(n)?;
            let workspace = self.workspace_at(on, places.total, n)?;
            let at = |place: usize| (workspace + place as u64) as usize;
            let partials = TilePartials {
                data: at(places.held) as *mut u8,
                bars: at(places.bars) as *mut u32,
                draws: params.sampling,
                first_id: vocab.start as u32,
                ..NO_PARTIALS
            };
            let waits = out.memory() == Memory::Host || on.stream.is_none();
            self.tiles(stream, job, rows, (workspace, &places), waits, partials)?;
            params.candidates = at(places.held) as *const _;
            params.status = at(places.status) as *const _;
            params.tiles = self.product().plan(n)?.parts() as u32;
        }
        let device = self.common.device.clone();
        let to = self.output(&out)?;
        params.out = to as usize as *mut _;
        let shared_bytes = THREADS as usize / 32 * 24;
        let grid = Grid { blocks: count_of(n)?, threads: THREADS, shared_bytes };
        // SAFETY: parts of the workspace, and memory that was checked or is the shard's own.
        unsafe { device.launch(stream, &self.weights.kernels.merge_draws, &grid, &params)? };
        match out.into_host() {
            Some(out) => self.answer(stream, to, out).map_err(self.named(n)),
            None => Ok(()),
        }
    }

    /// Queues the parameters for the device; returns where they will be.
    fn ask_sampling(
        &mut self,
        stream: D::Stream,
        params: &[SamplingParams],
        vocab_size: usize,
    ) -> Result<u64> {
        let mut asked = std::mem::take(&mut self.held.pass_params);
        asked.clear();
        for params in params {
            asked.extend_from_slice(bytemuck::bytes_of(&params.to_row(vocab_size)));
        }
        let rows = self.ask(stream, &asked);
        self.held.pass_params = asked;
        rows
    }

    /// Draws on the device. Parameters in host memory are copied there, and tokens for host memory are copied
    /// back: for these alone the call waits.
    pub(super) fn finish_draw(&mut self, on: &On<'_>, what: Drawing<'_>) -> Result<()> {
        what.check(self.common.memory())?;
        let host_tokens = what.tokens.memory() == Memory::Host && !what.tokens.is_empty();
        match what.sampling {
            _ if what.from.answered == 0 => Ok(()),
            RowSampling::Device(rows) if !host_tokens => {
                let tokens = what.tokens.address();
                self.only_on(on, |shard, stream| shard.launch_draw(stream, &what, rows.address(), tokens))
            }
            _ => {
                let stream = self.begin(on, true)?;
                let done = self.draw_by_host(stream, what);
                self.synchronize_on_error(stream, done)?;
                self.end(on, stream, false)
            }
        }
    }

    fn draw_by_host(&mut self, stream: D::Stream, mut what: Drawing<'_>) -> Result<()> {
        let rows = match what.sampling {
            RowSampling::Device(rows) => rows.address(),
            RowSampling::Host(params) => self.ask_sampling(stream, params, what.vocab_size)?,
        };
        if what.tokens.is_empty() || what.tokens.memory() != Memory::Host {
            return self.launch_draw(stream, &what, rows, what.tokens.address());
        }
        let (device, bytes) = (self.common.device.clone(), what.tokens.len());
        let tokens = device.address(self.rooms.outputs.at_least(bytes, |bytes| device.alloc(bytes))?);
        self.launch_draw(stream, &what, rows, tokens)?;
        self.answer(stream, tokens, what.tokens.reborrow().into_host().expect("host memory"))
    }

    fn launch_draw(&self, stream: D::Stream, what: &Drawing<'_>, rows: u64, tokens: u64) -> Result<()> {
        let Drawing { from, places, vocab_size, ids, row_status, .. } = what;
        let tokens = if what.tokens.is_empty() { 0 } else { tokens as usize };
        let params = FinishDrawParams {
            candidates: from.bytes.address() as usize as *const _,
            count: (from.bytes.len() / size_of::<Candidate>()) as u64,
            status: words_of(from.own),
            sampling: rows as usize as *const _,
            ids: checked("ids", ids, 8, from.answered)? as *mut i64,
            tokens: tokens as *mut u32,
            row_status: checked("row_status", row_status, 1, from.answered)? as *mut u8,
            rows: count_of(from.rows)?,
            vocab: *vocab_size as u32,
            shards: from.shards.len() as u32,
            places: match places {
                Places::ByKind => 0,
                Places::Each(n) => *n as u32,
            },
        };
        let grid = Grid { blocks: count_of(from.answered)?, threads: THREADS, shared_bytes: SHARED_BYTES };
        // SAFETY: spans of the device's memory, of the sizes that the kernel writes. It reads no candidate
        // behind the last.
        unsafe { self.common.device.launch(stream, &self.weights.kernels.draw, &grid, &params) }
    }
}
