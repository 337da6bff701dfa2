// wgmma: a warpgroup's 64 x N tile, asynchronously. a [64, k] and b [N, k] lie k-major in shared memory,
// named by descriptors; a may also come from registers, with the fragments of mma.sync, warp w holding rows
// 16w to 16w+15. Accumulator i of lane l: row 16w + l/4 + (i & 2 ? 8 : 0), column i/4·8 + l%4·2 + (i & 1).
//
// From wgmma to wait_group nothing else may touch the accumulators, or write to what the descriptors name.
#pragma once
#include "core.cuh"
#include "wgmma_operands.cuh"

namespace ptx {

// How rows of 32, 64 or 128 bytes are swizzled; the same number in tensor maps' boxes.
enum class Swizzle : uint32_t { none = 0, bytes_128 = 1, bytes_64 = 2, bytes_32 = 3 };

// The matrix descriptor (PTX ISA, "Matrix Descriptor"), all in bytes. Swizzled: rows of the swizzle's width,
// eight of them back to back, `stride` from one eight to the next (8 times the width when packed), `leading`
// unused. Not swizzled: 8 rows x 16 bytes back to back, `leading` from one to the next along k, `stride`
// along the rows.
DEVICE uint64_t wgmma_descriptor(uint32_t address, Swizzle swizzle, uint32_t stride, uint32_t leading = 16) {
  return uint64_t((address & 0x3ffff) >> 4) | uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32 |
         uint64_t(swizzle) << 62;
}

// Required before the first wgmma, and between other accesses to its registers and wgmma.
PTX void wgmma_fence(PLACE) {
  EITHER(emulated::wgmma_fence(place), asm volatile("wgmma.fence.sync.aligned;" ::: "memory"));
}
PTX void wgmma_commit_group(PLACE) {
  EITHER(emulated::wgmma_commit_group(place), asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"));
}
// Waits until at most kPending groups are unfinished.
template <int kPending>
PTX void wgmma_wait_group(PLACE) {
  EITHER(emulated::wgmma_wait_group(kPending, place),
         asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory"));
}

namespace detail {
template <class Type>
struct Floats;
template <>
struct Floats<Bf16> {
  static constexpr bool is_bf16 = true;
};
template <>
struct Floats<F16> {
  static constexpr bool is_bf16 = false;
};
}  // namespace detail

#if defined(__CUDACC__)
#define WGMMA_F32 "+f"
#define WGMMA_S32 "+r"
// d = a·b where keep is 0, else d += a·b; a in shared memory (SS) or in registers (RS).
#define WGMMA_SS(n, R, shape, types, constraint, i0, i1, i2, scales)                                         \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %" #i2 ", 0; wgmma.mma_async.sync.aligned.m64n" #n shape types \
               " {" WGMMA_T##R "}, %" #i0 ", %" #i1 ", p" scales ";}"                                        \
               : WGMMA_D##R(constraint, 0)                                                                   \
               : "l"(a), "l"(b), "r"(keep))
#define WGMMA_RS(n, R, shape, types, constraint, i0, i1, i2, i3, i4, i5, scales)                             \
  asm volatile("{.reg .pred p; setp.ne.b32 p, %" #i5 ", 0; wgmma.mma_async.sync.aligned.m64n" #n shape types \
               " {" WGMMA_T##R "}, {%" #i0 ",%" #i1 ",%" #i2 ",%" #i3 "}, %" #i4 ", p" scales ";}"           \
               : WGMMA_D##R(constraint, 0)                                                                   \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep))
#define WGMMA_SS_16(n, R, i0, i1, i2, i3, i4, i5)                                                 \
  if constexpr (kN == n) {                                                                        \
    if constexpr (detail::Floats<Type>::is_bf16)                                                  \
      WGMMA_SS(n, R, "k16", ".f32.bf16.bf16", WGMMA_F32, i0, i1, i2, ", 1, 1, 0, 0");             \
    else                                                                                          \
      WGMMA_SS(n, R, "k16", ".f32.f16.f16", WGMMA_F32, i0, i1, i2, ", 1, 1, 0, 0");               \
  }
#define WGMMA_RS_16(n, R, i0, i1, i2, i3, i4, i5)                                                 \
  if constexpr (kN == n) {                                                                        \
    if constexpr (detail::Floats<Type>::is_bf16)                                                  \
      WGMMA_RS(n, R, "k16", ".f32.bf16.bf16", WGMMA_F32, i0, i1, i2, i3, i4, i5, ", 1, 1, 0");    \
    else                                                                                          \
      WGMMA_RS(n, R, "k16", ".f32.f16.f16", WGMMA_F32, i0, i1, i2, i3, i4, i5, ", 1, 1, 0");      \
  }
#define WGMMA_SS_8(n, R, i0, i1, i2, i3, i4, i5) \
  if constexpr (kN == n) WGMMA_SS(n, R, "k32", ".s32.s8.s8", WGMMA_S32, i0, i1, i2, "");
#define WGMMA_RS_8(n, R, i0, i1, i2, i3, i4, i5) \
  if constexpr (kN == n) WGMMA_RS(n, R, "k32", ".s32.s8.s8", WGMMA_S32, i0, i1, i2, i3, i4, i5, "");
#endif

// 16-bit operands, both in shared memory. keep = 0: the accumulators start at zero.
template <int kN, class Type>
PTX void wgmma_m64k16(Type, float (&d)[kN / 2], uint64_t a, uint64_t b, int keep AND_PLACE) {
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 256, "wgmma k16: N is a multiple of 8 up to 256");
#if defined(__CUDACC__)
  WGMMA_SHAPES(WGMMA_SS_16)
#else
  emulated::wgmma({detail::Floats<Type>::is_bf16 ? "wgmma.m64k16.bf16" : "wgmma.m64k16.f16",
                   detail::Floats<Type>::is_bf16 ? emulated::Element::bf16 : emulated::Element::f16, kN, a, b,
                   nullptr, keep != 0},
                  d, place);
#endif
}
// The same with a in registers.
template <int kN, class Type>
PTX void wgmma_m64k16(Type, float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, int keep AND_PLACE) {
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 256, "wgmma k16: N is a multiple of 8 up to 256");
#if defined(__CUDACC__)
  WGMMA_SHAPES(WGMMA_RS_16)
#else
  emulated::wgmma({detail::Floats<Type>::is_bf16 ? "wgmma.m64k16.bf16" : "wgmma.m64k16.f16",
                   detail::Floats<Type>::is_bf16 ? emulated::Element::bf16 : emulated::Element::f16, kN, 0, b,
                   a, keep != 0},
                  d, place);
#endif
}

// The N that ptxas accepts for int8.
template <int kN>
constexpr bool kIsS8Columns = kN == 8 || kN == 24 || (kN % 16 == 0 && kN >= 16 && kN <= 256);
template <int kN>
PTX void wgmma_m64k32_s8(int32_t (&d)[kN / 2], uint64_t a, uint64_t b, int keep AND_PLACE) {
  static_assert(kIsS8Columns<kN>, "wgmma k32: N is 8, 24 or a multiple of 16 up to 256");
#if defined(__CUDACC__)
  WGMMA_SHAPES_S8(WGMMA_SS_8)
#else
  emulated::wgmma({"wgmma.m64k32.s8", emulated::Element::s8, kN, a, b, nullptr, keep != 0}, d, place);
#endif
}
template <int kN>
PTX void wgmma_m64k32_s8(int32_t (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, int keep AND_PLACE) {
  static_assert(kIsS8Columns<kN>, "wgmma k32: N is 8, 24 or a multiple of 16 up to 256");
#if defined(__CUDACC__)
  WGMMA_SHAPES_S8(WGMMA_RS_8)
#else
  emulated::wgmma({"wgmma.m64k32.s8", emulated::Element::s8, kN, 0, b, a, keep != 0}, d, place);
#endif
}

}  // namespace ptx
