//! A digest of what the tensor-parallel ranks of a replica must share: hidden rows and what belongs to them.
//!
//! Each of these ranks computes its shard's part of the same rows. Were the rows not the same, the answers
//! would be made of parts that do not belong together, and nothing else would show it. Groups without tensor
//! parallelism need no digest.

use crate::adjust::Adjustments;
use crate::digest::Digest;
use crate::result::RowInputs;
use crate::rows::HiddenRows;

/// The digest of a rank's rows and inputs, however they lie in memory. Sampling parameters are not in it: all
/// members see and compare these themselves.
pub(super) fn digest(hidden: &HiddenRows<'_>, inputs: &RowInputs<'_>) -> u64 {
    let mut digest = Digest::new();
    (0..hidden.len()).for_each(|row| digest.bytes(hidden.row(row)));
    // A rank without rows may pass empty inputs or none.
    let targets = inputs.targets.unwrap_or_default();
    digest.bytes(bytemuck::cast_slice(targets));
    // Adjustments that have none of the three kinds count as none.
    if let Some(adjustments) = &inputs.adjustments
        && !hidden.is_empty()
        && (adjustments.allowed.is_some()
            || adjustments.logit_bias.is_some()
            || adjustments.penalties.is_some())
    {
        add_adjustments(&mut digest, adjustments);
    }
    digest.finish()
}

fn add_adjustments(digest: &mut Digest, adjustments: &Adjustments<'_>) {
    let Adjustments { allowed, logit_bias, penalties } = adjustments;
    let floats = |digest: &mut Digest, values: &[f32]| digest.bytes(bytemuck::cast_slice(values));
    let offsets =
        |digest: &mut Digest, offsets: &[usize]| offsets.iter().for_each(|&n| digest.word(n as u64));
    digest.word(u64::from(allowed.is_some()));
    digest.bytes(bytemuck::cast_slice(allowed.unwrap_or_default()));
    digest.word(u64::from(logit_bias.is_some()));
    if let Some(logit_bias) = logit_bias {
        offsets(digest, logit_bias.offsets);
        digest.bytes(bytemuck::cast_slice(logit_bias.ids));
        floats(digest, logit_bias.values);
    }
    digest.word(u64::from(penalties.is_some()));
    if let Some(penalties) = penalties {
        floats(digest, penalties.repetition);
        floats(digest, penalties.frequency);
        floats(digest, penalties.presence);
        offsets(digest, penalties.counts.offsets);
        digest.bytes(bytemuck::cast_slice(penalties.counts.ids));
        digest.bytes(bytemuck::cast_slice(penalties.counts.counts));
        penalties.counts.in_prompt.iter().for_each(|&prompt| digest.word(u64::from(prompt)));
    }
}
