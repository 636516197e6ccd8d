#include "storage/service/job_export.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "common/status.h"
#include "dataset/plan.h"
#include "storage/codec.h"
#include "storage/service/cache_client.h"
#include "storage/service/export_folder.h"

namespace stillhouse {
namespace {

constexpr size_t kKeysOfARead = 4096;
constexpr uint64_t kBytesOfARead = 32ull << 20;  // of parts in plain form, an upper bound
constexpr int kObjectsOfAList = 1000;

// Reads sections in groups and appends them to files of bounded size.
class SectionsExporter {
 public:
  SectionsExporter(JobSource& store, ExportFolderWriter& folder, const ExportOptions& options,
                   ExportManifest* manifest)
      : store_(store),
        folder_(folder),
        options_(options),
        manifest_(*manifest),
        specs_(ExportSpecs(manifest->job)) {}

  absl::Status Add(const WantedSection& section) {
    const std::vector<PartKey> keys = PartKeysOf(section.key, section.spec, section.rows);
    keys_.insert(keys_.end(), keys.begin(), keys.end());
    waiting_.push_back(section);
    bytes_ += kPartBytesMax / section.spec.RowsPerPart() * section.rows;
    return keys_.size() >= kKeysOfARead || bytes_ >= kBytesOfARead ? Flush() : absl::OkStatus();
  }

  absl::Status Finish() {
    SH_RETURN_IF_ERROR(Flush());
    SH_RETURN_IF_ERROR(EndFile());
    manifest_.digest = DigestOfValues(std::move(values_));
    return absl::OkStatus();
  }

 private:
  absl::Status Flush() {
    SH_ASSIGN_OR_RETURN(const auto parts, store_.GetParts(keys_));
    size_t next = 0;
    for (const WantedSection& section : waiting_) {
      const size_t count = PartKeysOf(section.key, section.spec, section.rows).size();
      SH_RETURN_IF_ERROR_AT(Write(section, absl::MakeSpan(parts).subspan(next, count)),
                            absl::StrCat(section.spec.Name(), " of document ", section.document));
      next += count;
    }
    keys_.clear();
    waiting_.clear();
    bytes_ = 0;
    return absl::OkStatus();
  }

  absl::Status Write(const WantedSection& section, absl::Span<const std::optional<Part>> parts) {
    Sha256 values;
    uint64_t rows = 0;
    for (const std::optional<Part>& part : parts) {
      if (!part.has_value()) return absl::FailedPreconditionError("it is not captured");
      SH_ASSIGN_OR_RETURN(const std::string canonical,
                          CanonicalValues(section.spec, part->payload, part->row_count));
      values.AddRaw(canonical);
      rows += part->row_count;
      SH_RETURN_IF_ERROR(WritePart(section, *part));
    }
    if (rows != section.rows) {
      return absl::DataLossError(absl::StrCat("it has ", rows, " rows, not ", section.rows));
    }
    values_.emplace_back(section.key, values.Finish());
    ++manifest_.sections;
    manifest_.rows += rows;
    return absl::OkStatus();
  }

  absl::Status WritePart(const WantedSection& section, const Part& part) {
    if (file_ != nullptr && file_->BytesWith(part.payload.size()) > options_.file_bytes_max) {
      SH_RETURN_IF_ERROR(EndFile());
    }
    if (file_ == nullptr) {
      SH_RETURN_IF_ERROR(folder_.Begin(ExportSectionsFile(manifest_.files.size())));
      file_ = std::make_unique<ExportFileWriter>(
          specs_, [this](absl::string_view bytes) { return folder_.Append(bytes); });
    }
    const auto spec = std::lower_bound(specs_.begin(), specs_.end(), section.spec.Canonical());
    return file_->Add(part, static_cast<uint32_t>(spec - specs_.begin()));
  }

  absl::Status EndFile() {
    if (file_ == nullptr) return absl::OkStatus();
    SH_RETURN_IF_ERROR(file_->Finish());
    file_.reset();
    SH_ASSIGN_OR_RETURN(manifest_.files.emplace_back(), folder_.End());
    return absl::OkStatus();
  }

