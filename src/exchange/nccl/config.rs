//! NCCL's settings of a communicator, as far as every version takes them.

use super::sys;
use std::ffi::{c_char, c_int};

/// `ncclConfig_t` up to the version that [`LAYOUT`] names, without padding. Newer libraries fill what comes
/// behind it with their defaults, as its `size` and `version` tell them. The header's own struct grows from
/// version to version.
#[repr(C)]
#[derive(Debug)]
pub(super) struct ncclConfig_t {
    size: usize,
    magic: u32,
    version: u32,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
    /// From 2.25 on; padding before.
    traffic_class: c_int,
}

/// 2.18: the first version with `splitShare`, and with `ncclCommSplit`.
const LAYOUT: u32 = 21801;

impl ncclConfig_t {
    /// A communicator whose calls return at once (`blocking` 0), and that shares nothing with the one it is
    /// split from: it must survive that one's abort.
    pub fn nonblocking() -> Self {
        let unset = sys::NCCL_CONFIG_UNDEF_INT;
        ncclConfig_t {
            size: size_of::<Self>(),
            magic: sys::NCCL_API_MAGIC,
            version: LAYOUT,
            blocking: 0,
            cga_cluster_size: unset,
            min_ctas: unset,
            max_ctas: unset,
            net_name: std::ptr::null(),
            split_share: 0,
            traffic_class: unset,
        }
    }
}

// What a library reads by offset: nccl.h, from version 2.18 on.
const _: () = {
    assert!(std::mem::offset_of!(ncclConfig_t, blocking) == 16);
    assert!(std::mem::offset_of!(ncclConfig_t, net_name) == 32);
    assert!(std::mem::offset_of!(ncclConfig_t, split_share) == 40);
    assert!(std::mem::offset_of!(ncclConfig_t, traffic_class) == 44);
    assert!(size_of::<ncclConfig_t>() == 48);
};
