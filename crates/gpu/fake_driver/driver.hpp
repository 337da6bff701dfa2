// A libcuda.so without a GPU: device memory is the host's, and kernels run on the emulated device, whose
// objects are linked into this library. Only the functions that the crate uses; ABI of the CUDA driver API.
//
// It is stricter than a driver where that finds mistakes: nothing runs before somebody waits for its stream,
// so what is read, reused or freed too early shows; memory is poisoned and has guard zones, pinned host
// memory too; what needs a context fails without one; a kernel may only begin beside the one before it if its
// code waits for that.
//
// Settings are environment variables:
//   FAKE_VERSION FAKE_DEVICES FAKE_CAPABILITY (90)  what there is
//   CUDA_FORCE_PTX_JIT                              as a driver's: PTX is loaded, and no machine code
//   FAKE_MEMORY                                     bytes of device memory
//   FAKE_INIT FAKE_LOAD FAKE_CAPTURE FAKE_REPLAY    error codes of cuInit, cuModuleLoadData,
//                                                   cuGraphInstantiate, cuGraphLaunch
//   FAKE_LAUNCH, FAKE_RUN                           error codes of a launch, of a kernel that runs; from
//                                                   number FAKE_FROM on (0)
//   FAKE_HANG                                       kernels from that number on never end; a call that would
//                                                   wait for one without a deadline ends the process
//   FAKE_BLOCKS                                     that call waits for ever, as a driver's does
//   FAKE_ON                                         the device whose kernels fail or never end (all)
//   FAKE_PATIENCE (120)                             a call that waits without a deadline for other ranks (see
//                                                   libnccl's) ends the process after so many seconds
//   FAKE_BUSY                                       a stream is idle so many milliseconds after the last work
//                                                   that was put there, as if it took so long
//   FAKE_FLIP                                       kernel name prefix; flips the lowest bit of its last
//                                                   logit; or read_bulk or read_boxes: of its sum
//   FAKE_CHECKS                                     1: kernels are searched for races, as in the emulated
//                                                   device's own tests
//   FAKE_LOG                                        launches are written to that file instead of run
//   FAKE_ENDS                                       at the end, what was not given back, and what only a
//                                                   launch loaded, is written to that file
//
// A program that has loaded it may ask fake_count for what it did so far, on one device or on all, and
// fake_choice for what a device takes of a fatbin.
//
// Streams and memory belong to the device of the context that they were made in. A failed kernel loses only
// its own device.
//
// A kernel that waits for kernels of other ranks (PEER_KERNEL) begins as all work does, when somebody waits
// for its stream or asks for its state. Then it runs by itself, on threads of its own and without the lock.
//
// device.cpp: what there is, and the hooks for a libnccl (hooks.hpp); stream.cpp: streams, graphs, events;
// memory.cpp: memory and copies; kernel.cpp: modules and launches.
#pragma once

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "emulated/machine.hpp"
#include "hooks.hpp"

