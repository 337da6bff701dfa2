// mma.sync: a warp's 16 x 8 tile. Fragments of lane l, with g = l/4 and t = l%4 (PTX ISA, "Matrix
// Fragments"):
//   a  16-bit: rows g, g+8, g, g+8; columns 2t, 2t, 2t+8, 2t+8 (pairs)   s8: columns 4t, 4t, 4t+16, 4t+16
//   b  column g; rows 2t, 2t+8 (pairs)                                   s8: rows 4t, 4t+16 (fours)
//   d  rows g, g, g+8, g+8; columns 2t, 2t+1, 2t, 2t+1
#pragma once
#include "core.cuh"

namespace ptx {

// d += a·b
PTX void mma_m16n8k16(Bf16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] AND_PLACE) {
  EITHER(
      emulated::mma_m16n8k16("mma.sync.m16n8k16.bf16", emulated::Half::bf16, d, a, b, place),
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                   "{%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]),
                   "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]),
                   "r"(b[1])));
}
PTX void mma_m16n8k16(F16, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] AND_PLACE) {
  EITHER(emulated::mma_m16n8k16("mma.sync.m16n8k16.f16", emulated::Half::f16, d, a, b, place),
         asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                      "{%8, %9}, {%0, %1, %2, %3};"
                      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])));
}
PTX void mma_m16n8k32(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2] AND_PLACE) {
  EITHER(emulated::mma_m16n8k32("mma.sync.m16n8k32.s8", d, a, b, place),
         asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                      "{%8, %9}, {%0, %1, %2, %3};"
                      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])));
}

}  // namespace ptx
