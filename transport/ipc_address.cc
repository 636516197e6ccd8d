#include "transport/ipc_address.h"

#include <sys/stat.h>
#include <unistd.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/file.h"

namespace stillhouse {

std::string IpcAddress(absl::string_view path) { return absl::StrCat("ipc://", path); }

absl::StatusOr<std::string> ParseIpcAddress(absl::string_view address) {
  if (absl::StartsWith(address, "tcp://")) {
    return absl::UnimplementedError(
        absl::StrCat(address, ": tcp addresses need CURVE keys, which this version lacks"));
  }
  absl::string_view path = address;
  if (!absl::ConsumePrefix(&path, "ipc://")) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\" is not an address: expected ipc:///path/of/a/socket"));
  }
  if (path.empty() || path[0] != '/' || path.find('\0') != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\": the path of the socket must be absolute"));
  }
  if (path.size() > kSocketPathBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("socket path ", path, " is ", path.size(),
                                                   " bytes long; at most ", kSocketPathBytesMax,
                                                   " are possible: use a shorter folder"));
  }
  return std::string(path);
}

absl::Status CheckPrivateFolder(const std::string& socket_path) {
  const std::string folder = FolderOf(socket_path);
  struct stat info {};
  if (stat(folder.c_str(), &info) != 0) return ErrnoStatus("looking at the socket folder", folder);
  if (!S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat(folder, " is not a folder"));
  }
  if (info.st_uid != geteuid()) {
    return absl::PermissionDeniedError(absl::StrCat("socket folder ", folder, " belongs to uid ",
                                                    info.st_uid, ", not to uid ", geteuid(),
                                                    ": use a folder of your own"));
  }
  if ((info.st_mode & 077) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("socket folder ", folder, " is open to other users: chmod 700 it"));
  }
  return absl::OkStatus();
}

}  // namespace stillhouse
