#include "storage/service/job_scan.h"

#include <algorithm>
#include <set>

#include "absl/container/flat_hash_set.h"
#include "common/status.h"
#include "storage/codec.h"
#include "storage/service/cache_client.h"

namespace stillhouse {
namespace {

constexpr size_t kFindKeysMax = 8192;            // index keys looked up at once
constexpr uint64_t kReadBytesMax = 16ull << 20;  // of records read at once
constexpr int kObjectsOfAList = 1000;

// Calls `visit(section)` for every section of the documents [begin, end) of the plan, until it
// fails.
template <typename Visit>
absl::Status ForEachSection(const Plan& plan, const Digest& teacher,
                            const std::vector<SectionSpec>& specs, uint32_t begin, uint32_t end,
                            Visit visit) {
  for (uint32_t d = begin; d < end; ++d) {
    const PlanDocument document = plan.document(d);
    for (const SectionSpec& spec : specs) {
      SH_RETURN_IF_ERROR(
          visit(WantedSection{SectionKey(teacher, document.key, spec), spec, d, document.rows()}));
    }
  }
  return absl::OkStatus();
}

// Are all the parts there, with the rows they should have? Adds to `share` what they take.
bool IsWhole(const WantedSection& section, const std::vector<PartKey>& keys,
             absl::Span<const std::optional<IndexEntry>> entries, UsageShare* share) {
  uint64_t rows = 0;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (!entries[i].has_value()) return false;
    rows += entries[i]->row_count;
    share->record_bytes += PlaceKey(entries[i]->place).size() + entries[i]->record_bytes;
    share->index_bytes += IndexKey(keys[i]).size() + EncodeIndexEntry(*entries[i]).size();
  }
  return rows == section.rows;
}

// Looks sections up in groups, and tells of each whether it is whole.
class SectionFinder {
 public:
  using Told = std::function<absl::Status(const WantedSection&, bool whole, const UsageShare&)>;
  SectionFinder(TeacherCache& cache, Told told) : cache_(cache), told_(std::move(told)) {}

  absl::Status Add(const WantedSection& section) {
    const std::vector<PartKey> parts = PartKeysOf(section.key, section.spec, section.rows);
    keys_.insert(keys_.end(), parts.begin(), parts.end());
    sections_.push_back(section);
    return keys_.size() >= kFindKeysMax ? Finish() : absl::OkStatus();
  }
  absl::Status Finish() {
    SH_ASSIGN_OR_RETURN(const auto entries, cache_.Find(keys_));
    absl::Span<const std::optional<IndexEntry>> rest = entries;
    for (const WantedSection& section : sections_) {
      const auto parts = PartKeysOf(section.key, section.spec, section.rows);
      UsageShare share;
      const bool whole = IsWhole(section, parts, rest.subspan(0, parts.size()), &share);
      rest.remove_prefix(parts.size());
      SH_RETURN_IF_ERROR(told_(section, whole, share));
    }
    keys_.clear();
    sections_.clear();
    return absl::OkStatus();
  }

 private:
  TeacherCache& cache_;
  Told told_;
  std::vector<PartKey> keys_;
  std::vector<WantedSection> sections_;
};

absl::StatusOr<bool> HasArtefacts(ObjectStore& objects, const Digest& teacher,
                                  const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    const absl::Status found = objects.Stat(ArtefactObjectName(teacher, name)).status();
    if (absl::IsNotFound(found)) return false;
    SH_RETURN_IF_ERROR(found);
  }
  return true;
}

uint32_t TrainingDocuments(const Plan& plan) {
  const uint32_t chunks = plan.training_chunk_count();
  return chunks == 0 ? 0 : plan.chunk(chunks - 1).end;
}

bool HasDamage(const TeacherCache& cache, absl::Span<const PartKey> keys) {
  return std::any_of(keys.begin(), keys.end(),
                     [&](const PartKey& key) { return cache.IsDamaged(key); });
}

absl::StatusOr<Digest> DigestSection(TeacherCache& cache, const WantedSection& section,
                                     bool* missing) {
  Sha256 values;
  const std::vector<PartKey> keys = PartKeysOf(section.key, section.spec, section.rows);
  uint64_t rows = 0;
  for (size_t next = 0; next < keys.size();) {
    SH_ASSIGN_OR_RETURN(const auto parts,
                        cache.Get(absl::MakeConstSpan(keys).subspan(next), kReadBytesMax));
    for (const std::optional<Part>& part : parts) {
      if (!part.has_value()) {
        if (HasDamage(cache, keys)) {
          return absl::DataLossError(absl::StrCat(
              "section ", section.key.ShortHex(), " (", section.spec.Canonical(), " of document ",
              section.document, ") is damaged and not captured again yet"));
        }
        *missing = true;
        return Digest{};
      }
      SH_ASSIGN_OR_RETURN(const std::string canonical,
                          CanonicalValues(section.spec, part->payload, part->row_count));
      values.AddRaw(canonical);
      rows += part->row_count;
    }
    next += parts.size();
  }
  *missing = rows != section.rows;
  return values.Finish();
}

}  // namespace

