//! What an engine's function reports of a call, and which fault that is.

use super::{broken, notice};
use crate::exchange::{Call, Fault};
use std::fmt;

/// How a call ended, or what a member did in it: a number, since it may come from another language. Numbers
/// that are no constant here are refused by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Status(pub i32);

impl Status {
    /// All is well.
    pub const GOOD: Status = Status(0);
    /// The members marked with it did not come before the deadline. Where none is known, none is marked.
    pub const TIMEOUT: Status = Status(1);
    /// The members marked with it are gone for good.
    pub const LOST: Status = Status(2);
    /// The transport failed; the text says how.
    pub const BROKEN: Status = Status(3);
    /// The member marked with it told its peers that it gives up; the text is its notice.
    pub const ABORTED: Status = Status(4);
    /// The members marked with it sent another number of bytes than was wanted: [`PeerStatus::bytes`]. Every
    /// receive piece holds as many bytes as fit it and were sent. The channel stays usable.
    pub const LENGTH: Status = Status(5);
    /// The member marked with it is in another call of this channel; the text says in which. Its bytes are
    /// delivered all the same, and the channel stays usable.
    pub const OTHER_CALL: Status = Status(6);

    /// All of them.
    pub const ALL: [Status; 7] = [
        Status::GOOD,
        Status::TIMEOUT,
        Status::LOST,
        Status::BROKEN,
        Status::ABORTED,
        Status::LENGTH,
        Status::OTHER_CALL,
    ];

    fn is_known(self) -> bool {
        Self::ALL.contains(&self)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Status::GOOD => f.write_str("GOOD"),
            Status::TIMEOUT => f.write_str("TIMEOUT"),
            Status::LOST => f.write_str("LOST"),
            Status::BROKEN => f.write_str("BROKEN"),
            Status::ABORTED => f.write_str("ABORTED"),
            Status::LENGTH => f.write_str("LENGTH"),
            Status::OTHER_CALL => f.write_str("OTHER_CALL"),
            Status(other) => write!(f, "{other}"),
        }
    }
}

/// What one member did in a call that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct PeerStatus {
    pub status: Status,
    /// Always 0.
    pub reserved: u32,
    /// With [`Status::LENGTH`]: how many bytes the member sent.
    pub bytes: u64,
}

/// Bytes of a report's text.
pub const TEXT_BYTES: usize = 512;

/// What a function that fails fills in. When it is called, all members are good and there is no text. The
/// memory is the channel's, which uses it again for its next call.
#[derive(Debug)]
pub struct Report {
    peers: Vec<PeerStatus>,
    text: [u8; TEXT_BYTES],
}

impl Default for Report {
    fn default() -> Self {
        Report { peers: Vec::new(), text: [0; TEXT_BYTES] }
    }
}

impl Report {
    /// One for `size` members, for those who call a transport themselves.
    pub fn new(size: usize) -> Self {
        let mut report = Report::default();
        report.clear(size);
        report
    }

    /// What each member of the group did, by its number.
    pub fn peers_mut(&mut self) -> &mut [PeerStatus] {
        &mut self.peers
    }

    /// The text: UTF-8 up to the first 0, or to the end.
    pub fn text_mut(&mut self) -> &mut [u8; TEXT_BYTES] {
        &mut self.text
    }

    /// Marks a member. Numbers of no member are ignored.
    pub fn mark(&mut self, member: usize, status: Status) {
        if let Some(peer) = self.peers.get_mut(member) {
            peer.status = status;
        }
    }

    /// Marks a member that sent `bytes` bytes instead of as many as were wanted.
    pub fn mark_length(&mut self, member: usize, bytes: usize) {
        if let Some(peer) = self.peers.get_mut(member) {
            (peer.status, peer.bytes) = (Status::LENGTH, bytes as u64);
        }
    }

    /// Sets the text; what is too long is cut off.
    pub fn set_text(&mut self, text: &str) {
        let end = text.floor_char_boundary(TEXT_BYTES);
        self.text.fill(0);
        self.text[..end].copy_from_slice(&text.as_bytes()[..end]);
    }

    /// Makes the report as a function finds it.
    pub(super) fn clear(&mut self, size: usize) {
        self.peers.clear();
        self.peers.resize(size, PeerStatus::default());
        self.text.fill(0);
    }

    fn text(&self) -> String {
        let end = self.text.iter().position(|byte| *byte == 0).unwrap_or(TEXT_BYTES);
        String::from_utf8_lossy(&self.text[..end]).into_owned()
    }

    fn marked(&self, status: Status) -> Vec<usize> {
        let members = self.peers.iter().enumerate();
        members.filter(|(_, peer)| peer.status == status).map(|(member, _)| member).collect()
    }

    /// True where the function says that all went well, and marks nobody.
    pub(super) fn is_good(&self, status: Status) -> bool {
        status == Status::GOOD && self.peers.iter().all(|peer| peer.status == Status::GOOD)
    }

