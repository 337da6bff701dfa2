//! Logits that stay where they were computed, and the passes over them.

use super::loaded::Shared;
use super::partials::RowPartial;
use super::ranks::beating;
use super::sampling::{self, CandidateScratch};
use super::{Cpu, check};
use crate::backend::{HeldLogits, Pass, Wanted, Which, check_len};
use crate::error::{Error, Result};
use crate::layout::BLOCK;
use crate::lock::lock;
use crate::memory::HostMemory;
use crate::merge::Candidate;
use crate::merge::{NO_TARGET, PartialMut, PartialSpec};
use crate::weights::ShardInfo;
use lmhead_cpu::{Arith, Work};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// The fewest ids of a part of a row: `PART_IDS` for each candidate that is wanted, and `MIN_PART` at least.
const PART_IDS: usize = 16;
const MIN_PART: usize = 4096;

/// Memory of one thread in a pass.
#[derive(Default)]
struct Thread {
    seen: RowPartial,
    room: CandidateScratch,
}

/// What the passes must know of the shard, and where they run.
struct Of {
    cpu: Arc<Cpu>,
    info: ShardInfo,
}

/// Logits of some rows and the memory of the passes over them.
pub(crate) struct Held {
    shared: Of,
    pub rows: usize,
    /// Whether the logits without adjustments are there, too.
    pub raw: bool,
    /// `[rows, shard]`, then those without adjustments; behind them memory that calls with more rows have
    /// left.
    pub logits: HostMemory,
    /// Whether a row has a logit that is not finite, `[rows]`; then the same of the logits without
    /// adjustments.
    pub nonfinite: Vec<bool>,
    /// One for each thread of the pool. A thread takes its own, or, where rows are cut in parts, that of a
    /// part. After a panic nothing in it matters: who takes it next clears it.
    threads: Vec<Mutex<Thread>>,
    /// The most candidates for which the threads have room.
    k: usize,
}

impl Held {
    pub(super) fn new(shared: &Shared) -> Held {
        Held {
            shared: Of { cpu: Arc::clone(&shared.cpu), info: shared.info.clone() },
            rows: 0,
            raw: false,
            logits: HostMemory::default(),
            nonfinite: Vec::new(),
            threads: Vec::new(),
            k: 0,
        }
    }

    /// Makes room for `rows` rows; where `raw`, for their logits without adjustments too.
    pub fn reserve(&mut self, rows: usize, raw: bool) -> Result<()> {
        let rows = if raw { 2 * rows } else { rows };
        let bytes = (self.shared.info.vocab.len() * size_of::<f32>()).saturating_mul(rows);
        if bytes > self.logits.as_slice().len() {
            // The old memory goes first.
            self.logits = HostMemory::default();
            self.logits = HostMemory::new(bytes, "held logits")?;
        }
        self.nonfinite.reserve(rows.saturating_sub(self.nonfinite.len()));
        Ok(())
    }

    /// Makes room on every thread for `k` candidates of a row.
    pub fn reserve_threads(&mut self, k: usize) {
        if self.threads.is_empty() || k > self.k {
            self.k = self.k.max(k).max(1);
            self.threads.resize_with(self.shared.cpu.pool.size(), Mutex::default);
            for thread in &self.threads {
                let Thread { seen, room } = &mut *lock(thread);
                seen.reset(self.k);
                room.reserve(self.k, self.shared.info.vocab.len());
            }
        }
    }

    /// Where the rows that `of` means begin among all that are kept.
    fn first(&self, of: Which) -> usize {
        if of == Which::Raw && self.raw { self.rows } else { 0 }
    }

    /// The logits that `of` means, `[rows, shard]`, and whether a row has one that is not finite, `[rows]`.
    fn view(&self, of: Which) -> (&[f32], &[bool]) {
        let (first, ids) = (self.first(of), self.shared.info.vocab.len());
        let logits: &[f32] = bytemuck::cast_slice(self.logits.as_slice());
        (&logits[first * ids..][..self.rows * ids], &self.nonfinite[first..][..self.rows])
    }

