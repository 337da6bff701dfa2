//! The CPU backend: blocked loops, compiled once per instruction set, on one thread pool.
//!
//! ```text
//! hidden rows -> packed in tiles                                   (crates/cpu, once per call)
//!             -> packed rows x 64 vocabulary ids -> raw f32 logits  (crates/cpu, one task per block)
//!             -> epilogue: dequantise, bias, softcap, scale; adjustments
//!             -> rounded into the caller's rows, or pushed to the row's partial
//! ```
//!
//! What it does beside PyTorch, the memory's speed and the peaks of its instructions: `benches/results/cpu/pytorch.json`.
//!
//! Memory beyond the caller's: packed rows of one pass (at most 8 MiB, or 4 rows where those are larger, 256 rows at most), for W8A8
//! while they are packed their quantised values too (a byte for each) and for each thread a row in f32; for each
//! thread a block of logits (`[rows of a pass, 64]` f32, at most 64 KiB), a panel (16 KiB) and sums (1 KiB for each row of a pass);
//! for W8A8 on AVX-512 a sum (4 bytes) for each vocabulary id, kept with the shard;
//! for partials one `RowPartial` for each row of a pass and running task. Never rows x vocabulary.

mod pool;
mod sampling;
mod tally;

pub use lmhead_cpu::Isa;

use crate::adjust::ShardAdjustments;
use crate::backend::{
    Backend, HeadTypes, HeldLogits, Job, LogitsOut, Resident, SamplingPass, Tally, check_boundaries,
    check_job, check_logits,
};
use crate::config::Quantization;
use crate::dtype::DType;
use crate::epilogue::Epilogue;
use crate::error::{Error, Result};
use crate::layout::BLOCK;
use crate::merge::{PartialSpec, RowPartial};
use crate::rows::HiddenRows;
use crate::weights::{HeadShard, Matrix};
use lmhead_cpu::{Arith, Format, PackedRows, Scratch, Weights, Work, roof};
use pool::Pool;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Part of the fingerprint: raised whenever a row's bits change; 3 are the sums of f32 terms.
const VERSION: u32 = 3;

/// Most threads of a pool: more than any machine has CPUs, few enough to be started.
const MAX_THREADS: usize = 1024;

/// The environment variable that names the instruction set; read once, when a backend is made.
pub const ISA_VARIABLE: &str = "LMHEAD_CPU_ISA";

/// The instruction set that `name` (the value of [`ISA_VARIABLE`]) asks for; the best of this machine where it is `None`.
///
/// # Errors
/// `Config` when the name is none of ours, or names a set that this machine lacks.
pub fn choose_isa(name: Option<&str>) -> Result<Isa> {
    let Some(name) = name else { return Ok(Isa::detect()) };
    let refused = |fix: &str| {
        let here: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
        let fix = format!("{fix}: unset {ISA_VARIABLE} to take the best of this machine");
        Err(Error::config(ISA_VARIABLE, here.join(" or "), format!("`{name}`"), fix))
    };
    match Isa::ALL.into_iter().find(|isa| isa.name() == name) {
        None => refused("no such instruction set"),
        Some(isa) if !isa.is_available() => refused("this machine does not have it"),
        Some(isa) => Ok(isa),
    }
}

/// The CPU as a [`Backend`]. It has a thread pool of its own, which all ranks of a process share: put it in
/// an `Arc`. Calls may come from any number of threads at once, workers of other rayon pools among them. In a
/// process that was forked from the one that made it every call is `Unsupported`.
#[derive(Debug)]
pub struct CpuBackend {
    isa: Isa,
    pool: Pool,
}

