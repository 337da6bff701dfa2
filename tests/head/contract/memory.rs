//! What a head does before its first real step, and the memory it gives back after the largest.

use super::*;
use std::collections::BTreeSet;
use std::sync::Mutex;

/// Classifies row counts as device kernels do: by the next power of two.
fn kind(asked: Asked) -> String {
    let rows = asked.rows.next_power_of_two() * usize::from(asked.rows > 0);
    format!("{:?}", Asked { rows, entries: rows, ..asked })
}

#[test]
fn after_warm_up_no_step_of_up_to_as_many_rows_is_the_first_of_its_kind() {
    const SEQUENCES: usize = 3;
    const DRAFTS: usize = 3;
    let rows = SEQUENCES * (1 + DRAFTS);
    let requests = [
        Request::logits(DType::F32),
        Request::argmax(),
        Request::top_k(5),
        Request::logprobs(2),
        Request::processed_logprobs(2),
        Request::sample(),
    ];
    each_rank(2, |me, exchange| {
        let asked: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let written = Arc::clone(&asked);
        let backend = hooked_backend(lmhead_testkit::backend(), move |asked| {
            let _ = written.lock().unwrap().insert(kind(asked));
        });
        let mut config = config(PATIENT);
        // Chunks of 5 rows: logprobs of all rows take several.
        config.logprobs_chunk_bytes = 5 * (lmhead_testkit::chunk_row(128, 64, 1, 2, 2));
        let mut head = head_with(&config, 2, me, exchange, backend).unwrap();
        head.warm_up(rows, &requests).unwrap();
        let warm = std::mem::take(&mut *asked.lock().unwrap());
        for request in requests {
            for each in [[0, 0], [1, 0], [0, rows], [2, 5], [rows, 1], [rows, rows]] {
                for adjusted in [false, true] {
                    let mine = each[me];
                    let bytes = test_head().rows(mine, 7);
                    let hidden = HiddenRows::new(&bytes, DType::F32, mine, 16).unwrap();
                    let (targets, mask) = (vec![3i64; mine], vec![-1i32; mine * 7]);
                    let sampling = vec![lmhead::SamplingParams { top_p: 0.9, ..Default::default() }; mine];
                    let raw = request == Request::logprobs(2);
                    let adjusted = adjusted && !raw;
                    let inputs = lmhead::RowInputs {
                        targets: matches!(request, Request::Logprobs { .. }).then_some(&targets[..]),
                        sampling: matches!(request, Request::Sample { .. }).then_some(&sampling[..]),
                        adjustments: adjusted.then(|| lmhead::Adjustments::allowed(&mask)),
                        ..lmhead::RowInputs::default()
                    };
                    for counts in
                        [RowCounts::exact(&each), RowCounts::capacity(rows, mine), RowCounts::discover(mine)]
                    {
                        let begin = if adjusted { LmHead::step_adjusted } else { LmHead::step };
                        begin(&mut head, counts, &request).unwrap().run_with(hidden, &inputs).unwrap();
                    }
                }
            }
        }
        let first: Vec<String> = asked.lock().unwrap().difference(&warm).cloned().collect();
        assert!(first.is_empty(), "never asked in the warm-up: {first:?}");
    });
}
