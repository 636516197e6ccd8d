// Questions about all sections of a job, answered from its plan and the index of a cache.
//
// Synchronous; any store thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "common/mutex.h"
#include "dataset/plan.h"
#include "storage/job_object.h"
#include "storage/object_store.h"
#include "storage/teacher_cache.h"

namespace stillhouse {

// Keeps the plans asked for last, parsed. Thread-safe.
class PlanCache {
 public:
  // NotFound when the cache does not hold the plan.
  absl::StatusOr<std::shared_ptr<const Plan>> Get(ObjectStore& objects, const Digest& plan);

 private:
  static constexpr size_t kPlansMax = 4;
  Mutex mutex_;
  std::vector<std::shared_ptr<const Plan>> plans_
      ABSL_GUARDED_BY(mutex_);  // the last used comes last
};

// One section that a job wants, of one document.
struct WantedSection {
  Digest key;
  SectionSpec spec;
  uint32_t document = 0;
  uint32_t rows = 0;
};
// Calls `visit(section)` for every section that the job wants of the documents [begin, end), until
// it fails.
absl::Status ForEachSectionOf(const JobObject& job, const Plan& plan, uint32_t begin, uint32_t end,
                              absl::FunctionRef<absl::Status(const WantedSection&)> visit);

struct InventoryQuery {
  Digest teacher;
  std::vector<SectionSpec> sections;               // of training chunks
  std::vector<SectionSpec> held_out_sections;      // of held-out chunks
  std::vector<uint32_t> chunks;                    // empty: all
  std::vector<std::string> first_chunk_artefacts;  // of the teacher
};
// Per chunk asked about: are all its sections there, whole, and with chunk 0 its artefacts?
// InvalidArgument for a chunk beyond the plan.
absl::StatusOr<std::vector<bool>> TakeInventory(TeacherCache& sections, ObjectStore& objects,
                                                const Plan& plan, const InventoryQuery& query);

// Calls `visit` for what the job wants, each section once (of the first document that has it), in
// the order of the plan, until it fails.
absl::Status ForEachWanted(
    const JobObject& job, const Plan& plan,
    const std::function<absl::Status(const WantedSection&, bool held_out)>& visit);

struct JobDigest {
  Digest digest;
  uint64_t sections = 0;  // wanted, each counted once
  uint64_t missing = 0;   // of them; the digest stands for the job only when there are none
};
// Of sections and the SHA-256 of their canonical values, in any order.
Digest DigestOfValues(std::vector<std::pair<Digest, Digest>> values);
// SHA-256 over the sorted (section key, SHA-256 of the decoded canonical values) of what the job
// wants: codec, parts, order, segments and provenance do not enter. DataLoss names a damaged part,
// also one that is known to be damaged and not captured again yet.
absl::StatusOr<JobDigest> DigestJob(TeacherCache& sections, const JobObject& job, const Plan& plan);

struct UsageShare {
  uint64_t documents = 0;
  uint64_t rows = 0;
  uint64_t sections = 0;
  uint64_t missing = 0;
  uint64_t damaged = 0;  // of the missing ones: known to be damaged, to be captured again
  uint64_t record_bytes = 0;
  uint64_t index_bytes = 0;
};
struct JobUsage {
  UsageShare training;
  UsageShare held_out;
  uint64_t artefact_bytes = 0;
  uint64_t plan_bytes = 0;
};
absl::StatusOr<JobUsage> MeasureJob(TeacherCache& sections, ObjectStore& objects,
                                    const JobObject& job, const Plan& plan);

// What the jobs of the cache tell of the sections: name, document, chunk, plan. A job whose object
// or plan cannot be read tells nothing.
std::map<Digest, std::string> NameSections(ObjectStore& objects, const std::set<Digest>& sections);

// The object "job/<name>". NotFound when the cache has none of that name.
absl::StatusOr<JobObject> ReadJob(ObjectStore& objects, absl::string_view job);

// The parts of a section of `rows` rows, in order.
std::vector<PartKey> PartKeysOf(const Digest& section, const SectionSpec& spec, uint32_t rows);

}  // namespace stillhouse
