//! Terms, sums of exponentials and logarithms of the answer kernels (`kernels/answers`), against a model
//! written from the definition alone. The model holds all terms of a row, in no order, and shares no code
//! with the library, whose sums are tested against it too.

use lmhead::backend::params;
use lmhead::merge::ExpSum;
use lmhead_emulated::probe::*;
use lmhead_testkit::Random;

const LOG2E: u32 = 0x3fb8_aa3b;
const SHIFT: u32 = 0x4b40_0000;
const LN2: [u32; 2] = [0x3f31_7218, 0xb102_e308];
/// From C2 to C6.
const COEFFICIENTS: [u32; 5] = [0x3eff_fff9, 0x3e2a_a9d9, 0x3d2a_ae94, 0x3c09_61e3, 0x3ab4_9ae8];
const LN2_64: [u64; 2] = [0x3fe6_2e42_fee0_0000, 0x3dea_39ef_3579_3c76];
/// 2^21 and 2^20.
const LIMITS: [f32; 2] = [2_097_152.0, 1_048_576.0];

#[test]
fn the_constants_are_the_definitions() {
    use params::*;
    assert_eq!([LMHEAD_EXP_LOG2E, LMHEAD_EXP_SHIFT], [LOG2E, SHIFT]);
    assert_eq!([LMHEAD_EXP_LN2_HI, LMHEAD_EXP_LN2_LO], LN2);
    let coefficients = [LMHEAD_EXP_C2, LMHEAD_EXP_C3, LMHEAD_EXP_C4, LMHEAD_EXP_C5, LMHEAD_EXP_C6];
    assert_eq!(coefficients, COEFFICIENTS);
    assert_eq!([LMHEAD_LN2_HI64, LMHEAD_LN2_LO64], LN2_64);
    assert_eq!([LMHEAD_EXP_LIMIT, LMHEAD_LSE_LIMIT], LIMITS.map(f32::to_bits));
}

/// Significand and exponent of `e^x` for `|x| <= 2^21`.
pub fn term(x: f32) -> (u32, i32) {
    let t = x.mul_add(f32::from_bits(LOG2E), f32::from_bits(SHIFT));
    let n = t - f32::from_bits(SHIFT);
    let r = (-n).mul_add(f32::from_bits(LN2[1]), (-n).mul_add(f32::from_bits(LN2[0]), x));
    let c = COEFFICIENTS.map(f32::from_bits);
    let p = [c[3], c[2], c[1], c[0], 1.0, 1.0].iter().fold(c[4], |p, c| p.mul_add(r, *c));
    let exponent = (p.to_bits() >> 23) as i32 + (t.to_bits() as i32 - SHIFT as i32) - 150;
    (p.to_bits() & 0x7f_ffff | 0x80_0000, exponent)
}

/// Compares `count` floats whose bits begin at `first` in steps of `step`, leaving out those beyond the
/// limit. Returns the largest relative error against f64.
fn terms_are_the_models(first: u32, step: u32, count: u32) -> f64 {
    let probe = Probe::new(probe_term(), 256, 0, 2 * count as usize).n(&[first, step, count]);
    let out = probe.grid(count.div_ceil(64 * 256)).config(|c| c.checks(false).threads(2)).output();
    let mut worst = 0f64;
    for (i, got) in out.chunks(2).enumerate() {
        let x = f32::from_bits(first.wrapping_add((i as u32).wrapping_mul(step)));
        if x.is_nan() || x.abs() > LIMITS[0] {
            continue;
        }
        let (significand, exponent) = term(x);
        assert_eq!([got[0], got[1]], [significand, exponent as u32], "term of {x:e} ({:#x})", x.to_bits());
        assert_eq!(significand >> 23, 1, "{x:e}");
        // e^x / 2^exponent, which f64 holds even where it does not hold e^x: the product with LN2_64[0] is
        // exact.
        let [high, low] = LN2_64.map(f64::from_bits);
        let rest = f64::from(x) - f64::from(exponent) * high - f64::from(exponent) * low;
        worst = worst.max((f64::from(significand) / rest.exp() - 1.0).abs());
    }
    worst
}

