// ipc addresses: "ipc://" and the absolute path of a Unix socket in a private folder.
//
// The folder is what keeps other users of the machine out: it must belong to this user and be
// closed to everybody else (0700). Neither end uses a socket in a folder that is not.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace stillhouse {

// sockaddr_un holds 108 bytes with the final zero, on every Linux.
inline constexpr size_t kSocketPathBytesMax = 107;

std::string IpcAddress(absl::string_view path);

// The socket's path. InvalidArgument for a path that is too long, relative or abstract;
// Unimplemented for a tcp address.
absl::StatusOr<std::string> ParseIpcAddress(absl::string_view address);

// PermissionDenied, saying what to do, unless the folder of `socket_path` belongs to this user and
// is closed to all others; NotFound when it is not there.
absl::Status CheckPrivateFolder(const std::string& socket_path);

}  // namespace stillhouse
