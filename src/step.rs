//! A step's contract: every rank of a group makes the same calls, in the same order, with agreeing arguments.
//! Each rank describes its call in a header of 96 bytes; every rank compares all headers.

use crate::adjust::DeviceAdjustments;
use crate::config::Verify;
use crate::digest;
use crate::dtype::DType;
use crate::error::{Disagreement, Error, Result};
use crate::layout::HeadGroup;
use crate::result::{Request, TokenLogprobs};
use crate::rows::RowCounts;
use crate::sampling::Filters;
use bytemuck::{Pod, Zeroable};
use std::fmt;
use std::mem::offset_of;

/// Bytes of an encoded [`Header`].
pub const HEADER_BYTES: usize = 96;

const MAGIC: [u8; 4] = *b"LMH3";

/// One rank's side of the contract; [`Header::encode`] makes [`HEADER_BYTES`] of it, little-endian:
///
/// | bytes | field |
/// |---|---|
/// | 0..4 | `LMH3` |
/// | 4..8 | head: hash of its name |
/// | 8..12 | instance: which of the heads of this name on this transport |
/// | 12..16 | epoch: times the head was rebuilt |
/// | 16 | mode: 0 create, 1 exact, 2 capacity, 3 discover |
/// | 17 | verification: 0 always, 1 prepare, 2 every n |
/// | 18 | request: 0 none, 1 logits, 2 argmax, 3 topk, 4 logprobs, 5 sample |
/// | 19 | dtype of requested logits; for logprobs, also a sampled token's: 1 raw, 2 processed |
/// | 20..24 | n of `verify = every n` |
/// | 24..32 | sequence: number of the step |
/// | 32..40 | the request's k; or its top_n and, from bit 48 on, the number of targets per row |
/// | 40..48 | rows that the rank's replica brings |
/// | 48..56 | exact: digest of all counts; capacity: the capacity |
/// | 56..64 | digest of what was agreed at creation: sizes, dtypes, quantisation, backend, ... |
/// | 64..72 | version of the weights, as the engine counts it |
/// | 72..80 | digest of the inputs that a replica's ranks share; 0 where they are not known yet |
/// | 80 | 1 where the step has adjustments |
/// | 81 | 1 where rows and answers are in device memory |
/// | 82 | 1 where some rows have a mask in device memory |
/// | 83 | who knows the rows' filters, `Filters`: 0 the host, 1 nobody (no row has one), 2 the device |
/// | 84..88 | the most logit biases that a row has in device memory |
/// | 88..92 | the most ids with penalties that a row has in device memory |
/// | 92..96 | zero |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub head: u32,
    pub instance: u32,
    pub epoch: u32,
    pub mode: Mode,
    pub verify: Verify,
    pub request: Option<Request>,
    pub adjusted: bool,
    pub on_device: bool,
    pub filters: Filters,
    /// Which adjustments some rows have in device memory.
    pub placed: DeviceAdjustments,
    pub sequence: u64,
    pub rows: u64,
    pub counts: u64,
    pub agreement: u64,
    pub weights_version: u64,
    pub inputs: u64,
}

/// What a header begins: the creation of a head, or a step whose row counts are known in one of three ways.
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

/// A header's bytes, field by field.
#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct Wire {
    magic: [u8; 4],
    head: u32,
    instance: u32,
    epoch: u32,
    mode: u8,
    verify: u8,
    request: u8,
    detail: u8,
    every: u32,
    sequence: u64,
    parameter: u64,
    rows: u64,
    counts: u64,
    agreement: u64,
    weights_version: u64,
    inputs: u64,
    adjusted: u8,
    on_device: u8,
    masks: u8,
    filters: u8,
    logit_bias: u32,
    penalties: u32,
    zeros: [u8; 4],
}

const _: () = assert!(size_of::<Wire>() == HEADER_BYTES, "no gaps");
const _: () = assert!(cfg!(target_endian = "little"), "integers travel as they lie in memory");

/// Offsets of the fields that may differ between replicas.
const ROWS: std::ops::Range<usize> = offset_of!(Wire, rows)..offset_of!(Wire, counts);
const INPUTS: std::ops::Range<usize> = offset_of!(Wire, inputs)..offset_of!(Wire, adjusted);
const ADJUSTED: usize = offset_of!(Wire, adjusted);
/// The bit of `parameter` from which on it holds the targets per row.
const TARGETS: u32 = 48;

