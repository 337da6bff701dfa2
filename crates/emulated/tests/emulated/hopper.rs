//! Semantics of the sm_90a instructions: mbarriers, TMA, clusters, wgmma, registers, dependent launches.

use lmhead::backend::tensor_map::{Swizzle, Tiled2d};
use lmhead_emulated::arithmetic::{Half, Path, multiply_step};
use lmhead_emulated::probe::*;
use lmhead_emulated::{Device, FaultKind, LaunchConfig, encode};
use lmhead_testkit::Random;

const BASE: u32 = 1024;

/// Where byte `at` of a tile at offset 0 lies (address bits above the 16-byte unit are XORed into its
/// position).
fn swizzled(swizzle: Swizzle, at: u32) -> usize {
    let address = BASE + at;
    let bits = match swizzle {
        Swizzle::None => 0,
        Swizzle::Bytes32 => address >> 7 & 1,
        Swizzle::Bytes64 => address >> 7 & 3,
        Swizzle::Bytes128 => address >> 7 & 7,
    };
    ((address ^ bits << 4) - BASE) as usize
}

const SWIZZLES: [(Swizzle, u32); 4] =
    [(Swizzle::None, 48), (Swizzle::Bytes32, 32), (Swizzle::Bytes64, 64), (Swizzle::Bytes128, 128)];

#[test]
fn mbarriers() {
    for seed in 0..20 {
        let out = Probe::new(probe_mbarrier(), 64, 64, 1).n(&[9]).config(|c| c.seed(seed)).output();
        let wanted = (0..9).fold(1u32, |v, _| v * 3 + 1);
        assert_eq!(out[0], wanted, "seed {seed}");
    }
}