    /// What the passes of sampling read.
    fn sampled(&self) -> sampling::View<'_> {
        let (logits, nonfinite) = self.view(Which::Adjusted);
        let vocab = &self.shared.info.vocab;
        sampling::View { logits, ids: vocab.len(), first_id: vocab.start, nonfinite }
    }

    fn target_logits(&self, of: Which, targets: &[u32], per_row: usize, out: &mut [f32]) -> Result<()> {
        check_len("targets of the held rows", targets.len(), self.rows * per_row)?;
        check_len("logits of the targets", out.len(), targets.len())?;
        let (logits, _) = self.view(of);
        let vocab = &self.shared.info.vocab;
        for (i, (&id, out)) in targets.iter().zip(out).enumerate() {
            let own = vocab.contains(&(id as usize));
            *out = if own { logits[i / per_row * vocab.len() + id as usize - vocab.start] } else { f32::NAN };
        }
        Ok(())
    }

    /// Partials of all held rows, whose sizes were checked.
    pub fn partials(
        &mut self,
        of: Which,
        spec: PartialSpec,
        targets: &[Candidate],
        out: &mut [u8],
    ) -> Result<()> {
        let (vocab, isa) = (self.shared.info.vocab.clone(), self.shared.cpu.isa);
        let k = spec.places(vocab.len()).max(1);
        self.reserve_threads(k);
        let (logits, nonfinite) = self.view(of);
        let own = |row: usize| &logits[row * vocab.len()..][..vocab.len()];
        // Adds the logits of `ids` of a row; `ids` count from the shard's first.
        let push = |seen: &mut RowPartial, row: usize, ids: Range<usize>| {
            seen.reset(k);
            let (first_id, finite) = (vocab.start + ids.start, !nonfinite[row]);
            isa.run(Push { logits: &own(row)[ids], first_id, finite, sum: spec.sum, seen });
        };
        let write = |seen: &mut RowPartial, row: usize, out: &mut [u8]| {
            let mut partial = PartialMut::new(out, &spec, vocab.len());
            seen.write(&mut partial);
            if !nonfinite[row] {
                let targets = &targets[row * spec.targets..][..spec.targets];
                for (count, target) in partial.num_greater().iter_mut().zip(targets) {
                    let none = target.id == NO_TARGET;
                    *count = if none { 0 } else { beating(own(row), vocab.start, *target) };
                }
            }
        };
        let places = out.par_chunks_exact_mut(spec.stride(vocab.len())).with_max_len(1).enumerate();
        let parts = self.parts(k);
        self.shared.cpu.pool.install(|| {
            if parts == 1 {
                places.for_each(|(row, out)| {
                    let thread = rayon::current_thread_index().expect("a thread of the pool");
                    let seen = &mut lock(&self.threads[thread]).seen;
                    push(seen, row, 0..vocab.len());
                    write(seen, row, out);
                });
                return;
            }
            let end = |part: usize| (vocab.len().div_ceil(BLOCK) * part / parts * BLOCK).min(vocab.len());
            (0..self.rows * parts).into_par_iter().with_max_len(1).for_each(|i| {
                let part = i % parts;
                push(&mut lock(&self.threads[i]).seen, i / parts, end(part)..end(part + 1));
            });
            places.for_each(|(row, out)| {
                let (first, others) = (row * parts, row * parts + 1..(row + 1) * parts);
                let seen = &mut lock(&self.threads[first]).seen;
                for part in others {
                    seen.merge(&lock(&self.threads[part]).seen);
                }
                write(seen, row, out);
            });
        })
    }

    /// How many parts of a row threads take side by side, where there are fewer rows than threads. Each part
    /// finds as many candidates as the row: a part with few more ids than that would save nothing.
    fn parts(&self, k: usize) -> usize {
        let threads = self.shared.cpu.pool.size();
        let most = self.shared.info.vocab.len() / (PART_IDS * k).max(MIN_PART);
        (threads / self.rows.max(1)).min(most).max(1)
    }

    pub(super) fn candidates(&mut self, rows: &[(usize, Wanted)], out: &mut [Candidate]) -> Result<()> {
        let k = rows.iter().map(|(_, wanted)| wanted.places()).max().unwrap_or(1);
        self.reserve_threads(k);
        let (logits, nonfinite) = self.view(Which::Adjusted);
        let (vocab, isa) = (&self.shared.info.vocab, self.shared.cpu.isa);
        let one = |row: usize, wanted: &Wanted, out: &mut [Candidate]| match out {
            [] => {} // a shard without ids
            [first, rest @ ..] if nonfinite[row] => {
                *first = sampling::NOT_FINITE;
                rest.fill(Candidate::NOTHING);
            }
            out => {
                let thread = rayon::current_thread_index().expect("a thread of the pool");
                let room = &mut lock(&self.threads[thread]).room;
                let logits = &logits[row * vocab.len()..][..vocab.len()];
                sampling::candidates(isa, logits, vocab.start, wanted, room, out);
            }
        };
        self.shared.cpu.pool.install(|| each_place(rows, out, &one))
    }

    /// Refuses numbers of rows that are not held.
    fn check_rows(&self, rows: impl Iterator<Item = usize>) -> Result<()> {
        let Some((position, row)) = rows.enumerate().find(|(_, row)| *row >= self.rows) else {
            return Ok(());
        };
        let index = i64::try_from(row).unwrap_or(i64::MAX);
        Err(Error::Index { what: "held rows".into(), position, index, limit: self.rows })
    }
}

