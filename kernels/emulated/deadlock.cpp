// Reports where every thread is, once nothing can go on or a loop seems to have no end. What is waited for
// comes first, since the report may have no room for all threads.
#include "fiber.hpp"
#include "scheduler.hpp"

namespace emulated {
namespace {

// The kind of fault, and a thread that is involved: by the first cause that is found.
struct Finding {
  FaultKind kind = FaultKind::deadlock;
  Fiber *culprit = nullptr;
};

void describe_collectives(const Block &block, Writer &out, Finding &finding) {
  for (uint32_t w = 0; w < block.warp_count; ++w)
    for (size_t i = 0; i < block.warps[w].collectives.size(); ++i) {
      const Collective &collective = block.warps[w].collectives[i];
      if (finding.kind == FaultKind::deadlock)
        finding.culprit = &block.warps[w].lanes[__builtin_ctz(collective.arrived)];
      finding.kind = FaultKind::divergence;
      out.add(" Warp %u: %s wants lanes %08x together, and only %08x came.", w, collective.instruction,
              collective.mask, collective.arrived);
    }
}

void describe_barriers(const Block &block, Writer &out) {
  for (uint32_t id = 0; id < kNamedBarriers; ++id) {
    const NamedBarrier &barrier = block.barriers[id];
    if (!barrier.waiting.first) continue;
    if (block.cluster->block_count > 1) out.add(" Block %u:", block.rank);
    out.add(" Barrier %u: %u of %u threads came.", id, barrier.arrived, wanted(block, barrier));
  }
}

bool same_stop(const Fiber &a, const Fiber &b) {
  return a.block == b.block && a.exited == b.exited && a.instruction == b.instruction &&
         a.has_address == b.has_address && (!a.has_address || a.address == b.address);
}

// Lists the threads; neighbours that are at the same place are listed together.
void describe_threads(const Cluster &cluster, Writer &out) {
  for (uint32_t i = 0; i < cluster.fiber_count;) {
    const Fiber &first = cluster.fibers[i];
    uint32_t last = i;
    while (last + 1 < cluster.fiber_count && same_stop(cluster.fibers[last + 1], first)) ++last;
    out.add(i == 0 ? " Threads:" : ",");
    if (cluster.block_count > 1) out.add(" block %u", first.block->rank);
    if (last == i)
      out.add(" thread %u", first.thread);
    else
      out.add(" threads %u to %u", first.thread, cluster.fibers[last].thread);
    if (first.exited)
      out.add(" ended");
    else if (first.has_address)
      out.add(" in %s 0x%llx", first.instruction, (unsigned long long)first.address);
    else
      out.add(" in %s", first.instruction ? first.instruction : "no instruction yet");
    i = last + 1;
  }
  out.add(".");
}

Finding describe(Cluster &cluster, Writer &out) {
  Finding finding;
  for (uint32_t i = 0; i < cluster.fiber_count && !finding.culprit; ++i)
    if (!cluster.fibers[i].exited) finding.culprit = &cluster.fibers[i];
  for (uint32_t b = 0; b < cluster.block_count; ++b) describe_collectives(cluster.blocks[b], out, finding);
  bool unbalanced = false;
  describe_mbarriers(cluster, out, unbalanced);
  if (unbalanced && finding.kind == FaultKind::deadlock) finding.kind = FaultKind::transactions;
  for (uint32_t b = 0; b < cluster.block_count; ++b) describe_barriers(cluster.blocks[b], out);
  describe_threads(cluster, out);
  return finding;
}

}  // namespace

void report_deadlock(Cluster &cluster) {
  char(&text)[kFaultText] = cluster.worker->text;
  Writer out(text, sizeof text);
  out.add("nothing can go on.");
  const Finding finding = describe(cluster, out);
  const Fiber *culprit = finding.culprit;
  fail_in(finding.culprit, finding.kind, culprit && culprit->has_address ? culprit->address : 0, "%s", text);
}

void never_ends(Fiber &self) {
  char(&text)[kFaultText] = self.cluster->worker->text;
  Writer out(text, sizeof text);
  out.add(
      "the cluster's threads have executed %llu instructions, the launch's limit: a loop whose end never "
      "comes? (blocks run one after the other: a block cannot wait for another one that has not begun)",
      (unsigned long long)self.cluster->launch->instruction_limit);
  describe(*self.cluster, out);
  fail_in(&self, FaultKind::deadlock, self.has_address ? self.address : 0, "%s", text);
}

}  // namespace emulated
