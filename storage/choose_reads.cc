#include "storage/choose_reads.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/file.h"

namespace stillhouse {
namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

// Files of /proc and /sys are short, and read as empty where they are not there.
std::string ReadIfThere(const std::string& path) {
  const absl::StatusOr<std::string> text = ReadFile(path, /*bytes_max=*/1 << 20);
  return text.ok() ? *text : "";
}

uint64_t AvailableMemory(const std::string& root) {
  const std::string text = ReadIfThere(JoinPath(root, "proc/meminfo"));
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    uint64_t kilobytes = 0;
    if (absl::ConsumePrefix(&line, "MemAvailable:") && absl::ConsumeSuffix(&line, "kB") &&
        absl::SimpleAtoi(line, &kilobytes)) {
      return kilobytes << 10;
    }
  }
  return kNoLimit;
}

// The least limit of `group` and those above it; "max" and what cannot be read are none.
uint64_t LeastLimit(const std::string& mount, absl::string_view group, absl::string_view file) {
  uint64_t least = kNoLimit;
  for (;;) {
    const std::string folder = JoinPath(mount, absl::StripPrefix(group, "/"));
    const std::string text = ReadIfThere(JoinPath(folder, file));
    uint64_t limit = 0;
    if (absl::SimpleAtoi(text, &limit)) least = std::min(least, limit);
    if (group.empty()) return least;
    const size_t slash = group.rfind('/');
    group = slash == absl::string_view::npos ? "" : group.substr(0, slash);
  }
}

uint64_t GroupLimit(const std::string& root) {
  uint64_t least = kNoLimit;
  const std::string text = ReadIfThere(JoinPath(root, "proc/self/cgroup"));
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (fields.size() != 3) continue;
    const std::vector<absl::string_view> controllers = absl::StrSplit(fields[1], ',');
    if (fields[1].empty()) {
      const std::string mount = JoinPath(root, "sys/fs/cgroup");
      least = std::min(least, LeastLimit(mount, fields[2], "memory.max"));
    } else if (std::count(controllers.begin(), controllers.end(), "memory") > 0) {
      const std::string mount = JoinPath(root, "sys/fs/cgroup/memory");
      least = std::min(least, LeastLimit(mount, fields[2], "memory.limit_in_bytes"));
    }
  }
  return least;
}

}  // namespace

uint64_t MemoryForFiles(const std::string& root) {
  return std::min(AvailableMemory(root), GroupLimit(root));
}

uint64_t DatabaseBytes(const std::string& folder) {
  const absl::StatusOr<std::vector<std::string>> names = ListFolder(folder);
  uint64_t bytes = 0;
  if (!names.ok()) return bytes;
  for (const std::string& name : *names) {
    struct stat info {};
    if (stat(JoinPath(folder, name).c_str(), &info) == 0 && S_ISREG(info.st_mode)) {
      bytes += static_cast<uint64_t>(info.st_size);
    }
  }
  return bytes;
}

bool SupportsDirectReads(const std::string& file) {
  const int fd = open(file.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC | O_NONBLOCK);
  if (fd >= 0) close(fd);
  return fd >= 0;
}

KvReads ChooseReads(uint64_t database_bytes, uint64_t memory_bytes) {
  // A quarter stays for the rest of the process and for what the cache grows by.
  return database_bytes <= memory_bytes / 4 * 3 ? KvReads::kMapped : KvReads::kDirect;
}

}  // namespace stillhouse
