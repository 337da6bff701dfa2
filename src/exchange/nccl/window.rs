//! Symmetric windows: device memory of each member, with addresses for the other members' own kernels.
//!
//! Facts of NCCL that this rests on, from its user guide and its source, version 2.30.7:
//!
//! * Registration is collective (`ncclCommWindowRegister`, api/comms.rst). On a communicator that does not
//!   block it goes on in a thread of NCCL's, which writes the window at any time until the communicator's
//!   state is `ncclSuccess` (`ncclGroupEndInternal`, group.cc). That thread may wait for a member that
//!   never comes: only an abort of the communicator helps.
//! * Where NCCL can map no memory, registration succeeds without a window (`symmetricSupport`,
//!   dev_runtime.cc). A window gives a null address for a peer that is not in the team of load and store
//!   (LSA), which is of consecutive members (`ncclGetPeerDevicePointer`, api/device_setup.rst).
//! * Deregistration concerns this member only (`ncclCommWindowDeregister`, api/comms.rst). It takes the
//!   peers' memory from this process's address space. In a report it hung beside a collective of another
//!   thread (NVIDIA/nccl#2184). So it is called only in the thread that destroys the communicator, never
//!   under its lock: an abort must not wait for it.
//! * `ncclCommAbort` and `ncclCommDestroy` take away the windows that are left (`ncclDevrFinalize`,
//!   dev_runtime.cc; from 2.29.7 on) and free the communicator, so that neither it nor a window may be given
//!   to NCCL any more. The memory itself stays, and is freed afterwards by `ncclMemFree`.
//! * Each mapping holds the memory that it maps (the driver's `cuMemRelease`). A member that frees its own
//!   takes nothing from peers that still have it mapped.

use super::communicator::{ABORT_GRACE, Called, Communicator, Handle, Refused, within};
use super::{Nccl, sys};
use crate::exchange::{Fault, StreamMarks};
use crate::process::Maker;
use std::ffi::{c_int, c_void};
use std::sync::{Arc, mpsc};
use std::time::Instant;

/// One member's part of memory that all members have: its own bytes, and addresses of the others'.
///
/// The addresses are for kernels of this member's device. They hold until the window is dropped **or its
/// communicator ends**, whichever is first: an abort takes the peers' memory from this process, and a kernel
/// that still uses it then fails, and with it the device's context. So work that uses a window is ended, on
/// the device, before the communicator is aborted, destroyed or dropped, and before the window is dropped.
///
/// Peers may write here until they have dropped theirs. What they write after this one's drop goes nowhere.
///
/// The memory of a dropped window is freed when its communicator has ended, or at once where it has.
pub struct Window {
    nccl: Nccl,
    handle: Arc<Handle>,
    left: Option<Left>,
    peers: Vec<Option<u64>>,
    address: u64,
    bytes: usize,
    maker: Maker,
}

/// What NCCL has of a window.
pub(super) struct Left {
    /// Null where there is no window, or nobody knows whether there is one.
    window: sys::ncclWindow_t,
    memory: *mut c_void,
    device: Arc<dyn StreamMarks>,
}

// SAFETY: a handle and memory that NCCL takes from any thread; whoever owns this uses it alone.
unsafe impl Send for Left {}
// SAFETY: shared, it is only moved on: nothing is done with it but by its owner.
unsafe impl Sync for Left {}

impl Communicator {
    /// Makes a window of `bytes` bytes, which hold anything. Collective: all members call this with the same
    /// `bytes`, in one order with their other collectives, and no thread of theirs is capturing. It waits for
    /// them until `deadline`.
    ///
    /// It allocates, for which the device may have to become idle: call it before there is work.
    ///
    /// # Errors
    /// `Broken` where the communicator is an engine's, which could destroy it under the window, or NCCL has
    /// no windows ([`Nccl::has_windows`]): nothing has begun then. As [`Communicator::new`] otherwise; this
    /// communicator is aborted then, since its part in the registration may go on.
    pub fn window(&self, bytes: usize, deadline: Instant) -> std::result::Result<Window, Fault> {
        self.check_windows().map_err(Refused::into_fault)?;
        let mut ended = || (Instant::now() >= deadline).then(|| Fault::Timeout { missing: Vec::new() });
        let window = self.window_polled(bytes, &mut ended);
        window.inspect_err(|_| self.abort()).map_err(Refused::into_fault)
    }

