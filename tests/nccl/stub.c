// A libnccl.so.2 with only its version and its ids. VERSION is its version code; WITHOUT_SPLIT leaves a
// function out; NO_ID makes ids fail.
#include <string.h>

typedef struct { char internal[128]; } ncclUniqueId;

int ncclGetVersion(int *version) { return *version = VERSION, 0; }
int ncclGetUniqueId(ncclUniqueId *id) {
#ifdef NO_ID
  return 2;
#else
  return memset(id, 7, sizeof *id), 0;
#endif
}
const char *ncclGetErrorString(int result) { return result == 2 ? "unhandled system error" : "another"; }
const char *ncclGetLastError(void *comm) { return comm ? 0 : "no socket interface found"; }

#define UNUSED(name) int name(void) { return 3; }
#ifndef WITHOUT_SPLIT
UNUSED(ncclCommSplit)
#endif
UNUSED(ncclCommInitRankConfig)
UNUSED(ncclCommFinalize)
UNUSED(ncclCommDestroy)
UNUSED(ncclCommAbort)
UNUSED(ncclCommGetAsyncError)
UNUSED(ncclCommCount)
UNUSED(ncclCommUserRank)
UNUSED(ncclCommCuDevice)
UNUSED(ncclGroupStart)
UNUSED(ncclGroupEnd)
UNUSED(ncclSend)
UNUSED(ncclRecv)
UNUSED(ncclBroadcast)
UNUSED(ncclAllGather)
