//! Small folders that `transformers` saved, one for each kind of head (`scripts/compare-models --samples`
//! writes them): the logits of each must be the model's own.

use crate::files::*;
use lmhead::config::{HeadConfig, Quantization, Settings};
use lmhead::weights::{Checkpoint, LoadOptions, SafetensorsFile};
use std::path::Path;

/// Largest error against the model's f32 logits, as a fraction of their root mean square.
const OF_RMS: f64 = 2e-5;

#[test]
fn the_logits_of_each_saved_model_are_its_own() {
    let folders = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/checkpoint/models");
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(&folders).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let truth = SafetensorsFile::open(folder.join("truth.safetensors")).unwrap();
        let (rows, logits) =
            (truth.float_matrix("hidden_states").unwrap(), truth.float_matrix("logits").unwrap());
        let checkpoint = Checkpoint::open(&folder).unwrap_or_else(|error| panic!("{name}: {error}"));
        let config =
            HeadConfig::resolve(&Settings::default(), &checkpoint.model_config(), Quantization::None);
        let config = config.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((config.vocab_size, config.hidden_size), (logits.columns, rows.columns), "{name}");
        let vocab = config.vocab_size;
        let shard = checkpoint.shard(0..vocab, vocab, &LoadOptions::default()).unwrap();
        let weights = elements(&shard);
        let read = |bytes: &[u8], i: usize| f64::from(logits.dtype.read(bytes, i));

        let (mut worst, mut squares) = (0.0f64, 0.0f64);
        for row in 0..rows.rows {
            let hidden: Vec<f64> =
                (0..rows.columns).map(|k| read(rows.bytes, row * rows.columns + k)).collect();
            let products = weights
                .chunks(rows.columns)
                .map(|w| w.iter().zip(&hidden).map(|(w, x)| f64::from(*w) * x).sum::<f64>() as f32);
            let mut got: Vec<f32> = products.collect();
            config.epilogue().apply(&mut got, shard.bias());
            for (id, got) in got.iter().enumerate() {
                let want = read(logits.bytes, row * vocab + id);
                worst = worst.max((f64::from(*got) - want).abs());
                squares += want * want;
            }
        }
        let rms = (squares / (rows.rows * vocab) as f64).sqrt();
        assert!(worst <= OF_RMS * rms, "{name}: {} of the logits' rms", worst / rms);
        seen.push(name);
    }
    assert!(seen.len() >= 12, "only {seen:?}");
}
