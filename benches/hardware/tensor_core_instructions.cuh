// Small kernels around one tensor-core instruction each, for tests of its bits: no pipeline, no speed.
//
// All compute D[i, j] = C[i, j] + sum over k of A[i, k]·B[j, k], k ascending, in one accumulator chain; A and
// B are 16-bit and contiguous along k. Rows past the end are zeros in the tile and are not written.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <type_traits>

#define CHECK(call)                                                                                   \
  do {                                                                                                \
    const cudaError_t error_ = (call);                                                                \
    if (error_ != cudaSuccess) {                                                                      \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_)); \
      std::exit(1);                                                                                   \
    }                                                                                                 \
  } while (0)

struct Problem {
  const uint16_t *a, *b;
  const float *c;  // nullptr: the chain starts at zero
  float *d;
  int rows_a, rows_b, k;              // k is a multiple of the instruction's k
  int stride_a, stride_b;             // D and C at (i, j): i·stride_a + j·stride_b
  int64_t batch_a, batch_b, batch_d;  // elements between the problems of a batch (grid z)
};

struct Bf16 {};
struct F16 {};

// ---- mma.sync: one warp per 16 x 8 tile, fragments straight from global memory ----

template <class Type, int kStep>
__device__ void mma_sync(float (&d)[4], const uint32_t *a, const uint32_t *b) {
#define MMA_K16(type)                                                 \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "         \
               "{%0,%1,%2,%3};"                                       \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#define MMA_K8(type)                                                 \
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32." type "." type \
               ".f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "                 \
               "{%0,%1,%2,%3};"                                      \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])      \
               : "r"(a[0]), "r"(a[1]), "r"(b[0]))
  if constexpr (kStep == 16) {
    if constexpr (std::is_same<Type, Bf16>::value)
      MMA_K16("bf16");
    else
      MMA_K16("f16");
  } else {
    if constexpr (std::is_same<Type, Bf16>::value)
      MMA_K8("bf16");
    else
      MMA_K8("f16");
  }
}

__device__ inline uint32_t two_of(const uint16_t *m, int row, int rows, int k_size, int k) {
  return row < rows ? *reinterpret_cast<const uint32_t *>(m + int64_t(row) * k_size + k) : 0u;
}

template <class Type, int kStep>
__global__ void __launch_bounds__(32) mma_kernel(Problem p) {
  const int group = threadIdx.x / 4, pair = threadIdx.x % 4 * 2;
  const uint16_t *a = p.a + blockIdx.z * p.batch_a, *b = p.b + blockIdx.z * p.batch_b;
  const int row = blockIdx.x * 16 + group, column = blockIdx.y * 8 + group;
  float d[4] = {0, 0, 0, 0};
  const auto at = [&](int i, int &r, int &c) {
    r = blockIdx.x * 16 + group + (i & 2 ? 8 : 0), c = blockIdx.y * 8 + pair + (i & 1);
    return r < p.rows_a && c < p.rows_b;
  };
  int r, c;
  if (p.c)
    for (int i = 0; i < 4; ++i)
      if (at(i, r, c)) d[i] = p.c[blockIdx.z * p.batch_d + int64_t(r) * p.stride_a + int64_t(c) * p.stride_b];
  for (int k = 0; k < p.k; k += kStep) {
    uint32_t fa[4], fb[2];
#pragma unroll
    for (int i = 0; i < kStep / 4; ++i)
      fa[i] = two_of(a, row + (i & 1 ? 8 : 0), p.rows_a, p.k, k + pair + (i & 2 ? 8 : 0));
#pragma unroll
    for (int i = 0; i < kStep / 8; ++i) fb[i] = two_of(b, column, p.rows_b, p.k, k + pair + 8 * i);
    mma_sync<Type, kStep>(d, fa, fb);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (at(i, r, c)) p.d[blockIdx.z * p.batch_d + int64_t(r) * p.stride_a + int64_t(c) * p.stride_b] = d[i];
}

// ---- wgmma: one warpgroup per 64 x N tile, one k-block of 64 (a 128-byte swizzle row) at a time ----

// "%0, ..." in tens, and the matching operand lists.
#define T10(t) "%" #t "0,%" #t "1,%" #t "2,%" #t "3,%" #t "4,%" #t "5,%" #t "6,%" #t "7,%" #t "8,%" #t "9"
#define T4 "%0,%1,%2,%3"
#define T8 T4 ",%4,%5,%6,%7"
#define T12 T10() ",%10,%11"
#define T32 T10() "," T10(1) "," T10(2) ",%30,%31"
#define T64 T10() "," T10(1) "," T10(2) "," T10(3) "," T10(4) "," T10(5) ",%60,%61,%62,%63"
#define T128                                                                                       \
  T10()                                                                                            \
  "," T10(1) "," T10(2) "," T10(3) "," T10(4) "," T10(5) "," T10(6) "," T10(7) "," T10(8) "," T10( \
      9) "," T10(10) "," T10(11) ",%120,%121,%122,%123,%124,%125,%126,%127"
#define D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define D8(i) D4(i), D4(i + 4)
#define D12(i) D8(i), D4(i + 8)
#define D32(i) D8(i), D8(i + 8), D8(i + 16), D8(i + 24)
#define D64(i) D32(i), D32(i + 32)
#define D128(i) D64(i), D64(i + 64)

// R accumulators per thread; the numbers after them are the operands that follow, in order.
#define WGMMA_SHARED(n, type, R, i0, i1, i2)                                                     \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %" #i2 ", 0; wgmma.mma_async.sync.aligned.m64n" #n \
               "k16.f32." type "." type " {" T##R "}, %" #i0 ", %" #i1 ", p, 1, 1, 0, 0;}"       \
               : D##R(0)                                                                         \
               : "l"(desc_a), "l"(desc_b), "r"(keep))
