#include "dataset/plan_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "common/file.h"
#include "common/status.h"
#include "dataset/arrange.h"
#include "dataset/plan_format.h"

namespace stillhouse {
namespace {

constexpr size_t kBufferBytes = 1 << 20;  // per write to a file

// A new file, written through a buffer and, on the way, hashed.
class HashedFile {
 public:
  static absl::StatusOr<std::unique_ptr<HashedFile>> Create(const std::string& folder) {
    std::string path = JoinPath(folder, "plan.XXXXXX.tmp");
    const int fd = mkostemps(path.data(), 4, O_CLOEXEC);
    if (fd < 0) return ErrnoStatus("creating", path);
    return std::unique_ptr<HashedFile>(new HashedFile(fd, std::move(path)));
  }
  ~HashedFile() {
    close(fd_);
    if (!path_.empty() && !hidden_) unlink(path_.c_str());
  }

  absl::Status Write(absl::string_view bytes) {
    written_ += bytes.size();
    buffer_.append(bytes.data(), bytes.size());
    return buffer_.size() < kBufferBytes ? absl::OkStatus() : Flush();
  }
  template <typename T>
  absl::Status WriteArray(const std::vector<T>& values) {
    return Write({reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)});
  }
  uint64_t written() const { return written_; }

  absl::Status Flush() {
    checksum_.Add(buffer_);
    sha_.AddRaw(buffer_);
    for (absl::string_view rest = buffer_; !rest.empty();) {
      const ssize_t count = write(fd_, rest.data(), rest.size());
      if (count < 0 && errno != EINTR) return ErrnoStatus("writing", path_);
      if (count > 0) rest.remove_prefix(count);
    }
    buffer_.clear();
    return absl::OkStatus();
  }
  uint64_t Checksum() const { return checksum_.Finish(); }  // of what was flushed

  // Unlinks the file but keeps it open: it goes with this process.
  void Hide() {
    unlink(path_.c_str());
    hidden_ = true;
  }
  int fd() const { return fd_; }

  // Syncs and renames to <folder>/<digest>.plan.
  absl::StatusOr<PlanWriter::Written> Commit() {
    SH_RETURN_IF_ERROR(Flush());
    if (fsync(fd_) != 0) return ErrnoStatus("fsync", path_);
    if (fchmod(fd_, 0644) != 0) return ErrnoStatus("chmod", path_);
    PlanWriter::Written result;
    result.digest = sha_.Finish();
    result.path = JoinPath(FolderOf(path_), absl::StrCat(result.digest.Hex(), ".plan"));
    if (rename(path_.c_str(), result.path.c_str()) != 0)
      return ErrnoStatus("renaming to", result.path);
    path_.clear();
    SH_RETURN_IF_ERROR(FsyncFolder(FolderOf(result.path)));
    return result;
  }

 private:
  HashedFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

  int fd_;
  std::string path_;  // empty once renamed
  bool hidden_ = false;
  std::string buffer_;
  uint64_t written_ = 0;
  Sha256 sha_;
  Xxh3Stream checksum_;
};

// Documents one after another, each its ids and then its mask, mapped for reading in any order.
class SpillMap {
 public:
  static absl::StatusOr<std::unique_ptr<SpillMap>> Map(int fd, uint64_t bytes) {
    void* data = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) return ErrnoStatus("mapping", "the tokens of the plan");
    return std::unique_ptr<SpillMap>(new SpillMap(static_cast<const char*>(data), bytes));
  }
  ~SpillMap() { munmap(const_cast<char*>(data_), bytes_); }
  absl::string_view At(uint64_t offset, uint64_t count) const { return {data_ + offset, count}; }

 private:
  SpillMap(const char* data, uint64_t bytes) : data_(data), bytes_(bytes) {}
  const char* data_;
  uint64_t bytes_;
};

struct Spilled {
  uint64_t offset = 0;  // in the spill file
  uint32_t length = 0;  // tokens
  uint32_t domain = 0;
  uint32_t source = 0;
};

