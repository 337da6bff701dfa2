//! Masses, the filter min_p and Gumbel noise of the answer kernels (`kernels/answers`), against the
//! definition written out in integers and f64. Nothing is taken from the library except the random words of a
//! seed. The CPU backend is tested against the same model.

use super::answer_sums::term;
use lmhead::SamplingParams;
use lmhead::sampling::mass::Scale;
use lmhead::sampling::philox::{self, Words};
use lmhead_emulated::probe::*;
use lmhead_testkit::Random;
use std::cmp::Ordering;

fn wide(words: &[u32]) -> u64 {
    u64::from(words[0]) | u64::from(words[1]) << 32
}

/// e^x in units of 2^-unit for x <= 0: halves are rounded up.
fn mass(x: f32, unit: u32) -> u64 {
    if x < -64.0 {
        return 0;
    }
    let (significand, exponent) = term(x);
    let shift = u32::try_from(-(exponent + 23)).expect("e^x is at most 1");
    let half = if shift == 0 { 0 } else { 1u128 << (shift - 1) };
    (((u128::from(significand) << (unit - 23)) + half) >> shift) as u64
}

/// Compares the masses of `count` floats whose bits begin at `first` in steps of `step`.
fn masses_are_the_models(first: u32, step: u32, count: u32, unit: u32) {
    let probe = Probe::new(probe_mass(), 256, 0, 2 * count as usize).n(&[first, step, count, unit]);
    let out = probe.grid(count.div_ceil(64 * 256)).config(|c| c.checks(false).threads(2)).output();
    // The CPU backend's masses too, for a vocabulary with this unit.
    let host = Scale::new(&SamplingParams::default(), 0.0, 1 << (63 - unit));
    for (i, got) in out.chunks(2).enumerate() {
        let x = f32::from_bits(first.wrapping_add((i as u32).wrapping_mul(step)));
        if x <= 0.0 {
            let said = format!("mass of {x:e} ({:#x}), unit {unit}", x.to_bits());
            assert_eq!((wide(got), host.mass(x)), (mass(x, unit), mass(x, unit)), "{said}");
        }
    }
}

#[test]
fn masses_have_the_models_bits() {
    // All floats that are not above 0, with minus infinity: in the usual unit and in the largest.
    masses_are_the_models(1 << 31, 1021, (1u32 << 31).div_ceil(1021), 40);
    masses_are_the_models(1 << 31, 4099, (1u32 << 31).div_ceil(4099), 31);
    for unit in 31..=40 {
        // Where the mass becomes 0, and where the definition says it does; -0 and 0; where n changes.
        let ends = [27.7f32, 28.0, 22.2, 64.0, 128.0, 0.0, 1e-8, 6e-8, f32::INFINITY, f32::MAX, 2_097_152.0];
        for end in ends.into_iter().chain((1..64).map(|n| (n as f32 - 0.5) * std::f32::consts::LN_2)) {
            masses_are_the_models((end.to_bits() | 1 << 31).saturating_sub(20), 1, 41, unit);
        }
        masses_are_the_models(0, 1, 1, unit);
        // Each mass from 0 to 2 units, and halves: x from -(unit + 2)·ln 2 on.
        let [first, last] = [unit - 1, unit + 2].map(|n| (n as f32 * -std::f32::consts::LN_2).to_bits());
        masses_are_the_models(first, ((last - first) / 10_000) | 1, 10_000, unit);
    }
}