/// Halves the rows again and again, and calls `one` with each row and its places in `out`.
fn each_place<F>(rows: &[(usize, Wanted)], out: &mut [Candidate], one: &F)
where
    F: Fn(usize, &Wanted, &mut [Candidate]) + Sync,
{
    match rows {
        [] => {}
        [(row, wanted)] => one(*row, wanted, out),
        _ => {
            let (low, high) = rows.split_at(rows.len() / 2);
            let places = low.iter().map(|(_, wanted)| wanted.places()).sum();
            let (out_of_low, out_of_high) = out.split_at_mut(places);
            rayon::join(|| each_place(low, out_of_low, one), || each_place(high, out_of_high, one));
        }
    }
}

impl HeldLogits for Held {
    fn rows(&self) -> usize {
        self.rows
    }

    fn pass(&mut self, pass: Pass<'_>) -> Result<()> {
        match pass {
            Pass::TargetLogits { of, targets, per_row, out } => {
                let out = out.into_host_elements("logits of the targets")?;
                self.target_logits(of, targets.host_elements("targets")?, per_row, out)
            }
            Pass::Partials { of, spec, targets, out } => {
                let targets: &[Candidate] = targets.host_elements("targets of the held rows")?;
                check::partials(out.as_span(), spec, self.rows, self.shared.info.vocab.len())?;
                check_len("targets of the held rows", targets.len(), self.rows * spec.targets)?;
                self.partials(of, spec, targets, out.into_host_elements("partials")?)
            }
            Pass::Maxima { rows, out } => {
                self.check_rows(rows.iter().copied())?;
                check_len("largest logits", out.len(), rows.len())?;
                sampling::maxima(&self.shared.cpu.pool, self.sampled(), rows, out)
            }
            Pass::Histograms { queries, out } => {
                self.check_rows(queries.iter().map(|query| query.row))?;
                let bins = queries.first().map_or(0, |query| query.digit.bins());
                check_len("bins of the histograms", out.len(), queries.len() * bins)?;
                let Cpu { isa, pool, .. } = &*self.shared.cpu;
                sampling::histograms(pool, *isa, self.sampled(), queries, out)
            }
            Pass::Ties { queries, out } => {
                self.check_rows(queries.iter().map(|query| query.row))?;
                check_len("ends of ties", out.len(), queries.len())?;
                sampling::ties(&self.shared.cpu.pool, self.sampled(), queries, out)
            }
            Pass::Candidates { rows, out } => {
                self.check_rows(rows.iter().map(|(row, _)| *row))?;
                let out: &mut [Candidate] = out.into_host_elements("candidates")?;
                let places = rows.iter().map(|(_, wanted)| wanted.places()).sum();
                check_len("candidates", out.len(), places)?;
                self.candidates(rows, out)
            }
        }
    }
}

/// Adds a row's logits, block by block: most blocks have none that is among the best.
struct Push<'a> {
    logits: &'a [f32],
    first_id: usize,
    finite: bool,
    sum: bool,
    seen: &'a mut RowPartial,
}

impl Work for Push<'_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arith>(self) {
        for (i, block) in self.logits.chunks(BLOCK).enumerate() {
            self.seen.push(self.first_id + i * BLOCK, block, self.finite, self.sum);
        }
    }
}
