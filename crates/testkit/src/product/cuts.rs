//! Searches for cuts of rows whose filters only the device knows, with messages that no shard can have sent.

use super::shards::Placed;
use crate::{Random, TestHead};
use lmhead::backend::cuts::{Cuts, SEARCH_BYTES, room_bytes};
use lmhead::backend::device::{DeviceBackend, KernelDevice};
use lmhead::backend::params::SamplingRow;
use lmhead::backend::{Backend, HeldLogits, Job, On};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::epilogue::Epilogue;
use lmhead::merge::Candidate;
use lmhead::rows::HiddenRows;
use lmhead::sampling::cut::{Digits, Sum};

const ROWS: usize = 3;
/// The row whose messages are damaged.
const ODD: usize = 1;
const IDS: usize = 64;

/// How a message of that row is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    None,
    InfiniteLargest,
    /// A bin holds more than all ids of a shard.
    CrowdedBin,
    /// A histogram has less than the bin of the digit before.
    LostLogits,
    /// More ties than a shard has ids.
    Allowance,
}

/// Checks that a row with an impossible message gets an infinite candidate from some shard, which no draw
/// accepts, and that the other rows are drawn as without the damage.
///
/// # Panics
/// Where that is not so.
pub fn damaged_messages_are_rows_of_bad_input<D: KernelDevice>(backend: &DeviceBackend<D>) {
    let good = candidates(backend, Damage::None);
    let finite = |row: usize| good.iter().any(|of_shard| of_shard[row].value.is_finite());
    assert!((0..ROWS).all(finite), "{good:?}");
    for damage in [Damage::InfiniteLargest, Damage::CrowdedBin, Damage::LostLogits, Damage::Allowance] {
        let got = candidates(backend, damage);
        for (shard, (got, good)) in got.iter().zip(&good).enumerate() {
            for row in (0..ROWS).filter(|row| *row != ODD) {
                assert_eq!(got[row], good[row], "{damage:?}, row {row} of shard {shard}");
            }
        }
        let infinite = got.iter().any(|of_shard| of_shard[ODD].value == f32::INFINITY);
        assert!(infinite, "{damage:?}: {got:?}");
    }
}

