// CacheInventory: what the coordinator asks of the cache.
//
// Owner: coordinatord's main (over CacheClient), tests and simulations. Event-driven; `done` runs
// once, on the coordinator's executor, never inside Ask.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "common/digest.h"
#include "coordinator/state.h"

namespace stillhouse {

class CacheInventory {
 public:
  virtual ~CacheInventory() = default;
  // For each chunk: are all sections wanted of all its documents durable? Held-out chunks are asked
  // for their own sections. At most kAskChunksMax chunks.
  virtual void Ask(const CaptureSetup& capture, std::vector<uint32_t> chunks,
                   absl::AnyInvocable<void(absl::StatusOr<std::vector<bool>>)> done) = 0;
  // Takes out what these chunks of a job hold and nobody else wants, and gives its space back. The
  // answer is how many bytes the cache takes then. No chunks: only that.
  virtual void MakeRoom(const std::string& job, std::vector<uint32_t> chunks,
                        absl::AnyInvocable<void(absl::StatusOr<uint64_t>)> done) = 0;
};

}  // namespace stillhouse
