// What every device file needs: macros that both compilers share, 16-bit types, how a kernel is declared.
#pragma once
#include <stddef.h>

#include "../params.h"

#if defined(__CUDACC__)
#define PTX __device__ __forceinline__
#define DEVICE __device__ __forceinline__
// Either the emulated meaning or the instruction.
#define EITHER(emulated_, ...) __VA_ARGS__
// The last parameter, or the only one, of a wrapper whose instruction is .aligned: all lanes of a warp must
// execute the same instruction together. `place` tells the emulated device the line of the call, so that it
// detects lanes that are at different lines.
#define AND_PLACE
#define PLACE
// A kernel with its parameters, the most threads of a block and how many blocks an SM shall hold. Parameters
// stay where the launch put them: TMA reads the tensor maps from there.
#define KERNEL(name, Params, threads, blocks) \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params params)
// The same in clusters of `cluster` blocks, which divides the grid.
#define CLUSTER_KERNEL(name, Params, threads, cluster)                                             \
  extern "C" __global__ void __launch_bounds__(threads, 1) __cluster_dims__(cluster, 1, 1) name( \
      const __grid_constant__ Params params)
// The same for a kernel whose blocks wait for kernels of other ranks: all of these run at the same time.
#define PEER_KERNEL(name, Params, threads) KERNEL(name, Params, threads, 1)
#else
#include "../emulated/device.hpp"
#define PTX inline
#define DEVICE inline
#define EITHER(emulated_, ...) emulated_
#define PLACE ::emulated::Place place = ::emulated::Place::here()
#define AND_PLACE , PLACE
#define threadIdx (::emulated::thread_index())
#define blockIdx (::emulated::block_index())
#define blockDim (::emulated::block_size())
#define gridDim (::emulated::grid_size())
#define KERNEL(name, Params, threads, blocks) DECLARE_KERNEL(name, Params, threads, blocks, 1, 0)
#define CLUSTER_KERNEL(name, Params, threads, cluster) DECLARE_KERNEL(name, Params, threads, 1, cluster, 0)
#define PEER_KERNEL(name, Params, threads) DECLARE_KERNEL(name, Params, threads, 1, 1, 1)
#define DECLARE_KERNEL(name, Params, threads, blocks, cluster, waits_for_peers)                             \
  static void name(const Params &params);                                                                   \
  extern "C" {                                                                                              \
  /* Seen from outside of a shared library, too: a test's driver finds kernels by name. */                  \
  __attribute__((visibility("default"))) extern const ::emulated::Kernel lmhead_kernel_##name;              \
  const ::emulated::Kernel lmhead_kernel_##name = {                                                         \
      #name, [](const void *block) { name(*static_cast<const Params *>(block)); }, sizeof(Params), threads, \
      blocks, cluster, waits_for_peers};                                                                    \
  }                                                                                                         \
  static void name([[maybe_unused]] const Params &params)
#endif

namespace ptx {

// The bits of a 16-bit float, without arithmetic.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

struct alignas(8) U32x2 {
  uint32_t x, y;
};
struct alignas(16) U32x4 {
  uint32_t x, y, z, w;
};

constexpr uint32_t kFullWarp = 0xffffffffu;

}  // namespace ptx
