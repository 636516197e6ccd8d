// JobSource, JobStore: a cache as exports and imports of jobs see it, be it a directory or behind a
// server.
//
// Owner: a verb or a test. Blocking; one thread. Durability: what PutObject and Put stored would
// survive SIGKILL and power loss. Errors: as TeacherCache, ObjectStore and CacheClient.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "storage/object_store.h"
#include "storage/service/job_scan.h"
#include "storage/teacher_cache.h"

namespace stillhouse {

class JobSource {
 public:
  virtual ~JobSource() = default;
  virtual absl::StatusOr<std::vector<ObjectInfo>> List(absl::string_view prefix,
                                                       absl::string_view after, int limit) = 0;
  virtual absl::StatusOr<std::shared_ptr<const std::string>> GetObject(const std::string& name) = 0;
  // As many answers as keys, in order; nullopt for what is not there.
  virtual absl::StatusOr<std::vector<std::optional<Part>>> GetParts(
      const std::vector<PartKey>& keys) = 0;
  virtual absl::StatusOr<JobUsage> UsageOfJob(const std::string& job) = 0;
};

class JobStore : public JobSource {
 public:
  virtual absl::StatusOr<JobDigest> DigestOfJob(const std::string& job) = 0;
  // Idempotent; AlreadyExists when other bytes have the name.
  virtual absl::Status PutObject(const std::string& name,
                                 std::shared_ptr<const std::string> bytes) = 0;
  // One answer per item. First write wins. REQUIRES: each item is at most kPutBytesMax.
  virtual absl::StatusOr<std::vector<PutCounts>> Put(std::vector<PutItem> items) = 0;
};

// Of stores in this process, which must outlive the result. Writing needs a writable TeacherCache.
std::unique_ptr<JobStore> MakeLocalJobStore(TeacherCache& sections, ObjectStore& objects);

}  // namespace stillhouse
