//! The microkernels of `kernels/microkernels`: one small matrix product for each way in which operands
//! travel, on which the real kernels are built.
//! `out[rows, vocab] = rows[rows, hidden] · weights[vocab, hidden]ᵀ`.

use super::{Fault, Kernel, LaunchConfig, encode};
use crate::emulated_kernel;
use lmhead::backend::params::{
    GatherMicrokernelParams, MmaMicrokernelParams, TensorMap, WgmmaMicrokernelParams,
};
use lmhead::backend::tensor_map::{Swizzle, Tiled2d};

/// Threads of a block of [`mma_s8`].
pub const MMA_THREADS: u32 = 128;
/// Bytes of its shared memory.
pub const MMA_SHARED: u32 = 4 * (128 + 32) * 128;
/// Threads of a block of the others.
pub const WGMMA_THREADS: u32 = 384;
/// Rows of a block of [`wgmma_s8`], [`wgmma_bf16`] and [`wgmma_registers_bf16`].
pub const WGMMA_ROWS: u32 = 64;
/// Bytes of their shared memory: four stages, two barriers each.
pub const WGMMA_SHARED: u32 = 4 * ((128 + WGMMA_ROWS) * 128 + 16);
/// Rows of a block of [`gather_bf16`].
pub const GATHER_ROWS: u32 = 32;
/// Bytes of its shared memory.
pub const GATHER_SHARED: u32 = 4 * ((128 + GATHER_ROWS) * 128 + 16);

/// int8 through `cp.async`, `ldmatrix` and `mma.sync` (sm_80). `hidden` is a multiple of 16.
pub fn mma_s8() -> Kernel<MmaMicrokernelParams> {
    emulated_kernel!(microkernel_mma_s8_sm80: MmaMicrokernelParams)
}

/// int8 through TMA and `wgmma` (sm_90a). `hidden` is a multiple of 16.
pub fn wgmma_s8() -> Kernel<WgmmaMicrokernelParams> {
    emulated_kernel!(microkernel_wgmma_s8_sm90a: WgmmaMicrokernelParams)
}

/// bf16 through TMA and `wgmma` (sm_90a). `hidden` is a multiple of 8.
pub fn wgmma_bf16() -> Kernel<WgmmaMicrokernelParams> {
    emulated_kernel!(microkernel_wgmma_bf16_sm90a: WgmmaMicrokernelParams)
}

/// The same with the weights read into registers by `ldmatrix`, from where `wgmma` takes them (sm_90a).
/// `hidden` is a multiple of 8.
pub fn wgmma_registers_bf16() -> Kernel<WgmmaMicrokernelParams> {
    emulated_kernel!(microkernel_wgmma_registers_bf16_sm90a: WgmmaMicrokernelParams)
}

/// bf16 weights through TMA, rows picked by index through `cp.async` (sm_90a). `hidden` is a multiple of 8.
pub fn gather_bf16() -> Kernel<GatherMicrokernelParams> {
    emulated_kernel!(microkernel_gather_bf16_sm90a: GatherMicrokernelParams)
}

/// One block per 128 ids and `rows_per_block` rows.
pub fn config(vocab: u32, row_count: u32, rows_per_block: u32, threads: u32, shared: u32) -> LaunchConfig {
    LaunchConfig::new([vocab.div_ceil(128), row_count.div_ceil(rows_per_block), 1], [threads, 1, 1])
        .shared(shared)
}

/// Tiles of 128 bytes of `[rows, hidden]`, row-major and contiguous, with the 128-byte swizzle.
///
/// # Errors
/// As [`encode`].
pub fn tiles(
    address: u64,
    element_bytes: u32,
    rows: u32,
    hidden: u32,
    box_rows: u32,
) -> Result<TensorMap, Fault> {
    encode(&Tiled2d {
        address,
        element_bytes,
        columns: u64::from(hidden),
        rows: u64::from(rows),
        pitch: u64::from(hidden) * u64::from(element_bytes),
        box_columns: 128 / element_bytes,
        box_rows,
        swizzle: Swizzle::Bytes128,
    })
}
