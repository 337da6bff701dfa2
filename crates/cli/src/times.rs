//! Times of steps: how they are recorded and summarised.

use lmhead::error::{Error, Result};
use lmhead::result::StepStats;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Times of the stages of one rank's steps, in bounded memory.
#[derive(Default)]
pub struct StageTimes {
    pub contract: Times,
    pub gather: Times,
    pub matmul: Times,
    pub exchange: Times,
    pub step: Times,
}

impl StageTimes {
    /// Adds a step: its duration and the times of its stages.
    pub fn add(&mut self, step: Duration, stats: &StepStats) {
        for (times, time) in [
            (&mut self.contract, stats.contract),
            (&mut self.gather, stats.gather),
            (&mut self.matmul, stats.matmul),
            (&mut self.exchange, stats.exchange),
            (&mut self.step, step),
        ] {
            times.add(time);
        }
    }
}

/// A histogram of times. Up to [`Times::EXACT`] different times are kept in whole nanoseconds. With more,
/// each is rounded to nine significant binary digits, which is off by at most 1/512.
#[derive(Default)]
pub struct Times {
    /// Nanoseconds -> how often.
    counts: BTreeMap<u64, u64>,
    rounded: bool,
}

impl Times {
    /// Most different times that are kept exactly.
    const EXACT: usize = 1024;

    pub fn add(&mut self, time: Duration) {
        let nanos = nanos(time);
        *self.counts.entry(if self.rounded { rounded(nanos) } else { nanos }).or_default() += 1;
        if !self.rounded && self.counts.len() > Self::EXACT {
            self.rounded = true;
            for (nanos, count) in std::mem::take(&mut self.counts) {
                *self.counts.entry(rounded(nanos)).or_default() += count;
            }
        }
    }

    /// The median in µs: the mean of the two middle times if their number is even, 0 if there are none.
    pub fn median_us(&self) -> f64 {
        let count: u64 = self.counts.values().sum();
        let Some(last) = count.checked_sub(1) else { return 0.0 };
        (self.nth(last / 2) as f64 + self.nth(count / 2) as f64) / 2.0 / 1e3
    }

    /// The time with `n` others before it, in ascending order.
    fn nth(&self, mut n: u64) -> u64 {
        for (nanos, count) in &self.counts {
            match n.checked_sub(*count) {
                None => return *nanos,
                Some(left) => n = left,
            }
        }
        unreachable!("n is below the number of times")
    }
}

/// The middle of all times with the same nine leading binary digits. Times of at most nine digits stay exact.
fn rounded(nanos: u64) -> u64 {
    let dropped = (u64::BITS - nanos.leading_zeros()).saturating_sub(9);
    (nanos >> dropped << dropped) | ((1 << dropped) >> 1)
}

/// The duration of each step of each group on its slowest rank, which the whole group waits for. 8 bytes for
/// each step, so that percentiles are exact; pages are touched as the steps come.
pub struct SlowestRank {
    /// Nanoseconds, `[groups, steps]`.
    nanos: Box<[AtomicU64]>,
    steps: usize,
}

impl SlowestRank {
    /// For `steps` steps of `groups` groups.
    ///
    /// # Errors
    /// `Config` where the allocation fails.
    pub fn new(groups: usize, steps: usize) -> Result<Self> {
        let nanos = groups.checked_mul(steps).map(bytemuck::allocation::try_zeroed_slice_box);
        match nanos {
            Some(Ok(nanos)) => Ok(SlowestRank { nanos, steps }),
            _ => Err(Error::Config {
                key: "--steps".into(),
                wanted:
                    "a number of steps whose times, 8 bytes each in each group, fit this machine's memory"
                        .into(),
                got: steps.to_string(),
                fix: "time fewer steps".into(),
            }),
        }
    }

    /// Records one rank's duration of `step` in group `group`; the slowest rank's is kept.
    pub fn add(&self, group: usize, step: usize, time: Duration) {
        self.nanos[group * self.steps + step].fetch_max(nanos(time), Ordering::Relaxed);
    }

    /// Nanoseconds of each step of group `group`.
    pub fn of_group(&self, group: usize) -> Vec<u64> {
        let steps = &self.nanos[group * self.steps..(group + 1) * self.steps];
        steps.iter().map(|nanos| nanos.load(Ordering::Relaxed)).collect()
    }

    /// Over all steps of all groups.
    pub fn percentiles(mut self) -> Percentiles {
        self.nanos.sort_unstable_by_key(|nanos| nanos.load(Ordering::Relaxed));
        let at = |percent| match nearest_rank(self.nanos.len(), percent) {
            Some(place) => micros(self.nanos[place].load(Ordering::Relaxed)),
            None => 0.0,
        };
        Percentiles { p50_us: at(50), p90_us: at(90), p99_us: at(99), max_us: at(100) }
    }
}

