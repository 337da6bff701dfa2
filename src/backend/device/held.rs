//! Passes over held logits, for now by the host's code: over device memory itself where the host can look at
//! it, otherwise over a copy that was made once.

use super::shard::{DeviceShard, product_of};
use super::{CopyRows, KernelDevice};
use crate::adjust::ShardAdjustments;
use crate::backend::params::{
    LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE, PartialRow,
};
use crate::backend::{HeldLogits, On, Pass, Which};
use crate::error::{Error, Result};
use crate::layout::BLOCK;
use crate::memory::{self, Memory, SpanMut};
use crate::merge::PartialSpec;

/// Rows whose logits are held, beside the logits.
#[derive(Default)]
pub(super) struct Held {
    /// The last product was held, and nothing has taken its memory since.
    pub is_there: bool,
    pub rows: usize,
    /// The stream that they were made on.
    pub stream: memory::Stream,
    /// Those with adjustments come first, and behind them those that the product left.
    pub both: bool,
    /// There are adjustments, and logits without them are not kept.
    pub adjusted_only: bool,
    /// `[rows]`, and those of the logits that the product left where `both`.
    pub status: Vec<u32>,
}

/// Adjusts a copy of logits `[rows, ids]` and of their status words.
pub(super) fn adjust(
    adjustments: &ShardAdjustments,
    (first_row, first_id, ids): (usize, usize, usize),
    (raw, raw_status): (&[f32], &[u32]),
    (adjusted, status): (&mut [f32], &mut [u32]),
) {
    adjusted.copy_from_slice(raw);
    for (row, logits) in adjusted.chunks_exact_mut(ids).enumerate() {
        let mut finite = true;
        for (i, block) in logits.chunks_mut(BLOCK).enumerate() {
            finite &= adjustments.apply(first_row + row, first_id + i * BLOCK, block);
        }
        let flag = |is: bool, flag| if is { flag } else { 0 };
        let allowed = flag(logits.iter().any(|l| *l > f32::NEG_INFINITY), LMHEAD_STATUS_ALLOWED);
        let before = raw_status[row] & !LMHEAD_STATUS_ALLOWED;
        status[row] = before | flag(!finite, LMHEAD_STATUS_NONFINITE) | allowed;
    }
}

impl Held {
    /// Logits of a shard without ids, or of no rows.
    pub fn nothing(&mut self, rows: usize) {
        (self.rows, self.both, self.adjusted_only) = (rows, false, false);
        self.status.clear();
        self.status.resize(rows, 0);
    }
}

impl<D: KernelDevice> DeviceShard<D> {
    /// Lets the passes run over these logits, `[rows, ids]`, twice where both kinds are held.
    ///
    /// # Safety
    /// They are there, and nobody writes them, until the next call.
    pub(super) unsafe fn pass_over(&mut self, logits: &[f32]) {
        let Held { rows, both, status, .. } = &self.held;
        // A row that is none has no answer either.
        let bad = LMHEAD_STATUS_NONFINITE | LMHEAD_STATUS_BAD_INDEX;
        let nonfinite = status.iter().map(|word| word & bad != 0);
        // SAFETY: the caller's promise.
        unsafe { self.passes.lend(logits, *rows, *both, nonfinite) };
    }

    /// Forgets what is held: its memory may go.
    pub(super) fn forget(&mut self) {
        self.held.is_there = false;
        self.held.nothing(0);
        // SAFETY: there are no logits.
        unsafe { self.pass_over(&[]) };
    }

    /// Partials of what is held, to the host's memory or, on the stream, to the device's.
    pub(super) fn held_partials(
        &mut self,
        stream: D::Stream,
        spec: PartialSpec,
        out: SpanMut<'_>,
    ) -> Result<()> {
        self.pass_into(stream, Pass::Partials { of: Which::Adjusted, spec, targets: &[], out })
    }

    /// Partials of a shard without ids.
    pub(super) fn empty_partials(
        &mut self,
        stream: D::Stream,
        rows: usize,
        spec: PartialSpec,
        out: SpanMut<'_>,
    ) -> Result<()> {
        self.held.nothing(rows);
        // SAFETY: there are no logits.
        unsafe { self.pass_over(&[]) };
        self.held_partials(stream, spec, out)
    }

