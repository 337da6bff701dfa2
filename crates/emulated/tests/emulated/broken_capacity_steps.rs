//! Steps of a fixed shape, with one mistake each.

use crate::broken_matmul::Outcome;
use crate::planted::{Broken, Compared, before, check_compared, outcome};
use lmhead::backend::params::{
    CheckCapacityParams, LMHEAD_HEADER_HALVES, LMHEAD_HEADER_INPUTS, LMHEAD_HEADER_ROWS,
    LMHEAD_HEADER_SEQUENCE, LMHEAD_STATUS_BAD_INDEX, OpenCapacityParams, PackCapacityParams, RowMatrix,
};
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::{Device, LaunchConfig, emulated_kernel};

const HALVES: usize = LMHEAD_HEADER_HALVES as usize;
type Header = [u16; HALVES];

/// The hash of 32 bits at a place (splitmix64), of which digests are sums.
pub fn hash(bits: u32, place: u64) -> u64 {
    let v = (place << 32 | u64::from(bits)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let v = (v ^ v >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    v ^ v >> 31
}

/// A sum of hashes, which overflows.
pub fn sum(of: impl Iterator<Item = u64>) -> u64 {
    of.fold(0, u64::wrapping_add)
}

fn set(header: &mut Header, at: u32, number: u64) {
    let halves = (0..4).map(|i| (number >> (16 * i)) as u16);
    header[at as usize..][..4].iter_mut().zip(halves).for_each(|(to, half)| *to = half);
}

/// CapacityState as halves.
fn state(
    sequence: u64,
    mismatched: u64,
    member: u32,
    bad_rows: u32,
    own: &Header,
    other: &Header,
) -> Vec<u16> {
    let numbers = [sequence, mismatched, u64::from(member) | u64::from(bad_rows) << 32];
    let mut all: Vec<u16> = bytemuck::cast_slice(&numbers).to_vec();
    all.extend(own.iter().chain(other));
    all
}

/// The second of three rows has a bad index; two of padding follow. Rows are of 16 bytes, or begin amid 16.
fn pack(how: u32, seed: u64) -> Outcome {
    const INDICES: [i32; 3] = [2, -2, 1];
    const CAPACITY: usize = 5;
    const PITCH: usize = 304;
    let halves = if how == 0 && seed % 2 == 1 { PITCH } else { PITCH - 4 };
    let rows: Vec<u16> = (0..3 * PITCH).map(|i| (i * 7 + 1) as u16).collect();
    let mut device = Device::new();
    let indices = device.upload(&[INDICES[0], 0, INDICES[2]]);
    let out = device.upload(&vec![7u16; CAPACITY * halves]);
    let status = device.upload(&[7u32; CAPACITY]);
    let digests = device.upload(&[7u64; CAPACITY]);
    let right = PackCapacityParams {
        rows: RowMatrix {
            data: device.upload_read_only(&rows).pointer(),
            pitch: 2 * PITCH as u64,
            indices: indices.pointer(),
            index_bytes: 4,
            source_rows: 3,
        },
        out: out.pointer(),
        status: status.pointer(),
        digests: digests.pointer(),
        row_count: INDICES.len() as u32,
        row_bytes: 2 * halves as u32,
    };
    before(&mut device, indices, 1, INDICES[1] as u32);
    let kernel = emulated_kernel!(broken_pack_capacity: Broken<PackCapacityParams>);
    let config = LaunchConfig::new([CAPACITY as u32, 1, 1], [256, 1, 1]).shared(8 * 8).seed(seed).threads(1);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config);
    outcome(ran, || {
        let own = "the device's own buffer";
        let source = |row: usize| INDICES.get(row).and_then(|index| usize::try_from(*index).ok());
        let wanted: Vec<Vec<u16>> = (0..CAPACITY)
            .map(|row| source(row).map_or(vec![0; halves], |from| rows[from * PITCH..][..halves].to_vec()))
            .collect();
        let digest = |(row, halves): (usize, &Vec<u16>)| {
            let of = |(place, half): (u64, &u16)| hash((*half).into(), place);
            let of_row = sum((0..).zip(halves).map(of));
            let is_there = u64::from(source(row).is_some());
            hash(of_row as u32, row as u64).wrapping_add(hash((of_row >> 32) as u32, is_there))
        };
        device.download::<u32>(status).expect(own) == [0, LMHEAD_STATUS_BAD_INDEX, 0, 0, 0]
            && device.download::<u16>(out).expect(own) == wanted.concat()
            && wanted.iter().enumerate().map(digest).eq(device.download::<u64>(digests).expect(own))
    })
}

/// Rows of two rounds of a warp.
fn open(how: u32, seed: u64) -> Outcome {
    const ROWS: usize = 45;
    const SEQUENCE: u64 = 0x0001_2345_0000_0029;
    let header: Header = std::array::from_fn(|i| 100 + i as u16);
    let digests: Vec<u64> = (0..ROWS as u64).map(|row| hash(1, row)).collect();
    let adjusted: Vec<u64> = (0..ROWS as u64).map(|row| hash(2, row)).collect();
    let status: Vec<u32> = (0..ROWS as u32).map(|row| row % 3 * LMHEAD_STATUS_BAD_INDEX).collect();
    let inputs: Vec<u32> = (0..37).collect();
    let mut device = Device::new();
    let none = [0; HALVES];
    let of_head = device.upload(&state(SEQUENCE & !0xffff_ffff, 3, 4, 5, &none, &none));
    let out = device.upload(&[7u16; HALVES]);
    let right = OpenCapacityParams {
        header,
        state: of_head.pointer(),
        out: out.pointer(),
        digests: device.upload_read_only(&digests).pointer(),
        adjusted: device.upload_read_only(&adjusted).pointer(),
        status: device.upload_read_only(&status).pointer(),
        inputs: device.upload_read_only(&inputs).pointer(),
        input_words: inputs.len() as u32,
        row_count: ROWS as u32,
    };
    before(&mut device, of_head, 0, SEQUENCE as u32);
    let kernel = emulated_kernel!(broken_open_capacity: Broken<OpenCapacityParams>);
    let config = LaunchConfig::new([1; 3], [32, 1, 1]).seed(seed).threads(1);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config);
    outcome(ran, || {
        let of_inputs = (1u64 << 31..).zip(&inputs).map(|(place, word)| hash(*word, place));
        let mut wanted = header;
        set(&mut wanted, LMHEAD_HEADER_SEQUENCE, SEQUENCE);
        let digest = sum(digests.iter().chain(&adjusted).copied().chain(of_inputs));
        set(&mut wanted, LMHEAD_HEADER_INPUTS, digest);
        let bad = status.iter().filter(|status| **status > 0).count() as u32;
        device.download::<u16>(out).expect("the device's own buffer") == wanted
            && device.download::<u16>(of_head).expect("the device's own buffer")
                == state(SEQUENCE + 1, 3, 4, bad, &none, &none)
    })
}

