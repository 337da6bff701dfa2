// What the lanes of a warp do together: each deposits its operands, the last to come does the work for all.
#include "machine.hpp"
#include "tensor_core.hpp"

namespace emulated {
namespace {

[[noreturn, gnu::cold]] void refuse_lanes(Fiber &self, uint32_t mask) {
  const Warp &warp = *self.warp;
  if (!(mask >> self.lane & 1))
    fail(FaultKind::divergence, "lane %u names the lanes %08x: wanted its own among them", self.lane, mask);
  if (mask & ~warp.there)
    fail(FaultKind::divergence, "it wants the lanes %08x, and the warp has %u", mask, warp.count);
  fail(FaultKind::divergence, "it wants the lanes %08x, and %08x of them have ended", mask,
       mask & warp.exited);
}

// The lane is in another instruction than the lanes of `other`: a fault where each waits for the other. Lanes
// that only one of them waits for may still come later.
void check_others(Fiber &self, uint32_t mask, const Collective &other) {
  if (!(other.mask >> self.lane & 1) || !(mask & other.arrived)) return;
  fail(FaultKind::divergence,
       "lanes %08x of warp %u are in %s with the lanes %08x, lane %u is in %s with the lanes %08x "
       "(wanted the same instruction in all)",
       other.arrived, self.warp->number, other.instruction, other.mask, self.lane, self.instruction, mask);
}

[[noreturn, gnu::cold]] void refuse_difference(Fiber &self, const Collective &other, Place place) {
  if (!same_place(other.place, place))
    fail(FaultKind::divergence,
         "lanes %08x of warp %u are in %s at %s:%u, lane %u is in it at %s:%u (wanted all lanes at one "
         "place: the instruction is .aligned)",
         other.arrived, self.warp->number, self.instruction, base_name(other.place.file), other.place.line,
         self.lane, base_name(place.file), place.line);
  fail(FaultKind::divergence,
       "lane %u of warp %u gives %s another operand than lanes %08x, where all must agree", self.lane,
       self.warp->number, self.instruction, other.arrived);
}

// Waits until the last lane has done the work (false), or a lane that ends has left it to this one (true).
bool wait_for_the_last(Fiber &self, uint32_t &lanes) {
  park();
  if (__builtin_expect(!self.leads, 1)) return false;
  self.leads = false;
  lanes = self.warp->met.mask;
  return true;
}

bool meet_as(Fiber &self, uint32_t mask, bool live, uint64_t detail, Place place, void *operands,
             uint32_t &lanes) {
  Warp &warp = *self.warp;
  const uint32_t own = 1u << self.lane;
  if (__builtin_expect(!(mask & own) || (mask & ~live_lanes(warp)), 0)) refuse_lanes(self, mask);
  warp.operands[self.lane] = operands;
  for (size_t i = 0; i < warp.collectives.size(); ++i) {
    Collective &other = warp.collectives[i];
    if (other.mask != mask || !same_text(other.instruction, self.instruction)) {
      check_others(self, mask, other);
      continue;
    }
    if (__builtin_expect(other.detail != detail || !same_place(other.place, place), 0))
      refuse_difference(self, other, place);
    other.arrived |= own;
    if (other.arrived != mask) return wait_for_the_last(self, lanes);
    lanes = mask;
    warp.collectives.remove_unordered(i);
    return true;
  }
  if (mask == own) {
    lanes = mask;
    return true;
  }
  warp.collectives.push({self.instruction, mask, own, detail, place, live});
  return wait_for_the_last(self, lanes);
}

}  // namespace

bool meet(Fiber &self, uint32_t mask, uint64_t detail, Place place, void *operands) {
  uint32_t lanes;
  return meet_as(self, mask, false, detail, place, operands, lanes);
}

bool meet_live(Fiber &self, uint64_t detail, Place place, uint32_t &lanes) {
  return meet_as(self, live_lanes(*self.warp), true, detail, place, nullptr, lanes);
}

void release(Fiber &self, uint32_t mask) { wake_lanes(*self.warp, mask & ~(1u << self.lane)); }

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
  if (!meet(self, mask, 0, kNowhere)) return;
  Clock &meeting = self.warp->meeting;
  if (self.clock.on()) {
    if (!meeting.on()) meeting = self.cluster->clocks.take();
    meeting.assign(self.clock);
    const uint64_t base = ++self.cluster->clock_bases;
    Fiber *lanes = self.warp->lanes;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      Fiber &lane = lanes[__builtin_ctz(rest)];
      lane.clock.release_to(meeting, lane.agent);
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      Fiber &lane = lanes[__builtin_ctz(rest)];
      lane.clock.adopt(meeting, lane.agent, lanes[0].agent, self.warp->count, base);
    }
  }
  release(self, mask);
}

