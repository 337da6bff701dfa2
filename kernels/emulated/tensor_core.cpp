// The fast path computes what tensor_core_model.hpp says, for a vector of columns at once. Rare cases
// (infinities and NaNs, results below the normal range) go to the model itself.
#include "tensor_core.hpp"

#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace emulated {
namespace {

using tensor_core::Input;
using tensor_core::Operands;

#define ALWAYS_INLINE __attribute__((always_inline)) inline

// How many columns are laid out at a time, on a fiber's stack.
constexpr int kPanel = 64, kK16 = 16, kK32 = 32;

template <int kLanes>
struct Vectors {
  typedef int32_t Int __attribute__((vector_size(4 * kLanes)));
  typedef float Float __attribute__((vector_size(4 * kLanes)));
};

template <class V, class T>
ALWAYS_INLINE V load(const T *from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class V, class T>
ALWAYS_INLINE void store(T *to, const V &v) {
  std::memcpy(to, &v, sizeof v);
}

template <class V>
ALWAYS_INLINE bool any(const V &mask) {
  uint64_t words[sizeof(V) / 8], all = 0;
  std::memcpy(words, &mask, sizeof words);
  for (uint64_t word : words) all |= word;
  return all != 0;
}

// 16-bit operands. In f32 they, their products and products with powers of two are exact as long as nothing
// leaves the normal range, and a conversion to an integer cuts toward zero: that is the model's fixed-point
// grid. Operands so large or so small that something could leave that range go to the model, like infinities
// and NaNs.
constexpr int32_t power_bits(int exponent) { return (exponent + 127) << 23; }
template <Input kInput>
constexpr int32_t kSmallest = power_bits(kInput == Input::bf16 ? -49 : -24);
template <Input kInput>
constexpr int32_t kTooLarge =
    power_bits(kInput == Input::bf16 ? 60 : 16);  // f16: where infinities and NaNs are
template <Input kInput>
constexpr int32_t kLeastPower = power_bits(kInput == Input::bf16 ? -126 : -14);
constexpr int32_t kLargestSum = power_bits(122);  // accumulators from here on go to the model, too

// The lower (0) or upper (1) of the two 16-bit operands in each word, as bits of f32.
template <int kLanes, Input kInput>
ALWAYS_INLINE typename Vectors<kLanes>::Int widened(const typename Vectors<kLanes>::Int &words, int which) {
  using Int = typename Vectors<kLanes>::Int;
  using Float = typename Vectors<kLanes>::Float;
  const Int high = which == 0 ? words << 16 : words & -65536;
  if constexpr (kInput == Input::bf16) return high;
  // f16: the exponent's bias becomes f32's by a product, which is exact for subnormals too.
  const Int bits = (high & INT32_MIN) | ((high >> 3) & 0x0fffe000);
  return (Int)((Float)bits * 0x1p112f);
}

// The power of two whose exponent the hardware takes for an operand (a subnormal has that of the smallest
// normal one); 0 for a zero. `special` collects the columns that go to the model.
template <int kLanes, Input kInput>
ALWAYS_INLINE typename Vectors<kLanes>::Int power_of(const typename Vectors<kLanes>::Int &bits,
                                                     typename Vectors<kLanes>::Int &special) {
  using Int = typename Vectors<kLanes>::Int;
  const Int magnitude = bits & 0x7fffffff, field = bits & 0x7f800000;
  const Int there = magnitude != 0;
  special |= (there & (magnitude < kSmallest<kInput>)) | (magnitude >= kTooLarge<kInput>);
  return there & (field > kLeastPower<kInput> ? field : Int{} + kLeastPower<kInput>);
}

// A column's operands side by side with its neighbours': [k][column], first the even k, then the odd ones.
struct Columns {
  int32_t value[kK16][kPanel], power[kK16][kPanel];
  int32_t special[kPanel];  // 0 or -1
};
struct Row {
  float value[kK16], power[kK16];
  int32_t special;  // 0 or -1
};

template <int kLanes, Input kInput>
ALWAYS_INLINE void lay_out_row(const uint32_t *words, Row &out) {
  using Int = typename Vectors<kLanes>::Int;
  Int special{};
  for (int which = 0; which < 2; ++which)
    for (int k = 0; k < kK16 / 2; k += kLanes) {
      const Int value = widened<kLanes, kInput>(load<Int>(words + k), which);
      store(out.value + which * 8 + k, value);
      store(out.power + which * 8 + k, power_of<kLanes, kInput>(value, special));
    }
  out.special = any(special) ? -1 : 0;
}

// words(k, j): pair k of kLanes columns from j on.
template <int kLanes, Input kInput, class Words>
ALWAYS_INLINE void lay_out_columns(int n, Columns &out, Words words) {
  using Int = typename Vectors<kLanes>::Int;
  for (int j = 0; j < n; j += kLanes) {
    Int special{};
    for (int k = 0; k < kK16 / 2; ++k) {
      const Int pair = words(k, j);
      for (int which = 0; which < 2; ++which) {
        const Int value = widened<kLanes, kInput>(pair, which);
        store(out.value[which * 8 + k] + j, value);
        store(out.power[which * 8 + k] + j, power_of<kLanes, kInput>(value, special));
      }
    }
    store(out.special + j, special);
  }
}

// Ends a step for one element per lane. The grid (`scale`) is that of the largest power among the products
// and c; `sum` is the products cut to it. `finish` returns the lanes that go to the model.
template <int kLanes>
struct Grid {
  using Int = typename Vectors<kLanes>::Int;
  using Float = typename Vectors<kLanes>::Float;
  Int c, products, top;

  ALWAYS_INLINE Grid(const float *d, const Int &largest_product)
      : c(load<Int>(d)), products(largest_product) {
    const Int magnitude = c & 0x7fffffff, field = c & 0x7f800000;
    const Int power = (magnitude != 0) & (field > power_bits(-126) ? field : Int{} + power_bits(-126));
    top = power > products ? power : products;
  }
  // 2^25 over the largest power: what it multiplies is an integer on the grid.
  ALWAYS_INLINE Float scale() const { return (Float)(power_bits(25 + 127) - top); }

  ALWAYS_INLINE Int finish(Int sum, const Int &special, float *d) const {
    const Int term = __builtin_convertvector((Float)c * scale(), Int);
    const Int total = sum + term;
    // The integer's nearest f32, and one less where that was rounded away from zero.
    const Float nearest = __builtin_convertvector(total, Float);
    const Int excess = __builtin_convertvector(nearest, Int) - total;
    const Int away = (excess != 0) & ((excess ^ total) >= 0);
    const Float cut = (Float)((Int)nearest + away);
    const Int sign = total >> 31;
    const Int again = special | ((c & 0x7fffffff) >= kLargestSum) | (((sum ^ total) & (term ^ total)) < 0) |
                      ((total ^ sign) > 0x7fffff00);
    const Int result = (Int)(cut * (Float)(top - (25 << 23)));
    // Without products the accumulator stays, but zero is +0.
    const Int alone = (Int)((Float)c + 0.0f);
    const Int out = products == 0 ? alone : result;
    store(d, again != 0 ? c : out);
    return again;
  }
};

// kM rows against kLanes columns from j on.
template <int kLanes, int kM>
ALWAYS_INLINE void rows_step(const Row *rows, const Columns &columns, int j, float *const (&d)[kM],
                             typename Vectors<kLanes>::Int (&again)[kM]) {
  using Int = typename Vectors<kLanes>::Int;
  using Float = typename Vectors<kLanes>::Float;
  Int top[kM] = {};
  for (int k = 0; k < kK16; ++k) {
    const Float power = load<Float>(columns.power[k] + j);
    for (int r = 0; r < kM; ++r) {
      const Int product = (Int)(power * rows[r].power[k]);
      top[r] = product > top[r] ? product : top[r];
    }
  }
  Float scale[kM];
  Int sum[kM] = {};
  for (int r = 0; r < kM; ++r) scale[r] = Grid<kLanes>(d[r] + j, top[r]).scale();
  for (int k = 0; k < kK16; ++k) {
    const Float value = load<Float>(columns.value[k] + j);
    // 16 products below 2^27, none of them at the very end of that range: their sum fits.
    for (int r = 0; r < kM; ++r) sum[r] += __builtin_convertvector(value * rows[r].value[k] * scale[r], Int);
  }
  const Int special = load<Int>(columns.special + j);
  for (int r = 0; r < kM; ++r)
    again[r] = Grid<kLanes>(d[r] + j, top[r]).finish(sum[r], special | rows[r].special, d[r] + j);
}

// kM rows of d against n columns. column(j, bits) gives the sixteen operands of one, for the model.
template <int kLanes, int kM, Input kInput, class Column>
ALWAYS_INLINE void rows_k16(const uint32_t *a, const Columns &columns, float *d, int n, int stride,
                            Column column) {
  Row rows[kM];
  float *to[kM];
  for (int r = 0; r < kM; ++r) lay_out_row<kLanes, kInput>(a + r * 8, rows[r]), to[r] = d + r * stride;
  const auto by_model = [&](int r, int j) {  // rare
    uint16_t bits[kK16];
    column(j, bits);
    multiply_k16_by_model(kInput, reinterpret_cast<const uint16_t *>(a + r * 8), bits, to[r] + j, 1, 1,
                          stride);
  };
  for (int j = 0; j < n; j += kLanes) {
    typename Vectors<kLanes>::Int again[kM];
    rows_step<kLanes, kM>(rows, columns, j, to, again);
    for (int r = 0; r < kM; ++r) {
      if (__builtin_expect(!any(again[r]), 1)) continue;
      for (int lane = 0; lane < kLanes; ++lane)
        if (again[r][lane] != 0) by_model(r, j + lane);
    }
  }
}

template <int kLanes, Input kInput>
ALWAYS_INLINE void panel_k16(const uint16_t *a, const uint16_t *b, float *d, int m, int n, int stride) {
  uint32_t words[kK16 / 2][kPanel];
  for (int j = 0; j < n; ++j) {
    uint32_t column[kK16 / 2];
    std::memcpy(column, b + j * kK16, sizeof column);
    for (int k = 0; k < kK16 / 2; ++k) words[k][j] = column[k];
  }
  Columns columns;
  using Int = typename Vectors<kLanes>::Int;
  lay_out_columns<kLanes, kInput>(
      n, columns, [&](int k, int j) __attribute__((always_inline)) { return load<Int>(&words[k][j]); });
  const auto column = [&](int j, uint16_t *bits) { std::memcpy(bits, b + j * kK16, 2 * kK16); };
  uint32_t rows[2][kK16 / 2];
  for (int i = 0; i < m; i += 2) {  // two rows share the loads of the columns
    const int count = m - i < 2 ? 1 : 2;
    std::memcpy(rows, a + i * kK16, 2 * kK16 * size_t(count));
    if (count == 2)
      rows_k16<kLanes, 2, kInput>(rows[0], columns, d + i * stride, n, stride, column);
    else
      rows_k16<kLanes, 1, kInput>(rows[0], columns, d + i * stride, n, stride, column);
  }
}

// The tile of one mma.sync: d [16][8], and b word by word, [pair of k][column].
template <int kLanes, Input kInput>
ALWAYS_INLINE void warp_k16(const uint32_t *a, const uint32_t *b, float *d) {
  using Int = typename Vectors<kLanes>::Int;
  Columns columns;
  lay_out_columns<kLanes, kInput>(
      8, columns, [&](int k, int j) __attribute__((always_inline)) { return load<Int>(b + k * 8 + j); });
  const auto column = [&](int j, uint16_t *bits) {
    for (int k = 0; k < kK16 / 2; ++k) std::memcpy(bits + 2 * k, b + k * 8 + j, 4);
  };
  for (int i = 0; i < 16; i += 2) rows_k16<kLanes, 2, kInput>(a + i * 8, columns, d + i * 8, 8, 8, column);
}

// int8 products and sums of 32 of them are exact in f32 (below 2^19), which has the wider multipliers.
template <int kLanes>
ALWAYS_INLINE void two_rows(const float (&row)[2][kK32], const float (&columns)[kK32][kPanel], int j,
                            int32_t *d0, int32_t *d1) {
  using Int = typename Vectors<kLanes>::Int;
  using Float = typename Vectors<kLanes>::Float;
  Float sum0{}, sum1{};
  for (int k = 0; k < kK32; ++k) {
    const Float column = load<Float>(columns[k] + j);
    sum0 += column * row[0][k];
    sum1 += column * row[1][k];
  }
  store(d0 + j, load<Int>(d0 + j) + __builtin_convertvector(sum0, Int));
  store(d1 + j, load<Int>(d1 + j) + __builtin_convertvector(sum1, Int));
}

template <int kLanes>
ALWAYS_INLINE void panel_k32(const int8_t *a, const int8_t *b, int32_t *d, int m, int n, int stride) {
  float columns[kK32][kPanel];
  for (int j = 0; j < n; ++j)
    for (int k = 0; k < kK32; ++k) columns[k][j] = b[j * kK32 + k];
  for (int i = 0; i < m; i += 2) {  // two rows share the loads of the columns; m is even
    float row[2][kK32];
    for (int k = 0; k < kK32; ++k) row[0][k] = a[i * kK32 + k], row[1][k] = a[(i + 1) * kK32 + k];
    int32_t *d0 = d + i * stride, *d1 = d0 + stride;
    int j = 0;
    for (; j + kLanes <= n; j += kLanes) two_rows<kLanes>(row, columns, j, d0, d1);
    if constexpr (kLanes > 8)
      if (j < n) two_rows<8>(row, columns, j, d0, d1);
  }
}

// The tile of one mma.sync: a [16][8 fours of k], b word by word, [four of k][column], d [16][8].
void warp_k32_portable(const uint32_t *a, const uint32_t *b, int32_t *d) {
  using Int = Vectors<4>::Int;
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; j += 4) {
      Int sum = load<Int>(d + i * 8 + j);
      for (int k = 0; k < 8; ++k) {
        const Int column = load<Int>(b + k * 8 + j);
        for (int byte = 0; byte < 32; byte += 8) {
          const int32_t row = int8_t(a[i * 8 + k] >> byte);
          sum += (column << (24 - byte) >> 24) *
                 row;  // |sum| stays far below 2^31 of what it began with, or wraps
        }
      }
      store(d + i * 8 + j, sum);
    }
}

#if defined(__x86_64__)
// Bytes 0 and 2, then 1 and 3 of every word as 16-bit pairs; one instruction multiplies two such pairs and
// adds.
__attribute__((target("avx2"))) void warp_k32_avx2(const uint32_t *a, const uint32_t *b, int32_t *d) {
  const auto even = [](__m256i words) __attribute__((target("avx2"), always_inline)) {
    return _mm256_srai_epi16(_mm256_slli_epi16(words, 8), 8);
  };
  __m256i columns[2][8];
  for (int k = 0; k < 8; ++k) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b + k * 8));
    columns[0][k] = even(words), columns[1][k] = _mm256_srai_epi16(words, 8);
  }
  for (int i = 0; i < 16; ++i) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(a + i * 8));
    int32_t row[2][8];
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(row[0]), even(words));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(row[1]), _mm256_srai_epi16(words, 8));
    auto *to = reinterpret_cast<__m256i *>(d + i * 8);
    __m256i sum[2] = {_mm256_loadu_si256(to), _mm256_setzero_si256()};
    for (int k = 0; k < 8; ++k)
      for (int which = 0; which < 2; ++which)
        sum[which] = _mm256_add_epi32(sum[which],
                                      _mm256_madd_epi16(columns[which][k], _mm256_set1_epi32(row[which][k])));
    _mm256_storeu_si256(to, _mm256_add_epi32(sum[0], sum[1]));
  }
}
#endif

