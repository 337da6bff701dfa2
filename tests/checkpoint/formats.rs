//! Every format that is read, against a naive decoding.

use crate::files::*;
use lmhead::config::{HeadConfig, Quantization};
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::layout::{HeadGroup, shard_range};
use lmhead::quantize::quantize_row;
use lmhead::weights::{Checkpoint, LoadOptions};
use std::sync::Mutex;

#[test]
fn every_format_at_every_cut_equals_a_naive_decoding() {
    const VOCAB: usize = 200;
    const ROWS: usize = 210; // ten rows of padding
    for hidden in [1, 5, 8, 64] {
        let (floats, ints) = (exact_values(ROWS, hidden), int8_values(ROWS, hidden));
        let scale_values: Vec<f32> = (0..ROWS).map(|i| (i + 1) as f32 / 64.0).collect();
        let wide_ints: Vec<f32> = ints.iter().map(|v| f32::from(*v)).collect();
        let packed = || i32s(&[ROWS, hidden.div_ceil(4)], &pack(&ints, hidden));
        let shape_of = [ROWS as i64, hidden as i64];
        let w = "lm_head.weight";
        let (int8, shape) = (i8s(&[ROWS, hidden], &ints), [ROWS, hidden]);
        let cases: Vec<(DType, Vec<(&str, T)>)> = vec![
            (DType::F32, vec![(w, f32s(&shape, &floats))]),
            (DType::F16, vec![(w, f16s(&shape, &floats))]),
            (DType::Bf16, vec![(w, bf16s(&shape, &floats))]),
            (DType::I8, vec![(w, int8.clone()), ("lm_head.weight_scale", f32s(&[ROWS], &scale_values))]),
            (DType::I8, vec![(w, int8.clone()), ("lm_head.weight_scale", f16s(&[ROWS, 1], &scale_values))]),
            (DType::I8, vec![(w, int8), ("lm_head.weight_scale", bf16s(&[ROWS, 1], &scale_values))]),
            (
                DType::I8,
                vec![
                    ("lm_head.weight_packed", packed()),
                    ("lm_head.weight_scale", bf16s(&[ROWS, 1], &scale_values)),
                    ("lm_head.weight_shape", i64s(&[2], &shape_of)),
                ],
            ),
            (
                DType::I8,
                vec![
                    ("lm_head.weight_packed", packed()),
                    ("lm_head.weight_scale", f32s(&[ROWS], &scale_values)),
                    ("lm_head.weight_shape", i32s(&[2], &shape_of.map(|n| n as i32))),
                ],
            ),
        ];
        for (dtype, tensors) in cases {
            for skew in [0, 1, 2] {
                let folder = Folder::new();
                folder.write("config.json", config(VOCAB, hidden, "").as_bytes());
                let path = folder.write("model.safetensors", &file_bytes(&tensors, skew));
                let both = [folder.open().unwrap(), Checkpoint::from_file(&path, w).unwrap()];
                for checkpoint in both {
                    assert_eq!((checkpoint.rows(), checkpoint.hidden_size()), (ROWS, hidden));
                    assert_eq!(checkpoint.dtype(), dtype);
                    assert!(!checkpoint.has_bias());
                    let wide = if dtype == DType::I8 { &wide_ints } else { &floats };
                    for shards in [1, 2, 3, 7] {
                        for index in 0..shards {
                            let range = shard_range(VOCAB, shards, index);
                            let shard =
                                checkpoint.shard(range.clone(), VOCAB, &LoadOptions::default()).unwrap();
                            assert_eq!((shard.vocab(), shard.vocab_size()), (range.clone(), VOCAB));
                            assert_eq!(elements(&shard), wide[range.start * hidden..range.end * hidden]);
                            if dtype == DType::I8 {
                                assert_eq!(scales(&shard), &scale_values[range.clone()]);
                                assert_eq!(shard.quantization(), Quantization::W8a16);
                            }
                            let aligned = skew % dtype.size() == 0 && tensors[0].0 == w;
                            if !range.is_empty() && aligned {
                                assert!(shard.is_mapped(), "{dtype} at {skew}");
                            }
                        }
                    }
                    assert!(checkpoint.warnings().is_empty());
                }
            }
        }
    }
}

