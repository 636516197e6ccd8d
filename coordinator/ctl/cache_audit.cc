#include "coordinator/ctl/cache_audit.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <utility>

#include "common/byte_io.h"
#include "common/fd.h"
#include "common/file.h"
#include "common/random.h"
#include "common/status.h"
#include "coordinator/ctl/child.h"
#include "storage/export_file.h"

namespace stillhouse {
namespace {

constexpr char kProgram[] = "teacher_recompute";
constexpr uint64_t kBatchBytesMax = 64ull << 30;

// A file without a name that holds `bytes`, for a child to open as /proc/self/fd/<n>.
absl::StatusOr<int> NamelessFile(absl::string_view bytes) {
  Fd file(memfd_create("plan", MFD_CLOEXEC));
  if (file.get() < 0) return ErrnoStatus("making", "a file in memory");
  SH_RETURN_IF_ERROR(WriteAll(file.get(), bytes, "a file in memory"));
  return file.Release();
}

// The child that computes. Killed, and waited for, with the object.
class Recomputation {
 public:
  static absl::StatusOr<std::unique_ptr<Recomputation>> Start(const std::vector<std::string>& argv,
                                                              int plan) {
    SH_ASSIGN_OR_RETURN(const PipedChild child, StartPipedChild(argv, plan));
    return std::unique_ptr<Recomputation>(new Recomputation(child));
  }
  ~Recomputation() {
    close(child_.out);
    if (over_) return;
    kill(child_.pid, SIGKILL);
    waitpid(child_.pid, nullptr, 0);
  }

  // The next export file.
  absl::StatusOr<std::string> Next() {
    uint64_t size = 0;
    std::string bytes(sizeof(size), '\0');
    SH_RETURN_IF_ERROR(Read(&bytes));
    ByteReader(bytes).Get(&size);
    if (size > kBatchBytesMax) return absl::DataLossError(absl::StrCat(kProgram, " speaks oddly"));
    bytes.resize(size);
    SH_RETURN_IF_ERROR(Read(&bytes));
    return bytes;
  }

 private:
  explicit Recomputation(const PipedChild& child) : child_(child) {}

  absl::Status Read(std::string* bytes) {
    for (size_t have = 0; have < bytes->size();) {
      const ssize_t got = read(child_.out, bytes->data() + have, bytes->size() - have);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return ErrnoStatus("reading from", kProgram);
      if (got == 0) return Ended();
      have += static_cast<size_t>(got);
    }
    return absl::OkStatus();
  }
  absl::Status Ended() {
    int status = 0;
    waitpid(child_.pid, &status, 0);
    over_ = true;
    return absl::FailedPreconditionError(absl::StrCat(
        kProgram, " ended early (", ChildExitFrom(status).Describe(), "), see its lines above"));
  }

  const PipedChild child_;
  bool over_ = false;
};

absl::StatusOr<std::unique_ptr<ExportFileReader>> ReaderOf(const std::string& file) {
  return ExportFileReader::Open(file.size(), [&file](uint64_t offset, size_t size, char* out) {
    std::memcpy(out, file.data() + offset, size);
    return absl::OkStatus();
  });
}

class Auditor {
 public:
  Auditor(const JobObject& job, const Plan& plan, JobSource& cache)
      : job_(job), plan_(plan), cache_(cache) {}

  absl::Status Compare(const AuditBatch& batch, const std::string& file) {
    const PlanChunk chunk = plan_.chunk(batch.chunk);
    const PlanBatch& planned = chunk.batches[batch.batch];
    const auto& specs = chunk.held_out ? job_.held_out_sections : job_.sections;
    documents_.clear();
    for (uint32_t d = planned.begin; d < planned.end; ++d) {
      for (const SectionSpec& spec : specs) {
        documents_[SectionKey(job_.teacher, plan_.document(d).key, spec)] = d;
      }
    }
    SH_ASSIGN_OR_RETURN(const auto reader, ReaderOf(file));
    std::vector<ExportPart> parts;
    uint64_t bytes = 0;
    while (true) {
      SH_ASSIGN_OR_RETURN(std::optional<ExportPart> part, reader->Next());
      const bool last = !part.has_value();
      if (!last) {
        bytes += part->part.payload.size();
        parts.push_back(*std::move(part));
      }
      if (!parts.empty() && (last || bytes > kPartBytesMax)) {
        SH_RETURN_IF_ERROR(CompareParts(specs, parts));
        parts.clear();
        bytes = 0;
      }
      if (last) break;
    }
    ++report_.batches;
    report_.rows += batch.rows;
    return absl::OkStatus();
  }

  AuditReport Take() { return std::move(report_); }

 private:
  absl::Status CompareParts(const std::vector<SectionSpec>& specs,
                            const std::vector<ExportPart>& parts) {
    std::vector<PartKey> keys;
    for (const ExportPart& part : parts) keys.push_back(part.part.key);
    auto stored = cache_.GetParts(keys);
    if (absl::IsDataLoss(stored.status())) {  // one by one, to go on behind what is damaged
      report_.damaged.push_back(std::string(stored.status().message()));
      for (const ExportPart& part : parts) {
        auto one = cache_.GetParts({part.part.key});
        if (absl::IsDataLoss(one.status())) {
          report_.damaged.push_back(std::string(one.status().message()));
          continue;
        }
        SH_RETURN_IF_ERROR(one.status());
        SH_RETURN_IF_ERROR(ComparePart(specs[part.spec], part.part, (*one)[0]));
      }
      return absl::OkStatus();
    }
    SH_RETURN_IF_ERROR(stored.status());
    for (size_t i = 0; i < parts.size(); ++i) {
      SH_RETURN_IF_ERROR(ComparePart(specs[parts[i].spec], parts[i].part, (*stored)[i]));
    }
    return absl::OkStatus();
  }

