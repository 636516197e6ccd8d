#include "common/utf8.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

uint8_t At(absl::string_view text, size_t index) { return static_cast<uint8_t>(text[index]); }

struct Prefix {
  int size;  // of the character, or of the longest prefix of one that stands here, at least 1
  bool complete;
};

// Unicode's table 3-7: the second byte's range depends on the first; the rest are 80..BF.
Prefix Scan(absl::string_view text) {
  const uint8_t first = At(text, 0);
  if (first < 0x80) return {1, true};
  int size = 0;
  uint8_t low = 0x80;
  uint8_t high = 0xbf;
  if (first >= 0xc2 && first <= 0xdf) {
    size = 2;
  } else if (first >= 0xe0 && first <= 0xef) {
    size = 3;
    if (first == 0xe0) low = 0xa0;
    if (first == 0xed) high = 0x9f;
  } else if (first >= 0xf0 && first <= 0xf4) {
    size = 4;
    if (first == 0xf0) low = 0x90;
    if (first == 0xf4) high = 0x8f;
  } else {
    return {1, false};
  }
  for (int i = 1; i < size; ++i) {
    if (static_cast<size_t>(i) >= text.size() || At(text, i) < low || At(text, i) > high) {
      return {i, false};
    }
    low = 0x80;
    high = 0xbf;
  }
  return {size, true};
}

}  // namespace

int Utf8Length(absl::string_view text) {
  if (text.empty()) return 0;
  const Prefix prefix = Scan(text);
  return prefix.complete ? prefix.size : 0;
}

size_t FindInvalidUtf8(absl::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (At(text, at) < 0x80) {
      ++at;
      continue;
    }
    const Prefix prefix = Scan(text.substr(at));
    if (!prefix.complete) return at;
    at += prefix.size;
  }
  return absl::string_view::npos;
}

char32_t Utf8CodePoint(absl::string_view text) {
  const int size = Utf8Length(text);
  SH_CHECK(size > 0);
  if (size == 1) return At(text, 0);
  char32_t code = At(text, 0) & (0xff >> (size + 1));
  for (int i = 1; i < size; ++i) code = code << 6 | (At(text, i) & 0x3f);
  return code;
}

size_t Utf8CharacterBefore(absl::string_view text, size_t end) {
  do {
    --end;
  } while (end > 0 && (static_cast<uint8_t>(text[end]) & 0xc0) == 0x80);
  return end;
}

bool IsUtf8(absl::string_view text) { return FindInvalidUtf8(text) == absl::string_view::npos; }

absl::Status CheckPathIsUtf8(absl::string_view path) {
  if (IsUtf8(path)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "\"", absl::CEscape(path), "\": the path is not UTF-8: rename the file or folder"));
}

std::string CleanUtf8(absl::string_view text, size_t bytes_max) {
  std::string clean;
  clean.reserve(std::min(text.size(), bytes_max));
  while (!text.empty()) {
    const Prefix prefix = Scan(text);
    const absl::string_view next = prefix.complete ? text.substr(0, prefix.size) : kReplacement;
    if (next.size() > bytes_max - clean.size()) break;
    clean.append(next.data(), next.size());
    text.remove_prefix(prefix.size);
  }
  return clean;
}

}  // namespace stillhouse
