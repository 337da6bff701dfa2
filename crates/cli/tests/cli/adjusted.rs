//! Masks, logit bias and logprobs from `--hidden`, at any sharding.

use super::*;

/// `allowed` [7, 5] of 150 ids: row 2 allows nothing, row 3 only id 149, the others every third id.
pub fn allowed_tensor() -> Tensor {
    let allows = |row: usize, id: usize| match row {
        2 => false,
        3 => id == 149,
        _ => id.is_multiple_of(3),
    };
    let word = |row: usize, word: usize| {
        (0..32).fold(0u32, |bits, bit| bits | u32::from(allows(row, word * 32 + bit)) << bit)
    };
    let bytes = (0..7).flat_map(|row| (0..5).flat_map(move |w| word(row, w).to_le_bytes())).collect();
    ("allowed".into(), Dtype::I32, vec![7, 5], bytes)
}

pub fn logit_bias(rows: &[i64], ids: &[i64], values: &[f32]) -> Vec<Tensor> {
    let i64s = |name: &str, values: &[i64]| {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        (name.to_string(), Dtype::I64, vec![values.len()], bytes)
    };
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    vec![
        i64s("adjust_rows", rows),
        i64s("adjust_ids", ids),
        ("adjust_values".into(), Dtype::F32, vec![values.len()], bytes),
    ]
}

#[test]
fn masks_and_logit_bias_work_with_every_request_and_sharding() {
    let files = Files::new();
    let mut tensors = vec![bf16_tensor("hidden_states", &[7, 20], 2), allowed_tensor()];
    tensors.extend(logit_bias(
        &[6, 0, 6, 4, 0],
        &[30, 3, 31, 60, 3],
        &[50.0, 20.0, 90.0, f32::NEG_INFINITY, 20.0],
    ));
    write(&files.path("rows"), &tensors);
    let (head, rows, out) = (files.name("head.safetensors"), files.name("rows"), files.name("out"));
    for request in ["logits", "argmax", "topk:60"] {
        let mut first: Option<Vec<u8>> = None;
        for extra in [
            &[][..],
            &["--rows", "3,0,4", "--lmhead-tp-size", "3"],
            &["--dp", "2", "--tp", "2", "--lmhead-tp-size", "4", "--mode", "capacity"],
            &["--dp", "7", "--lmhead-tp-size", "7", "--mode", "discover"],
            &["--tp", "3", "--lmhead-tp-size", "-1"],
        ] {
            let mut args =
                vec!["run", "--head", &head, "--hidden", &rows, "--request", request, "--out", &out];
            args.extend(["--check", "--steps", "1"]);
            args.extend(extra);
            let run = lmhead(&args);
            assert!(run.status.success(), "{extra:?}: {}{}", text(&run.stdout), text(&run.stderr));
            let warning = "warning: 1 output row has no id that is allowed (row_status 2), the first: [2]";
            assert!(text(&run.stderr).contains(warning), "{}", text(&run.stderr));
            let bytes = std::fs::read(&out).unwrap();
            assert_eq!(*first.get_or_insert_with(|| bytes.clone()), bytes, "{request} {extra:?}");
        }
        let answer = read(&files.path("out"));
        assert_eq!(answer["row_status"].2, [0, 0, 2, 0, 0, 0, 0]);
        let ids: Vec<i64> = match request {
            "argmax" => i64s(&answer["argmax"].2),
            "topk:60" => {
                let all = i64s(&answer["topk_ids"].2);
                assert!(all[3 * 60 + 1..4 * 60].iter().all(|id| *id == -1), "one id is allowed");
                assert!(all[50..60].iter().all(|id| *id == -1), "50 ids are allowed");
                assert!(!all[4 * 60..5 * 60].contains(&60), "forbidden by a logit bias");
                all.into_iter().step_by(60).collect()
            }
            _ => continue,
        };
        assert_eq!((ids[0], ids[2], ids[3], ids[6]), (3, -1, 149, 30));
    }
}

