//! Semantics of each sm_80 instruction, against its documentation implemented a second time.

use lmhead_emulated::arithmetic::{Half, Path, multiply_step};
use lmhead_emulated::probe::*;
use lmhead_testkit::Random;

/// 16-bit element `i` of words.
fn half_of(words: &[u32], i: usize) -> u32 {
    words[i / 2] >> (16 * (i % 2)) & 0xffff
}

/// A lane's register of matrix `m`, whose row `r` is words `4·(8m + r)..+4` of shared memory.
fn matrix_register(image: &[u32], m: usize, lane: usize, transposed: bool) -> u32 {
    let element = |row: usize, column: usize| half_of(&image[4 * (8 * m + row)..], column);
    let (major, minor) = (lane / 4, lane % 4 * 2);
    if transposed {
        element(minor, major) | element(minor + 1, major) << 16
    } else {
        element(major, minor) | element(major, minor + 1) << 16
    }
}

const MATRICES: [(u32, u32); 6] = [(1, 0), (1, 1), (2, 0), (2, 1), (4, 0), (4, 1)];

#[test]
fn ldmatrix() {
    let mut random = Random(1);
    let image: Vec<u32> = (0..128).map(|_| random.next() as u32).collect();
    for (count, transposed) in MATRICES {
        let probe = Probe::new(probe_ldmatrix(), 32, 512, 128).input(&image).n(&[128, count, transposed]);
        let out = probe.output();
        for lane in 0..32 {
            for m in 0..4 {
                let inside = m < count as usize;
                let wanted = if inside { matrix_register(&image, m, lane, transposed == 1) } else { 0 };
                assert_eq!(out[lane * 4 + m], wanted, "x{count} trans {transposed} lane {lane} matrix {m}");
            }
        }
    }
}

#[test]
fn stmatrix() {
    let mut random = Random(2);
    let registers: Vec<u32> = (0..128).map(|_| random.next() as u32).collect();
    for (count, transposed) in MATRICES {
        let words = 32 * count;
        let probe = Probe::new(probe_stmatrix(), 32, 4 * words, words as usize).input(&registers);
        let image = probe.n(&[words, count, transposed]).output();
        for lane in 0..32 {
            for m in 0..count as usize {
                let wanted = registers[lane * 4 + m];
                assert_eq!(
                    matrix_register(&image, m, lane, transposed == 1),
                    wanted,
                    "x{count} trans {transposed} lane {lane}"
                );
            }
        }
    }
}

/// Words of a row of 32 bytes of k that a lane's registers hold, in the fragment order of a (16 rows) or b (8
/// rows).
fn fragment(rows: &[[u32; 8]], lane: usize) -> Vec<u32> {
    let (group, t) = (lane / 4, lane % 4);
    match rows.len() {
        16 => vec![rows[group][t], rows[group + 8][t], rows[group][t + 4], rows[group + 8][t + 4]],
        _ => vec![rows[group][t], rows[group][t + 4]],
    }
}

