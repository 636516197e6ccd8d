// Verification of a whole cache, in steps, so that a server stays responsive in between, and in
// shares that may be gone through side by side.
//
// Threads: any; each step on its own. A damaged part is noted in the cache (TeacherCache), so that
// it is captured again.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "storage/object_store.h"
#include "storage/teacher_cache.h"

namespace stillhouse {

inline constexpr int kVerifyStepRecords = 2000;
inline constexpr int kVerifySharesMax = 256;

struct VerifyStep {
  uint64_t records = 0;       // records, index entries and objects that this step read
  uint64_t unreferenced = 0;  // records that no index entry names: removed, or left by a crash
  std::vector<std::string> problems;  // one line each
  std::string next;                   // what to continue after; empty: finished
};

// One step after `after` (begin with ""): first every file of the database, then each record
// (checksum, decoded values, origin, its place in the index), each index entry, each object. Damage
// is a problem in the answer; an error means that verification itself could not go on.
absl::StatusOr<VerifyStep> VerifyCache(TeacherCache& sections, ObjectStore& objects,
                                       const std::string& after, int limit = kVerifyStepRecords);

// Where to begin instead of at "", so that all is gone through once: each share ends on its own. At
// most kVerifySharesMax.
absl::StatusOr<std::vector<std::string>> VerifyShares(TeacherCache& sections);

}  // namespace stillhouse