pub fn targets(values: &[i64]) -> Tensor {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    ("targets".into(), Dtype::I64, vec![values.len()], bytes)
}

#[test]
fn logprobs_are_the_same_for_any_sharding_and_chunk_and_agree_with_topk() {
    let files = Files::new();
    let mut tensors = vec![bf16_tensor("hidden_states", &[7, 20], 2), allowed_tensor()];
    tensors.push(targets(&[0, 149, 2, 149, 64, 63, 77]));
    write(&files.path("rows"), &tensors);
    std::fs::write(files.path("small.toml"), "logprobs_chunk_bytes = 4000").unwrap();
    let (head, rows, out) = (files.name("head.safetensors"), files.name("rows"), files.name("out"));
    let small = files.name("small.toml");
    let run = |args: &[&str]| {
        let mut all = vec!["run", "--head", &head, "--hidden", &rows, "--out", &out, "--steps", "1"];
        all.extend(["--check", "--request"]);
        all.extend(args);
        let run = lmhead(&all);
        assert!(run.status.success(), "{args:?}: {}{}", text(&run.stdout), text(&run.stderr));
        (std::fs::read(&out).unwrap(), read(&files.path("out")))
    };
    for request in [&["logprobs"][..], &["logprobs:4"], &["logprobs:60", "--processed"]] {
        let mut first: Option<Vec<u8>> = None;
        for extra in [
            &[][..],
            &["--config", &small],
            &["--rows", "3,0,4", "--lmhead-tp-size", "3", "--config", &small],
            &["--dp", "2", "--tp", "2", "--lmhead-tp-size", "4", "--mode", "capacity"],
            &["--dp", "7", "--lmhead-tp-size", "7", "--mode", "discover"],
            &["--tp", "3", "--lmhead-tp-size", "-1"],
        ] {
            let (bytes, _) = run(&[request, extra].concat());
            assert_eq!(*first.get_or_insert_with(|| bytes.clone()), bytes, "{request:?} {extra:?}");
        }
    }
    let (_, all) = run(&["logprobs:150"]);
    let (_, best) = run(&["topk:150"]); // uses the mask
    assert_eq!(best["row_status"].2, [0, 0, 2, 0, 0, 0, 0]);
    assert_eq!(all["row_status"].2, [0; 7], "raw logprobs leave the mask aside");
    assert_eq!((all["logprobs"].0, all["logprobs"].1.clone()), (Dtype::F32, vec![7]));
    assert_eq!((all["target_ranks"].0, all["target_ranks"].1.clone()), (Dtype::I64, vec![7]));
    assert_eq!((all["top_ids"].0, all["top_ids"].1.clone()), (Dtype::I64, vec![7, 150]));
    assert_eq!((all["top_logprobs"].0, all["top_logprobs"].1.clone()), (Dtype::F32, vec![7, 150]));
    let mass: f64 = f32s(&all["top_logprobs"].2)[..150].iter().map(|l| f64::from(*l).exp()).sum();
    assert!((mass - 1.0).abs() < 1e-4, "{mass}");
    let rank = i64::from_le_bytes(all["target_ranks"].2[8..16].try_into().unwrap()) as usize;
    let at = 150 + rank - 1;
    assert_eq!(
        all["top_ids"].2[8 * at..8 * at + 8],
        149i64.to_le_bytes(),
        "row 1's target stands at its rank"
    );
    assert_eq!(all["top_logprobs"].2[4 * at..4 * at + 4], all["logprobs"].2[4..8]);
    let (_, none) = run(&["logprobs"]);
    assert!(!none.contains_key("top_ids") && !none.contains_key("top_logprobs"));
    assert_eq!(none["logprobs"], all["logprobs"]);
    let (_, processed) = run(&["logprobs", "--processed"]);
    assert_eq!(processed["row_status"].2, [0, 0, 2, 0, 0, 0, 0]);
    let only = f32s(&processed["logprobs"].2)[3];
    assert!((-1e-7..=0.0).contains(&only), "the only id that row 3 allows: {only}");
    assert_eq!(f32s(&processed["logprobs"].2)[4], f32::NEG_INFINITY, "64 is not allowed");
    assert!(f32s(&processed["logprobs"].2)[2].is_nan(), "nothing is allowed");
}

