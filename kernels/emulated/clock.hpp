// Vector clocks: what each agent (a thread, an mbarrier, a warpgroup's wgmma) knows of the others.
//
// Two in one: `plain` counts what is known, `fenced` what is known on the asynchronous proxy's side, as of
// the last fence.proxy.async on the way. fenced <= plain always.
#pragma once
#include "support.hpp"

namespace emulated {

// A thread's first moment, in which it does nothing yet: who knows of it knows that its block has begun.
constexpr uint32_t kBegun = 1;
// The base of threads' clocks when they begin.
constexpr uint64_t kFreshClocks = 1;

struct Clock {
  uint32_t *plain, *fenced;  // back to back
  uint32_t size;             // of each; 0 where nothing is checked
  // Clocks of one base differ only in the times of their own agents; 0: no base. Threads that meet again and
  // again then exchange no more than these times.
  uint64_t base;

  bool on() const { return size != 0; }
  void join(const Clock &other);
  void assign(const Clock &other) {
    if (size) std::memcpy(plain, other.plain, sizeof(uint32_t) * 2 * size);
    base = other.base;
  }
  void fence() {
    if (size) std::memcpy(fenced, plain, sizeof(uint32_t) * size);
    base = 0;
  }
  // Learns another agent's time.
  void learn(uint32_t agent, uint32_t time) {
    if (plain[agent] < time) plain[agent] = time, base = 0;
  }
  // Publishes what this clock knows, and starts a new moment of its agent.
  void release_to(Clock &into, uint32_t agent) {
    if (!size) return;
    if (base && into.base == base)
      into.plain[agent] = plain[agent];
    else
      into.join(*this);
    ++plain[agent];
  }
  // Takes over what `met` knows, but for this agent's own time. If `met` has a base, only the times of
  // `count` agents from `first` on can differ.
  void adopt(const Clock &met, uint32_t agent, uint32_t first, uint32_t count, uint64_t new_base) {
    const uint32_t own = plain[agent];
    if (met.base)
      std::memcpy(plain + first, met.plain + first, sizeof(uint32_t) * count);
    else
      assign(met);
    plain[agent] = own, base = new_base;
  }
};

// Makes the clocks of one cluster, and frees them all.
class ClockRoom {
 public:
  void open(uint32_t agents) { size_ = (agents + 15) / 16 * 16; }
  Clock take() {
    if (!size_) return {};
    if (left_ == 0) {
      slabs_.push(static_cast<uint32_t *>(zeroed(sizeof(uint32_t) * 2 * size_ * kOfASlab)));
      left_ = kOfASlab;
    }
    uint32_t *memory = slabs_.last() + 2 * size_ * --left_;
    return {memory, memory + size_, size_, 0};
  }
  uint32_t size() const { return size_; }
  void close() {
    for (uint32_t *slab : slabs_) std::free(slab);
    slabs_.clear();
    size_ = left_ = 0;
  }

 private:
  static constexpr uint32_t kOfASlab = 32;
  uint32_t size_ = 0, left_ = 0;
  Array<uint32_t *> slabs_;
};

}  // namespace emulated
