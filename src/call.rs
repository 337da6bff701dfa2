//! Names a collective of a step, with the deadline for its peers, and says where a rank is.

use std::fmt;
use std::time::{Duration, Instant};

/// What a collective carries; every error of a collective names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// The agreement of all ranks when a head is created or rebuilt.
    Create,
    /// The barrier of all ranks that rebuild a head, before they agree anew.
    Rebuild,
    /// Connecting the devices, after the agreement.
    Connect,
    /// The self-test of the transport, after the agreement: exchanges pieces whose bytes are known.
    SelfTest,
    /// The headers that check a step's contract.
    Contract,
    /// Hidden rows.
    GatherRows,
    /// Logits or candidates.
    ExchangeResults,
    /// How long each shard's slice of the adjustments is.
    AdjustmentSizes,
    /// Each shard's slice of the adjustments.
    Adjustments,
    /// The ids whose logprobs are asked for.
    Targets,
    /// The logits of those ids, from the shards that have them.
    TargetLogits,
    /// How each row is sampled.
    SamplingParams,
    /// Each shard's largest logits.
    LargestLogits,
    /// Each shard's histograms of logits, to the rows' owners.
    Histograms,
    /// The owners' answers to the histograms: where to cut the logits of their rows.
    Cuts,
    /// The sampled tokens, whose logprobs are asked for.
    Tokens,
    /// No operation: the step is done, and the next has not begun. Only in a [`Place`].
    Idle,
}

impl Operation {
    /// All operations, in the order of their codes.
    pub const ALL: [Operation; 17] = [
        Operation::Create,
        Operation::Rebuild,
        Operation::Connect,
        Operation::SelfTest,
        Operation::Contract,
        Operation::GatherRows,
        Operation::ExchangeResults,
        Operation::AdjustmentSizes,
        Operation::Adjustments,
        Operation::Targets,
        Operation::TargetLogits,
        Operation::SamplingParams,
        Operation::LargestLogits,
        Operation::Histograms,
        Operation::Cuts,
        Operation::Tokens,
        Operation::Idle,
    ];

    /// A number for transports that tell peers where a rank is. Ranks of one group run one version of this
    /// library: codes are not stable across versions.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The operation with this code.
    pub fn from_code(code: u8) -> Option<Operation> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// True for the operations that make or rebuild a head.
    pub fn is_creation(self) -> bool {
        matches!(self, Operation::Create | Operation::Rebuild | Operation::Connect | Operation::SelfTest)
    }

    /// True where messages are headers, which show what ranks disagree on.
    pub fn has_headers(self) -> bool {
        matches!(self, Operation::Create | Operation::Contract)
    }

    /// In words, as errors name it.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Create => "creation of the head",
            Operation::Rebuild => "rebuilding of the head",
            Operation::Connect => "connecting of the devices",
            Operation::SelfTest => "self-test of the exchange",
            Operation::Contract => "exchange of step headers",
            Operation::GatherRows => "all_gather of hidden rows",
            Operation::ExchangeResults => "all_to_all of results",
            Operation::AdjustmentSizes => "all_to_all of adjustment sizes",
            Operation::Adjustments => "all_to_all of adjustments",
            Operation::Targets => "all_gather of targets",
            Operation::TargetLogits => "all_gather of target logits",
            Operation::SamplingParams => "all_gather of sampling parameters",
            Operation::LargestLogits => "all_gather of largest logits",
            Operation::Histograms => "all_to_all of histograms",
            Operation::Cuts => "all_to_all of cuts",
            Operation::Tokens => "all_gather of tokens",
            Operation::Idle => "idle after the step",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One collective call: its identity and its deadline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    /// Id of the head: a hash of its name.
    pub head: u32,
    /// The number of the head's channel: tells heads of one name on one transport apart.
    pub instance: u32,
    pub epoch: u32,
    pub step: u64,
    pub operation: Operation,
    /// Digest of what all members must have in common in this step: mode, request, counts, settings.
    pub terms: u64,
    /// When the step (or the creation, or the rebuilding) began.
    pub began: Instant,
    /// When it must have ended: one deadline for all of its operations.
    pub deadline: Instant,
}

impl Call {
    /// The call as the peers of a channel name it: by a head and an instance.
    pub(crate) fn in_channel(&self, (head, instance): (u32, u32)) -> Call {
        Call { head, instance, ..*self }
    }

    /// The time left before the deadline.
    pub fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The time from the step's beginning to its deadline.
    pub fn timeout(&self) -> Duration {
        self.deadline.saturating_duration_since(self.began)
    }

    /// True when `other` is the same call as seen by another rank.
    pub fn same_as(&self, other: &Call) -> bool {
        self.same_operation(other) && self.terms == other.terms
    }

    /// True when `other` is in the same step of the same head.
    pub fn same_step(&self, other: &Call) -> bool {
        (self.head, self.instance, self.epoch, self.step)
            == (other.head, other.instance, other.epoch, other.step)
    }

    /// True when `other` is in a later step of the same head and epoch.
    pub fn is_before(&self, other: &Call) -> bool {
        let head = |call: &Call| (call.head, call.instance, call.epoch);
        head(self) == head(other) && self.step < other.step
    }

    /// True when `other` is in the same operation of the same step, on whatever terms.
    pub fn same_operation(&self, other: &Call) -> bool {
        self.same_step(other) && self.operation == other.operation
    }

    /// What a member in call `self` is doing, in words for a member in `other`.
    pub fn told_to(&self, other: &Call) -> String {
        let (operation, step) = (self.operation, self.step);
        if self.head != other.head {
            return format!("the {operation} of step {step} of another head (id {:#010x})", self.head);
        }
        if self.instance != other.instance {
            let instance = self.instance;
            return format!(
                "the {operation} of step {step} of another head of this name (instance {instance})"
            );
        }
        if self.same_operation(other) {
            return format!("the {operation} with another mode, request, counts or weights version");
        }
        format!("the {operation} of step {step} (epoch {})", self.epoch)
    }

    /// The place of a rank that was in call `self` `age` ago.
    pub fn place(&self, age: Duration) -> Place {
        Place {
            head: self.head,
            instance: self.instance,
            epoch: self.epoch,
            step: self.step,
            operation: self.operation,
            age,
        }
    }
}

/// Where a member was when it was last heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub head: u32,
    pub instance: u32,
    pub epoch: u32,
    pub step: u64,
    pub operation: Operation,
    /// How long ago it was there.
    pub age: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_its_code() {
        for (code, operation) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(operation.code()), code);
            assert_eq!(Operation::from_code(code as u8), Some(operation));
        }
        assert_eq!(Operation::ALL.len(), usize::from(Operation::Idle.code()) + 1, "the last one");
        assert_eq!(Operation::from_code(u8::MAX), None);
    }
}
