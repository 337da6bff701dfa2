//! How much room a call needs: its workspace, and the shard's own memory that is made ahead.

use super::super::partials::{self, BEST, by_tiles};
use super::{DeviceShard, KernelDevice, product_of, sum_of};
use crate::backend::{Ask, On};
use crate::error::Result;
use crate::merge::{Candidate, PartialSpec};
use crate::params::SamplingRow;
use crate::plan::Tile;
use crate::sampling::cut::BINS;

/// Words for each row that `prepare` makes room for beside a mask, for adjustments.
const ADJUSTED_WORDS: usize = 2048;

/// Targets of a row that `prepare` makes room for.
const TARGETS: usize = 8;

/// Where the parts of a call's workspace lie: bytes from its beginning.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Places {
    /// End of the matmul's own part, which begins at 0.
    pub(in super::super) product: usize,
    pub status: usize,
    /// A bound for each row that no candidate is below; where partials of tiles are made.
    pub bars: usize,
    /// Held logits, or tiles' partials.
    pub held: usize,
    /// Bytes from row to row of held logits.
    pub(super) pitch: usize,
    pub total: usize,
}

impl Places {
    /// Where what is made of held logits begins; only for places that are for held logits alone.
    pub(super) fn parts(&self) -> usize {
        self.total.next_multiple_of(256)
    }
}

impl<D: KernelDevice> DeviceShard<D> {
    /// Rows for which a call of partials holds logits at once, or what tiles leave instead of them.
    pub(super) fn at_once(&self, rows: usize, spec: &PartialSpec) -> usize {
        let row = if by_tiles(spec) {
            self.product().most_parts() * spec.stride(Tile::FEWEST_IDS)
        } else {
            (4 * self.ids()).next_multiple_of(16)
        };
        rows.min((self.common.held / row).max(1))
    }

    /// Places with room for `held` kinds of logits: 0, 1, or 2 where those without adjustments are kept too.
    pub(in super::super) fn places(&self, rows: usize, held: usize) -> Result<Places> {
        let product = self.product().workspace_bytes(rows)?.next_multiple_of(256);
        let pitch = (4 * self.ids()).next_multiple_of(16);
        let status = product;
        let logits = (4 * rows).next_multiple_of(256) + status;
        let held_bytes = product_of(&[held, rows, pitch])?;
        let total = sum_of(&[logits, held_bytes])?;
        Ok(Places { product, status, bars: logits, held: logits, pitch, total })
    }

    /// Places for partials.
    pub(super) fn partial_places(&self, rows: usize, spec: &PartialSpec) -> Result<Places> {
        if !by_tiles(spec) {
            let places = self.places(rows, 1)?;
            let parts = self.held_part_bytes(rows, spec)?;
            return Ok(Places { total: sum_of(&[places.parts(), parts])?, ..places });
        }
        let Places { product, status, bars, pitch, .. } = self.places(rows, 0)?;
        let held = sum_of(&[bars, (4 * rows).next_multiple_of(256)])?;
        // Sized for the most parts, whatever the plan: so what is enough for some rows is enough for fewer.
        let parts = self.product().most_parts();
        let total = sum_of(&[held, product_of(&[parts, rows, spec.stride(Tile::FEWEST_IDS)])?])?;
        Ok(Places { product, status, bars, held, pitch, total })
    }

    /// Places for draws.
    pub(in super::super) fn drawn_places(&self, rows: usize) -> Result<Places> {
        let Places { product, status, bars, pitch, .. } = self.places(rows, 0)?;
        let held = sum_of(&[bars, (4 * rows).next_multiple_of(256)])?;
        // Sized for the most parts, as with partials.
        let total = sum_of(&[held, product_of(&[rows, self.drawn_row()])?])?;
        Ok(Places { product, status, bars, held, pitch, total })
    }

    /// Bytes that tiles leave of a row that is drawn from.
    pub(super) fn drawn_row(&self) -> usize {
        self.product().most_parts() * size_of::<Candidate>()
    }

    /// Rows that are drawn from at once.
    pub(in super::super) fn drawn_at_once(&self, rows: usize) -> usize {
        rows.min((self.common.held / self.drawn_row()).max(1))
    }

    /// Bytes of a workspace for partials of `rows` rows.
    pub(super) fn partial_workspace(&self, rows: usize, spec: &PartialSpec) -> Result<usize> {
        Ok(self.partial_places(self.at_once(rows, spec), spec)?.total)
    }

