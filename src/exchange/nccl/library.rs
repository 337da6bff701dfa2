//! NCCL itself: found and loaded at run time, its version, unique ids, and what its result codes say.

use super::sys;
use super::unique_id::UniqueId;
use crate::error::{Error, Result};
use crate::exchange::Fault;
use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Names the library's file, or its folder; read where [`Nccl::load`] is given no path.
pub const LMHEAD_NCCL: &str = "LMHEAD_NCCL";

/// The name under which NCCL is installed; PyPI's wheels have no other.
const NAME: &str = "libnccl.so.2";

/// The first version with `ncclCommSplit` and with communicators that do not block.
const OLDEST: Version = Version { major: 2, minor: 18, patch: 1 };

/// The first version whose windows are used: 2.31.2 mended wrong bytes where windows share an allocation
/// (NVIDIA/nccl#2198) and a hang of the first copying collective of two members (NVIDIA/nccl#2241).
const WINDOWS: Version = Version { major: 2, minor: 31, patch: 2 };

const INSTALL: &str = "install NVIDIA's NCCL (the system's package libnccl2, or `pip install \
                       nvidia-nccl-cu13`), or set LMHEAD_NCCL to the path of a libnccl.so.2";

/// NCCL's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Version {
    /// `NCCL_VERSION_CODE`: 2708 is 2.7.8, and from 2.9 on 21801 is 2.18.1.
    fn of_code(code: u32) -> Self {
        let major = if code < 10000 { 1000 } else { 10000 };
        Version { major: code / major, minor: code % major / 100, patch: code % 100 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// A loaded NCCL. Copies are the same one; it is never unloaded, since its threads may outlive whoever uses
/// it.
#[derive(Clone, Copy)]
pub struct Nccl(&'static Loaded);

struct Loaded {
    functions: sys::Library,
    path: PathBuf,
    version: Version,
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NCCL {} ({})", self.version(), self.path().display())
    }
}

/// What is loaded, by the file of the library.
static LOADED: Mutex<BTreeMap<PathBuf, &'static Loaded>> = Mutex::new(BTreeMap::new());

impl Nccl {
    /// Loads NCCL: the file `path`, or the `libnccl.so.2` of that folder. Without a path, what `LMHEAD_NCCL`
    /// in the environment names. Without that, the library that the process has loaded already or that the
    /// loader finds; else that of PyPI's wheel (`nvidia/nccl/lib` below the site-packages) in the Python
    /// environment of `VIRTUAL_ENV` or `CONDA_PREFIX`, or of the `python3` on `PATH`.
    ///
    /// No GPU is needed.
    ///
    /// # Errors
    /// `Unsupported` naming the paths that were tried and what the loader says, the functions that are
    /// missing, or the version.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let named = path.map(Path::to_path_buf);
        let named =
            named.or_else(|| std::env::var_os(LMHEAD_NCCL).filter(|it| !it.is_empty()).map(Into::into));
        let tried = match named {
            Some(named) if named.is_dir() => vec![named.join(NAME)],
            Some(named) => vec![named],
            None => std::iter::once(NAME.into()).chain(wheels()).collect(),
        };
        let mut refusals = Vec::new();
        for path in tried {
            match open(path.as_os_str()) {
                Ok(functions) => return Self::of(functions, path),
                Err(problem) => refusals.push(format!("{}: {problem}", path.display())),
            }
        }
        Err(Error::unsupported("NCCL", NAME, refusals.join("; "), INSTALL))
    }

    fn of(functions: sys::Library, named: PathBuf) -> Result<Self> {
        let path = functions.ncclGetVersion.as_ref().ok().and_then(|known| file_of(*known as usize));
        let path = path.unwrap_or(named);
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = loaded.get(&path) {
            return Ok(Nccl(known));
        }
        let what = format!("NCCL at {}", path.display());
        let version = match &functions.ncclGetVersion {
            Ok(get_version) => {
                let mut code: c_int = 0;
                // SAFETY: NCCL's own function, and a place for its answer.
                let result = unsafe { get_version(&mut code) };
                if result != sys::ncclSuccess {
                    let got = format!("result code {result} from ncclGetVersion");
                    return Err(Error::unsupported(what, "its version", got, INSTALL));
                }
                Version::of_code(u32::try_from(code).unwrap_or(0))
            }
            Err(problem) => {
                let got = format!("a library without ncclGetVersion ({})", loaders_words(problem));
                return Err(Error::unsupported(what, "NVIDIA's NCCL", got, INSTALL));
            }
        };
        if version < OLDEST {
            let fix = format!("{INSTALL} that is new enough");
            return Err(Error::unsupported(what, format!("version {OLDEST} or newer"), version, fix));
        }
        let missing = missing(&functions);
        if !missing.is_empty() {
            let got = format!("version {version} without {}", missing.join(", "));
            return Err(Error::unsupported(what, "all functions that are used", got, INSTALL));
        }
        let known = Box::leak(Box::new(Loaded { functions, path: path.clone(), version }));
        loaded.insert(path, known);
        Ok(Nccl(known))
    }

    /// The library's version.
    pub fn version(&self) -> Version {
        self.0.version
    }

    /// The library's file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Whether a communicator can have windows ([`Communicator::window`](super::Communicator::window)): from
    /// 2.31.2 on, where the library has the functions.
    pub fn has_windows(&self) -> bool {
        let functions = self.functions();
        let has_all = functions.ncclMemAlloc.is_ok()
            && functions.ncclMemFree.is_ok()
            && functions.ncclCommWindowRegister.is_ok()
            && functions.ncclCommWindowDeregister.is_ok()
            && functions.ncclGetPeerDevicePointer.is_ok();
        has_all && self.version() >= WINDOWS
    }

    /// A new id, for one communicator. One member makes it, and all members get it
    /// ([`UniqueId::share`]). Needs no GPU; opens a socket, over which the members meet.
    ///
    /// # Errors
    /// `Exchange` with NCCL's words: `NCCL_SOCKET_IFNAME` names no network interface, or there is none.
    pub fn unique_id(&self) -> Result<UniqueId> {
        self.make_id().map_err(|failed| failed.into_fault().without_call("making of an id for NCCL"))
    }

    pub(super) fn make_id(&self) -> std::result::Result<UniqueId, Failed> {
        let mut id = sys::ncclUniqueId { internal: [0; UniqueId::BYTES] };
        // SAFETY: a place for the answer.
        let result = unsafe { self.functions().ncclGetUniqueId(&mut id) };
        self.check("ncclGetUniqueId", result)?;
        Ok(UniqueId::of(id))
    }

    pub(super) fn functions(&self) -> &'static sys::Library {
        &self.0.functions
    }

    /// The error that a result code of `function` means. Work that goes on in the background is no failure.
    pub(super) fn check(
        &self,
        function: &'static str,
        result: sys::ncclResult_t,
    ) -> std::result::Result<(), Failed> {
        self.check_of(function, result, std::ptr::null_mut())
    }

    /// The same for a call with a live communicator, or a null pointer.
    pub(super) fn check_of(
        &self,
        function: &'static str,
        result: sys::ncclResult_t,
        raw: sys::ncclComm_t,
    ) -> std::result::Result<(), Failed> {
        if matches!(result, sys::ncclSuccess | sys::ncclInProgress) {
            return Ok(());
        }
        // SAFETY: it answers a constant for any code, and a buffer of the library's whose last byte stays 0.
        let (meaning, last) = unsafe {
            let functions = self.functions();
            let last = functions.ncclGetLastError(raw);
            (words(functions.ncclGetErrorString(result)), words(last))
        };
        Err(Failed { function, code: result, meaning, last, version: self.version() })
    }
}

