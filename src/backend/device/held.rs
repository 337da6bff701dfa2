//! Logits that stay with the shard, for passes over them by kernels (`passes`).

use super::KernelDevice;
use super::shard::DeviceShard;
use crate::backend::cuts::Cuts;
use crate::backend::params::{HeldMatrix, LMHEAD_STATUS_ADJUSTED};
use crate::backend::{HeldLogits, Pass, Which};
use crate::error::{Error, Result};
use crate::memory;

/// What is known of the rows whose logits are held.
#[derive(Default)]
pub(super) struct Held {
    /// The logits of the last product are held: nothing has taken their memory since.
    pub valid: bool,
    pub rows: usize,
    /// The stream that they were made on.
    pub stream: memory::Stream,
    /// The matrix is `[adjusted; raw]`, each `[rows, shard]`.
    pub has_raw: bool,
    /// There are adjustments, and only logits with them are kept.
    pub adjusted_only: bool,
    /// The logits on the device; `None` where there are no ids.
    pub matrix: Option<HeldMatrix>,
    /// A pass's parameters, staged before the copy to pinned memory.
    pub pass_params: Vec<u8>,
}

// SAFETY: device addresses, which no thread of the host follows.
unsafe impl Send for Held {}

impl Held {
    /// The held logits that `of` means.
    pub fn matrix(&self, of: Which) -> Option<HeldMatrix> {
        let held = self.matrix?;
        if !self.has_raw {
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

    /// Sets the state of a shard without ids, or of no rows.
    pub fn set_empty(&mut self, rows: usize) {
        (self.rows, self.has_raw, self.adjusted_only, self.matrix) = (rows, false, false, None);
    }
}

impl<D: KernelDevice> DeviceShard<D> {
    /// Forgets held logits, and rows that were copied to the device: their memory may be freed.
    pub(super) fn forget(&mut self) {
        self.held.valid = false;
        self.held.set_empty(0);
        self.brought = None;
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
        self.run_pass(pass)
    }

    fn cut(&mut self, pass: Cuts<'_>) -> Result<()> {
        self.common.maker.check("the device backend")?;
        self.run_cut(pass)
    }
}
