// Calls and groups.
#include <algorithm>
#include <utility>

#include "world.hpp"

namespace fake_nccl {

namespace {

struct Call {
  std::shared_ptr<Communicator> communicator;
  void *stream;
  Operation operation;
};
// The calling thread's group.
struct Group {
  int depth = 0, error = SUCCESS;
  std::vector<Call> calls;
  std::vector<std::shared_ptr<Communicator>> begun;  // made, split, ...: in progress, and awaited at the end
  ~Group() {
    if (!depth) return;
    const Locked locked;
    misuse(nullptr, "a thread ended within a group");
  }
};
thread_local Group group;

bool overlap(const Range &a, const Range &b) {
  return a.bytes && b.bytes && a.address < b.address + b.bytes && b.address < a.address + a.bytes;
}

// Which buffers of a group NCCL could not serve, in words; empty: it can serve all.
std::string conflict(const Communicator &communicator, const std::vector<Operation> &operations) {
  for (size_t i = 0; i < operations.size(); ++i) {
    const Range to = received(operations[i], communicator);
    for (size_t j = 0; j < operations.size(); ++j) {
      const std::string both = describe(operations[i]) + " and " + describe(operations[j]);
      if (j < i && overlap(to, received(operations[j], communicator)))
        return both + " receive the same bytes";
      const Range from = sent(operations[j], communicator);
      if (overlap(to, from) && !(i == j && is_in_place(operations[i], communicator)))
        return both + " receive and send the same bytes";
    }
  }
  return "";
}

int launch(const std::shared_ptr<Communicator> &communicator, const std::vector<Call> &calls) {
  Communicator &c = *communicator;
  if (c.has_ended) return INVALID_ARGUMENT;
  void *stream = nullptr;
  std::vector<Operation> operations;
  for (const Call &call : calls) {
    if (call.communicator != communicator) continue;
    if (!operations.empty() && call.stream != stream)
      return misuse(c.clique.get(), c.name() + ": a group with two streams for one communicator");
    stream = call.stream, operations.push_back(call.operation);
  }
  if (const std::string words = conflict(c, operations); !words.empty())
    return misuse(c.clique.get(), c.name() + ": " + words);
  // A captured launch does not count; its replays do.
  const long long number = next_launch(c.rank, !hooks().is_recording(stream));
  if (const int code = int(setting("FAKE_NCCL_ERROR", 0)); code && is_hit(c.rank, number))
    return fail(c, code, "an injected error"), code;
  const std::chrono::milliseconds slow(is_hit(c.rank, number) ? setting("FAKE_NCCL_SLOW", 0) : 0);
  const auto due = std::chrono::steady_clock::now() + slow;
  return begin(communicator, "a group of operations", [=, weak = std::weak_ptr<Communicator>(communicator)] {
    if (std::chrono::steady_clock::now() < due) return false;
    const auto communicator = weak.lock();
    if (const int code = put(communicator, stream, operations, number))
      fail(*communicator, UNHANDLED_CUDA_ERROR, "the driver refused a launch with " + std::to_string(code));
    return true;
  });
}

int end_group() {
  const auto calls = std::exchange(group.calls, {});
  const auto begun = std::exchange(group.begun, {});
  const int error = std::exchange(group.error, SUCCESS);
  group.depth = 0;
  std::vector<std::shared_ptr<Communicator>> all;
  for (const Call &call : calls) {
    call.communicator->in_group_of = nullptr;
    if (std::find(all.begin(), all.end(), call.communicator) == all.end()) all.push_back(call.communicator);
  }
  if (error) return error;
  bool blocks = false, does_not = false;
  const auto note_kind = [&](const auto &communicator) {
    (communicator->blocking ? blocks : does_not) = true;
  };
  std::for_each(all.begin(), all.end(), note_kind), std::for_each(begun.begin(), begun.end(), note_kind);
  if (blocks && does_not) return misuse(nullptr, "a group with blocking and nonblocking communicators");
  int answer = SUCCESS;
  const auto note = [&](int code) {
    answer = answer == SUCCESS || answer == IN_PROGRESS ? (code ? code : answer) : answer;
  };
  for (const auto &communicator : all) note(launch(communicator, calls));
  for (const auto &communicator : begun)
    note(communicator->blocking ? complete(*communicator) : int(IN_PROGRESS));
  return answer;
}

// Every call of an operation: it is added to the open group, or makes a group of its own.
int call(const char *function, void *handle, void *stream, const Operation &operation) {
  const Locked locked;
  int answer;
  const auto check = [&]() -> std::shared_ptr<Communicator> {
    const auto found = find_ready(handle, function, answer);
    if (!found) return nullptr;
    Communicator &c = *found;
    const std::string place = c.name() + ": " + function;
    if (c.is_revoked || c.is_finalizing)
      return answer = misuse(nullptr, place + " after ncclCommRevoke or ncclCommFinalize"), nullptr;
    const bool sends =
        operation.kind != Kind::RECV && (operation.kind != Kind::BROADCAST || operation.peer == c.rank);
    const bool receives = operation.kind != Kind::SEND;
    std::string refused;
    if (operation.peer < 0 || operation.peer >= c.clique->size)
      refused = "peer or root " + std::to_string(operation.peer);
    if (!type_bytes(operation.type)) refused = "type " + std::to_string(operation.type);
    if (operation.count && ((sends && !operation.send) || (receives && !operation.recv)))
      refused = "a buffer that is NULL";
    if (!refused.empty()) return answer = refuse(&c, INVALID_ARGUMENT, place + ": " + refused), nullptr;
    if (stream == reinterpret_cast<void *>(2))
      return answer = misuse(c.clique.get(), place + ": cudaStreamPerThread"), nullptr;
    int device = -1;
    stream = hooks().stream(stream, &device);
    if (device != c.device)
      return answer = misuse(c.clique.get(),
                             place + ": a stream of " +
                                 (device < 0 ? "nobody" : "device " + std::to_string(device)) +
                                 ", of a communicator on device " + std::to_string(c.device)),
             nullptr;
    if (group.depth) return found;
    const auto [issuer, is_new] = c.clique->issuers.emplace(this_thread(), c.rank);
    if (!is_new && issuer->second != c.rank)
      return answer = misuse(c.clique.get(), place + ": its thread issues for rank " +
                                                 std::to_string(issuer->second) + " too, without a group"),
             nullptr;
    return found;
  };
  const auto found = check();
  if (!found) return group.depth && !group.error ? group.error = answer : answer;
  const Call one{found, stream, operation};
  if (!group.depth) return launch(found, {one});
  found->in_group_of = this_thread();
  return group.calls.push_back(one), SUCCESS;
}

}  // namespace

size_t type_bytes(int type) {
  constexpr size_t kBytes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  return type >= 0 && type < 12 ? kBytes[type] : 0;
}
std::string describe(const Operation &operation) {
  constexpr const char *kNames[] = {"a broadcast from ", "an all_gather", "an all_to_all", "a send to ",
                                    "a receive from "};
  const bool has_peer = operation.is_pair() || operation.kind == Kind::BROADCAST;
  return kNames[int(operation.kind)] + (has_peer ? std::to_string(operation.peer) : "") + " of " +
         std::to_string(operation.count) + " of type " + std::to_string(operation.type);
}

bool is_in_group() { return group.depth > 0; }
void complete_at_group_end(const std::shared_ptr<Communicator> &communicator) {
  group.begun.push_back(communicator);
}

}  // namespace fake_nccl

