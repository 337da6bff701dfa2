//! The instructions that convert int8, against exact arithmetic: `sub.f16x2`, `fma.bf16x2`, `prmt`,
//! `cvt.rzi`; and 8-byte loads of pairs.

use half::f16;
use lmhead_emulated::FaultKind;
use lmhead_emulated::probe::*;
use lmhead_testkit::Random;

/// `a - b` rounded once to nearest even, by comparison with both neighbours; f64 holds the difference of two
/// f16 exactly.
fn difference(a: u16, b: u16) -> u16 {
    let (x, y) = (f16::from_bits(a).to_f64(), f16::from_bits(b).to_f64());
    let exact = x - y;
    if exact.is_nan() {
        return 0x7fff;
    }
    // From 65520, halfway to 2^16, the result is infinity.
    if exact.abs() >= 65520.0 {
        return if exact < 0.0 { 0xfc00 } else { 0x7c00 };
    }
    let sign = if exact.is_sign_negative() { 0x8000 } else { 0 };
    // The largest f16 not above the magnitude: bits order like values.
    let (mut low, mut high) = (0u16, 0x7c00u16);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if f16::from_bits(middle).to_f64() <= exact.abs() { low = middle } else { high = middle }
    }
    let below = exact.abs() - f16::from_bits(low).to_f64();
    let above = if high == 0x7c00 { 65536.0 } else { f16::from_bits(high).to_f64() } - exact.abs();
    let up = above < below || (above == below && low % 2 == 1);
    sign | if up { high } else { low }
}

/// `a·b + c` rounded once to nearest even: in f64 the product of two bf16 is exact, and so is the rounding
/// error of its sum with a third.
fn fused(a: u16, b: u16, c: u16) -> u16 {
    let wide = |bits: u16| f64::from(f32::from_bits(u32::from(bits) << 16));
    let (product, addend) = (wide(a) * wide(b), wide(c));
    let sum = product + addend;
    if sum.is_nan() {
        return 0x7fff;
    }
    let sign = if sum.is_sign_negative() { 0x8000 } else { 0 };
    // From halfway between the largest bf16 and 2^128 the result is infinity.
    let (largest, beyond) = (wide(0x7f7f), 2f64.powi(128));
    if sum.abs() >= largest + (beyond - largest) / 2.0 {
        return sign | 0x7f80;
    }
    let (mut low, mut high) = (0u16, 0x7f80u16);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if wide(middle) <= sum.abs() { low = middle } else { high = middle }
    }
    // Compares the exact value with the midpoint of the neighbours. f64 holds the midpoint, and, where the
    // sum is close to it, also the difference to the larger addend.
    let above = if high == 0x7f80 { beyond } else { wide(high) };
    let middle = wide(low) + (above - wide(low)) / 2.0;
    let middle = if sum.is_sign_negative() { -middle } else { middle };
    let (large, small) = if product.abs() > addend.abs() { (product, addend) } else { (addend, product) };
    let past = (large - middle) + small;
    let past = if sum.is_sign_negative() { -past } else { past };
    sign | if past > 0.0 || (past == 0.0 && low % 2 == 1) { high } else { low }
}

/// Selects four of eight bytes; bit 3 of a selector digit replicates the sign (PTX ISA, "prmt").
fn permuted(low: u32, high: u32, selector: u32) -> u32 {
    let bytes = [low.to_le_bytes(), high.to_le_bytes()].concat();
    let byte = |i: usize| {
        let digit = (selector >> (4 * i) & 15) as usize;
        let byte = bytes[digit % 8];
        if digit < 8 { byte } else { ((byte as i8) >> 7) as u8 }
    };
    u32::from_le_bytes(std::array::from_fn(byte))
}

fn outputs(words: &[[u32; 6]]) -> Vec<u32> {
    let count = words.len() as u32;
    let probe = Probe::new(probe_conversions(), 256, 0, 4 * words.len()).input(words.as_flattened());
    probe.n(&[count]).grid(count.div_ceil(256)).config(|c| c.checks(false)).output()
}

