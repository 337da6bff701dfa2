//! How many ranks share a head: resolves `lmhead_tp_size`, `auto` and `-1` included, and says by which rule.

use super::{HeadConfig, LmheadTpSize, Quantization};
use crate::cost::StepShape;
use crate::error::Result;
use crate::layout::ParallelLayout;
use serde::Serialize;
use std::fmt;

/// Why a group has its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupSizeRule {
    /// `lmhead_tp_size` is a number.
    Asked,
    /// `-1`: the tensor-parallel size.
    TensorParallel,
    /// `auto` where tp is above 1: the tensor-parallel size, whatever the cost model.
    AutoTensorParallel,
    /// `auto` with a cost model and without tensor parallelism: the size that it finds fastest.
    AutoFastest,
    /// `auto` with neither: every rank has the whole head.
    AutoReplicated,
}

impl fmt::Display for GroupSizeRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GroupSizeRule::Asked => "as asked",
            GroupSizeRule::TensorParallel => "-1: the tensor-parallel size",
            GroupSizeRule::AutoTensorParallel => {
                "auto: the tensor-parallel size, since that is above 1; the cost model is not asked"
            }
            GroupSizeRule::AutoFastest => "auto: the fastest of the legal sizes by the cost model",
            GroupSizeRule::AutoReplicated => {
                "auto: a whole head on every rank, since tp is 1 and no cost_model is configured"
            }
        })
    }
}

impl HeadConfig {
    /// The group size for a layout: `lmhead_tp_size` with `auto` and `-1` resolved.
    ///
    /// # Errors
    /// `Config` where the size does not fit the layout, naming the nearest that would.
    pub fn group_size(&self, layout: &ParallelLayout) -> Result<usize> {
        self.group_size_and_rule(layout).map(|(size, _)| size)
    }

    /// [`HeadConfig::group_size`], with the rule that gave it.
    ///
    /// # Errors
    /// As `HeadConfig::group_size`.
    pub fn group_size_and_rule(&self, layout: &ParallelLayout) -> Result<(usize, GroupSizeRule)> {
        let (size, rule) = match (self.lmhead_tp_size, &self.cost_model) {
            (LmheadTpSize::Ranks(n), _) => (n, GroupSizeRule::Asked),
            (LmheadTpSize::TensorParallel, _) => (layout.tp, GroupSizeRule::TensorParallel),
            (LmheadTpSize::Auto, _) if layout.tp > 1 => (layout.tp, GroupSizeRule::AutoTensorParallel),
            (LmheadTpSize::Auto, Some(model)) => {
                layout.world_size()?;
                let sizes = layout.group_sizes();
                let fastest = model.best(&self.step_shape(layout.tp), &sizes).unwrap_or(1);
                (fastest, GroupSizeRule::AutoFastest)
            }
            (LmheadTpSize::Auto, None) => (1, GroupSizeRule::AutoReplicated),
        };
        layout.check_group_size(size)?;
        Ok((size, rule))
    }

    /// The input of the cost model. Types that the configuration does not give are taken to have 16 bits, and
    /// float weights to have the type of the hidden states.
    pub fn step_shape(&self, tp: usize) -> StepShape {
        let hidden_bytes = self.hidden_dtype.map_or(2, |dtype| dtype.size());
        StepShape {
            tp,
            weight_bytes: if self.quantization == Quantization::None { hidden_bytes } else { 1 },
            hidden_bytes,
            ..StepShape::sixteen_bit(self.vocab_size, self.hidden_size)
        }
    }
}
