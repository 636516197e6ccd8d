// Unicode normalisation (NFC, NFD, NFKC, NFKD) as the Python `tokenizers` package does it: by the
// tables of Unicode 9, whatever version the rest of it knows.
//
// The tables are ICU's, which is newer: characters that came after Unicode 9 are taken as unknown,
// and so stay as they are. (No character's decomposition or class has changed since; the stability
// policy forbids it.) Pure functions; any thread.
#pragma once

#include <vector>

#include "absl/strings/string_view.h"
#include "formats/aligned_text.h"

namespace stillhouse {

enum class UnicodeForm { kNfc, kNfd, kNfkc, kNfkd };

// True if the form leaves `text` as it is, by a test of each character alone; false if it may not.
bool SurelyNormalized(UnicodeForm form, absl::string_view text);

// Replaces `out` by the normalised text. REQUIRES: `text` is UTF-8.
void NormalizeUnicode(UnicodeForm form, absl::string_view text, std::vector<CharChange>& out);

// Whether a regular expression of Rust's `regex` counts the character as \w.
bool IsWordCharacter(char32_t code);
// White_Space.
bool IsSpaceCharacter(char32_t code);

}  // namespace stillhouse
