//! The program as its users see it: outputs, exit codes, and a sentence for every bad input.

mod adjusted;
#[cfg(feature = "emulated")]
mod backends;
mod bad_input;
mod bench;
#[cfg(unix)]
mod ends;
mod formats;
mod launched;
mod mixed;
mod models;
mod per_row;
mod plan;
mod quantize;
mod sampled;
mod terminal;
mod threads;
mod timing;

use half::bf16;
use lmhead::backend::cpu::Amx;
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

/// Runs the program, asserts success and returns its output.
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

/// The tensors of a file by name: type, shape and bytes.
type Tensors = HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn read(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let own = |view: &TensorView| (view.dtype(), view.shape().to_vec(), view.data().to_vec());
    file.iter().map(|(name, view)| (name.to_string(), own(&view))).collect()
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn i64s(bytes: &[u8]) -> Vec<i64> {
    bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
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

/// A folder with a 150 x 20 bf16 head, a model folder with the same head, and 7 hidden rows.
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
        // Tensors for other requests are ignored.
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
        assert!(printed.contains("\n28 output rows (28 hidden rows: synthetic, seed"), "{printed}");
    }
    let printed = good(&["run", "--preset", "tiny", "--request", "logprobs:3"]);
    assert!(printed.contains("seed 0; targets: synthetic), exact counts: logprobs:3"), "{printed}");
    let printed = good(&["run", "--preset", "tiny", "--dp", "3", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&printed).unwrap();
    let rows: Vec<u64> =
        json["ranks"].as_array().unwrap().iter().map(|r| r["output_rows"].as_u64().unwrap()).collect();
    assert_eq!(rows, [10, 9, 9], "28 rows, as even as possible");
    for (request, rounds) in [("logits", 3), ("topk:8", 3), ("logprobs:8", 5), ("sample", 4), ("sample:8", 7)]
    {
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
        assert_eq!(
            json["step"]["rounds"], rounds,
            "{request}: header, rows, results; and targets, their logits, or parameters; or tokens, their logits, best ids"
        );
        let (bytes, full) = (&json["step"]["bytes_exchanged"], &json["step"]["full_logits_bytes"]);
        assert_eq!(bytes == full, request == "logits", "{request}: {bytes} and {full}");
    }
}

/// A logit beyond 65504 is infinite in f16, and its row is marked as not finite; in f32 and bf16 the row is
/// good.
#[test]
fn a_row_that_overflows_the_delivered_type_is_marked() {
    let files = Files::new();
    let mut hidden = bf16_tensor("hidden_states", &[7, 20], 2);
    let large = floats(20, 3).into_iter().map(|v| bf16::from_f32(v * 131_072.0));
    hidden.3[3 * 40..4 * 40].copy_from_slice(&large.flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
    write(&files.path("large"), &[hidden]);
    let (head, rows, out) = (files.name("head.safetensors"), files.name("large"), files.name("o"));
    for (dtype, status) in [("f32", 0), ("bf16", 0), ("f16", 1)] {
        for extra in [&[][..], &["--dp", "4", "--lmhead-tp-size", "4"]] {
            let args = [
                "run",
                "--head",
                &head,
                "--hidden",
                &rows,
                "--out",
                &out,
                "--check",
                "--logits-dtype",
                dtype,
            ];
            let run = lmhead(&[&args[..], extra].concat());
            assert!(run.status.success(), "{dtype}: {}{}", text(&run.stdout), text(&run.stderr));
            let answer = read(&files.path("o"));
            assert_eq!(answer["row_status"].2, [0, 0, 0, status, 0, 0, 0], "{dtype} {extra:?}");
            let warned = text(&run.stderr)
                .contains("1 output row has non-finite logits (row_status 1), the first: [3]");
            assert_eq!(warned, status == 1, "{dtype}: {}", text(&run.stderr));
            if dtype == "f16" {
                let infinite = |pair: &[u8]| half::f16::from_le_bytes([pair[0], pair[1]]).is_infinite();
                let rows: Vec<usize> = answer["logits"]
                    .2
                    .chunks(300)
                    .map(|row| row.chunks(2).filter(|v| infinite(v)).count())
                    .collect();
                assert!(rows[3] > 0 && rows.iter().sum::<usize>() == rows[3], "{rows:?}");
            }
        }
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

#[test]
fn doctor_says_what_there_is() {
    let printed = good(&["doctor"]);
    for word in [
        "processor",
        "amx",
        "threads",
        "memory",
        "backend cpu",
        "backend cuda",
        "backend emulated",
        "exchange local",
    ] {
        assert!(printed.contains(word), "{printed}");
    }
    let json: serde_json::Value = serde_json::from_str(&good(&["doctor", "--json"])).unwrap();
    assert!(json.as_array().unwrap().iter().all(|c| c["status"].is_string()));
}

/// The output file has the mode that the umask gives, a symbolic link to it stays one, and an older answer is
/// replaced.
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

/// A closed pipe is no failure; a full disk behind standard output is one, with a message.
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
    // For AMX the message says whether the processor lacks it or the system refuses it.
    let (out, here) = (run("amx"), Amx::here());
    if here == Amx::Granted {
        assert!(out.status.success(), "{}", text(&out.stderr));
    } else {
        assert_eq!(out.status.code(), Some(2));
        assert!(text(&out.stderr).contains(&here.to_string()), "{}", text(&out.stderr));
    }
}