#[test]
fn x_is_one_subtraction_and_one_division() {
    let mut random = Random(31);
    let mut rows: Vec<[f32; 3]> = Vec::new();
    for _ in 0..100_000 {
        let any = |random: &mut Random| f32::from_bits(random.next() as u32 & 0x7f7f_ffff);
        // Usual logits, then logits of any size; usual temperatures, then of any size.
        let usual = [(random.normal() * 8.0).min(20.0), 20.0, (random.normal().abs() + 0.05) * 2.0];
        let [a, b] = [any(&mut random), any(&mut random)].map(|x| if random.below(2) == 0 { x } else { -x });
        rows.push(usual);
        rows.push([a.min(b), a.max(b), any(&mut random)]);
        rows.push([a.min(b), a.max(b), usual[2]]);
    }
    rows.push([f32::NEG_INFINITY, 3.0, 0.5]);
    rows.push([-0.0, 0.0, 1.0]);
    let rows: Vec<_> = rows.into_iter().filter(|[_, _, temperature]| *temperature > 0.0).collect();
    // Around each power of two.
    let vocabs = [1, 2, 32_000, 128_256, 262_144].into_iter();
    let vocabs = vocabs.chain((22..32u32).flat_map(|bits| (0..3).map(move |i| (1u32 << bits) - 1 + i)));
    let vocabs: Vec<u32> = vocabs.chain([u32::MAX]).collect();
    let of = |i: usize| vocabs[i % vocabs.len()];
    let words: Vec<u32> = rows
        .iter()
        .enumerate()
        .flat_map(|(i, [l, max, t])| [l.to_bits(), max.to_bits(), t.to_bits(), of(i)])
        .collect();
    let count = rows.len() as u32;
    let probe = Probe::new(probe_scale(), 256, 0, 4 * rows.len()).input(&words).n(&[count]);
    let out = probe.grid(count.div_ceil(256)).config(|c| c.checks(false).threads(2)).output();
    for (i, ([l, max, temperature], out)) in rows.iter().zip(out.chunks(4)).enumerate() {
        let x = (l - max) / temperature;
        assert_eq!(f32::from_bits(out[0]).to_bits(), x.to_bits(), "{l:e} below {max:e} at {temperature:e}");
        // The largest power of two of which so many fit into 63 bits, at most 2^40.
        let unit = (0..=40).rev().find(|unit| u128::from(of(i)) << unit <= 1 << 63).expect("2^31 does");
        assert_eq!((out[1], wide(&out[2..])), (unit, mass(x, unit)), "{x:e}, vocabulary {}", of(i));
    }
}

/// The test vectors published with Random123 (`kat_vectors`, philox4x32 10), through seed, position and id:
/// the second word of the counter must be 0, which only the first vector has.
#[test]
fn random_words_and_least_x() {
    let mut random = Random(32);
    let mut rows: Vec<(u64, u64, u32, f32)> = vec![(0, 0, 0, 0.0), (u64::MAX, u64::MAX, u32::MAX - 3, 1.0)];
    rows.extend((0..100_000).map(|_| {
        let min_p = match random.below(3) {
            0 => random.normal().abs().min(1.0),
            1 => f32::from_bits(random.next() as u32 % 0x3f80_0001),
            _ => 0.05,
        };
        (random.next(), random.next() >> random.below(64), random.next() as u32 & !3, min_p)
    }));
    let half = |v: u64| [v as u32, (v >> 32) as u32];
    let words: Vec<u32> = rows
        .iter()
        .flat_map(|(seed, position, id, min_p)| {
            [half(*seed), half(*position), [*id, min_p.to_bits()], [0; 2]].concat()
        })
        .collect();
    let count = rows.len() as u32;
    let probe = Probe::new(probe_philox(), 256, 0, 8 * rows.len()).input(&words).n(&[count]);
    let out = probe.grid(count.div_ceil(256)).config(|c| c.checks(false).threads(2)).output();
    assert_eq!(out[..4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8], "the published vector");
    for ((seed, position, id, min_p), out) in rows.iter().zip(out.chunks(8)) {
        let of_seed = Words::new(*seed, *position);
        let wanted: Vec<u32> = (0..4).map(|i| of_seed.of(id + i)).collect();
        assert_eq!(out[..4], wanted, "seed {seed}, position {position}, id {id}");
        let least = libm::log(f64::from(*min_p)) as f32;
        assert_eq!(
            out[4],
            least.to_bits(),
            "min_p {min_p:e}: wanted {least}, got {}",
            f32::from_bits(out[4])
        );
    }
}

/// The Gumbel noise of a word.
fn gumbel(word: u32) -> f64 {
    -libm::log(-libm::log1p(-(f64::from(word) + 0.5) / 2f64.powi(32)))
}

#[test]
fn noise_has_the_bits_of_libm() {
    // Every 2047th word, and the ends.
    for (first, step, count) in
        [(0, 2047, (1u64 << 32).div_ceil(2047) as u32), (0, 1, 40_000), (u32::MAX - 39_999, 1, 40_000)]
    {
        let probe = Probe::new(probe_gumbel(), 256, 0, 2 * count as usize).n(&[first, step, count]);
        let out = probe.grid(count.div_ceil(64 * 256)).config(|c| c.checks(false).threads(2)).output();
        for (i, got) in out.chunks(2).enumerate() {
            let word = first.wrapping_add((i as u32).wrapping_mul(step));
            let (wanted, got) = (gumbel(word), f64::from_bits(wide(got)));
            assert_eq!(got.to_bits(), wanted.to_bits(), "word {word:#x}: wanted {wanted}, got {got}");
            assert_eq!(philox::gumbel(word).to_bits(), wanted.to_bits(), "word {word:#x} on the CPU");
        }
    }
}

