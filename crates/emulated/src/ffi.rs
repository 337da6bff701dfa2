//! The functions and structs of `kernels/emulated` that are used from here.

use super::fault::FaultKind;
use std::ffi::{c_char, c_void};

/// `Kernel` of `device.hpp`: what the macro KERNEL makes of a kernel.
#[repr(C)]
pub struct RawKernel {
    pub(super) name: *const c_char,
    body: Option<unsafe extern "C" fn(*const c_void)>,
    pub(super) params_bytes: u64,
    max_threads: u32,
    blocks_per_sm: u32,
    pub(super) cluster: u32,
    pub(super) waits_for_peers: u32,
}

// SAFETY: written by the compiler, never changed.
unsafe impl Sync for RawKernel {}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Allocation {
    pub address: u64,
    pub bytes: u64,
    pub writable: u32,
    pub number: u32,
    pub marks: *mut u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Host {
    pub context: *const c_void,
    pub wait_for_primary: extern "C" fn(*const c_void) -> i32,
    pub block_triggered: extern "C" fn(*const c_void),
    pub trace: extern "C" fn(*const c_void, *const u8, u64),
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Launch {
    pub kernel: *const RawKernel,
    pub params: *const c_void,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub dynamic_shared: u32,
    pub shared_limit: u32,
    pub seed: u64,
    pub checks: u32,
    pub traced: u32,
    pub trace_block: u64,
    pub instruction_limit: u64,
    pub allocations: *const Allocation,
    pub allocation_count: u64,
    pub primary: *const Allocation,
    pub overlapped: u32,
    pub in_turn: u32,
    pub host: Host,
}

#[repr(C)]
pub(super) struct RawFault {
    pub kind: i32,
    pub block: [u32; 3],
    pub thread: u32,
    pub has_address: u32,
    pub address: u64,
    pub instruction: [u8; 64],
    pub text: [u8; 6144],
}

impl RawFault {
    pub fn empty() -> Box<Self> {
        Box::new(Self {
            kind: FaultKind::NONE,
            block: [0; 3],
            thread: u32::MAX,
            has_address: 0,
            address: 0,
            instruction: [0; 64],
            text: [0; 6144],
        })
    }
}

#[repr(C)]
pub(super) struct RawWorker {
    opaque: [u8; 0],
}

unsafe extern "C" {
    pub(super) fn lmhead_emulated_open_worker() -> *mut RawWorker;
    pub(super) fn lmhead_emulated_close_worker(worker: *mut RawWorker);
    pub(super) fn lmhead_emulated_check_launch(launch: *const Launch, fault: *mut RawFault) -> i32;
    pub(super) fn lmhead_emulated_run_cluster(
        worker: *mut RawWorker,
        launch: *const Launch,
        number: u64,
        fault: *mut RawFault,
    ) -> i32;
    /// Sizes of Kernel, Allocation, Host, Launch and Fault.
    pub(super) fn lmhead_emulated_sizes(out: *mut [u64; 5]);
    pub(super) fn lmhead_emulated_multiply_k16(
        path: i32,
        is_f16: i32,
        a: *const u16,
        b: *const u16,
        d: *mut f32,
        m: i32,
        n: i32,
    ) -> i32;
    pub(super) fn lmhead_emulated_warp_tile(
        portable: i32,
        kind: i32,
        a: *const u32,
        b: *const u32,
        d: *mut u32,
    );
    pub(super) fn lmhead_emulated_step_of_8(is_f16: i32, a: *const u16, b: *const u16, c: u32) -> u32;
}

/// Whether the structs here and in C++ have the same sizes.
pub(super) fn layouts_agree() -> bool {
    let mut sizes = [0; 5];
    // SAFETY: the function writes five numbers.
    unsafe { lmhead_emulated_sizes(&mut sizes) };
    let ours = [
        size_of::<RawKernel>(),
        size_of::<Allocation>(),
        size_of::<Host>(),
        size_of::<Launch>(),
        size_of::<RawFault>(),
    ];
    sizes == ours.map(|x| x as u64)
}