absl::Status ForEachWanted(
    const JobObject& job, const Plan& plan,
    const std::function<absl::Status(const WantedSection&, bool held_out)>& visit) {
  const uint32_t training = TrainingDocuments(plan);
  absl::flat_hash_set<Digest> seen;
  const auto once = [&](bool held_out) {
    return [&visit, &seen, held_out](const WantedSection& section) {
      return seen.insert(section.key).second ? visit(section, held_out) : absl::OkStatus();
    };
  };
  SH_RETURN_IF_ERROR(
      ForEachSection(plan, job.teacher, job.sections, 0, training, once(/*held_out=*/false)));
  return ForEachSection(plan, job.teacher, job.held_out_sections, training, plan.document_count(),
                        once(/*held_out=*/true));
}

absl::Status ForEachSectionOf(const JobObject& job, const Plan& plan, uint32_t begin, uint32_t end,
                              absl::FunctionRef<absl::Status(const WantedSection&)> visit) {
  const uint32_t training = std::clamp(TrainingDocuments(plan), begin, end);
  SH_RETURN_IF_ERROR(ForEachSection(plan, job.teacher, job.sections, begin, training, visit));
  return ForEachSection(plan, job.teacher, job.held_out_sections, training, end, visit);
}

std::vector<PartKey> PartKeysOf(const Digest& section, const SectionSpec& spec, uint32_t rows) {
  std::vector<PartKey> keys;
  for (uint64_t row = 0; row < rows; row += spec.RowsPerPart()) {
    keys.push_back({section, static_cast<uint32_t>(row)});
  }
  return keys;
}

absl::StatusOr<std::shared_ptr<const Plan>> PlanCache::Get(ObjectStore& objects,
                                                           const Digest& digest) {
  {
    MutexLock lock(mutex_);
    for (size_t i = 0; i < plans_.size(); ++i) {
      if (plans_[i]->digest() != digest) continue;
      std::rotate(plans_.begin() + i, plans_.begin() + i + 1, plans_.end());
      return plans_.back();
    }
  }
  SH_ASSIGN_OR_RETURN(auto bytes, objects.Get(PlanObjectName(digest)));
  SH_ASSIGN_OR_RETURN_AT(auto plan, ParsePlan(std::move(bytes)), PlanObjectName(digest));
  MutexLock lock(mutex_);
  if (plans_.size() >= kPlansMax) plans_.erase(plans_.begin());
  plans_.push_back(plan);
  return plan;
}

absl::StatusOr<std::vector<bool>> TakeInventory(TeacherCache& sections, ObjectStore& objects,
                                                const Plan& plan, const InventoryQuery& query) {
  std::vector<uint32_t> chunks = query.chunks;
  if (chunks.empty()) {
    for (uint32_t c = 0; c < plan.chunk_count(); ++c) chunks.push_back(c);
  }
  std::vector<bool> complete(chunks.size(), true);
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (chunks[i] >= plan.chunk_count()) {
      return absl::InvalidArgumentError(
          absl::StrCat("chunk ", chunks[i], " of a plan of ", plan.chunk_count(), " chunks"));
    }
    const PlanChunk chunk = plan.chunk(chunks[i]);
    SectionFinder finder(sections, [&](const WantedSection&, bool whole, const UsageShare&) {
      if (!whole) complete[i] = false;
      return absl::OkStatus();
    });
    SH_RETURN_IF_ERROR(ForEachSection(
        plan, query.teacher, chunk.held_out ? query.held_out_sections : query.sections, chunk.begin,
        chunk.end, [&](const WantedSection& section) { return finder.Add(section); }));
    SH_RETURN_IF_ERROR(finder.Finish());
    if (chunks[i] == 0 && complete[i]) {
      SH_ASSIGN_OR_RETURN(complete[i],
                          HasArtefacts(objects, query.teacher, query.first_chunk_artefacts));
    }
  }
  return complete;
}

