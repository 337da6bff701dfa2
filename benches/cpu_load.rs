//! The time to load a head, beside the speed of its file and its memory.
//!
//! ```text
//! cargo bench --bench cpu_load                              # a head of 300 MB, JSON on the standard output
//! LMHEAD_LOAD_MB=1853 cargo bench --bench cpu_load -- --out benches/results/cpu/load.json
//! ```
//! `LMHEAD_LOAD_MB`: size of the bf16 file; `LMHEAD_LOAD_REPETITIONS` (7); `LMHEAD_LOAD_FOLDER`: where the
//! files are written (under `target/`, so that they lie on a disk); `LMHEAD_LOAD_THREADS` (all).
//!
//! A bf16 head is written as safetensors, and again as int8. Each of these runs once in each repetition, from
//! the page cache and then (on Linux) with the file's pages dropped from it (by `posix_fadvise` after
//! `fsync`; `mincore` says how much of the file stayed):
//! - `none`, `w8a8`, `int8`: `Checkpoint::from_file` and `head_shard` of the bf16 head as it is, quantised at
//!   load, and of the int8 file, which is mapped and not read yet. `ready` includes `Backend::load`, which
//!   for W8A8 reads all weights if the backend needs their sums.
//! - `read`: the same file's bytes by `pread` into 1 MiB for each thread; `mapped`: by
//!   [`CpuBackend::read_stream`] through a mapping.
//!
//! And the parts of quantising at load, each with all threads: `clear` touches memory for the copy for the
//! first time, in pages as the loader requests them; `quantise` widens and quantises as many rows as the head
//! has, always the same row. (In a virtual machine, memory that has been free for a while is slow to clear,
//! because the host may have to find it first.)
#![allow(unsafe_code, reason = "mapped files")]

use cpu_time::ProcessTime;
use lmhead::backend::Backend;
use lmhead::backend::cpu::CpuBackend;
use lmhead::quantize::quantize_row;
use lmhead::weights::synthetic::{self, Spec};
use lmhead::weights::{Checkpoint, LoadOptions, Matrix};
use lmhead::{DType, HeadConfig, HeadGroup, Quantization};
use lmhead_testkit::report::{about, load, report, setting, summary};
use memmap2::{Mmap, MmapMut};
use rayon::ThreadPool;
use rayon::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const HIDDEN: usize = 7168;
const TENSOR: &str = "lm_head.weight";
/// Where a file was read from.
const CACHED: &str = "page cache";
const DROPPED: &str = "dropped from the page cache";
const MEMORY: &str = "memory";
/// Bytes of one read.
const PART: usize = 1 << 20;

struct Bench {
    vocab: usize,
    backend: CpuBackend,
    pool: ThreadPool,
}

/// Wall time in seconds, and CPU time of all threads, which a busy machine disturbs less.
#[derive(Clone, Copy)]
struct Taken([f64; 2]);

/// A stopwatch for both.
struct Since(Instant, ProcessTime);

impl Since {
    fn now() -> Since {
        Since(Instant::now(), ProcessTime::now())
    }

    fn taken(&self) -> Taken {
        Taken([self.0.elapsed().as_secs_f64(), self.1.elapsed().as_secs_f64()])
    }
}

/// The files of one run; removed with the folder.
struct Files {
    bf16: PathBuf,
    int8: PathBuf,
    folder: tempfile::TempDir,
}

impl Bench {
    fn write(&self) -> Files {
        let folder = std::env::var_os("LMHEAD_LOAD_FOLDER")
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        let folder = tempfile::TempDir::new_in(folder).expect("a folder for the files");
        let (bf16, int8) = (folder.path().join("bf16.safetensors"), folder.path().join("int8.safetensors"));
        let spec = Spec { vocab_size: self.vocab, hidden_size: HIDDEN, dtype: DType::Bf16 };
        let whole = synthetic::shard(&spec, 0, 0..self.vocab, Quantization::None, None).expect("a head");
        let Matrix::Bf16(values) = whole.matrix() else { unreachable!("made as bf16") };
        let view = TensorView::new(Dtype::BF16, vec![self.vocab, HIDDEN], bytemuck::cast_slice(values))
            .expect("a tensor");
        safetensors::serialize_to_file([(TENSOR, view)], None, &bf16).expect("the bf16 file");
        let out = File::create(&int8).expect("the int8 file");
        let checkpoint = Checkpoint::from_file(&bf16, TENSOR).expect("the bf16 file");
        self.pool
            .install(|| {
                checkpoint.write_int8(TENSOR, &HeadConfig::new(self.vocab, HIDDEN), &out, &int8, None)
            })
            .expect("the int8 file");
        for file in [&bf16, &int8] {
            File::open(file).and_then(|file| file.sync_all()).expect("the files on the disk");
        }
        Files { bf16, int8, folder }
    }

