//! A quantised head as a file: read back, it is the head quantised at load; whatever goes wrong is an error.

use crate::files::*;
use lmhead::config::{HeadConfig, Quantization, Settings};
use lmhead::dtype::DType;
use lmhead::error::Error;
use lmhead::layout::shard_range;
use lmhead::weights::{Checkpoint, LoadOptions, Matrix};
use proptest::prelude::*;
use std::io::{self, Cursor, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;

/// Name of the file in error messages; it is never created.
const NAMED: &str = "out.safetensors";

fn written(checkpoint: &Checkpoint, name: &str, vocab: usize) -> Result<Vec<u8>, Error> {
    let mut out = Cursor::new(Vec::new());
    checkpoint.write_int8(name, &plain(checkpoint, vocab), &mut out, Path::new(NAMED), None)?;
    Ok(out.into_inner())
}

/// The head's configuration without scale and softcap.
fn plain(checkpoint: &Checkpoint, vocab: usize) -> HeadConfig {
    HeadConfig::new(vocab, checkpoint.hidden_size())
}

fn on_threads<T: Send>(threads: usize, task: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(task)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_shard_of_the_file_is_the_shard_quantised_at_load(
        rows in 1usize..300, hidden in 1usize..40, kind in 0usize..3, biased in any::<bool>(),
        padding in 0usize..20,
        shards in 1usize..5, skew in 0usize..8, values in prop::collection::vec(-3.0f32..3.0, 64),
    ) {
        let vocab = rows.saturating_sub(padding).max(1);
        let floats: Vec<f32> = (0..rows * hidden).map(|i| values[(i * 7 + i / 64) % 64]).collect();
        let make = [f32s, f16s, bf16s][kind];
        let mut tensors = vec![("h.weight", make(&[rows, hidden], &floats))];
        if biased {
            tensors.push(("h.bias", make(&[rows], &floats[..rows])));
        }
        let folder = Folder::new();
        let source =
            Checkpoint::from_file(folder.write("source", &file_bytes(&tensors, skew)), "h.weight").unwrap();
        let bytes = written(&source, "other.weight", vocab).unwrap();
        let int8 = Checkpoint::from_file(folder.write("int8", &bytes), "other.weight").unwrap();
        prop_assert_eq!(
            (int8.rows(), int8.hidden_size(), int8.dtype(), int8.has_bias()),
            (vocab, hidden, DType::I8, biased)
        );
        for index in 0..shards {
            let range = shard_range(vocab, shards, index);
            let options = LoadOptions { quantization: Some(Quantization::W8a8), ..LoadOptions::default() };
            let a = source.shard(range.clone(), vocab, &options).unwrap();
            let b = int8.shard(range, vocab, &options).unwrap();
            prop_assert_eq!(a.bias(), b.bias());
            let (a, b) = (a.matrix(), b.matrix());
            let (Matrix::I8 { values: a, scales: s }, Matrix::I8 { values: b, scales: t }) = (a, b) else {
                panic!("both are int8")
            };
            prop_assert_eq!((&a[..], s), (&b[..], t));
        }
    }
}

/// Several tasks on several threads: the error names the first bad row, whatever the threads.
#[test]
fn the_first_row_that_is_not_finite_is_named() {
    let (rows, hidden) = (300, 20_001);
    let mut floats = exact_values(rows, hidden);
    for row in [299, 130, 131] {
        floats[row * hidden + 5] = f32::NAN;
    }
    let folder = Folder::new();
    let path = folder.write("source", &file_bytes(&[("w", f32s(&[rows, hidden], &floats))], 0));
    let source = Checkpoint::from_file(path, "w").unwrap();
    let whole: Vec<Vec<u8>> = [1, 3].map(|n| on_threads(n, || written(&source, "w", 130)).unwrap()).into();
    assert!(whole[0] == whole[1]);
    for threads in [1, 2, 4] {
        for (vocab, row) in [(300, 130), (131, 130), (300, 130)] {
            let said = on_threads(threads, || written(&source, "w", vocab)).unwrap_err().to_string();
            assert!(said.contains(&format!("got NaN at vocabulary row {row}, column 5")), "{said}");
        }
    }
    let told = Mutex::new(Vec::new());
    let progress = |done, total| told.lock().unwrap().push((done, total));
    source
        .write_int8("w", &plain(&source, 130), Cursor::new(Vec::new()), Path::new(NAMED), Some(&progress))
        .unwrap();
    let (told, total) = (told.into_inner().unwrap(), (130 * hidden * 4) as u64);
    assert_eq!(told.last(), Some(&(total, total)));
    assert!(told.len() > 2 && told.iter().all(|(done, all)| done <= all && *all == total), "{told:?}");
}

/// A writer that is full after so many bytes.
struct Full<W> {
    inner: W,
    room: usize,
}

impl<W: Write> Write for Full<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.room = self.room.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<W: Seek> Seek for Full<W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

/// Wherever the disk is full, the error says so.
#[test]
fn a_full_disk_is_an_error_at_any_byte() {
    let (rows, hidden) = (40, 3);
    let folder = Folder::new();
    let tensors = [
        ("h.weight", f32s(&[rows, hidden], &exact_values(rows, hidden))),
        ("h.bias", f32s(&[rows], &exact_values(rows, 1))),
    ];
    let source = Checkpoint::from_file(folder.write("source", &file_bytes(&tensors, 0)), "h.weight").unwrap();
    let size = written(&source, "h.weight", rows).unwrap().len();
    for room in 0..size {
        let out = Full { inner: Cursor::new(Vec::new()), room };
        let error =
            source.write_int8("h.weight", &plain(&source, rows), out, Path::new(NAMED), None).unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{error}");
        assert!(error.to_string().starts_with("out.safetensors: cannot be written:"), "{error}");
    }
    let out = Full { inner: Cursor::new(Vec::new()), room: size };
    assert!(source.write_int8("h.weight", &plain(&source, rows), out, Path::new(NAMED), None).is_ok());
}

/// The file's scale, softcap and model type are written, read back with the same bits, and refused where they
/// are invalid.
#[test]
fn scale_softcap_and_model_type_are_kept() {
    let weights = f32s(&[3, 2], &exact_values(3, 2));
    let keys = r#", "model_type": "gemma2", "final_logit_softcapping": 29.7"#;
    let folder = Folder::model(&config(3, 2, keys), &[("lm_head.weight", weights.clone())]);
    let model = folder.open().unwrap();
    let resolved = |checkpoint: &Checkpoint| {
        let quantization = checkpoint.quantization(Some(Quantization::W8a8)).unwrap();
        HeadConfig::resolve(&Settings::default(), &checkpoint.model_config(), quantization).unwrap()
    };
    for (scale, softcap) in
        [(1.0 / 3.0, Some(29.7)), (-1e-30, None), (1.0, Some(f32::MIN_POSITIVE)), (1.0, None)]
    {
        let config = HeadConfig { logit_scale: scale, final_logit_softcapping: softcap, ..resolved(&model) };
        let mut bytes = Cursor::new(Vec::new());
        model.write_int8("h.weight", &config, &mut bytes, Path::new(NAMED), None).unwrap();
        let int8 = Checkpoint::from_file(folder.write("int8", &bytes.into_inner()), "h.weight").unwrap();
        assert_eq!(resolved(&int8).epilogue(), config.epilogue());
        assert_eq!(int8.model_config().model_type.as_deref(), Some("gemma2"));
        let asked = int8.model_config();
        assert_eq!((asked.logit_scale.is_some(), asked.final_logit_softcapping), (scale != 1.0, softcap));
    }
    let wrong = HeadConfig::new(3, 3);
    let error = model.write_int8("h", &wrong, Cursor::new(Vec::new()), Path::new(NAMED), None).unwrap_err();
    assert_words(&error, &["lm_head.weight: wanted [vocabulary, 3]", "got [3, 2]"]);

    let entry = r#""h":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}"#;
    for (key, value, wanted) in [
        ("logit_scale", "x", "wanted a finite number other than 0 under the key lmhead.logit_scale, got `x`"),
        ("logit_scale", "0", "other than 0"),
        ("logit_scale", "NaN", "a finite number"),
        ("logit_scale", "1e39", "a finite number"),
        (
            "final_logit_softcapping",
            "-30",
            "a finite number above 0 under the key lmhead.final_logit_softcapping",
        ),
        ("final_logit_softcapping", "", "got ``"),
    ] {
        let header = format!(r#"{{"__metadata__":{{"lmhead.{key}":"{value}"}},{entry}}}"#);
        let error =
            Checkpoint::from_file(folder.write("odd", &raw_file(&header, &[0; 8], 0)), "h").unwrap_err();
        assert_words(&error, &["odd: tensor __metadata__: ", wanted]);
    }
}
