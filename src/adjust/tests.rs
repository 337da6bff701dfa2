//! Adjustments over any sharding against their definition, damaged bytes, and refused input.

use super::*;
use proptest::prelude::*;

/// Random adjustments that own their arrays.
#[derive(Debug, Clone)]
struct Owned {
    vocab: usize,
    rows: usize,
    mask: Option<Vec<i32>>,
    offsets: Vec<usize>,
    ids: Vec<i64>,
    values: Vec<f32>,
    penalties: Vec<[f32; 3]>,
    counts: Vec<Vec<(i64, u32, bool)>>,
}

fn owned() -> impl Strategy<Value = Owned> {
    (1usize..300, 0usize..5).prop_flat_map(|(vocab, rows)| {
        let words = rows * vocab.div_ceil(32);
        let entries = prop::collection::vec(
            (0..vocab as i64, prop_oneof![5 => -9f32..9.0, 1 => Just(f32::NEG_INFINITY)]),
            0..20,
        );
        let counts = prop::collection::btree_map(0..vocab as i64, (0u32..4, any::<bool>()), 0..20);
        let penalty = (0.2f32..3.0, -2f32..2.0, -2f32..2.0).prop_map(|(r, f, p)| [r, f, p]);
        (
            prop::option::of(prop::collection::vec(any::<i32>(), words)),
            prop::collection::vec(entries, rows),
            prop::collection::vec(penalty, rows),
            prop::collection::vec(counts, rows),
        )
            .prop_map(move |(mask, entries, penalties, counts)| {
                let mut offsets = vec![0];
                for row in &entries {
                    offsets.push(offsets.last().unwrap() + row.len());
                }
                let all = entries.concat();
                Owned {
                    vocab,
                    rows,
                    mask,
                    offsets,
                    ids: all.iter().map(|e| e.0).collect(),
                    values: all.iter().map(|e| e.1).collect(),
                    penalties,
                    // Ids in descending order: any order is legal.
                    counts: counts
                        .into_iter()
                        .map(|row| row.into_iter().rev().map(|(id, (n, p))| (id, n, p)).collect())
                        .collect(),
                }
            })
    })
}

impl Owned {
    fn with<T>(&self, use_it: impl FnOnce(&Adjustments) -> T) -> T {
        let column = |i: usize| self.penalties.iter().map(|p| p[i]).collect::<Vec<f32>>();
        let (repetition, frequency, presence) = (column(0), column(1), column(2));
        let all = self.counts.concat();
        let mut offsets = vec![0];
        for row in &self.counts {
            offsets.push(offsets.last().unwrap() + row.len());
        }
        let ids: Vec<i64> = all.iter().map(|c| c.0).collect();
        let counts: Vec<u32> = all.iter().map(|c| c.1).collect();
        let in_prompt: Vec<bool> = all.iter().map(|c| c.2).collect();
        let counts = Counts { offsets: &offsets, ids: &ids, counts: &counts, in_prompt: &in_prompt };
        use_it(&Adjustments {
            allowed: self.mask.as_deref(),
            logit_bias: Some(LogitBias { offsets: &self.offsets, ids: &self.ids, values: &self.values }),
            penalties: Some(Penalties {
                repetition: &repetition,
                frequency: &frequency,
                presence: &presence,
                counts,
            }),
        })
    }