#define WGMMA_REGISTERS(n, type, R, i0, i1, i2, i3, i4, i5)                                         \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %" #i5 ", 0; wgmma.mma_async.sync.aligned.m64n" #n    \
               "k16.f32." type "." type " {" T##R "}, {%" #i0 ",%" #i1 ",%" #i2 ",%" #i3 "}, %" #i4 \
                                                  ", p, 1, 1, 0;}"                                  \
               : D##R(0)                                                                            \
               : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "l"(desc_b), "r"(keep))

template <class Type, int kN, bool kRegisters>
__device__ void wgmma(float (&d)[kN / 2], const uint32_t (&fa)[4], uint64_t desc_a, uint64_t desc_b,
                      int keep) {
#define BOTH(n, R, s0, s1, s2, s3, s4, s5)                     \
  if constexpr (kN == n) {                                     \
    if constexpr (std::is_same<Type, Bf16>::value) {           \
      if constexpr (kRegisters)                                \
        WGMMA_REGISTERS(n, "bf16", R, s0, s1, s2, s3, s4, s5); \
      else                                                     \
        WGMMA_SHARED(n, "bf16", R, s0, s1, s2);                \
    } else {                                                   \
      if constexpr (kRegisters)                                \
        WGMMA_REGISTERS(n, "f16", R, s0, s1, s2, s3, s4, s5);  \
      else                                                     \
        WGMMA_SHARED(n, "f16", R, s0, s1, s2);                 \
    }                                                          \
  }
    BOTH(8, 4, 4, 5, 6, 7, 8, 9) BOTH(16, 8, 8, 9, 10, 11, 12, 13) BOTH(24, 12, 12, 13, 14, 15, 16, 17)
        BOTH(64, 32, 32, 33, 34, 35, 36, 37) BOTH(128, 64, 64, 65, 66, 67, 68, 69)
            BOTH(256, 128, 128, 129, 130, 131, 132, 133)
}

// K-major, 128-byte swizzle: 8-row atoms of 1024 bytes, chunk c of row r at c ^ (r % 8).
__device__ inline uint64_t descriptor(uint32_t address) {
  return uint64_t((address & 0x3ffff) >> 4) | uint64_t(1) << 16 | uint64_t(1024 >> 4) << 32 |
         uint64_t(1) << 62;
}

__device__ inline void fill_tile(unsigned char *tile, const uint16_t *m, int first, int count, int rows,
                                 int k_size, int k0) {
  for (int i = threadIdx.x; i < count * 8; i += 128) {
    const int row = i / 8, chunk = i % 8;
    uint4 v = make_uint4(0, 0, 0, 0);
    if (first + row < rows && k0 + chunk * 8 < k_size)
      v = *reinterpret_cast<const uint4 *>(m + int64_t(first + row) * k_size + k0 + chunk * 8);
    *reinterpret_cast<uint4 *>(tile + row * 128 + (chunk ^ (row & 7)) * 16) = v;
  }
}

