//! Kernels that a step begins with, one mistake each: words that are set, rows that are packed, and logits of
//! single ids.

use crate::broken_matmul::{Outcome, integer, product};
use crate::planted::{Broken, Compared, before, check_compared, outcome};
use lmhead::backend::params::{
    LMHEAD_DTYPE_F32, LMHEAD_STATUS_ALLOWED, LMHEAD_STATUS_BAD_INDEX, LogitMatrix, PackRowsParams, RowMatrix,
    SetWordsParams, TargetLogitsParams, WeightMatrix, WordsToSet,
};
use lmhead_emulated::FaultKind::*;
use lmhead_emulated::{Device, LaunchConfig, emulated_kernel};
use std::ptr::{null, null_mut};

const ROWS: usize = 13;

/// Row 4 has an index that is none.
fn index(row: usize) -> i32 {
    if row == 4 { -1 } else { (row * 5 % ROWS) as i32 }
}

fn indices() -> Vec<i32> {
    (0..ROWS).map(index).collect()
}

/// Each third word is set, by 512 threads.
fn set_words(how: u32, seed: u64) -> Outcome {
    const COUNT: usize = 700;
    let mut device = Device::new();
    let words = device.upload(&[5u32; 3 * (COUNT - 1) + 1]);
    let set = WordsToSet { to: words.pointer::<u32>().cast(), pitch: 12, count: COUNT as u64, value: 9 };
    let none = WordsToSet { to: null_mut(), pitch: 4, count: 3, value: 9 };
    before(&mut device, words, 1, 5);
    let kernel = emulated_kernel!(broken_set_words: Broken<SetWordsParams>);
    let config = LaunchConfig::new([2, 1, 1], [256, 1, 1]).seed(seed).threads(1);
    let right = SetWordsParams { words: [none, set] };
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config);
    outcome(ran, || {
        let out = device.download::<u32>(words).expect("the device's own buffer");
        out.iter().enumerate().all(|(i, word)| *word == if i % 3 == 0 { 9 } else { 5 })
    })
}

/// Packs rows of two rounds of 4096 bytes, the second of which ends within 16 bytes.
fn pack_rows(how: u32, seed: u64) -> Outcome {
    const HALVES: usize = (4096 + 42) / 2;
    const PITCH: usize = HALVES.next_multiple_of(8);
    // Mistakes 4 and 5 are about what is not aligned.
    let (wide_rows, odd_out) = match how {
        0 => (seed.is_multiple_of(2), seed % 4 < 2),
        _ => (how != 5, how == 4),
    };
    let pitch = if wide_rows { PITCH } else { HALVES };
    let half = |row: usize, i: usize| (row * HALVES + i) as u16;
    // A load behind the last row's end is out of bounds.
    let rows: Vec<u16> = (0..(ROWS - 1) * pitch + HALVES).map(|i| half(i / pitch, i % pitch)).collect();
    let mut device = Device::new();
    let first = usize::from(odd_out);
    let out = device.upload(&vec![0x5555u16; first + ROWS * PITCH]);
    let status = device.upload(&[7u32; ROWS]);
    let right = PackRowsParams {
        rows: RowMatrix {
            data: device.upload_read_only(&rows).pointer(),
            pitch: 2 * pitch as u64,
            indices: device.upload_read_only(&indices()).pointer(),
            index_bytes: 4,
            source_rows: ROWS as u32,
        },
        out: (out.address() as usize + 2 * first) as *mut u8,
        out_pitch: 2 * PITCH as u64,
        status: status.pointer(),
        row_count: ROWS as u32,
        row_bytes: 2 * HALVES as u32,
        status_before: LMHEAD_STATUS_ALLOWED,
    };
    before(&mut device, status, 0, 0);
    let kernel = emulated_kernel!(broken_pack_rows: Broken<PackRowsParams>);
    let config = LaunchConfig::new([ROWS as u32, 1, 1], [256, 1, 1]).seed(seed).threads(1);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config);
    outcome(ran, || {
        let halves = device.download::<u16>(out).expect("the device's own buffer");
        let statuses = device.download::<u32>(status).expect("the device's own buffer");
        let behind = if odd_out { 0x5555 } else { 0 };
        (0..ROWS).all(|row| {
            let from = usize::try_from(index(row)).ok();
            let wanted = |i: usize| if i < HALVES { from.map_or(0, |from| half(from, i)) } else { behind };
            let bad = if from.is_none() { LMHEAD_STATUS_BAD_INDEX } else { 0 };
            let of_row = &halves[first + row * PITCH..][..PITCH];
            statuses[row] == LMHEAD_STATUS_ALLOWED | bad && (0..PITCH).all(|i| of_row[i] == wanted(i))
        })
    })
}

