//! The structs of `kernels/params.h`, which cross from host to device.

use std::ffi::c_void;

/// How TMA reads or writes a matrix; opaque.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub struct TensorMap {
    pub opaque: [u8; 128],
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct MmaCarrierParams {
    pub weights: *const i8,
    pub rows: *const i8,
    pub out: *mut i32,
    pub vocab: u32,
    pub row_count: u32,
    pub hidden: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct WgmmaCarrierParams {
    pub weights: TensorMap,
    pub rows: TensorMap,
    pub out: *mut c_void,
    pub vocab: u32,
    pub row_count: u32,
    pub hidden: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct GatherCarrierParams {
    pub weights: TensorMap,
    pub rows: *const u16,
    pub indices: *const i32,
    pub out: *mut f32,
    pub vocab: u32,
    pub row_count: u32,
    pub source_rows: u32,
    pub hidden: u32,
}

const _: () = {
    use std::mem::{offset_of, size_of};
    assert!(size_of::<TensorMap>() == 128);
    assert!(size_of::<MmaCarrierParams>() == 40 && offset_of!(MmaCarrierParams, hidden) == 32);
    assert!(size_of::<WgmmaCarrierParams>() == 320 && offset_of!(WgmmaCarrierParams, vocab) == 264);
    assert!(size_of::<GatherCarrierParams>() == 192 && offset_of!(GatherCarrierParams, hidden) == 164);
};