template <int kLanes, Input kInput>
ALWAYS_INLINE void tile_k16(const uint16_t *a, const uint16_t *b, float *d, int m, int n, int stride) {
  for (int j = 0; j < n; j += kPanel)
    panel_k16<kLanes, kInput>(a, b + j * kK16, d + j, m, n - j < kPanel ? n - j : kPanel, stride);
}

template <int kLanes>
ALWAYS_INLINE void tile_k32(const int8_t *a, const int8_t *b, int32_t *d, int m, int n, int stride) {
  for (int j = 0; j < n; j += kPanel)
    panel_k32<kLanes>(a, b + j * kK32, d + j, m, n - j < kPanel ? n - j : kPanel, stride);
}

#if defined(__x86_64__)
#define TARGET(features) __attribute__((target(features)))
#else
#define TARGET(features)
#endif
#define TILES(suffix, features, lanes, k32_lanes)                                                            \
  TARGET(features)                                                                                           \
  void k16_##suffix(Input input, const uint16_t *a, const uint16_t *b, float *d, int m, int n, int stride) { \
    if (input == Input::bf16)                                                                                \
      tile_k16<lanes, Input::bf16>(a, b, d, m, n, stride);                                                   \
    else                                                                                                     \
      tile_k16<lanes, Input::f16>(a, b, d, m, n, stride);                                                    \
  }                                                                                                          \
  TARGET(features)                                                                                           \
  void warp_k16_##suffix(Input input, const uint32_t *a, const uint32_t *b, float *d) {                      \
    if (input == Input::bf16)                                                                                \
      warp_k16<lanes, Input::bf16>(a, b, d);                                                                 \
    else                                                                                                     \
      warp_k16<lanes, Input::f16>(a, b, d);                                                                  \
  }                                                                                                          \
  TARGET(features)                                                                                           \
  void k32_##suffix(const int8_t *a, const int8_t *b, int32_t *d, int m, int n, int stride) {                \
    tile_k32<k32_lanes>(a, b, d, m, n, stride);                                                              \
  }
