// The registers of wgmma: accumulators and fragments of a, which lie on the thread's stack here. They belong
// to the instruction from its issue to its wait. Whatever other instructions do to them has to come before a
// wgmma.fence.
#include <cstddef>

#include "fiber.hpp"
#include "wgmma.hpp"

namespace emulated {
namespace {

constexpr size_t kRemembered = 8;  // of a warpgroup's latest sets of accumulators the noise is recognised
constexpr uint32_t kWitnesses = 3;
// One fence in this number of a thread's fences looks at whole frames: with 128 threads, some do each time.
constexpr uint32_t kFencesOfNamed = 16;

// Accumulator i of a lane in the [64][n] tile.
int tile_index(int lane, int i, int n) {
  const int row = lane / 32 * 16 + lane % 32 / 4 + (i & 2 ? 8 : 0),
            column = i / 4 * 8 + lane % 4 * 2 + (i & 1);
  return row * n + column;
}

int lane_of(const Fiber &self) { return int(self.thread % kLanes); }

// The noise in a lane's first accumulator until it is waited for; the others count on from there.
uint32_t noise_of(const Accumulators &accumulators, int lane) {
  return accumulators.noise + uint32_t(lane * accumulators.n / 2);
}

uint64_t hash(const uint32_t *values, int count) {
  uint64_t h = 0x9e3779b97f4a7c15u;
  for (int i = 0; i < count; ++i) h = (h ^ values[i]) * 0x100000001b3u;
  return h;
}

[[noreturn]] void touched(Fiber &self) {
  fail(FaultKind::wgmma, "accumulators of thread %u were written while a wgmma was working on them (wanted "
       "wgmma.wait_group before any other use)", self.thread);
}

bool still_noise(const Fiber &self, const Accumulators &accumulators) {
  const int lane = lane_of(self);
  const auto *registers = static_cast<const uint32_t *>(accumulators.registers[lane]);
  const uint32_t noise = noise_of(accumulators, lane);
  uint32_t different = 0;  // or'ed over all, without a branch for each
  for (int i = 0; i < accumulators.n / 2; ++i) different |= registers[i] ^ (noise + uint32_t(i));
  return different == 0;
}

// Copies the thread's own stack, redzones of an address sanitizer included.
#if defined(__SANITIZE_ADDRESS__)
__attribute__((no_sanitize_address, noinline)) void copy_words(uint64_t *to, const uint64_t *from,
                                                               size_t count) {
  for (size_t i = 0; i < count; ++i) {
    to[i] = from[i];
    asm volatile("" ::: "memory");  // so that no call of memcpy comes of it
  }
}
#else
void copy_words(uint64_t *to, const uint64_t *from, size_t count) {
  std::memcpy(to, from, count * sizeof *to);
}
#endif

// Registers as wgmma.fence found them. Null: unknown, since they lie in no frame that existed then.
uint8_t *as_fenced(Fiber &self, const void *registers, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(registers);
  const size_t there = self.wgmma_stack.size() * sizeof(uint64_t), offset = address - self.wgmma_stack_begin;
  if (address < self.wgmma_stack_begin || offset > there || there - offset < bytes) return nullptr;
  return reinterpret_cast<uint8_t *>(&self.wgmma_stack[0]) + offset;
}

// Whether registers differ from what the fence found, where that is known. The next fence copies them, too.
bool changed_since_fence(Fiber &self, const void *registers, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(registers);
  self.wgmma_low = self.wgmma_low && self.wgmma_low < address ? self.wgmma_low : address;
  self.wgmma_high = self.wgmma_high > address + bytes ? self.wgmma_high : address + bytes;
  const uint8_t *before = as_fenced(self, registers, bytes);
  return before && std::memcmp(before, registers, bytes) != 0;
}

// Without wgmma.fence only the wgmma of one shape may follow each other on the same registers (PTX ISA,
// "wgmma.fence"). keep = 0 throws away what was waited for: the thread has read it, or had no use for it.
void check_accumulators(Fiber &self, const uint32_t *registers, const WgmmaOperands &operands) {
  if (!self.clock.on()) return;
  for (const UsedAccumulators &used : self.wgmma_accumulators) {
    if (used.registers != registers) continue;
    if (operands.keep && used.n == operands.n && used.hash == hash(registers, operands.n / 2)) return;
    fail(FaultKind::wgmma,
         "%s on accumulators that the thread has read or written since the last wgmma.fence (wanted "
         "wgmma.fence between)",
         self.instruction);
  }
  if (changed_since_fence(self, registers, size_t(operands.n) * 2) && operands.keep)
    fail(
        FaultKind::wgmma,
        "%s on accumulators that the thread has written after wgmma.fence (wanted the fence between the two)",
        self.instruction);
}

}  // namespace

Accumulators *open_accumulators(Fiber &self, const WgmmaOperands &operands) {
  Warpgroup &group = *self.warpgroup;
  // Every lane brings its values.
  const size_t header = offsetof(Accumulators, values),
               bytes = header + sizeof(uint32_t) * size_t(kM * operands.n);
  auto *fresh = static_cast<Accumulators *>(std::malloc(bytes));
  if (!fresh) out_of_memory();
  std::memset(static_cast<void *>(fresh), 0, header);
  // Words that no arithmetic makes: signalling NaNs as f32, int32 beyond what products of int8 add up to.
  const uint32_t first = operands.element == Element::s8 ? kNoiseS32 : kNoiseF32;
  fresh->n = operands.n;
  fresh->noise = first + self.cluster->random.below(kNoiseSpan - uint32_t(kLanes * operands.n / 2));
  group.accumulators.push(fresh);
  if (group.noises.size() == kRemembered) group.noises.remove_first(1);
  group.noises.push({fresh->noise, uint32_t(operands.n / 2), 0, {}});
  return fresh;
}

void take_registers(Fiber &self, Accumulators &accumulators, void *registers, const WgmmaOperands &operands) {
  const int lane = lane_of(self), count = operands.n / 2;
  auto *values = static_cast<uint32_t *>(registers);
  for (const Accumulators *other : self.warpgroup->accumulators)
    if (other->registers[lane] == registers) touched(self);
  check_accumulators(self, values, operands);
  if (operands.keep) check_values(self, values, uint32_t(count) * 4);
  const uint32_t noise = noise_of(accumulators, lane);
  for (int i = 0; i < count; ++i) {
    accumulators.values[tile_index(lane, i, operands.n)] = values[i];
    values[i] = noise + uint32_t(i);
  }
  accumulators.registers[lane] = registers;
  ++accumulators.here;
}

void check_untouched(Fiber &self, const Accumulators &accumulators) {
  if (self.clock.on() && !still_noise(self, accumulators)) touched(self);
}

void give_back_registers(Fiber &self, Accumulators &accumulators) {
  const int lane = lane_of(self), count = accumulators.n / 2;
  auto *values = static_cast<uint32_t *>(accumulators.registers[lane]);
  if (!still_noise(self, accumulators)) touched(self);
  for (int i = 0; i < count; ++i) values[i] = accumulators.values[tile_index(lane, i, accumulators.n)];
  if (self.clock.on()) {
    const UsedAccumulators used{values, accumulators.n, hash(values, count)};
    bool found = false;
    for (UsedAccumulators &one : self.wgmma_accumulators)
      if (one.registers == used.registers) one = used, found = true;
    if (!found) self.wgmma_accumulators.push(used);
  }
  accumulators.registers[lane] = nullptr;
  --accumulators.here;
}

// Fragments of a that have other values than at the last fence, or at an earlier use, were written meanwhile.
void take_fragment(Fiber &self, const uint32_t *registers, uint64_t number) {
  if (!self.clock.on()) return;
  check_values(self, registers, 16);
  for (UsedFragment &used : self.wgmma_fragments) {
    if (used.registers != registers) continue;
    const bool same = std::memcmp(used.values, registers, sizeof used.values) == 0;
    if (!same && used.fenced)
      fail(
          FaultKind::wgmma,
          "%s reads fragments of a in registers that the thread has written while an earlier wgmma was still "
          "reading them (wanted wgmma.wait_group for that one before)",
          self.instruction);
    if (!same)
      fail(FaultKind::wgmma,
           "%s reads fragments of a that the thread has written since the last wgmma.fence (wanted "
           "wgmma.fence between)",
           self.instruction);
    used.number = number, used.fenced = false;
    return;
  }
  if (changed_since_fence(self, registers, 16))
    fail(
        FaultKind::wgmma,
        "%s reads fragments of a that the thread has written after wgmma.fence (wanted the fence between the "
        "two)",
        self.instruction);
  self.wgmma_fragments.push(
      {registers, {registers[0], registers[1], registers[2], registers[3]}, number, false});
}

void forget_fragments(Fiber &self) {
  for (size_t i = self.wgmma_fragments.size(); i-- > 0;) {
    const UsedFragment &used = self.wgmma_fragments[i];
    if (used.fenced && used.number <= self.wgmma_waited) self.wgmma_fragments.remove_unordered(i);
  }
}

// Forgets what has been used, but fragments that wgmma still reads, and copies the registers as they are now.
void fence_registers(Fiber &self) {
  if (!self.clock.on()) return;
  self.wgmma_accumulators.clear();
  for (UsedFragment &used : self.wgmma_fragments) used.fenced = true;
  forget_fragments(self);
  // Copies the frames of the kernel, from here upwards: which part of them are registers shows only when a
  // wgmma names them. Later fences copy what has been named, and now and then everything again.
  auto begin = reinterpret_cast<uintptr_t>(__builtin_frame_address(0)) & ~uintptr_t(7);
  auto end = reinterpret_cast<uintptr_t>(self.stack_top);
  if (self.wgmma_low > begin && (self.wgmma_fences++ + self.thread) % kFencesOfNamed != 0)
    begin = self.wgmma_low & ~uintptr_t(7), end = (self.wgmma_high + 7) & ~uintptr_t(7);
  self.wgmma_stack_begin = begin;
  self.wgmma_stack.resize((end - begin) / sizeof(uint64_t));
  copy_words(&self.wgmma_stack[0], reinterpret_cast<const uint64_t *>(begin), self.wgmma_stack.size());
}

// One such word may be chance (one in 2^22 of random ones at most, while eight sets of 128 are remembered).
// Three different ones of the same set are a fault.
void check_noise(Fiber &self, const uint32_t *words, uint32_t count) {
  uint32_t any = 0;
  for (uint32_t w = 0; w < count; ++w)
    any |= (words[w] - kNoiseF32 < kNoiseSpan) | (words[w] - kNoiseS32 < kNoiseSpan);
  if (!any) return;
  const int lane = lane_of(self);
  for (uint32_t w = 0; w < count; ++w)
    for (Noise &noise : self.warpgroup->noises) {
      const uint32_t word = words[w];
      if (word - (noise.first + uint32_t(lane) * noise.per_lane) >= noise.per_lane) continue;
      bool known = false;
      for (uint32_t i = 0; i < noise.seen; ++i) known |= noise.words[i] == word;
      if (!known) noise.words[noise.seen++] = word;
      if (noise.seen == kWitnesses)
        fail(FaultKind::wgmma,
             "%s takes what thread %u has read from accumulators while a wgmma was working on them (wanted "
             "wgmma.wait_group before; this is the third such word)",
             self.instruction, self.thread);
    }
}

void check_operand(const char *instruction, uint32_t word) {
  Fiber &self = *current;
  if (!self.clock.on() || !self.warpgroup || self.warpgroup->noises.empty()) return;
  self.instruction = instruction, self.has_address = false;
  check_noise(self, &word, 1);
}

}  // namespace emulated
