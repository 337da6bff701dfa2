// Settings, misuses and the end.
#include "world.hpp"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <thread>

namespace fake_nccl {

std::map<std::string, long long> &counts = *new std::map<std::string, long long>;

namespace {

std::map<std::string, std::string> &said = *new std::map<std::string, std::string>;  // by fake_nccl_set
std::deque<std::string> misuses;
thread_local std::string last;

// Used where there is no driver: version and unique id work none the less.
std::recursive_mutex alone;
const fake::Hooks kNoDriver = {
    [] { alone.lock(); },
    [] { alone.unlock(); },
    [] { return -1; },
    [](void *stream, int *) { return stream; },
    [](void *) { return false; },
    [] { return false; },
    [](int, uint64_t, size_t) { return false; },
    [](uint64_t *, size_t) { return 1; },
    [](uint64_t) { return 1; },
    [](void *, std::function<Work()>) { return 1; },
    [](void *, const std::function<bool()> &) {},
    [](const char *(*)()) {},
    [](int code) { std::fflush(nullptr), std::_Exit(code); },
};

const char *text(const char *name) {
  const auto found = said.find(name);
  return found != said.end() ? found->second.c_str() : std::getenv(name);
}

struct End {
  ~End() {
    if (const char *path = std::getenv("FAKE_NCCL_ENDS"))
      if (FILE *file = std::fopen(path, "w")) {
        std::fprintf(file, "%zu communicators, %zu windows, %zu misuses\n", communicators.size(),
                     windows.size(), misuses.size());
        std::fclose(file);
      }
    if (misuses.empty()) return;
    std::fprintf(stderr, "fake nccl: %zu misuses that no test took, the first: %s\n", misuses.size(),
                 misuses.front().c_str());
    hooks().end(86);
  }
};

}  // namespace

const fake::Hooks &hooks() {
  static const fake::Hooks &found = [&]() -> const fake::Hooks & {
    void *driver = dlopen("libcuda.so", RTLD_LAZY);
    auto *get =
        driver ? reinterpret_cast<const fake::Hooks *(*)()>(dlsym(driver, "fake_driver_hooks")) : nullptr;
    if (!get) return kNoDriver;
    get()->set_description([]() -> const char * {
      thread_local std::string all;
      return (all = stuck()).c_str();
    });
    return *get();
  }();
  static const End end;  // made after the driver was loaded, so it ends before
  return found;
}

bool is_set(const char *name) { return text(name); }
long long setting(const char *name, long long otherwise) {
  const char *value = text(name);
  return value ? std::atoll(value) : otherwise;
}

const void *this_thread() {
  // A number, since an address could be that of a later thread, too.
  static std::atomic<uintptr_t> threads = 0;
  thread_local const uintptr_t number = ++threads;
  return reinterpret_cast<const void *>(number);
}

int refuse(Communicator *communicator, int code, const std::string &words) {
  if (communicator) communicator->words = words;
  return last = words, code;
}
void fail(Communicator &communicator, int code, const std::string &words) {
  if (communicator.failure == SUCCESS) communicator.failure = code, communicator.words = words;
}
int misuse(Clique *clique, const std::string &words) {
  std::fprintf(stderr, "fake nccl: %s\n", words.c_str());
  misuses.push_back(last = words);
  ++counts["misuses"];
  if (clique)
    for (const auto &[rank, member] : clique->members) fail(*member, INVALID_USAGE, words);
  return INVALID_USAGE;
}
std::string last_words() { return last; }

void block_until(const std::string &what, const std::function<bool()> &done) {
  const auto began = std::chrono::steady_clock::now();
  while (!done()) {
    if (std::chrono::steady_clock::now() - began > std::chrono::seconds(setting("FAKE_PATIENCE", 120)))
      std::fprintf(stderr, "fake nccl: %s: peers did not come\n", what.c_str()), std::abort();
    hooks().unlock();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    hooks().lock();
  }
}

}  // namespace fake_nccl

using namespace fake_nccl;

extern "C" {

// "communicators", "windows", "memories" of ncclMemAlloc: how many there are. How many so far: "made",
// "launches", "replays", "operations", "bytes" received, "misuses". -1 for any other name.
long long fake_nccl_count(const char *what) {
  const Locked locked;
  static const std::set<std::string> all = {"communicators", "windows",    "memories", "made",   "launches",
                                            "replays",       "operations", "bytes",    "misuses"};
  const std::string name = what;
  if (!all.count(name)) return -1;
  if (name == "communicators") return (long long)communicators.size();
  if (name == "windows") return (long long)windows.size();
  return name == "memories" ? (long long)memories.size() : counts[name];
}
// Sets what the environment variable of that name would; NULL: the environment counts again.
void fake_nccl_set(const char *name, const char *value) {
  const Locked locked;
  if (value)
    said[name] = value;
  else
    said.erase(name);
}
// As if the process of a rank had died: the others of its communicators get ncclRemoteError.
void fake_nccl_lose(int rank) {
  const Locked locked;
  for (const auto &[_, other] : communicators)
    if (other->rank != rank && other->clique->came.count(rank))
      fail(*other, REMOTE_ERROR, "socketProgress: Connection closed by remote peer");
}
// Which ranks wait for which, in words.
const char *fake_nccl_stuck() {
  const Locked locked;
  thread_local std::string all;
  return (all = stuck()).c_str();
}
// The oldest misuse that was not taken yet; NULL: there is none. It no longer ends the process.
const char *fake_nccl_take_misuse() {
  const Locked locked;
  thread_local std::string oldest;
  if (misuses.empty()) return nullptr;
  oldest = misuses.front(), misuses.pop_front();
  return oldest.c_str();
}

}  // extern "C"
