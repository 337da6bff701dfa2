//! One collective call: its ticket, its contract, its deadline.
//!
//! The contract is that every rank of a group makes the same calls, in the same order, with agreeing arguments. Each
//! rank states its side in a header of 96 bytes; all of them are compared.

use crate::config::Verify;
use crate::digest;
use crate::error::{Disagreement, Error, Result};
use crate::exchange::{Call, Operation};
use crate::layout::HeadGroup;
use crate::result::Request;
use crate::rows::RowCounts;
use std::fmt;

/// Bytes of an encoded [`Header`].
pub const HEADER_BYTES: usize = 96;

const MAGIC: [u8; 4] = *b"LMH2";

/// One rank's side of the contract, little-endian:
///
/// | bytes | field |
/// |---|---|
/// | 0..4 | `LMH2` |
/// | 4..8 | head: hash of its name |
/// | 8..12 | instance: which of the heads of this name on this transport |
/// | 12..16 | epoch: times the head was rebuilt |
/// | 16 | mode: 0 create, 1 exact, 2 capacity, 3 discover |
/// | 17 | verification: 0 always, 1 warm_up, 2 every n |
/// | 18 | request: 0 none, 1 logits, 2 argmax, 3 topk, 4 logprobs, 5 sample |
/// | 19 | dtype of requested logits; logprobs: 1 where processed |
/// | 20..24 | n of `verify = every n` |
/// | 24..32 | sequence: number of the step |
/// | 32..40 | request's parameter (k, top_n) |
/// | 40..48 | rows that the rank's replica brings |
/// | 48..56 | exact: digest of all counts; capacity: the capacity |
/// | 56..64 | digest of what was agreed at creation: sizes, dtypes, quantisation, backend, ... |
/// | 64..72 | version of the weights, as the engine counts it |
/// | 72..80 | digest of the inputs that a replica's ranks share; 0 where they are not known yet |
/// | 80 | 1 where the step has adjustments |
/// | 81..96 | zero |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub head: u32,
    pub instance: u32,
    pub epoch: u32,
    pub mode: Mode,
    pub verify: Verify,
    pub request: Option<Request>,
    pub adjusted: bool,
    pub sequence: u64,
    pub rows: u64,
    pub counts: u64,
    pub agreement: u64,
    pub weights_version: u64,
    pub inputs: u64,
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

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Header {
    /// The header's bytes.
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
        out[8..12].copy_from_slice(&self.instance.to_le_bytes());
        out[12..16].copy_from_slice(&self.epoch.to_le_bytes());
        out[16..20].copy_from_slice(&[self.mode as u8, verify, kind, dtype]);
        out[20..24].copy_from_slice(&every.to_le_bytes());
        out[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        out[32..40].copy_from_slice(&parameter.to_le_bytes());
        out[ROWS].copy_from_slice(&self.rows.to_le_bytes());
        out[48..56].copy_from_slice(&self.counts.to_le_bytes());
        out[56..64].copy_from_slice(&self.agreement.to_le_bytes());
        out[64..72].copy_from_slice(&self.weights_version.to_le_bytes());
        out[INPUTS].copy_from_slice(&self.inputs.to_le_bytes());
        out[ADJUSTED] = u8::from(self.adjusted);
        out
    }

    /// Digest of all that the members must have in common. The rows and inputs are each replica's own, and
    /// where counts are learned, so is whether any rank has adjustments.
    pub fn terms(&self) -> u64 {
        let adjusted = self.adjusted && self.mode != Mode::Discover;
        digest::of_bytes(&Header { rows: 0, inputs: 0, adjusted, ..*self }.encode())
    }

    /// Reads a header; `None` where the bytes are none of this version.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        if bytes[..4] != MAGIC {
            return None;
        }
        let mode = [Mode::Create, Mode::Exact, Mode::Capacity, Mode::Discover];
        let verify = match bytes[17] {
            0 => Verify::Always,
            1 => Verify::WarmUp,
            2 => Verify::Every(u32_at(20)),
            _ => return None,
        };
        let request = match bytes[18] {
            0 => None,
            1 => Some(Request::Logits { dtype: crate::dtype::DType::from_code(bytes[19])? }),
            2 => Some(Request::Argmax),
            3 => Some(Request::TopK { k: usize::try_from(u64_at(bytes, 32)).ok()? }),
            4 if bytes[19] <= 1 => Some(Request::Logprobs {
                top_n: usize::try_from(u64_at(bytes, 32)).ok()?,
                processed: bytes[19] == 1,
            }),
            5 => Some(Request::Sample),
            _ => return None,
        };
        Some(Header {
            head: u32_at(4),
            instance: u32_at(8),
            epoch: u32_at(12),
            mode: *mode.get(usize::from(bytes[16]))?,
            verify,
            request,
            adjusted: match bytes[ADJUSTED] {
                0 => false,
                1 => true,
                _ => return None,
            },
            sequence: u64_at(bytes, 24),
            rows: u64_at(bytes, ROWS.start),
            counts: u64_at(bytes, 48),
            agreement: u64_at(bytes, 56),
            weights_version: u64_at(bytes, 64),
            inputs: u64_at(bytes, INPUTS.start),
        })
    }
}

