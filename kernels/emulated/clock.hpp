// Vector clocks: what each agent (a thread, an mbarrier, a warpgroup's wgmma) knows of the others.
//
// Two in one: `plain` counts what is known, `fenced` what is known on the asynchronous proxy's side, as of the last
// fence.proxy.async on the way. fenced <= plain always.
#pragma once
#include "support.hpp"

namespace emulated {

// A thread's first moment, in which it does nothing yet: who knows of it knows that its block has begun.
constexpr uint32_t kBegun = 1;

struct Clock {
  uint32_t *plain, *fenced;  // back to back
  uint32_t size;             // of each; 0 where nothing is checked

  bool on() const { return size != 0; }
  void join(const Clock &other);
  void assign(const Clock &other) {
    if (size) std::memcpy(plain, other.plain, sizeof(uint32_t) * 2 * size);
  }
  void fence() {
    if (size) std::memcpy(fenced, plain, sizeof(uint32_t) * size);
  }
  // Publishes what this clock knows, and starts a new moment of its agent.
  void release_to(Clock &into, uint32_t agent) {
    if (!size) return;
    into.join(*this);
    ++plain[agent];
  }
};

// Makes the clocks of one cluster, and frees them all.
class ClockRoom {
 public:
  void open(uint32_t agents) { size_ = (agents + 15) / 16 * 16; }
  Clock take() {
    if (!size_) return {};
    auto *memory = static_cast<uint32_t *>(zeroed(sizeof(uint32_t) * 2 * size_));
    taken_.push(memory);
    return {memory, memory + size_, size_};
  }
  uint32_t size() const { return size_; }
  void close() {
    for (uint32_t *memory : taken_) std::free(memory);
    taken_.clear();
    size_ = 0;
  }

 private:
  uint32_t size_ = 0;
  Array<uint32_t *> taken_;
};

}  // namespace emulated
