// The alphabet in which byte-level BPE vocabularies are written.
//
// GPT-2 writes each byte as one printable character, so that a vocabulary is text: printable ASCII
// and Latin-1 stand for themselves, the other 68 bytes for U+0100 and on (space is U+0120).
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "common/utf8.h"

namespace stillhouse {

absl::string_view ByteLevelCharacter(uint8_t byte);
std::string ByteLevelFromBytes(absl::string_view bytes);
// nullopt if a character is not of the alphabet.
std::optional<std::string> BytesFromByteLevel(absl::string_view text);

}  // namespace stillhouse