/// Where a header has what is each replica's own.
const ROWS: std::ops::Range<usize> = 40..48;
const INPUTS: std::ops::Range<usize> = 72..80;
const ADJUSTED: usize = 80;

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// A step's number and its rank's side of the contract, fixed before anything is sent.
#[derive(Debug, Clone)]
pub(crate) struct Ticket {
    pub header: Header,
    pub counts: RowCounts,
    pub request: Request,
    /// The step begins with an exchange of headers.
    pub verified: bool,
    /// A call of the step; its operation stands for none in particular.
    pub call: Call,
}

impl Ticket {
    /// A call of this step.
    pub fn call(&self, operation: Operation) -> Call {
        Call { operation, ..self.call }
    }
}

/// The digest of exact counts and the capacity, as the header carries them.
pub(crate) fn counts_field(counts: &RowCounts) -> (Mode, u64) {
    match counts {
        RowCounts::Exact(list) => {
            let mut digest = digest::Digest::new();
            list.iter().for_each(|&n| digest.word(n as u64));
            (Mode::Exact, digest.finish())
        }
        RowCounts::Capacity { max, .. } => (Mode::Capacity, *max as u64),
        RowCounts::Discover { .. } => (Mode::Discover, 0),
    }
}

/// What agreeing headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// The rows that each member's replica brings.
    pub rows: Vec<usize>,
    /// Some rank has adjustments.
    pub adjusted: bool,
}

/// Compares the headers of `members` (ascending).
/// `mine` is the caller's own; `name` is its head's name and `counts` its own view of the counts, for messages.
///
/// Every rank that sees the same headers comes to the same result. Headers are compared as bytes, in one pass
/// over the members; texts are made only where they differ.
///
/// # Errors
/// `StepMismatch` naming each field on which ranks differ, and who said what.
pub fn agree(
    group: &HeadGroup,
    members: &[usize],
    headers: &[[u8; HEADER_BYTES]],
    mine: &Header,
    name: &str,
    counts: &RowCounts,
) -> Result<Agreed> {
    let own = mine.encode();
    // Where counts are learned, so is who has adjustments.
    let learned = mine.mode == Mode::Discover;
    let common = |header: &[u8; HEADER_BYTES]| {
        header[..ROWS.start] == own[..ROWS.start]
            && header[ROWS.end..INPUTS.start] == own[ROWS.end..INPUTS.start]
            && (header[ADJUSTED] == own[ADJUSTED] || learned && header[ADJUSTED] <= 1)
            && header[ADJUSTED + 1..] == own[ADJUSTED + 1..]
    };
    // The tensor-parallel ranks of a replica are neighbours among the members.
    let of_replica = |at: usize| {
        let header = &headers[at];
        (u64_at(header, ROWS.start), u64_at(header, INPUTS.start), header[ADJUSTED])
    };
    let same_replica = |at: usize| group.replica_of(members[at - 1]) == group.replica_of(members[at]);
    let replicas_agree =
        || (1..headers.len()).all(|at| !same_replica(at) || of_replica(at - 1) == of_replica(at));
    if headers.iter().all(common) && replicas_agree() {
        return Ok(Agreed {
            rows: headers.iter().map(|header| u64_at(header, ROWS.start) as usize).collect(),
            adjusted: headers.iter().any(|header| header[ADJUSTED] != 0),
        });
    }
    let disagreements = disagreements(group, members, headers, mine, name, counts);
    Err(Error::mismatch(mine.sequence, disagreements))
}

