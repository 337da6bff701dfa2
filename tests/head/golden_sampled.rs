//! The golden files of `tests/golden/sampled`: tokens that a script sampled from whole rows, with filters in
//! exact integers.

use lmhead::adjust::Adjustments;
use lmhead::config::HeadConfig;
use lmhead::dtype::DType;
use lmhead::head::LmHead;
use lmhead::layout::{HeadGroup, even_part};
use lmhead::reference::survivors;
use lmhead::result::{Output, Request, RowInputs, RowStatus};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::sampling::SamplingParams;
use lmhead::weights::LoadOptions;
use lmhead_testkit::golden::GoldenFile;
use lmhead_testkit::{backend, each_rank};
use std::sync::Arc;

struct Golden {
    stored: GoldenFile,
    config: HeadConfig,
    params: Vec<SamplingParams>,
    /// `[rows, ceil(vocab / 32)]`
    allowed: Option<Vec<i32>>,
}

impl Golden {
    fn of(stored: GoldenFile) -> Self {
        let [temperature, top_p, min_p] = ["temperature", "top_p", "min_p"].map(|name| stored.f32s(name));
        let [seed, position, top_k] = ["seed", "position", "top_k"].map(|name| stored.i64s(name));
        let params = (0..seed.len())
            .map(|row| SamplingParams {
                seed: seed[row] as u64,
                position: position[row] as u64,
                temperature: temperature[row],
                top_k: top_k[row] as usize,
                top_p: top_p[row],
                min_p: min_p[row],
            })
            .collect();
        let allowed = stored.has("allowed").then(|| stored.i32s("allowed"));
        Golden { config: stored.sizes(), params, allowed, stored }
    }

    /// Tokens and status of all rows, from a group of `size` ranks among which rows and head are divided.
    fn sampled(&self, size: usize) -> (Vec<i64>, Vec<RowStatus>) {
        let rows = self.params.len();
        let words = self.config.vocab_size.div_ceil(32);
        let matrix = self.stored.tensors.float_matrix("hidden_states").unwrap();
        let checkpoint = self.stored.checkpoint();
        let counts: Vec<usize> = (0..size).map(|me| even_part(rows, size, me).len()).collect();
        let answers = each_rank(size, |me, exchange| {
            let group = HeadGroup::data_parallel(size, me).unwrap();
            let vocab = group.shard(self.config.vocab_size, me);
            let shard = checkpoint.shard(vocab, self.config.vocab_size, &LoadOptions::default()).unwrap();
            let mut head = LmHead::new(&self.config, group, Arc::new(shard), exchange, backend()).unwrap();
            let own = even_part(rows, size, me);
            let rows = HiddenRows::new(matrix.bytes, DType::F32, matrix.rows, matrix.columns).unwrap();
            let rows = rows.range(own.clone());
            let mask = self.allowed.as_ref().map(|all| &all[own.start * words..own.end * words]);
            let inputs = RowInputs {
                sampling: Some(&self.params[own]),
                adjustments: mask.map(Adjustments::allowed),
                ..RowInputs::default()
            };
            let begin = if mask.is_some() { LmHead::step_adjusted } else { LmHead::step };
            let step = begin(&mut head, RowCounts::exact(&counts), &Request::sample()).unwrap();
            step.run_with(rows, &inputs).unwrap()
        });
        let mut all = (Vec::new(), Vec::new());
        for answer in answers {
            let Output::Sample { ids, .. } = answer.output else { panic!("{:?}", answer.output) };
            all.0.extend(ids);
            all.1.extend(answer.row_status);
        }
        all
    }
}

fn golden(name: &str) -> Golden {
    let all = GoldenFile::all("golden/sampled", 4);
    Golden::of(all.into_iter().find(|stored| stored.name == name).unwrap())
}

fn compare(name: &str) {
    let golden = golden(name);
    let want = golden.stored.i64s("expected.sampled");
    for size in [1, 2, 5] {
        let (ids, status) = golden.sampled(size);
        assert_eq!(ids, want, "{name} over {size} ranks");
        for (row, (id, status)) in want.iter().zip(status).enumerate() {
            let wanted = if *id < 0 { RowStatus::NothingAllowed } else { RowStatus::Good };
            assert_eq!(status, wanted, "{name}, row {row}");
        }
    }
}

#[test]
fn every_filter_and_their_mixtures() {
    compare("filters");
}

#[test]
fn rows_with_masks() {
    compare("masks");
}

#[test]
fn a_top_k_that_is_searched_for() {
    compare("many_candidates");
}

/// min_p and top_p are within two f32 of changing the nucleus, and the seeds are such that the token shows
/// which.
#[test]
fn filters_whose_decision_is_close() {
    compare("cuts");
}

/// The number of surviving ids shows more than one token can.
#[test]
fn as_many_ids_survive() {
    for name in ["filters", "many_candidates", "cuts"] {
        let golden = golden(name);
        let want = golden.stored.i64s("expected.survivors");
        let (x, w, hidden) = (
            golden.stored.f32s("hidden_states"),
            golden.stored.f32s("lm_head.weight"),
            golden.config.hidden_size,
        );
        for (row, params) in golden.params.iter().enumerate() {
            let x = &x[row * hidden..(row + 1) * hidden];
            let logits: Vec<f32> =
                w.chunks(hidden).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
            assert_eq!(survivors(&logits, params).len() as i64, want[row], "{name}, row {row}: {params:?}");
        }
    }
}
