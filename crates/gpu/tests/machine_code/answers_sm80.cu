// The cost of the functions in kernels/answers and of the matmuls' epilogue: compiled and counted, never
// launched. Each kernel whose name ends in 8 processes eight logits a thread without a loop, its partner
// twenty-four: the difference is the cost of 16. Those of the epilogue have tiles of 64 and of 128 ids.
#include "answers/best.cuh"
#include "answers/exponential.cuh"
#include "answers/mass.cuh"
#include "answers/noise.cuh"
#include "matmul/epilogue.cuh"

using namespace ptx;

struct CostParams {
  const float *logits;
  uint32_t *out;
  const uint32_t *partial;
  uint64_t seed;
  uint64_t position;
  answers::Scale scale;
  answers::DrawScale draw;
  uint32_t unit;
  uint32_t bar;
};

template <uint32_t kLogits>
DEVICE void load(const CostParams &p, float (&logits)[kLogits]) {
#pragma unroll
  for (uint32_t i = 0; i < kLogits; i += 4) {
    const U32x4 four = ld_global_v4(p.logits + threadIdx.x * kLogits + i);
    const uint32_t bits[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) logits[i + j] = mov_f32_b32(bits[j]);
  }
}
DEVICE answers::ExpSum load_sum(const CostParams &p) {
  const U32x4 a = ld_global_v4(p.partial), b = ld_global_v4(p.partial + 4);
  answers::ExpSum sum;
  sum.floor = int32_t(a.x);
  sum.words[0] = uint64_t(a.z) << 32 | a.y, sum.words[1] = uint64_t(b.x) << 32 | a.w, sum.words[2] = b.y;
  return sum;
}
DEVICE void store(uint32_t *out, const answers::ExpSum &sum) {
  st_global_u32(out, uint32_t(sum.floor));
#pragma unroll
  for (uint32_t i = 0; i < 3; ++i)
    st_global_v2(out + 2 + 2 * i, {uint32_t(sum.words[i]), uint32_t(sum.words[i] >> 32)});
}

template <uint32_t kLogits>
DEVICE void add_all(const CostParams &p) {
  float logits[kLogits];
  load(p, logits);
  answers::ExpSum sum = load_sum(p);
#pragma unroll
  for (uint32_t i = 0; i < kLogits; i += 8) {
    float eight[8];
#pragma unroll
    for (uint32_t j = 0; j < 8; ++j) eight[j] = logits[i + j];
    sum.add(eight);
  }
  store(p.out + 8 * threadIdx.x, sum);
}

template <uint32_t kLogits>
DEVICE void add_masses(const CostParams &p) {
  float logits[kLogits];
  load(p, logits);
  uint64_t sum = 0;
#pragma unroll
  for (uint32_t i = 0; i < kLogits; ++i) sum += answers::mass(p.scale.below_max(logits[i]), p.unit);
  st_global_v2(p.out + 2 * threadIdx.x, {uint32_t(sum), uint32_t(sum >> 32)});
}

template <uint32_t kLogits>
DEVICE void find_floor(const CostParams &p) {
  float logits[kLogits];
  load(p, logits);
  answers::Draw draw;
#pragma unroll
  for (uint32_t i = 0; i < kLogits; i += 4) {
    const U32x4 words = answers::noise_words(p.seed, p.position, threadIdx.x * kLogits + i);
    const uint32_t word[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) draw.raise_floor(p.draw.bounds(logits[i + j], word[j]).low);
  }
  st_global_f32(p.out + threadIdx.x, draw.floor);
}

// Four logits are compared with the bar at once, as passes over logits in memory do: those below it, nearly
// all, are offered to nobody.
template <uint32_t kLogits>
DEVICE void compare_all(const CostParams &p) {
  float logits[kLogits];
  load(p, logits);
  const answers::Best best(dynamic_shared(), p.unit, p.bar);
  uint32_t votes = 0;
#pragma unroll
  for (uint32_t i = 0; i < kLogits; i += 4) {
    bool wanted = false;
#pragma unroll
    for (uint32_t j = 0; j < 4; ++j) wanted |= answers::ordered(logits[i + j]) >= best.least();
    votes += vote_any(wanted);
  }
  st_global_u32(p.out + threadIdx.x, votes);
}

