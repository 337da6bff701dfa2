//! Bytes as a safetensors file, and as the `config.json` beside it: never a panic, whatever they are.
//!
//! Input: `[length of config.json, u16] [config.json] [model.safetensors]`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lmhead::config::{HeadConfig, Settings};
use lmhead::weights::{Checkpoint, LoadOptions, SafetensorsFile};
use std::cell::OnceCell;
use std::fs;
use std::path::Path;

thread_local! {
    static FOLDER: OnceCell<tempfile::TempDir> = const { OnceCell::new() };
}

fn try_it(folder: &Path, data: &[u8]) -> Option<()> {
    let (length, rest) = data.split_first_chunk::<2>()?;
    let (config, model) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    let path = folder.join("model.safetensors");
    fs::write(folder.join("config.json"), config).ok()?;
    fs::write(&path, model).ok()?;
    if let Ok(file) = SafetensorsFile::open(&path) {
        for name in file.names() {
            let _ = (file.tensor(name).map(|_| ()), file.float_matrix(name).map(|_| ()), file.indices(name));
        }
    }
    let checkpoint = Checkpoint::open(folder).ok()?;
    let quantization = checkpoint.quantization(None).ok()?;
    let settings = Settings::default();
    let config = HeadConfig::resolve(&settings, &checkpoint.model_config(), quantization).ok()?;
    let vocab = 0..config.vocab_size.min(checkpoint.rows());
    let options = LoadOptions { copy: data.len() % 2 == 0, threads: Some(1), ..LoadOptions::default() };
    let shard = checkpoint.shard(vocab.clone(), vocab.end, &options).ok()?;
    assert_eq!((shard.vocab(), shard.hidden_size()), (vocab, checkpoint.hidden_size()));
    Some(())
}

fuzz_target!(|data: &[u8]| {
    FOLDER.with(|folder| {
        let folder = folder.get_or_init(|| tempfile::tempdir().expect("a folder"));
        try_it(folder.path(), data);
    });
});