#[test]
fn conversions_are_exact() {
    let mut random = Random(11);
    let mut words: Vec<[u32; 6]> = Vec::new();
    let pair = |low: u16, high: u16| u32::from(high) << 16 | u32::from(low);
    // Every f16 minus: the constant that int8 is widened with, zeros, ends of the range, ties, and some
    // values of each size.
    let mut others =
        vec![0x6480, 0, 0x8000, 1, 0x8001, 0x03ff, 0x0400, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00];
    others.extend(
        (0..20).map(|i| (i << 11 | (random.next() as u16 & 0x7ff)) ^ (random.next() as u16 & 0x8000)),
    );
    for other in others {
        for a in (0..=u16::MAX).step_by(2) {
            let in_turn = random.next() as u32;
            words.push([pair(a, a + 1), pair(other, other), 0, 0, 0, in_turn]);
        }
    }
    // Pairs of similar size, and any pairs.
    for _ in 0..200_000 {
        let (a, b) = (random.next() as u32, random.next() as u32);
        let near = a & 0xfc00_fc00 ^ (b & 0x0fff_0fff) ^ (b & 0x8000_8000);
        words.push([a, if a.is_multiple_of(2) { near } else { b }, 0, 0, 0, (a >> 3) ^ b]);
    }
    // Every selector of four digits over bytes of either sign; the upper half of the selector is ignored.
    for (selector, word) in words.iter_mut().enumerate() {
        let bytes = random.next();
        word[2..5].copy_from_slice(&[bytes as u32, (bytes >> 32) as u32, selector as u32]);
    }
    assert!(words.len() > 0x10000);
    // Ends of the integer range, halves, infinities, NaN.
    let ends =
        [-0.5f32, 0.99, -0.99, 1.5, 2147483520.0, 2147483648.0, -2147483648.0, -2147483904.0, 1e30, -1e30];
    let ends = ends.into_iter().chain([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, -0.0, 1e-45]);
    ends.zip(&mut words).for_each(|(end, word)| word[5] = end.to_bits());

    for (words, out) in words.chunks(1 << 17).zip(words.chunks(1 << 17).map(outputs)) {
        for (word, out) in words.iter().zip(out.chunks(4)) {
            let [a, b, low, high, selector, float] = *word;
            let wanted = [
                pair(difference(a as u16, b as u16), difference((a >> 16) as u16, (b >> 16) as u16)),
                permuted(low, high, selector),
                f32::from_bits(float) as i32 as u32, // toward zero, saturates, NaN is 0
                pair(
                    fused(a as u16, b as u16, float as u16),
                    fused((a >> 16) as u16, (b >> 16) as u16, (float >> 16) as u16),
                ),
            ];
            assert_eq!(out, wanted, "{word:08x?}");
        }
    }
}

#[test]
fn pairs_from_shared_memory() {
    let out = Probe::new(probe_shared_pairs(), 32, 256, 64).output();
    for lane in 0..32u32 {
        assert_eq!(out[2 * lane as usize..][..2], [1000 + 31 - lane, !(31 - lane)]);
    }
    for (offset, kind) in [(4, FaultKind::Misaligned), (8, FaultKind::SharedBounds)] {
        let probe = Probe::new(probe_shared_pairs(), 32, 256, 64).n(&[offset]);
        assert_eq!(probe.run().expect_err("refused").kind, kind);
    }
}

/// Outputs of one thread of the probe: seven f64, a shift, the funnel shift and leading zeros, then f32.
fn wide_arithmetic(a: f64, b: f64) -> [u64; 11] {
    let (bits, n) = (a.to_bits(), b.to_bits() as u32);
    let (low, high) = (bits as u32, (bits >> 32) as u32);
    let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    let single = f32::from_bits(low);
    // NaN payloads are not promised, and this processor's own are not compared.
    let wide = |x: f64| if x.is_nan() { f64::NAN.to_bits() } else { x.to_bits() };
    let short = |x: f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
    let funnel = if n % 32 == 0 { high } else { high << (n % 32) | low >> (32 - n % 32) };
    [
        wide(a + b),
        wide(a * b),
        wide(a / b),
        wide(f64::from(single)),
        wide(f64::from(low as i32)),
        wide(f64::from(low)),
        wide(bits as f64),
        bits.checked_shr(n).unwrap_or(0),
        pair(funnel, (bits >> (n % 64)).leading_zeros()),
        pair(low & 0x7fff_ffff, (low as f32).to_bits()),
        pair(0, short(a as f32)),
    ]
}

