// What the driver calls: crates/emulated/src/ffi.rs.
#include <cstdarg>
#include <cstdio>

#include "fiber.hpp"
#include "scheduler.hpp"

namespace emulated {

const Dim3 &thread_index() { return current->index; }
const Dim3 &block_index() { return current->block->index; }
const Dim3 &block_size() { return current->cluster->block_size; }
const Dim3 &grid_size() { return current->cluster->grid_size; }

namespace {

uint64_t volume(const uint32_t (&size)[3]) { return uint64_t(size[0]) * size[1] * size[2]; }

bool refuse(Fault &fault, const char *format, ...) {
  fault.kind = FaultKind::launch, fault.thread = kNoThread;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(fault.text, sizeof fault.text, format, arguments);
  va_end(arguments);
  return false;
}

// The limits of compute capability 9.0 (CUDA C++ Programming Guide, "Compute Capabilities"); clusters of more
// than 8 blocks are not portable.
bool check_launch(const Launch &launch, Fault &fault) {
  const Kernel &kernel = *launch.kernel;
  const uint32_t *grid = launch.grid, *block = launch.block, *cluster = launch.cluster;
  static const uint32_t kGrid[] = {0x7fffffff, 65535, 65535}, kBlock[] = {1024, 1024, 64};
  for (int i = 0; i < 3; ++i) {
    if (grid[i] == 0 || grid[i] > kGrid[i])
      return refuse(fault, "grid %c: wanted 1 to %u blocks, got %u", 'x' + i, kGrid[i], grid[i]);
    if (block[i] == 0 || block[i] > kBlock[i])
      return refuse(fault, "block %c: wanted 1 to %u threads, got %u", 'x' + i, kBlock[i], block[i]);
    if (cluster[i] == 0 || grid[i] % cluster[i] != 0)
      return refuse(fault, "cluster %c: wanted a divisor of the grid's %u blocks, got %u", 'x' + i, grid[i],
                    cluster[i]);
  }
  const uint64_t threads = volume(launch.block), blocks = volume(launch.cluster);
  if (threads > 1024)
    return refuse(fault, "block: wanted at most 1024 threads, got %llu", (unsigned long long)threads);
  if (threads > kernel.max_threads)
    return refuse(fault, "block: wanted at most the %u threads of the kernel's launch bounds, got %llu",
                  kernel.max_threads, (unsigned long long)threads);
  if (blocks > 8)
    return refuse(fault, "cluster: wanted at most 8 blocks, got %llu", (unsigned long long)blocks);
  if (launch.shared_limit > kSharedLimit)
    return refuse(
        fault,
        "shared memory: a block can have at most %u bytes (227 KB), and the kernel's limit was set to %u",
        kSharedLimit, launch.shared_limit);
  if (launch.dynamic_shared > kSharedLimit)
    return refuse(fault, "shared memory: a block can have at most %u bytes (227 KB), got %u", kSharedLimit,
                  launch.dynamic_shared);
  if (launch.dynamic_shared > launch.shared_limit)
    return refuse(
        fault,
        "shared memory: wanted at most the kernel's limit of %u bytes (its attribute, 48 KB unless raised), "
        "got %u",
        launch.shared_limit, launch.dynamic_shared);
  if (kernel.params_bytes > kParamsLimit)
    return refuse(fault, "parameters: wanted at most %u bytes, the kernel has %llu", kParamsLimit,
                  (unsigned long long)kernel.params_bytes);
  return true;
}

Dim3 unfold(uint64_t linear, const uint32_t (&size)[3]) {
  return {uint32_t(linear % size[0]), uint32_t(linear / size[0] % size[1]),
          uint32_t(linear / size[0] / size[1])};
}

void open_block(Cluster &cluster, Block &block, uint32_t rank, const Dim3 &first) {
  const Launch &launch = *cluster.launch;
  const Dim3 local = unfold(rank, launch.cluster);
  block.cluster = &cluster, block.rank = rank;
  block.index = {first.x + local.x, first.y + local.y, first.z + local.z};
  const uint64_t linear =
      (uint64_t(block.index.z) * launch.grid[1] + block.index.y) * launch.grid[0] + block.index.x;
  block.traced = launch.traced && launch.trace_block == linear;
  block.thread_count = block.live = uint32_t(volume(launch.block));
  block.warp_count = (block.thread_count + 31) / 32, block.warpgroup_count = block.thread_count / 128;
  block.fibers = cluster.fibers + rank * block.thread_count;
  block.warps = static_cast<Warp *>(zeroed_lines(sizeof(Warp) * block.warp_count));
  block.warpgroups = static_cast<Warpgroup *>(zeroed(sizeof(Warpgroup) * block.warpgroup_count));
  // Exactly the size asked for, so that an address sanitizer sees every byte beyond.
  void *shared = nullptr;
  if (posix_memalign(&shared, 1024, launch.dynamic_shared ? launch.dynamic_shared : 1) != 0) out_of_memory();
  block.shared = static_cast<uint8_t *>(shared);
  // Noise, in place of whatever was there before. In few blocks it is any bits: a NaN is seen through a
  // product with zero. In the others, 16-bit numbers from 2^-31 to 2: the model of the tensor core is slow at
  // NaNs and extremes, and what lies behind the last id of a tile is multiplied too. Schedules do not depend
  // on the choice.
  const bool any_bits = (launch.seed * 0x9e3779b97f4a7c15u + linear * 0xbf58476d1ce4e5b9u) >> 59 == 0;
  for (uint32_t i = 0; i + 4 <= launch.dynamic_shared; i += 4) {
    const uint32_t bits = cluster.random.next();
    const uint32_t noise = any_bits ? bits : (bits & 0x8fff8fff) | 0x30003000;
    std::memcpy(block.shared + i, &noise, 4);
  }
  block.mbarrier_at = static_cast<uint8_t *>(zeroed(launch.dynamic_shared / 8 + 1));
  if (launch.checks) block.shadow.open(launch.dynamic_shared);

  if (launch.checks && cluster.block_count > 1)
    block.reached = static_cast<Reach *>(zeroed(sizeof(Reach) * cluster.clocks.size()));
  const uint32_t agents = rank * (block.thread_count + block.warpgroup_count + kMbarriers);
  uint32_t registers = kRegisterFile / (launch.kernel->max_threads * launch.kernel->blocks_per_sm) / 8 * 8;
  registers = registers > 255 ? 255 : registers;
  for (uint32_t w = 0; w < block.warp_count; ++w) {
    Warp &warp = block.warps[w];
    warp.block = &block, warp.number = w, warp.lanes = block.fibers + w * 32, warp.registers = registers;
    warp.count = block.thread_count - w * 32 < 32 ? block.thread_count - w * 32 : 32;
    warp.there = warp.count == 32 ? 0xffffffffu : (1u << warp.count) - 1;
  }
  for (uint32_t g = 0; g < block.warpgroup_count; ++g) {
    Warpgroup &group = block.warpgroups[g];
    group.block = &block, group.number = g, group.lanes = block.fibers + g * 128;
    group.agent = agents + block.thread_count + g;
  }
  for (uint32_t i = 0; i < kMbarriers; ++i)
    block.mbarriers[i].agent = agents + block.thread_count + block.warpgroup_count + i;
  for (uint32_t t = 0; t < block.thread_count; ++t) {
    Fiber &fiber = block.fibers[t];
    fiber.stack = rank * block.thread_count + t;
    fiber.cluster = &cluster, fiber.block = &block, fiber.warp = &block.warps[t / 32];
    fiber.warpgroup = t / 128 < block.warpgroup_count ? &block.warpgroups[t / 128] : nullptr;
    fiber.index = unfold(t, launch.block), fiber.thread = t, fiber.lane = t % 32;
    fiber.agent = agents + t;
    fiber.clock = cluster.clocks.take();
    if (fiber.clock.on()) fiber.clock.plain[fiber.agent] = kBegun + 1, fiber.clock.base = kFreshClocks;
  }
}

void close_block(Block &block) {
  for (uint32_t g = 0; g < block.warpgroup_count; ++g) {
    release_wgmma(block.warpgroups[g]);
    block.warpgroups[g].~Warpgroup();
  }
  for (uint32_t w = 0; w < block.warp_count; ++w) block.warps[w].~Warp();
  for (uint32_t t = 0; t < block.thread_count; ++t) block.fibers[t].~Fiber();
  block.shadow.close();
  std::free(block.mbarrier_at);
  std::free(block.reached);
  std::free(block.shared);
  std::free(block.warpgroups);
  std::free(block.warps);
}

// Returns 0: it ended well; 1: the fault says why not; 2: the launch before has failed.
int run_cluster(Worker &worker, const Launch &launch, uint64_t number, Fault &fault) {
  const uint32_t blocks = uint32_t(volume(launch.cluster)), threads = uint32_t(volume(launch.block));
  if (!reserve_stacks(worker, blocks * threads)) {
    refuse(fault,
           "wanted stacks for %u threads, got none: the process has too little memory or too many mappings "
           "(vm.max_map_count); use fewer threads in LaunchConfig",
           blocks * threads);
    return 1;
  }
  worker.host_bottom = nullptr;
  auto *memory = static_cast<Cluster *>(zeroed(sizeof(Cluster)));
  Cluster &cluster = *memory;
  cluster.launch = &launch, cluster.worker = &worker, cluster.fault = &fault;
  cluster.random.seed(launch.seed, number);
  cluster.block_count = blocks;
  cluster.fiber_count = cluster.live = cluster.cluster_missing = blocks * threads;
  cluster.block_size = {launch.block[0], launch.block[1], launch.block[2]};
  cluster.grid_size = {launch.grid[0], launch.grid[1], launch.grid[2]};
  cluster.primary_agent = blocks * (threads + threads / 128 + kMbarriers);
  if (launch.checks) cluster.clocks.open(cluster.primary_agent + 1);
  cluster.clock_bases = kFreshClocks;
  cluster.primary_done = launch.in_turn;
  cluster.blocks = static_cast<Block *>(zeroed(sizeof(Block) * blocks));
  cluster.fibers = static_cast<Fiber *>(zeroed_lines(sizeof(Fiber) * cluster.fiber_count));
  cluster.ring_mask = 1;
  while (cluster.ring_mask + 1 < cluster.fiber_count) cluster.ring_mask = 2 * cluster.ring_mask + 1;
  cluster.ring = static_cast<Fiber **>(zeroed(sizeof(Fiber *) * (cluster.ring_mask + 1)));
  const uint32_t clusters[3] = {launch.grid[0] / launch.cluster[0], launch.grid[1] / launch.cluster[1],
                                launch.grid[2] / launch.cluster[2]};
  Dim3 first = unfold(number, clusters);
  first = {first.x * launch.cluster[0], first.y * launch.cluster[1], first.z * launch.cluster[2]};
  for (uint32_t rank = 0; rank < blocks; ++rank) open_block(cluster, cluster.blocks[rank], rank, first);

  start_fibers(cluster);

  for (uint32_t rank = 0; rank < blocks; ++rank) close_block(cluster.blocks[rank]);
  for (Pending *op : cluster.pending) std::free(op);
  const bool failed = cluster.failed;
  cluster.clocks.close();
  std::free(cluster.ring);
  std::free(cluster.fibers);
  std::free(cluster.blocks);
  cluster.~Cluster();
  std::free(memory);
  return !failed ? 0 : fault.kind == FaultKind::none ? 2 : 1;
}

}  // namespace
}  // namespace emulated

extern "C" {

emulated::Worker *lmhead_emulated_open_worker() { return emulated::open_worker(); }
void lmhead_emulated_close_worker(emulated::Worker *worker) { emulated::close_worker(worker); }

int lmhead_emulated_check_launch(const emulated::Launch *launch, emulated::Fault *fault) {
  return emulated::check_launch(*launch, *fault) ? 0 : 1;
}

int lmhead_emulated_run_cluster(emulated::Worker *worker, const emulated::Launch *launch, uint64_t number,
                                emulated::Fault *fault) {
  return emulated::run_cluster(*worker, *launch, number, *fault);
}

// The sizes of these structs, so that their mirrors in ffi.rs can be checked.
void lmhead_emulated_sizes(uint64_t (*out)[5]) {
  const uint64_t sizes[5] = {sizeof(emulated::Kernel), sizeof(emulated::Allocation), sizeof(emulated::Host),
                             sizeof(emulated::Launch), sizeof(emulated::Fault)};
  std::memcpy(out, sizes, sizeof sizes);
}
}
