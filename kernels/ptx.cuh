// One wrapper per PTX instruction, and nothing but wrappers: under nvcc one `asm`, under a C++ compiler its
// meaning on the emulated device (emulated/). Names follow the PTX ISA. Shared memory is named by 32-bit
// shared addresses.
#pragma once
#include "ptx/core.cuh"

#include "ptx/arithmetic.cuh"
#include "ptx/arithmetic_f64.cuh"
#include "ptx/async_copy.cuh"
#include "ptx/barrier.cuh"
#include "ptx/cluster.cuh"
#include "ptx/control.cuh"
#include "ptx/global.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/mma.cuh"
#include "ptx/shared.cuh"
#include "ptx/tma.cuh"
#include "ptx/warp.cuh"
#include "ptx/wgmma.cuh"