/// `z` of the definition.
fn scaled(logit: f32, temperature: f32) -> f64 {
    if temperature == 0.0 { logit.into() } else { f64::from(logit) / f64::from(temperature) }
}

/// The exact sign of a sum of f64: the numbers become a sum of non-overlapping ones, whose largest decides
/// (J. Shewchuk, "Adaptive precision floating-point arithmetic", 1997, Grow-Expansion).
fn sign_of_sum(values: [f64; 4]) -> Ordering {
    let mut parts: Vec<f64> = Vec::new();
    for value in values {
        let mut carried = value;
        for part in &mut parts {
            let sum = carried + *part;
            let of_part = sum - carried;
            let rest = (carried - (sum - of_part)) + (*part - of_part);
            (*part, carried) = (rest, sum);
        }
        parts.push(carried);
    }
    parts.iter().rev().find(|part| **part != 0.0).map_or(Ordering::Equal, |part| part.total_cmp(&0.0))
}

#[test]
fn bounds_hold_the_score() {
    let mut random = Random(33);
    let mut rows: Vec<(f32, f32, u32)> = Vec::new();
    // Words of all sizes, around 2^24, and at both ends.
    let mut words: Vec<u32> = (0..2000).flat_map(|i| [i, u32::MAX - i, (1 << 24) - 1000 + i]).collect();
    for _ in 0..200_000 {
        let word = random.next() as u32 >> random.below(32);
        words.extend([word, !word]);
    }
    let logits = [0.0, -0.0, 1.0, -1e-30, 3.25e38, -3.25e38, 1e-44, 88.0, f32::MAX, f32::MIN];
    let temperatures = [0.0, 1.0, 0.7, 1e-3, 1e-30, 1e-45, 3e38, 1e38, 1.1e-38, f32::MAX];
    for (i, &word) in words.iter().enumerate() {
        let usual = [random.normal() * 10.0, random.normal().abs() + 0.01];
        rows.push((usual[0], usual[1], word));
        rows.push((logits[i % 10], temperatures[i / 10 % 10], word));
    }
    let input: Vec<u32> = rows.iter().flat_map(|(l, t, word)| [l.to_bits(), t.to_bits(), *word, 0]).collect();
    let count = rows.len() as u32;
    let probe = Probe::new(probe_bounds(), 256, 0, 6 * rows.len()).input(&input).n(&[count]);
    let out = probe.grid(count.div_ceil(256)).config(|c| c.checks(false).threads(2)).output();
    let mut widest = 0f64;
    for (i, ((logit, temperature, word), out)) in rows.iter().zip(out.chunks(6)).enumerate() {
        let (z, noise) =
            (scaled(*logit, *temperature), if *temperature == 0.0 { 0.0 } else { gumbel(*word) });
        let said = format!("logit {logit:e}, temperature {temperature:e}, word {word:#x}");
        let [low, high] = [out[0], out[1]].map(|bits| f64::from(f32::from_bits(bits)));
        let exact = |bound: f64| sign_of_sum([z, noise, -bound, 0.0]);
        // NaN bounds nothing. In f32 it may come from infinities that f64 does not have here.
        assert!(
            low.is_nan() || low == f64::NEG_INFINITY || exact(low).is_ge(),
            "{said}: {low} is above {z} + {noise}"
        );
        assert!(
            high.is_nan() || high == f64::INFINITY || exact(high).is_le(),
            "{said}: {high} is below {z} + {noise}"
        );
        if i % 2 == 0 {
            assert!(low.is_finite() && high.is_finite(), "{said}");
            widest = widest.max((high - low) / (1.0 + z.abs() / 256.0));
        }
        let score = [2, 4].map(|at| f64::from_bits(wide(&out[at..])));
        assert_eq!(score[0].to_bits(), (z + 0.0 + noise).to_bits(), "{said}");
        assert_eq!(sign_of_sum([z, noise, -score[0], -score[1]]), Ordering::Equal, "{said}: {score:?}");
    }
    assert!(widest < 1e-3, "bounds that rule nothing out: {widest}");
}

