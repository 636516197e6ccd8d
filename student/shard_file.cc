#include "student/shard_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/status.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kMagic1 = "SHSTATE1";
constexpr absl::string_view kMagic2 = "SHSTATE2";
constexpr size_t kHeaderBytes = 64;
constexpr size_t kWriteBytes = 8 << 20;  // at a time, hashed while it is in the cache

// A file that is hashed as it is written.
class HashedFile {
 public:
  ~HashedFile() {
    if (fd_ >= 0) close(fd_);
  }
  absl::Status Open(const std::string& path) {
    path_ = path;
    fd_ = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return fd_ < 0 ? ErrnoStatus("creating", path_) : absl::OkStatus();
  }
  absl::Status Append(const void* data, size_t size) {
    const char* next = static_cast<const char*>(data);
    while (size > 0) {
      const size_t piece = std::min(size, kWriteBytes);
      hash_.AddRaw(next, piece);
      for (size_t done = 0; done < piece;) {
        const ssize_t wrote = write(fd_, next + done, piece - done);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote < 0) return ErrnoStatus("writing", path_);
        done += static_cast<size_t>(wrote);
      }
      next += piece;
      size -= piece;
      bytes_ += piece;
    }
    return absl::OkStatus();
  }
  absl::StatusOr<StoredFile> Close(const std::string& name) {
    if (fsync(fd_) != 0) return ErrnoStatus("syncing", path_);
    if (close(std::exchange(fd_, -1)) != 0) return ErrnoStatus("closing", path_);
    return StoredFile{name, bytes_, hash_.Finish().Hex()};
  }

 private:
  std::string path_;
  int fd_ = -1;
  uint64_t bytes_ = 0;
  Sha256 hash_;
};

size_t RoundUp(size_t bytes) { return (bytes + kHeaderBytes - 1) / kHeaderBytes * kHeaderBytes; }

// How much head there is before the values.
size_t HeadBytes(size_t ranges) { return RoundUp(kHeaderBytes + ranges * 2 * sizeof(uint64_t)); }

std::string HeadOf(const StudentState& state) {
  std::string bytes(HeadBytes(state.pieces.size()), '\0');
  std::memcpy(bytes.data(), kMagic2.data(), kMagic2.size());
  const uint64_t fields[] = {state.layout.size(), state.pieces.size(), state.masters.size()};
  std::memcpy(bytes.data() + kMagic2.size(), fields, sizeof(fields));
  char* next = bytes.data() + kHeaderBytes;
  for (const ShardPiece& piece : state.pieces) {
    const uint64_t range[] = {piece.flat.begin, piece.flat.end};
    std::memcpy(next, range, sizeof(range));
    next += sizeof(range);
  }
  return bytes;
}

uint64_t U64At(absl::string_view bytes, size_t offset) {
  uint64_t value = 0;
  std::memcpy(&value, bytes.data() + offset, sizeof(value));
  return value;
}

}  // namespace

std::string ShardName(int rank, int ranks) {
  return absl::StrCat("rank-", rank, "-of-", ranks, ".state");
}

absl::StatusOr<StoredFile> WriteTextFile(const std::string& folder, const std::string& name,
                                         absl::string_view text) {
  HashedFile file;
  SH_RETURN_IF_ERROR(file.Open(JoinPath(folder, name)));
  SH_RETURN_IF_ERROR(file.Append(text.data(), text.size()));
  return file.Close(name);
}

absl::StatusOr<StoredFile> WriteShardFile(const std::string& folder, int ranks,
                                          const StudentState& state) {
  const std::string name = ShardName(state.rank, ranks);
  HashedFile file;
  SH_RETURN_IF_ERROR(file.Open(JoinPath(folder, name)));
  const std::string head = HeadOf(state);
  SH_RETURN_IF_ERROR(file.Append(head.data(), head.size()));
  for (const FlatBuffer<float>* buffer : {&state.masters, &state.first, &state.second}) {
    SH_RETURN_IF_ERROR(file.Append(buffer->data(), buffer->size() * sizeof(float)));
  }
  return file.Close(name);
}

absl::StatusOr<ShardFile> ShardFile::Open(const std::string& folder, const StoredFile& stored,
                                          size_t elements) {
  ShardFile file;
  file.path_ = JoinPath(folder, stored.name);
  file.sha256_ = stored.sha256;
  SH_ASSIGN_OR_RETURN(file.map_, MappedFile::Open(file.path_));
  const size_t bytes = file.map_->bytes().size();
  if (bytes != stored.bytes || bytes < kHeaderBytes) {
    return absl::DataLossError(
        absl::StrCat(file.path_, ": damaged: ", bytes, " bytes, expected ", stored.bytes));
  }
  const absl::Status head = file.ReadHead(elements);
  if (head.ok()) return file;
  // Where the bytes are others than were written, that is the better word.
  SH_RETURN_IF_ERROR(file.Verify());
  return Annotate(head, file.path_);
}

absl::Status ShardFile::ReadHead(size_t elements) {
  const absl::string_view bytes = map_->bytes();
  const absl::Status impossible = absl::DataLossError("no shard of this student");
  const uint64_t a = U64At(bytes, 16), b = U64At(bytes, 24);
  if (U64At(bytes, 8) != elements) return impossible;
  std::vector<FlatRange> ranges;
  if (bytes.substr(0, kMagic1.size()) == kMagic1) {
    ranges.push_back({a, b});
    data_begin_ = kHeaderBytes;
  } else if (bytes.substr(0, kMagic2.size()) == kMagic2) {
    if (a > bytes.size() / (2 * sizeof(uint64_t)) || HeadBytes(a) > bytes.size()) return impossible;
    for (size_t i = 0; i < a; ++i) {
      const size_t at = kHeaderBytes + i * 2 * sizeof(uint64_t);
      ranges.push_back({U64At(bytes, at), U64At(bytes, at + sizeof(uint64_t))});
    }
    data_begin_ = HeadBytes(a);
  } else {
    return impossible;
  }
  size_t end = 0;
  for (const FlatRange& range : ranges) {
    if (range.begin < end || range.begin > range.end || range.end > elements) return impossible;
    end = range.end;
    pieces_.push_back({range, values_});
    values_ += range.size();
  }
  if (bytes.size() - data_begin_ != 3 * values_ * sizeof(float)) return impossible;
  return absl::OkStatus();
}

bool ShardFile::Overlaps(const StudentState& state) const {
  bool found = false;
  for (const ShardPiece& piece : state.pieces) {
    ForOwned(pieces_, piece.flat, [&](size_t, size_t, size_t) { found = true; });
  }
  return found;
}

absl::Status ShardFile::Verify() const {
  if (Sha256Of(map_->bytes()).Hex() == sha256_) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(path_, ": damaged: its SHA-256 does not match"));
}

void ShardFile::CopyInto(StudentState& state) const {
  const char* run = map_->bytes().data() + data_begin_;
  for (FlatBuffer<float>* buffer : {&state.masters, &state.first, &state.second}) {
    for (const ShardPiece& piece : state.pieces) {
      ForOwned(pieces_, piece.flat, [&](size_t flat, size_t local, size_t count) {
        std::memcpy(buffer->data() + piece.local + (flat - piece.flat.begin),
                    run + local * sizeof(float), count * sizeof(float));
      });
    }
    run += values_ * sizeof(float);
  }
}

}  // namespace stillhouse
