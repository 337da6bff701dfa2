// Allocates the stacks of threads and switches between them.
#include "fiber.hpp"

#include <sys/mman.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

extern "C" void lmhead_emulated_switch(void **save, void *load);

namespace emulated {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;  // instrumented frames are several times larger
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif
// Frames of many threads at equal offsets would share few sets of the first-level cache, which repeat with
// every page. So stacks begin at 32 different offsets, two cache lines apart, and neighbours seven such steps
// apart.
constexpr size_t stagger(uint32_t stack) { return stack * size_t(7 * 128) % 4096; }

size_t stack_stride() { return kStackBytes + size_t(sysconf(_SC_PAGESIZE)); }
uint8_t *stack_bottom(const Worker &worker, uint32_t number) {
  return worker.stacks + stack_stride() * (number + 1) - kStackBytes;
}

}  // namespace

Worker *open_worker() { return static_cast<Worker *>(zeroed(sizeof(Worker))); }

void close_worker(Worker *worker) {
  if (worker->stacks) munmap(worker->stacks, stack_stride() * worker->stack_count);
  std::free(worker);
}

bool reserve_stacks(Worker &worker, uint32_t count) {
  if (count <= worker.stack_count) return true;
  if (worker.stacks) munmap(worker.stacks, stack_stride() * worker.stack_count);
  worker.stacks = nullptr, worker.stack_count = 0;
  void *memory = mmap(nullptr, stack_stride() * count, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  auto *stacks = static_cast<uint8_t *>(memory);
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  for (uint32_t i = 0; i < count; ++i)
    if (mprotect(stacks + stack_stride() * i, page, PROT_NONE) !=
        0) {  // vm.max_map_count: two mappings a stack
      munmap(memory, stack_stride() * count);
      return false;
    }
  worker.stacks = stacks, worker.stack_count = count;
  return true;
}

void prepare_stack(Fiber &fiber, void (*entry)()) {
  uint8_t *bottom = stack_bottom(*fiber.cluster->worker, fiber.stack);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(bottom, kStackBytes);  // frames of a fiber that was never resumed
#endif
  auto top = reinterpret_cast<uintptr_t>(bottom + kStackBytes - stagger(fiber.stack));
  top &= ~uintptr_t(63);
  fiber.stack_top = reinterpret_cast<void *>(top);
  const auto address = reinterpret_cast<uintptr_t>(entry);
#if defined(__x86_64__)
  auto *frame = reinterpret_cast<uintptr_t *>(top) - 8;  // six registers, the entry, and no caller
  std::memset(frame, 0, 8 * sizeof(uintptr_t));
  frame[6] = address;
#elif defined(__aarch64__)
  auto *frame = reinterpret_cast<uintptr_t *>(top - 160);
  std::memset(frame, 0, 160);
  frame[11] = address;  // the link register
#else
#error "the emulated device switches stacks on x86_64 and aarch64 only"
#endif
  fiber.stack_pointer = frame;
}

void switch_to(Fiber &from, Fiber &to) {
  current = &to;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from.exited ? nullptr : &from.asan_stack,
                                 stack_bottom(*to.cluster->worker, to.stack), kStackBytes);
#endif
  lmhead_emulated_switch(&from.stack_pointer, to.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.asan_stack, nullptr, nullptr);
#endif
}

void enter_fibers(Cluster &cluster, Fiber &first) {
  current = &first;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&cluster.worker->host_asan_stack, stack_bottom(*cluster.worker, first.stack),
                                 kStackBytes);
#endif
  lmhead_emulated_switch(&cluster.host_stack_pointer, first.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(cluster.worker->host_asan_stack, nullptr, nullptr);
#endif
}

void leave_fibers(Cluster &cluster) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, cluster.worker->host_bottom, cluster.worker->host_bytes);
#endif
  void *never_resumed;
  lmhead_emulated_switch(&never_resumed, cluster.host_stack_pointer);
  __builtin_unreachable();
}

void arrived_in_fiber([[maybe_unused]] Worker &worker, [[maybe_unused]] bool first) {
#if defined(__SANITIZE_ADDRESS__)
  if (first)
    __sanitizer_finish_switch_fiber(nullptr, &worker.host_bottom, &worker.host_bytes);
  else
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

}  // namespace emulated
