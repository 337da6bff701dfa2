//! Test files written byte by byte, and a naive decoding of their tensors.

use half::{bf16, f16};
use lmhead::config::Quantization;
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::weights::{Checkpoint, HeadShard, LoadOptions, Matrix};
use std::path::{Path, PathBuf};

/// A tensor to be written: dtype as the format spells it, shape, bytes.
#[derive(Clone)]
pub struct T(pub &'static str, pub Vec<usize>, pub Vec<u8>);

pub fn f32s(shape: &[usize], values: &[f32]) -> T {
    T("F32", shape.into(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

pub fn f16s(shape: &[usize], values: &[f32]) -> T {
    T("F16", shape.into(), values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect())
}

pub fn bf16s(shape: &[usize], values: &[f32]) -> T {
    T("BF16", shape.into(), values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect())
}

pub fn i8s(shape: &[usize], values: &[i8]) -> T {
    T("I8", shape.into(), values.iter().map(|v| *v as u8).collect())
}

pub fn i32s(shape: &[usize], values: &[i32]) -> T {
    T("I32", shape.into(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

pub fn i64s(shape: &[usize], values: &[i64]) -> T {
    T("I64", shape.into(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// A tensor whose bytes do not matter.
pub fn blank(dtype: &'static str, shape: &[usize], bytes: usize) -> T {
    T(dtype, shape.into(), vec![0; bytes])
}

/// A whole file. The header is padded so that the data starts at `8 n + skew`.
pub fn file_bytes(tensors: &[(&str, T)], skew: usize) -> Vec<u8> {
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

pub fn raw_file(header: &str, data: &[u8], skew: usize) -> Vec<u8> {
    let mut header = header.as_bytes().to_vec();
    while header.len() % 8 != skew {
        header.push(b' ');
    }
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

/// A folder that is removed when dropped.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    /// A model folder: `config.json` and `model.safetensors`.
    pub fn model(config: &str, tensors: &[(&str, T)]) -> Self {
        let folder = Folder::new();
        folder.write("config.json", config.as_bytes());
        folder.write("model.safetensors", &file_bytes(tensors, 0));
        folder
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn open(&self) -> Result<Checkpoint, Error> {
        Checkpoint::open(self.path())
    }
}

/// `[rows][columns]` of values that every float type of the tests holds exactly.
pub fn exact_values(rows: usize, columns: usize) -> Vec<f32> {
    (0..rows * columns).map(|i| ((i * 37 + i / 7) % 255) as f32 / 16.0 - 7.75).collect()
}

pub fn int8_values(rows: usize, columns: usize) -> Vec<i8> {
    (0..rows * columns).map(|i| (i * 91 + i / 5) as u8 as i8).collect()
}

/// The reference packing: value + 128 in bits 8 i to 8 i + 7 of each word, i ascending.
pub fn pack(values: &[i8], columns: usize) -> Vec<i32> {
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
pub fn elements(shard: &HeadShard) -> Vec<f32> {
    match shard.matrix() {
        Matrix::F32(s) => s.to_vec(),
        Matrix::F16(s) => s.iter().map(|v| v.to_f32()).collect(),
        Matrix::Bf16(s) => s.iter().map(|v| v.to_f32()).collect(),
        Matrix::I8 { values, .. } => values.iter().map(|v| f32::from(*v)).collect(),
        Matrix::E4m3 { values, .. } => (0..values.len()).map(|i| DType::E4m3.read(values, i)).collect(),
    }
}

pub fn scales(shard: &HeadShard) -> &[f32] {
    shard.scales().unwrap_or_default()
}

pub fn asked(quantization: Quantization) -> LoadOptions<'static> {
    LoadOptions { quantization: Some(quantization), ..LoadOptions::default() }
}

pub fn config(vocab: usize, hidden: usize, more: &str) -> String {
    format!(r#"{{"vocab_size": {vocab}, "hidden_size": {hidden}{more}}}"#)
}

/// Asserts that the message has these words in this order.
pub fn assert_words(error: &Error, words: &[&str]) {
    let text = error.to_string();
    let mut rest = text.as_str();
    for word in words {
        let Some(at) = rest.find(word) else { panic!("no {word:?} (in this order) in\n{text}") };
        rest = &rest[at + word.len()..];
    }
    assert!(error.is_bad_input());
}
