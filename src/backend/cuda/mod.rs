//! CUDA devices: the embedded kernels, and what is needed to load and launch them. Feature `cuda`.

pub mod fatbins;
