//! One collective call: its ticket, its contract, its deadline.
//!
//! The contract is that every rank of a group makes the same calls, in the same order, with agreeing arguments. Each
//! rank states its side in a 64-byte header; all of them are compared.

use crate::config::Verify;
use crate::error::{Disagreement, Error, Result};
use crate::exchange::{Call, Operation};
use crate::layout::HeadGroup;
use crate::result::Request;
use crate::rows::RowCounts;
use std::time::{Duration, Instant};

/// Bytes of an encoded [`Header`].
pub const HEADER_BYTES: usize = 64;

const MAGIC: [u8; 4] = *b"LMH1";

/// One rank's side of the contract, little-endian:
///
/// | bytes | field |
/// |---|---|
/// | 0..4 | `LMH1` |
/// | 4..8 | head: hash of its name |
/// | 8..12 | epoch: times the head was rebuilt |
/// | 12 | mode: 0 create, 1 exact, 2 capacity, 3 discover |
/// | 13 | verification: 0 always, 1 warm_up, 2 every n |
/// | 14 | request: 0 none, 1 logits, 2 argmax, 3 topk, 4 logprobs, 5 sample |
/// | 15 | dtype of requested logits; logprobs: 1 where processed |
/// | 16..24 | sequence: number of the step |
/// | 24..32 | request's parameter (k, top_n) |
/// | 32..40 | rows that the rank's replica brings |
/// | 40..48 | exact: digest of all counts; capacity: the capacity |
/// | 48..56 | digest of what was agreed at creation: sizes, dtypes, quantisation, backend, ... |
/// | 56..60 | n of `verify = every n` |
/// | 60 | 1 where the step has adjustments |
/// | 61..64 | zero |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub head: u32,
    pub epoch: u32,
    pub mode: Mode,
    pub verify: Verify,
    pub request: Option<Request>,
    pub adjusted: bool,
    pub sequence: u64,
    pub rows: u64,
    pub counts: u64,
    pub agreement: u64,
}

/// How the row counts of a step are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    Create = 0,
    Exact = 1,
    Capacity = 2,
    Discover = 3,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::Create => "create",
            Mode::Exact => "exact",
            Mode::Capacity => "capacity",
            Mode::Discover => "discover",
        }
    }
}

impl Header {
    /// The header's 64 bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let (kind, dtype, parameter) = match self.request {
            None => (0, 0, 0),
            Some(Request::Logits { dtype }) => (1, dtype.code(), 0),
            Some(Request::Argmax) => (2, 0, 0),
            Some(Request::TopK { k }) => (3, 0, k as u64),
            Some(Request::Logprobs { top_n, processed }) => (4, u8::from(processed), top_n as u64),
            Some(Request::Sample) => (5, 0, 0),
        };
        let (verify, every) = match self.verify {
            Verify::Always => (0, 0),
            Verify::WarmUp => (1, 0),
            Verify::Every(n) => (2, n),
        };
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&self.head.to_le_bytes());
        out[8..12].copy_from_slice(&self.epoch.to_le_bytes());
        out[12..16].copy_from_slice(&[self.mode as u8, verify, kind, dtype]);
        out[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        out[24..32].copy_from_slice(&parameter.to_le_bytes());
        out[32..40].copy_from_slice(&self.rows.to_le_bytes());
        out[40..48].copy_from_slice(&self.counts.to_le_bytes());
        out[48..56].copy_from_slice(&self.agreement.to_le_bytes());
        out[56..60].copy_from_slice(&every.to_le_bytes());
        out[60] = u8::from(self.adjusted);
        out
    }

    /// Digest of all that the members must have in common; the rows are each replica's own, and where counts are learned, so is
    /// whether any rank has adjustments.
    pub fn terms(&self) -> u64 {
        let adjusted = self.adjusted && self.mode != Mode::Discover;
        digest(&Header { rows: 0, adjusted, ..*self }.encode())
    }

    /// Reads a header; `None` where the bytes are none of this version.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if bytes[..4] != MAGIC {
            return None;
        }
        let mode = [Mode::Create, Mode::Exact, Mode::Capacity, Mode::Discover];
        let verify = match bytes[13] {
            0 => Verify::Always,
            1 => Verify::WarmUp,
            2 => Verify::Every(u32_at(56)),
            _ => return None,
        };
        let request = match bytes[14] {
            0 => None,
            1 => Some(Request::Logits { dtype: crate::dtype::DType::from_code(bytes[15])? }),
            2 => Some(Request::Argmax),
            3 => Some(Request::TopK { k: usize::try_from(u64_at(24)).ok()? }),
            4 if bytes[15] <= 1 => Some(Request::Logprobs {
                top_n: usize::try_from(u64_at(24)).ok()?,
                processed: bytes[15] == 1,
            }),
            5 => Some(Request::Sample),
            _ => return None,
        };
        Some(Header {
            head: u32_at(4),
            epoch: u32_at(8),
            mode: *mode.get(usize::from(bytes[12]))?,
            verify,
            request,
            adjusted: match bytes[60] {
                0 => false,
                1 => true,
                _ => return None,
            },
            sequence: u64_at(16),
            rows: u64_at(32),
            counts: u64_at(40),
            agreement: u64_at(48),
        })
    }
}

