// Parts of the answer kernels by themselves: terms, sums, logarithms, masses, noise.
#include "answers/exponential.cuh"
#include "answers/mass.cuh"
#include "answers/noise.cuh"
#include "probe.h"

using namespace ptx;

DEVICE uint64_t ld_global_u64(const uint32_t *in) {
  const U32x2 v = ld_global_v2(in);
  return uint64_t(v.y) << 32 | v.x;
}
DEVICE void st_global_u64(uint32_t *out, uint64_t v) { st_global_v2(out, {uint32_t(v), uint32_t(v >> 32)}); }

// Index of this thread's item j of 64, with adjacent threads on adjacent items.
DEVICE uint32_t item(uint32_t j) { return (blockIdx.x * 64 + j) * 256 + threadIdx.x; }

// Terms of the n[2] floats with bits n[0] + i·n[1]. Out: significand, exponent.
KERNEL(probe_term, ProbeParams, 256, 1) {
  for (uint32_t j = 0; j < 64; ++j) {
    const uint32_t i = item(j);
    if (i >= params.n[2]) return;
    const answers::Term term = answers::term(mov_f32_b32(params.n[0] + i * params.n[1]));
    st_global_v2(params.out + 2 * i, {term.significand, uint32_t(term.exponent)});
  }
}

// The seven words of a partial: top, then the words, low halves first. An eighth aligns it.
DEVICE answers::ExpSum load(const uint32_t *in) {
  answers::ExpSum sum;
  sum.floor = answers::ExpSum::floor_of(int32_t(ld_global_u32(in)));
  for (uint32_t i = 0; i < 3; ++i) sum.words[i] = ld_global_u64(in + 2 + 2 * i);
  return sum;
}
DEVICE void store(uint32_t *out, const answers::ExpSum &sum) {
  st_global_v2(out, {uint32_t(sum.top()), 0});
  for (uint32_t i = 0; i < 3; ++i) st_global_u64(out + 2 + 2 * i, sum.words[i]);
}

template <uint32_t kCount>
DEVICE answers::ExpSum sum_of(const float *logits, uint32_t count) {
  answers::ExpSum sum;
  for (uint32_t first = kCount * lane_id(); first < count; first += 32 * kCount) {
    float some[kCount];
    for (uint32_t i = 0; i < kCount; ++i)
      some[i] = first + i < count ? ld_global_nc_f32(logits + first + i) : -__builtin_inff();
    sum.add(some);
  }
  sum.merge_lanes();
  return sum;
}

// in: logits [rows, n[0]]. A warp adds n[1] of them, kCount = n[2] at once in each thread; the last part of a
// row may be shorter. out: a partial of 8 words for each part of each row.
KERNEL(probe_sum, ProbeParams, 32, 1) {
  const uint32_t parts = (params.n[0] + params.n[1] - 1) / params.n[1];
  const uint32_t row = blockIdx.x / parts, begin = blockIdx.x % parts * params.n[1];
  const uint32_t rest = params.n[0] - begin;
  const float *logits = reinterpret_cast<const float *>(params.in) + row * params.n[0] + begin;
  const uint32_t count = rest < params.n[1] ? rest : params.n[1];
  const answers::ExpSum sum = params.n[2] == 1   ? sum_of<1>(logits, count)
                              : params.n[2] == 4 ? sum_of<4>(logits, count)
                                                 : sum_of<8>(logits, count);
  if (lane_id() == 5) store(params.out + 8 * blockIdx.x, sum);
}

// in: n[0] rows, each of its largest logit, an unused word, and n[1] partials. out: a partial and its
// logarithm, 10 words.
KERNEL(probe_merge, ProbeParams, 256, 1) {
  const uint32_t row = blockIdx.x * 256 + threadIdx.x;
  if (row >= params.n[0]) return;
  const uint32_t *in = params.in + row * (2 + 8 * params.n[1]);
  answers::ExpSum sum;
  for (uint32_t i = 0; i < params.n[1]; ++i) sum.merge(load(in + 2 + 8 * i));
  store(params.out + 10 * row, sum);
  const float max = mov_f32_b32(ld_global_u32(in));
  st_global_u64(params.out + 10 * row + 8, mov_b64_f64(answers::logsumexp(sum, max)));
}

// Logarithms of the n[4] doubles with bits (n[1], n[0]) + i·(n[3], n[2]). Out: log and log1p.
KERNEL(probe_logarithms, ProbeParams, 256, 1) {
  const uint64_t first = uint64_t(params.n[1]) << 32 | params.n[0];
  const uint64_t step = uint64_t(params.n[3]) << 32 | params.n[2];
  for (uint32_t j = 0; j < 64; ++j) {
    const uint32_t i = item(j);
    if (i >= params.n[4]) return;
    const double x = mov_f64_b64(first + i * step);
    st_global_u64(params.out + 4 * i, mov_b64_f64(answers::log(x)));
    st_global_u64(params.out + 4 * i + 2, mov_b64_f64(answers::log1p(x)));
  }
}

