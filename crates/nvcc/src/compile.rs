//! Compiles one kernel file to one fatbin, and nothing where nothing has changed.

use super::architectures::gencode;
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// Contracting a·b + c would round once where the promise of equal bits on every device wants two roundings.
const FLAGS: &[&str] = &["-fatbin", "-std=c++17", "-O3", "-fmad=false", "-lineinfo", "--keep"];
/// The smallest code takes nvcc a third longer to make, so only a release has it.
const SMALLEST: &[&str] = &["--compress-mode=size"];
const QUICKEST: &[&str] = &["--compress-mode=balance", "-Xfatbin=-compress-all"];

/// One run of nvcc.
#[derive(Debug)]
pub struct Job {
    /// The kernel file's name.
    pub name: String,
    pub source: PathBuf,
    /// The folder of the headers.
    pub include: PathBuf,
    pub architectures: Vec<&'static str>,
    /// Without extension: `.fatbin`, `.stamp`, `.warnings` and a folder of intermediate files are made here.
    pub output: PathBuf,
    /// A hash of everything that the result depends on.
    pub inputs: u64,
}

/// What became of a [`Job`].
#[derive(Debug)]
pub struct Compiled {
    pub fatbin: PathBuf,
    /// The entry points' names as the driver knows them, sorted.
    pub kernels: Vec<String>,
    /// What nvcc had to say of a compilation that succeeded; kept, so that a later build and the test of the
    /// machine code see it.
    pub warnings: String,
}

fn flags() -> impl Iterator<Item = &'static str> {
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    FLAGS.iter().chain(if is_release { SMALLEST } else { QUICKEST }).copied()
}

/// A hash of source, headers, options, architectures and compiler: where it is unchanged, so is the fatbin.
///
/// # Errors
/// A file that cannot be read.
pub fn inputs(
    source: &Path,
    headers: &[PathBuf],
    architectures: &[&str],
    compiler: &str,
) -> Result<u64, String> {
    let mut hasher = DefaultHasher::new();
    let arguments: Vec<_> = architectures.iter().map(|name| gencode(name)).collect();
    (flags().collect::<Vec<_>>(), arguments, compiler).hash(&mut hasher);
    for file in std::iter::once(source).chain(headers.iter().map(PathBuf::as_path)) {
        file.hash(&mut hasher);
        fs::read(file).map_err(|e| problem(file, &e))?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// Runs nvcc, unless the last run had the same inputs.
///
/// # Errors
/// nvcc's own words where it fails.
pub fn run(nvcc: &Path, threads: usize, job: &Job) -> Result<Compiled, String> {
    let [fatbin, stamp, remarks] =
        ["fatbin", "stamp", "warnings"].map(|kind| job.output.with_extension(kind));
    let head = format!("{:016x}", job.inputs);
    if fatbin.is_file()
        && let Ok(text) = fs::read_to_string(&stamp)
        && let Some(kernels) = text.strip_prefix(&head)
        && let Ok(warnings) = fs::read_to_string(&remarks)
    {
        let kernels = kernels.split_whitespace().map(str::to_string).collect();
        return Ok(Compiled { fatbin, kernels, warnings });
    }
    let _ = fs::remove_file(&stamp);
    // Kept only until the names of the entry points have been read from the PTX.
    let intermediate = job.output.with_extension("intermediate");
    let _ = fs::remove_dir_all(&intermediate);
    fs::create_dir_all(&intermediate).map_err(|e| problem(&intermediate, &e))?;

    let mut command = Command::new(nvcc);
    command.args(flags()).arg("--keep-dir").arg(&intermediate).arg("-I").arg(&job.include);
    command.arg(format!("--threads={threads}")).args(job.architectures.iter().map(|name| gencode(name)));
    command.arg("-o").arg(&fatbin).arg(&job.source);
    let output = command.output().map_err(|e| problem(nvcc, &e))?;
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    if !output.status.success() {
        let why = format!("nvcc could not compile it ({})", output.status);
        return Err(format!("{}: {why}:\n{}\n{command:?}", job.source.display(), said.trim_end()));
    }
    let kernels = entries(&intermediate)?;
    if kernels.is_empty() {
        let source = job.source.display();
        return Err(format!(
            "{source}: wanted at least one __global__ function, got none; mend it or move it to a header"
        ));
    }
    let _ = fs::remove_dir_all(&intermediate);
    let warnings = said.trim().to_string();
    fs::write(&remarks, &warnings).map_err(|e| problem(&remarks, &e))?;
    fs::write(&stamp, format!("{head} {}\n", kernels.join(" "))).map_err(|e| problem(&stamp, &e))?;
    Ok(Compiled { fatbin, kernels, warnings })
}

/// The entry points of all `.ptx` files of a folder.
fn entries(folder: &Path) -> Result<Vec<String>, String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(|e| problem(folder, &e))? {
        let path = entry.map_err(|e| problem(folder, &e))?.path();
        if path.extension() == Some(OsStr::new("ptx")) {
            names.extend(ptx_entries(&fs::read_to_string(&path).map_err(|e| problem(&path, &e))?));
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// The names behind `.entry` directives (PTX ISA, "Kernel and Function Directives").
pub fn ptx_entries(ptx: &str) -> Vec<String> {
    ptx.lines()
        .filter_map(|line| line.split_once(".entry ").filter(|(before, _)| !before.contains("//")))
        .filter_map(|(_, name)| {
            name.trim().split(|c: char| !(c.is_alphanumeric() || "_$".contains(c))).next()
        })
        .filter(|name| !name.is_empty())
        .map(str::to_string)
        .collect()
}

pub fn problem(path: &Path, e: &io::Error) -> String {
    format!("{}: {e}", path.display())
}
