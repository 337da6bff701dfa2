//! The golden files: inputs and expected outputs that `tests/golden/make.py` computed in exact arithmetic from formulas of its own.
//! Every case runs on one rank and on groups of 2 and 5, and is compared as `tests/golden/README.md` says.

mod common;

use common::{backend, each_rank};
use lmhead::backend::Backend;
use lmhead::config::{HeadConfig, Quantization};
use lmhead::dtype::DType;
use lmhead::head::LmHead;
use lmhead::layout::{HeadGroup, even_part};
use lmhead::quantize::quantize_row;
use lmhead::result::{Answer, Output, Request};
use lmhead::rows::{HiddenRows, RowCounts};
use lmhead::weights::{Checkpoint, LoadOptions, Matrix, SafetensorsFile};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const E: f64 = 1.0 / (1u64 << 24) as f64;

struct Golden {
    name: String,
    path: PathBuf,
    file: SafetensorsFile,
    settings: HashMap<String, String>,
    config: HeadConfig,
    quantization: Quantization,
    rows: usize,
}

fn goldens() -> Vec<Golden> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
    paths.sort();
    assert!(paths.len() >= 40, "only {} golden files", paths.len());
    paths.into_iter().map(Golden::read).collect()
}

impl Golden {
    fn read(path: PathBuf) -> Self {
        let bytes = std::fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let settings: HashMap<String, String> = header.metadata().clone().unwrap();
        let number = |key: &str| settings[key].parse::<f64>().unwrap();
        let mut config = HeadConfig::new(number("vocab_size") as usize, number("hidden_size") as usize);
        config.logit_scale = number("logit_scale") as f32;
        config.final_logit_softcapping = settings["final_logit_softcapping"].parse().ok();
        let file = SafetensorsFile::open(&path).unwrap();
        let hidden = file.float_matrix("hidden_states").unwrap();
        config.hidden_dtype = Some(hidden.dtype);
        let quantization: Quantization = settings["quantization"].parse().unwrap();
        config.quantization = quantization;
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        Golden { name, rows: hidden.rows, path, settings, config, quantization, file }
    }

    fn k(&self) -> usize {
        self.settings["k"].parse().unwrap()
    }

    fn exact_raw(&self) -> bool {
        self.settings["exact_raw"] == "true"
    }

    fn f64s(&self, name: &str) -> Vec<f64> {
        let bytes = self.file.bytes(name).unwrap();
        bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
    }

