//! The CUDA context that a thread's driver calls are for.

use cudarc::driver::{DriverError, result, sys};

/// A device's primary context, which every library of a process shares, or one of the engine's own.
#[derive(Debug)]
pub(super) struct Context {
    raw: sys::CUcontext,
    /// The device whose primary context we have retained; released when this is dropped.
    primary: Option<sys::CUdevice>,
}

// SAFETY: a handle, which the driver takes from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub fn primary(device: sys::CUdevice) -> Result<Self, DriverError> {
        // SAFETY: the device came from the driver; released in `drop`.
        Ok(Context { raw: unsafe { result::primary_ctx::retain(device) }?, primary: Some(device) })
    }

    /// # Safety
    /// A context that outlives this.
    pub unsafe fn borrowed(raw: sys::CUcontext) -> Self {
        Context { raw, primary: None }
    }

    /// Makes it the calling thread's current context until the returned guard is dropped: so engines find
    /// their own as they left it.
    pub fn bind(&self) -> Result<Bound, DriverError> {
        let before = result::ctx::get_current()?;
        if before == Some(self.raw) {
            return Ok(Bound(None));
        }
        // SAFETY: it lives as long as `self`.
        unsafe { result::ctx::set_current(self.raw) }?;
        Ok(Bound(Some(before.unwrap_or(std::ptr::null_mut()))))
    }
}

impl Context {
    /// Gives the context up without releasing it, which would wait for ever for a kernel that does not end.
    pub fn leak(&mut self) {
        self.primary = None;
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if let Some(device) = self.primary {
            // SAFETY: retained once. What it says at the end of a process is nobody's concern.
            let _ = unsafe { result::primary_ctx::release(device) };
        }
    }
}

/// While it lives, our context is the thread's current one; then the one before is restored, if it was
/// another.
#[derive(Debug)]
#[must_use]
pub(super) struct Bound(Option<sys::CUcontext>);

impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            // SAFETY: it was current a moment ago; null is "none".
            let _ = unsafe { result::ctx::set_current(before) };
        }
    }
}