#[test]
fn terms_have_the_models_bits() {
    // Every 499th float of both signs; the step is odd, so that all low bits occur.
    let mut worst = terms_are_the_models(0, 499, (1u64 << 32).div_ceil(499) as u32);
    // Each power of two, zeros, subnormals and the limit, with their neighbours on both sides.
    for border in (0..=0x4a00_0000u32 >> 23).map(|exponent| exponent << 23) {
        for sign in [0, 1 << 31] {
            worst = worst.max(terms_are_the_models(sign | border.saturating_sub(64), 1, 129));
        }
    }
    // Where n changes, at (n + 1/2)·ln 2, and where the exponent changes, at n·ln 2: the small ones, and some
    // up to the limit.
    let mut random = Random(21);
    let far = (0..400).map(|_| random.below(3_000_000) as i32);
    for n in (0..100).chain(far) {
        for half in [0.0, 0.5] {
            let border = ((f64::from(n) + half) * std::f64::consts::LN_2) as f32;
            for sign in [0, 1 << 31] {
                worst = worst.max(terms_are_the_models(sign | border.to_bits().saturating_sub(40), 1, 81));
            }
        }
    }
    assert!(worst <= 1e-7, "relative error {worst:e}");
}

/// A sum: the highest digit, and the words of it and of the two digits below it, lowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sum {
    top: i32,
    words: [u64; 3],
}

impl Sum {
    /// From all terms at once: first the highest digit, then the kept part of each term.
    fn of(logits: &[f32]) -> Sum {
        let counted = logits.iter().filter(|x| x.abs() <= LIMITS[0]);
        let terms: Vec<_> = counted.map(|x| term(*x)).collect();
        let Some(top) = terms.iter().map(|(_, exponent)| exponent.div_euclid(32) + 1).max() else {
            return Sum { top: i32::MIN, words: [0; 3] };
        };
        let word = |digit: i32| {
            let parts = terms.iter().map(|&(significand, exponent)| {
                let v = u64::from(significand) << exponent.rem_euclid(32);
                match digit - exponent.div_euclid(32) {
                    0 => v & 0xffff_ffff,
                    1 => v >> 32,
                    _ => 0,
                }
            });
            parts.sum()
        };
        Sum { top, words: [top - 2, top - 1, top].map(word) }
    }

    fn merged(sums: &[Sum]) -> Sum {
        let top = sums.iter().map(|sum| sum.top).max().expect("at least one");
        let mut words = [0; 3];
        for sum in sums.iter().filter(|sum| sum.top != i32::MIN) {
            for (i, word) in sum.words.iter().enumerate() {
                let place = i64::from(sum.top) + i as i64 - i64::from(top);
                if place >= 0 {
                    words[place as usize] += word;
                }
            }
        }
        Sum { top, words }
    }

    /// The natural logarithm, for a row whose largest logit is `max`.
    fn ln(&self, max: f32) -> f64 {
        if !max.is_finite() || max.abs() > LIMITS[1] {
            return f64::from(max);
        }
        let [w0, w1, w2] = self.words.map(u128::from);
        let value = (w2 << 64) + (w1 << 32) + w0;
        let zeros = value.leading_zeros();
        let f = ((value << zeros >> 64) as u64) as f64 * 2f64.powi(-63);
        let k = f64::from(32 * (self.top - 2) + 127 - zeros as i32);
        let [high, low] = LN2_64.map(f64::from_bits);
        (k * high + libm::log(f)) + k * low
    }

    fn encode(&self) -> [u32; 8] {
        let [w0, w1, w2] = self.words;
        let half = |w: u64| [w as u32, (w >> 32) as u32];
        let [a, b, c] = [w0, w1, w2].map(half);
        [self.top as u32, 0, a[0], a[1], b[0], b[1], c[0], c[1]]
    }

    fn decode(words: &[u32]) -> Sum {
        let wide = |i: usize| u64::from(words[i]) | u64::from(words[i + 1]) << 32;
        Sum { top: words[0] as i32, words: [wide(2), wide(4), wide(6)] }
    }
}

/// Sums of rows of equal length on the device, in parts of `part` logits.
fn sums_of_parts(rows: &[Vec<f32>], part: usize, at_once: u32) -> Vec<Vec<Sum>> {
    let (count, parts) = (rows[0].len(), rows[0].len().div_ceil(part));
    let words: Vec<u32> = rows.iter().flatten().map(|x| x.to_bits()).collect();
    let blocks = rows.len() * parts;
    let probe = Probe::new(probe_sum(), 32, 0, 8 * blocks).input(&words).grid(blocks as u32);
    let out = probe.n(&[count as u32, part as u32, at_once]).config(|c| c.checks(false).threads(2)).output();
    out.chunks(8 * parts).map(|row| row.chunks(8).map(Sum::decode).collect()).collect()
}

