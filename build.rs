//! Compiles `kernels/` with nvcc (feature `cuda`); without the feature there is nothing to compile.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    lmhead_nvcc::build();
}
