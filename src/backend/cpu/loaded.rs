//! A shard as the CPU runs it: the weights stay where they are, and memory is kept from call to call.

use super::columns::{Blocks, Columns};
use super::held::Held;
use super::partials::{self, RowPartial};
use super::product::{Product, Take, blocks, pack, product_rows, weight_sums};
use super::{Cpu, check, format};
use crate::backend::HeadTypes;
use crate::backend::{Ask, HeldLogits, Job, LoadedShard, LogitsOut, On, Out, Status, Wanted, Which};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::finish::{RowSampling, unfiltered};
use crate::memory::SpanMut;
use crate::merge::{Candidate, PartialSpec};
use crate::params::{LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_NONFINITE};
use crate::weights::{HeadShard, ShardInfo};
use lmhead_cpu::PackedRows;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// From so many candidates a row on, logits are held and one thread selects from each row. The other way, in
/// which several threads take a row's blocks, finds as many candidates in each part of the vocabulary, which
/// then costs more than to hold the logits.
const HELD_CANDIDATES: usize = 32;
/// They are also held where all parts together find a candidate for every so many ids: with many threads this
/// needs fewer candidates.
const HELD_IDS: usize = 32;
/// The most bytes of logits that are held for that.
const HELD_BYTES: usize = 64 << 20;

/// What heads of the same weights share.
pub(super) struct Shared {
    pub cpu: Arc<Cpu>,
    pub shard: Arc<HeadShard>,
    pub info: ShardInfo,
    /// Type of the rows: with the instruction set it decides the family of instructions.
    pub hidden: DType,
    /// `[vocab]`: the sum of each id's weights, where rows are packed with an offset; else empty.
    pub weight_sums: Vec<i32>,
}

/// The shard of one head.
pub(super) struct CpuShard {
    shared: Arc<Shared>,
    packed: PackedRows,
    /// Status words that several threads write: `[rows]`, or `[2, rows]` where held logits are kept without
    /// adjustments too.
    status: Vec<AtomicU32>,
    /// `[parts, rows of a product]`
    seen: Vec<RowPartial>,
    /// The most candidates for which `seen` has room.
    k: usize,
    held: Held,
    /// What is wanted of each held row.
    wanted: Vec<(usize, Wanted)>,
}

impl CpuShard {
    pub fn load(cpu: &Arc<Cpu>, shard: &Arc<HeadShard>, hidden: DType) -> Result<CpuShard> {
        let weight_sums = cpu.pool.install(|| weight_sums(cpu.isa, shard))?;
        let (cpu, shard, info) = (Arc::clone(cpu), Arc::clone(shard), shard.info());
        Ok(CpuShard::of(Arc::new(Shared { cpu, shard, info, hidden, weight_sums })))
    }

    fn of(shared: Arc<Shared>) -> CpuShard {
        let (packed, held) = (PackedRows::new(shared.cpu.isa), Held::new(&shared));
        let (status, seen, wanted) = (Vec::new(), Vec::new(), Vec::new());
        CpuShard { shared, packed, status, seen, k: 0, held, wanted }
    }