#if defined(__x86_64__)
// 16-bit in vectors of 8: of 16, they ran at less than half the speed on a Zen 4.
TILES(avx512, "avx512f,avx512bw,avx512dq,avx512vl", 8, 16)
TILES(avx2, "avx2", 8, 8)
#endif
TILES(portable, "sse2", 4, 4)

enum class Width { portable, avx2, avx512 };

Width width() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return Width::avx512;
  if (__builtin_cpu_supports("avx2")) return Width::avx2;
#endif
  return Width::portable;
}

}  // namespace

void multiply_k16_by_model(Input input, const uint16_t *a, const uint16_t *b, float *d, int m, int n,
                           int stride) {
  const auto each = [&](auto kind) {
    constexpr Input kInput = decltype(kind)::value;
    for (int i = 0; i < m; ++i) {
      Operands<kK16> row, column;
      tensor_core::decode<kInput, kK16>(a + i * kK16, row);
      for (int j = 0; j < n; ++j) {
        tensor_core::decode<kInput, kK16>(b + j * kK16, column);
        uint32_t bits;
        std::memcpy(&bits, d + i * stride + j, 4);
        bits = tensor_core::dot_step<kInput, kK16>(row, column, bits);
        std::memcpy(d + i * stride + j, &bits, 4);
      }
    }
  };
  if (input == Input::bf16)
    each(std::integral_constant<Input, Input::bf16>());
  else
    each(std::integral_constant<Input, Input::f16>());
}

