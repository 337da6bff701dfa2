// Which ids a shard has, and which shard an id: blocks of 64 ids, spread evenly, the larger shards first.
#pragma once
#include "params.h"
#include "ptx.cuh"

namespace answers {

struct Ids {
  uint32_t first, end;
};

DEVICE Ids cut(uint64_t first, uint64_t end, uint32_t vocab) {
  return {first < vocab ? uint32_t(first) : vocab, end < vocab ? uint32_t(end) : vocab};
}

// The ids of shard i: blocks of 64, the larger shards first.
DEVICE Ids shard_ids(uint32_t vocab, uint32_t shards, uint32_t i) {
  const uint32_t blocks = (vocab + 63) / 64, each = blocks / shards, more = blocks % shards;
  const uint32_t first = i * each + (i < more ? i : more);
  return cut(64ull * first, 64ull * (first + each + (i < more)), vocab);
}

// The shard that has id `id` of the vocabulary.
DEVICE uint32_t owner_of(uint32_t vocab, uint32_t shards, uint32_t id) {
  const uint32_t blocks = (vocab + 63) / 64, each = blocks / shards, more = blocks % shards, block = id / 64;
  const uint32_t larger = more * (each + 1);
  return block < larger ? block / (each + 1) : more + (block - larger) / each;
}

}  // namespace answers
