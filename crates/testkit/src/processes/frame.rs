//! What goes over a socket: seven words, then bytes.
//!
//! | word | contents |
//! |---|---|
//! | 0 | kind of frame; operation << 8 |
//! | 1 | head; instance << 32 |
//! | 2 | epoch; generation of the channel << 32 |
//! | 3 | step |
//! | 4 | terms |
//! | 5 | the step's timeout in µs |
//! | 6 | bytes that follow |

use lmhead::exchange::{Call, Fault, Operation};
use serde_json::{Value, json};
use std::io::{self, Read};
use std::time::{Duration, Instant};

const WORDS: usize = 7;

/// No test sends as much: a longer frame is none.
const MOST_BYTES: u64 = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Kind {
    /// A piece of a collective.
    Data = 0,
    /// Where the sender is.
    Note = 1,
    /// The sender's channel has failed: [`encode_fault`].
    Fault = 2,
    /// The sender wants the channel in that generation.
    Reset = 3,
    /// The sender has dropped the channel.
    Leave = 4,
}

const KINDS: [Kind; 5] = [Kind::Data, Kind::Note, Kind::Fault, Kind::Reset, Kind::Leave];

pub(super) struct Frame {
    pub kind: Kind,
    /// Of the sender's channel.
    pub generation: u32,
    pub call: Call,
    pub bytes: Vec<u8>,
}

/// The bytes of a frame.
pub(super) fn encode(kind: Kind, generation: u32, call: &Call, bytes: &[u8]) -> Vec<u8> {
    let words: [u64; WORDS] = [
        kind as u64 | u64::from(call.operation.code()) << 8,
        u64::from(call.head) | u64::from(call.instance) << 32,
        u64::from(call.epoch) | u64::from(generation) << 32,
        call.step,
        call.terms,
        call.timeout().as_micros() as u64,
        bytes.len() as u64,
    ];
    let mut out: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    out.extend_from_slice(bytes);
    out
}

/// The next frame of a stream.
pub(super) fn read(stream: &mut impl Read) -> io::Result<Frame> {
    let mut words = [0; 8 * WORDS];
    stream.read_exact(&mut words)?;
    let word = |i: usize| u64::from_le_bytes(words[8 * i..8 * i + 8].try_into().expect("eight bytes"));
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_string());
    let kind = *KINDS.get((word(0) & 0xff) as usize).ok_or_else(|| invalid("no such frame"))?;
    let operation = Operation::from_code((word(0) >> 8) as u8).ok_or_else(|| invalid("no such operation"))?;
    if word(6) > MOST_BYTES {
        return Err(invalid("a frame of more bytes than any test sends"));
    }
    let mut bytes = vec![0; word(6) as usize];
    stream.read_exact(&mut bytes)?;
    let began = Instant::now();
    let call = Call {
        head: word(1) as u32,
        instance: (word(1) >> 32) as u32,
        epoch: word(2) as u32,
        step: word(3),
        operation,
        terms: word(4),
        began,
        deadline: began + Duration::from_micros(word(5)),
    };
    Ok(Frame { kind, generation: (word(2) >> 32) as u32, call, bytes })
}

/// How far the sender of a fault had come: collectives of the channel that it completed, and the members of
/// the last.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    pub completed: u64,
    pub heard: Vec<usize>,
}

pub(super) fn encode_fault(fault: &Fault, progress: &Progress) -> Vec<u8> {
    let (kind, members, reason) = match fault {
        Fault::Timeout { missing } => ("timeout", missing.clone(), ""),
        Fault::Lost { members } => ("lost", members.clone(), ""),
        Fault::Abandoned { member, reason } => ("abandoned", vec![*member], reason.as_str()),
        other => unreachable!("{other:?} is not told to peers"),
    };
    let Progress { completed, heard } = progress;
    json!({ "kind": kind, "members": members, "reason": reason, "completed": completed, "heard": heard })
        .to_string()
        .into()
}

/// `None` where the bytes are no fault.
pub(super) fn decode_fault(bytes: &[u8]) -> Option<(Fault, Progress)> {
    let told: Value = serde_json::from_slice(bytes).ok()?;
    let numbers = |value: &Value| -> Option<Vec<usize>> {
        value.as_array()?.iter().map(|n| n.as_u64().map(|n| n as usize)).collect()
    };
    let members = numbers(&told["members"])?;
    let fault = match told["kind"].as_str()? {
        "timeout" => Fault::Timeout { missing: members },
        "lost" => Fault::Lost { members },
        "abandoned" => {
            Fault::Abandoned { member: *members.first()?, reason: told["reason"].as_str()?.into() }
        }
        _ => return None,
    };
    Some((fault, Progress { completed: told["completed"].as_u64()?, heard: numbers(&told["heard"])? }))
}
