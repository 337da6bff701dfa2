//! Hashes, for finding names, settings and data that should be equal and are not, and for seeded numbers.
//! None is cryptographic.

/// FNV-1a, 64 bits, for short texts. It must never change: ids of heads are made with it.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    let step = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// SplitMix64: the number that follows the state `z`; the next state is `z + MULTIPLIER`. It must never
/// change: synthetic weights are made with it.
pub(crate) fn mix64(z: u64) -> u64 {
    let z = z.wrapping_add(MULTIPLIER);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// An odd number without a pattern (2^64 divided by the golden ratio).
pub(crate) const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Lanes that are mixed side by side, so that multiplications overlap.
const LANES: usize = 8;

/// Bytes of one word of each lane.
const BLOCK: usize = LANES * 8;

fn mix(lane: u64, word: u64) -> u64 {
    let product = (lane ^ word).wrapping_mul(MULTIPLIER);
    // The low bits of a product do not depend on the high bits of its factors.
    product ^ (product >> 32)
}

/// A hash fast enough for megabytes in a step: eight lanes that multiply and mix whole words. The same on
/// every machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Digest(u64);

impl Digest {
    pub(crate) fn new() -> Self {
        Digest(MULTIPLIER)
    }

    /// Adds `bytes` as one piece: the same bytes in other pieces give another digest.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let mut lanes: [u64; LANES] = std::array::from_fn(|lane| self.0.wrapping_add(lane as u64));
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        for block in blocks {
            for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
                *lane = mix(*lane, u64::from_le_bytes(*word));
            }
        }
        let mut last = [0; BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        for (lane, word) in lanes.iter_mut().zip(last.as_chunks::<8>().0) {
            *lane = mix(*lane, u64::from_le_bytes(*word));
        }
        self.word(bytes.len() as u64);
        lanes.into_iter().for_each(|lane| self.word(lane));
    }

    /// Adds one word.
    pub(crate) fn word(&mut self, word: u64) {
        self.0 = mix(self.0.rotate_left(17), word);
    }

    /// The digest of what was added. Never 0, which stands for "no digest".
    pub(crate) fn finish(self) -> u64 {
        mix(self.0, MULTIPLIER).max(1)
    }
}

/// The [`Digest`] of one piece.
pub(crate) fn of_bytes(bytes: &[u8]) -> u64 {
    let mut digest = Digest::new();
    digest.bytes(bytes);
    digest.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_byte_every_length_and_every_cut_counts() {
        let mut bytes: Vec<u8> = (0..300u32).map(|i| (i * 7) as u8).collect();
        let mut seen = HashSet::new();
        for length in 0..300 {
            assert!(seen.insert(of_bytes(&bytes[..length])), "length {length}");
        }
        for at in 0..300 {
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                assert!(seen.insert(of_bytes(&bytes)), "bit {bit} of byte {at}");
                bytes[at] ^= 1 << bit;
            }
        }
        for cut in 1..299 {
            let mut digest = Digest::new();
            digest.bytes(&bytes[..cut]);
            digest.bytes(&bytes[cut..]);
            assert!(seen.insert(digest.finish()), "cut at {cut}");
        }
        // Zeros of different lengths, and words in another order.
        assert!((0..200).all(|length| seen.insert(of_bytes(&vec![0; 1000 + length]))));
        let words = |order: [u8; 2]| of_bytes(&[[order[0]; 8], [order[1]; 8]].concat());
        assert_ne!(words([1, 2]), words([2, 1]));
    }

    #[test]
    fn it_is_the_same_everywhere() {
        // The values come from an independent program in another language.
        assert_eq!(fnv(b"lm_head"), 0xf18a_c391_5614_bead);
        assert_eq!(of_bytes(b"lm_head"), 0xfc65_5fae_325b_8f94);
        let bytes: Vec<u8> = (0..300u32).map(|i| (i * 7) as u8).collect();
        assert_eq!(of_bytes(&bytes), 0x8cda_5459_0229_2158);
    }

    /// `cargo test --release digest -- --ignored --nocapture`
    #[test]
    #[ignore = "measures"]
    fn gigabytes_in_a_second() {
        // 28 rows of 7168 bf16.
        let rows: Vec<u8> = (0..28 * 7168 * 2u32).map(|i| (i * 31) as u8).collect();
        let mut best = f64::INFINITY;
        for _ in 0..200 {
            let began = std::time::Instant::now();
            std::hint::black_box(of_bytes(std::hint::black_box(&rows)));
            best = best.min(began.elapsed().as_secs_f64());
        }
        println!("{} bytes in {:.1} us: {:.1} GB/s", rows.len(), best * 1e6, rows.len() as f64 / best / 1e9);
    }
}
