//! Capacity steps on a device, which packs payloads and compares headers itself: compared with the host's
//! code.

use super::shards::Placed;
use crate::{Random, TestHead};
use lmhead::backend::device::{DeviceBackend, KernelDevice};
use lmhead::backend::{Arrivals, Backend, On, Payload};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::layout::even_part;
use lmhead::memory::{Span, SpanMut};
use lmhead::rows::HiddenRows;
use lmhead::step::HEADER_BYTES;

/// Rows that indices choose from.
const SOURCE: usize = 7;
/// The bytes of a header that differ between replicas.
const ROWS: std::ops::Range<usize> = 40..48;
const INPUTS: std::ops::Range<usize> = 72..80;
/// The bytes of a header that hold the number of the step, which the device writes.
const SEQUENCE: std::ops::Range<usize> = 24..32;

/// Checks packed payloads: real rows have their bits, padding rows are zeros; the header has the device's
/// step number, and with `digests` a digest that depends on every bit of every row and on the order of the
/// rows.
///
/// # Panics
/// Where that is not so.
pub fn payloads_are_packed<D: KernelDevice>(backend: &DeviceBackend<D>, seed: u64) {
    let mut random = Random(seed);
    for case in 0..8 {
        // Includes rows that are aligned to 16 bytes and rows that are not.
        let hidden = [64, 33, 8, 200][case % 4];
        let test = TestHead::random(70, hidden, DType::Bf16, Quantization::None, seed);
        let mut loaded = backend.load(&test.shard(0..70), DType::Bf16).expect("memory");
        let (capacity, row_bytes) = (1 + random.below(6), 2 * hidden);
        let n = random.below(capacity + 1);
        let memory = Backend::memory(backend);
        let source = test.rows(SOURCE, random.next());
        let mut header = [0; HEADER_BYTES];
        header.fill_with(|| random.next() as u8);
        let indices: Vec<i64> = (0..n).map(|_| random.below(SOURCE + 2) as i64 - 1).collect();
        let mut number = 0;
        let mut digest = |source: &[u8], indices: &[i64], inputs: u32| {
            let extra = Placed::new(backend, memory, &inputs.to_le_bytes());
            let rows = Placed::new(backend, memory, source);
            let picked = Placed::new(backend, memory, bytemuck::cast_slice(indices));
            let space = |bytes: usize| Placed::new(backend, memory, &vec![0x77; bytes]);
            let (mut out, mut header_out) = (space(capacity * row_bytes), space(HEADER_BYTES));
            let (mut status, mut digests) = (space(4 * capacity), space(8 * capacity));
            let shared = case % 2 == 0;
            let all = HiddenRows::strided(rows.span(), DType::Bf16, SOURCE, hidden, row_bytes).expect("rows");
            let payload = Payload {
                rows: all.select_span(picked.span(), 8).expect("indices"),
                capacity,
                header,
                out: out.span_mut(),
                header_out: header_out.span_mut(),
                status: status.span_mut(),
                digests: if shared { digests.span_mut() } else { SpanMut::EMPTY },
                adjusted: Span::EMPTY,
                inputs: extra.span(),
            };
            loaded.open_capacity(payload, &mut On::default()).expect("queued");
            let (out, got, status) = (out.read(), header_out.read(), status.words());
            for row in 0..capacity {
                let index = indices.get(row).copied().filter(|i| (0..SOURCE as i64).contains(i));
                let want = match index {
                    Some(i) => source[i as usize * row_bytes..][..row_bytes].to_vec(),
                    None => vec![0; row_bytes],
                };
                assert!(out[row * row_bytes..][..row_bytes] == want, "seed {seed}, case {case}, row {row}");
                let bad = row < indices.len() && index.is_none();
                assert_eq!(status[row] != 0, bad, "seed {seed}, case {case}, row {row}");
            }
            let mut want = header;
            want[SEQUENCE].copy_from_slice(&u64::to_le_bytes(number));
            number += 1;
            if shared {
                want[INPUTS].copy_from_slice(&got[INPUTS]);
            }
            assert_eq!(got, want, "seed {seed}, case {case}");
            got[INPUTS].to_vec()
        };
        let first = digest(&source, &indices, 5);
        assert_eq!(digest(&source, &indices, 5), first, "seed {seed}: twice the same");
        if case % 2 == 0 {
            assert_ne!(digest(&source, &indices, 6), first, "seed {seed}, case {case}: other inputs");
        }
        let picked = indices.iter().find(|i| (0..SOURCE as i64).contains(i));
        if let (Some(row), true) = (picked, case % 2 == 0) {
            let mut other = source.clone();
            let bit = random.below(8 * row_bytes);
            other[*row as usize * row_bytes + bit / 8] ^= 1 << (bit % 8);
            assert_ne!(digest(&other, &indices, 5), first, "seed {seed}, case {case}: bit {bit} of a row");
            let mut swapped = indices.clone();
            swapped.rotate_left(1);
            if swapped != indices {
                assert_ne!(digest(&source, &swapped, 5), first, "seed {seed}, case {case}: another order");
            }
        }
        loaded.restart_capacity().expect("the device answers");
        assert!(loaded.capacity_steps().expect("counted").mismatch().is_none());
    }
}