#[test]
fn mma_sync() {
    let mut random = Random(3);
    for kind in 0..3 {
        let mut rows = |n: usize| -> Vec<[u32; 8]> {
            // bf16 and f16 of moderate size; any int8.
            let word = |bits: u64| match kind {
                0 => (bits as u32 & 0x83ff_83ff) | 0x3c00_3c00,
                1 => (bits as u32 & 0x8fff_8fff) | 0x3000_3000,
                _ => bits as u32,
            };
            (0..n).map(|_| std::array::from_fn(|_| word(random.next()))).collect()
        };
        let (a, b) = (rows(16), rows(8));
        let c: Vec<u32> = (0..128)
            .map(|i| if kind == 2 { random.next() as u32 } else { (i as f32 - 60.0).to_bits() })
            .collect();
        let place = |lane: usize, i: usize| (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2;
        let input: Vec<u32> = (0..32)
            .flat_map(|lane| {
                let d = (0..4).map(|i| c[place(lane, i)]).collect::<Vec<_>>();
                [fragment(&a, lane), fragment(&b, lane), d].concat()
            })
            .collect();
        let wanted: Vec<u32> = if kind == 2 {
            let byte = |row: &[u32; 8], k: usize| i32::from((row[k / 4] >> (8 * (k % 4))) as i8);
            let dot = |i: usize, j: usize| (0..32).map(|k| byte(&a[i], k) * byte(&b[j], k)).sum::<i32>();
            (0..128).map(|e| (c[e] as i32).wrapping_add(dot(e / 8, e % 8)) as u32).collect()
        } else {
            let halves = |rows: &[[u32; 8]]| -> Vec<u16> {
                rows.iter().flat_map(|row| (0..16).map(|k| half_of(row, k) as u16)).collect()
            };
            let mut d: Vec<f32> = c.iter().map(|&x| f32::from_bits(x)).collect();
            let half = if kind == 0 { Half::Bf16 } else { Half::F16 };
            multiply_step(Path::Model, half, &halves(&a), &halves(&b), &mut d);
            d.iter().map(|x| x.to_bits()).collect()
        };
        let out = Probe::new(probe_mma(), 32, 0, 128).input(&input).n(&[kind]).output();
        for lane in 0..32 {
            for i in 0..4 {
                assert_eq!(out[lane * 4 + i], wanted[place(lane, i)], "kind {kind} lane {lane} register {i}");
            }
        }
    }
}

#[test]
fn cp_async() {
    let input: Vec<u32> = (0..256).map(|i: u32| i.wrapping_mul(0x0101_4567)).collect();
    let bytes: Vec<u8> = input.iter().flat_map(|w| w.to_le_bytes()).collect();
    for (size, read) in [
        (4, 4),
        (4, 3),
        (4, 0),
        (8, 8),
        (8, 5),
        (16, 16),
        (16, 1),
        (16, 0),
        (0, 16),
        (0, 7),
        (0, 0),
        (1, 16),
        (1, 0),
        (2, 16),
        (2, 9),
        (2, 0),
    ] {
        for seed in 0..10 {
            let probe = Probe::new(probe_cp_async(), 64, 1024, 256).input(&input).n(&[size, read]);
            let out = probe.config(|c| c.seed(seed)).output();
            let out: Vec<u8> = out.iter().flat_map(|w| w.to_le_bytes()).collect();
            let width = if size < 4 { 16 } else { size as usize };
            for (i, &byte) in out.iter().enumerate() {
                let wanted = match i % 16 {
                    at if at < read as usize => bytes[i],
                    at if at < width => 0,
                    _ => 0xff,
                };
                assert_eq!(byte, wanted, "cp.async of {read} of {size} bytes, byte {i}, seed {seed}");
            }
        }
    }
}

#[test]
fn cp_async_groups() {
    let input: Vec<u32> = (0..96).map(|i| i * i).collect();
    for seed in 0..20 {
        let probe = Probe::new(probe_cp_async_groups(), 32, 384, 32).input(&input);
        let out = probe.config(|c| c.seed(seed)).output();
        for lane in 0..32 {
            assert_eq!(out[lane], input[lane] + input[lane + 32] + input[lane + 64], "seed {seed}");
        }
    }
}

#[test]
fn votes_reductions_and_shuffles() {
    for seed in 0..20 {
        let out = Probe::new(probe_warp(), 32, 128, 544).config(|c| c.seed(seed)).output();
        let v = |lane: usize| lane as u32 * 3 + 1;
        for lane in 0..32usize {
            let up = if lane >= 2 { lane - 2 } else { lane };
            let down = if lane + 4 < 32 { lane + 4 } else { lane };
            let half = if lane < 16 { 0x0000_ffff } else { 0xffff_0000 };
            let whole = [0x4924_9249, 1, 0, v(lane ^ 5), v(7), v(up), v(down)];
            // The largest of 3 * lane + 1 in the upper eight bits, then of each half of the warp.
            let reduced = [94 << 24, if lane < 16 { v(15) } else { v(31) }, half];
            let wanted = [
                &whole[..],
                &[half, v(lane ^ 1), v(31 - lane)],
                &[v(lane ^ 5), v(7), v(up), v(lane)],
                &reduced,
            ];
            assert_eq!(out[lane * 17..][..17], wanted.concat(), "lane {lane}, seed {seed}");
        }
    }
}

#[test]
fn neighbours_of_all_sizes() {
    for seed in 0..10 {
        let out = Probe::new(probe_small_stores(), 64, 960, 256).config(|c| c.seed(seed)).output();
        let mut image = [0u8; 960];
        for t in 0..64usize {
            image[t] = t as u8;
            image[64 + 2 * t..][..2].copy_from_slice(&(1000 + t as u16).to_le_bytes());
            image[192 + 8 * t..][..4].copy_from_slice(&(t as u32).to_le_bytes());
            image[196 + 8 * t..][..4].copy_from_slice(&(!(t as u32)).to_le_bytes());
        }
        let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().expect("four bytes"));
        for t in 0..64 {
            assert_eq!(out[t], word(t * 4 % 192), "seed {seed}");
            assert_eq!(out[64 + t], 1063 - t as u32);
            assert_eq!(out[128 + t], word(192 + 4 * (127 - t)));
            assert_eq!(out[192 + t], (63.0 - t as f32).to_bits());
        }
    }
}

