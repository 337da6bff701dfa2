// The emulated device as kernels see it, through the wrappers of ptx/. Every function is one instruction of
// the calling thread; `instruction` is its name for reports.
#pragma once
#include <cstdint>

struct TensorMap;

namespace emulated {

// How KERNEL (ptx/core.cuh) describes a kernel; mirrored in crates/emulated/src/ffi.rs.
struct Kernel {
  const char *name;
  void (*body)(const void *params);
  uint64_t params_bytes;
  uint32_t max_threads;    // of a block
  uint32_t blocks_per_sm;  // by the launch bounds
  uint32_t cluster;        // blocks of a cluster; 1: as many as the launch says
  // 1: its blocks wait for kernels of other ranks. All of them must run at the same time.
  uint32_t waits_for_peers;
};

// Where an .aligned instruction, which a warp's lanes must execute together, stands in the kernel's source.
struct Place {
  const char *file;
  uint32_t line;
  static constexpr Place here(const char *file = __builtin_FILE(), uint32_t line = __builtin_LINE()) {
    return {file, line};
  }
};

// Values of the calling thread. A function runs on the same thread from beginning to end, whoever runs in
// between: const, so that the compiler asks once.
#define SAME_THREAD __attribute__((const))
struct Dim3 {
  uint32_t x, y, z;
};
SAME_THREAD const Dim3 &thread_index();
SAME_THREAD const Dim3 &block_index();
SAME_THREAD const Dim3 &block_size();
SAME_THREAD const Dim3 &grid_size();

// Shared memory.
SAME_THREAD uint32_t dynamic_shared();
void ld_shared(const char *instruction, uint32_t address, void *to, uint32_t bytes);
void st_shared(const char *instruction, uint32_t address, const void *from, uint32_t bytes);
uint32_t atom_shared_add_u32(uint32_t address, uint32_t v);
uint64_t atom_shared_add_u64(uint32_t address, uint64_t v);
void ldmatrix(uint32_t *d, int matrices, bool transposed, uint32_t address, Place place);
void stmatrix(const uint32_t *v, int matrices, bool transposed, uint32_t address, Place place);

// Global memory.
enum class Atomic { add, max, bit_or, exchange };
void ld_global(const char *instruction, const void *address, void *to, uint32_t bytes);
void ld_global_nc(const char *instruction, const void *address, void *to, uint32_t bytes);
void st_global(const char *instruction, void *address, const void *from, uint32_t bytes);
uint32_t atom_u32(const char *instruction, void *address, Atomic operation, uint32_t v);
uint64_t atom_u64(const char *instruction, void *address, Atomic operation, uint64_t v);
uint32_t atom_cas_u32(const char *instruction, void *address, uint32_t compare, uint32_t v);
void fence_acq_rel_gpu();
uint32_t ld_acquire(const char *instruction, const void *address);
void st_release(const char *instruction, void *address, uint32_t v);
void red_add_release(const char *instruction, void *address, uint32_t v);
void fence_proxy_async_global();
uint64_t globaltimer();

// Arithmetic (rounding.cpp).
inline void bits_of(float v, uint32_t &bits) { __builtin_memcpy(&bits, &v, 4); }
inline void float_of(uint32_t bits, float &v) { __builtin_memcpy(&v, &bits, 4); }
// Accumulators of wgmma that nobody has waited for hold words of these ranges: signalling NaNs, and int32
// near the lowest. An instruction that is given such a word looks closer (check_operand).
constexpr uint32_t kNoiseSpan = 1u << 21, kNoiseF32 = 0xff810000u, kNoiseS32 = 0x80000001u;
void check_operand(const char *instruction, uint32_t word);
inline void check_f32(const char *instruction, float v) {
  uint32_t bits;
  bits_of(v, bits);
  if (bits - kNoiseF32 < kNoiseSpan) check_operand(instruction, bits);
}
inline void check_s32(const char *instruction, int32_t v) {
  if (uint32_t(v) - kNoiseS32 < kNoiseSpan) check_operand(instruction, uint32_t(v));
}
// The result of an instruction, with NaN as the device has it.
template <class... Operands>
inline float canonical(const char *instruction, float v, Operands... operands) {
  if (__builtin_expect(v == v, 1)) return v;
  (check_f32(instruction, operands), ...);
  float nan;
  float_of(0x7fffffffu, nan);
  return nan;
}
inline float f32_of_s32(int32_t v) {
  check_s32("cvt.rn.f32.s32", v);
  return float(v);
}
int32_t nearest_s32(float v);
int32_t truncated_s32(float v);
uint16_t bf16_of(float v);
uint16_t f16_of(float v);
float f32_of_f16(uint16_t bits);
float log2_approximate(float v);
uint32_t sub_f16x2(uint32_t a, uint32_t b);
uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c);
inline uint32_t prmt(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t digit = selector >> 4 * i, byte = uint32_t(bytes >> (digit & 7) * 8 & 255);
    out |= (digit & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
  }
  return out;
}

