//! Kernels and how they are launched.

use super::fault::Fault;
use super::ffi::{self, RawFault, RawKernel};
pub use lmhead::backend::device::Params;
use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::thread::available_parallelism;

/// A kernel and the type of its parameters. Made by [`emulated_kernel!`](crate::emulated_kernel).
#[derive(Debug, Clone, Copy)]
pub struct Kernel<P> {
    raw: *const RawKernel,
    params: PhantomData<fn(P)>,
}

// SAFETY: it points to a constant of the program.
unsafe impl<P> Send for Kernel<P> {}
// SAFETY: as above.
unsafe impl<P> Sync for Kernel<P> {}

impl<P: Params> Kernel<P> {
    /// # Safety
    /// `raw` is what KERNEL made of a kernel whose parameters are `P`.
    #[doc(hidden)]
    pub unsafe fn new(raw: *const RawKernel) -> Self {
        Kernel { raw, params: PhantomData }
    }

    /// Its name in the source.
    pub fn name(&self) -> &'static str {
        // SAFETY: written by KERNEL, from a name in the source.
        unsafe { CStr::from_ptr((*self.raw).name) }.to_str().unwrap_or("?")
    }

    /// Whether its blocks wait for kernels of other ranks (`PEER_KERNEL`), so that all of them must run at
    /// the same time.
    pub fn waits_for_peers(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw).waits_for_peers != 0 }
    }
}

/// The kernel that `KERNEL(name, Params, ...)` declares in a `.cu` file of this crate.
///
/// Safe: without a kernel of that name the program does not link, and the size of the parameters is checked
/// at launch.
#[macro_export]
macro_rules! emulated_kernel {
    ($name:ident: $params:ty) => {{
        #[allow(unsafe_code)]
        unsafe extern "C" {
            #[link_name = concat!("lmhead_kernel_", stringify!($name))]
            static RAW: $crate::ffi::RawKernel;
        }
        // SAFETY: the macro's own contract.
        #[allow(unsafe_code)]
        let kernel = unsafe { $crate::Kernel::<$params>::new(&raw const RAW) };
        kernel
    }};
}

/// The shape of a launch and how the device runs it.
#[derive(Debug, Clone, Copy)]
pub struct LaunchConfig {
    /// Blocks along x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Blocks of a cluster.
    pub cluster: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// The kernel's attribute: more than this is refused. 48 KB unless raised, 227 KB at most.
    pub shared_limit: u32,
    /// Chooses among the schedules: who runs when, and when copies land.
    pub seed: u64,
    /// Look for races, missing fences and copies that are used too early. Bounds are always checked.
    pub checks: bool,
    /// OS threads, which share the blocks; no more than cores are used. Clusters of a kernel that waits for
    /// those of other ranks have a thread each, whatever this says.
    pub threads: usize,
    /// The block, counted along x, then y, then z, whose instructions [`super::Device::take_trace`] gives.
    /// The environment variable `LMHEAD_EMULATED_TRACE` (a block's number, or `kernel:number`) prints them to
    /// the standard error instead.
    pub trace: Option<u64>,
    /// Instructions that the threads of one cluster may execute together, before the launch counts as one
    /// that never ends.
    pub instruction_limit: u64,
}

impl LaunchConfig {
    /// One block per cluster, no shared memory, seed 0, with checks, on all cores.
    pub fn new(grid: [u32; 3], block: [u32; 3]) -> Self {
        LaunchConfig {
            grid,
            block,
            cluster: [1; 3],
            dynamic_shared: 0,
            shared_limit: 48 * 1024,
            seed: 0,
            checks: true,
            threads: available_parallelism().map_or(1, |n| n.get()),
            trace: None,
            instruction_limit: 1 << 32,
        }
    }

    /// With `bytes` of dynamic shared memory, and the kernel's attribute raised to that.
    pub fn shared(mut self, bytes: u32) -> Self {
        self.dynamic_shared = bytes;
        self.shared_limit = self.shared_limit.max(bytes);
        self
    }

    /// In clusters of `blocks`.
    pub fn cluster(mut self, blocks: [u32; 3]) -> Self {
        self.cluster = blocks;
        self
    }

    /// By another schedule.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// With or without the search for races.
    pub fn checks(mut self, checks: bool) -> Self {
        self.checks = checks;
        self
    }