    /// Seconds until the shard is loaded, and until the backend has loaded it.
    fn load(&self, file: &Path, quantization: Quantization) -> [Taken; 2] {
        let mut config = HeadConfig::new(self.vocab, HIDDEN);
        (config.quantization, config.hidden_dtype) = (quantization, Some(DType::Bf16));
        let group = HeadGroup::data_parallel(1, 0).expect("a group");
        let began = Since::now();
        let shard = self.pool.install(|| {
            let checkpoint = Checkpoint::from_file(file, TENSOR).expect("a checkpoint");
            checkpoint.head_shard(&group, &config, &LoadOptions::default()).expect("a shard")
        });
        let loaded = began.taken();
        let shard = Arc::new(shard);
        black_box(self.backend.load(&shard, DType::Bf16).expect("a loaded shard"));
        [loaded, began.taken()]
    }

    /// Seconds of reading the file into buffers.
    fn read(&self, file: &Path) -> Taken {
        let file = File::open(file).expect("a file");
        let size = file.metadata().expect("its size").len() as usize;
        let began = Since::now();
        self.pool.install(|| {
            (0..size.div_ceil(PART)).into_par_iter().for_each_init(
                || vec![0u8; PART],
                |buffer, part| {
                    let buffer = &mut buffer[..PART.min(size - part * PART)];
                    read_at(&file, buffer, (part * PART) as u64);
                    black_box(buffer);
                },
            );
        });
        began.taken()
    }

    /// Seconds of mapping the file and reading all of it.
    fn mapped(&self, file: &Path) -> Taken {
        let file = File::open(file).expect("a file");
        let began = Since::now();
        // SAFETY: the file is this program's own, and nobody changes it.
        let map = unsafe { Mmap::map(&file) }.expect("a map");
        black_box(self.backend.read_stream(&map).expect("this process made the backend"));
        began.taken()
    }

    /// Seconds of touching new memory of the int8 copy's size.
    fn clear(&self) -> Taken {
        let began = Since::now();
        let mut map = MmapMut::map_anon(self.vocab * HIDDEN).expect("memory");
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        // Writing a byte of each page makes the system clear it.
        let touch = |part: &mut [u8]| part.chunks_mut(4096).for_each(|page| page[0] = 1);
        self.pool.install(|| map.par_chunks_mut(PART).for_each(touch));
        let taken = began.taken();
        black_box(&map[..]);
        taken
    }

    /// Seconds of widening and quantising the head's number of rows, with all data in caches.
    fn quantise(&self) -> Taken {
        let row = synthetic::hidden_row(0, 0, HIDDEN, DType::Bf16);
        let began = Since::now();
        self.pool.install(|| {
            (0..self.vocab).into_par_iter().for_each_init(
                || (vec![0.0f32; HIDDEN], vec![0i8; HIDDEN]),
                |(wide, q), _| {
                    DType::Bf16.widen(black_box(&row), wide);
                    black_box(quantize_row(wide, q));
                },
            );
        });
        began.taken()
    }
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], at: u64) {
    use std::os::unix::fs::FileExt;
    file.read_exact_at(buffer, at).expect("the file's bytes");
}

#[cfg(not(unix))]
fn read_at(file: &File, buffer: &mut [u8], at: u64) {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = file.try_clone().expect("a second handle");
    file.seek(SeekFrom::Start(at)).expect("a place in the file");
    file.read_exact(buffer).expect("the file's bytes");
}

/// Asks the system to drop the file's pages; returns the share that it kept.
#[cfg(target_os = "linux")]
fn drop_from_cache(path: &Path) -> Option<f64> {
    use std::os::fd::AsRawFd;
    let file = File::open(path).ok()?;
    file.sync_all().ok()?;
    // SAFETY: the descriptor is open.
    if unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } != 0 {
        return None;
    }
    // SAFETY: the file is this program's own, and nobody changes it.
    let map = unsafe { Mmap::map(&file) }.ok()?;
    // SAFETY: only returns a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let mut there = vec![0u8; map.len().div_ceil(page)];
    // SAFETY: the whole file is mapped, and there is a byte for each of its pages.
    if unsafe { libc::mincore(map.as_ptr() as *mut _, map.len(), there.as_mut_ptr()) } != 0 {
        return None;
    }
    Some(there.iter().filter(|page| **page & 1 == 1).count() as f64 / there.len() as f64)
}

