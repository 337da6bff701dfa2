// What the two tensor-core programs share on the host: random data, threads, the head of the JSON files.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "tensor_core_instructions.cuh"
#include "../../kernels/emulated/tensor_core_model.hpp"

using tensor_core::Input;

struct Random {  // splitmix64: the same numbers everywhere
  uint64_t state;
  uint64_t next() {
    uint64_t z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
  }
  int below(int n) { return int(next() % uint64_t(n)); }
  double uniform() { return double(next() >> 11) * 0x1p-53; }
  double normal() {
    return std::sqrt(-2 * std::log(1 - uniform())) * std::cos(6.283185307179586 * uniform());
  }
};

inline uint16_t to_16(Input type, float x) {
  uint16_t bits;
  if (type == Input::bf16) {
    const __nv_bfloat16 h = __float2bfloat16_rn(x);
    std::memcpy(&bits, &h, 2);
  } else {
    const __half h = __float2half_rn(x);
    std::memcpy(&bits, &h, 2);
  }
  return bits;
}

inline double value(Input type, uint16_t bits) {  // finite ones only
  const int mantissa = type == Input::bf16 ? 7 : 10, bias = type == Input::bf16 ? 127 : 15;
  const int field = (bits & 0x7fff) >> mantissa, fraction = bits & ((1 << mantissa) - 1);
  const double magnitude = field ? std::ldexp(fraction | 1 << mantissa, field - bias - mantissa)
                                 : std::ldexp(fraction, 1 - bias - mantissa);
  return bits >> 15 ? -magnitude : magnitude;
}

inline uint32_t bits_of(float x) {
  uint32_t b;
  std::memcpy(&b, &x, 4);
  return b;
}
inline float float_of(uint32_t b) {
  float x;
  std::memcpy(&x, &b, 4);
  return x;
}

inline void parallel_for(int64_t count, const std::function<void(int64_t)> &work) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); ++t)
    threads.emplace_back([&] {
      for (int64_t i; (i = next++) < count;) work(i);
    });
  for (auto &t : threads) t.join();
}

template <class T>
struct Device {  // a device array
  T *data = nullptr;
  size_t count = 0;
  explicit Device(size_t n) : count(n) { CHECK(cudaMalloc(&data, n * sizeof(T))); }
  explicit Device(const std::vector<T> &v) : Device(v.size()) { put(v); }
  Device(const Device &) = delete;
  ~Device() { cudaFree(data); }
  void put(const std::vector<T> &v) {
    CHECK(cudaMemcpy(data, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  void poison() { CHECK(cudaMemset(data, 0xff, count * sizeof(T))); }
  std::vector<T> get() const {
    std::vector<T> v(count);
    CHECK(cudaMemcpy(v.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
  }
};
// What poison() leaves in an f32. The tensor cores' own NaN is 0x7fffffff, so it can be told from an
// unwritten element.
constexpr uint32_t kPoison = 0xffffffffu;

inline std::string line_of(const char *command) {
  std::string s;
  if (FILE *f = popen(command, "r")) {
    char buffer[256];
    if (fgets(buffer, sizeof buffer, f)) s = buffer;
    pclose(f);
  }
  while (!s.empty() && (s.back() == '\n' || s.back() == ' ')) s.pop_back();
  return s;
}

inline void json_head(FILE *f, const char *method, int argc, char **argv, uint64_t seed) {
  cudaDeviceProp device;
  int driver = 0, runtime = 0;
  CHECK(cudaGetDeviceProperties(&device, 0));
  CHECK(cudaDriverGetVersion(&driver));
  CHECK(cudaRuntimeGetVersion(&runtime));
  char date[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  std::string command;
  for (int i = 0; i < argc; ++i) {
    const char *name = std::strrchr(argv[i], '/');
    command += std::string(i ? " " : "") + (name ? name + 1 : argv[i]);
  }
  std::fprintf(
      f,
      "{\n  \"device\": \"%s\",\n  \"compute_capability\": \"%d.%d\",\n  \"driver\": \"%s\",\n"
      "  \"cuda_driver_api\": %d,\n  \"cuda_runtime\": %d,\n  \"nvcc\": \"%d.%d.%d\",\n  \"date\": \"%s\",\n"
      "  \"command\": \"%s\",\n  \"seed\": %llu,\n  \"method\": \"%s\",\n",
      device.name, device.major, device.minor,
      line_of("nvidia-smi --query-gpu=driver_version --format=csv,noheader").c_str(), driver, runtime,
      __CUDACC_VER_MAJOR__, __CUDACC_VER_MINOR__, __CUDACC_VER_BUILD__, date, command.c_str(),
      (unsigned long long)seed, method);
}
