#include "storage/service/job_store.h"

#include <iterator>
#include <limits>
#include <utility>

#include "common/status.h"
#include "storage/service/cache_admin.h"

namespace stillhouse {
namespace {

class LocalJobStore final : public JobStore {
 public:
  LocalJobStore(TeacherCache& sections, ObjectStore& objects)
      : sections_(sections), objects_(objects), admin_(sections, objects, plans_) {}

  absl::StatusOr<std::vector<ObjectInfo>> List(absl::string_view prefix, absl::string_view after,
                                               int limit) override {
    return objects_.List(prefix, after, limit);
  }
  absl::StatusOr<std::shared_ptr<const std::string>> GetObject(const std::string& name) override {
    return objects_.Get(name);
  }
  absl::StatusOr<std::vector<std::optional<Part>>> GetParts(
      const std::vector<PartKey>& keys) override {
    // An answer ends before a damaged part; the next question begins with it, and fails.
    std::vector<std::optional<Part>> parts;
    while (parts.size() < keys.size()) {
      SH_ASSIGN_OR_RETURN(auto more, sections_.Get(absl::MakeConstSpan(keys).subspan(parts.size()),
                                                   std::numeric_limits<uint64_t>::max()));
      std::move(more.begin(), more.end(), std::back_inserter(parts));
    }
    return parts;
  }
  absl::StatusOr<JobUsage> UsageOfJob(const std::string& job) override {
    return admin_.UsageOfJob(job);
  }
  absl::StatusOr<JobDigest> DigestOfJob(const std::string& job) override {
    return admin_.DigestOfJob(job);
  }

  absl::Status PutObject(const std::string& name,
                         std::shared_ptr<const std::string> bytes) override {
    const uint64_t upload = ++uploads_;
    for (uint64_t offset = 0;; offset += kPartBytesMax) {
      SH_ASSIGN_OR_RETURN(const ObjectProgress progress,
                          objects_.PutPiece({.name = name,
                                             .size = bytes->size(),
                                             .offset = offset,
                                             .upload = upload,
                                             .bytes = bytes->substr(offset, kPartBytesMax)}));
      if (progress.complete) return absl::OkStatus();
      SH_CHECK(offset + kPartBytesMax < bytes->size(), name, ": its last piece does not end it");
    }
  }
  absl::StatusOr<std::vector<PutCounts>> Put(std::vector<PutItem> items) override {
    for (const PutItem& item : items) SH_RETURN_IF_ERROR(CheckPut(item));
    return sections_.Put(items);
  }

 private:
  TeacherCache& sections_;
  ObjectStore& objects_;
  PlanCache plans_;
  CacheAdmin admin_;
  uint64_t uploads_ = 0;  // nobody else uploads meanwhile, so numbers will do
};

}  // namespace

std::unique_ptr<JobStore> MakeLocalJobStore(TeacherCache& sections, ObjectStore& objects) {
  return std::make_unique<LocalJobStore>(sections, objects);
}

}  // namespace stillhouse
