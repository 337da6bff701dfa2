//! Bytes between the ranks of a head group. Two operations carry everything: [`Exchange::all_gather_v`] and
//! [`Exchange::all_to_all_v`]. A transport knows ranks, bytes and deadlines; it knows nothing of logits.
//!
//! * [`local`]: ranks are threads of one process.
//! * [`columns`]: puts gathered logits in row order; the only place that knows that layout.

pub mod columns;
pub mod local;

use crate::error::{Disagreement, Error};
use std::fmt;
use std::time::{Duration, Instant};

/// What a collective carries; named in every error of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// The agreement of all ranks when a head is created or rebuilt.
    Create,
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
    /// Where the owners cut the logits of their rows.
    Cuts,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Create => "creation of the head",
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
        })
    }
}

/// One collective call: which it is, and until when its peers are waited for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    /// Tells heads that share a transport apart.
    pub head: u32,
    pub epoch: u32,
    pub step: u64,
    pub operation: Operation,
    /// Digest of what all members must have in common in this step: mode, request, counts, settings.
    pub terms: u64,
    /// When the call began and how long it may take.
    pub began: Instant,
    pub timeout: Duration,
}

impl Call {
    /// Time that is left before the deadline.
    pub fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.began.elapsed())
    }

    /// True when `other` is the same call as seen by another rank.
    pub fn same_as(&self, other: &Call) -> bool {
        (self.head, self.epoch, self.step, self.operation, self.terms)
            == (other.head, other.epoch, other.step, other.operation, other.terms)
    }

    /// What a member in `self` is doing, as told to one in `other`.
    pub fn told_to(&self, other: &Call) -> String {
        if self.head != other.head {
            let id = self.head;
            return format!("the {} of step {} of another head (id {id:#010x})", self.operation, self.step);
        }
        if (self.epoch, self.step, self.operation) == (other.epoch, other.step, other.operation) {
            return format!("the {} with another mode, request or counts", self.operation);
        }
        format!("the {} of step {} (epoch {})", self.operation, self.step, self.epoch)
    }
}

/// How a collective can end other than well. The group is then in an unknown state until [`Exchange::reset`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// These members did not come before the deadline.
    Timeout { missing: Vec<usize> },
    /// These members are gone for good.
    Lost { members: Vec<usize> },
    /// A member gave up its step, or found a fault of its own, and said why.
    Abandoned { member: usize, reason: String },
    /// Members sent another number of bytes than was wanted: `(member, wanted, got)`. Every receive buffer holds the
    /// first `min(wanted, got)` bytes of what its peer sent.
    Length { peers: Vec<(usize, usize, usize)> },
    /// A member is in another call.
    OtherCall { member: usize, theirs: String },
    /// The group has failed before, in another call than the one that reports it.
    Earlier { call: Box<Call>, fault: Box<Fault> },
    /// The transport broke.
    Broken { problem: String, fix: String },
}

impl Fault {
    /// The error that a rank reports for this fault in `call`. Members become the group's global `ranks`.
    pub fn into_error(self, call: &Call, ranks: &[usize]) -> Error {
        let rank = |member: usize| ranks.get(member).copied().unwrap_or(member);
        let all = |members: Vec<usize>| members.into_iter().map(rank).collect();
        let operation = call.operation.to_string();
        let mismatch = |field: &str, said: Vec<(Vec<usize>, String)>| Error::StepMismatch {
            step: call.step,
            disagreements: vec![Disagreement { field: field.into(), said }],
        };
        match self {
            Fault::Timeout { missing } => {
                Error::Timeout { step: call.step, operation, after: call.timeout, missing: all(missing) }
            }
            Fault::Lost { members } => Error::RankLost { step: call.step, operation, ranks: all(members) },
            Fault::Abandoned { member, reason } => mismatch("abandoned", vec![(vec![rank(member)], reason)]),
            Fault::Length { peers } => {
                let said = |(member, wanted, got)| {
                    (
                        vec![rank(member)],
                        format!("{got} bytes where {wanted} were expected in the {operation}"),
                    )
                };
                mismatch("counts", peers.into_iter().map(said).collect())
            }
            Fault::OtherCall { member, theirs } => {
                let what = format!("{theirs} where the {operation} of step {} was expected", call.step);
                mismatch("order", vec![(vec![rank(member)], what)])
            }
            Fault::Earlier { call, fault } => fault.into_error(&call, ranks),
            Fault::Broken { problem, fix } => Error::Exchange { operation, problem, fix },
        }
    }
}

/// A transport between the members `0..size` of one head group.
///
/// Every member makes the same calls in the same order, one at a time: heads that share an endpoint are stepped one after
/// the other. A call returns by its deadline, whatever the peers do. Buffers are host memory; a transport of device memory extends this trait together with the backend that needs it.
pub trait Exchange: Send + Sync {
    /// `local`, `mpi`, ...
    fn name(&self) -> &'static str;

    /// Number of members.
    fn size(&self) -> usize;

    /// The caller's member number.
    fn me(&self) -> usize;

    /// Every member of `members` (ascending, the caller among them) sends `send` to all of them; `recv[i]` is what
    /// `members[i]` sent, the caller's own included. Sizes may differ by member; 0 is legal.
    ///
    /// # Errors
    /// A [`Fault`]; see there what the buffers then hold.
    fn all_gather_v(
        &self,
        call: &Call,
        members: &[usize],
        send: &[u8],
        recv: &mut [&mut [u8]],
    ) -> Result<(), Fault>;

    /// Member m is sent `send[m]`; `recv[m]` is what m sent, the caller's own included. Both have one entry per member.
    ///
    /// # Errors
    /// A [`Fault`]; see there what the buffers then hold.
    fn all_to_all_v(&self, call: &Call, send: &[&[u8]], recv: &mut [&mut [u8]]) -> Result<(), Fault>;

    /// Tells the peers, as far as the transport can, that the caller will not finish `call`'s step. Never blocks.
    fn abandon(&self, call: &Call, reason: &str);

    /// Brings a group back after a fault: returns when all members have called it, with everything undelivered dropped.
    ///
    /// # Errors
    /// `Timeout` naming the members that did not come, `Lost` naming those that cannot.
    fn reset(&self, call: &Call) -> Result<(), Fault>;
}
