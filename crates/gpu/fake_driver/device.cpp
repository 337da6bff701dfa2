// The driver, its devices and contexts, and the counts of what was done.
#include <unistd.h>

#include "driver.hpp"

using namespace fake;

namespace {

Context contexts[kDevices];

// At the end of the process, writes what was not given back (FAKE_ENDS).
struct End {
  bool written = false;
  ~End() { write(); }
  void write() {
    if (written) return;
    written = true;
    const char *path = std::getenv("FAKE_ENDS");
    FILE *file = path ? std::fopen(path, "w") : nullptr;
    if (!file) return;
    std::fprintf(file, "%zu allocations, %zu streams, %zu graphs, %zu events, %zu modules, %d contexts\n",
                 memories.size() + pinned.size(), streams.size(), graphs.size(), events.size(),
                 modules.size(), retained);
    std::fprintf(file, "%lld kernels and %lld graphs loaded by a launch\n", total(&Counts::lazy_kernels),
                 total(&Counts::lazy_graphs));
    std::fclose(file);
  }
} end;

const Hooks hooks = {
    [] { lock.lock(); },
    [] { lock.unlock(); },
    [] { return current ? current->device : -1; },
    [](void *handle, int *device) -> void * {
      Stream *stream = known(handle);
      return *device = stream ? stream->device : -1, stream;
    },
    [](void *handle) {
      const Stream *stream = known(handle);
      return stream && stream->recording;
    },
    [] { return recording && (recording->recording->broken = true); },
    [](int device, uint64_t address, size_t bytes) { return inside(address, bytes, device); },
    allocate_device,
    free_device,
    [](void *handle, std::function<Work()> make) {
      const Stream *stream = known(handle);
      if (!stream) return int(INVALID_HANDLE);
      return put_made(handle, [=, device = stream->device]() -> Work {
        ++counts[device].collectives, ++collectives_left[device];
        return [=, work = make()] {
          const int answer = work();
          collectives_left[device] -= answer != NOT_READY && answer != kPeers;
          return answer;
        };
      });
    },
    [](void *handle, const std::function<bool()> &stop) {
      if (Stream *stream = known(handle)) run_queue(*stream, stop);
    },
    [](const char *(*describe)()) { describe_peers = describe; },
    [](int code) { end.write(), std::fflush(nullptr), _exit(code); },
};

}  // namespace

extern "C" {

// The count of a device, or of all devices where `device` is -1. Returns -1 where nobody counts that.
long long fake_count(const char *what, int device) {
  LOCKED;
  static const std::map<std::string, long long Counts::*> all = {
      {"waits", &Counts::waits},
      {"allocations", &Counts::allocations},
      {"loads", &Counts::loads},
      {"lazy kernels", &Counts::lazy_kernels},
      {"lazy graphs", &Counts::lazy_graphs},
      {"slow copies", &Counts::slow_copies},
      {"handles", &Counts::handles},
      {"blocked", &Counts::blocked},
      {"kernels", &Counts::kernels},
      {"products", &Counts::products},
      {"programmatic", &Counts::programmatic},
      {"collectives", &Counts::collectives},
      {"memsets", &Counts::memsets},
      {"copies", &Counts::copies},
      {"bytes to the host", &Counts::bytes_to_host},
      {"bytes to the device", &Counts::bytes_to_device},
      {"weight bytes", &Counts::weight_bytes},
  };
  const auto found = all.find(what);
  if (found == all.end() || device >= kDevices) return -1;
  return device < 0 ? total(found->second) : counts[device].*found->second;
}

const Hooks *fake_driver_hooks() { return &hooks; }

int cuInit(unsigned flags) { return flags ? INVALID_VALUE : int(number("FAKE_INIT", 0)); }
int cuDriverGetVersion(int *version) { return *version = int(number("FAKE_VERSION", 13000)), 0; }
int cuGetErrorName(int error, const char **name) {
  static const std::map<int, const char *> names = {
      {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"}, {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
      {100, "CUDA_ERROR_NO_DEVICE"}, {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
      {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"}, {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
      {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"}, {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
      {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"}, {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
      {214, "CUDA_ERROR_ECC_UNCORRECTABLE"},    {220, "CUDA_ERROR_NVLINK_UNCORRECTABLE"},
      {702, "CUDA_ERROR_LAUNCH_TIMEOUT"},       {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED"},
      {710, "CUDA_ERROR_ASSERT"},               {714, "CUDA_ERROR_HARDWARE_STACK_ERROR"},
      {715, "CUDA_ERROR_ILLEGAL_INSTRUCTION"}, {716, "CUDA_ERROR_MISALIGNED_ADDRESS"},
      {717, "CUDA_ERROR_INVALID_ADDRESS_SPACE"}, {718, "CUDA_ERROR_INVALID_PC"},
      {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
      {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"}};
  const auto found = names.find(error);
  return *name = found == names.end() ? "CUDA_ERROR_OTHER" : found->second, 0;
}
int cuGetErrorString(int error, const char **text) {
  return *text = error ? "the driver's own words" : "no error", 0;
}

int cuDeviceGetCount(int *count) { return *count = int(number("FAKE_DEVICES", 1)), 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char *name, int size, int device) {
  return std::snprintf(name, size, "Fake %d", device), 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = size_t(number("FAKE_MEMORY", 80000000000)), 0; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
  switch (attribute) {
    case 75: *value = capability() / 10; break;              // COMPUTE_CAPABILITY_MAJOR
    case 76: *value = capability() % 10; break;              // COMPUTE_CAPABILITY_MINOR
    case 97: *value = shared_bytes(); break;                 // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
    case 81: *value = shared_bytes() + 1024; break;          // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
    case 16: *value = capability() == 86 ? 84 : 132; break;  // MULTIPROCESSOR_COUNT
    case 38: *value = 50 << 20; break;                       // L2_CACHE_SIZE
    default: *value = 1;
  }
  return 0;
}

int cuDevicePrimaryCtxRetain(Context **out, int device) {
  LOCKED;
  if (device < 0 || device >= kDevices) return INVALID_VALUE;
  return ++retained, contexts[device].device = device, *out = &contexts[device], 0;
}
int cuDevicePrimaryCtxRelease_v2(int) {
  LOCKED;
  return --retained, 0;
}
int cuCtxGetCurrent(Context **out) { return *out = current, 0; }
int cuCtxSetCurrent(Context *context) { return current = context, 0; }
int cuCtxGetDevice(int *device) { return current ? (*device = current->device, 0) : INVALID_CONTEXT; }

}  // extern "C"