  JobSource& store_;
  ExportFolderWriter& folder_;
  const ExportOptions& options_;
  ExportManifest& manifest_;
  const std::vector<std::string> specs_;
  std::vector<WantedSection> waiting_;
  std::vector<PartKey> keys_;  // of all that wait
  uint64_t bytes_ = 0;
  std::unique_ptr<ExportFileWriter> file_;
  std::vector<std::pair<Digest, Digest>> values_;
};

// Those of the job's teacher, but for what was measured over other plans.
absl::Status ExportArtefacts(JobSource& store, ExportFolderWriter& folder,
                             ExportManifest* manifest) {
  const std::string prefix = ArtefactObjectName(manifest->job.teacher, "");
  const std::string influence = InfluenceArtefactName(manifest->job.plan);
  for (std::string after;;) {
    SH_ASSIGN_OR_RETURN(const auto found, store.List(prefix, after, kObjectsOfAList));
    for (const ObjectInfo& object : found) {
      const std::string name = object.name.substr(prefix.size());
      if (absl::StartsWith(name, "influence/") && name != influence) continue;
      SH_ASSIGN_OR_RETURN(const auto bytes, store.GetObject(object.name));
      SH_ASSIGN_OR_RETURN(const ExportFileInfo file,
                          folder.Write(ExportArtefactFile(manifest->artefacts.size()), *bytes));
      manifest->artefacts.push_back({name, file});
    }
    if (std::ssize(found) < kObjectsOfAList) return absl::OkStatus();
    after = found.back().name;
  }
}

absl::StatusOr<JobObject> FindJob(JobSource& store, const std::string& name) {
  const auto bytes = store.GetObject(JobObjectName(name));
  if (absl::IsNotFound(bytes.status())) {
    return absl::NotFoundError(
        absl::StrCat("the cache knows no job ", name, "; `coordinatorctl cache ls` lists them"));
  }
  SH_RETURN_IF_ERROR(bytes.status());
  return ParseJobObject(**bytes);
}

}  // namespace

absl::StatusOr<ExportManifest> ExportJob(JobSource& store, const std::string& job,
                                         const std::string& folder, const ExportOptions& options) {
  ExportManifest manifest;
  SH_ASSIGN_OR_RETURN(manifest.job, FindJob(store, job));
  SH_ASSIGN_OR_RETURN(const JobUsage usage, store.UsageOfJob(job));
  if (const uint64_t damaged = usage.training.damaged + usage.held_out.damaged; damaged > 0) {
    return absl::DataLossError(absl::StrCat(damaged, " of the sections of ", job,
                                            " are damaged and not captured again yet"));
  }
  if (const uint64_t missing = usage.training.missing + usage.held_out.missing; missing > 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(missing, " of the ", usage.training.sections + usage.held_out.sections,
                     " sections of ", job, " are not captured yet; export it once all are"));
  }
  SH_ASSIGN_OR_RETURN(const auto writer, ExportFolderWriter::Create(folder));
  SH_ASSIGN_OR_RETURN(const auto plan_bytes, store.GetObject(PlanObjectName(manifest.job.plan)));
  SH_ASSIGN_OR_RETURN(const auto plan, ParsePlan(plan_bytes));
  manifest.documents = plan->document_count();
  SH_ASSIGN_OR_RETURN(manifest.plan, writer->Write(ExportPlanFile(), *plan_bytes));
  SH_RETURN_IF_ERROR(ExportArtefacts(store, *writer, &manifest));
  SectionsExporter sections(store, *writer, options, &manifest);
  SH_RETURN_IF_ERROR(ForEachWanted(
      manifest.job, *plan,
      [&](const WantedSection& section, bool /*held_out*/) { return sections.Add(section); }));
  SH_RETURN_IF_ERROR(sections.Finish());
  SH_RETURN_IF_ERROR(writer->Write(kExportManifestName, EncodeExportManifest(manifest)).status());
  SH_RETURN_IF_ERROR(writer->Finish());
  return manifest;
}

}  // namespace stillhouse
