// The parts of the emulated device: a cluster of blocks, their warps, one fiber per thread; barriers; and
// what its files declare for each other.
//
// A cluster runs on one OS thread, from the first switch to its last fiber's end, so nothing in it needs a
// lock.
#pragma once
#include "../params.h"
#include "clock.hpp"
#include "device.hpp"
#include "driver.hpp"
#include "fault.hpp"
#include "races.hpp"
#include "support.hpp"

namespace emulated {

constexpr uint32_t kSharedLimit = 227 * 1024;   // bytes a block can have
constexpr uint32_t kSharedDefault = 48 * 1024;  // without the kernel's attribute
constexpr uint32_t kSharedBase = 1024;          // as on sm_90, where the first kilobyte is the system's
constexpr uint32_t kParamsLimit = 32764;  // since CUDA 12.1; the oldest driver that is accepted has 12.8
constexpr uint32_t kMbarriers = 64;  // the most of a block that are tracked at once
constexpr uint32_t kNamedBarriers = 16;
constexpr uint32_t kRegisterFile = 65536;
// A shared::cluster address: 1 + the block's rank above 24 bits of address. Plain addresses are those of the
// own block.
constexpr uint32_t kRankShift = 24;

struct Block;
struct Cluster;
struct Fiber;
struct Warp;
struct Warpgroup;

// constant: a load by .nc, which may be executed at any time, also before griddepcontrol.wait.
// acquire, release: of a flag, a word that tells others of data.
enum class Access : uint8_t { read, constant, write, atomic, acquire, release };
constexpr bool writes(Access access) {
  return access == Access::write || access == Access::atomic || access == Access::release;
}

// ---- threads ----

struct WaitList {
  Fiber *first = nullptr, *last = nullptr;
};

// One cp.async, or an arrival on an mbarrier that follows some.
struct Copy {
  enum Kind : uint8_t { data, arrival } kind;
  uint8_t bytes, from_bytes;
  uint32_t to;  // offset in the block's shared memory; of an arrival, the mbarrier's
  uint32_t group;
  const void *from;
};

// A thread's copies have arrived on an mbarrier, given by its agent, in its phase `time`.
struct Announced {
  uint32_t agent, time;
};

// One TMA store.
struct BulkStore {
  uint32_t group, from, bytes;
  uint64_t ticket;  // of its Pending
};

// An access to global memory before griddepcontrol.wait, to be compared with all that the launch before does.
struct EarlyAccess {
  const Allocation *buffer;
  uint64_t offset, bytes;
  Access access;
  Fiber *fiber;
  const char *instruction;
};

struct UsedAccumulators {
  const void *registers;
  int n;
  uint64_t hash;  // of their values
};
struct UsedFragment {
  const uint32_t *registers;
  uint32_t values[4];
  uint64_t number;  // of the latest instruction that reads it
  bool fenced;      // there was a wgmma.fence since
};
// Noise, the words in accumulators while a wgmma works on them: lane l of the warpgroup has `per_lane` words
// from first + l·per_lane.
struct Noise {
  uint32_t first, per_lane;
  uint32_t seen, words[3];  // different ones that other instructions have read
};

struct alignas(64) Fiber {
  // What every instruction touches, in one cache line.
  void *stack_pointer;
  Cluster *cluster;
  Block *block;
  Warp *warp;
  const char *instruction;
  uint64_t address;
  uint32_t lane, agent;
  bool has_address, exited;
  bool leads;  // woken to do the work of Warp::met

  Clock clock;
  Fiber *next_waiting;
  Warpgroup *warpgroup;
  uint32_t stack;  // in the worker's pool
  void *stack_top;
  uint32_t thread;
  Dim3 index;

  Array<Copy> copies;  // the first `copies_landed` are in shared memory, and nobody has waited for them
  uint32_t copies_landed;
  uint32_t copy_group;
  bool copies_listed;  // in Cluster::copying
  bool acquired;       // an ld.acquire, and no fence.proxy.async.global since
  Array<Announced> announced;
  Array<BulkStore> stores;
  uint32_t store_group;