impl Header {
    /// The header of a creation.
    pub(crate) fn of_creation(head: u32, instance: u32, verify: Verify) -> Self {
        Header {
            head,
            instance,
            epoch: 0,
            mode: Mode::Create,
            verify,
            request: None,
            adjusted: false,
            on_device: false,
            filters: Filters::ByHost,
            placed: DeviceAdjustments::default(),
            sequence: 0,
            rows: 0,
            counts: 0,
            agreement: 0,
            weights_version: 0,
            inputs: 0,
        }
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let processed = |processed: bool| if processed { 2 } else { 1 };
        let (request, detail, parameter) = match self.request {
            None => (0, 0, 0),
            Some(Request::Logits { dtype }) => (1, dtype.code(), 0),
            Some(Request::Argmax) => (2, 0, 0),
            Some(Request::TopK { k }) => (3, 0, k as u64),
            Some(Request::Logprobs { targets, top_n, processed: of }) => {
                (4, processed(of), top_n as u64 | (targets as u64) << TARGETS)
            }
            Some(Request::Sample { logprobs: None }) => (5, 0, 0),
            Some(Request::Sample { logprobs: Some(told) }) => {
                (5, processed(told.processed), told.top_n as u64)
            }
        };
        let (verify, every) = match self.verify {
            Verify::Always => (0, 0),
            Verify::WarmUp => (1, 0),
            Verify::Every(n) => (2, n),
        };
        bytemuck::cast(Wire {
            magic: MAGIC,
            head: self.head,
            instance: self.instance,
            epoch: self.epoch,
            mode: self.mode as u8,
            verify,
            request,
            detail,
            every,
            sequence: self.sequence,
            parameter,
            rows: self.rows,
            counts: self.counts,
            agreement: self.agreement,
            weights_version: self.weights_version,
            inputs: self.inputs,
            adjusted: u8::from(self.adjusted),
            on_device: u8::from(self.on_device),
            masks: u8::from(self.placed.allowed),
            filters: self.filters as u8,
            logit_bias: self.placed.logit_bias,
            penalties: self.placed.counts,
            zeros: [0; 4],
        })
    }

    /// Digest of all that the members must have in common: not the rows and inputs, which are each replica's
    /// own, and in mode discover not whether the rank has adjustments.
    pub fn terms(&self) -> u64 {
        let adjusted = self.adjusted && self.mode != Mode::Discover;
        digest::of_bytes(&Header { rows: 0, inputs: 0, adjusted, ..*self }.encode())
    }

    /// Reads a header; `None` where the bytes are not a header of this version.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let wire: Wire = bytemuck::pod_read_unaligned(bytes);
        if wire.magic != MAGIC {
            return None;
        }
        let flag = |byte: u8| if byte <= 1 { Some(byte == 1) } else { None };
        let mode = [Mode::Create, Mode::Exact, Mode::Capacity, Mode::Discover];
        let verify = match wire.verify {
            0 => Verify::Always,
            1 => Verify::WarmUp,
            2 => Verify::Every(wire.every),
            _ => return None,
        };
        let parameter = usize::try_from(wire.parameter).ok()?;
        let top_n = (wire.parameter & ((1 << TARGETS) - 1)) as usize;
        let request = match (wire.request, wire.detail) {
            (0, _) => None,
            (1, dtype) => Some(Request::Logits { dtype: DType::from_code(dtype)? }),
            (2, _) => Some(Request::Argmax),
            (3, _) => Some(Request::TopK { k: parameter }),
            (4, of @ 1..=2) => {
                let targets = (wire.parameter >> TARGETS) as usize;
                Some(Request::Logprobs { targets, top_n, processed: of == 2 })
            }
            (5, 0) => Some(Request::Sample { logprobs: None }),
            (5, of @ 1..=2) => {
                Some(Request::Sample { logprobs: Some(TokenLogprobs { top_n, processed: of == 2 }) })
            }
            _ => return None,
        };
        Some(Header {
            head: wire.head,
            instance: wire.instance,
            epoch: wire.epoch,
            mode: *mode.get(usize::from(wire.mode))?,
            verify,
            request,
            adjusted: flag(wire.adjusted)?,
            on_device: flag(wire.on_device)?,
            filters: Filters::of_byte(wire.filters)?,
            placed: DeviceAdjustments {
                allowed: flag(wire.masks)?,
                logit_bias: wire.logit_bias,
                counts: wire.penalties,
            },
            sequence: wire.sequence,
            rows: wire.rows,
            counts: wire.counts,
            agreement: wire.agreement,
            weights_version: wire.weights_version,
            inputs: wire.inputs,
        })
    }

    /// The rows that the header `bytes` announces.
    pub(crate) fn rows_of(bytes: &[u8; HEADER_BYTES]) -> usize {
        u64_at(bytes, ROWS.start) as usize
    }
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The mode of a step with these counts, and the header's `counts` field: a digest of exact counts, or the
/// capacity.
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

