//! `lmhead quantize`: the same bits as quantising at load, correct error figures, and a file that is either
//! complete or absent.

use super::*;
use half::f16;
use lmhead::DType;
use lmhead::quantize::quantize_row;
use lmhead::reference::logsumexp;
use lmhead::weights::synthetic::hidden_row;
use serde_json::{Value, json};
use std::process::Stdio;

fn float_tensor(name: &str, dtype: Dtype, shape: &[usize], seed: u32) -> Tensor {
    let values = floats(shape.iter().product(), seed);
    let bytes = match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
    };
    (name.into(), dtype, shape.to_vec(), bytes)
}

fn quantize(args: &[&str]) -> Value {
    let out = lmhead(&[&["quantize", "--json"], args].concat());
    assert!(out.status.success(), "{args:?}: {}", text(&out.stderr));
    let said = text(&out.stderr);
    assert!(
        said.lines().all(|line| line.starts_with("warning: ")),
        "no bars where there is no terminal: {said}"
    );
    serde_json::from_str(&text(&out.stdout)).expect("JSON")
}

/// A run's answer, as the bytes of its file.
fn answer(files: &Files, args: &[&str]) -> Vec<u8> {
    let (out, hidden) = (files.name("answer"), files.name("hidden.safetensors"));
    good(
        &[
            &[
                "run",
                "--hidden",
                &hidden,
                "--out",
                &out,
                "--steps",
                "1",
                "--rows",
                "3,4",
                "--lmhead-tp-size",
                "2",
            ],
            args,
        ]
        .concat(),
    );
    std::fs::read(files.path("answer")).unwrap()
}

#[test]
fn the_file_answers_as_the_original_quantised_at_load() {
    let files = Files::new();
    let (source, out) = (files.name("source"), files.name("int8"));
    for (dtype, tensor, bias) in [
        (Dtype::BF16, "lm_head.weight", None),
        (Dtype::F16, "lm_head.weight", Some(Dtype::F16)),
        (Dtype::F32, "lm_head.weight", Some(Dtype::F32)),
        (Dtype::BF16, "a.weight", Some(Dtype::BF16)),
        (Dtype::F32, "table", None),
    ] {
        // 33 columns: no row but the first is aligned.
        write(&files.path("hidden.safetensors"), &[float_tensor("hidden_states", dtype, &[7, 33], 2)]);
        let mut tensors =
            vec![float_tensor(tensor, dtype, &[150, 33], 1), float_tensor("other.weight", dtype, &[3], 7)];
        tensors.extend(bias.map(|bias| float_tensor(&tensor.replace(".weight", ".bias"), bias, &[150], 3)));
        write(&files.path("source"), &tensors);
        let report = quantize(&["--head", &source, "--tensor", tensor, "--out", &out]);
        assert_eq!((&report["tensor"], &report["vocab_size"]), (&json!(tensor), &json!(150)));
        for how in ["w8a8", "w8a16"] {
            for request in ["logits", "topk:9"] {
                let with = |head: &str| {
                    answer(
                        &files,
                        &["--head", head, "--tensor", tensor, "--quantize", how, "--request", request],
                    )
                };
                assert!(with(&source) == with(&out), "{dtype:?} {tensor} {how} {request}");
            }
        }
        let written = read(&files.path("int8"));
        assert_eq!(written.len(), 2 + usize::from(bias.is_some()), "the head's tensors and no others");
        assert_eq!((written[tensor].0, &written[tensor].1), (Dtype::I8, &vec![150, 33]));
        let scales = &written[&format!("{tensor}_scale")];
        assert_eq!((scales.0, &scales.1), (Dtype::F32, &vec![150]));
        if let Some(bias) = bias {
            let (name, before) = (tensor.replace(".weight", ".bias"), &tensors[2].3);
            assert_eq!((written[&name].0, &written[&name].2), (bias, before), "the bias as it was");
        }
    }
}

