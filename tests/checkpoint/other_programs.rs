//! Reading any tensor; files that other programs wrote.

use crate::files::*;
use lmhead::dtype::DType;
use lmhead::layout::shard_range;
use lmhead::weights::{Checkpoint, LoadOptions, SafetensorsFile, StoredDtype};
use std::collections::BTreeMap;
use std::path::PathBuf;

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

#[test]
fn words_that_compressed_tensors_packed() {
    // compressed-tensors 0.20, pack_to_int32(values, num_bits=8), for these values:
    let values: [i8; 15] = [-128, -127, -1, 0, 1, 127, 126, 2, -2, -128, 3, 5, -7, 11, -13];
    let words: [i32; 6] = [-2139160320, 129, 2122514175, 0, -1954970237, 115];
    assert_eq!(pack(&values, 5), words);
    let folder = Folder::model(
        &config(3, 5, ""),
        &[
            ("lm_head.weight_packed", i32s(&[3, 2], &words)),
            ("lm_head.weight_scale", bf16s(&[3, 1], &[1.0; 3])),
            ("lm_head.weight_shape", i64s(&[2], &[3, 5])),
        ],
    );
    let shard = folder.open().unwrap().shard(0..3, 3, &LoadOptions::default()).unwrap();
    assert_eq!(elements(&shard), values.map(f32::from));
    // One file opens both by the name of the unpacked weight and by that of the packed one.
    for name in ["lm_head.weight", "lm_head.weight_packed"] {
        let checkpoint = Checkpoint::from_file(folder.path().join("model.safetensors"), name).unwrap();
        assert_eq!((checkpoint.hidden_size(), checkpoint.dtype()), (5, DType::I8));
    }
}

/// For each folder `NAME` beside a `NAME.truth` in `$LMHEAD_FOLDERS`: the head, dequantised, equals the
/// tensor `truth`.
#[test]
#[ignore = "needs folders that transformers or compressed-tensors saved; set LMHEAD_FOLDERS"]
fn folders_that_other_programs_saved() {
    let base = PathBuf::from(std::env::var("LMHEAD_FOLDERS").expect("LMHEAD_FOLDERS is a folder of folders"));
    let mut seen = 0;
    for entry in std::fs::read_dir(&base).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "truth") {
            continue;
        }
        let file = SafetensorsFile::open(&path).unwrap();
        let truth = file.float_matrix("truth").unwrap();
        let checkpoint = Checkpoint::open(path.with_extension("")).unwrap();
        assert_eq!((checkpoint.rows(), checkpoint.hidden_size()), (truth.rows, truth.columns));
        for index in 0..3 {
            let range = shard_range(truth.rows, 3, index);
            let shard = checkpoint.shard(range.clone(), truth.rows, &LoadOptions::default()).unwrap();
            for (i, value) in elements(&shard).into_iter().enumerate() {
                let scale = scales(&shard).get(i / truth.columns).copied().unwrap_or(1.0);
                assert_eq!(value * scale, truth.dtype.read(truth.bytes, range.start * truth.columns + i));
            }
        }
        println!("{}: {} {}", path.display(), checkpoint.tensor_name(), checkpoint.dtype());
        assert!(checkpoint.warnings().is_empty());
        seen += 1;
    }
    assert!(seen > 0, "no NAME.truth in {}", base.display());
}
