// Global memory: the buffers that the driver registered, and nothing else.
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "fiber.hpp"

namespace emulated {
namespace {

// The last buffer at or below the address; null: none.
const Allocation *below(const Launch &launch, uint64_t address) {
  uint64_t low = 0, high = launch.allocation_count;
  while (low < high) {
    const uint64_t middle = (low + high) / 2;
    (launch.allocations[middle].address <= address ? low = middle + 1 : high = middle);
  }
  return low == 0 ? nullptr : &launch.allocations[low - 1];
}

// What a launch has done to a byte. kConstant: loaded it by .nc. kFlag: accessed it by acquire or release.
// kOrdinary: stored to it by an ordinary store.
enum Mark : uint8_t { kStored = 1, kRead = 2, kConstant = 4, kFlag = 8, kOrdinary = 16 };
constexpr size_t kEarlyLimit = 1 << 20;

// Sets marks on bytes and returns all that were there before. OS threads do this concurrently; whoever marks
// a byte last sees the others' marks.
uint8_t mark(uint8_t *marks, uint64_t offset, uint64_t bytes, uint8_t set) {
  uint64_t seen = 0;
  for (uint64_t at = offset, end = offset + bytes; at < end;) {
    const uint64_t first = at / 8 * 8, next = std::min(first + 8, end);
    const uint64_t mask = ~uint64_t(0) >> (64 - 8 * (next - at)) << (8 * (at - first));
    const uint64_t more = set * uint64_t(0x0101010101010101) & mask;
    auto *word = reinterpret_cast<uint64_t *>(marks + first);
    uint64_t old = __atomic_load_n(word, __ATOMIC_RELAXED);
    if ((old & more) != more) old = __atomic_fetch_or(word, more, __ATOMIC_RELAXED);
    seen |= old & mask;
    at = next;
  }
  seen |= seen >> 32, seen |= seen >> 16, seen |= seen >> 8;
  return uint8_t(seen);
}

// The marks of the launch before with which the access conflicts; 0: none.
uint8_t primary_marks(const Launch &launch, const Allocation &buffer, uint64_t offset, uint64_t bytes,
                      Access access) {
  uint8_t *noted = launch.primary[&buffer - launch.allocations].marks;
  if (!noted) return 0;  // the launch before was without this buffer, or without checks
  const uint8_t marks = mark(noted, offset, bytes, 0);
  return marks & (writes(access) ? kStored | kRead | kConstant : kStored);
}

[[noreturn]] void too_early(Fiber &self, const Allocation &buffer, uint64_t offset, Access access,
                            uint8_t marks) {
  fail_in(&self, FaultKind::dependency, buffer.address + offset,
          "%s offset %llu of buffer %u, which the kernel before %s "
          "(wanted griddepcontrol.wait first, and a barrier for threads that leave it to another one)",
          writes(access) ? "a store to" : "a load of", (unsigned long long)offset, buffer.number,
          marks & kStored ? "stores to" : "reads");
}

}  // namespace

bool knows_primary(const Fiber &self) {
  const Cluster &cluster = *self.cluster;
  return self.clock.on() ? self.clock.plain[cluster.primary_agent] != 0 : cluster.primary_done;
}

const Allocation &global_buffer(Fiber &self, const void *pointer, uint64_t bytes, uint32_t alignment,
                                Access access) {
  const Launch &launch = *self.cluster->launch;
  const auto address = reinterpret_cast<uint64_t>(pointer);
  const Allocation *buffer = below(launch, address);
  const uint64_t offset = buffer ? address - buffer->address : 0;
  if (!buffer || offset > buffer->bytes || buffer->bytes - offset < bytes) {
    if (!buffer)
      fail_at(FaultKind::global_bounds, address,
              "%llu bytes at global 0x%llx, below every buffer of the launch", (unsigned long long)bytes,
              (unsigned long long)address);
    fail_at(FaultKind::global_bounds, address,
            "%llu bytes at global 0x%llx: the nearest buffer is number %u with %llu "
            "bytes, and this is offset %llu of it",
            (unsigned long long)bytes, (unsigned long long)address, buffer->number,
            (unsigned long long)buffer->bytes, (unsigned long long)offset);
  }
  if (address % alignment != 0)
    fail_at(FaultKind::misaligned, address,
            "%s at global 0x%llx (offset %llu of buffer %u): wanted a multiple of %u", self.instruction,
            (unsigned long long)address, (unsigned long long)offset, buffer->number, alignment);
  if (writes(access) && !buffer->writable)
    fail_at(FaultKind::global_bounds, address,
            "a write to offset %llu of buffer %u, which was registered for reading only",
            (unsigned long long)offset, buffer->number);
  return *buffer;
}

void note_global(Fiber &self, const Allocation &buffer, uint64_t offset, uint64_t bytes, Access access) {
  Cluster &cluster = *self.cluster;
  const Launch &launch = *cluster.launch;
  uint8_t seen = 0, other = 0;  // what the access must not meet
  switch (access) {
    case Access::read:
      // Flags are words: longer loads are marked only where the launch behind needs it.
      if (launch.overlapped || bytes <= 4)
        other = mark(buffer.marks, offset, bytes, launch.overlapped ? kRead : 0) & kFlag;
      break;
    case Access::constant: seen = mark(buffer.marks, offset, bytes, kConstant) & (kStored | kFlag); break;
    case Access::write:
      seen = mark(buffer.marks, offset, bytes, kStored | kOrdinary) & (kConstant | kFlag);
      other = seen & kFlag, seen &= kConstant;
      break;
    case Access::atomic: seen = mark(buffer.marks, offset, bytes, kStored) & kConstant; break;
    case Access::acquire:
    case Access::release:
      seen = mark(buffer.marks, offset, bytes, access == Access::acquire ? kFlag : kFlag | kStored);
      other = seen & kOrdinary, seen &= kConstant;
      break;
  }
  if (other)
    fail_at(
        FaultKind::race, buffer.address + offset,
        "offset %llu of buffer %u is loaded by ld.acquire or stored to by .release in this launch, and %s "
        "(wanted ld.acquire and st.release or red.release of a word that tells others of data)",
        (unsigned long long)offset, buffer.number,
        other & kFlag ? "this access is an ordinary one" : "an ordinary store went there");
  if (seen)
    fail_at(FaultKind::dependency, buffer.address + offset,
            "offset %llu of buffer %u is loaded by .nc and stored to in one "
            "launch (wanted ld.global for what may change while the kernel runs)",
            (unsigned long long)offset, buffer.number);
  if (launch.in_turn && writes(access) && !knows_primary(self))
    fail_at(FaultKind::dependency, buffer.address + offset,
            "a store to offset %llu of buffer %u before "
            "griddepcontrol.wait: any kernel before may still use it (wanted the wait first, and a barrier "
            "for threads that leave it to another one)",
            (unsigned long long)offset, buffer.number);
  if (!launch.primary) return;
  if (access != Access::constant && knows_primary(self)) return;
  if (const uint8_t marks = primary_marks(launch, buffer, offset, bytes, access)) {
    if (!knows_primary(self)) too_early(self, buffer, offset, access, marks);
    fail_at(FaultKind::dependency, buffer.address + offset,
            "offset %llu of buffer %u, which the kernel before stores to, is "
            "loaded by .nc: such loads may be executed before griddepcontrol.wait (wanted ld.global)",
            (unsigned long long)offset, buffer.number);
  }
  if (cluster.primary_done) return;  // its marks are complete
  // The launch before may still come to these bytes: to be compared again when it has ended.
  cluster.early.push({&buffer, offset, bytes, access, &self, self.instruction});
  if (cluster.early.size() >= kEarlyLimit) check_against_primary(cluster);
}

void check_against_primary(Cluster &cluster) {
  const Launch &launch = *cluster.launch;
  if (!launch.primary || cluster.primary_done) return;
  if (!launch.host.wait_for_primary(launch.host.context)) {  // its fault is the one to report
    cluster.failed = true;
    leave_fibers(cluster);
  }
  cluster.primary_done = true;
  for (const EarlyAccess &early : cluster.early)
    if (const uint8_t marks = primary_marks(launch, *early.buffer, early.offset, early.bytes, early.access)) {
      early.fiber->instruction = early.instruction;
      too_early(*early.fiber, *early.buffer, early.offset, early.access, marks);
    }
  cluster.early.clear();
}

void ld_global(const char *instruction, const void *address, void *to, uint32_t bytes) {
  Fiber &self = enter(instruction, reinterpret_cast<uint64_t>(address));
  check_global(self, address, bytes, bytes, Access::read);
  std::memcpy(to, address, bytes);
  if (self.cluster->instructions % 64 == 0) yield();  // it may be waiting for what another thread stores
}

void ld_global_nc(const char *instruction, const void *address, void *to, uint32_t bytes) {
  Fiber &self = enter(instruction, reinterpret_cast<uint64_t>(address));
  check_global(self, address, bytes, bytes, Access::constant);
  std::memcpy(to, address, bytes);
}

void st_global(const char *instruction, void *address, const void *from, uint32_t bytes) {
  Fiber &self = enter(instruction, reinterpret_cast<uint64_t>(address));
  check_values(self, from, bytes);
  check_global(self, address, bytes, bytes, Access::write);
  std::memcpy(address, from, bytes);
}

uint32_t ld_acquire(const char *instruction, const void *address) {
  Fiber &self = enter(instruction, reinterpret_cast<uint64_t>(address));
  check_global(self, address, 4, 4, Access::acquire);
  self.acquired = true;
  const uint32_t v = __atomic_load_n(static_cast<const uint32_t *>(address), __ATOMIC_ACQUIRE);
  yield();  // it may be waiting for what another thread stores
  return v;
}

void st_release(const char *instruction, void *address, uint32_t v) {
  Fiber &self = enter(instruction, reinterpret_cast<uint64_t>(address));
  check_values(self, &v, 4);
  check_global(self, address, 4, 4, Access::release);
  __atomic_store_n(static_cast<uint32_t *>(address), v, __ATOMIC_RELEASE);
  yield();  // others may see the flag before this thread goes on
}

void red_add_release(const char *instruction, void *address, uint32_t v) {
  Fiber &self = enter(instruction, reinterpret_cast<uint64_t>(address));
  check_values(self, &v, 4);
  check_global(self, address, 4, 4, Access::release);
  __atomic_fetch_add(static_cast<uint32_t *>(address), v, __ATOMIC_RELEASE);
  yield();
}

void fence_proxy_async_global() {
  Fiber &self = enter("fence.proxy.async.global");
  self.acquired = false;
}

uint64_t globaltimer() {
  const Fiber &self = enter("globaltimer");
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  yield();  // a thread that reads the clock may be waiting for another
  // Or for a kernel of another rank, whose OS thread may have no core.
  if (self.cluster->launch->kernel->waits_for_peers) usleep(50);
  // It stands still for about a microsecond, as a GPU's does.
  return (uint64_t(now.tv_sec) * 1000000000 + uint64_t(now.tv_nsec)) & ~uint64_t(1023);
}

namespace {

template <class T>
T atomically(const char *instruction, void *address, Atomic operation, T v) {
  Fiber &self = enter(instruction, reinterpret_cast<uint64_t>(address));
  check_values(self, &v, sizeof v);
  check_global(self, address, sizeof(T), sizeof(T), Access::atomic);
  auto *word = static_cast<T *>(address);
  T old = __atomic_load_n(word, __ATOMIC_SEQ_CST), fresh;
  do {
    switch (operation) {
      case Atomic::add: fresh = old + v; break;
      case Atomic::max: fresh = std::max(old, v); break;
      case Atomic::bit_or: fresh = old | v; break;
      default: fresh = v; break;
    }
  } while (!__atomic_compare_exchange_n(word, &old, fresh, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  yield();  // others may come between an atomic and what is made of it
  return old;
}

}  // namespace

uint32_t atom_u32(const char *instruction, void *address, Atomic operation, uint32_t v) {
  return atomically(instruction, address, operation, v);
}
uint64_t atom_u64(const char *instruction, void *address, Atomic operation, uint64_t v) {
  return atomically(instruction, address, operation, v);
}
uint32_t atom_cas_u32(const char *instruction, void *address, uint32_t compare, uint32_t v) {
  Fiber &self = enter(instruction, reinterpret_cast<uint64_t>(address));
  check_values(self, &v, sizeof v);
  check_global(self, address, 4, 4, Access::atomic);
  __atomic_compare_exchange_n(static_cast<uint32_t *>(address), &compare, v, false, __ATOMIC_SEQ_CST,
                              __ATOMIC_SEQ_CST);
  yield();
  return compare;
}

void fence_acq_rel_gpu() {
  enter("fence.acq_rel.gpu");
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

}  // namespace emulated
