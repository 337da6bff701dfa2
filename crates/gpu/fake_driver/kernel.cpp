// Modules, functions, launches and tensor maps: kernels are the emulated device's.
#include <dlfcn.h>

#include <atomic>

#include "driver.hpp"
#include "emulated/fiber.hpp"
#include "params.h"

using namespace fake;

extern "C" {
int lmhead_emulated_check_launch(const emulated::Launch *launch, emulated::Fault *fault);
int lmhead_emulated_run_cluster(emulated::Worker *worker, const emulated::Launch *launch, uint64_t number,
                                emulated::Fault *fault);
}

namespace {

long long launches = 0, runs = 0, started = 0;

// What the settings have for the next kernel that would run on the device: SUCCESS, an error, or NOT_READY
// for one that never ends.
int injected(int device) {
  const bool may_fail = number("FAKE_ON", device) == device;
  if (const int error = int(number("FAKE_RUN", 0)); may_fail && error && runs++ >= number("FAKE_FROM", 0))
    return error;
  static const long long hangs = number("FAKE_HANG", -1);
  if (may_fail && hangs >= 0 && started >= hangs) return NOT_READY;
  return started += may_fail, SUCCESS;
}

// A launch whose turn on its stream has come, with all that it reaches.
struct Ready {
  emulated::Launch launch;
  std::vector<emulated::Allocation> table;
  std::vector<std::shared_ptr<uint8_t>> kept;
  std::unique_ptr<void, decltype(&std::free)> params{nullptr, std::free};
  uint64_t clusters = 1;

  Ready(const emulated::Launch &shape, const std::vector<uint8_t> &bytes) : launch(shape) {
    static uint64_t seed = 0;
    // Pinned memory has the same address on the device.
    std::map<uint64_t, Memory> all = memories;
    all.insert(pinned.begin(), pinned.end());
    for (const auto &[address, memory] : all) {
      table.push_back({address, memory.bytes, 1, uint32_t(table.size()), nullptr});
      kept.push_back(memory.start);
    }
    params.reset(std::aligned_alloc(64, (bytes.size() + 127) / 64 * 64));
    if (!params) std::abort();
    std::memcpy(params.get(), bytes.data(), bytes.size());
    launch.params = params.get(), launch.seed = seed++, launch.checks = uint32_t(number("FAKE_CHECKS", 0)),
    launch.instruction_limit = uint64_t(1) << 32;
    launch.allocations = table.data(), launch.allocation_count = table.size();
    launch.host.wait_for_primary = [](void *) { return 0; };
    launch.host.block_triggered = [](void *) {};
    launch.host.trace = [](void *, const char *, uint64_t) {};
    for (int i = 0; i < 3; ++i) clusters *= launch.grid[i] / launch.cluster[i];
  }
  Ready(const Ready &) = delete;
};

void report(const emulated::Launch &launch, const emulated::Fault &fault) {
  std::fprintf(stderr, "fake driver: kernel %s: %s\n", launch.kernel->name, fault.text);
}

int run(const emulated::Launch &shape, const std::vector<uint8_t> &params, int device) {
  if (const int answer = injected(device)) return answer;
  static emulated::Worker *worker = emulated::open_worker();
  static emulated::Fault fault;
  const Ready ready(shape, params);
  const emulated::Launch &launch = ready.launch;
  bool failed = lmhead_emulated_check_launch(&launch, &fault) != 0;
  for (uint64_t i = 0; !failed && i < ready.clusters; ++i)
    failed = lmhead_emulated_run_cluster(worker, &launch, i, &fault) == 1;
  const char *flips = std::getenv("FAKE_FLIP");
  const bool wrong = !failed && flips && std::strncmp(flips, launch.kernel->name, std::strlen(flips)) == 0;
  if (wrong && std::strcmp(flips, "read_bulk") == 0) {
    *static_cast<const ReadBulkParams *>(launch.params)->out += 1;
  } else if (wrong && std::strcmp(flips, "read_boxes") == 0) {
    *static_cast<const ReadBoxesParams *>(launch.params)->out += 1;
  } else if (wrong) {
    const auto &p = *static_cast<const MatmulParams *>(launch.params);
    const uint64_t last = uint64_t(p.vocab - 1) * (p.logits.dtype == LMHEAD_DTYPE_F32 ? 4 : 2);
    static_cast<uint8_t *>(p.logits.data)[(p.row_count - 1) * p.logits.pitch + last] ^= 1;
  }
  if (failed) report(launch, fault);
  return failed ? LAUNCH_FAILED : SUCCESS;
}

// A launch of a kernel that waits for kernels of other ranks: work on a stream, of one launch.
class PeerLaunch {
 public:
  PeerLaunch(const emulated::Launch &shape, const std::vector<uint8_t> &params, int device)
      : shape_(shape), params_(params), device_(device) {}

