// Tables (RocksDB's *.sst files) and logs read by themselves, outside any database: what a check or
// a repair looks at.
//
// Threads: any, each call on its own. Nothing is changed on disk.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace stillhouse {

struct TableFile {
  std::string path;
  std::string family;      // "" when it cannot be told
  uint64_t family_id = 0;  // RocksDB's number of it
  uint64_t entries = 0;    // as it states
  bool ingested = false;   // written by a KvSortedFile
  std::string first_key;   // "" when it cannot be told
  std::string last_key;
  absl::Status damage;  // DataLoss names what does not hold; otherwise all checksums match
};
// Reads the whole file.
TableFile CheckTable(const std::string& path);

using VisitEntry = std::function<absl::Status(absl::string_view key, absl::string_view value)>;
// Calls `visit` for every entry that can be told apart, without looking at RocksDB's checksums:
// keys and values may be damaged. An error is that of `visit`.
absl::Status ScanTable(const std::string& path, const VisitEntry& visit);
// The value under `key`; nothing where there is none or it cannot be read.
std::optional<std::string> FindInTable(const std::string& path, absl::string_view key);

// A table of entries in the order of their keys; no file until there is one. Synced by Finish.
class TableWriter {
 public:
  explicit TableWriter(std::string path);
  ~TableWriter();
  absl::Status Add(absl::string_view key, absl::string_view value);
  absl::Status Finish();

 private:
  struct Impl;
  const std::string path_;
  std::unique_ptr<Impl> impl_;
};

// The *.sst files of a folder, by number.
absl::StatusOr<std::vector<std::string>> ListTables(const std::string& folder);

}  // namespace stillhouse