/// Compares the headers of `members` (ascending), and returns whether any rank has adjustments. `mine` is the
/// caller's own header; messages use `name`, its head's, and `counts`, its list of exact counts.
///
/// Every rank that sees the same headers comes to the same result. Headers are compared as bytes, in one pass
/// over the members; messages are only made where they differ.
///
/// # Errors
/// `StepMismatch` naming each field on which ranks differ, and what each rank said.
pub fn agree(
    group: &HeadGroup,
    members: &[usize],
    headers: &[[u8; HEADER_BYTES]],
    mine: &Header,
    name: &str,
    counts: &[usize],
) -> Result<bool> {
    let own = mine.encode();
    // In mode discover, each rank learns from the headers who has adjustments: they need not agree.
    let learned = mine.mode == Mode::Discover;
    let common = |header: &[u8; HEADER_BYTES]| {
        header[..ROWS.start] == own[..ROWS.start]
            && header[ROWS.end..INPUTS.start] == own[ROWS.end..INPUTS.start]
            && (header[ADJUSTED] == own[ADJUSTED] || learned && header[ADJUSTED] <= 1)
            && header[ADJUSTED + 1..] == own[ADJUSTED + 1..]
    };
    // The tensor-parallel ranks of a replica are next to each other, and must agree on its rows and inputs.
    let of_replica = |at: usize| {
        let header = &headers[at];
        (u64_at(header, ROWS.start), u64_at(header, INPUTS.start), header[ADJUSTED])
    };
    let same_replica = |at: usize| group.replica_of(members[at - 1]) == group.replica_of(members[at]);
    let replicas_agree =
        || (1..headers.len()).all(|at| !same_replica(at) || of_replica(at - 1) == of_replica(at));
    if headers.iter().all(common) && replicas_agree() {
        return Ok(headers.iter().any(|header| header[ADJUSTED] != 0));
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
    counts: &[usize],
) -> Vec<Disagreement> {
    let ranks = || members.iter().map(|&m| group.ranks()[m]);
    let decoded: Vec<Option<Header>> = headers.iter().map(Header::decode).collect();
    if decoded.contains(&None) {
        // Only an exact step that is not verified begins without a header, so its absence names the mode.
        let said = headers.iter().zip(&decoded).map(|(bytes, header)| match header {
            Some(header) => format!("{} with a header", header.mode.name()),
            None => without_header(bytes).into(),
        });
        let said: Vec<(usize, String)> = ranks().zip(said).collect();
        let found = disagreement("mode", said.iter().cloned());
        // All ranks, the caller included, seem to have said the same: the transport changed its own header.
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
    compare("memory", &|h| if h.on_device { "device memory" } else { "host memory" }.into());
    compare("filters", &|h| h.filters.to_string());
    compare("adjustments in device memory", &|h| h.placed.to_string());
    compare("weights_version", &|h| h.weights_version.to_string());
    if decoded.iter().any(|h| h.mode != Mode::Discover) {
        compare("adjustments", &|h| if h.adjusted { "some rows have them" } else { "none" }.into());
    }
    compare("agreement", &|h| format!("{:#018x} of sizes, dtypes and backend", h.agreement));
    if decoded.iter().all(|h| h.mode == mine.mode) {
        let list = format!("{counts:?}");
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
        // Also in mode discover: the ranks of one replica bring the same rows.
        compare(format!("adjustments of replica {replica}"), &|h| {
            if h.adjusted { "some" } else { "none" }.into()
        });
        compare(format!("rows of replica {replica}"), &|h| format!("{} rows", h.rows));
        compare(format!("inputs of replica {replica} (hidden rows, targets or adjustments)"), &|h| {
            format!("digest {:#018x}", h.inputs)
        });
    }
    if found.is_empty() {
        // Only bytes that belong to no field differ.
        let said = headers.iter().map(|bytes| format!("bytes of digest {:#018x}", digest::of_bytes(bytes)));
        found.extend(disagreement("header", ranks().zip(said)));
    }
    found
}

/// What a message that does not begin with a header of this version says about its sender.
fn without_header(bytes: &[u8]) -> &'static str {
    match bytes.starts_with(&MAGIC[..3]) {
        true => "a step header of another version of lmhead",
        false => "exact without a header: a step that is not verified (or another program)",
    }
}

/// Groups the ranks by what they said about a field; `None` where all said the same.
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
            on_device: false,
            filters: Filters::ByHost,
            placed: DeviceAdjustments::default(),
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
            head in any::<u32>(), epoch in any::<u32>(), mode in 0usize..4, verify in 0u32..9,
            request in 0usize..7, sequence in any::<u64>(), rows in any::<u64>(), counts in any::<u64>(),
            agreement in any::<u64>(), k in any::<u32>(), adjusted in any::<bool>(),
            instance in any::<u32>(), weights_version in any::<u64>(),
            inputs in any::<u64>(), every: bool, targets in 1usize..0xffff,
        ) {
            let dtype = [DType::F32, DType::F16, DType::Bf16][request % 3];
            let (top_n, processed) = (k as usize, adjusted);
            let logprobs = every.then_some(TokenLogprobs { top_n, processed });
            let header = Header {
                head, instance, epoch, adjusted, on_device: every, sequence, rows, counts, agreement,
                filters: [Filters::ByHost, Filters::None, Filters::ByDevice][request % 3],
                placed: DeviceAdjustments { allowed: adjusted, logit_bias: k, counts: !k },
                weights_version, inputs,
                mode: [Mode::Create, Mode::Exact, Mode::Capacity, Mode::Discover][mode],
                verify: [Verify::Always, Verify::WarmUp, Verify::Every(verify)][verify as usize % 3],
                request: [
                    None,
                    Some(Request::Argmax),
                    Some(Request::TopK { k: k as usize }),
                    Some(Request::Logits { dtype }),
                    Some(Request::Logits { dtype }),
                    Some(Request::Logprobs { targets, top_n, processed }),
                    Some(Request::Sample { logprobs }),
                ][request],
            };
            prop_assert_eq!(Header::decode(&header.encode()), Some(header));
        }

        #[test]
        fn junk_never_panics(
            bytes in prop::collection::vec(any::<u8>(), HEADER_BYTES), magic in any::<bool>(),
        ) {
            let mut bytes: [u8; HEADER_BYTES] = bytes.try_into().unwrap();
            if magic {
                bytes[..4].copy_from_slice(&MAGIC);
            }
            let group = HeadGroup::data_parallel(2, 0).unwrap();
            let mine = header();
            let counts = [2, 2];
            let both = agree(&group, &[0, 1], &[mine.encode(), bytes], &mine, "lm_head", &counts);
            prop_assert!(both.is_err());
        }
    }

    #[test]
    fn each_field_is_compared_and_named() {
        let group = HeadGroup::data_parallel(3, 0).unwrap();
        let mine = header();
        let counts = [2, 5, 2];
        let table: &[(&str, Header)] = &[
            (
                "head: ranks [0, 2] say `lm_head`, ranks [1] say another head (id 0x00000008)",
                Header { head: 8, ..mine },
            ),
            ("epoch: ranks [0, 2] say 0, ranks [1] say 1", Header { epoch: 1, ..mine }),
            ("sequence: ranks [0, 2] say step 3, ranks [1] say step 4", Header { sequence: 4, ..mine }),
            (
                "adjustments in device memory: ranks [0, 2] say no masks, up to 0 logit biases and 0 counts of \
                 a row, ranks [1] say masks, up to 7 logit biases and 0 counts of a row",
                Header { placed: DeviceAdjustments { allowed: true, logit_bias: 7, counts: 0 }, ..mine },
            ),
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
                "counts: ranks [0, 2] say [2, 5, 2], ranks [1] say another list, in which its own replica \
                 has 2 rows",
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
        assert_eq!(agree(&group, &[0, 1, 2], &headers, &mine, "lm_head", &counts), Ok(false));
    }

    #[test]
    fn the_tp_ranks_of_a_replica_bring_the_same_rows() {
        let group = HeadGroup::from_ranks(vec![0, 1, 2, 3], 0, 2).unwrap();
        let mine = Header { mode: Mode::Discover, counts: 0, ..header() };
        let odd = Header { rows: 9, ..mine };
        let headers = [mine.encode(), mine.encode(), mine.encode(), odd.encode()];
        let error = agree(&group, &[0, 1, 2, 3], &headers, &mine, "h", &[]).unwrap_err();
        assert!(
            error.to_string().contains("rows of replica 1: ranks [2] say 2 rows, ranks [3] say 9 rows"),
            "{error}"
        );
    }
}