/// Padding rows are left out, a tied embedding gets the default name, and config.json's logit settings are
/// kept: the printed command gives the model's logits.
#[test]
fn a_models_head_stands_alone() {
    let files = Files::new();
    std::fs::rename(files.path("model"), files.path("padded")).unwrap();
    let mut tensor = bf16_tensor("lm_head.weight", &[150, 20], 1);
    // The padding is not read.
    tensor.3[149 * 40..].fill(0xff);
    write(&files.path("padded/model.safetensors"), &[tensor]);
    std::fs::create_dir(files.path("tied")).unwrap();
    write(&files.path("tied/model.safetensors"), &[bf16_tensor("model.embed_tokens.weight", &[150, 20], 1)]);
    let config = r#"{"vocab_size": 150, "hidden_size": 20, "tie_word_embeddings": true,
        "model_type": "muse_spark", "final_logit_softcapping": 1.0, "output_multiplier": 2}"#;
    std::fs::write(files.path("tied/config.json"), config).unwrap();
    let out = files.name("an int8 'head'");
    for (folder, vocab, warned, kept) in [
        (
            "padded",
            140,
            vec!["10 rows of lm_head.weight behind the vocabulary of 140 are padding"],
            json!([null, 1.0, null]),
        ),
        ("tied", 150, vec![], json!(["muse_spark", 2.0, 0.5])),
    ] {
        let model = files.name(folder);
        let report = quantize(&["--model", &model, "--out", &out]);
        assert_eq!(
            (&report["vocab_size"], &report["rows_stored"], &report["tensor"]),
            (&json!(vocab), &json!(150), &json!("lm_head.weight"))
        );
        let warnings = report["warnings"].as_array().unwrap();
        assert_eq!(warnings.len(), warned.len(), "{warnings:?}");
        for (got, want) in warnings.iter().zip(warned) {
            assert!(got.as_str().unwrap().contains(want), "{got}");
        }
        assert_eq!(
            json!([report["model_type"], report["logit_scale"], report["final_logit_softcapping"]]),
            kept
        );
        for how in ["w8a8", "w8a16"] {
            let original = answer(&files, &["--model", &model, "--quantize", how]);
            assert!(original == answer(&files, &["--head", &out, "--quantize", how]), "{folder} {how}");
        }
        let printed = good(&["quantize", "--model", &model, "--out", &out, "--rows", "0"]);
        let command = printed.lines().find_map(|line| line.strip_prefix("run it: lmhead ")).unwrap();
        let command = command.strip_suffix(" (or w8a16)").unwrap();
        let (program, rows, to) =
            (env!("CARGO_BIN_EXE_lmhead"), files.name("hidden.safetensors"), files.name("by_command"));
        let script = format!("'{program}' {command} --hidden '{rows}' --out '{to}'");
        assert!(Command::new("bash").args(["-c", &script]).output().unwrap().status.success(), "{script}");
        let original = answer(&files, &["--model", &model, "--quantize", "w8a8"]);
        assert!(std::fs::read(&to).unwrap() == original, "{folder}: {script}");
    }
    let (head, small) = (files.name("head.safetensors"), files.name("small"));
    assert_eq!(quantize(&["--head", &head, "--out", &small, "--vocab-size", "70"])["vocab_size"], 70);
    assert_eq!(read(&files.path("small"))["lm_head.weight"].1, [70, 20]);
}

