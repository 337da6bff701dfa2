//! The error type of this crate. Every variant says what was wanted, what came and what to do, and has a
//! status code of its own ([`Error::code`]).

use crate::call::{Operation, Place};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The result of every fallible call of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong. Each variant's text is complete in itself: wanted, got, and what to do.
///
/// Fields: `key`, `what`, `path`, `tensor` name the culprit; `wanted`, `got`, `fix` are words; `ranks` and
/// `missing` are global rank numbers ([`crate::layout::HeadGroup::ranks`]); `step` counts from 0 since the
/// head was created or rebuilt.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration key, a command-line option or a combination of them is not valid.
    #[error("{key}: wanted {wanted}, got {got}; {fix}")]
    Config { key: String, wanted: String, got: String, fix: String },
    /// A length, a shape or a count does not fit.
    #[error("{what}: wanted {wanted}, got {got}; {fix}")]
    Shape { what: String, wanted: String, got: String, fix: String },
    /// A data type does not fit.
    #[error("{what}: wanted {wanted}, got {got}; {fix}")]
    Dtype { what: String, wanted: String, got: String, fix: String },
    /// A row index points outside of the rows that were given.
    #[error("{what}: index {index} at position {position} is not a row: wanted {}, got {index}; {}", limit_text(*.limit), index_fix(*.limit))]
    Index { what: String, position: usize, index: i64, limit: usize },
    /// A request asks for something that does not exist for this head.
    #[error("{what}: wanted {wanted}, got {got}; {fix}")]
    Request { what: String, wanted: String, got: String, fix: String },
    /// A file or folder cannot be read or written.
    #[error("{}: {problem}; {fix}", path.display())]
    File { path: PathBuf, problem: String, fix: String },
    /// A tensor of a file is missing or is not what the head needs.
    #[error("{}: tensor {tensor}: wanted {wanted}, got {got}; {fix}", path.display())]
    Tensor { path: PathBuf, tensor: String, wanted: String, got: String, fix: String },
    /// The ranks of a group did not make the same call. All of them get this error.
    #[error("step {step}: {}", mismatch_text(.disagreements, .evidence))]
    StepMismatch { step: u64, disagreements: Vec<Disagreement>, evidence: Box<Evidence> },
    /// Some ranks did not join the call before the deadline.
    #[error(
        "step {step}: {operation}: ranks {missing:?} did not come within {after:?}{}; look at those ranks \
         (idle, crashed, slow or in another call; {} sets the deadline), then {}",
        last_seen(.missing, .evidence), deadline_key(.operation), after_a_fault(.evidence)
    )]
    Timeout { step: u64, operation: String, after: Duration, missing: Vec<usize>, evidence: Box<Evidence> },
    /// A rank left the group for good: its endpoint of the exchange was dropped, as when its thread ends or
    /// panics.
    #[error(
        "step {step}: {operation}: ranks {ranks:?} have left the group; make new heads on every rank, and a \
         new exchange where a rank's thread or process has ended"
    )]
    RankLost { step: u64, operation: String, ranks: Vec<usize>, evidence: Box<Evidence> },
    /// An earlier fault left the group in an unknown state; the head refuses to go on.
    #[error(
        "the head refuses further steps after an earlier fault ({cause}); call rebuild() on every rank of the group"
    )]
    Poisoned { cause: String },
    /// The transport itself failed.
    #[error("{operation}: {problem}; {fix}")]
    Exchange { operation: String, problem: String, fix: String },
    /// A device or its driver failed.
    #[error("{what}: {problem}; {fix}")]
    Device { what: String, problem: String, fix: String },
    /// This build or this machine cannot do what was asked.
    #[error("{what}: wanted {wanted}, got {got}; {fix}")]
    Unsupported { what: String, wanted: String, got: String, fix: String },
}

impl Error {
    pub(crate) fn config(
        key: impl Into<String>,
        wanted: impl Into<String>,
        got: impl fmt::Display,
        fix: impl Into<String>,
    ) -> Self {
        Error::Config { key: key.into(), wanted: wanted.into(), got: got.to_string(), fix: fix.into() }
    }

    pub(crate) fn shape(
        what: impl Into<String>,
        wanted: impl fmt::Display,
        got: impl fmt::Display,
        fix: impl Into<String>,
    ) -> Self {
        Error::Shape { what: what.into(), wanted: wanted.to_string(), got: got.to_string(), fix: fix.into() }
    }

    pub(crate) fn dtype(
        what: impl Into<String>,
        wanted: impl fmt::Display,
        got: impl fmt::Display,
        fix: impl Into<String>,
    ) -> Self {
        Error::Dtype { what: what.into(), wanted: wanted.to_string(), got: got.to_string(), fix: fix.into() }
    }

    pub(crate) fn request(
        what: impl Into<String>,
        wanted: impl fmt::Display,
        got: impl fmt::Display,
        fix: impl Into<String>,
    ) -> Self {
        Error::Request {
            what: what.into(),
            wanted: wanted.to_string(),
            got: got.to_string(),
            fix: fix.into(),
        }
    }