    /// On `threads` OS threads.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Given up after `instructions` of a cluster.
    pub fn instruction_limit(mut self, instructions: u64) -> Self {
        self.instruction_limit = instructions;
        self
    }

    /// Tracing one block.
    pub fn trace(mut self, block: u64) -> Self {
        self.trace = Some(block);
        self
    }
}

/// A launch that has been checked.
pub(super) struct Prepared {
    pub kernel: *const RawKernel,
    pub name: &'static str,
    /// A copy of the parameters, aligned for tensor maps.
    params: Vec<Line>,
    pub config: LaunchConfig,
    pub waits_for_peers: bool,
}

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u8; 64]);

impl Prepared {
    pub fn new<P: Params>(kernel: &Kernel<P>, params: &P, config: &LaunchConfig) -> Result<Self, Fault> {
        let name = kernel.name();
        let refuse = |text: String| Err(Fault::refused(name, config.seed, text));
        if !ffi::layouts_agree() {
            return refuse(
                "the structs of kernels/emulated differ from their mirrors in ffi.rs; bring them together"
                    .into(),
            );
        }
        // SAFETY: written by KERNEL, never changed.
        let (wanted, cluster) = unsafe { ((*kernel.raw).params_bytes, (*kernel.raw).cluster) };
        if wanted != size_of::<P>() as u64 {
            return refuse(format!("parameters: wanted the kernel's {wanted} bytes, got {}", size_of::<P>()));
        }
        let mut config = *config;
        if cluster > 1 {
            let declared = [cluster, 1, 1];
            if ![[1; 3], declared].contains(&config.cluster) {
                return refuse(format!(
                    "cluster: wanted the kernel's {declared:?}, got {:?}",
                    config.cluster
                ));
            }
            config.cluster = declared;
        }
        let mut copy = vec![Line([0; 64]); size_of::<P>().div_ceil(64)];
        // SAFETY: `copy` has room for a P; padding bytes are copied along and never looked at.
        unsafe {
            std::ptr::copy_nonoverlapping(
                (&raw const *params).cast::<u8>(),
                copy.as_mut_ptr().cast(),
                size_of::<P>(),
            );
        }
        let waits_for_peers = kernel.waits_for_peers();
        let prepared = Prepared { kernel: kernel.raw, name, params: copy, config, waits_for_peers };
        let mut fault = RawFault::empty();
        // SAFETY: both point to what they say; the check looks at nothing but sizes.
        if unsafe { ffi::lmhead_emulated_check_launch(&prepared.raw(), &mut *fault) } != 0 {
            return Err(Fault::new(name, config.seed, &fault));
        }
        if config.threads == 0 {
            return refuse("threads: wanted at least 1, got 0".into());
        }
        Ok(prepared)
    }

    /// For the C++ side; without buffers and callbacks.
    pub fn raw(&self) -> ffi::Launch {
        extern "C" fn never(_: *const c_void) -> i32 {
            0
        }
        extern "C" fn nothing(_: *const c_void) {}
        extern "C" fn silent(_: *const c_void, _: *const u8, _: u64) {}
        let config = &self.config;
        ffi::Launch {
            kernel: self.kernel,
            params: self.params.as_ptr().cast(),
            grid: config.grid,
            block: config.block,
            cluster: config.cluster,
            dynamic_shared: config.dynamic_shared,
            shared_limit: config.shared_limit,
            seed: config.seed,
            checks: u32::from(config.checks),
            traced: 0,
            trace_block: 0,
            instruction_limit: config.instruction_limit,
            allocations: std::ptr::null(),
            allocation_count: 0,
            primary: std::ptr::null(),
            overlapped: 0,
            in_turn: 0,
            host: ffi::Host {
                context: std::ptr::null(),
                wait_for_primary: never,
                block_triggered: nothing,
                trace: silent,
            },
        }
    }

    pub fn clusters(&self) -> u64 {
        (0..3).map(|i| u64::from(self.config.grid[i] / self.config.cluster[i])).product()
    }

    /// Threads of a cluster: each needs a stack. The check of the launch bounds them.
    pub fn stacks(&self) -> u32 {
        self.config.block.iter().chain(&self.config.cluster).product()
    }

    pub fn blocks(&self) -> u64 {
        self.config.grid.iter().map(|&n| u64::from(n)).product()
    }
}
