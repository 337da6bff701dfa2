//! The functions of `kernels/emulated` that are called from here.

unsafe extern "C" {
    pub fn lmhead_emulated_multiply_k16(
        path: i32,
        is_f16: i32,
        a: *const u16,
        b: *const u16,
        d: *mut f32,
        m: i32,
        n: i32,
    );
}