impl CpuBackend {
    /// A backend with `threads` threads (`None`: one per CPU that this process may use) and the best instruction
    /// set of this machine, or the one that the environment variable [`ISA_VARIABLE`] names.
    ///
    /// # Errors
    /// `Config` for 0 threads or more than 1024, an unknown instruction set, or one that this machine lacks; `Unsupported` where
    /// the threads cannot be started.
    pub fn new(threads: Option<usize>) -> Result<CpuBackend> {
        let name = std::env::var_os(ISA_VARIABLE);
        let name = name.as_ref().map(|name| name.to_string_lossy());
        Self::with_isa(choose_isa(name.as_deref())?, threads)
    }

    /// The same with a given instruction set; the environment is not looked at.
    ///
    /// # Errors
    /// As [`CpuBackend::new`].
    pub fn with_isa(isa: Isa, threads: Option<usize>) -> Result<CpuBackend> {
        let isa = choose_isa(Some(isa.name()))?;
        if let Some(threads) = threads
            && !(1..=MAX_THREADS).contains(&threads)
        {
            let fix = "leave it out to use every CPU";
            return Err(Error::config("threads", format!("1 to {MAX_THREADS}"), threads, fix));
        }
        let threads = match threads {
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        Ok(CpuBackend { isa, pool: Pool::new(threads)? })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Partials of logits that are held.
    ///
    /// # Errors
    /// As every call of a [`CpuBackend`] in a forked process.
    pub(crate) fn partials_of(
        &self,
        held: &HeldLogits<'_>,
        spec: PartialSpec,
        out: &mut [RowPartial],
    ) -> Result<()> {
        tally::partials(&self.pool, self.isa, held, spec, out)
    }

    /// Threads of the pool.
    pub fn threads(&self) -> usize {
        self.pool.size()
    }

    /// Reads `bytes` once, on all threads of the pool: [`roof::read_stream`].
    ///
    /// # Errors
    /// `Unsupported` in a process that was forked from the one that made the backend.
    pub fn read_stream(&self, bytes: &[u8]) -> Result<u64> {
        self.pool.install(|| roof::read_stream(bytes))
    }

    /// Operations per second of the instruction that multiplies heads of these types, on all threads of the pool:
    /// [`roof::arithmetic_rate`].
    ///
    /// # Errors
    /// As [`CpuBackend::read_stream`].
    pub fn arithmetic_rate(&self, types: HeadTypes, time: Duration) -> Result<Option<f64>> {
        let Some(rows) = types.hidden.float() else { return Ok(None) };
        let format = format(types);
        self.pool.install(|| roof::arithmetic_rate(self.isa, format, rows, time))
    }
}

/// What the inner loops call it.
fn format(types: HeadTypes) -> Format {
    match types.quantization {
        Quantization::None if types.weights == types.hidden => Format::Float,
        Quantization::None => Format::Mixed,
        Quantization::W8a8 => Format::W8a8,
        Quantization::W8a16 => Format::W8a16,
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        "cpu"
    }

    /// `cpu/FAMILY/VERSION DTYPE`. Instruction sets of a family ([`Isa::family`]) give the same bits.
    fn fingerprint(&self, types: HeadTypes) -> String {
        let family = self.isa.family(format(types), types.hidden.float());
        format!("cpu/{family}/{VERSION} {}", types.weights)
    }

    fn flushes_subnormals(&self, types: HeadTypes) -> bool {
        self.isa.multiplies_bf16(format(types), types.hidden.float())
    }

    fn check(&self, shard: &HeadShard, hidden: DType) -> Result<()> {
        if !shard.takes(hidden) {
            return Err(Error::dtype(
                "hidden_states on the cpu backend",
                "f32, f16 or bf16",
                hidden,
                "pass them as floats: w8a8 heads quantise them",
            ));
        }
        check_boundaries(shard)
    }

    fn prepare(&self, shard: &Arc<HeadShard>, _: DType) -> Result<Resident> {
        self.pool.install(|| {
            weight_sums(self.isa, shard);
        })?;
        Ok(Resident::default())
    }

    fn logits(&self, job: &Job<'_>, out: LogitsOut<'_>) -> Result<()> {
        let (rows, vocab) = (job.rows.len(), job.shard.vocab());
        check_job(job, rows, out.nonfinite.len())?;
        check_job(job, rows, out.any_allowed.as_ref().map_or(rows, |flags| flags.len()))?;
        let size = out.dtype.size();
        let row_bytes = check_logits(&out, rows, vocab.len())?;
        if rows == 0 || vocab.is_empty() {
            return Ok(());
        }
        let flags: Vec<AtomicBool> = (0..rows).map(|_| AtomicBool::new(false)).collect();
        let allowed: Vec<AtomicBool> = match &out.any_allowed {
            Some(_) => (0..rows).map(|_| AtomicBool::new(false)).collect(),
            None => Vec::new(),
        };
        let mut left: Vec<&mut [u8]> =
            out.bytes.chunks_mut(out.stride).take(rows).map(|row| &mut row[..row_bytes]).collect();
        self.pool.install(|| {
            for pass in Pass::all(self.isa, job) {
                let after = left.split_off(pass.rows.len());
                let columns = Columns { rows: std::mem::replace(&mut left, after), first_id: vocab.start };
                columns.for_each_block(blocks(&vocab), size, &|ids: Range<usize>, mut rows| {
                    pass.block(ids, |row: usize, logits: &[f32], finite: bool| {
                        if !finite {
                            flags[pass.rows.start + row].store(true, Ordering::Relaxed);
                        }
                        if let Some(any) = allowed.get(pass.rows.start + row)
                            && logits.iter().any(|l| *l > f32::NEG_INFINITY)
                        {
                            any.store(true, Ordering::Relaxed);
                        }
                        out.dtype.round_into(logits, rows[row]);
                    });
                });
            }
        })?;
        for (flag, seen) in out.nonfinite.iter_mut().zip(flags) {
            *flag |= seen.into_inner();
        }
        for (flag, seen) in out.any_allowed.into_iter().flatten().zip(allowed) {
            *flag |= seen.into_inner();
        }
        Ok(())
    }

    fn partials(&self, job: &Job<'_>, spec: PartialSpec, out: &mut [RowPartial]) -> Result<()> {
        check_job(job, job.rows.len(), out.len())?;
        if spec.k == 0 {
            return Err(Error::request("candidates of a partial", "at least 1", 0, "ask for one"));
        }
        for partial in out.iter_mut() {
            partial.reset(spec);
        }
        let vocab = job.shard.vocab();
        if out.is_empty() || vocab.is_empty() {
            return Ok(());
        }
        let merge = |mut all: Vec<RowPartial>, part: Vec<RowPartial>| {
            for (a, p) in all.iter_mut().zip(&part) {
                a.merge(p);
            }
            all
        };
        self.pool.install(|| {
            for pass in Pass::all(self.isa, job) {
                let empty = || vec![RowPartial::new(spec); pass.rows.len()];
                let found = blocks(&vocab).into_par_iter().fold(empty, |mut partials, block| {
                    let ids = block_ids(block, &vocab);
                    let first = ids.start;
                    pass.block(ids, Push { partials: &mut partials, first_id: first });
                    partials
                });
                let found = found.reduce_with(merge).unwrap_or_default();
                for (o, partial) in out[pass.rows.clone()].iter_mut().zip(found) {
                    *o = partial;
                }
            }
        })?;
        Ok(())
    }

    fn tally(&self, tally: Tally<'_>) -> Result<()> {
        tally::tally(&self.pool, self.isa, tally)
    }

    fn sample(&self, held: &HeldLogits<'_>, pass: SamplingPass<'_>) -> Result<()> {
        sampling::sample(&self.pool, self.isa, held, pass)
    }

    /// What the pool's threads keep.
    fn release_memory(&self) {
        // In a forked process there are no such threads.
        let _ = self.pool.install(|| rayon::broadcast(|_| THREAD.set(Thread::default())));
    }
}

/// Numbers of the global blocks that `vocab` touches; `vocab` is not empty.
fn blocks(vocab: &Range<usize>) -> Range<usize> {
    vocab.start / BLOCK..vocab.end.div_ceil(BLOCK)
}

/// The ids of `vocab` in a global block.
fn block_ids(block: usize, vocab: &Range<usize>) -> Range<usize> {
    (block * BLOCK).max(vocab.start)..((block + 1) * BLOCK).min(vocab.end)
}

/// What is left of the caller's rows: every row's bytes from vocabulary id `first_id` on.
struct Columns<'a> {
    rows: Vec<&'a mut [u8]>,
    first_id: usize,
}

impl<'a> Columns<'a> {
    /// Cuts the rows in halves of whole blocks, again and again, and calls `leaf` with the ids of one block and
    /// each row's bytes for them. Each task so holds its own slices: no two can write to the same byte.
    fn for_each_block<F>(self, blocks: Range<usize>, size: usize, leaf: &F)
    where
        F: Fn(Range<usize>, Vec<&'a mut [u8]>) + Sync,
    {
        if blocks.len() == 1 {
            let ids = self.rows.first().map_or(0, |row| row.len() / size);
            return leaf(self.first_id..self.first_id + ids, self.rows);
        }
        let middle = blocks.start + blocks.len() / 2;
        let cut = (middle * BLOCK - self.first_id) * size;
        let (low, high) = self.rows.into_iter().map(|row| row.split_at_mut(cut)).unzip();
        let low = Columns { rows: low, first_id: self.first_id };
        let high = Columns { rows: high, first_id: middle * BLOCK };
        rayon::join(
            || low.for_each_block(blocks.start..middle, size, leaf),
            || high.for_each_block(middle..blocks.end, size, leaf),
        );
    }
}

/// One pass over the shard: some rows, packed, and all that a task must know to compute a block of their logits.
struct Pass<'a> {
    isa: Isa,
    shard: &'a HeadShard,
    epilogue: Epilogue,
    adjustments: Option<&'a ShardAdjustments>,
    /// `[vocab]`, where rows are packed with an offset; or empty.
    weight_sums: &'a [i32],
    /// The job's rows that are packed here.
    rows: Range<usize>,
    packed: PackedRows,
}

impl<'a> Pass<'a> {
    /// The passes of a job, on a thread of the pool; each is packed, by the pool's threads, when its turn comes.
    fn all(isa: Isa, job: &Job<'a>) -> impl Iterator<Item = Pass<'a>> {
        let Job { rows, shard, epilogue, adjustments } = *job;
        let step = lmhead_cpu::pass_rows(rows.hidden());
        let weight_sums = weight_sums(isa, shard);
        (0..rows.len()).step_by(step).map(move |first| {
            let range = first..rows.len().min(first + step);
            let packed = pack(isa, &rows, shard, range.clone());
            Pass { isa, shard, epilogue, adjustments, weight_sums, rows: range, packed }
        })
    }

    /// Computes the logits of vocabulary `ids` (within one block) and gives each row's to
    /// `take(row, logits [ids.len()], all finite)`.
    fn block(&self, ids: Range<usize>, take: impl Take) {
        THREAD.with_borrow_mut(|thread| {
            let Thread { logits, scratch } = thread;
            logits.resize(self.rows.len() * BLOCK, 0.0);
            let start = self.shard.vocab().start;
            let own = ids.start - start..ids.end - start;
            let from = own.start * self.shard.hidden_size();
            let (weights, scales) = match self.shard.matrix() {
                Matrix::F32(w) => (Weights::F32(&w[from..]), None),
                Matrix::F16(w) => (Weights::F16(&w[from..]), None),
                Matrix::Bf16(w) => (Weights::Bf16(&w[from..]), None),
                Matrix::I8 { values, scales } => (Weights::I8(&values[from..]), Some(scales)),
            };
            let sums = self.weight_sums.get(own.clone()).unwrap_or_default();
            self.packed.multiply(weights, own.len(), sums, logits, scratch);
            let row_scales = self.packed.scales();
            let scales = scales.map_or(&[][..], |scales| &scales[own.clone()]);
            let bias = self.shard.bias().map(|bias| &bias[own]);
            let epilogue = self.epilogue;
            let adjust = self.adjustments.map(|a| (a, self.rows.start, ids.start));
            self.isa.run(Finish { logits, ids: ids.len(), row_scales, scales, bias, epilogue, adjust, take });
        });
    }
}

/// The sums of the shard's weights, where rows are packed with an offset.
fn weight_sums(isa: Isa, shard: &HeadShard) -> &[i32] {
    if shard.quantization() != Quantization::W8a8 || !isa.multiplies_bytes() {
        return &[];
    }
    shard.row_sums(|weights| lmhead_cpu::weight_sums(isa, weights, shard.hidden_size()))
}

fn pack(isa: Isa, rows: &HiddenRows<'_>, shard: &HeadShard, range: Range<usize>) -> PackedRows {
    let dtype = rows.dtype().float().expect("Backend::check has refused int8 hidden states");
    let format = format(HeadTypes::of(shard, rows.dtype()));
    let rows = lmhead_cpu::Rows { dtype, hidden: rows.hidden(), row: &|i| rows.row(i) };
    PackedRows::new(isa, &rows, format, range)
}

thread_local! {
    /// Belongs to a thread of a pool, and so goes with it. Never borrowed across a point where rayon could put
    /// another task on this thread.
    static THREAD: RefCell<Thread> = RefCell::default();
}

#[derive(Default)]
struct Thread {
    /// `[rows of the pass, BLOCK]`
    logits: Vec<f32>,
    scratch: Scratch,
}

/// What becomes of a row's logits of one block.
trait Take {
    /// `finite`: all of them were.
    fn take(&mut self, row: usize, logits: &[f32], finite: bool);
}

impl<F: FnMut(usize, &[f32], bool)> Take for F {
    #[inline(always)]
    fn take(&mut self, row: usize, logits: &[f32], finite: bool) {
        self(row, logits, finite);
    }
}

/// They go to the rows' partials. Not a closure: those are compiled for the baseline, where an FMA is a call.
struct Push<'a> {
    partials: &'a mut [RowPartial],
    first_id: usize,
}

impl Take for Push<'_> {
    #[inline(always)]
    fn take(&mut self, row: usize, logits: &[f32], finite: bool) {
        self.partials[row].push(self.first_id, logits, finite);
    }
}

