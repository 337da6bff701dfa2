//! The kernels of `crates/emulated/tests/emulated/kernels`, and what they take: for the tests and benches of
//! this package.

use crate::{Buffer, Device, Fault, Kernel, LaunchConfig, Params, emulated_kernel, encode};
use lmhead::backend::params::TensorMap;
use lmhead::backend::tensor_map::{Swizzle, Tiled2d};

/// `ProbeParams` of `probe.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ProbeParams {
    pub map: TensorMap,
    pub map_out: TensorMap,
    pub input: *const u32,
    pub out: *mut u32,
    pub n: [u32; 6],
}

// SAFETY: mirrors the struct of probe.h.
unsafe impl Params for ProbeParams {}

/// `ManyParams` of `broken_sm90a.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ManyParams(pub [u32; 8191]);

// SAFETY: mirrors the struct of broken_sm90a.cu.
unsafe impl Params for ManyParams {}

/// `TooManyParams` of `broken_sm90a.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct TooManyParams(pub [u32; 8192]);

// SAFETY: mirrors the struct of broken_sm90a.cu.
unsafe impl Params for TooManyParams {}

pub const NO_MAP: TensorMap = TensorMap { opaque: [0; 128] };

macro_rules! probes {
    ($($name:ident)*) => {
        $(pub fn $name() -> Kernel<ProbeParams> {
            emulated_kernel!($name: ProbeParams)
        })*
    };
}

pub fn probe_params() -> Kernel<ManyParams> {
    emulated_kernel!(probe_params: ManyParams)
}

pub fn broken_params() -> Kernel<TooManyParams> {
    emulated_kernel!(broken_params: TooManyParams)
}

probes! {
    probe_ldmatrix probe_mma probe_cp_async probe_cp_async_groups probe_warp probe_small_stores
    probe_named_barriers
    probe_global probe_atomics probe_geometry probe_arithmetic probe_conversions probe_shared_pairs
    probe_tanh probe_tile_coord probe_tiles probe_wide_arithmetic
    probe_term probe_sum probe_merge probe_logarithms probe_gumbel probe_mass probe_scale probe_philox
    probe_bounds probe_draw
    probe_stmatrix probe_mbarrier probe_tma_load probe_bulk_load probe_tma_store probe_multicast
    probe_cluster probe_wgmma probe_primary
    probe_secondary probe_registers probe_elect probe_noinc probe_trap
    broken_memory broken_warp broken_copies broken_barriers broken_pipeline broken_proxies broken_cluster
    broken_secondary
    broken_turn broken_plain_pointer broken_spin broken_registers broken_primary broken_constant broken_places
    broken_places_sm90a
    broken_answers broken_replace broken_capacity broken_cuts broken_draws broken_inputs broken_select
    probe_shared_atomics
    broken_fragments broken_accumulators broken_one broken_waits broken_bulk
    probe_peers probe_flags probe_flags_bulk probe_bulk_multicast probe_timer broken_flags
    broken_bulk_multicast probe_hopper_tiles probe_weight_vector
}

/// One launch: input words, how many words of output (which begin as zeros), variants and maps.
pub struct Probe {
    pub kernel: Kernel<ProbeParams>,
    pub input: Vec<u32>,
    pub out_words: usize,
    pub n: [u32; 6],
    pub config: LaunchConfig,
}

impl Probe {
    pub fn new(kernel: Kernel<ProbeParams>, threads: u32, shared: u32, out_words: usize) -> Self {
        let config = LaunchConfig::new([1; 3], [threads, 1, 1]).shared(shared).threads(1);
        Probe { kernel, input: vec![0; 64], out_words, n: [0; 6], config }
    }

    pub fn input(mut self, input: &[u32]) -> Self {
        self.input = input.to_vec();
        self
    }

    pub fn n(mut self, n: &[u32]) -> Self {
        self.n[..n.len()].copy_from_slice(n);
        self
    }

    pub fn config(mut self, change: impl Fn(LaunchConfig) -> LaunchConfig) -> Self {
        self.config = change(self.config);
        self
    }

    pub fn grid(mut self, blocks: u32) -> Self {
        self.config.grid = [blocks, 1, 1];
        self
    }

    /// The output, with maps made from the input's and output's addresses.
    pub fn run_with(
        &self,
        maps: impl Fn(Buffer, Buffer) -> (TensorMap, TensorMap),
    ) -> Result<Vec<u32>, Fault> {
        let mut device = Device::new();
        let input = device.upload_read_only(&self.input);
        let out = device.upload(&vec![0u32; self.out_words]);
        let (map, map_out) = maps(input, out);
        let params = ProbeParams { map, map_out, input: input.pointer(), out: out.pointer(), n: self.n };
        device.launch(&self.kernel, &params, &self.config)?;
        device.download(out)
    }

    pub fn run(&self) -> Result<Vec<u32>, Fault> {
        self.run_with(|_, _| (NO_MAP, NO_MAP))
    }

    /// The output of a kernel that is correct.
    #[track_caller]
    pub fn output(&self) -> Vec<u32> {
        match self.run() {
            Ok(out) => out,
            Err(fault) => panic!("{fault}"),
        }
    }
}

/// A map of bytes: `rows` x `columns`, packed; swizzled where the box is as wide as a swizzle.
pub fn bytes_map(buffer: Buffer, columns: u64, rows: u64, box_columns: u32, box_rows: u32) -> TensorMap {
    let tiles = Tiled2d {
        address: buffer.address(),
        element_bytes: 1,
        columns,
        rows,
        pitch: columns,
        box_columns,
        box_rows,
        swizzle: if box_columns == 128 { Swizzle::Bytes128 } else { Swizzle::None },
    };
    encode(&tiles).expect("the test's own map is legal")
}
