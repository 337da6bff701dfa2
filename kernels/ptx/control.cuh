// Registers per thread, dependent launches, the device's clock, trap.
#pragma once
#include "core.cuh"

namespace ptx {

// Executed by all warps of a warpgroup. kRegisters: a multiple of 8 from 24 to 256. Registers that one group
// gives up, another can take.
template <int kRegisters>
PTX void setmaxnreg_inc(PLACE) {
  EITHER(emulated::setmaxnreg("setmaxnreg.inc", kRegisters, true, place),
         asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters)));
}
template <int kRegisters>
PTX void setmaxnreg_dec(PLACE) {
  EITHER(emulated::setmaxnreg("setmaxnreg.dec", kRegisters, false, place),
         asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters)));
}

// Dependent launches exist since compute capability 9.0. In code for an older one these do nothing, and it
// must be launched after the kernel before has ended.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define SINCE_SM90(...)
#else
#define SINCE_SM90(...) __VA_ARGS__
#endif

// Waits until the kernel before this one in the stream has completed and its writes are visible.
PTX void griddepcontrol_wait() {
  SINCE_SM90(EITHER(emulated::griddepcontrol_wait(), asm volatile("griddepcontrol.wait;" ::: "memory"));)
}
// Lets the next kernel start once all blocks have called it or ended.
PTX void griddepcontrol_launch_dependents() {
  SINCE_SM90(EITHER(emulated::griddepcontrol_launch_dependents(),
                    asm volatile("griddepcontrol.launch_dependents;" ::: "memory"));)
}

// Nanoseconds since some moment, the same clock on the whole device; it may stand still for a microsecond.
PTX uint64_t globaltimer() {
  uint64_t now;
  EITHER(now = emulated::globaltimer(), asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory"));
  return now;
}

PTX void trap() { EITHER(emulated::trap(), asm volatile("trap;" ::: "memory")); }

}  // namespace ptx
