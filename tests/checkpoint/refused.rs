//! Heads and folders that are refused, each with its message.

use crate::files::*;
use lmhead::config::{Quantization, Settings};
use lmhead::error::Error;
use lmhead::weights::{Checkpoint, LoadOptions};

#[test]
fn every_refused_head_with_its_message() {
    let w = || ("lm_head.weight", bf16s(&[3, 2], &[1.0; 6]));
    let q = || ("lm_head.weight", i8s(&[3, 2], &[1; 6]));
    let s = || ("lm_head.weight_scale", f32s(&[3], &[1.0; 3]));
    let p = || ("lm_head.weight_packed", i32s(&[3, 1], &[1; 3]));
    let shape = |r: i64, c: i64| ("lm_head.weight_shape", i64s(&[2], &[r, c]));
    let zero = |name: &'static str| (name, blank("F32", &[1], 4));
    let bits = |n: u32, more: &str| {
        format!(
            r#", "quantization_config": {{"config_groups": {{"g": {{"targets": ["lm_head"], "weights": {{"num_bits": {n}{more}}}}}}}}}"#
        )
    };
    let (four, asymmetric) = (bits(4, ""), bits(8, r#", "symmetric": false"#));
    // fields of config.json beside the sizes, tensors, words of the message in order
    type Case<'a> = (&'a str, Vec<(&'a str, T)>, Vec<&'a str>);
    let table: Vec<Case> = vec![
        ("", vec![], vec!["lm_head.weight", "wanted a head, or an embedding", "got a file without tensors"]),
        (
            "",
            vec![("a.lm_head.weight", w().1), ("b.lm_head.weight", w().1)],
            vec![
                "lm_head.weight",
                "only one tensor whose name ends in .lm_head.weight",
                "got a.lm_head.weight, b.lm_head.weight",
            ],
        ),
        ("", vec![("xlm_head.weight", w().1)], vec!["wanted a head", "got xlm_head.weight"]),
        (
            "",
            vec![("lm_head.weight", bf16s(&[6], &[1.0; 6]))],
            vec!["lm_head.weight", "wanted [vocabulary, hidden size]", "got BF16 [6]"],
        ),
        (
            "",
            vec![("lm_head.weight", bf16s(&[3, 1, 2], &[1.0; 6]))],
            vec!["wanted [vocabulary, hidden size]", "got BF16 [3, 1, 2]"],
        ),
        (
            "",
            vec![("lm_head.weight", bf16s(&[], &[1.0]))],
            vec!["wanted [vocabulary, hidden size]", "got BF16 []"],
        ),
        (
            "",
            vec![("lm_head.weight", bf16s(&[0, 2], &[]))],
            vec!["wanted at least one row and one column", "got BF16 [0, 2]"],
        ),
        (
            "",
            vec![("lm_head.weight", bf16s(&[3, 0], &[]))],
            vec!["wanted at least one row and one column", "got BF16 [3, 0]"],
        ),
        (
            "",
            vec![("lm_head.weight", bf16s(&[3, 4], &[1.0; 12]))],
            vec!["wanted [vocabulary, 2], the configuration's hidden_size", "got [3, 4]"],
        ),
        (
            "",
            vec![("lm_head.weight", bf16s(&[2, 2], &[1.0; 4]))],
            vec!["wanted at least 3 rows, the configuration's vocab_size", "got 2 rows"],
        ),
        (
            "",
            vec![("lm_head.weight", blank("F64", &[3, 2], 48))],
            vec!["wanted f32, f16, bf16 or int8", "got F64 [3, 2]", "convert the head to bf16"],
        ),
        (
            "",
            vec![("lm_head.weight", blank("I64", &[3, 2], 48))],
            vec!["wanted f32, f16, bf16 or int8", "got I64 [3, 2]"],
        ),
        (
            "",
            vec![("lm_head.weight", blank("F8_E5M2", &[3, 2], 6))],
            vec!["got F8_E5M2 [3, 2]", "of FP8 only E4M3 is read"],
        ),
        ("", vec![("lm_head.weight", blank("U8", &[6, 1], 6))], vec!["got U8 [6, 1]", "4-bit heads"]),
        // int8 and its scales
        (
            "",
            vec![q()],
            vec![
                "lm_head.weight_scale",
                "wanted f32, f16 or bf16 [3] or [3, 1]",
                "got an int8 weight without it",
            ],
        ),
        (
            "",
            vec![q(), ("lm_head.weight_scale", f32s(&[3, 2], &[1.0; 6]))],
            vec!["got F32 [3, 2]", "grouped scales are not supported"],
        ),
        (
            "",
            vec![q(), ("lm_head.weight_scale", f32s(&[1, 2], &[1.0; 2]))],
            vec!["got F32 [1, 2]", "block scales are not supported"],
        ),
        (
            "",
            vec![q(), ("lm_head.weight_scale", f32s(&[1], &[1.0]))],
            vec!["got F32 [1]", "per-tensor scales are not supported"],
        ),
        (
            "",
            vec![q(), ("lm_head.weight_scale", f32s(&[], &[1.0]))],
            vec!["got F32 []", "per-tensor scales are not supported"],
        ),
        (
            "",
            vec![q(), ("lm_head.weight_scale", f32s(&[4], &[1.0; 4]))],
            vec!["got F32 [4]", "the scales must have the weight's rows"],
        ),
        ("", vec![q(), ("lm_head.weight_scale", f32s(&[3, 1, 1], &[1.0; 3]))], vec!["got F32 [3, 1, 1]"]),
        (
            "",
            vec![q(), ("lm_head.weight_scale", i8s(&[3], &[1; 3]))],
            vec!["got I8 [3]", "store the scales as floats"],
        ),
        (
            &four,
            vec![q(), s()],
            vec!["quantization_config.config_groups.g.weights.num_bits: wanted 8, got 4"],
        ),
        (&asymmetric, vec![q(), s()], vec!["weights.symmetric: wanted true, got false"]),
        // packed
        (
            "",
            vec![p(), s()],
            vec![
                "lm_head.weight_shape",
                "wanted a tensor of this name",
                "got lm_head.weight_packed, lm_head.weight_scale",
            ],
        ),
        ("", vec![p(), shape(3, 2)], vec!["lm_head.weight_scale", "got an int8 weight without it"]),
        (
            "",
            vec![p(), s(), shape(4, 2)],
            vec!["lm_head.weight_shape", "wanted [3, 1 to 4] of lm_head.weight_packed", "got [4, 2]"],
        ),
        (
            "",
            vec![p(), s(), shape(3, 9)],
            vec![
                "lm_head.weight_packed",
                "wanted [3, 3], 8 bits for each of 9 weights",
                "got I32 [3, 1]",
                "only 4- and 8-bit packed heads",
            ],
        ),
        ("", vec![p(), s(), shape(3, 0)], vec!["lm_head.weight_shape", "got [3, 0]"]),
        ("", vec![p(), s(), shape(-3, 2)], vec!["lm_head.weight_shape", "got [-3, 2]"]),
        (
            "",
            vec![p(), s(), shape(3, i64::MAX)],
            vec!["lm_head.weight_packed", "only 4- and 8-bit packed heads"],
        ),
        (
            "",
            vec![p(), s(), ("lm_head.weight_shape", i64s(&[3], &[3, 2, 1]))],
            vec!["lm_head.weight_shape", "wanted i64 or i32 [2]", "got I64 [3]"],
        ),
        (
            "",
            vec![p(), s(), ("lm_head.weight_shape", f32s(&[2], &[3.0, 2.0]))],
            vec!["wanted i64 or i32 [2]", "got F32 [2]"],
        ),
        (
            "",
            vec![("lm_head.weight_packed", i64s(&[3, 1], &[1; 3])), s(), shape(3, 2)],
            vec!["lm_head.weight_packed", "wanted i32 words", "got I64 [3, 1]"],
        ),
        (
            "",
            vec![p(), s(), shape(3, 2), w()],
            vec!["lm_head.weight:", "wanted either it or lm_head.weight_packed, got both"],
        ),
        (&four, vec![p(), s(), shape(3, 2)], vec!["weights.num_bits: wanted 8, got 4"]),
        // formats that are not read
        (
            "",
            vec![q(), s(), ("lm_head.weight_zero_point", i8s(&[3], &[0, 0, 1]))],
            vec!["lm_head.weight_zero_point", "zero points (asymmetric quantisation)"],
        ),
        (
            "",
            vec![p(), s(), shape(3, 2), ("lm_head.weight_zero_point", i8s(&[3], &[0, 0, 1]))],
            vec!["lm_head.weight_zero_point", "wanted i32 [1, 1], 8 bits for each row"],
        ),
        ("", vec![q(), s(), zero("lm_head.weight_offset")], vec!["lm_head.weight_offset", "zero points"]),
        (
            "",
            vec![q(), s(), zero("lm_head.input_scale")],
            vec!["lm_head.input_scale", "static activation quantisation"],
        ),
        ("", vec![q(), s(), zero("lm_head.SCB")], vec!["lm_head.SCB", "bitsandbytes 8-bit"]),
        (
            "",
            vec![("lm_head.weight", blank("U8", &[3, 1], 3)), zero("lm_head.weight.absmax")],
            vec!["lm_head.weight.absmax", "bitsandbytes 4-bit"],
        ),
        (
            "",
            vec![w(), zero("lm_head.weight_scale_inv")],
            vec!["lm_head.weight_scale_inv", "block-scaled FP8"],
        ),
        (
            "",
            vec![zero("lm_head.qweight"), zero("lm_head.qzeros"), zero("lm_head.scales")],
            vec!["lm_head.qweight", "wanted i32 [hidden size * bits / 32, vocabulary]", "got F32 [1]"],
        ),
        (
            "",
            vec![zero("model.lm_head.qweight"), zero("model.lm_head.qzeros")],
            vec!["model.lm_head.qweight", "wanted i32 [hidden size * bits / 32, vocabulary]"],
        ),
        (
            "",
            vec![p(), s(), shape(3, 2), zero("lm_head.weight_g_idx")],
            vec!["lm_head.weight_g_idx", "activation-ordered"],
        ),
        ("", vec![zero("lm_head.W_q"), zero("lm_head.meta")], vec!["lm_head.W_q", "an HQQ head"]),
        (
            "",
            vec![("lm_head.weight_packed", blank("U8", &[3, 1], 3)), s()],
            vec![
                "lm_head.weight_packed",
                "wanted i32 words",
                "got U8 [3, 1]",
                "only 4- and 8-bit packed heads",
            ],
        ),
        (
            "",
            vec![w(), zero("lm_head.weight_scale_2")],
            vec!["lm_head.weight:", "two E2M1 codes to a byte", "got BF16 [3, 2]"],
        ),
        // bias
        (
            "",
            vec![w(), ("lm_head.bias", f32s(&[3, 1], &[1.0; 3]))],
            vec!["lm_head.bias", "wanted f32, f16 or bf16 [3]", "got F32 [3, 1]"],
        ),
        ("", vec![w(), ("lm_head.bias", i8s(&[3], &[1; 3]))], vec!["lm_head.bias", "got I8 [3]"]),
        (
            "",
            vec![w(), ("lm_head.bias", f32s(&[2], &[1.0; 2]))],
            vec!["lm_head.bias", "wanted [3], one per vocabulary row", "got F32 [2]"],
        ),
    ];
    for (more, tensors, words) in table {
        let folder = Folder::model(&config(3, 2, more), &tensors);
        let shard = folder.open().and_then(|c| c.shard(0..3, 3, &LoadOptions::default()));
        let names: Vec<&str> = tensors.iter().map(|(name, _)| *name).collect();
        let error = shard.expect_err(&format!("{names:?}"));
        if let Error::Tensor { path, .. } = &error {
            assert_eq!(path, &folder.path().join("model.safetensors"));
        }
        assert_words(&error, &words);
    }
}

#[test]
fn ranges_and_sizes_that_do_not_fit() {
    let folder = Folder::model(&config(3, 2, ""), &[("lm_head.weight", bf16s(&[3, 2], &[1.0; 6]))]);
    let checkpoint = folder.open().unwrap();
    #[allow(clippy::reversed_empty_ranges)]
    let table = [
        (0..3, 0, "vocab_size: wanted 1 to 3, got 0"),
        (0..3, 4, "wanted at least 4 rows, the configuration's vocab_size, got 3 rows"),
        (0..3, 2, "shard: wanted vocabulary ids within 0..2, got 0..3"),
        (2..1, 3, "shard: wanted vocabulary ids within 0..3, got 2..1"),
        (0..usize::MAX, 3, "shard: wanted vocabulary ids within 0..3"),
    ];
    for (range, vocab_size, want) in table {
        let text = checkpoint.shard(range, vocab_size, &LoadOptions::default()).unwrap_err().to_string();
        assert!(text.contains(want), "{text}");
    }
    for (more, want) in [
        (Settings { vocab_size: Some(4), ..Settings::default() }, "wanted at least 4 rows"),
        (Settings { hidden_size: Some(7), ..Settings::default() }, "wanted [vocabulary, 7]"),
    ] {
        let text = Checkpoint::open_with(folder.path(), &more).unwrap_err().to_string();
        assert!(text.contains(want), "{text}");
    }
    let wide = lmhead::quantize::MAX_INT8_HIDDEN + 1;
    let folder =
        Folder::model(&config(1, wide, ""), &[("lm_head.weight", bf16s(&[1, wide], &vec![1.0; wide]))]);
    let checkpoint = folder.open().unwrap();
    let error = checkpoint.shard(0..1, 1, &asked(Quantization::W8a8)).unwrap_err().to_string();
    assert!(error.contains("at most 132104") && error.contains("got 132105"), "{error}");
    checkpoint.shard(0..1, 1, &asked(Quantization::W8a16)).unwrap();
}

#[test]
fn every_refused_folder_with_its_message() {
    let good = file_bytes(&[("lm_head.weight", bf16s(&[3, 2], &[1.0; 6]))], 0);
    let cut = &good[..good.len() - 1];
    let norm = file_bytes(&[("model.norm.weight", bf16s(&[2], &[1.0; 2]))], 0);
    let index = |map: &str| format!(r#"{{"weight_map": {map}}}"#).into_bytes();
    let cfg = config(3, 2, "").into_bytes();
    let (c, m, i) = ("config.json", "model.safetensors", "model.safetensors.index.json");
    let many: Vec<(String, T)> = (0..11).map(|n| (format!("t{n:02}"), f32s(&[1], &[0.0]))).collect();
    let many: Vec<(&str, T)> = many.iter().map(|(n, t)| (n.as_str(), t.clone())).collect();
    type Case<'a> = (Vec<(&'a str, Vec<u8>)>, Vec<&'a str>);
    let table: Vec<Case> = vec![
        (vec![], vec!["config.json: cannot be read"]),
        (vec![(m, good.clone())], vec!["config.json: cannot be read"]),
        (vec![(c, b"{".to_vec()), (m, good.clone())], vec!["config.json", "wanted a JSON object"]),
        (vec![(c, vec![0xff, 0xfe]), (m, good.clone())], vec!["config.json: cannot be read"]),
        (
            vec![(c, cfg.clone())],
            vec![
                "wanted model.safetensors or model.safetensors.index.json, got a folder without .safetensors files",
            ],
        ),
        (
            vec![(c, cfg.clone()), ("a.safetensors", good.clone()), ("b.safetensors", good.clone())],
            vec!["got 2 other .safetensors files: a.safetensors, b.safetensors"],
        ),
        (vec![(c, cfg.clone()), (m, vec![])], vec![m, "got an empty file"]),
        (
            vec![(c, cfg.clone()), (m, cut.to_vec())],
            vec![m, "tensor lm_head.weight", "wanted bytes", "got a file of"],
        ),
        (
            vec![(c, cfg.clone()), (m, b"version https://git-lfs".to_vec())],
            vec![m, "not a whole safetensors file"],
        ),
        (
            vec![(c, cfg.clone()), (m, file_bytes(&many, 0))],
            vec!["tensor lm_head.weight", "got t00, t01, t02, t03, t04, t05, t06, t07 and 3 more"],
        ),
        (vec![(c, cfg.clone()), (i, b"[]".to_vec())], vec![i, "wanted an object weight_map", "got none"]),
        (vec![(c, cfg.clone()), (i, b"{".to_vec())], vec![i, "wanted JSON, got an error"]),
        (vec![(c, cfg.clone()), (i, index("[]"))], vec![i, "wanted an object weight_map"]),
        (
            vec![(c, cfg.clone()), (i, index(r#"{"lm_head.weight": 3}"#))],
            vec![i, "lm_head.weight", "wanted the name of a file within the folder, got 3"],
        ),
        (
            vec![(c, cfg.clone()), (i, index(r#"{"lm_head.weight": "../out.safetensors"}"#))],
            vec![
                i,
                "lm_head.weight",
                "wanted the name of a file within the folder, got \"../out.safetensors\"",
            ],
        ),
        (
            vec![(c, cfg.clone()), (i, index(r#"{"lm_head.weight": "a/../../out.safetensors"}"#))],
            vec!["wanted the name of a file within the folder"],
        ),
        (
            vec![(c, cfg.clone()), (i, index(r#"{"lm_head.weight": "/etc/passwd"}"#))],
            vec!["wanted the name of a file within the folder"],
        ),
        (
            vec![(c, cfg.clone()), (i, index(r#"{"lm_head.weight": ""}"#))],
            vec!["wanted the name of a file within the folder"],
        ),
        (
            vec![(c, cfg.clone()), (i, index(r#"{"lm_head.weight": "gone.safetensors"}"#))],
            vec!["gone.safetensors: cannot be read", "the index says that it holds lm_head.weight"],
        ),
        (
            vec![
                (c, cfg.clone()),
                (i, index(r#"{"lm_head.weight": "n.safetensors"}"#)),
                ("n.safetensors", norm),
            ],
            vec![
                "n.safetensors",
                "tensor lm_head.weight",
                "wanted a tensor of this name",
                "got model.norm.weight",
            ],
        ),
        (
            vec![
                (c, cfg.clone()),
                (i, index(r#"{"lm_head.weight": "t.safetensors"}"#)),
                ("t.safetensors", cut.to_vec()),
            ],
            vec!["t.safetensors", "tensor lm_head.weight", "got a file of"],
        ),
        (
            vec![(c, cfg), (i, index(r#"{"model.norm.weight": "t.safetensors"}"#))],
            vec![i, "lm_head.weight", "got model.norm.weight"],
        ),
    ];
    for (files, words) in table {
        let folder = Folder::new();
        for (name, bytes) in &files {
            folder.write(name, bytes);
        }
        let error = folder.open().expect_err(words[0]);
        assert!(error.to_string().contains(folder.path().to_str().unwrap()), "no path in {error}");
        assert_words(&error, &words);
    }
    let folder = Folder::new();
    let error = Checkpoint::open(folder.path().join("nowhere")).unwrap_err();
    assert_words(&error, &["nowhere: cannot be read"]);
    let file = folder.write("file", b"x");
    assert_words(&Checkpoint::open(&file).unwrap_err(), &["wanted a Hugging Face model folder, got a file"]);
    std::fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    folder.write("config.json", b"{}");
    assert_words(
        &folder.open().unwrap_err(),
        &["model.safetensors: wanted a .safetensors file, got a folder"],
    );
}
