// Logs of a database (RocksDB's *.log files) read by themselves, past what is damaged.
//
// RocksDB's own replay stops at damage that reaches into a batch of several blocks, and believes
// the names of files. Threads: any, each call on its own. Nothing is changed on disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace stillhouse {

struct LogDamage {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};
struct LogContent {
  std::string name;
  std::vector<std::string> batches;  // whole ones, each as RocksDB's WriteBatch
  size_t after_damage = 0;           // the first batch behind the last damage
  std::vector<LogDamage> damage;
  std::string rest;  // of batches that are not whole: what matches its checksums
  std::string tail;  // of a batch that the end of the file cuts short, as a crash leaves it
};
absl::StatusOr<LogContent> ReadLog(const std::string& path);
// One line for each stretch that cannot be read.
std::vector<std::string> DescribeDamage(const LogContent& log);

// The number of a batch's first change.
uint64_t SequenceOf(absl::string_view batch);

// The number in a log's name, which RocksDB pads to six digits and lets grow past them; 0 where
// `name` is no log's.
uint64_t LogNumber(absl::string_view name);
// The logs of a folder: names, by number.
absl::StatusOr<std::vector<std::string>> ListLogs(const std::string& folder);
// DataLoss if a log begins with changes that are no younger than those of one before it (files were
// exchanged or copied, which RocksDB does not survive), or if one or its end is gone.
absl::Status CheckLogFiles(const std::string& folder);

// Which logs hold synced entries stands in a note beside them, one name a line: RocksDB would not
// miss one. Names come before entries are acknowledged, and go before the log is deleted.
inline constexpr char kSyncedLogsName[] = "SYNCED_LOGS";
absl::StatusOr<std::vector<std::string>> ReadSyncedLogs(const std::string& folder);  // by number
// A log is synced to its end before a later one is: no crash cuts it short.
bool SyncedWhole(const std::string& log, const std::vector<std::string>& synced);
// Those of them that are gone, or empty.
absl::StatusOr<std::vector<std::string>> MissingLogs(const std::string& folder);

}  // namespace stillhouse