/// The id with the largest `z + g`, the lowest of equal ones, by comparing each with the best so far.
fn drawn(logits: &[f32], seed: u64, position: u64, temperature: f32) -> Option<u32> {
    let words = Words::new(seed, position);
    let mut best: Option<(f64, f64, u32)> = None;
    for (id, logit) in (0u32..).zip(logits).filter(|(_, logit)| **logit > f32::NEG_INFINITY) {
        let noise = if temperature == 0.0 { 0.0 } else { gumbel(words.of(id)) };
        let z = scaled(*logit, temperature);
        if best.is_none_or(|(other, its, _)| sign_of_sum([z, noise, -other, -its]).is_gt()) {
            best = Some((z, noise, id));
        }
    }
    best.map(|(_, _, id)| id)
}

/// With all checks of the device, and lanes in any order: equal logits without noise, so that all lanes have
/// the best score.
#[test]
fn lanes_draw_without_an_alarm() {
    let mut input = vec![1, 0, 7, 0, 0, 0];
    input.extend([2.5f32.to_bits(); 512]);
    for seed in 0..100 {
        for mode in 0..3 {
            let probe = Probe::new(probe_draw(), 32, 0, 8).input(&input).n(&[512, mode]);
            let out = probe.config(|c| c.seed(seed)).output();
            assert_eq!(out[..2], [0, 2.5f32.to_bits()], "mode {mode}, seed {seed}");
        }
    }
}

#[test]
fn the_drawn_id_is_that_of_f64() {
    const COUNT: usize = 1024;
    let mut random = Random(34);
    let mut rows: Vec<(Vec<f32>, f32)> = Vec::new();
    let temperatures = [1.0, 0.0, 0.3, 2.0, 50.0, 1e-30, 1e-42, 3e38];
    for i in 0..256 {
        let temperature = temperatures[i % temperatures.len()];
        let kind = i / temperatures.len() % 8;
        let logits = (0..COUNT).map(|id| match kind {
            0 | 1 => random.normal() * 4.0,
            2 => 3.0e38 + random.below(3) as f32 * 3e31, // so large that f32 and f64 swallow the noise
            3 => -3.3e38,
            4 => 1e6 + random.below(2) as f32 * 0.0625,
            5 => [0.0, -0.0, 1e-44, -1e-40][id % 4],
            6 if id % 100 != 77 => f32::NEG_INFINITY,
            6 => random.normal(),
            _ => f32::NEG_INFINITY,
        });
        rows.push((logits.collect(), temperature));
    }
    let seeds: Vec<[u64; 2]> = rows.iter().map(|_| [random.next(), random.next() >> 40]).collect();
    let mut input = Vec::new();
    for ((logits, temperature), [seed, position]) in rows.iter().zip(&seeds) {
        input.extend([seed, position].into_iter().flat_map(|v| [*v as u32, (*v >> 32) as u32]));
        input.extend([temperature.to_bits(), 0]);
        input.extend(logits.iter().map(|l| l.to_bits()));
    }
    let blocks = rows.len() as u32;
    let mut scored = [0; 3];
    for mode in 0..3u32 {
        let probe = Probe::new(probe_draw(), 32, 0, 8 * rows.len()).input(&input).n(&[COUNT as u32, mode]);
        let out = probe.grid(blocks).config(|c| c.checks(false).threads(2)).output();
        for (i, (((logits, temperature), [seed, position]), out)) in
            rows.iter().zip(&seeds).zip(out.chunks(8)).enumerate()
        {
            let said = format!("row {i}, mode {mode}, temperature {temperature:e}, seed 34");
            let wanted = drawn(logits, *seed, *position, *temperature);
            assert_eq!(out[0], wanted.unwrap_or(u32::MAX), "{said}");
            let logit = wanted.map_or(0, |id| logits[id as usize].to_bits());
            assert_eq!(out[1], logit, "{said}");
            // Realistic rows: Gaussian logits at a temperature near 1.
            if i / temperatures.len() % 8 < 2 && [1.0, 0.3, 2.0].contains(temperature) {
                scored[mode as usize] += out[6] as usize;
            }
        }
    }
    let usual = scored[0] / COUNT;
    assert!(usual > 10 && scored[0] % COUNT == 0, "{scored:?}");
    // With a floor over all ids little more than the winner is scored; with one that is raised on the way,
    // some more in each lane.
    assert!(scored[1] <= 2 * usual && scored[2] <= scored[0] / 4, "the screen lets pass {scored:?}");
}
