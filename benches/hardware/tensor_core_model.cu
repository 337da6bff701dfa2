// Is tensor_core_model.hpp exact? Single instructions with random and hostile operands and accumulators, on
// the GPU and in the model, compared bit for bit.
//
//     tensor_core_model OUT.json MISMATCHES.txt [steps per category in thousands, default 1000]
//
// Every instruction computes 64 x 64 tiles with one k-step; each element is one dot-product step with its own
// c. As a control the report also counts mismatches of models that are wrong by little: 24 or 26 fraction
// bits, and 16 products taken as two groups of 8.
#include "support.hpp"

using tensor_core::Operands;

constexpr int kSide = 64, kDepth = 16;
constexpr int kTile = kSide * kSide;

struct Tile {
  uint16_t a[kSide][kDepth], b[kSide][kDepth];
  float c[kSide][kSide];
};

struct Category {
  const char *name, *what;
  void (*fill)(Input, Random &, Tile &);
};

uint16_t smallest_normal(Input t) { return t == Input::bf16 ? 0x0080 : 0x0400; }
uint16_t infinity(Input t) { return t == Input::bf16 ? 0x7f80 : 0x7c00; }
float signed_power(Random &r, double mantissa, int exponent) {
  return float(std::ldexp(r.below(2) ? -mantissa : mantissa, exponent));
}
uint16_t random_16(Input t, Random &r, int low, int high) {
  return to_16(t, signed_power(r, 1 + r.uniform(), low + r.below(high - low + 1)));
}
uint16_t any_finite(Input t, Random &r) {
  return uint16_t(r.below(infinity(t))) | uint16_t(r.below(2) << 15);
}

template <class A, class B, class C>
void each(Tile &t, A a, B b, C c) {
  for (int i = 0; i < kSide; ++i)
    for (int k = 0; k < kDepth; ++k) t.a[i][k] = a(i, k), t.b[i][k] = b(i, k);
  for (int i = 0; i < kSide; ++i)
    for (int j = 0; j < kSide; ++j) t.c[i][j] = c(i, j);
}
template <class A, class C>
void each(Tile &t, A a, C c) {
  each(t, a, a, c);
}

double dot(Input type, const Tile &t, int i, int j) {
  double s = 0;
  for (int k = 0; k < kDepth; ++k) s += value(type, t.a[i][k]) * value(type, t.b[j][k]);
  return s;
}

