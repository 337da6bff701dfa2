//! A `libcuda.so` of the project's own (`crates/gpu/fake_driver`): kernels run on the emulated device inside
//! of it, or are written down.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder of the library, below `place`, compiled once per process. It has the emulated device and its
/// kernels, as their own build script compiled them.
///
/// # Panics
/// Where there is no C++ compiler, or it fails or warns.
pub fn folder(place: &Path) -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let [root, out] = [env!("CARGO_MANIFEST_DIR"), lmhead_emulated::ARCHIVES].map(PathBuf::from);
        let archive = |name: &str| out.join(format!("liblmhead_emulated_{name}.a"));
        library(&place.join("fake-driver"), |command| {
            command.args(["-std=c++17", "-O1", "-Wall", "-Wextra"]).arg("-I").arg(root.join("../../kernels"));
            let sources = root.join("fake_driver");
            command.args(
                ["device", "stream", "memory", "kernel"].map(|name| sources.join(format!("{name}.cpp"))),
            );
            command.arg("-Wl,--whole-archive").arg(archive("kernels")).arg("-Wl,--no-whole-archive");
            command.args([archive("device"), archive("switch")]).arg("-Wl,-Bsymbolic");
            // Threads of kernels may run when the library is closed: their code stays.
            command.arg("-Wl,-z,nodelete");
        })
    })
}

/// Compiles a `libcuda.so` into a folder of its own; returns the folder.
///
/// # Panics
/// As [`folder`].
pub fn library(folder: &Path, sources: impl FnOnce(&mut Command)) -> PathBuf {
    shared_library(folder, "libcuda.so", sources)
}

/// Compiles a shared library into a folder of its own; returns the folder.
///
/// # Panics
/// As [`folder`].
pub fn shared_library(folder: &Path, name: &str, sources: impl FnOnce(&mut Command)) -> PathBuf {
    std::fs::create_dir_all(folder).expect("a folder");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut command = Command::new(compiler);
    command.args(["-shared", "-fPIC", "-o"]).arg(folder.join(name));
    sources(&mut command);
    let output = command.output().expect("a C++ compiler");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{command:?}: {}: {said}", output.status);
    folder.to_path_buf()
}
