// A libcuda.so without a GPU: device memory is the host's, and kernels run on the emulated device, whose objects are linked into
// this library. Only the functions that the crate uses; ABI of the CUDA driver API.
//
// It is stricter than a driver where that finds mistakes: nothing runs before somebody waits for its stream, so what is read,
// reused or freed too early shows; memory is poisoned and has guard zones; what needs a context fails without one.
//
// What it says comes from the environment:
//   FAKE_VERSION FAKE_DEVICES FAKE_CAPABILITY (90)  what there is
//   FAKE_MEMORY                                     bytes of device memory
//   FAKE_INIT FAKE_LOAD FAKE_CAPTURE                error codes of cuInit, cuModuleLoadData, cuGraphInstantiate
//   FAKE_LAUNCH, FAKE_RUN                           error codes of a launch, of a kernel that runs; from number FAKE_FROM on (0)
//   FAKE_LOG                                        launches are written to that file instead of run
//   FAKE_ENDS                                       at the end, what was not given back is written to that file
#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "emulated/fiber.hpp"
#include "emulated/machine.hpp"

extern "C" {
int lmhead_emulated_check_launch(const emulated::Launch *launch, emulated::Fault *fault);
int lmhead_emulated_run_cluster(emulated::Worker *worker, const emulated::Launch *launch, uint64_t number,
                                emulated::Fault *fault);
}