#[test]
fn float_heads_are_quantised_row_by_row_whatever_the_shard() {
    const VOCAB: usize = 200;
    const HIDDEN: usize = 33;
    let floats = exact_values(VOCAB, HIDDEN);
    let (mut q, mut s) = (vec![0i8; VOCAB * HIDDEN], Vec::new());
    for (row, q) in floats.chunks(HIDDEN).zip(q.chunks_mut(HIDDEN)) {
        s.push(quantize_row(row, q));
    }
    let q: Vec<f32> = q.iter().map(|v| f32::from(*v)).collect();
    for tensor in [f32s, f16s, bf16s] {
        let folder = Folder::model(
            &config(VOCAB, HIDDEN, ""),
            &[("lm_head.weight", tensor(&[VOCAB, HIDDEN], &floats))],
        );
        let checkpoint = folder.open().unwrap();
        assert_eq!(checkpoint.stored_quantization(), None);
        for quantization in [Quantization::W8a8, Quantization::W8a16] {
            for (shards, index) in [(1, 0), (3, 0), (3, 2), (9, 8)] {
                let range = shard_range(VOCAB, shards, index);
                let shard = checkpoint.shard(range.clone(), VOCAB, &asked(quantization)).unwrap();
                assert_eq!(shard.quantization(), quantization);
                assert_eq!(elements(&shard), q[range.start * HIDDEN..range.end * HIDDEN]);
                assert_eq!(scales(&shard), &s[range]);
            }
        }
    }
}

#[test]
fn a_head_spread_over_several_files() {
    let folder = Folder::new();
    let ints = int8_values(70, 4);
    let s: Vec<f32> = (0..70).map(|i| i as f32).collect();
    folder.write("config.json", config(70, 4, "").as_bytes());
    folder.write("a.safetensors", &file_bytes(&[("lm_head.weight", i8s(&[70, 4], &ints))], 0));
    folder.write("sub/b.safetensors", &file_bytes(&[("lm_head.weight_scale", f32s(&[70], &s))], 0));
    folder.write("c.safetensors", &file_bytes(&[("lm_head.bias", f32s(&[70], &s))], 0));
    // missing.safetensors holds nothing of the head, so its absence does not matter.
    let map = r#"{"weight_map": {"lm_head.weight": "a.safetensors", "lm_head.weight_scale": "sub/b.safetensors",
        "lm_head.bias": "c.safetensors", "model.norm.weight": "missing.safetensors"}}"#;
    folder.write("model.safetensors.index.json", map.as_bytes());
    let checkpoint = folder.open().unwrap();
    assert!(checkpoint.has_bias());
    let shard = checkpoint.shard(64..70, 70, &LoadOptions::default()).unwrap();
    assert_eq!(scales(&shard), &s[64..]);
    assert_eq!(shard.bias().unwrap(), &s[64..]);
    assert_eq!(elements(&shard), ints[256..].iter().map(|v| f32::from(*v)).collect::<Vec<_>>());
}

#[test]
fn one_file_of_another_name_and_model_config() {
    let folder = Folder::new();
    let text = r#"{"vocab_size": 1, "text_config": {"vocab_size": 3, "hidden_size": 2, "final_logit_softcapping": 30.0}}"#;
    folder.write("config.json", text.as_bytes());
    let tensor = bf16s(&[3, 2], &[1.0; 6]);
    let path = folder
        .write("weights.safetensors", &file_bytes(&[("model.language_model.lm_head.weight", tensor)], 0));
    let checkpoint = folder.open().unwrap();
    let model = checkpoint.model_config();
    assert_eq!(
        (model.vocab_size, model.hidden_size, model.final_logit_softcapping),
        (Some(3), Some(2), Some(30.0))
    );
    assert_eq!(checkpoint.tensor_name(), "model.language_model.lm_head.weight");
    // From the file alone: the sizes are those of the tensor.
    let model = Checkpoint::from_file(&path, "model.language_model.lm_head.weight").unwrap().model_config();
    assert_eq!((model.vocab_size, model.hidden_size), (Some(3), Some(2)));
}

