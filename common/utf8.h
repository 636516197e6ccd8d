// UTF-8: what protobuf's `string` takes. A message with other bytes in one is written without a
// word and can never be read again, so text from outside (failures, paths, names of hosts) is
// cleaned where it enters.
//
// Pure functions; any thread.
#pragma once

#include <cstddef>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace stillhouse {

// Length of the UTF-8 sequence that `bytes` begins with, 0 if it begins with none.
size_t Utf8Length(absl::string_view bytes);

bool IsUtf8(absl::string_view text);

// InvalidArgument that names `path`, escaped, unless it is UTF-8: recipes, messages and the journal
// hold only such paths.
absl::Status CheckPathIsUtf8(absl::string_view path);

// Every byte that belongs to no UTF-8 sequence becomes U+FFFD; what is longer than `bytes_max` then
// is cut between two characters.
std::string CleanUtf8(absl::string_view text,
                      size_t bytes_max = std::numeric_limits<size_t>::max());

}  // namespace stillhouse
