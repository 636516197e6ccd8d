#include "common/utf8.h"

#include <cstdint>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace stillhouse {
namespace {

constexpr absl::string_view kReplacement = "\xef\xbf\xbd";  // U+FFFD

}  // namespace

size_t Utf8Length(absl::string_view bytes) {
  if (bytes.empty()) return 0;
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const size_t length = first >= 0xf0 ? 4 : first >= 0xe0 ? 3 : 2;
  if (first < 0xc2 || first > 0xf4 || bytes.size() < length) return 0;
  uint32_t code = first & (0x7f >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
    code = code << 6 | (byte(i) & 0x3f);
  }
  const bool overlong = (length == 3 && code < 0x800) || (length == 4 && code < 0x10000);
  const bool surrogate = code >= 0xd800 && code <= 0xdfff;
  return overlong || surrogate || code > 0x10ffff ? 0 : length;
}

bool IsUtf8(absl::string_view text) {
  while (!text.empty()) {
    const size_t length = Utf8Length(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

absl::Status CheckPathIsUtf8(absl::string_view path) {
  if (IsUtf8(path)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "\"", absl::CEscape(path), "\": the path is not UTF-8: rename the file or folder"));
}

std::string CleanUtf8(absl::string_view text, size_t bytes_max) {
  std::string clean;
  while (!text.empty()) {
    const size_t length = Utf8Length(text);
    const absl::string_view next = length == 0 ? kReplacement : text.substr(0, length);
    if (next.size() > bytes_max - clean.size()) break;
    clean.append(next.data(), next.size());
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return clean;
}

}  // namespace stillhouse
