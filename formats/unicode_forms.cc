#include "formats/unicode_forms.h"

#include <unicode/uchar.h>
#include <unicode/unorm2.h>
#include <unicode/utf16.h>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

#include "common/status.h"
#include "common/utf8.h"

namespace stillhouse {
namespace {

constexpr int kUnicodeVersion = 9;
constexpr char32_t kCodeEnd = 0x110000;
// Past here, and but for the tags at U+E0000, no character of Unicode 9 has any property of ours.
constexpr char32_t kPlainFrom = 0x30000;
constexpr int kDecompositionMax = 18;  // U+FDFA, the longest there is

bool Compatible(UnicodeForm form) {
  return form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd;
}
bool Composes(UnicodeForm form) { return form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc; }

// ICU's data is linked in, so that these cannot fail.
const UNormalizer2* Tables(bool compatible) {
  UErrorCode error = U_ZERO_ERROR;
  const UNormalizer2* tables =
      compatible ? unorm2_getNFKCInstance(&error) : unorm2_getNFCInstance(&error);
  SH_CHECK(U_SUCCESS(error));
  return tables;
}

bool Known(char32_t code) {
  UVersionInfo age;
  u_charAge(static_cast<UChar32>(code), age);
  return age[0] > 0 && age[0] <= kUnicodeVersion;
}

uint8_t CombiningClass(char32_t code) {
  return code < 0x300 || !Known(code) ? 0 : u_getCombiningClass(static_cast<UChar32>(code));
}

// By code point: bit 1 << form where the character neither changes nor moves in that form.
std::unique_ptr<std::array<uint8_t, kCodeEnd>> MakeStable() {
  constexpr std::array<UProperty, 4> kChecks = {UCHAR_NFC_QUICK_CHECK, UCHAR_NFD_QUICK_CHECK,
                                                UCHAR_NFKC_QUICK_CHECK, UCHAR_NFKD_QUICK_CHECK};
  auto stable = std::make_unique<std::array<uint8_t, kCodeEnd>>();
  stable->fill(0xf);
  for (char32_t code = 0; code < kPlainFrom; ++code) {
    if (!Known(code)) continue;
    const bool starts = u_getCombiningClass(static_cast<UChar32>(code)) == 0;
    for (size_t form = 0; form < kChecks.size(); ++form) {
      const bool keeps =
          starts && u_getIntPropertyValue(static_cast<UChar32>(code), kChecks[form]) == UNORM_YES;
      if (!keeps) (*stable)[code] &= static_cast<uint8_t>(~(1u << form));
    }
  }
  return stable;
}

struct Pending {
  uint8_t combining_class;
  CharChange change;
};

// Canonical order: marks sorted by class between starters, equals in their order.
class Decomposer {
 public:
  Decomposer(UnicodeForm form, std::vector<CharChange>& out)
      : tables_(Tables(Compatible(form))), out_(out) {}

  void Add(char32_t code) {
    if (code < 0x80 || !Known(code)) return Push(code, /*change=*/0);
    std::array<UChar, kDecompositionMax> units;
    UErrorCode error = U_ZERO_ERROR;
    const int32_t size = unorm2_getDecomposition(tables_, static_cast<UChar32>(code), units.data(),
                                                 static_cast<int32_t>(units.size()), &error);
    if (size < 0) return Push(code, /*change=*/0);
    SH_CHECK(U_SUCCESS(error));
    for (int32_t at = 0; at < size;) {
      const bool first = at == 0;
      UChar32 part = 0;
      U16_NEXT(units.data(), at, size, part);
      Push(static_cast<char32_t>(part), first ? 0 : 1);
    }
  }

  void Flush() {
    if (pending_.size() > 1) {
      std::stable_sort(pending_.begin(), pending_.end(), [](const Pending& a, const Pending& b) {
        return a.combining_class < b.combining_class;
      });
    }
    for (const Pending& one : pending_) out_.push_back(one.change);
    pending_.clear();
  }

 private:
  void Push(char32_t code, int32_t change) {
    const uint8_t combining_class = CombiningClass(code);
    if (combining_class == 0) Flush();
    pending_.push_back({combining_class, {code, change}});
  }

