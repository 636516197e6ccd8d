#include "storage/service/cache_space.h"

#include <algorithm>
#include <map>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "common/log.h"
#include "common/status.h"
#include "storage/service/cache_admin.h"
#include "storage/service/cache_client.h"

namespace stillhouse {
namespace {

constexpr int kObjectsOfAList = 1000;
constexpr size_t kFindPartsMax =
    kRemovePartsMax / 2;  // of one step; a section's parts stay together
constexpr absl::string_view kJobPrefix = "job/";
constexpr absl::string_view kPinPrefix = "pin/";
constexpr absl::string_view kPlanPrefix = "sha256/";
constexpr absl::string_view kArtefactPrefix = "artefact/";

template <typename Visit>
absl::Status ForEachObject(ObjectStore& objects, absl::string_view prefix, Visit visit) {
  for (std::string after;;) {
    SH_ASSIGN_OR_RETURN(const auto found, objects.List(prefix, after, kObjectsOfAList));
    for (const ObjectInfo& object : found) SH_RETURN_IF_ERROR(visit(object));
    if (std::ssize(found) < kObjectsOfAList) return absl::OkStatus();
    after = found.back().name;
  }
}

bool Contains(const std::vector<SectionSpec>& specs, const SectionSpec& spec) {
  return std::find(specs.begin(), specs.end(), spec) != specs.end();
}

// Moves those of `specs` that are to go.
void Take(const std::vector<SectionSpec>& going, std::vector<SectionSpec>* specs,
          std::vector<SectionSpec>* gone) {
  for (const SectionSpec& spec : *specs) {
    if (Contains(going, spec)) gone->push_back(spec);
  }
  std::erase_if(*specs, [&](const SectionSpec& spec) { return Contains(going, spec); });
}

}  // namespace

std::string PinObjectName(absl::string_view job) {
  return absl::StrCat(kPinPrefix, absl::StripPrefix(job, kJobPrefix));
}

absl::Status PinJob(ObjectStore& objects, const std::string& job) {
  SH_ASSIGN_OR_RETURN(const JobObject wanted, ReadJob(objects, job));
  const std::string bytes = EncodeJobObject(wanted);
  SH_RETURN_IF_ERROR(CheckJobIsWhole(objects, JobObjectName(job), bytes));
  return objects.Put(PinObjectName(job), bytes);
}

absl::Status UnpinJob(ObjectStore& objects, const std::string& job) {
  const absl::Status found = objects.Stat(PinObjectName(job)).status();
  if (absl::IsNotFound(found)) {
    return absl::NotFoundError(
        absl::StrCat(job, " is not pinned; `coordinatorctl cache ls pin/` lists what is"));
  }
  SH_RETURN_IF_ERROR(found);
  return objects.Remove({PinObjectName(job)});
}

absl::Status CheckJobIsWhole(ObjectStore& objects, absl::string_view name,
                             absl::string_view bytes) {
  if (!absl::StartsWith(name, kJobPrefix) && !absl::StartsWith(name, kPinPrefix)) {
    return absl::OkStatus();
  }
  const auto job = ParseJobObject(bytes);
  if (!job.ok()) return absl::OkStatus();  // no description of a job: nothing to miss
  const absl::Status plan = objects.Stat(PlanObjectName(job->plan)).status();
  if (!absl::IsNotFound(plan)) return plan;
  return absl::FailedPreconditionError(
      absl::StrCat(name, ": its plan is not in the cache (any more); submit it again"));
}

SpaceTask::SpaceTask(SpaceRequest request, PlanCache& plans)
    : request_(std::move(request)), plans_(plans) {
  reclaim_.live_share_max = request_.live_share_max;
  reclaim_.orphans = request_.what == SpaceRequest::What::kCollect;
}

SpaceTask::Next SpaceTask::next() const {
  switch (phase_) {
    case Phase::kRewrite:
    case Phase::kRemove:
    case Phase::kObjects:
    case Phase::kReclaim:
      return Next::kWrite;
    case Phase::kDone:
      return Next::kDone;
    default:
      return Next::kRead;
  }
}

absl::Status SpaceTask::Step(TeacherCache& sections, ObjectStore& objects) {
  switch (phase_) {
    case Phase::kJobs:
      return FindChanges(objects);
    case Phase::kRewrite:
      return RewriteJobs(objects);
    case Phase::kMark:
      return Mark(objects);
    case Phase::kFind:
      return Find(sections, objects);
    case Phase::kRemove:
      return RemoveBatch(sections, objects);
    case Phase::kObjects:
      return RemoveObjects(objects);
    case Phase::kReclaim:
      return Reclaim(sections, objects);
    case Phase::kCompact:
      return Compact(sections, objects);
    case Phase::kDone:
      break;
  }
  return absl::OkStatus();
}

absl::StatusOr<SpaceTask::Jobs> SpaceTask::ReadJobs(ObjectStore& objects) {
  Jobs jobs;
  Sha256 sha;
  for (const absl::string_view prefix : {kJobPrefix, kPinPrefix}) {
    SH_RETURN_IF_ERROR(
        ForEachObject(objects, prefix, [&](const ObjectInfo& object) -> absl::Status {
          SH_ASSIGN_OR_RETURN(const auto bytes, objects.Get(object.name, kPartBytesMax));
          SH_ASSIGN_OR_RETURN_AT(JobObject job, ParseJobObject(*bytes), object.name);
          sha.AddField(object.name).AddField(*bytes);
          jobs.all.push_back({object.name, std::move(job)});
          return absl::OkStatus();
        }));
  }
  jobs.token = sha.Finish();
  return jobs;
}

absl::Status SpaceTask::FindChanges(ObjectStore& objects) {
  SH_ASSIGN_OR_RETURN(const Jobs jobs, ReadJobs(objects));
  token_ = jobs.token;
  changes_.clear();
  phase_ = request_.dry_run ? Phase::kMark : Phase::kRewrite;
  if (request_.what == SpaceRequest::What::kCollect) return absl::OkStatus();
  if (request_.what == SpaceRequest::What::kRelease && request_.chunks.empty()) {
    phase_ = Phase::kReclaim;  // asked only for what is used
    return absl::OkStatus();
  }
  std::set<std::string> pinned;
  for (const Named& named : jobs.all) {
    if (absl::StartsWith(named.object, kPinPrefix)) pinned.insert(named.object);
  }
  const bool release = request_.what == SpaceRequest::What::kRelease;
  for (const Named& named : jobs.all) {
    absl::string_view name = named.object;
    if (!absl::ConsumePrefix(&name, kJobPrefix)) continue;
    if (!request_.job.empty()
            ? name != request_.job
            : request_.teacher.has_value() && named.job.teacher != *request_.teacher) {
      continue;
    }
    Change change{named.job, std::nullopt};
    if (release) {
      change.after = named.job;
    } else if (!request_.sections.empty()) {
      JobObject rest = named.job;
      change.gone.sections.clear();
      change.gone.held_out_sections.clear();
      Take(request_.sections, &rest.sections, &change.gone.sections);
      Take(request_.sections, &rest.held_out_sections, &change.gone.held_out_sections);
      if (change.gone.sections.empty() && change.gone.held_out_sections.empty()) continue;
      if (!rest.sections.empty() || !rest.held_out_sections.empty()) change.after = rest;
    }
    if (!release && pinned.contains(PinObjectName(name))) {
      return absl::FailedPreconditionError(
          absl::StrCat(name, " is pinned; `coordinatorctl cache unpin ", name, "` first"));
    }
    changes_.push_back(std::move(change));
  }
  if (!changes_.empty()) return absl::OkStatus();
  if (!request_.job.empty()) SH_RETURN_IF_ERROR(ReadJob(objects, request_.job).status());
  return absl::NotFoundError(
      "no job in the cache has such sections; `coordinatorctl cache stat` and `cache ls job/` list "
      "what is there");
}

absl::Status SpaceTask::RewriteJobs(ObjectStore& objects) {
  SH_ASSIGN_OR_RETURN(const Jobs jobs, ReadJobs(objects));
  if (jobs.token != token_) {
    phase_ = Phase::kJobs;
    return absl::OkStatus();
  }
  std::vector<std::string> gone;
  if (request_.what == SpaceRequest::What::kRemove) {
    for (const Change& change : changes_) {
      const std::string name = JobObjectName(change.gone.name);
      if (change.after.has_value()) {
        SH_RETURN_IF_ERROR(objects.Put(name, EncodeJobObject(*change.after)));
        continue;
      }
      SH_ASSIGN_OR_RETURN(const ObjectHeader header, objects.Stat(name));
      result_.object_bytes += header.size;
      ++result_.object_count;
      if (result_.objects.size() < kSpaceNamesMax) result_.objects.push_back(name);
      gone.push_back(name);
    }
  }
  SH_RETURN_IF_ERROR(objects.Remove(gone));
  phase_ = Phase::kMark;
  return absl::OkStatus();
}

std::vector<SpaceTask::Named> SpaceTask::After(const Jobs& jobs) const {
  std::vector<Named> after;
  for (const Named& named : jobs.all) {
    const auto changed = std::find_if(changes_.begin(), changes_.end(), [&](const Change& change) {
      return JobObjectName(change.gone.name) == named.object;
    });
    // When nothing is written, the jobs still stand as they were.
    if (!request_.dry_run || changed == changes_.end()) {
      after.push_back(named);
    } else if (changed->after.has_value()) {
      after.push_back({named.object, *changed->after});
    }
  }
  return after;
}

absl::Status SpaceTask::Mark(ObjectStore& objects) {
  SH_ASSIGN_OR_RETURN(const Jobs jobs, ReadJobs(objects));
  token_ = jobs.token;
  wanted_.clear();
  const bool collect = request_.what == SpaceRequest::What::kCollect;
  for (const Named& named : After(jobs)) {
    // Sections of different teachers have different keys.
    const bool matters =
        collect || std::any_of(changes_.begin(), changes_.end(), [&](const Change& change) {
          return change.gone.teacher == named.job.teacher;
        });
    if (!matters) continue;
    if (request_.what == SpaceRequest::What::kRelease &&
        named.object == JobObjectName(request_.job)) {
      continue;
    }
    const auto plan = plans_.Get(objects, named.job.plan);
    if (!plan.ok()) {
      return Annotate(plan.status(), absl::StrCat(named.object,
                                                  ": without its plan nobody knows what it wants; "
                                                  "submit it again or remove it"));
    }
    SH_RETURN_IF_ERROR(ForEachSectionOf(named.job, **plan, 0, (*plan)->document_count(),
                                        [this](const WantedSection& section) {
                                          wanted_.insert(section.key);
                                          return absl::OkStatus();
                                        }));
  }
  phase_ = Phase::kFind;
  return absl::OkStatus();
}

void SpaceTask::Consider(const WantedSection& section) {
  if (wanted_.contains(section.key)) return;
  for (const PartKey& key : PartKeysOf(section.key, section.spec, section.rows)) {
    batch_.push_back({key, section.spec});
  }
}

absl::Status SpaceTask::Find(TeacherCache& sections, ObjectStore& objects) {
  batch_.clear();
  more_ = false;
  SH_RETURN_IF_ERROR(request_.what == SpaceRequest::What::kCollect ? FindInIndex(sections, &more_)
                                                                   : FindInPlans(objects, &more_));
  if (request_.dry_run) {
    SH_RETURN_IF_ERROR(CountBatch(sections));
    phase_ = more_ ? Phase::kFind : Phase::kObjects;
    return absl::OkStatus();
  }
  phase_ = Phase::kRemove;
  return absl::OkStatus();
}

// The documents of the changed jobs, some at a time.
absl::Status SpaceTask::FindInPlans(ObjectStore& objects, bool* more) {
  while (change_ < changes_.size() && batch_.size() < kFindPartsMax) {
    const JobObject& job = changes_[change_].gone;
    const auto plan = plans_.Get(objects, job.plan);
    if (absl::IsNotFound(plan.status())) {  // a collection finds what it wanted
      ++change_;
      document_ = 0;
      continue;
    }
    SH_RETURN_IF_ERROR(plan.status());
    if (request_.what == SpaceRequest::What::kRelease) {
      SH_RETURN_IF_ERROR(FindInChunks(job, **plan, more));
      return absl::OkStatus();
    }
    for (; document_ < (*plan)->document_count() && batch_.size() < kFindPartsMax; ++document_) {
      SH_RETURN_IF_ERROR(ForEachSectionOf(job, **plan, document_, document_ + 1,
                                          [this](const WantedSection& section) {
                                            Consider(section);
                                            return absl::OkStatus();
                                          }));
    }
    if (document_ < (*plan)->document_count()) break;
    ++change_;
    document_ = 0;
  }
  *more = change_ < changes_.size();
  return absl::OkStatus();
}

// The chunks to be released, one at a time. A text that stands in two chunks is stored once: it
// stays, since the other chunk may not have been read.
absl::Status SpaceTask::FindInChunks(const JobObject& job, const Plan& plan, bool* more) {
  if (repeated_ == nullptr) {
    repeated_ = std::make_unique<absl::flat_hash_set<Digest>>();
    absl::flat_hash_map<Digest, uint32_t> chunks;
    for (uint32_t d = 0; d < plan.document_count(); ++d) {
      const PlanDocument document = plan.document(d);
      const auto [first, added] = chunks.try_emplace(document.key, document.chunk);
      if (!added && first->second != document.chunk) repeated_->insert(document.key);
    }
  }
  for (; change_ < request_.chunks.size() && batch_.size() < kFindPartsMax; ++change_) {
    const uint32_t index = request_.chunks[change_];
    if (index >= plan.chunk_count()) {
      return absl::InvalidArgumentError(
          absl::StrCat("chunk ", index, " of a plan of ", plan.chunk_count(), " chunks"));
    }
    const PlanChunk chunk = plan.chunk(index);
    for (uint32_t d = chunk.begin; d < chunk.end; ++d) {
      if (repeated_->contains(plan.document(d).key)) continue;
      SH_RETURN_IF_ERROR(
          ForEachSectionOf(job, plan, d, d + 1, [this](const WantedSection& section) {
            Consider(section);
            return absl::OkStatus();
          }));
    }
  }
  *more = change_ < request_.chunks.size();
  return absl::OkStatus();
}

// Everything that is stored and that nobody wants. What section it is stands with its record.
absl::Status SpaceTask::FindInIndex(TeacherCache& sections, bool* more) {
  KvStore& store = sections.store();
  SH_ASSIGN_OR_RETURN(const KvScanResult found,
                      store.Scan(kCacheIndex, {.begin = index_from_,
                                               .entries_max = static_cast<int>(kFindPartsMax)}));
  for (const KvEntry& entry : found.entries) {
    index_from_ = entry.key + '\0';
    SH_ASSIGN_OR_RETURN(const PartKey key, ParseIndexKey(entry.key));
    if (wanted_.contains(key.section)) continue;
    const auto spec = sections.SpecOf(key);
    if (absl::IsDataLoss(spec.status())) {  // it stays, for verification to name
      LogWarning("not collected: ", std::string(spec.status().message()));
      continue;
    }
    SH_RETURN_IF_ERROR(spec.status());
    if (spec->has_value()) batch_.push_back({key, **spec});
  }
  *more = found.more;
  return absl::OkStatus();
}

absl::Status SpaceTask::CountBatch(TeacherCache& sections) {
  std::vector<PartKey> keys;
  for (const Removal& removal : batch_) {
    if (counted_.insert(removal.key).second) keys.push_back(removal.key);
  }
  SH_ASSIGN_OR_RETURN(const auto entries, sections.Find(keys));
  for (size_t i = 0; i < keys.size(); ++i) {
    if (!entries[i].has_value()) continue;
    result_.sections += keys[i].row_begin == 0;
    result_.parts += 1;
    result_.part_bytes += kPlaceKeyBytes + entries[i]->record_bytes + kIndexKeyBytes +
                          EncodeIndexEntry(*entries[i]).size();
  }
  return absl::OkStatus();
}

absl::Status SpaceTask::RemoveBatch(TeacherCache& sections, ObjectStore& objects) {
  SH_ASSIGN_OR_RETURN(const Jobs jobs, ReadJobs(objects));
  if (jobs.token != token_) {
    // Somebody came who may want some of it. What this batch had is found again.
    change_ = 0;
    document_ = 0;
    index_from_.clear();
    phase_ = Phase::kMark;
    return absl::OkStatus();
  }
  for (size_t begin = 0; begin < batch_.size(); begin += kRemovePartsMax) {
    const size_t count = std::min(kRemovePartsMax, batch_.size() - begin);
    SH_ASSIGN_OR_RETURN(const RemoveCounts counts,
                        sections.Remove(absl::MakeConstSpan(batch_).subspan(begin, count)));
    result_.sections += counts.sections;
    result_.parts += counts.parts;
    result_.part_bytes += counts.bytes;
  }
  phase_ = more_ ? Phase::kFind : Phase::kObjects;
  return absl::OkStatus();
}

// Plans and artefacts of the jobs that went; when collecting, all that nobody wants.
bool SpaceTask::IsUnwanted(const std::string& name, const std::vector<Named>& jobs) const {
  const auto wants = [&](const JobObject& job) {
    if (name == PlanObjectName(job.plan)) return true;
    if (!absl::StartsWith(name, ArtefactObjectName(job.teacher, ""))) return false;
    const std::string influence = ArtefactObjectName(job.teacher, InfluenceArtefactName(job.plan));
    return !absl::StrContains(name, "/influence/") || name == influence;
  };
  if (std::any_of(jobs.begin(), jobs.end(), [&](const Named& named) { return wants(named.job); })) {
    return false;
  }
  return request_.what == SpaceRequest::What::kCollect ||
         std::any_of(changes_.begin(), changes_.end(),
                     [&](const Change& change) { return wants(change.gone); });
}

absl::Status SpaceTask::RemoveObjects(ObjectStore& objects) {
  phase_ = request_.dry_run ? Phase::kDone : Phase::kReclaim;
  if (request_.what == SpaceRequest::What::kRelease) return absl::OkStatus();
  SH_ASSIGN_OR_RETURN(const Jobs jobs, ReadJobs(objects));
  const std::vector<Named> after = After(jobs);
  std::vector<std::string> gone;
  const auto note = [&](const ObjectInfo& object) {
    result_.object_bytes += object.size;
    ++result_.object_count;
    if (result_.objects.size() < kSpaceNamesMax) result_.objects.push_back(object.name);
  };
  for (const absl::string_view prefix : {kPlanPrefix, kArtefactPrefix}) {
    SH_RETURN_IF_ERROR(ForEachObject(objects, prefix, [&](const ObjectInfo& object) {
      if (IsUnwanted(object.name, after)) {
        gone.push_back(object.name);
        note(object);
      }
      return absl::OkStatus();
    }));
  }
  if (request_.dry_run) {
    for (const Change& change : changes_) {
      if (change.after.has_value()) continue;
      const std::string name = JobObjectName(change.gone.name);
      SH_ASSIGN_OR_RETURN(const ObjectHeader header, objects.Stat(name));
      note({name, header.size});
    }
    return absl::OkStatus();
  }
  return objects.Remove(gone);
}

absl::Status SpaceTask::Reclaim(TeacherCache& sections, ObjectStore& objects) {
  if (compact_objects_) SH_RETURN_IF_ERROR(objects.FreedIsDone());
  compact_objects_ = false;
  SH_ASSIGN_OR_RETURN(const ReclaimStep step, sections.Reclaim(reclaim_));
  result_.segments_freed += step.segments_freed;
  result_.bytes_copied += step.bytes_copied;
  result_.bytes_freed += step.bytes_freed;
  reclaim_.compacted.reset();
  compact_ = step.compact;
  if (step.done) {
    SH_ASSIGN_OR_RETURN(compact_objects_, objects.HasFreed());
    phase_ = compact_objects_ ? Phase::kCompact : Phase::kDone;
    SH_ASSIGN_OR_RETURN(const CacheStat stat, CacheAdmin(sections, objects, plans_).Stat());
    result_.bytes_used = stat.UsedBytes();
  } else if (compact_.has_value()) {
    phase_ = Phase::kCompact;
  }
  return absl::OkStatus();
}

absl::Status SpaceTask::Compact(TeacherCache& sections, ObjectStore& objects) {
  phase_ = Phase::kReclaim;
  if (compact_objects_) return objects.CompactFreed();
  SH_RETURN_IF_ERROR(sections.CompactFreed(*compact_));
  reclaim_.compacted = compact_;
  return absl::OkStatus();
}

}  // namespace stillhouse
