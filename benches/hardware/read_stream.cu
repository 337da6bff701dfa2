// How fast can a kernel only read a large array? Two ways, as a library for roofs_and_peers.py:
// 16-byte loads into registers, and bulk copies into a ring in shared memory (what a kernel with TMA does).
#include <cstdint>
#include <cuda_runtime.h>

template <int kUnroll>
__global__ void read_loads(const uint4 *data, int64_t count, uint32_t *sink) {
  const int64_t step = int64_t(gridDim.x) * blockDim.x * kUnroll;
  uint32_t any = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x * kUnroll + threadIdx.x; i < count; i += step) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = i + int64_t(u) * blockDim.x;
      v[u] = make_uint4(0, 0, 0, 0);
      if (at < count)
        asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                     : "=r"(v[u].x), "=r"(v[u].y), "=r"(v[u].z), "=r"(v[u].w)
                     : "l"(data + at));
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) any ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  atomicXor(sink, any);  // the xor of all words, so that no load can be dropped and the result can be checked
}

// One producer thread per CTA; the other threads read nothing: the copy into shared memory is what is timed.
__global__ void read_bulk(const unsigned char *data, int64_t bytes, int chunk, int stages, int spread) {
  extern __shared__ __align__(128) unsigned char ring[];
  __shared__ uint64_t full[64];
  if (threadIdx.x != 0) return;
  const int64_t chunks = bytes / chunk;
  // spread: neighbouring CTAs read neighbouring chunks; otherwise each CTA reads one contiguous range
  const int64_t each = (chunks + gridDim.x - 1) / gridDim.x;
  const int64_t first = spread ? blockIdx.x : blockIdx.x * each, stride = spread ? gridDim.x : 1;
  const int64_t end = spread ? chunks : min(chunks, first + each);
  const uint32_t bar = uint32_t(__cvta_generic_to_shared(full)), base = uint32_t(__cvta_generic_to_shared(ring));
  for (int s = 0; s < stages; ++s) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar + 8 * s));
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  const auto issue = [&](int64_t at, int s) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar + 8 * s), "r"(chunk) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     base + s * chunk),
                 "l"(data + at * chunk), "r"(chunk), "r"(bar + 8 * s)
                 : "memory");
  };
  int64_t next = first;
  for (int s = 0; s < stages && next < end; ++s, next += stride) issue(next, s);
  int s = 0, phase = 0;
  for (int64_t at = first; at < end; at += stride) {
    asm volatile(
        "{.reg .pred p;\nwait_%=: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@!p bra wait_%=;}" ::"r"(
            bar + 8 * s),
        "r"(phase)
        : "memory");
    if (next < end) issue(next, s), next += stride;
    if (++s == stages) s = 0, phase ^= 1;
  }
}

extern "C" int launch_read_loads(const void *data, int64_t bytes, int blocks, int threads, int unroll, void *sink,
                                 void *stream) {
  const auto d = static_cast<const uint4 *>(data);
  const auto s = static_cast<uint32_t *>(sink);
  const auto q = static_cast<cudaStream_t>(stream);
  if (unroll == 4)
    read_loads<4><<<blocks, threads, 0, q>>>(d, bytes / 16, s);
  else if (unroll == 8)
    read_loads<8><<<blocks, threads, 0, q>>>(d, bytes / 16, s);
  else
    return cudaErrorInvalidValue;
  return cudaGetLastError();
}

extern "C" int launch_read_bulk(const void *data, int64_t bytes, int blocks, int chunk, int stages, int spread,
                                void *stream) {
  if (bytes % chunk || stages > 64) return cudaErrorInvalidValue;
  const cudaError_t e = cudaFuncSetAttribute(read_bulk, cudaFuncAttributeMaxDynamicSharedMemorySize, chunk * stages);
  if (e != cudaSuccess) return e;
  read_bulk<<<blocks, 32, chunk * stages, static_cast<cudaStream_t>(stream)>>>(static_cast<const unsigned char *>(data),
                                                                               bytes, chunk, stages, spread);
  return cudaGetLastError();
}
