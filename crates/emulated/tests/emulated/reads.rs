//! The read-only kernels read every word once, whatever the schedule.

use lmhead::backend::params::{ReadBoxesParams, ReadBulkParams};
use lmhead::backend::tensor_map::{Swizzle, Tiled2d};
use lmhead_emulated::{Device, LaunchConfig, emulated_kernel, encode};
use lmhead_testkit::Random;

/// Six stages of 32 KB, two barriers each.
const SHARED: u32 = 6 * (32768 + 16);

fn config(blocks: u32, seed: u64) -> LaunchConfig {
    LaunchConfig::new([blocks, 1, 1], [160, 1, 1]).shared(SHARED).seed(seed)
}

fn words(count: usize) -> (Vec<u32>, u32) {
    let mut random = Random(count as u64);
    let words: Vec<u32> = (0..count).map(|_| random.next() as u32).collect();
    let sum = words.iter().fold(0u32, |sum, word| sum.wrapping_add(*word));
    (words, sum)
}

#[test]
fn bulk_copies_read_every_word_once() {
    let kernel = emulated_kernel!(read_bulk: ReadBulkParams);
    // (bytes, blocks, run): one unit, a stage and its neighbours, more blocks than stages, several rounds of
    // the ring.
    for (bytes, blocks, run) in [
        (16, 1, 1),
        (32752, 2, 1),
        (32768, 3, 5),
        (32784, 2, 1),
        (9 * 32768 + 4096, 1, 1),
        (17 * 32768 + 16, 2, 1),
        (23 * 32768, 3, 4),
        (8 * 32768 + 512, 4, 3),
    ] {
        let (words, sum) = words(bytes as usize / 4);
        let seeds = if bytes > 600_000 { 0..10 } else { 0..100 };
        for seed in seeds {
            let mut device = Device::new();
            let (data, out) = (device.upload_read_only(&words), device.upload(&[7u32]));
            let params = ReadBulkParams { data: data.pointer(), bytes, out: out.pointer(), run };
            let launched = device.launch(&kernel, &params, &config(blocks, seed));
            launched.unwrap_or_else(|fault| panic!("{bytes} bytes, {blocks} blocks, runs of {run}: {fault}"));
            let found = device.download::<u32>(out).expect("the sum")[0];
            assert_eq!(
                found,
                sum.wrapping_add(7),
                "{bytes} bytes, {blocks} blocks, runs of {run}, seed {seed}"
            );
        }
    }
}

#[test]
fn boxes_read_every_word_once() {
    let kernel = emulated_kernel!(read_boxes: ReadBoxesParams);
    // (rows, bytes of a row, rows of a box, blocks): tails of rows, of columns and of a stage's boxes.
    for (rows, row_bytes, box_rows, blocks) in [
        (64, 128, 64, 1),
        (200, 640, 64, 2),
        (130, 208, 64, 3),
        (200, 640, 128, 2),
        (129, 96, 128, 1),
        (70, 1296, 64, 1),
    ] {
        let (words, sum) = words((rows * row_bytes) as usize / 4);
        for seed in 0..20 {
            let mut device = Device::new();
            let (data, out) = (device.upload_read_only(&words), device.upload(&[0u32]));
            let matrix = encode(&Tiled2d {
                address: data.address(),
                element_bytes: 2,
                columns: u64::from(row_bytes / 2),
                rows: u64::from(rows),
                pitch: u64::from(row_bytes),
                box_columns: 64,
                box_rows,
                swizzle: Swizzle::Bytes128,
            });
            let params = ReadBoxesParams {
                matrix: matrix.expect("a legal map"),
                out: out.pointer(),
                rows,
                columns: row_bytes.div_ceil(128),
                box_rows,
                element_bytes: 2,
            };
            let launched = device.launch(&kernel, &params, &config(blocks, seed));
            launched.unwrap_or_else(|fault| panic!("{rows} x {row_bytes}, boxes of {box_rows}: {fault}"));
            let found = device.download::<u32>(out).expect("the sum")[0];
            assert_eq!(found, sum, "{rows} x {row_bytes}, boxes of {box_rows}, {blocks} blocks, seed {seed}");
        }
    }
}
