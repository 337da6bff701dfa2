//! Parts of the matmul kernels by themselves: tanh against libm's bits, the assignment of tiles to blocks,
//! the sizes of tiles.

use lmhead::DType;
use lmhead::plan::Precision;
use lmhead_emulated::probe::*;

/// Compares `count` floats whose bits begin at `first` in steps of `step`.
fn tanh_is_libm_s(first: u32, step: u32, count: u32) {
    let probe = Probe::new(probe_tanh(), 256, 0, count as usize).n(&[first, step, count]);
    let out = probe.grid(count.div_ceil(64 * 256)).config(|c| c.checks(false).threads(2)).output();
    for (i, &got) in out.iter().enumerate() {
        let x = f32::from_bits(first.wrapping_add((i as u32).wrapping_mul(step)));
        let want = libm::tanhf(x);
        let same = got == want.to_bits() || (f32::from_bits(got).is_nan() && want.is_nan());
        assert!(same, "tanh of {x:e} ({:#x}): wanted {:#x}, got {got:#x}", x.to_bits(), want.to_bits());
    }
}

#[test]
fn tanh_has_the_bits_of_libm() {
    // About every 2^10-th float of both signs, with NaN and infinities; the step is odd, so that all low bits
    // occur.
    tanh_is_libm_s(0, 1021, (1u64 << 32).div_ceil(1021) as u32);
    // Where the formula changes, in tanh and in expm1 at 2a and -2a, and each power of two, with neighbours
    // on both sides.
    let borders = [
        0,
        0x0080_0000,
        0x3e82_c578,
        0x3f0c_9f54,
        0x4120_0000,
        0x3eb1_7218,
        0x3e31_7218,
        0x3f85_1592,
        0x3f05_1592,
        0x3300_0000,
        0x3280_0000,
        0x7f80_0000,
    ];
    for border in borders.into_iter().chain((0..255).map(|exponent| exponent << 23)) {
        for sign in [0, 1 << 31] {
            tanh_is_libm_s(sign | u32::saturating_sub(border, 64), 1, 129);
        }
    }
    // Where expm1's k changes: (k + 1/2)·ln 2 / 2.
    for k in 0..30 {
        let border = ((f64::from(k) + 0.5) * std::f64::consts::LN_2 / 2.0) as f32;
        tanh_is_libm_s(border.to_bits() - 500, 1, 1001);
    }
}

/// First id and first row of the tile of each of these blocks.
fn places(blocks: &[u32], rows: u32, ids: u32, tile: u32) -> Vec<(u32, u32)> {
    let count = blocks.len() as u32;
    let probe =
        Probe::new(probe_tile_coord(), 256, 0, 2 * blocks.len()).input(blocks).n(&[count, rows, ids, tile]);
    let out = probe.grid(count.div_ceil(256)).config(|c| c.checks(false)).output();
    out.chunks(2).map(|pair| (pair[0], pair[1])).collect()
}

#[test]
fn every_tile_has_one_block() {
    for (tile, wide) in [(8, 64), (128, 128)] {
        for row_tiles in (1..=50).chain([63, 64, 65, 160]) {
            for id_tiles in [1, 2, 3, 7, 16, 17, 40] {
                // Complete tiles, and one row and one id in the last.
                for tail in [0, 1] {
                    let (rows, ids) =
                        (row_tiles * tile - tail * (tile - 1), id_tiles * wide - tail * (wide - 1));
                    let blocks: Vec<u32> = (0..row_tiles * id_tiles).collect();
                    let mut found = places(&blocks, rows, ids, tile);
                    // At most 16 consecutive tiles of rows share what they read of the weights.
                    let together = found.chunks(row_tiles.min(16) as usize).next().expect("a block");
                    assert!(together.iter().all(|place| place.0 == 0));
                    found.sort_unstable();
                    let wanted: Vec<_> = (0..id_tiles)
                        .flat_map(|i| (0..row_tiles).map(move |r| (i * wide, r * tile)))
                        .collect();
                    assert_eq!(found, wanted, "{row_tiles} x {id_tiles} tiles of {tile} rows");
                }
            }
        }
    }
}

#[test]
fn the_last_blocks_of_the_largest_grids() {
    // The limits of plan.rs: 2^30 rows and ids, 2^31 - 1 blocks.
    for (rows, ids, tile) in [
        (1u32 << 30, 1u32, 8u32),
        (1, 1 << 30, 8),
        (8 * 127, 1 << 30, 8),
        ((1 << 30) - 5, 960, 8),
        (128 * 254 + 1, (1 << 30) - 100, 128),
        (32_767 * 128, 65_535 * 128 - 3, 128),
    ] {
        let wide = if tile == 8 { 64 } else { 128 };
        let (row_tiles, id_tiles) = (u64::from(rows.div_ceil(tile)), u64::from(ids.div_ceil(wide)));
        let blocks = row_tiles * id_tiles;
        assert!(blocks <= i32::MAX as u64, "{rows} x {ids}");
        let numbers: Vec<u32> =
            (0..3000).map(|i| (blocks * i / 3000) as u32).chain([(blocks - 1) as u32]).collect();
        for (&block, place) in numbers.iter().zip(places(&numbers, rows, ids, tile)) {
            // The same rule, in 64 bits.
            let (block, group) = (u64::from(block), row_tiles.min(16) * id_tiles);
            let first = block / group * row_tiles.min(16);
            let width = (row_tiles - first).min(16);
            let rest = block % group;
            let wanted = (rest / width * u64::from(wide), (first + rest % width) * u64::from(tile));
            assert_eq!((u64::from(place.0), u64::from(place.1)), wanted, "block {block} of {rows} x {ids}");
        }
    }
}

#[test]
fn tiles_are_as_the_plan_says() {
    let (bf16, f16) = (DType::Bf16, DType::F16);
    let precisions = [
        Precision::Fp8(bf16),
        Precision::Fp8(f16),
        Precision::Bf16,
        Precision::F16,
        Precision::W8a8(bf16),
        Precision::W8a16(bf16),
        Precision::W8a16(f16),
    ];
    let tiles: Vec<_> = precisions.iter().flat_map(|p| p.tiles().iter().map(move |tile| (p, tile))).collect();
    let out = Probe::new(probe_tiles(), 1, 0, 8 * tiles.len() + 1).output();
    let (count, figures) = out.split_at(1);
    assert_eq!(count, [tiles.len() as u32]);
    for ((precision, tile), figures) in tiles.into_iter().zip(figures.chunks(8)) {
        let (step, (warp_ids, warp_rows)) = (128 / precision.weight_bytes(), tile.warp());
        let (threads, stage) = (tile.threads() as usize, tile.shared_bytes(1));
        let planned =
            [tile.block_n, tile.block_m, threads, warp_ids, warp_rows, stage, step, tile.max_blocks_per_sm];
        assert_eq!(figures, planned.map(|n| n as u32), "{}", tile.kernel);
    }
}
