//! Philox4x32-10 (J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC
//! 2011): random words as a function of a counter and a key, and the Gumbel noise made of them.
//!
//! The key is the seed (low word first). The counter is `(id / 4, 0, position low, position high)`, and id v
//! takes word `v mod 4` of the four that come out.

const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
/// Added to the key after each round: the fractions of the golden ratio and of sqrt(3), times 2^32.
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
const ROUNDS: u32 = 10;

/// The four words of one counter.
#[inline]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [words] = philox4x32_lanes([[counter[0]], [counter[1]], [counter[2]], [counter[3]]], key);
    words
}

/// The words of `N` counters, `counter[i][lane]`; written to vectorise.
#[inline(always)]
fn philox4x32_lanes<const N: usize>(mut counter: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; 4]; N] {
    for _ in 0..ROUNDS {
        let mut next = [[0; N]; 4];
        for lane in 0..N {
            let product = |word: usize, by: u32| u64::from(counter[word][lane]) * u64::from(by);
            let (a, b) = (product(0, MULTIPLIERS[0]), product(2, MULTIPLIERS[1]));
            next[0][lane] = (b >> 32) as u32 ^ counter[1][lane] ^ key[0];
            next[1][lane] = b as u32;
            next[2][lane] = (a >> 32) as u32 ^ counter[3][lane] ^ key[1];
            next[3][lane] = a as u32;
        }
        counter = next;
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    std::array::from_fn(|lane| counter.map(|word| word[lane]))
}

/// The random words of one row: one for each vocabulary id.
#[derive(Debug, Clone, Copy)]
pub struct Words {
    key: [u32; 2],
    position: [u32; 2],
}

impl Words {
    /// The words of this seed at this position.
    pub fn new(seed: u64, position: u64) -> Self {
        let halves = |value: u64| [value as u32, (value >> 32) as u32];
        Words { key: halves(seed), position: halves(position) }
    }

    /// The word of one id.
    pub fn of(&self, id: u32) -> u32 {
        philox4x32([id / 4, 0, self.position[0], self.position[1]], self.key)[id as usize % 4]
    }

    /// The words of the 64 ids from `first`, a multiple of 4.
    #[inline]
    pub(crate) fn block(&self, first: u32) -> [u32; 64] {
        const LANES: usize = 16;
        let ids = std::array::from_fn(|lane| first / 4 + lane as u32);
        let [low, high] = self.position;
        let words = philox4x32_lanes::<LANES>([ids, [0; LANES], [low; LANES], [high; LANES]], self.key);
        std::array::from_fn(|i| words[i / 4][i % 4])
    }
}

/// Standard Gumbel noise from a random word: `-ln(-ln(1 - v))` with `v = (word + 1/2) / 2^32`, which is exact
/// in f64 and never 0 or 1. (A uniform rounded to f32 would be exactly 1 once in 2^25 draws.) Smaller words
/// give larger noise; all of it lies between -3.14 and 22.88.
pub fn gumbel(word: u32) -> f64 {
    let v = (f64::from(word) + 0.5) * (1.0 / 4_294_967_296.0);
    -libm::log(-libm::log1p(-v))
}

/// No [`gumbel`] is above this.
pub(crate) const LARGEST_NOISE: f64 = 22.88;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The known answers that the authors publish with Random123 (`kat_vectors`, philox4x32 10).
    #[test]
    fn published_vectors() {
        let vectors = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, wanted) in vectors {
            assert_eq!(philox4x32(counter, key), wanted);
        }
    }

    #[test]
    fn noise_is_finite_and_falls_with_the_word() {
        let words = [0, 1, 2, 3, 1 << 20, 1 << 31, u32::MAX - 1, u32::MAX];
        let noise: Vec<f64> = words.iter().map(|w| gumbel(*w)).collect();
        assert!(noise.windows(2).all(|pair| pair[0] > pair[1]), "{noise:?}");
        assert!(noise[0] < LARGEST_NOISE && noise[0] > 22.8 && noise[7] > -3.2);
    }

    proptest! {
        #[test]
        fn a_block_is_its_ids(
            seed: u64, position: u64, first in (0u32..1 << 26).prop_map(|q| 4 * q), i in 0usize..64,
        ) {
            let words = Words::new(seed, position);
            prop_assert_eq!(words.block(first)[i], words.of(first + i as u32));
        }
    }
}