const Category kCategories[] = {
    {"gaussian", "normal operands, c of the size of a partial sum",
     [](Input y, Random &r, Tile &t) {
       each(
           t, [&](int, int) { return to_16(y, float(r.normal())); },
           [&](int, int) { return float(r.normal() * 20); });
     }},
    {"gaussian from zero", "normal operands, c = 0",
     [](Input y, Random &r, Tile &t) {
       each(t, [&](int, int) { return to_16(y, float(r.normal())); }, [&](int, int) { return 0.0f; });
     }},
    {"wide", "operands over 2^±12, c over 2^±40",
     [](Input y, Random &r, Tile &t) {
       each(
           t, [&](int, int) { return random_16(y, r, -12, 12); },
           [&](int, int) { return signed_power(r, 1 + r.uniform(), r.below(81) - 40); });
     }},
    {"any finite bits", "operands and c: uniform finite bit patterns",
     [](Input y, Random &r, Tile &t) {
       each(
           t, [&](int, int) { return any_finite(y, r); },
           [&](int, int) { return float_of(uint32_t(r.next() % 0x7f800000u) | uint32_t(r.below(2)) << 31); });
     }},
    {"any bits", "operands and c: uniform bit patterns, infinities and NaNs among them",
     [](Input, Random &r, Tile &t) {
       each(
           t, [&](int, int) { return uint16_t(r.next()); },
           [&](int, int) { return float_of(uint32_t(r.next())); });
     }},
    {"c larger", "c 2^15 to 2^32 times the products",
     [](Input y, Random &r, Tile &t) {
       each(
           t, [&](int, int) { return random_16(y, r, -2, 2); },
           [&](int, int) { return signed_power(r, 1 + r.uniform(), 15 + r.below(18)); });
     }},
    {"c smaller", "c 2^15 to 2^40 times smaller than the products",
     [](Input y, Random &r, Tile &t) {
       each(
           t, [&](int, int) { return random_16(y, r, -2, 2); },
           [&](int, int) { return signed_power(r, 1 + r.uniform(), -15 - r.below(26)); });
     }},
    {"c cancels", "c = -(sum of the products), rounded, at times moved by a few ulps",
     [](Input y, Random &r, Tile &t) {
       each(t, [&](int, int) { return random_16(y, r, -4, 4); }, [&](int, int) { return 0.0f; });
       for (int i = 0; i < kSide; ++i)
         for (int j = 0; j < kSide; ++j) {
           t.c[i][j] = float(-dot(y, t, i, j));
           if (t.c[i][j] != 0 && r.below(2))
             t.c[i][j] = float_of(bits_of(t.c[i][j]) + uint32_t(r.below(9) - 4));
         }
     }},
    {"products cancel", "products in nearly opposite pairs, c small",
     [](Input y, Random &r, Tile &t) {
       each(
           t, [&](int, int) { return random_16(y, r, -8, 8); },
           [&](int, int) { return signed_power(r, 1 + r.uniform(), r.below(30) - 30); });
       for (int i = 0; i < kSide; ++i)
         for (int k = 0; k < kDepth; k += 2) {
           t.a[i][k + 1] = t.a[i][k];
           t.b[i][k + 1] = uint16_t(t.b[i][k] ^ 0x8000) ^ uint16_t(r.below(2));
         }
     }},
    {"alignment", "powers of two over 2^±20 with mixed signs: every term near the last bit kept",
     [](Input y, Random &r, Tile &t) {
       const int half = y == Input::bf16 ? 15 : 7;
       each(
           t,
           [&](int, int) {
             return to_16(y, signed_power(r, 1 + r.below(4) * 0.25, r.below(2 * half + 1) - half));
           },
           [&](int, int) {
             return signed_power(r, r.below(2) ? 1 : 1 + r.below(1 << 23) * 0x1p-23, r.below(61) - 30);
           });
     }},
    {"sparse", "mostly zeros beside large and small numbers: does the exponent of a zero product count?",
     [](Input y, Random &r, Tile &t) {
       const int half = y == Input::bf16 ? 30 : 13;
       each(
           t,
           [&](int, int) { return r.below(4) ? uint16_t(r.below(2) << 15) : random_16(y, r, -half, half); },
           [&](int, int) { return r.below(3) ? signed_power(r, 1 + r.uniform(), r.below(100) - 50) : 0.0f; });
     }},
    {"zeros beside subnormal c", "products that are zero though one operand is huge, subnormal or tiny c",
     [](Input y, Random &r, Tile &t) {
       const bool mostly = r.below(2);
       each(
           t, [&](int, int) { return mostly && r.below(16) ? uint16_t(0) : any_finite(y, r); },
           [&](int, int) { return uint16_t(r.below(2) << 15); },
           [&](int, int) {
             return float_of(uint32_t(r.next() >> (40 + r.below(24))) | uint32_t(r.below(2)) << 31);
           });
     }},
    {"signed zeros", "operands ±0 and ±1 (few), c = ±0",
     [](Input y, Random &r, Tile &t) {
       const int ones = r.below(3);
       each(
           t,
           [&](int, int) {
             return r.below(8) < ones ? to_16(y, r.below(2) ? 1.0f : -1.0f) : uint16_t(r.below(2) << 15);
           },
           [&](int, int) { return float_of(uint32_t(r.below(2)) << 31); });
       if (ones == 0 && r.below(2))  // all products -0
         for (int i = 0; i < kSide; ++i)
           for (int k = 0; k < kDepth; ++k) t.a[i][k] = 0x8000, t.b[i][k] = 0;
     }},
    {"subnormal operands", "operands subnormal or a little above, or one of them large",
     [](Input y, Random &r, Tile &t) {
       const int pick = r.below(3);
       const auto tiny = [&](int, int) {
         return uint16_t(r.below(2 * smallest_normal(y))) | uint16_t(r.below(2) << 15);
       };
       const auto large = [&](int, int) {
         return pick == 0   ? uint16_t(tiny(0, 0))
                : pick == 1 ? random_16(y, r, 0, 15)
                            : random_16(y, r, y == Input::bf16 ? 90 : 0, y == Input::bf16 ? 127 : 15);
       };
       const int low = y == Input::bf16 ? -150 : -60;
       each(t, tiny, large, [&](int, int) {
         return r.below(2) ? 0.0f : signed_power(r, 1 + r.uniform(), low + r.below(90));
       });
     }},
    {"subnormal results",
     "products around and below 2^-126 (bf16; exact zeros for f16), c subnormal or near it",
     [](Input y, Random &r, Tile &t) {
       each(
           t,
           [&](int, int) {
             return y == Input::bf16 ? random_16(y, r, -78, -60) : uint16_t(r.below(2) << 15);
           },
           [&](int, int) {
             return r.below(4)
                        ? float_of(uint32_t(r.below(0x01800000) >> r.below(24)) | uint32_t(r.below(2)) << 31)
                        : 0.0f;
           });
     }},
    {"deep subnormal results",
     "the same further down, c = 0 or a few units of 2^-149: sums that end below the smallest subnormal",
     [](Input y, Random &r, Tile &t) {
       const int high = -61 - r.below(15), low = high - 1 - r.below(9), zeros = r.below(3);
       each(
           t,
           [&](int, int) {
             return y == Input::bf16 && !(zeros && r.below(3) < zeros) ? random_16(y, r, low, high)
                                                                       : uint16_t(r.below(2) << 15);
           },
           [&](int, int) {
             return r.below(2) ? float_of(uint32_t(r.below(1 << r.below(6))) | uint32_t(r.below(2)) << 31)
                               : 0.0f;
           });
     }},
    {"overflow", "products and c near or above the largest f32, with both signs",
     [](Input y, Random &r, Tile &t) {
       const bool one_sign = r.below(2);
       each(
           t,
           [&](int, int) {
             return y == Input::bf16 ? random_16(y, r, 60, 65) & uint16_t(one_sign ? 0x7fff : 0xffff)
                                     : any_finite(y, r);
           },
           [&](int, int) {
             return float_of((0x7f7fffffu - uint32_t(r.below(1 << (1 + r.below(25))))) | uint32_t(r.below(2))
                                                                                             << 31);
           });
     }},
    {"beyond f32", "bf16 products up to 2^256 that may cancel to a finite sum",
     [](Input y, Random &r, Tile &t) {
       each(
           t,
           [&](int, int) {
             return r.below(3) ? any_finite(y, r)
                               : random_16(y, r, y == Input::bf16 ? 100 : 10, y == Input::bf16 ? 127 : 15);
           },
           [&](int, int) { return r.below(2) ? 0.0f : signed_power(r, 1 + r.uniform(), 100 + r.below(28)); });
       for (int i = 0; i < kSide; ++i)
         for (int k = 0; k < kDepth; k += 2) t.a[i][k + 1] = t.a[i][k], t.b[i][k + 1] = t.b[i][k] ^ 0x8000;
     }},
    {"special values", "operands and c from 0, 1, largest, smallest, infinity, NaN, with signs",
     [](Input y, Random &r, Tile &t) {
       const int rare = 1 + r.below(12);
       each(
           t,
           [&](int, int) {
             const uint16_t pool[] = {0,     to_16(y, 1), uint16_t(infinity(y) - 1),
                                      1,     infinity(y), uint16_t(infinity(y) + 1),
                                      0x7fff};
             return uint16_t(pool[r.below(rare) ? r.below(4) : r.below(7)] | r.below(2) << 15);
           },
           [&](int, int) {
             const uint32_t pool[] = {0, 0x3f800000u, 0x7f7fffffu, 1, 0x7f800000u, 0x7f800001u, 0x7fc00000u};
             return float_of(pool[r.below(4) ? r.below(4) : r.below(7)] | uint32_t(r.below(2)) << 31);
           });
     }},
    {"integers", "|operands| <= 8, integer c: exact",
     [](Input y, Random &r, Tile &t) {
       each(
           t, [&](int, int) { return to_16(y, float(r.below(17) - 8)); },
           [&](int, int) { return float(r.below(1 << 20) - (1 << 19)); });
     }},
};

