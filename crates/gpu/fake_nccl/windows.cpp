// Memory that kernels of all ranks may use: allocated, registered as a window by all ranks, and asked for its
// addresses. Facts about NCCL are those of its version 2.30.7 (src/dev_runtime.cc, src/allocator.cc).
#include <algorithm>

#include "world.hpp"

namespace fake_nccl {

std::map<void *, Window> &windows = *new std::map<void *, Window>;
std::map<uint64_t, Allocation> &memories = *new std::map<uint64_t, Allocation>;

namespace {

// Handles are numbers that are no addresses, and are given out once.
constexpr uint64_t kFirstHandle = 0x6e77696e00000000;
uint64_t handles = 0;
constexpr size_t kAlignment = 4096;  // NCCL_WIN_REQUIRED_ALIGNMENT
constexpr int kAllFlags = 3;         // NCCL_WIN_COLL_SYMMETRIC, NCCL_WIN_STRICT_ORDERING

bool overlap(uint64_t a, size_t bytes_a, uint64_t b, size_t bytes_b) {
  return bytes_a && bytes_b && a < b + bytes_b && b < a + bytes_a;
}
const Registration::Side &side_of(const Window &window) {
  return window.registration->sides.at(window.communicator->rank);
}

// The allocation that has the bytes, or the end.
std::map<uint64_t, Allocation>::const_iterator holder(uint64_t address, size_t bytes) {
  auto next = memories.upper_bound(address);
  if (next == memories.begin()) return memories.end();
  const auto before = std::prev(next);
  const size_t at = address - before->first;
  return at <= before->second.bytes && bytes <= before->second.bytes - at ? before : memories.end();
}

// The window of a handle, or the end, which is a misuse.
std::map<void *, Window>::iterator find_window(void *handle, const char *function) {
  const auto found = windows.find(handle);
  if (found != windows.end()) return found;
  const uint64_t value = reinterpret_cast<uint64_t>(handle);
  const bool was_one = value > kFirstHandle && value <= kFirstHandle + 16 * handles;
  misuse(nullptr, function + std::string(was_one ? ": the window was deregistered, or its communicator ended"
                                                 : ": no window has this handle"));
  return found;
}

// An operation of the communicator that has not ended and has bytes of the window, in words; empty: none.
std::string user_of(Communicator &c, const Registration::Side &window) {
  unfinished(c);  // forgets those that have ended
  for (const auto &weak : c.launches) {
    const auto launch = weak.lock();
    if (!launch) continue;
    for (const Operation &operation : launch->operations)
      for (const Range &range : {sent(operation, c), received(operation, c)})
        if (overlap(range.address, range.bytes, window.address, window.bytes)) return describe(operation);
  }
  return "";
}

std::string describe(const Registration::Side &side) {
  return std::to_string(side.bytes) + " bytes at offset " + std::to_string(side.place) + " with flags " +
         std::to_string(side.flags);
}

}  // namespace

void end_windows(Communicator &c) {
  for (auto i = windows.begin(); i != windows.end();)
    i = i->second.communicator == &c ? windows.erase(i) : std::next(i);
  // Registrations that not all ranks have come to: it is missing there from now on.
  for (auto &[number, registration] : c.clique->registrations)
    if (!registration->is_complete) registration->sides.erase(c.rank);
}

}  // namespace fake_nccl

using namespace fake_nccl;

