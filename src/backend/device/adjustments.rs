//! The kernels' parameters for adjustments.

use crate::adjust::PackedAt;
use crate::backend::params::LogitAdjustments;

/// No adjustments of any row.
pub const NO_ADJUSTMENTS: LogitAdjustments = LogitAdjustments {
    logit_bias_offsets: std::ptr::null(),
    logit_bias_ids: std::ptr::null(),
    logit_bias_values: std::ptr::null(),
    count_offsets: std::ptr::null(),
    count_ids: std::ptr::null(),
    counts: std::ptr::null(),
    repetition: std::ptr::null(),
    frequency: std::ptr::null(),
    presence: std::ptr::null(),
    allowed: std::ptr::null(),
    allowed_pitch: 0,
    temperatures: std::ptr::null(),
};

/// The kernels' parameters for packed adjustments at that address.
pub(super) fn packed_at(address: u64, at: &PackedAt, row_words: usize) -> LogitAdjustments {
    let words = |at: usize| (address as usize + 4 * at) as *const u32;
    let mut told = NO_ADJUSTMENTS;
    if let Some([offsets, ids, values]) = at.logit_bias {
        (told.logit_bias_offsets, told.logit_bias_ids) = (words(offsets), words(ids));
        told.logit_bias_values = words(values).cast();
    }
    if let Some([offsets, ids, counts, repetition, frequency, presence]) = at.counts {
        (told.count_offsets, told.count_ids, told.counts) = (words(offsets), words(ids), words(counts));
        (told.repetition, told.frequency) = (words(repetition).cast(), words(frequency).cast());
        told.presence = words(presence).cast();
    }
    if let Some(allowed) = at.allowed {
        (told.allowed, told.allowed_pitch) = (words(allowed), row_words as u64);
    }
    told
}