struct Instruction {
  const char *name;
  int depth;     // products per step
  bool swapped;  // the tile's b lies on m
  std::function<void(Problem, int)> run[2];
};

std::vector<Instruction> instructions() {
#define BOTH_TYPES(f, ...) \
  {[](Problem p, int n) { f<Bf16, __VA_ARGS__>(p, n); }, [](Problem p, int n) { f<F16, __VA_ARGS__>(p, n); }}
  return {{"mma.sync m16n8k16", 16, false, BOTH_TYPES(run_mma, 16)},
          {"mma.sync m16n8k16, swapped", 16, true, BOTH_TYPES(run_mma, 16)},
          {"mma.sync m16n8k8", 8, false, BOTH_TYPES(run_mma, 8)},
          {"wgmma m64n64k16, A from shared", 16, false, BOTH_TYPES(run_wgmma, 64, false)},
          {"wgmma m64n64k16, A from shared, swapped", 16, true, BOTH_TYPES(run_wgmma, 64, false)},
          {"wgmma m64n64k16, A from registers", 16, false, BOTH_TYPES(run_wgmma, 64, true)},
          {"wgmma m64n8k16, A from shared", 16, false, BOTH_TYPES(run_wgmma, 8, false)}};
}

// The operands of one instruction, as a whole and as two halves.
struct Decoded {
  Operands<16> whole;
  Operands<8> half[2];
};

