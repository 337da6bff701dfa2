//! The golden files of `tests/golden/adjusted`: masks, logit bias, penalties and logprobs that NumPy computed
//! over whole rows.

use lmhead::adjust::{Adjustments, Counts, LogitBias, Penalties};
use lmhead::config::HeadConfig;
use lmhead::dtype::DType;
use lmhead::head::LmHead;
use lmhead::layout::{HeadGroup, even_part};
use lmhead::result::{Answer, Output, Request, RowInputs, RowStatus};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::weights::LoadOptions;
use lmhead_testkit::golden::GoldenFile;
use lmhead_testkit::{backend, each_rank};
use std::ops::Range;
use std::sync::Arc;

struct Golden {
    stored: GoldenFile,
    config: HeadConfig,
    rows: usize,
    k: usize,
}

/// Entries sorted by row, as a file stores them.
struct Csr {
    ids: Vec<i64>,
    /// Where the entries of each row begin, over all rows.
    offsets: Vec<usize>,
}

impl Csr {
    fn own(&self, rows: &Range<usize>) -> (Vec<usize>, Range<usize>) {
        let entries = self.offsets[rows.start]..self.offsets[rows.end];
        (self.offsets[rows.start..=rows.end].iter().map(|at| at - entries.start).collect(), entries)
    }
}

impl Golden {
    fn of(stored: GoldenFile) -> Self {
        let rows = stored.tensors.float_matrix("hidden_states").unwrap().rows;
        Golden { k: stored.number("k") as usize, config: stored.sizes(), rows, stored }
    }

    fn csr(&self, rows: &str, ids: &str) -> Csr {
        let of = self.stored.i64s(rows);
        let offsets = (0..=self.rows as i64).map(|row| of.partition_point(|r| *r < row)).collect();
        Csr { ids: self.stored.i64s(ids), offsets }
    }

    /// The answers of `size` ranks in rank order; adjustments are left out for raw logprobs.
    fn run(&self, size: usize, request: Request, chunk_bytes: u64) -> Vec<Answer> {
        let raw = matches!(request, Request::Logprobs { processed: false, .. });
        let checkpoint = self.stored.checkpoint();
        let matrix = self.stored.tensors.float_matrix("hidden_states").unwrap();
        let counts: Vec<usize> = (0..size).map(|m| even_part(self.rows, size, m).len()).collect();
        let words = self.config.vocab_size.div_ceil(32);
        let has = |name: &str| self.stored.has(name) && !raw;
        let mask = has("allowed").then(|| self.stored.i32s("allowed"));
        let logit_bias = has("adjust_ids")
            .then(|| (self.csr("adjust_rows", "adjust_ids"), self.stored.f32s("adjust_values")));
        let penalties = has("counts").then(|| {
            let counts: Vec<u32> = self.stored.i64s("counts").iter().map(|n| *n as u32).collect();
            let in_prompt: Vec<bool> = self.stored.bytes("in_prompt").iter().map(|b| *b == 1).collect();
            let of_rows = ["repetition", "frequency", "presence"].map(|name| self.stored.f32s(name));
            (self.csr("count_rows", "count_ids"), counts, in_prompt, of_rows)
        });
        let targets = self.stored.i64s("targets");
        each_rank(size, |me, exchange| {
            let mut config = self.config.clone();
            config.logprobs_chunk_bytes = chunk_bytes;
            let group = HeadGroup::data_parallel(size, me).unwrap();
            let vocab = group.shard(config.vocab_size, me);
            let shard = checkpoint.shard(vocab, config.vocab_size, &LoadOptions::default()).unwrap();
            let own = even_part(self.rows, size, me);
            let hidden = HiddenRows::new(matrix.bytes, matrix.dtype, matrix.rows, matrix.columns).unwrap();
            let hidden = hidden.range(own.clone());
            let mut head = LmHead::new(&config, group, Arc::new(shard), exchange, backend()).unwrap();
            let a = logit_bias.as_ref().map(|(csr, values)| (csr, values, csr.own(&own)));
            let p = penalties.as_ref().map(|p| (p, p.0.own(&own)));
            let adjustments = Adjustments {
                allowed: mask.as_ref().map(|m| &m[own.start * words..own.end * words]),
                logit_bias: a.as_ref().map(|(csr, values, (offsets, entries))| LogitBias {
                    offsets,
                    ids: &csr.ids[entries.clone()],
                    values: &values[entries.clone()],
                }),
                penalties: p.as_ref().map(|((csr, counts, in_prompt, of_rows), (offsets, entries))| {
                    let counts = Counts {
                        offsets,
                        ids: &csr.ids[entries.clone()],
                        counts: &counts[entries.clone()],
                        in_prompt: &in_prompt[entries.clone()],
                    };
                    let [repetition, frequency, presence] = of_rows.each_ref().map(|v| &v[own.clone()]);
                    Penalties { repetition, frequency, presence, counts }
                }),
            };
            let targets = matches!(request, Request::Logprobs { .. }).then_some(&targets[own.clone()]);
            let counts = RowCounts::exact(&counts);
            let step = if raw { head.step(counts, &request) } else { head.step_adjusted(counts, &request) };
            let adjustments = (!raw).then_some(adjustments);
            step.unwrap()
                .run_with(hidden, &RowInputs { targets, adjustments, ..RowInputs::default() })
                .unwrap()
        })
    }
}

