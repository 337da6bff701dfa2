// A libnccl.so.2 without a GPU. Ranks are threads of one process, or one thread has them all. Memory is the
// emulated device's, and streams are those of the libcuda beside it (../fake_driver). It has only the
// functions that the crate uses, with the ABI of nccl.h 2.30.
//
// It is stricter than NCCL. What NCCL would answer with a hang, a crash or wrong bytes is a misuse here. A
// misuse is written to stderr, becomes the asynchronous error of the communicator on every rank, and ends the
// process with code 86 unless a test has taken it (fake_nccl_take_misuse). What NCCL itself refuses is
// refused with NCCL's code, and is no misuse. The rules:
//   - Collectives are matched by their number in the communicator, sends and receives by their number in the
//     pair of ranks. An operation of no bytes counts. All sides must agree on kind, root, type and count, and
//     either all of them are replays of the same captured operation, or none is.
//   - Two ranks issue the operations that they share in one order, over all their communicators. A group
//     counts as one.
//   - Operations start when their group ends. On a nonblocking communicator they are put on the stream only
//     by the call of ncclCommGetAsyncError that answers ncclSuccess. Until then only that function,
//     ncclCommAbort and ncclCommRevoke may be called.
//   - A thread that issues operations for several ranks of a communicator does so in a group. The operations
//     of a group on one communicator are on one stream.
//   - Nothing moves before somebody waits for the stream. An operation then waits until the streams of all
//     its ranks have come to it. When a rank's stream comes to it, what the rank sends is copied, and what it
//     will receive is poisoned. A rank receives its bytes when somebody waits for its own stream. What it
//     sends must not change until then.
//   - A buffer lies in one allocation of the communicator's device. A receive buffer overlaps no other buffer
//     of the group, except where NCCL defines an operation in place.
//   - A window is a part of one allocation of ncclMemAlloc on the communicator's device. All ranks register
//     windows of one size, flags and place in their allocations, in one order. Memory is freed after its
//     windows were deregistered or their communicators have ended. A window is deregistered once, when the
//     communicator's operations on its bytes have ended.
//   - cudaStreamPerThread is refused. A thread that makes a communicator has a current context.
//   - A handle is never given out twice, so use after abort or destroy is found. A communicator is destroyed
//     only after its operations have ended. A unique id makes one communicator.
//
// Environment variables, which fake_nccl_set changes at run time:
//   FAKE_NCCL_VERSION (23007)  the answer of ncclGetVersion
//   FAKE_NCCL_POLLS (1)        how many times the state of a nonblocking call is ncclInProgress before its
//                              work is done
//   FAKE_NCCL_INIT             making a communicator returns this code
//   FAKE_NCCL_WINDOW           registering a window returns this code
//   FAKE_NCCL_LSA              only so many consecutive ranks have addresses of each other's windows, as on
//                              one node; 0: a registration succeeds without a window, as where NCCL cannot
//                              map any peer's memory
//   FAKE_NCCL_ERROR            a launch returns this code; the end of a group is one launch per communicator
//   FAKE_NCCL_ASYNC            a launch leaves this asynchronous error, and its work never ends
//   FAKE_NCCL_STALL            a launch never ends until its communicator is aborted or revoked
//   FAKE_NCCL_LOST             as a stall; all other ranks get ncclRemoteError, as if the process had died
//   FAKE_NCCL_SLOW             a launch is in progress for so many milliseconds before it is on its stream
//   FAKE_NCCL_LATE             a launch begins so many milliseconds after it was put on its stream
//   FAKE_NCCL_MIX              a launch delivers another rank's bytes; where no other rank has as many, wrong
//                              ones
//   FAKE_NCCL_RANK             limits all of the above, version and polls excepted, to this rank of each
//                              communicator
//   FAKE_NCCL_DEADLOCK         1: operations that two ranks issue in another order are no misuse and never
//                              end, as with NCCL
//   FAKE_NCCL_FROM (0)         limits the faults of launches to those from this number on; a rank's launches
//                              are counted over all its communicators, replays of graphs included
//   FAKE_NCCL_ENDS             at the exit, the numbers of communicators and of windows that are left and of
//                              misuses that were not taken are written to this file
//   FAKE_PATIENCE (120)        a call that blocks for peers ends the process after so many seconds
//   NCCL_MULTI_RANK_GPU_ENABLE 1: ranks of one communicator may share a device, as with NCCL
//   NCCL_COMM_BLOCKING         takes precedence over `blocking` of a caller's ncclConfig_t, as with NCCL
// Compiled with FAKE_NCCL_OLDER, it has neither ncclCommRevoke nor ncclGetPeerDevicePointer, and is version
// 22707.
//
// For tests it exports fake_nccl_count, fake_nccl_set, fake_nccl_lose, fake_nccl_stuck and
// fake_nccl_take_misuse (world.cpp).
//
// world.cpp: settings, misuses, the end of the process; communicators.cpp: how communicators are made and
// end; groups.cpp: calls and groups; meetings.cpp: what happens on streams; windows.cpp: memory that peers'
// kernels may use.
#pragma once