    /// The definition, id by id over the whole vocabulary.
    fn by_definition(&self, row: usize, logits: &mut [f32]) {
        for at in self.offsets[row]..self.offsets[row + 1] {
            logits[self.ids[at] as usize] += self.values[at];
        }
        let [repetition, frequency, presence] = self.penalties[row];
        for &(id, count, in_prompt) in &self.counts[row] {
            let l = &mut logits[id as usize];
            if count > 0 || in_prompt {
                *l = if *l > 0.0 { *l / repetition } else { *l * repetition };
            }
            *l -= frequency * count as f32;
            *l -= if count > 0 { presence } else { 0.0 };
        }
        if let Some(mask) = &self.mask {
            for (id, l) in logits.iter_mut().enumerate() {
                if mask[row * self.vocab.div_ceil(32) + id / 32] >> (id % 32) & 1 == 0 {
                    *l = f32::NEG_INFINITY;
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn slices_of_any_sharding_do_what_the_definition_says(
        case in owned(), shards in 1usize..6, from in 0usize..3,
    ) {
        let from = from.min(case.rows);
        let logit = |row: usize, id: usize| ((row * 131 + id * 37) % 101) as f32 / 7.0 - 6.0;
        case.with(|adjustments| -> std::result::Result<(), TestCaseError> {
            prop_assert_eq!(adjustments.check(case.rows, case.vocab), Ok(()));
            for shard in 0..shards {
                let vocab = crate::layout::shard_range(case.vocab, shards, shard);
                let mut slice = ShardAdjustments::new(vocab.clone());
                // Two rows of a rank without adjustments come first.
                slice.push_encoded(&[], 2).unwrap();
                let bytes = adjustments.encode(from..case.rows, vocab.clone(), case.vocab);
                slice.push_encoded(&bytes, case.rows - from).unwrap();
                slice.push_encoded(&[], 1).unwrap();
                prop_assert_eq!(slice.len(), case.rows - from + 3);
                for row in from..case.rows {
                    let mut want: Vec<f32> = (0..case.vocab).map(|id| logit(row, id)).collect();
                    case.by_definition(row, &mut want);
                    for first in vocab.clone().step_by(64) {
                        let ids = first..vocab.end.min(first + 64);
                        let mut got: Vec<f32> = ids.clone().map(|id| logit(row, id)).collect();
                        prop_assert!(slice.apply(2 + row - from, first, &mut got));
                        prop_assert_eq!(&got[..], &want[ids]);
                    }
                }
                if let Some(first) = vocab.clone().next() {
                    let mut untouched = [f32::MIN, 1.0];
                    prop_assert!(slice.apply(0, first, &mut untouched[..vocab.len().min(2)]));
                    prop_assert_eq!(untouched, [f32::MIN, 1.0]);
                }
            }
            Ok(())
        })?;
    }

    #[test]
    fn damaged_bytes_never_panic(
        case in owned(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = case.with(|a| a.encode(0..case.rows, 0..case.vocab, case.vocab));
        if !bytes.is_empty() {
            let push = |bytes: &[u8]| ShardAdjustments::new(0..case.vocab).push_encoded(bytes, case.rows);
            let mut other = bytes.clone();
            other[at.index(bytes.len())] = byte;
            let _ = push(&other);
            let cut = cut.index(bytes.len());
            prop_assert!(cut == 0 || push(&bytes[..cut]).is_err());
            prop_assert!(push(&[&bytes[..], &[0; 4]].concat()).is_err());
        }
    }
}

#[test]
fn overflow_is_seen_and_minus_infinity_is_legal() {
    let logit_bias = LogitBias { offsets: &[0, 2], ids: &[1, 1], values: &[f32::MAX, f32::MAX] };
    let adjustments = Adjustments { logit_bias: Some(logit_bias), ..Adjustments::default() };
    let mut slice = ShardAdjustments::new(0..2);
    slice.push_encoded(&adjustments.encode(0..1, 0..2, 2), 1).unwrap();
    assert!(!slice.apply(0, 0, &mut [0.0, f32::MAX]));
    let mut low = [0.0, f32::NEG_INFINITY];
    assert!(slice.apply(0, 0, &mut low));
    assert_eq!(low, [0.0, f32::NEG_INFINITY]);
}

#[test]
fn bad_adjustments_name_the_row_and_the_id() {
    let check = |adjustments: Adjustments| adjustments.check(2, 40).unwrap_err().to_string();
    let text = check(Adjustments::allowed(&[0; 3]));
    assert!(text.contains("allowed: wanted [2, 2] i32, a bit for each id of 40, got 3 words"), "{text}");
    let logit_bias = |offsets: &[usize], ids: &[i64], values: &[f32]| {
        check(Adjustments { logit_bias: Some(LogitBias { offsets, ids, values }), ..Adjustments::default() })
    };
    for (text, want) in [
        (
            logit_bias(&[0, 1], &[0], &[0.0]),
            "logit_bias: offsets: wanted 3 ascending numbers from 0 to the 1 entries",
        ),
        (logit_bias(&[0, 2, 1], &[0], &[0.0]), "not ascending"),
        (
            logit_bias(&[0, 1, 2], &[0, 40], &[0.0; 2]),
            "logit_bias: id of row 1: wanted an id from 0 to 39, got 40",
        ),
        (logit_bias(&[0, 1, 2], &[0, -1], &[0.0; 2]), "got -1"),
        (
            logit_bias(&[0, 0, 1], &[3], &[f32::NAN]),
            "logit_bias: value of row 1, id 3: wanted a finite number",
        ),
        (logit_bias(&[0, 0, 1], &[3], &[f32::INFINITY]), "got inf"),
        (logit_bias(&[0, 0, 1], &[3], &[]), "logit_bias: values: wanted 1 values"),
    ] {
        assert!(text.contains(want), "got {text}\nwant {want}");
    }
    let penalties = |repetition: &[f32], frequency: &[f32], ids: &[i64], counts: &[u32]| {
        let counts = Counts { offsets: &[0, 0, ids.len()], ids, counts, in_prompt: &vec![false; ids.len()] };
        let p = Penalties { repetition, frequency, presence: &[0.0; 2], counts };
        check(Adjustments { penalties: Some(p), ..Adjustments::default() })
    };
    for (text, want) in [
        (
            penalties(&[1.0], &[0.0; 2], &[], &[]),
            "penalties: repetition: wanted 2 values, one for each row, got 1",
        ),
        (
            penalties(&[1.0, 0.0], &[0.0; 2], &[], &[]),
            "penalties: repetition of row 1: wanted a finite number above 0",
        ),
        (penalties(&[1.0, f32::NAN], &[0.0; 2], &[], &[]), "got NaN"),
        (penalties(&[1.0; 2], &[0.0, f32::INFINITY], &[], &[]), "penalties: frequency of row 1"),
        (penalties(&[1.0; 2], &[0.0; 2], &[40], &[1]), "penalties: counts: id of row 1"),
        (
            penalties(&[1.0; 2], &[0.0; 2], &[7, 3, 7], &[1; 3]),
            "counts of row 1: wanted each id once, got id 7",
        ),
        (
            penalties(&[1.0; 2], &[0.0; 2], &[7], &[1 << 31]),
            "penalties: count of row 1, id 7: wanted at most",
        ),
    ] {
        assert!(text.contains(want), "got {text}\nwant {want}");
    }
}
