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
  std::vector<TableFile> damaged;  // not in the new database
  std::vector<TableFile> apart;    // whole, but they do not fit among the others: not in it either
  std::vector<TableFile> missing;  // named by the MANIFEST, and not there
  std::vector<std::string> missing_logs;  // names
  uint64_t tables = 0;                    // in the new database
  std::vector<std::string> in_log;        // one line for each stretch of a log that was left out
  std::string log_rest;                   // of batches that are not whole: what can be read
  bool told_all = false;  // no derived entry is lost, as far as MANIFEST, tables and logs tell
};

// Makes the database `options.path`, which must not exist, from the tables and logs in `from`:
// whole tables are linked, and what the logs hold is done again over them, past what is damaged.
// Families are those of `options.families`. `threads` check tables.
absl::StatusOr<RocksRepair> RebuildRocks(const std::string& from, const RocksOptions& options,
                                         int threads);

}  // namespace stillhouse