using namespace fake_nccl;

extern "C" {

int ncclGroupStart() { return ++group.depth, SUCCESS; }
int ncclGroupEnd() {
  const Locked locked;
  if (!group.depth) return refuse(nullptr, INVALID_USAGE, "ncclGroupEnd: not in a group call.");
  if (group.depth > 1) return --group.depth, SUCCESS;
  return end_group();
}

int ncclBroadcast(const void *send, void *recv, size_t count, int type, int root, void *communicator,
                  void *stream) {
  return call("ncclBroadcast", communicator, stream,
              {Kind::BROADCAST, uint64_t(send), uint64_t(recv), count, type, root});
}
int ncclAllGather(const void *send, void *recv, size_t count, int type, void *communicator, void *stream) {
  return call("ncclAllGather", communicator, stream,
              {Kind::ALL_GATHER, uint64_t(send), uint64_t(recv), count, type, 0});
}
int ncclAlltoAll(const void *send, void *recv, size_t count, int type, void *communicator, void *stream) {
  return call("ncclAlltoAll", communicator, stream,
              {Kind::ALL_TO_ALL, uint64_t(send), uint64_t(recv), count, type, 0});
}
int ncclSend(const void *send, size_t count, int type, int peer, void *communicator, void *stream) {
  return call("ncclSend", communicator, stream, {Kind::SEND, uint64_t(send), 0, count, type, peer});
}
int ncclRecv(void *recv, size_t count, int type, int peer, void *communicator, void *stream) {
  return call("ncclRecv", communicator, stream, {Kind::RECV, 0, uint64_t(recv), count, type, peer});
}

}  // extern "C"
