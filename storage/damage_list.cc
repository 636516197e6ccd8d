#include "storage/damage_list.h"

#include "common/log.h"
#include "common/status.h"
#include "storage/record.h"
#include "storage/teacher_cache.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kPrefix = "damaged/";
constexpr absl::string_view kPrefixEnd = "damaged0";  // '0' follows '/'
constexpr size_t kWhatBytesMax = 300;

std::string MetaKey(const PartKey& key) { return absl::StrCat(kPrefix, IndexKey(key)); }

}  // namespace

absl::Status DamageList::Load(KvStore& store) {
  MutexLock lock(mutex_);
  std::string from(kPrefix);
  for (bool more = true; more;) {
    SH_ASSIGN_OR_RETURN(const KvScanResult found,
                        store.Scan(kCacheMeta, {.begin = from, .end = std::string(kPrefixEnd)}));
    for (const KvEntry& entry : found.entries) {
      SH_ASSIGN_OR_RETURN(const PartKey key,
                          ParseIndexKey(absl::string_view(entry.key).substr(kPrefix.size())));
      parts_[key] = {entry.value, /*saved=*/true};
      from = entry.key + '\0';
    }
    more = found.more;
  }
  size_.store(parts_.size(), std::memory_order_release);
  return absl::OkStatus();
}

bool DamageList::Holds(const PartKey& key) const {
  MutexLock lock(mutex_);
  return parts_.contains(key);
}

void DamageList::Note(const PartKey& key, const absl::Status& damage) {
  MutexLock lock(mutex_);
  if (parts_.size() >= kDamagedPartsMax || parts_.contains(key)) return;
  const std::string what(damage.message().substr(0, kWhatBytesMax));
  parts_[key] = {what, /*saved=*/false};
  size_.store(parts_.size(), std::memory_order_release);
  unsaved_.store(true, std::memory_order_release);
  LogError("damaged, to be captured again: ", what);
}

absl::Status DamageList::Save(KvStore& store) {
  KvBatch batch;
  std::vector<PartKey> keys;
  {
    MutexLock lock(mutex_);
    for (const auto& [key, damaged] : parts_) {
      if (damaged.saved) continue;
      batch.Put(kCacheMeta, MetaKey(key), damaged.what);
      keys.push_back(key);
    }
    unsaved_.store(false, std::memory_order_release);
  }
  if (batch.empty()) return absl::OkStatus();
  const absl::Status written = store.Write(batch, KvStore::Sync::kNoSync);
  MutexLock lock(mutex_);
  if (!written.ok()) {
    unsaved_.store(true, std::memory_order_release);
    return written;
  }
  for (const PartKey& key : keys) {
    const auto it = parts_.find(key);
    if (it != parts_.end()) it->second.saved = true;
  }
  return absl::OkStatus();
}

void DamageList::Release(const PartKey& key, KvBatch* batch) {
  batch->Delete(kCacheMeta, MetaKey(key));
}

void DamageList::Forget(const PartKey& key) {
  MutexLock lock(mutex_);
  parts_.erase(key);
  size_.store(parts_.size(), std::memory_order_release);
}

void DamageList::ReleaseAll(KvBatch* batch) {
  batch->DeleteRange(kCacheMeta, std::string(kPrefix), std::string(kPrefixEnd));
}

}  // namespace stillhouse