namespace {

enum Error {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, INVALID_CONTEXT = 201, INVALID_HANDLE = 400,
  NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
};

long long number(const char *name, long long otherwise) {
  const char *text = std::getenv(name);
  return text ? std::atoll(text) : otherwise;
}

using Work = std::function<int()>;

struct Graph {
  std::vector<Work> work;
  bool broken = false;
};
struct Stream {
  std::deque<Work> queue;
  Graph *recording = nullptr;
};
struct Event {
  Stream *on = nullptr;
  bool reached = false;
  std::chrono::steady_clock::time_point when;
};
struct Context {
  int device;
};
struct Function {
  const emulated::Kernel *kernel;
  uint32_t shared_limit = 48 * 1024;
  int carveout = -1;  // the driver chooses
};
struct Memory {
  uint8_t *start;
  size_t bytes;
};

constexpr size_t kGuard = 256;
constexpr uint8_t kPoison = 0xcb, kFence = 0xfd;

// Everything is guarded by one lock; the driver API may be called from any thread.
std::recursive_mutex lock;
#define LOCKED const std::lock_guard<std::recursive_mutex> guard(lock)
std::map<uint64_t, Memory> memories;
std::set<Stream *> streams;
std::set<void *> graphs, events, modules;
std::map<std::string, Function *> functions;
Context contexts[16];
int retained = 0;
size_t used = 0;
long long launches = 0, runs = 0;
int lost = SUCCESS;  // after a kernel failed, everything does
Stream default_stream;
thread_local Context *current = nullptr;
thread_local Stream *recording = nullptr;

// Of every call that needs a context.
int usable() { return !current ? INVALID_CONTEXT : lost; }
#define USABLE \
  LOCKED;      \
  if (const int e = usable()) return e

// Of every call that may wait: a thread that records must not.
int waits() {
  if (!recording) return SUCCESS;
  recording->recording->broken = true;
  return CAPTURE_UNSUPPORTED;
}

Stream *known(void *handle) {
  if (!handle) return &default_stream;
  auto *stream = static_cast<Stream *>(handle);
  return streams.count(stream) ? stream : nullptr;
}

int put(void *handle, Work work) {
  Stream *stream = known(handle);
  if (!stream) return INVALID_HANDLE;
  if (stream->recording)
    stream->recording->work.push_back(std::move(work));
  else
    stream->queue.push_back(std::move(work));
  return SUCCESS;
}

int drain(Stream &stream) {
  while (!lost && !stream.queue.empty()) {
    const Work work = std::move(stream.queue.front());
    stream.queue.pop_front();
    lost = work();
  }
  return lost;
}
int drain_all() {
  drain(default_stream);
  for (Stream *stream : streams) drain(*stream);
  return lost;
}

// The bytes are of one allocation.
bool inside(uint64_t address, size_t bytes) {
  auto next = memories.upper_bound(address);
  if (next == memories.begin()) return false;
  const auto &[start, memory] = *--next;
  return address - start <= memory.bytes && bytes <= memory.bytes - (address - start);
}

int run(const emulated::Launch &shape, const std::vector<uint8_t> &params) {
  if (const int error = int(number("FAKE_RUN", 0)); error && runs++ >= number("FAKE_FROM", 0)) return error;
  static emulated::Worker *worker = emulated::open_worker();
  static emulated::Fault fault;
  static uint64_t seed = 0;
  std::vector<emulated::Allocation> table;
  for (const auto &[address, memory] : memories)
    table.push_back({address, memory.bytes, 1, uint32_t(table.size()), nullptr});
  void *aligned = nullptr;
  if (posix_memalign(&aligned, 64, params.size() + 64)) return OUT_OF_MEMORY;
  std::memcpy(aligned, params.data(), params.size());
  emulated::Launch launch = shape;
  launch.params = aligned, launch.seed = seed++, launch.checks = 1, launch.instruction_limit = uint64_t(1) << 32;
  launch.allocations = table.data(), launch.allocation_count = table.size();
  launch.host.wait_for_primary = [](void *) { return 0; };
  launch.host.block_triggered = [](void *) {};
  launch.host.trace = [](void *, const char *, uint64_t) {};
  uint64_t clusters = 1;
  for (int i = 0; i < 3; ++i) clusters *= launch.grid[i] / launch.cluster[i];
  bool failed = lmhead_emulated_check_launch(&launch, &fault) != 0;
  for (uint64_t i = 0; !failed && i < clusters; ++i)
    failed = lmhead_emulated_run_cluster(worker, &launch, i, &fault) == 1;
  std::free(aligned);
  if (failed) std::fprintf(stderr, "fake driver: kernel %s: %s\n", launch.kernel->name, fault.text);
  return failed ? LAUNCH_FAILED : SUCCESS;
}

// What was not given back.
struct End {
  ~End() {
    const char *path = std::getenv("FAKE_ENDS");
    FILE *file = path ? std::fopen(path, "w") : nullptr;
    if (!file) return;
    std::fprintf(file, "%zu allocations, %zu streams, %zu graphs, %zu events, %zu modules, %d contexts\n", memories.size(),
                 streams.size(), graphs.size(), events.size(), modules.size(), retained);
    std::fclose(file);
  }
} end;

}  // namespace

