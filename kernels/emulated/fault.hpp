// What a kernel did wrong, and where.
#pragma once
#include <cstdint>

namespace emulated {

struct Fiber;

// Mirrored in crates/emulated/src/fault.rs.
enum class FaultKind : int32_t {
  none = 0,
  shared_bounds = 1,  // outside of shared memory
  global_bounds = 2,  // outside of every registered buffer, or a write to one that is read-only
  misaligned = 3,     // an address that is not a multiple of what the access needs
  race = 4,           // two accesses with nothing to order them
  incomplete = 5,     // data of an asynchronous copy before it is known to be there
  proxy = 6,          // ordinary and asynchronous accesses without fence.proxy.async between them
  divergence = 7,     // lanes that must execute one instruction together do not
  barrier = 8,        // misuse of an mbarrier or a barrier
  transactions = 9,   // expect_tx and the bytes that came do not agree
  deadlock = 10,      // nothing can go on
  wgmma = 11,         // misuse of wgmma: fences, registers, descriptors
  tensor_map = 12,    // a tensor map or box that TMA refuses
  registers = 13,     // setmaxnreg
  cluster = 14,       // another block's memory that does not exist, or need not
  dependency = 15,    // data of the kernel before, without griddepcontrol.wait
  trap = 16,
  operand = 17,  // an operand that the instruction does not take
  launch = 18,   // a launch that the device refuses
  turn = 19,     // a kernel of a step that ends, or lets the next one begin, without griddepcontrol.wait
};

constexpr int kFaultText = 6144;

struct Fault {
  FaultKind kind;
  uint32_t block[3];
  uint32_t thread;  // kNoThread: none in particular
  uint32_t has_address;
  uint64_t address;
  char instruction[64];
  char text[kFaultText];
};
constexpr uint32_t kNoThread = 0xffffffffu;

// Text that is cut where the room ends, and then says so.
class Writer {
 public:
  Writer(char *to, int room) : to_(to), room_(room) { to_[0] = 0; }
  __attribute__((format(printf, 2, 3))) void add(const char *format, ...);
  bool full() const { return used_ + 1 >= room_; }

 private:
  char *to_;
  int room_, used_ = 0;
};

// Ends the launch with a fault of the running thread.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(FaultKind kind, const char *format, ...);
// The same, with the address that the fault is about.
[[noreturn]] __attribute__((format(printf, 3, 4))) void fail_at(FaultKind kind, uint64_t address,
                                                                const char *format, ...);
// The same for a fault of another thread than the running one, or (null) of none.
[[noreturn]] __attribute__((format(printf, 4, 5))) void fail_in(Fiber *culprit, FaultKind kind,
                                                                uint64_t address, const char *format, ...);

}  // namespace emulated
