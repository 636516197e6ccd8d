#include "storage/object_store.h"

#include <algorithm>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "common/status.h"
#include "storage/teacher_cache.h"

namespace stillhouse {
namespace {

// Headers lie under 'h' and the name, pieces under 'p', generation and index.
constexpr char kHeaderPrefix = 'h';
constexpr absl::string_view kFreedKey = "freed_objects";  // in meta: not compacted yet
constexpr uint64_t kOwnUpload = ~0ull;                    // of Put: nobody sends pieces of it
constexpr absl::string_view kHashPrefix = "sha256/";

std::string HeaderKey(absl::string_view name) { return absl::StrCat("h", name); }
std::string PieceKey(uint64_t generation, uint32_t index) {
  return absl::StrCat("p", PlaceKey({generation, index}));
}

uint64_t PieceBytes(uint64_t size, uint64_t offset) {
  return std::min<uint64_t>(kPartBytesMax, size - offset);
}

absl::Status CheckPiece(const ObjectPiece& piece) {
  if (piece.name.empty() || piece.name.size() > kObjectNameBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("an object's name has 1 to ", kObjectNameBytesMax, " bytes"));
  }
  if (piece.size > kObjectBytesMax || piece.offset > piece.size ||
      piece.offset % kPartBytesMax != 0 ||
      piece.bytes.size() != PieceBytes(piece.size, piece.offset) ||
      (piece.bytes.empty() && piece.size != 0)) {
    return absl::InvalidArgumentError(absl::StrCat(piece.name, ": a piece of ", piece.bytes.size(),
                                                   " bytes at ", piece.offset, " of ", piece.size));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ObjectStore>> ObjectStore::Open(KvStore& store, bool writable) {
  auto objects = std::unique_ptr<ObjectStore>(new ObjectStore(store));
  if (writable) SH_RETURN_IF_ERROR(objects->RemoveUnfinished());
  return objects;
}

absl::Status ObjectStore::RemoveUnfinished() {
  std::set<uint64_t> alive;
  std::string from(1, kHeaderPrefix);
  for (bool more = true; more;) {
    SH_ASSIGN_OR_RETURN(const KvScanResult found,
                        store_.Scan(kCacheObjects, {.begin = from, .end = "i"}));
    for (const KvEntry& entry : found.entries) {
      SH_ASSIGN_OR_RETURN_AT(const ObjectHeader header, ParseObjectHeader(entry.value),
                             entry.key.substr(1));
      alive.insert(header.generation);
      from = entry.key + '\0';
    }
    more = found.more;
  }
  if (!alive.empty()) next_generation_ = *alive.rbegin() + 1;
  // One look per generation: pieces are large, and reading them all would take long.
  for (uint64_t generation = 0;;) {
    SH_ASSIGN_OR_RETURN(
        const KvScanResult found,
        store_.Scan(
            kCacheObjects,
            {.begin = PieceKey(generation, 0), .end = "q", .entries_max = 1, .keys_only = true}));
    if (found.entries.empty()) return absl::OkStatus();
    SH_ASSIGN_OR_RETURN(const Place piece, ParsePlaceKey(found.entries[0].key.substr(1)));
    next_generation_ = std::max(next_generation_, piece.segment + 1);
    generation = piece.segment + 1;
    if (alive.contains(piece.segment)) continue;
    KvBatch batch;
    batch.DeleteRange(kCacheObjects, PieceKey(piece.segment, 0), PieceKey(generation, 0));
    SH_RETURN_IF_ERROR(store_.Write(batch, KvStore::Sync::kNoSync));
  }
}

absl::StatusOr<std::optional<ObjectHeader>> ObjectStore::FindHeader(absl::string_view name) {
  SH_ASSIGN_OR_RETURN(const auto bytes, store_.Get(kCacheObjects, HeaderKey(name)));
  if (!bytes.has_value()) return std::nullopt;
  SH_ASSIGN_OR_RETURN_AT(const ObjectHeader header, ParseObjectHeader(*bytes), name);
  return header;
}

void ObjectStore::Forget(const UploadId& id) {
  uploads_.erase(id);
  oldest_first_.erase(std::remove(oldest_first_.begin(), oldest_first_.end(), id),
                      oldest_first_.end());
}

absl::StatusOr<ObjectProgress> ObjectStore::Begin(const ObjectPiece& piece, Upload** upload) {
  const UploadId id(piece.name, piece.upload);
  if (uploads_.size() >= kUploadsMax) {
    const UploadId oldest = oldest_first_.front();
    if (!uploads_.at(oldest)->finished.has_value()) {
      const uint64_t generation = uploads_.at(oldest)->generation;
      KvBatch batch;
      batch.DeleteRange(kCacheObjects, PieceKey(generation, 0), PieceKey(generation + 1, 0));
      SH_RETURN_IF_ERROR(store_.Write(batch, KvStore::Sync::kNoSync));
    }
    Forget(oldest);
  }
  auto& made = uploads_[id];
  made = std::make_unique<Upload>();
  made->generation = next_generation_++;
  oldest_first_.push_back(id);
  *upload = made.get();
  SH_ASSIGN_OR_RETURN(const auto there, FindHeader(piece.name));
  // A name that is a hash stands for its bytes: nothing more needs to be sent.
  if (there.has_value() && there->size == piece.size && absl::StartsWith(piece.name, kHashPrefix)) {
    made->finished = ObjectProgress{.complete = true, .already = true};
    return *made->finished;
  }
  return ObjectProgress{};
}

absl::StatusOr<ObjectProgress> ObjectStore::PutPiece(const ObjectPiece& piece) {
  SH_RETURN_IF_ERROR(CheckPiece(piece));
  const UploadId id(piece.name, piece.upload);
  Upload* upload = nullptr;
  if (const auto it = uploads_.find(id); it != uploads_.end()) {
    upload = it->second.get();
    if (upload->finished.has_value()) return *upload->finished;
    if (piece.offset < upload->next_offset) return ObjectProgress{};
  } else if (piece.offset == 0) {
    SH_ASSIGN_OR_RETURN(const ObjectProgress progress, Begin(piece, &upload));
    if (progress.complete) return progress;
  }
  if (upload == nullptr || piece.offset != upload->next_offset) {
    return absl::AbortedError(
        absl::StrCat(piece.name, ": this upload is not known here; begin again"));
  }
  upload->sha.AddRaw(piece.bytes);
  upload->next_offset += piece.bytes.size();
  KvBatch batch;
  if (!piece.bytes.empty()) {
    const uint32_t index = static_cast<uint32_t>(piece.offset / kPartBytesMax);
    batch.Put(kCacheObjects, PieceKey(upload->generation, index),
              EncodePieceRecord({upload->generation, index, piece.bytes}));
  }
  if (upload->next_offset == piece.size) return Finish(piece, upload, &batch);
  const absl::Status written = store_.Write(batch, KvStore::Sync::kNoSync);
  if (!written.ok()) {
    Forget(id);
    return written;
  }
  return ObjectProgress{};
}

absl::StatusOr<ObjectProgress> ObjectStore::Finish(const ObjectPiece& piece, Upload* upload,
                                                   KvBatch* batch) {
  const ObjectHeader header{piece.size, upload->generation, upload->sha.Finish()};
  const UploadId id(piece.name, piece.upload);
  KvBatch drop;
  drop.DeleteRange(kCacheObjects, PieceKey(header.generation, 0),
                   PieceKey(header.generation + 1, 0));
  absl::string_view hex = piece.name;
  if (absl::ConsumePrefix(&hex, kHashPrefix) && hex != header.digest.Hex()) {
    Forget(id);
    SH_RETURN_IF_ERROR(store_.Write(drop, KvStore::Sync::kNoSync));
    return absl::InvalidArgumentError(
        absl::StrCat(piece.name, ": the bytes have the hash ", header.digest.Hex()));
  }
  const absl::StatusOr<std::optional<ObjectHeader>> there = FindHeader(piece.name);
  if (!there.ok()) {
    Forget(id);
    return there.status();
  }
  const bool same = there->has_value() && (*there)->digest == header.digest;
  if (same || (there->has_value() && !piece.replace)) {
    SH_RETURN_IF_ERROR(store_.Write(drop, KvStore::Sync::kNoSync));
    if (!same) {
      Forget(id);
      return absl::AlreadyExistsError(absl::StrCat("other bytes have the name ", piece.name));
    }
    upload->finished = ObjectProgress{.complete = true, .already = true};
    return *upload->finished;
  }
  batch->Put(kCacheObjects, HeaderKey(piece.name), EncodeObjectHeader(header));
  if (there->has_value()) {
    batch->DeleteRange(kCacheObjects, PieceKey((*there)->generation, 0),
                       PieceKey((*there)->generation + 1, 0));
  }
  const absl::Status written = store_.Write(*batch, KvStore::Sync::kSync);
  if (!written.ok()) {
    Forget(id);
    return written;
  }
  upload->finished = ObjectProgress{.complete = true};
  return *upload->finished;
}

absl::Status ObjectStore::Put(const std::string& name, const std::string& bytes) {
  SH_CHECK(bytes.size() <= kPartBytesMax, name);
  Forget({name, kOwnUpload});
  return PutPiece({name, bytes.size(), 0, /*replace=*/true, kOwnUpload, bytes}).status();
}

absl::Status ObjectStore::Remove(const std::vector<std::string>& names) {
  KvBatch batch;
  for (const std::string& name : names) {
    SH_ASSIGN_OR_RETURN(const auto header, FindHeader(name));
    if (!header.has_value()) continue;
    batch.Delete(kCacheObjects, HeaderKey(name));
    batch.DeleteRange(kCacheObjects, PieceKey(header->generation, 0),
                      PieceKey(header->generation + 1, 0));
    // A copy of its last piece, sent again, must not be told that the object is there.
    for (auto it = uploads_.begin(); it != uploads_.end();) {
      const auto& [id, upload] = *it++;
      if (id.first == name && upload->finished.has_value()) Forget(UploadId(id));
    }
  }
  if (batch.empty()) return absl::OkStatus();
  batch.Put(kCacheMeta, std::string(kFreedKey), "");
  return store_.Write(batch, KvStore::Sync::kSync);
}

absl::StatusOr<bool> ObjectStore::HasFreed() {
  SH_ASSIGN_OR_RETURN(const auto mark, store_.Get(kCacheMeta, kFreedKey));
  return mark.has_value();
}

absl::Status ObjectStore::CompactFreed() {
  SH_RETURN_IF_ERROR(store_.FlushFamily(kCacheObjects));
  return store_.CompactRange(kCacheObjects, PieceKey(0, 0), "q");
}

absl::Status ObjectStore::FreedIsDone() {
  KvBatch batch;
  batch.Delete(kCacheMeta, std::string(kFreedKey));
  return store_.Write(batch, KvStore::Sync::kNoSync);
}

absl::StatusOr<ObjectHeader> ObjectStore::Stat(absl::string_view name) {
  SH_ASSIGN_OR_RETURN(const std::optional<ObjectHeader> header, FindHeader(name));
  if (!header.has_value()) {
    return absl::NotFoundError(absl::StrCat("no object ", name, " in the cache"));
  }
  return *header;
}

absl::StatusOr<std::string> ObjectStore::GetPiece(const ObjectHeader& header, uint64_t offset) {
  if (offset % kPartBytesMax != 0 || offset > header.size ||
      (offset == header.size && offset != 0)) {
    return absl::InvalidArgumentError(absl::StrCat("no piece begins at ", offset));
  }
  if (header.size == 0) return std::string();
  const uint32_t index = static_cast<uint32_t>(offset / kPartBytesMax);
  SH_ASSIGN_OR_RETURN(const auto bytes,
                      store_.Get(kCacheObjects, PieceKey(header.generation, index)));
  if (!bytes.has_value()) return absl::DataLossError(absl::StrCat("piece ", index, " is gone"));
  SH_ASSIGN_OR_RETURN(const PieceRecord piece, ParsePieceRecord(*bytes));
  if (piece.generation != header.generation || piece.index != index ||
      piece.payload.size() != PieceBytes(header.size, offset)) {
    return absl::DataLossError(absl::StrCat("another piece lies in the place of piece ", index));
  }
  return std::string(piece.payload);
}

absl::StatusOr<std::shared_ptr<const std::string>> ObjectStore::Get(absl::string_view name,
                                                                    uint64_t bytes_max) {
  SH_ASSIGN_OR_RETURN(const ObjectHeader header, Stat(name));
  if (header.size > bytes_max) {
    return absl::ResourceExhaustedError(absl::StrCat("the object ", name, " has ", header.size,
                                                     " bytes, ", bytes_max, " are allowed"));
  }
  auto bytes = std::make_shared<std::string>();
  for (uint64_t offset = 0; offset < header.size; offset += kPartBytesMax) {
    SH_ASSIGN_OR_RETURN_AT(const std::string piece, GetPiece(header, offset), name);
    bytes->append(piece);
  }
  if (Sha256Of(*bytes) != header.digest) {
    return absl::DataLossError(absl::StrCat("the object ", name, " does not match its hash"));
  }
  return bytes;
}

absl::StatusOr<std::vector<ObjectInfo>> ObjectStore::List(absl::string_view prefix,
                                                          absl::string_view after, int limit) {
  KvScanOptions scan{.begin = HeaderKey(std::max(prefix, after)), .end = "i"};
  if (!after.empty() && after >= prefix) scan.begin += '\0';
  scan.entries_max = limit;
  SH_ASSIGN_OR_RETURN(const KvScanResult found, store_.Scan(kCacheObjects, scan));
  std::vector<ObjectInfo> objects;
  for (const KvEntry& entry : found.entries) {
    const std::string name = entry.key.substr(1);
    if (!absl::StartsWith(name, prefix)) break;
    SH_ASSIGN_OR_RETURN_AT(const ObjectHeader header, ParseObjectHeader(entry.value), name);
    objects.push_back({name, header.size});
  }
  return objects;
}

absl::Status ObjectStore::Verify(absl::string_view name) {
  SH_ASSIGN_OR_RETURN(const ObjectHeader header, Stat(name));
  Sha256 sha;
  for (uint64_t offset = 0; offset < header.size; offset += kPartBytesMax) {
    SH_ASSIGN_OR_RETURN_AT(const std::string piece, GetPiece(header, offset), name);
    sha.AddRaw(piece);
  }
  if (sha.Finish() != header.digest) {
    return absl::DataLossError(absl::StrCat("the object ", name, " does not match its hash"));
  }
  return absl::OkStatus();
}

}  // namespace stillhouse
