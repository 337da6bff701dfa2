//! In which order a launch's clusters begin.

/// 0 to n - 1, each once, in an order that the seed chooses; in constant memory, since a grid may have 2^63
/// blocks.
///
/// Four Feistel rounds permute the numbers below a power of four; one that is not below n goes round again.
pub struct Shuffled {
    seed: u64,
    count: u64,
    done: u64,
    /// Bits of each half.
    half: u32,
}

impl Shuffled {
    pub fn new(count: u64, seed: u64) -> Self {
        let bits = u64::BITS - count.saturating_sub(1).leading_zeros();
        Shuffled { seed, count, done: 0, half: bits.div_ceil(2).max(1) }
    }

    pub fn is_empty(&self) -> bool {
        self.done == self.count
    }

    fn permute(&self, number: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut high, mut low) = (number >> self.half, number & mask);
        for round in 0..4 {
            (high, low) = (low, high ^ (mix(self.seed ^ mix(low ^ (round << 32))) & mask));
        }
        high << self.half | low
    }
}

/// splitmix64's finaliser.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Iterator for Shuffled {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if self.is_empty() {
            return None;
        }
        let mut number = self.permute(self.done);
        while number >= self.count {
            number = self.permute(number);
        }
        self.done += 1;
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_once_in_an_order_of_the_seeds() {
        for count in (0..70).chain([255, 256, 257, 1000]) {
            for seed in 0..5 {
                let mut numbers: Vec<_> = Shuffled::new(count, seed).collect();
                numbers.sort();
                assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "seed {seed}");
            }
        }
        let order = |seed| Shuffled::new(60, seed).collect::<Vec<_>>();
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        assert_ne!(order(1), (0..60).collect::<Vec<_>>());
    }

    #[test]
    fn the_largest_grid_begins_at_once() {
        let largest = 0x7fff_ffff * 65535 * 65535;
        let first: Vec<_> = Shuffled::new(largest, 3).take(100).collect();
        assert!(first.iter().all(|&n| n < largest));
        assert_eq!(first.iter().collect::<std::collections::HashSet<_>>().len(), 100);
    }
}
