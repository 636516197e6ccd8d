#include "storage/service/job_import.h"

#include <algorithm>
#include <map>
#include <utility>

#include "common/status.h"
#include "storage/codec.h"
#include "storage/export_file.h"
#include "storage/service/cache_client.h"

namespace stillhouse {
namespace {

constexpr uint64_t kPutBytes = 8ull << 20;  // of parts stored with one sync
constexpr size_t kPutParts = 32768;
constexpr size_t kMismatchesNamed = 3;
constexpr char kProducerClass[] = "imported";

std::string NameOf(const WantedSection& section) {
  return absl::StrCat(section.spec.Name(), " of document ", section.document);
}

// The parts of all files, one after another.
class PartStream {
 public:
  PartStream(const ExportFolderReader& folder, const ExportManifest& manifest)
      : folder_(folder), manifest_(manifest), specs_(ExportSpecs(manifest.job)) {}

  // nullopt after the last.
  absl::StatusOr<std::optional<ExportPart>> Next() {
    for (;;) {
      if (reader_ != nullptr) {
        auto part = reader_->Next();
        if (!part.ok()) return Annotate(part.status(), file_->path());
        if (part->has_value()) return part;
        reader_.reset();
        ++next_file_;
      }
      if (next_file_ == manifest_.files.size()) return std::nullopt;
      SH_ASSIGN_OR_RETURN(
          file_, folder_.OpenFile(ExportSectionsFile(next_file_), manifest_.files[next_file_]));
      auto opened = ExportFileReader::Open(
          file_->bytes(), [file = file_.get()](uint64_t offset, size_t size, char* out) {
            return file->ReadAt(offset, size, out);
          });
      if (!opened.ok()) return Annotate(opened.status(), file_->path());
      reader_ = *std::move(opened);
      if (reader_->specs() != specs_) {
        return absl::DataLossError(
            absl::StrCat(file_->path(), ": it lists other sections than the job"));
      }
    }
  }
  const std::vector<std::string>& specs() const { return specs_; }
  std::string path() const { return file_ == nullptr ? "the export" : file_->path(); }

 private:
  const ExportFolderReader& folder_;
  const ExportManifest& manifest_;
  const std::vector<std::string> specs_;
  size_t next_file_ = 0;
  std::unique_ptr<ExportInputFile> file_;
  std::unique_ptr<ExportFileReader> reader_;  // of file_
};

// Puts parts in groups and counts what became of them.
class Putter {
 public:
  Putter(const JobExport& from, JobStore& store) : from_(from), store_(store) {}

  absl::Status Add(const WantedSection& section, Part part) {
    const uint32_t chunk = from_.plan().document(section.document).chunk;
    PutItem& item = ItemOf(section.spec, chunk);
    bytes_ += part.payload.size();
    ++parts_;
    sections_[part.key.section] = section;
    item.parts.push_back(std::move(part));
    return bytes_ >= kPutBytes || parts_ >= kPutParts ? Flush() : absl::OkStatus();
  }

  absl::Status Flush() {
    if (items_.empty()) return absl::OkStatus();
    std::vector<std::vector<PartKey>> keys;
    for (const PutItem& item : items_) {
      auto& of_item = keys.emplace_back();
      for (const Part& part : item.parts) of_item.push_back(part.key);
    }
    std::vector<PutItem> items = std::exchange(items_, {});
    SH_ASSIGN_OR_RETURN(const auto counts, store_.Put(items));
    for (size_t i = 0; i < counts.size(); ++i) {
      report.stored += counts[i].stored;
      report.already += counts[i].already;
      if (counts[i].mismatched == 0) continue;
      mismatched_ += counts[i].mismatched;
      SH_RETURN_IF_ERROR(NameMismatches(items[i], keys[i]));
    }
    sections_.clear();
    bytes_ = parts_ = 0;
    return absl::OkStatus();
  }

  absl::Status Mismatches() const {
    if (mismatched_ == 0) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("the cache holds other values for ", mismatched_,
                     " parts of the export, and what it held stays: ", named_,
                     ". The rest is stored, the job is not"));
  }

  ImportReport report;

 private:
  PutItem& ItemOf(const SectionSpec& spec, uint32_t chunk) {
    for (PutItem& item : items_) {
      if (item.provenance.chunk == chunk && item.provenance.spec == spec) return item;
    }
    const JobObject& job = from_.manifest().job;
    return items_.emplace_back(PutItem{
        .parts = {},
        .provenance = {job.teacher, job.plan, chunk, spec, kProducerClass},
    });
  }

  absl::Status NameMismatches(const PutItem& item, const std::vector<PartKey>& keys) {
    SH_ASSIGN_OR_RETURN(const auto held, store_.GetParts(keys));
    for (size_t i = 0; i < keys.size() && named_count_ < kMismatchesNamed; ++i) {
      if (!held[i].has_value()) continue;
      const SectionSpec& spec = item.provenance.spec;
      SH_ASSIGN_OR_RETURN(const std::string ours,
                          CanonicalValues(spec, held[i]->payload, held[i]->row_count));
      SH_ASSIGN_OR_RETURN(const std::string theirs,
                          CanonicalValues(spec, item.parts[i].payload, item.parts[i].row_count));
      if (ours == theirs) continue;
      absl::StrAppend(&named_, named_count_++ == 0 ? "" : ", ", NameOf(sections_[keys[i].section]),
                      " from row ", keys[i].row_begin);
    }
    return absl::OkStatus();
  }