  const UNormalizer2* tables_;
  std::vector<CharChange>& out_;
  std::vector<Pending> pending_;
};

// Composes in place what Decomposer made. A character that takes in another stands for both.
void Compose(std::vector<CharChange>& text) {
  const UNormalizer2* tables = Tables(/*compatible=*/false);
  size_t size = 0;     // of what is composed already, at the front of `text`
  size_t starter = 0;  // its last starter, while `open`
  bool open = false;
  uint8_t last_class = 0;  // of the mark before; 0: none since the starter
  for (const CharChange next : std::vector<CharChange>(text)) {
    const uint8_t combining_class = CombiningClass(next.code);
    if (open && (last_class == 0 || last_class < combining_class)) {
      const UChar32 whole = unorm2_composePair(tables, static_cast<UChar32>(text[starter].code),
                                               static_cast<UChar32>(next.code));
      if (whole >= 0 && Known(static_cast<char32_t>(whole))) {
        text[starter] = {static_cast<char32_t>(whole), text[starter].change + next.change - 1};
        continue;
      }
    }
    if (combining_class == 0) {
      starter = size;
      open = true;
    }
    last_class = combining_class;
    text[size++] = next;
  }
  text.resize(size);
}

}  // namespace

bool SurelyNormalized(UnicodeForm form, absl::string_view text) {
  static const std::unique_ptr<const std::array<uint8_t, kCodeEnd>> stable = MakeStable();
  const auto bit = static_cast<uint8_t>(1u << static_cast<unsigned>(form));
  for (size_t at = 0; at < text.size();) {
    if (static_cast<uint8_t>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const absl::string_view rest = text.substr(at, 4);
    if (((*stable)[Utf8CodePoint(rest)] & bit) == 0) return false;
    at += static_cast<size_t>(Utf8Length(rest));
  }
  return true;
}

void NormalizeUnicode(UnicodeForm form, absl::string_view text, std::vector<CharChange>& out) {
  out.clear();
  Decomposer decomposer(form, out);
  for (size_t at = 0; at < text.size();) {
    const absl::string_view rest = text.substr(at, 4);
    decomposer.Add(Utf8CodePoint(rest));
    at += static_cast<size_t>(Utf8Length(rest));
  }
  decomposer.Flush();
  if (Composes(form)) Compose(out);
}

bool IsWordCharacter(char32_t code) {
  // What Unicode 16, which Rust's `regex` knows, has and ICU 72 has not (15); the test class_word
  // compares all characters.
  constexpr std::pair<char32_t, char32_t> kNewer[] = {
      {0x897, 0x897},     {0x1c89, 0x1c8a},   {0xa7cb, 0xa7cd},   {0xa7da, 0xa7dc},
      {0x105c0, 0x105f3}, {0x10d40, 0x10d65}, {0x10d69, 0x10d6d}, {0x10d6f, 0x10d85},
      {0x10ec2, 0x10ec4}, {0x10efc, 0x10efc}, {0x11380, 0x11389}, {0x1138b, 0x1138b},
      {0x1138e, 0x1138e}, {0x11390, 0x113b5}, {0x113b7, 0x113c0}, {0x113c2, 0x113c2},
      {0x113c5, 0x113c5}, {0x113c7, 0x113ca}, {0x113cc, 0x113d3}, {0x113e1, 0x113e2},
      {0x116d0, 0x116e3}, {0x11bc0, 0x11be0}, {0x11bf0, 0x11bf9}, {0x11f5a, 0x11f5a},
      {0x13460, 0x143fa}, {0x16100, 0x16139}, {0x16d40, 0x16d6c}, {0x16d70, 0x16d79},
      {0x18cff, 0x18cff}, {0x1ccf0, 0x1ccf9}, {0x1e5d0, 0x1e5fa}, {0x2ebf0, 0x2ee5d}};
  for (const auto& [first, last] : kNewer) {
    if (code >= first && code <= last) return true;
  }
  const auto c = static_cast<UChar32>(code);
  return u_hasBinaryProperty(c, UCHAR_ALPHABETIC) || u_hasBinaryProperty(c, UCHAR_JOIN_CONTROL) ||
         (U_GET_GC_MASK(c) & (U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK)) != 0;
}

bool IsSpaceCharacter(char32_t code) {
  return u_hasBinaryProperty(static_cast<UChar32>(code), UCHAR_WHITE_SPACE);
}

}  // namespace stillhouse
