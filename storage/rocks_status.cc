#include "storage/rocks_status.h"

#include <rocksdb/status.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace stillhouse {

absl::Status ToAbsl(const rocksdb::Status& status, absl::string_view action) {
  if (status.ok()) return absl::OkStatus();
  const std::string message = absl::StrCat(action, ": ", status.ToString());
  if (status.IsNoSpace()) return absl::ResourceExhaustedError(message);
  if (status.IsCorruption()) return absl::DataLossError(message);
  // Of a mapped file that is shorter than the database says.
  if (status.IsIOError() && absl::StrContains(message, "larger than file length")) {
    return absl::DataLossError(message);
  }
  if (status.IsNotFound() || status.IsPathNotFound()) return absl::NotFoundError(message);
  if (status.IsInvalidArgument()) return absl::InvalidArgumentError(message);
  // RocksDB keeps the system's reason as text only.
  if (status.IsIOError() && absl::StrContains(message, std::strerror(EACCES))) {
    return absl::PermissionDeniedError(message);
  }
  if (status.IsBusy() || status.IsTryAgain()) return absl::UnavailableError(message);
  return absl::InternalError(message);
}

}  // namespace stillhouse
