// SpaceTask: takes out of a cache what nobody wants, and gives its space back.
//
// What is wanted is said by the objects "job/<name>" and "pin/<name>": the sections of their plans,
// the plans themselves, the artefacts of their teachers. A pin is a copy of a job object; it
// outlives the job.
//
// Owner: a cache server or a tool that holds a directory. Event-free: the owner calls Step again
// and again, on a reading thread or as the writer as next() says, so that puts go between.
// Ordering: jobs first, then their sections, then plans and artefacts, then space. Before each
// removal the jobs are looked at again; a job that came meanwhile keeps what it wants. Durability:
// after a crash what is left is unwanted, and goes with the next collection.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "storage/job_object.h"
#include "storage/object_store.h"
#include "storage/service/job_scan.h"
#include "storage/teacher_cache.h"

namespace stillhouse {

inline constexpr size_t kSpaceNamesMax = 1000;  // of objects listed in a result

struct SpaceRequest {
  enum class What : uint8_t {
    kRemove,   // jobs, and what only they want
    kCollect,  // all that nobody wants
    kRelease,  // chunks of a job that its runs have read
  };
  What what = What::kCollect;
  std::string job;                    // kRemove, kRelease
  std::optional<Digest> teacher;      // kRemove without a job: every job of this teacher
  std::vector<SectionSpec> sections;  // kRemove: only these; empty: the jobs as a whole
  std::vector<uint32_t> chunks;       // kRelease
  double live_share_max = 0.5;        // of segments that are rewritten
  bool dry_run = false;               // counts and changes nothing
};

struct SpaceResult {
  std::vector<std::string> objects;  // names, at most kSpaceNamesMax
  uint64_t object_count = 0;
  uint64_t object_bytes = 0;
  uint64_t sections = 0;
  uint64_t parts = 0;
  uint64_t part_bytes = 0;  // records and index
  uint64_t segments_freed = 0;
  uint64_t bytes_copied = 0;
  uint64_t bytes_freed = 0;  // of segments
  uint64_t bytes_used = 0;   // by the cache, afterwards (CacheStat::UsedBytes)
};

// "pin/<name>"
std::string PinObjectName(absl::string_view job);
// Keeps what the job wants now. NotFound when there is no such job.
absl::Status PinJob(ObjectStore& objects, const std::string& job);
// NotFound when it is not pinned.
absl::Status UnpinJob(ObjectStore& objects, const std::string& job);
// FailedPrecondition if the bytes are a job whose plan is not in the cache: a collection may have
// taken it. To be asked before a job object is stored, by the writer.
absl::Status CheckJobIsWhole(ObjectStore& objects, absl::string_view name, absl::string_view bytes);

class SpaceTask {
 public:
  // `plans` must outlive the task.
  SpaceTask(SpaceRequest request, PlanCache& plans);

  enum class Next : uint8_t { kRead, kWrite, kDone };
  Next next() const;
  // NotFound: no such job. FailedPrecondition: it is pinned. An error ends the task.
  absl::Status Step(TeacherCache& sections, ObjectStore& objects);
  const SpaceResult& result() const { return result_; }

 private:
  enum class Phase : uint8_t {
    kJobs,     // read: which jobs change, and how
    kRewrite,  // write: their objects
    kMark,     // read: what the others want
    kFind,     // read: the next parts to go
    kRemove,   // write: them
    kObjects,  // write: plans and artefacts
    kReclaim,  // write
    kCompact,  // read
    kDone
  };
  struct Named {
    std::string object;  // "job/x", "pin/x"
    JobObject job;
  };
  struct Jobs {
    std::vector<Named> all;
    Digest token;  // of names and contents
  };
  struct Change {
    JobObject gone;                  // the job with what of it goes
    std::optional<JobObject> after;  // none: the object goes
  };

  static absl::StatusOr<Jobs> ReadJobs(ObjectStore& objects);
  absl::Status FindChanges(ObjectStore& objects);
  absl::Status RewriteJobs(ObjectStore& objects);
  // The jobs as they will be.
  std::vector<Named> After(const Jobs& jobs) const;
  absl::Status Mark(ObjectStore& objects);
  absl::Status Find(TeacherCache& sections, ObjectStore& objects);
  absl::Status FindInPlans(ObjectStore& objects, bool* more);
  absl::Status FindInChunks(const JobObject& job, const Plan& plan, bool* more);
  absl::Status FindInIndex(TeacherCache& sections, bool* more);
  void Consider(const WantedSection& section);
  absl::Status CountBatch(TeacherCache& sections);
  absl::Status RemoveBatch(TeacherCache& sections, ObjectStore& objects);
  absl::Status RemoveObjects(ObjectStore& objects);
  bool IsUnwanted(const std::string& name, const std::vector<Named>& jobs) const;
  absl::Status Reclaim(TeacherCache& sections, ObjectStore& objects);
  absl::Status Compact(TeacherCache& sections, ObjectStore& objects);

  const SpaceRequest request_;
  PlanCache& plans_;
  Phase phase_ = Phase::kJobs;
  SpaceResult result_;
  std::vector<Change> changes_;
  Digest token_;  // of the jobs last looked at
  absl::flat_hash_set<Digest> wanted_;
  // Where the search stands: in the plan of changes_[change_] at a document, or in the index.
  size_t change_ = 0;
  uint32_t document_ = 0;
  std::string index_from_;
  std::set<PartKey> counted_;  // dry_run: a text that stands twice counts once
  std::unique_ptr<absl::flat_hash_set<Digest>> repeated_;  // kRelease: in more than one chunk
  std::vector<Removal> batch_;
  bool more_ = true;
  std::optional<uint64_t> compact_;
  bool compact_objects_ = false;
  ReclaimOptions reclaim_;
};

}  // namespace stillhouse
