// CacheAdmin: every question about a whole cache, answered from its stores. A cache server answers
// with it on its store threads; tools that opened a directory themselves call it directly.
//
// Threads: as TeacherCache and ObjectStore, for reading. Synchronous.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "storage/cache_verify.h"
#include "storage/service/job_scan.h"

namespace stillhouse {

struct CacheStat {
  CacheIdentity identity;
  SpecTotals all;
  std::map<std::string, SpecTotals> specs;
  uint64_t objects = 0;
  uint64_t object_bytes = 0;
  SpaceTotals space;
  // Everything that is stored, dead or alive; without what the database adds. The segments of a
  // cache of an earlier version are counted when something is first removed: until then, what is
  // alive.
  uint64_t UsedBytes() const {
    const uint64_t records = space.live_bytes + space.dead_bytes + space.origin_bytes;
    return std::max(records, all.record_bytes) + all.index_bytes + object_bytes;
  }
};

class CacheAdmin {
 public:
  // All must outlive the result.
  CacheAdmin(TeacherCache& sections, ObjectStore& objects, PlanCache& plans)
      : sections_(sections), objects_(objects), plans_(plans) {}

  absl::StatusOr<CacheStat> Stat();
  absl::StatusOr<std::vector<ObjectInfo>> List(absl::string_view prefix, absl::string_view after,
                                               int limit) {
    return objects_.List(prefix, after, limit);
  }
  absl::StatusOr<std::vector<bool>> Inventory(const Digest& plan, const InventoryQuery& query);
  absl::StatusOr<JobDigest> DigestOfJob(absl::string_view job);
  absl::StatusOr<JobUsage> UsageOfJob(absl::string_view job);
  absl::StatusOr<VerifyStep> Verify(const std::string& after, int limit) {
    return VerifyCache(sections_, objects_, after, limit);
  }
  absl::StatusOr<std::vector<std::string>> VerifyShares() {
    return stillhouse::VerifyShares(sections_);
  }

 private:
  TeacherCache& sections_;
  ObjectStore& objects_;
  PlanCache& plans_;
};

}  // namespace stillhouse