void multiply_k16(Input input, const uint16_t *a, const uint16_t *b, float *d, int m, int n, int stride) {
  switch (width()) {
#if defined(__x86_64__)
    case Width::avx512: return k16_avx512(input, a, b, d, m, n, stride);
    case Width::avx2: return k16_avx2(input, a, b, d, m, n, stride);
#endif
    default: return k16_portable(input, a, b, d, m, n, stride);
  }
}

void multiply_k32(const int8_t *a, const int8_t *b, int32_t *d, int m, int n, int stride) {
  switch (width()) {
#if defined(__x86_64__)
    case Width::avx512: return k32_avx512(a, b, d, m, n, stride);
    case Width::avx2: return k32_avx2(a, b, d, m, n, stride);
#endif
    default: return k32_portable(a, b, d, m, n, stride);
  }
}

void warp_multiply_k16(Input input, const uint32_t *a, const uint32_t *b, float *d) {
  switch (width()) {
#if defined(__x86_64__)
    case Width::avx512: return warp_k16_avx512(input, a, b, d);
    case Width::avx2: return warp_k16_avx2(input, a, b, d);
#endif
    default: return warp_k16_portable(input, a, b, d);
  }
}

void warp_multiply_k32(const uint32_t *a, const uint32_t *b, int32_t *d) {
#if defined(__x86_64__)
  if (width() != Width::portable) return warp_k32_avx2(a, b, d);
#endif
  warp_k32_portable(a, b, d);
}

}  // namespace emulated

