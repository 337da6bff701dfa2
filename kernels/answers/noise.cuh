// Sampling by the Gumbel-max trick: the id with the largest z + g is drawn, where z = l / T and g is the id's
// noise, a function of (seed, position, id). z + g is compared in f64 without rounding. An f32 screen rules
// most ids out first; it never decides between two.
#pragma once
#include "answers/logarithm.cuh"

namespace answers {

// Four random words of a counter and a key: Philox4x32-10 (J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel
// Random Numbers: As Easy as 1, 2, 3", SC 2011).
DEVICE U32x4 philox4x32(U32x4 counter, U32x2 key) {
#pragma unroll
  for (uint32_t round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(counter.x) * 0xd2511f53u, b = uint64_t(counter.z) * 0xcd9e8d57u;
    const uint32_t x = uint32_t(b >> 32) ^ counter.y ^ key.x, z = uint32_t(a >> 32) ^ counter.w ^ key.y;
    counter = {x, uint32_t(b), z, uint32_t(a)};
    key.x += 0x9e3779b9u, key.y += 0xbb67ae85u;  // the golden ratio and sqrt(3) - 1
  }
  return counter;
}

// The words of ids first to first + 3; first is a multiple of 4.
DEVICE U32x4 noise_words(uint64_t seed, uint64_t position, uint32_t first) {
  return philox4x32({first / 4, 0, uint32_t(position), uint32_t(position >> 32)},
                    {uint32_t(seed), uint32_t(seed >> 32)});
}

// The word of one id.
DEVICE uint32_t noise_word(uint64_t seed, uint64_t position, uint32_t id) {
  const U32x4 words = noise_words(seed, position, id & ~3u);
  return id & 2 ? (id & 1 ? words.w : words.z) : id & 1 ? words.y : words.x;
}

// Standard Gumbel noise of a word: -ln(-ln(1 - v)) with v = (word + 1/2)·2^-32. Between -3.14 and 22.88;
// smaller words are larger noise.
DEVICE double gumbel(uint32_t word) {
  const double v = multiply(add(cvt_rn_f64_u32(word), 0.5), constant(0x3df0000000000000));  // 2^-32
  return -log(-log1p(-v));
}

// An exact sum of two f64: high + low, high being the nearest f64 (Knuth, TAOCP volume 2, 4.2.2, theorem B).
struct Score {
  double high, low;

  DEVICE static Score sum(double a, double b) {
    const double high = add(a, b), part = subtract(high, a);
    return {high, add(subtract(a, subtract(high, part)), subtract(b, part))};
  }
  DEVICE bool above(Score other) const {
    return high > other.high || (high == other.high && low > other.low);
  }
  DEVICE bool equals(Score other) const { return high == other.high && low == other.low; }
};

// Bounds of z + g, in f32. Either may be NaN, which bounds nothing.
struct Bounds {
  float low, high;
};

// How the logits of one row are drawn from. At temperature 0 z is the logit, and there is no noise.
struct DrawScale {
  float temperature;
  float inverse;  // 1 / T in f32; may be infinite

  DEVICE static DrawScale of(float temperature) {
    return {temperature, temperature == 0 ? 1.0f : div_rn_f32(1.0f, temperature)};
  }

  DEVICE Score score(float logit, uint32_t word) const {
    const double l = add(cvt_f64_f32(logit), 0.0);  // -0 becomes 0
    if (temperature == 0) return {l, 0};
    return Score::sum(div_rn_f64(l, cvt_f64_f32(temperature)), gumbel(word));
  }

  // For words below 2^24 (v < 2^-8) -ln(1 - v) is computed as v + v^2/2. For larger ones it is the logarithm
  // of 1 - v, which is the v of the complemented word. The noise is then within 7e-5 of the exact one by the
  // bounds of lg2.approx, and the relative error of z is at most 2^-21. The slack is more than both.
  DEVICE Bounds bounds(float logit, uint32_t word) const {
    const float ln2 = mov_f32_b32(LMHEAD_EXP_LN2_HI);
    const bool small = word < 1u << 24;
    const float v = fma_rn_f32(cvt_rn_f32_u32(small ? word : ~word), 0x1p-32f, 0x1p-33f);
    const float series = fma_rn_f32(mul_rn_f32(v, 0.5f), v, v);
    const float logarithm = mul_rn_f32(lg2_approx_ftz_f32(v), -ln2);
    const float noise = mul_rn_f32(lg2_approx_ftz_f32(small ? series : logarithm), -ln2);
    const float z = mul_rn_f32(logit, inverse);
    const float sum = add_rn_f32(z, temperature == 0 ? 0.0f : noise);
    const float slack = fma_rn_f32(abs_f32(z), 0x1p-20f, 0x1p-12f);
    return {add_rn_f32(sum, -slack), add_rn_f32(sum, slack)};
  }
};

// The winner of the candidates offered so far; of equal ones the lowest id. `floor` is a lower bound of the
// final winner's score. The lower bound of any candidate may raise it, also of one that is still to be
// offered or that another thread has. The higher it is, the fewer candidates are scored in f64.
struct Draw {
  static constexpr uint32_t kNobody = UINT32_MAX;