#[test]
fn wide_arithmetic_is_rounded_once() {
    let mut random = Random(12);
    let ends = [
        0.0,
        1.0,
        f64::MIN_POSITIVE,
        f64::MAX,
        f64::INFINITY,
        f64::NAN,
        5e-324,
        3.4e38,
        1.5 * 2f64.powi(-149),
    ];
    let mut pairs: Vec<[u64; 2]> = Vec::new();
    for a in ends.into_iter().flat_map(|x| [x, -x]) {
        pairs.extend(ends.into_iter().flat_map(|x| [x, -x]).map(|b| [a.to_bits(), b.to_bits()]));
    }
    for i in 0..200_000 {
        let (a, b) = (random.next(), random.next());
        // Numbers of any size, or near each other; ties of the rounding to f32; shift counts up to 127.
        pairs.push(match i % 4 {
            0 => [a, b],
            1 => [a, a ^ (b & 0x800f_ffff_0000_00ff)],
            2 => [a & 0xbfff_ffff_f000_0000 | 0x3000_0000_1000_0000, b],
            _ => [a >> (b % 64), b & !0xffff_ffff | (b & 127)],
        });
    }
    // Every power of two and its neighbours, also as f32.
    pairs.extend((0..=255u64).flat_map(|e| (0..3).map(move |d| [((e << 23) + d).wrapping_sub(1), e])));
    let words: Vec<u32> = pairs.iter().flatten().flat_map(|&v| [v as u32, (v >> 32) as u32]).collect();
    let count = pairs.len() as u32;
    let probe = Probe::new(probe_wide_arithmetic(), 256, 0, 22 * pairs.len()).input(&words).n(&[count]);
    let out = probe.grid(count.div_ceil(256)).config(|c| c.checks(false)).output();
    let mut inexact = 0;
    for (pair, out) in pairs.iter().zip(out.chunks(22)) {
        let [a, b] = pair.map(f64::from_bits);
        let mut got: Vec<u64> = out.chunks(2).map(|v| u64::from(v[0]) | u64::from(v[1]) << 32).collect();
        let logarithm = f32::from_bits((got[10] >> 32) as u32);
        got[10] &= 0xffff_ffff;
        for v in &mut got[..7] {
            *v = if f64::from_bits(*v).is_nan() { f64::NAN.to_bits() } else { *v };
        }
        got[10] = if f32::from_bits(got[10] as u32).is_nan() { f32::NAN.to_bits().into() } else { got[10] };
        assert_eq!(got, wide_arithmetic(a, b), "{pair:016x?}");
        // Within PTX's error bounds; subnormals count as 0.
        let single = f32::from_bits(pair[0] as u32);
        let single = if single.is_subnormal() { 0.0 } else { single };
        let truth = f64::from(single).log2();
        if truth.is_finite() {
            let bound = if single > 0.5 && single < 2.0 { 1.0 } else { truth.abs() };
            let error = (f64::from(logarithm) - truth).abs();
            assert!(error <= bound * 2f64.powi(-22), "log2 of {single:e}: wanted {truth}, got {logarithm}");
            inexact += usize::from(error > bound * 2f64.powi(-24));
        } else {
            assert!(
                truth.is_nan() && logarithm.is_nan() || truth == f64::from(logarithm),
                "{single:e}: {logarithm}"
            );
        }
    }
    assert!(inexact > pairs.len() / 10, "the emulated logarithm is to be off: {inexact} of {}", pairs.len());
}
