//! One file that a script under `tests/golden` computed: its tensors by name, and what it says of itself.

use lmhead::config::HeadConfig;
use lmhead::weights::{Checkpoint, SafetensorsFile};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub struct GoldenFile {
    pub name: String,
    path: PathBuf,
    pub tensors: SafetensorsFile,
    pub settings: HashMap<String, String>,
}

impl GoldenFile {
    /// Every file of this folder of `tests`, in the order of their names; there must be `at_least` so many.
    pub fn all(folder: &str, at_least: usize) -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
        paths.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
        paths.sort();
        assert!(paths.len() >= at_least, "only {} golden files", paths.len());
        paths.into_iter().map(Self::read).collect()
    }

    fn read(path: PathBuf) -> Self {
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let settings = header.metadata().clone().unwrap();
        let tensors = SafetensorsFile::open(&path).unwrap();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        GoldenFile { name, path, tensors, settings }
    }

    /// A setting that is a number.
    pub fn number(&self, key: &str) -> f64 {
        self.settings[key].parse().unwrap()
    }

    /// The configuration of a head of this file's sizes, and nothing else of it.
    pub fn sizes(&self) -> HeadConfig {
        HeadConfig::new(self.number("vocab_size") as usize, self.number("hidden_size") as usize)
    }

    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint::from_file(&self.path, "lm_head.weight").unwrap()
    }

    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains(name)
    }

    /// A tensor of any shape, flat, as it is stored.
    pub fn bytes(&self, name: &str) -> &[u8] {
        self.tensors.bytes(name).unwrap()
    }

    pub fn f32s(&self, name: &str) -> Vec<f32> {
        self.bytes(name).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    pub fn f64s(&self, name: &str) -> Vec<f64> {
        self.bytes(name).as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
    }

    pub fn i32s(&self, name: &str) -> Vec<i32> {
        self.bytes(name).as_chunks().0.iter().map(|b| i32::from_le_bytes(*b)).collect()
    }

    pub fn i64s(&self, name: &str) -> Vec<i64> {
        self.bytes(name).as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
    }
}