const RANKS: usize = 2;
const MEMBERS: usize = 3 * RANKS;
const ME: usize = 3;
const CAPACITY: u64 = 7;

/// Headers of three replicas, which differ in their rows and inputs.
fn headers() -> [Header; MEMBERS] {
    std::array::from_fn(|member| {
        let mut header = std::array::from_fn(|i| 100 + i as u16);
        set(&mut header, LMHEAD_HEADER_ROWS, [5, CAPACITY, 3][member / RANKS]);
        set(&mut header, LMHEAD_HEADER_INPUTS, 0x1234_5678_9abc_def0 + (member / RANKS) as u64);
        header
    })
}

/// Runs the kernel with these headers; `mismatched` is the step in which others differed already, or 0.
fn checked(how: u32, seed: u64, headers: &[Header; MEMBERS], mismatched: u64) -> Outcome {
    const PITCH: usize = HALVES + 8;
    const PARTS: usize = 2;
    const PART_ROWS: usize = (CAPACITY as usize).div_ceil(PARTS);
    const FIRST_ROW: usize = 5;
    const REPLICA_ROWS: usize = 10;
    const SEQUENCE: u64 = 9;
    let mut sent = vec![0xeeeeu16; MEMBERS * PITCH];
    (0..MEMBERS).for_each(|member| sent[member * PITCH..][..HALVES].copy_from_slice(&headers[member]));
    let set_before = 2 * PITCH + 30;
    let word = u32::from(sent[set_before]) | u32::from(sent[set_before + 1]) << 16;
    sent[set_before..][..2].fill(0);
    let none = [1; HALVES];
    let mut device = Device::new();
    let sent = device.upload(&sent);
    let of_head = device.upload(&state(SEQUENCE, mismatched, 77, 78, &none, &none));
    let positions = device.upload(&[7i32; MEMBERS / RANKS * PARTS * PART_ROWS]);
    let right = CheckCapacityParams {
        own: device.upload_read_only(&headers[ME]).pointer(),
        headers: sent.pointer(),
        header_pitch: 2 * PITCH as u64,
        state: of_head.pointer(),
        positions: positions.pointer(),
        members: MEMBERS as u32,
        ranks: RANKS as u32,
        me: ME as u32,
        capacity: CAPACITY as u32,
        parts: PARTS as u32,
        part_rows: PART_ROWS as u32,
        first_row: FIRST_ROW as u32,
        replica_rows: REPLICA_ROWS as u32,
    };
    before(&mut device, sent, set_before / 2, word);
    let kernel = emulated_kernel!(broken_check_capacity: Broken<CheckCapacityParams>);
    let config = LaunchConfig::new([1; 3], [256, 1, 1]).shared(4 * 8).seed(seed).threads(1);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config);
    outcome(ran, || {
        let rows = |member: usize| {
            let halves = &headers[member][LMHEAD_HEADER_ROWS as usize..][..4];
            halves.iter().rev().fold(0, |number, half| number << 16 | u64::from(*half))
        };
        let is_of_replica = |i: usize| {
            [LMHEAD_HEADER_ROWS, LMHEAD_HEADER_INPUTS]
                .iter()
                .any(|at| (*at as usize..*at as usize + 4).contains(&i))
        };
        let differs = |member: &usize| {
            let like = |i| headers[if is_of_replica(i) { member / RANKS * RANKS } else { ME }][i];
            rows(*member) > CAPACITY || (0..HALVES).any(|i| headers[*member][i] != like(i))
        };
        let differing = (0..MEMBERS).find(differs);
        let mut wanted = Vec::new();
        for replica in 0..MEMBERS / RANKS {
            let rows = rows(replica * RANKS) as usize;
            let mut next = FIRST_ROW + replica * REPLICA_ROWS;
            for part in 0..PARTS {
                let of_part = if differing.is_some() { 0 } else { (rows + PARTS - 1 - part) / PARTS };
                wanted.extend((0..PART_ROWS).map(|i| if i < of_part { (next + i) as i32 } else { -1 }));
                next += of_part;
            }
        }
        let known = match differing {
            Some(member) if mismatched == 0 => {
                let shown = if member == ME { ME / RANKS * RANKS } else { member };
                state(SEQUENCE, SEQUENCE, shown as u32, 78, &headers[ME], &headers[shown])
            }
            _ => state(SEQUENCE, mismatched, 77, 78, &none, &none),
        };
        device.download::<i32>(positions).expect("the device's own buffer") == wanted
            && device.download::<u16>(of_head).expect("the device's own buffer") == known
    })
}

