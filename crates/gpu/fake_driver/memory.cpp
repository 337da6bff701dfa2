// Memory of the device and pinned memory of the host, and copies.
#include "driver.hpp"

using namespace fake;

namespace {

size_t used[kDevices] = {};

// Counts an allocation or a free.
int counted() {
  ++here().allocations, here().blocked += collectives_left[current->device] > 0;
  return waits();
}
int allocate(std::map<uint64_t, Memory> &all, uint64_t *address, size_t bytes) {
  if (const int e = counted()) return e;
  if (bytes == 0) return INVALID_VALUE;
  auto *start = static_cast<uint8_t *>(std::aligned_alloc(256, (bytes + 255) / 256 * 256 + 2 * kGuard));
  if (!start) return OUT_OF_MEMORY;
  std::memset(start, kFence, kGuard), std::memset(start + kGuard, kPoison, bytes);
  std::memset(start + kGuard + bytes, kFence, kGuard);
  return all[*address = uint64_t(start + kGuard)] = {{start, std::free}, bytes, current->device}, 0;
}
// Counts a copy from or to the host, or on the device.
Count copied(size_t bytes, bool from_host, bool to_host) {
  return [=](Counts &all) {
    ++all.copies;
    if (from_host != to_host) (to_host ? all.bytes_to_host : all.bytes_to_device) += (long long)bytes;
  };
}
int release(std::map<uint64_t, Memory> &all, uint64_t address) {
  if (!current) return INVALID_CONTEXT;
  if (const int e = counted()) return e;
  const auto found = all.find(address);
  if (found == all.end()) return INVALID_VALUE;
  const Memory memory = found->second;
  drain_all(memory.device);  // as the driver's, which waits for what may use the memory
  const uint8_t *before = memory.start.get(), *behind = before + kGuard + memory.bytes;
  for (size_t i = 0; i < kGuard; ++i)
    if (before[i] != kFence || behind[i] != kFence)
      std::fprintf(stderr, "fake driver: memory beside an allocation of %zu bytes was written to\n",
                   memory.bytes), std::abort();
  // Kernels of other devices may still run that began with it, and those of a lost device: they keep it.
  return all.erase(address), lost[memory.device];
}

}  // namespace

namespace fake {

int allocate_device(uint64_t *address, size_t bytes) {
  if (const int e = usable()) return e;
  const size_t room = size_t(number("FAKE_MEMORY", 80000000000));
  size_t &here = used[current->device];
  if (bytes > room || here + bytes > room) return OUT_OF_MEMORY;
  const int e = allocate(memories, address, bytes);
  return here += e ? 0 : bytes, e;
}
int free_device(uint64_t address) {
  const auto found = memories.find(address);
  if (found == memories.end()) return INVALID_VALUE;
  const auto [start, bytes, device] = found->second;
  const int e = release(memories, address);
  return used[device] -= memories.count(address) ? 0 : bytes, e;
}

}  // namespace fake

extern "C" {

int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
  LOCKED;
  return allocate_device(address, bytes);
}
int cuMemFree_v2(uint64_t address) {
  LOCKED;
  return free_device(address);
}
int cuMemHostAlloc(void **out, size_t bytes, unsigned flags) {
  USABLE;
  return flags ? INVALID_VALUE : allocate(pinned, reinterpret_cast<uint64_t *>(out), bytes);
}
int cuMemFreeHost(void *start) {
  LOCKED;
  // It waits, but what was queued on the memory must have ended before.
  if (current && !lost[current->device] && pending[uint64_t(start)] > 0)
    std::fprintf(stderr, "fake driver: pinned memory was freed while a copy of it was queued\n"),
        std::abort();
  return release(pinned, uint64_t(start));
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
  USABLE;
  return put_counted(stream, [](Counts &all) { ++all.memsets; }, [=] {
    return inside(to, bytes) ? (std::memset((void *)to, value, bytes), 0) : ILLEGAL_ADDRESS;
  });
}
int cuMemsetD32Async(uint64_t to, unsigned value, size_t words, void *stream) {
  USABLE;
  if (to % 4) return INVALID_VALUE;
  if (FILE *log = std::getenv("FAKE_LOG") ? std::fopen(std::getenv("FAKE_LOG"), "a") : nullptr)
    std::fprintf(log, "%zu words set to %u\n", words, value), std::fclose(log);
  return put_counted(stream, [](Counts &all) { ++all.memsets; }, [=] {
    if (!inside(to, 4 * words)) return int(ILLEGAL_ADDRESS);
    for (size_t i = 0; i < words; ++i) ((unsigned *)to)[i] = value;
    return 0;
  });
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  USABLE;
  return put_copy(stream, from, bytes, copied(bytes, true, false), [=] {
    return inside(to, bytes) ? (std::memcpy((void *)to, from, bytes), 0) : ILLEGAL_ADDRESS;
  });
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  USABLE;
  return put_copy(stream, to, bytes, copied(bytes, false, true), [=] {
    return inside(from, bytes) ? (std::memcpy(to, (void *)from, bytes), 0) : ILLEGAL_ADDRESS;
  });
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  USABLE;
  return put_counted(stream, copied(bytes, false, false), [=] {
    if (!inside(to, bytes) || !inside(from, bytes)) return int(ILLEGAL_ADDRESS);
    return std::memmove((void *)to, (void *)from, bytes), 0;
  });
}

// CUDA_MEMCPY2D, without arrays.
struct Side2d {
  size_t x, y;
  int type;  // 1: host, 2: device
  uint8_t *host;
  uint64_t device;
  void *array;
  size_t pitch;
  uint8_t *start() const { return type == 1 ? host : reinterpret_cast<uint8_t *>(device); }
  bool is_inside(size_t width, size_t height) const {
    return type == 1 || inside(device, (height - 1) * pitch + width);
  }
};
struct Copy2d {
  Side2d from, to;
  size_t width, height;
};
int cuMemcpy2DAsync_v2(const Copy2d *copy, void *stream) {
  USABLE;
  const Copy2d all = *copy;
  const Side2d &from = all.from, &to = all.to;
  const auto legal = [&](const Side2d &side) {
    return (side.type == 1 || side.type == 2) && !side.x && !side.y && side.pitch >= all.width;
  };
  if (!legal(from) || !legal(to) || !all.width || !all.height) return INVALID_VALUE;
  const auto work = [all] {
    if (!all.from.is_inside(all.width, all.height) || !all.to.is_inside(all.width, all.height))
      return int(ILLEGAL_ADDRESS);
    for (size_t row = 0; row < all.height; ++row)
      std::memcpy(all.to.start() + row * all.to.pitch, all.from.start() + row * all.from.pitch, all.width);
    return 0;
  };
  const Count count = copied(all.width * all.height, from.type == 1, to.type == 1);
  const Side2d &host = from.type == 1 ? from : to;
  const size_t bytes = (all.height - 1) * host.pitch + all.width;
  return host.type == 1 ? put_copy(stream, host.host, bytes, count, work) : put_counted(stream, count, work);
}

}  // extern "C"