    pub(crate) fn file(path: impl AsRef<Path>, problem: impl fmt::Display, fix: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_path_buf(), problem: problem.to_string(), fix: fix.into() }
    }

    pub(crate) fn tensor(
        path: impl AsRef<Path>,
        tensor: impl Into<String>,
        wanted: impl fmt::Display,
        got: impl fmt::Display,
        fix: impl Into<String>,
    ) -> Self {
        Error::Tensor {
            path: path.as_ref().to_path_buf(),
            tensor: tensor.into(),
            wanted: wanted.to_string(),
            got: got.to_string(),
            fix: fix.into(),
        }
    }

    /// Makes an [`Error::Unsupported`].
    pub fn unsupported(
        what: impl Into<String>,
        wanted: impl fmt::Display,
        got: impl fmt::Display,
        fix: impl Into<String>,
    ) -> Self {
        Error::Unsupported {
            what: what.into(),
            wanted: wanted.to_string(),
            got: got.to_string(),
            fix: fix.into(),
        }
    }

    pub(crate) fn mismatch(step: u64, disagreements: Vec<Disagreement>) -> Self {
        Error::StepMismatch { step, disagreements, evidence: Box::default() }
    }

    /// What this rank knew when the group failed; `None` for errors that are not the group's.
    pub fn evidence(&self) -> Option<&Evidence> {
        match self {
            Error::StepMismatch { evidence, .. }
            | Error::Timeout { evidence, .. }
            | Error::RankLost { evidence, .. } => Some(evidence),
            _ => None,
        }
    }

    /// Global ranks that the error names, ascending: those that did not come, are gone, gave up or refused.
    /// For a disagreement: the ranks outside its largest group, or all ranks if no group is the largest.
    pub fn ranks(&self) -> Vec<usize> {
        let mut ranks = match self {
            Error::Timeout { missing: ranks, .. } | Error::RankLost { ranks, .. } => ranks.clone(),
            Error::StepMismatch { disagreements, .. } => disagreements.iter().flat_map(at_odds).collect(),
            _ => Vec::new(),
        };
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }

    /// Adds this rank's evidence to an error of the group that has none yet.
    pub(crate) fn with_evidence(mut self, known: impl FnOnce() -> Evidence) -> Self {
        if let Error::StepMismatch { evidence, .. }
        | Error::Timeout { evidence, .. }
        | Error::RankLost { evidence, .. } = &mut self
            && evidence.last_seen.is_empty()
        {
            **evidence = known();
        }
        self
    }

    /// True where a peer gave up and said why: all ranks know already.
    pub(crate) fn was_told(&self) -> bool {
        let Error::StepMismatch { disagreements, .. } = self else { return false };
        disagreements.iter().all(|d| d.field == ABORTED)
    }

    /// A status code for interfaces without enums. Never 0; does not change between versions.
    pub fn code(&self) -> i32 {
        match self {
            Error::Config { .. } => 1,
            Error::Shape { .. } => 2,
            Error::Dtype { .. } => 3,
            Error::Index { .. } => 4,
            Error::Request { .. } => 5,
            Error::File { .. } => 6,
            Error::Tensor { .. } => 7,
            Error::StepMismatch { .. } => 8,
            Error::Timeout { .. } => 9,
            Error::RankLost { .. } => 10,
            Error::Poisoned { .. } => 11,
            Error::Exchange { .. } => 12,
            Error::Unsupported { .. } => 13,
            Error::Device { .. } => 14,
        }
    }

    /// What went wrong, without what to do: a rank sends this to its peers, whose errors add the advice.
    pub(crate) fn cause(&self) -> String {
        match self {
            Error::StepMismatch { disagreements, .. } => Listed(disagreements).to_string(),
            Error::Timeout { step, operation, after, missing, evidence } => {
                let seen = last_seen(missing, evidence);
                format!("step {step}: {operation}: ranks {missing:?} did not come within {after:?}{seen}")
            }
            Error::RankLost { step, operation, ranks, .. } => {
                format!("step {step}: {operation}: ranks {ranks:?} have left the group")
            }
            other => other.to_string(),
        }
    }

    /// True where the caller's own input is at fault, false where a rank or the transport failed.
    pub fn is_bad_input(&self) -> bool {
        !matches!(
            self,
            Error::StepMismatch { .. }
                | Error::Timeout { .. }
                | Error::RankLost { .. }
                | Error::Poisoned { .. }
                | Error::Exchange { .. }
                | Error::Device { .. }
        )
    }
}

/// The field name of a disagreement that stands for a rank which gave up by itself.
pub(crate) const ABORTED: &str = "aborted";

/// What a rank knew when its group failed. Errors are compared without it: two ranks report the same error,
/// whatever each has seen before.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Where each rank of the group was last seen.
    pub last_seen: Vec<LastSeen>,
    /// This rank's last steps, a line each, the latest last: see
    /// [`LmHead::recent_steps`](crate::LmHead::recent_steps).
    pub recent_steps: Vec<String>,
    /// Threads of this rank's rayon pool and ranks of the group, where the pool has fewer threads than that.
    pub small_pool: Option<(usize, usize)>,
    /// The head was still being created, so there is none to rebuild.
    pub no_head: bool,
}

