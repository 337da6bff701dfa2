//! Runs the CUDA toolkit's programs on fatbins.

use crate::code::{Code, parse};
use lmhead::backend::cuda::fatbins::Fatbin;
use lmhead_nvcc::toolkit;
use rayon::prelude::*;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

pub struct Tools {
    pub nvcc: PathBuf,
    cuobjdump: PathBuf,
    /// Where cuobjdump finds nvdisasm, which does the work.
    path: OsString,
}

impl Tools {
    /// The nvcc that the build took, and cuobjdump and nvdisasm from beside it, from PATH or from the
    /// script's folder.
    ///
    /// # Errors
    /// One is missing: the text names the script that installs them.
    pub fn find() -> Result<Self, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        // A program that cargo made lies below its target folder.
        let program = env::current_exe().unwrap_or_default();
        let targets = || program.ancestors().map(Path::to_path_buf).chain([root.join("../../target")]);
        let nvcc = toolkit::find(|name| env::var_os(name), targets())?.path;
        let beside = |file: &Path| Some(fs::canonicalize(file).ok()?.parent()?.to_path_buf());
        let installed = toolkit::find(|_| None, targets()).ok().map(|nvcc| nvcc.path);
        let path = env::var_os("PATH").unwrap_or_default();
        let folders: Vec<_> = beside(&nvcc)
            .into_iter()
            .chain(env::split_paths(&path))
            .chain(installed.as_deref().and_then(beside))
            .collect();
        let program = |name: &str| {
            folders.iter().map(|folder| folder.join(name)).find(|file| file.is_file()).ok_or_else(|| {
                let nvcc = nvcc.display();
                format!("wanted {name} beside {nvcc} or on PATH, got none; run scripts/cuda-toolkit, which installs it")
            })
        };
        let cuobjdump = program("cuobjdump")?;
        program("nvdisasm")?;
        let path = env::join_paths(&folders).map_err(|e| format!("PATH: {e}"))?;
        Ok(Tools { nvcc, cuobjdump, path })
    }

    /// All kernels of a fatbin.
    ///
    /// # Errors
    /// The program's own words, or text that is not understood.
    pub fn read(&self, file: &str, fatbin: &Path) -> Result<Vec<Code>, String> {
        parse(file, &self.dump("-res-usage", fatbin)?, &self.dump("-sass", fatbin)?)
    }

    /// All kernels of this program; `folder` is for the files in between.
    pub fn embedded(&self, fatbins: &[Fatbin], folder: &Path) -> Result<Vec<Code>, String> {
        let read = |fatbin: &Fatbin| {
            // PTX alone has no machine code to look at.
            if !fatbin.architectures.iter().any(|name| name.starts_with("sm_")) {
                return Ok(Vec::new());
            }
            let path = folder.join(format!("{}.fatbin", fatbin.name.replace('/', "-")));
            fs::write(&path, fatbin.bytes).map_err(|e| format!("{}: {e}", path.display()))?;
            self.read(fatbin.name, &path)
        };
        fatbins.par_iter().map(read).collect::<Result<Vec<_>, _>>().map(|codes| codes.concat())
    }

    fn dump(&self, what: &str, fatbin: &Path) -> Result<String, String> {
        self.run(Command::new(&self.cuobjdump).arg(what).arg(fatbin))
    }

    /// Standard output of a program that succeeded.
    pub fn run(&self, command: &mut Command) -> Result<String, String> {
        let output = command.env("PATH", &self.path).output().map_err(|e| format!("{command:?}: {e}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{command:?}: {}: {}", output.status, said.trim()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