class PlanWriterImpl final : public PlanWriter {
 public:
  PlanWriterImpl(Options options, std::unique_ptr<HashedFile> spill)
      : options_(std::move(options)), spill_(std::move(spill)) {}

  absl::Status Add(absl::Span<const int32_t> tokens, absl::Span<const uint8_t> loss_mask,
                   uint32_t domain, uint32_t source) override {
    SH_CHECK(tokens.size() >= 2 && tokens.size() <= options_.max_tokens);
    SH_CHECK(loss_mask.size() == tokens.size() && domain < options_.domains.size());
    if (documents_.size() == UINT32_MAX - 1) {
      return absl::InvalidArgumentError("dataset: more than 4,294,967,294 documents");
    }
    documents_.push_back({spill_->written(), static_cast<uint32_t>(tokens.size()), domain, source});
    SH_RETURN_IF_ERROR(spill_->Write(
        {reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(int32_t)}));
    SH_RETURN_IF_ERROR(
        spill_->Write({reinterpret_cast<const char*>(loss_mask.data()), loss_mask.size()}));
    // The next document's ids stay at a multiple of their size.
    return spill_->Write(absl::string_view("\0\0\0", (4 - tokens.size() % 4) % 4));
  }

  absl::StatusOr<Written> Finish(const std::vector<bool>& held_out) override;

 private:
  absl::string_view Ids(const Spilled& document) const {
    return map_->At(document.offset, document.length * sizeof(int32_t));
  }
  absl::string_view Mask(const Spilled& document) const {
    return map_->At(document.offset + document.length * sizeof(int32_t), document.length);
  }
  PlanHeader MakeHeader(const Arrangement& arrangement) const;
  absl::Status WriteKeys(const Arrangement& arrangement, HashedFile& out, uint64_t* repeats) const;
  absl::Status WriteTables(const Arrangement& arrangement, HashedFile& out) const;
  absl::Status WriteTokens(const Arrangement& arrangement, HashedFile& out) const;

  Options options_;
  std::unique_ptr<HashedFile> spill_;
  std::unique_ptr<SpillMap> map_;
  std::vector<Spilled> documents_;
};

PlanHeader PlanWriterImpl::MakeHeader(const Arrangement& arrangement) const {
  PlanHeader header;
  header.vocabulary = options_.vocabulary;
  header.tokenizer = options_.tokenizer;
  header.max_tokens = options_.max_tokens;
  header.shuffle_window = options_.shuffle_window;
  header.documents = static_cast<uint32_t>(documents_.size());
  header.chunks = static_cast<uint32_t>(arrangement.chunk_begins.size()) - 1;
  header.training_chunks = arrangement.training_chunks;
  header.batches = static_cast<uint32_t>(arrangement.batches.size());
  header.domains = static_cast<uint32_t>(options_.domains.size());
  for (const std::string& name : options_.domains) header.domain_bytes += name.size();
  for (const Spilled& document : documents_) header.tokens += document.length;
  header.seed = options_.seed;
  header.file_bytes = LayOutPlan(header).file_bytes;
  return header;
}

absl::Status PlanWriterImpl::WriteKeys(const Arrangement& arrangement, HashedFile& out,
                                       uint64_t* repeats) const {
  const uint32_t first_held_out = arrangement.chunk_begins[arrangement.training_chunks];
  absl::flat_hash_set<Digest> held_out_keys;
  std::vector<Digest> keys;
  keys.reserve(arrangement.order.size());
  for (size_t i = 0; i < arrangement.order.size(); ++i) {
    const Spilled& document = documents_[arrangement.order[i]];
    keys.push_back(DocumentKey(options_.tokenizer,
                               reinterpret_cast<const int32_t*>(Ids(document).data()),
                               document.length));
    if (i >= first_held_out) held_out_keys.insert(keys.back());
  }
  *repeats = 0;
  for (uint32_t i = 0; i < first_held_out; ++i) *repeats += held_out_keys.erase(keys[i]);
  return out.WriteArray(keys);
}