#[test]
fn raw_logprobs_leave_adjustments_aside_and_say_so() {
    let files = Files::new();
    let mut tensors = vec![bf16_tensor("hidden_states", &[7, 20], 2), targets(&[5; 7])];
    let (head, rows) = (files.name("head.safetensors"), files.name("rows"));
    let run = |tensors: &[Tensor], extra: &[&str]| {
        write(&files.path("rows"), tensors);
        let mut args = vec!["run", "--head", &head, "--hidden", &rows, "--request", "logprobs", "--check"];
        args.extend(extra);
        let out = lmhead(&args);
        (out.status.code(), text(&out.stderr))
    };
    assert_eq!(run(&tensors, &[]), (Some(0), String::new()));
    tensors.push(allowed_tensor());
    let (code, said) = run(&tensors, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("raw logprobs leave aside; --processed"), "{said}");
    // What raw logprobs ignore is validated all the same.
    tensors.pop();
    tensors.push(("allowed".into(), Dtype::I32, vec![6, 5], vec![0; 120]));
    let (code, said) = run(&tensors, &[]);
    assert!(code == Some(2) && said.contains("allowed"), "{said}");
}

/// Several targets of a row answer what runs with one target each answer; -100 is no target.
#[test]
fn a_row_has_as_many_targets_as_the_file_says() {
    let files = Files::new();
    let (head, rows, out) = (files.name("head.safetensors"), files.name("rows"), files.name("out"));
    let ids: Vec<i32> = (0..21).map(|i| if i % 5 == 2 { -100 } else { i * 41 % 150 }).collect();
    let run = |tensor: Tensor, args: &[&str]| {
        write(&files.path("rows"), &[bf16_tensor("hidden_states", &[7, 20], 2), tensor]);
        let all = ["run", "--head", &head, "--hidden", &rows, "--out", &out, "--steps", "1", "--check"];
        let run = lmhead(&[&all[..], &["--request", "logprobs:2"], args].concat());
        assert!(run.status.success(), "{args:?}: {}{}", text(&run.stdout), text(&run.stderr));
        read(&files.path("out"))
    };
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let matrix = || ("targets".into(), Dtype::I32, vec![7, 3], bytes.clone());
    let all = run(matrix(), &[]);
    assert_eq!((all["logprobs"].0, &all["logprobs"].1[..]), (Dtype::F32, &[7usize, 3][..]));
    assert_eq!((all["target_ranks"].0, &all["target_ranks"].1[..]), (Dtype::I64, &[7usize, 3][..]));
    for extra in [
        &["--rows", "3,0,4", "--lmhead-tp-size", "3"][..],
        &["--dp", "2", "--tp", "2", "--lmhead-tp-size", "4", "--mode", "discover"],
    ] {
        assert_eq!(run(matrix(), extra), all, "{extra:?}");
    }
    for column in 0..3 {
        let own: Vec<i64> = ids.iter().skip(column).step_by(3).map(|id| i64::from(*id)).collect();
        let one = run(targets(&own), &[]);
        assert_eq!(one["top_ids"], all["top_ids"]);
        for (row, id) in own.into_iter().enumerate() {
            let at = row * 3 + column;
            let logprob = &all["logprobs"].2[4 * at..4 * at + 4];
            let rank = &all["target_ranks"].2[8 * at..8 * at + 8];
            assert_eq!(logprob, &one["logprobs"].2[4 * row..4 * row + 4], "row {row}, id {id}");
            assert_eq!(rank, &one["target_ranks"].2[8 * row..8 * row + 8], "row {row}, id {id}");
            let none =
                f32::from_le_bytes(logprob.try_into().unwrap()).is_nan() && rank == (-1i64).to_le_bytes();
            assert_eq!(none, id == -100, "row {row}, id {id}");
        }
    }
}
