// RocksReader: how KvStore::Visit reads from RocksDB.
//
// Owner: the store, which outlives every call. Threads: Visit from any thread.
//
// Mapped files: a large value is shown where it lies in the page cache; small ones are copied once,
// into memory that stays warm. RocksDB's block checksum is left to the visitor's own: the check is
// made once. Direct reads: fetches run ahead on threads of our own while the visitor works.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "storage/kv_store.h"

namespace rocksdb {
class ColumnFamilyHandle;
class DB;
}  // namespace rocksdb

namespace stillhouse {

class RocksReader {
 public:
  virtual ~RocksReader() = default;
  // As KvStore::Visit.
  virtual absl::Status Visit(rocksdb::ColumnFamilyHandle* family, absl::Span<const KvWanted> wanted,
                             KvVisitor visit) = 0;
};

// `db` must outlive the result; `where` names the database in errors.
std::unique_ptr<RocksReader> MakeRocksReader(rocksdb::DB& db, KvReads reads, std::string where);

}  // namespace stillhouse
