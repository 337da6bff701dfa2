// What happens on streams: where the sides of an operation meet, and how its bytes move.
#include <algorithm>
#include <utility>

#include "world.hpp"

namespace fake_nccl {

namespace {

// What a graph keeps of a launch: the numbers of its operations, given at its first replay.
struct Captured {
  bool is_launched = false;
  std::vector<long long> numbers;
};

uint64_t bytes_of(const Operation &operation) { return operation.count * type_bytes(operation.type); }

// The next number of that operation in one of a communicator's counts.
size_t next(Issued &issued, const Operation &operation) {
  if (operation.kind == Kind::SEND) return issued.sends[operation.peer]++;
  if (operation.kind == Kind::RECV) return issued.recvs[operation.peer]++;
  return issued.collectives++;
}

// Where the sides of operation `number` meet; `side` becomes this rank's. The tables forget it once all sides
// are issued, since nobody looks for it any more.
std::shared_ptr<Meeting> meet(Clique &clique, const Communicator &c, const Operation &operation,
                              size_t number, size_t &side) {
  const auto find = [&](auto &all, std::vector<int> ranks) {
    std::shared_ptr<Meeting> &there = all[number];
    if (!there)
      there = std::make_shared<Meeting>(), there->sides.resize(ranks.size()), there->ranks = std::move(ranks);
    const std::shared_ptr<Meeting> meeting = there;
    meeting->sides[side].is_issued = true;
    if (std::all_of(meeting->sides.begin(), meeting->sides.end(),
                    [](const Side &one) { return one.is_issued; }))
      all.erase(number);
    return meeting;
  };
  if (!operation.is_pair()) {
    std::vector<int> ranks;
    for (int rank = 0; rank < clique.size; ++rank) ranks.push_back(rank);
    return side = size_t(c.rank), find(clique.collectives, std::move(ranks));
  }
  const bool sends = operation.kind == Kind::SEND;
  const int from = sends ? c.rank : operation.peer, to = sends ? operation.peer : c.rank;
  return side = sends ? 0 : 1, find(clique.pairs[{from, to}], {from, to});
}

// What two sides of an operation disagree about, in words; empty: nothing.
std::string disagreement(const Side &a, int rank_a, const Side &b, int rank_b) {
  const std::string one = "rank " + std::to_string(rank_a), other = "rank " + std::to_string(rank_b);
  const Operation &x = a.operation, &y = b.operation;
  const bool same = x.is_pair() ? y.is_pair() : x.kind == y.kind && x.peer == y.peer;
  if (!same || x.count != y.count || x.type != y.type)
    return one + " issued " + describe(x) + ", " + other + " " + describe(y);
  if ((a.captured < 0) != (b.captured < 0))
    return describe(x) + ": " + (a.captured < 0 ? other : one) + " replays a graph, and " +
           (a.captured < 0 ? one : other) + " does not";
  if (a.captured != b.captured)
    return describe(x) + ": " + one + " and " + other + " replay graphs of other operations";
  return "";
}

// How the orders differ in which two ranks have issued what they share before an operation, in words; empty:
// they do not.
std::string disorder(const Side &a, int rank_a, const Side &b, int rank_b) {
  const std::string one = "rank " + std::to_string(rank_a), other = "rank " + std::to_string(rank_b);
  const auto la = a.launch.lock(), lb = b.launch.lock();
  if (!la || !lb) return "";
  const auto &in_a = la->communicator->seat->members, &in_b = lb->communicator->seat->members;
  for (const auto &[clique, issued] : a.before) {
    const auto theirs = b.before.find(clique);
    const auto ma = in_a.find(clique), mb = in_b.find(clique);
    if (theirs == b.before.end() || ma == in_a.end() || mb == in_b.end()) continue;
    if (ma->second->gives_up() || mb->second->gives_up() || ma->second->failure || mb->second->failure)
      continue;
    const size_t na = issued.with(mb->second->rank), nb = theirs->second.with(ma->second->rank);
    if (na != nb)
      return describe(a.operation) + ": before it, " + one + " had issued " + std::to_string(na) +
             " operations of clique " + std::to_string(clique) + ", and " + other + " " + std::to_string(nb) +
             ": another order, or other groups";
  }
  return "";
}

// Applies the faults that the settings have for this launch, by its number among the rank's.
void inject(Launch &launch, long long number) {
  Communicator &c = *launch.communicator;
  const auto hit = [&](const char *name) { return setting(name, 0) && is_hit(c.rank, number); };
  const bool lost = hit("FAKE_NCCL_LOST"), fails = hit("FAKE_NCCL_ASYNC");
  launch.stalls = lost || fails || hit("FAKE_NCCL_STALL"), launch.mixes = hit("FAKE_NCCL_MIX");
  const auto late = std::chrono::milliseconds(hit("FAKE_NCCL_LATE") ? setting("FAKE_NCCL_LATE", 0) : 0);
  launch.due = std::chrono::steady_clock::now() + late;
  if (fails) fail(c, int(setting("FAKE_NCCL_ASYNC", 0)), "an injected error");
  for (const auto &[rank, member] : c.clique->members)
    if (lost && member != &c) fail(*member, REMOTE_ERROR, "socketProgress: Connection closed by remote peer");
}

// The operations of a launch take their places among those of the other ranks.
std::shared_ptr<Launch> issue(const std::shared_ptr<Communicator> &communicator, void *stream,
                              const std::vector<Operation> &operations, long long number,
                              Captured *captured) {
  Communicator &c = *communicator;
  const auto launch = std::make_shared<Launch>();
  launch->communicator = communicator, launch->stream = stream, launch->operations = operations;
  ++counts["launches"], counts["operations"] += (long long)operations.size(),
      counts["replays"] += captured != nullptr;
  unfinished(c);  // forgets those that have ended
  c.launches.push_back(launch);
  if (c.gives_up())
    return misuse(nullptr, "a graph was launched that has operations of " + c.name() + ", which is gone"),
           launch;

  if (captured) number = next_launch(c.rank, true);
  inject(*launch, number);
  if (captured && !captured->is_launched) {
    captured->is_launched = true;
    for (const Operation &operation : operations)
      captured->numbers.push_back((long long)next(c.captured, operation));
  }
  std::map<uint64_t, Issued> before;
  for (const auto &[clique, member] : c.seat->members) before[clique] = member->issued;
  for (size_t i = 0; i < operations.size(); ++i) {
    size_t mine;
    const size_t place = next(c.issued, operations[i]);
    const auto meeting = meet(*c.clique, c, operations[i], place, mine);
    launch->sides.push_back({meeting, mine});
    Side &side = meeting->sides[mine];
    side.operation = operations[i], side.captured = captured ? captured->numbers[i] : -1;
    side.before = before, side.launch = launch;
    for (size_t other = 0; other < meeting->sides.size(); ++other) {
      if (other == mine || !meeting->sides[other].is_issued) continue;
      const Side &theirs = meeting->sides[other];
      std::string words = disagreement(side, c.rank, theirs, meeting->ranks[other]);
      if (words.empty()) {
        words = disorder(side, c.rank, theirs, meeting->ranks[other]);
        if (!words.empty() && setting("FAKE_NCCL_DEADLOCK", 0)) {
          launch->stalls = theirs.launch.lock()->stalls = true;
          continue;
        }
      }
      if (words.empty()) continue;
      const std::string kind = operations[i].is_pair() ? "pair's" : "collective";
      misuse(c.clique.get(), "clique " + std::to_string(c.clique->number) + ", " + kind + " operation " +
                                 std::to_string(place) + ": " + words);
      break;
    }
  }
  return launch;
}

bool is_memory(const Communicator &c, const Range &range) {
  return !range.bytes || hooks().inside(c.device, range.address, range.bytes);
}

// The launch's stream has come to it. Returns the driver's code.
int arrive(Launch &launch) {
  const Communicator &c = *launch.communicator;
  for (size_t i = 0; i < launch.operations.size(); ++i) {
    const Operation &operation = launch.operations[i];
    const Range from = sent(operation, c);
    if (!is_memory(c, from) || !is_memory(c, received(operation, c)))
      return misuse(c.clique.get(), c.name() + ": " + describe(operation) +
                                        ": a buffer is not in one allocation of device " +
                                        std::to_string(c.device)),
             kIllegalAddress;
    const auto *bytes = reinterpret_cast<const uint8_t *>(from.address);
    auto &[meeting, mine] = launch.sides[i];
    meeting->sides[mine].sent.assign(bytes, bytes + from.bytes);
  }
  for (size_t i = 0; i < launch.operations.size(); ++i) {
    const Operation &operation = launch.operations[i];
    const Range from = sent(operation, c), to = received(operation, c);
    auto &[meeting, mine] = launch.sides[i];
    if (to.bytes) std::memset(reinterpret_cast<void *>(to.address), kPoison, to.bytes);
    // In place, the bytes to send are among them.
    if (from.bytes && is_in_place(operation, c))
      std::memcpy(reinterpret_cast<void *>(from.address), meeting->sides[mine].sent.data(), from.bytes);
    meeting->sides[mine].has_arrived = true;
  }
  return launch.has_arrived = true, 0;
}

struct Copy {
  uint64_t to;
  std::vector<uint8_t> bytes;
};

// Swaps bytes of the same size between ranks, or, where there are none, makes bytes wrong.
void mix(std::vector<Copy> &copies) {
  for (size_t i = 0; i < copies.size(); ++i) {
    const auto other = std::find_if(copies.begin() + long(i) + 1, copies.end(), [&](const Copy &copy) {
      return copy.bytes.size() == copies[i].bytes.size() && copy.bytes != copies[i].bytes;
    });
    if (other != copies.end())
      std::swap(copies[i].bytes, other->bytes);
    else if (i == 0 && !copies[i].bytes.empty())
      copies[i].bytes[0] ^= 1;
  }
}

// All sides have come: writes what this rank receives.
void deliver(const Launch &launch) {
  const Communicator &c = *launch.communicator;
  std::vector<Copy> copies;
  for (size_t i = 0; i < launch.operations.size(); ++i) {
    const Operation &operation = launch.operations[i];
    const auto &[meeting, mine] = launch.sides[i];
    const Range from = sent(operation, c);
    if (from.bytes && !is_in_place(operation, c) &&
        std::memcmp(reinterpret_cast<const void *>(from.address), meeting->sides[mine].sent.data(),
                    from.bytes) != 0)
      misuse(c.clique.get(),
             c.name() + ": " + describe(operation) + ": what it sends was written to before it had ended");
    const uint64_t bytes = bytes_of(operation);
    const auto piece = [&](size_t side, uint64_t at) {
      const auto start = meeting->sides[side].sent.begin() + long(at);
      return std::vector<uint8_t>(start, start + long(bytes));
    };
    switch (operation.kind) {
      case Kind::SEND: break;
      case Kind::RECV: copies.push_back({operation.recv, piece(0, 0)}); break;
      case Kind::BROADCAST: copies.push_back({operation.recv, piece(size_t(operation.peer), 0)}); break;
      case Kind::ALL_GATHER:
      case Kind::ALL_TO_ALL:
        for (size_t rank = 0; rank < meeting->sides.size(); ++rank)
          copies.push_back({operation.recv + rank * bytes,
                            piece(rank, operation.kind == Kind::ALL_TO_ALL ? uint64_t(c.rank) * bytes : 0)});
    }
  }
  if (launch.mixes) mix(copies);
  for (const Copy &copy : copies) {
    if (!copy.bytes.empty())
      std::memcpy(reinterpret_cast<void *>(copy.to), copy.bytes.data(), copy.bytes.size());
    counts["bytes"] += (long long)copy.bytes.size();
  }
}

// The work on the stream. Returns 0, the driver's error or kPeers (fake::Work).
int run(Launch &launch) {
  Communicator &c = *launch.communicator;
  const auto give_up = [&] { return c.gives_up() && (launch.has_ended = true); };
  if (give_up()) return 0;
  if (launch.stalls || c.failure || std::chrono::steady_clock::now() < launch.due) return kPeers;
  if (!launch.has_arrived)
    if (const int code = arrive(launch)) return code;
  if (launch.stops_here) return kPeers;
  // With NCCL, the streams of other ranks go on by themselves. Here this one runs them, up to where they
  // meet.
  for (const auto &[meeting, mine] : launch.sides)
    for (Side &side : meeting->sides)
      if (const auto theirs = side.launch.lock(); !side.has_arrived && theirs && theirs.get() != &launch) {
        const bool before = std::exchange(theirs->stops_here, true);
        hooks().run_until(theirs->stream, [&] { return theirs->has_arrived || theirs->has_ended; });
        theirs->stops_here = before;
      }
  for (const auto &[meeting, mine] : launch.sides)
    for (const Side &side : meeting->sides)
      if (!side.has_arrived) return kPeers;
  if (c.failure) return kPeers;
  deliver(launch);
  return launch.has_ended = true, 0;
}

}  // namespace

Range sent(const Operation &operation, const Communicator &c) {
  const uint64_t bytes = bytes_of(operation);
  switch (operation.kind) {
    case Kind::RECV: return {0, 0};
    case Kind::BROADCAST: return operation.peer == c.rank ? Range{operation.send, bytes} : Range{0, 0};
    case Kind::ALL_TO_ALL: return {operation.send, bytes * uint64_t(c.clique->size)};
    default: return {operation.send, bytes};
  }
}
Range received(const Operation &operation, const Communicator &c) {
  const uint64_t bytes = bytes_of(operation);
  switch (operation.kind) {
    case Kind::SEND: return {0, 0};
    case Kind::ALL_GATHER:
    case Kind::ALL_TO_ALL: return {operation.recv, bytes * uint64_t(c.clique->size)};
    default: return {operation.recv, bytes};
  }
}
bool is_in_place(const Operation &operation, const Communicator &c) {
  if (operation.kind == Kind::BROADCAST) return operation.send == operation.recv;
  return operation.kind == Kind::ALL_GATHER &&
         operation.send == operation.recv + uint64_t(c.rank) * bytes_of(operation);
}

size_t unfinished(Communicator &communicator) {
  auto &all = communicator.launches;
  const auto has_ended = [](const std::weak_ptr<Launch> &weak) {
    const auto launch = weak.lock();
    return !launch || launch->has_ended;
  };
  all.erase(std::remove_if(all.begin(), all.end(), has_ended), all.end());
  return all.size();
}
void run_launches(Communicator &communicator) {
  const auto all = communicator.launches;
  for (const auto &weak : all)
    if (const auto launch = weak.lock()) hooks().run_until(launch->stream, [&] { return launch->has_ended; });
}

int put(const std::shared_ptr<Communicator> &communicator, void *stream,
        const std::vector<Operation> &operations, long long number) {
  const auto captured = hooks().is_recording(stream) ? std::make_shared<Captured>() : nullptr;
  return hooks().put(stream, [=]() -> Work {
    const auto launch = issue(communicator, stream, operations, number, captured.get());
    return [launch] { return run(*launch); };
  });
}

std::string stuck() {
  std::string all;
  for (const auto &[_, communicator] : communicators) {
    Communicator &c = *communicator;
    if (c.job) all += c.name() + ": " + c.doing + " is in progress\n";
    if (c.failure) all += c.name() + " has failed: " + c.words + "\n";
    unfinished(c);
    for (const auto &weak : c.launches) {
      const auto launch = weak.lock();
      for (size_t i = 0; i < launch->sides.size(); ++i) {
        std::string ranks;
        const auto &[meeting, mine] = launch->sides[i];
        for (size_t side = 0; side < meeting->sides.size(); ++side)
          if (!meeting->sides[side].has_arrived)
            ranks += (ranks.empty() ? "" : ", ") + std::to_string(meeting->ranks[side]);
        if (!ranks.empty())
          all += c.name() + ": " + describe(launch->operations[i]) + " waits for ranks [" + ranks + "]\n";
      }
    }
  }
  return all;
}

long long next_launch(int rank, bool counts) {
  static auto &launches = *new std::map<int, long long>;
  return counts ? launches[rank]++ : launches[rank];
}
bool is_hit(int rank, long long launch) {
  return setting("FAKE_NCCL_RANK", rank) == rank && launch >= setting("FAKE_NCCL_FROM", 0);
}

}  // namespace fake_nccl
