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

}  // namespace

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
