// ObjectStore: named byte strings of any size beside the sections: plans, artefacts, jobs.
//
// Owner: as TeacherCache, over the same KvStore. Threads: PutPiece from the writer only, the rest
// from any. Ordering and durability: an object appears with its last piece, in one synced batch
// that survives SIGKILL and power loss; until then its name keeps what it had. Pieces of uploads
// that never ended are removed at the next opening.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "storage/kv_store.h"
#include "storage/record.h"

namespace stillhouse {

inline constexpr size_t kObjectNameBytesMax = 512;
inline constexpr uint64_t kObjectBytesMax = 1ull << 40;
inline constexpr size_t kUploadsMax = 64;  // remembered at once; the oldest is forgotten

struct ObjectPiece {
  std::string name;
  uint64_t size = 0;    // of the whole object
  uint64_t offset = 0;  // a multiple of kPartBytesMax
  bool replace = false;
  uint64_t upload = 0;  // tells one upload's pieces from another's
  std::string bytes;    // kPartBytesMax of them, or what is left
};

struct ObjectProgress {
  bool complete = false;
  bool already = false;  // with `complete`: the same bytes were there
};

struct ObjectInfo {
  std::string name;
  uint64_t size = 0;
};

class ObjectStore {
 public:
  // `store` must outlive the result. Writable: removes what unfinished uploads left.
  static absl::StatusOr<std::unique_ptr<ObjectStore>> Open(KvStore& store, bool writable);

  // Pieces come in order; one that was taken before is taken again without effect. Aborted: this
  // upload is not known (any more), begin it again. AlreadyExists: other bytes have this name and
  // `replace` is off. InvalidArgument: "sha256/…" is not the hash of the bytes, or sizes do not
  // fit.
  absl::StatusOr<ObjectProgress> PutPiece(const ObjectPiece& piece);

  // An object of one piece, in one step; replaces what has its name. REQUIRES: at most
  // kPartBytesMax bytes; called by the writer.
  absl::Status Put(const std::string& name, const std::string& bytes);
  // Removes the objects that are there, all in one synced batch. Their disk space is freed by
  // CompactFreed. REQUIRES: called by the writer.
  absl::Status Remove(const std::vector<std::string>& names);
  // Is there space to free? Durable, until FreedIsDone.
  absl::StatusOr<bool> HasFreed();
  absl::Status CompactFreed();  // any thread; rewrites the other objects
  absl::Status FreedIsDone();   // by the writer, after CompactFreed

  // NotFound when there is no such object.
  absl::StatusOr<ObjectHeader> Stat(absl::string_view name);
  // The piece at `offset`, checked. REQUIRES: `header` is that of Stat.
  absl::StatusOr<std::string> GetPiece(const ObjectHeader& header, uint64_t offset);
  // The whole, checked against its digest. ResourceExhausted if larger than `bytes_max`.
  absl::StatusOr<std::shared_ptr<const std::string>> Get(absl::string_view name,
                                                         uint64_t bytes_max = kObjectBytesMax);
  // Names that begin with `prefix`, above `after`, in order, at most `limit`.
  absl::StatusOr<std::vector<ObjectInfo>> List(absl::string_view prefix, absl::string_view after,
                                               int limit);
  // Reads all of an object: DataLoss if it is damaged.
  absl::Status Verify(absl::string_view name);

 private:
  struct Upload {
    uint64_t generation = 0;
    uint64_t next_offset = 0;
    Sha256 sha;
    std::optional<ObjectProgress> finished;
  };
  using UploadId = std::pair<std::string, uint64_t>;

  explicit ObjectStore(KvStore& store) : store_(store) {}
  absl::Status RemoveUnfinished();
  absl::StatusOr<std::optional<ObjectHeader>> FindHeader(absl::string_view name);
  absl::StatusOr<ObjectProgress> Begin(const ObjectPiece& piece, Upload** upload);
  absl::StatusOr<ObjectProgress> Finish(const ObjectPiece& piece, Upload* upload, KvBatch* batch);
  void Forget(const UploadId& id);

  KvStore& store_;
  // Of the writer.
  uint64_t next_generation_ = 1;
  std::map<UploadId, std::unique_ptr<Upload>> uploads_;
  std::deque<UploadId> oldest_first_;
};

}  // namespace stillhouse
