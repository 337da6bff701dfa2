//! A `libnccl.so.2` of the project's own (`crates/gpu/fake_nccl`). Its ranks are threads of one process, on
//! the devices and streams of [`fake_driver`](crate::fake_driver). It is stricter than NCCL: the head of its
//! `world.hpp` has the rules, and the environment variables that inject faults.

use crate::fake_driver::shared_library;
use std::ffi::{CStr, CString, c_char};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The folder of the library, below `place`, compiled once per process. A child process finds it and the
/// driver where both folders are in its `LD_LIBRARY_PATH`.
///
/// # Panics
/// Where there is no C++ compiler, or it fails or warns.
pub fn folder(place: &Path) -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| compile(&place.join("fake-nccl"), &[]))
}

/// The folder of a build without `ncclCommRevoke` and `ncclGetPeerDevicePointer`, version 2.27.7.
///
/// # Panics
/// As [`folder`].
pub fn older_folder(place: &Path) -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| compile(&place.join("fake-nccl-older"), &["-DFAKE_NCCL_OLDER"]))
}

fn compile(folder: &Path, more: &[&str]) -> PathBuf {
    shared_library(folder, "libnccl.so.2", |command| {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        command.args(["-std=c++17", "-O1", "-Wall", "-Wextra"]).args(more);
        command.arg("-I").arg(root.join("fake_driver"));
        let sources = ["world", "communicators", "groups", "meetings", "windows"];
        command.args(sources.map(|name| root.join("fake_nccl").join(format!("{name}.cpp"))));
        // Queues of the driver hold its work: its code stays when the library is closed.
        command.args(["-ldl", "-Wl,-Bsymbolic", "-Wl,-z,nodelete", "-Wl,-soname,libnccl.so.2"]);
    })
}

/// What a test asks of the library that the process has loaded.
pub struct FakeNccl(libloading::Library);

impl FakeNccl {
    /// The library that the loader finds, which is the one that the process has loaded already.
    ///
    /// # Panics
    /// Where there is none, or another.
    pub fn loaded() -> Self {
        // SAFETY: its constructors only make empty tables.
        let library = unsafe { libloading::Library::new("libnccl.so.2") }.expect("libnccl.so.2");
        let nccl = FakeNccl(library);
        nccl.count("communicators"); // another library has no such function
        nccl
    }

    /// The library's function of this name.
    ///
    /// # Panics
    /// Where it has none.
    ///
    /// # Safety
    /// `F` is its type.
    pub unsafe fn get<F: Copy>(&self, name: &str) -> F {
        // SAFETY: the caller's promise.
        unsafe { self.find(name) }
            .unwrap_or_else(|| panic!("{name}: the loaded libnccl.so.2 has no such function"))
    }

    /// The library's function of this name, where it has it.
    ///
    /// # Safety
    /// `F` is its type.
    pub unsafe fn find<F: Copy>(&self, name: &str) -> Option<F> {
        // SAFETY: the caller's promise.
        unsafe { self.0.get::<F>(name.as_bytes()) }.ok().map(|function| *function)
    }

    /// "communicators", "windows", "memories" of `ncclMemAlloc`: how many there are. How many so far: "made",
    /// "launches", "replays", "operations", "bytes" received, "misuses".
    ///
    /// # Panics
    /// Where it counts no such thing.
    pub fn count(&self, what: &str) -> i64 {
        let text = CString::new(what).expect("no zero in it");
        // SAFETY: the library's own function.
        let count = unsafe {
            self.get::<unsafe extern "C" fn(*const c_char) -> i64>("fake_nccl_count")(text.as_ptr())
        };
        assert!(count >= 0, "the fake nccl does not count {what:?}");
        count
    }

    /// Changes the variable `FAKE_NCCL_<name>` of `world.hpp` from now on; with `None` the environment's
    /// value counts again.
    ///
    /// # Panics
    /// Where a text has a zero.
    pub fn set(&self, name: &str, value: Option<&str>) {
        let name = CString::new(format!("FAKE_NCCL_{name}")).expect("no zero in it");
        let value = value.map(|value| CString::new(value).expect("no zero in it"));
        let value = value.as_ref().map_or(std::ptr::null(), |value| value.as_ptr());
        // SAFETY: the library's own function, which copies both.
        unsafe {
            self.get::<unsafe extern "C" fn(*const c_char, *const c_char)>("fake_nccl_set")(
                name.as_ptr(),
                value,
            );
        }
    }

    /// As if the process of `rank` had died: the others of its communicators get `ncclRemoteError`.
    pub fn lose(&self, rank: i32) {
        // SAFETY: the library's own function.
        unsafe { self.get::<unsafe extern "C" fn(i32)>("fake_nccl_lose")(rank) };
    }

    /// Which ranks wait for which, in words.
    pub fn stuck(&self) -> String {
        self.text("fake_nccl_stuck").unwrap_or_default()
    }

    /// The oldest misuse that was not taken. Those that nobody takes end the process with code 86.
    pub fn take_misuse(&self) -> Option<String> {
        self.text("fake_nccl_take_misuse")
    }

    fn text(&self, name: &str) -> Option<String> {
        // SAFETY: the library's own functions; a text lives until the thread's next call of the same.
        unsafe {
            let text = self.get::<unsafe extern "C" fn() -> *const c_char>(name)();
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    }
}