/// A step's number and its rank's side of the contract, fixed before anything is sent.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    pub header: Header,
    pub counts: RowCounts,
    pub request: Request,
    pub timeout: Duration,
}

impl Ticket {
    /// A call of this step that begins now.
    pub fn call(&self, operation: Operation) -> Call {
        call(&self.header, operation, self.timeout)
    }
}

/// A call of the head and step that `header` names, beginning now.
pub(crate) fn call(header: &Header, operation: Operation, timeout: Duration) -> Call {
    Call {
        head: header.head,
        epoch: header.epoch,
        step: header.sequence,
        operation,
        terms: header.terms(),
        began: Instant::now(),
        timeout,
    }
}

/// The digest of exact counts and the capacity, as the header carries them.
pub(crate) fn counts_field(counts: &RowCounts) -> (Mode, u64) {
    match counts {
        RowCounts::Exact(list) => {
            let bytes: Vec<u8> = list.iter().flat_map(|&n| (n as u64).to_le_bytes()).collect();
            (Mode::Exact, digest(&bytes))
        }
        RowCounts::Capacity { max, .. } => (Mode::Capacity, *max as u64),
        RowCounts::Discover { .. } => (Mode::Discover, 0),
    }
}

/// FNV-1a, 64 bits: names and count lists are told apart by it, nothing is secured by it.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Compares the headers of `members` and returns the rows that each of these members' replicas bring.
/// `mine` is the caller's own; `name` is its head's name and `counts` its own view of the counts, for messages.
///
/// Every rank that sees the same headers comes to the same result.
///
/// # Errors
/// `StepMismatch` naming each field on which ranks differ, and who said what.
pub(crate) fn agree(
    group: &HeadGroup,
    members: &[usize],
    headers: &[[u8; HEADER_BYTES]],
    mine: &Header,
    name: &str,
    counts: &RowCounts,
) -> Result<Vec<usize>> {
    let decoded: Vec<Option<Header>> = headers.iter().map(Header::decode).collect();
    let mut disagreements = Vec::new();
    let mut compare = |field: &str, say: &dyn Fn(&Header) -> String| {
        let said = decoded.iter().map(|h| {
            h.as_ref().map_or_else(|| "no step header (another program or version of lmhead)".into(), say)
        });
        let ranks = members.iter().map(|&m| group.ranks()[m]);
        if let Some(disagreement) = disagreement(field, ranks.zip(said)) {
            disagreements.push(disagreement);
        }
    };
    if decoded.contains(&None) {
        compare("header", &|_| "a step header".into());
    } else {
        compare("head", &|h| {
            if h.head == mine.head {
                format!("`{name}`")
            } else {
                format!("another head (id {:#010x})", h.head)
            }
        });
        compare("epoch", &|h| h.epoch.to_string());
        compare("sequence", &|h| format!("step {}", h.sequence));
        compare("mode", &|h| h.mode.name().into());
        compare("verification", &|h| h.verify.to_string());
        compare("request", &|h| h.request.map_or_else(|| "none".into(), |r| r.to_string()));
        // Where counts are learned, so is this.
        if decoded.iter().flatten().any(|h| h.mode != Mode::Discover) {
            compare("adjustments", &|h| if h.adjusted { "some rows have them" } else { "none" }.into());
        }
        compare("agreement", &|h| format!("{:#018x} of sizes, dtypes and backend", h.agreement));
        if decoded.iter().flatten().all(|h| h.mode == mine.mode) {
            compare("counts", &|h| match (mine.mode, counts) {
                (Mode::Capacity, _) => format!("a capacity of {} rows", h.counts),
                (Mode::Exact, RowCounts::Exact(list)) if h.counts == mine.counts => format!("{list:?}"),
                (Mode::Exact, _) => format!("another list, in which its own replica has {} rows", h.rows),
                _ => "nothing".into(),
            });
        }
        let by_replica = |replica: usize| {
            members
                .iter()
                .zip(decoded.iter().flatten())
                .filter(move |(m, _)| group.replica_of(**m) == replica)
        };
        for replica in 0..group.replicas() {
            // Where it is learned who has adjustments, the tensor-parallel ranks of a replica still speak for the same rows.
            let said = by_replica(replica)
                .map(|(&m, h)| (group.ranks()[m], if h.adjusted { "some" } else { "none" }.to_string()));
            disagreements.extend(disagreement(&format!("adjustments of replica {replica}"), said));
            let said = by_replica(replica).map(|(&m, h)| (group.ranks()[m], format!("{} rows", h.rows)));
            disagreements.extend(disagreement(&format!("rows of replica {replica}"), said));
        }
    }
    if !disagreements.is_empty() {
        return Err(Error::StepMismatch { step: mine.sequence, disagreements });
    }
    Ok(decoded.iter().flatten().map(|h| h.rows as usize).collect())
}

