// CacheSession: a cache to ask questions of, whoever holds it: a server, or nobody (then its
// directory).
//
// Owner: one verb. Blocking; one thread, but Verify from several. Asking a directory takes a shared
// lock and no incarnation.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "coordinator/ctl/connection.h"
#include "storage/part.h"
#include "storage/service/cache_admin.h"

namespace stillhouse {

// --dir, --server, or the cache of the coordinator that is meant; with a recipe whose coordinator
// is not alive, the recipe's cache directory.
struct CacheChoice {
  std::string directory;
  std::string server;  // an address
  CoordinatorChoice coordinator;
};

class CacheSession {
 public:
  virtual ~CacheSession() = default;
  virtual absl::StatusOr<CacheStat> Stat() = 0;
  virtual absl::StatusOr<std::vector<ObjectInfo>> List(absl::string_view prefix,
                                                       absl::string_view after, int limit) = 0;
  virtual absl::StatusOr<JobDigest> DigestOfJob(const std::string& job) = 0;
  virtual absl::StatusOr<JobUsage> UsageOfJob(const std::string& job) = 0;
  virtual absl::StatusOr<VerifyStep> Verify(const std::string& after) = 0;
  // Where Verify may begin so that all is gone through side by side; {""} if it cannot be shared.
  virtual absl::StatusOr<std::vector<std::string>> VerifyShares() = 0;
  virtual absl::StatusOr<std::shared_ptr<const std::string>> GetObject(const std::string& name) = 0;
  virtual absl::StatusOr<std::vector<std::optional<Part>>> GetParts(
      const std::vector<PartKey>& keys) = 0;
};

// InvalidArgument unless exactly one is chosen. FailedPrecondition when a server holds the
// directory; Unavailable when no server answers.
absl::StatusOr<std::unique_ptr<CacheSession>> OpenCacheSession(const CacheChoice& choice);

}  // namespace stillhouse
