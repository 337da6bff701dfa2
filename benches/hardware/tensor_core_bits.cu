// Do the bits of a 16-bit matrix product depend on the instruction, its shape, the orientation, the source of
// an operand, the position in the tile or the neighbours?
//
//     tensor_core_bits OUT.json [small]
//
// Every variant computes the same f32 logits [vocab, tokens] from W [vocab, K] and x [tokens, K], one
// accumulator chain, k ascending. Variants are sorted into classes of equal bits, and one element per class
// pair is described.
#include "support.hpp"

struct Variant {
  std::string name;
  std::function<void(Problem, int)> run;  // as given: A is what lies on the instruction's m
  bool swapped;                           // x on m instead of W
};

template <class Type, int kN>
void add_wgmma(std::vector<Variant> &v, bool swapped, const std::string &side) {
  const std::string name = "wgmma m64n" + std::to_string(kN) + "k16, " + side + " on m, A from ";
  v.push_back({name + "shared", [](Problem p, int batch) { run_wgmma<Type, kN, false>(p, batch); }, swapped});
  v.push_back(
      {name + "registers", [](Problem p, int batch) { run_wgmma<Type, kN, true>(p, batch); }, swapped});
}

template <class Type>
std::vector<Variant> variants() {
  std::vector<Variant> v;
  for (const bool swapped : {false, true}) {
    const std::string side = swapped ? "x" : "W";
    v.push_back({"mma.sync m16n8k16, " + side + " on m",
                 [](Problem p, int batch) { run_mma<Type, 16>(p, batch); }, swapped});
    v.push_back({"mma.sync m16n8k8, " + side + " on m",
                 [](Problem p, int batch) { run_mma<Type, 8>(p, batch); }, swapped});
    add_wgmma<Type, 8>(v, swapped, side);
    add_wgmma<Type, 16>(v, swapped, side);
    add_wgmma<Type, 24>(v, swapped, side);
    add_wgmma<Type, 64>(v, swapped, side);
    add_wgmma<Type, 128>(v, swapped, side);
    add_wgmma<Type, 256>(v, swapped, side);
  }
  v.push_back({"wgmma m64n64k16, W on m, A from shared, one instruction in flight",
               [](Problem p, int batch) { run_wgmma<Type, 64, false, kWaitPerStep>(p, batch); }, false});
  v.push_back({"wgmma m64n64k16, W on m, A from shared, chain started by adding to zero",
               [](Problem p, int batch) { run_wgmma<Type, 64, false, kStartFromZero>(p, batch); }, false});
  return v;
}

struct Data {
  std::vector<uint16_t> w, x;
  int vocab, tokens, k;
};

// gaussian: as an LM head sees it. wide: magnitudes over 2^±12, and every second product nearly cancels the
// one before. integers: |x|, |w| <= 8, so that every partial sum is exact.
Data make(Input type, const std::string &kind, int vocab, int tokens, int k, uint64_t seed) {
  Data d{std::vector<uint16_t>(size_t(vocab) * k), std::vector<uint16_t>(size_t(tokens) * k), vocab, tokens,
         k};
  const auto fill = [&](std::vector<uint16_t> &m, int rows, uint64_t salt, bool weights) {
    parallel_for(rows, [&](int64_t row) {
      Random r{seed ^ salt ^ uint64_t(row) << 20};
      double last = 0;
      for (int i = 0; i < k; ++i) {
        double v;
        if (kind == "integers")
          v = r.below(17) - 8;
        else if (kind == "gaussian")
          v = r.normal() * (weights ? 0.02 : 1.0);
        else if (i % 2 == 0)
          last = v = std::ldexp(1 + r.uniform(), (weights ? -6 : 0) + r.below(7) - 3) * (r.below(2) ? -1 : 1);
        else
          v = weights ? -last * (1 + (r.uniform() - 0.5) * 0.02) : last;
        m[row * k + i] = to_16(type, float(v));
      }
      if (kind ==
          "wide")  // scale pairs of columns alike in every row: the exponents of the products spread along k
        for (int i = 0; i < k; i += 2) {
          Random s{seed ^ 77 ^ uint64_t(i) << 8};
          const int up = s.below(13) - 6;
          for (int j = i; j < i + 2; ++j)
            m[row * k + j] = to_16(type, float(std::ldexp(value(type, m[row * k + j]), up)));
        }
    });
  };
  fill(d.w, vocab, 0x1111, true);
  fill(d.x, tokens, 0x2222, false);
  return d;
}

