//! Adjustments on their way to the shards: each is sent its slice, and nothing else.

use super::Step;
use crate::adjust::{Adjustments, ShardAdjustments};
use crate::error::{Error, Result};
use crate::exchange::Operation;
use crate::result::RowInputs;
use std::ops::Range;
use std::time::Instant;

impl Step<'_> {
    /// The adjustments must be announced and fit the rows; nothing of them has been sent yet.
    pub(super) fn check_adjustments(&self, inputs: &RowInputs<'_>) -> Result<()> {
        let Some(adjustments) = &inputs.adjustments else { return Ok(()) };
        if !self.ticket.header.adjusted {
            return Err(Error::request(
                "adjustments",
                "none, as announced in step()",
                "some",
                "announce them on every rank: begin the step with step_adjusted()",
            ));
        }
        adjustments.check(self.ticket.header.rows as usize, self.head.config.vocab_size)
    }

    /// This shard's slice for the rows `parts[replica]` of every replica, in group order; `None` in a step without adjustments.
    /// Two rounds where rows come from several replicas: the sizes of the slices, 8 bytes each, then the slices.
    pub(super) fn gather_adjustments(
        &mut self,
        mine: Option<&Adjustments<'_>>,
        parts: &[Range<usize>],
    ) -> Result<Option<ShardAdjustments>> {
        if !self.adjusted {
            return Ok(None);
        }
        let began = Instant::now();
        let (group, vocab_size) = (self.head.group.clone(), self.head.config.vocab_size);
        let own_rows = parts[group.replica_of(group.me())].clone();
        let slice = |member: usize| match mine {
            Some(adjustments) => {
                adjustments.encode(own_rows.clone(), group.shard(vocab_size, member), vocab_size)
            }
            None => Vec::new(),
        };
        let mut slices = ShardAdjustments::new(self.head.shard.vocab());
        if group.replicas() == 1 {
            slices.push_encoded(&slice(group.me()), own_rows.len())?;
        } else {
            // Ranks of one tensor-parallel index speak for their replicas; to the others there is nothing to say.
            let peers = group.row_members();
            let send: Vec<Vec<u8>> = (0..group.size())
                .map(|member| if peers.contains(&member) { slice(member) } else { Vec::new() })
                .collect();
            let (mut sizes_in, mut recv) = (Vec::new(), Vec::new());
            let word = |member: usize| if peers.contains(&member) { 8 } else { 0 };
            let sizes_out: Vec<[u8; 8]> = send.iter().map(|s| (s.len() as u64).to_le_bytes()).collect();
            let messages: Vec<&[u8]> =
                sizes_out.iter().enumerate().map(|(member, size)| &size[..word(member)]).collect();
            let words: Vec<usize> = (0..group.size()).map(word).collect();
            let sizes: Vec<usize> = self
                .all_to_all(Operation::AdjustmentSizes, &messages, &words, &mut sizes_in)?
                .into_iter()
                .map(|size| size.try_into().map_or(0, |bytes| u64::from_le_bytes(bytes) as usize))
                .collect();
            let messages: Vec<&[u8]> = send.iter().map(Vec::as_slice).collect();
            let received = self.all_to_all(Operation::Adjustments, &messages, &sizes, &mut recv)?;
            for (replica, &member) in peers.iter().enumerate() {
                slices.push_encoded(received[member], parts[replica].len())?;
            }
        }
        self.stats.exchange += began.elapsed();
        Ok(Some(slices))
    }
}
