// UTF-8: what protobuf's `string` takes. A message with other bytes in one is written without a
// word and can never be read again, so text from outside (failures, paths, names of hosts) is
// cleaned where it enters.
//
// Pure functions; any thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace stillhouse {

// The length of the well-formed character at the start of `text`; 0 if there is none. As Unicode's
// table 3-7 has it: no overlong forms, no surrogates, nothing past U+10FFFF.
int Utf8Length(absl::string_view text);
// The offset of the first ill-formed byte; npos if all is well.
size_t FindInvalidUtf8(absl::string_view text);
// The code point of a well-formed character. REQUIRES: Utf8Length(text) > 0.
char32_t Utf8CodePoint(absl::string_view text);
// Where the character begins that ends before `end`. REQUIRES: well-formed `text`, end > 0.
size_t Utf8CharacterBefore(absl::string_view text, size_t end);

bool IsUtf8(absl::string_view text);

// InvalidArgument that names `path`, escaped, unless it is UTF-8: recipes, messages and the journal
// hold only such paths.
absl::Status CheckPathIsUtf8(absl::string_view path);

// Each maximal ill-formed piece becomes U+FFFD, as Unicode recommends and as Rust's from_utf8_lossy
// does; what is longer than `bytes_max` then is cut between two characters.
std::string CleanUtf8(absl::string_view text,
                      size_t bytes_max = std::numeric_limits<size_t>::max());

}  // namespace stillhouse