    /// Calls `run` with each product of rows `range` of a job, on a thread of the pool.
    fn each_product(
        shared: &Shared,
        packed: &mut PackedRows,
        job: &Job<'_>,
        range: Range<usize>,
        mut run: impl FnMut(&Product<'_>) + Send,
    ) -> Result<()> {
        let Shared { cpu, shard, weight_sums, .. } = shared;
        let Job { rows, epilogue, adjustments, .. } = *job;
        cpu.pool.install(|| {
            for range in product_rows(range, shard.hidden_size()) {
                pack(packed, &rows, shard, range.clone());
                run(&Product {
                    isa: cpu.isa,
                    shard,
                    epilogue,
                    adjustments,
                    weight_sums,
                    rows: range,
                    packed,
                });
            }
        })
    }

    fn reserve_status(&mut self, rows: usize) {
        if rows > self.status.len() {
            self.status.resize_with(rows, AtomicU32::default);
        }
    }

    fn logits(&mut self, job: &Job<'_>, out: LogitsOut<'_>) -> Result<()> {
        let (rows, vocab) = (job.rows.len(), self.shared.info.vocab.clone());
        check::logits(&out, &job.rows, vocab.len())?;
        self.prepare(rows, Ask::Logits { dtype: out.dtype })?;
        let LogitsOut { data, stride, dtype, status: place } = out;
        let data: &mut [u8] = data.into_host_elements("logits")?;
        let status = &mut self.status[..rows];
        status.iter_mut().for_each(|word| *word.get_mut() = 0);
        if !vocab.is_empty() {
            let blocks = blocks(&vocab).len();
            let mut columns = Columns::new(data, rows, stride, dtype.size(), vocab);
            let status = &*status;
            Self::each_product(&self.shared, &mut self.packed, job, 0..rows, |product| {
                let first_row = product.rows.start;
                columns.for_each_blocks(product.at_once(blocks), |ids, blocks| {
                    product.blocks(ids, Round { blocks, first_row, dtype, status });
                });
            })?;
        }
        let (words, stride): (&mut [u8], usize) = match place {
            Status::Apart { words, stride } => (words.into_host_elements("status words")?, stride),
            Status::Inside { at } => (data.get_mut(at..).unwrap_or_default(), stride),
        };
        for (place, word) in words.chunks_mut(stride).zip(status) {
            place[..check::WORD].copy_from_slice(&word.get_mut().to_le_bytes());
        }
        Ok(())
    }

    fn partials(&mut self, job: &Job<'_>, spec: PartialSpec, out: SpanMut<'_>) -> Result<()> {
        let (rows, vocab) = (job.rows.len(), self.shared.info.vocab.clone());
        if spec.targets != 0 {
            let fix = "hold the logits and ask for their partials";
            return Err(Error::request("targets of a product's partials", "none", spec.targets, fix));
        }
        check::partials(out.as_span(), spec, rows, vocab.len())?;
        check::apart_from_rows("partials", out.as_span(), &job.rows)?;
        self.prepare(rows, Ask::Partials(spec))?;
        let out: &mut [u8] = out.into_host_elements("partials")?;
        let stride = spec.stride(vocab.len());
        if vocab.is_empty() {
            let nothing =
                |row| RowPartial::default().write(&mut crate::merge::PartialMut::new(row, &spec, 0));
            out.chunks_exact_mut(stride).for_each(nothing);
            return Ok(());
        }
        if let Some((_, chunk)) = self.held_rows(rows, spec) {
            for first in (0..rows).step_by(chunk) {
                let range = first..rows.min(first + chunk);
                let out = &mut out[range.start * stride..range.end * stride];
                self.keep(job, range, false)?;
                self.held.partials(Which::Adjusted, spec, &[], out)?;
            }
            return Ok(());
        }
        let (parts, seen) = (partials::parts(self.shared.cpu.pool.size(), &vocab), &mut self.seen);
        Self::each_product(&self.shared, &mut self.packed, job, 0..rows, |product| {
            let own = product.rows.start * stride..product.rows.end * stride;
            partials::run(product, spec, &mut seen[..parts * product.rows.len()], &mut out[own]);
        })
    }
}

impl CpuShard {
    /// Draws from held logits, some rows at a time.
    fn drawn(&mut self, job: &Job<'_>, sampling: &RowSampling<'_>, out: SpanMut<'_>) -> Result<()> {
        let rows = job.rows.len();
        let params = unfiltered(sampling, rows, self.shared.info.vocab_size)?;
        out.check_len("draws", rows * size_of::<Candidate>())?;
        check::apart_from_rows("draws", out.as_span(), &job.rows)?;
        self.prepare(rows, Ask::Drawn)?;
        let out: &mut [Candidate] = out.into_host_elements("draws")?;
        let chunk = self.drawn_rows(rows);
        for ((params, out), first) in
            params.chunks(chunk).zip(out.chunks_mut(chunk)).zip((0..).step_by(chunk))
        {
            self.keep(job, first..first + params.len(), false)?;
            self.wanted.clear();
            self.wanted.extend(
                params.iter().enumerate().map(|(row, &params)| (row, Wanted::Drawn { params, kept: None })),
            );
            self.held.candidates(&self.wanted, out)?;
        }
        Ok(())
    }

    /// How many rows are held at a time to draw from.
    fn drawn_rows(&self, rows: usize) -> usize {
        let most = HELD_BYTES / (self.shared.info.vocab.len() * size_of::<f32>()).max(1);
        rows.clamp(1, most.max(1))
    }

