// wgmma. The lanes of a warpgroup record an instruction and go on; it is checked when the last of the 128 has
// issued it, and executed when somebody waits for it. Until then the accumulators in the lanes' registers
// hold noise.
#include "tensor_core.hpp"
#include "wgmma.hpp"

namespace emulated {

namespace {

struct Descriptor {
  uint32_t start, leading, stride, swizzle;
};

// Bytes of a row: the swizzle's width, or 16 without one.
uint32_t width(uint32_t swizzle) {
  static const uint32_t kWidth[] = {16, 128, 64, 32};
  return kWidth[swizzle];
}

Descriptor decode(Fiber &self, uint64_t bits) {
  const Descriptor d{uint32_t(bits & 0x3fff) << 4, uint32_t(bits >> 16 & 0x3fff) << 4,
                     uint32_t(bits >> 32 & 0x3fff) << 4, uint32_t(bits >> 62)};
  if (bits >> 49 & 7)
    fail(FaultKind::wgmma,
         "descriptor 0x%llx: wanted a base offset of 0 (tiles aligned to the swizzle's pattern)",
         (unsigned long long)bits);
  const uint32_t pattern = 8 * width(d.swizzle);
  if (d.swizzle && d.start % pattern + kRowBytes > width(d.swizzle))
    fail_at(FaultKind::wgmma, d.start,
            "%s: a matrix at shared 0x%x, swizzled by %u bytes: wanted the start of %u aligned "
            "bytes, or a step of 32 along its first row",
            self.instruction, d.start, width(d.swizzle), pattern);
  return d;
}

// The address of 16 bytes of a row: its first or second half of an instruction's k.
uint32_t address_of(const Descriptor &d, uint32_t row, uint32_t half) {
  if (d.swizzle == 0) return d.start + row / 8 * d.stride + half * d.leading + row % 8 * 16;
  const uint32_t linear = d.start + row / 8 * d.stride + row % 8 * width(d.swizzle) + half * 16;
  const uint32_t mask = width(d.swizzle) / 16 - 1;
  return linear ^ (linear >> 7 & mask) << 4;
}

// Calls act(row, half, offset in shared memory) for each 16-byte vector of a matrix.
template <class Act>
void each_vector(Fiber &self, uint64_t bits, int rows, Act act) {
  const Descriptor d = decode(self, bits);
  for (int row = 0; row < rows; ++row)
    for (uint32_t half = 0; half < 2; ++half)
      act(row, half, shared_offset(self, *self.block, address_of(d, uint32_t(row), half), 16, 16));
}

void check_reads(Fiber &self, Warpgroup &group, const WgmmaRecord &record, uint64_t number) {
  WgmmaReader reader{group, uint32_t(number)};
  const auto check = [&](int, uint32_t, uint32_t offset) {
    note_wgmma_read(*group.block, offset, 16, reader);
  };
  if (!record.operands.from) each_vector(self, record.operands.a, kM, check);
  each_vector(self, record.operands.b, record.operands.n, check);
}

void execute(Fiber &self, const WgmmaRecord &record) {
  const WgmmaOperands &operands = record.operands;
  alignas(64) uint32_t a[kM][8], b[256][8];
  const uint8_t *shared = self.block->shared;
  if (operands.from)
    for (int lane = 0; lane < kLanes; ++lane) {
      const int row = lane / 32 * 16 + lane % 32 / 4, t = lane % 4;
      const uint32_t *fragment = record.a[lane];
      a[row][t] = fragment[0], a[row + 8][t] = fragment[1];
      a[row][t + 4] = fragment[2], a[row + 8][t + 4] = fragment[3];
    }
  else
    each_vector(self, operands.a, kM, [&](int row, uint32_t half, uint32_t offset) {
      std::memcpy(&a[row][half * 4], shared + offset, 16);
    });
  each_vector(self, operands.b, operands.n, [&](int row, uint32_t half, uint32_t offset) {
    std::memcpy(&b[row][half * 4], shared + offset, 16);
  });
  uint32_t *values = record.accumulators->values;
  const int n = operands.n;
  if (!operands.keep) std::memset(values, 0, sizeof(uint32_t) * size_t(kM * n));
  if (operands.element == Element::s8)
    multiply_k32(reinterpret_cast<int8_t *>(a), reinterpret_cast<int8_t *>(b),
                 reinterpret_cast<int32_t *>(values), kM, n, n);
  else
    multiply_k16(operands.element == Element::bf16 ? tensor_core::Input::bf16 : tensor_core::Input::f16,
                 reinterpret_cast<uint16_t *>(a), reinterpret_cast<uint16_t *>(b),
                 reinterpret_cast<float *>(values), kM, n, n);
}

bool agree(const WgmmaOperands &a, const WgmmaOperands &b) {
  return a.element == b.element && a.n == b.n && a.a == b.a && a.b == b.b && !a.from == !b.from &&
         a.keep == b.keep;
}

WgmmaRecord *new_record(Fiber &self, const WgmmaOperands &operands, void *registers, Place place) {
  Warpgroup &group = *self.warpgroup;
  auto *record = static_cast<WgmmaRecord *>(zeroed(sizeof(WgmmaRecord)));
  record->operands = operands, record->place = place;
  const int lane = int(self.thread % kLanes);
  for (Accumulators *one : group.accumulators)
    if (one->registers[lane] == registers && one->n == operands.n) record->accumulators = one;
  if (!record->accumulators) record->accumulators = open_accumulators(self, operands);
  group.records.push(record);
  return record;
}

// wgmma.fence, commit_group and wait_group are executed by whole warps. Lanes need not wait for each other
// there: the next wgmma compares the steps that they have taken.
enum Step : uint64_t { kFence = 1, kCommit = 2, kWait = 3 };
void note_step(Fiber &self, uint64_t step, Place place) {
  self.wgmma_steps = (self.wgmma_steps ^ (step << 32 | place.line)) * 0x100000001b3u +
                     reinterpret_cast<uint64_t>(place.file);
}

void check_steps(Fiber &self, WgmmaRecord &record) {
  const uint32_t warp = self.thread % kLanes / 32;
  if (!record.warps[warp]) record.warps[warp] = true, record.steps[warp] = self.wgmma_steps;
  if (record.steps[warp] != self.wgmma_steps)
    fail(FaultKind::divergence,
         "thread %u comes to %s after other wgmma.fence, wgmma.commit_group, wgmma.wait_group than "
         "lanes of its warp (wanted all 32 lanes in each of them)",
         self.thread, self.instruction);
}

Warpgroup &group_of(Fiber &self) {
  if (!self.warpgroup)
    fail(FaultKind::divergence,
         "thread %u belongs to no whole warpgroup: wanted four warps of 32 from a multiple of 128",
         self.thread);
  return *self.warpgroup;
}

}  // namespace

void wgmma_fence(Place place) {
  Fiber &self = enter("wgmma.fence");
  group_of(self);
  note_step(self, kFence, place);
  self.wgmma_fenced = true;
  fence_registers(self);
}

void wgmma_commit_group(Place place) {
  Fiber &self = enter("wgmma.commit_group");
  group_of(self);
  note_step(self, kCommit, place);
  self.wgmma_groups.push(self.wgmma_issued);
}

void wgmma(const WgmmaOperands &operands, void *registers, Place place) {
  Fiber &self = enter(operands.instruction, operands.b & 0x3fff ? (operands.b & 0x3fff) << 4 : 0);
  Warpgroup &group = group_of(self);
  const int lane = int(self.thread % kLanes);
  if (self.wgmma_issued == 0 && !self.wgmma_fenced)
    fail(FaultKind::wgmma, "the first %s of thread %u without wgmma.fence before it", operands.instruction,
         self.thread);
  const uint64_t number = self.wgmma_issued++;
  WgmmaRecord *record = number - group.first_record < group.records.size()
                            ? group.records[number - group.first_record]
                            : new_record(self, operands, registers, place);
  if (!same_place(record->place, place))
    fail(FaultKind::divergence,
         "thread %u is in %s at %s:%u, others of its warpgroup at %s:%u (wanted all 128 threads at one "
         "place: the instruction is .aligned)",
         self.thread, operands.instruction, base_name(place.file), place.line, base_name(record->place.file),
         record->place.line);
  if (!agree(record->operands, operands))
    fail(FaultKind::divergence,
         "thread %u gives %s other operands than its warpgroup: descriptors 0x%llx 0x%llx n %d "
         "keep %d, the others %s 0x%llx 0x%llx n %d keep %d",
         self.thread, operands.instruction, (unsigned long long)operands.a, (unsigned long long)operands.b,
         operands.n, operands.keep, record->operands.instruction, (unsigned long long)record->operands.a,
         (unsigned long long)record->operands.b, record->operands.n, record->operands.keep);
  check_steps(self, *record);
  if (operands.from) {
    take_fragment(self, operands.from, number + 1);
    std::memcpy(record->a[lane], operands.from, sizeof record->a[lane]);
  }
  Accumulators &accumulators = *record->accumulators;
  if (!accumulators.registers[lane])
    take_registers(self, accumulators, registers, operands);
  else if (accumulators.registers[lane] != registers)
    fail(FaultKind::divergence, "thread %u uses other accumulators for %s than its warpgroup", self.thread,
         operands.instruction);
  else
    check_untouched(self, accumulators);
  accumulators.last_issued[lane] = number + 1;
  if (++record->issued != kLanes) return;
  check_reads(self, group, *record, number + 1);
  for (Fiber *fiber = group.waiting.first; fiber; fiber = fiber->next_waiting)
    if (fiber->wgmma_wanted <= number + 1) return wake_all(group.waiting);
}

void wgmma_wait_group(uint32_t pending, Place place) {
  Fiber &self = enter("wgmma.wait_group");
  Warpgroup &group = group_of(self);
  note_step(self, kWait + pending, place);
  if (self.wgmma_groups.size() <= pending) return;
  const size_t done = self.wgmma_groups.size() - pending;
  const uint64_t wanted = self.wgmma_groups[done - 1];
  self.wgmma_groups.remove_first(done);
  self.wgmma_wanted = wanted;
  // All lanes must have issued what is waited for.
  while (group.first_record < wanted && group.records[wanted - 1 - group.first_record]->issued != kLanes)
    park(group.waiting);
  while (group.first_record < wanted) {
    WgmmaRecord *record = group.records[0];
    execute(self, *record);
    std::free(record);
    group.records.remove_first(1);
    ++group.first_record;
  }
  const int lane = int(self.thread % kLanes);
  for (size_t i = 0; i < group.accumulators.size();) {
    Accumulators *one = group.accumulators[i];
    if (one->registers[lane] && one->last_issued[lane] <= wanted) give_back_registers(self, *one);
    bool used = one->here != 0;
    for (size_t k = 0; k < group.records.size() && !used; ++k) used = group.records[k]->accumulators == one;
    if (used) {
      ++i;
      continue;
    }
    std::free(one);
    group.accumulators.remove_unordered(i);
  }
  self.wgmma_waited = wanted;
  forget_fragments(self);
  if (self.clock.on()) self.clock.learn(group.agent, uint32_t(wanted));
}

void check_wgmma_at_exit(Fiber &self) {
  if (self.wgmma_issued > self.wgmma_waited)
    fail(FaultKind::wgmma,
         "thread %u ends with wgmma under way (wanted wgmma.commit_group and wgmma.wait_group)", self.thread);
  Warp &warp = *self.warp;
  if (warp.exited == 0) warp.last_wgmma_steps = self.wgmma_steps;
  if (warp.last_wgmma_steps != self.wgmma_steps)
    fail(FaultKind::divergence,
         "thread %u ends after other wgmma.fence, wgmma.commit_group, wgmma.wait_group than lanes of its "
         "warp (wanted all 32 lanes in each of them)",
         self.thread);
  if (!self.warpgroup || self.warpgroup->first_record + self.warpgroup->records.size() <= self.wgmma_issued)
    return;
  fail(FaultKind::divergence,
       "thread %u ends, and others of its warpgroup have issued a wgmma that it has not", self.thread);
}

void release_wgmma(Warpgroup &group) {
  for (WgmmaRecord *record : group.records) std::free(record);
  for (Accumulators *one : group.accumulators) std::free(one);
  group.records.clear();
  group.accumulators.clear();
}

}  // namespace emulated
