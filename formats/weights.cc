#include "formats/weights.h"

#include <sys/stat.h>

#include <climits>
#include <cstdlib>

#include "absl/strings/str_join.h"
#include "common/status.h"

namespace stillhouse {

int64_t TensorInfo::Count() const {
  int64_t count = 1;
  for (const int64_t dimension : shape) count *= dimension;
  return count;
}

std::string ShapeText(absl::Span<const int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::StatusOr<FileIdentity> IdentifyFile(const std::string& path) {
  struct stat info {};
  char* resolved = ::realpath(path.c_str(), nullptr);
  if (resolved == nullptr) return ErrnoStatus("opening", path);
  FileIdentity identity;
  identity.path = resolved;
  ::free(resolved);
  if (::stat(identity.path.c_str(), &info) != 0) return ErrnoStatus("opening", path);
  identity.size = static_cast<uint64_t>(info.st_size);
  identity.device = info.st_dev;
  identity.inode = info.st_ino;
  identity.modified_ns = info.st_mtim.tv_sec * 1'000'000'000 + info.st_mtim.tv_nsec;
  identity.changed_ns = info.st_ctim.tv_sec * 1'000'000'000 + info.st_ctim.tv_nsec;
  return identity;
}

absl::StatusOr<std::shared_ptr<const MappedFile>> MapIdentified(const std::string& path,
                                                                FileIdentity& identity) {
  SH_ASSIGN_OR_RETURN(identity, IdentifyFile(path));
  SH_ASSIGN_OR_RETURN(std::shared_ptr<const MappedFile> file, MappedFile::Open(path));
  SH_ASSIGN_OR_RETURN(const FileIdentity after, IdentifyFile(path));
  if (!(identity == after) || file->bytes().size() != identity.size) {
    return absl::AbortedError(absl::StrCat(path, " was replaced while it was being opened"));
  }
  return file;
}

}  // namespace stillhouse
