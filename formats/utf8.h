// UTF-8, and the alphabet in which byte-level BPE vocabularies are written.
//
// GPT-2 writes each byte as one printable character, so that a vocabulary is text: printable ASCII
// and Latin-1 stand for themselves, the other 68 bytes for U+0100 and on (space is U+0120).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace stillhouse {

// The length of the well-formed character at the start of `text`; 0 if there is none. As Unicode's
// table 3-7 has it: no overlong forms, no surrogates, nothing past U+10FFFF.
int Utf8Length(absl::string_view text);
// The offset of the first ill-formed byte; npos if all is well.
size_t FindInvalidUtf8(absl::string_view text);
// `bytes` with each maximal ill-formed piece replaced by U+FFFD, as Unicode recommends and as
// Rust's from_utf8_lossy does.
std::string Utf8Lossy(absl::string_view bytes);
// The code point of a well-formed character. REQUIRES: Utf8Length(text) > 0.
char32_t Utf8CodePoint(absl::string_view text);

std::string ByteLevelFromBytes(absl::string_view bytes);
// nullopt if a character is not of the alphabet.
std::optional<std::string> BytesFromByteLevel(absl::string_view text);

}  // namespace stillhouse