/// The fields on which headers differ, in words.
fn disagreements(
    group: &HeadGroup,
    members: &[usize],
    headers: &[[u8; HEADER_BYTES]],
    mine: &Header,
    name: &str,
    counts: &RowCounts,
) -> Vec<Disagreement> {
    let ranks = || members.iter().map(|&m| group.ranks()[m]);
    let decoded: Vec<Option<Header>> = headers.iter().map(Header::decode).collect();
    if decoded.contains(&None) {
        // All modes but one begin with a header, so that its absence says which mode it is.
        let said = headers.iter().zip(&decoded).map(|(bytes, header)| match header {
            Some(header) => format!("{} with a header", header.mode.name()),
            None => without_header(bytes).into(),
        });
        let said: Vec<(usize, String)> = ranks().zip(said).collect();
        let found = disagreement("mode", said.iter().cloned());
        // Not even the caller's own came back as it was sent.
        let all =
            || Disagreement { field: "mode".into(), said: vec![(ranks().collect(), said[0].1.clone())] };
        return vec![found.unwrap_or_else(all)];
    }
    let decoded: Vec<Header> = decoded.into_iter().flatten().collect();
    let mut found = Vec::new();
    let mut compare = |field: &str, say: &dyn Fn(&Header) -> String| {
        found.extend(disagreement(field, ranks().zip(decoded.iter().map(say))));
    };
    compare("head", &|h| match h.head == mine.head {
        true => format!("`{name}`"),
        false => format!("another head (id {:#010x})", h.head),
    });
    compare("instance", &|h| format!("instance {} of the head", h.instance));
    compare("epoch", &|h| h.epoch.to_string());
    compare("sequence", &|h| format!("step {}", h.sequence));
    compare("mode", &|h| h.mode.name().into());
    compare("verification", &|h| h.verify.to_string());
    compare("request", &|h| h.request.map_or_else(|| "none".into(), |r| r.to_string()));
    compare("weights_version", &|h| h.weights_version.to_string());
    if decoded.iter().any(|h| h.mode != Mode::Discover) {
        compare("adjustments", &|h| if h.adjusted { "some rows have them" } else { "none" }.into());
    }
    compare("agreement", &|h| format!("{:#018x} of sizes, dtypes and backend", h.agreement));
    if decoded.iter().all(|h| h.mode == mine.mode) {
        let list = match counts {
            RowCounts::Exact(list) => format!("{list:?}"),
            _ => String::new(),
        };
        compare("counts", &|h| match mine.mode {
            Mode::Capacity => format!("a capacity of {} rows", h.counts),
            Mode::Exact if h.counts == mine.counts => list.clone(),
            Mode::Exact => format!("another list, in which its own replica has {} rows", h.rows),
            _ => "nothing".into(),
        });
    }
    let each: Vec<(usize, &Header)> = members.iter().copied().zip(&decoded).collect();
    for ranks in each.chunk_by(|a, b| group.replica_of(a.0) == group.replica_of(b.0)) {
        let replica = group.replica_of(ranks[0].0);
        let mut compare = |field: String, say: &dyn Fn(&Header) -> String| {
            let said = ranks.iter().map(|(member, header)| (group.ranks()[*member], say(header)));
            found.extend(disagreement(&field, said));
        };
        // Where it is learned who has adjustments, the ranks of a replica still speak for the same rows.
        compare(format!("adjustments of replica {replica}"), &|h| {
            if h.adjusted { "some" } else { "none" }.into()
        });
        compare(format!("rows of replica {replica}"), &|h| format!("{} rows", h.rows));
        compare(format!("inputs of replica {replica} (hidden rows, targets or adjustments)"), &|h| {
            format!("digest {:#018x}", h.inputs)
        });
    }
    if found.is_empty() {
        // Bytes differ that no field of this version has.
        let said = headers.iter().map(|bytes| format!("bytes of digest {:#018x}", digest::of_bytes(bytes)));
        found.extend(disagreement("header", ranks().zip(said)));
    }
    found
}

/// What a rank does whose message does not begin with a header of this version.
fn without_header(bytes: &[u8]) -> &'static str {
    match bytes.starts_with(&MAGIC[..3]) {
        true => "a step header of another version of lmhead",
        false => "exact without a header: a step that is not verified (or another program)",
    }
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
            instance: 0,
            epoch: 0,
            mode: Mode::Exact,
            verify: Verify::Always,
            request: Some(Request::Argmax),
            adjusted: false,
            sequence: 3,
            rows: 2,
            counts: 99,
            agreement: 5,
            weights_version: 0,
            inputs: 0,
        }
    }

    proptest! {
        #[test]
        fn headers_survive_the_wire(
            head in any::<u32>(), epoch in any::<u32>(), mode in 0usize..4, verify in 0u32..9, request in 0usize..6,
            sequence in any::<u64>(), rows in any::<u64>(), counts in any::<u64>(), agreement in any::<u64>(), k in any::<u32>(),
            adjusted in any::<bool>(), instance in any::<u32>(), weights_version in any::<u64>(),
            inputs in any::<u64>(),
        ) {
            let dtype = [DType::F32, DType::F16, DType::Bf16][request % 3];
            let header = Header {
                head, instance, epoch, adjusted, sequence, rows, counts, agreement, weights_version, inputs,
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
        assert_eq!(
            agree(&group, &[0, 1, 2], &headers, &mine, "lm_head", &counts),
            Ok(Agreed { rows: vec![2, 2, 2], adjusted: false })
        );
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