#[test]
fn named_barriers() {
    for seed in 0..20 {
        let out = Probe::new(probe_named_barriers(), 128, 256, 64).config(|c| c.seed(seed)).output();
        for (t, &sum) in out.iter().enumerate() {
            assert_eq!(sum, 2800 + 8 * (63 - t as u32), "seed {seed}");
        }
    }
}

#[test]
fn global_memory() {
    let input: Vec<u32> = (0..19).map(|i: u32| (i + 1).wrapping_mul(0x1234_5677)).collect();
    let mut wanted = input.clone();
    wanted[18] = input[18].count_ones();
    assert_eq!(Probe::new(probe_global(), 1, 0, 19).input(&input).output(), wanted);
}

#[test]
fn atomics_between_blocks() {
    let (blocks, threads) = (6u32, 64u32);
    let n = blocks * threads;
    for seed in 0..10 {
        let probe = Probe::new(probe_atomics(), threads, 0, 16 + n as usize).grid(blocks);
        let out = probe.config(|c| c.seed(seed).threads(2)).output();
        assert_eq!(out[..4], [n * (n - 1) / 2, n - 1, u32::MAX, 2 * n], "seed {seed}");
        assert_eq!(out[4..10], [n, n, 0, n - 1, n * (n - 1) / 2, n], "seed {seed}");
    }
}

#[test]
fn atomics_within_a_block() {
    for seed in 0..10 {
        let probe = Probe::new(probe_shared_atomics(), 64, 48, 8 + 64 + 4 + 64).n(&[1 << 20]);
        let out = probe.config(|c| c.seed(seed)).output();
        for bin in 0..4u64 {
            let sum: u64 = (0..64).filter(|t| t % 4 == bin).map(|t| (t << 40) + 1).sum();
            assert_eq!([out[2 * bin as usize], out[2 * bin as usize + 1]], [sum as u32, (sum >> 32) as u32]);
            assert_eq!(out[72 + bin as usize], 16, "seed {seed}");
            for first in [8, 76] {
                let mut order: Vec<u32> = (0..16).map(|i| out[first + 4 * i + bin as usize]).collect();
                order.sort_unstable();
                assert!(order.into_iter().eq(0..16), "seed {seed}: each has its own value before");
            }
        }
    }
}