/// Headers that agree, and such as differ in one way each: the first fault of these, or a wrong result.
fn check(how: u32, seed: u64) -> Outcome {
    let with = |change: &dyn Fn(&mut [Header; MEMBERS])| {
        let mut headers = headers();
        change(&mut headers);
        headers
    };
    let number = 0x20; // the third word of a number is changed: all of it is compared
    let steps = [
        (headers(), 0),
        // A replica has more rows than the capacity.
        (with(&|all| all[2..4].iter_mut().for_each(|of| set(of, LMHEAD_HEADER_ROWS, CAPACITY + 1))), 0),
        (with(&|all| all[4][LMHEAD_HEADER_SEQUENCE as usize + 2] ^= number), 0),
        (with(&|all| all[1][LMHEAD_HEADER_INPUTS as usize + 2] ^= number), 0),
        // The own header is the one that differs from its replica's.
        (with(&|all| all[ME][LMHEAD_HEADER_INPUTS as usize] ^= number), 0),
        // Others differed before.
        (with(&|all| all[2][1] ^= number), 4),
        // A thread compares both.
        (with(&|all| [(0, 10), (5, 26)].iter().for_each(|(of, i)| all[*of][*i] ^= number)), 0),
    ];
    let outcomes = steps.iter().map(|(headers, before)| checked(how, seed, headers, *before));
    let worse = |all, next| match (all, next) {
        (Outcome::Fault(fault), _) | (_, Outcome::Fault(fault)) => Outcome::Fault(fault),
        (Outcome::Right, Outcome::Right) => Outcome::Right,
        _ => Outcome::Wrong,
    };
    outcomes.fold(Outcome::Right, worse)
}

#[test]
fn rows_of_a_capacity() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "an index after the last read", &[GlobalBounds]),
        (3, "rows of padding counted as bad indices", &[]),
        (4, "rows stored at the source's pitch", &[GlobalBounds]),
        (5, "16 bytes copied at a time, even if not aligned", &[Misaligned, GlobalBounds]),
        (6, "rows of padding not written", &[]),
        (7, "places in the digest counted in bytes, not words", &[]),
        (8, "only the first warp's digest used", &[]),
        (9, "the row's number not in the digest", &[]),
    ];
    check_compared("broken_pack_capacity", rows, pack);
}

#[test]
fn headers_that_are_sent() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "lanes after the last row read, too", &[GlobalBounds]),
        (3, "the adjustments not in the digest", &[]),
        (4, "inputs digested without their places", &[]),
        (5, "only the first lane's sums used", &[]),
        (6, "the step's number not in the header", &[]),
        (7, "only one word of the digest stored", &[]),
        // Accesses of one block's threads to global memory are not checked for races.
        (8, "the step's number stored before all lanes have read it", &[]),
        (9, "the step not counted", &[]),
    ];
    check_compared("broken_open_capacity", rows, open);
}

#[test]
fn headers_that_are_compared() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "the pitch of the headers ignored", &[]),
        (3, "inputs compared with the first replica's, not this replica's", &[]),
        (4, "rows and inputs not compared", &[]),
        (5, "the step's number not compared", &[]),
        (6, "more rows than the capacity accepted", &[]),
        (7, "the last header that differs kept, not the first", &[]),
        (8, "what warps have found read before all have stored it", &[Race]),
        (9, "only this warp's comparison used", &[]),
        (10, "rows taken from another replica's header", &[]),
        (11, "rows of padding get positions", &[]),
        (12, "replicas taken to be one after another without gaps", &[]),
        (13, "the last mismatch kept in place of the first", &[]),
        (14, "this rank's header stored in place of the other", &[]),
        // As above: a race that only the result shows.
        (15, "a mismatch stored before all threads have read that there is none", &[]),
    ];
    check_compared("broken_check_capacity", rows, check);
}
