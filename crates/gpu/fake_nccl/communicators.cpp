// How communicators are made, ask for their state, and end.
#include <algorithm>
#include <set>

#include "world.hpp"

namespace fake_nccl {

// Never destroyed, like all tables here: threads of the program may still end communicators when it exits.
std::map<void *, std::shared_ptr<Communicator>> &communicators =
    *new std::map<void *, std::shared_ptr<Communicator>>;

namespace {

// Handles are numbers that are no addresses, and are given out once.
constexpr uint64_t kFirstHandle = 0x6e63636c00000000;
uint64_t handles = 0, cliques = 0;

struct UniqueId {
  char bytes[128];
};
constexpr char kIdMagic[8] = {'f', 'a', 'k', 'e', 'n', 'c', 'c', 'l'};
struct Id {
  std::shared_ptr<Clique> gathering;  // while ranks come
  bool is_used = false;
};
std::map<uint64_t, Id> &ids = *new std::map<uint64_t, Id>;

// ncclConfig_t. A caller of another version has fewer or more fields: `size` says how many bytes.
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef, version = 0;
  int blocking = kUnset, cga_cluster_size = kUnset, min_ctas = kUnset, max_ctas = kUnset;
  const char *net_name = nullptr;
  int split_share = kUnset, traffic_class = kUnset;
  const char *comm_name = nullptr;
  int others[10] = {kUnset, kUnset, kUnset, kUnset, kUnset, kUnset, kUnset, kUnset, kUnset, kUnset};
};
static_assert(sizeof(Config) == 96, "as nccl.h has it");

// Reads a caller's config. Returns why it is refused; empty: it is not.
std::string read(const void *from, Config &config) {
  if (!from) return "";
  size_t size;
  std::memcpy(&size, from, sizeof size);
  if (size < 24) return "ncclConfig_t: a size of " + std::to_string(size);
  std::memcpy(static_cast<void *>(&config), from, std::min(size, sizeof config));
  if (config.magic != 0xcafebeef) return "ncclConfig_t argument not initialized via NCCL_CONFIG_INITIALIZER";
  const auto within = [](int value, int low, int high) {
    return value == kUnset || (value >= low && value <= high);
  };
  bool good = within(config.blocking, 0, 1) && within(config.cga_cluster_size, 0, 8) &&
              within(config.min_ctas, 1, 1024) && within(config.max_ctas, 1, 1024) &&
              within(config.split_share, 0, 1) && within(config.traffic_class, 0, 255);
  for (const int other : config.others) good = good && within(other, 0, INT32_MAX);
  return good ? "" : "ncclConfig_t: a field has a value that is none of its own, nor NCCL_CONFIG_UNDEF_INT";
}

std::shared_ptr<Seat> seat_of(int device, const Clique &clique) {
  static auto &seats = *new std::map<std::pair<int, const void *>, std::weak_ptr<Seat>>;
  for (auto i = seats.begin(); i != seats.end();) i = i->second.expired() ? seats.erase(i) : std::next(i);
  std::weak_ptr<Seat> &place =
      seats[{device, setting("NCCL_MULTI_RANK_GPU_ENABLE", 0) ? this_thread() : nullptr}];
  std::shared_ptr<Seat> seat = place.lock();
  // A thread may have several ranks on one device, which are apart.
  if (!seat || seat->members.count(clique.number)) place = seat = std::make_shared<Seat>();
  return seat;
}

std::shared_ptr<Communicator> join(const std::shared_ptr<Clique> &clique, int rank, int device,
                                   std::shared_ptr<Seat> seat) {
  auto made = std::make_shared<Communicator>();
  made->clique = clique, made->rank = rank, made->device = device, made->seat = std::move(seat);
  made->handle = reinterpret_cast<void *>(kFirstHandle + 16 * ++handles);
  clique->members[rank] = made.get(), made->seat->members[clique->number] = made.get();
  communicators[made->handle] = made;
  return ++counts["made"], made;
}

// Ends a communicator: its handle is gone, and its work on streams gives up.
void end(const std::shared_ptr<Communicator> &communicator) {
  communicator->has_ended = true, communicator->job = nullptr;
  end_windows(*communicator);
  communicator->clique->members.erase(communicator->rank);
  communicator->seat->members.erase(communicator->clique->number);
  communicators.erase(communicator->handle);
  if (communicator->clique->members.empty())
    for (auto &[number, id] : ids)
      if (id.gathering == communicator->clique) id.gathering = nullptr;
}

void all_came(Clique &clique) {
  clique.is_complete = true;
  if (setting("NCCL_MULTI_RANK_GPU_ENABLE", 0)) return;
  std::map<int, int> by_device;
  for (const auto &[rank, member] : clique.members) {
    const auto [there, is_new] = by_device.emplace(member->device, rank);
    if (is_new) continue;
    const std::string words = "Duplicate GPU detected : rank " + std::to_string(rank) + " and rank " +
                              std::to_string(there->second) + " both on CUDA device " +
                              std::to_string(member->device);
    for (const auto &[_, each] : clique.members) fail(*each, INVALID_USAGE, words);
    return;
  }
}

int make(void **out, int size, const UniqueId &unique, int rank, const void *config_of_caller,
         bool asks_environment) {
  const Locked locked;
  if (hooks().refuse_recording())
    return refuse(nullptr, UNHANDLED_CUDA_ERROR,
                  "a communicator was made by a thread that captures a stream");
  if (!out) return refuse(nullptr, INVALID_ARGUMENT, "newcomm argument is NULL");
  *out = nullptr;
  if (size < 1 || rank < 0 || rank >= size)
    return refuse(nullptr, INVALID_ARGUMENT,
                  "Invalid rank requested : " + std::to_string(rank) + "/" + std::to_string(size));
  Config config;
  if (const std::string words = read(config_of_caller, config); !words.empty())
    return refuse(nullptr, INVALID_ARGUMENT, words);
  const long long only = setting("FAKE_NCCL_RANK", rank);
  if (const int code = int(setting("FAKE_NCCL_INIT", 0)); code && only == rank)
    return refuse(nullptr, code, "an injected error");
  const int device = hooks().device();
  if (device < 0)
    return misuse(nullptr, "a communicator was made by a thread without a current context"),
           int(UNHANDLED_CUDA_ERROR);

  uint64_t number;
  std::memcpy(&number, unique.bytes + sizeof kIdMagic, sizeof number);
  if (std::memcmp(unique.bytes, kIdMagic, sizeof kIdMagic) != 0 || !ids.count(number))
    return refuse(nullptr, SYSTEM_ERROR,
                  "socketStartConnect: Connect to the address of the unique id failed : Connection refused");
  Id &id = ids[number];
  if (id.is_used) return misuse(nullptr, "a unique id was used for a second communicator");
  if (!id.gathering) {
    id.gathering.reset(new Clique);
    id.gathering->number = ++cliques, id.gathering->size = size;
  }
  const std::shared_ptr<Clique> clique = id.gathering;
  if (clique->size != size)
    return misuse(clique.get(), "rank " + std::to_string(rank) + " makes a communicator of " +
                                    std::to_string(size) + " ranks, others made one of " +
                                    std::to_string(clique->size));
  if (!clique->came.insert(rank).second)
    return misuse(clique.get(),
                  "rank " + std::to_string(rank) + " came twice to clique " + std::to_string(clique->number));
  const auto made = join(clique, rank, device, seat_of(device, *clique));
  made->blocking = (asks_environment ? setting("NCCL_COMM_BLOCKING", config.blocking) : config.blocking) != 0;
  // One that was aborted before all had come is missing for ever.
  if (int(clique->members.size()) == size) id.gathering = nullptr, id.is_used = true, all_came(*clique);
  *out = made->handle;
  const int answer = begin(made, "ncclCommInitRank", [clique] { return clique->is_complete; });
  if (answer != SUCCESS && answer != IN_PROGRESS) end(made), *out = nullptr;
  return answer;
}

// Once all ranks have called: one clique per color, ranked by key.
void divide(Split &split) {
  std::map<int, std::vector<std::pair<int, int>>> by_color;  // key, rank
  for (const auto &[rank, call] : split.calls)
    if (call.first != kNoColor) by_color[call.first].push_back({call.second, rank});
  for (auto &[color, ranks] : by_color) {
    std::sort(ranks.begin(), ranks.end());
    const auto clique = std::make_shared<Clique>();
    clique->number = ++cliques, clique->size = int(ranks.size()), clique->is_complete = true;
    for (size_t i = 0; i < ranks.size(); ++i) split.children[ranks[i].second] = {clique, int(i)};
  }
  split.is_done = true;
}

}  // namespace

