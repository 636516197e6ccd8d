// Files: whole-file reading and writing, atomic replacement, memory maps, locks.
//
// Errors name the path and the system's reason. NotFound when a path does not exist,
// ResourceExhausted when the disk is full, PermissionDenied where the system says so.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace stillhouse {

// The Status for the current errno: "`action` `path`: <reason>".
absl::Status ErrnoStatus(absl::string_view action, absl::string_view path);

// For reading; the caller closes it. InvalidArgument unless it is a regular file: a pipe that
// nobody writes to must not block.
absl::StatusOr<int> OpenRegularFile(const std::string& path);

// ResourceExhausted if the file is larger than `bytes_max`.
absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t bytes_max = 1ull << 32);

// Writes `<path>.<random>.tmp`, fsyncs it, renames it over `path`, fsyncs the folder: after a crash
// `path` holds the old bytes or the new, never a mixture.
absl::Status WriteFileAtomically(const std::string& path, absl::string_view bytes, int mode = 0644);

absl::Status FsyncFolder(const std::string& path);
absl::Status MakeFolders(const std::string& path, int mode = 0777);  // and its parents; ok if there
absl::Status RemoveTree(const std::string& path);                    // ok if not there
bool PathExists(const std::string& path);
// NotFound, or why it cannot be told (PermissionDenied: a folder on the way is closed to us).
absl::Status CheckExists(const std::string& path);
absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& path);  // names, sorted
std::string JoinPath(absl::string_view a, absl::string_view b);                // b if b is absolute
std::string FolderOf(absl::string_view path);                                  // "." if it has none
std::string BaseName(absl::string_view path);

// A private (0700) new folder under $XDG_RUNTIME_DIR, $TMPDIR or /tmp. Removed with the object.
class TempFolder {
 public:
  static absl::StatusOr<TempFolder> Create(absl::string_view prefix = "stillhouse");
  TempFolder(TempFolder&& other) noexcept : path_(std::move(other.path_)) { other.path_.clear(); }
  TempFolder& operator=(TempFolder&& other) noexcept {
    std::swap(path_, other.path_);
    return *this;
  }
  ~TempFolder();
  const std::string& path() const { return path_; }

 private:
  explicit TempFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// A read-only map of a whole file. The bytes stay valid for the life of the object; another process
// that truncates the file meanwhile raises SIGBUS, so map only files that are replaced by rename.
class MappedFile {
 public:
  static absl::StatusOr<std::shared_ptr<const MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  absl::string_view bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }
  // Takes the pages that hold `range` out of this process's memory, which counts them as its own as
  // long as they are mapped; they stay readable. What lies outside of the map is left alone.
  void GiveBack(absl::string_view range) const;
  // Copies `range` of bytes() past the map: no page of it enters this process, and a file that was
  // cut off is DataLoss, not SIGBUS. REQUIRES: out.size() == range.size().
  absl::Status CopyOut(absl::string_view range, absl::Span<char> out) const;

 private:
  MappedFile(std::string path, int fd, const char* data, size_t size)
      : path_(std::move(path)), fd_(fd), data_(data), size_(size) {}
  std::string path_;
  int fd_;  // owned
  const char* data_;
  size_t size_;
};

// An flock held for the life of the object; the file is made if need be and never removed.
// FailedPrecondition ("… is held by another process") when it cannot be had at once.
class FileLock {
 public:
  enum class Mode { kShared, kExclusive };
  static absl::StatusOr<std::unique_ptr<FileLock>> Acquire(const std::string& path, Mode mode);
  ~FileLock();

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace stillhouse
