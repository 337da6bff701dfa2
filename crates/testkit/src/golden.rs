//! The golden files that the scripts under `tests/golden` computed: tensors by name, settings, and the cases
//! of `make.py`.

use crate::{backend, each_rank};
use lmhead::backend::Backend;
use lmhead::config::{HeadConfig, Quantization};
use lmhead::head::LmHead;
use lmhead::layout::{HeadGroup, even_part};
use lmhead::result::{Answer, Request};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::weights::{Checkpoint, LoadOptions, SafetensorsFile};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub struct GoldenFile {
    pub name: String,
    path: PathBuf,
    pub tensors: SafetensorsFile,
    pub settings: HashMap<String, String>,
}

impl GoldenFile {
    /// All files of a folder in `tests`, ordered by name; there must be `at_least` that many.
    pub fn all(folder: &str, at_least: usize) -> Vec<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(folder);
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

    /// A configuration with this file's sizes, and defaults for all else.
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

const E: f64 = 1.0 / (1u64 << 24) as f64;

/// A case of `tests/golden/make.py`.
pub struct Golden {
    pub stored: GoldenFile,
    pub config: HeadConfig,
    pub quantization: Quantization,
    /// Rows of `hidden_states`.
    pub rows: usize,
}

/// All cases, ordered by name.
pub fn goldens() -> Vec<Golden> {
    GoldenFile::all("golden", 40).into_iter().map(Golden::of).collect()
}

impl Golden {
    fn of(stored: GoldenFile) -> Self {
        let mut config = stored.sizes();
        config.logit_scale = stored.number("logit_scale") as f32;
        config.final_logit_softcapping = stored.settings["final_logit_softcapping"].parse().ok();
        let hidden = stored.tensors.float_matrix("hidden_states").unwrap();
        config.hidden_dtype = Some(hidden.dtype);
        let quantization: Quantization = stored.settings["quantization"].parse().unwrap();
        config.quantization = quantization;
        Golden { rows: hidden.rows, config, quantization, stored }
    }

    pub fn k(&self) -> usize {
        self.stored.number("k") as usize
    }

    pub fn exact_raw(&self) -> bool {
        self.stored.settings["exact_raw"] == "true"
    }

    pub fn selection(&self) -> Option<Vec<usize>> {
        let indices =
            self.stored.has("logits_indices").then(|| self.stored.tensors.indices("logits_indices").unwrap());
        indices.map(|list| list.into_iter().map(|i| usize::try_from(i).unwrap()).collect())
    }

    pub fn outputs(&self) -> usize {
        self.selection().map_or(self.rows, |s| s.len())
    }

    /// The answers of `size` ranks to `request`, rank after rank: together they have all output rows in
    /// order.
    pub fn run(&self, size: usize, request: Request) -> Vec<Answer> {
        self.run_on(&backend(), size, request)
    }

    pub fn run_on(&self, backend: &Arc<dyn Backend>, size: usize, request: Request) -> Vec<Answer> {
        let checkpoint = self.stored.checkpoint();
        let options = LoadOptions { quantization: Some(self.quantization), ..LoadOptions::default() };
        let matrix = self.stored.tensors.float_matrix("hidden_states").unwrap();
        let selection: Vec<usize> = self.selection().unwrap_or_else(|| (0..self.rows).collect());
        let counts: Vec<usize> = (0..size).map(|m| even_part(selection.len(), size, m).len()).collect();
        each_rank(size, |me, exchange| {
            let group = HeadGroup::data_parallel(size, me).unwrap();
            let vocab = group.shard(self.config.vocab_size, me);
            let shard = Arc::new(checkpoint.shard(vocab, self.config.vocab_size, &options).unwrap());
            let own = &selection[even_part(selection.len(), size, me)];
            let rows = HiddenRows::new(matrix.bytes, matrix.dtype, matrix.rows, matrix.columns).unwrap();
            let rows = rows.select(own).unwrap();
            let mut head = LmHead::new(&self.config, group, shard, exchange, backend.clone()).unwrap();
            head.step(RowCounts::exact(&counts), &request).unwrap().run(rows).unwrap()
        })
    }

    /// The allowed error of each logit by the formula of `tests/golden/README.md`, before rounding to the
    /// output type.
    pub fn allowed(&self) -> Vec<f64> {
        self.allowed_by(1.0)
    }

    /// `Golden::allowed`, where errors of sums may be `factor` times as large.
    pub fn allowed_by(&self, factor: f64) -> Vec<f64> {
        let bound = self.stored.f64s("expected.bound");
        let expected = self.stored.f64s("expected.logits");
        let vocab = self.config.vocab_size;
        let bias = self.stored.has("lm_head.bias").then(|| self.stored.f32s("lm_head.bias"));
        let steps = bias.is_some() || self.config.final_logit_softcapping.is_some();
        let one = |i: usize| {
            let raw =
                if self.exact_raw() { 0.0 } else { factor * self.config.hidden_size as f64 * E * bound[i] };
            let bias = bias.as_ref().map_or(0.0, |b| f64::from(b[i % vocab]).abs());
            let steps = if steps { 2.0 * E * (bound[i] + bias) } else { 0.0 };
            f64::from(self.config.logit_scale).abs() * (raw + steps) + 8.0 * E * expected[i].abs()
        };
        (0..expected.len()).map(one).collect()
    }
}

/// The row statuses of all answers, in order.
pub fn statuses(answers: &[Answer]) -> Vec<u8> {
    answers.iter().flat_map(|a| a.row_status.iter().map(|s| *s as u8)).collect()
}
