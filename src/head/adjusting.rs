//! Adjustments on their way to the shards: each is sent its slice, and nothing else.

use super::LmHead;
use super::buffers::starts_of;
use super::run::{Lists, Run, Small};
use crate::adjust::{Adjustments, ShardAdjustments};
use crate::error::{Error, Result};
use crate::exchange::Operation;
use crate::memory::Span;
use crate::result::RowInputs;
use std::ops::Range;
use std::time::Instant;

/// Memory that lives from step to step.
#[derive(Default)]
pub(super) struct AdjustmentBuffers {
    own: ShardAdjustments,
    entries: Vec<usize>,
    outgoing: Vec<Range<usize>>,
    /// Ids of one row, sorted.
    sorted: Vec<i64>,
}

impl LmHead {
    /// Checks that adjustments were announced and fit the rows, before any of them is sent.
    pub(super) fn check_adjustments(&mut self, inputs: &RowInputs<'_>) -> Result<()> {
        let Some(adjustments) = &inputs.adjustments else { return Ok(()) };
        let header = &self.wire.open.header;
        if !header.adjusted {
            return Err(Error::request(
                "adjustments",
                "none, as announced in step()",
                "some",
                "announce them on every rank: begin the step with step_adjusted()",
            ));
        }
        let sorted = &mut self.scratch.adjusting.sorted;
        adjustments.check_with(header.rows as usize, self.config.vocab_size, sorted)
    }
}

impl Run<'_> {
    /// This shard's slice for the rows `lists.parts[replica]` of every replica, in group order; `None` in a
    /// step without adjustments. Two rounds where rows come from several replicas: the sizes of the slices, 8
    /// bytes each, then the slices.
    pub(super) fn gather_adjustments<'b>(
        &mut self,
        mine: Option<&Adjustments<'_>>,
        lists: &mut Lists,
        small: &mut Small,
        room: &'b mut AdjustmentBuffers,
    ) -> Result<Option<&'b ShardAdjustments>> {
        if !self.wire.open.adjusted {
            return Ok(None);
        }
        let began = Instant::now();
        let (me, vocab_size) = (self.wire.group.me(), self.config.vocab_size);
        let replica = self.wire.group.replica_of(me);
        let part = &lists.parts[replica];
        // Adjustments are numbered by the caller's rows.
        let own_rows = self.first_row + part.start..self.first_row + part.end;
        let AdjustmentBuffers { own, entries, outgoing, .. } = room;
        own.clear(self.wire.shards()[me].clone());
        let Small { send, recv } = small;
        send.clear();
        let mut slice = |shard: &Range<usize>, send: &mut Vec<u8>| {
            if let Some(adjustments) = mine {
                adjustments.encode_into(own_rows.clone(), shard.clone(), vocab_size, send, entries);
            }
        };
        if self.wire.group.replicas() == 1 {
            slice(&self.wire.shards()[me], send);
            own.push_encoded(send, own_rows.len())?;
            self.wire.open.stats.exchange += began.elapsed();
            return Ok(Some(own));
        }
        // A rank sends its replica's adjustments to the ranks of its own tensor-parallel index only.
        let tp = self.wire.group.tp();
        let size = self.wire.group.size();
        let is_peer = |member: usize| member % tp == me % tp;
        let word = |member: usize| if is_peer(member) { 8 } else { 0 };
        // The buffer begins with the sizes.
        send.resize(8 * size, 0);
        outgoing.clear();
        for member in 0..size {
            let start = send.len();
            if is_peer(member) {
                slice(&self.wire.shards()[member], send);
            }
            let bytes = (send.len() - start) as u64;
            send[8 * member..8 * member + 8].copy_from_slice(&bytes.to_le_bytes());
            outgoing.push(start..send.len());
        }
        lists.outgoing.clear();
        lists.outgoing.extend((0..size).map(|member| 8 * member..8 * member + word(member)));
        lists.sizes.clear();
        lists.sizes.extend((0..size).map(word));
        let words = (Span::host(&send[..]), &lists.outgoing[..]);
        self.wire.exchange_small(Operation::AdjustmentSizes, words, (recv, &lists.sizes))?;
        let mut words = recv.as_chunks::<8>().0.iter();
        for (member, size) in lists.sizes.iter_mut().enumerate() {
            let word = if is_peer(member) { words.next() } else { None };
            *size = word.map_or(0, |bytes| u64::from_le_bytes(*bytes) as usize);
        }
        let slices = (Span::host(&send[..]), &outgoing[..]);
        self.wire.exchange_small(Operation::Adjustments, slices, (recv, &lists.sizes))?;
        starts_of(lists.sizes.iter().copied(), &mut lists.starts);
        for (replica, part) in lists.parts.iter().enumerate() {
            let member = replica * tp + me % tp;
            own.push_encoded(&recv[lists.starts[member]..][..lists.sizes[member]], part.len())?;
        }
        self.wire.open.stats.exchange += began.elapsed();
        Ok(Some(own))
    }
}