// The noise of the n[2] words n[0] + i·n[1].
KERNEL(probe_gumbel, ProbeParams, 256, 1) {
  for (uint32_t j = 0; j < 64; ++j) {
    const uint32_t i = item(j);
    if (i >= params.n[2]) return;
    st_global_u64(params.out + 2 * i, mov_b64_f64(answers::gumbel(params.n[0] + i * params.n[1])));
  }
}

// The masses of the n[2] floats with bits n[0] + i·n[1], in unit n[3].
KERNEL(probe_mass, ProbeParams, 256, 1) {
  for (uint32_t j = 0; j < 64; ++j) {
    const uint32_t i = item(j);
    if (i >= params.n[2]) return;
    st_global_u64(params.out + 2 * i, answers::mass(mov_f32_b32(params.n[0] + i * params.n[1]), params.n[3]));
  }
}

// in: n[0] times logit, largest logit, temperature, vocabulary. Out: x, unit, mass.
KERNEL(probe_scale, ProbeParams, 256, 1) {
  const uint32_t i = blockIdx.x * 256 + threadIdx.x;
  if (i >= params.n[0]) return;
  const U32x4 in = ld_global_v4(params.in + 4 * i);
  const answers::Scale scale = {mov_f32_b32(in.y), mov_f32_b32(in.z)};
  const float x = scale.below_max(mov_f32_b32(in.x));
  const uint32_t unit = answers::unit_of(in.w);
  st_global_v2(params.out + 4 * i, {mov_b32_f32(x), unit});
  st_global_u64(params.out + 4 * i + 2, answers::mass(x, unit));
}

// in: n[0] times seed, position, id and min_p, 8 words of which one is unused. Out: the words of the four ids
// from there, and the smallest x of min_p.
KERNEL(probe_philox, ProbeParams, 256, 1) {
  const uint32_t i = blockIdx.x * 256 + threadIdx.x;
  if (i >= params.n[0]) return;
  const uint32_t *in = params.in + 8 * i;
  const U32x2 id_and_min_p = ld_global_v2(in + 4);
  const U32x4 words = answers::noise_words(ld_global_u64(in), ld_global_u64(in + 2), id_and_min_p.x);
  st_global_v4(params.out + 8 * i, words);
  st_global_f32(params.out + 8 * i + 4, answers::least_of(mov_f32_b32(id_and_min_p.y)));
}

// in: n[0] times logit, temperature, word, and an unused word. Out: bounds, then the score.
KERNEL(probe_bounds, ProbeParams, 256, 1) {
  const uint32_t i = blockIdx.x * 256 + threadIdx.x;
  if (i >= params.n[0]) return;
  const U32x4 in = ld_global_v4(params.in + 4 * i);
  const auto scale = answers::DrawScale::of(mov_f32_b32(in.y));
  const answers::Bounds bounds = scale.bounds(mov_f32_b32(in.x), in.z);
  const answers::Score score = scale.score(mov_f32_b32(in.x), in.z);
  uint32_t *out = params.out + 6 * i;
  st_global_v2(out, {mov_b32_f32(bounds.low), mov_b32_f32(bounds.high)});
  st_global_u64(out + 2, mov_b64_f64(score.high)), st_global_u64(out + 4, mov_b64_f64(score.low));
}

DEVICE uint32_t word_of(U32x4 words, uint32_t i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}

// in: rows of a seed, a position, a temperature, a word, and n[0] logits, a multiple of 4; each row has a
// warp. n[1]: 0 scores all ids, 1 has a floor over all of them first, 2 raises it on the way. Out: id, logit,
// score, how many ids were scored; 8 words.
KERNEL(probe_draw, ProbeParams, 32, 1) {
  const uint32_t *in = params.in + blockIdx.x * (6 + params.n[0]);
  const uint64_t seed = ld_global_u64(in), position = ld_global_u64(in + 2);
  const auto scale = answers::DrawScale::of(mov_f32_b32(ld_global_u32(in + 4)));
  answers::Draw draw;
  uint32_t scored = 0;
  for (uint32_t pass = params.n[1] == 1 ? 0 : 1; pass < 2; ++pass) {
    for (uint32_t first = 4 * lane_id(); first < params.n[0]; first += 128) {
      const U32x4 words = answers::noise_words(seed, position, first);
      for (uint32_t i = 0; i < 4; ++i) {
        const float logit = ld_global_nc_f32(in + 6 + first + i);
        const answers::Bounds bounds = scale.bounds(logit, word_of(words, i));
        if (pass == 0 || params.n[1] == 2) draw.raise_floor(bounds.low);
        if (pass == 0 || !draw.may_win(logit, bounds)) continue;
        ++scored;
        draw.offer(scale.score(logit, word_of(words, i)), first + i, logit);
      }
    }
    if (pass == 0) draw.merge_lanes();
  }
  draw.merge_lanes();
  for (uint32_t distance = 16; distance; distance /= 2) scored += shfl_bfly(scored, distance);
  if (lane_id() != 9) return;
  uint32_t *out = params.out + 8 * blockIdx.x;
  st_global_v2(out, {draw.id, mov_b32_f32(draw.logit)});
  st_global_u64(out + 2, mov_b64_f64(draw.best.high)), st_global_u64(out + 4, mov_b64_f64(draw.best.low));
  st_global_v2(out + 6, {scored, 0});
}
