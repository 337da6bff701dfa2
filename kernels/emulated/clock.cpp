// Joins vector clocks: the maximum of two, element by element.
#include "clock.hpp"

namespace emulated {
namespace {

__attribute__((always_inline)) inline void maximum(uint32_t *to, const uint32_t *from, uint32_t count) {
  typedef uint32_t Vector __attribute__((vector_size(64)));
  for (uint32_t i = 0; i < count; i += 16) {
    Vector a, b;
    std::memcpy(&a, to + i, sizeof a);
    std::memcpy(&b, from + i, sizeof b);
    a = a > b ? a : b;
    std::memcpy(to + i, &a, sizeof a);
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void maximum_avx2(uint32_t *to, const uint32_t *from, uint32_t count) {
  maximum(to, from, count);
}
#endif

}  // namespace

void Clock::join(const Clock &other) {
  base = 0;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) return maximum_avx2(plain, other.plain, 2 * size);
#endif
  maximum(plain, other.plain, 2 * size);
}

}  // namespace emulated
