//! Handles, structs as the header's inline functions make them, and checks of statuses.

use lmhead_capi::sys::*;
use std::ffi::CStr;

/// A struct of the header, zeroed.
pub fn zeroed<T: Copy>() -> T {
    // SAFETY: numbers and pointers, of which zeros are legal.
    unsafe { std::mem::zeroed() }
}

/// As `NAME_init()` of the header.
macro_rules! init {
    ($name:ident) => {{
        let mut value: lmhead_capi::sys::$name = crate::rig::zeroed();
        value.size = size_of::<lmhead_capi::sys::$name>();
        value
    }};
}
pub(crate) use init;

/// The thread's latest error message.
pub fn last_error() -> String {
    // SAFETY: a string of the library's, copied before its next call.
    unsafe { CStr::from_ptr(lmhead_last_error()) }.to_str().expect("UTF-8").into()
}

/// Panics on any status but 0.
#[track_caller]
pub fn good(status: lmhead_status) {
    assert_eq!(status, 0, "{}", last_error());
}

/// Panics on another status or a message without these words.
#[track_caller]
pub fn fails(status: lmhead_status, wanted: u32, words: &str) {
    let said = last_error();
    assert!(
        status == wanted as i32 && said.contains(words),
        "wanted {wanted}, `{words}`; got {status}, `{said}`"
    );
}

/// A backend with so many threads of the host.
pub fn backend_of(device_type: u32, threads: i32) -> *mut lmhead_backend {
    let device_type = device_type as i32;
    let config = lmhead_backend_config { device_type, threads, ..init!(lmhead_backend_config) };
    let mut backend = std::ptr::null_mut();
    // SAFETY: both pointers are valid.
    good(unsafe { lmhead_backend_open(&raw const config, &raw mut backend) });
    backend
}
