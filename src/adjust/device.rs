//! Adjustments in device memory: what every rank knows of them before a step.

use crate::error::{Error, Result};
use crate::params::AdjustmentPlaces;
use std::fmt;

/// Which adjustments some row of the group has in device memory, and the most entries of a row. The same on
/// every rank, so that messages have one shape whatever the rows have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceAdjustments {
    /// Some row has a mask.
    pub allowed: bool,
    /// The most logit biases of a row; 0: no row has any. A row with more is bad input.
    pub logit_bias: u32,
    /// The most ids with counts of a row with penalties; 0: no row has penalties.
    pub counts: u32,
}

impl fmt::Display for DeviceAdjustments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DeviceAdjustments { allowed, logit_bias, counts } = self;
        let masks = if *allowed { "masks" } else { "no masks" };
        write!(f, "{masks}, up to {logit_bias} logit biases and {counts} counts of a row")
    }
}

impl DeviceAdjustments {
    /// Whether no row has any.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn places(&self) -> AdjustmentPlaces {
        let DeviceAdjustments { allowed, logit_bias, counts } = *self;
        AdjustmentPlaces { masks: u32::from(allowed), logit_bias, counts, reserved: 0 }
    }

    /// Words of a row's mask in a message for `ids` ids.
    pub(crate) fn mask_words(&self, ids: usize) -> usize {
        if self.allowed { 2 * ids.div_ceil(64) } else { 0 }
    }

    /// Bytes of a row's message to a shard of `ids` ids: see `AdjustmentPlaces` of `kernels/params.h`.
    pub(crate) fn message_bytes(&self, ids: usize) -> usize {
        let counts = if self.counts > 0 { 16 + 8 * self.counts as usize } else { 0 };
        if ids == 0 { 0 } else { 4 * self.mask_words(ids) + 8 * self.logit_bias as usize + counts }
    }

    /// Bytes of the unpacked entries of `rows` rows: see `PlacedAdjustments::carve` of the backend.
    ///
    /// # Errors
    /// `Shape` for more entries than kernels count.
    pub(crate) fn placed_bytes(&self, rows: usize) -> Result<usize> {
        let each = self.logit_bias.max(self.counts) as usize;
        if rows.checked_mul(each).is_none_or(|n| u32::try_from(n).is_err()) {
            let wanted = "fewer than 2^32 entries of all rows of the group";
            let got = format!("{rows} rows of up to {each}");
            return Err(Error::shape("adjustments in device memory", wanted, got, "state a smaller bound"));
        }
        let entries = |each: u32| if each > 0 { rows + 1 + 2 * rows * each as usize } else { 0 };
        let floats = if self.counts > 0 { 3 * rows } else { 0 };
        Ok(4 * (entries(self.logit_bias) + entries(self.counts) + floats))
    }
}