  // Begins at the first call. The work's answer.
  int answer() {
    if (!running_) {
      if (const int answer = injected(device_)) return answer;
      if (const int error = begin()) return error;
    }
    const bool has_ended = running_->left == 0;
    if (running_->failed) return LAUNCH_FAILED;
    return has_ended ? int(SUCCESS) : kPeers;
  }

 private:
  struct Running {
    Ready ready;
    std::atomic<uint64_t> left;  // clusters
    std::atomic<bool> failed{false};
    Running(const emulated::Launch &shape, const std::vector<uint8_t> &params)
        : ready(shape, params), left(ready.clusters) {}
  };

  // The threads are left to themselves: they end by the limits of the kernel's waits at the latest, though
  // their stream is destroyed, the device is lost or the process exits, which none of them delays. What they
  // use they own, and they never take the lock.
  int begin() {
    const auto running = std::make_shared<Running>(shape_, params_);
    emulated::Fault fault;
    if (lmhead_emulated_check_launch(&running->ready.launch, &fault))
      return report(running->ready.launch, fault), LAUNCH_FAILED;
    for (uint64_t i = 0; i < running->ready.clusters; ++i)
      std::thread([running, i] {
        emulated::Worker *worker = emulated::open_worker();
        const auto fault = std::make_unique<emulated::Fault>();
        if (lmhead_emulated_run_cluster(worker, &running->ready.launch, i, fault.get()) == 1)
          report(running->ready.launch, *fault), running->failed = true;
        emulated::close_worker(worker);
        --running->left;
      }).detach();
    return running_ = running, SUCCESS;
  }

