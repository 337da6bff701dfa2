//! Notices between members: a fault as a line of text, which transports pass on unread.
//!
//! ```text
//! lmhead EPOCH STEP OPERATION TIMEOUT_US KIND MEMBERS REASON
//! lmhead 0 7 4 500000 timeout [1,3]
//! lmhead 0 8 3 500000 aborted [2] hidden_states: wanted 2 rows, got 3
//! ```
//!
//! So a peer names the same members, step and deadline as the member that found the fault.

use crate::exchange::{Call, Fault, Operation};
use std::time::Duration;

/// The first word of a notice.
const MARK: &str = "lmhead";

/// The notice of `me` that `call` ended in `fault`.
pub(super) fn encode(me: usize, call: &Call, fault: &Fault) -> String {
    let (kind, members, reason) = match fault {
        Fault::Timeout { missing } => ("timeout", &missing[..], ""),
        Fault::Lost { members } => ("lost", &members[..], ""),
        Fault::Aborted { member, reason } => ("aborted", std::slice::from_ref(member), &reason[..]),
        Fault::Earlier { call, fault } => return encode(me, call, fault),
        Fault::Broken { problem, .. } => ("aborted", &[me][..], &problem[..]),
        Fault::Length { .. } => ("aborted", &[me][..], "got pieces of other lengths than it wanted"),
        Fault::OtherCall { theirs, .. } => ("aborted", &[me][..], &theirs[..]),
    };
    let members: Vec<String> = members.iter().map(usize::to_string).collect();
    // The brackets show that nothing was cut off.
    let members = members.join(",");
    let Call { epoch, step, operation, .. } = call;
    let (code, us) = (operation.code(), call.timeout().as_micros());
    format!("{MARK} {epoch} {step} {code} {us} {kind} [{members}] {reason}").trim_end().into()
}

/// The fault of a notice, as a member in `call`, one of `size`, reports it; `None` for other texts.
pub(super) fn decode(text: &str, call: &Call, size: usize) -> Option<Fault> {
    let mut words = text.splitn(8, ' ');
    if words.next()? != MARK {
        return None;
    }
    let mut number = || words.next()?.parse::<u64>().ok();
    let (epoch, step) = (u32::try_from(number()?).ok()?, number()?);
    let operation = Operation::from_code(u8::try_from(number()?).ok()?)?;
    let timeout = Duration::from_micros(number()?);
    let (kind, members, reason) = (words.next()?, words.next()?, words.next().unwrap_or_default());
    let members: Vec<usize> = match members.strip_prefix('[')?.strip_suffix(']')? {
        "" => Vec::new(),
        list => list.split(',').map(|word| word.parse().ok()).collect::<Option<_>>()?,
    };
    if members.iter().any(|&member| member >= size) {
        return None;
    }
    let fault = match (kind, &members[..]) {
        ("timeout", _) => Fault::Timeout { missing: members },
        ("lost", [_, ..]) => Fault::Lost { members },
        ("aborted", &[member]) => Fault::Aborted { member, reason: reason.into() },
        _ => return None,
    };
    let theirs = Call { epoch, step, operation, deadline: call.began.checked_add(timeout)?, ..*call };
    // A timeout of another length is reported with its own length; notices carry microseconds.
    let waited_longer =
        matches!(fault, Fault::Timeout { .. }) && timeout.as_micros() != call.timeout().as_micros();
    Some(match theirs.same_operation(call) && !waited_longer {
        true => fault,
        false => Fault::Earlier { call: Box::new(theirs), fault: Box::new(fault) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn call(step: u64, ms: u64) -> Call {
        let began = Instant::now();
        Call {
            head: 1,
            instance: 2,
            epoch: 3,
            step,
            operation: Operation::GatherRows,
            terms: 4,
            began,
            deadline: began + Duration::from_millis(ms),
        }
    }

    #[test]
    fn what_a_member_found_is_what_its_peers_are_told() {
        let own = call(7, 500);
        for fault in [
            Fault::Timeout { missing: vec![1, 3] },
            Fault::Timeout { missing: vec![] },
            Fault::Lost { members: vec![0] },
            Fault::Aborted { member: 2, reason: "hidden_states: wanted 2 rows, got 3".into() },
            Fault::Aborted { member: 2, reason: String::new() },
        ] {
            let text = encode(2, &own, &fault);
            assert_eq!(decode(&text, &own, 4), Some(fault.clone()), "{text}");
            // In another call it is an earlier fault, in the call where it was found.
            match decode(&text, &call(9, 500), 4) {
                Some(Fault::Earlier { call, fault: told }) => {
                    assert_eq!((call.step, call.timeout(), *told), (7, own.timeout(), fault.clone()));
                }
                other => panic!("{text}: {other:?}"),
            }
            let longer = matches!(decode(&text, &call(7, 900), 4), Some(Fault::Earlier { .. }));
            assert_eq!(longer, matches!(fault, Fault::Timeout { .. }), "{text}");
        }
        let broken = Fault::Broken { problem: "a socket closed".into(), fix: "mend it".into() };
        let told = decode(&encode(3, &own, &broken), &own, 4);
        assert_eq!(told, Some(Fault::Aborted { member: 3, reason: "a socket closed".into() }));
        let earlier =
            Fault::Earlier { call: Box::new(own), fault: Box::new(Fault::Lost { members: vec![1] }) };
        assert_eq!(
            decode(&encode(3, &call(9, 1), &earlier), &own, 4),
            Some(Fault::Lost { members: vec![1] })
        );
    }

    #[test]
    fn other_texts_are_no_notices() {
        let own = call(7, 500);
        let good = encode(2, &own, &Fault::Timeout { missing: vec![1, 3] });
        assert_eq!(decode(&good, &own, 3), None, "a member of no such group");
        for end in 0..good.len() {
            assert_eq!(decode(&good[..end], &own, 4), None, "{}", &good[..end]);
        }
        for text in ["", "enough", "lmhead 0 0 4 1 aborted [1,2] why", "other 0 0 4 1 timeout [1]"] {
            assert_eq!(decode(text, &own, 4), None, "{text}");
        }
        for rest in ["99 1 timeout [1]", "4 1 timeout [x]", "4 1 lost []", "4 1 late [1]", "4 1 timeout 1"] {
            assert_eq!(decode(&format!("{MARK} 0 0 {rest}"), &own, 4), None, "{rest}");
        }
    }
}