/// Percentiles by nearest rank: pN is the shortest time that N % of the steps do not exceed. It is always the
/// time of a step; with few steps the higher percentiles are all the longest time.
#[derive(Serialize, Clone, Copy, Debug, PartialEq)]
pub struct Percentiles {
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

/// Index of a percentile among `n` ascending values: place `ceil(n * percent / 100)`, counted from 1. `None`
/// without values.
fn nearest_rank(n: usize, percent: u128) -> Option<usize> {
    (n as u128 * percent).div_ceil(100).checked_sub(1).map(|place| place as usize)
}

/// Nanoseconds, saturating at 584 years.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(nanos: impl IntoIterator<Item = u64>) -> Times {
        let mut times = Times::default();
        nanos.into_iter().for_each(|n| times.add(Duration::from_nanos(n)));
        times
    }

    /// SplitMix64.
    fn random(i: u64) -> u64 {
        let z = i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[test]
    fn medians_of_few_steps_are_exact() {
        assert_eq!(of([]).median_us(), 0.0);
        assert_eq!(of([5_000_001]).median_us(), 5000.001);
        assert_eq!(of([4_000_000, 1_000]).median_us(), 2000.5);
        assert_eq!(of([3, 9, 1]).median_us(), 0.003);
        assert_eq!(of([7, 7, 7, 1, 1]).median_us(), 0.007);
        assert_eq!(of([8, 1, 7, 2]).median_us(), 0.0045);
        let thousand: Vec<u64> = (0..1000).map(|i| 1_000_000_007 * (1 + i * 617 % 1000)).collect();
        assert_eq!(of(thousand).median_us(), (500.0 + 501.0) / 2.0 * 1_000_000.007);
    }

    /// However many steps there are, medians are off by at most 1/512 and the memory stops growing.
    #[test]
    fn many_steps_take_bounded_memory() {
        let nanos = |i: u64| 1 + random(i) % 3_000_000_000_000 / (1 + random(i + 7_000_000) % 100_000);
        let times = of((0..400_000).map(nanos));
        let mut sorted: Vec<u64> = (0..400_000).map(nanos).collect();
        sorted.sort_unstable();
        let median = (sorted[199_999] + sorted[200_000]) as f64 / 2.0 / 1e3;
        assert!((times.median_us() / median - 1.0).abs() <= 1.0 / 512.0, "{} {median}", times.median_us());
        // 256 values for each power of two, of which a u64 has 64.
        assert!(times.counts.len() < 40 * 256, "{}", times.counts.len());
        assert!(times.rounded);
        assert_eq!(times.counts.values().sum::<u64>(), 400_000);
    }

    #[test]
    fn rounding_is_off_by_at_most_a_five_hundred_and_twelfth() {
        for i in 0..100_000 {
            let value = random(i) >> (i % 64);
            let near = rounded(value);
            assert!(near.abs_diff(value) <= value / 512, "{value} {near}");
            assert_eq!(rounded(near), near, "{value}");
        }
        for exact in 0..512 {
            assert_eq!(rounded(exact), exact);
        }
    }

    #[test]
    fn percentiles_are_those_of_the_slowest_rank_of_each_step() {
        // Two groups of two ranks, fifty steps. The slower rank takes 1, 3, .., 99 ms in one group and 2, 4,
        // .., 100 in the other; which one that is changes from step to step.
        let slowest = SlowestRank::new(2, 50).unwrap();
        for (group, rank) in [(0, 0), (0, 1), (1, 1), (1, 0)] {
            for step in 0..50 {
                let slow = (1 + group + 2 * (step * 37 % 50)) as u64;
                let millis = if step % 2 == rank { slow } else { slow / 2 };
                slowest.add(group, step, Duration::from_millis(millis));
            }
        }
        let told = slowest.percentiles();
        assert_eq!(told, Percentiles { p50_us: 50e3, p90_us: 90e3, p99_us: 99e3, max_us: 100e3 });
    }

    /// The definition: the first value with at least that share of the values up to and including it.
    #[test]
    fn nearest_rank_is_the_stated_definition() {
        assert_eq!(nearest_rank(0, 50), None);
        for n in 1..=250 {
            for percent in [50, 90, 99, 100] {
                let covers = |at: &usize| (at + 1) as u128 * 100 >= percent * n as u128;
                assert_eq!(nearest_rank(n, percent), (0..n).find(covers), "{percent} of {n}");
            }
        }
    }

    #[test]
    fn more_steps_than_memory_are_refused() {
        for (groups, steps) in [(1, usize::MAX), (usize::MAX, 2), (1 << 20, 1 << 40)] {
            let error = SlowestRank::new(groups, steps).err().unwrap().to_string();
            assert!(error.starts_with("--steps: wanted a number of steps whose times"), "{error}");
        }
    }
}
