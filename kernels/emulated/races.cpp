// Checks each access to shared memory against the accesses before it, and reports races.
#include "races.hpp"

#include <algorithm>

#include "machine.hpp"

namespace emulated {
namespace {

void name_agent(Cluster &cluster, uint32_t agent, Writer &out) {
  for (uint32_t i = 0; i < cluster.block_count; ++i) {
    Block &block = cluster.blocks[i];
    const uint32_t per_block = block.thread_count + block.warpgroup_count + kMbarriers;
    if (agent >= per_block * (i + 1)) continue;
    agent -= per_block * i;
    if (agent < block.thread_count)
      out.add("thread %u", agent);
    else if (agent < block.thread_count + block.warpgroup_count)
      out.add("wgmma of warpgroup %u", agent - block.thread_count);
    else
      out.add("copies announced by mbarrier 0x%x",
              kSharedBase + block.mbarriers[agent - block.thread_count - block.warpgroup_count].offset);
    if (cluster.block_count > 1) out.add(" of the cluster's block %u", i);
    return;
  }
}

[[noreturn]] void conflict(FaultKind kind, Block &block, uint32_t offset, const char *access,
                           const Stamp &with, const char *what) {
  char text[512];
  Writer out(text, sizeof text);
  out.add("%s of shared 0x%x: ", access, kSharedBase + offset);
  out.add("%s ", what);
  name_agent(*block.cluster, with.agent, out);
  switch (kind) {
    case FaultKind::race:
      out.add(
          " and nothing orders it before this (wanted a barrier, an mbarrier or bar.warp.sync between the "
          "two)");
      break;
    case FaultKind::proxy:
      out.add(
          " through the other proxy (wanted fence.proxy.async between that access and the barrier before "
          "this one, or after it)");
      break;
    default: break;
  }
  fail_at(kind, kSharedBase + offset, "%s", text);
}

void drop_readers(Cell &cell) {
  std::memset(cell.readers, 0, sizeof cell.readers);
  std::free(cell.many_readers);
  cell.many_readers = nullptr;
}

void join_parts(Cell &cell) {
  if (!cell.parts) return;
  for (int i = 0; i < 4; ++i) {
    join_parts(cell.parts[i]);
    std::free(cell.parts[i].many_readers);
  }
  std::free(cell.parts);
  cell.parts = nullptr;
}

void divide(Cell &cell, uint32_t clock_size) {
  auto *parts = static_cast<Cell *>(zeroed(4 * sizeof(Cell)));
  for (int i = 0; i < 4; ++i) {
    parts[i] = cell;
    if (!cell.many_readers) continue;
    parts[i].many_readers = static_cast<uint32_t *>(zeroed(clock_size * sizeof(uint32_t)));
    std::memcpy(parts[i].many_readers, cell.many_readers, clock_size * sizeof(uint32_t));
  }
  drop_readers(cell);
  cell.parts = parts;
}

// Calls act(cell, offset) for every undivided cell in [begin, end) of this one, dividing it as far as needed.
template <class Act>
void visit(Cell &cell, uint32_t size, uint32_t offset, uint32_t begin, uint32_t end, uint32_t clock_size,
           Act &act) {
  const bool whole = begin <= offset && offset + size <= end;
  if (whole && !cell.parts) return act(cell, offset);
  if (!cell.parts) divide(cell, clock_size);
  const uint32_t part = size / 4;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t at = offset + i * part;
    if (at < end && begin < at + part) visit(cell.parts[i], part, at, begin, end, clock_size, act);
  }
}

template <class Act>
inline void each(Block &block, uint32_t offset, uint32_t bytes, Act act) {
  const uint32_t clock_size = block.cluster->clocks.size();
  const uint32_t end = offset + bytes;
  for (uint32_t at = offset / 16 * 16; at < end; at += 16) {
    Cell &cell = block.shadow.cells[at / 16];
    if (__builtin_expect(!cell.parts && offset <= at && at + 16 <= end, 1))
      act(cell, at);
    else
      visit(cell, 16, at, offset, end, clock_size, act);
  }
}

// Records a write that has been checked: whoever reads afterwards must know it.
void record_write(Block &block, uint32_t offset, uint32_t bytes, const Stamp &writer) {
  each(block, offset, bytes, [&](Cell &cell, uint32_t) {
    cell.writer = writer;
    if (cell.readers[0].time || cell.many_readers) drop_readers(cell);
  });
  // Cells that were written whole have one state again.
  for (uint32_t at = (offset + 15) / 16 * 16; at + 16 <= offset + bytes; at += 16) {
    Cell &cell = block.shadow.cells[at / 16];
    if (!cell.parts) continue;
    join_parts(cell);
    cell.writer = writer;
  }
}

inline void refuse_barrier(const Cell &cell, uint32_t offset, const char *access) {
  if (cell.barrier)
    fail_at(FaultKind::barrier, kSharedBase + offset,
            "%s of shared 0x%x, where an mbarrier is (wanted mbarrier "
            "instructions only, or mbarrier.inval first)",
            access, kSharedBase + offset);
}

inline void refuse_pending(Block &block, const Cell &cell, uint32_t offset, const char *access) {
  if (cell.writer.state == kPending)
    conflict(
        FaultKind::incomplete, block, offset, access, cell.writer,
        "a copy into it is not known to be complete (wanted its wait, or the mbarrier's phase), issued by");
}

// Checks an ordinary access of a thread against the cell's writer.
inline void check_writer(Block &block, const Cell &cell, uint32_t offset, const Clock &clock,
                         const char *access) {
  refuse_barrier(cell, offset, access);
  refuse_pending(block, cell, offset, access);
  if (cell.writer.time > clock.plain[cell.writer.agent])
    conflict(FaultKind::race, block, offset, access, cell.writer, "it was written by");
}

inline void check_readers(Block &block, const Cell &cell, uint32_t offset, const Clock &clock,
                          const char *access) {
  if (cell.reading)
    fail_at(FaultKind::race, kSharedBase + offset, "%s of shared 0x%x: a TMA store still reads it (wanted "
            "cp.async.bulk.wait_group.read by the thread that issued it)", access, kSharedBase + offset);
  for (const Stamp &reader : cell.readers)
    if (reader.time > clock.plain[reader.agent])
      conflict(FaultKind::race, block, offset, access, reader, "it was read by");
  if (!cell.many_readers) return;
  for (uint32_t i = 0; i < clock.size; ++i)
    if (cell.many_readers[i] > clock.plain[i])
      conflict(FaultKind::race, block, offset, access,
               Stamp{uint16_t(i), Proxy::generic, 0, cell.many_readers[i]}, "it was read by");
}

// `knows(older)`: a later writer that knows this reader knows that older one, too, which then need not be
// kept.
template <class Knows>
inline void add_reader(Cell &cell, const Stamp &reader, uint32_t clock_size, Knows knows) {
  if (cell.many_readers) {
    cell.many_readers[reader.agent] = std::max(cell.many_readers[reader.agent], reader.time);
    return;
  }
  for (Stamp &other : cell.readers) {
    if (other.time && other.agent != reader.agent && !knows(other)) continue;
    other = reader;
    return;
  }
  cell.many_readers = static_cast<uint32_t *>(zeroed(clock_size * sizeof(uint32_t)));
  for (const Stamp &other : cell.readers)
    cell.many_readers[other.agent] = std::max(cell.many_readers[other.agent], other.time);
  cell.many_readers[reader.agent] = std::max(cell.many_readers[reader.agent], reader.time);
}

// Ordinary writes must have reached the asynchronous proxy.
inline void check_proxy(Block &block, const Cell &cell, uint32_t offset, const Clock &clock,
                        const char *access) {
  if (cell.writer.proxy == Proxy::generic && cell.writer.time > clock.fenced[cell.writer.agent])
    conflict(FaultKind::proxy, block, offset, access, cell.writer, "it was written by");
}

}  // namespace