    /// The same, until `ended` returns why it cannot come about. The caller aborts the communicator after an
    /// error.
    pub(super) fn window_polled(
        &self,
        bytes: usize,
        ended: &mut dyn FnMut() -> Option<Fault>,
    ) -> Called<Window> {
        self.check_windows()?;
        let functions = self.nccl.functions();
        let mut memory: *mut c_void = std::ptr::null_mut();
        // SAFETY: a place for the address.
        let result = within(&self.device, || unsafe { functions.ncclMemAlloc(&mut memory, bytes.max(1)) })?;
        self.nccl.check("ncclMemAlloc", result)?;
        if memory.is_null() {
            return Err(self.nccl.none("ncclMemAlloc").into());
        }
        // Where the registration fails, dropping `made` leaves the memory to the end of the communicator.
        let mut made = Window {
            nccl: self.nccl,
            handle: Arc::clone(&self.handle),
            left: Some(self.left(std::ptr::null_mut(), memory)),
            peers: vec![None; self.size()],
            address: memory as u64,
            bytes,
            maker: Maker::here(),
        };
        // NCCL writes the window in the background. Where nobody waits for that any longer, the place for it
        // is never freed.
        let place = Box::into_raw(Box::new(std::ptr::null_mut()));
        let result = self.within(|raw| {
            let flags = sys::NCCL_WIN_COLL_SYMMETRIC as c_int;
            // SAFETY: a live communicator, memory of NCCL's that outlives it, and a place that lives on.
            unsafe { functions.ncclCommWindowRegister(raw, memory, bytes.max(1), place, flags) }
        })?;
        self.nccl.check("ncclCommWindowRegister", result)?;
        self.wait_async_done(ended)?;
        // SAFETY: made above; NCCL is done with it.
        let window: sys::ncclWindow_t = *unsafe { Box::from_raw(place) };
        made.left = Some(self.left(window, memory));
        if !window.is_null() {
            for peer in 0..self.size() {
                made.peers[peer] = self.address_at(window, peer)?;
            }
        }
        // This member's bytes have two addresses in this process: the allocation's and the window's. Only one
        // is used, since a device need not keep accesses through two of them in order.
        made.address = made.peers[self.rank()].unwrap_or(made.address);
        made.peers[self.rank()] = Some(made.address);
        Ok(made)
    }

    fn left(&self, window: sys::ncclWindow_t, memory: *mut c_void) -> Left {
        Left { window, memory, device: Arc::clone(&self.device) }
    }

    /// The address of `peer`'s bytes; `None` where this device cannot reach them.
    fn address_at(&self, window: sys::ncclWindow_t, peer: usize) -> Called<Option<u64>> {
        let functions = self.nccl.functions();
        let mut address: *mut c_void = std::ptr::null_mut();
        // SAFETY: a window of this communicator, which lives as long as `within` finds that live, and a place
        // for the answer.
        let mut ask =
            || unsafe { functions.ncclGetPeerDevicePointer(window, 0, peer as c_int, &mut address) };
        let result = self.within(|_| ask())?;
        self.nccl.check("ncclGetPeerDevicePointer", result)?;
        Ok((!address.is_null()).then_some(address as u64))
    }

    fn check_windows(&self) -> Called<()> {
        let (problem, fix) = if self.borrowed {
            (
                "wanted a communicator that lmhead has made, for a window, got the engine's".into(),
                "use NCCL without the engine's communicator",
            )
        } else if !self.nccl.has_windows() {
            (
                format!("wanted an NCCL with windows, 2.31.2 or newer, got {}", self.nccl.version()),
                "install a newer NCCL",
            )
        } else {
            return Ok(());
        };
        Err(Refused::Fault(Fault::Broken { problem, fix: fix.into() }))
    }
}

impl Window {
    /// The device address of this member's own bytes.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The length of each member's part, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// By member, where this device reads and writes that member's bytes: `None` where it cannot, and for
    /// this member [`Window::address`]. Members may reach different peers: they agree on what they use.
    pub fn peers(&self) -> &[Option<u64>] {
        &self.peers
    }

    /// The members whose bytes this device cannot reach.
    pub fn unreachable(&self) -> Vec<usize> {
        (0..self.peers.len()).filter(|&peer| self.peers[peer].is_none()).collect()
    }
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Window")
            .field("address", &self.address)
            .field("bytes", &self.bytes)
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if !self.maker.is_here() {
            return;
        }
        let Some(left) = self.left.take().and_then(|left| self.handle.leave(left)) else { return };
        // The communicator has ended. Freeing may wait for the device, so a thread does it.
        let functions = self.nccl.functions();
        let (done, is_done) = mpsc::channel();
        let free = move || {
            left.free(functions);
            let _ = done.send(());
        };
        if std::thread::Builder::new().name("lmhead-free".into()).spawn(free).is_ok() {
            // What takes longer is left to the thread.
            let _ = is_done.recv_timeout(ABORT_GRACE);
        }
    }
}

impl Left {
    /// Takes the window from a live communicator with nothing in progress. May wait for the device.
    pub fn deregister(&self, functions: &sys::Library, raw: sys::ncclComm_t) {
        if !self.window.is_null() {
            // SAFETY: a window of that communicator, which nobody uses any more. The result changes nothing.
            let _ = unsafe { functions.ncclCommWindowDeregister(raw, self.window) };
        }
    }

    /// Frees the memory, after the communicator has ended. May wait for the device.
    pub fn free(self, functions: &sys::Library) {
        // SAFETY: from `ncclMemAlloc`, and in no window any more. Where the device refuses, it stays.
        let _ = within(&self.device, || unsafe { functions.ncclMemFree(self.memory) });
    }
}
