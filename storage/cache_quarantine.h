// What openings set aside because no MANIFEST named it, kept only as long as it holds something
// that is not in service.
//
// Owner: an opening for writing. One thread. What stays in <dir>/quarantine/open-<n>/ is bounded:
// tables whose parts and objects are all in service go at a later opening (each looks through at
// most kTidyBytesMax of them), and so do indexes and totals, which are made anew; of files that
// cannot be read, or of which nothing can be told, the kUnreadableKept youngest stay.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "storage/object_store.h"
#include "storage/teacher_cache.h"

namespace stillhouse {

inline constexpr char kQuarantineName[] = "quarantine";
inline constexpr uint64_t kTidyBytesMax = 256ull << 20;
inline constexpr size_t kUnreadableKept = 16;

// FailedPrecondition if `path` is there and is not a folder, or only a link to one: renames into it
// would fail, or lead elsewhere.
absl::Status CheckOwnFolder(const std::string& path);

// A file that cannot be removed stays, with a warning.
absl::Status TidyQuarantine(const std::string& quarantine, TeacherCache& sections,
                            ObjectStore& objects);

}  // namespace stillhouse