void Shadow::open(uint32_t bytes) {
  count = (bytes + 15) / 16;
  cells = static_cast<Cell *>(zeroed(count * sizeof(Cell)));
}

void Shadow::close() {
  for (uint32_t i = 0; cells && i < count; ++i) {
    join_parts(cells[i]);
    std::free(cells[i].many_readers);
  }
  std::free(cells);
  cells = nullptr;
}

void note_read(Block &block, uint32_t offset, uint32_t bytes, Fiber &reader) {
  if (!block.shadow.cells) return;
  const Clock &clock = reader.clock;
  const Stamp stamp{uint16_t(reader.agent), Proxy::generic, 0, reader.now()};
  each(block, offset, bytes, [&](Cell &cell, uint32_t at) {
    check_writer(block, cell, at, clock, "read");
    add_reader(cell, stamp, clock.size,
               [&](const Stamp &other) { return other.time <= clock.plain[other.agent]; });
  });
}

void note_write(Block &block, uint32_t offset, uint32_t bytes, Fiber &writer) {
  if (!block.shadow.cells) return;
  each(block, offset, bytes, [&](Cell &cell, uint32_t at) {
    check_writer(block, cell, at, writer.clock, "write");
    check_readers(block, cell, at, writer.clock, "write");
  });
  record_write(block, offset, bytes, Stamp{uint16_t(writer.agent), Proxy::generic, 0, writer.now()});
}

