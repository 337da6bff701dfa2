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

void drop_readers(Piece &piece) {
  std::memset(piece.readers, 0, sizeof piece.readers);
  std::free(piece.many_readers);
  piece.many_readers = nullptr;
}

void join_parts(Piece &piece) {
  if (!piece.parts) return;
  for (int i = 0; i < 4; ++i) {
    join_parts(piece.parts[i]);
    std::free(piece.parts[i].many_readers);
  }
  std::free(piece.parts);
  piece.parts = nullptr;
}

void divide(Piece &piece, uint32_t clock_size) {
  auto *parts = static_cast<Piece *>(zeroed(4 * sizeof(Piece)));
  for (int i = 0; i < 4; ++i) {
    parts[i] = piece;
    if (!piece.many_readers) continue;
    parts[i].many_readers = static_cast<uint32_t *>(zeroed(clock_size * sizeof(uint32_t)));
    std::memcpy(parts[i].many_readers, piece.many_readers, clock_size * sizeof(uint32_t));
  }
  drop_readers(piece);
  piece.parts = parts;
}

// Calls act(piece, offset) for every undivided piece in [begin, end) of this one, dividing it as far as
// needed.
template <class Act>
void visit(Piece &piece, uint32_t size, uint32_t offset, uint32_t begin, uint32_t end, uint32_t clock_size,
           Act &act) {
  const bool whole = begin <= offset && offset + size <= end;
  if (whole && !piece.parts) return act(piece, offset);
  if (!piece.parts) divide(piece, clock_size);
  const uint32_t part = size / 4;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t at = offset + i * part;
    if (at < end && begin < at + part) visit(piece.parts[i], part, at, begin, end, clock_size, act);
  }
}

template <class Act>
inline void each(Block &block, uint32_t offset, uint32_t bytes, Act act) {
  const uint32_t clock_size = block.cluster->clocks.size();
  const uint32_t end = offset + bytes;
  for (uint32_t at = offset / 16 * 16; at < end; at += 16) {
    Piece &piece = block.shadow.pieces[at / 16];
    if (__builtin_expect(!piece.parts && offset <= at && at + 16 <= end, 1))
      act(piece, at);
    else
      visit(piece, 16, at, offset, end, clock_size, act);
  }
}

// Records a write that has been checked: whoever reads afterwards must know it.
void settle(Block &block, uint32_t offset, uint32_t bytes, const Stamp &writer) {
  each(block, offset, bytes, [&](Piece &piece, uint32_t) {
    piece.writer = writer;
    if (piece.readers[0].time || piece.many_readers) drop_readers(piece);
  });
  // Pieces that were written whole have one state again.
  for (uint32_t at = (offset + 15) / 16 * 16; at + 16 <= offset + bytes; at += 16) {
    Piece &piece = block.shadow.pieces[at / 16];
    if (!piece.parts) continue;
    join_parts(piece);
    piece.writer = writer;
  }
}

inline void refuse_barrier(const Piece &piece, uint32_t offset, const char *access) {
  if (piece.barrier)
    fail_at(FaultKind::barrier, kSharedBase + offset,
            "%s of shared 0x%x, where an mbarrier is (wanted mbarrier "
            "instructions only, or mbarrier.inval first)",
            access, kSharedBase + offset);
}

inline void refuse_pending(Block &block, const Piece &piece, uint32_t offset, const char *access) {
  if (piece.writer.state == kPending)
    conflict(
        FaultKind::incomplete, block, offset, access, piece.writer,
        "a copy into it is not known to be complete (wanted its wait, or the mbarrier's phase), issued by");
}

// Checks an ordinary access of a thread against the piece's writer.
inline void check_writer(Block &block, const Piece &piece, uint32_t offset, const Clock &clock,
                         const char *access) {
  refuse_barrier(piece, offset, access);
  refuse_pending(block, piece, offset, access);
  if (piece.writer.time > clock.plain[piece.writer.agent])
    conflict(FaultKind::race, block, offset, access, piece.writer, "it was written by");
}

inline void check_readers(Block &block, const Piece &piece, uint32_t offset, const Clock &clock,
                          const char *access) {
  if (piece.reading)
    fail_at(FaultKind::race, kSharedBase + offset, "%s of shared 0x%x: a TMA store still reads it (wanted "
            "cp.async.bulk.wait_group.read by the thread that issued it)", access, kSharedBase + offset);
  for (const Stamp &reader : piece.readers)
    if (reader.time > clock.plain[reader.agent])
      conflict(FaultKind::race, block, offset, access, reader, "it was read by");
  if (!piece.many_readers) return;
  for (uint32_t i = 0; i < clock.size; ++i)
    if (piece.many_readers[i] > clock.plain[i])
      conflict(FaultKind::race, block, offset, access,
               Stamp{uint16_t(i), Proxy::generic, 0, piece.many_readers[i]}, "it was read by");
}

// `knows(older)`: a later writer that knows this reader knows that older one, too, which then need not be
// kept.
template <class Knows>
inline void add_reader(Piece &piece, const Stamp &reader, uint32_t clock_size, Knows knows) {
  if (piece.many_readers) {
    piece.many_readers[reader.agent] = std::max(piece.many_readers[reader.agent], reader.time);
    return;
  }
  for (Stamp &other : piece.readers) {
    if (other.time && other.agent != reader.agent && !knows(other)) continue;
    other = reader;
    return;
  }
  piece.many_readers = static_cast<uint32_t *>(zeroed(clock_size * sizeof(uint32_t)));
  for (const Stamp &other : piece.readers)
    piece.many_readers[other.agent] = std::max(piece.many_readers[other.agent], other.time);
  piece.many_readers[reader.agent] = std::max(piece.many_readers[reader.agent], reader.time);
}

