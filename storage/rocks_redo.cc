#include "storage/rocks_redo.h"

#include <rocksdb/db.h>
#include <rocksdb/write_batch.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "common/status.h"
#include "storage/rocks_status.h"

namespace stillhouse {
namespace {

using rocksdb::Slice;

class AnyChange : public rocksdb::WriteBatch::Handler {
 public:
  rocksdb::Status PutCF(uint32_t number, const Slice&, const Slice&) override { return Of(number); }
  rocksdb::Status DeleteCF(uint32_t number, const Slice&) override { return Of(number); }
  rocksdb::Status DeleteRangeCF(uint32_t number, const Slice&, const Slice&) override {
    return Of(number);
  }
  uint32_t highest() const { return highest_; }
  explicit AnyChange(const std::vector<RedoFamily>& families) : families_(families) {}

 private:
  rocksdb::Status Of(uint32_t number) {
    const bool known = std::any_of(families_.begin(), families_.end(), [&](const auto& family) {
      return !family.derived && family.number == number;
    });
    if (!known) highest_ = std::max(highest_, number);
    return rocksdb::Status::OK();
  }

  const std::vector<RedoFamily>& families_;
  uint32_t highest_ = 0;  // of those that no lasting family has
};

class Redo final : public rocksdb::WriteBatch::Handler {
 public:
  Redo(rocksdb::DB& db, const std::vector<RedoFamily>& families)
      : db_(db), families_(families), tables_(&db) {
    as_tables_.snapshot = tables_.snapshot();
  }

  // `damage_follows`: changes behind this batch were lost.
  absl::Status Do(const std::string& batch, bool damage_follows) {
    changes_.Clear();
    damage_follows_ = damage_follows;
    sequence_ = SequenceOf(batch);
    SH_RETURN_IF_ERROR(ToAbsl(rocksdb::WriteBatch(batch).Iterate(this), "reading a log"));
    rocksdb::WriteOptions write;
    write.disableWAL = true;
    return ToAbsl(db_.Write(write, &changes_), "repairing");
  }

  rocksdb::Status PutCF(uint32_t number, const Slice& key, const Slice& value) override {
    const RedoFamily* family = Find(number);
    if (family == nullptr || (MayBeOld(*family) && InTables(*family, key))) {
      return rocksdb::Status::OK();
    }
    return changes_.Put(family->handle, key, value);
  }
  rocksdb::Status DeleteCF(uint32_t number, const Slice& key) override {
    const RedoFamily* family = Find(number);
    if (family == nullptr || MayBeOld(*family)) return rocksdb::Status::OK();
    return changes_.Delete(family->handle, key);
  }
  // Keys of a range that was deleted as one are not used again.
  rocksdb::Status DeleteRangeCF(uint32_t number, const Slice& begin, const Slice& end) override {
    const RedoFamily* family = Find(number);
    if (family == nullptr) return rocksdb::Status::OK();
    return changes_.DeleteRange(family->handle, begin, end);
  }

 private:
  const RedoFamily* Find(uint32_t number) const {
    const auto found = std::find_if(families_.begin(), families_.end(),
                                    [&](const auto& family) { return family.number == number; });
    return found == families_.end() ? nullptr : &*found;
  }
  bool MayBeOld(const RedoFamily& family) const {
    return damage_follows_ && sequence_ <= family.tables_reach;
  }
  bool InTables(const RedoFamily& family, const Slice& key) {
    rocksdb::PinnableSlice value;
    return db_.Get(as_tables_, family.handle, key, &value).ok();
  }

  rocksdb::DB& db_;
  const std::vector<RedoFamily>& families_;
  rocksdb::ManagedSnapshot tables_;  // before anything was done again
  rocksdb::ReadOptions as_tables_;
  rocksdb::WriteBatch changes_;
  bool damage_follows_ = false;
  uint64_t sequence_ = 0;
};

uint64_t Begin(const LogContent& log) {
  return log.batches.empty() ? std::numeric_limits<uint64_t>::max() : SequenceOf(log.batches[0]);
}

}  // namespace

void SortLogs(std::vector<LogContent>* logs) {
  std::stable_sort(logs->begin(), logs->end(),
                   [](const auto& a, const auto& b) { return Begin(a) < Begin(b); });
}

absl::Status RedoLogs(rocksdb::DB& db, std::vector<RedoFamily> families,
                      const std::vector<LogContent>& logs) {
  AnyChange numbers(families);
  size_t last_damaged = 0;  // one more than its position
  for (size_t i = 0; i < logs.size(); ++i) {
    if (!logs[i].damage.empty()) last_damaged = i + 1;
    for (const std::string& batch : logs[i].batches) {
      SH_RETURN_IF_ERROR(ToAbsl(rocksdb::WriteBatch(batch).Iterate(&numbers), "reading a log"));
    }
  }
  for (RedoFamily& family : families) {
    if (family.derived) family.number = std::max(family.number, numbers.highest());
  }
  Redo redo(db, families);
  for (size_t i = 0; i < logs.size(); ++i) {
    for (size_t b = 0; b < logs[i].batches.size(); ++b) {
      const bool in_this = i + 1 == last_damaged && b < logs[i].after_damage;
      SH_RETURN_IF_ERROR(redo.Do(logs[i].batches[b], in_this || i + 1 < last_damaged));
    }
  }
  return absl::OkStatus();
}

}  // namespace stillhouse
