//! Requests that the device refuses with an error: memory, grids, and tensor maps that no driver made.

use lmhead::backend::params::TensorMap;
use lmhead::backend::tensor_map::{Swizzle, Tiled2d};
use lmhead_emulated::probe::*;
use lmhead_emulated::{Buffer, Device, Fault, FaultKind, LaunchConfig, encode};

/// A launch of one tile of 16 x 16 bytes, with its map's 32-bit words replaced.
fn tma_with(words: &[(usize, u32)]) -> Result<Vec<u32>, Fault> {
    let probe = Probe::new(probe_tma_load(), 64, 4 * 64 + 8, 64).n(&[0, 0, 64]).input(&[7; 64]);
    let map = |buffer: Buffer| -> TensorMap {
        let mut map = bytes_map(buffer, 16, 16, 16, 16);
        for &(at, word) in words {
            map.opaque[4 * at..4 * at + 4].copy_from_slice(&word.to_le_bytes());
        }
        map
    };
    probe.run_with(|input, _| (map(input), NO_MAP))
}

/// Word numbers: magic 0, address 2, columns 4, rows 6, pitch 8, box 10 and 11, bytes of an element 12,
/// swizzle 13.
#[test]
fn a_tensor_map_that_no_driver_made_is_a_fault_whatever_it_holds() {
    let good = tma_with(&[]).expect("as the driver made it");
    assert_eq!(good, [7; 64]);
    for words in [
        &[(0, 1)][..],
        &[(2, 8)],
        &[(4, 0)],
        &[(4, u32::MAX), (5, u32::MAX)],
        &[(4, 17)],
        &[(6, 0)],
        &[(6, 1), (7, 1)],
        &[(8, 24)],
        &[(9, 1 << 8)],
        &[(10, 0)],
        &[(10, 8)],
        &[(10, 128), (11, 0x0200_0000)],
        &[(10, 256), (13, 1)],
        &[(11, 257)],
        &[(12, 0)],
        &[(12, 3)],
        &[(12, 1 << 28)],
        &[(13, 4)],
        &[(13, u32::MAX)],
        &[(13, 1)],
    ] {
        let fault = tma_with(words).expect_err("not the driver's");
        assert_eq!(fault.kind, FaultKind::TensorMap, "{words:?}: {fault}");
        assert!(fault.text.contains("wanted one that the driver made"), "{words:?}: {fault}");
    }
}

#[test]
fn a_row_of_more_bytes_than_there_are_numbers_is_refused() {
    let tiles = Tiled2d {
        address: 256,
        element_bytes: 4,
        columns: u64::MAX,
        rows: 16,
        pitch: 64,
        box_columns: 16,
        box_rows: 16,
        swizzle: Swizzle::None,
    };
    let fault = encode(&tiles).expect_err("too wide");
    assert!(fault.text.contains("wanted 1 to 2^32 rows and columns"), "{fault}");
}

#[test]
fn memory_that_is_not_there_is_an_error() {
    let mut device = Device::new();
    for bytes in [1 << 46, usize::MAX] {
        let fault = device.alloc(bytes).expect_err("more than any machine has");
        assert_eq!(fault.kind, FaultKind::Launch);
        assert!(fault.to_string().starts_with(&format!("device memory: wanted {bytes} bytes, ")), "{fault}");
    }
    let buffer = device.alloc(6).expect("room");
    assert_eq!(device.download::<u32>(buffer).map(|words| words.len()), Ok(1));
    assert_eq!(device.download::<()>(buffer), Ok(vec![]));
    let fault = Device::new().download::<u8>(buffer).expect_err("another device's");
    assert!(fault.to_string().starts_with("device buffer: wanted one of this device, "), "{fault}");
}

#[test]
fn the_largest_grid_begins_and_its_first_fault_ends_it() {
    let config = |c: LaunchConfig| LaunchConfig { grid: [0x7fff_ffff, 65535, 1], ..c };
    let probe = Probe::new(broken_spin(), 64, 0, 1).config(config);
    let fault = probe.run().expect_err("the kernel reads outside of its buffer");
    assert_eq!(fault.kind, FaultKind::GlobalBounds, "{fault}");
}

#[test]
fn more_os_threads_than_the_machine_can_have_are_not_made() {
    let (blocks, threads) = (600, 128);
    let words = (12 * blocks * threads) as usize;
    let probe = Probe::new(probe_geometry(), threads, 0, words).grid(blocks);
    let out = probe.config(|c| c.threads(1_000_000)).output();
    assert_eq!(out[words - 12..], [127, 0, 0, 599, 0, 0, 128, 1, 1, 600, 1, 1]);
}