#[cfg(not(target_os = "linux"))]
fn drop_from_cache(_: &Path) -> Option<f64> {
    None
}

/// Times by source of the file and by what was timed.
type Times = BTreeMap<(&'static str, &'static str), Vec<Taken>>;

/// The times; and the share of a file's pages that was in the page cache when none should have been, the
/// largest of all measurements, or `None` where they could not be dropped.
fn measure(bench: &Bench, files: &Files, repetitions: usize) -> (Times, Option<f64>) {
    let (mut times, mut kept) = (Times::new(), Some(0.0));
    for _ in 0..repetitions {
        for place in [CACHED, DROPPED] {
            let mut prepare = |file: &Path| match place {
                CACHED => drop(bench.read(file)),
                _ => kept = kept.zip(drop_from_cache(file)).map(|(most, share): (f64, f64)| most.max(share)),
            };
            let mut note = |name, taken| times.entry((place, name)).or_default().push(taken);
            for (name, ready, file, quantization) in [
                ("none", "none, ready", &files.bf16, Quantization::None),
                ("w8a8", "w8a8, ready", &files.bf16, Quantization::W8a8),
                ("int8", "int8, ready", &files.int8, Quantization::W8a8),
            ] {
                prepare(file);
                let [loaded, prepared] = bench.load(file, quantization);
                note(name, loaded);
                note(ready, prepared);
            }
            for (read, mapped, file) in
                [("read, bf16", "mapped, bf16", &files.bf16), ("read, int8", "mapped, int8", &files.int8)]
            {
                prepare(file);
                note(read, bench.read(file));
                prepare(file);
                note(mapped, bench.mapped(file));
            }
        }
        times.entry((MEMORY, "clear")).or_default().push(bench.clear());
        times.entry((MEMORY, "quantise")).or_default().push(bench.quantise());
    }
    (times, kept)
}

fn main() {
    // `cargo bench` passes this argument; a test run does nothing.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let megabytes = setting("LMHEAD_LOAD_MB", 300);
    let repetitions = setting("LMHEAD_LOAD_REPETITIONS", 7).max(1);
    let threads = setting("LMHEAD_LOAD_THREADS", std::thread::available_parallelism().map_or(1, usize::from));
    let mut result = about("cargo bench --bench cpu_load");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
    let backend = CpuBackend::new(Some(threads)).expect("a backend");
    let bench = Bench { vocab: (megabytes * 1_000_000 / (2 * HIDDEN)).max(1), backend, pool };
    let files = bench.write();
    let (times, kept) = measure(&bench, &files, repetitions);

    let size = |path: &Path| std::fs::metadata(path).map_or(0, |about| about.len());
    let (bf16, int8) = (size(&files.bf16), size(&files.int8));
    let mut told: BTreeMap<&str, BTreeMap<&str, Value>> = BTreeMap::new();
    for ((place, name), taken) in times {
        let bytes = if name.contains("int8") || name == "clear" { int8 } else { bf16 } as f64;
        let [clock, processor] = [0, 1].map(|i| taken.iter().map(|taken| taken.0[i]).collect::<Vec<f64>>());
        let mut figures = summary(&clock, 4);
        figures["gb_s"] =
            summary(&clock.iter().map(|seconds| bytes / seconds / 1e9).collect::<Vec<f64>>(), 2)["median"]
                .take();
        figures["processor"] = summary(&processor, 4)["median"].take();
        told.entry(place).or_default().insert(name, figures);
    }
    result["load_average_after"] = load();
    result["threads"] = json!(threads);
    result["head"] = json!(format!("synthetic bf16 [{}, {HIDDEN}]", bench.vocab));
    result["bytes"] = json!({ "bf16": bf16, "int8": int8 });
    result["settings"] = json!(format!("LMHEAD_LOAD_MB={megabytes} LMHEAD_LOAD_REPETITIONS={repetitions}"));
    result["method"] = json!(
        "seconds by the clock, in each repetition each once; processor: the median of the seconds of all processors; gb_s: bytes of the \
         file over the clock's seconds (clear: of the copy; quantise: of the bf16 rows)"
    );
    result["pages_kept_after_dropping"] = match kept {
        Some(share) => json!(share),
        None => json!("the system or the file system did not drop them: take no figure for a disk's"),
    };
    result["seconds"] = json!(told);
    report(&result);
    drop(files.folder);
}