// For tests: the arithmetic alone. path 0 is the model, 1 what the device uses, 2 its portable form, 3 that
// of AVX2 where the processor has it. 0: done; 1: this processor cannot.
extern "C" int lmhead_emulated_multiply_k16(int path, int is_f16, const uint16_t *a, const uint16_t *b,
                                            float *d, int m, int n) {
  const auto input = is_f16 ? tensor_core::Input::f16 : tensor_core::Input::bf16;
  switch (path) {
    case 0: emulated::multiply_k16_by_model(input, a, b, d, m, n, n); return 0;
    case 1: emulated::multiply_k16(input, a, b, d, m, n, n); return 0;
    case 2: emulated::k16_portable(input, a, b, d, m, n, n); return 0;
#if defined(__x86_64__)
    case 3:
      if (emulated::width() == emulated::Width::portable) return 1;
      emulated::k16_avx2(input, a, b, d, m, n, n);
      return 0;
#endif
    default: return 1;
  }
}

// For tests: the tile of one mma.sync, as the device computes it or in its portable form. kind: 0 bf16, 1
// f16, 2 int8.
extern "C" void lmhead_emulated_warp_tile(int portable, int kind, const uint32_t *a, const uint32_t *b,
                                          uint32_t *d) {
  auto *sums = reinterpret_cast<int32_t *>(d);
  auto *floats = reinterpret_cast<float *>(d);
  const auto input = kind == 1 ? tensor_core::Input::f16 : tensor_core::Input::bf16;
  if (kind == 2)
    portable ? emulated::warp_k32_portable(a, b, sums) : emulated::warp_multiply_k32(a, b, sums);
  else
    portable ? emulated::warp_k16_portable(input, a, b, floats)
             : emulated::warp_multiply_k16(input, a, b, floats);
}

// One step of 8 products (mma.sync m16n8k8) by the model; f32 bits.
extern "C" uint32_t lmhead_emulated_step_of_8(int is_f16, const uint16_t *a, const uint16_t *b, uint32_t c) {
  const auto step = [&](auto kind) {
    constexpr tensor_core::Input kInput = decltype(kind)::value;
    tensor_core::Operands<8> x, y;
    tensor_core::decode<kInput, 8>(a, x);
    tensor_core::decode<kInput, 8>(b, y);
    return tensor_core::dot_step<kInput, 8>(x, y, c);
  };
  using tensor_core::Input;
  return is_f16 ? step(std::integral_constant<Input, Input::f16>())
                : step(std::integral_constant<Input, Input::bf16>());
}
