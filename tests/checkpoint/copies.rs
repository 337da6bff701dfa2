//! Loading by copy, loading as another type, and files that other programs write to while they are open.

use crate::files::*;
use lmhead::backend::cpu::CpuBackend;
use lmhead::config::{HeadConfig, Quantization};
use lmhead::dtype::DType;
use lmhead::exchange::local;
use lmhead::layout::HeadGroup;
use lmhead::weights::{Checkpoint, LoadOptions, Matrix, SafetensorsFile};
use lmhead::{LmHead, Settings};
use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

const ROWS: usize = 300;
/// More than one task of a load, and rows that no task divides.
const HIDDEN: usize = 2002;

/// The tensors of a file by name.
type Tensors = Vec<(&'static str, T)>;

/// A head of each stored form under the name `w`, with the ways to load it.
fn heads() -> Vec<(Tensors, Vec<Option<Quantization>>)> {
    let (floats, int8) = (exact_values(ROWS, HIDDEN), int8_values(ROWS, HIDDEN));
    let scale = ("w.weight_scale", f32s(&[ROWS], &exact_values(ROWS, 1)));
    let float_ways = vec![None, Some(Quantization::W8a16), Some(Quantization::W8a8)];
    let words = pack(&int8, HIDDEN);
    vec![
        (vec![("w.weight", f32s(&[ROWS, HIDDEN], &floats))], float_ways.clone()),
        (vec![("w.weight", f16s(&[ROWS, HIDDEN], &floats))], float_ways.clone()),
        (vec![("w.weight", bf16s(&[ROWS, HIDDEN], &floats))], float_ways),
        (vec![("w.weight", i8s(&[ROWS, HIDDEN], &int8)), scale.clone()], vec![None]),
        (
            vec![
                ("w.weight_packed", i32s(&[ROWS, HIDDEN.div_ceil(4)], &words)),
                ("w.weight_shape", i64s(&[2], &[ROWS as i64, HIDDEN as i64])),
                scale,
            ],
            vec![None],
        ),
    ]
}

#[test]
fn a_copy_has_the_weights_of_the_mapping_and_leaves_the_file() {
    for (tensors, ways) in heads() {
        let folder = Folder::new();
        let path = folder.write("head", &file_bytes(&tensors, 0));
        let checkpoint = Checkpoint::from_file(&path, "w.weight").unwrap();
        for quantization in ways {
            let load = |copy| {
                let options = LoadOptions { quantization, copy, ..LoadOptions::default() };
                checkpoint.shard(64..257, ROWS, &options).unwrap()
            };
            let (mapped, copied) = (load(false), load(true));
            assert!(elements(&mapped) == elements(&copied) && scales(&mapped) == scales(&copied));
            assert!(!copied.is_mapped());
        }
    }
}

/// `head_dtype = f32`: the exact values of the stored type in shards of any cut; other types are refused.
#[test]
fn a_16_bit_head_is_widened_where_that_is_asked() {
    let floats = exact_values(ROWS, HIDDEN);
    for (tensor, stored) in [
        (f16s(&[ROWS, HIDDEN], &floats), DType::F16),
        (bf16s(&[ROWS, HIDDEN], &floats), DType::Bf16),
        (f32s(&[ROWS, HIDDEN], &floats), DType::F32),
    ] {
        let folder = Folder::new();
        let checkpoint =
            Checkpoint::from_file(folder.write("head", &file_bytes(&[("w", tensor)], 0)), "w").unwrap();
        for (copy, head_dtype) in [(false, DType::F32), (true, DType::F32), (false, stored), (true, stored)] {
            let options = LoadOptions { copy, head_dtype: Some(head_dtype), ..LoadOptions::default() };
            let shard = checkpoint.shard(64..257, ROWS, &options).unwrap();
            assert_eq!(shard.matrix().dtype(), head_dtype);
            assert!(elements(&shard) == floats[64 * HIDDEN..257 * HIDDEN], "{stored} {head_dtype}");
        }
        let refused = |asked, quantization| {
            checkpoint.weights_dtype(Some(asked), quantization).unwrap_err().to_string()
        };
        let other = if stored == DType::F16 { DType::Bf16 } else { DType::F16 };
        let wanted = format!("head_dtype: wanted f32, or {stored} as w is stored, got {other}; leave it out");
        assert!(refused(other, Quantization::None).starts_with(&wanted));
        let wanted = "head_dtype: wanted nothing beside w8a8, got f32";
        assert!(refused(DType::F32, Quantization::W8a8).starts_with(wanted));

        // The configuration carries the setting, too: a shard that was loaded without it is refused.
        let settings = Settings { head_dtype: Some(DType::F32), ..Settings::default() };
        let config = HeadConfig::resolve(&settings, &checkpoint.model_config(), Quantization::None).unwrap();
        let group = HeadGroup::data_parallel(1, 0).unwrap();
        let whole = checkpoint.head_shard(&group, &config, &LoadOptions::default()).unwrap();
        let as_stored = checkpoint.shard(0..ROWS, ROWS, &LoadOptions::default()).unwrap();
        assert!(matches!(whole.matrix(), Matrix::F32(_)));
        let head = |shard| {
            let (exchange, backend) =
                (Arc::new(local::group(1).remove(0)), CpuBackend::new(Some(1)).unwrap());
            LmHead::new(&config, group.clone(), Arc::new(shard), exchange, Arc::new(backend)).map(|_| ())
        };
        assert_eq!(head(whole), Ok(()));
        match stored {
            DType::F32 => assert_eq!(head(as_stored), Ok(())),
            _ => assert_words(&head(as_stored).unwrap_err(), &["head_dtype: wanted f32, got", stored.name()]),
        }
    }
}

fn shorten(path: &Path) {
    File::options().write(true).open(path).unwrap().set_len(20_000).unwrap();
}

/// The mapping would raise SIGBUS here.
#[cfg(unix)]
#[test]
fn a_file_that_is_shortened_before_it_is_copied_is_an_error() {
    for (tensors, ways) in heads() {
        for quantization in ways {
            let folder = Folder::new();
            let path = folder.write("head", &file_bytes(&tensors, 0));
            let checkpoint = Checkpoint::from_file(&path, "w.weight").unwrap();
            assert_eq!(checkpoint.check_unchanged(), Ok(()));
            shorten(&path);
            let options = LoadOptions { quantization, copy: true, ..LoadOptions::default() };
            let error = checkpoint.shard(0..ROWS, ROWS, &options).unwrap_err();
            assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
            assert_words(
                &error,
                &["cannot be read: wanted bytes", "got an error", "fetch or write it again"],
            );
            let error = checkpoint.check_unchanged().unwrap_err();
            assert_words(&error, &["was written to while it was in use: wanted", "bytes, got 20000"]);
        }
    }
}

#[test]
fn a_write_is_noticed_and_a_rename_is_none() {
    let folder = Folder::new();
    let bytes = file_bytes(&[("w", f32s(&[2, 2], &[1.0; 4])), ("w2", f32s(&[1], &[0.0]))], 0);
    let path = folder.write("head", &bytes);
    let file = SafetensorsFile::open(&path).unwrap();
    let checkpoint = Checkpoint::from_file(&path, "w").unwrap();
    std::fs::rename(folder.write("new", &[&bytes[..], b"more"].concat()), &path).unwrap();
    assert_eq!(file.check_unchanged(), Ok(()), "the open file is the old one");
    folder.write("head", &bytes);
    let file = SafetensorsFile::open(&path).unwrap();
    // Wait for the file system's clock to advance.
    std::thread::sleep(std::time::Duration::from_millis(30));
    std::fs::write(&path, &bytes).unwrap();
    assert_words(&file.check_unchanged().unwrap_err(), &["head: was written to", "a later one", "rename"]);
    assert_eq!(checkpoint.check_unchanged(), Ok(()));
}

/// Every way to read, widen and quantise uses at most its threads, and their number changes no weight.
#[test]
fn as_many_threads_load_as_are_asked_for() {
    for (tensors, ways) in heads() {
        let folder = Folder::new();
        let path = folder.write("head", &file_bytes(&tensors, 0));
        let checkpoint = Checkpoint::from_file(&path, "w.weight").unwrap();
        let widened = [(None, Some(DType::F32), false)];
        let ways = ways.iter().flat_map(|way| [(*way, None, false), (*way, None, true)]);
        let widens = checkpoint.dtype() != DType::I8;
        for (quantization, head_dtype, copy) in ways.chain(widened.into_iter().filter(|_| widens)) {
            let options = LoadOptions { quantization, head_dtype, copy, ..LoadOptions::default() };
            let whole = checkpoint.shard(0..ROWS, ROWS, &options).unwrap();
            for threads in [1, 3] {
                // The threads that report progress, the caller's own included.
                let seen = Mutex::new(HashSet::new());
                let progress = |_, _| {
                    seen.lock().unwrap().insert(std::thread::current().id());
                };
                let options = LoadOptions { threads: Some(threads), progress: Some(&progress), ..options };
                let shard = checkpoint.shard(0..ROWS, ROWS, &options).unwrap();
                assert!(elements(&shard) == elements(&whole) && scales(&shard) == scales(&whole));
                let seen = seen.into_inner().unwrap();
                assert!((1..=threads).contains(&seen.len()), "{quantization:?}: {seen:?} of {threads}");
                assert!(!seen.contains(&std::thread::current().id()));
            }
        }
    }
}

/// The first task on each thread waits until all threads have one, which takes that many threads.
#[test]
fn all_the_threads_of_a_load_load() {
    const THREADS: usize = 3;
    let folder = Folder::new();
    // Two tasks for each thread.
    let rows = 2 * THREADS * (1 << 20) / (2 * HIDDEN) + 1;
    let bytes = file_bytes(&[("w.weight", bf16s(&[rows, HIDDEN], &exact_values(rows, HIDDEN)))], 0);
    let checkpoint = Checkpoint::from_file(folder.write("head", &bytes), "w.weight").unwrap();
    let (met, waited) = (Mutex::new(HashSet::new()), Condvar::new());
    let progress = |done, total| {
        if done == total {
            return;
        }
        let mut met = met.lock().unwrap();
        met.insert(std::thread::current().id());
        waited.notify_all();
        let patience = Duration::from_secs(20);
        let (met, _) = waited.wait_timeout_while(met, patience, |met| met.len() < THREADS).unwrap();
        assert_eq!(met.len(), THREADS, "threads that load at once");
    };
    let options = LoadOptions {
        quantization: Some(Quantization::W8a8),
        threads: Some(THREADS),
        progress: Some(&progress),
        ..LoadOptions::default()
    };
    checkpoint.shard(0..rows, rows, &options).unwrap();
}

#[test]
fn numbers_of_threads_that_cannot_be_are_refused() {
    let folder = Folder::new();
    let path = folder.write("head", &file_bytes(&[("w.weight", f32s(&[3, 2], &exact_values(3, 2)))], 0));
    let checkpoint = Checkpoint::from_file(&path, "w.weight").unwrap();
    for threads in [0, 1025, usize::MAX] {
        let options = LoadOptions { threads: Some(threads), ..LoadOptions::default() };
        let error = checkpoint.shard(0..3, 3, &options).unwrap_err();
        assert_words(&error, &["threads: wanted 1 to 1024, got", &threads.to_string(), "to use every CPU"]);
    }
}
