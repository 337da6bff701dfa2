// What a libnccl beside this library needs of the driver (crates/gpu/fake_nccl). One compiler compiles both
// in one test, so C++ types may pass between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace fake {

// Work on a stream: 0 when it has ended, a driver's error, NOT_READY if it never ends, or kPeers.
using Work = std::function<int()>;
// The work waits for streams of other ranks. A question for the stream's end is answered with NOT_READY. A
// call that waits for it gives the lock back for a while and tries again, so that other threads go on.
constexpr int kPeers = -1;

// All functions but `lock` are called with the lock held.
struct Hooks {
  void (*lock)();
  void (*unlock)();
  int (*device)();  // of the thread's context; -1: it has none
  // The stream's own handle, for default streams too, and its device; -1: there is no such stream.
  void *(*stream)(void *handle, int *device);
  bool (*is_recording)(void *stream);  // the stream is being captured
  // Ends a capture by this thread with an error; false where it captures nothing.
  bool (*refuse_recording)();
  bool (*inside)(int device, uint64_t address, size_t bytes);  // one allocation of the device has the bytes
  // Device memory of the thread's context, as cuMemAlloc and cuMemFree have it. The caller holds the lock
  // exactly once: `release` waits for the device and gives the lock back meanwhile.
  int (*allocate)(uint64_t *address, size_t bytes);
  int (*release)(uint64_t address);
  // Puts `make()` on the stream. Where the stream is being captured, each launch of the graph does so
  // instead.
  int (*put)(void *stream, std::function<Work()> make);
  // Runs what is on the stream until `stop()`, or until it cannot go on.
  void (*run_until)(void *stream, const std::function<bool()> &stop);
  // `describe` says what the work that waits for peers waits for.
  void (*set_description)(const char *(*describe)());
  // For a library that ends during the process's exit: writes what this one writes then, and ends with
  // `code`.
  void (*end)(int code);
};

}  // namespace fake

extern "C" const fake::Hooks *fake_driver_hooks();
