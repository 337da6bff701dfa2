//! The golden files of `tests/golden/sums` and `tests/golden/masses`: sums of exponentials and masses that a
//! script formed in exact integers from the definition's text. Words and masses are compared bit for bit.

use lmhead::adjust::Adjustments;
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::layout::even_part;
use lmhead::merge::ExpSum;
use lmhead::merge::{Best, Merge, PartialMut, PartialSpec};
use lmhead::result::{Output, Request, RowInputs, RowStatus};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead::sampling::mass::{Scale, share};
use lmhead_testkit::golden::GoldenFile;
use lmhead_testkit::{TestHead, each_rank, head_of};
use std::ops::Range;

/// A file of `sums`.
struct Sums {
    name: String,
    vocab: usize,
    /// `[rows, vocab]`, finite or minus infinity
    logits: Vec<f32>,
    tops: Vec<i32>,
    /// `[rows, 3]`
    words: Vec<i64>,
    logsumexp: Vec<f64>,
    /// `[rows, 2]`: the f64 logarithms next below and above the nearest one.
    near: Vec<f64>,
    /// The logarithm of the true sum.
    truth: Vec<f64>,
}

impl Sums {
    fn all() -> Vec<Self> {
        GoldenFile::all("golden/sums", 17).iter().map(Self::of).collect()
    }

    fn of(stored: &GoldenFile) -> Self {
        let sums = Sums {
            name: stored.name.clone(),
            vocab: stored.number("vocab_size") as usize,
            logits: stored.f32s("logits"),
            tops: stored.i32s("expected.top"),
            words: stored.i64s("expected.words"),
            logsumexp: stored.f64s("expected.logsumexp"),
            near: stored.f64s("expected.logsumexp_near"),
            truth: stored.f64s("expected.truth"),
        };
        let rows = sums.rows();
        assert!(rows > 0 && sums.logits.len() == rows * sums.vocab && sums.words.len() == rows * 3);
        assert!(sums.logsumexp.len() == rows && sums.near.len() == rows * 2 && sums.truth.len() == rows);
        sums
    }

    fn rows(&self) -> usize {
        self.tops.len()
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.logits[row * self.vocab..][..self.vocab]
    }
}

