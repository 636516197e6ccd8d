// The state behind the double: streams, events, comms. Everything under one mutex.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/mutex.h"
#include "tests/sharding/nccl_double/cuda_runtime.h"
#include "tests/sharding/nccl_double/nccl_double.h"

// A step says whether it is over; it is asked again until it is.
using Step = std::function<bool()>;

struct DoubleStream {
  std::deque<Step> steps;
};
struct DoubleEvent {
  int recorded = 0, reached = 0;
};

namespace nccl_double {

struct Clique;  // the comms of one id

struct State {
  stillhouse::Mutex mutex;
  int devices = 8;
  Counts counts;
  std::set<const void*> alive;  // handles
  std::map<std::string, std::shared_ptr<Clique>> cliques;
  std::deque<DoubleStream*> streams;
  std::vector<std::shared_ptr<void>> ever;  // behind every handle: late steps may refer to it
  int ids = 0;
  std::set<int> failing_ranks;
  bool tell_of_aborts = true, fail_next_event = false;
};

State& Get();
// REQUIRES: the mutex of Get() is held, for all of these.
bool Alive(const void* handle, const char* what);  // else misuse
void Misuse(const std::string& what);
void RunStreams();  // until no stream can move

}  // namespace nccl_double