/// Each row's partials merged in order, with the logarithm.
fn merged(rows: &[(f32, Vec<Sum>)]) -> Vec<(Sum, f64)> {
    let (count, parts) = (rows.len() as u32, rows[0].1.len() as u32);
    let row = |(max, sums): &(f32, Vec<Sum>)| {
        let mut words = vec![max.to_bits(), 0];
        words.extend(sums.iter().flat_map(|sum| sum.encode()));
        words
    };
    let words: Vec<u32> = rows.iter().flat_map(row).collect();
    let probe = Probe::new(probe_merge(), 256, 0, 10 * rows.len()).input(&words).n(&[count, parts]);
    let out = probe.grid(count.div_ceil(256)).config(|c| c.checks(false).threads(2)).output();
    let wide = |v: &[u32]| f64::from_bits(u64::from(v[0]) | u64::from(v[1]) << 32);
    out.chunks(10).map(|row| (Sum::decode(row), wide(&row[8..]))).collect()
}

const COUNT: usize = 700;

/// Rows of COUNT logits, each difficult in its own way.
fn rows(random: &mut Random) -> Vec<Vec<f32>> {
    let mut rows: Vec<Vec<f32>> = Vec::new();
    let mut row = |one: &mut dyn FnMut(usize) -> f32| rows.push((0..COUNT).map(one).collect());
    let none = f32::NEG_INFINITY;
    for width in [1e-30, 0.01, 1.0, 8.0, 60.0, 3000.0, 2e5, 1e6] {
        for shift in [0.0, 15.0, -40.0, 1e6] {
            row(&mut |_| random.normal() * width + shift);
        }
    }
    // Any float that is allowed, with subnormals; with some beyond the limits; with most masked.
    row(&mut |_| f32::from_bits(random.next() as u32 & 0xbfff_ffff));
    row(&mut |_| f32::from_bits(random.next() as u32 & 0xc9ff_ffff));
    row(&mut |i| if i % 7 == 0 { 3e6 - 100.0 * i as f32 } else { 2_097_000.0 + random.normal() * 100.0 });
    row(&mut |i| if i % 5 == 0 { f32::MIN } else { -2_097_152.0 + random.normal().abs() });
    row(&mut |i| if i % 50 == 3 { random.normal() } else { none });
    // Digits that change quickly: the highest digit rises by one, by two and by more from one logit to the
    // next.
    for step in [10.0, 22.2, 31.0, 44.4, 70.0] {
        row(&mut |i| (i % 64) as f32 * step - 600.0);
        row(&mut |i| 600.0 - (i % 64) as f32 * step);
    }
    // Around each change of digit, 32·ln 2 apart, varying in the low bits.
    row(&mut |i| ((i % 30) as f32 - 14.0) * 32.0 * std::f32::consts::LN_2 + random.normal() * 1e-5);
    row(&mut |i| f32::from_bits((-9.0f32 * std::f32::consts::LN_2).to_bits() - 350 + i as u32));
    // One huge logit; equal logits; none; a single one; zeros of both signs.
    row(&mut |i| if i == 345 { 1e5 } else { random.normal() });
    row(&mut |_| 12.75);
    row(&mut |_| none);
    row(&mut |i| if i == 699 { -87.5 } else { none });
    row(&mut |i| if i % 2 == 0 { -0.0 } else { 0.0 });
    // At the limits, and the next floats beyond them.
    row(&mut |i| [-2_097_152.0, -2_097_152.2][i % 2]);
    row(&mut |i| [2_097_152.0, 2_097_152.2, 2_097_000.0][i % 3]);
    row(&mut |i| [1_048_576.0, 0.0][i % 2]);
    row(&mut |i| [1_048_576.1, 0.0][i % 2]);
    row(&mut |i| [-1_048_576.0, none][i % 2]);
    row(&mut |_| 2.5e6);
    row(&mut |_| -1_048_577.0);
    rows
}

