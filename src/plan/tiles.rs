//! The tiles of the product kernels, smallest first. Written by scripts/kernel-tiles from the MATMUL_KERNEL
//! and WGMMA_MATMUL_KERNEL lines of kernels/*_matmul_*.cu: change those.

use super::Tile;

pub const FP8_MATMUL_BF16: &[Tile] = &[
    Tile::mma_sync("fp8_matmul_bf16_64x8", 64, 8, 256, 2),
    Tile::mma_sync("fp8_matmul_bf16_64x16", 64, 16, 256, 2),
    Tile::mma_sync("fp8_matmul_bf16_64x32", 64, 32, 256, 2),
    Tile::mma_sync("fp8_matmul_bf16_64x64", 64, 64, 256, 2),
    Tile::mma_sync("fp8_matmul_bf16_128x8", 128, 8, 256, 2),
    Tile::mma_sync("fp8_matmul_bf16_128x16", 128, 16, 256, 2),
    Tile::mma_sync("fp8_matmul_bf16_128x32", 128, 32, 256, 2),
    Tile::mma_sync("fp8_matmul_bf16_128x64", 128, 64, 256, 2),
];

pub const FP8_MATMUL_F16: &[Tile] = &[
    Tile::mma_sync("fp8_matmul_f16_64x8", 64, 8, 256, 2),
    Tile::mma_sync("fp8_matmul_f16_64x16", 64, 16, 256, 2),
    Tile::mma_sync("fp8_matmul_f16_64x32", 64, 32, 256, 2),
    Tile::mma_sync("fp8_matmul_f16_64x64", 64, 64, 256, 2),
    Tile::mma_sync("fp8_matmul_f16_128x8", 128, 8, 256, 2),
    Tile::mma_sync("fp8_matmul_f16_128x16", 128, 16, 256, 2),
    Tile::mma_sync("fp8_matmul_f16_128x32", 128, 32, 256, 2),
    Tile::mma_sync("fp8_matmul_f16_128x64", 128, 64, 256, 2),
];

pub const GATHER_MATMUL_BF16: &[Tile] = &[
    Tile::mma_sync("gather_matmul_bf16_64x8", 64, 8, 128, 2),
    Tile::mma_sync("gather_matmul_bf16_64x16", 64, 16, 128, 2),
    Tile::mma_sync("gather_matmul_bf16_64x32", 64, 32, 128, 2),
    Tile::mma_sync("gather_matmul_bf16_64x64", 64, 64, 128, 2),
    Tile::mma_sync("gather_matmul_bf16_128x8", 128, 8, 128, 2),
    Tile::mma_sync("gather_matmul_bf16_128x16", 128, 16, 128, 2),
    Tile::mma_sync("gather_matmul_bf16_128x32", 128, 32, 128, 2),
    Tile::mma_sync("gather_matmul_bf16_128x64", 128, 64, 128, 2),
    Tile::mma_sync("gather_matmul_bf16_128x128", 128, 128, 128, 2),
];

pub const GATHER_MATMUL_F16: &[Tile] = &[
    Tile::mma_sync("gather_matmul_f16_64x8", 64, 8, 128, 2),
    Tile::mma_sync("gather_matmul_f16_64x16", 64, 16, 128, 2),
    Tile::mma_sync("gather_matmul_f16_64x32", 64, 32, 128, 2),
    Tile::mma_sync("gather_matmul_f16_64x64", 64, 64, 128, 2),
    Tile::mma_sync("gather_matmul_f16_128x8", 128, 8, 128, 2),
    Tile::mma_sync("gather_matmul_f16_128x16", 128, 16, 128, 2),
    Tile::mma_sync("gather_matmul_f16_128x32", 128, 32, 128, 2),
    Tile::mma_sync("gather_matmul_f16_128x64", 128, 64, 128, 2),
    Tile::mma_sync("gather_matmul_f16_128x128", 128, 128, 128, 2),
];