  absl::Status ComparePart(const SectionSpec& spec, const Part& computed,
                           const std::optional<Part>& stored) {
    AuditedSection& section = report_.sections[spec.Canonical()];
    if (!stored.has_value()) {
      section.missing_rows += computed.row_count;
      return absl::OkStatus();
    }
    SectionRows now = NoRows(spec), then = NoRows(spec);
    SH_RETURN_IF_ERROR(
        DecodeSection(spec, computed.payload, computed.row_count, plan_.vocabulary(), &now));
    const absl::Status decoded =
        DecodeSection(spec, stored->payload, stored->row_count, plan_.vocabulary(), &then);
    const absl::StatusOr<SectionDistance> distance =
        decoded.ok() ? DistanceOf(now, then) : absl::StatusOr<SectionDistance>(decoded);
    if (!distance.ok()) {
      report_.damaged.push_back(absl::StrCat(spec.Canonical(), " of document ",
                                             documents_[computed.key.section], ": ",
                                             distance.status().message()));
      return absl::OkStatus();
    }
    SectionDistance& all = section.distance;
    all.rows += distance->rows;
    all.equal += distance->equal;
    all.sum += distance->sum;
    if (distance->worst > all.worst) {
      all.worst = distance->worst;
      all.worst_row = computed.key.row_begin + distance->worst_row;
      section.worst_document = documents_[computed.key.section];
    }
    return absl::OkStatus();
  }

  const JobObject& job_;
  const Plan& plan_;
  JobSource& cache_;
  AuditReport report_;
  std::map<Digest, uint32_t> documents_;  // of the batch, by section key
};

}  // namespace

std::vector<AuditBatch> DrawBatches(const Plan& plan, double share, uint64_t seed) {
  std::vector<AuditBatch> batches;
  for (uint32_t c = 0; c < plan.chunk_count(); ++c) {
    const PlanChunk chunk = plan.chunk(c);
    for (uint32_t b = 0; b < chunk.batches.size(); ++b) {
      AuditBatch batch{c, b, 0};
      for (uint32_t d = chunk.batches[b].begin; d < chunk.batches[b].end; ++d) {
        batch.rows += plan.document(d).rows();
      }
      batches.push_back(batch);
    }
  }
  Shuffle(batches, seed, 0);
  const double wanted = share * static_cast<double>(plan.training_rows() + plan.held_out_rows());
  double rows = 0;
  size_t count = 0;
  while (count < batches.size() && (count == 0 || rows < wanted)) {
    rows += static_cast<double>(batches[count++].rows);
  }
  batches.resize(count);
  std::sort(batches.begin(), batches.end(), [](const AuditBatch& a, const AuditBatch& b) {
    return std::pair(a.chunk, a.batch) < std::pair(b.chunk, b.batch);
  });
  return batches;
}

bool AuditedSection::Holds(const SectionSpec& spec) const {
  const SectionTolerance allowed = ToleranceOf(spec.kind);
  return distance.worst <= allowed.row &&
         distance.sum <= allowed.mean * static_cast<double>(distance.rows);
}

bool AuditReport::Compared() const {
  return std::any_of(sections.begin(), sections.end(),
                     [](const auto& item) { return item.second.distance.rows > 0; });
}

bool AuditReport::Holds() const {
  return damaged.empty() && Compared() &&
         std::all_of(sections.begin(), sections.end(), [](const auto& item) {
           const auto spec = ParseSectionSpec(item.first);
           return spec.ok() && item.second.Holds(*spec);
         });
}

absl::StatusOr<AuditReport> AuditJob(const JobObject& job, const Plan& plan,
                                     const std::string& plan_bytes,
                                     const std::vector<AuditBatch>& batches, JobSource& cache,
                                     const AuditOptions& options) {
  SH_ASSIGN_OR_RETURN(const std::string programs, ProgramsFolder());
  SH_ASSIGN_OR_RETURN(const int file, NamelessFile(plan_bytes));
  const Fd closed_at_the_end(file);
  std::vector<std::string> argv = {JoinPath(programs, kProgram),
                                   "--model",
                                   options.model,
                                   "--dtype",
                                   options.dtype,
                                   "--plan",
                                   absl::StrCat("/proc/self/fd/", file)};
  for (const SectionSpec& spec : job.sections) {
    argv.insert(argv.end(), {"--section", spec.Canonical()});
  }
  for (const SectionSpec& spec : job.held_out_sections) {
    argv.insert(argv.end(), {"--held-out-section", spec.Canonical()});
  }
  for (const AuditBatch& batch : batches) {
    argv.insert(argv.end(), {"--batch", absl::StrCat(batch.chunk, ":", batch.batch)});
  }
  SH_ASSIGN_OR_RETURN(const auto recomputation, Recomputation::Start(argv, file));
  Auditor auditor(job, plan, cache);
  uint64_t rows = 0;
  for (const AuditBatch& batch : batches) {
    SH_ASSIGN_OR_RETURN(const std::string computed, recomputation->Next());
    SH_RETURN_IF_ERROR(auditor.Compare(batch, computed));
    rows += batch.rows;
    if (options.on_progress) options.on_progress(rows);
  }
  return auditor.Take();
}

}  // namespace stillhouse