    /// A pass whose answer goes to either memory: to a device's by way of the host's, queued.
    fn pass_into(&mut self, stream: D::Stream, pass: Pass<'_>) -> Result<()> {
        let out = match &pass {
            Pass::Partials { out, .. } | Pass::Candidates { out, .. } if out.memory() != Memory::Host => out,
            _ => return self.pass_on_host(pass),
        };
        let to = out.address();
        let device = self.common.device.clone();
        let (bytes, own) = (out.len(), self.common.memory());
        if self.queued {
            // What an earlier part of the same call left there may be on its way still.
            self.settle(stream)?;
        }
        self.rooms.finish.at_least(bytes, |bytes| device.staging(bytes))?;
        let mut staging = std::mem::take(&mut self.rooms.finish);
        let host = &mut staging.get().as_mut()[..bytes];
        let from = host.as_mut_ptr().expose_provenance() as u64;
        let made = self.pass_on_host(instead(pass, SpanMut::host(host)));
        self.rooms.finish = staging;
        made?;
        let copy = CopyRows::whole((own, to), (Memory::Host, from), bytes);
        self.queued = true;
        // SAFETY: the shard's own memory, which the next call waits for, and the caller's.
        unsafe { device.copy_rows(stream, &copy) }
    }

    fn pass_on_host(&mut self, pass: Pass<'_>) -> Result<()> {
        let Pass::Partials { of, spec, targets, mut out } = pass else { return self.passes.pass(pass) };
        self.passes.pass(Pass::Partials { of, spec, targets, out: out.reborrow() })?;
        // The host's code knows no indices.
        let stride = spec.stride(self.weights.info.vocab.len());
        let rows: &mut [u8] = out.into_host_elements("partials")?;
        let first = if of == Which::Raw && self.held.both { self.held.rows } else { 0 };
        for (row, word) in rows.chunks_exact_mut(stride).zip(&self.held.status[first..]) {
            if word & LMHEAD_STATUS_BAD_INDEX != 0 {
                let row: &mut PartialRow = bytemuck::from_bytes_mut(&mut row[..size_of::<PartialRow>()]);
                row.status |= LMHEAD_STATUS_BAD_INDEX;
            }
        }
        Ok(())
    }
}

/// The same pass with an answer in another place.
fn instead<'a>(pass: Pass<'a>, out: SpanMut<'a>) -> Pass<'a> {
    match pass {
        Pass::Partials { of, spec, targets, .. } => Pass::Partials { of, spec, targets, out },
        Pass::Candidates { rows, .. } => Pass::Candidates { rows, out },
        other => other,
    }
}

impl<D: KernelDevice> HeldLogits for DeviceShard<D> {
    fn rows(&self) -> usize {
        self.held.rows
    }

    fn pass(&mut self, pass: Pass<'_>) -> Result<()> {
        self.common.maker.check("the device backend")?;
        if let Pass::TargetLogits { of: Which::Raw, .. } | Pass::Partials { of: Which::Raw, .. } = &pass
            && self.held.adjusted_only
        {
            let fix = "hold them with `raw`";
            return Err(Error::request("held logits", "those without adjustments", "those with them", fix));
        }
        let (what, bytes, out) = match &pass {
            Pass::Partials { spec, out, .. } => {
                let stride = spec.stride(self.weights.info.vocab.len());
                ("partials", product_of(&[self.held.rows, stride])?, out)
            }
            Pass::Candidates { rows, out } => {
                ("candidates", 8 * rows.iter().map(|(_, wanted)| wanted.places()).sum::<usize>(), out)
            }
            _ => return self.pass_on_host(pass),
        };
        out.check_len(what, bytes)?;
        out.check_aligned(what, 8)?;
        if out.memory() == Memory::Host {
            return self.pass_on_host(pass);
        }
        out.check_memory(what, self.common.memory())?;
        let on = On { stream: self.held.stream, workspace: None };
        // Waits for what an earlier pass left on its way, if anything.
        let stream = self.begin(&on, true)?;
        self.queued = false;
        let done = self.pass_into(stream, pass);
        self.settled(stream, done)?;
        self.end(&on, stream, false)
    }
}
