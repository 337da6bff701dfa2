//! What the build script of `lmhead` does for its feature `cuda`: nvcc makes one fatbin of every kernel file.
//! They are embedded and loaded at run time, so that the library links to nothing of CUDA and the same
//! program runs on a machine without a driver.

pub mod architectures;
pub mod compile;
pub mod toolkit;

use architectures::KernelFile;
use compile::{Compiled, Job, problem};
use std::ffi::OsStr;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{env, fs, process, thread};

/// What nvcc itself reads from the environment: options, and the host compiler.
const NVCC_OPTIONS: &[&str] = &["NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "NVCC_CCBIN"];

/// Compiles what changed and writes `fatbins.rs` and `left_out.rs`, the tables that
/// `src/backend/cuda/fatbins.rs` includes. Ends the program where that fails: no nvcc, one that is too old,
/// an unknown architecture, code that does not compile.
pub fn build() {
    let folder = |name| PathBuf::from(env::var_os(name).expect("cargo sets it"));
    if let Err(problem) = make_table(&folder("CARGO_MANIFEST_DIR"), &folder("OUT_DIR")) {
        for line in problem.lines() {
            println!("cargo::error={line}");
        }
        process::exit(1);
    }
}

fn make_table(manifest: &Path, out: &Path) -> Result<(), String> {
    println!("cargo::rerun-if-changed=kernels");
    for name in toolkit::VARIABLES.iter().chain(NVCC_OPTIONS).chain(&[architectures::VARIABLE, "DOCS_RS"]) {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let kernels = manifest.join("kernels");
    let [table, left_out] = ["fatbins.rs", "left_out.rs"].map(|name| out.join(name));
    // docs.rs has no nvcc and wants none of the code.
    if env::var_os("DOCS_RS").is_some() {
        write(&left_out, "&[]")?;
        return write(&table, "&[]");
    }

    let toolkit::Nvcc { path: nvcc, version, full: mut compiler } =
        toolkit::find(|name| env::var_os(name), targets(manifest, out))?;
    println!("cargo::rerun-if-changed={}", nvcc.display());
    // Code of one major version runs on drivers of that version or later only.
    println!("cargo::rustc-env=LMHEAD_NVCC_MAJOR={}", version.0);
    for name in NVCC_OPTIONS {
        compiler += &format!(" {name}={:?}", env::var_os(name));
    }

    let wanted = env::var(architectures::VARIABLE).ok();
    let wanted = architectures::parse(wanted.as_deref())?;
    let (sources, headers) = files(&kernels)?;
    let kernel_files = kernel_files(&kernels, &sources)?;
    let folder = out.join("fatbins");
    fs::create_dir_all(&folder).map_err(|e| problem(&folder, &e))?;
    let (here, absent): (Vec<_>, Vec<_>) = kernel_files
        .iter()
        .map(|file| (file, architectures::narrow(file, &wanted)))
        .partition(|(_, architectures)| !architectures.is_empty());
    let rows = absent.iter().map(|(file, _)| format!("    ({:?}, &{:?}),\n", file.name, file.architectures));
    write(&left_out, &format!("&[\n{}]", rows.collect::<String>()))?;
    let job = |(file, architectures): (&KernelFile, Vec<&'static str>)| -> Result<Job, String> {
        let source = kernels.join(format!("{}.cu", file.name));
        let inputs = compile::inputs(&source, &headers, &architectures, &compiler)?;
        let output = folder.join(file.name.replace('/', "-"));
        Ok(Job { name: file.name.clone(), source, include: kernels.clone(), architectures, output, inputs })
    };
    let jobs = here.into_iter().map(job).collect::<Result<Vec<_>, _>>()?;

    let compiled = compile_all(&nvcc, &jobs)?;
    let mut text = String::from("&[\n");
    for (job, done) in jobs.iter().zip(&compiled) {
        for line in done.warnings.lines() {
            println!("cargo::warning={}: {line}", job.name);
        }
        let (name, kernels, architectures) = (&job.name, &done.kernels, &job.architectures);
        let (fatbin, warnings) = (done.fatbin.display().to_string(), &done.warnings);
        writeln!(
            text,
            "    Fatbin {{ name: {name:?}, kernels: &{kernels:?}, architectures: &{architectures:?}, \
             warnings: {warnings:?}, bytes: include_bytes!({fatbin:?}) }},"
        )
        .expect("a string takes all text");
    }
    text.push(']');
    write(&table, &text)
}

/// Compiles as many files at a time as cargo allows; threads without a file of their own compile other files'
/// architectures.
fn compile_all(nvcc: &Path, jobs: &[Job]) -> Result<Vec<Compiled>, String> {
    let allowed = env::var("NUM_JOBS").ok().and_then(|n| n.parse::<usize>().ok()).unwrap_or(1).max(1);
    let workers = allowed.min(jobs.len()).max(1);
    let queue = Mutex::new(jobs.iter().enumerate());
    let work = || {
        let mut done = Vec::new();
        loop {
            let next = queue.lock().expect("no worker panics").next();
            let Some((i, job)) = next else { return done };
            done.push((i, compile::run(nvcc, allowed / workers, job)));
        }
    };
    let mut done = thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("no worker panics")).collect::<Vec<_>>()
    });
    done.sort_by_key(|(i, _)| *i);
    let (good, bad): (Vec<_>, Vec<_>) = done.into_iter().map(|(_, result)| result).partition(Result::is_ok);
    if bad.is_empty() {
        return Ok(good.into_iter().flatten().collect());
    }
    Err(bad.into_iter().filter_map(Result::err).collect::<Vec<_>>().join("\n"))
}

/// Folders that may be cargo's target folder: those above the build script's own, and the default.
fn targets(manifest: &Path, out: &Path) -> Vec<PathBuf> {
    out.ancestors().skip(1).map(Path::to_path_buf).chain([manifest.join("target")]).collect()
}

/// `(.cu files, headers)` of the device, sorted; the emulated device's are not nvcc's.
pub fn files(kernels: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), String> {
    let (mut sources, mut headers) = (Vec::new(), Vec::new());
    let mut folders = vec![kernels.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| problem(&folder, &e))? {
            let path = entry.map_err(|e| problem(&folder, &e))?.path();
            match path.extension().and_then(OsStr::to_str) {
                _ if path.is_dir() && path.file_name() != Some(OsStr::new("emulated")) => folders.push(path),
                Some("cu") => sources.push(path),
                Some("cuh" | "h") => headers.push(path),
                _ => {}
            }
        }
    }
    sources.sort();
    headers.sort();
    Ok((sources, headers))
}

/// The kernel files among sources below `kernels`.
///
/// # Errors
/// As [`KernelFile::new`].
pub fn kernel_files(kernels: &Path, sources: &[PathBuf]) -> Result<Vec<KernelFile>, String> {
    let name = |source: &PathBuf| {
        let below = source.strip_prefix(kernels).unwrap_or(source).with_extension("");
        KernelFile::new(&below.to_string_lossy())
    };
    sources.iter().map(name).collect()
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| problem(path, &e))
}
