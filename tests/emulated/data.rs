//! Random operands.

use half::bf16;

/// splitmix64; tests name the seed where they fail.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// All values, −128 included.
    pub fn int8(&mut self, count: u32) -> Vec<i8> {
        (0..count).map(|_| self.next() as i8).collect()
    }

    /// About normally distributed.
    pub fn bf16(&mut self, count: u32) -> Vec<bf16> {
        (0..count)
            .map(|_| {
                let bits = self.next();
                let sum: i32 = (0..4).map(|i| i32::from((bits >> (16 * i)) as i16)).sum();
                bf16::from_f32(sum as f32 / 40_000.0)
            })
            .collect()
    }
}