#[test]
fn arithmetic_is_rounded_once() {
    use half::{bf16, f16};
    let mut random = Random(9);
    // Every f16 and values at its rounding boundaries, edge cases, and any bits.
    let mut a: Vec<u32> =
        vec![0, 1 << 31, 0x7f80_0000, 0xff80_0000, 0x7fc0_0001, 0x7f7f_ffff, 1, 0x0080_0000];
    a.extend((0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32().to_bits()).flat_map(|x| {
        let nudge = [0, 0x0fff, 0x1000, 0x1001][x as usize >> 13 & 3];
        [x, x ^ nudge]
    }));
    a.extend(
        [0.5f32, 1.5, 2.5, -0.5, -1.5, -2.5, 2147483520.0, 2147483648.0, -2147483648.0, 65519.9, 65520.0]
            .map(f32::to_bits),
    );
    a.extend((0..4000).map(|_| random.next() as u32));
    let words: Vec<u32> = a.iter().flat_map(|&a| [a, random.next() as u32, random.next() as u32]).collect();
    let count = a.len() as u32;
    let probe = Probe::new(probe_arithmetic(), 256, 0, 9 * a.len()).input(&words).n(&[count]);
    let out = probe.grid(count.div_ceil(256)).config(|c| c.checks(false)).output();
    let single = |x: f32| if x.is_nan() { 0x7fff_ffff } else { x.to_bits() };
    let short = |x: f32, bits: u16| if x.is_nan() { 0x7fff } else { u32::from(bits) };
    for (words, out) in words.chunks(3).zip(out.chunks(9)) {
        let [a, b, c] = [words[0], words[1], words[2]].map(f32::from_bits);
        let wanted = [
            single(a + b),
            single(a * b),
            single(a / b),
            single(a.mul_add(b, c)),
            a.round_ties_even() as i32 as u32, // saturates, NaN is 0
            single(words[0] as i32 as f32),
            short(a, bf16::from_f32(a).to_bits()),
            short(a, f16::from_f32(a).to_bits()),
            single(f16::from_bits(words[0] as u16).to_f32()),
        ];
        assert_eq!(out, wanted, "{words:08x?}");
    }
}

#[test]
fn geometry() {
    let (grid, block) = ([3, 2, 2], [4, 3, 2]);
    let words = 12 * 12 * 24;
    let probe = Probe::new(probe_geometry(), 32, 0, words).config(|mut c| {
        (c.grid, c.block) = (grid, block);
        c.threads(2)
    });
    let out = probe.output();
    let unfold = |i: u32, size: [u32; 3]| [i % size[0], i / size[0] % size[1], i / size[0] / size[1]];
    for b in 0..12u32 {
        for t in 0..24u32 {
            let wanted = [unfold(t, block), unfold(b, grid), block, grid].concat();
            assert_eq!(out[12 * (b * 24 + t) as usize..][..12], wanted);
        }
    }
}

/// Two blocks, one of which `LMHEAD_EMULATED_TRACE` prints: run by the test below in a process of its own.
#[test]
#[ignore = "the next test starts it"]
fn prints_its_trace() {
    let out = Probe::new(probe_trap(), 64, 0, 64).n(&[64]).grid(2).config(|c| c.threads(2)).output();
    assert_eq!(out, [1; 64]);
}

#[test]
fn a_trace_that_cannot_be_printed_ends_nothing() {
    use std::process::{Command, Stdio};
    let start = |errors: Stdio| {
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        child.args(["--ignored", "--exact", "--nocapture", "instructions::prints_its_trace"]);
        child.env("LMHEAD_EMULATED_TRACE", "probe_trap:1").stdout(Stdio::null()).stderr(errors);
        child.spawn().expect("this program again")
    };
    let printed = start(Stdio::piped()).wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&printed.stderr).into_owned();
    assert!(printed.status.success(), "{text}");
    assert_eq!(text.matches("block (1, 0, 0) thread ").count(), 2 * 64, "{text}"); // st.global, exit
    let mut unread = start(Stdio::piped());
    drop(unread.stderr.take());
    assert!(unread.wait().expect("it ends").success(), "standard error has no reader");
}

#[test]
fn a_trace_tells_what_one_block_does() {
    use lmhead_emulated::{Device, LaunchConfig};
    let mut device = Device::new();
    let (input, out) = (device.upload_read_only(&[0u32; 64]), device.upload(&[0u32; 64]));
    let params =
        ProbeParams { map: NO_MAP, map_out: NO_MAP, input: input.pointer(), out: out.pointer(), n: [0; 6] };
    let config = LaunchConfig::new([2, 1, 1], [64, 1, 1]).shared(256).threads(1).trace(1);
    device.launch(&broken_memory(), &params, &config).expect("variant 0 is correct");
    let lines = device.take_trace();
    assert!(lines.iter().all(|line| line.starts_with("block (1, 0, 0) thread ")), "{lines:?}");
    assert!(lines.contains(&"block (1, 0, 0) thread 3: st.shared.b32 0x40c".to_string()), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line.contains("bar.sync")).count(), 64);
    assert!(device.take_trace().is_empty());
}
