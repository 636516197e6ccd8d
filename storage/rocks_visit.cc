#include "storage/rocks_visit.h"

#include <rocksdb/db.h>

#include <array>
#include <deque>
#include <future>
#include <utility>

#include "absl/strings/numbers.h"
#include "common/status.h"
#include "common/thread_pool.h"
#include "storage/rocks_status.h"

namespace stillhouse {
namespace {

constexpr size_t kFetchValuesMax = 32;          // RocksDB's own bound of one batch
constexpr uint64_t kFetchBytesMax = 256 << 10;  // of neighbours that are fetched together
constexpr uint64_t kLargeBytes = 64 << 10;      // worth an iterator
// An iterator looks into every file of level 0, where flushed memtables stay; up to here it is
// cheaper than a copy of a large value.
constexpr uint64_t kIteratorFilesMax = 8;
constexpr size_t kFetchesAhead = 3;  // bounds memory: each is one value or kFetchBytesMax
constexpr int kAheadThreads = 2;

rocksdb::Slice ToSlice(absl::string_view bytes) { return {bytes.data(), bytes.size()}; }

rocksdb::ReadOptions ReadOptionsFor(bool verify) {
  rocksdb::ReadOptions options;
  options.verify_checksums = verify;
  return options;
}

// How many of the next values are fetched together: neighbours in files share blocks and reads.
size_t CountInOneFetch(absl::Span<const KvWanted> wanted) {
  uint64_t bytes = wanted[0].bytes;
  size_t count = 1;
  for (; count < wanted.size() && count < kFetchValuesMax; ++count) {
    bytes += wanted[count].bytes;
    if (bytes > kFetchBytesMax) break;
  }
  return count;
}

// The values of some neighbours. Reused, it keeps the memory that they were copied to.
struct Fetch {
  absl::Span<const KvWanted> wanted;
  std::array<rocksdb::PinnableSlice, kFetchValuesMax> values;
  std::array<rocksdb::Status, kFetchValuesMax> statuses;

  void Run(rocksdb::DB& db, rocksdb::ColumnFamilyHandle* family,
           const rocksdb::ReadOptions& options) {
    for (rocksdb::PinnableSlice& value : values) value.Reset();
    if (wanted.size() == 1) {
      statuses[0] = db.Get(options, family, ToSlice(wanted[0].key), &values[0]);
      return;
    }
    std::array<rocksdb::Slice, kFetchValuesMax> keys;
    for (size_t i = 0; i < wanted.size(); ++i) keys[i] = ToSlice(wanted[i].key);
    db.MultiGet(options, family, wanted.size(), keys.data(), values.data(), statuses.data(),
                /*sorted_input=*/true);
  }
};

class Reader : public RocksReader {
 protected:
  Reader(rocksdb::DB& db, std::string where) : db_(db), where_(std::move(where)) {}

  absl::Status Show(const rocksdb::Status& status, const rocksdb::Slice& value, size_t i,
                    KvVisitor visit) const {
    if (status.IsNotFound()) return visit(i, std::nullopt);
    SH_RETURN_IF_ERROR(ToAbsl(status, absl::StrCat("reading ", where_)));
    return visit(i, absl::string_view(value.data(), value.size()));
  }

  rocksdb::DB& db_;
  const std::string where_;
  const rocksdb::ReadOptions checked_ = ReadOptionsFor(/*verify=*/true);
};

class MappedReader final : public Reader {
 public:
  MappedReader(rocksdb::DB& db, std::string where) : Reader(db, std::move(where)) {}

  absl::Status Visit(rocksdb::ColumnFamilyHandle* family, absl::Span<const KvWanted> wanted,
                     KvVisitor visit) override {
    Fetch fetch;
    std::unique_ptr<rocksdb::Iterator> it;
    bool may_iterate = true;
    for (size_t begin = 0; begin < wanted.size();) {
      fetch.wanted = wanted.subspan(begin, CountInOneFetch(wanted.subspan(begin)));
      const bool large = fetch.wanted.size() == 1 && fetch.wanted[0].bytes >= kLargeBytes;
      if (large && may_iterate && it == nullptr) {
        may_iterate = FewFiles(family);
        if (may_iterate) it.reset(db_.NewIterator(unchecked_, family));
      }
      if (large && it != nullptr) {
        SH_RETURN_IF_ERROR(VisitInPlace(family, *it, fetch.wanted[0].key, begin, visit));
        ++begin;
        continue;
      }
      fetch.Run(db_, family, unchecked_);
      for (size_t i = 0; i < fetch.wanted.size(); ++i, ++begin) {
        absl::Status status = absl::DataLossError("");
        if (fetch.statuses[i].ok()) status = Show(rocksdb::Status(), fetch.values[i], begin, visit);
        if (absl::IsDataLoss(status)) {
          status = VisitChecked(family, wanted[begin].key, begin, visit);
        }
        SH_RETURN_IF_ERROR(status);
      }
    }
    return absl::OkStatus();
  }