#[test]
fn adjusted_logits_best_ids_and_logprobs_are_those_of_numpy() {
    for golden in GoldenFile::all("golden/adjusted", 6).into_iter().map(Golden::of) {
        let name = &golden.stored.name;
        let status: Vec<u8> = golden.stored.bytes("expected.row_status").to_vec();
        for size in [1, 2, 5] {
            let statuses = |answers: &[Answer]| -> Vec<u8> {
                answers.iter().flat_map(|a| a.row_status.iter().map(|s| *s as u8)).collect()
            };
            let answers = golden.run(size, Request::logits(DType::F32), 1 << 20);
            assert_eq!(statuses(&answers), status, "{name} P {size}");
            let got: Vec<f32> = answers.iter().flat_map(|a| a.output.logits_f32().unwrap()).collect();
            // Exact f32 values, where -0 equals +0.
            assert_eq!(got, golden.stored.f32s("expected.logits"), "{name} P {size}");

            let answers = golden.run(size, Request::top_k(golden.k), 1 << 20);
            assert_eq!(statuses(&answers), status, "{name} P {size}");
            let mut ids = Vec::new();
            for answer in &answers {
                let Output::TopK { ids: own, .. } = &answer.output else { panic!("not top-k") };
                ids.extend_from_slice(own);
            }
            assert_eq!(ids, golden.stored.i64s("expected.topk_ids"), "{name} P {size}");

            for (prefix, processed) in [("raw_", false), ("", true)] {
                let want = golden.stored.f64s(&format!("expected.{prefix}logprobs"));
                let ranks = golden.stored.i64s(&format!("expected.{prefix}ranks"));
                for chunk_bytes in [1 << 20, 20_000] {
                    let request = Request::Logprobs { targets: 1, top_n: golden.k, processed };
                    let answers = golden.run(size, request, chunk_bytes);
                    let (mut got, mut got_ranks, mut got_ids) = (Vec::new(), Vec::new(), Vec::new());
                    for answer in &answers {
                        let Output::Logprobs(told) = &answer.output else { panic!("not logprobs") };
                        got.extend_from_slice(&told.logprobs);
                        got_ranks.extend_from_slice(&told.ranks);
                        got_ids.extend_from_slice(&told.top_ids);
                    }
                    assert_eq!(got_ranks, ranks, "{name} P {size} {request}");
                    if processed {
                        assert_eq!(statuses(&answers), status, "{name} P {size}");
                        assert_eq!(got_ids, golden.stored.i64s("expected.topk_ids"), "{name} P {size}");
                    } else {
                        let good = answers.iter().flat_map(|a| &a.row_status).all(|s| *s == RowStatus::Good);
                        assert!(good, "{name} P {size}");
                    }
                    for (got, want) in got.iter().map(|g| f64::from(*g)).zip(&want) {
                        let both_nan = got.is_nan() && want.is_nan();
                        let close = (got - want).abs() <= 3e-6 * want.abs().max(1.0);
                        assert!(both_nan || got == *want || close, "{name} P {size}: {got} {want}");
                    }
                }
            }
        }
    }
}
