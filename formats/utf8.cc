#include "formats/utf8.h"

#include <array>

#include "common/status.h"

namespace stillhouse {
namespace {

constexpr char32_t kAlphabetEnd = 256 + 68;

constexpr bool StandsForItself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct Alphabet {
  std::array<char32_t, 256> character{};
  std::array<int16_t, kAlphabetEnd> byte{};  // -1: no byte
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  for (int16_t& byte : alphabet.byte) byte = -1;
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const char32_t character = StandsForItself(byte) ? static_cast<char32_t>(byte) : next++;
    alphabet.character[byte] = character;
    alphabet.byte[character] = static_cast<int16_t>(byte);
  }
  return alphabet;
}
constexpr Alphabet kAlphabet = MakeAlphabet();

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

std::string Utf8Lossy(absl::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    const Prefix prefix = Scan(bytes);
    if (prefix.complete) {
      out.append(bytes.data(), prefix.size);
    } else {
      out.append("\xef\xbf\xbd");
    }
    bytes.remove_prefix(prefix.size);
  }
  return out;
}

char32_t Utf8CodePoint(absl::string_view text) {
  const int size = Utf8Length(text);
  SH_CHECK(size > 0);
  if (size == 1) return At(text, 0);
  char32_t code = At(text, 0) & (0xff >> (size + 1));
  for (int i = 1; i < size; ++i) code = code << 6 | (At(text, i) & 0x3f);
  return code;
}

std::string ByteLevelFromBytes(absl::string_view bytes) {
  std::string out;
  for (const char c : bytes) {
    const char32_t code = kAlphabet.character[static_cast<uint8_t>(c)];
    if (code < 0x80) {
      out.push_back(static_cast<char>(code));
    } else {
      out.push_back(static_cast<char>(0xc0 | code >> 6));
      out.push_back(static_cast<char>(0x80 | (code & 0x3f)));
    }
  }
  return out;
}

std::optional<std::string> BytesFromByteLevel(absl::string_view text) {
  std::string out;
  while (!text.empty()) {
    const int size = Utf8Length(text);
    if (size == 0) return std::nullopt;
    const char32_t code = Utf8CodePoint(text);
    if (code >= kAlphabetEnd || kAlphabet.byte[code] < 0) return std::nullopt;
    out.push_back(static_cast<char>(kAlphabet.byte[code]));
    text.remove_prefix(size);
  }
  return out;
}

}  // namespace stillhouse