template <Input kInput>
Decoded decode(const uint16_t *bits) {
  Decoded d;
  tensor_core::decode<kInput>(bits, d.whole);
  for (int h = 0; h < 2; ++h) tensor_core::decode<kInput>(bits + 8 * h, d.half[h]);
  return d;
}

constexpr int kControls = 3;
const char *const kControlNames[kControls] = {"24 fraction bits", "26 fraction bits", "two groups of 8"};

template <Input kInput>
uint32_t predict(const Decoded &a, const Decoded &b, int depth, uint32_t c) {
  return depth == 16 ? tensor_core::dot_step<kInput>(a.whole, b.whole, c)
                     : tensor_core::dot_step<kInput>(a.half[0], b.half[0], c);
}

template <Input kInput>
uint32_t predict_wrongly(int control, const Decoded &a, const Decoded &b, uint32_t c) {
  if (control == 0) return tensor_core::dot_step<kInput, 16, 24>(a.whole, b.whole, c);
  if (control == 1) return tensor_core::dot_step<kInput, 16, 26>(a.whole, b.whole, c);
  return tensor_core::dot_step<kInput>(a.half[1], b.half[1],
                                       tensor_core::dot_step<kInput>(a.half[0], b.half[0], c));
}

struct Counts {
  std::atomic<size_t> wrong{0}, unwritten{0}, control[kControls] = {};
  std::vector<std::string> lines;
};

template <Input kInput>
void compare(const std::vector<Tile> &data, const std::vector<float> &d, const Instruction &in, bool controls,
             const char *name, Counts &counts) {
  std::atomic<int> logged{0};
  counts.lines.resize(data.size());
  parallel_for(int64_t(data.size()), [&](int64_t i) {
    const Tile &t = data[i];
    size_t wrong = 0, unwritten = 0, control[kControls] = {};
    std::vector<Decoded> a, b;
    for (int row = 0; row < kSide; ++row)
      a.push_back(decode<kInput>(t.a[row])), b.push_back(decode<kInput>(t.b[row]));
    for (int row = 0; row < kSide; ++row)
      for (int col = 0; col < kSide; ++col) {
        const uint32_t got = bits_of(d[size_t(i) * kTile + row * kSide + col]), c = bits_of(t.c[row][col]);
        unwritten += got == kPoison;
        for (int k = 0; controls && k < kControls; ++k)
          control[k] += predict_wrongly<kInput>(k, a[row], b[col], c) != got;
        const uint32_t want = predict<kInput>(a[row], b[col], in.depth, c);
        if (want == got) continue;
        ++wrong;
        if (logged++ >= 60) continue;
        char s[64];
        std::string line =
            std::string(name) + "|" + (kInput == Input::bf16 ? "bf16" : "f16") + "|" + in.name + "|";
        for (int k = 0; k < in.depth; ++k)
          std::snprintf(s, sizeof s, "%04x*%04x ", t.a[row][k], t.b[col][k]), line += s;
        std::snprintf(s, sizeof s, "|c %08x|gpu %08x|model %08x\n", c, got, want);
        counts.lines[i] += line + s;
      }
    counts.wrong += wrong, counts.unwritten += unwritten;
    for (int k = 0; k < kControls; ++k) counts.control[k] += control[k];
  });
}

