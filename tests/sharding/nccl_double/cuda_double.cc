#include <cstring>

#include "tests/sharding/nccl_double/state.h"

namespace nccl_double {

State& Get() {
  static State& state = *new State;
  return state;
}

void Misuse(const std::string& what) {
  if (Get().counts.misuse.empty()) Get().counts.misuse = what;
}

bool Alive(const void* handle, const char* what) {
  if (Get().alive.count(handle) > 0) return true;
  Misuse(std::string(what) + " of a handle that is none");
  return false;
}

void RunStreams() {
  for (bool moved = true; moved;) {
    moved = false;
    for (DoubleStream* stream : Get().streams) {
      while (!stream->steps.empty() && stream->steps.front()()) {
        stream->steps.pop_front();
        moved = true;
      }
    }
  }
}

Counts Now() {
  stillhouse::MutexLock lock(Get().mutex);
  return Get().counts;
}

void Reset(int devices) {
  State& state = Get();
  stillhouse::MutexLock lock(state.mutex);
  state.devices = devices;
  state.counts = {};
  state.alive.clear();
  state.cliques.clear();
  state.streams.clear();  // what a test left behind leaks
  state.failing_ranks.clear();
  state.tell_of_aborts = true;
  state.fail_next_event = false;
}

void FailRank(int rank) {
  stillhouse::MutexLock lock(Get().mutex);
  Get().failing_ranks.insert(rank);
}
void TellPeersOfAborts(bool tell) {
  stillhouse::MutexLock lock(Get().mutex);
  Get().tell_of_aborts = tell;
}
void FailNextEvent() {
  stillhouse::MutexLock lock(Get().mutex);
  Get().fail_next_event = true;
}

}  // namespace nccl_double

using nccl_double::Alive;
using nccl_double::Get;
using nccl_double::Misuse;
using stillhouse::MutexLock;

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNotReady ? "not ready" : error == cudaSuccess ? "no error" : "failed";
}
cudaError_t cudaGetDeviceCount(int* devices) {
  MutexLock lock(Get().mutex);
  *devices = Get().devices;
  return *devices == 0 ? cudaErrorInvalidValue : cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  MutexLock lock(Get().mutex);
  return 0 <= device && device < Get().devices ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  MutexLock lock(Get().mutex);
  auto memory = std::make_shared<std::vector<char>>(bytes);
  *data = memory->data();
  Get().ever.push_back(memory);
  Get().alive.insert(*data);
  ++Get().counts.allocations;
  return cudaSuccess;
}
cudaError_t cudaFree(void* data) {
  MutexLock lock(Get().mutex);
  if (!Alive(data, "cudaFree")) return cudaErrorInvalidValue;
  Get().alive.erase(data);
  --Get().counts.allocations;
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  MutexLock lock(Get().mutex);
  if (!Alive(data, "cudaMemsetAsync") || !Alive(stream, "cudaMemsetAsync")) {
    return cudaErrorInvalidValue;
  }
  stream->steps.push_back([=] {
    std::memset(data, value, bytes);
    return true;
  });
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  MutexLock lock(Get().mutex);
  if (flags != cudaStreamNonBlocking) Misuse("a stream that waits for the default stream");
  auto made = std::make_shared<DoubleStream>();
  *stream = made.get();
  Get().ever.push_back(made);
  Get().alive.insert(*stream);
  Get().streams.push_back(*stream);
  ++Get().counts.streams;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  MutexLock lock(Get().mutex);
  if (!Alive(stream, "cudaStreamDestroy")) return cudaErrorInvalidValue;
  nccl_double::RunStreams();
  if (!stream->steps.empty()) Misuse("a stream was destroyed with work in it");
  Get().alive.erase(stream);
  std::erase(Get().streams, stream);
  --Get().counts.streams;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  MutexLock lock(Get().mutex);
  if (!Alive(stream, "cudaStreamWaitEvent") || !Alive(event, "cudaStreamWaitEvent")) {
    return cudaErrorInvalidValue;
  }
  stream->steps.push_back([event, awaited = event->recorded] { return event->reached >= awaited; });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  MutexLock lock(Get().mutex);
  auto made = std::make_shared<DoubleEvent>();
  *event = made.get();
  Get().ever.push_back(made);
  Get().alive.insert(*event);
  ++Get().counts.events;
  return cudaSuccess;
}
// As in CUDA, work that still refers to the event goes on: the memory stays.
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  MutexLock lock(Get().mutex);
  if (!Alive(event, "cudaEventDestroy")) return cudaErrorInvalidValue;
  Get().alive.erase(event);
  --Get().counts.events;
  return cudaSuccess;
}
// A null stream is the default one, which has nothing to do here.
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  MutexLock lock(Get().mutex);
  if (!Alive(event, "cudaEventRecord")) return cudaErrorInvalidValue;
  const int version = ++event->recorded;
  if (stream == nullptr) {
    event->reached = version;
    return cudaSuccess;
  }
  if (!Alive(stream, "cudaEventRecord")) return cudaErrorInvalidValue;
  stream->steps.push_back([=] {
    event->reached = version;
    return true;
  });
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  MutexLock lock(Get().mutex);
  if (!Alive(event, "cudaEventQuery")) return cudaErrorInvalidValue;
  if (std::exchange(Get().fail_next_event, false)) return cudaErrorInvalidValue;
  nccl_double::RunStreams();
  return event->reached >= event->recorded ? cudaSuccess : cudaErrorNotReady;
}