#[test]
fn no_order_or_grouping_of_a_sum_shows() {
    let mut random = Random(22);
    let mut rows = rows(&mut random);
    let wanted: Vec<Sum> = rows.iter().map(|row| Sum::of(row)).collect();
    let maxima: Vec<f32> =
        rows.iter().map(|row| row.iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect();
    // The CPU backend's sums are these too.
    for ((row, sum), max) in rows.iter().zip(&wanted).zip(&maxima) {
        let host = ExpSum::of(row);
        let got = (host.top(), host.words(), host.ln(*max).to_bits());
        assert_eq!(got, (sum.top, sum.words, sum.ln(*max).to_bits()), "seed 22");
    }
    let tops = wanted.iter().map(|sum| sum.top);
    assert!(tops.clone().min() == Some(i32::MIN) && tops.max() > Some(90_000), "{wanted:?}");
    // Parts of a warp with one logit for each lane and with some left over; 1, 4 and 8 logits at once.
    for (part, at_once) in [(COUNT, 1), (COUNT, 4), (COUNT, 8), (33, 1), (100, 4), (350, 8), (7, 4)] {
        let parts = sums_of_parts(&rows, part, at_once);
        for (i, (row, sums)) in rows.iter().zip(&parts).enumerate() {
            for (logits, sum) in row.chunks(part).zip(sums) {
                assert_eq!(*sum, Sum::of(logits), "row {i}, parts of {part}");
            }
        }
        let mut with_max: Vec<_> = maxima.iter().copied().zip(parts).collect();
        // In this order and in two others.
        for turn in 0..3 {
            for (i, (sum, ln)) in merged(&with_max).into_iter().enumerate() {
                let said = format!("row {i}, parts of {part}, order {turn}, seed 22");
                assert_eq!(sum, wanted[i], "{said}");
                assert_eq!(ln.to_bits(), wanted[i].ln(maxima[i]).to_bits(), "{said}: {ln}");
            }
            with_max.iter_mut().for_each(|(_, sums)| shuffle(sums, &mut random));
        }
        // The next grouping gets another order.
        rows.iter_mut().for_each(|row| shuffle(row, &mut random));
    }
}

/// With all checks of the device, and lanes in any order.
#[test]
fn lanes_add_up_without_an_alarm() {
    let mut random = Random(25);
    let row: Vec<f32> = random.normals(300).iter().map(|l| l * 20.0).collect();
    let words: Vec<u32> = row.iter().map(|l| l.to_bits()).collect();
    for seed in 0..100 {
        let probe = Probe::new(probe_sum(), 32, 0, 8 * 3).input(&words).grid(3).n(&[300, 128, 4]);
        let out = probe.config(|c| c.seed(seed)).output();
        for (logits, out) in row.chunks(128).zip(out.chunks(8)) {
            assert_eq!(Sum::decode(out), Sum::of(logits), "seed {seed}");
        }
    }
}

fn shuffle<T>(items: &mut [T], random: &mut Random) {
    (1..items.len()).rev().for_each(|i| items.swap(i, random.below(i + 1)));
}

/// log(Σ e^l) in f64, adding from the largest on.
fn truth(logits: &[f32]) -> f64 {
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    if max.is_infinite() {
        return max;
    }
    max + logits.iter().map(|l| (f64::from(*l) - max).exp()).sum::<f64>().ln()
}

#[test]
fn logarithms_of_sums_are_within_the_promise() {
    let mut random = Random(23);
    let mut rows = rows(&mut random);
    rows.push(vec![-0.25; COUNT]);
    let sums = sums_of_parts(&rows, COUNT, 4);
    let maxima = rows.iter().map(|row| row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let with_max: Vec<_> = maxima.clone().zip(sums).collect();
    for ((row, max), (sum, ln)) in rows.iter().zip(maxima).zip(merged(&with_max)) {
        if max.abs() > LIMITS[1] {
            assert_eq!(ln, f64::from(max), "{sum:?}");
        } else {
            let truth = truth(row);
            assert!((ln - truth).abs() <= 5e-7 * truth.abs().max(1.0), "{sum:?}: wanted {truth}, got {ln}");
        }
    }
}

/// Partials that no test's row is long enough to produce: words of up to 2^62, digits at the ends of the
/// range.
#[test]
fn full_words_are_merged_and_their_logarithm_taken() {
    let mut random = Random(24);
    let any = |random: &mut Random| {
        // 2^30 terms: less than 2^62 of low halves and 2^53 of high ones, all in the two words of their
        // digits or spread over more.
        let words = [62, 62, 53].map(|bits| random.next() >> (64 - bits) >> (random.next() % 62));
        let near = random.below(7) as i32;
        let top = match random.below(3) {
            0 => near - 3,
            1 => 94_000 + near,
            _ => -94_000 - near,
        };
        if random.below(9) == 0 { Sum { top: i32::MIN, words: [0; 3] } } else { Sum { top, words } }
    };
    let mut rows: Vec<(f32, Vec<Sum>)> =
        (0..40_000).map(|_| (1.0, (0..2).map(|_| any(&mut random)).collect())).collect();
    // Carries that run through, the smallest sum, and each position of the leading one.
    let full = u64::MAX >> 2;
    let edges = [[full; 3], [full, 0xffff_ffff, 0], [u64::from(u32::MAX) << 32, 0xffff_ffff, 0], [1, 0, 0]];
    let edges = edges.into_iter().chain((0..62).map(|bit| [0, 1 << bit, 0]));
    let edges =
        edges.chain((0..62).flat_map(|bit| [[1 << bit, 0, 0], [0, 0, 1 << bit], [(2 << bit) - 1, 0, 0]]));
    // Bits from the 65th below the leading one on are cut, the first 64 are rounded: a tie, and just above.
    let ties =
        (0..11).flat_map(|bit| [[0, 1 << bit, 1 << 52], [1, 1 << bit, 1 << 52], [0, 3 << bit, 1 << 52]]);
    for words in edges.chain(ties) {
        rows.push((-3.0, vec![Sum { top: 2, words }, Sum { top: i32::MIN, words: [0; 3] }]));
    }
    for ((max, sums), (sum, ln)) in rows.iter().zip(merged(&rows)) {
        let wanted = Sum::merged(sums);
        assert_eq!(sum, wanted, "{sums:?}");
        // A row whose words are all zero has no logarithm: its largest logit would be a term.
        if wanted.words != [0; 3] {
            assert_eq!(
                ln.to_bits(),
                wanted.ln(*max).to_bits(),
                "{sums:?}: wanted {}, got {ln}",
                wanted.ln(*max)
            );
        }
    }
}

/// Compares `log` and `log1p` of `count` doubles whose bits begin at `first` in steps of `step`.
fn logarithms_are_libm_s(first: u64, step: u64, count: u32) {
    let n = [first as u32, (first >> 32) as u32, step as u32, (step >> 32) as u32, count];
    let probe = Probe::new(probe_logarithms(), 256, 0, 4 * count as usize).n(&n);
    let out = probe.grid(count.div_ceil(64 * 256)).config(|c| c.checks(false).threads(2)).output();
    for (i, got) in out.chunks(4).enumerate() {
        let x = f64::from_bits(first.wrapping_add((i as u64).wrapping_mul(step)));
        let wide = |v: &[u32]| f64::from_bits(u64::from(v[0]) | u64::from(v[1]) << 32);
        for (name, wanted, got) in
            [("log", libm::log(x), wide(got)), ("log1p", libm::log1p(x), wide(&got[2..]))]
        {
            let same = got.to_bits() == wanted.to_bits() || (got.is_nan() && wanted.is_nan());
            assert!(same, "{name} of {x:e} ({:#x}): wanted {wanted:e}, got {got:e}", x.to_bits());
        }
    }
}

#[test]
fn logarithms_have_the_bits_of_libm() {
    // All of f64; the step is odd, so that all low bits occur.
    let every = (u64::MAX / 2_000_000) | 1;
    logarithms_are_libm_s(0, every, 2_000_000);
    // Arguments that the finish takes logarithms of, 1 to 2, and those of log1p, -1 to 0: the negatives from
    // -2^-33 on.
    logarithms_are_libm_s(1f64.to_bits() - 3, ((1u64 << 52) / 1_000_000) | 1, 1_000_004);
    let [least, most] = [(-2f64.powi(-33)).to_bits(), (-1f64).to_bits()];
    logarithms_are_libm_s(least - 3, ((most - least) / 1_000_000) | 1, 1_000_004);
    // Where another branch begins, and around each power of two: the upper words that log and log1p compare
    // with, for both signs, and those where 1 + x is a power of two, or sqrt(2) times one.
    let words = [
        0,
        0x0010_0000,
        0x3ca0_0000,
        0x3fd2_bec4,
        0x3fd2_bec5,
        0x3fda_827a,
        0x3fe6_a09e,
        0x3ff0_0000,
        0x4340_0000,
        0x4350_0000,
        0x434f_ffff,
        0x7ff0_0000,
        0x7ff8_0000,
    ];
    let borders = words.into_iter().chain((0..2048).map(|exponent| exponent << 20));
    let borders = borders.map(|word: u64| word << 32);
    let near = (1..70).flat_map(|k| [2f64.powi(k) - 1.0, 2f64.powi(k) * std::f64::consts::SQRT_2 - 1.0]);
    let near = near
        .chain((1..54).flat_map(|k| [-1.0 + 2f64.powi(-k), -1.0 + 2f64.powi(-k) * std::f64::consts::SQRT_2]));
    let all: Vec<u64> =
        borders.flat_map(|border| [border, border | 1 << 63]).chain(near.map(f64::to_bits)).collect();
    for border in all {
        logarithms_are_libm_s(border.wrapping_sub(16), 1, 33);
    }
}
