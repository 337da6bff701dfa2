//! Passes over held logits by kernels, and what travels for them: what is asked goes to the device, and answers
//! that the host wants come back, with a wait. The host's code makes what kernels do not: more candidates of
//! a row than they find.

use super::partials::{BEST, SHARED_BYTES, THREADS};
use super::shard::{DeviceShard, check_candidates, product_of};
use super::{Grid, KernelDevice};
use crate::backend::params::{
    HeldCandidatesParams, HeldHistogram, HeldHistogramsParams, HeldMatrix, HeldMaximaParams,
    HeldTargetsParams, HeldTies, HeldTiesParams, HeldWanted, KeptLogits,
};
use crate::backend::{On, Pass, Wanted, Which};
use crate::error::{Error, Result};
use crate::memory::{Memory, SpanMut};
use crate::merge::{Candidate, PartialSpec};
use crate::params::Params;
use crate::sampling::cut::{Kept, Sum};

impl<D: KernelDevice> DeviceShard<D> {
    /// Runs it where kernels do; otherwise gives it back.
    pub(super) fn pass_by_kernel<'a>(&mut self, pass: Pass<'a>) -> Result<Option<Pass<'a>>> {
        let (of, can) = match &pass {
            Pass::TargetLogits { of, .. } => (*of, true),
            Pass::Partials { of, spec, .. } => (*of, spec.k <= BEST),
            Pass::Maxima { .. } | Pass::Histograms { .. } | Pass::Ties { .. } => (Which::Adjusted, true),
            Pass::Candidates { rows, .. } => {
                (Which::Adjusted, rows.iter().all(|(_, wanted)| wanted.places() <= BEST))
            }
        };
        let Some(held) = self.held.matrix(of).filter(|_| can) else { return Ok(Some(pass)) };
        match pass {
            Pass::TargetLogits { targets, per_row, out, .. } => {
                self.target_logits(held, targets, per_row, out)
            }
            Pass::Partials { spec, targets, out, .. } => self.summarise(held, &spec, targets, out),
            Pass::Maxima { rows, out } => self.maxima(held, rows, out),
            Pass::Histograms { queries, out } => self.histograms(held, queries, out),
            Pass::Ties { queries, out } => self.ties(held, queries, out),
            Pass::Candidates { rows, out } => self.candidates(held, rows, out),
        }?;
        Ok(None)
    }

    /// The stream of the held logits.
    fn held_on(&self) -> On<'static> {
        On { stream: self.held.stream, workspace: None }
    }

    /// Partials of held logits.
    fn summarise(
        &mut self,
        held: HeldMatrix,
        spec: &PartialSpec,
        targets: &[Candidate],
        out: SpanMut<'_>,
    ) -> Result<()> {
        check_len("targets of the held rows", targets.len(), self.held.rows * spec.targets)?;
        let stride = spec.stride(self.weights.info.vocab.len());
        self.check_out("partials", &out, product_of(&[self.held.rows, stride])?)?;
        check_candidates(spec)?;
        let (on, to_host) = (self.held_on(), out.memory() == Memory::Host);
        let stream = self.begin(&on, to_host || !targets.is_empty())?;
        let done = self.queue_summary(stream, held, spec, targets, out);
        self.settled(stream, done)?;
        if to_host { Ok(()) } else { self.end(&on, stream, false) }
    }

    /// With an answer in host memory it is there when this returns.
    fn queue_summary(
        &mut self,
        stream: D::Stream,
        held: HeldMatrix,
        spec: &PartialSpec,
        targets: &[Candidate],
        out: SpanMut<'_>,
    ) -> Result<()> {
        let device = self.common.device.clone();
        let targets = self.ask(stream, bytemuck::cast_slice(targets))?;
        let bytes = self.held_part_bytes(self.held.rows, spec)?;
        let parts = device.address(self.rooms.parts.at_least(bytes, |bytes| device.alloc(bytes))?);
        if out.memory() != Memory::Host {
            return self.summarise_held(stream, held, spec, targets, parts, out.address());
        }
        let to = device.address(self.rooms.outputs.at_least(out.len(), |bytes| device.alloc(bytes))?);
        self.summarise_held(stream, held, spec, targets, parts, to)?;
        self.answer(stream, to, out.into_host().expect("host memory"))
    }

    /// A buffer of the host's or the device's, for structs.
    fn check_out(&self, what: &str, out: &SpanMut<'_>, bytes: usize) -> Result<()> {
        out.check_len(what, bytes)?;
        out.check_aligned(what, 8)?;
        if out.memory() == Memory::Host { Ok(()) } else { out.check_memory(what, self.common.memory()) }
    }

    /// Asks `asked`, launches `blocks` blocks of what `launch` makes of the addresses of that and of the
    /// answer, and waits for the answer.
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
        self.settled(stream, done)
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
        targets: &[u32],
        per_row: usize,
        out: &mut [f32],
    ) -> Result<()> {
        check_len("targets of the held rows", targets.len(), self.held.rows * per_row)?;
        check_len("logits of the targets", out.len(), targets.len())?;
        let blocks = targets.len().div_ceil(THREADS as usize);
        let asked = bytemuck::cast_slice(targets);
        let out = bytemuck::cast_slice_mut(out);
        self.query(
            |shard| &shard.weights.kernels.targets,
            asked,
            (blocks, 0),
            out,
            |targets, out| {
                let (targets, out) = (targets as usize as *const u32, out as usize as *mut f32);
                HeldTargetsParams { held, targets, out, per_row: per_row as u32 }
            },
        )
    }

    fn maxima(&mut self, held: HeldMatrix, rows: &[usize], out: &mut [f32]) -> Result<()> {
        self.check_rows(rows.iter().copied())?;
        check_len("largest logits", out.len(), rows.len())?;
        let mut asked = std::mem::take(&mut self.held.asked);
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
        self.held.asked = asked;
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
        let mut asked = std::mem::take(&mut self.held.asked);
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
        self.held.asked = asked;
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
        let mut asked = std::mem::take(&mut self.held.asked);
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
        self.held.asked = asked;
        done
    }

    fn candidates(&mut self, held: HeldMatrix, rows: &[(usize, Wanted)], out: SpanMut<'_>) -> Result<()> {
        self.check_rows(rows.iter().map(|(row, _)| *row))?;
        let places = rows.iter().map(|(_, wanted)| wanted.places()).sum::<usize>();
        self.check_out("candidates", &out, product_of(&[places, size_of::<Candidate>()])?)?;
        let mut asked = std::mem::take(&mut self.held.asked);
        asked.clear();
        let (mut place, mut blocks) = (0, 0);
        for (row, wanted) in rows {
            let one = wanted_of(*row, wanted, place);
            // A shard without as many ids has no place.
            if wanted.places() > 0 {
                asked.extend_from_slice(bytemuck::bytes_of(&one));
                blocks += 1;
            }
            place += wanted.places() as u64;
        }
        let done = self.find_candidates(held, &asked, blocks, out);
        self.held.asked = asked;
        done
    }

    fn find_candidates(
        &mut self,
        held: HeldMatrix,
        asked: &[u8],
        blocks: usize,
        out: SpanMut<'_>,
    ) -> Result<()> {
        let params = |queries: u64, out: u64| HeldCandidatesParams {
            held,
            queries: queries as usize as *const _,
            out: out as usize as *mut _,
        };
        let size = (blocks, SHARED_BYTES);
        if out.memory() == Memory::Host {
            let out = out.into_host().expect("host memory");
            return self.query(|shard| &shard.weights.kernels.candidates, asked, size, out, params);
        }
        if blocks == 0 {
            return Ok(());
        }
        let on = self.held_on();
        let stream = self.begin(&on, true)?;
        let done = self.ask(stream, asked).and_then(|asked| {
            let grid = Grid { blocks: blocks as u32, threads: THREADS, shared_bytes: size.1 };
            let kernel = &self.weights.kernels.candidates;
            // SAFETY: held logits, the shard's own memory, and the caller's, which was checked.
            unsafe { self.common.device.launch(stream, kernel, &grid, &params(asked, out.address())) }
        });
        self.settled(stream, done)?;
        self.end(&on, stream, false)
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

fn check_len(what: &str, got: usize, wanted: usize) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    Err(Error::shape(what, wanted, got, "pass one for each"))
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
