// What the emulated device needs of a library: growing arrays and random numbers. The C++ library is not
// linked.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

namespace emulated {

[[noreturn]] inline void out_of_memory() { std::abort(); }

inline void *zeroed(size_t bytes) {
  void *memory = std::calloc(bytes ? bytes : 1, 1);
  if (!memory) out_of_memory();
  return memory;
}

// The same, aligned to 64 bytes, a cache line.
inline void *zeroed_lines(size_t bytes) {
  void *memory = std::aligned_alloc(64, (bytes + 64) / 64 * 64);
  if (!memory) out_of_memory();
  return std::memset(memory, 0, bytes);
}

// Plain values only: moved by memcpy, never destroyed.
template <class T>
class Array {
  static_assert(std::is_trivially_copyable<T>::value, "moved by realloc");

 public:
  Array() = default;
  Array(const Array &) = delete;
  Array &operator=(const Array &) = delete;
  ~Array() { std::free(items_); }
  T &operator[](size_t i) { return items_[i]; }
  const T &operator[](size_t i) const { return items_[i]; }
  T *begin() { return items_; }
  T *end() { return items_ + size_; }
  T &last() { return items_[size_ - 1]; }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  void clear() { size_ = 0; }
  void push(const T &item) {
    const T copy = item;  // may be one of our own
    reserve(size_ + 1);
    items_[size_++] = copy;
  }
  void pop() { --size_; }
  void remove_unordered(size_t i) { items_[i] = items_[--size_]; }
  void remove_first(size_t count) {
    std::memmove(items_, items_ + count, (size_ - count) * sizeof(T));
    size_ -= count;
  }
  // New items are zeros.
  void resize(size_t size) {
    reserve(size);
    if (size > size_) std::memset(static_cast<void *>(items_ + size_), 0, (size - size_) * sizeof(T));
    size_ = size;
  }

 private:
  void reserve(size_t size) {
    if (size <= capacity_) return;
    capacity_ = size > 2 * capacity_ ? size : 2 * capacity_;
    items_ = static_cast<T *>(std::realloc(static_cast<void *>(items_), capacity_ * sizeof(T)));
    if (!items_) out_of_memory();
  }
  T *items_ = nullptr;
  size_t size_ = 0, capacity_ = 0;
};

// xorshift64*, seeded through splitmix64 so that near seeds differ.
class Random {
 public:
  void seed(uint64_t seed, uint64_t stream) {
    uint64_t z = seed + 0x9e3779b97f4a7c15u * (stream + 1);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    state_ = (z ^ z >> 31) | 1;
  }
  uint32_t next() {
    state_ ^= state_ >> 12, state_ ^= state_ << 25, state_ ^= state_ >> 27;
    return uint32_t(state_ * 0x2545f4914f6cdd1du >> 32);
  }
  uint32_t below(uint32_t n) { return uint32_t(uint64_t(next()) * n >> 32); }
  bool one_in(uint32_t n) { return below(n) == 0; }

 private:
  uint64_t state_ = 1;
};

}  // namespace emulated
