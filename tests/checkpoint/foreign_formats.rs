//! Heads in the formats of other packages, on files that those packages wrote (`scripts/compare-formats
//! --samples`): the logits of each must be those of its own dequantisation.

use crate::files::*;
use lmhead::config::{HeadConfig, Quantization, Settings};
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::layout::shard_range;
use lmhead::quantize::quantize_row;
use lmhead::weights::{Checkpoint, HeadShard, LoadOptions, SafetensorsFile};
use std::path::{Path, PathBuf};

/// Largest error of f32 sums, as a fraction of the logits' root mean square.
const OF_RMS: f64 = 2e-5;

/// Name, type of the loaded weights, and their description in reports.
const SAMPLES: [(&str, DType, &str); 15] = [
    ("fp8_rows", DType::E4m3, "FP8 E4M3 with a scale per row"),
    ("fp8_tensor", DType::E4m3, "FP8 E4M3 with one scale"),
    ("fp8_blocks", DType::Bf16, "FP8 E4M3 with a scale for each block of 128 x 128"),
    ("nvfp4", DType::Bf16, "NVFP4"),
    ("nvfp4_packed", DType::Bf16, "NVFP4"),
    ("packed_4", DType::Bf16, "4 bits with a scale for each group of 32"),
    ("packed_4_zeros", DType::Bf16, "4 bits with a scale and a zero point for each group of 32"),
    ("packed_8", DType::Bf16, "8 bits with a scale for each group of 32"),
    ("gptq", DType::Bf16, "GPTQ, 4 bits in 2 groups"),
    ("gptq_zeros", DType::Bf16, "GPTQ, 4 bits in 2 groups"),
    ("gptq_8", DType::Bf16, "GPTQ, 8 bits in 2 groups"),
    ("q8_0", DType::Bf16, "GGUF Q8_0"),
    ("q6_k", DType::Bf16, "GGUF Q6_K"),
    ("gguf_f16", DType::F16, ""),
    ("gguf_bf16", DType::Bf16, ""),
];

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoint/formats").join(name)
}

/// The folder, or the GGUF file in it.
fn model(name: &str) -> PathBuf {
    let file = sample(name).join("model.gguf");
    if file.exists() { file } else { sample(name) }
}

/// Weights times their scales.
fn weights(shard: &HeadShard) -> Vec<f64> {
    let wide = elements(shard).into_iter().map(f64::from);
    let hidden = shard.hidden_size();
    match shard.scales() {
        Some(scales) => wide.enumerate().map(|(i, w)| w * f64::from(scales[i / hidden])).collect(),
        None => wide.collect(),
    }
}