absl::Status PlanWriterImpl::WriteTables(const Arrangement& arrangement, HashedFile& out) const {
  std::vector<uint64_t> offsets = {0};
  std::vector<uint32_t> domains, domain_ends;
  for (const uint32_t document : arrangement.order) {
    offsets.push_back(offsets.back() + documents_[document].length);
    domains.push_back(documents_[document].domain);
  }
  for (const std::string& name : options_.domains) {
    domain_ends.push_back((domain_ends.empty() ? 0 : domain_ends.back()) +
                          static_cast<uint32_t>(name.size()));
  }
  SH_RETURN_IF_ERROR(out.WriteArray(offsets));
  SH_RETURN_IF_ERROR(out.WriteArray(domains));
  SH_RETURN_IF_ERROR(out.WriteArray(arrangement.chunk_begins));
  SH_RETURN_IF_ERROR(out.WriteArray(arrangement.batch_begins));
  SH_RETURN_IF_ERROR(out.WriteArray(arrangement.batches));
  return out.WriteArray(domain_ends);
}

absl::Status PlanWriterImpl::WriteTokens(const Arrangement& arrangement, HashedFile& out) const {
  for (const uint32_t document : arrangement.order) {
    SH_RETURN_IF_ERROR(out.Write(Ids(documents_[document])));
  }
  for (const uint32_t document : arrangement.order) {
    SH_RETURN_IF_ERROR(out.Write(Mask(documents_[document])));
  }
  for (const std::string& name : options_.domains) SH_RETURN_IF_ERROR(out.Write(name));
  return out.Write(absl::string_view("\0\0\0\0\0\0\0", (8 - out.written() % 8) % 8));
}

absl::StatusOr<PlanWriter::Written> PlanWriterImpl::Finish(const std::vector<bool>& held_out) {
  SH_RETURN_IF_ERROR(spill_->Flush());
  std::vector<ArrangedDocument> arranged;
  arranged.reserve(documents_.size());
  for (const Spilled& document : documents_) {
    arranged.push_back({document.length, held_out[document.source]});
  }
  const Arrangement arrangement = Arrange(arranged, options_.chunk_tokens, options_.seed);
  SH_CHECK(arrangement.training_chunks > 0);
  SH_ASSIGN_OR_RETURN(map_, SpillMap::Map(spill_->fd(), spill_->written()));
  SH_ASSIGN_OR_RETURN(std::unique_ptr<HashedFile> out, HashedFile::Create(options_.folder));
  const PlanHeader header = MakeHeader(arrangement);
  uint64_t repeats = 0;
  SH_RETURN_IF_ERROR(out->Write(EncodePlanHeader(header)));
  SH_RETURN_IF_ERROR(WriteKeys(arrangement, *out, &repeats));
  SH_RETURN_IF_ERROR(WriteTables(arrangement, *out));
  SH_RETURN_IF_ERROR(WriteTokens(arrangement, *out));
  SH_RETURN_IF_ERROR(out->Flush());
  const uint64_t checksum = out->Checksum();
  SH_RETURN_IF_ERROR(out->Write({reinterpret_cast<const char*>(&checksum), sizeof(checksum)}));
  SH_CHECK(out->written() == header.file_bytes, out->written(), " bytes, not ", header.file_bytes);
  SH_ASSIGN_OR_RETURN(Written written, out->Commit());
  written.held_out_repeats = repeats;
  return written;
}

}  // namespace

absl::StatusOr<std::unique_ptr<PlanWriter>> PlanWriter::Create(Options options) {
  SH_ASSIGN_OR_RETURN(std::unique_ptr<HashedFile> spill, HashedFile::Create(options.folder));
  spill->Hide();
  return std::make_unique<PlanWriterImpl>(std::move(options), std::move(spill));
}

}  // namespace stillhouse
