//! Compiles `kernels/`: with g++ for the emulated device (feature `emulated`), with nvcc for the real one (feature `cuda`).

#[cfg(feature = "cuda")]
#[path = "build/cuda.rs"]
mod cuda;
#[cfg(feature = "emulated")]
#[path = "build/emulated.rs"]
mod emulated;

fn main() {
    // Without a feature nothing is compiled, and no source makes this run again.
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "emulated")]
    emulated::build();
    #[cfg(feature = "cuda")]
    cuda::build();
}
