// A database made anew from the files of a damaged one, whatever names or does not name them.
//
// Owner: a repair. One thread; no other process may hold either folder. Durability: what is in the
// new database has been synced when this returns. Nothing in the old folder is changed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "storage/kv_store.h"
#include "storage/rocks_tables.h"

namespace stillhouse {

struct RocksRepair {
  std::vector<TableFile> damaged;   // not in the new database
  std::vector<TableFile> apart;     // whole, but other entries lie between theirs: not in it either
  uint64_t tables = 0;              // in the new database
  std::vector<std::string> in_log;  // one line for each stretch of a log that was left out
  std::vector<std::string> damaged_logs;  // names of the logs that these lines are of
};

// Makes the database `options.path`, which must not exist, from the tables and logs in `from`:
// whole tables are linked, logs are replayed past what is damaged. Families are those of
// `options.families`. `threads` check tables.
absl::StatusOr<RocksRepair> RebuildRocks(const std::string& from, const RocksOptions& options,
                                         int threads);

}  // namespace stillhouse
