//! Checkpoints as files on disk: every format against a naive decoding, every refusal with its message.

use half::{bf16, f16};
use lmhead::config::{HeadConfig, Quantization, Settings};
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::layout::{HeadGroup, shard_range};
use lmhead::quantize::quantize_row;
use lmhead::weights::{Checkpoint, HeadShard, LoadOptions, Matrix, SafetensorsFile, StoredDtype};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

// ---------------------------------------------------------------------------------------------- writing files

/// A tensor to be written: dtype as the format spells it, shape, bytes.
#[derive(Clone)]
struct T(&'static str, Vec<usize>, Vec<u8>);

fn f32s(shape: &[usize], values: &[f32]) -> T {
    T("F32", shape.into(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn f16s(shape: &[usize], values: &[f32]) -> T {
    T("F16", shape.into(), values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect())
}

fn bf16s(shape: &[usize], values: &[f32]) -> T {
    T("BF16", shape.into(), values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect())
}

fn i8s(shape: &[usize], values: &[i8]) -> T {
    T("I8", shape.into(), values.iter().map(|v| *v as u8).collect())
}

fn i32s(shape: &[usize], values: &[i32]) -> T {
    T("I32", shape.into(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

fn i64s(shape: &[usize], values: &[i64]) -> T {
    T("I64", shape.into(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// A tensor whose bytes do not matter.
fn blank(dtype: &'static str, shape: &[usize], bytes: usize) -> T {
    T(dtype, shape.into(), vec![0; bytes])
}

/// A whole file. The header is padded so that the data starts at `8 n + skew`.
fn file_bytes(tensors: &[(&str, T)], skew: usize) -> Vec<u8> {
    let mut entries = vec![r#""__metadata__":{"format":"pt"}"#.to_string()];
    let mut data = Vec::new();
    for (name, T(dtype, shape, bytes)) in tensors {
        let start = data.len();
        data.extend(bytes);
        let end = data.len();
        entries.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
        ));
    }
    raw_file(&format!("{{{}}}", entries.join(",")), &data, skew)
}

fn raw_file(header: &str, data: &[u8], skew: usize) -> Vec<u8> {
    let mut header = header.as_bytes().to_vec();
    while header.len() % 8 != skew {
        header.push(b' ');
    }
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

/// A folder that goes when the test ends.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    /// A model folder: `config.json` and `model.safetensors`.
    fn model(config: &str, tensors: &[(&str, T)]) -> Self {
        let folder = Folder::new();
        folder.write("config.json", config.as_bytes());
        folder.write("model.safetensors", &file_bytes(tensors, 0));
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn open(&self) -> Result<Checkpoint, Error> {
        Checkpoint::open(self.path())
    }
}

// ---------------------------------------------------------------------------------------------- naive decoding

/// `[rows][columns]` of made-up values that every float type of the tests holds exactly.
fn exact_values(rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| ((i * 37 + i / 7) % 255) as f32 / 16.0 - 7.75).collect()
}

fn int8_values(rows: usize, columns: usize) -> Vec<i8> {
    (0..rows * columns).map(|i| (i * 91 + i / 5) as u8 as i8).collect()
}

/// The reference packing: value + 128 in bits 8 i to 8 i + 7 of each word, i ascending.
fn pack(values: &[i8], columns: usize) -> Vec<i32> {
    let mut words = Vec::new();
    for row in values.chunks(columns) {
        for four in row.chunks(4) {
            let word =
                four.iter().enumerate().fold(0u32, |w, (i, v)| w | ((i32::from(*v) + 128) as u32) << (8 * i));
            words.push(word as i32);
        }
    }
    words
}

/// Weights of a shard as f32, scales not applied.
fn elements(shard: &HeadShard) -> Vec<f32> {
    match shard.matrix() {
        Matrix::F32(s) => s.to_vec(),
        Matrix::F16(s) => s.iter().map(|v| v.to_f32()).collect(),
        Matrix::Bf16(s) => s.iter().map(|v| v.to_f32()).collect(),
        Matrix::I8 { values, .. } => values.iter().map(|v| f32::from(*v)).collect(),
    }
}

fn scales(shard: &HeadShard) -> &[f32] {
    match shard.matrix() {
        Matrix::I8 { scales, .. } => scales,
        _ => &[],
    }
}

fn is_mapped(shard: &HeadShard) -> bool {
    match shard.matrix() {
        Matrix::F32(s) => s.is_mapped(),
        Matrix::F16(s) => s.is_mapped(),
        Matrix::Bf16(s) => s.is_mapped(),
        Matrix::I8 { values, .. } => values.is_mapped(),
    }
}

fn asked(quantization: Quantization) -> LoadOptions<'static> {
    LoadOptions { quantization: Some(quantization), ..LoadOptions::default() }
}

fn config(vocab: usize, hidden: usize, more: &str) -> String {
    format!(r#"{{"vocab_size": {vocab}, "hidden_size": {hidden}{more}}}"#)
}

// ---------------------------------------------------------------------------------------------- happy paths

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
                                assert!(is_mapped(&shard), "{dtype} at {skew}");
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
    // missing.safetensors holds nothing of the head, so that it is missing does not matter.
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
    // From the file alone, the sizes are the tensor's.
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

// ---------------------------------------------------------------------------------------------- own bytes only

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

// ---------------------------------------------------------------------------------------------- tied embeddings

#[test]
fn tied_embeddings_in_every_combination() {
    let (head, embedding) = (f32s(&[2, 1], &[1.0, 2.0]), f32s(&[2, 1], &[3.0, 4.0]));
    let (h, e) = ("lm_head.weight", "model.embed_tokens.weight");
    let other_e = "model.language_model.embed_tokens.weight";
    let both = vec![(h, head.clone()), (e, embedding.clone())];
    let same = vec![(h, embedding.clone()), (e, embedding.clone())];
    let narrower = vec![(h, bf16s(&[2, 1], &[3.0, 4.0])), (e, embedding.clone())];
    let (only_head, only_embedding) = (vec![(h, head.clone())], vec![(e, embedding.clone())]);
    let only_other = vec![(other_e, embedding.clone())];
    let two_others = vec![(other_e, embedding.clone()), ("draft.embed_tokens.weight", embedding.clone())];
    let lookalike = vec![("model.xembed_tokens.weight", embedding.clone())];
    let differs = "differs from model.embed_tokens.weight; the embedding is used";
    // (tensors, config.json's word, settings' word) -> the tensor used and how many warnings, or the error's words
    type Outcome = Result<(&'static str, Option<&'static str>), &'static str>;
    let table: Vec<(&[(&str, T)], Option<bool>, Option<bool>, Outcome)> = vec![
        (&both, None, None, Ok((h, None))),
        (&both, Some(false), None, Ok((h, None))),
        (&both, Some(true), None, Ok((e, Some(differs)))),
        (&both, Some(true), Some(false), Ok((h, None))),
        (&both, Some(false), Some(true), Ok((e, Some(differs)))),
        (&narrower, Some(true), None, Ok((e, Some(differs)))),
        (&same, Some(true), None, Ok((e, None))),
        (&same, None, None, Ok((h, None))),
        (&only_head, None, None, Ok((h, None))),
        (
            &only_head,
            Some(true),
            None,
            Ok((h, Some("no embed_tokens.weight is stored; lm_head.weight is used"))),
        ),
        (&only_embedding, None, None, Ok((e, None))),
        (&only_embedding, Some(true), None, Ok((e, None))),
        (&only_embedding, Some(false), Some(true), Ok((e, None))),
        (
            &only_embedding,
            Some(false),
            None,
            Err(
                "tensor lm_head.weight: wanted a head, as tie_word_embeddings is false, got model.embed_tokens.weight;",
            ),
        ),
        (&only_other, None, None, Ok((other_e, None))),
        (
            &two_others,
            None,
            None,
            Err("got draft.embed_tokens.weight, model.language_model.embed_tokens.weight;"),
        ),
        (
            &lookalike,
            None,
            None,
            Err("wanted a head, or an embedding to use as one, got model.xembed_tokens.weight;"),
        ),
        (
            &lookalike,
            Some(true),
            None,
            Err("wanted the embedding (tie_word_embeddings is true) or a head, got"),
        ),
    ];
    for (i, (tensors, model, settings, want)) in table.into_iter().enumerate() {
        let word = model.map_or(String::new(), |m| format!(r#", "tie_word_embeddings": {m}"#));
        let folder = Folder::model(&config(2, 1, &word), tensors);
        let settings = Settings { tie_word_embeddings: settings, ..Settings::default() };
        match (Checkpoint::open_with(folder.path(), &settings), want) {
            (Ok(checkpoint), Ok((name, warning))) => {
                assert_eq!(checkpoint.tensor_name(), name, "case {i}");
                let shard = checkpoint.shard(0..2, 2, &LoadOptions::default()).unwrap();
                let stored = tensors.iter().find(|(n, _)| *n == name).unwrap();
                assert_eq!(elements(&shard), SafetensorsValues::of(&stored.1), "case {i}");
                let warnings = checkpoint.warnings();
                assert_eq!(warnings.len(), usize::from(warning.is_some()), "case {i}: {warnings:?}");
                assert!(warnings.iter().all(|w| w.contains(warning.unwrap())), "case {i}: {warnings:?}");
            }
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "case {i}: {error}"),
            (got, want) => panic!("case {i}: wanted {want:?}, got {got:?}"),
        }
    }
}

struct SafetensorsValues;

impl SafetensorsValues {
    fn of(tensor: &T) -> Vec<f32> {
        let dtype = if tensor.0 == "F32" { DType::F32 } else { DType::Bf16 };
        (0..tensor.2.len() / dtype.size()).map(|i| dtype.read(&tensor.2, i)).collect()
    }
}

#[test]
fn a_tied_head_uses_the_bias_of_the_head() {
    let folder = Folder::model(
        &config(2, 1, ""),
        &[
            ("model.embed_tokens.weight", f32s(&[2, 1], &[3.0, 4.0])),
            ("lm_head.bias", f32s(&[2], &[5.0, 6.0])),
        ],
    );
    let shard = folder.open().unwrap().shard(1..2, 2, &LoadOptions::default()).unwrap();
    assert_eq!(shard.bias(), Some(&[6.0][..]));
}

// ---------------------------------------------------------------------------------------------- int8: what config.json says

#[test]
fn a_stored_int8_head_is_used_as_config_json_says() {
    let inputs = |inputs: &str| {
        format!(
            r#", "quantization_config": {{"quant_method": "compressed-tensors", "format": "int-quantized", "ignore": [],
            "config_groups": {{"group_0": {{"targets": ["Linear"], "weights": {{"num_bits": 8, "type": "int",
            "symmetric": true, "strategy": "channel", "dynamic": false}}, "input_activations": {inputs}}}}}}}"#
        )
    };
    let dynamic =
        inputs(r#"{"num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true}"#);
    let none = inputs("null");
    let fixed = inputs(
        r#"{"num_bits": 8, "type": "int", "symmetric": true, "strategy": "tensor", "dynamic": false}"#,
    );
    use Quantization::{None as Plain, W8a8, W8a16};
    let other = "input_activations: wanted none, or symmetric int8 found at run time (dynamic true) per token, \
                 got num_bits 8, type int, symmetric true, dynamic false, strategy tensor; choose w8a8 or w8a16";
    let plain = "quantize: wanted w8a8 or w8a16, as lm_head.weight is stored as int8, got none; leave it out";
    for (more, stored, asked_for, want) in [
        ("", Some(W8a16), None, Ok(W8a16)),
        ("", Some(W8a16), Some(W8a8), Ok(W8a8)),
        ("", Some(W8a16), Some(Plain), Err(plain)),
        (dynamic.as_str(), Some(W8a8), None, Ok(W8a8)),
        (dynamic.as_str(), Some(W8a8), Some(W8a16), Ok(W8a16)),
        (dynamic.as_str(), Some(W8a8), Some(Plain), Err(plain)),
        (none.as_str(), Some(W8a16), None, Ok(W8a16)),
        (fixed.as_str(), None, None, Err(other)),
        (fixed.as_str(), None, Some(W8a16), Ok(W8a16)),
    ] {
        let folder = Folder::model(
            &config(2, 2, more),
            &[
                ("lm_head.weight", i8s(&[2, 2], &[1, -2, 3, -128])),
                ("lm_head.weight_scale", f32s(&[2], &[0.5, -0.25])),
            ],
        );
        let checkpoint = folder.open().unwrap();
        assert_eq!(checkpoint.stored_quantization(), stored);
        let options = LoadOptions { quantization: asked_for, ..LoadOptions::default() };
        let got = checkpoint.shard(0..2, 2, &options);
        match (&got, want) {
            (Ok(shard), Ok(want)) => {
                assert_eq!(shard.quantization(), want);
                assert_eq!(checkpoint.quantization(asked_for), Ok(want));
                assert_eq!(scales(shard), [0.5, -0.25]);
                assert_eq!(elements(shard), [1.0, -2.0, 3.0, -128.0]);
            }
            (Err(error), Err(words)) => assert!(error.to_string().contains(words), "{error}"),
            _ => panic!("{got:?}, wanted {want:?}"),
        }
    }
}

#[test]
fn a_float_head_in_a_quantised_model_is_a_float_head() {
    let more = r#", "quantization_config": {"quant_method": "compressed-tensors", "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}}}"#;
    let folder = Folder::model(&config(2, 2, more), &[("lm_head.weight", bf16s(&[2, 2], &[1.0; 4]))]);
    let checkpoint = folder.open().unwrap();
    assert_eq!(
        (checkpoint.stored_quantization(), checkpoint.quantization(None)),
        (None, Ok(Quantization::None))
    );
}

// ---------------------------------------------------------------------------------------------- refusals

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
    // config.json beyond its sizes, tensors, words of the message in their order
    let table: Vec<(&str, Vec<(&str, T)>, Vec<&str>)> = vec![
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
            vec![("lm_head.weight", blank("F8_E4M3", &[3, 2], 6)), s()],
            vec!["got F8_E4M3 [3, 2]", "FP8 heads are not supported"],
        ),
        (
            "",
            vec![("lm_head.weight", blank("F8_E5M2", &[3, 2], 6))],
            vec!["got F8_E5M2 [3, 2]", "FP8 heads are not supported"],
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
            vec![p(), s(), shape(3, 5)],
            vec![
                "lm_head.weight_packed",
                "wanted [3, 2], 8 bits for each of 5 weights",
                "got I32 [3, 1]",
                "only 8-bit packed heads",
            ],
        ),
        ("", vec![p(), s(), shape(3, 0)], vec!["lm_head.weight_shape", "got [3, 0]"]),
        ("", vec![p(), s(), shape(-3, 2)], vec!["lm_head.weight_shape", "got [-3, 2]"]),
        ("", vec![p(), s(), shape(3, i64::MAX)], vec!["lm_head.weight_packed", "only 8-bit packed heads"]),
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
            vec![q(), s(), zero("lm_head.weight_zero_point")],
            vec!["lm_head.weight_zero_point", "zero points (asymmetric quantisation)"],
        ),
        (
            "",
            vec![p(), s(), shape(3, 2), zero("lm_head.weight_zero_point")],
            vec!["lm_head.weight_zero_point", "zero points"],
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
            vec![("lm_head.weight", blank("F8_E4M3", &[3, 2], 6)), zero("lm_head.weight_scale_inv")],
            vec!["lm_head.weight_scale_inv", "block-scaled FP8"],
        ),
        (
            "",
            vec![zero("lm_head.qweight"), zero("lm_head.qzeros"), zero("lm_head.scales")],
            vec!["lm_head.qweight", "GPTQ or AWQ"],
        ),
        (
            "",
            vec![zero("model.lm_head.qweight"), zero("model.lm_head.qzeros")],
            vec!["model.lm_head.qweight", "GPTQ or AWQ"],
        ),
        (
            "",
            vec![p(), s(), shape(3, 2), zero("lm_head.weight_g_idx")],
            vec!["lm_head.weight_g_idx", "activation-ordered"],
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

/// Every word of the message, in this order.
fn assert_words(error: &Error, words: &[&str]) {
    let text = error.to_string();
    let mut rest = text.as_str();
    for word in words {
        let Some(at) = rest.find(word) else { panic!("no {word:?} (in this order) in\n{text}") };
        rest = &rest[at + word.len()..];
    }
    assert!(error.is_bad_input());
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
    let table: Vec<(Vec<(&str, Vec<u8>)>, Vec<&str>)> = vec![
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

// ---------------------------------------------------------------------------------------------- damaged files

#[test]
fn every_prefix_of_a_file_is_an_error_and_never_a_fault() {
    let whole = file_bytes(
        &[("lm_head.weight", bf16s(&[3, 2], &[1.0; 6])), ("lm_head.bias", f32s(&[3], &[0.0; 3]))],
        0,
    );
    let folder = Folder::new();
    for length in 0..whole.len() {
        let path = folder.write("cut.safetensors", &whole[..length]);
        let error = SafetensorsFile::open(&path).unwrap_err();
        assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
        assert!(Checkpoint::from_file(&path, "lm_head.weight").is_err());
    }
    let path = folder.write("whole.safetensors", &whole);
    Checkpoint::from_file(&path, "lm_head.weight").unwrap().shard(0..3, 3, &LoadOptions::default()).unwrap();
    let path = folder.write("long.safetensors", &[&whole[..], b"x"].concat());
    let error = SafetensorsFile::open(path).unwrap_err();
    assert_words(&error, &["wanted", "where the last tensor ends", "got", "bytes"]);
}

#[test]
fn every_refused_header_with_its_message() {
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
    };
    let u = usize::MAX;
    let data = [0u8; 8];
    let table: Vec<(Vec<u8>, Vec<&str>)> = vec![
        (vec![1, 0, 0], vec!["wanted at least 8 bytes of header length", "got 3 bytes"]),
        (
            u64::MAX.to_le_bytes().to_vec(),
            vec!["wanted a header of at most 100000000 bytes", "got 18446744073709551615 bytes"],
        ),
        (
            50_000_000u64.to_le_bytes().to_vec(),
            vec!["wanted a header of 50000000 bytes", "ends after 0 of them"],
        ),
        (0u64.to_le_bytes().to_vec(), vec!["not a safetensors file", "JSON object"]),
        (raw_file("[1, 2]", &data, 0), vec!["not a safetensors file", "JSON object"]),
        (raw_file("{\"w\": ", &data, 0), vec!["not a safetensors file", "EOF"]),
        (raw_file(&"[".repeat(100_000), &data, 0), vec!["not a safetensors file"]),
        (
            raw_file(&format!("{{\"w\":{}", "[".repeat(100_000)), &data, 0),
            vec!["not a safetensors file", "recursion"],
        ),
        (raw_file(r#"{"w": 3}"#, &data, 0), vec!["tensor w:", "wanted a dtype, a shape and data_offsets"]),
        (raw_file(&entry("F99", "[2]", "[0,8]"), &data, 0), vec!["tensor w:", "wanted a dtype", "F99"]),
        (raw_file(&entry("F32", "[-2]", "[0,8]"), &data, 0), vec!["tensor w:", "-2"]),
        (
            raw_file(&entry("F32", "[3]", "[0,8]"), &data, 0),
            vec!["tensor w:", "wanted 12 bytes for F32 [3], got data_offsets 0 to 8"],
        ),
        (
            raw_file(&entry("F32", "[2]", "[8,0]"), &data, 0),
            vec!["tensor w:", "wanted 8 bytes for F32 [2], got data_offsets 8 to 0"],
        ),
        (
            raw_file(&entry("F32", &format!("[{u},{u}]"), "[0,8]"), &data, 0),
            vec!["tensor w:", "wanted more than fits bytes"],
        ),
        (
            raw_file(&entry("F32", "[4]", "[0,16]"), &data, 0),
            vec!["tensor w:", "wanted bytes", "to", "of the file, got a file of", "bytes"],
        ),
        (
            raw_file(&entry("U8", &format!("[{}]", u / 8), &format!("[0,{}]", u / 8)), &data, 0),
            vec!["tensor w:", "got a file of"],
        ),
        (
            raw_file(&entry("F32", "[1]", "[4,8]"), &data, 0),
            vec!["wanted a header whose tensors lie one after the other", "w"],
        ),
        (raw_file("{}", &data, 0), vec!["bytes, where the last tensor ends, got"]),
    ];
    let folder = Folder::new();
    for (bytes, words) in table {
        let path = folder.write("bad.safetensors", &bytes);
        let error = SafetensorsFile::open(&path).expect_err(words[0]);
        assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
        assert_words(&error, &words);
    }
    assert_words(
        &SafetensorsFile::open(folder.path()).unwrap_err(),
        &["wanted a .safetensors file, got a folder"],
    );
    assert_words(&SafetensorsFile::open(folder.path().join("no")).unwrap_err(), &["no: cannot be read"]);
    #[cfg(unix)]
    assert_words(&SafetensorsFile::open("/dev/null").unwrap_err(), &["wanted a regular file"]);
}

/// Opens a file and, where that is possible, loads everything in it that could be a head.
fn exercise(path: &Path) {
    let Ok(file) = SafetensorsFile::open(path) else { return };
    for name in file.names() {
        let info = file.tensor(name).unwrap();
        assert_eq!(file.bytes(name).unwrap().len(), info.bytes.len());
        let _ = (file.float_matrix(name), file.indices(name));
        let Ok(checkpoint) = Checkpoint::from_file(path, name) else { continue };
        let rows = checkpoint.rows();
        for quantization in [Quantization::None, Quantization::W8a8] {
            let _ = checkpoint.shard(0..rows, rows, &asked(quantization));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn flipped_bytes_are_errors_or_other_numbers_never_faults(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        header_only in any::<bool>(),
    ) {
        let mut bytes = file_bytes(
            &[
                ("lm_head.weight", i8s(&[3, 2], &[1; 6])),
                ("lm_head.weight_scale", f32s(&[3], &[1.0; 3])),
                ("p.weight_packed", i32s(&[2, 2], &[7; 4])),
                ("p.weight_scale", bf16s(&[2, 1], &[1.0; 2])),
                ("p.weight_shape", i64s(&[2], &[2, 7])),
                ("e.weight", f16s(&[2, 3], &[1.0; 6])),
            ],
            0,
        );
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, byte) in flips {
            let at = at.index(if header_only { header } else { bytes.len() });
            bytes[at] = byte;
        }
        let folder = Folder::new();
        exercise(&folder.write("flipped.safetensors", &bytes));
    }

    #[test]
    fn junk_is_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = Folder::new();
        exercise(&folder.write("junk.safetensors", &bytes));
    }
}

// ---------------------------------------------------------------------------------------------- generic reading

#[test]
fn reading_tensors_of_any_file() {
    let folder = Folder::new();
    let path = folder.write(
        "hidden.safetensors",
        &file_bytes(
            &[
                ("hidden_states", bf16s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
                ("logits_indices", i32s(&[3], &[1, -1, 0])),
                ("long", i64s(&[2], &[i64::MAX, i64::MIN])),
                ("none", i64s(&[0], &[])),
                ("empty", f32s(&[0, 3], &[])),
            ],
            1,
        ),
    );
    let file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.path(), path);
    assert_eq!(
        file.names().collect::<Vec<_>>(),
        ["empty", "hidden_states", "logits_indices", "long", "none"]
    );
    assert!(file.contains("long") && !file.contains("short"));
    let info = file.tensor("hidden_states").unwrap();
    assert_eq!((info.dtype, info.shape.as_slice(), info.bytes.len()), (StoredDtype::BF16, &[2, 3][..], 12));
    let hidden = file.float_matrix("hidden_states").unwrap();
    assert_eq!((hidden.dtype, hidden.rows, hidden.columns), (DType::Bf16, 2, 3));
    assert_eq!(DType::Bf16.read(hidden.bytes, 5), 6.0);
    assert_eq!(file.float_matrix("empty").unwrap().rows, 0);
    assert_eq!(file.indices("logits_indices").unwrap(), [1, -1, 0]);
    assert_eq!(file.indices("long").unwrap(), [i64::MAX, i64::MIN]);
    assert_eq!(file.indices("none").unwrap(), [0i64; 0]);
    assert_words(
        &file.tensor("short").unwrap_err(),
        &["tensor short: wanted a tensor of this name, got empty, hidden_states,"],
    );
    assert_words(
        &file.float_matrix("long").unwrap_err(),
        &["tensor long: wanted f32, f16 or bf16 [rows, columns], got I64 [2]"],
    );
    assert_words(&file.indices("empty").unwrap_err(), &["wanted i64 or i32 [n], got F32 [0, 3]"]);
    assert_words(&file.indices("hidden_states").unwrap_err(), &["wanted i64 or i32 [n], got BF16 [2, 3]"]);
}

#[test]
fn files_of_the_safetensors_crate_are_read() {
    use safetensors::tensor::TensorView;
    let folder = Folder::new();
    let bytes: Vec<u8> = exact_values(70, 3).iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(StoredDtype::F32, vec![70, 3], &bytes).unwrap();
    let path = folder.path().join("head.safetensors");
    safetensors::serialize_to_file(BTreeMap::from([("output.weight", view)]), None, &path).unwrap();
    let checkpoint = Checkpoint::from_file(&path, "output.weight").unwrap();
    let shard = checkpoint.shard(0..70, 70, &LoadOptions::default()).unwrap();
    assert_eq!(elements(&shard), exact_values(70, 3));
    let error = Checkpoint::from_file(&path, "lm_head.weight").unwrap_err();
    assert_words(
        &error,
        &["head.safetensors: tensor lm_head.weight: wanted a tensor of this name, got output.weight"],
    );
}