Digest DigestOfValues(std::vector<std::pair<Digest, Digest>> values) {
  std::sort(values.begin(), values.end());
  Sha256 sha;
  sha.AddField("stillhouse job digest 1");
  for (const auto& [key, digest] : values) sha.AddDigest(key).AddDigest(digest);
  return sha.Finish();
}

absl::StatusOr<JobDigest> DigestJob(TeacherCache& sections, const JobObject& job,
                                    const Plan& plan) {
  JobDigest result;
  std::vector<std::pair<Digest, Digest>> values;
  SH_RETURN_IF_ERROR(ForEachWanted(job, plan, [&](const WantedSection& section, bool) {
    ++result.sections;
    bool missing = false;
    SH_ASSIGN_OR_RETURN(const Digest digest, DigestSection(sections, section, &missing));
    if (missing) {
      ++result.missing;
    } else {
      values.emplace_back(section.key, digest);
    }
    return absl::OkStatus();
  }));
  result.digest = DigestOfValues(std::move(values));
  return result;
}

absl::StatusOr<JobUsage> MeasureJob(TeacherCache& sections, ObjectStore& objects,
                                    const JobObject& job, const Plan& plan) {
  JobUsage usage;
  const auto count = [&sections](UsageShare* total) {
    return [&sections, total](const WantedSection& section, bool whole, const UsageShare& share) {
      ++total->sections;
      total->missing += !whole;
      total->damaged +=
          !whole && HasDamage(sections, PartKeysOf(section.key, section.spec, section.rows));
      total->record_bytes += share.record_bytes;
      total->index_bytes += share.index_bytes;
      return absl::OkStatus();
    };
  };
  SectionFinder training(sections, count(&usage.training));
  SectionFinder held_out(sections, count(&usage.held_out));
  SH_RETURN_IF_ERROR(ForEachWanted(job, plan, [&](const WantedSection& section, bool is_held_out) {
    return (is_held_out ? held_out : training).Add(section);
  }));
  SH_RETURN_IF_ERROR(training.Finish());
  SH_RETURN_IF_ERROR(held_out.Finish());
  usage.training.documents = TrainingDocuments(plan);
  usage.training.rows = plan.training_rows();
  usage.held_out.documents = plan.document_count() - usage.training.documents;
  usage.held_out.rows = plan.held_out_rows();

  const std::string prefix = ArtefactObjectName(job.teacher, "");
  for (std::string after;;) {
    SH_ASSIGN_OR_RETURN(const auto found, objects.List(prefix, after, kObjectsOfAList));
    for (const ObjectInfo& object : found) usage.artefact_bytes += object.size;
    if (std::ssize(found) < kObjectsOfAList) break;
    after = found.back().name;
  }
  SH_ASSIGN_OR_RETURN(const ObjectHeader plan_header, objects.Stat(PlanObjectName(job.plan)));
  usage.plan_bytes = plan_header.size;
  return usage;
}

std::map<Digest, std::string> NameSections(ObjectStore& objects, const std::set<Digest>& sections) {
  std::map<Digest, std::string> names;
  PlanCache plans;
  const auto name = [&](const std::string& object) -> absl::Status {
    SH_ASSIGN_OR_RETURN(const auto bytes, objects.Get(object));
    SH_ASSIGN_OR_RETURN(const JobObject job, ParseJobObject(*bytes));
    SH_ASSIGN_OR_RETURN(const auto plan, plans.Get(objects, job.plan));
    return ForEachWanted(job, *plan, [&](const WantedSection& section, bool /*held_out*/) {
      if (!sections.contains(section.key)) return absl::OkStatus();
      names.try_emplace(
          section.key,
          absl::StrCat(section.spec.Canonical(), " of document ", section.document, " in chunk ",
                       plan->document(section.document).chunk, " of plan ", job.plan.ShortHex()));
      return absl::OkStatus();
    });
  };
  const std::string prefix = JobObjectName("");
  for (std::string after;;) {
    const auto found = objects.List(prefix, after, kObjectsOfAList);
    if (!found.ok()) return names;
    for (const ObjectInfo& object : *found) name(object.name).IgnoreError();
    if (std::ssize(*found) < kObjectsOfAList) return names;
    after = found->back().name;
  }
}

absl::StatusOr<JobObject> ReadJob(ObjectStore& objects, absl::string_view job) {
  const auto bytes = objects.Get(JobObjectName(job));
  if (absl::IsNotFound(bytes.status())) {
    return absl::NotFoundError(
        absl::StrCat("the cache knows no job ", job, "; `coordinatorctl cache ls` lists them"));
  }
  SH_RETURN_IF_ERROR(bytes.status());
  return ParseJobObject(**bytes);
}

}  // namespace stillhouse