    /// The fault that the function named `function` reports by returning `status` in `call`. `wanted`: bytes
    /// that were wanted of a member.
    pub(super) fn fault(
        &self,
        function: &str,
        status: Status,
        call: &Call,
        wanted: impl Fn(usize) -> usize,
    ) -> Reported {
        let nonsense = |what: String| Reported::here(broken(format!("the callback `{function}` {what}")));
        let unknown = |said: Status, of: &str| {
            let last = Status::ALL[Status::ALL.len() - 1].0;
            nonsense(format!("{of} {said}, which is no status: wanted 0 to {last}"))
        };
        if !status.is_known() {
            return unknown(status, "returned");
        }
        if let Some(member) = self.peers.iter().position(|peer| !peer.status.is_known()) {
            return unknown(self.peers[member].status, &format!("marked member {member} with"));
        }
        let members = self.marked(status);
        let none = || {
            let said = self.text();
            let text = if said.is_empty() { String::new() } else { format!(" (it says: {said})") };
            nonsense(format!("returned {status} and marked no member with it{text}"))
        };
        match status {
            Status::TIMEOUT => Reported::here(Fault::Timeout { missing: members }),
            Status::LOST if !members.is_empty() => Reported::here(Fault::Lost { members }),
            Status::BROKEN => {
                let said = self.text();
                let why = if said.is_empty() { " without saying why".into() } else { format!(": {said}") };
                Reported::here(broken(format!("the callback `{function}` failed{why}")))
            }
            Status::ABORTED => {
                let said = self.text();
                match (notice::decode(&said, call, self.peers.len()), members.first()) {
                    (Some(fault), _) => Reported { fault, by_peer: true },
                    (None, Some(&member)) => {
                        Reported { fault: Fault::Aborted { member, reason: said }, by_peer: true }
                    }
                    (None, None) => none(),
                }
            }
            Status::LENGTH if !members.is_empty() => {
                let bytes = |member: usize| usize::try_from(self.peers[member].bytes).unwrap_or(usize::MAX);
                let peers: Vec<_> = members.iter().map(|&m| (m, wanted(m), bytes(m))).collect();
                match peers.iter().find(|(_, wanted, got)| wanted == got) {
                    Some((member, bytes, _)) => nonsense(format!(
                        "marked member {member} for another length than {bytes} bytes, and says that so \
                         many came"
                    )),
                    None => Reported::here(Fault::Length { peers }),
                }
            }
            Status::OTHER_CALL if !members.is_empty() => {
                Reported::here(Fault::OtherCall { member: members[0], theirs: self.text() })
            }
            Status::GOOD => {
                let marked = self.peers.iter().position(|peer| peer.status != Status::GOOD).unwrap_or(0);
                let with = self.peers[marked].status;
                nonsense(format!("returned {status} and marked member {marked} with {with}"))
            }
            _ => none(),
        }
    }
}

/// A fault, and who found it.
pub(super) struct Reported {
    pub(super) fault: Fault,
    /// A peer found it, and has told all others.
    pub(super) by_peer: bool,
}

impl Reported {
    pub(super) fn here(fault: Fault) -> Self {
        Reported { fault, by_peer: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Operation;
    use std::time::Instant;

    fn fault_of(status: Status, fill: impl FnOnce(&mut Report)) -> (Fault, bool) {
        let now = Instant::now();
        let operation = Operation::GatherRows;
        let call =
            Call { head: 1, instance: 0, epoch: 0, step: 5, operation, terms: 0, began: now, deadline: now };
        let mut report = Report::default();
        report.clear(3);
        fill(&mut report);
        let Reported { fault, by_peer } = report.fault("all_to_all", status, &call, |_| 10);
        (fault, by_peer)
    }

    #[test]
    fn each_status_is_its_fault() {
        let timeout = fault_of(Status::TIMEOUT, |report| report.mark(2, Status::TIMEOUT));
        assert_eq!(timeout, (Fault::Timeout { missing: vec![2] }, false));
        assert_eq!(fault_of(Status::TIMEOUT, |_| ()), (Fault::Timeout { missing: vec![] }, false));
        let lost = fault_of(Status::LOST, |report| {
            [0, 1, 3, usize::MAX].into_iter().for_each(|member| report.mark(member, Status::LOST));
        });
        assert_eq!(lost, (Fault::Lost { members: vec![0, 1] }, false), "there is no member 3");
        let length = fault_of(Status::LENGTH, |report| report.mark_length(1, 7));
        assert_eq!(length, (Fault::Length { peers: vec![(1, 10, 7)] }, false));
        let gave_up = fault_of(Status::ABORTED, |report| {
            report.mark(1, Status::ABORTED);
            report.set_text("out of memory");
        });
        assert_eq!(gave_up, (Fault::Aborted { member: 1, reason: "out of memory".into() }, true));
        let (broken, _) = fault_of(Status::BROKEN, |report| report.set_text("a socket closed"));
        assert!(
            matches!(&broken, Fault::Broken { problem, .. } if problem.ends_with("failed: a socket closed"))
        );
    }

    #[test]
    fn what_contradicts_itself_is_named() {
        let problem = |status, fill: &dyn Fn(&mut Report)| match fault_of(status, fill) {
            (Fault::Broken { problem, .. }, false) => problem,
            other => panic!("{other:?}"),
        };
        let same = problem(Status::LENGTH, &|report| report.mark_length(1, 10));
        assert!(same.contains("marked member 1 for another length than 10 bytes"), "{same}");
        let nobody = problem(Status::ABORTED, &|report| report.set_text("enough"));
        assert!(nobody.contains("marked no member with it (it says: enough)"), "{nobody}");
        let good = problem(Status::GOOD, &|report| report.mark(0, Status(9)));
        assert!(good.contains("marked member 0 with 9, which is no status"), "{good}");
        // Text that is no UTF-8, or has no end.
        let text = problem(Status::BROKEN, &|report| report.text_mut().fill(0xff));
        assert!(text.chars().filter(|c| *c == char::REPLACEMENT_CHARACTER).count() == TEXT_BYTES, "{text}");
        let long = problem(Status::BROKEN, &|report| report.set_text(&"ä".repeat(TEXT_BYTES)));
        assert!(long.ends_with(&format!(": {}", "ä".repeat(TEXT_BYTES / 2))), "{long}");
    }
}