// How many of a row's logits beat a target.
template <uint32_t kLogits>
DEVICE void count_all(const CostParams &p) {
  float logits[kLogits];
  load(p, logits);
  const U32x2 target = ld_global_v2(p.partial);
  const uint64_t key = answers::key_of(target.x, target.y);
  uint32_t num_greater = 0;
#pragma unroll
  for (uint32_t i = 0; i < kLogits; ++i)
    num_greater +=
        popc_b32(vote_ballot(answers::key_of(mov_b32_f32(logits[i]), p.unit + 32 * i + threadIdx.x) > key));
  st_global_u32(p.out + threadIdx.x, num_greater);
}

KERNEL(sum_8, CostParams, 128, 1) { add_all<8>(params); }
KERNEL(sum_24, CostParams, 128, 1) { add_all<24>(params); }
KERNEL(mass_8, CostParams, 128, 1) { add_masses<8>(params); }
KERNEL(mass_24, CostParams, 128, 1) { add_masses<24>(params); }
KERNEL(screen_8, CostParams, 128, 1) { find_floor<8>(params); }
KERNEL(screen_24, CostParams, 128, 1) { find_floor<24>(params); }
KERNEL(bar_8, CostParams, 128, 1) { compare_all<8>(params); }
KERNEL(bar_24, CostParams, 128, 1) { compare_all<24>(params); }
KERNEL(count_8, CostParams, 128, 1) { count_all<8>(params); }
KERNEL(count_24, CostParams, 128, 1) { count_all<24>(params); }

// The work for each row, in f64.
KERNEL(finish, CostParams, 128, 1) {
  answers::ExpSum sum = load_sum(params);
  sum.merge_lanes();
  st_global_f32(params.out, cvt_rn_f32_f64(answers::logsumexp(sum, params.scale.max)));
}
// The work for each candidate that the screen leaves, in f64.
KERNEL(score, CostParams, 128, 1) {
  answers::Draw draw;
  draw.offer(params.draw.score(params.scale.max, params.unit), threadIdx.x, params.scale.max);
  draw.merge_lanes();
  st_global_v2(params.out, {draw.id, mov_b32_f32(draw.logit)});
}

// The epilogue's own functions, of whole tiles in shared memory. The type of the product does not matter.
template <uint32_t kBlockN>
using Tile = matmul::Tile<matmul::Bf16Weights, kBlockN, 16>;

template <uint32_t kBlockN>
DEVICE matmul::TileCoord tile_of(const MatmulParams &p) {
  return matmul::tile_coord<Tile<kBlockN>>(p, blockIdx.x);
}

// `k` instead of the parameter: each kernel has one of the two ways of `find_best`. The matmuls have both,
// and a branch that all lanes take alike.
template <uint32_t kBlockN>
DEVICE void find_best(MatmulParams p, uint32_t k) {
  p.partials.k = k;
  matmul::find_best<Tile<kBlockN>>(p, tile_of<kBlockN>(p), p.partials.data, p.logits.pitch);
}
template <uint32_t kBlockN>
DEVICE void count_greater(const MatmulParams &p) {
  const uint32_t places = p.partials.k;
  matmul::count_greater<Tile<kBlockN>>(p, tile_of<kBlockN>(p), p.partials.data, p.logits.pitch, places);
}
template <uint32_t kBlockN>
DEVICE void add_up(const MatmulParams &p) {
  matmul::add_up<Tile<kBlockN>>(p, tile_of<kBlockN>(p), p.partials.data, p.logits.pitch);
}

KERNEL(tile_best_64, MatmulParams, 128, 1) { find_best<64>(params, params.partials.k | 2); }
KERNEL(tile_best_128, MatmulParams, 128, 1) { find_best<128>(params, params.partials.k | 2); }
KERNEL(tile_argmax_64, MatmulParams, 128, 1) { find_best<64>(params, 1); }
KERNEL(tile_argmax_128, MatmulParams, 128, 1) { find_best<128>(params, 1); }
KERNEL(tile_greater_64, MatmulParams, 128, 1) { count_greater<64>(params); }
KERNEL(tile_greater_128, MatmulParams, 128, 1) { count_greater<128>(params); }
KERNEL(tile_sum_64, MatmulParams, 128, 1) { add_up<64>(params); }
KERNEL(tile_sum_128, MatmulParams, 128, 1) { add_up<128>(params); }
KERNEL(tile_draw_128, MatmulParams, 128, 1) { matmul::draw<Tile<128>>(params, tile_of<128>(params)); }
