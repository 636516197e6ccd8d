#include "storage/service/export_folder.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "common/file.h"
#include "common/status.h"

namespace stillhouse {
namespace {

constexpr size_t kBlockBytes = 4 << 20;

}  // namespace

absl::StatusOr<std::unique_ptr<ExportFolderWriter>> ExportFolderWriter::Create(
    const std::string& target) {
  std::string folder = target;
  while (folder.size() > 1 && folder.back() == '/') folder.pop_back();
  if (folder.empty()) return absl::InvalidArgumentError("an export needs the name of a folder");
  if (PathExists(folder)) {
    return absl::AlreadyExistsError(absl::StrCat(folder, " is there already"));
  }
  SH_RETURN_IF_ERROR(MakeFolders(FolderOf(folder)));
  std::string partial = absl::StrCat(folder, ".tmp.XXXXXX");
  if (::mkdtemp(partial.data()) == nullptr) return ErrnoStatus("making a folder beside", folder);
  return std::unique_ptr<ExportFolderWriter>(
      new ExportFolderWriter(std::move(folder), std::move(partial)));
}

ExportFolderWriter::~ExportFolderWriter() {
  if (fd_ >= 0) ::close(fd_);
  if (!partial_.empty()) RemoveTree(partial_).IgnoreError();
}

absl::Status ExportFolderWriter::Begin(const std::string& name) {
  SH_CHECK(fd_ < 0, path_, " is not ended");
  path_ = JoinPath(partial_, name);
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd_ < 0) return ErrnoStatus("creating", path_);
  bytes_ = 0;
  sha_ = std::make_unique<Sha256>();
  return absl::OkStatus();
}

absl::Status ExportFolderWriter::Append(absl::string_view bytes) {
  SH_CHECK(fd_ >= 0, "no file was begun");
  sha_->AddRaw(bytes);
  bytes_ += bytes.size();
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd_, bytes.data(), bytes.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus("writing", path_);
    bytes.remove_prefix(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

absl::StatusOr<ExportFileInfo> ExportFolderWriter::End() {
  SH_CHECK(fd_ >= 0, "no file was begun");
  if (::fsync(fd_) != 0) return ErrnoStatus("syncing", path_);
  if (::close(std::exchange(fd_, -1)) != 0) return ErrnoStatus("closing", path_);
  return ExportFileInfo{bytes_, sha_->Finish()};
}

absl::StatusOr<ExportFileInfo> ExportFolderWriter::Write(const std::string& name,
                                                         absl::string_view bytes) {
  SH_RETURN_IF_ERROR(Begin(name));
  SH_RETURN_IF_ERROR(Append(bytes));
  return End();
}

absl::Status ExportFolderWriter::Finish() {
  SH_CHECK(fd_ < 0, path_, " is not ended");
  SH_RETURN_IF_ERROR(FsyncFolder(partial_));
  if (::chmod(partial_.c_str(), 0755) != 0) return ErrnoStatus("opening", partial_);
  if (::renameat2(AT_FDCWD, partial_.c_str(), AT_FDCWD, target_.c_str(), RENAME_NOREPLACE) != 0) {
    return ErrnoStatus("renaming the finished export to", target_);
  }
  partial_.clear();
  return FsyncFolder(FolderOf(target_));
}

ExportInputFile::~ExportInputFile() { ::close(fd_); }

absl::Status ExportInputFile::ReadAt(uint64_t offset, size_t size, char* out) const {
  while (size > 0) {
    const ssize_t count = ::pread(fd_, out, size, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus("reading", path_);
    if (count == 0) return absl::DataLossError(absl::StrCat(path_, ": it is cut short"));
    out += count;
    offset += static_cast<uint64_t>(count);
    size -= static_cast<size_t>(count);
  }
  return absl::OkStatus();
}

absl::StatusOr<Digest> ExportInputFile::Hash() const {
  Sha256 sha;
  std::vector<char> block(std::min<uint64_t>(bytes_, kBlockBytes));
  for (uint64_t offset = 0; offset < bytes_;) {
    const size_t size = std::min<uint64_t>(block.size(), bytes_ - offset);
    SH_RETURN_IF_ERROR(ReadAt(offset, size, block.data()));
    sha.AddRaw(block.data(), size);
    offset += size;
  }
  return sha.Finish();
}

absl::StatusOr<std::shared_ptr<const std::string>> ExportInputFile::ReadAll() const {
  auto bytes = std::make_shared<std::string>(bytes_, '\0');
  SH_RETURN_IF_ERROR(ReadAt(0, bytes->size(), bytes->data()));
  return bytes;
}

absl::StatusOr<std::unique_ptr<ExportFolderReader>> ExportFolderReader::Open(
    const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus("opening", path);
  return std::unique_ptr<ExportFolderReader>(new ExportFolderReader(path, fd));
}

ExportFolderReader::~ExportFolderReader() { ::close(fd_); }

absl::StatusOr<std::unique_ptr<ExportInputFile>> ExportFolderReader::OpenFile(
    const std::string& name) const {
  SH_CHECK(!name.empty() && name.find('/') == std::string::npos && name != "..", name);
  const std::string path = JoinPath(path_, name);
  // O_NONBLOCK: a pipe in a file's place must not stop us.
  const int fd = ::openat(fd_, name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0 && errno == ENOENT) return absl::DataLossError(absl::StrCat(path, ": it is missing"));
  struct stat info {};
  if ((fd < 0 && errno == ELOOP) ||
      (fd >= 0 && ::fstat(fd, &info) == 0 && !S_ISREG(info.st_mode))) {
    if (fd >= 0) ::close(fd);
    return absl::DataLossError(absl::StrCat(path, ": a link or device, not a file"));
  }
  if (fd < 0) return ErrnoStatus("opening", path);
  return std::make_unique<ExportInputFile>(path, fd, static_cast<uint64_t>(info.st_size));
}

absl::StatusOr<std::unique_ptr<ExportInputFile>> ExportFolderReader::OpenFile(
    const std::string& name, const ExportFileInfo& info) const {
  SH_ASSIGN_OR_RETURN(auto file, OpenFile(name));
  if (file->bytes() != info.bytes) {
    return absl::DataLossError(absl::StrCat(file->path(), ": it has ", file->bytes(),
                                            " bytes; the manifest states ", info.bytes));
  }
  return file;
}

}  // namespace stillhouse
