// What the lanes of a warp do together: each deposits its operands, the last to come does the work for all.
#include "machine.hpp"
#include "tensor_core.hpp"

namespace emulated {
namespace {

bool same_text(const char *a, const char *b) { return a == b || std::strcmp(a, b) == 0; }

// Until the last lane has done the work, or an ending lane has left that to this one.
bool wait_for_the_last(Fiber &self, Collective &collective) {
  park();
  if (!self.leads) return false;
  self.leads = false;
  collective = self.warp->met;
  return true;
}

bool meet_as(Fiber &self, uint32_t mask, bool live, uint64_t detail, void *operands, Collective &collective) {
  Warp &warp = *self.warp;
  const uint32_t own = 1u << self.lane;
  if (!(mask & own))
    fail(FaultKind::divergence, "lane %u names the lanes %08x: wanted its own among them", self.lane, mask);
  const uint32_t there = warp.count == 32 ? 0xffffffffu : (1u << warp.count) - 1;
  if (mask & ~there)
    fail(FaultKind::divergence, "it wants the lanes %08x, and the warp has %u", mask, warp.count);
  if (mask & warp.exited)
    fail(FaultKind::divergence, "it wants the lanes %08x, and %08x of them have ended", mask, mask & warp.exited);
  for (size_t i = 0; i < warp.collectives.size(); ++i) {
    Collective &other = warp.collectives[i];
    if (other.mask != mask || !same_text(other.instruction, self.instruction)) {
      // Each waits for the other. Lanes that only one of them waits for may still come later.
      if (!(other.mask & own) || !(mask & other.arrived)) continue;
      fail(FaultKind::divergence, "lanes %08x of warp %u are in %s with the lanes %08x, lane %u is in %s with the lanes "
           "%08x (wanted the same instruction in all)", other.arrived, warp.number, other.instruction, other.mask,
           self.lane, self.instruction, mask);
    }
    if (other.detail != detail)
      fail(FaultKind::divergence, "lane %u of warp %u gives %s another operand than lanes %08x, where all must agree",
           self.lane, warp.number, self.instruction, other.arrived);
    other.arrived |= own;
    other.operands[self.lane] = operands;
    if (other.arrived != mask) return wait_for_the_last(self, collective);
    collective = other;
    warp.collectives.remove_unordered(i);
    return true;
  }
  Collective fresh{};
  fresh.instruction = self.instruction, fresh.mask = mask, fresh.arrived = own, fresh.detail = detail;
  fresh.live = live;
  fresh.operands[self.lane] = operands;
  if (mask == own) {
    collective = fresh;
    return true;
  }
  warp.collectives.push(fresh);
  return wait_for_the_last(self, collective);
}

}  // namespace

bool meet(Fiber &self, uint32_t mask, uint64_t detail, void *operands, Collective &collective) {
  return meet_as(self, mask, false, detail, operands, collective);
}

uint32_t live_lanes(const Warp &warp) {
  return (warp.count == 32 ? 0xffffffffu : (1u << warp.count) - 1) & ~warp.exited;
}

bool meet_live(Fiber &self, uint64_t detail, Collective &collective) {
  return meet_as(self, live_lanes(*self.warp), true, detail, nullptr, collective);
}

void release(Fiber &self, uint32_t mask) {
  for (uint32_t rest = mask & ~(1u << self.lane); rest; rest &= rest - 1) wake(self.warp->lanes[__builtin_ctz(rest)]);
}

void check_exit(Fiber &self) {
  Warp &warp = *self.warp;
  for (size_t i = 0; i < warp.collectives.size(); ++i) {
    Collective &collective = warp.collectives[i];
    if (!(collective.mask >> self.lane & 1)) continue;
    if (!collective.live)
      fail(FaultKind::divergence, "lane %u of warp %u ends, and lanes %08x wait for it in %s", self.lane,
           warp.number, collective.arrived, collective.instruction);
    collective.mask &= ~(1u << self.lane);
    if (collective.arrived != collective.mask) continue;
    // All live lanes are in it, so there is no other.
    warp.met = collective;
    warp.collectives.clear();
    Fiber &leader = warp.lanes[__builtin_ctz(warp.met.mask)];
    leader.leads = true;
    wake(leader);
  }
}

void bar_warp_sync(uint32_t mask) {
  Fiber &self = enter("bar.warp.sync");
  Collective all;
  if (!meet(self, mask, 0, nullptr, all)) return;
  Clock &meeting = self.warp->meeting;
  if (self.clock.on()) {
    if (!meeting.on()) meeting = self.cluster->clocks.take();
    meeting.assign(self.clock);
    for (uint32_t rest = mask; rest; rest &= rest - 1) meeting.join(self.warp->lanes[__builtin_ctz(rest)].clock);
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      Fiber &lane = self.warp->lanes[__builtin_ctz(rest)];
      lane.clock.assign(meeting);
      ++lane.clock.plain[lane.agent];
    }
  }
  release(self, mask);
}