#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "hooks.hpp"

namespace fake_nccl {

using fake::kPeers;
using fake::Work;

enum Result {
  SUCCESS = 0, UNHANDLED_CUDA_ERROR = 1, SYSTEM_ERROR = 2, INTERNAL_ERROR = 3, INVALID_ARGUMENT = 4,
  INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7, TIMEOUT = 8,
};
constexpr int kIllegalAddress = 700;  // CUDA_ERROR_ILLEGAL_ADDRESS
constexpr int kNoColor = -1;
constexpr int kUnset = INT32_MIN;
constexpr uint8_t kPoison = 0xcd;

enum class Kind { BROADCAST, ALL_GATHER, ALL_TO_ALL, SEND, RECV };

// One call between the start and the end of a group.
struct Operation {
  Kind kind;
  uint64_t send, recv;  // device addresses
  size_t count;
  int type;
  int peer;  // a broadcast's root
  bool is_pair() const { return kind == Kind::SEND || kind == Kind::RECV; }
};
struct Range {
  uint64_t address;
  size_t bytes;
};

// How many operations a communicator has issued.
struct Issued {
  size_t collectives = 0;
  std::map<int, size_t> sends, recvs;  // by peer
  // How many it shares with a peer.
  size_t with(int peer) const {
    const auto number = [&](const std::map<int, size_t> &all) { return all.count(peer) ? all.at(peer) : 0; };
    return collectives + number(sends) + number(recvs);
  }
};

struct Communicator;
struct Launch;

// One rank's side of an operation.
struct Side {
  bool is_issued = false, has_arrived = false;
  Operation operation;
  long long captured = -1;              // its number among the captured operations; -1: it is not captured
  std::map<uint64_t, Issued> before;    // by clique: what this rank had issued before
  std::vector<uint8_t> sent;            // copied on arrival
  std::weak_ptr<Launch> launch;
};
// One operation, where its sides meet: a collective's ranks, or (0) a sender and (1) a receiver.
struct Meeting {
  std::vector<int> ranks;
  std::vector<Side> sides;
};

// What a group puts on a stream for one communicator.
struct Launch {
  std::shared_ptr<Communicator> communicator;
  void *stream;
  std::vector<Operation> operations;
  std::vector<std::pair<std::shared_ptr<Meeting>, size_t>> sides;  // this rank's, one for each operation
  bool has_arrived = false, has_ended = false, stalls = false, mixes = false;
  bool stops_here = false;  // another rank's wait pushes it, up to its arrival
  std::chrono::steady_clock::time_point due;
};

// A call of ncclCommSplit by all ranks.
struct Clique;
struct Split {
  std::map<int, std::pair<int, int>> calls;  // by rank: color, key
  // By rank: its new clique, and its rank there.
  std::map<int, std::pair<std::shared_ptr<Clique>, int>> children;
  bool is_done = false;
};

// One registration of a window by all ranks.
struct Registration {
  struct Side {
    uint64_t address = 0;
    size_t bytes = 0, place = 0;  // `place`: its offset in the allocation
    int flags = 0;
  };
  std::map<int, Side> sides;  // by rank
  int team = 0;               // ranks that have each other's addresses: 0 to team - 1, and so on
  int made = 0;               // ranks that have their window
  bool is_complete = false;
};
// One rank's window.
struct Window {
  std::shared_ptr<Registration> registration;
  Communicator *communicator;
};
// An allocation of ncclMemAlloc.
struct Allocation {
  size_t bytes;
  int device;
};

// The ranks of a communicator.
struct Clique {
  uint64_t number = 0;
  int size = 0;
  bool is_complete = false;
  std::map<int, Communicator *> members;  // those that came and have not ended
  std::set<int> came;
  std::map<size_t, std::shared_ptr<Meeting>> collectives;  // that some rank has not issued yet
  std::map<std::pair<int, int>, std::map<size_t, std::shared_ptr<Meeting>>> pairs;  // sender, receiver
  std::map<size_t, Split> splits;
  std::map<size_t, std::shared_ptr<Registration>> registrations;
  std::map<const void *, int> issuers;  // by thread: the rank that it issued for outside of a group
};

// A rank, over all its communicators: a device. Where ranks share one, a device and a thread.
struct Seat {
  std::map<uint64_t, Communicator *> members;  // by clique
};

struct Communicator {
  std::shared_ptr<Clique> clique;
  std::shared_ptr<Seat> seat;
  void *handle = nullptr;
  int rank = 0, device = 0;
  bool blocking = true, shares = false;
  std::weak_ptr<Communicator> parent;

