// Streams, graphs and events.
#include "driver.hpp"

using namespace fake;

namespace {

// A wait counts once, when its last question is answered. Waits for one thing after the other, with nothing
// put on the device in between, are one: the device has all of its work.
int answered(int answer) {
  if (answer == NOT_READY) return NOT_READY;
  if (!recording && !here().put) return answer;
  const int e = waits();
  here().put = false;
  return e ? e : answer;
}

}  // namespace

extern "C" {

int cuStreamCreate(Stream **out, unsigned) {
  USABLE;
  ++here().handles;
  *out = new Stream, (*out)->device = current->device;
  return streams.insert(*out), 0;
}
int cuStreamDestroy_v2(Stream *stream) {
  LOCKED;
  if (!current || !streams.count(stream)) return INVALID_HANDLE;
  const int answer = drain(*stream);
  if (streams.erase(stream)) delete stream;
  return answer;
}
// Only tests call it.
int cuStreamSynchronize(void *handle) {
  USABLE;
  if (const int e = waits()) return e;
  Stream *stream = known(handle);
  return stream ? drain(*stream) : INVALID_HANDLE;
}
int cuStreamQuery(void *handle) {
  USABLE;
  Stream *stream = known(handle);
  if (!stream) return INVALID_HANDLE;
  if (stream->recording) return stream->recording->broken = true, CAPTURE_UNSUPPORTED;
  return answered(ask(*stream));
}

int cuStreamBeginCapture_v2(void *handle, int) {
  USABLE;
  Stream *stream = known(handle);
  if (!stream || is_default(stream) || stream->recording || recording) return INVALID_VALUE;
  stream->recording = new Graph, graphs.insert(stream->recording), recording = stream;
  return 0;
}
int cuStreamIsCapturing(void *handle, int *status) {
  USABLE;
  Stream *stream = known(handle);
  if (!stream) return INVALID_HANDLE;
  *status = !stream->recording ? 0 : stream->recording->broken ? 2 : 1;
  return 0;
}
int cuStreamEndCapture(void *handle, Graph **out) {
  USABLE;
  Stream *stream = known(handle);
  if (!stream || !stream->recording || recording != stream) return INVALID_VALUE;
  Graph *graph = stream->recording;
  stream->recording = nullptr, recording = nullptr;
  if (!graph->broken) return *out = graph, 0;
  return graphs.erase(graph), delete graph, *out = nullptr, CAPTURE_INVALIDATED;
}
int cuGraphInstantiateWithFlags(Graph **out, Graph *graph, unsigned long long) {
  USABLE;
  if (const int e = int(number("FAKE_CAPTURE", 0))) return e;
  return *out = new Graph(*graph), graphs.insert(*out), 0;
}
int cuGraphUpload(Graph *graph, void *handle) {
  USABLE;
  Stream *stream = known(handle);
  if (!stream || stream->recording || !graphs.count(graph)) return INVALID_VALUE;
  return graph->uploaded = true, 0;
}
int cuGraphLaunch(Graph *graph, void *stream) {
  USABLE;
  if (const int e = int(number("FAKE_REPLAY", 0))) return e;
  if (!graph->uploaded) ++here().lazy_graphs, graph->uploaded = true;
  for (const auto &make : graph->work)
    if (const int e = put_made(stream, make)) return e;
  return 0;
}
int cuGraphDestroy(Graph *graph) {
  LOCKED;
  return graphs.erase(graph), delete graph, 0;
}
int cuGraphExecDestroy(Graph *graph) { return cuGraphDestroy(graph); }

int cuEventCreate(Event **out, unsigned) {
  USABLE;
  ++here().handles;
  return *out = new Event, events.insert(*out), 0;
}
int cuEventDestroy_v2(Event *event) {
  LOCKED;
  return events.erase(event), delete event, 0;
}
int cuEventRecord(Event *event, void *stream) {
  USABLE;
  event->on = known(stream), event->asked = false;
  return put(stream, [event, record = ++event->recorded] {
    // The event may have been destroyed since, which waits for nothing.
    if (events.count(event)) event->reached = record, event->when = std::chrono::steady_clock::now();
    return 0;
  });
}
// The work itself runs what it waits for; nothing is lost if it does so late.
int cuStreamWaitEvent(void *stream, Event *event, unsigned flags) {
  USABLE;
  if (flags) return INVALID_VALUE;
  if (!events.count(event)) return INVALID_HANDLE;
  Stream *on = event->on;
  if (!on || event->is_reached()) return known(stream) ? SUCCESS : INVALID_HANDLE;
  return put(stream, [event, on, record = event->recorded] {
    // A stream that is gone was drained before.
    if (!events.count(event) || event->reached >= record || !is_alive(on)) return int(SUCCESS);
    return run_queue_to(*on, event, record);
  });
}
int cuEventQuery(Event *event) {
  USABLE;
  if (event->is_reached() || !event->on) return answered(SUCCESS);
  // The first question comes too early here, too. What was put on the stream later does not count.
  if (!event->asked) return event->asked = true, NOT_READY;
  return answered(seen(run_queue_to(*event->on, event, event->recorded)));
}
int cuEventElapsedTime(float *milliseconds, const Event *from, const Event *to) {
  USABLE;
  if (!from->is_reached() || !to->is_reached() || !from->on || !to->on) return 600;
  return *milliseconds = std::chrono::duration<float, std::milli>(to->when - from->when).count(), 0;
}

}  // extern "C"