/// Metadata are kept, and the bytes depend only on the head.
#[test]
fn the_file_is_well_formed_and_always_the_same() {
    let files = Files::new();
    let tensors = [bf16_tensor("lm_head.weight", &[3000, 260], 1)];
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let told: HashMap<String, String> = [("format", "pt"), ("quoted", "\"ä\\n\""), ("z", "")]
        .map(|(key, value)| (key.into(), value.into()))
        .into();
    safetensors::serialize_to_file(views, Some(told.clone()), &files.path("source")).unwrap();
    let source = files.name("source");
    let mut first = None;
    for threads in ["1", "2", "5", "2"] {
        let out = files.name("int8");
        quantize(&["--head", &source, "--out", &out, "--threads", threads, "--rows", "0"]);
        let bytes = std::fs::read(files.path("int8")).unwrap();
        assert!(*first.get_or_insert_with(|| bytes.clone()) == bytes, "{threads} threads");
    }
    let bytes = first.unwrap();
    let (length, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata = metadata.metadata().clone().unwrap();
    assert_eq!(metadata.remove("lmhead.quantize").unwrap(), "int8, a symmetric scale per row, from bf16");
    assert_eq!(metadata, told);
    assert_eq!((length % 8, bytes.len() - length - 8), (0, 3000 * 260 + 3000 * 4));
}

/// The reported figures, against their definitions calculated here from the files.
#[test]
fn errors_are_what_they_are_said_to_be() {
    let files = Files::new();
    let (vocab, hidden, rows) = (150, 20, 5);
    let mut tensor = f32_tensor("lm_head.weight", &[vocab, hidden], 1);
    // A row of zeros has no error; the row with an outlier has the largest.
    tensor.3[7 * hidden * 4..8 * hidden * 4].fill(0);
    tensor.3[9 * hidden * 4..][..4].copy_from_slice(&40f32.to_le_bytes());
    write(&files.path("source"), &[tensor.clone()]);
    let (source, out) = (files.name("source"), files.name("int8"));
    let report = quantize(&["--head", &source, "--out", &out, "--rows", "5", "--seed", "11"]);

    let weights = f32s(&tensor.3);
    let squares: Vec<(f64, f64)> = weights
        .chunks(hidden)
        .map(|row| {
            let mut q = vec![0; hidden];
            let scale = f64::from(quantize_row(row, &mut q));
            let pairs = row.iter().zip(&q).map(|(w, q)| (f64::from(*w), f64::from(*q) * scale));
            pairs.fold((0.0, 0.0), |(e, n), (w, v)| (e + (w - v).powi(2), n + w * w))
        })
        .collect();
    let close = |got: &Value, want: f64| {
        let got = got.as_f64().unwrap();
        assert!((got - want).abs() <= 1e-9 * want.max(1e-3), "{got}, wanted {want}");
    };
    let whole = squares.iter().fold((0.0, 0.0), |(e, n), s| (e + s.0, n + s.1));
    close(&report["weights"]["relative_error"], (whole.0 / whole.1).sqrt());
    assert_eq!(report["weights"]["worst_row"], 9);
    close(&report["weights"]["worst_row_relative_error"], (squares[9].0 / squares[9].1).sqrt());

    let bytes: Vec<u8> = (0..rows).flat_map(|row| hidden_row(11, row as u64, hidden, DType::F32)).collect();
    write(
        &files.path("hidden.safetensors"),
        &[("hidden_states".into(), Dtype::F32, vec![rows, hidden], bytes)],
    );
    let logits = |args: &[&str]| -> Vec<Vec<f64>> {
        let (hidden, out) = (files.name("hidden.safetensors"), files.name("logits"));
        good(&[&["run", "--hidden", &hidden, "--out", &out, "--steps", "1"], args].concat());
        let values = read(&files.path("logits"))["logits"].2.as_chunks::<4>().0.to_vec();
        let values: Vec<f64> = values.into_iter().map(|v| f64::from(f32::from_le_bytes(v))).collect();
        values.chunks(vocab).map(<[f64]>::to_vec).collect()
    };
    let original = logits(&["--head", &source]);
    for how in ["w8a16", "w8a8"] {
        let int8 = logits(&["--head", &out, "--quantize", how]);
        let kl = |(l, m): (&Vec<f64>, &Vec<f64>)| {
            let (a, b) = (logsumexp(l), logsumexp(m));
            l.iter().zip(m).map(|(l, m)| (l - a).exp() * ((l - a) - (m - b))).sum::<f64>()
        };
        let kls: Vec<f64> = original.iter().zip(&int8).map(kl).collect();
        close(&report[how]["kl_mean"], kls.iter().sum::<f64>() / rows as f64);
        close(&report[how]["kl_largest"], kls.iter().copied().fold(0.0, f64::max));
        let best = |l: &Vec<f64>| lmhead::reference::top_k(l, 1)[0];
        let same = original.iter().zip(&int8).filter(|(l, m)| best(l) == best(m)).count();
        assert_eq!(report[how]["same_argmax"], same);
    }
    assert!(report["w8a8"]["kl_mean"].as_f64() > report["w8a16"]["kl_mean"].as_f64(), "{report}");
    let printed = good(&["quantize", "--head", &source, "--out", &out]);
    for words in
        ["weights: off by", "w8a16", "of 16", &format!("run it: lmhead run --head {out} --quantize w8a8")]
    {
        assert!(printed.contains(words), "{words}\n{printed}");
    }
    let silent = good(&["quantize", "--head", &source, "--out", &out, "--rows", "0"]);
    assert!(!silent.contains("nats"), "{silent}");
}

#[test]
fn bad_heads_and_places_are_refused_and_nothing_is_left() {
    let files = Files::new();
    let head = files.name("head.safetensors");
    let (out, int8) = (files.name("never"), files.name("int8"));
    quantize(&["--head", &head, "--out", &int8]);
    let broken = |name: &str, row: usize, value: f32, bias: bool| {
        let mut tensors =
            [f32_tensor("lm_head.weight", &[150, 20], 1), f32_tensor("lm_head.bias", &[150], 1)];
        tensors[usize::from(bias)].3[row * if bias { 4 } else { 80 }..][..4]
            .copy_from_slice(&value.to_le_bytes());
        write(&files.path(name), &tensors);
    };
    broken("nan", 77, f32::NAN, false);
    broken("inf", 149, f32::NEG_INFINITY, false);
    broken("bias", 3, f32::INFINITY, true);
    write(&files.path("vector"), &[f32_tensor("lm_head.weight", &[150], 1)]);
    write(&files.path("bytes"), &[("lm_head.weight".into(), Dtype::U8, vec![150, 20], vec![0; 3000])]);
    let whole = std::fs::read(files.path("head.safetensors")).unwrap();
    std::fs::write(files.path("short"), &whole[..whole.len() - 5]).unwrap();
    std::fs::write(files.path("kept"), "an older file").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&head, files.path("link")).unwrap();
    let before = files.entries();
    let file = |name: &str| files.name(name);
    let table: Vec<(Vec<&str>, &[&str])> = vec![
        (vec![], &["--model, --head: wanted one of them, got none"]),
        (vec!["--head", &head, "--model", "x"], &["--model, --head: wanted one of them, got both"]),
        (vec!["--model", "x", "--tensor", "y"], &["--tensor: wanted --head FILE beside it, got `y`"]),
        (vec!["--head", &head, "--tensor", "head"], &["tensor head", "lm_head.weight"]),
        (vec!["--head", "/nowhere"], &["/nowhere: cannot be read"]),
        (vec!["--model", &head], &["wanted a Hugging Face model folder, got a file"]),
        (
            vec!["--head", &int8],
            &[
                "tensor lm_head.weight: wanted f32, f16 or bf16 weights, got I8 [150, 20]; it is quantised already",
            ],
        ),
        (vec!["--head", &head, "--vocab-size", "151"], &["at least 151 rows", "got 150 rows"]),
        (vec!["--head", &head, "--vocab-size", "0"], &["--vocab-size: wanted a whole number of at least 1"]),
        (
            vec!["--head", &head, "--rows", "1025"],
            &["--rows: wanted a whole number from 0 to 1024, got `1025`"],
        ),
        (vec!["--head", &head, "--rows", "-1"], &["--rows", "got `-1`"]),
        (vec!["--head", &head, "--seed", "x"], &["--seed: wanted a whole number", "got `x`"]),
        (vec!["--head", &head, "--threads", "0"], &["--threads: wanted a whole number of at least 1"]),
        (vec!["--head", &head, "--threads", "99999999"], &["--threads: wanted 1 to 1024"]),
    ];
    let named: Vec<(String, &[&str])> = vec![
        (
            file("nan"),
            &["tensor lm_head.weight: wanted finite weights, got NaN at vocabulary row 77, column 0"],
        ),
        (file("inf"), &["got -inf at vocabulary row 149, column 0"]),
        (file("bias"), &["tensor lm_head.bias: wanted finite bias, got inf at vocabulary row 3"]),
        (file("vector"), &["wanted [vocabulary, hidden size], got F32 [150]"]),
        (file("bytes"), &["wanted f32, f16, bf16 or int8 weights", "4-bit heads"]),
        (file("short"), &["short"]),
    ];
    let places: Vec<(String, &[&str])> = vec![
        (head.clone(), &["is an input of this run", "name another file for --out"]),
        (file("link"), &["is an input of this run"]),
        (file("no/such/out"), &["no/such does not exist; create it, or name another for --out"]),
        (file("new/"), &["is the name of a folder"]),
        (file("model"), &["is not a regular file"]),
        #[cfg(target_os = "linux")]
        ("/proc/int8".into(), &["/proc/int8: cannot be written"]),
    ];
    let mut all: Vec<(Vec<&str>, &[&str])> = Vec::new();
    let kept = file("kept");
    all.extend(table.into_iter().map(|(args, wanted)| ([args, vec!["--out", &out]].concat(), wanted)));
    all.extend(named.iter().map(|(name, wanted)| (vec!["--head", name.as_str(), "--out", &kept], *wanted)));
    all.extend(
        places
            .iter()
            .map(|(place, wanted)| (vec!["--head", head.as_str(), "--out", place.as_str()], *wanted)),
    );
    for (args, wanted) in &all {
        let result = lmhead(&[&["quantize"], &args[..]].concat());
        let said = text(&result.stderr);
        assert_eq!(result.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.starts_with("error: "), "{said}");
        for want in *wanted {
            assert!(said.contains(want), "{args:?}\n got {said}\nwant {want}");
        }
        assert_eq!(text(&result.stdout), "", "{args:?}");
        assert_eq!(files.entries(), before, "{args:?}: no file was made");
    }
    assert_eq!(std::fs::read_to_string(files.path("kept")).unwrap(), "an older file");
    assert_eq!(std::fs::read(files.path("head.safetensors")).unwrap(), whole, "the input is as it was");
    // A model's own files count as inputs, too.
    let model = files.name("model");
    for name in ["model.safetensors", "config.json"] {
        let result = lmhead(&["quantize", "--model", &model, "--out", &format!("{model}/{name}")]);
        assert_eq!(result.status.code(), Some(2));
        assert!(text(&result.stderr).contains("is an input of this run"), "{}", text(&result.stderr));
    }
}

