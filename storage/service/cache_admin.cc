#include "storage/service/cache_admin.h"

#include "common/status.h"

namespace stillhouse {
namespace {

constexpr int kObjectsOfAList = 1000;

}  // namespace

absl::StatusOr<CacheStat> CacheAdmin::Stat() {
  CacheStat stat;
  stat.identity = sections_.identity();
  SH_ASSIGN_OR_RETURN(stat.specs, sections_.Totals());
  SH_ASSIGN_OR_RETURN(stat.space, sections_.Space());
  for (const auto& [spec, totals] : stat.specs) {
    stat.all.sections += totals.sections;
    stat.all.parts += totals.parts;
    stat.all.rows += totals.rows;
    stat.all.record_bytes += totals.record_bytes;
    stat.all.payload_bytes += totals.payload_bytes;
    stat.all.index_bytes += totals.index_bytes;
  }
  for (std::string after;;) {
    SH_ASSIGN_OR_RETURN(const auto found, objects_.List("", after, kObjectsOfAList));
    for (const ObjectInfo& object : found) {
      ++stat.objects;
      stat.object_bytes += object.size;
    }
    if (std::ssize(found) < kObjectsOfAList) return stat;
    after = found.back().name;
  }
}

absl::StatusOr<std::vector<bool>> CacheAdmin::Inventory(const Digest& plan,
                                                        const InventoryQuery& query) {
  SH_ASSIGN_OR_RETURN(const auto parsed, plans_.Get(objects_, plan));
  return TakeInventory(sections_, objects_, *parsed, query);
}

absl::StatusOr<JobDigest> CacheAdmin::DigestOfJob(absl::string_view job) {
  SH_ASSIGN_OR_RETURN(const JobObject wanted, ReadJob(objects_, job));
  SH_ASSIGN_OR_RETURN(const auto plan, plans_.Get(objects_, wanted.plan));
  return DigestJob(sections_, wanted, *plan);
}

absl::StatusOr<JobUsage> CacheAdmin::UsageOfJob(absl::string_view job) {
  SH_ASSIGN_OR_RETURN(const JobObject wanted, ReadJob(objects_, job));
  SH_ASSIGN_OR_RETURN(const auto plan, plans_.Get(objects_, wanted.plan));
  return MeasureJob(sections_, objects_, wanted, *plan);
}

}  // namespace stillhouse