/// The candidates of all rows from each of two shards.
fn candidates<D: KernelDevice>(backend: &DeviceBackend<D>, damage: Damage) -> [Vec<Candidate>; 2] {
    let memory = Backend::memory(backend);
    let place = |bytes: &[u8]| Placed::new(backend, memory, bytes);
    let head = TestHead::random(2 * IDS, 16, DType::Bf16, Quantization::None, 3);
    let rows = head.rows(ROWS, 5);
    let hidden = HiddenRows::new(&rows, DType::Bf16, ROWS, 16).expect("rows");
    let job = Job { rows: hidden, epilogue: Epilogue::default(), adjustments: None, placed: None };
    let mut random = Random(9);
    let sampling: Vec<SamplingRow> = (0..ROWS)
        .map(|_| SamplingRow {
            seed: random.next(),
            position: 4,
            temperature: 1.0,
            top_k: 20,
            top_p: 0.9,
            min_p: 0.0,
        })
        .collect();
    let sampling = place(bytemuck::cast_slice(&sampling));
    let mut loaded =
        [0..IDS, IDS..2 * IDS].map(|ids| backend.load(&head.shard(ids), DType::Bf16).expect("memory"));
    let mut held: Vec<&mut dyn HeldLogits> = loaded
        .iter_mut()
        .map(|loaded| loaded.hold(&job, false, &mut On::default()).expect("held logits"))
        .collect();
    let mut cut = |shard: usize, pass: Cuts<'_>| held[shard].cut(pass).expect("a pass");

    // The messages of both shards, one behind the other.
    let gathered = |messages: [&Placed<D>; 2]| -> Vec<u8> {
        messages.iter().flat_map(|message| message.read()).collect()
    };
    let mut largest = [(); 2].map(|()| place(&[0; 4 * ROWS]));
    for (shard, out) in largest.iter_mut().enumerate() {
        cut(shard, Cuts::Maxima { out: out.span_mut() });
    }
    let mut maxima: Vec<f32> = bytemuck::pod_collect_to_vec(&gathered(largest.each_ref()));
    if damage == Damage::InfiniteLargest {
        maxima[ROWS + ODD] = f32::INFINITY;
    }
    let maxima = place(bytemuck::cast_slice(&maxima));
    let digits = Digits::planned(ROWS, 2);
    let first = digits.each().next().expect("a digit");
    let mut rooms = [(); 2].map(|()| place(&vec![0x77; room_bytes(ROWS).expect("rows")]));
    for (shard, room) in rooms.iter_mut().enumerate() {
        let mut bare = place(&[0; ROWS * size_of::<SamplingRow>()]);
        let (sampling, maxima, room) = (sampling.span(), maxima.span(), room.span_mut());
        cut(shard, Cuts::Begin { sampling, maxima, shards: 2, digit: first, room, bare: bare.span_mut() });
    }
    // The first shard owns all rows.
    let mut searches = place(&[0x77; ROWS * SEARCH_BYTES]);
    for sum in [Sum::Ids, Sum::Masses] {
        let mut rounds = digits.each().enumerate().peekable();
        while let Some((round, digit)) = rounds.next() {
            let bins = digit.bins();
            let mut own = [(); 2].map(|()| place(&vec![0; 8 * bins * ROWS]));
            for (shard, out) in own.iter_mut().enumerate() {
                cut(shard, Cuts::Histograms { digit, room: rooms[shard].span(), out: out.span_mut() });
            }
            let mut all: Vec<u64> = bytemuck::pod_collect_to_vec(&gathered(own.each_ref()));
            let of = |shard: usize| (shard * ROWS + ODD) * bins..(shard * ROWS + ODD + 1) * bins;
            match damage {
                Damage::CrowdedBin if sum == Sum::Ids && round == 0 => all[of(1).start] += IDS as u64 + 1,
                Damage::LostLogits if sum == Sum::Ids && round == 1 => {
                    (0..2).for_each(|shard| all[of(shard)].fill(0));
                }
                _ => {}
            }
            let (all, mut out) = (place(bytemuck::cast_slice(&all)), place(&[0; 2 * 8 * ROWS]));
            let learn = Cuts::Learn {
                sum,
                digit,
                histograms: all.span(),
                shards: 2,
                first: 0,
                sampling: sampling.span(),
                room: rooms[0].span(),
                searches: searches.span_mut(),
                out: out.span_mut(),
            };
            cut(0, learn);
            // Key and allowance of each row and shard.
            let mut found: Vec<[u32; 2]> = bytemuck::pod_collect_to_vec(&out.read());
            let next = rounds.peek().map(|(_, digit)| *digit);
            if damage == Damage::Allowance && sum == Sum::Ids && next.is_none() {
                found[ROWS + ODD][1] = IDS as u32 + 1;
            }
            for (shard, room) in rooms.iter_mut().enumerate() {
                let found = place(bytemuck::cast_slice(&found[shard * ROWS..(shard + 1) * ROWS]));
                let (found, sampling, room) = (found.span(), sampling.span(), room.span_mut());
                cut(shard, Cuts::Next { sum, found, next, sampling, room });
            }
        }
        for (shard, room) in rooms.iter_mut().enumerate() {
            cut(shard, Cuts::End { sum, digit: first, sampling: sampling.span(), room: room.span_mut() });
        }
    }
    [0, 1].map(|shard| {
        let mut out = place(&[0; 8 * ROWS]);
        cut(shard, Cuts::Candidates { room: rooms[shard].span(), out: out.span_mut() });
        bytemuck::pod_collect_to_vec(&out.read())
    })
}