fn largest(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[test]
fn words_are_those_of_exact_integers() {
    let (mut empty, mut carrying, mut zero_top, mut rows) = (0, 0, 0, 0);
    for sums in Sums::all() {
        for row in 0..sums.rows() {
            let got = ExpSum::of(sums.row(row));
            let want: Vec<u64> = sums.words[row * 3..][..3].iter().map(|w| *w as u64).collect();
            assert_eq!((got.top(), &got.words()[..]), (sums.tops[row], &want[..]), "{} row {row}", sums.name);
            rows += 1;
            empty += usize::from(sums.tops[row] == i32::MIN);
            carrying += usize::from(want.iter().any(|w| *w > u64::from(u32::MAX)));
            zero_top += usize::from(want[2] == 0 && want[1] > 0);
        }
    }
    assert!(rows > 1000, "{rows} rows");
    assert!(empty > 5 && carrying > 5 && zero_top > 5, "{empty} {carrying} {zero_top}");
}

#[test]
fn the_logarithm_is_that_of_the_definition_and_close_to_the_truth() {
    let mut judged = 0;
    for sums in Sums::all() {
        for row in 0..sums.rows() {
            let max = largest(sums.row(row));
            let got = ExpSum::of(sums.row(row)).ln(max);
            let (want, near, truth) = (sums.logsumexp[row], &sums.near[row * 2..][..2], sums.truth[row]);
            let place = || format!("{} row {row}: {got}, expected {want}, truth {truth}", sums.name);
            // The script's logarithm is the nearest f64; a library's may be a neighbour. The script makes
            // sure that this does not show in f32.
            assert_eq!(got as f32, want as f32, "{}", place());
            assert!(got == want || near.contains(&got), "{}", place());
            if max.is_finite() && max.abs() <= 1_048_576.0 {
                assert!((got - truth).abs() <= 5e-7 * truth.abs().max(1.0), "{}", place());
                judged += 1;
            }
        }
    }
    assert!(judged > 500, "{judged} rows");
}

/// Partials with sums.
const SUMS: PartialSpec = PartialSpec { k: 1, sum: true, targets: 0 };

/// The partial of a shard with these ids and logits, in 8-byte words.
fn partial(ids: &Range<usize>, logits: &[f32]) -> Vec<u64> {
    let mut words = vec![0; SUMS.stride(ids.len()) / 8];
    let mut best = Best::default();
    best.reset(SUMS.k);
    best.offer_block(ids.start, logits);
    let mut row = PartialMut::new(bytemuck::cast_slice_mut(&mut words), &SUMS, ids.len());
    row.set_candidates(best.candidates());
    row.set_sum(&ExpSum::of(logits));
    words
}

#[test]
fn parts_that_are_merged_have_the_sum_of_the_whole_wherever_they_are_cut() {
    for sums in Sums::all() {
        for row in 0..sums.rows() {
            let logits = sums.row(row);
            let want = ExpSum::of(logits).ln(largest(logits));
            for cut in [1, 17, sums.vocab / 3, sums.vocab - 1].map(|cut| cut.min(sums.vocab)) {
                let parts = [0..cut, cut..sums.vocab].map(|ids| (partial(&ids, &logits[ids.clone()]), ids));
                let [left, right] = &parts;
                for order in [[left, right], [right, left]] {
                    let mut merge = Merge::default();
                    merge.reset(SUMS);
                    for (bytes, ids) in order {
                        merge.add(bytemuck::cast_slice(bytes), ids).unwrap();
                    }
                    assert_eq!(merge.logsumexp(), want, "{} row {row} cut at {cut}", sums.name);
                }
            }
        }
    }
}

/// The rows of a file as a head: hidden state i is the i-th unit vector, so its logits are row i. An id with
/// logit minus infinity is one that the row's mask forbids.
#[test]
fn heads_of_any_group_answer_the_same_logsumexp() {
    for sums in Sums::all() {
        let (rows, vocab) = (sums.rows(), sums.vocab);
        let mut weights = vec![0f32; vocab * rows];
        let words = vocab.div_ceil(32);
        let mut allowed = vec![0i32; rows * words];
        let mut masked = false;
        for row in 0..rows {
            for (id, &logit) in sums.row(row).iter().enumerate() {
                if logit > f32::NEG_INFINITY {
                    weights[id * rows + row] = logit;
                    allowed[row * words + id / 32] |= 1 << (id % 32);
                } else {
                    masked = true;
                }
            }
        }
        let quantization = Quantization::None;
        let head = TestHead { vocab, hidden: rows, dtype: DType::F32, quantization, weights, bias: None };
        let hidden: Vec<u8> =
            (0..rows * rows).flat_map(|i| f32::from(u8::from(i / rows == i % rows)).to_le_bytes()).collect();
        let want: Vec<f32> = sums
            .logsumexp
            .iter()
            .map(|lse| if *lse == f64::NEG_INFINITY { f32::NAN } else { *lse as f32 })
            .collect();
        for size in [1, 2, 5] {
            let counts: Vec<usize> = (0..size).map(|me| even_part(rows, size, me).len()).collect();
            let answers = each_rank(size, |me, exchange| {
                let own = even_part(rows, size, me);
                let mut head = head_of(&head, &head.config(), size, me, exchange).unwrap();
                let hidden = HiddenRows::new(&hidden, DType::F32, rows, rows).unwrap().range(own.clone());
                let mask = &allowed[own.start * words..own.end * words];
                let adjustments = masked.then(|| Adjustments::allowed(mask));
                let (counts, request) = (RowCounts::exact(&counts), Request::top_k(1));
                let step = match masked {
                    true => head.step_adjusted(counts, &request),
                    false => head.step(counts, &request),
                };
                step.unwrap().run_with(hidden, &RowInputs { adjustments, ..RowInputs::default() }).unwrap()
            });
            let mut row = 0;
            for answer in answers {
                let Output::TopK { logsumexp, .. } = &answer.output else { panic!("{:?}", answer.output) };
                for (got, status) in logsumexp.iter().zip(&answer.row_status) {
                    let nothing = want[row].is_nan();
                    let wanted = if nothing { RowStatus::NothingAllowed } else { RowStatus::Good };
                    let same = got.to_bits() == want[row].to_bits() || (got.is_nan() && nothing);
                    let name = &sums.name;
                    assert!(
                        same && *status == wanted,
                        "{name} row {row}, P {size}: {got} {status:?}, expected {}",
                        want[row]
                    );
                    row += 1;
                }
            }
            assert_eq!(row, rows, "{} P {size}", sums.name);
        }
    }
}

#[test]
fn masses_thresholds_and_shares_are_those_of_exact_integers() {
    let (mut rows, mut kept, mut cut, mut weightless) = (0, 0, 0, 0);
    for stored in GoldenFile::all("golden/masses", 2) {
        let [logits, temperature, min_p, top_p] =
            ["logits", "temperature", "min_p", "top_p"].map(|name| stored.f32s(name));
        let [vocabulary, masses, shares] =
            ["vocabulary", "expected.masses", "expected.share"].map(|name| stored.i64s(name));
        let reaches = stored.bytes("expected.reaches");
        let vocab = stored.number("vocab_size") as usize;
        assert!(logits.len() == temperature.len() * vocab && masses.len() == logits.len());
        for row in 0..temperature.len() {
            let own = row * vocab..(row + 1) * vocab;
            let params = SamplingParams {
                temperature: temperature[row],
                min_p: min_p[row],
                ..SamplingParams::default()
            };
            let scale = Scale::new(&params, largest(&logits[own.clone()]), vocabulary[row] as usize);
            let mut total = 0;
            for i in own {
                let place = || format!("{} row {row}: logit {:e}, {params:?}", stored.name, logits[i]);
                assert_eq!(scale.mass(logits[i]), masses[i] as u64, "{}", place());
                assert_eq!(scale.reaches(logits[i]), reaches[i] == 1, "{}", place());
                total += masses[i] as u64;
                kept += usize::from(reaches[i] == 1);
                cut += usize::from(reaches[i] == 0);
                weightless += usize::from(masses[i] == 0 && logits[i] > f32::NEG_INFINITY);
            }
            let (top_p, want) = (top_p[row], shares[row] as u64);
            assert_eq!(share(top_p, total), want, "{} row {row}: {top_p} of {total}", stored.name);
            rows += 1;
        }
    }
    assert!(rows > 30 && kept > 500 && cut > 500 && weightless > 100, "{rows} {kept} {cut} {weightless}");
}