/// Two blocks of rows and two of targets; four stages of k and a tail that ends within 16 bytes.
fn targets(how: u32, seed: u64) -> Outcome {
    const VOCAB: usize = 150;
    const HIDDEN: usize = 4 * 64 + 21;
    const PITCH: usize = HIDDEN.next_multiple_of(8);
    const PER_ROW: usize = 11;
    const FIRST_ID: u32 = 640;
    let end = FIRST_ID + VOCAB as u32;
    // The kernel before sets target 0 of row 0.
    let target = |row: usize, n: usize| match n {
        0 => FIRST_ID + 5,
        1 => end,
        2 => FIRST_ID - 1,
        3 => u32::MAX,
        4 => end - 1,
        _ => FIRST_ID + (row * 31 + n * 17) as u32 % VOCAB as u32,
    };
    let mut ids: Vec<u32> = (0..ROWS * PER_ROW).map(|i| target(i / PER_ROW, i % PER_ROW)).collect();
    ids[0] = 0;
    // The last row of each ends with its last element: a read behind it is out of bounds.
    let values = |rows: usize, first: usize| -> Vec<u16> {
        let nan = half::bf16::NAN.to_bits();
        let value = |i: usize| match i % PITCH {
            k if k < HIDDEN => integer(first + i / PITCH * HIDDEN + k).1,
            _ => nan,
        };
        (0..(rows - 1) * PITCH + HIDDEN).map(value).collect()
    };
    const ROWS_FROM: usize = 1_000_003;
    let mut device = Device::new();
    let targets = device.upload(&ids);
    let out = device.upload(&[7f32; ROWS * PER_ROW]);
    let mut product = product(
        LogitMatrix { data: null_mut(), pitch: 0, status: null_mut(), dtype: LMHEAD_DTYPE_F32 },
        WeightMatrix {
            data: device.upload_read_only(&values(VOCAB, 0)).pointer(),
            pitch: 2 * PITCH as u64,
            scales: null(),
            bias: null(),
            packed: 0,
        },
        RowMatrix {
            data: device.upload_read_only(&values(ROWS, ROWS_FROM)).pointer(),
            pitch: 2 * PITCH as u64,
            indices: device.upload_read_only(&indices()).pointer(),
            index_bytes: 4,
            source_rows: ROWS as u32,
        },
    );
    (product.vocab, product.row_count, product.hidden) = (VOCAB as u32, ROWS as u32, HIDDEN as u32);
    let (per_row, first_id) = (PER_ROW as u32, FIRST_ID);
    let (targets_at, out_at) = (targets.pointer(), out.pointer());
    let right = TargetLogitsParams { product, targets: targets_at, out: out_at, per_row, first_id };
    before(&mut device, targets, 0, target(0, 0));
    let kernel = emulated_kernel!(broken_targets: Broken<TargetLogitsParams>);
    let config = LaunchConfig::new([4, 1, 1], [128, 1, 1]).shared(4 * (64 + 8) * 128).seed(seed).threads(1);
    let ran = device.launch_in_turn(&kernel, &Broken { right, how }, &config);
    outcome(ran, || {
        let logit = |row: usize, id: usize| {
            let of =
                |k: usize, from: usize| integer(ROWS_FROM + from * HIDDEN + k).0 * integer(id * HIDDEN + k).0;
            let dot = |from: usize| (0..HIDDEN).map(|k| of(k, from)).sum::<i32>();
            2.0 * usize::try_from(index(row)).map_or(0, dot) as f32
        };
        let wanted = (0..ROWS * PER_ROW).map(|i| {
            let id = target(i / PER_ROW, i % PER_ROW).wrapping_sub(FIRST_ID) as usize;
            if id < VOCAB { logit(i / PER_ROW, id) } else { f32::NAN }.to_bits()
        });
        wanted.eq(device.download::<u32>(out).expect("the device's own buffer"))
    })
}

#[test]
fn words_that_are_set() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "the kernel behind let in before the wait", &[Turn]),
        (3, "words of a null address set", &[GlobalBounds]),
        (4, "the word after the last set", &[GlobalBounds]),
        (5, "words after the last whole block of threads not set", &[]),
        (6, "words after the grid's last thread not set", &[]),
        (7, "the pitch between words ignored", &[]),
    ];
    check_compared("broken_set_words", rows, set_words);
}

#[test]
fn rows_that_are_packed() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "a row read by a bad index", &[GlobalBounds]),
        (3, "a row without a source not written", &[]),
        (4, "vectors stored to rows that are not aligned", &[Misaligned]),
        (5, "vectors used if only the first row is aligned", &[Misaligned]),
        (6, "a vector that begins before the end of a row", &[GlobalBounds]),
        (7, "the last bytes of a row left out", &[]),
    ];
    check_compared("broken_pack_rows", rows, pack_rows);
}

#[test]
fn logits_of_targets() {
    let rows: &[Compared] = &[
        (1, "no wait for the kernel before", &[Dependency]),
        (2, "targets read before the wait", &[Dependency]),
        (3, "copies into a stage that others still read", &[Race]),
        (4, "a stage read before all copies of it have landed", &[Incomplete, Race]),
        (5, "targets of rows after the last read", &[GlobalBounds]),
        (6, "the next shard's first id taken for one's own", &[GlobalBounds]),
        (7, "the last vector of k taken for a whole one", &[GlobalBounds]),
        (8, "the accumulator of the neighbouring row used", &[]),
        (9, "a target of another shard gets a logit", &[]),
    ];
    check_compared("broken_targets", rows, targets);
}