std::string Communicator::name() const {
  return "rank " + std::to_string(rank) + " of clique " + std::to_string(clique->number);
}

std::shared_ptr<Communicator> find(void *handle, const char *function, int &answer) {
  const auto found = communicators.find(handle);
  if (found != communicators.end()) return found->second;
  const uint64_t value = reinterpret_cast<uint64_t>(handle);
  if (!handle)
    answer = refuse(nullptr, INVALID_ARGUMENT, std::string(function) + ": comm argument is NULL");
  else
    misuse(nullptr, function + std::string(value > kFirstHandle && value <= kFirstHandle + 16 * handles
                                               ? ": the communicator was destroyed or aborted before"
                                               : ": no communicator has this handle")),
        answer = INVALID_ARGUMENT;
  return nullptr;
}
std::shared_ptr<Communicator> find_ready(void *handle, const char *function, int &answer) {
  const auto found = find(handle, function, answer);
  if (!found) return nullptr;
  if (found->failure) return answer = refuse(found.get(), found->failure, found->words), nullptr;
  if (!found->job) return found;
  const std::string words =
      std::string(function) + " of " + found->name() + " while " + found->doing + " is in progress";
  misuse(nullptr, words), fail(*found, INVALID_ARGUMENT, words);  // NCCL keeps the error, too
  return answer = INVALID_ARGUMENT, nullptr;
}