/// A tile of `rows` of `row_bytes` from (x, y) of a matrix of bytes, zero-filled outside of it.
fn tile(
    matrix: &[u8],
    (columns, height): (i64, i64),
    (x, y): (i64, i64),
    (row_bytes, rows): (u32, u32),
    swizzle: Swizzle,
) -> Vec<u8> {
    let mut out = vec![0; (row_bytes * rows) as usize];
    for r in 0..rows {
        for b in 0..row_bytes {
            let (px, py) = (x + i64::from(b), y + i64::from(r));
            if (0..columns).contains(&px) && (0..height).contains(&py) {
                out[swizzled(swizzle, r * row_bytes + b)] = matrix[(py * columns + px) as usize];
            }
        }
    }
    out
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

#[test]
fn tma_loads_swizzle_and_fill_with_zeros() {
    let (columns, height, box_rows) = (208i64, 40i64, 24u32);
    let mut random = Random(4);
    let matrix: Vec<u8> = (0..columns * height).map(|_| random.next() as u8).collect();
    for (swizzle, row_bytes) in SWIZZLES {
        for element in [1u32, 2, 4] {
            for (x, y) in [(0i32, 0i32), (32, 7), (160, 30), (-16, -5), (200, 39), (1000, 0), (4, -24)] {
                let x = x / element as i32;
                let probe = Probe::new(probe_tma_load(), 64, row_bytes * box_rows + 8, 24 * 32)
                    .input(&words(&matrix))
                    .n(&[x as u32, y as u32, row_bytes * box_rows / 4, element - 1])
                    .config(|c| c.seed(x as u64 & 7));
                let out = probe.run_with(|input, _| {
                    let tiles = Tiled2d {
                        address: input.address(),
                        element_bytes: element,
                        columns: columns as u64 / u64::from(element),
                        rows: height as u64,
                        pitch: columns as u64,
                        box_columns: row_bytes / element,
                        box_rows,
                        swizzle,
                    };
                    (encode(&tiles).expect("a legal map"), NO_MAP)
                });
                let at = i64::from(x) * i64::from(element);
                let wanted = words(&tile(
                    &matrix,
                    (columns, height),
                    (at, i64::from(y)),
                    (row_bytes, box_rows),
                    swizzle,
                ));
                let out = out.unwrap_or_else(|fault| panic!("{swizzle:?} ({x}, {y}): {fault}"));
                assert_eq!(out[..wanted.len()], wanted, "{swizzle:?} x {element} bytes at ({x}, {y})");
            }
        }
    }
}

#[test]
fn bulk_loads_bring_bytes_as_they_lie() {
    let input: Vec<u32> = (0..4096u32).map(|i| i.wrapping_mul(0x9e37_79b9)).collect();
    // (bytes, from, to, copies): single 16-byte units, parts of bank rows, a whole stage of a kernel.
    for (bytes, from, to, copies) in [
        (16, 0, 0, 1),
        (16, 16368, 48, 1),
        (48, 32, 16, 3),
        (2048, 1040, 80, 1),
        (16384, 0, 0, 4),
        (4096, 272, 32, 16),
    ] {
        let words = (to + bytes) / 4 + 12;
        for seed in 0..5 {
            let probe = Probe::new(probe_bulk_load(), 64, 4 * words + 8, words as usize)
                .input(&input)
                .n(&[bytes, from, to, copies, words])
                .config(|c| c.seed(seed));
            let mut want: Vec<u32> = (0..words).map(|i| !i).collect();
            let (first, count) = ((to / 4) as usize, (bytes / 4) as usize);
            want[first..first + count].copy_from_slice(&input[(from / 4) as usize..][..count]);
            assert_eq!(
                probe.output(),
                want,
                "{bytes} bytes from {from} to {to} in {copies} copies, seed {seed}"
            );
        }
    }
}

#[test]
fn tma_stores_stay_inside_the_matrix() {
    let (columns, height, box_rows) = (176i64, 20i64, 8u32);
    let mut random = Random(5);
    for (swizzle, row_bytes) in SWIZZLES {
        let image: Vec<u8> = (0..row_bytes * box_rows).map(|_| random.next() as u8).collect();
        for (x, y) in [(0i32, 0i32), (48, 5), (160, 16), (-16, -3), (176, 0)] {
            let probe =
                Probe::new(probe_tma_store(), 64, row_bytes * box_rows, (columns * height / 4) as usize)
                    .input(&words(&image))
                    .n(&[x as u32, y as u32, row_bytes * box_rows / 4]);
            let out = probe.run_with(|_, out| {
                let tiles = Tiled2d {
                    address: out.address(),
                    element_bytes: 1,
                    columns: columns as u64,
                    rows: height as u64,
                    pitch: columns as u64,
                    box_columns: row_bytes,
                    box_rows,
                    swizzle,
                };
                (NO_MAP, encode(&tiles).expect("a legal map"))
            });
            let out = out.unwrap_or_else(|fault| panic!("{swizzle:?} ({x}, {y}): {fault}"));
            let out: Vec<u8> = out.iter().flat_map(|w| w.to_le_bytes()).collect();
            for py in 0..height {
                for px in 0..columns {
                    let (b, r) = (px - i64::from(x), py - i64::from(y));
                    let inside =
                        (0..i64::from(row_bytes)).contains(&b) && (0..i64::from(box_rows)).contains(&r);
                    let wanted =
                        if inside { image[swizzled(swizzle, r as u32 * row_bytes + b as u32)] } else { 0 };
                    assert_eq!(
                        out[(py * columns + px) as usize],
                        wanted,
                        "{swizzle:?} ({x}, {y}) at ({px}, {py})"
                    );
                }
            }
        }
    }
}

#[test]
fn multicast_reaches_every_block() {
    let mut random = Random(6);
    let matrix: Vec<u8> = (0..64 * 128).map(|_| random.next() as u8).collect();
    let wanted = words(&tile(&matrix, (128, 64), (0, 0), (128, 64), Swizzle::Bytes128));
    for blocks in [1, 2, 4] {
        for seed in 0..10 {
            let probe = Probe::new(probe_multicast(), 32, 64 * 128 + 8, 2048 * blocks as usize)
                .input(&words(&matrix))
                .n(&[2048, blocks, 64])
                .grid(blocks)
                .config(|c| c.cluster([blocks, 1, 1]).seed(seed));
            let out = probe.run_with(|input, _| (bytes_map(input, 128, 64, 128, 64 / blocks), NO_MAP));
            let out = out.unwrap_or_else(|fault| panic!("{blocks} blocks: {fault}"));
            for block in out.chunks(2048) {
                assert_eq!(block, wanted, "{blocks} blocks, seed {seed}");
            }
        }
    }
}

/// A ring of stages that the blocks of a cluster fill for each other: tails, real hidden sizes, no false
/// alarms.
#[test]
fn multicast_in_a_ring() {
    use lmhead::backend::params::WgmmaMicrokernelParams;
    use lmhead_emulated::microkernels;
    for (vocab, row_count, hidden, seeds) in
        [(64u32, 64u32, 1024u32, 100), (100, 50, 400, 10), (128, 64, 4096, 2)]
    {
        let mut random = Random(u64::from(hidden));
        let (weights, rows) = (random.int8(vocab * hidden), random.int8(row_count * hidden));
        let wanted: Vec<i32> = rows
            .chunks(hidden as usize)
            .flat_map(|x| weights.chunks(hidden as usize).map(move |w| (x, w)))
            .map(|(x, w)| x.iter().zip(w).map(|(&x, &w)| i32::from(x) * i32::from(w)).sum())
            .collect();
        let mut device = Device::new();
        let out = device.alloc((vocab * row_count * 4) as usize).expect("room");
        let (w, x) = (device.upload_read_only(&weights), device.upload_read_only(&rows));
        let tiles =
            |address, lines| microkernels::tiles(address, 1, lines, hidden, 32).expect("the sizes are TMA's");
        let params = WgmmaMicrokernelParams {
            weights: tiles(w.address(), vocab),
            rows: tiles(x.address(), row_count),
            out: out.pointer(),
            vocab,
            row_count,
            hidden,
        };
        let kernel = lmhead_emulated::emulated_kernel!(multicast_ring: WgmmaMicrokernelParams);
        for seed in 0..seeds {
            // An even number of blocks along the rows; the last block may have no rows.
            let grid = [vocab.div_ceil(64), row_count.div_ceil(32).next_multiple_of(2), 1];
            let config = LaunchConfig::new(grid, [256, 1, 1]).cluster([1, 2, 1]).shared(3 * (96 * 128 + 16));
            if let Err(fault) = device.launch(&kernel, &params, &config.seed(seed).threads(2)) {
                panic!("{fault}");
            }
            assert_eq!(
                device.download::<i32>(out),
                Ok(wanted.clone()),
                "{vocab} x {row_count} x {hidden}, seed {seed}"
            );
        }
    }
}

#[test]
fn clusters_reach_each_others_memory() {
    for blocks in [2u32, 4] {
        for seed in 0..10 {
            let probe = Probe::new(probe_cluster(), 32, 264, 64 * 8).grid(8);
            let out = probe.config(|c| c.cluster([blocks, 1, 1]).seed(seed).threads(2)).output();
            for block in 0..8 {
                let left = (block % blocks + blocks - 1) % blocks;
                for lane in 0..32 {
                    let at = (64 * block + lane) as usize;
                    assert_eq!(out[at], 100 * left + 31 - lane, "block {block}, seed {seed}");
                    assert_eq!(out[at + 32], 1000 * left + lane, "block {block}, seed {seed}");
                }
            }
        }
    }
}

/// Shared-memory image of `rows` of 32 bytes of k, at byte `k` of rows as wide as the swizzle; without a
/// swizzle in core matrices of 8 x 16 bytes.
fn operand_image(matrix: &[[u8; 32]], swizzle: Swizzle, k: usize) -> Vec<u8> {
    let width = match swizzle {
        Swizzle::None => {
            let mut image = vec![0; matrix.len() * 32];
            for (r, row) in matrix.iter().enumerate() {
                for (b, &byte) in row.iter().enumerate() {
                    image[r / 8 * 256 + b / 16 * 128 + r % 8 * 16 + b % 16] = byte;
                }
            }
            return image;
        }
        Swizzle::Bytes32 => 32,
        Swizzle::Bytes64 => 64,
        Swizzle::Bytes128 => 128,
    };
    let mut image = vec![0xa5; matrix.len() * width];
    for (r, row) in matrix.iter().enumerate() {
        for (b, &byte) in row.iter().enumerate() {
            image[swizzled(swizzle, (r * width + k + b) as u32)] = byte;
        }
    }
    image
}

struct Product {
    /// 0 bf16, 1 f16, 2 int8.
    kind: u32,
    n: usize,
    from_registers: bool,
    keep: bool,
    swizzle: Swizzle,
    k: usize,
}

fn wgmma(product: &Product, random: &mut Random) {
    let Product { kind, n, from_registers, keep, swizzle, k } = *product;
    let mut rows = |count: usize| -> Vec<[u8; 32]> {
        let word = |bits: u64| match kind {
            0 => (bits as u32 & 0x83ff_83ff) | 0x3c00_3c00,
            1 => (bits as u32 & 0x8fff_8fff) | 0x3000_3000,
            _ => bits as u32,
        };
        let row = |_| {
            let words: [u32; 8] = std::array::from_fn(|_| word(random.next()));
            bytemuck::cast(words)
        };
        (0..count).map(row).collect()
    };
    let (a, b) = (rows(64), rows(n));
    let c: Vec<u32> =
        (0..64 * n)
            .map(|i| {
                if kind == 2 {
                    (i as u32).wrapping_mul(0x9e37_79b9)
                } else {
                    (i as f32 * 0.25 - 9.0).to_bits()
                }
            })
            .collect();

    // Each tile begins at a multiple of the swizzle's period.
    let mut image = operand_image(&a, swizzle, k);
    image.resize(image.len().next_multiple_of(1024), 0);
    let tile = image.len() as u32;
    image.extend(operand_image(&b, swizzle, k));
    image.resize(image.len().next_multiple_of(1024), 0);
    let mut input = words(&image);
    for thread in 0..128usize {
        let (row, t) = (thread / 32 * 16 + thread % 32 / 4, thread % 4);
        let word =
            |r: usize, i: usize| u32::from_le_bytes(a[r][4 * i..4 * i + 4].try_into().expect("four bytes"));
        input.extend([word(row, t), word(row + 8, t), word(row, t + 4), word(row + 8, t + 4)]);
    }
    let place = |thread: usize, i: usize| {
        let row = thread / 32 * 16 + thread % 32 / 4 + if i & 2 != 0 { 8 } else { 0 };
        row * n + i / 4 * 8 + thread % 4 * 2 + (i & 1)
    };
    for thread in 0..128 {
        input.extend((0..n / 2).map(|i| c[place(thread, i)]));
    }

    let wanted: Vec<u32> = if kind == 2 {
        let dot = |i: usize, j: usize| {
            (0..32).map(|k| i32::from(a[i][k] as i8) * i32::from(b[j][k] as i8)).sum::<i32>()
        };
        let start = |e: usize| if keep { c[e] as i32 } else { 0 };
        (0..64 * n).map(|e| start(e).wrapping_add(dot(e / n, e % n)) as u32).collect()
    } else {
        let mut d: Vec<f32> = c.iter().map(|&x| if keep { f32::from_bits(x) } else { 0.0 }).collect();
        let half = if kind == 0 { Half::Bf16 } else { Half::F16 };
        multiply_step(
            Path::Model,
            half,
            bytemuck::cast_slice::<u8, u16>(a.as_flattened()),
            bytemuck::cast_slice::<u8, u16>(b.as_flattened()),
            &mut d,
        );
        d.iter().map(|x| x.to_bits()).collect()
    };
    let code = match swizzle {
        Swizzle::None => 0,
        Swizzle::Bytes128 => 1,
        Swizzle::Bytes64 => 2,
        Swizzle::Bytes32 => 3,
    };
    let n_params = [
        kind,
        n as u32,
        u32::from(from_registers),
        u32::from(keep) | code << 1,
        image.len() as u32 / 4,
        tile | (k as u32) << 24,
    ];
    let probe = Probe::new(probe_wgmma(), 128, image.len() as u32, 64 * n).input(&input).n(&n_params);
    let out = probe.config(|c| c.seed(n as u64)).output();
    for thread in 0..128 {
        for i in 0..n / 2 {
            assert_eq!(
                out[thread * n / 2 + i],
                wanted[place(thread, i)],
                "kind {kind} n {n} registers {from_registers} keep {keep} {swizzle:?} k {k} thread {thread} register {i}"
            );
        }
    }
}

#[test]
fn wgmma_of_every_shape() {
    let mut random = Random(7);
    for n in (8..=256).step_by(8) {
        for kind in 0..3 {
            if kind == 2 && !(n % 16 == 0 || n == 8 || n == 24) {
                continue;
            }
            for from_registers in [false, true] {
                let keep = (n / 8) % 2 == usize::from(from_registers);
                wgmma(
                    &Product { kind, n, from_registers, keep, swizzle: Swizzle::Bytes128, k: n % 4 * 32 },
                    &mut random,
                );
            }
        }
    }
}

#[test]
fn wgmma_of_every_layout() {
    let mut random = Random(8);
    let starts: [(Swizzle, &[usize]); 4] = [
        (Swizzle::None, &[0]),
        (Swizzle::Bytes32, &[0]),
        (Swizzle::Bytes64, &[0, 32]),
        (Swizzle::Bytes128, &[0, 32, 64, 96]),
    ];
    for (swizzle, starts) in starts {
        for &k in starts {
            for kind in 0..3 {
                for keep in [false, true] {
                    wgmma(&Product { kind, n: 48, from_registers: false, keep, swizzle, k }, &mut random);
                }
            }
        }
    }
}

#[test]
fn registers_change_hands() {
    for seed in 0..20 {
        let out = Probe::new(probe_registers(), 256, 0, 2).config(|c| c.seed(seed)).output();
        assert_eq!(out, [1, 1], "seed {seed}");
    }
}

#[test]
fn a_dependent_launch_sees_all_of_the_first() {
    for threads in [1, 2] {
        for seed in 0..10 {
            let mut device = Device::new();
            let out = device.upload(&[0u32; 384]);
            let input: Vec<u32> = (0..192).map(|i| i * 1000).collect();
            let input = device.upload_read_only(&input);
            let params = ProbeParams {
                map: NO_MAP,
                map_out: NO_MAP,
                input: input.pointer(),
                out: out.pointer(),
                n: [0; 6],
            };
            let config = LaunchConfig::new([6, 1, 1], [32, 1, 1]).seed(seed).threads(threads);
            let outcome = device.launch_dependent(
                (&probe_primary(), &params, &config),
                (&probe_secondary(), &params, &config),
            );
            if let Err(fault) = outcome {
                panic!("{threads} threads: {fault}");
            }
            let out = device.download::<u32>(out).expect("its own");
            for at in 0..192u32 {
                let other = 191 - at;
                assert_eq!(
                    out[192 + at as usize],
                    at * 1000 + other * other,
                    "{threads} threads, seed {seed}"
                );
            }
        }
    }
}

#[test]
fn tensor_maps_that_tma_refuses() {
    let good = Tiled2d {
        address: 4096,
        element_bytes: 2,
        columns: 64,
        rows: 64,
        pitch: 128,
        box_columns: 64,
        box_rows: 64,
        swizzle: Swizzle::Bytes128,
    };
    assert!(encode(&good).is_ok());
    let rows: &[(Tiled2d, &str)] = &[
        (Tiled2d { address: 4104, ..good }, "wanted an address that is a multiple of 16"),
        (Tiled2d { pitch: 136, ..good }, "wanted a pitch that is a multiple of 16, holds a row"),
        (Tiled2d { pitch: 64, ..good }, "got 64 bytes for rows of 128"),
        (Tiled2d { columns: 0, ..good }, "wanted 1 to 2^32 rows and columns, got [64, 0]"),
        (Tiled2d { box_rows: 257, ..good }, "wanted tiles of 1 to 256 rows and columns"),
        (Tiled2d { box_columns: 4, ..good }, "the columns a multiple of 16 bytes, got 64 x 4 of 2 bytes"),
        (
            Tiled2d { swizzle: Swizzle::Bytes64, ..good },
            "wanted 64 bytes of columns with a 64-byte swizzle, got 128",
        ),
        (Tiled2d { box_columns: 32, ..good }, "wanted 128 bytes of columns with a 128-byte swizzle, got 64"),
        (Tiled2d { element_bytes: 3, ..good }, "wanted elements of 1, 2 or 4 bytes"),
    ];
    for (map, wanted) in rows {
        let fault = encode(map).expect_err(wanted);
        assert_eq!(fault.kind, FaultKind::TensorMap);
        assert!(fault.text.contains(wanted), "wanted {wanted:?}, got {fault}");
    }
}