  const emulated::Launch shape_;
  const std::vector<uint8_t> params_;
  const int device_;
  std::shared_ptr<Running> running_;
};

// An entry of a fatbin. It gives the size of its header and of what follows.
struct Entry {
  uint16_t kind, version;  // 1: PTX, 2: machine code
  uint32_t header_bytes;
  uint64_t bytes;
  uint32_t packed, options;
  uint16_t minor, major;
  uint32_t architecture;  // 90 for 9.0
  uint32_t name, name_bytes;
  uint64_t flags;  // kNowhereElse: sm_90a
};
constexpr uint64_t kNowhereElse = 1 << 20;

struct Choice {
  int rank = -1;  // nothing runs there
  int code = 0;   // 90 for 9.0
  bool machine_code = false, nowhere_else = false;
};

// What a driver takes of a fatbin (CUDA programming guide, "Application Compatibility"): machine code for
// this very device, or of its major capability and the highest minor not above; else the highest PTX that is
// not above.
int choose(const uint8_t *image, int device, bool only_ptx, Choice &best) {
  struct {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes;
  } head;
  std::memcpy(&head, image, sizeof head);
  if (head.magic != 0xba55ed50u) return INVALID_IMAGE;
  for (uint64_t at = 0; at < head.bytes;) {
    Entry entry;
    std::memcpy(&entry, image + head.header_bytes + at, sizeof entry);
    at += entry.header_bytes + entry.bytes;
    const int code = int(entry.architecture);
    const bool here = entry.flags & kNowhereElse, ptx = entry.kind == 1;
    const bool runs = here ? code == device : code <= device && (ptx || code / 10 == device / 10);
    if (!runs || (only_ptx && !ptx)) continue;
    const int rank = code + (ptx ? 0 : 1000) + (here ? 1000 : 0);
    if (rank > best.rank) best = {rank, code, !ptx, here};
  }
  return best.rank < 0 ? NO_BINARY_FOR_GPU : SUCCESS;
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

}  // namespace

extern "C" {

// What a device of that capability takes of a fatbin, by its name in nvcc's words; null: nothing.
const char *fake_choice(const uint8_t *image, int capability, int only_ptx) {
  static thread_local std::string name;
  Choice choice;
  if (choose(image, capability, only_ptx, choice)) return nullptr;
  name = (choice.machine_code ? "sm_" : "compute_") + std::to_string(choice.code);
  return (name += choice.nowhere_else ? "a" : "").c_str();
}

int cuModuleLoadData(Module **module, const void *image) {
  USABLE;
  ++here().loads;
  if (const int e = waits()) return e;
  const bool only_ptx = number("CUDA_FORCE_PTX_JIT", 0) != 0;
  Choice choice;
  if (const int e = choose(static_cast<const uint8_t *>(image), capability(), only_ptx, choice)) return e;
  Module loaded;
  // Machine code is made of PTX for 8.0, 9.0 or 9.0 alone (crates/nvcc/src/architectures.rs).
  loaded.virtual_architecture = choice.code >= 90 ? 90 : 80;
  loaded.binary_architecture = choice.machine_code ? choice.code : capability();
  if (const int e = int(number("FAKE_LOAD", 0))) return e;
  return modules.insert(*module = new Module(loaded)), 0;
}
int cuModuleUnload(Module *module) {
  LOCKED;
  return modules.erase(module) ? (delete module, 0) : int(INVALID_HANDLE);
}
int cuModuleGetFunction(Function **out, Module *module, const char *name) {
  USABLE;
  if (!modules.count(module)) return INVALID_HANDLE;
  // Searches this library's own symbols only: the program has those kernels too, and its own device for them.
  static void *self = [] {
    Dl_info info;
    return dladdr((void *)cuModuleLoadData, &info) ? dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD)
                                                   : nullptr;
  }();
  auto *kernel =
      static_cast<const emulated::Kernel *>(dlsym(self, (std::string("lmhead_kernel_") + name).c_str()));
  if (!kernel) return NOT_FOUND;
  Function &function = module->functions[name];
  function.virtual_architecture = module->virtual_architecture;
  function.binary_architecture = module->binary_architecture;
  return function.kernel = kernel, *out = &function, 0;
}
int cuFuncLoad(Function *function) {
  USABLE;
  ++here().loads;
  if (const int e = waits()) return e;
  return function->loaded = true, 0;
}
int cuFuncGetAttribute(int *value, int attribute, const Function *function) {
  *value = attribute == 0   ? int(function->kernel->max_threads)  // MAX_THREADS_PER_BLOCK
           : attribute == 1 ? 1024                                // SHARED_SIZE_BYTES
           : attribute == 4 ? 107                                 // NUM_REGS
           : attribute == 5 ? function->virtual_architecture      // PTX_VERSION
           : attribute == 6 ? function->binary_architecture       // BINARY_VERSION
                            : 0;
  return 0;
}
int cuFuncSetAttribute(Function *function, int attribute, int value) {
  // PREFERRED_SHARED_MEMORY_CARVEOUT, MAX_DYNAMIC_SHARED_SIZE_BYTES
  if (attribute == 9 && value >= -1 && value <= 100) return function->carveout = value, 0;
  if (attribute != 8 || value < 0 || value > shared_bytes() - 1024) return INVALID_VALUE;
  return function->shared_limit = uint32_t(value), 0;
}
int cuFuncGetParamInfo(const Function *function, size_t index, size_t *offset, size_t *size) {
  return index ? INVALID_VALUE : (*offset = 0, *size = function->kernel->params_bytes, 0);
}

int cuLaunchKernelEx(const Config *config, Function *function, void **params, void **extra) {
  USABLE;
  if (extra) return INVALID_VALUE;
  if (!function->loaded) ++here().lazy_kernels, function->loaded = true;
  emulated::Launch launch = {};
  launch.kernel = function->kernel, launch.dynamic_shared = config->shared,
  launch.shared_limit = function->shared_limit;
  std::memcpy(launch.grid, config->grid, sizeof launch.grid);
  std::memcpy(launch.block, config->block, sizeof launch.block);
  launch.cluster[0] = function->kernel->cluster, launch.cluster[1] = launch.cluster[2] = 1;
  FILE *log = std::getenv("FAKE_LOG") ? std::fopen(std::getenv("FAKE_LOG"), "a") : nullptr;
  if (log)
    std::fprintf(log, "%s grid %u %u %u block %u %u %u shared %u carveout %d", function->kernel->name,
                 launch.grid[0], launch.grid[1], launch.grid[2], launch.block[0], launch.block[1],
                 launch.block[2], config->shared, function->carveout);
  for (unsigned i = 0; i < config->attribute_count; ++i) {
    const Attribute &a = config->attributes[i];
    if (a.id == 4) {
      for (int j = 0; j < 3; ++j) launch.cluster[j] = unsigned(a.value[j]);
      if (log) std::fprintf(log, " cluster %d %d %d", a.value[0], a.value[1], a.value[2]);
    }
    if (a.id != 6) continue;
    if (log) std::fprintf(log, " programmatic %d", a.value[0]);
    // Before compute capability 9.0 nothing waits: it would run too early.
    if (a.value[0] && function->virtual_architecture < 90) return log && std::fclose(log), INVALID_VALUE;
    launch.in_turn = a.value[0] != 0;
  }
  if (const unsigned declared = function->kernel->cluster; declared > 1 && launch.cluster[0] != declared)
    return log && std::fclose(log), INVALID_VALUE;
  if (log) {
    const auto *words = static_cast<const uint32_t *>(params[0]);
    std::fprintf(log, " sizes %u %u %u\n", words[6], words[7], words[8]), std::fclose(log);
  }
  if (const int e = int(number("FAKE_LAUNCH", 0)); e && launches++ >= number("FAKE_FROM", 0)) return e;
  const auto *bytes = static_cast<const uint8_t *>(params[0]);
  const std::vector<uint8_t> copy(bytes, bytes + function->kernel->params_bytes);
  // A stream of another context takes no launch.
  const Stream *stream = known(config->stream);
  if (!stream || stream->device != current->device) return INVALID_HANDLE;
  const auto count = [=, name = function->kernel->name](Counts &all) {
    ++all.kernels, all.programmatic += launch.in_turn;
    if (!std::strstr(name, "matmul")) return;
    const auto &p = *reinterpret_cast<const MatmulParams *>(copy.data());
    const auto is_of = [name](const char *family) {
      return std::strncmp(name, family, std::strlen(family)) == 0;
    };
    const bool halves = is_of("gather_matmul") || is_of("wgmma_matmul_bf16") || is_of("wgmma_matmul_f16");
    const uint64_t weight = halves ? 2 : 1;  // bytes
    ++all.products, all.weight_bytes += (long long)(p.vocab * weight * p.hidden);
  };
  if (launch.kernel->waits_for_peers && !log)
    return put_made(config->stream, [=, device = stream->device]() -> Work {
      count(counts[device]);
      ++collectives_left[device];
      return [=, launched = std::make_shared<PeerLaunch>(launch, copy, device)] {
        const int answer = launched->answer();
        collectives_left[device] -= answer != NOT_READY && answer != kPeers;
        return answer;
      };
    });
  return put_counted(config->stream, count, [=, device = stream->device] {
    if (log) return int(number("FAKE_RUN", 0));
    return run(launch, copy, device);
  });
}

// Encodes the map as the emulated device has it (kernels/emulated/tma.cpp), whose kernels read it.
int cuTensorMapEncodeTiled(uint64_t *map, int type, unsigned rank, void *address, const uint64_t *sizes,
                           const uint64_t *pitches, const unsigned *box, const unsigned *steps,
                           int interleave, int swizzle, int promotion, int fill) {
  if (rank != 2 || type > 2 || steps[0] != 1 || steps[1] != 1 || interleave || swizzle > 3 ||
      promotion != 3 || fill)
    return 1;
  // ptx::Swizzle of CU_TENSOR_MAP_SWIZZLE_NONE, _32B, _64B, _128B
  static const uint64_t kSwizzles[] = {0, 3, 2, 1};
  const uint64_t said[7] = {0x70616d2d64656168, uint64_t(address), sizes[0], sizes[1], pitches[0],
                            box[0] | uint64_t(box[1]) << 32, uint64_t(1) << type | kSwizzles[swizzle] << 32};
  std::memcpy(map, said, sizeof said);
  return 0;
}

}  // extern "C"