/// Groups ranks by what they said; `None` where all said the same.
pub(crate) fn disagreement(field: &str, said: impl Iterator<Item = (usize, String)>) -> Option<Disagreement> {
    let mut groups: Vec<(Vec<usize>, String)> = Vec::new();
    for (member, what) in said {
        match groups.iter_mut().find(|(_, text)| *text == what) {
            Some((members, _)) => members.push(member),
            None => groups.push((vec![member], what)),
        }
    }
    (groups.len() > 1).then(|| Disagreement { field: field.into(), said: groups })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            head: 7,
            epoch: 0,
            mode: Mode::Exact,
            verify: Verify::Always,
            request: Some(Request::Argmax),
            adjusted: false,
            sequence: 3,
            rows: 2,
            counts: 99,
            agreement: 5,
        }
    }

    proptest! {
        #[test]
        fn headers_survive_the_wire(
            head in any::<u32>(), epoch in any::<u32>(), mode in 0usize..4, verify in 0u32..9, request in 0usize..6,
            sequence in any::<u64>(), rows in any::<u64>(), counts in any::<u64>(), agreement in any::<u64>(), k in any::<u32>(),
            adjusted in any::<bool>(),
        ) {
            let dtype = [DType::F32, DType::F16, DType::Bf16][request % 3];
            let header = Header {
                head, epoch, adjusted, sequence, rows, counts, agreement,
                mode: [Mode::Create, Mode::Exact, Mode::Capacity, Mode::Discover][mode],
                verify: [Verify::Always, Verify::WarmUp, Verify::Every(verify)][verify as usize % 3],
                request: [None, Some(Request::Argmax), Some(Request::TopK { k: k as usize }), Some(Request::Logits { dtype }),
                    Some(Request::Logits { dtype }), Some(Request::Logprobs { top_n: k as usize, processed: adjusted })][request],
            };
            prop_assert_eq!(Header::decode(&header.encode()), Some(header));
        }

        #[test]
        fn junk_never_panics(bytes in prop::collection::vec(any::<u8>(), HEADER_BYTES), magic in any::<bool>()) {
            let mut bytes: [u8; HEADER_BYTES] = bytes.try_into().unwrap();
            if magic {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            let group = HeadGroup::data_parallel(2, 0).unwrap();
            let mine = header();
            let counts = RowCounts::exact(&[2, 2]);
            let both = agree(&group, &[0, 1], &[mine.encode(), bytes], &mine, "lm_head", &counts);
            prop_assert!(both.is_err());
        }
    }

    #[test]
    fn each_field_is_compared_and_named() {
        let group = HeadGroup::data_parallel(3, 0).unwrap();
        let mine = header();
        let counts = RowCounts::exact(&[2, 5, 2]);
        let table: &[(&str, Header)] = &[
            (
                "head: ranks [0, 2] say `lm_head`, ranks [1] say another head (id 0x00000008)",
                Header { head: 8, ..mine },
            ),
            ("epoch: ranks [0, 2] say 0, ranks [1] say 1", Header { epoch: 1, ..mine }),
            ("sequence: ranks [0, 2] say step 3, ranks [1] say step 4", Header { sequence: 4, ..mine }),
            ("mode: ranks [0, 2] say exact, ranks [1] say discover", Header { mode: Mode::Discover, ..mine }),
            (
                "verification: ranks [0, 2] say always, ranks [1] say every 9",
                Header { verify: Verify::Every(9), ..mine },
            ),
            (
                "request: ranks [0, 2] say argmax, ranks [1] say topk:4",
                Header { request: Some(Request::TopK { k: 4 }), ..mine },
            ),
            (
                "request: ranks [0, 2] say argmax, ranks [1] say logits in bf16",
                Header { request: Some(Request::logits(DType::Bf16)), ..mine },
            ),
            (
                "adjustments: ranks [0, 2] say none, ranks [1] say some rows have them",
                Header { adjusted: true, ..mine },
            ),
            ("agreement: ranks [0, 2] say 0x0000000000000005", Header { agreement: 6, ..mine }),
            (
                "counts: ranks [0, 2] say [2, 5, 2], ranks [1] say another list, in which its own replica has 2 rows",
                Header { counts: 98, ..mine },
            ),
        ];
        for (want, odd) in table {
            let headers = [mine.encode(), odd.encode(), mine.encode()];
            let error = agree(&group, &[0, 1, 2], &headers, &mine, "lm_head", &counts).unwrap_err();
            assert!(error.to_string().contains(want), "got {error}\nwant {want}");
            assert!(matches!(error, Error::StepMismatch { step: 3, .. }));
        }
        let headers = [mine.encode(); 3];
        assert_eq!(agree(&group, &[0, 1, 2], &headers, &mine, "lm_head", &counts), Ok(vec![2, 2, 2]));
    }

    #[test]
    fn the_tp_ranks_of_a_replica_bring_the_same_rows() {
        let group = HeadGroup::from_ranks(vec![0, 1, 2, 3], 0, 2).unwrap();
        let mine = Header { mode: Mode::Discover, counts: 0, ..header() };
        let odd = Header { rows: 9, ..mine };
        let headers = [mine.encode(), mine.encode(), mine.encode(), odd.encode()];
        let error = agree(&group, &[0, 1, 2, 3], &headers, &mine, "h", &RowCounts::discover(2)).unwrap_err();
        assert!(
            error.to_string().contains("rows of replica 1: ranks [2] say 2 rows, ranks [3] say 9 rows"),
            "{error}"
        );
    }
}