enum WgmmaOrder {
  kWaitPerBlock,   // four instructions in flight, the first of the chain overwrites the accumulators
  kWaitPerStep,    // one in flight
  kStartFromZero,  // as the first, but the chain starts by adding to accumulators that hold zero
};

template <class Type, int kN, bool kRegisters, WgmmaOrder order>
__global__ void __launch_bounds__(128) wgmma_kernel(Problem p) {
  __shared__ __align__(1024) unsigned char tile_a[kRegisters ? 1024 : 64 * 128];
  __shared__ __align__(1024) unsigned char tile_b[kN * 128];
  const uint16_t *a = p.a + blockIdx.z * p.batch_a, *b = p.b + blockIdx.z * p.batch_b;
  const int first_a = blockIdx.x * 64, first_b = blockIdx.y * kN;
  const int row = first_a + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
  float d[kN / 2];
  const auto at = [&](int i, int &r, int &c) {
    r = row + (i & 2 ? 8 : 0), c = first_b + i / 4 * 8 + pair + (i & 1);
    return r < p.rows_a && c < p.rows_b;
  };
  int r, c;
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    // With scale-d = 0 the accumulators must not be read: a NaN would show it.
    d[i] = p.c || order == kStartFromZero ? 0.0f : __int_as_float(0x7fffffff);
    if (p.c && at(i, r, c))
      d[i] = p.c[blockIdx.z * p.batch_d + int64_t(r) * p.stride_a + int64_t(c) * p.stride_b];
  }
  int keep = p.c || order == kStartFromZero;
  if (__cvta_generic_to_shared(tile_a) % 1024 + __cvta_generic_to_shared(tile_b) % 1024 != 0) __trap();
  const uint64_t desc_a = descriptor(uint32_t(__cvta_generic_to_shared(tile_a)));
  const uint64_t desc_b = descriptor(uint32_t(__cvta_generic_to_shared(tile_b)));
  for (int k0 = 0; k0 < p.k; k0 += 64) {
    if constexpr (!kRegisters) fill_tile(tile_a, a, first_a, 64, p.rows_a, p.k, k0);
    fill_tile(tile_b, b, first_b, kN, p.rows_b, p.k, k0);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // generic stores, read by the async proxy
    __syncthreads();
    const int steps = min(4, (p.k - k0) / 16);
    if (steps == 4 && !kRegisters && order != kWaitPerStep) {
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int s = 0; s < 4; ++s)
        wgmma<Type, kN, kRegisters>(d, {0, 0, 0, 0}, desc_a + s * 2, desc_b + s * 2, keep | s);
      asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      keep = 1;
    } else {
#pragma unroll 1
      for (int s = 0; s < steps; ++s) {
        uint32_t fa[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; kRegisters && i < 4; ++i)
          fa[i] = two_of(a, row + (i & 1 ? 8 : 0), p.rows_a, p.k, k0 + s * 16 + pair + (i & 2 ? 8 : 0));
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
        wgmma<Type, kN, kRegisters>(d, fa, desc_a + s * 2, desc_b + s * 2, keep);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        keep = 1;
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kN / 2; ++i)
    if (at(i, r, c)) p.d[blockIdx.z * p.batch_d + int64_t(r) * p.stride_a + int64_t(c) * p.stride_b] = d[i];
}

// ---- launches ----

template <class Type, int kStep>
void run_mma(const Problem &p, int batch) {
  mma_kernel<Type, kStep><<<dim3((p.rows_a + 15) / 16, (p.rows_b + 7) / 8, batch), 32>>>(p);
  CHECK(cudaGetLastError());
}

template <class Type, int kN, bool kRegisters, WgmmaOrder order = kWaitPerBlock>
void run_wgmma(const Problem &p, int batch) {
  wgmma_kernel<Type, kN, kRegisters, order>
      <<<dim3((p.rows_a + 63) / 64, (p.rows_b + kN - 1) / kN, batch), 128>>>(p);
  CHECK(cudaGetLastError());
}
