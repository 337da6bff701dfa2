// Global memory: the buffers that the driver registered, and nothing else.
#include <algorithm>

#include "machine.hpp"

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

// Widens [low, high) of stored bytes; other OS threads do the same.
void note_stored(const Allocation &buffer, uint64_t begin, uint64_t end) {
  uint64_t low = __atomic_load_n(&buffer.written[0], __ATOMIC_RELAXED);
  while (begin < low && !__atomic_compare_exchange_n(&buffer.written[0], &low, begin, true, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {
  }
  uint64_t high = __atomic_load_n(&buffer.written[1], __ATOMIC_RELAXED);
  while (end > high && !__atomic_compare_exchange_n(&buffer.written[1], &high, end, true, __ATOMIC_RELAXED,
                                                    __ATOMIC_RELAXED)) {
  }
}

}  // namespace

void check_global(Fiber &self, const void *pointer, uint64_t bytes, uint32_t alignment, bool write) {
  const Launch &launch = *self.cluster->launch;
  const auto address = reinterpret_cast<uint64_t>(pointer);
  const Allocation *buffer = below(launch, address);
  const uint64_t offset = buffer ? address - buffer->address : 0;
  if (!buffer || offset > buffer->bytes || buffer->bytes - offset < bytes) {
    if (!buffer) fail_at(FaultKind::global_bounds, address, "%llu bytes at global 0x%llx, below every buffer of the launch",
                         (unsigned long long)bytes, (unsigned long long)address);
    fail_at(FaultKind::global_bounds, address, "%llu bytes at global 0x%llx: the nearest buffer is number %u with %llu "
            "bytes, and this is offset %llu of it", (unsigned long long)bytes, (unsigned long long)address,
            buffer->number, (unsigned long long)buffer->bytes, (unsigned long long)offset);
  }
  if (address % alignment != 0)
    fail_at(FaultKind::misaligned, address, "%s at global 0x%llx (offset %llu of buffer %u): wanted a multiple of %u",
            self.instruction, (unsigned long long)address, (unsigned long long)offset, buffer->number, alignment);
  if (write && !buffer->writable)
    fail_at(FaultKind::global_bounds, address, "a write to offset %llu of buffer %u, which was registered for reading only",
            (unsigned long long)offset, buffer->number);
  if (launch.primary && !self.cluster->primary_done) {
    const uint64_t *written = launch.primary[buffer - launch.allocations].written;
    const uint64_t low = __atomic_load_n(&written[0], __ATOMIC_RELAXED);
    const uint64_t high = __atomic_load_n(&written[1], __ATOMIC_RELAXED);
    if (offset < high && low < offset + bytes)
      fail_at(FaultKind::dependency, address, "offset %llu of buffer %u belongs to what the kernel before stores (wanted "
              "griddepcontrol.wait first)", (unsigned long long)offset, buffer->number);
  }
  if (write && buffer->written) note_stored(*buffer, offset, offset + bytes);
}

void ld_global(const char *instruction, const void *address, void *to, uint32_t bytes) {
  Fiber &self = enter(instruction, reinterpret_cast<uint64_t>(address));
  check_global(self, address, bytes, bytes, false);
  std::memcpy(to, address, bytes);
  if (self.cluster->instructions % 64 == 0) yield();  // it may be waiting for what another thread stores
}

void st_global(const char *instruction, void *address, const void *from, uint32_t bytes) {
  Fiber &self = enter(instruction, reinterpret_cast<uint64_t>(address));
  check_global(self, address, bytes, bytes, true);
  std::memcpy(address, from, bytes);
}

namespace {

template <class T>
T atomically(const char *instruction, void *address, Atomic operation, T v) {
  Fiber &self = enter(instruction, reinterpret_cast<uint64_t>(address));
  check_global(self, address, sizeof(T), sizeof(T), true);
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
  check_global(self, address, 4, 4, true);
  __atomic_compare_exchange_n(static_cast<uint32_t *>(address), &compare, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  yield();
  return compare;
}

void fence_acq_rel_gpu() {
  enter("fence.acq_rel.gpu");
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

}  // namespace emulated
