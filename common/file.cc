#include "common/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "common/fd.h"
#include "common/status.h"

namespace stillhouse {
namespace {

namespace fs = std::filesystem;

}  // namespace

absl::Status WriteAll(int fd, absl::string_view bytes, absl::string_view path) {
  while (!bytes.empty()) {
    const ssize_t written = write(fd, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return ErrnoStatus("writing", path);
    }
    bytes.remove_prefix(written);
  }
  return absl::OkStatus();
}

absl::Status ErrnoStatus(absl::string_view action, absl::string_view path) {
  const int error = errno;
  const std::string message = absl::StrCat(action, " ", path, ": ", strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(message);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(message);
    case EEXIST:
      return absl::AlreadyExistsError(message);
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::StatusOr<int> OpenRegularFile(const std::string& path) {
  Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) return ErrnoStatus("opening", path);
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus("opening", path);
  if (S_ISREG(info.st_mode)) return fd.Release();
  return absl::InvalidArgumentError(
      absl::StrCat("opening ", path, ": it is ",
                   S_ISDIR(info.st_mode) ? "a folder" : "a pipe or a device, not a regular file"));
}

absl::StatusOr<std::string> ReadFile(const std::string& path, uint64_t bytes_max) {
  SH_ASSIGN_OR_RETURN(const int opened, OpenRegularFile(path));
  const Fd fd(opened);
  std::string bytes;
  char buffer[1 << 16];
  for (;;) {
    const ssize_t got = read(fd.get(), buffer, sizeof(buffer));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus("reading", path);
    if (got == 0) return bytes;
    if (bytes.size() + got > bytes_max) {
      return absl::ResourceExhaustedError(
          absl::StrCat("reading ", path, ": larger than the ", bytes_max, " bytes allowed"));
    }
    bytes.append(buffer, got);
  }
}

absl::Status WriteFileAtomically(const std::string& path, absl::string_view bytes, int mode) {
  std::string temporary = absl::StrCat(path, ".XXXXXX.tmp");
  Fd fd(mkostemps(temporary.data(), 4, O_CLOEXEC));
  if (fd.get() < 0) return ErrnoStatus("creating", temporary);
  absl::Status status = WriteAll(fd.get(), bytes, temporary);
  if (status.ok() && fchmod(fd.get(), mode) != 0) status = ErrnoStatus("chmod", temporary);
  if (status.ok() && fsync(fd.get()) != 0) status = ErrnoStatus("fsync", temporary);
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0) {
    status = ErrnoStatus("renaming to", path);
  }
  if (!status.ok()) {
    unlink(temporary.c_str());
    return status;
  }
  return FsyncFolder(FolderOf(path));
}

absl::Status FsyncFolder(const std::string& path) {
  Fd fd(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) return ErrnoStatus("opening", path);
  if (fsync(fd.get()) != 0) return ErrnoStatus("fsync", path);
  return absl::OkStatus();
}

absl::Status MakeFolders(const std::string& path, int mode) {
  if (path.empty() || path == "/") return absl::OkStatus();
  if (mkdir(path.c_str(), mode) == 0) return absl::OkStatus();
  if (errno == ENOENT && FolderOf(path) != path) {
    SH_RETURN_IF_ERROR(MakeFolders(FolderOf(path), mode));
    if (mkdir(path.c_str(), mode) == 0) return absl::OkStatus();
  }
  if (errno == EEXIST) {
    struct stat info {};
    if (stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) return absl::OkStatus();
    errno = ENOTDIR;
  }
  return ErrnoStatus("creating folder", path);
}

absl::Status RemoveTree(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) return absl::InternalError(absl::StrCat("removing ", path, ": ", error.message()));
  return absl::OkStatus();
}

bool PathExists(const std::string& path) {
  struct stat info {};
  return lstat(path.c_str(), &info) == 0;
}

absl::Status CheckExists(const std::string& path) {
  struct stat info {};
  return lstat(path.c_str(), &info) == 0 ? absl::OkStatus() : ErrnoStatus("opening", path);
}

