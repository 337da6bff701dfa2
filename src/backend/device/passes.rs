//! Passes over held logits by kernels, and their transfers: what is asked goes to the device, and answers
//! that the host wants come back, with a wait.

use super::partials::{BEST, SHARED_BYTES, THREADS};
use super::select::{self, select_bytes};
use super::shard::{DeviceShard, check_candidates, product_of};
use super::{CopyRows, Grid, KernelDevice};
use crate::backend::params::{
    HeldCandidatesParams, HeldHistogram, HeldHistogramsParams, HeldMatrix, HeldMaximaParams,
    HeldTargetsParams, HeldTies, HeldTiesParams, HeldWanted, KeptLogits,
};
use crate::backend::{On, Pass, Wanted, Which, check_len};
use crate::error::{Error, Result};
use crate::memory::{Memory, Span, SpanMut};
use crate::merge::{Candidate, PartialSpec};
use crate::params::Params;
use crate::sampling::cut::{Kept, Sum};

impl<D: KernelDevice> DeviceShard<D> {
    pub(super) fn run_pass(&mut self, pass: Pass<'_>) -> Result<()> {
        let of = match &pass {
            Pass::TargetLogits { of, .. } | Pass::Partials { of, .. } => *of,
            _ => Which::Adjusted,
        };
        let Some(held) = self.held.matrix(of) else { return self.pass_over_nothing(pass) };
        match pass {
            Pass::TargetLogits { targets, per_row, out, .. } => {
                self.target_logits(held, targets, per_row, out)
            }
            Pass::Partials { spec, targets, out, .. } => self.summarise(held, &spec, targets, out),
            Pass::Maxima { rows, out } => self.maxima(held, rows, out),
            Pass::Histograms { queries, out } => self.histograms(held, queries, out),
            Pass::Ties { queries, out } => self.ties(held, queries, out),
            Pass::Candidates { rows, out } => self.candidates(held, rows, out),
        }
    }

    /// A pass over rows of a shard without ids, or over no rows.
    fn pass_over_nothing(&mut self, pass: Pass<'_>) -> Result<()> {
        match pass {
            Pass::TargetLogits { targets, per_row, out, .. } => {
                let bytes = product_of(&[self.held.rows, per_row, 4])?;
                check_len("bytes of the targets of the held rows", targets.len(), bytes)?;
                check_len("bytes of the targets' logits", out.len(), bytes)?;
                self.check_place("logits of the targets", out.as_span(), 4)?;
                self.over_nothing(false, out, |shard, stream, out| shard.no_targets(stream, out))
            }
            Pass::Partials { spec, targets, out, .. } => {
                let rows = self.held.rows;
                check_candidates(&spec)?;
                let bytes = product_of(&[rows, spec.targets, size_of::<Candidate>()])?;
                check_len("bytes of the targets of the held rows", targets.len(), bytes)?;
                self.check_out("partials", &out, product_of(&[rows, spec.stride(self.ids())])?)?;
                self.over_nothing(false, out, |shard, stream, out| shard.nothing_at(stream, rows, &spec, out))
            }
            Pass::Maxima { rows, out } => {
                self.check_rows(rows.iter().copied())?;
                check_len("largest logits", out.len(), rows.len())?;
                out.fill(f32::NEG_INFINITY);
                Ok(())
            }
            Pass::Histograms { queries, out } => {
                self.check_rows(queries.iter().map(|query| query.row))?;
                let bins = queries.first().map_or(0, |query| query.digit.bins());
                check_len("bins of the histograms", out.len(), queries.len() * bins)?;
                out.fill(0);
                Ok(())
            }
            Pass::Ties { queries, out } => {
                self.check_rows(queries.iter().map(|query| query.row))?;
                check_len("ends of ties", out.len(), queries.len())?;
                out.fill(0);
                Ok(())
            }
            Pass::Candidates { rows, out } => {
                let places = self.check_candidate_places(rows, &out)?;
                let mut nothing = std::mem::take(&mut self.held.pass_params);
                nothing.clear();
                (0..places).for_each(|_| nothing.extend_from_slice(bytemuck::bytes_of(&Candidate::NOTHING)));
                let done = self.over_nothing(true, out, |shard, stream, out| {
                    let to = (out.memory(), out.address());
                    if let Some(out) = out.into_host() {
                        out.copy_from_slice(&nothing);
                        return Ok(());
                    }
                    let from = (shard.common.memory(), shard.ask(stream, &nothing)?);
                    let copy = CopyRows::whole(to, from, nothing.len());
                    // SAFETY: the shard's own memory, and the caller's, which was checked.
                    unsafe { shard.common.device.copy_rows(stream, &copy) }
                });
                self.held.pass_params = nothing;
                done
            }
        }
    }