  Score best = {-__builtin_inf(), 0};
  uint32_t id = kNobody;
  float logit = 0;
  float floor = -__builtin_inff();

  // NaN raises nothing.
  DEVICE void raise_floor(float low) { floor = low > floor ? low : floor; }
  // Whether the candidate must be scored. Minus infinity is no candidate.
  DEVICE bool may_win(float value, Bounds bounds) const {
    return !(bounds.high < floor) && value > -__builtin_inff();
  }

  DEVICE void offer(Score score, uint32_t candidate, float value) {
    if (!score.above(best) && !(score.equals(best) && candidate < id)) return;
    best = score, id = candidate, logit = value;
  }

  // A bit for each of the lane's candidates that must be scored. Called by a whole warp; groups of `lanes`
  // neighbours (a power of two) share the highest floor. Minus infinity is no candidate.
  template <uint32_t kCount>
  DEVICE uint32_t screen(const DrawScale &scale, const float (&logits)[kCount],
                         const uint32_t (&words)[kCount], uint32_t lanes = 32) {
    const float known = floor;
    Bounds bounds[kCount];
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) {
      bounds[i] = scale.bounds(logits[i], words[i]);
      if (logits[i] > -__builtin_inff()) raise_floor(bounds[i].low);
    }
    if (vote_any(floor > known)) {
#pragma unroll 1
      for (uint32_t distance = lanes / 2; distance; distance /= 2)
        raise_floor(mov_f32_b32(shfl_bfly(mov_b32_f32(floor), distance)));
    }
    uint32_t contenders = 0;
#pragma unroll
    for (uint32_t i = 0; i < kCount; ++i) contenders |= uint32_t(may_win(logits[i], bounds[i])) << i;
    return contenders;
  }

  // Scores the contenders among the lane's candidates; candidate i has id `first` + i.
  template <uint32_t kCount>
  DEVICE void offer_some(uint32_t contenders, const DrawScale &scale, const float (&logits)[kCount],
                         const uint32_t (&words)[kCount], uint32_t first) {
    // Not unrolled: the f64 code stands once.
#pragma unroll 1
    for (uint32_t i = 0; contenders >> i; ++i) {
      if (!(contenders >> i & 1)) continue;
      float some = logits[0];
      uint32_t word = words[0];
#pragma unroll
      for (uint32_t j = 1; j < kCount; ++j)
        if (i == j) some = logits[j], word = words[j];
      offer(scale.score(some, word), first + i, some);
    }
  }

  // Screens and offers all of the lane's candidates. Called by a whole warp.
  template <uint32_t kCount>
  DEVICE void take(const DrawScale &scale, const float (&logits)[kCount], const uint32_t (&words)[kCount],
                   uint32_t first) {
    offer_some(screen(scale, logits, words), scale, logits, words, first);
  }

  DEVICE void merge(const Draw &other) {
    if (other.id != kNobody) offer(other.best, other.id, other.logit);
    raise_floor(other.floor);
  }

  // The winner over each group of `lanes` neighbours (a power of two), in each of its lanes. Called by a
  // whole warp.
  DEVICE void merge_lanes(uint32_t lanes = 32) {
#pragma unroll 1
    for (uint32_t distance = lanes / 2; distance; distance /= 2) {
      const auto other = [distance](double v) {
        const uint64_t bits = mov_b64_f64(v);
        const uint32_t low = shfl_bfly(uint32_t(bits), distance);
        return mov_f64_b64(uint64_t(shfl_bfly(uint32_t(bits >> 32), distance)) << 32 | low);
      };
      Draw theirs;
      theirs.best = {other(best.high), other(best.low)};
      theirs.id = shfl_bfly(id, distance);
      theirs.logit = mov_f32_b32(shfl_bfly(mov_b32_f32(logit), distance));
      theirs.floor = mov_f32_b32(shfl_bfly(mov_b32_f32(floor), distance));
      merge(theirs);
    }
  }

  // The winner over the block's warps, in each thread; called after `merge_lanes`. `at` is 24 bytes of shared
  // memory for each warp.
  DEVICE void merge_warps(uint32_t warps, uint32_t at) {
    const auto store = [](uint32_t to, double v) {
      const uint64_t bits = mov_b64_f64(v);
      st_shared_v2(to, {uint32_t(bits), uint32_t(bits >> 32)});
    };
    const auto read = [](uint32_t from) {
      const U32x2 bits = ld_shared_v2(from);
      return mov_f64_b64(uint64_t(bits.y) << 32 | bits.x);
    };
    if (lane_id() == 0) {
      const uint32_t own = at + 24 * (threadIdx.x / 32);
      store(own, best.high), store(own + 8, best.low);
      st_shared_v2(own + 16, {id, mov_b32_f32(logit)});
    }
    barrier_sync_all();
#pragma unroll 1
    for (uint32_t from = at; from < at + 24 * warps; from += 24) {
      Draw theirs;
      theirs.best = {read(from), read(from + 8)};
      const U32x2 id_logit = ld_shared_v2(from + 16);
      theirs.id = id_logit.x, theirs.logit = mov_f32_b32(id_logit.y);
      merge(theirs);
    }
  }
};

}  // namespace answers
