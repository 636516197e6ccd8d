// How much memory this process has had at most, for tests of what is bounded. Header only: tests of
// several folders use it.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>

#include "absl/base/config.h"

namespace stillhouse {

// The most bytes that have been resident since the last call of ResetPeak. Null where the kernel
// does not say, and under a sanitizer, whose own pages (TSan keeps several for each that is
// touched) are counted with ours.
inline std::optional<uint64_t> PeakBytes() {
#if defined(ABSL_HAVE_THREAD_SANITIZER) || defined(ABSL_HAVE_ADDRESS_SANITIZER)
  return std::nullopt;
#endif
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::strtoull(line.c_str() + 6, nullptr, 10) << 10;
  }
  return std::nullopt;
}

inline bool ResetPeak() {
  const int fd = ::open("/proc/self/clear_refs", O_WRONLY | O_CLOEXEC);
  const bool done = fd >= 0 && ::write(fd, "5", 1) == 1;
  if (fd >= 0) ::close(fd);
  return done;
}

}  // namespace stillhouse