    /// Queues on the stream of the held logits what does not read them. `asks`: it goes by way of the shard's
    /// own host memory.
    fn over_nothing<'a>(
        &mut self,
        asks: bool,
        out: SpanMut<'a>,
        queue: impl FnOnce(&mut Self, D::Stream, SpanMut<'a>) -> Result<()>,
    ) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let on = self.held_on();
        let stream = self.begin(&on, asks || out.memory() == Memory::Host)?;
        let done = queue(self, stream, out);
        self.synchronize_on_error(stream, done)?;
        self.end(&on, stream, false)
    }

    /// The stream of the held logits.
    pub(super) fn held_on(&self) -> On<'static> {
        On { stream: self.held.stream, workspace: None }
    }

    /// Partials of held logits.
    fn summarise(
        &mut self,
        held: HeldMatrix,
        spec: &PartialSpec,
        targets: Span<'_>,
        out: SpanMut<'_>,
    ) -> Result<()> {
        let wanted = product_of(&[self.held.rows, spec.targets, size_of::<Candidate>()])?;
        check_len("bytes of the targets of the held rows", targets.len(), wanted)?;
        self.check_place("targets of the held rows", targets, align_of::<u64>())?;
        let stride = spec.stride(self.weights.info.vocab.len());
        self.check_out("partials", &out, product_of(&[self.held.rows, stride])?)?;
        check_candidates(spec)?;
        let (on, to_host) = (self.held_on(), out.memory() == Memory::Host);
        let asks = targets.memory() == Memory::Host && !targets.is_empty();
        let stream = self.begin(&on, to_host || asks)?;
        let done = self.queue_summary(stream, held, spec, targets, out);
        self.synchronize_on_error(stream, done)?;
        if to_host { Ok(()) } else { self.end(&on, stream, false) }
    }

    /// An answer in host memory is there when this returns.
    fn queue_summary(
        &mut self,
        stream: D::Stream,
        held: HeldMatrix,
        spec: &PartialSpec,
        targets: Span<'_>,
        out: SpanMut<'_>,
    ) -> Result<()> {
        let device = self.common.device.clone();
        let targets = match targets.as_host() {
            Some(targets) => self.ask(stream, targets)?,
            None => targets.address(),
        };
        let bytes = self.held_part_bytes(self.held.rows, spec)?;
        let parts = device.address(self.rooms.parts.at_least(bytes, |bytes| device.alloc(bytes))?);
        if out.memory() != Memory::Host {
            return self.summarise_held(stream, held, spec, targets, parts, out.address());
        }
        let to = device.address(self.rooms.outputs.at_least(out.len(), |bytes| device.alloc(bytes))?);
        self.summarise_held(stream, held, spec, targets, parts, to)?;
        self.answer(stream, to, out.into_host().expect("host memory"))
    }

    /// Checks a buffer for structs, in host or device memory.
    fn check_out(&self, what: &str, out: &SpanMut<'_>, bytes: usize) -> Result<()> {
        out.check_len(what, bytes)?;
        out.check_aligned(what, 8)?;
        if out.memory() == Memory::Host { Ok(()) } else { out.check_memory(what, self.common.memory()) }
    }

    /// Checks structs that are read, in host or device memory.
    pub(super) fn check_place(&self, what: &str, span: Span<'_>, to: usize) -> Result<()> {
        span.check_aligned(what, to)?;
        if span.memory() == Memory::Host { Ok(()) } else { span.check_memory(what, self.common.memory()) }
    }

    /// Copies `asked` to the device, launches `blocks` blocks with `params` of its address and the answer's,
    /// and waits for the answer.
    fn query<P: Params>(
        &mut self,
        kernel: impl Fn(&Self) -> &D::Kernel<P>,
        asked: &[u8],
        (blocks, shared_bytes): (usize, usize),
        out: &mut [u8],
        params: impl Fn(u64, u64) -> P,
    ) -> Result<()> {
        if blocks == 0 || out.is_empty() {
            return Ok(());
        }
        let stream = self.begin(&self.held_on(), true)?;
        let done = self.queue_query(stream, kernel, asked, (blocks, shared_bytes), out, params);
        self.synchronize_on_error(stream, done)
    }

    fn queue_query<P: Params>(
        &mut self,
        stream: D::Stream,
        kernel: impl Fn(&Self) -> &D::Kernel<P>,
        asked: &[u8],
        (blocks, shared_bytes): (usize, usize),
        out: &mut [u8],
        params: impl Fn(u64, u64) -> P,
    ) -> Result<()> {
        let device = self.common.device.clone();
        let asked = self.ask(stream, asked)?;
        let to = device.address(self.rooms.outputs.at_least(out.len(), |bytes| device.alloc(bytes))?);
        let grid = Grid { blocks: blocks as u32, threads: THREADS, shared_bytes };
        // SAFETY: held logits, and memory of the shard's own.
        unsafe { device.launch(stream, kernel(self), &grid, &params(asked, to))? };
        self.answer(stream, to, out)
    }

    fn target_logits(
        &mut self,
        held: HeldMatrix,
        targets: Span<'_>,
        per_row: usize,
        out: SpanMut<'_>,
    ) -> Result<()> {
        let n = product_of(&[self.held.rows, per_row])?;
        check_len("bytes of the targets of the held rows", targets.len(), product_of(&[n, 4])?)?;
        check_len("bytes of the logits of the targets", out.len(), targets.len())?;
        out.check_memory("logits of the targets", targets.memory())?;
        let blocks = n.div_ceil(THREADS as usize);
        let params = |targets: u64, out: u64| {
            let (targets, out) = (targets as usize as *const u32, out as usize as *mut f32);
            HeldTargetsParams { held, targets, out, per_row: per_row as u32 }
        };
        if targets.memory() == Memory::Host {
            let asked = targets.host_elements("targets")?;
            let out = out.into_host_elements("logits of the targets")?;
            return self.query(|shard| &shard.weights.kernels.targets, asked, (blocks, 0), out, params);
        }
        self.check_place("targets of the held rows", targets, 4)?;
        self.check_place("logits of the targets", out.as_span(), 4)?;
        if blocks == 0 {
            return Ok(());
        }
        let grid = Grid { blocks: blocks as u32, threads: THREADS, shared_bytes: 0 };
        let on = self.held_on();
        self.only_on(&on, |shard, stream| {
            let kernel = &shard.weights.kernels.targets;
            // SAFETY: held logits, and checked spans of the caller's.
            unsafe {
                let params = params(targets.address(), out.address());
                shard.common.device.launch(stream, kernel, &grid, &params)
            }
        })
    }

    fn maxima(&mut self, held: HeldMatrix, rows: &[usize], out: &mut [f32]) -> Result<()> {
        self.check_rows(rows.iter().copied())?;
        check_len("largest logits", out.len(), rows.len())?;
        let mut asked = std::mem::take(&mut self.held.pass_params);
        asked.clear();
        asked.extend(rows.iter().flat_map(|row| (*row as u32).to_le_bytes()));
        let done = self.query(
            |shard| &shard.weights.kernels.maxima,
            &asked,
            (rows.len(), 32),
            bytemuck::cast_slice_mut(out),
            |rows, out| {
                let (rows, out) = (rows as usize as *const u32, out as usize as *mut f32);
                HeldMaximaParams { held, rows, out }
            },
        );
        self.held.pass_params = asked;
        done
    }

    fn histograms(
        &mut self,
        held: HeldMatrix,
        queries: &[crate::backend::HistogramQuery],
        out: &mut [u64],
    ) -> Result<()> {
        self.check_rows(queries.iter().map(|query| query.row))?;
        let Some(first) = queries.first() else { return check_len("bins of the histograms", out.len(), 0) };
        let (bins, unit) = (first.digit.bins(), first.kept.scale.unit());
        check_len("bins of the histograms", out.len(), queries.len() * bins)?;
        let one = |query: &crate::backend::HistogramQuery| HeldHistogram {
            kept: kept_of(query.row, &query.kept),
            masses: u32::from(query.sum == Sum::Masses),
            known: query.digit.known_bits(),
            key: query.key,
            shift: query.digit.shift(),
        };
        let mut asked = std::mem::take(&mut self.held.pass_params);
        asked.clear();
        queries.iter().for_each(|query| asked.extend_from_slice(bytemuck::bytes_of(&one(query))));
        let done = self.query(
            |shard| &shard.weights.kernels.histograms,
            &asked,
            (queries.len(), 8 * bins),
            bytemuck::cast_slice_mut(out),
            |queries, out| HeldHistogramsParams {
                held,
                queries: queries as usize as *const _,
                out: out as usize as *mut u64,
                bins: bins as u32,
                unit,
            },
        );
        self.held.pass_params = asked;
        done
    }

    fn ties(
        &mut self,
        held: HeldMatrix,
        queries: &[crate::backend::TiesQuery],
        out: &mut [u32],
    ) -> Result<()> {
        self.check_rows(queries.iter().map(|query| query.row))?;
        check_len("ends of ties", out.len(), queries.len())?;
        let mut asked = std::mem::take(&mut self.held.pass_params);
        asked.clear();
        for query in queries {
            let kept = kept_of(query.row, &query.kept);
            asked.extend_from_slice(bytemuck::bytes_of(&HeldTies {
                kept,
                logit: query.logit,
                allowance: query.allowance,
            }));
        }
        let done = self.query(
            |shard| &shard.weights.kernels.ties,
            &asked,
            (queries.len(), 64),
            bytemuck::cast_slice_mut(out),
            |queries, out| HeldTiesParams {
                held,
                queries: queries as usize as *const _,
                out: out as usize as *mut u32,
            },
        );
        self.held.pass_params = asked;
        done
    }

    /// Checks rows and places of candidates; returns how many places there are.
    fn check_candidate_places(&self, rows: &[(usize, Wanted)], out: &SpanMut<'_>) -> Result<usize> {
        self.check_rows(rows.iter().map(|(row, _)| *row))?;
        let places = rows.iter().map(|(_, wanted)| wanted.places()).sum::<usize>();
        self.check_out("candidates", out, product_of(&[places, size_of::<Candidate>()])?)?;
        Ok(places)
    }

    fn candidates(&mut self, held: HeldMatrix, rows: &[(usize, Wanted)], out: SpanMut<'_>) -> Result<()> {
        if self.check_candidate_places(rows, &out)? == 0 {
            return Ok(());
        }
        let mut asked = std::mem::take(&mut self.held.pass_params);
        asked.clear();
        // First the rows that a warp collects or draws from, then those whose best are selected. Rows that
        // want no candidate are left out.
        let mut counts = [0; 2];
        let (mut k, mut least) = (0, usize::MAX);
        for (selected, count) in counts.iter_mut().enumerate() {
            let mut place = 0;
            for (row, wanted) in rows {
                let places = wanted.places();
                if places > 0 && (places > BEST) == (selected == 1) {
                    asked.extend_from_slice(bytemuck::bytes_of(&wanted_of(*row, wanted, place)));
                    *count += 1;
                    if selected == 1 {
                        (k, least) = (k.max(places), least.min(places));
                    }
                }
                place += places as u64;
            }
        }
        let selection = Selection { count: counts[1], k, least };
        let to_host = out.memory() == Memory::Host;
        let on = self.held_on();
        let stream = self.begin(&on, true)?;
        let done = self.queue_candidates(stream, held, &asked, (counts[0], selection), out);
        self.held.pass_params = asked;
        self.synchronize_on_error(stream, done)?;
        if to_host { Ok(()) } else { self.end(&on, stream, false) }
    }

    /// An answer in host memory is there when this returns.
    fn queue_candidates(
        &mut self,
        stream: D::Stream,
        held: HeldMatrix,
        asked: &[u8],
        (collected, selected): (usize, Selection),
        out: SpanMut<'_>,
    ) -> Result<()> {
        let device = self.common.device.clone();
        let queries = self.ask(stream, asked)?;
        let to = self.output(&out)?;
        if collected > 0 {
            let params = HeldCandidatesParams {
                held,
                queries: queries as usize as *const _,
                out: to as usize as *mut _,
            };
            let grid = Grid { blocks: collected as u32, threads: THREADS, shared_bytes: SHARED_BYTES };
            // SAFETY: held logits, the shard's own memory, and the caller's, which was checked.
            unsafe { device.launch(stream, &self.weights.kernels.candidates, &grid, &params)? };
        }
        let Selection { count, k, least } = selected;
        if count > 0 {
            let bytes = select_bytes(count, k, held.ids as usize)?;
            let room = device.address(self.rooms.parts.at_least(bytes, |bytes| device.alloc(bytes))?);
            let address = queries + (collected * size_of::<HeldWanted>()) as u64;
            self.select(stream, held, select::Wanted::Queries { address, count, k, least }, room, to)?;
        }
        match out.into_host() {
            Some(out) => self.answer(stream, to, out),
            None => Ok(()),
        }
    }

    /// Refuses numbers of rows that are not held.
    fn check_rows(&self, rows: impl Iterator<Item = usize>) -> Result<()> {
        let limit = self.held.rows;
        match rows.enumerate().find(|(_, row)| *row >= limit) {
            None => Ok(()),
            Some((position, row)) => {
                let index = i64::try_from(row).unwrap_or(i64::MAX);
                Err(Error::Index { what: "held rows".into(), position, index, limit })
            }
        }
    }
}

/// How many rows of a pass have their candidates selected, and the most and fewest candidates of such a row.
#[derive(Clone, Copy)]
struct Selection {
    count: usize,
    k: usize,
    least: usize,
}

fn kept_of(row: usize, kept: &Kept) -> KeptLogits {
    let (max, temperature, least) = kept.scale.parts();
    KeptLogits { max, temperature, least, cut: kept.cut, ties_end: kept.ties_end, row: row as u32 }
}

fn wanted_of(row: usize, wanted: &Wanted, place: u64) -> HeldWanted {
    let row = row as u32;
    let nothing = KeptLogits { max: 0.0, temperature: 0.0, least: 0.0, cut: 0.0, ties_end: 0, row };
    match wanted {
        Wanted::Best { k } => {
            HeldWanted { kept: nothing, filtered: 0, k: *k as u32, seed: 0, position: 0, place }
        }
        Wanted::Drawn { params, kept } => HeldWanted {
            kept: match kept {
                Some(kept) => kept_of(row as usize, kept),
                None => KeptLogits { temperature: params.temperature, ..nothing },
            },
            filtered: u32::from(kept.is_some()),
            k: 0,
            seed: params.seed,
            position: params.position,
            place,
        },
    }
}