    /// [`LoadedShard::workspace`](crate::backend::LoadedShard::workspace).
    pub(super) fn workspace_bytes(&self, rows: usize, ask: Ask) -> Result<usize> {
        if rows == 0 || self.ids() == 0 {
            return Ok(0);
        }
        let places = match ask {
            Ask::Logits { .. } => self.places(rows, 0)?,
            // A step that may hold the rows may draw from them in the matmul instead.
            Ask::Hold { raw } => {
                let held = self.places(rows, if raw { 2 } else { 1 })?.total;
                return Ok(held.max(self.drawn_places(rows)?.total));
            }
            Ask::Drawn => {
                self.product().plan(rows)?;
                self.drawn_places(self.drawn_at_once(rows))?
            }
            Ask::Partials(spec) => {
                // Too many rows are refused, however few are held at once.
                self.product().plan(rows)?;
                let partials = self.partial_workspace(rows, &spec)?;
                // The logits of targets are made for all rows at once.
                let before = if spec.targets > 0 { self.places(rows, 0)?.total } else { 0 };
                return Ok(partials.max(before));
            }
        };
        Ok(places.total)
    }

    /// [`LoadedShard::prepare`](crate::backend::LoadedShard::prepare).
    pub(super) fn make_room(&mut self, rows: usize, ask: Ask) -> Result<()> {
        let workspace = self.workspace_bytes(rows, ask)?;
        if workspace == 0 {
            return Ok(());
        }
        self.forget();
        let stream = self.begin(&On::default(), true)?;
        self.synchronize(stream)?;
        let (ids, hidden) = (self.ids(), self.weights.info.hidden_size * self.weights.hidden.size());
        let at_once = match ask {
            Ask::Partials(spec) if spec.targets == 0 => self.at_once(rows, &spec),
            Ask::Drawn => self.drawn_at_once(rows),
            _ => rows,
        };
        let (staged, device) = (self.common.staged, self.common.device.clone());
        let on_device = |bytes| device.alloc(bytes);
        let pinned = |bytes| device.staging(bytes);
        let rooms = &mut self.rooms;
        rooms.workspace.at_least(workspace, on_device)?;
        let pitch = hidden.next_multiple_of(16);
        rooms.inputs.at_least(product_of(&[at_once, pitch])?, on_device)?;
        rooms.sent.at_least((staged / pitch).clamp(1, at_once) * pitch, pinned)?;
        let adjusted = 4 * product_of(&[at_once, ids.div_ceil(32) + ADJUSTED_WORDS])?;
        rooms.adjustments.at_least(adjusted, on_device)?;
        rooms.packed.clear();
        rooms.packed.reserve(adjusted / 4);
        rooms.sent_adjustments.at_least(adjusted, pinned)?;
        match ask {
            Ask::Logits { dtype } => {
                let first = (4 * rows).next_multiple_of(256);
                let pitch = (ids * dtype.size()).next_multiple_of(16);
                let total = sum_of(&[first, product_of(&[rows, pitch])?])?;
                rooms.outputs.at_least(total, on_device)?;
                rooms.received.at_least(total.min(staged.max(first)), pinned)?;
            }
            Ask::Drawn => {
                let answer = product_of(&[at_once, size_of::<Candidate>()])?;
                rooms.outputs.at_least(answer, on_device)?;
                rooms.received.at_least(answer, pinned)?;
                let asked = product_of(&[rows, size_of::<SamplingRow>()])?;
                self.held.pass_params.clear();
                self.held.pass_params.reserve(asked);
                rooms.asked.at_least(asked, on_device)?;
                rooms.sent_asked.at_least(asked, pinned)?;
            }
            Ask::Partials(spec) => {
                let logits = product_of(&[rows, spec.targets, size_of::<f32>()])?;
                let bytes = product_of(&[at_once, spec.stride(ids)])?.max(logits);
                rooms.outputs.at_least(bytes, on_device)?;
                rooms.received.at_least(bytes, pinned)?;
                let asked = product_of(&[rows, spec.targets, size_of::<Candidate>()])?;
                rooms.asked.at_least(asked, on_device)?;
                rooms.sent_asked.at_least(asked, pinned)?;
            }
            Ask::Hold { .. } => {
                // For as many candidates as a warp collects, and some targets.
                let spec = PartialSpec { k: BEST, sum: true, targets: TARGETS };
                let parts = partials::tile_bytes(&spec, rows, ids, partials::part_ids(ids))?;
                rooms.parts.at_least(parts, on_device)?;
                let answer = product_of(&[at_once, spec.stride(ids).max(8 * BINS)])?;
                rooms.outputs.at_least(answer, on_device)?;
                rooms.received.at_least(answer, pinned)?;
                // What a draw asks of a row is less.
                let asked = product_of(&[at_once, TARGETS, size_of::<Candidate>()])?;
                self.held.pass_params.clear();
                self.held.pass_params.reserve(asked);
                rooms.asked.at_least(asked, on_device)?;
                rooms.sent_asked.at_least(asked, pinned)?;
            }
        }
        Ok(())
    }
}