/// Raw sums of one block -> logits: dequantise, the epilogue, adjustments.
struct Finish<'a, F> {
    /// `[rows, BLOCK]`, of which `ids` columns are used.
    logits: &'a mut [f32],
    ids: usize,
    /// `[rows]`, or empty.
    row_scales: &'a [f32],
    /// `[ids]`, or empty.
    scales: &'a [f32],
    bias: Option<&'a [f32]>,
    epilogue: Epilogue,
    /// The adjustments, the first row's number in them and the first id.
    adjust: Option<(&'a ShardAdjustments, usize, usize)>,
    take: F,
}

impl<F: Take> Work for Finish<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arith>(mut self) {
        for (row, logits) in self.logits.chunks_exact_mut(BLOCK).enumerate() {
            let logits = &mut logits[..self.ids];
            // Each product rounded on its own (promise 2); Rust contracts nothing.
            if let Some(row_scale) = self.row_scales.get(row) {
                for l in logits.iter_mut() {
                    *l *= row_scale;
                }
            }
            for (l, scale) in logits.iter_mut().zip(self.scales) {
                *l *= scale;
            }
            let mut finite = self.epilogue.apply(logits, self.bias);
            if let Some((adjustments, first_row, first_id)) = self.adjust {
                finite &= adjustments.apply(first_row + row, first_id, logits);
            }
            self.take.take(row, logits, finite);
        }
    }
}
