#include "formats/utf8.h"

#include <array>

#include "absl/strings/str_cat.h"

namespace stillhouse {
namespace {

constexpr char32_t kAlphabetEnd = 256 + 68;

constexpr bool StandsForItself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

struct Alphabet {
  std::array<std::array<char, 2>, 256> character{};  // in UTF-8
  std::array<uint8_t, 256> size{};                   // of it
  std::array<int16_t, kAlphabetEnd> byte{};          // -1: no byte
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  for (int16_t& byte : alphabet.byte) byte = -1;
  char32_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const char32_t code = StandsForItself(byte) ? static_cast<char32_t>(byte) : next++;
    alphabet.byte[code] = static_cast<int16_t>(byte);
    if (code < 0x80) {
      alphabet.character[byte] = {static_cast<char>(code), 0};
      alphabet.size[byte] = 1;
    } else {
      alphabet.character[byte] = {static_cast<char>(0xc0 | code >> 6),
                                  static_cast<char>(0x80 | (code & 0x3f))};
      alphabet.size[byte] = 2;
    }
  }
  return alphabet;
}
constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

absl::string_view ByteLevelCharacter(uint8_t byte) {
  return {kAlphabet.character[byte].data(), kAlphabet.size[byte]};
}

std::string ByteLevelFromBytes(absl::string_view bytes) {
  std::string out;
  for (const char c : bytes) absl::StrAppend(&out, ByteLevelCharacter(static_cast<uint8_t>(c)));
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
