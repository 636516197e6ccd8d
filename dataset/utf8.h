// Strict UTF-8 (Unicode 15, table 3-7): no overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>

#include "absl/strings/string_view.h"

namespace stillhouse {

// Offset of the first byte that does not belong to well-formed UTF-8, or npos when all do.
size_t FindInvalidUtf8(absl::string_view bytes);

}  // namespace stillhouse