extern "C" {

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : int(number("FAKE_INIT", 0)); }
int cuDriverGetVersion(int *version) { return *version = int(number("FAKE_VERSION", 13000)), 0; }
int cuGetErrorName(int error, const char **name) {
  static const std::map<int, const char *> names = {
      {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"}, {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
      {100, "CUDA_ERROR_NO_DEVICE"}, {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
      {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"}, {209, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
      {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"}, {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"}, {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
      {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
      {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}};
  const auto found = names.find(error);
  return *name = found == names.end() ? "CUDA_ERROR_OTHER" : found->second, 0;
}
int cuGetErrorString(int error, const char **text) { return *text = error ? "the driver's own words" : "no error", 0; }

int cuDeviceGetCount(int *count) { return *count = int(number("FAKE_DEVICES", 1)), 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char *name, int size, int device) { return std::snprintf(name, size, "Fake %d", device), 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = size_t(number("FAKE_MEMORY", 80000000000)), 0; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
  const int capability = int(number("FAKE_CAPABILITY", 90));
  switch (attribute) {
    case 75: *value = capability / 10; break;                        // COMPUTE_CAPABILITY_MAJOR
    case 76: *value = capability % 10; break;                        // COMPUTE_CAPABILITY_MINOR
    case 97: *value = capability == 86 ? 101376 : 232448; break;     // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    case 81: *value = capability == 86 ? 102400 : 233472; break;     // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
    case 16: *value = capability == 86 ? 84 : 132; break;            // MULTIPROCESSOR_COUNT
    case 38: *value = 50 << 20; break;                               // L2_CACHE_SIZE
    default: *value = 1;
  }
  return 0;
}

int cuDevicePrimaryCtxRetain(Context **out, int device) {
  LOCKED;
  return ++retained, contexts[device].device = device, *out = &contexts[device], 0;
}
int cuDevicePrimaryCtxRelease_v2(int) {
  LOCKED;
  return --retained, 0;
}
int cuCtxGetCurrent(Context **out) { return *out = current, 0; }
int cuCtxSetCurrent(Context *context) { return current = context, 0; }
int cuCtxGetDevice(int *device) { return current ? (*device = current->device, 0) : INVALID_CONTEXT; }

int cuStreamCreate(Stream **out, unsigned) {
  USABLE;
  return streams.insert(*out = new Stream), 0;
}
int cuStreamDestroy_v2(Stream *stream) {
  LOCKED;
  if (!current || !streams.count(stream)) return INVALID_HANDLE;
  drain(*stream);
  return streams.erase(stream), delete stream, lost;
}
int cuStreamSynchronize(void *handle) {
  USABLE;
  if (const int e = waits()) return e;
  Stream *stream = known(handle);
  return stream ? drain(*stream) : INVALID_HANDLE;
}

int cuStreamBeginCapture_v2(void *handle, int) {
  USABLE;
  Stream *stream = known(handle);
  if (!stream || stream == &default_stream || stream->recording || recording) return INVALID_VALUE;
  stream->recording = new Graph, graphs.insert(stream->recording), recording = stream;
  return 0;
}
int cuStreamEndCapture(void *handle, Graph **out) {
  USABLE;
  Stream *stream = known(handle);
  if (!stream || !stream->recording || recording != stream) return INVALID_VALUE;
  Graph *graph = stream->recording;
  stream->recording = nullptr, recording = nullptr;
  if (!graph->broken) return *out = graph, 0;
  return graphs.erase(graph), delete graph, *out = nullptr, CAPTURE_INVALIDATED;
}
int cuGraphInstantiateWithFlags(Graph **out, Graph *graph, unsigned long long) {
  USABLE;
  if (const int e = int(number("FAKE_CAPTURE", 0))) return e;
  return *out = new Graph(*graph), graphs.insert(*out), 0;
}
int cuGraphLaunch(Graph *graph, void *stream) {
  USABLE;
  for (const Work &work : graph->work)
    if (const int e = put(stream, work)) return e;
  return 0;
}
int cuGraphDestroy(Graph *graph) {
  LOCKED;
  return graphs.erase(graph), delete graph, 0;
}
int cuGraphExecDestroy(Graph *graph) { return cuGraphDestroy(graph); }

int cuEventCreate(Event **out, unsigned) {
  USABLE;
  return *out = new Event, events.insert(*out), 0;
}
int cuEventDestroy_v2(Event *event) {
  LOCKED;
  drain_all();
  return events.erase(event), delete event, 0;
}
int cuEventRecord(Event *event, void *stream) {
  USABLE;
  event->on = known(stream), event->reached = false;
  return put(stream, [event] { return event->reached = true, event->when = std::chrono::steady_clock::now(), 0; });
}
int cuEventSynchronize(Event *event) {
  USABLE;
  if (const int e = waits()) return e;
  return event->on ? drain(*event->on) : 0;
}
int cuEventElapsedTime(float *milliseconds, const Event *from, const Event *to) {
  USABLE;
  if (!from->reached || !to->reached) return 600;
  return *milliseconds = std::chrono::duration<float, std::milli>(to->when - from->when).count(), 0;
}

int cuMemAlloc_v2(uint64_t *address, size_t bytes) {
  USABLE;
  if (const int e = waits()) return e;
  if (bytes == 0) return INVALID_VALUE;
  const size_t room = size_t(number("FAKE_MEMORY", 80000000000));
  if (bytes > room || used + bytes > room) return OUT_OF_MEMORY;
  auto *start = static_cast<uint8_t *>(std::aligned_alloc(256, (bytes + 255) / 256 * 256 + 2 * kGuard));
  if (!start) return OUT_OF_MEMORY;
  std::memset(start, kFence, kGuard), std::memset(start + kGuard, kPoison, bytes);
  std::memset(start + kGuard + bytes, kFence, kGuard);
  used += bytes;
  return memories[*address = uint64_t(start + kGuard)] = {start, bytes}, 0;
}
int cuMemFree_v2(uint64_t address) {
  LOCKED;
  if (!current) return INVALID_CONTEXT;
  if (const int e = waits()) return e;
  drain_all();  // as the driver's, which waits for what may use the memory
  const auto found = memories.find(address);
  if (found == memories.end()) return INVALID_VALUE;
  const Memory memory = found->second;
  for (size_t i = 0; i < kGuard; ++i)
    if (memory.start[i] != kFence || memory.start[kGuard + memory.bytes + i] != kFence)
      std::fprintf(stderr, "fake driver: memory beside an allocation of %zu bytes was written to\n", memory.bytes), std::abort();
  used -= memory.bytes;
  return memories.erase(found), std::free(memory.start), lost;
}
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
  USABLE;
  return put(stream, [=] { return inside(to, bytes) ? (std::memset((void *)to, value, bytes), 0) : ILLEGAL_ADDRESS; });
}
int cuMemsetD32Async(uint64_t to, unsigned value, size_t words, void *stream) {
  USABLE;
  if (to % 4) return INVALID_VALUE;
  if (FILE *log = std::getenv("FAKE_LOG") ? std::fopen(std::getenv("FAKE_LOG"), "a") : nullptr)
    std::fprintf(log, "%zu words set to %u\n", words, value), std::fclose(log);
  return put(stream, [=] {
    if (!inside(to, 4 * words)) return int(ILLEGAL_ADDRESS);
    for (size_t i = 0; i < words; ++i) ((unsigned *)to)[i] = value;
    return 0;
  });
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  USABLE;
  return put(stream, [=] { return inside(to, bytes) ? (std::memcpy((void *)to, from, bytes), 0) : ILLEGAL_ADDRESS; });
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  USABLE;
  return put(stream, [=] { return inside(from, bytes) ? (std::memcpy(to, (void *)from, bytes), 0) : ILLEGAL_ADDRESS; });
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  USABLE;
  return put(stream, [=] {
    if (!inside(to, bytes) || !inside(from, bytes)) return int(ILLEGAL_ADDRESS);
    return std::memmove((void *)to, (void *)from, bytes), 0;
  });
}

int cuModuleLoadData(void **module, const void *image) {
  USABLE;
  if (const int e = waits()) return e;
  // The magic number of a fatbin.
  if (*(const uint32_t *)image != 0xba55ed50u) return INVALID_IMAGE;
  if (const int e = int(number("FAKE_LOAD", 0))) return e;
  return *module = new char, modules.insert(*module), 0;
}
int cuModuleUnload(void *module) {
  LOCKED;
  return modules.erase(module) ? (delete static_cast<char *>(module), 0) : int(INVALID_HANDLE);
}
int cuModuleGetFunction(Function **out, void *module, const char *name) {
  USABLE;
  if (!modules.count(module)) return INVALID_HANDLE;
  // This library's own symbols: the program has those kernels too, and its own device for them.
  static void *self = [] {
    Dl_info info;
    return dladdr((void *)cuInit, &info) ? dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD) : nullptr;
  }();
  auto *kernel = static_cast<const emulated::Kernel *>(dlsym(self, (std::string("lmhead_kernel_") + name).c_str()));
  if (!kernel) return NOT_FOUND;
  Function *&function = functions[name];
  if (!function) function = new Function{kernel};
  return *out = function, 0;
}
int cuFuncGetAttribute(int *value, int attribute, const Function *function) {
  *value = attribute == 0   ? int(function->kernel->max_threads)  // MAX_THREADS_PER_BLOCK
           : attribute == 1 ? 1024                                // SHARED_SIZE_BYTES
           : attribute == 4 ? 107                                 // NUM_REGS
                            : 0;
  return 0;
}
int cuFuncSetAttribute(Function *function, int attribute, int value) {
  if (attribute == 9 && value >= -1 && value <= 100) return function->carveout = value, 0;  // PREFERRED_SHARED_MEMORY_CARVEOUT
  if (attribute != 8 || value < 0 || value > 232448 - 1024) return INVALID_VALUE;           // MAX_DYNAMIC_SHARED_SIZE_BYTES
  return function->shared_limit = uint32_t(value), 0;
}
int cuFuncGetParamInfo(const Function *function, size_t index, size_t *offset, size_t *size) {
  return index ? INVALID_VALUE : (*offset = 0, *size = function->kernel->params_bytes, 0);
}

struct Attribute {
  int id;
  char pad[4];
  int value[16];
};
struct Config {
  unsigned grid[3], block[3], shared;
  void *stream;
  const Attribute *attributes;
  unsigned attribute_count;
};
int cuLaunchKernelEx(const Config *config, const Function *function, void **params, void **extra) {
  USABLE;
  if (extra) return INVALID_VALUE;
  emulated::Launch launch = {};
  launch.kernel = function->kernel, launch.dynamic_shared = config->shared, launch.shared_limit = function->shared_limit;
  std::memcpy(launch.grid, config->grid, sizeof launch.grid), std::memcpy(launch.block, config->block, sizeof launch.block);
  for (unsigned &blocks : launch.cluster) blocks = 1;
  FILE *log = std::getenv("FAKE_LOG") ? std::fopen(std::getenv("FAKE_LOG"), "a") : nullptr;
  if (log)
    std::fprintf(log, "%s grid %u %u %u block %u %u %u shared %u carveout %d", function->kernel->name, launch.grid[0],
                 launch.grid[1], launch.grid[2], launch.block[0], launch.block[1], launch.block[2], config->shared,
                 function->carveout);
  for (unsigned i = 0; i < config->attribute_count; ++i) {
    const Attribute &a = config->attributes[i];
    if (a.id == 4) {
      for (int j = 0; j < 3; ++j) launch.cluster[j] = unsigned(a.value[j]);
      if (log) std::fprintf(log, " cluster %d %d %d", a.value[0], a.value[1], a.value[2]);
    }
    if (a.id == 6 && log) std::fprintf(log, " programmatic %d", a.value[0]);
  }
  if (log) {
    const auto *words = static_cast<const uint32_t *>(params[0]);
    std::fprintf(log, " sizes %u %u %u\n", words[6], words[7], words[8]), std::fclose(log);
  }
  if (const int e = int(number("FAKE_LAUNCH", 0)); e && launches++ >= number("FAKE_FROM", 0)) return e;
  const auto *bytes = static_cast<const uint8_t *>(params[0]);
  const std::vector<uint8_t> copy(bytes, bytes + function->kernel->params_bytes);
  return put(config->stream, [=] {
    if (log) return int(number("FAKE_RUN", 0));
    return run(launch, copy);
  });
}

int cuTensorMapEncodeTiled(uint64_t *map, int type, unsigned rank, void *address, const uint64_t *sizes,
                           const uint64_t *pitches, const unsigned *box, const unsigned *steps, int interleave, int swizzle,
                           int promotion, int fill) {
  if (rank != 2 || steps[0] != 1 || steps[1] != 1 || interleave || promotion != 3 || fill) return 1;
  const uint64_t said[8] = {uint64_t(type), uint64_t(address), sizes[0], sizes[1], pitches[0], box[0], box[1], uint64_t(swizzle)};
  std::memcpy(map, said, sizeof said);
  return 0;
}

}  // extern "C"
