/* A libcuda.so without a GPU: device memory is the host's, kernels are written down instead of run. What it says comes from
 * the environment: FAKE_VERSION, FAKE_DEVICES, FAKE_CAPABILITY, FAKE_INIT, FAKE_LOAD, FAKE_LAUNCH, FAKE_SYNC (error codes), and
 * FAKE_LOG, the file that launches are written to. Only the functions that the crate uses; ABI of the CUDA driver API. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text ? atoi(text) : otherwise;
}

int cuInit(unsigned flags) { return flags ? 1 : number("FAKE_INIT", 0); }
int cuDriverGetVersion(int *version) { return *version = number("FAKE_VERSION", 13000), 0; }
int cuGetErrorName(int error, const char **name) {
  *name = error == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : error == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU"
        : error == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : error == 100 ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_OTHER";
  return 0;
}
int cuGetErrorString(int error, const char **text) { return *text = error ? "the driver's own words" : "no error", 0; }

int cuDeviceGetCount(int *count) { return *count = number("FAKE_DEVICES", 1), 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char *name, int size, int device) { return snprintf(name, size, "Fake %d", device), 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { return (void)device, *bytes = 80000000000u, 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  const int capability = number("FAKE_CAPABILITY", 90);
  (void)device;
  switch (attribute) {
    case 75: *value = capability / 10; break; /* COMPUTE_CAPABILITY_MAJOR */
    case 76: *value = capability % 10; break; /* COMPUTE_CAPABILITY_MINOR */
    case 97: *value = 232448; break;          /* MAX_SHARED_MEMORY_PER_BLOCK_OPTIN */
    default: *value = 1;                      /* MEMORY_POOLS_SUPPORTED among them */
  }
  return 0;
}

static int context;
int cuDevicePrimaryCtxRetain(void **out, int device) { return (void)device, *out = &context, 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return (void)device, 0; }
int cuCtxGetCurrent(void **out) { return *out = &context, 0; }
int cuCtxSetCurrent(void *c) { return c ? 0 : 1; }
int cuStreamCreate(void **stream, unsigned flags) { return (void)flags, *stream = &context, 0; }
int cuStreamDestroy_v2(void *stream) { return stream ? 0 : 1; }
int cuStreamSynchronize(void *stream) { return stream ? number("FAKE_SYNC", 0) : 1; }

int cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream) {
  (void)stream;
  if (bytes == 0 || bytes > (size_t)1 << 40) return bytes ? 2 : 1;
  return *address = (uint64_t)aligned_alloc(256, (bytes + 255) / 256 * 256), *address ? 0 : 2;
}
int cuMemFreeAsync(uint64_t address, void *stream) { return (void)stream, free((void *)address), 0; }
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
  return (void)stream, memset((void *)to, value, bytes), 0;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  return (void)stream, memcpy((void *)to, from, bytes), 0;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  return (void)stream, memcpy(to, (void *)from, bytes), 0;
}

static char loaded[128]; /* the name of the function that was asked for last */
int cuModuleLoadData(void **module, const void *image) {
  /* The magic number of a fatbin. */
  if (*(const uint32_t *)image != 0xba55ed50u) return 200;
  return *module = &context, number("FAKE_LOAD", 0);
}
int cuModuleUnload(void *module) { return module ? 0 : 1; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
  return (void)module, snprintf(loaded, sizeof loaded, "%s", name), *function = loaded, 0;
}
int cuFuncGetAttribute(int *value, int attribute, void *function) {
  (void)function;
  *value = attribute == 0 ? 384 /* MAX_THREADS_PER_BLOCK */ : attribute == 1 ? 1024 /* SHARED_SIZE_BYTES */
         : attribute == 4 ? 107 /* NUM_REGS */ : 0;
  return 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
  return function && attribute == 8 /* MAX_DYNAMIC_SHARED_SIZE_BYTES */ && value == 231424 ? 0 : 1;
}
int cuFuncGetParamInfo(void *function, size_t index, size_t *offset, size_t *size) {
  (void)function;
  return index ? 1 /* INVALID_VALUE */ : (*offset = 0, *size = 40, 0);
}

struct Attribute {
  int id;
  char pad[4];
  int value[16];
};
struct Config {
  unsigned grid[3], block[3], shared;
  void *stream;
  struct Attribute *attributes;
  unsigned attribute_count;
};
int cuLaunchKernelEx(const struct Config *c, void *function, void **params, void **extra) {
  FILE *log = fopen(getenv("FAKE_LOG"), "a");
  if (!log || extra || !c->stream) return 1;
  fprintf(log, "%s grid %u %u %u block %u %u %u shared %u", (char *)function, c->grid[0], c->grid[1], c->grid[2],
          c->block[0], c->block[1], c->block[2], c->shared);
  for (unsigned i = 0; i < c->attribute_count; ++i) {
    const struct Attribute *a = &c->attributes[i];
    if (a->id == 4) fprintf(log, " cluster %d %d %d", a->value[0], a->value[1], a->value[2]);
    if (a->id == 6) fprintf(log, " programmatic %d", a->value[0]);
  }
  const uint32_t *words = params[0];
  fprintf(log, " sizes %u %u %u\n", words[6], words[7], words[8]);
  fclose(log);
  return number("FAKE_LAUNCH", 0);
}

int cuTensorMapEncodeTiled(uint64_t *map, int type, unsigned rank, void *address, const uint64_t *sizes,
                           const uint64_t *pitches, const unsigned *box, const unsigned *steps, int interleave, int swizzle,
                           int promotion, int fill) {
  if (rank != 2 || steps[0] != 1 || steps[1] != 1 || interleave || promotion != 3 || fill) return 1;
  const uint64_t said[8] = {(uint64_t)type, (uint64_t)address, sizes[0], sizes[1], pitches[0], box[0], box[1], (uint64_t)swizzle};
  memcpy(map, said, sizeof said);
  return 0;
}