    /// How many rows are held at a time for partials of `spec`: the most for any number of rows up to `rows`,
    /// and for `rows` themselves. `None` where no logits are held.
    fn held_rows(&self, rows: usize, spec: PartialSpec) -> Option<(usize, usize)> {
        let Shared { cpu, info, .. } = &*self.shared;
        let (ids, k) = (info.vocab.len(), spec.places(info.vocab.len()));
        let found = k * partials::parts(cpu.pool.size(), &info.vocab);
        if ids == 0 || (k < HELD_CANDIDATES && found * HELD_IDS < ids) {
            return None;
        }
        let most = (HELD_BYTES / (ids * size_of::<f32>())).max(1);
        // Chunks of about the same size.
        Some((rows.clamp(1, most), rows.div_ceil(rows.div_ceil(most).max(1)).max(1)))
    }

    /// Computes the logits of rows `range` and holds them; there must be room. `raw`: keeps those without
    /// adjustments too.
    fn keep(&mut self, job: &Job<'_>, range: Range<usize>, raw: bool) -> Result<()> {
        let (rows, vocab) = (range.len(), self.shared.info.vocab.clone());
        let kept = if raw { 2 * rows } else { rows };
        let status = &mut self.status[..kept];
        status.iter_mut().for_each(|word| *word.get_mut() = 0);
        if !vocab.is_empty() {
            let (blocks, stride) = (blocks(&vocab).len(), vocab.len() * size_of::<f32>());
            let mut columns =
                Columns::new(self.held.logits.as_mut_slice(), kept, stride, size_of::<f32>(), vocab);
            let raw = raw.then_some(rows);
            let (status, first) = (&*status, range.start);
            Self::each_product(&self.shared, &mut self.packed, job, range, |product| {
                let first_row = product.rows.start - first;
                columns.for_each_blocks(product.at_once(blocks), |ids, blocks| {
                    product.blocks(ids, Keep { blocks, first_row, raw, status });
                });
            })?;
        }
        let nonfinite = status.iter_mut().map(|word| *word.get_mut() & LMHEAD_STATUS_NONFINITE != 0);
        self.held.nonfinite.clear();
        self.held.nonfinite.extend(nonfinite);
        (self.held.rows, self.held.raw) = (rows, raw);
        Ok(())
    }
}

impl LoadedShard for CpuShard {
    fn info(&self) -> &ShardInfo {
        &self.shared.info
    }

    fn another(&self) -> Result<Box<dyn LoadedShard>> {
        Ok(Box::new(CpuShard::of(Arc::clone(&self.shared))))
    }

    /// Always 0: the backend has its own memory for what lies between rows and answers.
    fn workspace(&self, _: usize, _: Ask) -> Result<usize> {
        Ok(0)
    }

    fn prepare(&mut self, rows: usize, ask: Ask) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let Shared { cpu, shard, info, hidden, .. } = &*shared;
        let at_once = rows.min(lmhead_cpu::pass_rows(info.hidden_size));
        if let Some(dtype) = hidden.float() {
            let format = format(HeadTypes::of(shard, *hidden));
            self.packed.reserve(format, dtype, info.hidden_size, at_once);
        }
        cpu.reserve(at_once)?;
        match ask {
            Ask::Logits { .. } => self.reserve_status(rows),
            Ask::Partials(spec) if let Some((chunk, _)) = self.held_rows(rows, spec) => {
                self.reserve_status(chunk);
                self.held.reserve(chunk, false)?;
                self.held.reserve_threads(spec.places(info.vocab.len()));
            }
            Ask::Partials(spec) => {
                let places = partials::parts(cpu.pool.size(), &info.vocab) * at_once;
                let k = spec.places(info.vocab.len());
                if places > self.seen.len() || k > self.k {
                    self.k = self.k.max(k);
                    self.seen.resize_with(places.max(self.seen.len()), RowPartial::default);
                    self.seen.iter_mut().for_each(|seen| seen.reset(self.k));
                }
            }
            Ask::Drawn => {
                let chunk = self.drawn_rows(rows);
                self.reserve_status(chunk);
                self.held.reserve(chunk, false)?;
                self.wanted.clear();
                self.wanted.reserve(chunk);
            }
            Ask::Hold { raw } => {
                self.reserve_status(if raw { 2 * rows } else { rows });
                self.held.reserve(rows, raw)?;
            }
        }
        Ok(())
    }

