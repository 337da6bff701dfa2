// The fast path computes what tensor_core_model.hpp says, for a vector of columns at once. What is rare (infinities and
// NaNs, results below the normal range) goes back to the model.
#include "tensor_core.hpp"

#include <cstring>
#include <type_traits>

namespace emulated {
namespace {

using tensor_core::Input;
using tensor_core::Operands;
namespace model = tensor_core::detail;

#define ALWAYS_INLINE __attribute__((always_inline)) inline

// Columns at a time: what is laid out of them stands on a fiber's stack.
constexpr int kPanel = 64, kK16 = 16, kK32 = 32;

template <int kLanes>
struct Vectors {
  typedef uint16_t Bits __attribute__((vector_size(2 * kLanes)));
  typedef int32_t Int __attribute__((vector_size(4 * kLanes)));
  typedef float Float __attribute__((vector_size(4 * kLanes)));
  typedef int32_t HalfInt __attribute__((vector_size(2 * kLanes)));
  typedef float HalfFloat __attribute__((vector_size(2 * kLanes)));
  typedef int64_t HalfLong __attribute__((vector_size(4 * kLanes)));
  typedef double HalfDouble __attribute__((vector_size(4 * kLanes)));
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

// A column's operands side by side with its neighbours': [k][column].
struct Columns {
  int32_t magnitude[kK16][kPanel];  // widened to the 25 bits of the fixed-point grid
  int32_t exponent[kK16][kPanel];
  int32_t sign[kK16][kPanel];  // 0 or -1
  int32_t special[kPanel];
};

// Sixteen operands taken apart, as tensor_core::decode does one by one.
struct Decoded {
  int32_t magnitude[kK16], exponent[kK16], sign[kK16];  // sign: 0 or -1
  bool special;                                         // one is an infinity or a NaN: the model's business
};

template <int kLanes, Input kInput>
ALWAYS_INLINE void take_apart(const uint16_t *from, Decoded &out) {
  using Int = typename Vectors<kLanes>::Int;
  constexpr int mantissa = model::kMantissa<kInput>, ones = (1 << (15 - mantissa)) - 1;
  Int special{};
  for (int k = 0; k < kK16; k += kLanes) {
    const Int bits = __builtin_convertvector(load<typename Vectors<kLanes>::Bits>(from + k), Int);
    const Int field = (bits >> mantissa) & ones, fraction = bits & ((1 << mantissa) - 1);
    const Int normal = field != 0;
    store(out.magnitude + k, fraction | (normal & (1 << mantissa)));
    store(out.exponent + k, (bits & 0x7fff) == 0 ? Int{} + model::kZero : field + (normal + 1) - ones / 2);
    store(out.sign + k, -(bits >> 15));
    special |= field == ones;
  }
  out.special = false;
  for (int i = 0; i < kLanes; ++i) out.special |= special[i] != 0;
}

template <int kLanes, Input kInput>
ALWAYS_INLINE void lay_out(const uint16_t *b, int n, Columns &out) {
  constexpr int widen = 25 - 2 * model::kMantissa<kInput>;
  for (int j = 0; j < n; ++j) {
    Decoded column;
    take_apart<kLanes, kInput>(b + j * kK16, column);
    for (int k = 0; k < kK16; ++k) {
      out.magnitude[k][j] = column.magnitude[k] << widen;
      out.exponent[k][j] = column.exponent[k];
      out.sign[k][j] = column.sign[k];
    }
    out.special[j] = column.special ? -1 : 0;
  }
}

// One row against kLanes columns from j on; tells which lanes the model has to do.
template <int kLanes>
ALWAYS_INLINE typename Vectors<kLanes>::Int row_step(const Decoded &row, const Columns &columns, int j, float *d) {
  using V = Vectors<kLanes>;
  using Int = typename V::Int;
  const Int c = load<Int>(d + j);
  const Int field = (c >> 23) & 255, fraction = c & 0x7fffff;
  const Int none = (c & 0x7fffffff) == 0;
  const Int c_exponent = none ? Int{} + model::kLeastAlignment : field != 0 ? field - 127 : Int{} - 126;
  Int top = c_exponent;
  for (int k = 0; k < kK16; ++k) {
    const Int e = load<Int>(columns.exponent[k] + j) + row.exponent[k];
    top = e > top ? e : top;
  }
  Int sum{};
  for (int k = 0; k < kK16; ++k) {
    Int drop = top - (load<Int>(columns.exponent[k] + j) + row.exponent[k]);
    drop = drop < 31 ? drop : Int{} + 31;
    const Int sign = load<Int>(columns.sign[k] + j) ^ row.sign[k];
    const Int cut = (load<Int>(columns.magnitude[k] + j) * row.magnitude[k]) >> (drop & 31);
    sum += (cut ^ sign) - sign;  // 16 products below 2^27, none of them at the very end of that range: fits
  }
  Int drop = top - c_exponent;
  drop = drop < 31 ? drop : Int{} + 31;
  const Int c_sign = c >> 31;
  const Int c_cut = ((field != 0 ? fraction | 0x800000 : fraction) << 2) >> (drop & 31);
  const Int c_term = (c_cut ^ c_sign) - c_sign;

  // The sum is an integer below 2^33: exact in f64, where clearing 29 bits cuts it to 24.
  Int again = load<Int>(columns.special + j) | (field == 255);
  float out[kLanes];
  int32_t sums[kLanes], terms[kLanes], tops[kLanes];
  store(sums, sum), store(terms, c_term), store(tops, top);
  for (int half = 0; half < kLanes; half += kLanes / 2) {
    using HalfInt = typename V::HalfInt;
    using Long = typename V::HalfLong;
    using Double = typename V::HalfDouble;
    const Double exact = __builtin_convertvector(load<HalfInt>(sums + half), Double) +
                         __builtin_convertvector(load<HalfInt>(terms + half), Double);
    const Long scale = (__builtin_convertvector(load<HalfInt>(tops + half), Long) + (1023 - 25)) << 52;
    const Double value = exact * (Double)scale;
    const Long cut = (Long)value & ~((int64_t(1) << 29) - 1);
    store(out + half, __builtin_convertvector((Double)cut, typename V::HalfFloat));
  }
  const Int result = load<Int>(out);
  const Int magnitude = result & 0x7fffffff;
  // Below the normal range (or rounded up to its edge) the conversion's own rounding could show; zero is zero either way
  // only where the exact sum was.
  again |= (magnitude <= 0x00800000) & ((sum != -c_term));
  const Int exact_zero = sum == -c_term;
  store(d + j, again != 0 ? c : exact_zero ? Int{} : result);
  return again;
}

// Lanes of a result that the model has to do over.
template <int kLanes, Input kInput>
ALWAYS_INLINE void finish_row(const uint16_t *a, const uint16_t *b, float *d, int stride,
                              const typename Vectors<kLanes>::Int &again) {
  for (int lane = 0; lane < kLanes; ++lane)
    if (__builtin_expect(again[lane] != 0, 0))
      multiply_k16_by_model(kInput, a, b + lane * kK16, d + lane, 1, 1, stride);
}

template <int kLanes, Input kInput>
ALWAYS_INLINE void panel_k16(const uint16_t *a, const uint16_t *b, float *d, int m, int n, int stride) {
  Columns columns;
  lay_out<kLanes, kInput>(b, n, columns);
  for (int i = 0; i < m; ++i) {
    const uint16_t *line = a + i * kK16;
    float *to = d + i * stride;
    Decoded row;
    take_apart<kLanes, kInput>(line, row);
    if (row.special) {
      multiply_k16_by_model(kInput, line, b, to, 1, n, stride);
      continue;
    }
    int j = 0;
    for (; j + kLanes <= n; j += kLanes)
      finish_row<kLanes, kInput>(line, b + j * kK16, to + j, stride, row_step<kLanes>(row, columns, j, to));
    if constexpr (kLanes > 8)
      if (j < n) finish_row<8, kInput>(line, b + j * kK16, to + j, stride, row_step<8>(row, columns, j, to));
  }
}

// int8 products and sums of 32 of them are exact in f32 (below 2^19), which has the wider multipliers.
template <int kLanes>
ALWAYS_INLINE void two_rows(const float (&row)[2][kK32], const float (&columns)[kK32][kPanel], int j, int32_t *d0,
                            int32_t *d1) {
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
#define TILES(suffix, features, lanes)                                                                            \
  __attribute__((target(features))) void k16_##suffix(Input input, const uint16_t *a, const uint16_t *b, float *d, \
                                                      int m, int n, int stride) {                                  \
    if (input == Input::bf16)                                                                                      \
      tile_k16<lanes, Input::bf16>(a, b, d, m, n, stride);                                                         \
    else                                                                                                           \
      tile_k16<lanes, Input::f16>(a, b, d, m, n, stride);                                                          \
  }                                                                                                                \
  __attribute__((target(features))) void k32_##suffix(const int8_t *a, const int8_t *b, int32_t *d, int m, int n,  \
                                                      int stride) {                                                \
    tile_k32<lanes>(a, b, d, m, n, stride);                                                                        \
  }
TILES(avx512, "avx512f,avx512bw,avx512dq,avx512vl", 16)
TILES(avx2, "avx2", 8)
#else
#define TILES(suffix, features, lanes)                                                                          \
  void k16_##suffix(Input input, const uint16_t *a, const uint16_t *b, float *d, int m, int n, int stride) {    \
    if (input == Input::bf16)                                                                                   \
      tile_k16<lanes, Input::bf16>(a, b, d, m, n, stride);                                                      \
    else                                                                                                        \
      tile_k16<lanes, Input::f16>(a, b, d, m, n, stride);                                                       \
  }                                                                                                             \
  void k32_##suffix(const int8_t *a, const int8_t *b, int32_t *d, int m, int n, int stride) {                   \
    tile_k32<lanes>(a, b, d, m, n, stride);                                                                     \
  }
#endif
TILES(portable, "sse2", 4)

enum class Width { portable, avx2, avx512 };

Width width() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Width::avx512;
  if (__builtin_cpu_supports("avx2")) return Width::avx2;
#endif
  return Width::portable;
}

}  // namespace

void multiply_k16_by_model(Input input, const uint16_t *a, const uint16_t *b, float *d, int m, int n, int stride) {
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

}  // namespace emulated

// For tests: the arithmetic alone. path 0 is the model, 1 what the device uses, 2 its portable form, 3 that of AVX2 where
// the processor has it. 0: done; 1: this processor cannot.
extern "C" int lmhead_emulated_multiply_k16(int path, int is_f16, const uint16_t *a, const uint16_t *b, float *d, int m,
                                            int n) {
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
  return is_f16 ? step(std::integral_constant<Input, Input::f16>()) : step(std::integral_constant<Input, Input::bf16>());
}