pub const QUANT_MATMUL: &[Tile] = &[
    Tile::mma_sync("quant_matmul_64x8", 64, 8, 128, 2),
    Tile::mma_sync("quant_matmul_64x16", 64, 16, 128, 2),
    Tile::mma_sync("quant_matmul_64x32", 64, 32, 128, 2),
    Tile::mma_sync("quant_matmul_64x64", 64, 64, 128, 2),
    Tile::mma_sync("quant_matmul_128x8", 128, 8, 128, 2),
    Tile::mma_sync("quant_matmul_128x16", 128, 16, 128, 2),
    Tile::mma_sync("quant_matmul_128x32", 128, 32, 128, 2),
    Tile::mma_sync("quant_matmul_128x64", 128, 64, 128, 2),
    Tile::mma_sync("quant_matmul_128x128", 128, 128, 128, 2),
];

pub const W8A16_MATMUL_BF16: &[Tile] = &[
    Tile::mma_sync("w8a16_matmul_bf16_64x8", 64, 8, 256, 2),
    Tile::mma_sync("w8a16_matmul_bf16_64x16", 64, 16, 256, 2),
    Tile::mma_sync("w8a16_matmul_bf16_64x32", 64, 32, 256, 2),
    Tile::mma_sync("w8a16_matmul_bf16_64x64", 64, 64, 256, 2),
    Tile::mma_sync("w8a16_matmul_bf16_128x8", 128, 8, 256, 2),
    Tile::mma_sync("w8a16_matmul_bf16_128x16", 128, 16, 256, 2),
    Tile::mma_sync("w8a16_matmul_bf16_128x32", 128, 32, 256, 2),
    Tile::mma_sync("w8a16_matmul_bf16_128x64", 128, 64, 256, 2),
];

pub const W8A16_MATMUL_F16: &[Tile] = &[
    Tile::mma_sync("w8a16_matmul_f16_64x8", 64, 8, 256, 2),
    Tile::mma_sync("w8a16_matmul_f16_64x16", 64, 16, 256, 2),
    Tile::mma_sync("w8a16_matmul_f16_64x32", 64, 32, 256, 2),
    Tile::mma_sync("w8a16_matmul_f16_64x64", 64, 64, 256, 2),
    Tile::mma_sync("w8a16_matmul_f16_128x8", 128, 8, 256, 2),
    Tile::mma_sync("w8a16_matmul_f16_128x16", 128, 16, 256, 2),
    Tile::mma_sync("w8a16_matmul_f16_128x32", 128, 32, 256, 2),
    Tile::mma_sync("w8a16_matmul_f16_128x64", 128, 64, 256, 2),
];

pub const WGMMA_MATMUL_BF16: &[Tile] = &[
    Tile::wgmma("wgmma_matmul_bf16_64x8", 64, 8, 512, 512),
    Tile::wgmma("wgmma_matmul_bf16_64x16", 64, 16, 512, 512),
    Tile::wgmma("wgmma_matmul_bf16_64x32", 64, 32, 512, 512),
    Tile::wgmma("wgmma_matmul_bf16_64x64", 64, 64, 256, 256),
    Tile::wgmma("wgmma_matmul_bf16_128x32", 128, 32, 256, 256),
    Tile::wgmma("wgmma_matmul_bf16_128x64", 128, 64, 256, 256),
    Tile::wgmma("wgmma_matmul_bf16_128x128", 128, 128, 128, 128),
    Tile::wgmma("wgmma_matmul_bf16_256x128", 256, 128, 128, 128),
];

pub const WGMMA_MATMUL_F16: &[Tile] = &[
    Tile::wgmma("wgmma_matmul_f16_64x8", 64, 8, 512, 512),
    Tile::wgmma("wgmma_matmul_f16_64x16", 64, 16, 512, 512),
    Tile::wgmma("wgmma_matmul_f16_64x32", 64, 32, 512, 512),
    Tile::wgmma("wgmma_matmul_f16_64x64", 64, 64, 256, 256),
    Tile::wgmma("wgmma_matmul_f16_128x32", 128, 32, 256, 256),
    Tile::wgmma("wgmma_matmul_f16_128x64", 128, 64, 256, 256),
    Tile::wgmma("wgmma_matmul_f16_128x128", 128, 128, 128, 128),
    Tile::wgmma("wgmma_matmul_f16_256x128", 256, 128, 128, 128),
];