impl Nccl {
    /// The error of a function that succeeded, but made nothing.
    pub(super) fn none(&self, function: &'static str) -> Failed {
        let meaning = "success, without a result".into();
        Failed { function, code: sys::ncclSuccess, meaning, last: String::new(), version: self.version() }
    }
}

/// A text of the library's; empty for a null pointer.
///
/// # Safety
/// Null, or a string that ends with a 0.
unsafe fn words(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_string()
}

/// A call that NCCL refused, or an error that a communicator has met.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Failed {
    function: &'static str,
    pub code: sys::ncclResult_t,
    meaning: String,
    /// The library's last warning, which may be another communicator's.
    last: String,
    version: Version,
}

impl Failed {
    /// Whether a peer, or the way to it, has failed: a host transport may then know which peer.
    pub fn is_of_peers(&self) -> bool {
        // 6 is ncclRemoteError, and 8 ncclTimeout from 2.30 on.
        matches!(self.code, sys::ncclSystemError | sys::ncclRemoteError | sys::ncclTimeout)
    }

    /// The fault, with what to do.
    pub fn into_fault(self) -> Fault {
        let Failed { function, code, meaning, last, version } = self;
        let last = if last.is_empty() { last } else { format!(": {last}") };
        let problem = format!("{function} of NCCL {version}: {meaning} (code {code}){last}");
        if problem.contains("Duplicate GPU") {
            return Fault::Broken { problem, fix: ONE_GPU.into() };
        }
        let look = match code {
            sys::ncclUnhandledCudaError => {
                "look at the GPU (nvidia-smi) and at earlier errors of this process"
            }
            sys::ncclSystemError => "look at NCCL's network settings (NCCL_SOCKET_IFNAME, NCCL_IB_HCA)",
            sys::ncclRemoteError | sys::ncclTimeout => "look at the other ranks, one of which has failed",
            _ => "look at what NCCL says",
        };
        Fault::Broken { problem, fix: format!("{look}; NCCL_DEBUG=WARN makes it say more") }
    }
}