#[test]
fn the_logits_of_each_format_are_those_of_its_own_package() {
    for (name, dtype, storage) in SAMPLES {
        let truth = SafetensorsFile::open(sample(name).join("truth.safetensors")).unwrap();
        let read = |tensor: &str| {
            let matrix = truth.float_matrix(tensor).unwrap();
            let values =
                (0..matrix.rows * matrix.columns).map(|i| f64::from(matrix.dtype.read(matrix.bytes, i)));
            (values.collect::<Vec<f64>>(), matrix.columns)
        };
        let ((rows, hidden), (logits, vocab)) = (read("hidden_states"), read("logits"));
        let checkpoint = Checkpoint::open(model(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let quantization = checkpoint.quantization(None).unwrap();
        let config = HeadConfig::resolve(&Settings::default(), &checkpoint.model_config(), quantization);
        let config = config.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((config.vocab_size, config.hidden_size), (vocab, hidden), "{name}");
        let rms = (logits.iter().map(|l| l * l).sum::<f64>() / logits.len() as f64).sqrt();
        for head_dtype in [None, Some(DType::F32)] {
            let options = LoadOptions { head_dtype, ..LoadOptions::default() };
            if head_dtype.is_some() && checkpoint.weights_dtype(head_dtype, quantization).is_err() {
                assert_eq!(dtype, DType::E4m3, "{name}");
                continue;
            }
            let shard = checkpoint.shard(0..vocab, vocab, &options).unwrap();
            assert_eq!(shard.matrix().dtype(), head_dtype.unwrap_or(dtype), "{name}");
            let said = checkpoint.storage(&options).unwrap_or_default();
            assert!(said.starts_with(storage), "{name}: {said}");
            let exact =
                shard.matrix().dtype() != DType::Bf16 || name.starts_with("nvfp4") || name == "gguf_bf16";
            assert_eq!(exact, !said.contains("moved a weight"), "{name}: {said}");
            let weights = weights(&shard);
            for (row, x) in rows.chunks(hidden).enumerate() {
                for (id, w) in weights.chunks(hidden).enumerate() {
                    let (want, got) =
                        (logits[row * vocab + id], w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>());
                    let size: f64 = w.iter().zip(x).map(|(w, x)| (w * x).abs()).sum();
                    // Rounding to bf16 changes a weight by at most half a unit in its last place.
                    let rounding = if exact { 0.0 } else { size * 2f64.powi(-8) };
                    let allowed = OF_RMS * rms + rounding;
                    assert!(
                        (got - want).abs() <= allowed,
                        "{name}: row {row}, id {id}: {got}, wanted {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn shards_are_parts_of_the_whole() {
    for (name, ..) in SAMPLES {
        let checkpoint = Checkpoint::open(model(name)).unwrap();
        let vocab = checkpoint.rows();
        let whole = checkpoint.shard(0..vocab, vocab, &LoadOptions::default()).unwrap();
        let hidden = whole.hidden_size();
        for options in
            [LoadOptions::default(), LoadOptions { copy: true, threads: Some(2), ..LoadOptions::default() }]
        {
            // Vocabularies of other sizes are cut elsewhere, some within a word of packed zero points.
            for (of, shards) in [(vocab, 1), (vocab, 2), (vocab, 3)] {
                for index in 0..shards {
                    let range = shard_range(of, shards, index);
                    let part = checkpoint.shard(range.clone(), of, &options).unwrap();
                    assert_eq!(
                        elements(&part),
                        elements(&whole)[range.start * hidden..range.end * hidden],
                        "{name}"
                    );
                    let scales = whole.scales().map(|scales| &scales[range]);
                    assert_eq!(part.scales(), scales, "{name}");
                    assert_eq!(part.fingerprint(), whole.fingerprint(), "{name}");
                }
            }
            let odd = checkpoint.shard(3..vocab - 2, vocab, &options).unwrap();
            assert_eq!(elements(&odd), elements(&whole)[3 * hidden..(vocab - 2) * hidden], "{name}");
        }
    }
}

#[test]
fn widened_heads_can_be_quantised_at_load_and_fp8_stays() {
    for (name, dtype, _) in SAMPLES {
        let checkpoint = Checkpoint::open(model(name)).unwrap();
        let vocab = checkpoint.rows();
        if dtype == DType::E4m3 {
            for asked in [Quantization::None, Quantization::W8a8] {
                let error = checkpoint.quantization(Some(asked)).unwrap_err().to_string();
                assert!(
                    error.contains("wanted w8a16, as lm_head.weight is stored as FP8"),
                    "{name}: {error}"
                );
            }
            assert_eq!(checkpoint.quantization(Some(Quantization::W8a16)).unwrap(), Quantization::W8a16);
            continue;
        }
        let f32s = LoadOptions { head_dtype: Some(DType::F32), ..LoadOptions::default() };
        let wide = checkpoint.shard(0..vocab, vocab, &f32s).unwrap();
        let int8 = checkpoint.shard(0..vocab, vocab, &asked(Quantization::W8a8)).unwrap();
        let (hidden, scale) = (wide.hidden_size(), wide.scales().map_or(1.0, |scales| scales[0]));
        for (row, weights) in elements(&wide).chunks(hidden).enumerate() {
            let weights: Vec<f32> = weights.iter().map(|w| w * scale).collect();
            let mut q = vec![0i8; hidden];
            assert_eq!(quantize_row(&weights, &mut q), scales(&int8)[row], "{name}");
            let q: Vec<f32> = q.into_iter().map(f32::from).collect();
            assert_eq!(q, elements(&int8)[row * hidden..][..hidden], "{name}");
        }
    }
}

/// The error for a folder of three rows with these tensors and `more` in config.json.
fn refusal(tensors: &[(&str, T)], hidden: usize, more: &str) -> Error {
    let folder = Folder::model(&config(3, hidden, more), tensors);
    let shard = folder.open().and_then(|c| c.shard(0..3, 3, &LoadOptions::default()));
    let names: Vec<&str> = tensors.iter().map(|(name, _)| *name).collect();
    shard.expect_err(&format!("{names:?}"))
}

#[test]
fn every_refused_head_with_its_message() {
    let fp8 = |rows: usize, hidden: usize, code: u8| {
        ("lm_head.weight", T("F8_E4M3", vec![rows, hidden], vec![code; rows * hidden]))
    };
    let scale =
        |shape: &[usize], v: f32| ("lm_head.weight_scale", f32s(shape, &vec![v; shape.iter().product()]));
    let inverse =
        |shape: &[usize], v: f32| ("lm_head.weight_scale_inv", f32s(shape, &vec![v; shape.iter().product()]));
    let fp4 = || ("lm_head.weight", blank("U8", &[3, 16], 48));
    let fp4_scale = |shape: [usize; 2], code: u8| {
        ("lm_head.weight_scale", T("F8_E4M3", shape.to_vec(), vec![code; shape[0] * shape[1]]))
    };
    let global = |v: f32| ("lm_head.weight_scale_2", f32s(&[], &[v]));
    let packed = |words: usize| ("lm_head.weight_packed", i32s(&[3, words], &vec![0; 3 * words]));
    let shape = |k: i64| ("lm_head.weight_shape", i64s(&[2], &[3, k]));
    let q = |name, shape: &[usize]| (name, i32s(shape, &vec![0; shape.iter().product()]));
    let s = |shape: &[usize], v: f32| ("lm_head.scales", f16s(shape, &vec![v; shape.iter().product()]));
    type Case<'a> = (Vec<(&'a str, T)>, usize, Vec<&'a str>);
    let table: Vec<Case> = vec![
        (
            vec![fp8(3, 2, 0)],
            2,
            vec!["lm_head.weight_scale", "wanted float scales", "got an FP8 weight without it"],
        ),
        (
            vec![fp8(3, 2, 0), scale(&[4], 1.0)],
            2,
            vec!["lm_head.weight_scale", "[3] or [3, 1]", "got F32 [4]"],
        ),
        (
            vec![fp8(3, 2, 0), scale(&[1, 2], 1.0)],
            2,
            vec!["wanted [1, 1] scales of blocks of 128 x 128", "got F32 [1, 2]"],
        ),
        (vec![fp8(3, 2, 0), inverse(&[2, 1], 1.0)], 2, vec!["lm_head.weight_scale_inv", "got F32 [2, 1]"]),
        (
            vec![fp8(3, 2, 0), ("lm_head.weight_scale", i8s(&[3], &[1; 3]))],
            2,
            vec!["got I8 [3]", "scales as floats"],
        ),
        (
            vec![fp8(3, 2, 0), scale(&[3], 1.0), inverse(&[3], 1.0)],
            2,
            vec!["wanted either lm_head.weight_scale or", "both"],
        ),
        (
            vec![fp8(3, 2, 0), scale(&[3, 1], f32::NAN)],
            2,
            vec!["lm_head.weight_scale", "finite scales, got NaN at [0, 0]"],
        ),
        (
            vec![fp8(3, 2, 0), scale(&[1], f32::INFINITY)],
            2,
            vec!["lm_head.weight_scale", "finite scales, got inf"],
        ),
        (
            vec![fp8(3, 130, 0), inverse(&[1, 2], f32::NEG_INFINITY)],
            130,
            vec!["lm_head.weight_scale_inv", "finite scales, got -inf at [0, 0]"],
        ),
        (
            vec![fp8(3, 130, 0x7f), inverse(&[1, 2], 1.0)],
            130,
            vec!["lm_head.weight", "finite weights, got NaN at vocabulary row 0, column 0"],
        ),
        (
            vec![fp8(3, 130, 0x7e), inverse(&[1, 2], 3e38)],
            130,
            vec!["lm_head.weight", "finite weights, got inf"],
        ),
        (
            vec![fp8(3, 2, 0), scale(&[3], 1.0), ("lm_head.weight_zero_point", i8s(&[3], &[0, 1, 0]))],
            2,
            vec!["lm_head.weight_zero_point", "zero points"],
        ),
        (
            vec![fp8(3, 2, 0), scale(&[3], 1.0), ("lm_head.weight_x", i8s(&[1], &[0]))],
            2,
            vec!["lm_head.weight_x", "not read"],
        ),
        (vec![fp8(3, 0, 0), scale(&[3], 1.0)], 2, vec!["lm_head.weight", "got F8_E4M3 [3, 0]"]),
        // NVFP4
        (vec![fp4(), global(1.0)], 32, vec!["lm_head.weight_scale", "wanted F8_E4M3 [3, 2]", "without it"]),
        (
            vec![fp4(), fp4_scale([3, 1], 0x38), global(1.0)],
            32,
            vec!["wanted F8_E4M3 [3, 2]", "got F8_E4M3 [3, 1]"],
        ),
        (vec![fp4(), scale(&[3, 2], 1.0), global(1.0)], 32, vec!["wanted F8_E4M3 [3, 2]", "got F32 [3, 2]"]),
        (
            vec![fp4(), fp4_scale([3, 2], 0x7f), global(1.0)],
            32,
            vec!["lm_head.weight_scale", "finite scales, got NaN"],
        ),
        (
            vec![fp4(), fp4_scale([3, 2], 0x38), global(f32::NAN)],
            32,
            vec!["lm_head.weight_scale_2", "got NaN"],
        ),
        (
            vec![fp4(), fp4_scale([3, 2], 0x38), ("lm_head.weight_scale_2", f32s(&[3], &[1.0; 3]))],
            32,
            vec!["lm_head.weight_scale_2", "wanted one f32", "got F32 [3]"],
        ),
        (
            vec![
                ("lm_head.weight_packed", blank("U8", &[3, 16], 48)),
                fp4_scale([3, 2], 0x38),
                ("lm_head.weight_global_scale", f32s(&[1], &[0.0])),
            ],
            32,
            vec!["lm_head.weight_global_scale", "whose inverse is finite", "got 0"],
        ),
        (
            vec![fp8(3, 32, 0), fp4_scale([3, 2], 0), global(1.0)],
            32,
            vec!["two E2M1 codes to a byte", "got F8_E4M3"],
        ),
        (
            vec![fp4(), fp4_scale([3, 2], 0x38), global(1.0), ("lm_head.input_scale", f32s(&[], &[1.0]))],
            32,
            vec!["lm_head.input_scale", "static activation quantisation"],
        ),
        // packed
        (vec![packed(1), shape(8)], 8, vec!["lm_head.weight_scale", "a packed weight without it"]),
        (
            vec![packed(1), shape(8), scale(&[3, 3], 1.0)],
            8,
            vec!["wanted float [3, groups]", "got F32 [3, 3]"],
        ),
        (
            vec![packed(1), shape(8), scale(&[4, 2], 1.0)],
            8,
            vec!["wanted float [3, groups]", "got F32 [4, 2]"],
        ),
        (vec![packed(1), shape(8), scale(&[3, 2], f32::NAN)], 8, vec!["finite scales, got NaN at [0, 0]"]),
        (
            vec![packed(1), shape(8), scale(&[3, 2], 1.0), q("lm_head.weight_zero_point", &[2, 2])],
            8,
            vec![
                "lm_head.weight_zero_point",
                "wanted i32 [1, 2], 4 bits for each row and group",
                "got I32 [2, 2]",
            ],
        ),
        (
            vec![
                packed(1),
                shape(8),
                scale(&[3, 2], 1.0),
                ("lm_head.weight_g_idx", i32s(&[8], &[0, 1, 2, 0, 0, 0, 0, 0])),
            ],
            8,
            vec!["lm_head.weight_g_idx", "groups from 0 to 1", "got 2 at column 2"],
        ),
        (
            vec![packed(2), shape(20), scale(&[3, 2], 1.0)],
            20,
            vec!["lm_head.weight_packed", "only 4- and 8-bit"],
        ),
        // GPTQ: 8 columns, 3 rows; the zero points of three rows fill no whole word.
        (vec![q("lm_head.qweight", &[1, 3])], 8, vec!["lm_head.qzeros", "a GPTQ weight without it"]),
        (
            vec![q("lm_head.qweight", &[1, 3]), q("lm_head.qzeros", &[1, 1])],
            8,
            vec!["lm_head.scales", "without it"],
        ),
        (
            vec![q("lm_head.qweight", &[1, 3]), q("lm_head.qzeros", &[1, 1]), s(&[1, 3], 1.0)],
            8,
            vec!["lm_head.qzeros", "for 4 bits", "got I32 [1, 1]", "only 4 and 8 bits"],
        ),
        (
            vec![q("lm_head.qweight", &[8, 1]), q("lm_head.qzeros", &[1, 1]), s(&[1, 8], 1.0)],
            8,
            vec!["lm_head.qweight", "got an AWQ head", "AWQ heads are not supported"],
        ),
    ];
    for (tensors, hidden, words) in table {
        let error = refusal(&tensors, hidden, "");
        assert!(matches!(error, Error::Tensor { .. }), "{error}");
        assert_words(&error, &words);
    }
}

/// Seven bits are packed into as many words as eight: only the configuration tells them apart.
#[test]
fn packed_bits_that_are_stated_are_the_tensors() {
    let tensors = [
        ("lm_head.weight_packed", i32s(&[3, 2], &[0; 6])),
        ("lm_head.weight_shape", i64s(&[2], &[3, 8])),
        ("lm_head.weight_scale", f32s(&[3, 2], &[1.0; 6])),
    ];
    let bits = |n: u32| {
        format!(
            r#", "quantization_config": {{"config_groups": {{"g": {{"weights": {{"num_bits": {n}}}}}}}}}"#
        )
    };
    assert_words(&refusal(&tensors, 8, &bits(7)), &["lm_head.weight_packed", "wanted 8 bits", "got 7 bits"]);
    assert!(Folder::model(&config(3, 8, &bits(8)), &tensors).open().is_ok());
}

#[test]
fn gptq_scales_and_groups_are_checked() {
    let q = |name, shape: &[usize]| (name, i32s(shape, &vec![0; shape.iter().product()]));
    let of_config = |more: &str, scale: f32, groups: Option<Vec<i32>>| {
        let mut tensors = vec![
            q("lm_head.qweight", &[1, 8]),
            q("lm_head.qzeros", &[1, 1]),
            ("lm_head.scales", f16s(&[1, 8], &[scale; 8])),
        ];
        tensors.extend(groups.map(|g| ("lm_head.g_idx", i32s(&[g.len()], &g))));
        let folder = Folder::model(&config(8, 8, more), &tensors);
        folder.open().and_then(|c| c.shard(0..8, 8, &LoadOptions::default()))
    };
    let whole = |scale, groups| of_config(r#", "quantization_config": {"bits": 4}"#, scale, groups);
    assert!(whole(1.0, Some(vec![0; 8])).is_ok());
    for (more, got) in [
        ("", "got none"),
        (r#", "quantization_config": {"checkpoint_format": "marlin"}"#, "got checkpoint_format marlin"),
    ] {
        let refused = of_config(more, 1.0, None).unwrap_err();
        assert_words(&refused, &["lm_head.qzeros", "gptq or gptq_v2", got, "config.json"]);
    }
    assert_words(&whole(f32::NAN, None).unwrap_err(), &["lm_head.scales", "finite scales, got NaN"]);
    assert_words(
        &whole(1.0, Some(vec![1; 8])).unwrap_err(),
        &["lm_head.g_idx", "groups from 0 to 0", "got 1"],
    );
    assert_words(&whole(1.0, Some(vec![0; 7])).unwrap_err(), &["lm_head.g_idx", "i32 [8]", "got I32 [7]"]);
}

/// Hidden states are used as they are where the head's own program would quantise them, and a warning says
/// so.
#[test]
fn activations_that_stay_are_told_of() {
    let tensors = [
        ("lm_head.weight", T("F8_E4M3", vec![3, 2], vec![0x38; 6])),
        ("lm_head.weight_scale", f32s(&[1], &[0.5])),
        ("lm_head.weight_zero_point", T("F8_E4M3", vec![1], vec![0])),
    ];
    for (more, told) in [
        ("", false),
        (r#", "quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}"#, true),
        (r#", "quantization_config": {"config_groups": {"g": {"input_activations": null}}}"#, false),
        (
            r#", "quantization_config": {"config_groups": {"g": {"input_activations": {"num_bits": 8}}}}"#,
            true,
        ),
    ] {
        let checkpoint = Folder::model(&config(3, 2, more), &tensors).open().unwrap();
        let warnings = checkpoint.warnings();
        assert_eq!(
            warnings.iter().any(|w| w.contains("quantises the hidden states of lm_head")),
            told,
            "{warnings:?}"
        );
        let shard = checkpoint.shard(0..3, 3, &LoadOptions::default()).unwrap();
        assert_eq!((elements(&shard), scales(&shard)), (vec![1.0; 6], &[0.5f32; 3][..]));
    }
}

/// A GGUF file with this metadata and one tensor.
struct Gguf {
    version: u32,
    values: Vec<(&'static str, u32, Vec<u8>)>,
    name: &'static str,
    shape: Vec<u64>,
    kind: u32,
    data: Vec<u8>,
}

impl Gguf {
    fn plain() -> Self {
        let data = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        Gguf { version: 3, values: Vec::new(), name: "output.weight", shape: vec![2, 3], kind: 0, data }
    }

    fn bytes(&self) -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let mut bytes = [&b"GGUF"[..], &self.version.to_le_bytes(), &1u64.to_le_bytes()].concat();
        bytes.extend((self.values.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.values {
            bytes.extend([text(key), kind.to_le_bytes().to_vec(), value.clone()].concat());
        }
        bytes.extend(text(self.name));
        bytes.extend((self.shape.len() as u32).to_le_bytes());
        bytes.extend(self.shape.iter().flat_map(|n| n.to_le_bytes()));
        bytes.extend([&self.kind.to_le_bytes()[..], &0u64.to_le_bytes()].concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(&self.data);
        bytes
    }

    fn text(key: &'static str, value: &str) -> (&'static str, u32, Vec<u8>) {
        (key, 8, [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat())
    }
}

fn open_gguf(bytes: &[u8]) -> Result<Checkpoint, Error> {
    let folder = Folder::new();
    Checkpoint::open(folder.write("model.gguf", bytes))
}

#[test]
fn gguf_files_that_are_cut_off_or_damaged_are_refused() {
    let whole = Gguf::plain().bytes();
    let shard = open_gguf(&whole).unwrap().shard(0..3, 3, &LoadOptions::default()).unwrap();
    assert_eq!(elements(&shard), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    for length in 4..whole.len() {
        let error = open_gguf(&whole[..length]).unwrap_err().to_string();
        assert!(error.contains("model.gguf") && error.contains("wanted"), "{length}: {error}");
    }
    // Every byte of the header in turn: an error or an answer, never a panic.
    for at in 4..whole.len() - 24 {
        for value in [0, 1, 0x7f, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            let _ = open_gguf(&bytes)
                .and_then(|c| c.shard(0..c.rows().min(1), c.rows(), &LoadOptions::default()));
        }
    }
    let float = |v: f32| v.to_le_bytes().to_vec();
    let table = [
        (Gguf { version: 1, ..Gguf::plain() }, "wanted a GGUF file of version 2 or 3, got 1"),
        (Gguf { version: 3 << 24, ..Gguf::plain() }, "a big-endian file"),
        (Gguf { kind: 12, ..Gguf::plain() }, "output.weight: wanted F32, F16, BF16, Q8_0 or Q6_K, got Q4_K"),
        (Gguf { kind: 99, ..Gguf::plain() }, "got type 99 of ggml, which is not known"),
        (Gguf { kind: 8, ..Gguf::plain() }, "columns that are a multiple of 32 for Q8_0, got [3, 2]"),
        (Gguf { shape: vec![2, 4], ..Gguf::plain() }, "output.weight: wanted bytes"),
        (Gguf { shape: vec![u64::MAX, 4], ..Gguf::plain() }, "elements that can be counted"),
        (Gguf { name: "blk.0.weight", ..Gguf::plain() }, "wanted a tensor of this name, got blk.0.weight"),
        (Gguf { values: vec![("a", 77, vec![0; 8])], ..Gguf::plain() }, "a type from 0 to 12 for a, got 77"),
        (
            Gguf { values: vec![("general.alignment", 4, vec![0; 4])], ..Gguf::plain() },
            "wanted a general.alignment from 1 to 2^20, got Number(0.0)",
        ),
        (
            Gguf {
                kind: 8,
                shape: vec![32, 1],
                data: [vec![0, 0x7e], vec![1; 32]].concat(),
                ..Gguf::plain()
            },
            "finite weights, got NaN at vocabulary row 0, column 0",
        ),
    ];
    for (file, words) in table {
        let error = open_gguf(&file.bytes()).and_then(|c| c.shard(0..1, 1, &LoadOptions::default()));
        let error = error.expect_err(words).to_string();
        assert!(error.contains(words), "{error}, wanted {words}");
    }
    for (architecture, key, value, want) in [
        ("command-r", "command-r.logit_scale", 0.25, Ok((0.25, None))),
        ("granite", "granite.logit_scale", 8.0, Ok((0.125, None))),
        ("gemma2", "gemma2.final_logit_softcapping", 20.0, Ok((1.0, Some(20.0)))),
        ("gemma2", "gemma2.attn_logit_softcapping", 50.0, Ok((1.0, Some(30.0)))),
        ("llama", "llama.rope.freq_base", 50.0, Ok((1.0, None))),
        ("grok", "grok.logit_scale", 0.5, Err("grok.logit_scale: wanted a key whose meaning")),
        ("llama", "llama.output_multiplier", 2.0, Err("llama.output_multiplier: wanted a key whose meaning")),
    ] {
        let values = vec![Gguf::text("general.architecture", architecture), (key, 6, float(value))];
        let checkpoint = open_gguf(&Gguf { values, ..Gguf::plain() }.bytes()).unwrap();
        let config =
            HeadConfig::resolve(&Settings::default(), &checkpoint.model_config(), Quantization::None);
        match (config, want) {
            (Ok(config), Ok(want)) => {
                assert_eq!((config.logit_scale, config.final_logit_softcapping), want, "{key}")
            }
            (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{error}"),
            (config, _) => panic!("{key}: {config:?}"),
        }
    }
}

#[test]
fn the_head_of_a_gguf_file_is_found() {
    // The head of q6_k is its embedding, that of q8_0 a tensor of its own.
    for (name, tensor) in [("q6_k", "token_embd.weight"), ("q8_0", "output.weight")] {
        let path = model(name);
        for checkpoint in [
            Checkpoint::open(&path).unwrap(),
            Checkpoint::from_file(&path, "lm_head.weight").unwrap(),
            Checkpoint::from_file(&path, tensor).unwrap(),
            Checkpoint::open_tensor(&path, tensor, &Settings::default()).unwrap(),
        ] {
            assert_eq!((checkpoint.tensor_name(), checkpoint.path()), (tensor, &*path));
        }
        let error = Checkpoint::from_file(&path, "other.weight").unwrap_err();
        assert_words(&error, &["other.weight", "wanted a tensor of this name", tensor]);
    }
    let tied = Settings { tie_word_embeddings: Some(true), ..Settings::default() };
    let error = Checkpoint::open_with(model("q8_0"), &tied).unwrap_err();
    assert_words(&error, &["token_embd.weight", "wanted a tensor of this name"]);
    let narrow = Settings { hidden_size: Some(7), ..Settings::default() };
    assert_words(&Checkpoint::open_with(model("q8_0"), &narrow).unwrap_err(), &["wanted [vocabulary, 7]"]);
}