// A batch of tiles on the device: with all 16 columns, and with the first 8 contiguous for the k8
// instruction.
struct Batch {
  Device<uint16_t> a16, b16, a8, b8;
  Device<float> c, d;
  int tiles;

  static std::vector<uint16_t> columns(const std::vector<Tile> &data, bool of_b, int depth) {
    std::vector<uint16_t> v(data.size() * kSide * depth);
    for (size_t i = 0; i < data.size(); ++i)
      for (int row = 0; row < kSide; ++row)
        std::memcpy(&v[(i * kSide + row) * depth], of_b ? data[i].b[row] : data[i].a[row], depth * 2);
    return v;
  }
  static std::vector<float> starts(const std::vector<Tile> &data) {
    std::vector<float> v(data.size() * kTile);
    for (size_t i = 0; i < data.size(); ++i) std::memcpy(&v[i * kTile], data[i].c, sizeof data[i].c);
    return v;
  }
  explicit Batch(const std::vector<Tile> &data)
      : a16(columns(data, false, 16)),
        b16(columns(data, true, 16)),
        a8(columns(data, false, 8)),
        b8(columns(data, true, 8)),
        c(starts(data)),
        d(data.size() * kTile),
        tiles(int(data.size())) {}

  std::vector<float> run(const Instruction &in, Input type) {
    d.poison();
    Problem p{};
    const uint16_t *a = in.depth == 16 ? a16.data : a8.data, *b = in.depth == 16 ? b16.data : b8.data;
    p.a = in.swapped ? b : a, p.b = in.swapped ? a : b, p.c = c.data, p.d = d.data;
    p.rows_a = p.rows_b = kSide, p.k = in.depth;
    p.stride_a = in.swapped ? 1 : kSide, p.stride_b = in.swapped ? kSide : 1;
    p.batch_a = p.batch_b = kSide * in.depth, p.batch_d = kTile;
    in.run[int(type)](p, tiles);
    CHECK(cudaDeviceSynchronize());
    return d.get();
  }
};

// Single products that say what is flushed, one per instruction: a·b + c, everything else zero.
struct Probe {
  const char *what;
  Input type;
  uint16_t a, b;
  uint32_t c;
};
const Probe kProbes[] = {
    {"smallest bf16 subnormal (2^-133) times 1: f32 subnormal", Input::bf16, 0x0001, 0x3f80, 0},
    {"largest bf16 subnormal times 2^127", Input::bf16, 0x007f, 0x7f00, 0},
    {"2^-70 times 2^-70: f32 subnormal from normal operands", Input::bf16, 0x1c80, 0x1c80, 0},
    {"2^-74 times 2^-75: the smallest f32 subnormal", Input::bf16, 0x1a80, 0x1a00, 0},
    {"2^-75 times 2^-75: below the smallest f32 subnormal", Input::bf16, 0x1a00, 0x1a00, 0},
    {"-2^-75 times 2^-75", Input::bf16, 0x9a00, 0x1a00, 0},
    {"c the smallest f32 subnormal, product 0", Input::bf16, 0, 0, 1},
    {"c = -0, product -0", Input::bf16, 0x8000, 0x3f80, 0x80000000u},
    {"smallest f16 subnormal (2^-24) times 1", Input::f16, 0x0001, 0x3c00, 0},
    {"smallest f16 subnormal squared (2^-48)", Input::f16, 0x0001, 0x0001, 0},
    {"c the smallest f32 subnormal, product 0", Input::f16, 0, 0, 1},
    {"c = -0, product -0", Input::f16, 0x8000, 0x3c00, 0x80000000u},
};

