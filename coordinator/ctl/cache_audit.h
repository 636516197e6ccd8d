// An audit: some of what a job captured is computed again by its teacher and compared.
//
// Owner: the verb `cache audit`. Blocking; one thread. The computation runs in a process of its
// own (teacher_recompute), which ends with ours.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "dataset/plan.h"
#include "storage/job_object.h"
#include "storage/section_distance.h"
#include "storage/service/job_store.h"

namespace stillhouse {

// A batch is the least that can be computed again to the same bits.
struct AuditBatch {
  uint32_t chunk = 0;
  uint32_t batch = 0;  // within the chunk
  uint64_t rows = 0;
};
// Batches drawn at random until they have `share` of the plan's rows; at least one. In order of the
// plan. REQUIRES: 0 < share <= 1.
std::vector<AuditBatch> DrawBatches(const Plan& plan, double share, uint64_t seed);

struct AuditedSection {
  SectionDistance distance;     // worst_row is that of the document
  uint32_t worst_document = 0;  // its number in the plan
  uint64_t missing_rows = 0;    // not captured (yet)
  bool Holds(const SectionSpec& spec) const;
};
struct AuditReport {
  uint64_t batches = 0;
  uint64_t rows = 0;                               // of the batches
  std::map<std::string, AuditedSection> sections;  // by canonical name
  std::vector<std::string> damaged;                // parts that cannot be read
  bool Compared() const;                           // any row at all
  bool Holds() const;                              // and what was compared is as the teacher says
};

struct AuditOptions {
  std::string model;  // a path
  std::string dtype;  // to compute in
  std::function<void(uint64_t rows)> on_progress;
};
// REQUIRES: the job's teacher is options.model.
absl::StatusOr<AuditReport> AuditJob(const JobObject& job, const Plan& plan,
                                     const std::string& plan_bytes,
                                     const std::vector<AuditBatch>& batches, JobSource& cache,
                                     const AuditOptions& options);

}  // namespace stillhouse