impl PartialEq for Evidence {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.last_seen.iter().try_for_each(|seen| writeln!(f, "{seen}"))?;
        self.recent_steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

/// Where a rank was last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastSeen {
    pub rank: usize,
    /// `None` where the transport knows nothing.
    pub place: Option<Place>,
    /// Name of the place's head, where this process has a head with that id.
    pub head: Option<String>,
    /// Where the rank was after that, in another head, and that head's name.
    pub elsewhere: Option<(Place, Option<String>)>,
}

impl fmt::Display for LastSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(place) = &self.place else { return write!(f, "rank {} was never seen", self.rank) };
        write!(f, "rank {} was last seen {}", self.rank, at(place, self.head.as_deref()))?;
        match &self.elsewhere {
            Some((place, head)) => write!(f, ", and since then {}", at(place, head.as_deref())),
            None => Ok(()),
        }
    }
}

/// A place in words: how long ago, and where.
fn at(place: &Place, head: Option<&str>) -> String {
    let mut text = format!("{:.3} s ago, ", place.age.as_secs_f64());
    if !place.operation.is_creation() {
        text += &format!("in step {} ", place.step);
    }
    text += &match head {
        Some(name) => format!("of head `{name}`"),
        None => format!("of a head of id {:#010x}", place.head),
    };
    text + &format!(" (instance {}, epoch {}): {}", place.instance, place.epoch, place.operation)
}

/// Where the missing ranks were last seen, as text behind the sentence that names them; only the first of
/// many.
fn last_seen(missing: &[usize], evidence: &Evidence) -> String {
    const NAMED: usize = 8;
    let seen = evidence.last_seen.iter().filter(|seen| missing.contains(&seen.rank));
    let mut text: String = seen.take(NAMED).map(|seen| format!("; {seen}")).collect();
    if !text.is_empty() && missing.len() > NAMED {
        text += &format!("; {} more are in the evidence", missing.len() - NAMED);
    }
    if let Some((threads, ranks)) = evidence.small_pool {
        text += &format!(
            "; this rank is a task of a rayon pool of {threads} threads, and the group has {ranks} ranks: \
             ranks in one pool need a thread each"
        );
    }
    text
}

/// One field of the contract on which ranks differ, with what each group of ranks said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disagreement {
    /// The field, as the documentation names it: `request`, `mode`, `counts`, ...
    pub field: String,
    /// `(ranks of the group, what they said)`.
    pub said: Vec<(Vec<usize>, String)>,
}

impl fmt::Display for Disagreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.field)?;
        for (i, (ranks, what)) in self.said.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}ranks {ranks:?} say {what}")?;
        }
        Ok(())
    }
}

/// The ranks of a disagreement that are not with the majority.
fn at_odds(disagreement: &Disagreement) -> Vec<usize> {
    let said = &disagreement.said;
    let most = said.iter().map(|(ranks, _)| ranks.len()).max().unwrap_or(0);
    let majorities = said.iter().filter(|(ranks, _)| ranks.len() == most).count();
    let with_majority = |ranks: &[usize]| said.len() > 1 && majorities == 1 && ranks.len() == most;
    said.iter().filter(|(ranks, _)| !with_majority(ranks)).flat_map(|(ranks, _)| ranks.clone()).collect()
}

/// Displays disagreements joined with "; ".
struct Listed<'a>(&'a [Disagreement]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// The sentence of a `StepMismatch`. Where a rank gave up by itself, it does not blame the others' calls.
fn mismatch_text(disagreements: &[Disagreement], evidence: &Evidence) -> String {
    let (listed, then) = (Listed(disagreements), after_a_fault(evidence));
    if disagreements.iter().all(|d| d.field == ABORTED || d.field == "refused") {
        return format!("the group cannot go on: {listed}; mend that, then {then}");
    }
    format!(
        "the ranks of the group disagree: {listed}; make the same calls with the same arguments on every \
         rank, then {then}"
    )
}

/// What every rank must do about the head. One that was never made cannot be rebuilt.
fn after_a_fault(evidence: &Evidence) -> &'static str {
    if evidence.no_head { "make the head again on every rank" } else { "rebuild the head on every rank" }
}

/// The configuration key of the deadline that was missed.
fn deadline_key(operation: &str) -> &'static str {
    let creation = Operation::ALL.iter().filter(|operation| operation.is_creation());
    let mut names = creation.map(Operation::to_string);
    if names.any(|name| name == operation) { "create_timeout_ms" } else { "timeout_ms" }
}

fn limit_text(limit: usize) -> String {
    if limit == 0 { "no index".into() } else { format!("0 to {}", limit - 1) }
}

fn index_fix(limit: usize) -> String {
    match limit {
        0 => "there are no rows to index: pass an empty selection".into(),
        n => format!("{n} rows were given: index those"),
    }
}
