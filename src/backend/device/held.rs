//! Logits that stay with the shard. Passes over them are by kernels (`passes`), but for more candidates of a row
//! than kernels find: those by the host's code, over device memory itself where the host can look at it,
//! otherwise over a copy that is made once.

use super::shard::{DeviceShard, product_of};
use super::{CopyRows, KernelDevice, Side};
use crate::backend::params::{
    HeldMatrix, LMHEAD_STATUS_ADJUSTED, LMHEAD_STATUS_BAD_INDEX, LMHEAD_STATUS_NONFINITE, PartialRow,
};
use crate::backend::{HeldLogits, On, Pass, Which};
use crate::error::{Error, Result};
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
    /// The logits on the device; none of no ids.
    pub matrix: Option<HeldMatrix>,
    /// The host's code can pass over them.
    pub on_host: bool,
    /// What a pass asks, before it is copied to locked memory.
    pub asked: Vec<u8>,
}

// SAFETY: device addresses, which no thread of the host follows.
unsafe impl Send for Held {}

impl Held {
    /// Those of that kind.
    pub fn matrix(&self, of: Which) -> Option<HeldMatrix> {
        let held = self.matrix?;
        if !self.both {
            return Some(held);
        }
        Some(match of {
            Which::Adjusted => HeldMatrix { nonfinite: held.nonfinite | LMHEAD_STATUS_ADJUSTED, ..held },
            Which::Raw => HeldMatrix {
                data: (held.data as u64 + held.rows as u64 * held.pitch) as usize as *const f32,
                ..held
            },
        })
    }

    /// Logits of a shard without ids, or of no rows.
    pub fn nothing(&mut self, rows: usize) {
        (self.rows, self.both, self.adjusted_only, self.matrix) = (rows, false, false, None);
        self.on_host = true;
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

    /// Lets the host's code pass over the held logits: they are copied once, where it cannot look at them.
    fn bring_held(&mut self) -> Result<()> {
        let Some(held) = self.held.matrix.filter(|_| !self.held.on_host) else { return Ok(()) };
        let (device, own) = (self.common.device.clone(), self.common.memory());
        let (rows, ids, pitch) = (held.rows as usize, held.ids as usize, held.pitch as usize);
        let on = On { stream: self.held.stream, workspace: None };
        let stream = self.begin(&on, true)?;
        let words = self.rooms.received.at_least(4 * rows, |bytes| device.staging(bytes))?.as_mut();
        let to = words.as_mut_ptr().expose_provenance() as u64;
        let copy = CopyRows::whole((Memory::Host, to), (own, held.status as u64), 4 * rows);
        // SAFETY: the shard's own memory, and a wait below.
        unsafe { device.copy_rows(stream, &copy)? };
        let kinds = if self.held.both { 2 } else { 1 };
        let bytes = 4 * kinds * rows * ids;
        // SAFETY: held logits of the workspace, which nobody else uses as long as they are held.
        let lend = || unsafe { device.lend(SpanMut::from_raw(own, held.data as u64, bytes)) };
        let lent = device.lends() && pitch == 4 * ids;
        if !lent {
            let copied = self.rooms.held.at_least(bytes, |bytes| device.staging(bytes))?.as_mut();
            let to = Side {
                memory: Memory::Host,
                address: copied.as_mut_ptr().expose_provenance() as u64,
                pitch: 4 * ids,
            };
            let from = Side { memory: own, address: held.data as u64, pitch };
            let copy = CopyRows { to, from, row_bytes: 4 * ids, rows: kinds * rows };
            // SAFETY: as above.
            unsafe { device.copy_rows(stream, &copy.joined())? };
        }
        self.settle(stream)?;
        let words: &[u32] = bytemuck::cast_slice(&self.rooms.received.get().as_mut()[..4 * rows]);
        let status = &mut self.held.status;
        status.clear();
        if self.held.both {
            let adjusted = |word: &u32| match word & LMHEAD_STATUS_ADJUSTED {
                0 => *word,
                _ => word | LMHEAD_STATUS_NONFINITE,
            };
            status.extend(words.iter().map(adjusted));
        }
        status.extend_from_slice(words);
        // Nothing is queued on them any more.
        let bytes = match lent {
            true => lend().expect("lent before"),
            false => &mut self.rooms.held.get().as_mut()[..bytes],
        };
        let logits: *const [f32] = bytemuck::cast_slice(bytes);
        self.held.on_host = true;
        // SAFETY: memory of the workspace, which is the held logits', or of the shard, which the next call
        // alone writes.
        unsafe { self.pass_over(&*logits) };
        Ok(())
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
        self.bring_held()?;
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
        let Some(pass) = self.pass_by_kernel(pass)? else { return Ok(()) };
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