// Warps.
enum class Shuffle { butterfly, index, up, down };
enum class Reduction { max, bit_or };
void bar_warp_sync(uint32_t mask);
uint32_t elect_sync();
uint32_t vote_ballot(const char *instruction, bool predicate, uint32_t mask);
uint32_t redux(const char *instruction, Reduction kind, uint32_t v, uint32_t mask);
uint32_t shuffle(const char *instruction, Shuffle kind, uint32_t v, uint32_t operand, uint32_t mask);

// Matrix instructions of a warp.
enum class Half { bf16, f16 };
void mma_m16n8k16(const char *instruction, Half half, float *d, const uint32_t *a, const uint32_t *b,
                  Place place);
void mma_m16n8k32(const char *instruction, int32_t *d, const uint32_t *a, const uint32_t *b, Place place);

// Barriers. `threads` 0: all of the block.
void barrier_sync(const char *instruction, uint32_t id, uint32_t threads, Place place);
void barrier_arrive(uint32_t id, uint32_t threads, Place place);

void mbarrier_init(uint32_t barrier, uint32_t arrivals);
void mbarrier_inval(uint32_t barrier);
void fence_mbarrier_init();
void mbarrier_arrive(uint32_t barrier);
void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes);
void mbarrier_arrive_cluster(uint32_t barrier);
bool mbarrier_try_wait_parity(const char *instruction, uint32_t barrier, uint32_t parity);

// Asynchronous copies.
void cp_async(const char *instruction, uint32_t to, const void *from, uint32_t bytes, uint32_t from_bytes);
void cp_async_commit_group();
void cp_async_wait_group(uint32_t pending);
void cp_async_wait_all();
void cp_async_mbarrier_arrive_noinc(uint32_t barrier);

// TMA. `blocks`: a bit for each block of the cluster that the tile goes to.
constexpr uint32_t kOwnBlock = 1u << 31;
void prefetch_tensormap(const TensorMap *map);
void tma_load_2d(const char *instruction, uint32_t to, const TensorMap *map, int32_t x, int32_t y,
                 uint32_t barrier, uint32_t blocks);
void bulk_load(const char *instruction, uint32_t to, const void *from, uint32_t bytes, uint32_t barrier,
               uint32_t blocks);
void tma_store_2d(const TensorMap *map, int32_t x, int32_t y, uint32_t from);
void bulk_commit_group();
void bulk_wait_group(const char *instruction, uint32_t pending, bool read);
void fence_proxy_async();

// Matrix instructions of a warpgroup.
enum class Element { bf16, f16, s8 };
struct WgmmaOperands {
  const char *instruction;
  Element element;
  int n;
  uint64_t a, b;         // descriptors
  const uint32_t *from;  // four registers of a, or null: a by descriptor
  bool keep;             // add to the accumulators
};
void wgmma_fence(Place place);
void wgmma_commit_group(Place place);
void wgmma_wait_group(uint32_t pending, Place place);
void wgmma(const WgmmaOperands &operands, void *accumulators, Place place);  // n / 2 words

// Clusters.
uint32_t cluster_block_rank();
uint32_t cluster_block_count();
void barrier_cluster_arrive(Place place);
void barrier_cluster_wait(Place place);
uint32_t mapa(uint32_t address, uint32_t rank);
void ld_shared_cluster(const char *instruction, uint32_t address, void *to, uint32_t bytes);
void st_shared_cluster(const char *instruction, uint32_t address, const void *from, uint32_t bytes);

// Control.
void setmaxnreg(const char *instruction, uint32_t registers, bool increase, Place place);
void griddepcontrol_wait();
void griddepcontrol_launch_dependents();
[[noreturn]] void trap();

}  // namespace emulated
