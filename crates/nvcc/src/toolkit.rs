//! Finds nvcc. Pure, but that it looks at files and asks them for their version: the tests hand in their own
//! environment.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest nvcc whose options all exist (`--compress-mode` came with 12.8).
pub const OLDEST: (u32, u32) = (12, 8);
/// The environment variables that are looked at, first to last.
pub const VARIABLES: [&str; 3] = ["NVCC", "CUDA_HOME", "PATH"];

const SCRIPT: &str = "scripts/cuda-toolkit puts one under target/ where there is none";
/// Where the script installs, below cargo's target folder.
const INSTALLED: &str = "cuda-toolkit/nvidia/cu13/bin/nvcc";

/// An nvcc that is new enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nvcc {
    pub path: PathBuf,
    /// `(13, 0)`.
    pub version: (u32, u32),
    /// `V13.0.88`.
    pub full: String,
}

/// The first nvcc of `NVCC`, `CUDA_HOME`, `PATH` and the folder of `scripts/cuda-toolkit`. A variable that is
/// set and leads nowhere, or to one that is too old, is an error, not passed over; one on `PATH` that is too
/// old gives way to the script's. `targets` are the folders that may be cargo's target folder.
///
/// # Errors
/// No nvcc, or none that is new enough; the text names the script that installs one.
pub fn find(
    variable: impl Fn(&str) -> Option<OsString>,
    targets: impl IntoIterator<Item = PathBuf>,
) -> Result<Nvcc, String> {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    let on_path = |program: &Path| {
        let path = set("PATH")?;
        std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
    };
    if let Some(named) = set("NVCC") {
        let named = PathBuf::from(named);
        let file = if named.components().count() == 1 { on_path(&named) } else { Some(named.clone()) };
        return file.filter(|file| file.is_file()).map_or_else(
            || {
                let got = named.display();
                Err(format!("NVCC: wanted the path of nvcc, got {got}; correct or unset it ({SCRIPT})"))
            },
            examine,
        );
    }
    if let Some(home) = set("CUDA_HOME") {
        let home = PathBuf::from(home);
        let file = home.join("bin").join("nvcc");
        return if file.is_file() {
            examine(file)
        } else {
            let got = home.display();
            Err(format!(
                "CUDA_HOME: wanted a CUDA toolkit with bin/nvcc, got {got}; correct or unset it ({SCRIPT})"
            ))
        };
    }
    let installed = || targets.into_iter().map(|target| target.join(INSTALLED)).find(|file| file.is_file());
    let first = on_path(Path::new("nvcc")).map(examine);
    if let Some(Ok(nvcc)) = first {
        return Ok(nvcc);
    }
    match (installed(), first) {
        (Some(file), _) => examine(file),
        (None, Some(too_old)) => too_old,
        (None, None) => {
            let oldest = version_text(OLDEST);
            Err(format!(
                "feature cuda: wanted nvcc {oldest} or newer (in NVCC, CUDA_HOME or PATH), got none; run scripts/cuda-toolkit, \
                 which puts one under target/, or build without the feature"
            ))
        }
    }
}

/// Asks an nvcc for its version.
fn examine(path: PathBuf) -> Result<Nvcc, String> {
    let said = Command::new(&path).arg("--version").output();
    let said =
        said.map_err(|e| format!("{}: {e}; correct NVCC, CUDA_HOME or PATH ({SCRIPT})", path.display()))?;
    let (version, full) = version(&path, &String::from_utf8_lossy(&said.stdout))?;
    Ok(Nvcc { path, version, full })
}

/// What `nvcc --version` says of itself: `(13, 0)` and `V13.0.88`.
///
/// # Errors
/// Text without a version, or one older than [`OLDEST`].
pub fn version(nvcc: &Path, said: &str) -> Result<((u32, u32), String), String> {
    let oldest = version_text(OLDEST);
    let wanted = format!("{}: wanted nvcc {oldest} or newer", nvcc.display());
    let advice = "run scripts/cuda-toolkit, whose nvcc is taken before an older one on PATH; where NVCC or CUDA_HOME name another, \
                  export CUDA_HOME=$(scripts/cuda-toolkit --home) and unset NVCC";
    let full = said.split_whitespace().find(|word| {
        word.strip_prefix('V').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    });
    let parsed = full.and_then(|word| {
        let mut numbers = word[1..].split('.').map(|number| number.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??))
    });
    let (Some(full), Some(parsed)) = (full, parsed) else {
        let first = said.lines().next().unwrap_or("nothing");
        return Err(format!("{wanted}, got a program that says \"{first}\"; {advice}"));
    };
    if parsed < OLDEST {
        return Err(format!("{wanted}, got {}; {advice}", &full[1..]));
    }
    Ok((parsed, full.to_string()))
}

fn version_text((major, minor): (u32, u32)) -> String {
    format!("{major}.{minor}")
}
