//! Status, errors, and what this build is.

use crate::boundary::{self, call, place, with_last_ranks};
use crate::sys::{self, lmhead_status};
use std::ffi::{CString, c_char, c_void};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{PoisonError, RwLock};

const NAMES: [&std::ffi::CStr; 17] = [
    c"OK",
    c"CONFIG",
    c"SHAPE",
    c"DTYPE",
    c"INDEX",
    c"REQUEST",
    c"FILE",
    c"TENSOR",
    c"STEP_MISMATCH",
    c"TIMEOUT",
    c"RANK_LOST",
    c"POISONED",
    c"EXCHANGE",
    c"UNSUPPORTED",
    c"DEVICE",
    c"ARGUMENT",
    c"INTERNAL",
];

const _: () = assert!(NAMES.len() == sys::LMHEAD_ERROR_INTERNAL as usize + 1);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_status_name(status: lmhead_status) -> *const c_char {
    usize::try_from(status).ok().and_then(|at| NAMES.get(at)).copied().unwrap_or(c"?").as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_last_error() -> *const c_char {
    boundary::last_error()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_last_error_ranks(ranks: *mut i64, capacity: usize) -> usize {
    with_last_ranks(|known| {
        if !ranks.is_null() && ranks.is_aligned() {
            // SAFETY: the caller's promise of `capacity` places.
            unsafe { std::ptr::copy_nonoverlapping(known.as_ptr(), ranks, known.len().min(capacity)) };
        }
        known.len()
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_abi() -> i32 {
    sys::LMHEAD_ABI as i32
}

/// The version of the package. A test compares the header's numbers with it.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_version() -> *const c_char {
    VERSION.as_ptr().cast()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_features() -> *const c_char {
    match (cfg!(feature = "cuda"), cfg!(feature = "nccl")) {
        (false, false) => c"cpu".as_ptr(),
        (true, false) => c"cpu cuda".as_ptr(),
        (false, true) => c"cpu nccl".as_ptr(),
        (true, true) => c"cpu cuda nccl".as_ptr(),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_doctor(json: *mut *mut c_char) -> lmhead_status {
    call(|| {
        let json = place("json", json)?;
        let checks: Vec<_> = lmhead::doctor::examine()
            .iter()
            .map(|check| {
                serde_json::json!({
                    "name": check.name,
                    "status": check.status,
                    "message": check.message,
                    "suggestion": check.suggestion,
                })
            })
            .collect();
        // SAFETY: `json` is non-null and aligned (checked); the header requires it to be writable.
        unsafe { json.write(owned(&serde_json::json!({ "checks": checks }).to_string())) };
        Ok(())
    })
}

/// A string that C frees by `lmhead_string_free`.
pub fn owned(text: &str) -> *mut c_char {
    let bytes: Vec<u8> = text.bytes().filter(|byte| *byte != 0).collect();
    CString::new(bytes).map_or(std::ptr::null_mut(), CString::into_raw)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_string_free(string: *mut c_char) {
    if !string.is_null() {
        // SAFETY: the caller's promise: made by `owned`.
        drop(unsafe { CString::from_raw(string) });
    }
}

type Log = unsafe extern "C" fn(*mut c_void, i32, *const c_char);

#[derive(Clone, Copy)]
struct Logger {
    log: Log,
    user: *mut c_void,
}

// SAFETY: the engine's function and pointer, which it promises may be used from any thread.
unsafe impl Send for Logger {}
// SAFETY: as above.
unsafe impl Sync for Logger {}

/// Locked for reading while the engine's function runs, so that replacing or removing the log waits for it.
static LOGGER: RwLock<Option<Logger>> = RwLock::new(None);
/// The highest level that is logged, 0 without a log; read without the lock.
static MOST: AtomicI32 = AtomicI32::new(0);

#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmhead_set_log(log: Option<Log>, user: *mut c_void, max_level: i32) {
    *LOGGER.write().unwrap_or_else(PoisonError::into_inner) = log.map(|log| Logger { log, user });
    MOST.store(if log.is_some() { max_level } else { 0 }, Ordering::Release);
}

/// Levels of the log.
pub const WARNING: i32 = 2;
pub const INFORMATION: i32 = 3;

/// Writes to the engine's log, where there is one.
pub fn log(level: i32, text: &str) {
    if level > MOST.load(Ordering::Acquire) {
        return;
    }
    let logger = LOGGER.read().unwrap_or_else(PoisonError::into_inner);
    if let (Some(logger), Ok(text)) = (*logger, CString::new(text.replace('\0', " "))) {
        // SAFETY: the engine's own function; the text lives until it returns.
        unsafe { (logger.log)(logger.user, level, text.as_ptr()) };
    }
}