std::vector<uint32_t> run(const Variant &v, const Data &d, int tokens) {
  Device<uint16_t> w(d.w), x(d.x);
  Device<float> out(size_t(d.vocab) * tokens);
  out.poison();
  Problem p{};
  p.k = d.k, p.d = out.data;
  p.a = v.swapped ? x.data : w.data, p.b = v.swapped ? w.data : x.data;
  p.rows_a = v.swapped ? tokens : d.vocab, p.rows_b = v.swapped ? d.vocab : tokens;
  p.stride_a = v.swapped ? 1 : tokens, p.stride_b = v.swapped ? tokens : 1;
  v.run(p, 1);
  CHECK(cudaDeviceSynchronize());
  const std::vector<float> f = out.get();
  std::vector<uint32_t> bits(f.size());
  std::memcpy(bits.data(), f.data(), f.size() * 4);
  for (const uint32_t b : bits)
    if (b == kPoison) std::fprintf(stderr, "%s: an element was not written\n", v.name.c_str()), std::exit(1);
  return bits;
}

// The CPU model's answer to the same product.
template <Input kInput, int kStep>
std::vector<uint32_t> model(const Data &d) {
  using Step = tensor_core::Operands<kStep>;
  const int steps = d.k / kStep;
  std::vector<Step> w(size_t(d.vocab) * steps), x(size_t(d.tokens) * steps);
  for (size_t i = 0; i < w.size(); ++i) tensor_core::decode<kInput>(&d.w[i * kStep], w[i]);
  for (size_t i = 0; i < x.size(); ++i) tensor_core::decode<kInput>(&d.x[i * kStep], x[i]);
  std::vector<uint32_t> out(size_t(d.vocab) * d.tokens);
  parallel_for(d.vocab, [&](int64_t v) {
    for (int64_t t = 0; t < d.tokens; ++t) {
      uint32_t c = 0;
      for (int k = 0; k < steps; ++k)
        c = tensor_core::dot_step<kInput>(w[v * steps + k], x[t * steps + k], c);
      out[v * d.tokens + t] = c;
    }
  });
  return out;
}

struct Difference {
  size_t count = 0;
  double max_relative = 0;  // to the root mean square of the first
};
Difference differ(const std::vector<uint32_t> &a, const std::vector<uint32_t> &b) {
  Difference r;
  double squares = 0, most = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = float_of(a[i]), y = float_of(b[i]);
    squares += x * x;
    if (a[i] != b[i]) ++r.count, most = std::max(most, std::fabs(x - y));
  }
  r.max_relative = most / std::sqrt(squares / double(a.size()));
  return r;
}

struct Context {
  FILE *json;
  uint64_t seed;
  bool small;
  int failures = 0;  // findings against promise 1 inside one instruction family
};

