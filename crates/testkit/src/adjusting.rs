//! Random adjustments that own their arrays, and their effect on whole rows of f32 logits, by definition.

use super::Random;
use lmhead::adjust::{Adjustments, Counts, LogitBias, Penalties};

/// Adjustments of the rows of one rank.
#[derive(Debug, Clone)]
pub struct OwnAdjustments {
    pub vocab: usize,
    pub rows: usize,
    /// `[rows, ceil(vocab / 32)]`
    pub mask: Option<Vec<i32>>,
    /// Per row: (id, value).
    pub logit_bias: Option<Vec<Vec<(i64, f32)>>>,
    /// Per row: repetition, frequency, presence; (id, count, in_prompt).
    #[allow(clippy::type_complexity, reason = "a test's table")]
    pub penalties: Option<Vec<([f32; 3], Vec<(i64, u32, bool)>)>>,
}

fn offsets<T>(rows: &[Vec<T>]) -> Vec<usize> {
    let mut all = vec![0];
    for row in rows {
        all.push(all[all.len() - 1] + row.len());
    }
    all
}

impl OwnAdjustments {
    /// Random kinds, densities and entries; some rows are left with no allowed id, some with one.
    pub fn random(rows: usize, vocab: usize, random: &mut Random) -> Self {
        let words = vocab.div_ceil(32);
        let mask = (random.below(4) > 0).then(|| {
            let mut mask = vec![0i32; rows * words];
            for row in mask.chunks_mut(words) {
                match random.below(5) {
                    0 => {} // nothing is allowed, but for bits that are no ids
                    1 => {
                        let id = random.below(vocab);
                        row[id / 32] |= 1 << (id % 32);
                    }
                    2 => row.fill(-1),
                    _ => row.iter_mut().for_each(|w| *w = (random.next() & random.next()) as i32),
                }
                if !vocab.is_multiple_of(32) {
                    row[words - 1] |= !0 << (vocab % 32);
                }
            }
            mask
        });
        let logit_bias = (random.below(3) > 0).then(|| {
            let entry = |random: &mut Random| {
                let value = if random.below(12) == 0 { f32::NEG_INFINITY } else { 4.0 * random.normal() };
                (random.below(vocab) as i64, value)
            };
            (0..rows).map(|_| (0..random.below(9)).map(|_| entry(random)).collect()).collect()
        });
        let penalties = (random.below(3) > 0).then(|| {
            let row = |random: &mut Random| {
                let pick = |random: &mut Random, values: &[f32]| values[random.below(values.len())];
                let penalty = [
                    pick(random, &[1.0, 1.3, 0.5]),
                    pick(random, &[0.0, 0.7, -0.3]),
                    pick(random, &[0.0, 1.5, -1.0]),
                ];
                let mut ids: Vec<i64> = (0..random.below(20)).map(|_| random.below(vocab) as i64).collect();
                ids.sort_unstable();
                ids.dedup();
                ids.reverse(); // any order is legal
                let counts = ids.into_iter().map(|id| (id, random.below(4) as u32, random.below(2) == 0));
                (penalty, counts.collect())
            };
            (0..rows).map(|_| row(random)).collect()
        });
        OwnAdjustments { vocab, rows, mask, logit_bias, penalties }
    }

    /// Row `row` alone.
    pub fn only(&self, row: usize) -> Self {
        let words = self.vocab.div_ceil(32);
        OwnAdjustments {
            vocab: self.vocab,
            rows: 1,
            mask: self.mask.as_ref().map(|m| m[row * words..(row + 1) * words].to_vec()),
            logit_bias: self.logit_bias.as_ref().map(|a| vec![a[row].clone()]),
            penalties: self.penalties.as_ref().map(|p| vec![p[row].clone()]),
        }
    }

    /// Calls `use_them` with these adjustments in the library's form.
    pub fn with<T>(&self, use_them: impl FnOnce(Adjustments) -> T) -> T {
        let a = self.logit_bias.as_deref().unwrap_or(&[]);
        let (a_offsets, all) = (offsets(a), a.concat());
        let (a_ids, a_values): (Vec<i64>, Vec<f32>) = all.into_iter().unzip();
        let p = self.penalties.as_deref().unwrap_or(&[]);
        let column = |i: usize| p.iter().map(|(penalty, _)| penalty[i]).collect::<Vec<f32>>();
        let (repetition, frequency, presence) = (column(0), column(1), column(2));
        let counted: Vec<Vec<(i64, u32, bool)>> = p.iter().map(|(_, counts)| counts.clone()).collect();
        let (p_offsets, all) = (offsets(&counted), counted.concat());
        let ids: Vec<i64> = all.iter().map(|c| c.0).collect();
        let counts: Vec<u32> = all.iter().map(|c| c.1).collect();
        let in_prompt: Vec<bool> = all.iter().map(|c| c.2).collect();
        use_them(Adjustments {
            allowed: self.mask.as_deref(),
            logit_bias: self.logit_bias.as_ref().map(|_| LogitBias {
                offsets: &a_offsets,
                ids: &a_ids,
                values: &a_values,
            }),
            penalties: self.penalties.as_ref().map(|_| Penalties {
                repetition: &repetition,
                frequency: &frequency,
                presence: &presence,
                counts: Counts { offsets: &p_offsets, ids: &ids, counts: &counts, in_prompt: &in_prompt },
            }),
        })
    }

    /// Adjusts the logits `[vocab]` of row `row` by the definitions.
    pub fn by_definition(&self, row: usize, logits: &mut [f32]) {
        for &(id, value) in self.logit_bias.iter().flat_map(|a| &a[row]) {
            logits[id as usize] += value;
        }
        if let Some(([repetition, frequency, presence], counts)) = self.penalties.as_ref().map(|p| &p[row]) {
            for &(id, count, in_prompt) in counts {
                let l = &mut logits[id as usize];
                if count > 0 || in_prompt {
                    *l = if *l > 0.0 { *l / repetition } else { *l * repetition };
                }
                if count > 0 {
                    *l -= frequency * count as f32;
                    *l -= presence;
                }
            }
        }
        if let Some(mask) = &self.mask {
            let words = &mask[row * self.vocab.div_ceil(32)..];
            for (id, l) in logits.iter_mut().enumerate() {
                if words[id / 32] >> (id % 32) & 1 == 0 {
                    *l = f32::NEG_INFINITY;
                }
            }
        }
    }
}