absl::StatusOr<std::vector<std::string>> ListFolder(const std::string& path) {
  std::error_code error;
  std::vector<std::string> names;
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) {
    errno = error.value();
    return ErrnoStatus("listing", path);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string JoinPath(absl::string_view a, absl::string_view b) {
  if (a.empty() || (!b.empty() && b[0] == '/')) return std::string(b);
  if (b.empty()) return std::string(a);
  return absl::StrCat(a, a.back() == '/' ? "" : "/", b);
}

std::string FolderOf(absl::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  const size_t slash = path.rfind('/');
  if (slash == absl::string_view::npos) return ".";
  return std::string(slash == 0 ? "/" : path.substr(0, slash));
}

std::string BaseName(absl::string_view path) {
  while (path.size() > 1 && path.back() == '/') path.remove_suffix(1);
  const size_t slash = path.rfind('/');
  return std::string(slash == absl::string_view::npos ? path : path.substr(slash + 1));
}

absl::StatusOr<TempFolder> TempFolder::Create(absl::string_view prefix) {
  const char* base = getenv("XDG_RUNTIME_DIR");
  if (base == nullptr || access(base, W_OK) != 0) base = getenv("TMPDIR");
  if (base == nullptr || access(base, W_OK) != 0) base = "/tmp";
  std::string path = absl::StrCat(base, "/", prefix, "-XXXXXX");
  if (mkdtemp(path.data()) == nullptr) return ErrnoStatus("creating", path);
  return TempFolder(std::move(path));
}

TempFolder::~TempFolder() {
  if (!path_.empty()) RemoveTree(path_).IgnoreError();
}

absl::StatusOr<std::shared_ptr<const MappedFile>> MappedFile::Open(const std::string& path) {
  SH_ASSIGN_OR_RETURN(const int opened, OpenRegularFile(path));
  Fd fd(opened);
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) return ErrnoStatus("mapping", path);
  const size_t size = info.st_size;
  void* data = nullptr;
  if (size > 0) {
    data = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
    if (data == MAP_FAILED) return ErrnoStatus("mapping", path);
  }
  return std::shared_ptr<const MappedFile>(
      new MappedFile(path, fd.Release(), static_cast<const char*>(data), size));
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<char*>(data_), size_);
  close(fd_);
}

absl::Status MappedFile::CopyOut(absl::string_view range, absl::Span<char> out) const {
  SH_CHECK(out.size() == range.size());
  if (range.empty()) return absl::OkStatus();
  SH_CHECK(range.data() >= data_ && range.data() + range.size() <= data_ + size_);
  for (size_t done = 0; done < range.size();) {
    const auto at = static_cast<off_t>(range.data() - data_) + static_cast<off_t>(done);
    const ssize_t count = pread(fd_, out.data() + done, range.size() - done, at);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus("reading", path_);
    if (count == 0) {
      return absl::DataLossError(
          absl::StrCat(path_, ": cut off at byte ", at, " since it was opened"));
    }
    done += static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

void MappedFile::GiveBack(absl::string_view range) const {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto start = reinterpret_cast<uintptr_t>(data_), end = start + size_;
  const auto first = reinterpret_cast<uintptr_t>(range.data()), last = first + range.size();
  if (range.empty() || first < start || last > end) return;
  // Whole pages, also those at the ends, which neighbours share: who reads those maps them again.
  const uintptr_t from = first / page * page, to = (last + page - 1) / page * page;
  madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);  // advice: no error matters
}

absl::StatusOr<std::unique_ptr<FileLock>> FileLock::Acquire(const std::string& path, Mode mode) {
  int opened = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  // A reader may lock a file that it may not write.
  if (opened < 0 && mode == Mode::kShared) opened = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  Fd fd(opened);
  if (fd.get() < 0) return ErrnoStatus("opening", path);
  if (flock(fd.get(), (mode == Mode::kShared ? LOCK_SH : LOCK_EX) | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      return absl::FailedPreconditionError(absl::StrCat(path, " is held by another process"));
    }
    return ErrnoStatus("locking", path);
  }
  return std::unique_ptr<FileLock>(new FileLock(fd.Release()));
}

FileLock::~FileLock() { close(fd_); }

}  // namespace stillhouse