  const JobExport& from_;
  JobStore& store_;
  std::vector<PutItem> items_;
  std::map<Digest, WantedSection> sections_;  // of items_
  uint64_t bytes_ = 0;
  size_t parts_ = 0;
  uint64_t mismatched_ = 0;
  std::string named_;
  size_t named_count_ = 0;
};

// Two jobs of one name that want the same are the same.
absl::Status CheckJobIsFree(const JobObject& job, JobStore& store) {
  const auto held = store.GetObject(JobObjectName(job.name));
  if (absl::IsNotFound(held.status())) return absl::OkStatus();
  SH_RETURN_IF_ERROR(held.status());
  if (**held == EncodeJobObject(job)) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat("the cache has another job named ", job.name,
                                               "; choose a name for this one with --as"));
}

absl::Status PutObjects(const JobExport& from, JobStore& store) {
  const ExportManifest& manifest = from.manifest();
  SH_RETURN_IF_ERROR(store.PutObject(PlanObjectName(manifest.job.plan), from.plan_bytes()));
  for (size_t i = 0; i < manifest.artefacts.size(); ++i) {
    const std::string& name = manifest.artefacts[i].artefact;
    SH_ASSIGN_OR_RETURN(auto bytes, from.Artefact(i));
    const absl::Status put =
        store.PutObject(ArtefactObjectName(manifest.job.teacher, name), std::move(bytes));
    if (absl::IsAlreadyExists(put)) {
      return absl::AlreadyExistsError(
          absl::StrCat("the cache holds another ", name, " of this teacher; nothing was imported"));
    }
    SH_RETURN_IF_ERROR(put);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<JobExport>> JobExport::Open(const std::string& folder) {
  SH_ASSIGN_OR_RETURN(auto reader, ExportFolderReader::Open(folder));
  SH_ASSIGN_OR_RETURN(const auto file, reader->OpenFile(kExportManifestName));
  if (file->bytes() > kExportManifestBytesMax) {
    return absl::DataLossError(absl::StrCat(file->path(), ": it is larger than 64 MiB"));
  }
  SH_ASSIGN_OR_RETURN(const auto bytes, file->ReadAll());
  auto from = std::unique_ptr<JobExport>(new JobExport(std::move(reader)));
  SH_ASSIGN_OR_RETURN_AT(from->manifest_, ParseExportManifest(*bytes), folder);
  SH_RETURN_IF_ERROR(from->CheckFiles());
  SH_RETURN_IF_ERROR(from->CheckSections());
  return from;
}

// Sizes of all before the bytes of any; the plan, by which the rest is judged.
absl::Status JobExport::CheckFiles() {
  SH_ASSIGN_OR_RETURN(const auto plan_file, folder_->OpenFile(ExportPlanFile(), manifest_.plan));
  for (size_t i = 0; i < manifest_.artefacts.size(); ++i) {
    SH_RETURN_IF_ERROR(
        folder_->OpenFile(ExportArtefactFile(i), manifest_.artefacts[i].file).status());
  }
  for (size_t i = 0; i < manifest_.files.size(); ++i) {
    SH_RETURN_IF_ERROR(folder_->OpenFile(ExportSectionsFile(i), manifest_.files[i]).status());
  }
  const auto check = [](const ExportInputFile& file, const Digest& sha256) -> absl::Status {
    SH_ASSIGN_OR_RETURN(const Digest found, file.Hash());
    if (found == sha256) return absl::OkStatus();
    return absl::DataLossError(
        absl::StrCat(file.path(), ": its SHA-256 is not the one in the manifest"));
  };
  SH_RETURN_IF_ERROR(check(*plan_file, manifest_.plan.sha256));
  if (manifest_.plan.sha256 != manifest_.job.plan) {
    return absl::DataLossError(absl::StrCat(plan_file->path(), ": it is not the plan of the job"));
  }
  SH_ASSIGN_OR_RETURN(plan_bytes_, plan_file->ReadAll());
  const auto parsed = ParsePlan(plan_bytes_);
  if (!parsed.ok()) {
    return absl::DataLossError(absl::StrCat(plan_file->path(), ": ", parsed.status().message()));
  }
  plan_ = *parsed;
  if (plan_->document_count() != manifest_.documents) {
    return absl::DataLossError(absl::StrCat(plan_file->path(), ": it has ", plan_->document_count(),
                                            " documents; the manifest states ",
                                            manifest_.documents));
  }
  for (size_t i = 0; i < manifest_.artefacts.size(); ++i) {
    const ExportFileInfo& info = manifest_.artefacts[i].file;
    SH_ASSIGN_OR_RETURN(const auto file, folder_->OpenFile(ExportArtefactFile(i), info));
    SH_RETURN_IF_ERROR(check(*file, info.sha256));
  }
  for (size_t i = 0; i < manifest_.files.size(); ++i) {
    const ExportFileInfo& info = manifest_.files[i];
    SH_ASSIGN_OR_RETURN(const auto file, folder_->OpenFile(ExportSectionsFile(i), info));
    SH_RETURN_IF_ERROR(check(*file, info.sha256));
  }
  return absl::OkStatus();
}

absl::Status JobExport::CheckSections() const {
  std::vector<std::pair<Digest, Digest>> values;
  uint64_t rows = 0;
  std::unique_ptr<Sha256> open;  // of the section whose parts are coming
  SH_RETURN_IF_ERROR(ForEachPart([&](const WantedSection& section, Part part) -> absl::Status {
    if (part.key.row_begin == 0) open = std::make_unique<Sha256>();
    const auto canonical = CanonicalValues(section.spec, part.payload, part.row_count);
    if (!canonical.ok()) return Annotate(canonical.status(), NameOf(section));
    open->AddRaw(*canonical);
    rows += part.row_count;
    if (part.key.row_begin + part.row_count == section.rows) {
      values.emplace_back(section.key, open->Finish());
    }
    return absl::OkStatus();
  }));
  if (values.size() != manifest_.sections || rows != manifest_.rows) {
    return absl::DataLossError(absl::StrCat("the export has ", values.size(), " sections of ", rows,
                                            " rows; its manifest states ", manifest_.sections,
                                            " of ", manifest_.rows));
  }
  const Digest digest = DigestOfValues(std::move(values));
  if (digest != manifest_.digest) {
    return absl::DataLossError(absl::StrCat("the export's values have the digest ", digest.Hex(),
                                            "; its manifest states ", manifest_.digest.Hex()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const std::string>> JobExport::Artefact(size_t number) const {
  const ExportFileInfo& info = manifest_.artefacts[number].file;
  SH_ASSIGN_OR_RETURN(const auto file, folder_->OpenFile(ExportArtefactFile(number), info));
  SH_ASSIGN_OR_RETURN(auto bytes, file->ReadAll());
  if (Sha256Of(*bytes) != info.sha256) {
    return absl::DataLossError(absl::StrCat(file->path(), ": it changed while it was read"));
  }
  return bytes;
}

absl::Status JobExport::ForEachPart(const Visit& visit) const {
  PartStream stream(*folder_, manifest_);
  SH_RETURN_IF_ERROR(ForEachWanted(
      manifest_.job, *plan_, [&](const WantedSection& section, bool /*held_out*/) -> absl::Status {
        for (const PartKey& key : PartKeysOf(section.key, section.spec, section.rows)) {
          const uint32_t rows = std::min(section.spec.RowsPerPart(), section.rows - key.row_begin);
          SH_ASSIGN_OR_RETURN(auto next, stream.Next());
          const bool right = next.has_value() && next->part.key == key &&
                             next->part.row_count == rows &&
                             stream.specs()[next->spec] == section.spec.Canonical();
          if (!right) {
            return absl::DataLossError(
                absl::StrCat(stream.path(), ": ", NameOf(section), " is not where it should be"));
          }
          SH_RETURN_IF_ERROR(visit(section, std::move(next->part)));
        }
        return absl::OkStatus();
      }));
  SH_ASSIGN_OR_RETURN(const auto rest, stream.Next());
  if (rest.has_value()) {
    return absl::DataLossError(absl::StrCat(stream.path(), ": it holds more than the job wants"));
  }
  return absl::OkStatus();
}

absl::StatusOr<ImportReport> ImportJob(const JobExport& from, const std::string& name,
                                       JobStore& store) {
  if (!IsJobName(name)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", name.substr(0, 100), "' is no name of a job: a-z, 0-9, _ and -"));
  }
  JobObject job = from.manifest().job;
  job.name = name;
  SH_RETURN_IF_ERROR(CheckJobIsFree(job, store));
  SH_RETURN_IF_ERROR(PutObjects(from, store));
  Putter putter(from, store);
  SH_RETURN_IF_ERROR(from.ForEachPart([&](const WantedSection& section, Part part) {
    return putter.Add(section, std::move(part));
  }));
  SH_RETURN_IF_ERROR(putter.Flush());
  SH_RETURN_IF_ERROR(putter.Mismatches());
  SH_RETURN_IF_ERROR(store.PutObject(JobObjectName(job.name),
                                     std::make_shared<const std::string>(EncodeJobObject(job))));
  SH_ASSIGN_OR_RETURN(const JobDigest digest, store.DigestOfJob(job.name));
  if (digest.missing > 0 || digest.digest != from.manifest().digest) {
    return absl::DataLossError(absl::StrCat(
        "the cache gives the job the digest ", digest.digest.Hex(), " with ", digest.missing,
        " sections missing; the export has ", from.manifest().digest.Hex()));
  }
  return putter.report;
}

}  // namespace stillhouse
