//! Faults: why a collective failed, and which members caused it.

use super::Call;
use crate::error::{ABORTED, Disagreement, Error};

/// Why a collective failed. The group is then in an unknown state until
/// [`Exchange::reset`](crate::exchange::Exchange::reset).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Fault {
    /// These members did not come before the deadline.
    Timeout { missing: Vec<usize> },
    /// These members are gone for good.
    Lost { members: Vec<usize> },
    /// A member gave up its step, or found a fault of its own, and said why.
    Aborted { member: usize, reason: String },
    /// Members sent another number of bytes than was wanted: `(member, wanted, got)`. Every receive buffer
    /// holds the first `min(wanted, got)` bytes of what its peer sent.
    Length { peers: Vec<(usize, usize, usize)> },
    /// A member is in another call.
    OtherCall { member: usize, theirs: String },
    /// The group has failed before, in another call than the one that reports it.
    Earlier { call: Box<Call>, fault: Box<Fault> },
    /// The transport broke.
    Broken { problem: String, fix: String },
}

impl Fault {
    /// The error for a fault outside of any collective, in `operation`.
    pub fn without_call(self, operation: &str) -> Error {
        let (problem, fix) = match self {
            Fault::Broken { problem, fix } => (problem, fix),
            other => (format!("{other:?}"), "make a new exchange and new heads on every rank".into()),
        };
        Error::Exchange { operation: operation.into(), problem, fix }
    }

    /// The error that a rank reports for this fault in `call`. Members become the group's global `ranks`.
    pub fn into_error(self, call: &Call, ranks: &[usize]) -> Error {
        let rank = |member: usize| ranks.get(member).copied().unwrap_or(member);
        let all = |members: Vec<usize>| members.into_iter().map(rank).collect();
        let operation = call.operation.to_string();
        let mismatch = |field: &str, said: Vec<(Vec<usize>, String)>| Error::StepMismatch {
            step: call.step,
            disagreements: vec![Disagreement { field: field.into(), said }],
            evidence: Box::default(),
        };
        match self {
            Fault::Timeout { missing } => {
                let (after, evidence) = (call.timeout(), Box::default());
                Error::Timeout { step: call.step, operation, after, missing: all(missing), evidence }
            }
            Fault::Lost { members } => {
                let evidence = Box::default();
                Error::RankLost { step: call.step, operation, ranks: all(members), evidence }
            }
            Fault::Aborted { member, reason } => mismatch(ABORTED, vec![(vec![rank(member)], reason)]),
            Fault::Length { peers } => {
                let said = |(member, wanted, got)| {
                    (
                        vec![rank(member)],
                        format!(
                            "{got} bytes where {wanted} were expected in the {operation}: \
                             other counts, another mode or another request"
                        ),
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
