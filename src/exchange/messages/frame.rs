//! The bytes of a message: a header of eight words, then the payload, in one buffer.
//!
//! | word | contents |
//! |---|---|
//! | 0 | kind of frame; operation << 8; [`MAGIC`] << 32 |
//! | 1 | the exchange ([`Link::id`](super::Link::id)) |
//! | 2 | head; instance << 32 |
//! | 3 | epoch; generation of the channel << 32 |
//! | 4 | step |
//! | 5 | terms |
//! | 6 | the step's timeout in µs |
//! | 7 | bytes of the payload |

use crate::exchange::{Call, Fault, Operation};
use std::time::{Duration, Instant};

const WORDS: usize = 8;

/// Where the payload begins.
pub(super) const HEADER_BYTES: usize = 8 * WORDS;

/// "lmh1": another version of these frames has another number.
const MAGIC: u32 = u32::from_le_bytes(*b"lmh1");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FrameKind {
    /// A piece of a collective.
    Data = 0,
    /// Where the sender is.
    Note = 1,
    /// The sender's channel has failed: [`encode_fault`].
    Fault = 2,
    /// The sender wants the channel to begin that generation.
    Reset = 3,
    /// The sender has dropped the channel; for the first channel, all of its channels.
    Leave = 4,
}

const KINDS: [FrameKind; 5] =
    [FrameKind::Data, FrameKind::Note, FrameKind::Fault, FrameKind::Reset, FrameKind::Leave];

/// What the header says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Header {
    pub kind: FrameKind,
    /// Generation of the sender's channel.
    pub generation: u32,
    /// Its deadline is the sender's, as if its step had begun when the frame was decoded.
    pub call: Call,
}

/// Writes a frame of `id` into `out`, whose former bytes are dropped.
pub(super) fn encode(out: &mut Vec<u8>, id: u64, header: &Header, payload: &[u8]) {
    let Header { kind, generation, call } = header;
    let words: [u64; WORDS] = [
        u64::from(*kind as u8) | u64::from(call.operation.code()) << 8 | u64::from(MAGIC) << 32,
        id,
        u64::from(call.head) | u64::from(call.instance) << 32,
        u64::from(call.epoch) | u64::from(*generation) << 32,
        call.step,
        call.terms,
        u64::try_from(call.timeout().as_micros()).unwrap_or(u64::MAX),
        payload.len() as u64,
    ];
    out.clear();
    out.reserve(HEADER_BYTES + payload.len());
    words.iter().for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
    out.extend_from_slice(payload);
}