uint32_t elect_sync() {
  Fiber &self = enter("elect.sync");
  if (meet(self, 0xffffffffu, 0, kNowhere)) release(self, 0xffffffffu);
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
  void *const *operands = self.warp->operands;
  if (meet(self, mask, 0, kNowhere, &vote)) {
    uint32_t votes = 0;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      votes |= uint32_t(static_cast<Vote *>(operands[lane])->predicate) << lane;
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1)
      static_cast<Vote *>(operands[__builtin_ctz(rest)])->votes = votes;
    release(self, mask);
  }
  return vote.votes;
}

uint32_t redux(const char *instruction, Reduction kind, uint32_t v, uint32_t mask) {
  Fiber &self = enter(instruction);
  check_values(self, &v, sizeof v);
  void *const *operands = self.warp->operands;
  if (meet(self, mask, 0, kNowhere, &v)) {
    uint32_t all = 0;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      const uint32_t one = *static_cast<uint32_t *>(operands[__builtin_ctz(rest)]);
      all = kind == Reduction::bit_or ? all | one : one > all ? one : all;
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1)
      *static_cast<uint32_t *>(operands[__builtin_ctz(rest)]) = all;
    release(self, mask);
  }
  return v;
}

uint32_t shuffle(const char *instruction, Shuffle kind, uint32_t v, uint32_t operand, uint32_t mask) {
  Fiber &self = enter(instruction);
  struct Exchange {
    uint32_t in, out, from;
  } exchange{v, v, 0};
  const uint32_t lane = self.lane;
  check_values(self, &v, sizeof v);
  operand &= 31;  // b[4:0] (PTX ISA, "shfl.sync")
  switch (kind) {
    case Shuffle::butterfly: exchange.from = lane ^ operand; break;
    case Shuffle::index: exchange.from = operand; break;
    case Shuffle::up: exchange.from = lane >= operand ? lane - operand : lane; break;
    case Shuffle::down: exchange.from = lane + operand < 32 ? lane + operand : lane; break;
  }
  exchange.from &= 31;
  if (!(mask >> exchange.from & 1))
    fail(FaultKind::divergence, "lane %u reads lane %u, which is not among the lanes %08x", lane,
         exchange.from, mask);
  void *const *operands = self.warp->operands;
  if (meet(self, mask, 0, kNowhere, &exchange)) {
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      auto *one = static_cast<Exchange *>(operands[__builtin_ctz(rest)]);
      one->out = static_cast<Exchange *>(operands[one->from])->in;
    }
    release(self, mask);
  }
  return exchange.out;
}

namespace {

template <class Compute>
inline void warp_tile(Fiber &self, void *d, const uint32_t *a, const uint32_t *b, Place place,
                      Compute compute) {
  MatrixSlots &slots = self.warp->slots;
  const uint32_t group = self.lane / 4, t = self.lane % 4;
  auto *registers = static_cast<uint32_t *>(d);
  check_values(self, a, 16), check_values(self, b, 8), check_values(self, d, 16);
  slots.a[group][t] = a[0], slots.a[group + 8][t] = a[1];
  slots.a[group][t + 4] = a[2], slots.a[group + 8][t + 4] = a[3];
  slots.b[t][group] = b[0], slots.b[t + 4][group] = b[1];
  std::memcpy(&slots.d[group][2 * t], registers, 8);
  std::memcpy(&slots.d[group + 8][2 * t], registers + 2, 8);
  if (meet(self, 0xffffffffu, 0, place)) {
    compute(slots);
    release(self, 0xffffffffu);
  }
  std::memcpy(registers, &slots.d[group][2 * t], 8);
  std::memcpy(registers + 2, &slots.d[group + 8][2 * t], 8);
}

}  // namespace

void mma_m16n8k16(const char *instruction, Half half, float *d, const uint32_t *a, const uint32_t *b,
                  Place place) {
  Fiber &self = enter(instruction);
  warp_tile(self, d, a, b, place, [half](MatrixSlots &slots) {
    const auto input = half == Half::bf16 ? tensor_core::Input::bf16 : tensor_core::Input::f16;
    warp_multiply_k16(input, slots.a[0], slots.b[0], reinterpret_cast<float *>(slots.d[0]));
  });
}

void mma_m16n8k32(const char *instruction, int32_t *d, const uint32_t *a, const uint32_t *b, Place place) {
  Fiber &self = enter(instruction);
  warp_tile(self, d, a, b, place, [](MatrixSlots &slots) {
    warp_multiply_k32(slots.a[0], slots.b[0], reinterpret_cast<int32_t *>(slots.d[0]));
  });
}

}  // namespace emulated
