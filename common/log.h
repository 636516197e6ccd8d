// Log: one line per event to standard error, and to a file if asked. Thread-safe.
//
// Never log keys, tokens of users' text or file contents.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace stillhouse {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

struct LogOptions {
  std::string program;  // shown on every line
  std::string file;     // empty: standard error only
  bool stderr_too = true;
  LogLevel level = LogLevel::kInfo;
};

// Called once by a main, before other threads start. Without it, lines go to standard error.
absl::Status InitLog(const LogOptions& options);
void LogLine(LogLevel level, absl::string_view message);

template <typename... Parts>
void LogDebug(const Parts&... parts) {
  LogLine(LogLevel::kDebug, absl::StrCat(parts...));
}
template <typename... Parts>
void LogInfo(const Parts&... parts) {
  LogLine(LogLevel::kInfo, absl::StrCat(parts...));
}
template <typename... Parts>
void LogWarning(const Parts&... parts) {
  LogLine(LogLevel::kWarning, absl::StrCat(parts...));
}
template <typename... Parts>
void LogError(const Parts&... parts) {
  LogLine(LogLevel::kError, absl::StrCat(parts...));
}

}  // namespace stillhouse
