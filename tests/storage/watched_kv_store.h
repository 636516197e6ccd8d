// A KvStore over another one that can be stopped before any change, and that lets a test act in the
// middle of a read.
#pragma once

#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "common/status.h"
#include "storage/kv_store.h"

namespace stillhouse {

class WatchedKvStore final : public KvStore {
 public:
  explicit WatchedKvStore(KvStore& store) : store_(store) {}

  // The next `changes` happen; every one after them fails and does nothing, as after a crash.
  void StopAfter(int changes) { left_ = changes; }
  void GoOn() { left_ = std::numeric_limits<int>::max(); }
  // Runs `act` once, before values of `family` are read next.
  void BeforeRead(KvFamily family, std::function<void()> act) {
    family_ = family;
    act_ = std::move(act);
  }

  absl::StatusOr<std::optional<std::string>> Get(KvFamily family, absl::string_view key) override {
    return store_.Get(family, key);
  }
  absl::StatusOr<std::vector<std::optional<std::string>>> MultiGet(
      KvFamily family, absl::Span<const std::string> keys) override {
    if (act_ && family == family_) std::exchange(act_, nullptr)();
    return store_.MultiGet(family, keys);
  }
  absl::Status Visit(KvFamily family, absl::Span<const KvWanted> wanted, KvVisitor visit) override {
    if (act_ && family == family_) std::exchange(act_, nullptr)();
    return store_.Visit(family, wanted, visit);
  }
  absl::StatusOr<KvScanResult> Scan(KvFamily family, const KvScanOptions& options) override {
    return store_.Scan(family, options);
  }
  absl::StatusOr<uint64_t> ApproximateSize(KvFamily family, absl::string_view begin,
                                           absl::string_view end) override {
    return store_.ApproximateSize(family, begin, end);
  }
  absl::Status Write(const KvBatch& batch, Sync sync) override {
    SH_RETURN_IF_ERROR(Change());
    return store_.Write(batch, sync);
  }
  absl::StatusOr<std::unique_ptr<KvSortedFile>> NewSortedFile(KvFamily family) override {
    return store_.NewSortedFile(family);
  }
  absl::Status Ingest(std::unique_ptr<KvSortedFile> file) override {
    SH_RETURN_IF_ERROR(Change());
    return store_.Ingest(std::move(file));
  }
  absl::Status CompactRange(KvFamily family, absl::string_view begin,
                            absl::string_view end) override {
    SH_RETURN_IF_ERROR(Change());
    return store_.CompactRange(family, begin, end);
  }
  absl::Status FlushFamily(KvFamily family) override {
    SH_RETURN_IF_ERROR(Change());
    return store_.FlushFamily(family);
  }
  absl::Status Flush() override { return store_.Flush(); }
  absl::StatusOr<std::vector<std::string>> Files() override { return store_.Files(); }
  absl::Status VerifyFile(const std::string& name) override { return store_.VerifyFile(name); }
  absl::Status EmptyFamily(KvFamily family) override {
    SH_RETURN_IF_ERROR(Change());
    return store_.EmptyFamily(family);
  }
  absl::StatusOr<std::vector<std::string>> SetAsideAtOpen() override {
    return store_.SetAsideAtOpen();
  }
  absl::Status Close() override { return absl::OkStatus(); }

 private:
  absl::Status Change() {
    if (left_ == 0) return absl::InternalError("stopped by the test");
    --left_;
    return absl::OkStatus();
  }

  KvStore& store_;
  int left_ = std::numeric_limits<int>::max();
  KvFamily family_ = 0;
  std::function<void()> act_;
};

}  // namespace stillhouse
