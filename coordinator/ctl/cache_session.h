// CacheSession: a cache to ask questions of, whoever holds it: a server, or nobody (then its
// directory).
//
// Owner: one verb. Blocking; one thread, but Verify from several. Asking a directory takes a shared
// lock and no incarnation; changing it takes what a server takes: the exclusive one, and an
// incarnation.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/ctl/connection.h"
#include "storage/service/cache_admin.h"
#include "storage/service/cache_space.h"
#include "storage/service/job_store.h"

namespace stillhouse {

// --dir, --server, or the cache of the coordinator that is meant; with a recipe whose coordinator
// is not alive, the recipe's cache directory.
struct CacheChoice {
  std::string directory;
  std::string server;  // an address
  CoordinatorChoice coordinator;
};
// `choice` must live until the verb has run.
void AddCacheOptions(Command verb, CacheChoice* choice);

class CacheSession : public JobStore {
 public:
  virtual absl::StatusOr<CacheStat> Stat() = 0;
  virtual absl::StatusOr<VerifyStep> Verify(const std::string& after) = 0;
  // Where Verify may begin so that all is gone through side by side; {""} if it cannot be shared.
  virtual absl::StatusOr<std::vector<std::string>> VerifyShares() = 0;
  // Leaves a directory as a server leaves it; else without effect. REQUIRES: nothing follows.
  virtual absl::Status Close() = 0;

  // REQUIRES: not opened to be read only, but for a dry run.
  virtual absl::StatusOr<SpaceResult> Space(const SpaceRequest& request) = 0;
  virtual absl::Status Pin(const std::string& job) = 0;
  virtual absl::Status Unpin(const std::string& job) = 0;
};

// To change a directory, and to write into it, is FailedPrecondition when anybody else has it open.
enum class CacheAccess {
  kRead,    // a bug to write
  kChange,  // NotFound unless the directory is there: a misspelt one is not made
  kWrite,   // makes the directory if need be
};
// InvalidArgument unless exactly one is chosen. FailedPrecondition when a server holds the
// directory; Unavailable when no server answers.
absl::StatusOr<std::unique_ptr<CacheSession>> OpenCacheSession(
    const CacheChoice& choice, CacheAccess access = CacheAccess::kRead);
// The coordinator that works with the chosen cache, if one is alive. None works with a directory
// that no server holds.
absl::StatusOr<std::optional<Coordinator>> CoordinatorOf(const CacheChoice& choice);

}  // namespace stillhouse