extern "C" {

int ncclMemAlloc(void **out, size_t bytes) {
  const Locked locked;
  if (hooks().refuse_recording())
    return refuse(nullptr, UNHANDLED_CUDA_ERROR, "ncclMemAlloc by a thread that captures a stream");
  if (!out || !bytes) return refuse(nullptr, UNHANDLED_CUDA_ERROR, "ncclMemAlloc of nothing");
  const int device = hooks().device();
  if (device < 0)
    return misuse(nullptr, "ncclMemAlloc by a thread without a current context"), int(UNHANDLED_CUDA_ERROR);
  uint64_t address = 0;
  if (const int code = hooks().allocate(&address, bytes))
    return refuse(nullptr, UNHANDLED_CUDA_ERROR, "ncclMemAlloc: the driver says " + std::to_string(code));
  memories[address] = {bytes, device};
  return *out = reinterpret_cast<void *>(address), SUCCESS;
}

int ncclMemFree(void *start) {
  if (!start) return SUCCESS;
  const Locked locked;
  hooks().refuse_recording();
  const auto found = memories.find(reinterpret_cast<uint64_t>(start));
  if (found == memories.end()) return misuse(nullptr, "ncclMemFree of what ncclMemAlloc has not given");
  if (hooks().device() < 0) return misuse(nullptr, "ncclMemFree by a thread without a current context");
  const auto [address, memory] = *found;
  for (const auto &[_, window] : windows) {
    const Communicator &c = *window.communicator;
    const Registration::Side &side = side_of(window);
    if (overlap(address, memory.bytes, side.address, side.bytes))
      return misuse(c.clique.get(), "ncclMemFree of memory with a window of " + c.name());
  }
  // Another thread that registers it while this one waits for the device finds it gone.
  memories.erase(found);
  if (const int code = hooks().release(address))
    return refuse(nullptr, UNHANDLED_CUDA_ERROR, "ncclMemFree: the driver says " + std::to_string(code));
  return SUCCESS;
}

// In progress until all ranks have called it; then the window is written. NCCL would accept windows of other
// sizes on other ranks.
int ncclCommWindowRegister(void *handle, void *start, size_t bytes, void **out, int flags) {
  const Locked locked;
  if (hooks().refuse_recording())
    return refuse(nullptr, UNHANDLED_CUDA_ERROR, "ncclCommWindowRegister by a thread that captures a stream");
  int answer;
  const auto found = find_ready(handle, "ncclCommWindowRegister", answer);
  if (!found) return answer;
  Communicator &c = *found;
  if (!out) return refuse(&c, INVALID_ARGUMENT, "win argument is NULL");
  *out = nullptr;
  if (!start || !bytes) return refuse(&c, INVALID_ARGUMENT, "ncclCommWindowRegister: an empty buffer");
  if (flags & ~kAllFlags) return refuse(&c, INVALID_ARGUMENT, "ncclCommWindowRegister: unknown flags");
  const std::string place = c.name() + ": ncclCommWindowRegister";
  if (c.is_revoked || c.is_finalizing)
    return misuse(nullptr, place + " after ncclCommRevoke or ncclCommFinalize");
  if (const int code = int(setting("FAKE_NCCL_WINDOW", 0));
      code && setting("FAKE_NCCL_RANK", c.rank) == c.rank)
    return fail(c, code, "an injected error"), code;
  const uint64_t address = reinterpret_cast<uint64_t>(start);
  const auto memory = holder(address, bytes);
  if (memory == memories.end())
    return misuse(c.clique.get(), place + " of memory that is not in one allocation of ncclMemAlloc");
  if (memory->second.device != c.device)
    return misuse(c.clique.get(), place + " of memory of device " + std::to_string(memory->second.device) +
                                      ", of a communicator on device " + std::to_string(c.device));
  if ((address - memory->first) % kAlignment)
    return refuse(&c, INVALID_ARGUMENT, "Window address must be suitably aligned.");
  for (const auto &[_, window] : windows)
    if (window.communicator == &c && overlap(address, bytes, side_of(window).address, side_of(window).bytes))
      return misuse(c.clique.get(), place + " of memory that it has a window of");
  const int team = int(setting("FAKE_NCCL_LSA", c.clique->size));
  if (team == 0) return SUCCESS;

  const size_t number = c.registrations++;
  std::shared_ptr<Registration> &there = c.clique->registrations[number];
  if (!there) there = std::make_shared<Registration>(), there->team = team;
  const auto registration = there;
  const Registration::Side mine{address, bytes, size_t(address - memory->first), flags};
  for (const auto &[rank, side] : registration->sides)
    if (side.bytes != bytes || side.place != mine.place || side.flags != flags)
      return misuse(c.clique.get(), "window " + std::to_string(number) + " of clique " +
                                        std::to_string(c.clique->number) + ": rank " +
                                        std::to_string(c.rank) + " registers " + describe(mine) + ", rank " +
                                        std::to_string(rank) + " " + describe(side));
  registration->sides[c.rank] = mine;
  if (int(registration->sides.size()) == c.clique->size) registration->is_complete = true;
  return begin(found, "ncclCommWindowRegister",
               [registration, number, out, weak = std::weak_ptr<Communicator>(found)] {
                 if (!registration->is_complete) return false;
                 const auto mine = weak.lock();
                 *out = reinterpret_cast<void *>(kFirstHandle + 16 * ++handles);
                 windows[*out] = {registration, mine.get()};
                 if (++registration->made == mine->clique->size) mine->clique->registrations.erase(number);
                 return true;
               });
}

// Waits for no peer.
int ncclCommWindowDeregister(void *handle, void *window) {
  const Locked locked;
  hooks().refuse_recording();
  int answer;
  const auto found = find(handle, "ncclCommWindowDeregister", answer);
  if (!found) return answer;
  Communicator &c = *found;
  if (!window) return SUCCESS;
  const auto ending = find_window(window, "ncclCommWindowDeregister");
  if (ending == windows.end()) return INVALID_ARGUMENT;
  const std::string place = c.name() + ": ncclCommWindowDeregister";
  if (ending->second.communicator != &c)
    return misuse(c.clique.get(), place + " of a window of " + ending->second.communicator->name());
  if (c.job) return misuse(c.clique.get(), place + " while " + c.doing + " is in progress");
  if (const std::string user = user_of(c, side_of(ending->second)); !user.empty())
    return misuse(c.clique.get(), place + " before " + user + " in it has ended");
  return windows.erase(ending), SUCCESS;
}

#ifndef FAKE_NCCL_OLDER
// Asks no peer. It answers for a peer whose window is gone already, too. With NCCL that address stays valid;
// here a kernel that uses it fails once the peer has freed its memory.
int ncclGetPeerDevicePointer(void *window, size_t offset, int peer, void **out) {
  const Locked locked;
  if (!window || !out) return refuse(nullptr, INVALID_ARGUMENT, "ncclGetPeerDevicePointer: a NULL argument");
  const auto found = find_window(window, "ncclGetPeerDevicePointer");
  if (found == windows.end()) return INVALID_ARGUMENT;
  const auto &[registration, c] = found->second;
  if (peer < 0 || peer >= c->clique->size)
    return refuse(c, INVALID_ARGUMENT,
                  "peer " + std::to_string(peer) + " is not within valid range of ranks " +
                      std::to_string(c->clique->size) + ".");
  if (offset >= side_of(found->second).bytes)
    return refuse(c, INVALID_ARGUMENT, "ncclGetPeerDevicePointer: an offset beyond the window");
  const bool reaches = peer / registration->team == c->rank / registration->team;
  *out = reaches ? reinterpret_cast<void *>(registration->sides.at(peer).address + offset) : nullptr;
  return SUCCESS;
}
#endif

}  // extern "C"
