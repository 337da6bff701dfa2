// Ends a launch with a fault, which names block, thread, instruction and address.
#include "fault.hpp"

#include <cstdarg>
#include <cstdio>

#include "fiber.hpp"
#include "machine.hpp"

namespace emulated {
namespace {

[[noreturn]] void give_up(Fiber *culprit, FaultKind kind, bool has_address, uint64_t address,
                          const char *format, va_list arguments) {
  Cluster &cluster = *current->cluster;
  Fault &fault = *cluster.fault;
  fault.kind = kind;
  fault.has_address = has_address;
  fault.address = address;
  fault.thread = culprit ? culprit->thread : kNoThread;
  const Block &block = culprit ? *culprit->block : cluster.blocks[0];
  fault.block[0] = block.index.x, fault.block[1] = block.index.y, fault.block[2] = block.index.z;
  std::snprintf(fault.instruction, sizeof fault.instruction, "%s",
                culprit && culprit->instruction ? culprit->instruction : "");
  std::vsnprintf(fault.text, sizeof fault.text, format, arguments);
  cluster.failed = true;
  leave_fibers(cluster);
}

}  // namespace

void Writer::add(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  if (!full()) {
    const int more = std::vsnprintf(to_ + used_, size_t(room_ - used_), format, arguments);
    used_ = more < 0 || used_ + more >= room_ ? room_ - 1 : used_ + more;
    static const char kCut[] = " [cut]";
    if (full() && room_ > int(sizeof kCut)) std::memcpy(to_ + room_ - sizeof kCut, kCut, sizeof kCut);
  }
  va_end(arguments);
}

void fail(FaultKind kind, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  give_up(current, kind, current->has_address, current->address, format, arguments);
}

void fail_at(FaultKind kind, uint64_t address, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  give_up(current, kind, true, address, format, arguments);
}

void fail_in(Fiber *culprit, FaultKind kind, uint64_t address, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  give_up(culprit, kind, address != 0, address, format, arguments);
}

}  // namespace emulated