void classes(Context &c, Input type, const std::vector<Variant> &all, const std::string &kind, int k,
             bool last) {
  const int vocab = c.small ? 72 : 512, tokens = c.small ? 40 : 256;
  const Data d = make(type, kind, vocab, tokens, k, c.seed);
  std::vector<std::string> names;
  std::vector<std::vector<uint32_t>> results;
  for (const Variant &v : all) names.push_back(v.name), results.push_back(run(v, d, tokens));
  const bool bf16 = type == Input::bf16;
  names.push_back("CPU model, k16"),
      results.push_back(bf16 ? model<Input::bf16, 16>(d) : model<Input::f16, 16>(d));
  names.push_back("CPU model, k8"),
      results.push_back(bf16 ? model<Input::bf16, 8>(d) : model<Input::f16, 8>(d));

  std::vector<size_t> first, of(results.size());  // classes of equal bits, by their first member
  for (size_t i = 0; i < results.size(); ++i) {
    size_t j = 0;
    while (j < first.size() && results[first[j]] != results[i]) ++j;
    if (j == first.size()) first.push_back(i);
    of[i] = j;
  }
  const size_t n = results[0].size();
  double squares = 0;  // against float64 over the rounded inputs, for the first variant of each class
  std::vector<double> error(first.size(), 0), truth(n), x(d.x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = value(type, d.x[i]);
  parallel_for(vocab, [&](int64_t v) {
    std::vector<double> w(k);
    for (int i = 0; i < k; ++i) w[i] = value(type, d.w[v * k + i]);
    for (int t = 0; t < tokens; ++t) {
      double s = 0;
      for (int i = 0; i < k; ++i) s += w[i] * x[size_t(t) * k + i];
      truth[v * tokens + t] = s;
    }
  });
  for (size_t i = 0; i < n; ++i) squares += truth[i] * truth[i];
  const double rms = std::sqrt(squares / double(n));
  for (size_t j = 0; j < first.size(); ++j)
    for (size_t i = 0; i < n; ++i)
      error[j] = std::max(error[j], std::fabs(float_of(results[first[j]][i]) - truth[i]));
  std::fprintf(c.json,
               "    {\"input\": \"%s\", \"data\": \"%s\", \"vocab\": %d, \"tokens\": %d, \"k\": %d, "
               "\"elements\": %zu, "
               "\"variants\": %zu,\n     \"classes_of_equal_bits\": [\n",
               type == Input::bf16 ? "bf16" : "f16", kind.c_str(), vocab, tokens, k, n, names.size());
  std::printf("%-5s %-9s K %5d: %zu class(es)", type == Input::bf16 ? "bf16" : "f16", kind.c_str(), k,
              first.size());
  for (size_t j = 0; j < first.size(); ++j) {
    std::fprintf(c.json, "       {\"max_error_over_rms\": %.3e, \"members\": [", error[j] / rms);
    bool comma = false;
    size_t members = 0;
    for (size_t i = 0; i < names.size(); ++i)
      if (of[i] == j)
        std::fprintf(c.json, "%s\"%s\"", comma ? ", " : "", names[i].c_str()), comma = true, ++members;
    std::fprintf(c.json, "]}%s\n", j + 1 < first.size() ? "," : "");
    std::printf(" | %zu: %s..., err/rms %.2e", members, names[first[j]].c_str(), error[j] / rms);
  }
  std::printf("\n");
  std::fprintf(c.json, "     ],\n     \"between_classes\": [");
  for (size_t i = 0; i < first.size(); ++i)
    for (size_t j = i + 1; j < first.size(); ++j) {
      const Difference r = differ(results[first[i]], results[first[j]]);
      std::fprintf(c.json,
                   "%s\n       {\"a\": \"%s\", \"b\": \"%s\", \"differing\": %zu, \"of\": %zu, "
                   "\"max_difference_over_rms\": %.3e}",
                   i + j > 1 ? "," : "", names[first[i]].c_str(), names[first[j]].c_str(), r.count, n,
                   r.max_relative);
      std::printf("   %s / %s: %zu of %zu differ, at most %.2e of the rms\n", names[first[i]].c_str(),
                  names[first[j]].c_str(), r.count, n, r.max_relative);
    }
  std::fprintf(c.json, "\n     ]");
  if (kind == "integers") {
    size_t wrong = 0;
    for (const auto &r : results)
      for (size_t i = 0; i < n; ++i) wrong += double(float_of(r[i])) != truth[i];
    std::fprintf(c.json, ",\n     \"inexact_elements_of_all_variants\": %zu", wrong);
    std::printf("   inexact elements: %zu\n", wrong);
    c.failures += wrong != 0;
  }
  std::fprintf(c.json, "}%s\n", last ? "" : ",");
}

// Position and neighbours: every variant against itself, the same rows in other places and other company.
void positions(Context &c, Input type, const std::vector<Variant> &all, const std::string &kind, bool last) {
  const int vocab = c.small ? 72 : 512, tokens = c.small ? 40 : 256, k = 1024;
  const Data d = make(type, kind, vocab, tokens, k, c.seed + 1);
  Random r{c.seed + 2};
  const auto shuffled = [&](int n) {
    std::vector<int> p(n);
    for (int i = 0; i < n; ++i) p[i] = i;
    for (int i = n - 1; i > 0; --i) std::swap(p[i], p[r.below(i + 1)]);
    return p;
  };
  size_t same = 0, permuted = 0, hostile = 0, fewer = 0, of_same = 0, of_permuted = 0, of_hostile = 0,
         of_fewer = 0;
  for (const Variant &v : all) {
    const std::vector<uint32_t> base = run(v, d, tokens);
    {  // one row and one token everywhere
      Data e = d;
      for (int i = 1; i < vocab; ++i) std::copy_n(e.w.begin(), k, e.w.begin() + size_t(i) * k);
      for (int i = 1; i < tokens; ++i) std::copy_n(e.x.begin(), k, e.x.begin() + size_t(i) * k);
      for (const uint32_t b : run(v, e, tokens)) same += b != base[0], ++of_same;
    }
    for (int round = 0; round < 3; ++round) {
      const std::vector<int> pw = shuffled(vocab), px = shuffled(tokens);
      Data e = d;
      for (int i = 0; i < vocab; ++i)
        std::copy_n(d.w.begin() + size_t(pw[i]) * k, k, e.w.begin() + size_t(i) * k);
      for (int i = 0; i < tokens; ++i)
        std::copy_n(d.x.begin() + size_t(px[i]) * k, k, e.x.begin() + size_t(i) * k);
      const std::vector<uint32_t> moved = run(v, e, tokens);
      for (int i = 0; i < vocab; ++i)
        for (int j = 0; j < tokens; ++j)
          permuted += moved[size_t(i) * tokens + j] != base[size_t(pw[i]) * tokens + px[j]], ++of_permuted;
      // Half of the rows and tokens become infinities, NaNs and the largest numbers; the others must not
      // notice.
      const uint16_t infinity = type == Input::bf16 ? 0x7f80 : 0x7c00;
      std::vector<char> bad_w(vocab), bad_x(tokens);
      const auto spoil = [&](std::vector<uint16_t> &m, std::vector<char> &bad) {
        for (size_t i = 0; i < bad.size(); ++i)
          if ((bad[i] = char(r.below(2))))
            for (int j = 0; j < k; ++j)
              m[i * k + j] = uint16_t(infinity - 1 + r.below(3)) | uint16_t(r.below(2) << 15);
      };
      e = d;
      spoil(e.w, bad_w), spoil(e.x, bad_x);
      const std::vector<uint32_t> beside = run(v, e, tokens);
      for (int i = 0; i < vocab; ++i)
        for (int j = 0; j < tokens; ++j)
          if (!bad_w[i] && !bad_x[j])
            hostile += beside[size_t(i) * tokens + j] != base[size_t(i) * tokens + j], ++of_hostile;
    }
    for (const int count : {1, 3, 9, 33}) {  // a smaller batch, the rest of the tile zeros
      const std::vector<uint32_t> part = run(v, d, count);
      for (int i = 0; i < vocab; ++i)
        for (int j = 0; j < count; ++j)
          fewer += part[size_t(i) * count + j] != base[size_t(i) * tokens + j], ++of_fewer;
    }
  }
  std::fprintf(c.json,
               "    {\"input\": \"%s\", \"data\": \"%s\", \"vocab\": %d, \"tokens\": %d, \"k\": %d, "
               "\"variants\": %zu,\n"
               "     \"one_row_and_token_everywhere\": {\"differing\": %zu, \"of\": %zu},\n"
               "     \"rows_and_tokens_permuted\": {\"differing\": %zu, \"of\": %zu},\n"
               "     \"beside_infinities_and_nans\": {\"differing\": %zu, \"of\": %zu},\n"
               "     \"smaller_batch_1_3_9_33\": {\"differing\": %zu, \"of\": %zu}}%s\n",
               type == Input::bf16 ? "bf16" : "f16", kind.c_str(), vocab, tokens, k, all.size(), same,
               of_same, permuted, of_permuted, hostile, of_hostile, fewer, of_fewer, last ? "" : ",");
  std::printf(
      "%-5s %-9s positions: same %zu, permuted %zu, hostile %zu, smaller batch %zu differing (of %zu, %zu, "
      "%zu, %zu)\n",
      type == Input::bf16 ? "bf16" : "f16", kind.c_str(), same, permuted, hostile, fewer, of_same,
      of_permuted, of_hostile, of_fewer);
  c.failures += same + permuted + hostile + fewer != 0;
}

int main(int argc, char **argv) {
  if (argc < 2) return std::fprintf(stderr, "usage: tensor_core_bits OUT.json [small]\n"), 2;
  Context c{std::fopen(argv[1], "w"), 20260117, argc > 2};
  if (!c.json) return std::perror(argv[1]), 1;
  std::printf("seed %llu\n", (unsigned long long)c.seed);
  json_head(c.json,
            "Each variant computes the same f32 matrix, one accumulator chain from zero, k ascending; "
            "outputs poisoned "
            "before each run, "
            "compared bit for bit. Classes: variants whose every element has equal bits. Errors and "
            "differences are "
            "relative to the "
            "root mean square of the float64 result.",
            argc, argv, c.seed);
  const std::vector<Variant> bf16 = variants<Bf16>(), f16 = variants<F16>();
  std::fprintf(c.json, "  \"products\": [\n");
  const std::vector<int> sizes =
      c.small ? std::vector<int>{144} : std::vector<int>{896, 2880, 4096, 7168, 8192, 12288, 16384};
  const std::vector<std::string> kinds = {"gaussian", "wide", "integers"};
  for (const Input type : {Input::bf16, Input::f16})
    for (const std::string &kind : kinds)
      for (const int k : sizes)
        classes(c, type, type == Input::bf16 ? bf16 : f16, kind, k,
                type == Input::f16 && kind == kinds.back() && k == sizes.back());
  std::fprintf(c.json, "  ],\n  \"positions_and_neighbours\": [\n");
  if (!c.small)
    for (const Input type : {Input::bf16, Input::f16})
      for (const std::string kind : {"gaussian", "wide"})
        positions(c, type, type == Input::bf16 ? bf16 : f16, kind, type == Input::f16 && kind == "wide");
  std::fprintf(c.json, "  ],\n  \"failures\": %d\n}\n", c.failures);
  std::fclose(c.json);
  return c.failures != 0;
}