/// A full disk, a kill or an interrupt leave the old file under the name unchanged.
#[cfg(target_os = "linux")]
#[test]
fn a_file_is_whole_or_not_there() {
    use std::os::unix::process::ExitStatusExt;
    let files = Files::new();
    write(&files.path("source"), &[f32_tensor("lm_head.weight", &[4000, 256], 1)]);
    std::fs::write(files.path("int8"), "an older file").unwrap();
    let (source, out, program) = (files.name("source"), files.name("int8"), env!("CARGO_BIN_EXE_lmhead"));
    let temporaries = || {
        let entries = std::fs::read_dir(files.path("")).unwrap().flatten();
        entries.filter(|e| e.file_name().to_string_lossy().ends_with(".tmp")).collect::<Vec<_>>()
    };
    let unchanged = || assert_eq!(std::fs::read_to_string(files.path("int8")).unwrap(), "an older file");

    // bash's limit of 100 KiB for a file, with the signal XFSZ ignored and not.
    for trap in ["trap '' XFSZ; ", ""] {
        let script =
            format!("{trap}ulimit -f 100; exec '{program}' quantize --head '{source}' --out '{out}'");
        let result = Command::new("bash").args(["-c", &script]).output().unwrap();
        let said = text(&result.stderr);
        unchanged();
        assert_eq!(result.status.code(), Some(2), "{said}");
        assert!(
            said.contains("int8: cannot be written: File too large") && said.contains("make room"),
            "{said}"
        );
        assert_eq!(temporaries().len(), 0);
    }

    // Interrupted during the comparison, which takes a second or so: the file is written but not yet renamed.
    for (signal, number) in [("-INT", 2), ("-TERM", 15)] {
        let mut child = Command::new(program)
            .args(["quantize", "--head", &source, "--out", &out, "--rows", "1024", "--threads", "1"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !temporaries().iter().any(|file| file.metadata().is_ok_and(|about| about.len() > 0)) {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it was interrupted");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().signal(), Some(number), "{signal}: as without a handler");
        assert_eq!(temporaries().len(), 0, "{signal}");
        unchanged();
    }
}
