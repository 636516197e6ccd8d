// Journal rows: the State as typed rows of bytes, and back. Grammar in docs/formats.md.
//
// Pure functions. A row's value is "SHJR", a version, a protobuf message (proto/journal.proto) and
// an XXH3-64 over key and value, so that a swapped, truncated or damaged row is caught.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "coordinator/state.h"

namespace stillhouse {

struct JournalChange {
  enum class Kind : uint8_t { kPut, kErase, kEraseRange } kind = Kind::kPut;
  std::string key;
  std::string value;  // kEraseRange: the first key that stays
};

// What `rows` say is to be written, from the state as it is.
std::vector<JournalChange> EncodeRows(const State& state, const std::set<RowRef>& rows);

// Puts one row back. Rows may come in any order of keys but for jobs, which come before their
// chunks and states; the order of the keys themselves is such an order. DataLoss names the row.
absl::Status DecodeRow(absl::string_view key, absl::string_view value, State* state);

// After the last row: every run has its job, and each job its runs. DataLoss otherwise.
absl::Status CheckRestored(const State& state);

}  // namespace stillhouse