int main(int argc, char **argv) {
  if (argc < 3)
    return std::fprintf(stderr, "usage: tensor_core_model OUT.json MISMATCHES.txt [thousand steps]\n"), 2;
  const uint64_t seed = 20260118;
  const int tiles = std::max(1, (argc > 3 ? std::atoi(argv[3]) : 1000) * 1000 / kTile);
  FILE *json = std::fopen(argv[1], "w"), *log = std::fopen(argv[2], "w");
  if (!json || !log) return std::perror("output"), 1;
  std::printf("seed %llu, %d steps per category and instruction\n", (unsigned long long)seed, tiles * kTile);
  json_head(json,
            "Single instructions, outputs poisoned before each run, compared bit for bit with "
            "tensor_core_model.hpp. "
            "Controls: the same comparison with models wrong by little.",
            argc, argv, seed);
  std::fprintf(json, "  \"steps_per_row\": %d,\n  \"rows\": [\n", tiles * kTile);
  const std::vector<Instruction> list = instructions();
  size_t total = 0, wrong = 0;
  bool comma = false;
  for (const Input type : {Input::bf16, Input::f16})
    for (const Category &category : kCategories) {
      std::vector<Tile> data(tiles);
      parallel_for(tiles, [&](int64_t i) {
        Random r{seed ^ uint64_t(&category - kCategories) << 40 ^ uint64_t(type) << 50 ^ uint64_t(i) << 8};
        category.fill(type, r, data[i]);
      });
      Batch batch(data);
      for (const Instruction &in : list) {
        const bool controls = &in == &list[0];
        const std::vector<float> d = batch.run(in, type);
        Counts counts;
        if (type == Input::bf16)
          compare<Input::bf16>(data, d, in, controls, category.name, counts);
        else
          compare<Input::f16>(data, d, in, controls, category.name, counts);
        for (const std::string &s : counts.lines) std::fputs(s.c_str(), log);
        if (counts.unwritten)
          std::fprintf(stderr, "%s: %zu elements were not written\n", in.name, counts.unwritten.load()),
              std::exit(1);
        total += size_t(tiles) * kTile, wrong += counts.wrong;
        std::fprintf(
            json, "%s    {\"input\": \"%s\", \"data\": \"%s\", \"instruction\": \"%s\", \"mismatches\": %zu",
            comma ? ",\n" : "", type == Input::bf16 ? "bf16" : "f16", category.name, in.name,
            counts.wrong.load());
        for (int k = 0; controls && k < kControls; ++k)
          std::fprintf(json, "%s\"%s\": %zu%s", k ? ", " : ", \"controls\": {", kControlNames[k],
                       counts.control[k].load(), k + 1 < kControls ? "" : "}");
        std::fputs("}", json);
        comma = true;
        if (controls || counts.wrong)
          std::printf("%-5s %-25s %-40s mismatches %zu (controls %zu %zu %zu)\n",
                      type == Input::bf16 ? "bf16" : "f16", category.name, in.name, counts.wrong.load(),
                      counts.control[0].load(), counts.control[1].load(), counts.control[2].load());
      }
    }
  std::fprintf(json, "\n  ],\n  \"probes\": [");
  for (const Probe &probe : kProbes) {
    std::vector<Tile> one(1);
    std::memset(&one[0], 0, sizeof(Tile));
    one[0].a[0][0] = probe.a, one[0].b[0][0] = probe.b, one[0].c[0][0] = float_of(probe.c);
    Batch batch(one);
    std::fprintf(
        json,
        "%s\n    {\"input\": \"%s\", \"what\": \"%s\", \"a\": \"%04x\", \"b\": \"%04x\", \"c\": \"%08x\", "
        "\"result\": {",
        &probe == kProbes ? "" : ",", probe.type == Input::bf16 ? "bf16" : "f16", probe.what, probe.a,
        probe.b, probe.c);
    std::printf("%-5s %-60s", probe.type == Input::bf16 ? "bf16" : "f16", probe.what);
    for (const Instruction &in : list) {
      const uint32_t got = bits_of(batch.run(in, probe.type)[0]);
      std::fprintf(json, "%s\"%s\": \"%08x\"", &in == &list[0] ? "" : ", ", in.name, got);
      std::printf(" %08x", got);
    }
    std::fprintf(json, "}}");
    std::printf("\n");
  }
  std::fprintf(json, "\n  ],\n  \"categories\": {");
  for (const Category &k : kCategories)
    std::fprintf(json, "%s\n    \"%s\": \"%s\"", &k == kCategories ? "" : ",", k.name, k.what);
  std::fprintf(json, "\n  },\n  \"steps\": %zu,\n  \"mismatches\": %zu\n}\n", total, wrong);
  std::printf("%zu steps, %zu mismatches\n", total, wrong);
  std::fclose(json), std::fclose(log);
  return wrong != 0;
}