// Ordinary writes must have reached the asynchronous proxy.
inline void check_proxy(Block &block, const Piece &piece, uint32_t offset, const Clock &clock,
                        const char *access) {
  if (piece.writer.proxy == Proxy::generic && piece.writer.time > clock.fenced[piece.writer.agent])
    conflict(FaultKind::proxy, block, offset, access, piece.writer, "it was written by");
}

}  // namespace

void Shadow::open(uint32_t bytes) {
  count = (bytes + 15) / 16;
  pieces = static_cast<Piece *>(zeroed(count * sizeof(Piece)));
}

void Shadow::close() {
  for (uint32_t i = 0; pieces && i < count; ++i) {
    join_parts(pieces[i]);
    std::free(pieces[i].many_readers);
  }
  std::free(pieces);
  pieces = nullptr;
}

void note_read(Block &block, uint32_t offset, uint32_t bytes, Fiber &reader) {
  if (!block.shadow.pieces) return;
  const Clock &clock = reader.clock;
  const Stamp stamp{uint16_t(reader.agent), Proxy::generic, 0, reader.now()};
  each(block, offset, bytes, [&](Piece &piece, uint32_t at) {
    check_writer(block, piece, at, clock, "read");
    add_reader(piece, stamp, clock.size,
               [&](const Stamp &other) { return other.time <= clock.plain[other.agent]; });
  });
}

void note_write(Block &block, uint32_t offset, uint32_t bytes, Fiber &writer) {
  if (!block.shadow.pieces) return;
  each(block, offset, bytes, [&](Piece &piece, uint32_t at) {
    check_writer(block, piece, at, writer.clock, "write");
    check_readers(block, piece, at, writer.clock, "write");
  });
  settle(block, offset, bytes, Stamp{uint16_t(writer.agent), Proxy::generic, 0, writer.now()});
}

void note_atomic(Block &block, uint32_t offset, uint32_t bytes, Fiber &writer) {
  if (!block.shadow.pieces) return;
  each(block, offset, bytes, [&](Piece &piece, uint32_t at) {
    if (piece.writer.state != kAtomic) check_writer(block, piece, at, writer.clock, "atomic");
    check_readers(block, piece, at, writer.clock, "atomic");
  });
  settle(block, offset, bytes, Stamp{uint16_t(writer.agent), Proxy::generic, kAtomic, writer.now()});
}

void note_copy_issued(Block &block, uint32_t offset, uint32_t bytes, Fiber &issuer, Proxy proxy) {
  if (!block.shadow.pieces) return;
  const char *access = proxy == Proxy::async ? "TMA write" : "cp.async";
  each(block, offset, bytes, [&](Piece &piece, uint32_t at) {
    check_writer(block, piece, at, issuer.clock, access);
    if (proxy == Proxy::async) check_proxy(block, piece, at, issuer.clock, access);
    check_readers(block, piece, at, issuer.clock, access);
  });
  settle(block, offset, bytes, Stamp{uint16_t(issuer.agent), proxy, kPending, issuer.now()});
}

void note_copy_known(Block &block, uint32_t offset, uint32_t bytes, uint32_t agent, uint32_t time) {
  if (!block.shadow.pieces) return;
  each(block, offset, bytes, [&](Piece &piece, uint32_t) {
    piece.writer.agent = uint16_t(agent), piece.writer.time = time, piece.writer.state = 0;
  });
}

void note_store_issued(Block &block, uint32_t offset, uint32_t bytes, Fiber &issuer) {
  if (!block.shadow.pieces) return;
  each(block, offset, bytes, [&](Piece &piece, uint32_t at) {
    check_writer(block, piece, at, issuer.clock, "TMA store's read");
    check_proxy(block, piece, at, issuer.clock, "TMA store's read");
    ++piece.reading;
  });
}

void note_store_read(Block &block, uint32_t offset, uint32_t bytes, Fiber &issuer) {
  if (!block.shadow.pieces) return;
  const Stamp stamp{uint16_t(issuer.agent), Proxy::async, 0, issuer.now()};
  each(block, offset, bytes, [&](Piece &piece, uint32_t) {
    --piece.reading;
    add_reader(piece, stamp, issuer.clock.size,
               [&](const Stamp &other) { return other.time <= issuer.clock.plain[other.agent]; });
  });
}

void note_wgmma_read(Block &block, uint32_t offset, uint32_t bytes, WgmmaReader &reader) {
  if (!block.shadow.pieces) return;
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
  each(block, offset, bytes, [&](Piece &piece, uint32_t at) {
    const char *access = "wgmma's read";
    refuse_barrier(piece, at, access);
    refuse_pending(block, piece, at, access);
    if (piece.writer.time) {
      look_up(piece.writer.agent);
      if (piece.writer.time > reader.plain)
        conflict(FaultKind::race, block, at, access, piece.writer,
                 "not all 128 threads know (by a wait of their own) that it was written by");
      if (piece.writer.proxy == Proxy::generic && piece.writer.time > reader.fenced)
        conflict(FaultKind::proxy, block, at, access, piece.writer, "it was written by");
    }
    add_reader(piece, stamp, group.lanes[0].clock.size, [](const Stamp &) { return false; });
  });
}

void note_barrier(Block &block, uint32_t offset, bool valid) {
  if (!block.shadow.pieces) return;
  each(block, offset, 8, [&](Piece &piece, uint32_t) { piece.barrier = valid; });
}

}  // namespace emulated
