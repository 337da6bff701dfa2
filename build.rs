//! Compiles `kernels/`: with g++ for the emulated device (feature `emulated`).

#[cfg(feature = "emulated")]
#[path = "build/emulated.rs"]
mod emulated;

fn main() {
    // Without a feature nothing is compiled, and no source makes this run again.
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "emulated")]
    emulated::build();
}