 private:
  bool FewFiles(rocksdb::ColumnFamilyHandle* family) const {
    std::string text;
    uint64_t files = 0;
    return db_.GetProperty(family, "rocksdb.num-files-at-level0", &text) &&
           absl::SimpleAtoi(text, &files) && files <= kIteratorFilesMax;
  }

  absl::Status VisitInPlace(rocksdb::ColumnFamilyHandle* family, rocksdb::Iterator& it,
                            absl::string_view key, size_t i, KvVisitor visit) {
    it.Seek(ToSlice(key));
    absl::Status status = absl::DataLossError("");
    if (it.Valid() && it.key() == ToSlice(key)) {
      status = Show(rocksdb::Status(), it.value(), i, visit);
    }
    return absl::IsDataLoss(status) ? VisitChecked(family, key, i, visit) : status;
  }

  // Once more, with RocksDB's own checks, for what is absent or was found wrong.
  absl::Status VisitChecked(rocksdb::ColumnFamilyHandle* family, absl::string_view key, size_t i,
                            KvVisitor visit) {
    rocksdb::PinnableSlice value;
    const rocksdb::Status status = db_.Get(checked_, family, ToSlice(key), &value);
    return Show(status, value, i, visit);
  }

  const rocksdb::ReadOptions unchecked_ = ReadOptionsFor(/*verify=*/false);
};

class DirectReader final : public Reader {
 public:
  DirectReader(rocksdb::DB& db, std::string where)
      : Reader(db, std::move(where)), threads_(kAheadThreads) {}

  absl::Status Visit(rocksdb::ColumnFamilyHandle* family, absl::Span<const KvWanted> wanted,
                     KvVisitor visit) override {
    std::deque<std::unique_ptr<AheadFetch>> ahead;  // begun, in order; each is waited for
    absl::Status status;
    size_t begun = 0, shown = 0;
    while (shown < wanted.size() && status.ok()) {
      while (begun < wanted.size() && ahead.size() <= kFetchesAhead) {
        ahead.push_back(std::make_unique<AheadFetch>());
        AheadFetch& fetch = *ahead.back();
        fetch.fetch.wanted = wanted.subspan(begun, CountInOneFetch(wanted.subspan(begun)));
        begun += fetch.fetch.wanted.size();
        const bool alone = ahead.size() == 1 && begun == wanted.size();
        fetch.Begin(db_, family, checked_, alone ? nullptr : &threads_);
      }
      AheadFetch& fetch = *ahead.front();
      fetch.Wait();
      for (size_t i = 0; i < fetch.fetch.wanted.size() && status.ok(); ++i, ++shown) {
        status = Show(fetch.fetch.statuses[i], fetch.fetch.values[i], shown, visit);
      }
      ahead.pop_front();
    }
    return status;
  }

 private:
  struct AheadFetch {
    Fetch fetch;
    std::promise<void> done;
    std::future<void> finished = done.get_future();

    ~AheadFetch() { Wait(); }
    // On this thread if there are no `threads`.
    void Begin(rocksdb::DB& db, rocksdb::ColumnFamilyHandle* family,
               const rocksdb::ReadOptions& options, ThreadPool* threads) {
      auto run = [this, &db, family, &options] {
        fetch.Run(db, family, options);
        done.set_value();
      };
      if (threads == nullptr) return run();
      threads->Post(run);
    }
    void Wait() { finished.wait(); }
  };

  ThreadPool threads_;
};

}  // namespace

std::unique_ptr<RocksReader> MakeRocksReader(rocksdb::DB& db, KvReads reads, std::string where) {
  if (reads == KvReads::kDirect) return std::make_unique<DirectReader>(db, std::move(where));
  return std::make_unique<MappedReader>(db, std::move(where));
}

}  // namespace stillhouse