fn word(frame: &[u8], i: usize) -> Option<u64> {
    frame.get(8 * i..8 * i + 8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

/// The exchange that a frame belongs to; `None` where the bytes are no frame.
pub(super) fn id_of(frame: &[u8]) -> Option<u64> {
    ((word(frame, 0)? >> 32) as u32 == MAGIC).then(|| word(frame, 1))?
}

/// The frame's length by its header, without reading the payload; `None` where the bytes are no frame.
pub(super) fn length(frame: &[u8]) -> Option<usize> {
    id_of(frame)?;
    usize::try_from(word(frame, 7)?).ok()?.checked_add(HEADER_BYTES)
}

/// The header of a frame; `None` where the bytes are no frame, or not a whole one.
pub(super) fn decode(frame: &[u8]) -> Option<Header> {
    if length(frame)? != frame.len() {
        return None;
    }
    let (first, channel, epoch) = (word(frame, 0)?, word(frame, 2)?, word(frame, 3)?);
    let began = Instant::now();
    // A timeout that the clock cannot hold counts as a year.
    let timeout = Duration::from_micros(word(frame, 6)?);
    let year = Duration::from_secs(365 * 24 * 3600);
    let call = Call {
        head: channel as u32,
        instance: (channel >> 32) as u32,
        epoch: epoch as u32,
        step: word(frame, 4)?,
        operation: Operation::from_code((first >> 8) as u8)?,
        terms: word(frame, 5)?,
        began,
        deadline: began.checked_add(timeout).unwrap_or_else(|| began + year),
    };
    Some(Header { kind: *KINDS.get((first & 0xff) as usize)?, generation: (epoch >> 32) as u32, call })
}

/// How far the sender of a fault had come: for each member the number, counted from 1, of the last collective
/// of the channel that it completed with that member; 0 where there was none. One number for all would not
/// do: the last collective may be one of a few members, behind one of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    pub heard: Vec<u64>,
}

impl Progress {
    pub fn none(size: usize) -> Self {
        Progress { heard: vec![0; size] }
    }
}

const TIMEOUT: u64 = 0;
const LOST: u64 = 1;
const ABORTED: u64 = 2;

/// A fault that `me` tells its peers: words `[kind, n, m, heard[n], members[m]]`, then the reason.
pub(super) fn encode_fault(me: usize, fault: &Fault, progress: &Progress) -> Vec<u8> {
    let own = [me];
    let told;
    let (kind, members, reason) = match fault {
        Fault::Timeout { missing } => (TIMEOUT, &missing[..], ""),
        Fault::Lost { members } => (LOST, &members[..], ""),
        Fault::Aborted { member, reason } => (ABORTED, std::slice::from_ref(member), reason.as_str()),
        // Other faults concern their finder alone: the peers are told that a member cannot go on.
        other => {
            told = format!("its transport failed: {other:?}");
            (ABORTED, &own[..], told.as_str())
        }
    };
    let heard = progress.heard.iter().copied();
    let counts = [kind, heard.len() as u64, members.len() as u64];
    let lists = heard.chain(members.iter().map(|&member| member as u64));
    let mut bytes: Vec<u8> = counts.into_iter().chain(lists).flat_map(u64::to_le_bytes).collect();
    bytes.extend_from_slice(reason.as_bytes());
    bytes
}

/// A fault among `size` members; `None` where the bytes are no fault.
pub(super) fn decode_fault(bytes: &[u8], size: usize) -> Option<(Fault, Progress)> {
    let count = |i| usize::try_from(word(bytes, i)?).ok().filter(|n| *n <= size);
    let (kind, n, m) = (word(bytes, 0)?, count(1).filter(|n| *n == size)?, count(2)?);
    let heard = (3..3 + n).map(|i| word(bytes, i)).collect::<Option<_>>()?;
    let member = |i| usize::try_from(word(bytes, i)?).ok().filter(|member| *member < size);
    let members: Vec<usize> = (3 + n..3 + n + m).map(member).collect::<Option<_>>()?;
    let reason = String::from_utf8_lossy(bytes.get(8 * (3 + n + m)..)?).into_owned();
    let fault = match kind {
        TIMEOUT => Fault::Timeout { missing: members },
        LOST => Fault::Lost { members },
        ABORTED => Fault::Aborted { member: *members.first()?, reason },
        _ => return None,
    };
    Some((fault, Progress { heard }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn call() -> Call {
        let began = Instant::now();
        Call {
            head: 0xdead_beef,
            instance: 7,
            epoch: u32::MAX,
            step: 1 << 60,
            operation: Operation::Cuts,
            terms: u64::MAX,
            began,
            deadline: began + Duration::from_micros(30_000_001),
        }
    }

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        for kind in KINDS {
            let header = Header { kind, generation: 0x0123_4567, call: call() };
            let mut frame = vec![9; 3];
            encode(&mut frame, 42, &header, b"payload");
            let got = decode(&frame).unwrap();
            assert_eq!((got.kind, got.generation), (kind, 0x0123_4567));
            assert!(got.call.same_as(&header.call));
            assert_eq!(got.call.timeout(), header.call.timeout());
            assert_eq!((id_of(&frame), length(&frame)), (Some(42), Some(frame.len())));
            assert_eq!(&frame[HEADER_BYTES..], b"payload");
        }
    }

    #[test]
    fn a_fault_is_read_as_it_was_written_and_a_member_that_is_none_is_refused() {
        let progress = Progress { heard: vec![0, 2, 5, 1 << 40, 3, 3] };
        for fault in [
            Fault::Timeout { missing: vec![1, 4] },
            Fault::Timeout { missing: vec![] },
            Fault::Lost { members: vec![5] },
            Fault::Aborted { member: 3, reason: "hidden_states: wanted 2 rows ≠ 3".into() },
        ] {
            let bytes = encode_fault(0, &fault, &progress);
            assert_eq!(decode_fault(&bytes, 6), Some((fault, progress.clone())));
            assert_eq!(decode_fault(&bytes, 5), None, "of six members");
            assert_eq!(decode_fault(&bytes, 7), None, "of six members");
        }
        let broken = Fault::Broken { problem: "the cable".into(), fix: "mend it".into() };
        let (told, _) = decode_fault(&encode_fault(2, &broken, &progress), 6).unwrap();
        assert!(
            matches!(&told, Fault::Aborted { member: 2, reason } if reason.contains("the cable")),
            "{told:?}"
        );
    }

    proptest! {
        /// Whatever comes is a frame or none, and never a panic.
        #[test]
        fn foreign_bytes_are_no_frame(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), changed in 0usize..64, to in any::<u8>(),
        ) {
            prop_assert_eq!(decode(&bytes), None);
            let _ = decode_fault(&bytes, 8);
            let mut frame = Vec::new();
            encode(&mut frame, 1, &Header { kind: FrameKind::Data, generation: 0, call: call() }, &bytes);
            prop_assert_eq!(decode(&frame[..frame.len() - 1]), None);
            frame[changed] = to;
            let _ = decode(&frame);
        }
    }
}