  uint32_t cluster_arrivals;  // phases of barrier.cluster
  uint32_t cluster_waits;
  // How many wgmma this lane has issued, waits for, and has waited for.
  uint64_t wgmma_issued, wgmma_wanted, wgmma_waited;
  Array<uint64_t> wgmma_groups;  // instructions issued at each commit
  bool wgmma_fenced;  // it has executed wgmma.fence
  uint64_t wgmma_steps;  // a hash of its wgmma.fence, commit_group, wait_group in their order
  // Registers that wgmma has used since the last wgmma.fence: accumulators with the values they were given
  // back with, and fragments of a. Also fragments of instructions that nobody has waited for.
  Array<UsedAccumulators> wgmma_accumulators;
  Array<UsedFragment> wgmma_fragments;
  Array<uint64_t> wgmma_stack;  // the stack as wgmma.fence found it, from wgmma_stack_begin on
  uintptr_t wgmma_stack_begin;
  uintptr_t wgmma_low, wgmma_high;  // range of the registers that wgmma has named; 0: none
  uint32_t wgmma_fences;            // executed
  void *asan_stack;

  uint32_t now() const { return clock.plain[agent]; }
};

// An instruction that lanes execute together, while it waits for the rest of them.
struct Collective {
  const char *instruction;
  uint32_t mask, arrived;
  uint64_t detail;  // what must be equal in all lanes
  Place place;      // in the source, for .aligned instructions; else null
  bool live;        // waits for those lanes that have not ended
};

// What lanes bring to a matrix instruction and fetch from it, each at its own place: no lane's slot is used
// again before that lane has come to the next such instruction.
struct alignas(64) MatrixSlots {
  // mma.sync, as tensor_core.hpp has its tile.
  uint32_t a[16][8], b[8][8], d[16][8];
  // ldmatrix, stmatrix: where the rows are in shared memory, and what is in them.
  uint32_t offsets[32];
  uint8_t rows[4][8][16];
};

struct Warp {
  Block *block;
  Fiber *lanes;
  uint32_t count, number;
  uint32_t there, exited;  // masks of lanes
  uint32_t registers;      // per thread
  Array<Collective> collectives;
  Collective met;      // one that a lane's end has completed
  void *operands[32];  // of the instruction that each lane is in
  MatrixSlots slots;
  uint32_t register_changes;  // how many setmaxnreg it has executed
  Clock meeting;              // of bar.warp.sync
  uint64_t last_wgmma_steps;  // Fiber::wgmma_steps of the first lane that ended
};

struct WgmmaRecord;
struct Accumulators;

struct Warpgroup {
  Block *block;
  Fiber *lanes;
  uint32_t number, agent;
  Array<WgmmaRecord *> records;  // issued and not yet executed
  uint64_t first_record;         // number of records[0]
  Array<Accumulators *> accumulators;
  Array<Noise> noises;  // of the latest sets
  WaitList waiting;
  Array<uint32_t> register_changes;  // what setmaxnreg asked, in order
};

// ---- barriers ----

struct Mbarrier {
  bool valid, init_fenced;
  // The latest copy that this barrier counts: its phase (as `time`), its destination, its issuer.
  uint32_t landed, landed_at;
  Fiber *landed_by;
  uint32_t offset, agent;
  uint32_t phase;  // how many have completed
  uint32_t time;   // the same, but an init does not reset it
  uint32_t expected, pending;
  int64_t transactions;
  Fiber *init_by;
  uint32_t init_time;
  Clock arriving, completed;
  WaitList waiting;
};

// A thread's latest access to another block's shared memory.
struct Reach {
  Fiber *fiber;  // null: none
  const char *instruction;
  uint32_t time, address;
};

struct NamedBarrier {
  uint32_t arrived, threads;  // counted in whole warps
  bool all;                   // the block's threads: those that have ended are not waited for
  Clock arriving;
  WaitList waiting;  // one lane of each warp
};

// ---- blocks ----

struct Block {
  Cluster *cluster;
  uint32_t rank, live;
  bool triggered;
  bool waited;  // a thread has, for the launch before
  Dim3 index;
  Fiber *fibers;
  uint32_t thread_count;
  Warp *warps;
  Warpgroup *warpgroups;
  uint32_t warp_count, warpgroup_count;
  uint8_t *shared;
  Shadow shadow;
  Mbarrier mbarriers[kMbarriers];
  uint8_t *mbarrier_at;  // per eight bytes of shared memory: 1 + index
  NamedBarrier barriers[kNamedBarriers];
  uint32_t free_registers;
  WaitList waiting_for_registers;
  Reach *reached;  // by agent; null without other blocks, or without checks
  bool traced;
};

struct Pending;  // TMA operations under way (tma.cpp)
struct Worker;

struct Cluster {
  const Launch *launch;
  Worker *worker;
  Random random;
  uint32_t block_count, fiber_count, live;
  Block *blocks;
  Fiber *fibers;
  Fiber **ring;  // the ready fibers; its size is a power of two
  uint32_t ring_mask, ring_first, ring_count;
  uint32_t laziness;  // one in how many turns completes something asynchronous; a power of two
  Array<Pending *> pending;
  Array<Fiber *> copying;
  WaitList waiting_for_primary;
  uint64_t tickets, instructions;
  uint32_t cluster_missing, cluster_phase;
  Clock cluster_arriving, cluster_completed;
  WaitList waiting_for_cluster;
  bool primary_done;  // the launch before has ended, and whoever waits may know
  uint32_t
      primary_agent;  // its agent in clocks; time 1 is known to who has waited, or knows somebody who has
  Array<EarlyAccess> early;
  bool failed;
  ClockRoom clocks;
  uint64_t clock_bases;  // how many bases there are
  Fault *fault;
  void *host_stack_pointer;
  Dim3 block_size, grid_size;
};

// ---- the scheduler (scheduler.cpp) ----

extern __thread Fiber *current;

void park(WaitList &list);  // until woken
void park();                // the caller has put itself into a list
void yield();
void wake(Fiber &fiber);
void wake_lanes(Warp &warp, uint32_t lanes);
void wake_all(WaitList &list);
void enlist(WaitList &list, Fiber &fiber);

// `enter` is the first call of every instruction.
void trace(Fiber &self);
[[noreturn]] void never_ends(Fiber &self);  // deadlock.cpp
inline Fiber &begin(Fiber &self, const char *instruction) {
  self.instruction = instruction;
  if (__builtin_expect(++self.cluster->instructions > self.cluster->launch->instruction_limit, 0))
    never_ends(self);
  if (__builtin_expect(self.block->traced, 0)) trace(self);
  return self;
}
inline Fiber &enter(const char *instruction) {
  Fiber &self = *current;
  self.has_address = false;
  return begin(self, instruction);
}
inline Fiber &enter(const char *instruction, uint64_t address) {
  Fiber &self = *current;
  self.address = address;
  self.has_address = true;
  return begin(self, instruction);
}

// `meet`: true in the lane that comes last, which then does the work for all with the operands in the warp
// and calls `release`. The other lanes wait for that and get false. (warp.cpp)
inline bool same_text(const char *a, const char *b) { return a == b || std::strcmp(a, b) == 0; }
inline bool same_place(Place a, Place b) {
  return a.line == b.line && (a.file == b.file || same_text(a.file, b.file));
}
inline const char *base_name(const char *file) {
  const char *slash = std::strrchr(file, '/');
  return slash ? slash + 1 : file;
}
constexpr Place kNowhere{};  // of instructions that lanes may execute at different places
bool meet(Fiber &self, uint32_t mask, uint64_t detail, Place place, void *operands = nullptr);
void release(Fiber &self, uint32_t mask);
// The same for all lanes that have not ended, which `lanes` receives; those that end meanwhile are no longer
// waited for.
bool meet_live(Fiber &self, uint64_t detail, Place place, uint32_t &lanes);
inline uint32_t live_lanes(const Warp &warp) { return warp.there & ~warp.exited; }
void check_exit(Fiber &self);

// Checks bounds and alignment of an address without a rank. Returns the offset in the block's shared memory.
// (shared.cpp)
uint32_t shared_offset(Fiber &self, Block &block, uint32_t address, uint32_t bytes, uint32_t alignment);

// Shared memory of the cluster's other blocks: it exists from a block's beginning to its end. (cluster.cpp)
Block &block_of(Fiber &self, uint32_t address);  // of a shared::cluster address; notes the access
uint32_t without_rank(uint32_t address);         // the same address in its block
void check_begun(Fiber &self, const Block &block, uint32_t address);
void check_reached(Block &block);  // at the block's end
// The latest time of an agent that a thread of the block knows: at the block's end, what has come before
// that.
uint32_t known_in(const Block &block, uint32_t agent);

// Whether the thread knows that the launch before has ended. (global.cpp)
bool knows_primary(const Fiber &self);
// Checks bounds, alignment and permission. Returns the buffer. (global.cpp)
const Allocation &global_buffer(Fiber &self, const void *address, uint64_t bytes, uint32_t alignment,
                                Access access);
// Checks the access against others to these bytes, of this launch and of the one before, and marks them.
void note_global(Fiber &self, const Allocation &buffer, uint64_t offset, uint64_t bytes, Access access);
inline void check_global(Fiber &self, const void *address, uint64_t bytes, uint32_t alignment,
                         Access access) {
  const Allocation &buffer = global_buffer(self, address, bytes, alignment, access);
  if (buffer.marks)
    note_global(self, buffer, reinterpret_cast<uint64_t>(address) - buffer.address, bytes, access);
}
// Waits for the launch before, if there is one, and compares what was done before griddepcontrol.wait with
// all it did. Does not return where that launch has failed.
void check_against_primary(Cluster &cluster);

// (mbarrier.cpp)
Mbarrier &mbarrier_for(Fiber &self, Block &block, uint32_t offset);
void arrive_on(Fiber *self, Mbarrier &barrier);  // null: a copy arrives
void complete_transactions(Mbarrier &barrier, uint32_t bytes);
void note_landed(Mbarrier &barrier, Fiber &issuer,
                 uint32_t offset);  // a copy, in the barrier's present phase
void check_mbarriers_at_end(Block &block);
void describe_mbarriers(Cluster &cluster, Writer &out, bool &unbalanced);

// Asynchronous work: each completes some. (async_copy.cpp, tma.cpp)
void land_some_copies(Cluster &cluster);
void complete_tma(Cluster &cluster, size_t which);
void check_copies_at_exit(Fiber &self);
void check_tma_at_exit(Fiber &self);
void check_tma_of_block(Block &block);
// Checks words that an instruction takes from the thread's registers: they may not be accumulators that
// nobody has waited for. (wgmma_registers.cpp)
void check_noise(Fiber &self, const uint32_t *words, uint32_t count);
inline void check_values(Fiber &self, const void *values, uint32_t bytes) {
  const Warpgroup *group = self.warpgroup;
  if (__builtin_expect(!group || group->noises.empty() || !self.clock.on(), 1)) return;
  check_noise(self, static_cast<const uint32_t *>(values), bytes / 4);
}
// (wgmma.cpp)
void check_wgmma_at_exit(Fiber &self);
void release_wgmma(Warpgroup &group);
// (barrier.cpp)
void leave_barriers(Fiber &self);  // ended, and no longer counted among the warp's lanes
uint32_t wanted(const Block &block, const NamedBarrier &barrier);  // how many threads
// (control.cpp)
void check_registers_at_end(Block &block);
void trigger_dependents(Block &block);
void check_turn_at_end(Block &block);

}  // namespace emulated