    fn run(&mut self, job: &Job<'_>, out: Out<'_>, _: &mut On<'_>) -> Result<()> {
        check::job(job, &self.shared.info, self.shared.hidden)?;
        match out {
            Out::Logits(out) => self.logits(job, out),
            Out::Partials(spec, out) => self.partials(job, spec, out),
            Out::Drawn(sampling, out) => self.drawn(job, &sampling, out),
            Out::Counted { .. } | Out::TargetLogits { .. } => {
                let fix = "hold the logits, and ask for their targets in passes";
                Err(Error::unsupported("products of the cpu backend", "no targets", "some", fix))
            }
        }
    }

    fn hold<'h>(&'h mut self, job: &Job<'_>, raw: bool, _: &mut On<'h>) -> Result<&'h mut dyn HeldLogits> {
        check::job(job, &self.shared.info, self.shared.hidden)?;
        let (rows, raw) = (job.rows.len(), raw && job.adjustments.is_some());
        self.prepare(rows, Ask::Hold { raw })?;
        self.keep(job, 0..rows, raw)?;
        Ok(&mut self.held)
    }

    unsafe fn held(&mut self) -> Option<&mut dyn HeldLogits> {
        Some(&mut self.held)
    }

    fn release_memory(&mut self) {
        *self = CpuShard::of(Arc::clone(&self.shared));
        self.shared.cpu.release_memory();
    }
}

/// Or's `seen` into a status word that other threads write too. Mostly its bits are set already, and a read
/// alone takes the word's cache line from no other thread.
#[inline(always)]
fn note(word: &AtomicU32, seen: u32) {
    if seen & !word.load(Ordering::Relaxed) != 0 {
        word.fetch_or(seen, Ordering::Relaxed);
    }
}

/// Rounds logits into the caller's rows.
struct Round<'a, 's> {
    blocks: Blocks<'a>,
    first_row: usize,
    dtype: DType,
    /// `[rows]`
    status: &'s [AtomicU32],
}

impl Take for Round<'_, '_> {
    #[inline(always)]
    fn take(&mut self, block: usize, row: usize, logits: &[f32], finite: bool) {
        let row = self.first_row + row;
        self.dtype.round_into(logits, self.blocks.row(block, row));
        let (magnitude, allowed) = scan(logits);
        let overflows = magnitude >= (self.dtype.rounds_to_infinity() as f32).to_bits();
        let nonfinite = if finite && !overflows { 0 } else { LMHEAD_STATUS_NONFINITE };
        note(&self.status[row], nonfinite | if allowed { LMHEAD_STATUS_ALLOWED } else { 0 });
    }
}

/// The largest magnitude, as bits, of the logits other than minus infinity, which an adjustment may have set;
/// and whether any logit is above minus infinity. In a form that vectorises.
#[inline(always)]
fn scan(logits: &[f32]) -> (u32, bool) {
    let (mut magnitude, mut allowed) = (0, 0);
    for &l in logits {
        let bits = if l == f32::NEG_INFINITY { 0 } else { l.to_bits() & 0x7fff_ffff };
        magnitude = bits.max(magnitude);
        allowed |= u32::from(l > f32::NEG_INFINITY);
    }
    (magnitude, allowed != 0)
}

/// Writes logits to the held ones.
struct Keep<'a, 's> {
    blocks: Blocks<'a>,
    first_row: usize,
    /// Where the rows without adjustments begin, where they are wanted.
    raw: Option<usize>,
    /// `[rows]`, then the same for the logits without adjustments.
    status: &'s [AtomicU32],
}

impl Keep<'_, '_> {
    #[inline(always)]
    fn keep(&mut self, block: usize, row: usize, logits: &[f32], finite: bool) {
        DType::F32.round_into(logits, self.blocks.row(block, row));
        if !finite {
            note(&self.status[row], LMHEAD_STATUS_NONFINITE);
        }
    }
}

impl Take for Keep<'_, '_> {
    #[inline(always)]
    fn take_raw(&mut self, block: usize, row: usize, logits: &[f32], finite: bool) {
        if let Some(first) = self.raw {
            self.keep(block, first + self.first_row + row, logits, finite);
        }
    }

    #[inline(always)]
    fn take(&mut self, block: usize, row: usize, logits: &[f32], finite: bool) {
        self.keep(block, self.first_row + row, logits, finite);
    }
}
