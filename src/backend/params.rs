//! The structs that cross from host to device. Written by scripts/bindings from kernels/params.h: change that.
#![allow(rustdoc::broken_intra_doc_links, clippy::doc_markdown)]

#[doc = " How TMA reads or writes a matrix; opaque. The driver encodes it (a CUtensorMap), the emulated device has its own."]
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct TensorMap {
    pub opaque: [u8; 128usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of TensorMap"][::core::mem::size_of::<TensorMap>() - 128usize];
    ["Alignment of TensorMap"][::core::mem::align_of::<TensorMap>() - 64usize];
    ["Offset of field: TensorMap::opaque"][::core::mem::offset_of!(TensorMap, opaque) - 0usize];
};
#[doc = " int8 through cp.async and mma.sync. hidden is a multiple of 16."]
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct MmaCarrierParams {
    #[doc = " [vocab, hidden]"]
    pub weights: *const i8,
    #[doc = " [row_count, hidden]"]
    pub rows: *const i8,
    #[doc = " [row_count, vocab]"]
    pub out: *mut i32,
    pub vocab: u32,
    pub row_count: u32,
    pub hidden: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of MmaCarrierParams"][::core::mem::size_of::<MmaCarrierParams>() - 40usize];
    ["Alignment of MmaCarrierParams"][::core::mem::align_of::<MmaCarrierParams>() - 8usize];
    ["Offset of field: MmaCarrierParams::weights"]
        [::core::mem::offset_of!(MmaCarrierParams, weights) - 0usize];
    ["Offset of field: MmaCarrierParams::rows"][::core::mem::offset_of!(MmaCarrierParams, rows) - 8usize];
    ["Offset of field: MmaCarrierParams::out"][::core::mem::offset_of!(MmaCarrierParams, out) - 16usize];
    ["Offset of field: MmaCarrierParams::vocab"][::core::mem::offset_of!(MmaCarrierParams, vocab) - 24usize];
    ["Offset of field: MmaCarrierParams::row_count"]
        [::core::mem::offset_of!(MmaCarrierParams, row_count) - 28usize];
    ["Offset of field: MmaCarrierParams::hidden"]
        [::core::mem::offset_of!(MmaCarrierParams, hidden) - 32usize];
};
#[doc = " 16-bit or int8 through TMA and wgmma."]
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct WgmmaCarrierParams {
    #[doc = " [vocab, hidden], boxes of 64 rows x 128 bytes, 128-byte swizzle"]
    pub weights: TensorMap,
    #[doc = " [row_count, hidden], boxes of the kernel's row tile x 128 bytes, 128-byte swizzle"]
    pub rows: TensorMap,
    #[doc = " [row_count, vocab], f32 or int32"]
    pub out: *mut ::core::ffi::c_void,
    pub vocab: u32,
    pub row_count: u32,
    pub hidden: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of WgmmaCarrierParams"][::core::mem::size_of::<WgmmaCarrierParams>() - 320usize];
    ["Alignment of WgmmaCarrierParams"][::core::mem::align_of::<WgmmaCarrierParams>() - 64usize];
    ["Offset of field: WgmmaCarrierParams::weights"]
        [::core::mem::offset_of!(WgmmaCarrierParams, weights) - 0usize];
    ["Offset of field: WgmmaCarrierParams::rows"]
        [::core::mem::offset_of!(WgmmaCarrierParams, rows) - 128usize];
    ["Offset of field: WgmmaCarrierParams::out"][::core::mem::offset_of!(WgmmaCarrierParams, out) - 256usize];
    ["Offset of field: WgmmaCarrierParams::vocab"]
        [::core::mem::offset_of!(WgmmaCarrierParams, vocab) - 264usize];
    ["Offset of field: WgmmaCarrierParams::row_count"]
        [::core::mem::offset_of!(WgmmaCarrierParams, row_count) - 268usize];
    ["Offset of field: WgmmaCarrierParams::hidden"]
        [::core::mem::offset_of!(WgmmaCarrierParams, hidden) - 272usize];
};
#[doc = " bf16: TMA for the weights, cp.async for rows that are picked by index."]
#[repr(C)]
#[repr(align(64))]
#[derive(Debug, Copy, Clone)]
pub struct GatherCarrierParams {
    #[doc = " [vocab, hidden], boxes of 64 rows x 128 bytes, 128-byte swizzle"]
    pub weights: TensorMap,
    #[doc = " [source_rows, hidden] bf16"]
    pub rows: *const u16,
    #[doc = " [row_count] into rows; one out of range is a row of zeros"]
    pub indices: *const i32,
    #[doc = " [row_count, vocab]"]
    pub out: *mut f32,
    pub vocab: u32,
    pub row_count: u32,
    pub source_rows: u32,
    pub hidden: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of GatherCarrierParams"][::core::mem::size_of::<GatherCarrierParams>() - 192usize];
    ["Alignment of GatherCarrierParams"][::core::mem::align_of::<GatherCarrierParams>() - 64usize];
    ["Offset of field: GatherCarrierParams::weights"]
        [::core::mem::offset_of!(GatherCarrierParams, weights) - 0usize];
    ["Offset of field: GatherCarrierParams::rows"]
        [::core::mem::offset_of!(GatherCarrierParams, rows) - 128usize];
    ["Offset of field: GatherCarrierParams::indices"]
        [::core::mem::offset_of!(GatherCarrierParams, indices) - 136usize];
    ["Offset of field: GatherCarrierParams::out"]
        [::core::mem::offset_of!(GatherCarrierParams, out) - 144usize];
    ["Offset of field: GatherCarrierParams::vocab"]
        [::core::mem::offset_of!(GatherCarrierParams, vocab) - 152usize];
    ["Offset of field: GatherCarrierParams::row_count"]
        [::core::mem::offset_of!(GatherCarrierParams, row_count) - 156usize];
    ["Offset of field: GatherCarrierParams::source_rows"]
        [::core::mem::offset_of!(GatherCarrierParams, source_rows) - 160usize];
    ["Offset of field: GatherCarrierParams::hidden"]
        [::core::mem::offset_of!(GatherCarrierParams, hidden) - 164usize];
};
