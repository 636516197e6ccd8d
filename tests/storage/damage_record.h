// A record that does not hold, in a sound table.
#pragma once

#include <string>

#include "common/status.h"
#include "storage/cache_directory.h"

namespace stillhouse {

inline void DamageRecordAt(CacheDirectory& cache, const std::string& place) {
  KvStore& store = cache.sections().store();
  std::string record = **store.Get(kCacheData, place);
  record[record.size() / 2] ^= 1;
  KvBatch batch;
  batch.Put(kCacheData, place, record);
  SH_CHECK_OK(store.Write(batch, KvStore::Sync::kSync));
}
inline void DamageRecordOf(CacheDirectory& cache, const PartKey& key) {
  DamageRecordAt(cache, PlaceKey((*cache.sections().Find({key}))[0]->place));
}

}  // namespace stillhouse
