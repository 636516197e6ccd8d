// RocksDB's statuses as ours.
#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace rocksdb {
class Status;
}

namespace stillhouse {

// "`action`: <RocksDB's words>"; damage is DataLoss, a full disk ResourceExhausted.
absl::Status ToAbsl(const rocksdb::Status& status, absl::string_view action);

}  // namespace stillhouse
