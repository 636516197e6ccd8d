// The scheduler: which chunk a worker that asks is to have. Pure functions over the State.
//
// Order: among the jobs the worker serves, the one that was granted the fewest rows so far (fair
// share); in it, chunk 0 first and alone (its emissions make the codec table), then the earliest
// deadline that students named, then index; held-out chunks last. With nothing pending, a slow
// chunk of another worker is given a second time. In a bounded cache a chunk that was captured
// before is captured again only while a run at work wants it.
#pragma once

#include <optional>
#include <string>

#include "absl/time/time.h"
#include "coordinator/state.h"

namespace stillhouse {

struct Pick {
  Job* job = nullptr;  // null: nothing for this worker now
  uint32_t chunk = 0;
  absl::Duration deadline = absl::InfiniteDuration();  // by which a run wants it
  bool all_done = false;  // it serves a job, and every chunk of every such job is settled
  std::string
      leave;  // only chunks that failed in this very process are left, and nobody else is there
};
Pick PickChunk(State& state, const Worker& worker, absl::Duration now);

}  // namespace stillhouse