#[test]
fn bias_as_stored_asked_and_refused() {
    let values = [0.5, -1.0, 2.0, 3.0, 4.0];
    let folder = Folder::model(
        &config(4, 2, ""),
        &[("lm_head.weight", f32s(&[5, 2], &[1.0; 10])), ("lm_head.bias", f16s(&[5], &values))],
    );
    let checkpoint = folder.open().unwrap();
    let with = |bias| LoadOptions { bias, ..LoadOptions::default() };
    for bias in [None, Some(true)] {
        assert_eq!(checkpoint.shard(1..4, 4, &with(bias)).unwrap().bias(), Some(&values[1..4]));
    }
    for _ in 0..2 {
        assert_eq!(checkpoint.shard(1..4, 4, &with(Some(false))).unwrap().bias(), None);
    }
    let warnings = checkpoint.warnings();
    assert_eq!(warnings.len(), 1, "said once");
    assert!(
        warnings[0].ends_with("lm_head.bias is stored, but ignored because bias = false"),
        "{warnings:?}"
    );

    let folder = Folder::model(&config(4, 2, ""), &[("lm_head.weight", f32s(&[4, 2], &[1.0; 8]))]);
    let error = folder.open().unwrap().shard(0..4, 4, &with(Some(true))).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "bias: wanted a stored bias, as bias = true says, got no bias beside lm_head.weight"
        )
    );
}

