#include <map>

#include "common/mutex.h"
#include "common/status.h"
#include "storage/kv_store.h"

namespace stillhouse {
namespace {

using Map = std::map<std::string, std::string>;

class MemorySortedFile final : public KvSortedFile {
 public:
  explicit MemorySortedFile(KvFamily family) : family(family) {}

  absl::Status Add(absl::string_view key, absl::string_view value) override {
    if (!entries.empty() && std::string(key) <= entries.back().key) {
      return absl::InvalidArgumentError("keys of a sorted file must ascend");
    }
    entries.push_back({std::string(key), std::string(value)});
    return absl::OkStatus();
  }

  const KvFamily family;
  std::vector<KvEntry> entries;
};

class MemoryKvStore final : public KvStore {
 public:
  explicit MemoryKvStore(int families) : families_(families) {}

  absl::StatusOr<std::optional<std::string>> Get(KvFamily family, absl::string_view key) override {
    MutexLock lock(mutex_);
    return Find(family, std::string(key));
  }

  absl::StatusOr<std::vector<std::optional<std::string>>> MultiGet(
      KvFamily family, absl::Span<const std::string> keys) override {
    MutexLock lock(mutex_);
    std::vector<std::optional<std::string>> values;
    for (const std::string& key : keys) values.push_back(Find(family, key));
    return values;
  }

  absl::Status Visit(KvFamily family, absl::Span<const KvWanted> wanted, KvVisitor visit) override {
    for (size_t i = 0; i < wanted.size(); ++i) {
      SH_ASSIGN_OR_RETURN(const std::optional<std::string> value, Get(family, wanted[i].key));
      SH_RETURN_IF_ERROR(
          visit(i, value.has_value() ? std::optional<absl::string_view>(*value) : std::nullopt));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<KvScanResult> Scan(KvFamily family, const KvScanOptions& options) override {
    SH_CHECK(options.entries_max > 0 && options.entries_max <= kKvScanEntriesMax);
    MutexLock lock(mutex_);
    const Map& map = families_.at(family);
    auto begin = map.lower_bound(options.begin);
    auto end = options.end.has_value() ? map.lower_bound(*options.end) : map.end();
    KvScanResult result;
    if (options.end.has_value() && *options.end <= options.begin) return result;
    uint64_t bytes = 0;
    while (begin != end) {
      if (std::ssize(result.entries) >= options.entries_max || bytes >= options.bytes_max) {
        result.more = true;
        break;
      }
      const auto at = options.reverse ? --end : begin++;
      result.entries.push_back({at->first, options.keys_only ? "" : at->second});
      bytes += result.entries.back().key.size() + result.entries.back().value.size();
    }
    return result;
  }

  absl::StatusOr<uint64_t> ApproximateSize(KvFamily family, absl::string_view begin,
                                           absl::string_view end) override {
    MutexLock lock(mutex_);
    const Map& map = families_.at(family);
    uint64_t bytes = 0;
    for (auto it = map.lower_bound(std::string(begin)); it != map.end() && it->first < end; ++it) {
      bytes += it->first.size() + it->second.size();
    }
    return bytes;
  }

  absl::Status Write(const KvBatch& batch, Sync) override {
    MutexLock lock(mutex_);
    for (const KvBatch::Change& change : batch.changes()) {
      Map& map = families_.at(change.family);
      switch (change.kind) {
        case KvBatch::Change::Kind::kPut:
          map[change.key] = change.value;
          break;
        case KvBatch::Change::Kind::kDelete:
          map.erase(change.key);
          break;
        case KvBatch::Change::Kind::kDeleteRange:
          if (change.key < change.value) {
            map.erase(map.lower_bound(change.key), map.lower_bound(change.value));
          }
          break;
      }
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<KvSortedFile>> NewSortedFile(KvFamily family) override {
    return std::make_unique<MemorySortedFile>(family);
  }

  absl::Status Ingest(std::unique_ptr<KvSortedFile> file) override {
    auto& sorted = static_cast<MemorySortedFile&>(*file);
    if (sorted.entries.empty()) return absl::InvalidArgumentError("an empty file was ingested");
    MutexLock lock(mutex_);
    Map& map = families_.at(sorted.family);
    const auto first = map.lower_bound(sorted.entries.front().key);
    if (first != map.end() && first->first <= sorted.entries.back().key) {
      return absl::AlreadyExistsError("the family holds keys in the range of the file");
    }
    for (KvEntry& entry : sorted.entries) map.emplace(std::move(entry.key), std::move(entry.value));
    return absl::OkStatus();
  }

  absl::Status CompactRange(KvFamily, absl::string_view, absl::string_view) override {
    return absl::OkStatus();
  }
  absl::Status FlushFamily(KvFamily) override { return absl::OkStatus(); }
  absl::Status Flush() override { return absl::OkStatus(); }
  absl::StatusOr<std::vector<std::string>> Files() override { return std::vector<std::string>(); }
  absl::Status VerifyFile(const std::string&) override { return absl::OkStatus(); }
  absl::Status EmptyFamily(KvFamily family) override {
    MutexLock lock(mutex_);
    families_.at(family).clear();
    return absl::OkStatus();
  }
  absl::StatusOr<std::vector<std::string>> SetAsideAtOpen() override {
    return std::vector<std::string>();
  }
  absl::Status Close() override { return absl::OkStatus(); }

 private:
  std::optional<std::string> Find(KvFamily family, const std::string& key)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const Map& map = families_.at(family);
    const auto it = map.find(key);
    if (it == map.end()) return std::nullopt;
    return it->second;
  }

  Mutex mutex_;
  std::vector<Map> families_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<KvStore> MakeMemoryKvStore(int families) {
  SH_CHECK(families > 0);
  return std::make_unique<MemoryKvStore>(families);
}

}  // namespace stillhouse
