// Registers of warpgroups, launches that overlap, trap.
#include "machine.hpp"

namespace emulated {

void setmaxnreg(const char *instruction, uint32_t registers, bool increase, Place place) {
  Fiber &self = enter(instruction, registers);
  if (registers % 8 != 0 || registers < 24 || registers > 256)
    fail(FaultKind::registers, "%u registers: wanted a multiple of 8 from 24 to 256", registers);
  Warpgroup *group = self.warpgroup;
  if (!group) fail(FaultKind::registers, "thread %u belongs to no whole warpgroup", self.thread);
  if (!meet(self, 0xffffffffu, registers, place)) return;
  Warp &warp = *self.warp;
  Block &block = *self.block;
  if (group->register_changes.size() == warp.register_changes)
    group->register_changes.push(registers);
  else if (group->register_changes[warp.register_changes] != registers)
    fail(FaultKind::registers, "warp %u asks for %u registers, another of its warpgroup asked for %u",
         warp.number, registers, group->register_changes[warp.register_changes]);
  ++warp.register_changes;
  if (increase ? registers < warp.registers : registers > warp.registers)
    fail(FaultKind::registers, "%s to %u: the warp has %u registers per thread", instruction, registers,
         warp.registers);
  if (!increase) {
    block.free_registers += (warp.registers - registers) * 32;
    wake_all(block.waiting_for_registers);
  } else {
    while (block.free_registers < (registers - warp.registers) * 32) park(block.waiting_for_registers);
    block.free_registers -= (registers - warp.registers) * 32;
  }
  warp.registers = registers;
  release(self, 0xffffffffu);
}

void check_registers_at_end(Block &block) {
  for (uint32_t w = 0; w < block.warp_count; ++w) {
    Warp &warp = block.warps[w];
    Warpgroup *group = warp.lanes[0].warpgroup;
    if (group && warp.register_changes != group->register_changes.size())
      fail_in(&warp.lanes[0], FaultKind::registers, 0,
              "warp %u executed setmaxnreg %u times, another of its warpgroup %u "
              "times (wanted all four warps)",
              w, warp.register_changes, uint32_t(group->register_changes.size()));
  }
}

void griddepcontrol_wait() {
  Fiber &self = enter("griddepcontrol.wait");
  Cluster &cluster = *self.cluster;
  const Launch &launch = *cluster.launch;
  self.block->waited = true;
  if (!launch.primary && !launch.in_turn) return;
  if (cluster.primary_done)
    yield();  // others may come first
  else
    park(cluster.waiting_for_primary);
  if (self.clock.on()) self.clock.learn(cluster.primary_agent, 1);
}

void trigger_dependents(Block &block) {
  if (block.triggered) return;
  block.triggered = true;
  const Host &host = block.cluster->launch->host;
  if (host.block_triggered) host.block_triggered(host.context);
}

void griddepcontrol_launch_dependents() {
  Fiber &self = enter("griddepcontrol.launch_dependents");
  if (self.cluster->launch->in_turn && !knows_primary(self))
    fail(FaultKind::turn,
         "before griddepcontrol.wait: the kernel behind this one would begin while kernels before it "
         "run, which it does not wait for (wanted the wait first)");
  trigger_dependents(*self.block);
}

// Every block must have waited. Else this kernel could complete before the one in front of it, and a kernel
// that waits for this one would not know that the other has completed.
void check_turn_at_end(Block &block) {
  if (block.cluster->launch->in_turn && block.cluster->launch->checks && !block.waited)
    fail(FaultKind::turn,
         "the block ends and has not waited for the kernel before (wanted griddepcontrol.wait in every "
         "block, whichever way it ends)");
}

void trap() {
  enter("trap");
  fail(FaultKind::trap, "the kernel executed trap");
}

}  // namespace emulated