pub const WGMMA_MATMUL_FP8_BF16: &[Tile] = &[
    Tile::wgmma("wgmma_matmul_fp8_bf16_64x32", 64, 32, 256, 512),
    Tile::wgmma("wgmma_matmul_fp8_bf16_64x64", 64, 64, 256, 512),
    Tile::wgmma("wgmma_matmul_fp8_bf16_128x8", 128, 8, 256, 512),
    Tile::wgmma("wgmma_matmul_fp8_bf16_128x32", 128, 32, 256, 512),
    Tile::wgmma("wgmma_matmul_fp8_bf16_128x64", 128, 64, 128, 256),
    Tile::wgmma("wgmma_matmul_fp8_bf16_128x128", 128, 128, 128, 256),
];

pub const WGMMA_MATMUL_FP8_F16: &[Tile] = &[
    Tile::wgmma("wgmma_matmul_fp8_f16_64x32", 64, 32, 256, 512),
    Tile::wgmma("wgmma_matmul_fp8_f16_64x64", 64, 64, 256, 512),
    Tile::wgmma("wgmma_matmul_fp8_f16_128x8", 128, 8, 256, 512),
    Tile::wgmma("wgmma_matmul_fp8_f16_128x32", 128, 32, 256, 512),
    Tile::wgmma("wgmma_matmul_fp8_f16_128x64", 128, 64, 128, 256),
    Tile::wgmma("wgmma_matmul_fp8_f16_128x128", 128, 128, 128, 256),
];

pub const WGMMA_MATMUL_W8A16_BF16: &[Tile] = &[
    Tile::wgmma("wgmma_matmul_w8a16_bf16_64x32", 64, 32, 256, 512),
    Tile::wgmma("wgmma_matmul_w8a16_bf16_64x64", 64, 64, 256, 512),
    Tile::wgmma("wgmma_matmul_w8a16_bf16_128x8", 128, 8, 256, 512),
    Tile::wgmma("wgmma_matmul_w8a16_bf16_128x32", 128, 32, 256, 512),
    Tile::wgmma("wgmma_matmul_w8a16_bf16_128x64", 128, 64, 128, 256),
    Tile::wgmma("wgmma_matmul_w8a16_bf16_128x128", 128, 128, 128, 256),
];

pub const WGMMA_MATMUL_W8A16_F16: &[Tile] = &[
    Tile::wgmma("wgmma_matmul_w8a16_f16_64x32", 64, 32, 256, 512),
    Tile::wgmma("wgmma_matmul_w8a16_f16_64x64", 64, 64, 256, 512),
    Tile::wgmma("wgmma_matmul_w8a16_f16_128x8", 128, 8, 256, 512),
    Tile::wgmma("wgmma_matmul_w8a16_f16_128x32", 128, 32, 256, 512),
    Tile::wgmma("wgmma_matmul_w8a16_f16_128x64", 128, 64, 128, 256),
    Tile::wgmma("wgmma_matmul_w8a16_f16_128x128", 128, 128, 128, 256),
];

pub const WGMMA_MATMUL_W8A8: &[Tile] = &[
    Tile::wgmma("wgmma_matmul_w8a8_64x8", 64, 8, 512, 512),
    Tile::wgmma("wgmma_matmul_w8a8_64x16", 64, 16, 512, 512),
    Tile::wgmma("wgmma_matmul_w8a8_64x32", 64, 32, 512, 512),
    Tile::wgmma("wgmma_matmul_w8a8_64x64", 64, 64, 256, 256),
    Tile::wgmma("wgmma_matmul_w8a8_128x32", 128, 32, 256, 256),
    Tile::wgmma("wgmma_matmul_w8a8_128x64", 128, 64, 256, 256),
    Tile::wgmma("wgmma_matmul_w8a8_128x128", 128, 128, 128, 128),
    Tile::wgmma("wgmma_matmul_w8a8_256x128", 256, 128, 128, 128),
];