int begin(const std::shared_ptr<Communicator> &communicator, const char *doing, std::function<bool()> job) {
  communicator->job = std::move(job), communicator->doing = doing;
  communicator->polls = setting("FAKE_NCCL_POLLS", 1);
  if (is_in_group()) return complete_at_group_end(communicator), SUCCESS;
  return communicator->blocking ? complete(*communicator) : int(IN_PROGRESS);
}

int complete(Communicator &communicator) {
  block_until(communicator.name() + ", " + communicator.doing,
              [&] { return communicator.failure || communicator.has_ended || communicator.job(); });
  return communicator.job = nullptr, communicator.failure;
}

int state_of(Communicator &communicator) {
  if (communicator.failure || !communicator.job) return communicator.failure;
  if (communicator.polls > 0) return --communicator.polls, IN_PROGRESS;
  const auto job = communicator.job;
  if (!job()) return communicator.failure ? communicator.failure : int(IN_PROGRESS);
  return communicator.job = nullptr, communicator.failure;
}

}  // namespace fake_nccl

using namespace fake_nccl;

extern "C" {

int ncclGetVersion(int *version) {
#ifdef FAKE_NCCL_OLDER
  constexpr int kVersion = 22707;
#else
  constexpr int kVersion = 23007;
#endif
  if (!version) return INVALID_ARGUMENT;
  const Locked locked;
  return *version = int(setting("FAKE_NCCL_VERSION", kVersion)), SUCCESS;
}
const char *ncclGetErrorString(int code) {
  static const char *const kTexts[] = {
      "no error",
      "unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
      "unhandled system error (run with NCCL_DEBUG=INFO for details)",
      "internal error - please report this issue to the NCCL developers",
      "invalid argument (run with NCCL_DEBUG=WARN for details)",
      "invalid usage (run with NCCL_DEBUG=WARN for details)",
      "remote process exited or there was a network error",
      "NCCL operation in progress",
      "operation timed out",
  };
  return code >= 0 && code <= TIMEOUT ? kTexts[code] : "unknown result code";
}
const char *ncclGetLastError(void *handle) {
  const Locked locked;
  thread_local std::string words;
  const auto found = communicators.find(handle);
  words = found != communicators.end() && !found->second->words.empty() ? found->second->words : last_words();
  return words.c_str();
}

int ncclGetUniqueId(UniqueId *out) {
  if (!out) return INVALID_ARGUMENT;
  const Locked locked;
  const uint64_t number = ids.size() + 1;
  ids[number];
  // Zeros and high bytes, to the last one: code that handles it as text, or cuts it short, is found.
  for (size_t i = 0; i < sizeof out->bytes; ++i) out->bytes[i] = char(0x80 | i);
  std::memset(out->bytes + 16, 0, 8);
  std::memcpy(out->bytes, kIdMagic, sizeof kIdMagic);
  std::memcpy(out->bytes + sizeof kIdMagic, &number, sizeof number);
  return SUCCESS;
}
// The environment takes precedence over the caller's settings.
int ncclCommInitRankConfig(void **out, int size, UniqueId id, int rank, const void *config) {
  return make(out, size, id, rank, config, true);
}
int ncclCommInitRank(void **out, int size, UniqueId id, int rank) {
  return make(out, size, id, rank, nullptr, false);
}

// A nonblocking parent returns ncclSuccess at once; its state is ncclInProgress. The new communicator is
// written when the parent's state becomes ncclSuccess.
int ncclCommSplit(void *handle, int color, int key, void **out, const void *config_of_caller) {
  const Locked locked;
  if (hooks().refuse_recording())
    return refuse(nullptr, UNHANDLED_CUDA_ERROR, "ncclCommSplit by a thread that captures a stream");
  int answer;
  const auto parent = find_ready(handle, "ncclCommSplit", answer);
  if (!parent) return answer;
  if (!out) return refuse(parent.get(), INVALID_ARGUMENT, "newcomm argument is NULL");
  if (color < 0 && color != kNoColor)
    return refuse(parent.get(), INVALID_ARGUMENT, "ncclCommSplit: a negative color");
  Config config;
  if (const std::string words = read(config_of_caller, config); !words.empty())
    return refuse(parent.get(), INVALID_ARGUMENT, words);
  *out = nullptr;
  const size_t number = parent->splits++;
  Clique &clique = *parent->clique;
  Split &split = clique.splits[number];
  split.calls[parent->rank] = {color, key};
  if (int(split.calls.size()) == clique.size) divide(split);
  const bool blocking = config.blocking == kUnset ? parent->blocking : config.blocking != 0;
  const bool shares = config.split_share == 1;
  const int begun = begin(parent, "ncclCommSplit", [=, weak = std::weak_ptr<Communicator>(parent)] {
    const auto parent = weak.lock();
    Split &split = parent->clique->splits[number];
    if (!split.is_done) return false;
    if (const auto child = split.children.find(parent->rank); child != split.children.end()) {
      const auto made = join(child->second.first, child->second.second, parent->device, parent->seat);
      made->blocking = blocking, made->shares = shares, made->parent = parent;
      *out = made->handle;
    }
    split.calls.erase(parent->rank);
    if (split.calls.empty()) parent->clique->splits.erase(number);
    return true;
  });
  return begun == IN_PROGRESS ? int(SUCCESS) : begun;
}

// In progress until what was issued has ended and all ranks have called it.
int ncclCommFinalize(void *handle) {
  if (!handle) return SUCCESS;
  const Locked locked;
  int answer;
  const auto ending = find_ready(handle, "ncclCommFinalize", answer);
  if (!ending) return answer;
  if (ending->is_revoked || ending->is_finalizing)
    return refuse(ending.get(), INVALID_ARGUMENT,
                  "ncclCommFinalize after it was called, or after ncclCommRevoke");
  ending->is_finalizing = true;
  return begin(ending, "ncclCommFinalize", [weak = std::weak_ptr<Communicator>(ending)] {
    const auto ending = weak.lock();
    run_launches(*ending);
    if (unfinished(*ending)) return false;
    for (const auto &[rank, member] : ending->clique->members)
      if (!member->is_finalizing) return false;
    return ending->is_finalized = true;
  });
}
int ncclCommDestroy(void *handle) {
  if (!handle) return SUCCESS;
  const Locked locked;
  hooks().refuse_recording();
  int answer;
  const auto ending = find(handle, "ncclCommDestroy", answer);
  if (!ending) return answer;
  if (ending->failure)
    misuse(nullptr, ending->name() +
                        " was destroyed after an error, where only ncclCommAbort ends what is on streams");
  else if (ending->job)
    misuse(nullptr, ending->name() + " was destroyed while " + ending->doing + " is in progress");
  else if (const size_t number = ending->is_revoked ? 0 : unfinished(*ending))
    misuse(nullptr,
           ending->name() + " was destroyed before " + std::to_string(number) + " of its launches ended");
  return end(ending), SUCCESS;
}
int ncclCommAbort(void *handle) {
  if (!handle) return SUCCESS;
  const Locked locked;
  hooks().refuse_recording();
  int answer;
  const auto ending = find(handle, "ncclCommAbort", answer);
  if (!ending) return answer;
  if (ending->in_group_of && ending->in_group_of != this_thread())
    misuse(nullptr, ending->name() + " was aborted while another thread has it in an open group");
  end(ending);
  for (const auto &[_, other] : communicators)
    if ((other->shares && other->parent.lock() == ending) ||
        (ending->shares && ending->parent.lock() == other))
      fail(*other, INTERNAL_ERROR,
           "a communicator that shares resources with this one (splitShare) was aborted");
  return SUCCESS;
}
#ifndef FAKE_NCCL_OLDER
int ncclCommRevoke(void *handle, int flags) {
  if (!handle) return SUCCESS;
  const Locked locked;
  hooks().refuse_recording();
  int answer;
  const auto revoked = find(handle, "ncclCommRevoke", answer);
  if (!revoked) return answer;
  if (flags)
    return refuse(revoked.get(), INVALID_ARGUMENT, "ncclCommRevoke: flags must be NCCL_REVOKE_DEFAULT");
  if (revoked->is_revoked || revoked->is_finalizing)
    return refuse(revoked.get(), INVALID_ARGUMENT,
                  "ncclCommRevoke after it was called, or after ncclCommFinalize");
  if (revoked->in_group_of && revoked->in_group_of != this_thread())
    misuse(nullptr, revoked->name() + " was revoked while another thread has it in an open group");
  revoked->is_revoked = true, revoked->failure = SUCCESS;
  return begin(revoked, "ncclCommRevoke", [] { return true; });
}
#endif

int ncclCommGetAsyncError(void *handle, int *state) {
  const Locked locked;
  int answer;
  const auto asked = find(handle, "ncclCommGetAsyncError", answer);
  if (!asked) return answer;
  if (!state) return refuse(asked.get(), INVALID_ARGUMENT, "asyncError argument is NULL");
  return *state = state_of(*asked), SUCCESS;
}

int ncclCommCount(void *handle, int *out) {
  const Locked locked;
  int answer;
  const auto asked = find_ready(handle, "ncclCommCount", answer);
  return !asked ? answer : (*out = asked->clique->size, SUCCESS);
}
int ncclCommUserRank(void *handle, int *out) {
  const Locked locked;
  int answer;
  const auto asked = find_ready(handle, "ncclCommUserRank", answer);
  return !asked ? answer : (*out = asked->rank, SUCCESS);
}
int ncclCommCuDevice(void *handle, int *out) {
  const Locked locked;
  int answer;
  const auto asked = find_ready(handle, "ncclCommCuDevice", answer);
  return !asked ? answer : (*out = asked->device, SUCCESS);
}

}  // extern "C"