#[test]
fn head_shard_takes_the_groups_part_and_checks_the_configuration() {
    let floats = exact_values(130, 4);
    let folder = Folder::model(&config(130, 4, ""), &[("lm_head.weight", f32s(&[130, 4], &floats))]);
    let checkpoint = folder.open().unwrap();
    let group = HeadGroup::data_parallel(3, 1).unwrap();
    let mut config = HeadConfig::new(130, 4);
    let shard = checkpoint.head_shard(&group, &config, &LoadOptions::default()).unwrap();
    assert_eq!(shard.vocab(), 64..128);
    assert_eq!(elements(&shard), floats[256..512]);
    config.quantization = Quantization::W8a8;
    let shard = checkpoint.head_shard(&group, &config, &LoadOptions::default()).unwrap();
    assert_eq!(shard.quantization(), Quantization::W8a8);
    let error = checkpoint.head_shard(&group, &config, &asked(Quantization::W8a16)).unwrap_err().to_string();
    assert!(
        error.starts_with("quantize: wanted w8a8, as the head's configuration says, got w8a16"),
        "{error}"
    );
    config.hidden_size = 5;
    let error = checkpoint.head_shard(&group, &config, &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight: wanted [vocabulary, 5]"), "{error}");
    assert!(error.contains("got [130, 4]"), "{error}");
}

#[test]
fn progress_ends_at_the_total() {
    let folder = Folder::model(
        &config(3000, 700, ""),
        &[("lm_head.weight", f32s(&[3000, 700], &vec![1.0; 2_100_000]))],
    );
    let checkpoint = folder.open().unwrap();
    for quantization in [Quantization::None, Quantization::W8a16] {
        let told = Mutex::new(Vec::new());
        let progress = |done, total| told.lock().unwrap().push((done, total));
        let options = LoadOptions {
            quantization: Some(quantization),
            progress: Some(&progress),
            ..LoadOptions::default()
        };
        checkpoint.shard(0..3000, 3000, &options).unwrap();
        let told = told.into_inner().unwrap();
        assert_eq!(told.last(), Some(&(8_400_000, 8_400_000)));
        assert!(told.len() > 1 && told.iter().all(|(done, total)| done <= total && *total == 8_400_000));
        assert_eq!(told.iter().filter(|(done, total)| done == total).count(), 1);
    }
}

#[test]
fn a_shard_reads_its_own_rows_and_names_the_first_bad_value() {
    const VOCAB: usize = 192;
    for (quantization, bad) in [
        (Quantization::None, f32::NAN),
        (Quantization::None, f32::INFINITY),
        (Quantization::W8a8, f32::NEG_INFINITY),
        (Quantization::W8a16, -f32::NAN),
    ] {
        for tensor in [f32s, f16s, bf16s] {
            let mut floats = exact_values(VOCAB, 5);
            floats[70 * 5 + 3] = bad;
            floats[70 * 5 + 4] = f32::NAN;
            floats[100 * 5] = f32::NAN;
            let folder =
                Folder::model(&config(VOCAB, 5, ""), &[("lm_head.weight", tensor(&[VOCAB, 5], &floats))]);
            let checkpoint = folder.open().unwrap();
            for clean in [0..64, 128..192, 101..192, 70..70] {
                checkpoint.shard(clean, VOCAB, &asked(quantization)).unwrap();
            }
            for range in [64..128, 70..71, 0..192] {
                let error = checkpoint.shard(range, VOCAB, &asked(quantization)).unwrap_err();
                let Error::Tensor { path, tensor, wanted, got, .. } = &error else { panic!("{error}") };
                assert_eq!(path, &folder.path().join("model.safetensors"));
                assert_eq!((tensor.as_str(), wanted.as_str()), ("lm_head.weight", "finite weights"));
                assert!(got.ends_with("at vocabulary row 70, column 3"), "{got}");
            }
        }
    }
}

#[test]
fn scales_and_bias_of_other_shards_are_not_read() {
    let mut s = vec![1.0; 8];
    s[5] = f32::NAN;
    let mut b = vec![0.0; 8];
    b[2] = f32::INFINITY;
    let folder = Folder::model(
        &config(8, 2, ""),
        &[
            ("lm_head.weight", i8s(&[8, 2], &[-128; 16])),
            ("lm_head.weight_scale", f32s(&[8], &s)),
            ("lm_head.bias", bf16s(&[8], &b)),
        ],
    );
    let checkpoint = folder.open().unwrap();
    assert_eq!(elements(&checkpoint.shard(3..5, 8, &LoadOptions::default()).unwrap()), [-128.0; 4]);
    let text = |range| checkpoint.shard(range, 8, &LoadOptions::default()).unwrap_err().to_string();
    assert!(text(3..8).contains("lm_head.weight_scale: wanted finite scales, got NaN at vocabulary row 5"));
    assert!(text(0..4).contains("lm_head.bias: wanted finite bias, got inf at vocabulary row 2"));
}

/// The fingerprint is the same whichever shard is loaded and however it is quantised; it differs for other
/// weights, scales, biases or types.
#[test]
fn the_fingerprint_is_the_heads_and_no_shards() {
    const VOCAB: usize = 200;
    const HIDDEN: usize = 8;
    let floats = exact_values(VOCAB, HIDDEN);
    let ints = int8_values(VOCAB, HIDDEN);
    let scales: Vec<f32> = (0..VOCAB).map(|i| (i + 1) as f32 / 64.0).collect();
    let (w, shape) = ("lm_head.weight", [VOCAB, HIDDEN]);
    let of = |tensors: &[(&str, T)], cut: std::ops::Range<usize>, quantization| {
        let folder = Folder::new();
        folder.write("config.json", config(VOCAB, HIDDEN, "").as_bytes());
        folder.write("model.safetensors", &file_bytes(tensors, 0));
        let options = LoadOptions { quantization, ..LoadOptions::default() };
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        checkpoint.shard(cut, VOCAB, &options).unwrap().fingerprint().unwrap()
    };
    let changed = |values: &[f32], row: usize| {
        let mut values = values.to_vec();
        let at = row * values.len() / VOCAB;
        values[at] += 0.5;
        values
    };
    let bf16 = vec![(w, bf16s(&shape, &floats))];
    let own = of(&bf16, 0..64, None);
    for cut in [0..0, 64..128, 192..200, 0..200] {
        assert_eq!(of(&bf16, cut, None), own);
    }
    assert_eq!(of(&bf16, 0..64, Some(Quantization::W8a8)), own);
    let int8 =
        |scales: &[f32]| vec![(w, i8s(&shape, &ints)), ("lm_head.weight_scale", f32s(&[VOCAB], scales))];
    let biased = |bias: &[f32]| vec![(w, bf16s(&shape, &floats)), ("lm_head.bias", f32s(&[VOCAB], bias))];
    // Rows 0 and 199 are among the 64 rows that the fingerprint covers.
    let others = [
        of(&[(w, bf16s(&shape, &changed(&floats, 0)))], 64..128, None),
        of(&[(w, bf16s(&shape, &changed(&floats, 199)))], 64..128, None),
        of(&[(w, f32s(&shape, &floats))], 64..128, None),
        of(&int8(&scales), 64..128, None),
        of(&int8(&changed(&scales, 199)), 64..128, None),
        of(&biased(&scales), 64..128, None),
        of(&biased(&changed(&scales, 0)), 64..128, None),
        own,
    ];
    let different: std::collections::HashSet<u64> = others.into_iter().collect();
    assert_eq!(different.len(), others.len(), "{others:x?}");
}
