// Imports of exported jobs (storage/service/job_export.h) into a cache.
//
// An export is checked as a whole before anything of it is stored: what is stored first stays, so a
// bad one must not come so far. Checked are sizes and hashes of all files, every record, that the
// parts are exactly those that teacher, plan and sections ask for, that all decode, and the job's
// digest. Whether the teacher did say so, nobody can check: import what you trust.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "dataset/plan.h"
#include "storage/export_manifest.h"
#include "storage/service/export_folder.h"
#include "storage/service/job_store.h"

namespace stillhouse {

// An export, checked. One thread.
class JobExport {
 public:
  // Reads all of it. DataLoss, in one line, when it is damaged or made up; NotFound when there is
  // no such folder.
  static absl::StatusOr<std::unique_ptr<JobExport>> Open(const std::string& folder);

  const ExportManifest& manifest() const { return manifest_; }
  const Plan& plan() const { return *plan_; }
  std::shared_ptr<const std::string> plan_bytes() const { return plan_bytes_; }
  absl::StatusOr<std::shared_ptr<const std::string>> Artefact(size_t number) const;

  // Every part in the order of the plan, until `visit` fails. Their records are checked again,
  // their values are not.
  using Visit = std::function<absl::Status(const WantedSection&, Part)>;
  absl::Status ForEachPart(const Visit& visit) const;

 private:
  explicit JobExport(std::unique_ptr<ExportFolderReader> folder) : folder_(std::move(folder)) {}
  absl::Status CheckFiles();
  absl::Status CheckSections() const;

  const std::unique_ptr<ExportFolderReader> folder_;
  // Constant after Open.
  ExportManifest manifest_;
  std::shared_ptr<const std::string> plan_bytes_;
  std::shared_ptr<const Plan> plan_;
};

struct ImportReport {
  uint64_t stored = 0;   // parts that are new
  uint64_t already = 0;  // parts that were there with the same values
};
// Stores the export as the job `name`, its job object last. Idempotent; after a kill, run it again.
// AlreadyExists when the cache has another job, or another artefact, of that name;
// FailedPrecondition, naming some, when the cache holds other values for some of the sections: the
// first write won, the rest is stored, the job is not. OK: the job's digest in the cache is the
// export's.
absl::StatusOr<ImportReport> ImportJob(const JobExport& from, const std::string& name,
                                       JobStore& store);

}  // namespace stillhouse