void note_atomic(Block &block, uint32_t offset, uint32_t bytes, Fiber &writer) {
  if (!block.shadow.cells) return;
  each(block, offset, bytes, [&](Cell &cell, uint32_t at) {
    if (cell.writer.state != kAtomic) check_writer(block, cell, at, writer.clock, "atomic");
    check_readers(block, cell, at, writer.clock, "atomic");
  });
  record_write(block, offset, bytes, Stamp{uint16_t(writer.agent), Proxy::generic, kAtomic, writer.now()});
}

void note_copy_issued(Block &block, uint32_t offset, uint32_t bytes, Fiber &issuer, Proxy proxy) {
  if (!block.shadow.cells) return;
  const char *access = proxy == Proxy::async ? "TMA write" : "cp.async";
  each(block, offset, bytes, [&](Cell &cell, uint32_t at) {
    check_writer(block, cell, at, issuer.clock, access);
    if (proxy == Proxy::async) check_proxy(block, cell, at, issuer.clock, access);
    check_readers(block, cell, at, issuer.clock, access);
  });
  record_write(block, offset, bytes, Stamp{uint16_t(issuer.agent), proxy, kPending, issuer.now()});
}

void note_copy_known(Block &block, uint32_t offset, uint32_t bytes, uint32_t agent, uint32_t time) {
  if (!block.shadow.cells) return;
  each(block, offset, bytes, [&](Cell &cell, uint32_t) {
    cell.writer.agent = uint16_t(agent), cell.writer.time = time, cell.writer.state = 0;
  });
}

void note_store_issued(Block &block, uint32_t offset, uint32_t bytes, Fiber &issuer) {
  if (!block.shadow.cells) return;
  each(block, offset, bytes, [&](Cell &cell, uint32_t at) {
    check_writer(block, cell, at, issuer.clock, "TMA store's read");
    check_proxy(block, cell, at, issuer.clock, "TMA store's read");
    ++cell.reading;
  });
}

void note_store_read(Block &block, uint32_t offset, uint32_t bytes, Fiber &issuer) {
  if (!block.shadow.cells) return;
  const Stamp stamp{uint16_t(issuer.agent), Proxy::async, 0, issuer.now()};
  each(block, offset, bytes, [&](Cell &cell, uint32_t) {
    --cell.reading;
    add_reader(cell, stamp, issuer.clock.size,
               [&](const Stamp &other) { return other.time <= issuer.clock.plain[other.agent]; });
  });
}

void note_wgmma_read(Block &block, uint32_t offset, uint32_t bytes, WgmmaReader &reader) {
  if (!block.shadow.cells) return;
  Warpgroup &group = reader.group;
  const Stamp stamp{uint16_t(group.agent), Proxy::async, 0, reader.time};
  const auto look_up = [&](uint32_t agent) {
    if (agent == reader.agent) return;
    uint32_t plain = 0xffffffffu, fenced = plain;
    for (int i = 0; i < 128; ++i) {
      const Clock &clock = group.lanes[i].clock;
      plain = std::min(plain, clock.plain[agent]), fenced = std::min(fenced, clock.fenced[agent]);
    }
    reader.agent = agent, reader.plain = plain, reader.fenced = fenced;
  };
  each(block, offset, bytes, [&](Cell &cell, uint32_t at) {
    const char *access = "wgmma's read";
    refuse_barrier(cell, at, access);
    refuse_pending(block, cell, at, access);
    if (cell.writer.time) {
      look_up(cell.writer.agent);
      if (cell.writer.time > reader.plain)
        conflict(FaultKind::race, block, at, access, cell.writer,
                 "not all 128 threads know (by a wait of their own) that it was written by");
      if (cell.writer.proxy == Proxy::generic && cell.writer.time > reader.fenced)
        conflict(FaultKind::proxy, block, at, access, cell.writer, "it was written by");
    }
    add_reader(cell, stamp, group.lanes[0].clock.size, [](const Stamp &) { return false; });
  });
}

void note_barrier(Block &block, uint32_t offset, bool valid) {
  if (!block.shadow.cells) return;
  each(block, offset, 8, [&](Cell &cell, uint32_t) { cell.barrier = valid; });
}

}  // namespace emulated