uint32_t elect_sync() {
  Fiber &self = enter("elect.sync");
  Collective all;
  if (meet(self, 0xffffffffu, 0, nullptr, all)) release(self, 0xffffffffu);
  // Any lane, and for one mask always the same (PTX ISA, "elect.sync").
  Random random;
  random.seed(self.cluster->launch->seed, self.warp->number);
  return self.lane == random.below(32);
}

uint32_t vote_ballot(const char *instruction, bool predicate, uint32_t mask) {
  Fiber &self = enter(instruction);
  struct Vote {
    bool predicate;
    uint32_t votes;
  } vote{predicate, 0};
  Collective all;
  if (meet(self, mask, 0, &vote, all)) {
    uint32_t votes = 0;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      votes |= uint32_t(static_cast<Vote *>(all.operands[lane])->predicate) << lane;
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1)
      static_cast<Vote *>(all.operands[__builtin_ctz(rest)])->votes = votes;
    release(self, mask);
  }
  return vote.votes;
}

uint32_t shuffle(const char *instruction, Shuffle kind, uint32_t v, uint32_t operand, uint32_t mask) {
  Fiber &self = enter(instruction);
  struct Exchange {
    uint32_t in, out, from;
  } exchange{v, v, 0};
  const uint32_t lane = self.lane;
  switch (kind) {
    case Shuffle::butterfly: exchange.from = lane ^ operand; break;
    case Shuffle::index: exchange.from = operand; break;
    case Shuffle::up: exchange.from = lane >= operand ? lane - operand : lane; break;
    case Shuffle::down: exchange.from = lane + operand < 32 ? lane + operand : lane; break;
  }
  exchange.from &= 31;
  if (!(mask >> exchange.from & 1))
    fail(FaultKind::divergence, "lane %u reads lane %u, which is not among the lanes %08x", lane, exchange.from, mask);
  Collective all;
  if (meet(self, mask, 0, &exchange, all)) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      auto *one = static_cast<Exchange *>(all.operands[__builtin_ctz(rest)]);
      one->out = static_cast<Exchange *>(all.operands[one->from])->in;
    }
    release(self, mask);
  }
  return exchange.out;
}

namespace {

struct Fragments {
  void *d;
  const uint32_t *a, *b;
};

// The tiles of a warp's fragments, k-major: 32 bytes of each row, as eight words.
struct Tiles {
  uint32_t a[16][8], b[8][8];
  uint32_t d[16][8];
};

template <class Compute>
void warp_tile(Fiber &self, void *d, const uint32_t *a, const uint32_t *b, Compute compute) {
  Fragments own{d, a, b};
  Collective all;
  if (!meet(self, 0xffffffffu, 0, &own, all)) return;
  Tiles tiles;
  for (int lane = 0; lane < 32; ++lane) {
    const auto &from = *static_cast<Fragments *>(all.operands[lane]);
    const int group = lane / 4, t = lane % 4;
    tiles.a[group][t] = from.a[0], tiles.a[group + 8][t] = from.a[1];
    tiles.a[group][t + 4] = from.a[2], tiles.a[group + 8][t + 4] = from.a[3];
    tiles.b[group][t] = from.b[0], tiles.b[group][t + 4] = from.b[1];
    std::memcpy(&tiles.d[group][2 * t], from.d, 8);
    std::memcpy(&tiles.d[group + 8][2 * t], static_cast<uint32_t *>(from.d) + 2, 8);
  }
  compute(tiles);
  for (int lane = 0; lane < 32; ++lane) {
    auto *to = static_cast<uint32_t *>(static_cast<Fragments *>(all.operands[lane])->d);
    std::memcpy(to, &tiles.d[lane / 4][lane % 4 * 2], 8);
    std::memcpy(to + 2, &tiles.d[lane / 4 + 8][lane % 4 * 2], 8);
  }
  release(self, 0xffffffffu);
}

}  // namespace

void mma_m16n8k16(const char *instruction, Half half, float *d, const uint32_t *a, const uint32_t *b) {
  Fiber &self = enter(instruction);
  warp_tile(self, d, a, b, [half](Tiles &tiles) {
    const auto input = half == Half::bf16 ? tensor_core::Input::bf16 : tensor_core::Input::f16;
    multiply_k16(input, reinterpret_cast<const uint16_t *>(tiles.a), reinterpret_cast<const uint16_t *>(tiles.b),
                 reinterpret_cast<float *>(tiles.d), 16, 8, 8);
  });
}

void mma_m16n8k32(const char *instruction, int32_t *d, const uint32_t *a, const uint32_t *b) {
  Fiber &self = enter(instruction);
  warp_tile(self, d, a, b, [](Tiles &tiles) {
    multiply_k32(reinterpret_cast<const int8_t *>(tiles.a), reinterpret_cast<const int8_t *>(tiles.b),
                 reinterpret_cast<int32_t *>(tiles.d), 16, 8, 8);
  });
}

}  // namespace emulated
