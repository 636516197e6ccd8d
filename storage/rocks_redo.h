// What logs hold, done again over the tables of a database.
//
// The newest of a key counts. Changes are done in the order in which they were first made, whatever
// the files are called, over tables that hold some of them already: what they set does not depend
// on what was there, so the outcome is the same. Behind damage that took other changes of a key
// along, the tables may know better: there a log only adds what they lack.
//
// Owner: a repair. One thread. Durability: none before the database is flushed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "storage/rocks_log.h"

namespace rocksdb {
class ColumnFamilyHandle;
class DB;
}  // namespace rocksdb

namespace stillhouse {

struct RedoFamily {
  rocksdb::ColumnFamilyHandle* handle = nullptr;
  uint32_t number = 0;   // by which logs name it
  bool derived = false;  // made again now and then: the highest number that no other has counts
  uint64_t tables_reach = 0;  // the last change that its tables hold
};

// In the order of their first changes.
void SortLogs(std::vector<LogContent>* logs);
// `logs` are sorted.
absl::Status RedoLogs(rocksdb::DB& db, std::vector<RedoFamily> families,
                      const std::vector<LogContent>& logs);

}  // namespace stillhouse