    fn f32s(&self, name: &str) -> Vec<f32> {
        let bytes = self.file.bytes(name).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn selection(&self) -> Option<Vec<usize>> {
        let indices =
            self.file.contains("logits_indices").then(|| self.file.indices("logits_indices").unwrap());
        indices.map(|list| list.into_iter().map(|i| usize::try_from(i).unwrap()).collect())
    }

    fn outputs(&self) -> usize {
        self.selection().map_or(self.rows, |s| s.len())
    }

    /// The answers of `size` ranks to `request`, one after the other: together all output rows in order.
    fn run(&self, size: usize, request: Request) -> Vec<Answer> {
        self.run_on(&backend(), size, request)
    }

    fn run_on(&self, backend: &Arc<dyn Backend>, size: usize, request: Request) -> Vec<Answer> {
        let checkpoint = Checkpoint::from_file(&self.path, "lm_head.weight").unwrap();
        let options = LoadOptions { quantization: Some(self.quantization), ..LoadOptions::default() };
        let matrix = self.file.float_matrix("hidden_states").unwrap();
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

    /// What each logit may be off, by the README's formula; before the output's rounding.
    fn allowed(&self) -> Vec<f64> {
        self.allowed_by(1.0)
    }

    /// The same where sums may be off by `factor` times as much.
    fn allowed_by(&self, factor: f64) -> Vec<f64> {
        let bound = self.f64s("expected.bound");
        let expected = self.f64s("expected.logits");
        let vocab = self.config.vocab_size;
        let bias = self.file.contains("lm_head.bias").then(|| self.f32s("lm_head.bias"));
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

fn statuses(answers: &[Answer]) -> Vec<u8> {
    answers.iter().flat_map(|a| a.row_status.iter().map(|s| *s as u8)).collect()
}

#[test]
fn logits_are_within_the_stated_error_and_exact_where_they_must_be() {
    for golden in goldens() {
        let (expected, allowed) = (golden.f64s("expected.logits"), golden.allowed());
        let status = golden.file.bytes("expected.row_status").unwrap();
        let plain = golden.config.logit_scale == 1.0
            && golden.config.final_logit_softcapping.is_none()
            && !golden.file.contains("lm_head.bias");
        for size in [1, 2, 5] {
            for dtype in [DType::F32, DType::Bf16, DType::F16] {
                let answers = golden.run(size, Request::logits(dtype));
                assert_eq!(statuses(&answers), status, "{} P {size}", golden.name);
                let got: Vec<f32> = answers.iter().flat_map(|a| a.output.logits_f32().unwrap()).collect();
                assert_eq!(got.len(), expected.len());
                for (i, (&got, &want)) in got.iter().zip(&expected).enumerate() {
                    let place =
                        || format!("{} P {size} {dtype} element {i}: {got}, expected {want}", golden.name);
                    if status[i / golden.config.vocab_size] != 0 {
                        // What IEEE arithmetic gives: NaN, or an infinity (which a softcap has capped).
                        let same = got.is_nan() == want.is_nan()
                            && (want.is_nan() || f64::from(got) == want || want.is_finite());
                        assert!(same, "{}", place());
                        continue;
                    }
                    let bits_are_known = golden.exact_raw() && plain && dtype == DType::F32;
                    assert!(!bits_are_known || got == want as f32, "{}", place());
                    let rounding =
                        if dtype == DType::F32 { 0.0 } else { dtype.half_ulp(want.abs() + allowed[i]) };
                    let beyond = dtype == DType::F16 && want.abs() >= 65504.0;
                    let error = (f64::from(got) - want).abs();
                    assert!(beyond || error <= allowed[i] + rounding, "{} allowed {}", place(), allowed[i]);
                }
            }
        }
    }
}

/// The kernels, on the emulated device: the same files, with the error that tensor cores are allowed.
#[cfg(feature = "emulated")]
#[test]
fn the_emulated_backend_is_within_the_stated_error() {
    use lmhead::backend::cpu::CpuBackend;
    use lmhead::backend::emulated::EmulatedDevice;
    use lmhead::plan::Precision;
    use lmhead::reference::Accuracy;
    let device: Arc<dyn Backend> =
        Arc::new(EmulatedDevice::new(1).backend(CpuBackend::new(Some(2)).unwrap()));
    let mut seen = 0;
    for golden in goldens() {
        let weights = match golden.quantization {
            Quantization::None => golden.file.float_matrix("lm_head.weight").unwrap().dtype,
            _ => DType::I8,
        };
        let hidden = golden.config.hidden_dtype.unwrap();
        // Heads without a kernel are refused, as tests/device shows.
        if Precision::of(weights, golden.quantization, hidden).is_err() {
            continue;
        }
        seen += 1;
        let allowed = golden.allowed_by(Accuracy::TensorCores.factor());
        let (expected, status) =
            (golden.f64s("expected.logits"), golden.file.bytes("expected.row_status").unwrap());
        for size in [1, 3] {
            let answers = golden.run_on(&device, size, Request::logits(DType::F32));
            assert_eq!(statuses(&answers), status, "{} P {size}", golden.name);
            let got: Vec<f32> = answers.iter().flat_map(|a| a.output.logits_f32().unwrap()).collect();
            for (i, (&got, &want)) in got.iter().zip(&expected).enumerate() {
                let good =
                    status[i / golden.config.vocab_size] != 0 || (f64::from(got) - want).abs() <= allowed[i];
                assert!(
                    good,
                    "{} P {size} element {i}: {got}, expected {want} within {}",
                    golden.name, allowed[i]
                );
            }
        }
    }
    assert!(seen > 10, "{seen} golden files");
}

#[test]
fn argmax_top_k_and_logsumexp_are_those_of_exact_arithmetic() {
    for golden in goldens() {
        let k = golden.k();
        let (ids, values) =
            (golden.file.indices_2d("expected.topk_ids"), golden.f64s("expected.topk_values"));
        let sums = golden.f64s("expected.logsumexp");
        let allowed = golden.allowed();
        let vocab = golden.config.vocab_size;
        for size in [1, 2, 5] {
            let answers = golden.run(size, Request::argmax());
            assert_eq!(
                statuses(&answers),
                golden.file.bytes("expected.row_status").unwrap(),
                "{}",
                golden.name
            );
            let mut argmax = Vec::new();
            for answer in &answers {
                let Output::Argmax { ids } = &answer.output else { panic!("not argmax") };
                argmax.extend_from_slice(ids);
            }
            assert_eq!(argmax, golden.file.indices("expected.argmax").unwrap(), "{} P {size}", golden.name);

            let answers = golden.run(size, Request::top_k(k));
            let (mut got_ids, mut got_values, mut got_sums) = (Vec::new(), Vec::new(), Vec::new());
            for answer in &answers {
                let Output::TopK { values, ids, logsumexp, .. } = &answer.output else { panic!("not top-k") };
                got_ids.extend_from_slice(ids);
                got_values.extend_from_slice(values);
                got_sums.extend_from_slice(logsumexp);
            }
            assert_eq!(got_ids, ids, "{} P {size}", golden.name);
            for row in 0..golden.outputs() {
                let row_allowed = allowed[row * vocab..(row + 1) * vocab].iter().copied().fold(0.0, f64::max);
                let close = |got: f32, want: f64, allowed: f64| {
                    (got.is_nan() && want.is_nan()) || (f64::from(got) - want).abs() <= allowed
                };
                for place in row * k..(row + 1) * k {
                    let (got, want) = (got_values[place], values[place]);
                    assert!(close(got, want, row_allowed), "{} row {row}: {got} {want}", golden.name);
                }
                let (got, want) = (got_sums[row], sums[row]);
                let limit = row_allowed + 1e-6 * want.abs().max(1.0);
                assert!(close(got, want, limit), "{} row {row}: logsumexp {got} {want}", golden.name);
            }
        }
    }
}

#[test]
fn quantised_rows_and_weights_are_those_of_the_rule() {
    let (mut rows_seen, mut weights_seen) = (0, 0);
    for golden in goldens() {
        let hidden = golden.config.hidden_size;
        if golden.quantization == Quantization::W8a8 {
            let matrix = golden.file.float_matrix("hidden_states").unwrap();
            let selection = golden.selection().unwrap_or_else(|| (0..golden.rows).collect());
            let (want, scales) = (
                golden.file.bytes("expected.activation_int8").unwrap(),
                golden.f32s("expected.activation_scale"),
            );
            for (row, &from) in selection.iter().enumerate() {
                let wide: Vec<f32> =
                    (0..hidden).map(|k| matrix.dtype.read(matrix.bytes, from * hidden + k)).collect();
                let mut q = vec![0i8; hidden];
                let scale = quantize_row(&wide, &mut q);
                assert!(scale.to_bits() == scales[row].to_bits() || (scale.is_nan() && scales[row].is_nan()));
                let same = q.iter().zip(&want[row * hidden..]).all(|(a, b)| *a == *b as i8);
                assert!(same || scale.is_nan(), "{} row {row}", golden.name);
                rows_seen += 1;
            }
        }
        if golden.file.contains("expected.weight_int8") {
            let checkpoint = Checkpoint::from_file(&golden.path, "lm_head.weight").unwrap();
            let options = LoadOptions { quantization: Some(golden.quantization), ..LoadOptions::default() };
            let vocab = golden.config.vocab_size;
            let shard = checkpoint.shard(0..vocab, vocab, &options).unwrap();
            let Matrix::I8 { values, scales } = shard.matrix() else { panic!("not int8") };
            let want: Vec<i8> =
                golden.file.bytes("expected.weight_int8").unwrap().iter().map(|b| *b as i8).collect();
            assert_eq!(values[..], want[..], "{}", golden.name);
            assert_eq!(scales, &golden.f32s("expected.weight_scale"), "{}", golden.name);
            weights_seen += 1;
        }
    }
    assert!(rows_seen > 10 && weights_seen > 1, "{rows_seen} rows, {weights_seen} heads");
}

trait Indices2d {
    fn indices_2d(&self, name: &str) -> Vec<i64>;
}

impl Indices2d for SafetensorsFile {
    /// An i64 tensor of any shape, flat.
    fn indices_2d(&self, name: &str) -> Vec<i64> {
        self.bytes(name).unwrap().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
    }
}