namespace fake {

enum Error {
  SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, INVALID_CONTEXT = 201,
  NO_BINARY_FOR_GPU = 209,
  INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719,
  CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901,
};

inline long long number(const char *name, long long otherwise) {
  const char *text = std::getenv(name);
  return text ? std::atoll(text) : otherwise;
}

// The compute capability; 90 for 9.0.
inline int capability() { return int(number("FAKE_CAPABILITY", 90)); }
// Bytes of shared memory that a block may have (CUDA programming guide, "Compute Capabilities"); an SM has a
// kilobyte more.
inline int shared_bytes() {
  const int is = capability();
  return is == 80 || is == 87 ? 166912 : is < 90 || is >= 120 ? 101376 : 232448;
}

struct Graph {
  std::vector<std::function<Work()>> work;  // each launch makes its own
  bool broken = false;
  bool uploaded = false;
};
struct Stream {
  int device = 0;
  std::deque<Work> queue;
  bool running = false;  // some thread runs its first work, which may run other streams
  Graph *recording = nullptr;
  bool asked = false;  // whether its state was asked for, since something was put there
  std::chrono::steady_clock::time_point put;  // the last work
};
struct Event {
  Stream *on = nullptr;
  // Numbers of its records: the one put on a stream last, and the one that the device has come to.
  long long recorded = 0, reached = 0;
  bool asked = false;
  bool is_reached() const { return reached >= recorded; }
  std::chrono::steady_clock::time_point when;
};
struct Context {
  int device;
};
struct Function {
  const emulated::Kernel *kernel;
  uint32_t shared_limit = 48 * 1024;
  int carveout = -1;  // the driver chooses
  int virtual_architecture = 0, binary_architecture = 0;  // the module's
  bool loaded = false;
};
struct Module {
  std::map<std::string, Function> functions;
  // Architectures of the loaded code, as 90 for 9.0. Translated PTX counts as binary code for the device.
  int virtual_architecture, binary_architecture;
};
struct Memory {
  std::shared_ptr<uint8_t> start;  // kernels that run by themselves keep it
  size_t bytes;
  int device;
};

constexpr size_t kGuard = 256;
constexpr int kDevices = 16;
constexpr uint8_t kPoison = 0xcb, kFence = 0xfd;

// Everything is guarded by one lock; the driver API may be called from any thread.
inline std::recursive_mutex lock;
#define LOCKED const std::lock_guard<std::recursive_mutex> guard(lock)
// Never destroyed: threads of the program may still be here when it exits.
inline auto &memories = *new std::map<uint64_t, Memory>;  // of the device
inline auto &pinned = *new std::map<uint64_t, Memory>;    // of the host
inline auto &streams = *new std::set<Stream *>;
inline auto &graphs = *new std::set<void *>, &events = *new std::set<void *>;
inline auto &modules = *new std::set<Module *>;
inline int retained = 0;  // contexts
// What is counted on each device.
struct Counts {
  // What a hot path must not do: waits for the device, allocations and frees, modules loaded; kernels and
  // graphs that a launch had to bring to the device, since nobody had done so before; copies from or to host
  // memory that is not pinned, for which a driver waits; streams and events made. `blocked`: allocations and
  // frees while a collective is on a stream of the device. A driver may wait for it in them, without a
  // deadline.
  long long waits, allocations, loads, lazy_kernels, lazy_graphs, slow_copies, handles, blocked;
  // What was put on streams; of work in a graph each launch of the graph counts. Products are kernels, too,
  // and so are those that may begin beside the kernel before them; collectives are launches of a libnccl;
  // weight_bytes is what products read of their weights.
  long long kernels, products, programmatic, collectives, memsets, copies, bytes_to_host, bytes_to_device,
      weight_bytes;
  // Something was put on a stream since the last wait was counted.
  bool put;
};
inline Counts counts[kDevices];
inline long long collectives_left[kDevices] = {};  // that are on a stream and have not ended
inline long long total(long long Counts::*what) {
  long long sum = 0;
  for (const Counts &one : counts) sum += one.*what;
  return sum;
}
inline int lost[kDevices] = {};  // after a kernel failed, everything on its device does
inline Stream default_streams[kDevices];
inline const char *(*describe_peers)() = nullptr;
inline thread_local Context *current = nullptr;
inline thread_local Stream *recording = nullptr;

// The counts of the device of the thread's context.
inline Counts &here() { return counts[current->device]; }

// Checked by every call that needs a context.
inline int usable() { return !current ? INVALID_CONTEXT : lost[current->device]; }
#define USABLE \
  LOCKED;      \
  if (const int e = usable()) return e

// Checked by every call that may wait, or asks whether a wait has ended: a thread that records must not.
inline int waits() {
  if (!recording) return ++here().waits, SUCCESS;
  recording->recording->broken = true;
  return CAPTURE_UNSUPPORTED;
}

inline bool is_default(const Stream *stream) {
  return stream >= default_streams && stream < default_streams + kDevices;
}
inline bool is_alive(Stream *stream) { return is_default(stream) || streams.count(stream); }
inline Stream *known(void *handle) {
  // CU_STREAM_LEGACY, 1, is the default stream too.
  if (reinterpret_cast<uintptr_t>(handle) <= 1 && current) return &default_streams[current->device];
  auto *stream = static_cast<Stream *>(handle);
  return is_alive(stream) ? stream : nullptr;
}

inline int put_made(void *handle, std::function<Work()> make) {
  Stream *stream = known(handle);
  if (!stream) return INVALID_HANDLE;
  if (stream->recording)
    stream->recording->work.push_back(std::move(make));
  else
    stream->asked = false, stream->put = std::chrono::steady_clock::now(), stream->queue.push_back(make()),
        counts[stream->device].put = true;
  return SUCCESS;
}
inline int put(void *handle, Work work) {
  return put_made(handle, [work = std::move(work)] { return work; });
}

// `put`, counted whenever the work is put there.
using Count = std::function<void(Counts &)>;
inline int put_counted(void *handle, Count count, Work work) {
  const Stream *stream = known(handle);
  if (!stream) return INVALID_HANDLE;
  return put_made(handle, [=, device = stream->device] { return count(counts[device]), work; });
}

// Runs what is on the stream until `stop()`, or up to work that never ends (NOT_READY) or waits for other
// ranks (kPeers). Work that waits for other ranks runs their streams up to where they meet. That may lead
// back to a stream whose first work is running: it counts as waiting.
inline int run_queue(Stream &stream, const std::function<bool()> &stop = nullptr) {
  int &lost_here = lost[stream.device];
  while (!lost_here && !stream.queue.empty() && !(stop && stop())) {
    if (stream.running) return kPeers;
    const Work work = stream.queue.front();
    stream.running = true;
    const int answer = work();
    stream.running = false;
    if (answer == NOT_READY || answer == kPeers) return answer;
    stream.queue.pop_front();
    if (answer) lost_here = answer;
  }
  return lost_here;
}
inline int run_queue_to(Stream &stream, const Event *mark, long long record) {
  return run_queue(stream, [=] { return mark->reached >= record; });
}
// For calls that wait themselves. They hold the lock exactly once.
inline int drain(Stream &stream) {
  const auto began = std::chrono::steady_clock::now();
  const auto patience = std::chrono::seconds(number("FAKE_PATIENCE", 120));
  for (;;) {
    const int answer = run_queue(stream);
    if (answer != NOT_READY && answer != kPeers) return answer;
    if (answer == NOT_READY && !number("FAKE_BLOCKS", 0))
      std::fprintf(stderr, "fake driver: a wait for a kernel that never ends\n"), std::abort();
    if (answer == kPeers && std::chrono::steady_clock::now() - began > patience)
      std::fprintf(stderr, "fake driver: a wait for other ranks, which did not come: %s\n",
                   describe_peers ? describe_peers() : "kernels of theirs"),
          std::abort();
    lock.unlock();  // others go on
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    lock.lock();
    if (!is_alive(&stream)) return SUCCESS;
  }
}
inline int drain_all(int device) {
  drain(default_streams[device]);
  const std::set<Stream *> now = streams;  // other threads make and destroy some while this one waits
  for (Stream *stream : now)
    if (is_alive(stream) && stream->device == device) drain(*stream);
  return lost[device];
}
// The answer as a caller sees it.
inline int seen(int answer) { return answer == kPeers ? int(NOT_READY) : answer; }
// For calls that only ask: the first question after new work always comes too early.
inline int ask(Stream &stream) {
  if (!stream.queue.empty() && !stream.asked) return stream.asked = true, NOT_READY;
  const auto busy = std::chrono::milliseconds(number("FAKE_BUSY", 0));
  if (std::chrono::steady_clock::now() - stream.put < busy) return NOT_READY;
  return seen(run_queue(stream));
}

// memory.cpp: device memory of the thread's context, for calls that hold the lock exactly once.
int allocate_device(uint64_t *address, size_t bytes);
int free_device(uint64_t address);

// Whether the bytes lie in one allocation.
inline bool within(const std::map<uint64_t, Memory> &all, uint64_t address, size_t bytes) {
  auto next = all.upper_bound(address);
  if (next == all.begin()) return false;
  const auto &[start, memory] = *--next;
  return address - start <= memory.bytes && bytes <= memory.bytes - (address - start);
}
inline bool inside(uint64_t address, size_t bytes, int device = -1) {
  if (!within(memories, address, bytes)) return false;
  return device < 0 || std::prev(memories.upper_bound(address))->second.device == device;
}

// A queued copy, which must not outlive the pinned memory that it uses.
inline auto &pending = *new std::map<uint64_t, int>;  // copies by the pinned memory's address
inline int put_copy(void *stream, const void *host, size_t bytes, Count count, Work work) {
  if (!within(pinned, uint64_t(host), bytes)) return ++here().slow_copies, put_counted(stream, count, work);
  const uint64_t start = std::prev(pinned.upper_bound(uint64_t(host)))->first;
  const auto pends = [=](Counts &all) { count(all), ++pending[start]; };
  return put_counted(stream, pends, [=] { return --pending[start], work(); });
}

}  // namespace fake
