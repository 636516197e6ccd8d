// DamageList: the parts that were found damaged and wait to be captured again.
//
// Owner: a TeacherCache. Threads: any, except Save, Release and Forget, which the cache's writer
// calls. Durability: a part noted by a reader is on the list at once and in the family `meta` after
// the next Save; one that is lost in a crash before is found again when it is read again. At most
// kDamagedPartsMax are listed; more than that is a case for a repair.
#pragma once

#include <atomic>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "common/mutex.h"
#include "storage/kv_store.h"
#include "storage/part.h"

namespace stillhouse {

inline constexpr size_t kDamagedPartsMax = 1 << 20;

class DamageList {
 public:
  absl::Status Load(KvStore& store);

  bool Contains(const PartKey& key) const {
    return size_.load(std::memory_order_acquire) != 0 && Holds(key);
  }
  void Note(const PartKey& key, const absl::Status& damage);
  size_t size() const { return size_.load(std::memory_order_acquire); }
  bool unsaved() const { return unsaved_.load(std::memory_order_acquire); }

  // Writes what readers noted since the last Save, unsynced.
  absl::Status Save(KvStore& store);
  // With the batch that stores the part anew; Forget once that batch is written.
  static void Release(const PartKey& key, KvBatch* batch);
  void Forget(const PartKey& key);
  static void ReleaseAll(KvBatch* batch);

 private:
  bool Holds(const PartKey& key) const;

  struct Damaged {
    std::string what;
    bool saved = false;
  };
  mutable Mutex mutex_;
  std::map<PartKey, Damaged> parts_ ABSL_GUARDED_BY(mutex_);
  std::atomic<size_t> size_{0};       // of parts_, so that readers of a whole cache take no lock
  std::atomic<bool> unsaved_{false};  // there is an entry that is not saved
};

}  // namespace stillhouse
