// Status helpers: every fallible function of Stillhouse returns absl::Status or absl::StatusOr.
//
// Status is for the world (files, peers, input). SH_CHECK is for bugs of ours: it aborts, in
// release builds too. No exception crosses our API; nothing below a main calls exit.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace stillhouse {

// Returns `status` with "`what`: " put before its message; code and payloads stay. OK stays OK.
// Annotate once per boundary, so that a message reads from the action to the cause:
// "reading shard 7: checksum mismatch".
absl::Status Annotate(const absl::Status& status, absl::string_view what);

// Exit codes that users and scripts may rely on (docs/exit-codes.md). Command-line parsing errors
// are 2.
enum ExitCode : int {
  kExitOk = 0,
  kExitFailed = 1,
  kExitUsage = 2,
  kExitNotFound = 3,
  kExitConflict = 4,
  kExitUnauthorised = 5,
  kExitUnreachable = 6,
  kExitCorrupt = 7,
  kExitDoNotRequeue = 93,
  kExitTimeout = 124,
  kExitInterrupted = 130,
  kExitTerminated = 143,
};

// The exit code that stands for `status`: NotFound 3; AlreadyExists, Aborted and FailedPrecondition
// 4; Unauthenticated and PermissionDenied 5; Unavailable 6; DataLoss 7; DeadlineExceeded 124;
// Cancelled 130; everything else 1.
int ExitCodeFor(const absl::Status& status);

namespace internal {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition,
                              const std::string& message);
inline absl::Status ToStatus(absl::Status status) { return status; }
template <typename T>
absl::Status ToStatus(const absl::StatusOr<T>& result) {
  return result.status();
}
}  // namespace internal

}  // namespace stillhouse

#define SH_CONCAT_INNER(a, b) a##b
#define SH_CONCAT(a, b) SH_CONCAT_INNER(a, b)

// Aborts with file, line, condition and the optional message parts (as for absl::StrCat).
#define SH_CHECK(condition, ...)                                                          \
  do {                                                                                    \
    if (!(condition)) [[unlikely]]                                                        \
      ::stillhouse::internal::CheckFailed(__FILE__, __LINE__, #condition,                 \
                                          ::absl::StrCat("" __VA_OPT__(, ) __VA_ARGS__)); \
  } while (false)

#define SH_CHECK_OK(expression)                                                          \
  do {                                                                                   \
    const ::absl::Status sh_check_status = ::stillhouse::internal::ToStatus(expression); \
    SH_CHECK(sh_check_status.ok(), sh_check_status.ToString());                          \
  } while (false)

#define SH_RETURN_IF_ERROR(expression)                                       \
  do {                                                                       \
    ::absl::Status sh_status = ::stillhouse::internal::ToStatus(expression); \
    if (!sh_status.ok()) [[unlikely]]                                        \
      return sh_status;                                                      \
  } while (false)

// As SH_RETURN_IF_ERROR, with "`what`: " before the message.
#define SH_RETURN_IF_ERROR_AT(expression, what)                              \
  do {                                                                       \
    ::absl::Status sh_status = ::stillhouse::internal::ToStatus(expression); \
    if (!sh_status.ok()) [[unlikely]]                                        \
      return ::stillhouse::Annotate(sh_status, what);                        \
  } while (false)

// SH_ASSIGN_OR_RETURN(auto value, MakeValue());
#define SH_ASSIGN_OR_RETURN(lhs, expression) \
  SH_ASSIGN_OR_RETURN_IMPL(SH_CONCAT(sh_result_, __LINE__), lhs, expression)
#define SH_ASSIGN_OR_RETURN_IMPL(result, lhs, expression) \
  auto result = (expression);                             \
  if (!result.ok()) [[unlikely]]                          \
    return std::move(result).status();                    \
  lhs = *std::move(result)

// As SH_ASSIGN_OR_RETURN, with "`what`: " before the message.
#define SH_ASSIGN_OR_RETURN_AT(lhs, expression, what) \
  SH_ASSIGN_OR_RETURN_AT_IMPL(SH_CONCAT(sh_result_, __LINE__), lhs, expression, what)
#define SH_ASSIGN_OR_RETURN_AT_IMPL(result, lhs, expression, what) \
  auto result = (expression);                                      \
  if (!result.ok()) [[unlikely]]                                   \
    return ::stillhouse::Annotate(result.status(), what);          \
  lhs = *std::move(result)