/// The advice for two ranks on one GPU.
const ONE_GPU: &str = "give each rank a GPU of its own; for tests of several ranks on one GPU start one \
                       process a rank, each with another NCCL_HOSTID, and all with NCCL_NET=Socket \
                       NCCL_SOCKET_IFNAME=lo NCCL_MNNVL_ENABLE=0";

/// Loads a library and looks its functions up.
fn open(path: &OsStr) -> std::result::Result<sys::Library, String> {
    // SAFETY: NCCL's initialisers may run at any time and on any thread.
    unsafe { sys::Library::new(path) }.map_err(|error| loaders_words(&error))
}

/// What the loader says: it stands in the error's source.
fn loaders_words(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// The missing functions, among those that every version from the oldest on has.
fn missing(functions: &sys::Library) -> Vec<&'static str> {
    macro_rules! missing {
        ($($name:ident)*) => {
            [$((stringify!($name), functions.$name.is_err())),*]
        };
    }
    let all = missing! {
        ncclGetUniqueId ncclCommInitRankConfig ncclCommSplit ncclCommFinalize ncclCommDestroy
        ncclCommAbort ncclCommGetAsyncError ncclCommCount ncclCommUserRank ncclCommCuDevice
        ncclGetErrorString ncclGetLastError ncclGroupStart ncclGroupEnd ncclSend ncclRecv ncclBroadcast
        ncclAllGather
    };
    all.into_iter().filter_map(|(name, missing)| missing.then_some(name)).collect()
}

/// The file that is mapped at an address of this process.
fn file_of(address: usize) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let bound = |hex| usize::from_str_radix(hex, 16).ok();
        let holds = (bound(from)?..bound(to)?).contains(&address);
        holds.then(|| rest.find('/').map(|at| PathBuf::from(&rest[at..])))?
    })
}

/// The libraries of PyPI's wheels that exist.
fn wheels() -> Vec<PathBuf> {
    let of_path = |path: OsString| {
        let mut folders = std::env::split_paths(&path);
        // The prefix of /usr/bin/python3 is /usr.
        folders
            .find(|folder| folder.join("python3").is_file())
            .and_then(|bin| Some(bin.parent()?.to_path_buf()))
    };
    let prefixes = [
        std::env::var_os("VIRTUAL_ENV").map(PathBuf::from),
        std::env::var_os("CONDA_PREFIX").map(PathBuf::from),
        std::env::var_os("PATH").and_then(of_path),
    ];
    prefixes.into_iter().flatten().flat_map(|prefix| wheels_below(&prefix)).collect()
}

/// Those below one Python's prefix: `lib/python3.*/{site,dist}-packages/nvidia/nccl/lib/libnccl.so.2`.
fn wheels_below(prefix: &Path) -> Vec<PathBuf> {
    let pythons = std::fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten();
    let mut pythons: Vec<PathBuf> = pythons
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
        .map(|entry| entry.path())
        .collect();
    pythons.sort();
    let packages = |python: PathBuf| ["site-packages", "dist-packages"].map(|packages| python.join(packages));
    let library = |packages: PathBuf| packages.join("nvidia/nccl/lib").join(NAME);
    pythons.into_iter().flat_map(packages).map(library).filter(|path| path.is_file()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_both_kinds_of_codes() {
        for (code, text) in [(2708, "2.7.8"), (21801, "2.18.1"), (23007, "2.30.7"), (23203, "2.32.3")] {
            assert_eq!(Version::of_code(code).to_string(), text);
        }
        assert!(Version::of_code(2708) < OLDEST && OLDEST < Version::of_code(22707));
    }

    #[test]
    fn a_function_of_this_program_is_in_its_file() {
        let file = file_of(versions_are_read_from_both_kinds_of_codes as *const () as usize);
        assert_eq!(file, std::env::current_exe().ok());
        assert_eq!(file_of(8), None);
    }

    #[test]
    fn wheels_are_found_below_a_prefix() {
        let prefix = tempfile::tempdir().expect("a folder");
        let lib = prefix.path().join("lib/python3.12/site-packages/nvidia/nccl/lib");
        std::fs::create_dir_all(&lib).expect("a folder");
        std::fs::create_dir_all(prefix.path().join("lib/python3.9/dist-packages")).expect("a folder");
        assert_eq!(wheels_below(prefix.path()), Vec::<PathBuf>::new());
        std::fs::write(lib.join(NAME), "").expect("a file");
        assert_eq!(wheels_below(prefix.path()), [lib.join(NAME)]);
    }
}
