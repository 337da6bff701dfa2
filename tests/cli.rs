//! `lmhead run` and `lmhead doctor` as a person or a program uses them: outputs, exit codes, and a sentence for every bad input.

use half::bf16;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

fn lmhead(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lmhead"))
        .args(args)
        .env_remove("LMHEAD_CPU_ISA")
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs, wants success, returns what was printed.
fn good(args: &[&str]) -> String {
    let out = lmhead(args);
    assert!(out.status.success(), "{args:?}: {}\n{}", out.status, text(&out.stderr));
    text(&out.stdout)
}

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn write(path: &Path, tensors: &[Tensor]) {
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn read(path: &Path) -> HashMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let own = |view: &TensorView| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.iter().map(|(name, view)| (name.to_string(), own(&view))).collect()
}

fn floats(n: usize, seed: u32) -> Vec<f32> {
    let value = |i: usize| {
        ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(value).collect()
}

fn bf16_tensor(name: &str, shape: &[usize], seed: u32) -> Tensor {
    let values = floats(shape.iter().product(), seed);
    let bytes = values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    (name.into(), Dtype::BF16, shape.to_vec(), bytes)
}

fn f32_tensor(name: &str, shape: &[usize], seed: u32) -> Tensor {
    let bytes = floats(shape.iter().product(), seed).iter().flat_map(|v| v.to_le_bytes()).collect();
    (name.into(), Dtype::F32, shape.to_vec(), bytes)
}

fn indices(values: &[i64]) -> Tensor {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    ("logits_indices".into(), Dtype::I64, vec![values.len()], bytes)
}

/// A folder with a 150 x 20 bf16 head, a model folder around it, and 7 hidden rows.
struct Files {
    folder: TempDir,
}

impl Files {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let files = Files { folder };
        write(&files.path("head.safetensors"), &[bf16_tensor("lm_head.weight", &[150, 20], 1)]);
        write(&files.path("hidden.safetensors"), &[bf16_tensor("hidden_states", &[7, 20], 2)]);
        std::fs::create_dir(files.path("model")).unwrap();
        write(&files.path("model/model.safetensors"), &[bf16_tensor("lm_head.weight", &[150, 20], 1)]);
        std::fs::write(files.path("model/config.json"), r#"{"vocab_size": 140, "hidden_size": 20}"#).unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn name(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_string()
    }

    fn entries(&self) -> usize {
        std::fs::read_dir(self.folder.path()).unwrap().count()
    }
}

#[test]
fn any_sharding_writes_the_same_file() {
    let files = Files::new();
    let (head, hidden) = (files.name("head.safetensors"), files.name("hidden.safetensors"));
    for request in ["logits", "argmax", "topk:5"] {
        let mut first: Option<Vec<u8>> = None;
        for extra in [
            vec![],
            vec!["--rows", "3,0,4", "--lmhead-tp-size", "3"],
            vec!["--dp", "4", "--lmhead-tp-size", "2", "--threads", "1"],
            vec!["--dp", "2", "--tp", "2", "--lmhead-tp-size", "4", "--mode", "capacity"],
            vec!["--dp", "7", "--lmhead-tp-size", "7", "--mode", "discover"],
            vec!["--tp", "3", "--lmhead-tp-size", "-1"],
        ] {
            let out = files.name("out.safetensors");
            let mut args = vec![
                "run",
                "--head",
                &head,
                "--hidden",
                &hidden,
                "--request",
                request,
                "--out",
                &out,
                "--check",
                "--steps",
                "1",
            ];
            args.extend(&extra);
            let printed = good(&args);
            assert!(printed.contains("check passed against float64 (everything"), "{printed}");
            let bytes = std::fs::read(&out).unwrap();
            assert_eq!(*first.get_or_insert_with(|| bytes.clone()), bytes, "{request} {extra:?}");
        }
    }
}

#[test]
fn outputs_have_the_documented_names_shapes_and_types() {
    let files = Files::new();
    let (head, hidden, out) =
        (files.name("head.safetensors"), files.name("hidden.safetensors"), files.path("o"));
    let run = |extra: &[&str]| {
        let mut args = vec!["run", "--head", &head, "--hidden", &hidden, "--out", out.to_str().unwrap()];
        args.extend(extra);
        good(&args);
        let mut shapes: Vec<(String, Dtype, Vec<usize>)> =
            read(&out).into_iter().map(|(name, (dtype, shape, _))| (name, dtype, shape)).collect();
        shapes.sort_by(|a, b| a.0.cmp(&b.0));
        shapes
    };
    let status = ("row_status".to_string(), Dtype::U8, vec![7]);
    assert_eq!(run(&[]), [("logits".into(), Dtype::F32, vec![7, 150]), status.clone()]);
    assert_eq!(run(&["--logits-dtype", "bf16"])[0], ("logits".into(), Dtype::BF16, vec![7, 150]));
    assert_eq!(run(&["--logits-dtype", "f16"])[0], ("logits".into(), Dtype::F16, vec![7, 150]));
    assert_eq!(run(&["--request", "argmax"]), [("argmax".into(), Dtype::I64, vec![7]), status.clone()]);
    assert_eq!(
        run(&["--request", "topk:3"]),
        [
            ("logsumexp".into(), Dtype::F32, vec![7]),
            status,
            ("topk_ids".into(), Dtype::I64, vec![7, 3]),
            ("topk_values".into(), Dtype::F32, vec![7, 3]),
        ]
    );
    assert_eq!(files.entries(), 4, "no temporary file stays");
}

#[test]
fn indices_pick_rows_in_their_order_over_all_ranks() {
    let files = Files::new();
    let head = files.name("head.safetensors");
    let hidden = bf16_tensor("hidden_states", &[7, 20], 2);
    let run = |indices_of: Option<&[i64]>, extra: &[&str]| {
        let mut tensors = vec![hidden.clone()];
        tensors.extend(indices_of.map(indices));
        // Tensors of other requests are of no concern to this one.
        tensors.push(f32_tensor("targets", &[3], 9));
        write(&files.path("rows"), &tensors);
        let (rows, out) = (files.name("rows"), files.name("out"));
        let mut args = vec!["run", "--head", &head, "--hidden", &rows, "--out", &out];
        args.extend(extra);
        good(&args);
        read(&files.path("out"))["logits"].clone()
    };
    let all = run(None, &[]).2;
    let wanted = [6i64, 0, 6, 3, 2];
    for extra in [
        &[][..],
        &["--rows", "3,0,1,3", "--lmhead-tp-size", "4"],
        &["--rows", "0,7", "--lmhead-tp-size", "2"],
    ] {
        let (_, shape, picked) = run(Some(&wanted), extra);
        assert_eq!(shape, [5, 150]);
        for (row, &index) in wanted.iter().enumerate() {
            assert_eq!(
                picked[row * 600..(row + 1) * 600],
                all[index as usize * 600..(index as usize + 1) * 600]
            );
        }
    }
    assert_eq!(run(Some(&[]), &["--dp", "2", "--lmhead-tp-size", "2"]).1, [0, 150]);
}

#[test]
fn a_model_folder_a_configuration_and_json_work_together() {
    let files = Files::new();
    std::fs::write(
        files.path("c.toml"),
        "lmhead_tp_size = 2\nfinal_logit_softcapping = 5.0\nverify = { every = 2 }",
    )
    .unwrap();
    let (model, hidden, config) =
        (files.name("model"), files.name("hidden.safetensors"), files.name("c.toml"));
    let printed = good(&[
        "run",
        "--model",
        &model,
        "--hidden",
        &hidden,
        "--config",
        &config,
        "--dp",
        "2",
        "--check",
        "--json",
        "--quantize",
        "w8a8",
    ]);
    let json: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(json["vocab_size"], 140, "two rows of padding are no vocabulary");
    assert_eq!(json["lmhead_tp_size"], 2);
    assert_eq!(json["quantization"], "w8a8");
    assert_eq!(json["check"]["passed"], true);
    assert_eq!(json["check"]["values"], 7 * 140);
    assert_eq!(json["ranks"].as_array().unwrap().len(), 2);
    assert_eq!(json["ranks"][1]["shard"], serde_json::json!([128, 140]));
    assert!(json["ranks"][0]["bytes_received"].as_u64().unwrap() > 0);
}

#[test]
fn presets_run_with_any_quantisation_and_epilogue() {
    for extra in [
        vec![],
        vec!["--quantize", "w8a8"],
        vec!["--quantize", "w8a16"],
        vec!["--request", "topk:8"],
        vec!["--seed", "7"],
    ] {
        let mut args =
            vec!["run", "--preset", "tiny", "--rows", "7,0,12,9", "--lmhead-tp-size", "4", "--check"];
        args.extend(extra);
        let printed = good(&args);
        assert!(printed.contains("check passed"), "{printed}");
        assert!(printed.contains("of 28 output rows (28 hidden rows: synthetic, seed"), "{printed}");
    }
    let printed = good(&["run", "--preset", "tiny", "--dp", "3", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let rows: Vec<u64> =
        json["ranks"].as_array().unwrap().iter().map(|r| r["output_rows"].as_u64().unwrap()).collect();
    assert_eq!(rows, [10, 9, 9], "28 rows, as even as possible");
    for (request, rounds) in [("logits", 3), ("topk:8", 3), ("logprobs:8", 5)] {
        let printed = good(&[
            "run",
            "--preset",
            "tiny",
            "--dp",
            "3",
            "--lmhead-tp-size",
            "3",
            "--json",
            "--request",
            request,
        ]);
        let json: serde_json::Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(json["step"]["rounds"], rounds, "header, rows, results; and targets, their logits");
        let (bytes, full) = (&json["step"]["bytes_exchanged"], &json["step"]["full_logits_bytes"]);
        assert_eq!(bytes == full, request == "logits", "{request}: {bytes} and {full}");
    }
}

#[test]
fn a_broken_row_is_marked_and_the_others_are_answered() {
    let files = Files::new();
    let mut hidden = bf16_tensor("hidden_states", &[7, 20], 2);
    hidden.3[2 * 20 * 3..][..2].copy_from_slice(&bf16::NAN.to_le_bytes());
    write(&files.path("nan"), &[hidden]);
    let (head, rows, whole, out) = (
        files.name("head.safetensors"),
        files.name("nan"),
        files.name("hidden.safetensors"),
        files.name("o"),
    );
    let run = |rows: &str| {
        let out_of = lmhead(&[
            "run",
            "--head",
            &head,
            "--hidden",
            rows,
            "--request",
            "topk:2",
            "--check",
            "--out",
            &out,
            "--dp",
            "2",
            "--lmhead-tp-size",
            "2",
        ]);
        assert_eq!(out_of.status.code(), Some(0), "{}", text(&out_of.stderr));
        (text(&out_of.stderr), read(&files.path("o")))
    };
    let (warning, broken) = run(&rows);
    let (_, good) = run(&whole);
    assert!(
        warning.contains("warning: 1 output row has non-finite logits (row_status 1), the first: [3]"),
        "{warning}"
    );
    assert_eq!(broken["row_status"].2, [0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(broken["topk_ids"].2[3 * 16..4 * 16], [0xff; 16]);
    assert_eq!(broken["topk_ids"].2[..3 * 16], good["topk_ids"].2[..3 * 16]);
    assert_eq!(broken["topk_values"].2[4 * 8..], good["topk_values"].2[4 * 8..]);
}

/// `allowed` [7, 5] of 150 ids: row 2 allows nothing, row 3 only id 149, the others every third id.
fn allowed_tensor() -> Tensor {
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

fn additions(rows: &[i64], ids: &[i64], values: &[f32]) -> Vec<Tensor> {
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
fn masks_and_additions_work_with_every_request_and_sharding() {
    let files = Files::new();
    let mut tensors = vec![bf16_tensor("hidden_states", &[7, 20], 2), allowed_tensor()];
    tensors.extend(additions(
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
            let warning = "warning: 1 output rows have no id that is allowed (row_status 2), the first: [2]";
            assert!(text(&run.stderr).contains(warning), "{}", text(&run.stderr));
            let bytes = std::fs::read(&out).unwrap();
            assert_eq!(*first.get_or_insert_with(|| bytes.clone()), bytes, "{request} {extra:?}");
        }
        let answer = read(&files.path("out"));
        assert_eq!(answer["row_status"].2, [0, 0, 2, 0, 0, 0, 0]);
        let ids: Vec<i64> = match request {
            "argmax" => {
                answer["argmax"].2.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
            }
            "topk:60" => {
                let all = answer["topk_ids"].2.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b));
                let all: Vec<i64> = all.collect();
                assert!(all[3 * 60 + 1..4 * 60].iter().all(|id| *id == -1), "one id is allowed");
                assert!(all[50..60].iter().all(|id| *id == -1), "50 ids are allowed");
                assert!(!all[4 * 60..5 * 60].contains(&60), "forbidden by an addition");
                all.into_iter().step_by(60).collect()
            }
            _ => continue,
        };
        assert_eq!((ids[0], ids[2], ids[3], ids[6]), (3, -1, 149, 30));
    }
}

fn targets(values: &[i64]) -> Tensor {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    ("targets".into(), Dtype::I64, vec![values.len()], bytes)
}

#[test]
fn logprobs_are_the_same_for_any_sharding_and_chunk_and_agree_with_topk() {
    let files = Files::new();
    let mut tensors = vec![bf16_tensor("hidden_states", &[7, 20], 2), allowed_tensor()];
    tensors.push(targets(&[0, 149, 2, 149, 64, 63, 77]));
    write(&files.path("rows"), &tensors);
    std::fs::write(files.path("small.toml"), "logprobs_chunk_bytes = 3000").unwrap();
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
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let (_, all) = run(&["logprobs:150"]);
    let (_, best) = run(&["topk:150"]); // uses the mask
    assert_eq!(best["row_status"].2, [0, 0, 2, 0, 0, 0, 0]);
    assert_eq!(all["row_status"].2, [0; 7], "raw logprobs leave the mask aside");
    assert_eq!((all["logprobs"].0, all["logprobs"].1.clone()), (Dtype::F32, vec![7]));
    assert_eq!((all["target_ranks"].0, all["target_ranks"].1.clone()), (Dtype::I64, vec![7]));
    assert_eq!((all["top_ids"].0, all["top_ids"].1.clone()), (Dtype::I64, vec![7, 150]));
    assert_eq!((all["top_logprobs"].0, all["top_logprobs"].1.clone()), (Dtype::F32, vec![7, 150]));
    let mass: f64 = floats(&all["top_logprobs"].2)[..150].iter().map(|l| f64::from(*l).exp()).sum();
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
    assert_eq!(floats(&processed["logprobs"].2)[3], 0.0, "the only id that row 3 allows");
    assert_eq!(floats(&processed["logprobs"].2)[4], f32::NEG_INFINITY, "64 is not allowed");
    assert!(floats(&processed["logprobs"].2)[2].is_nan(), "nothing is allowed");
}

#[test]
fn doctor_says_what_there_is() {
    let printed = good(&["doctor"]);
    for word in ["processor", "threads", "memory", "backend cpu", "exchange local"] {
        assert!(printed.contains(word), "{printed}");
    }
    let json: serde_json::Value = serde_json::from_str(&good(&["doctor", "--json"])).unwrap();
    assert!(json.as_array().unwrap().iter().all(|c| c["status"].is_string()));
}

/// Every bad input: exit 2, a sentence on standard error, nothing on standard output, no file.
#[test]
fn bad_input_is_refused_with_a_sentence() {
    let files = Files::new();
    let file = |name: &str| files.name(name);
    std::fs::write(files.path("junk"), "no tensors here, but long enough for a header").unwrap();
    std::fs::write(files.path("empty"), "").unwrap();
    std::fs::write(files.path("bad.toml"), "lmhead_size = 4").unwrap();
    std::fs::write(files.path("sizes.toml"), "hidden_size = 21").unwrap();
    std::fs::write(files.path("vocab.toml"), "vocab_size = 151").unwrap();
    std::fs::write(files.path("dtype.toml"), "hidden_dtype = \"f16\"").unwrap();
    std::fs::write(files.path("tied.toml"), "tie_word_embeddings = true").unwrap();
    std::fs::write(files.path("bias.toml"), "bias = true").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(files.path("hidden.safetensors"), files.path("link")).unwrap();
    let whole = std::fs::read(files.path("head.safetensors")).unwrap();
    std::fs::write(files.path("short"), &whole[..whole.len() - 5]).unwrap();
    write(&files.path("narrow"), &[bf16_tensor("hidden_states", &[7, 19], 2)]);
    write(&files.path("f32"), &[f32_tensor("hidden_states", &[7, 20], 2)]);
    write(&files.path("other"), &[bf16_tensor("states", &[7, 20], 2)]);
    write(&files.path("outside"), &[bf16_tensor("hidden_states", &[7, 20], 2), indices(&[0, 6, 7])]);
    write(&files.path("negative"), &[bf16_tensor("hidden_states", &[7, 20], 2), indices(&[0, -1])]);
    std::fs::create_dir(files.path("empty_model")).unwrap();
    let rows_with = |name: &str, more: Vec<Tensor>| {
        let tensors: Vec<Tensor> = [vec![bf16_tensor("hidden_states", &[7, 20], 2)], more].concat();
        write(&files.path(name), &tensors);
    };
    rows_with("target_150", vec![targets(&[0, 1, 2, 3, 150, 5, 6])]);
    rows_with("target_negative", vec![targets(&[-1, 1, 2, 3, 4, 5, 6])]);
    rows_with("target_ok", vec![targets(&[0; 7])]);
    rows_with("targets_6", vec![targets(&[0; 6])]);
    std::fs::write(files.path("chunk.toml"), "logprobs_chunk_bytes = 100").unwrap();
    rows_with("mask_words", vec![("allowed".into(), Dtype::I32, vec![7, 4], vec![0; 7 * 16])]);
    rows_with("mask_rows", vec![("allowed".into(), Dtype::I32, vec![6, 5], vec![0; 6 * 20])]);
    rows_with("mask_type", vec![("allowed".into(), Dtype::U32, vec![7, 5], vec![0; 7 * 20])]);
    rows_with("add_row", additions(&[0, 7], &[1, 1], &[0.0, 0.0]));
    rows_with("add_id", additions(&[0, 6], &[1, 150], &[0.0, 0.0]));
    rows_with("add_nan", additions(&[5], &[1], &[f32::NAN]));
    rows_with("add_short", additions(&[5, 6], &[1, 1], &[0.0]));
    rows_with("add_ids_short", additions(&[5, 6], &[1], &[0.0, 0.0]));
    rows_with("add_part", additions(&[5], &[1], &[0.0])[..2].to_vec());
    let (head, hidden) = (file("head.safetensors"), file("hidden.safetensors"));
    let before = files.entries();

    let base: &[&str] = &["--head", &head, "--hidden", &hidden];
    let with_hidden = |name: &str| vec!["--head".to_string(), head.clone(), "--hidden".into(), file(name)];
    let logprobs_of = |name: &str| [with_hidden(name), vec!["--request".into(), "logprobs".into()]].concat();
    let with = |extra: &[&str]| base.iter().chain(extra).map(ToString::to_string).collect::<Vec<String>>();
    let only = |args: &[&str]| args.iter().map(ToString::to_string).collect::<Vec<String>>();
    let table: Vec<(Vec<String>, &[&str])> = vec![
        (only(&[]), &["--model, --head, --preset: wanted one of them, got none"]),
        (only(&["--preset", "tiny", "--head", &head]), &["wanted one of them, got several"]),
        (only(&["--preset", "tiny", "--tensor", "x"]), &["--tensor: wanted --head FILE beside it"]),
        (only(&["--preset", "gpt-9"]), &["gpt-9", "deepseek-v3", "tiny"]),
        (only(&["--model", &file("nowhere")]), &["nowhere", "cannot be read"]),
        (only(&["--model", &file("empty_model")]), &["empty_model", "config.json"]),
        (only(&["--model", &head]), &["head.safetensors", "wanted a Hugging Face model folder, got a file"]),
        (only(&["--head", &file("nowhere")]), &["nowhere"]),
        (only(&["--head", &file("junk")]), &["junk"]),
        (only(&["--head", &file("empty")]), &["empty"]),
        (only(&["--head", &file("short")]), &["short"]),
        (only(&["--head", files.folder.path().to_str().unwrap()]), &["folder"]),
        (only(&["--head", &head, "--tensor", "head"]), &["tensor head", "lm_head.weight"]),
        (with(&["--config", &file("bad.toml")]), &["bad.toml", "unknown field `lmhead_size`"]),
        (with(&["--config", &file("nowhere.toml")]), &["nowhere.toml: cannot be read"]),
        (with(&["--config", &file("sizes.toml")]), &["hidden_size", "21", "20"]),
        (with(&["--config", &file("vocab.toml")]), &["151", "150"]),
        (with(&["--config", &file("dtype.toml")]), &["hidden_dtype", "f16", "bf16"]),
        (with_hidden("nowhere"), &["nowhere"]),
        (with_hidden("junk"), &["junk"]),
        (
            with_hidden("narrow"),
            &["narrow: tensor hidden_states: wanted hidden size 20, the head's, got hidden size 19"],
        ),
        (with_hidden("f32"), &["f32: tensor hidden_states: wanted bf16, the head's dtype, got f32"]),
        (with_hidden("other"), &["tensor hidden_states", "states"]),
        (
            with_hidden("outside"),
            &["logits_indices: index 7 at position 2 is not a row: wanted 0 to 6, got 7"],
        ),
        (with_hidden("negative"), &["logits_indices: index -1 at position 1 is not a row: wanted 0 to 6"]),
        (
            with_hidden("mask_words"),
            &[
                "mask_words: tensor allowed: wanted i32 [7, 5], a row of bits for each output row, got I32 [7, 4]",
            ],
        ),
        (with_hidden("mask_rows"), &["tensor allowed: wanted i32 [7, 5]", "got I32 [6, 5]"]),
        (with_hidden("mask_type"), &["tensor allowed: wanted i32 [7, 5]", "got U32 [7, 5]"]),
        (
            with_hidden("add_row"),
            &["add_row: adjust_rows: index 7 at position 1 is not a row: wanted 0 to 6"],
        ),
        (with_hidden("add_id"), &["add_id: adjust_ids: id of row 6: wanted an id from 0 to 149, got 150"]),
        (with_hidden("add_nan"), &["adjust_values: value of row 5, id 1: wanted a finite number", "got NaN"]),
        (with_hidden("add_short"), &["tensor adjust_values: wanted f32 [2], as many as adjust_rows", "[1]"]),
        (with_hidden("add_ids_short"), &["tensor adjust_ids: wanted [2], as many as adjust_rows, got [1]"]),
        (with_hidden("add_part"), &["tensor adjust_values: wanted", "adjust_rows"]),
        (with(&["--request", "logprobs"]), &["hidden.safetensors: tensor targets"]),
        (
            with(&["--request", "logprobs:-1"]),
            &["--request logprobs:N: wanted N from 0", "got `logprobs:-1`"],
        ),
        (with(&["--request", "logprobs:151"]), &["logprobs: wanted at most the vocabulary size, 150", "151"]),
        (with(&["--request", "logprobsx"]), &["--request: wanted logits, argmax, topk:K or logprobs[:N]"]),
        (with(&["--processed"]), &["--processed: wanted --request logprobs beside it, got `logits`"]),
        (
            logprobs_of("target_150"),
            &["target_150: tensor targets: wanted ids from 0 to 149, got 150 in row 4"],
        ),
        (logprobs_of("target_negative"), &["tensor targets: wanted ids from 0 to 149, got -1 in row 0"]),
        (logprobs_of("targets_6"), &["tensor targets: wanted [7], one id for each output row, got [6]"]),
        (
            [logprobs_of("target_ok"), vec!["--config".into(), file("chunk.toml")]].concat(),
            &["logprobs_chunk_bytes: wanted at least 640", "got 100"],
        ),
        (with(&["--rows", "3,3"]), &["--rows: wanted 7 in all", "got 6 in all"]),
        (with(&["--rows", "3,-4"]), &["--rows: wanted row counts of at least 0", "got `-4`"]),
        (with(&["--rows", "-3"]), &["--rows", "got `-3`"]),
        (with(&["--rows", "3;4"]), &["--rows", "got `3;4`"]),
        (with(&["--rows", ""]), &["--rows", "got ``"]),
        (
            with(&["--rows", "3,4", "--dp", "3"]),
            &["--rows: wanted 3 entries, one for each of --dp 3, got 2 entries"],
        ),
        (with(&["--rows", "18446744073709551615,8"]), &["--rows: wanted counts whose sum fits 64 bits"]),
        (with(&["--dp", "0"]), &["--dp: wanted a whole number of at least 1, got `0`"]),
        (with(&["--dp", "-2"]), &["--dp: wanted a whole number of at least 1, got `-2`"]),
        (with(&["--tp", "0"]), &["--tp: wanted a whole number of at least 1, got `0`"]),
        (with(&["--tp", "two"]), &["--tp", "got `two`"]),
        (
            with(&["--dp", "4", "--lmhead-tp-size", "3"]),
            &[
                "--lmhead-tp-size: wanted 1, or a multiple of tp = 1 that divides dp * tp = 4, got 3; the nearest that fit dp 4 x tp 1: 2, 4",
            ],
        ),
        (
            with(&["--lmhead-tp-size", "0"]),
            &["--lmhead-tp-size", "got 0", "the nearest that fit dp 1 x tp 1: 1"],
        ),
        (with(&["--lmhead-tp-size", "-2"]), &["--lmhead-tp-size: wanted auto, -1", "got `-2`"]),
        (
            with(&["--request", "topk:0"]),
            &["--request topk:K: wanted k from 1 to the vocabulary size, 150, got k = 0"],
        ),
        (with(&["--request", "topk:151"]), &["wanted k from 1 to the vocabulary size, 150, got k = 151"]),
        (with(&["--request", "topk:-1"]), &["--request topk:K", "got `topk:-1`"]),
        (
            with(&["--request", "topk"]),
            &["--request: wanted logits, argmax, topk:K or logprobs[:N], got `topk`"],
        ),
        (with(&["--logits-dtype", "i8"]), &["--logits-dtype: wanted f32, bf16 or f16, got `i8`"]),
        (with(&["--quantize", "int4"]), &["--quantize: wanted none, w8a8 or w8a16, got `int4`"]),
        (with(&["--threads", "0"]), &["--threads: wanted a whole number of at least 1, got `0`"]),
        (with(&["--threads", "-1"]), &["--threads", "got `-1`"]),
        (with(&["--steps", "0"]), &["--steps"]),
        (with(&["--seed", "-1"]), &["--seed: wanted a whole number from 0", "got `-1`"]),
        (with(&["--out", &file("no/such/folder/out")]), &["no/such/folder does not exist; create it"]),
        (with(&["--out", files.folder.path().to_str().unwrap()]), &["is not a regular file"]),
        (with(&["--backend", "tpu"]), &["--backend"]),
        (with(&["--exchange", "pigeon"]), &["--exchange"]),
        (with(&["--mode", "guess"]), &["--mode"]),
        (only(&["--preset", "tiny", "--rows", "1000000000000000"]), &["--rows", "memory"]),
        (with(&["--dp", "9223372036854775807", "--tp", "3"]), &["--dp, --tp: wanted at most 1024 ranks"]),
        (with(&["--dp", "4000000000"]), &["--dp, --tp: wanted at most 1024 ranks"]),
        (with(&["--threads", "99999999999"]), &["--threads: wanted 1 to 1024, got 99999999999"]),
        (only(&["--head", &head, "--out", &file("never")]), &["--out: wanted --hidden FILE beside it"]),
        (with(&["--out", &hidden]), &["is an input of this run", "name another file"]),
        (with(&["--out", &file("link")]), &["is an input of this run"]),
        (
            only(&["--model", &file("model"), "--hidden", &hidden, "--out", &file("model/config.json")]),
            &["is an input of this run"],
        ),
        (with(&["--out", "/dev/null"]), &["is not a regular file"]),
        (with(&["--out", &file(&"n".repeat(300))]), &["cannot be written"]),
        (with(&["--config", "/dev/null"]), &["is not a regular file"]),
        (
            only(&["--preset", "tiny", "--config", &file("dtype.toml")]),
            &["hidden_dtype: wanted bf16, the head's dtype, got f16"],
        ),
        (
            only(&["--preset", "tiny", "--config", &file("tied.toml")]),
            &["tie_word_embeddings: wanted nothing"],
        ),
        (
            only(&["--preset", "tiny", "--config", &file("bias.toml")]),
            &["bias: wanted nothing (presets have none)"],
        ),
        (
            only(&["--preset", "tiny", "--config", &file("sizes.toml")]),
            &["hidden_size: wanted 256, the preset's, got 21"],
        ),
    ];
    let never = file("never");
    for (args, wanted) in &table {
        let mut all = vec!["run"];
        all.extend(args.iter().map(String::as_str));
        if !args.iter().any(|a| a == "--out") {
            all.extend(["--out", &never]);
        }
        let out = lmhead(&all);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {said}");
        for want in *wanted {
            assert!(said.contains(want), "{args:?}\n got {said}\nwant {want}");
        }
        assert!(said.starts_with("error: "), "{said}");
        assert_eq!(text(&out.stdout), "", "{args:?}");
    }
    assert_eq!(files.entries(), before, "no file was made");
}

/// The output is a file like any other: its mode is the umask's, a symbolic link stays one, an old answer is replaced.
#[cfg(unix)]
#[test]
fn the_output_file_is_an_ordinary_one() {
    use std::os::unix::fs::PermissionsExt;
    let files = Files::new();
    let (hidden, head) = (files.name("hidden.safetensors"), files.name("head.safetensors"));
    std::fs::write(files.path("old"), "an older answer").unwrap();
    std::os::unix::fs::symlink(files.path("old"), files.path("link")).unwrap();
    let link = files.name("link");
    good(&["run", "--head", &head, "--hidden", &hidden, "--out", &link]);
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(read(&files.path("old"))["row_status"].1, [7]);
    std::fs::write(files.path("plain"), "").unwrap();
    let mode = |name: &str| std::fs::metadata(files.path(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("old"), mode("plain"), "what any new file gets");
}

/// A reader that goes away is no failure; a full disk behind standard output is one, with a sentence.
#[cfg(target_os = "linux")]
#[test]
fn standard_output_may_be_closed_or_full() {
    use std::fs::File;
    use std::process::Stdio;
    for args in [&["doctor"][..], &["run", "--preset", "tiny", "--json"], &["run", "--preset", "tiny"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_lmhead"));
        let out = command.args(args).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{args:?}: {}", text(&out.stderr));
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_lmhead"));
        let out = command.args(args).stdout(full).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{args:?}");
        assert!(text(&out.stderr).contains("standard output: cannot be written"), "{}", text(&out.stderr));
    }
}

#[test]
fn an_instruction_set_that_is_not_there_is_refused_by_name() {
    let run = |isa: &str| {
        Command::new(env!("CARGO_BIN_EXE_lmhead"))
            .args(["run", "--preset", "tiny", "--rows", "2", "--check"])
            .env("LMHEAD_CPU_ISA", isa)
            .output()
            .unwrap()
    };
    let out = run("portable");
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert!(text(&out.stdout).contains("portable"), "{}", text(&out.stdout));
    let doctor = Command::new(env!("CARGO_BIN_EXE_lmhead"))
        .arg("doctor")
        .env("LMHEAD_CPU_ISA", "sse9")
        .output()
        .unwrap();
    assert_eq!(doctor.status.code(), Some(1), "something of this build does not work here");
    assert!(text(&doctor.stdout).contains("missing"), "{}", text(&doctor.stdout));
    let out = run("sse9");
    assert_eq!(out.status.code(), Some(2));
    assert!(
        text(&out.stderr).contains("LMHEAD_CPU_ISA") && text(&out.stderr).contains("sse9"),
        "{}",
        text(&out.stderr)
    );
}
