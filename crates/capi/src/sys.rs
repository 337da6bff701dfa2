//! The structs, constants and functions of the C interface. Written by scripts/bindings from
//! include/lmhead.h: change that.
#![allow(non_camel_case_types, dead_code, clippy::all)]

pub const LMHEAD_VERSION_MAJOR: u32 = 0;
pub const LMHEAD_VERSION_MINOR: u32 = 1;
pub const LMHEAD_VERSION_PATCH: u32 = 0;
pub const LMHEAD_ABI: u32 = 0;
pub const LMHEAD_TEXT_BYTES: u32 = 512;
pub type lmhead_status = i32;
pub const LMHEAD_OK: _bindgen_ty_1 = 0;
pub const LMHEAD_ERROR_CONFIG: _bindgen_ty_1 = 1;
pub const LMHEAD_ERROR_SHAPE: _bindgen_ty_1 = 2;
pub const LMHEAD_ERROR_DTYPE: _bindgen_ty_1 = 3;
pub const LMHEAD_ERROR_INDEX: _bindgen_ty_1 = 4;
pub const LMHEAD_ERROR_REQUEST: _bindgen_ty_1 = 5;
pub const LMHEAD_ERROR_FILE: _bindgen_ty_1 = 6;
pub const LMHEAD_ERROR_TENSOR: _bindgen_ty_1 = 7;
pub const LMHEAD_ERROR_STEP_MISMATCH: _bindgen_ty_1 = 8;
pub const LMHEAD_ERROR_TIMEOUT: _bindgen_ty_1 = 9;
pub const LMHEAD_ERROR_RANK_LOST: _bindgen_ty_1 = 10;
pub const LMHEAD_ERROR_POISONED: _bindgen_ty_1 = 11;
pub const LMHEAD_ERROR_EXCHANGE: _bindgen_ty_1 = 12;
pub const LMHEAD_ERROR_UNSUPPORTED: _bindgen_ty_1 = 13;
pub const LMHEAD_ERROR_DEVICE: _bindgen_ty_1 = 14;
pub const LMHEAD_ERROR_ARGUMENT: _bindgen_ty_1 = 15;
pub const LMHEAD_ERROR_INTERNAL: _bindgen_ty_1 = 16;
pub type _bindgen_ty_1 = ::core::ffi::c_uint;
unsafe extern "C" {
    pub fn lmhead_status_name(status: lmhead_status) -> *const ::core::ffi::c_char;
}
unsafe extern "C" {
    pub fn lmhead_last_error() -> *const ::core::ffi::c_char;
}
unsafe extern "C" {
    pub fn lmhead_last_error_ranks(ranks: *mut i64, capacity: usize) -> usize;
}
unsafe extern "C" {
    pub fn lmhead_abi() -> i32;
}
unsafe extern "C" {
    pub fn lmhead_version() -> *const ::core::ffi::c_char;
}
unsafe extern "C" {
    pub fn lmhead_features() -> *const ::core::ffi::c_char;
}
unsafe extern "C" {
    pub fn lmhead_doctor(json: *mut *mut ::core::ffi::c_char) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_string_free(string: *mut ::core::ffi::c_char);
}
unsafe extern "C" {
    pub fn lmhead_set_log(
        log: ::core::option::Option<
            unsafe extern "C" fn(
                user: *mut ::core::ffi::c_void,
                level: i32,
                text: *const ::core::ffi::c_char,
            ),
        >,
        user: *mut ::core::ffi::c_void,
        max_level: i32,
    );
}
pub const LMHEAD_F32: _bindgen_ty_2 = 73730;
pub const LMHEAD_F16: _bindgen_ty_2 = 69634;
pub const LMHEAD_BF16: _bindgen_ty_2 = 69636;
pub const LMHEAD_I8: _bindgen_ty_2 = 67584;
pub const LMHEAD_E4M3: _bindgen_ty_2 = 67594;
pub const LMHEAD_I32: _bindgen_ty_2 = 73728;
pub const LMHEAD_I64: _bindgen_ty_2 = 81920;
pub type _bindgen_ty_2 = ::core::ffi::c_uint;
pub const LMHEAD_HOST: _bindgen_ty_3 = 1;
pub const LMHEAD_CUDA: _bindgen_ty_3 = 2;
pub const LMHEAD_CUDA_PINNED: _bindgen_ty_3 = 3;
pub type _bindgen_ty_3 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_tensor {
    pub data: *mut ::core::ffi::c_void,
    pub device_type: i32,
    pub device_id: i32,
    pub dtype: u32,
    pub reserved: u32,
    pub rows: i64,
    pub columns: i64,
    pub stride: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_tensor"][::core::mem::size_of::<lmhead_tensor>() - 48usize];
    ["Alignment of lmhead_tensor"][::core::mem::align_of::<lmhead_tensor>() - 8usize];
    ["Offset of field: lmhead_tensor::data"][::core::mem::offset_of!(lmhead_tensor, data) - 0usize];
    ["Offset of field: lmhead_tensor::device_type"]
        [::core::mem::offset_of!(lmhead_tensor, device_type) - 8usize];
    ["Offset of field: lmhead_tensor::device_id"]
        [::core::mem::offset_of!(lmhead_tensor, device_id) - 12usize];
    ["Offset of field: lmhead_tensor::dtype"][::core::mem::offset_of!(lmhead_tensor, dtype) - 16usize];
    ["Offset of field: lmhead_tensor::reserved"][::core::mem::offset_of!(lmhead_tensor, reserved) - 20usize];
    ["Offset of field: lmhead_tensor::rows"][::core::mem::offset_of!(lmhead_tensor, rows) - 24usize];
    ["Offset of field: lmhead_tensor::columns"][::core::mem::offset_of!(lmhead_tensor, columns) - 32usize];
    ["Offset of field: lmhead_tensor::stride"][::core::mem::offset_of!(lmhead_tensor, stride) - 40usize];
};
pub const LMHEAD_ORDER_DP_PP_TP: _bindgen_ty_4 = 0;
pub const LMHEAD_ORDER_PP_DP_TP: _bindgen_ty_4 = 1;
pub type _bindgen_ty_4 = ::core::ffi::c_uint;
pub const LMHEAD_TP_SIZE_TENSOR_PARALLEL: _bindgen_ty_5 = -1;
pub const LMHEAD_TP_SIZE_AUTO: _bindgen_ty_5 = 0;
pub type _bindgen_ty_5 = ::core::ffi::c_int;
unsafe extern "C" {
    pub fn lmhead_group_ranks(
        dp: i64,
        tp: i64,
        pp: i64,
        order: i32,
        rank: i64,
        tp_size: i64,
        ranks: *mut i64,
        n: *mut i64,
    ) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_shard_range(
        vocab_size: i64,
        members: i64,
        member: i64,
        first: *mut i64,
        count: *mut i64,
    ) -> lmhead_status;
}
#[repr(C)]
#[derive(Debug)]
pub struct lmhead_backend {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_backend_config {
    pub size: usize,
    pub device_type: i32,
    pub device_id: i32,
    pub threads: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_backend_config"][::core::mem::size_of::<lmhead_backend_config>() - 24usize];
    ["Alignment of lmhead_backend_config"][::core::mem::align_of::<lmhead_backend_config>() - 8usize];
    ["Offset of field: lmhead_backend_config::size"]
        [::core::mem::offset_of!(lmhead_backend_config, size) - 0usize];
    ["Offset of field: lmhead_backend_config::device_type"]
        [::core::mem::offset_of!(lmhead_backend_config, device_type) - 8usize];
    ["Offset of field: lmhead_backend_config::device_id"]
        [::core::mem::offset_of!(lmhead_backend_config, device_id) - 12usize];
    ["Offset of field: lmhead_backend_config::threads"]
        [::core::mem::offset_of!(lmhead_backend_config, threads) - 16usize];
};
unsafe extern "C" {
    pub fn lmhead_backend_open(
        config: *const lmhead_backend_config,
        backend: *mut *mut lmhead_backend,
    ) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_backend_free(backend: *mut lmhead_backend);
}
#[repr(C)]
#[derive(Debug)]
pub struct lmhead_weights {
    _unused: [u8; 0],
}
pub const LMHEAD_QUANT_AS_STORED: _bindgen_ty_6 = 0;
pub const LMHEAD_QUANT_NONE: _bindgen_ty_6 = 1;
pub const LMHEAD_QUANT_W8A8: _bindgen_ty_6 = 2;
pub const LMHEAD_QUANT_W8A16: _bindgen_ty_6 = 3;
pub type _bindgen_ty_6 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_load {
    pub size: usize,
    pub tensor: *const ::core::ffi::c_char,
    pub vocab_size: i64,
    pub members: i64,
    pub member: i64,
    pub quantization: i32,
    pub without_bias: i32,
    pub version: u64,
    pub progress:
        ::core::option::Option<unsafe extern "C" fn(user: *mut ::core::ffi::c_void, done: u64, total: u64)>,
    pub user: *mut ::core::ffi::c_void,
    pub copy: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_load"][::core::mem::size_of::<lmhead_load>() - 80usize];
    ["Alignment of lmhead_load"][::core::mem::align_of::<lmhead_load>() - 8usize];
    ["Offset of field: lmhead_load::size"][::core::mem::offset_of!(lmhead_load, size) - 0usize];
    ["Offset of field: lmhead_load::tensor"][::core::mem::offset_of!(lmhead_load, tensor) - 8usize];
    ["Offset of field: lmhead_load::vocab_size"][::core::mem::offset_of!(lmhead_load, vocab_size) - 16usize];
    ["Offset of field: lmhead_load::members"][::core::mem::offset_of!(lmhead_load, members) - 24usize];
    ["Offset of field: lmhead_load::member"][::core::mem::offset_of!(lmhead_load, member) - 32usize];
    ["Offset of field: lmhead_load::quantization"]
        [::core::mem::offset_of!(lmhead_load, quantization) - 40usize];
    ["Offset of field: lmhead_load::without_bias"]
        [::core::mem::offset_of!(lmhead_load, without_bias) - 44usize];
    ["Offset of field: lmhead_load::version"][::core::mem::offset_of!(lmhead_load, version) - 48usize];
    ["Offset of field: lmhead_load::progress"][::core::mem::offset_of!(lmhead_load, progress) - 56usize];
    ["Offset of field: lmhead_load::user"][::core::mem::offset_of!(lmhead_load, user) - 64usize];
    ["Offset of field: lmhead_load::copy"][::core::mem::offset_of!(lmhead_load, copy) - 72usize];
};
unsafe extern "C" {
    pub fn lmhead_weights_load(
        path: *const ::core::ffi::c_char,
        load: *const lmhead_load,
        weights: *mut *mut lmhead_weights,
    ) -> lmhead_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_weights_config {
    pub size: usize,
    pub vocab_size: i64,
    pub first: i64,
    pub matrix: lmhead_tensor,
    pub scales: *const f32,
    pub n_scales: i64,
    pub bias: *const f32,
    pub quantization: i32,
    pub version: u64,
    pub release: ::core::option::Option<unsafe extern "C" fn(user: *mut ::core::ffi::c_void)>,
    pub user: *mut ::core::ffi::c_void,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_weights_config"][::core::mem::size_of::<lmhead_weights_config>() - 128usize];
    ["Alignment of lmhead_weights_config"][::core::mem::align_of::<lmhead_weights_config>() - 8usize];
    ["Offset of field: lmhead_weights_config::size"]
        [::core::mem::offset_of!(lmhead_weights_config, size) - 0usize];
    ["Offset of field: lmhead_weights_config::vocab_size"]
        [::core::mem::offset_of!(lmhead_weights_config, vocab_size) - 8usize];
    ["Offset of field: lmhead_weights_config::first"]
        [::core::mem::offset_of!(lmhead_weights_config, first) - 16usize];
    ["Offset of field: lmhead_weights_config::matrix"]
        [::core::mem::offset_of!(lmhead_weights_config, matrix) - 24usize];
    ["Offset of field: lmhead_weights_config::scales"]
        [::core::mem::offset_of!(lmhead_weights_config, scales) - 72usize];
    ["Offset of field: lmhead_weights_config::n_scales"]
        [::core::mem::offset_of!(lmhead_weights_config, n_scales) - 80usize];
    ["Offset of field: lmhead_weights_config::bias"]
        [::core::mem::offset_of!(lmhead_weights_config, bias) - 88usize];
    ["Offset of field: lmhead_weights_config::quantization"]
        [::core::mem::offset_of!(lmhead_weights_config, quantization) - 96usize];
    ["Offset of field: lmhead_weights_config::version"]
        [::core::mem::offset_of!(lmhead_weights_config, version) - 104usize];
    ["Offset of field: lmhead_weights_config::release"]
        [::core::mem::offset_of!(lmhead_weights_config, release) - 112usize];
    ["Offset of field: lmhead_weights_config::user"]
        [::core::mem::offset_of!(lmhead_weights_config, user) - 120usize];
};
unsafe extern "C" {
    pub fn lmhead_weights_wrap(
        config: *const lmhead_weights_config,
        weights: *mut *mut lmhead_weights,
    ) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_weights_free(weights: *mut lmhead_weights);
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_weights_info {
    pub size: usize,
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub first: i64,
    pub count: i64,
    pub dtype: u32,
    pub quantization: i32,
    pub has_bias: i32,
    pub bytes: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_weights_info"][::core::mem::size_of::<lmhead_weights_info>() - 64usize];
    ["Alignment of lmhead_weights_info"][::core::mem::align_of::<lmhead_weights_info>() - 8usize];
    ["Offset of field: lmhead_weights_info::size"]
        [::core::mem::offset_of!(lmhead_weights_info, size) - 0usize];
    ["Offset of field: lmhead_weights_info::vocab_size"]
        [::core::mem::offset_of!(lmhead_weights_info, vocab_size) - 8usize];
    ["Offset of field: lmhead_weights_info::hidden_size"]
        [::core::mem::offset_of!(lmhead_weights_info, hidden_size) - 16usize];
    ["Offset of field: lmhead_weights_info::first"]
        [::core::mem::offset_of!(lmhead_weights_info, first) - 24usize];
    ["Offset of field: lmhead_weights_info::count"]
        [::core::mem::offset_of!(lmhead_weights_info, count) - 32usize];
    ["Offset of field: lmhead_weights_info::dtype"]
        [::core::mem::offset_of!(lmhead_weights_info, dtype) - 40usize];
    ["Offset of field: lmhead_weights_info::quantization"]
        [::core::mem::offset_of!(lmhead_weights_info, quantization) - 44usize];
    ["Offset of field: lmhead_weights_info::has_bias"]
        [::core::mem::offset_of!(lmhead_weights_info, has_bias) - 48usize];
    ["Offset of field: lmhead_weights_info::bytes"]
        [::core::mem::offset_of!(lmhead_weights_info, bytes) - 56usize];
};
unsafe extern "C" {
    pub fn lmhead_weights_about(
        weights: *const lmhead_weights,
        info: *mut lmhead_weights_info,
    ) -> lmhead_status;
}
#[repr(C)]
#[derive(Debug)]
pub struct lmhead_exchange {
    _unused: [u8; 0],
}
unsafe extern "C" {
    pub fn lmhead_exchange_local(n: i64, endpoints: *mut *mut lmhead_exchange) -> lmhead_status;
}
pub const LMHEAD_FAULT_NONE: _bindgen_ty_7 = 0;
pub const LMHEAD_FAULT_TIMEOUT: _bindgen_ty_7 = 1;
pub const LMHEAD_FAULT_LOST: _bindgen_ty_7 = 2;
pub const LMHEAD_FAULT_BROKEN: _bindgen_ty_7 = 3;
pub const LMHEAD_FAULT_ABORTED: _bindgen_ty_7 = 4;
pub const LMHEAD_FAULT_LENGTH: _bindgen_ty_7 = 5;
pub const LMHEAD_FAULT_OTHER_CALL: _bindgen_ty_7 = 6;
pub type _bindgen_ty_7 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_piece {
    pub data: *mut ::core::ffi::c_void,
    pub bytes: usize,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_piece"][::core::mem::size_of::<lmhead_piece>() - 16usize];
    ["Alignment of lmhead_piece"][::core::mem::align_of::<lmhead_piece>() - 8usize];
    ["Offset of field: lmhead_piece::data"][::core::mem::offset_of!(lmhead_piece, data) - 0usize];
    ["Offset of field: lmhead_piece::bytes"][::core::mem::offset_of!(lmhead_piece, bytes) - 8usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_peer {
    pub status: i32,
    pub reserved: u32,
    pub bytes: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_peer"][::core::mem::size_of::<lmhead_peer>() - 16usize];
    ["Alignment of lmhead_peer"][::core::mem::align_of::<lmhead_peer>() - 8usize];
    ["Offset of field: lmhead_peer::status"][::core::mem::offset_of!(lmhead_peer, status) - 0usize];
    ["Offset of field: lmhead_peer::reserved"][::core::mem::offset_of!(lmhead_peer, reserved) - 4usize];
    ["Offset of field: lmhead_peer::bytes"][::core::mem::offset_of!(lmhead_peer, bytes) - 8usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_call {
    pub head: u32,
    pub instance: u32,
    pub epoch: u32,
    pub operation: i32,
    pub step: u64,
    pub terms: u64,
    pub left_us: u64,
    pub stream: *mut ::core::ffi::c_void,
    pub peers: *mut lmhead_peer,
    pub text: *mut ::core::ffi::c_char,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_call"][::core::mem::size_of::<lmhead_call>() - 64usize];
    ["Alignment of lmhead_call"][::core::mem::align_of::<lmhead_call>() - 8usize];
    ["Offset of field: lmhead_call::head"][::core::mem::offset_of!(lmhead_call, head) - 0usize];
    ["Offset of field: lmhead_call::instance"][::core::mem::offset_of!(lmhead_call, instance) - 4usize];
    ["Offset of field: lmhead_call::epoch"][::core::mem::offset_of!(lmhead_call, epoch) - 8usize];
    ["Offset of field: lmhead_call::operation"][::core::mem::offset_of!(lmhead_call, operation) - 12usize];
    ["Offset of field: lmhead_call::step"][::core::mem::offset_of!(lmhead_call, step) - 16usize];
    ["Offset of field: lmhead_call::terms"][::core::mem::offset_of!(lmhead_call, terms) - 24usize];
    ["Offset of field: lmhead_call::left_us"][::core::mem::offset_of!(lmhead_call, left_us) - 32usize];
    ["Offset of field: lmhead_call::stream"][::core::mem::offset_of!(lmhead_call, stream) - 40usize];
    ["Offset of field: lmhead_call::peers"][::core::mem::offset_of!(lmhead_call, peers) - 48usize];
    ["Offset of field: lmhead_call::text"][::core::mem::offset_of!(lmhead_call, text) - 56usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_place {
    pub head: u32,
    pub instance: u32,
    pub epoch: u32,
    pub operation: i32,
    pub step: u64,
    pub age_us: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_place"][::core::mem::size_of::<lmhead_place>() - 32usize];
    ["Alignment of lmhead_place"][::core::mem::align_of::<lmhead_place>() - 8usize];
    ["Offset of field: lmhead_place::head"][::core::mem::offset_of!(lmhead_place, head) - 0usize];
    ["Offset of field: lmhead_place::instance"][::core::mem::offset_of!(lmhead_place, instance) - 4usize];
    ["Offset of field: lmhead_place::epoch"][::core::mem::offset_of!(lmhead_place, epoch) - 8usize];
    ["Offset of field: lmhead_place::operation"][::core::mem::offset_of!(lmhead_place, operation) - 12usize];
    ["Offset of field: lmhead_place::step"][::core::mem::offset_of!(lmhead_place, step) - 16usize];
    ["Offset of field: lmhead_place::age_us"][::core::mem::offset_of!(lmhead_place, age_us) - 24usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_transport {
    pub size: usize,
    pub n: i64,
    pub me: i64,
    pub all_to_all: ::core::option::Option<
        unsafe extern "C" fn(
            user: *mut ::core::ffi::c_void,
            call: *mut lmhead_call,
            send: *const lmhead_piece,
            recv: *const lmhead_piece,
        ) -> i32,
    >,
    pub all_gather: ::core::option::Option<
        unsafe extern "C" fn(
            user: *mut ::core::ffi::c_void,
            call: *mut lmhead_call,
            members: *const i64,
            n_members: i64,
            send: *const lmhead_piece,
            recv: *const lmhead_piece,
        ) -> i32,
    >,
    pub notify_abort: ::core::option::Option<
        unsafe extern "C" fn(
            user: *mut ::core::ffi::c_void,
            call: *const lmhead_call,
            notice: *const ::core::ffi::c_char,
        ),
    >,
    pub note: ::core::option::Option<
        unsafe extern "C" fn(user: *mut ::core::ffi::c_void, call: *const lmhead_call),
    >,
    pub place: ::core::option::Option<
        unsafe extern "C" fn(user: *mut ::core::ffi::c_void, member: i64, place: *mut lmhead_place) -> i32,
    >,
    pub reset: ::core::option::Option<
        unsafe extern "C" fn(user: *mut ::core::ffi::c_void, call: *mut lmhead_call) -> i32,
    >,
    pub pending: ::core::option::Option<
        unsafe extern "C" fn(user: *mut ::core::ffi::c_void, call: *mut lmhead_call) -> i32,
    >,
    pub leave: ::core::option::Option<
        unsafe extern "C" fn(user: *mut ::core::ffi::c_void, head: u32, instance: u32),
    >,
    pub release: ::core::option::Option<unsafe extern "C" fn(user: *mut ::core::ffi::c_void)>,
    pub device: *const lmhead_backend,
    pub control: *const lmhead_exchange,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_transport"][::core::mem::size_of::<lmhead_transport>() - 112usize];
    ["Alignment of lmhead_transport"][::core::mem::align_of::<lmhead_transport>() - 8usize];
    ["Offset of field: lmhead_transport::size"][::core::mem::offset_of!(lmhead_transport, size) - 0usize];
    ["Offset of field: lmhead_transport::n"][::core::mem::offset_of!(lmhead_transport, n) - 8usize];
    ["Offset of field: lmhead_transport::me"][::core::mem::offset_of!(lmhead_transport, me) - 16usize];
    ["Offset of field: lmhead_transport::all_to_all"]
        [::core::mem::offset_of!(lmhead_transport, all_to_all) - 24usize];
    ["Offset of field: lmhead_transport::all_gather"]
        [::core::mem::offset_of!(lmhead_transport, all_gather) - 32usize];
    ["Offset of field: lmhead_transport::notify_abort"]
        [::core::mem::offset_of!(lmhead_transport, notify_abort) - 40usize];
    ["Offset of field: lmhead_transport::note"][::core::mem::offset_of!(lmhead_transport, note) - 48usize];
    ["Offset of field: lmhead_transport::place"][::core::mem::offset_of!(lmhead_transport, place) - 56usize];
    ["Offset of field: lmhead_transport::reset"][::core::mem::offset_of!(lmhead_transport, reset) - 64usize];
    ["Offset of field: lmhead_transport::pending"]
        [::core::mem::offset_of!(lmhead_transport, pending) - 72usize];
    ["Offset of field: lmhead_transport::leave"][::core::mem::offset_of!(lmhead_transport, leave) - 80usize];
    ["Offset of field: lmhead_transport::release"]
        [::core::mem::offset_of!(lmhead_transport, release) - 88usize];
    ["Offset of field: lmhead_transport::device"]
        [::core::mem::offset_of!(lmhead_transport, device) - 96usize];
    ["Offset of field: lmhead_transport::control"]
        [::core::mem::offset_of!(lmhead_transport, control) - 104usize];
};
unsafe extern "C" {
    pub fn lmhead_exchange_callbacks(
        transport: *const lmhead_transport,
        user: *mut ::core::ffi::c_void,
        endpoint: *mut *mut lmhead_exchange,
    ) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_exchange_nccl(
        device: *const lmhead_backend,
        nccl_comm: *mut ::core::ffi::c_void,
        control: *const lmhead_exchange,
        endpoint: *mut *mut lmhead_exchange,
    ) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_exchange_free(endpoint: *mut lmhead_exchange);
}
unsafe extern "C" {
    pub fn lmhead_operation_name(operation: i32) -> *const ::core::ffi::c_char;
}
#[repr(C)]
#[derive(Debug)]
pub struct lmhead_head {
    _unused: [u8; 0],
}
pub const LMHEAD_VERIFY_DEFAULT: _bindgen_ty_8 = 0;
pub const LMHEAD_VERIFY_ALWAYS: _bindgen_ty_8 = 1;
pub const LMHEAD_VERIFY_PREPARE: _bindgen_ty_8 = 2;
pub const LMHEAD_VERIFY_EVERY: _bindgen_ty_8 = 3;
pub type _bindgen_ty_8 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_config {
    pub size: usize,
    pub name: [::core::ffi::c_char; 32usize],
    pub vocab_size: i64,
    pub hidden_size: i64,
    pub hidden_dtype: u32,
    pub logit_scale: f32,
    pub softcap: f32,
    pub split_rows_over_tp: i32,
    pub verify: i32,
    pub verify_every: u32,
    pub timeout_ms: u32,
    pub create_timeout_ms: u32,
    pub logprobs_chunk_bytes: u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_config"][::core::mem::size_of::<lmhead_config>() - 96usize];
    ["Alignment of lmhead_config"][::core::mem::align_of::<lmhead_config>() - 8usize];
    ["Offset of field: lmhead_config::size"][::core::mem::offset_of!(lmhead_config, size) - 0usize];
    ["Offset of field: lmhead_config::name"][::core::mem::offset_of!(lmhead_config, name) - 8usize];
    ["Offset of field: lmhead_config::vocab_size"]
        [::core::mem::offset_of!(lmhead_config, vocab_size) - 40usize];
    ["Offset of field: lmhead_config::hidden_size"]
        [::core::mem::offset_of!(lmhead_config, hidden_size) - 48usize];
    ["Offset of field: lmhead_config::hidden_dtype"]
        [::core::mem::offset_of!(lmhead_config, hidden_dtype) - 56usize];
    ["Offset of field: lmhead_config::logit_scale"]
        [::core::mem::offset_of!(lmhead_config, logit_scale) - 60usize];
    ["Offset of field: lmhead_config::softcap"][::core::mem::offset_of!(lmhead_config, softcap) - 64usize];
    ["Offset of field: lmhead_config::split_rows_over_tp"]
        [::core::mem::offset_of!(lmhead_config, split_rows_over_tp) - 68usize];
    ["Offset of field: lmhead_config::verify"][::core::mem::offset_of!(lmhead_config, verify) - 72usize];
    ["Offset of field: lmhead_config::verify_every"]
        [::core::mem::offset_of!(lmhead_config, verify_every) - 76usize];
    ["Offset of field: lmhead_config::timeout_ms"]
        [::core::mem::offset_of!(lmhead_config, timeout_ms) - 80usize];
    ["Offset of field: lmhead_config::create_timeout_ms"]
        [::core::mem::offset_of!(lmhead_config, create_timeout_ms) - 84usize];
    ["Offset of field: lmhead_config::logprobs_chunk_bytes"]
        [::core::mem::offset_of!(lmhead_config, logprobs_chunk_bytes) - 88usize];
};
unsafe extern "C" {
    pub fn lmhead_config_from_model(
        folder: *const ::core::ffi::c_char,
        settings_json: *const ::core::ffi::c_char,
        config: *mut lmhead_config,
    ) -> lmhead_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_group {
    pub ranks: *const i64,
    pub n: i64,
    pub rank: i64,
    pub tp: i64,
    pub tp_index: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_group"][::core::mem::size_of::<lmhead_group>() - 40usize];
    ["Alignment of lmhead_group"][::core::mem::align_of::<lmhead_group>() - 8usize];
    ["Offset of field: lmhead_group::ranks"][::core::mem::offset_of!(lmhead_group, ranks) - 0usize];
    ["Offset of field: lmhead_group::n"][::core::mem::offset_of!(lmhead_group, n) - 8usize];
    ["Offset of field: lmhead_group::rank"][::core::mem::offset_of!(lmhead_group, rank) - 16usize];
    ["Offset of field: lmhead_group::tp"][::core::mem::offset_of!(lmhead_group, tp) - 24usize];
    ["Offset of field: lmhead_group::tp_index"][::core::mem::offset_of!(lmhead_group, tp_index) - 32usize];
};
unsafe extern "C" {
    pub fn lmhead_create(
        config: *const lmhead_config,
        group: *const lmhead_group,
        weights: *const lmhead_weights,
        exchange: *const lmhead_exchange,
        backend: *const lmhead_backend,
        head: *mut *mut lmhead_head,
    ) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_free(head: *mut lmhead_head);
}
pub const LMHEAD_ROWS_EXACT: _bindgen_ty_9 = 0;
pub const LMHEAD_ROWS_CAPACITY: _bindgen_ty_9 = 1;
pub const LMHEAD_ROWS_DISCOVER: _bindgen_ty_9 = 2;
pub type _bindgen_ty_9 = ::core::ffi::c_uint;
pub const LMHEAD_LOGITS: _bindgen_ty_10 = 1;
pub const LMHEAD_ARGMAX: _bindgen_ty_10 = 2;
pub const LMHEAD_TOPK: _bindgen_ty_10 = 3;
pub const LMHEAD_LOGPROBS: _bindgen_ty_10 = 4;
pub const LMHEAD_SAMPLE: _bindgen_ty_10 = 5;
pub type _bindgen_ty_10 = ::core::ffi::c_uint;
pub const LMHEAD_ADJUSTED: _bindgen_ty_11 = 1;
pub const LMHEAD_PROCESSED: _bindgen_ty_11 = 2;
pub const LMHEAD_WITH_LOGPROBS: _bindgen_ty_11 = 4;
pub const LMHEAD_DEVICE_MASKS: _bindgen_ty_11 = 8;
pub const LMHEAD_UNFILTERED: _bindgen_ty_11 = 16;
pub const LMHEAD_DEVICE_FILTERS: _bindgen_ty_11 = 32;
pub const LMHEAD_ASYNCHRONOUS: _bindgen_ty_11 = 64;
pub type _bindgen_ty_11 = ::core::ffi::c_uint;
pub const LMHEAD_DEVICE_TARGETS: _bindgen_ty_12 = 1;
pub const LMHEAD_DEVICE_SAMPLING: _bindgen_ty_12 = 2;
pub const LMHEAD_DEVICE_ADJUSTMENTS: _bindgen_ty_12 = 4;
pub type _bindgen_ty_12 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_sampling {
    pub seed: *const u64,
    pub position: *const i64,
    pub temperature: *const f32,
    pub top_k: *const i32,
    pub top_p: *const f32,
    pub min_p: *const f32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_sampling"][::core::mem::size_of::<lmhead_sampling>() - 48usize];
    ["Alignment of lmhead_sampling"][::core::mem::align_of::<lmhead_sampling>() - 8usize];
    ["Offset of field: lmhead_sampling::seed"][::core::mem::offset_of!(lmhead_sampling, seed) - 0usize];
    ["Offset of field: lmhead_sampling::position"]
        [::core::mem::offset_of!(lmhead_sampling, position) - 8usize];
    ["Offset of field: lmhead_sampling::temperature"]
        [::core::mem::offset_of!(lmhead_sampling, temperature) - 16usize];
    ["Offset of field: lmhead_sampling::top_k"][::core::mem::offset_of!(lmhead_sampling, top_k) - 24usize];
    ["Offset of field: lmhead_sampling::top_p"][::core::mem::offset_of!(lmhead_sampling, top_p) - 32usize];
    ["Offset of field: lmhead_sampling::min_p"][::core::mem::offset_of!(lmhead_sampling, min_p) - 40usize];
};
unsafe extern "C" {
    pub fn lmhead_sampling_check(sampling: *const lmhead_sampling, rows: i64) -> lmhead_status;
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_adjustments {
    pub allowed: *const i32,
    pub logit_bias_offsets: *const i64,
    pub logit_bias_ids: *const i64,
    pub logit_bias_values: *const f32,
    pub repetition: *const f32,
    pub frequency: *const f32,
    pub presence: *const f32,
    pub count_offsets: *const i64,
    pub count_ids: *const i64,
    pub counts: *const i32,
    pub in_prompt: *const u8,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_adjustments"][::core::mem::size_of::<lmhead_adjustments>() - 88usize];
    ["Alignment of lmhead_adjustments"][::core::mem::align_of::<lmhead_adjustments>() - 8usize];
    ["Offset of field: lmhead_adjustments::allowed"]
        [::core::mem::offset_of!(lmhead_adjustments, allowed) - 0usize];
    ["Offset of field: lmhead_adjustments::logit_bias_offsets"]
        [::core::mem::offset_of!(lmhead_adjustments, logit_bias_offsets) - 8usize];
    ["Offset of field: lmhead_adjustments::logit_bias_ids"]
        [::core::mem::offset_of!(lmhead_adjustments, logit_bias_ids) - 16usize];
    ["Offset of field: lmhead_adjustments::logit_bias_values"]
        [::core::mem::offset_of!(lmhead_adjustments, logit_bias_values) - 24usize];
    ["Offset of field: lmhead_adjustments::repetition"]
        [::core::mem::offset_of!(lmhead_adjustments, repetition) - 32usize];
    ["Offset of field: lmhead_adjustments::frequency"]
        [::core::mem::offset_of!(lmhead_adjustments, frequency) - 40usize];
    ["Offset of field: lmhead_adjustments::presence"]
        [::core::mem::offset_of!(lmhead_adjustments, presence) - 48usize];
    ["Offset of field: lmhead_adjustments::count_offsets"]
        [::core::mem::offset_of!(lmhead_adjustments, count_offsets) - 56usize];
    ["Offset of field: lmhead_adjustments::count_ids"]
        [::core::mem::offset_of!(lmhead_adjustments, count_ids) - 64usize];
    ["Offset of field: lmhead_adjustments::counts"]
        [::core::mem::offset_of!(lmhead_adjustments, counts) - 72usize];
    ["Offset of field: lmhead_adjustments::in_prompt"]
        [::core::mem::offset_of!(lmhead_adjustments, in_prompt) - 80usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_step {
    pub size: usize,
    pub mode: i32,
    pub request: i32,
    pub rows: i64,
    pub counts: *const i64,
    pub capacity: i64,
    pub k: i64,
    pub n_targets: i64,
    pub logits_dtype: u32,
    pub flags: u32,
    pub hidden: lmhead_tensor,
    pub indices: *const ::core::ffi::c_void,
    pub index_dtype: u32,
    pub targets: *const i64,
    pub sampling: *const lmhead_sampling,
    pub adjustments: *const lmhead_adjustments,
    pub stream: *mut ::core::ffi::c_void,
    pub workspace: *mut ::core::ffi::c_void,
    pub workspace_bytes: usize,
    pub device_inputs: u32,
    pub reserved: u32,
    pub max_logit_bias: i64,
    pub max_counts: i64,
    pub n_logit_bias: i64,
    pub n_counts: i64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_step"][::core::mem::size_of::<lmhead_step>() - 216usize];
    ["Alignment of lmhead_step"][::core::mem::align_of::<lmhead_step>() - 8usize];
    ["Offset of field: lmhead_step::size"][::core::mem::offset_of!(lmhead_step, size) - 0usize];
    ["Offset of field: lmhead_step::mode"][::core::mem::offset_of!(lmhead_step, mode) - 8usize];
    ["Offset of field: lmhead_step::request"][::core::mem::offset_of!(lmhead_step, request) - 12usize];
    ["Offset of field: lmhead_step::rows"][::core::mem::offset_of!(lmhead_step, rows) - 16usize];
    ["Offset of field: lmhead_step::counts"][::core::mem::offset_of!(lmhead_step, counts) - 24usize];
    ["Offset of field: lmhead_step::capacity"][::core::mem::offset_of!(lmhead_step, capacity) - 32usize];
    ["Offset of field: lmhead_step::k"][::core::mem::offset_of!(lmhead_step, k) - 40usize];
    ["Offset of field: lmhead_step::n_targets"][::core::mem::offset_of!(lmhead_step, n_targets) - 48usize];
    ["Offset of field: lmhead_step::logits_dtype"]
        [::core::mem::offset_of!(lmhead_step, logits_dtype) - 56usize];
    ["Offset of field: lmhead_step::flags"][::core::mem::offset_of!(lmhead_step, flags) - 60usize];
    ["Offset of field: lmhead_step::hidden"][::core::mem::offset_of!(lmhead_step, hidden) - 64usize];
    ["Offset of field: lmhead_step::indices"][::core::mem::offset_of!(lmhead_step, indices) - 112usize];
    ["Offset of field: lmhead_step::index_dtype"]
        [::core::mem::offset_of!(lmhead_step, index_dtype) - 120usize];
    ["Offset of field: lmhead_step::targets"][::core::mem::offset_of!(lmhead_step, targets) - 128usize];
    ["Offset of field: lmhead_step::sampling"][::core::mem::offset_of!(lmhead_step, sampling) - 136usize];
    ["Offset of field: lmhead_step::adjustments"]
        [::core::mem::offset_of!(lmhead_step, adjustments) - 144usize];
    ["Offset of field: lmhead_step::stream"][::core::mem::offset_of!(lmhead_step, stream) - 152usize];
    ["Offset of field: lmhead_step::workspace"][::core::mem::offset_of!(lmhead_step, workspace) - 160usize];
    ["Offset of field: lmhead_step::workspace_bytes"]
        [::core::mem::offset_of!(lmhead_step, workspace_bytes) - 168usize];
    ["Offset of field: lmhead_step::device_inputs"]
        [::core::mem::offset_of!(lmhead_step, device_inputs) - 176usize];
    ["Offset of field: lmhead_step::reserved"][::core::mem::offset_of!(lmhead_step, reserved) - 180usize];
    ["Offset of field: lmhead_step::max_logit_bias"]
        [::core::mem::offset_of!(lmhead_step, max_logit_bias) - 184usize];
    ["Offset of field: lmhead_step::max_counts"][::core::mem::offset_of!(lmhead_step, max_counts) - 192usize];
    ["Offset of field: lmhead_step::n_logit_bias"]
        [::core::mem::offset_of!(lmhead_step, n_logit_bias) - 200usize];
    ["Offset of field: lmhead_step::n_counts"][::core::mem::offset_of!(lmhead_step, n_counts) - 208usize];
};
pub const LMHEAD_ROW_GOOD: _bindgen_ty_13 = 0;
pub const LMHEAD_ROW_NONFINITE: _bindgen_ty_13 = 1;
pub const LMHEAD_ROW_NOTHING_ALLOWED: _bindgen_ty_13 = 2;
pub const LMHEAD_ROW_BAD_INPUT: _bindgen_ty_13 = 3;
pub type _bindgen_ty_13 = ::core::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_stats {
    pub size: usize,
    pub rows_computed: i64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub weight_bytes: u64,
    pub contract_ns: u64,
    pub gather_ns: u64,
    pub matmul_ns: u64,
    pub exchange_ns: u64,
    pub rounds: u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_stats"][::core::mem::size_of::<lmhead_stats>() - 80usize];
    ["Alignment of lmhead_stats"][::core::mem::align_of::<lmhead_stats>() - 8usize];
    ["Offset of field: lmhead_stats::size"][::core::mem::offset_of!(lmhead_stats, size) - 0usize];
    ["Offset of field: lmhead_stats::rows_computed"]
        [::core::mem::offset_of!(lmhead_stats, rows_computed) - 8usize];
    ["Offset of field: lmhead_stats::bytes_sent"]
        [::core::mem::offset_of!(lmhead_stats, bytes_sent) - 16usize];
    ["Offset of field: lmhead_stats::bytes_received"]
        [::core::mem::offset_of!(lmhead_stats, bytes_received) - 24usize];
    ["Offset of field: lmhead_stats::weight_bytes"]
        [::core::mem::offset_of!(lmhead_stats, weight_bytes) - 32usize];
    ["Offset of field: lmhead_stats::contract_ns"]
        [::core::mem::offset_of!(lmhead_stats, contract_ns) - 40usize];
    ["Offset of field: lmhead_stats::gather_ns"][::core::mem::offset_of!(lmhead_stats, gather_ns) - 48usize];
    ["Offset of field: lmhead_stats::matmul_ns"][::core::mem::offset_of!(lmhead_stats, matmul_ns) - 56usize];
    ["Offset of field: lmhead_stats::exchange_ns"]
        [::core::mem::offset_of!(lmhead_stats, exchange_ns) - 64usize];
    ["Offset of field: lmhead_stats::rounds"][::core::mem::offset_of!(lmhead_stats, rounds) - 72usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_answer {
    pub size: usize,
    pub row_status: *mut u8,
    pub logits: lmhead_tensor,
    pub ids: *mut i64,
    pub values: *mut f32,
    pub logsumexp: *mut f32,
    pub logprobs: *mut f32,
    pub ranks: *mut i64,
    pub top_ids: *mut i64,
    pub top_logprobs: *mut f32,
    pub stats: *mut lmhead_stats,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_answer"][::core::mem::size_of::<lmhead_answer>() - 128usize];
    ["Alignment of lmhead_answer"][::core::mem::align_of::<lmhead_answer>() - 8usize];
    ["Offset of field: lmhead_answer::size"][::core::mem::offset_of!(lmhead_answer, size) - 0usize];
    ["Offset of field: lmhead_answer::row_status"]
        [::core::mem::offset_of!(lmhead_answer, row_status) - 8usize];
    ["Offset of field: lmhead_answer::logits"][::core::mem::offset_of!(lmhead_answer, logits) - 16usize];
    ["Offset of field: lmhead_answer::ids"][::core::mem::offset_of!(lmhead_answer, ids) - 64usize];
    ["Offset of field: lmhead_answer::values"][::core::mem::offset_of!(lmhead_answer, values) - 72usize];
    ["Offset of field: lmhead_answer::logsumexp"]
        [::core::mem::offset_of!(lmhead_answer, logsumexp) - 80usize];
    ["Offset of field: lmhead_answer::logprobs"][::core::mem::offset_of!(lmhead_answer, logprobs) - 88usize];
    ["Offset of field: lmhead_answer::ranks"][::core::mem::offset_of!(lmhead_answer, ranks) - 96usize];
    ["Offset of field: lmhead_answer::top_ids"][::core::mem::offset_of!(lmhead_answer, top_ids) - 104usize];
    ["Offset of field: lmhead_answer::top_logprobs"]
        [::core::mem::offset_of!(lmhead_answer, top_logprobs) - 112usize];
    ["Offset of field: lmhead_answer::stats"][::core::mem::offset_of!(lmhead_answer, stats) - 120usize];
};
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct lmhead_needs {
    pub size: usize,
    pub workspace_bytes: usize,
    pub first_row: i64,
    pub rows: i64,
    pub capturable: i32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of lmhead_needs"][::core::mem::size_of::<lmhead_needs>() - 40usize];
    ["Alignment of lmhead_needs"][::core::mem::align_of::<lmhead_needs>() - 8usize];
    ["Offset of field: lmhead_needs::size"][::core::mem::offset_of!(lmhead_needs, size) - 0usize];
    ["Offset of field: lmhead_needs::workspace_bytes"]
        [::core::mem::offset_of!(lmhead_needs, workspace_bytes) - 8usize];
    ["Offset of field: lmhead_needs::first_row"][::core::mem::offset_of!(lmhead_needs, first_row) - 16usize];
    ["Offset of field: lmhead_needs::rows"][::core::mem::offset_of!(lmhead_needs, rows) - 24usize];
    ["Offset of field: lmhead_needs::capturable"]
        [::core::mem::offset_of!(lmhead_needs, capturable) - 32usize];
};
unsafe extern "C" {
    pub fn lmhead_plan(
        head: *const lmhead_head,
        step: *const lmhead_step,
        needs: *mut lmhead_needs,
    ) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_prepare(head: *mut lmhead_head, steps: *const lmhead_step, n: usize) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_run(
        head: *mut lmhead_head,
        step: *const lmhead_step,
        answer: *mut lmhead_answer,
    ) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_async_status(head: *mut lmhead_head) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_abort(head: *mut lmhead_head, reason: *const ::core::ffi::c_char) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_set_weights_version(head: *mut lmhead_head, version: u64) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_release_memory(head: *mut lmhead_head) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_flight_recorder(
        head: *const lmhead_head,
        json: *mut *mut ::core::ffi::c_char,
    ) -> lmhead_status;
}
unsafe extern "C" {
    pub fn lmhead_rebuild(head: *mut lmhead_head) -> lmhead_status;
}