/// Checks with random headers that a difference is found in every bit that ranks must have in common, and in
/// no other. Where all agree, the numbers of rows are those in the replicas' headers.
///
/// # Panics
/// Where that is not so.
pub fn headers_are_compared<D: KernelDevice>(backend: &DeviceBackend<D>, seed: u64) {
    let mut random = Random(seed);
    let test = TestHead::random(70, 8, DType::Bf16, Quantization::None, seed);
    let mut loaded = backend.load(&test.shard(0..70), DType::Bf16).expect("memory");
    let memory = Backend::memory(backend);
    for case in 0..24 {
        loaded.restart_capacity().expect("the device answers");
        // Begins one step.
        let mut room = Placed::new(backend, memory, &[0; 512]);
        let (out, rest) = room.span_mut().split_at(128);
        let (header_out, status) = rest.split_at(256);
        let payload = Payload {
            rows: HiddenRows::strided(Span::EMPTY, DType::Bf16, 0, 8, 16).expect("no rows"),
            capacity: 1,
            header: [0; HEADER_BYTES],
            out: out.part(0..16),
            header_out: header_out.part(0..HEADER_BYTES),
            status: status.part(0..4),
            digests: SpanMut::EMPTY,
            adjusted: Span::EMPTY,
            inputs: Span::EMPTY,
        };
        loaded.open_capacity(payload, &mut On::default()).expect("queued");
        let (ranks, replicas) = (1 + random.below(3), 1 + random.below(7));
        let (members, parts, capacity) = (ranks * replicas, 1 + random.below(3), 1 + random.below(9));
        let (me, part_rows) = (random.below(members), capacity.div_ceil(parts));
        // Headers one behind the other, with gaps, or each before its rows; not always aligned.
        let pitch = HEADER_BYTES + [0, 2, 514][case % 3];
        let mut header = [0; HEADER_BYTES];
        header.fill_with(|| random.next() as u8);
        let rows: Vec<u64> = (0..replicas).map(|_| random.below(capacity + 1) as u64).collect();
        let inputs: Vec<u64> = (0..replicas).map(|_| random.next()).collect();
        let mut headers = vec![0x77; members * pitch];
        for member in 0..members {
            let mine = &mut headers[member * pitch..][..HEADER_BYTES];
            mine.copy_from_slice(&header);
            mine[ROWS].copy_from_slice(&rows[member / ranks].to_le_bytes());
            mine[INPUTS].copy_from_slice(&inputs[member / ranks].to_le_bytes());
        }
        let (mut wanted, own) = (None, headers[me * pitch..][..HEADER_BYTES].to_vec());
        let other = random.below(members);
        match case % 4 {
            0 => {}
            // More rows than there is room for.
            1 => {
                let many = (capacity as u64 + 1 + random.next() % 3).to_le_bytes();
                headers[other * pitch..][ROWS].copy_from_slice(&many);
                wanted = Some(other);
            }
            _ => {
                let bit = random.below(8 * HEADER_BYTES);
                let of_replica = ROWS.contains(&(bit / 8)) || INPUTS.contains(&(bit / 8));
                headers[other * pitch + bit / 8] ^= 1 << (bit % 8);
                let said = headers[other * pitch..][ROWS].try_into().expect("eight bytes");
                let too_many = u64::from_le_bytes(said) > capacity as u64;
                // Within a replica, all ranks are compared with its first.
                let is_first = other.is_multiple_of(ranks);
                wanted = match of_replica && !too_many {
                    false => Some(other),
                    true if is_first && ranks > 1 => Some(other + 1),
                    true => (!is_first).then_some(other),
                };
            }
        }
        let (came, own_at) = (Placed::new(backend, memory, &headers), Placed::new(backend, memory, &own));
        let all = replicas * parts * part_rows;
        let mut positions = Placed::new(backend, memory, &vec![0x77; 4 * all]);
        let (first_row, replica_rows) = (random.below(3), capacity + random.below(3));
        let arrivals = Arrivals {
            own: own_at.span(),
            headers: came.span(),
            pitch,
            members,
            ranks,
            me,
            capacity,
            positions: positions.span_mut(),
            parts,
            part_rows,
            first_row,
            replica_rows,
        };
        loaded.check_capacity(arrivals, &mut On::default()).expect("queued");
        let got: Vec<i32> = bytemuck::pod_collect_to_vec(&positions.read());
        let row_at = |replica: usize, part: usize, i: usize| -> i32 {
            let said = headers[replica * ranks * pitch..][ROWS].try_into().expect("eight bytes");
            let rows = even_part(u64::from_le_bytes(said) as usize, parts, part);
            match wanted {
                None if i < rows.len() => (first_row + replica * replica_rows + rows.start + i) as i32,
                _ => -1,
            }
        };
        let each = (0..replicas).flat_map(|replica| {
            (0..parts).flat_map(move |part| (0..part_rows).map(move |i| (replica, part, i)))
        });
        let want: Vec<i32> = each.map(|(replica, part, i)| row_at(replica, part, i)).collect();
        assert_eq!(got, want, "seed {seed}, case {case}: member {other} of {members}, seen by {me}");
        let told = loaded.capacity_steps().expect("counted").mismatch();
        let theirs = |member: usize| headers[member * pitch..][..HEADER_BYTES].to_vec();
        // If this rank's header differs, it is reported together with the one that it was compared with.
        let wanted = wanted.map(|member| if member == me { me / ranks * ranks } else { member });
        let want = wanted.map(|member| {
            (1, member, [own, theirs(member)].map(|bytes| bytes.try_into().expect("a header")))
        });
        assert_eq!(told, want, "seed {seed}, case {case}");
    }
}