  // What is in progress. ncclCommGetAsyncError answers ncclInProgress `polls` times, then tries it at each
  // call until it returns true.
  std::function<bool()> job;
  const char *doing = "";
  long long polls = 0;
  int failure = SUCCESS;
  std::string words;  // of the last error
  bool has_ended = false, is_revoked = false, is_finalizing = false, is_finalized = false;

  Issued issued, captured;
  size_t splits = 0, registrations = 0;
  std::vector<std::weak_ptr<Launch>> launches;
  const void *in_group_of = nullptr;  // the thread whose open group has a call of it

  bool gives_up() const { return has_ended || is_revoked; }
  std::string name() const;
};

// world.cpp
const fake::Hooks &hooks();
struct Locked {
  Locked() { hooks().lock(); }
  ~Locked() { hooks().unlock(); }
  Locked(const Locked &) = delete;
};
bool is_set(const char *name);
long long setting(const char *name, long long otherwise);
int refuse(Communicator *communicator, int code, const std::string &words);  // as NCCL does; returns the code
int misuse(Clique *clique, const std::string &words);  // returns INVALID_USAGE
void fail(Communicator &communicator, int code, const std::string &words);
std::string last_words();
// Lets other threads go on until `done()`; what is waited for is named when patience ends.
void block_until(const std::string &what, const std::function<bool()> &done);
const void *this_thread();
extern std::map<std::string, long long> &counts;  // of fake_nccl_count

// communicators.cpp
extern std::map<void *, std::shared_ptr<Communicator>> &communicators;  // by handle
// The communicator of a handle; where there is none, `answer` is what the call returns.
std::shared_ptr<Communicator> find(void *handle, const char *function, int &answer);
// The same for calls that need a communicator with nothing in progress.
std::shared_ptr<Communicator> find_ready(void *handle, const char *function, int &answer);
// Begins `job`, which a nonblocking communicator then has in progress; a blocking one completes it at once,
// or at the end of the open group. Returns what the call returns.
int begin(const std::shared_ptr<Communicator> &communicator, const char *doing, std::function<bool()> job);
int complete(Communicator &communicator);  // blocks until what is in progress is done
int state_of(Communicator &communicator);
bool is_in_group();
void complete_at_group_end(const std::shared_ptr<Communicator> &communicator);

// groups.cpp
std::string describe(const Operation &operation);
size_t type_bytes(int type);

// meetings.cpp
Range sent(const Operation &operation, const Communicator &communicator);
Range received(const Operation &operation, const Communicator &communicator);
bool is_in_place(const Operation &operation, const Communicator &communicator);
// The number of a rank's next launch, for the settings that count them.
long long next_launch(int rank, bool counts);
bool is_hit(int rank, long long launch);  // the settings that make something fail mean this launch
size_t unfinished(Communicator &communicator);
void run_launches(Communicator &communicator);
// Puts the operations on the stream. Returns the driver's code.
int put(const std::shared_ptr<Communicator> &communicator, void *stream,
        const std::vector<Operation> &operations, long long number);
std::string stuck();

// windows.cpp
extern std::map<void *, Window> &windows;           // by handle
extern std::map<uint64_t, Allocation> &memories;    // by address
void end_windows(Communicator &communicator);      // which ends: as NCCL, it needs no deregistration

}  // namespace fake_nccl
