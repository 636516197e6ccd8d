#include "formats/pattern_scanner.h"

#include <array>
#include <memory>
#include <string>

#include "common/status.h"
#include "formats/aligned_text.h"
#include "formats/regex.h"

namespace stillhouse {
namespace {

constexpr char32_t kCodeEnd = 0x110000;
constexpr uint8_t kLetter = 1;
constexpr uint8_t kNumber = 2;
constexpr uint8_t kSpace = 4;
constexpr uint8_t kRustNumber = 8;
constexpr uint8_t kWordOrSpace = kLetter | kNumber | kSpace;

using Classes = std::array<uint8_t, kCodeEnd>;

char32_t CodeAt(const char* at) {
  const auto byte = [at](int i) { return static_cast<char32_t>(static_cast<uint8_t>(at[i])); };
  if (byte(0) < 0x80) return byte(0);
  if (byte(0) < 0xe0) return (byte(0) & 0x1f) << 6 | (byte(1) & 0x3f);
  if (byte(0) < 0xf0) return (byte(0) & 0xf) << 12 | (byte(1) & 0x3f) << 6 | (byte(2) & 0x3f);
  return (byte(0) & 7) << 18 | (byte(1) & 0x3f) << 12 | (byte(2) & 0x3f) << 6 | (byte(3) & 0x3f);
}

size_t SizeAt(const char* at) {
  const auto byte = static_cast<uint8_t>(*at);
  return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

void Mark(const Regex& regex, absl::string_view every, uint8_t bit, Classes& classes) {
  SH_CHECK_OK(Regex::Matcher(regex).ForEach(every, [&](size_t begin, size_t end) {
    for (size_t at = begin; at < end; at += SizeAt(every.data() + at)) {
      classes[CodeAt(every.data() + at)] |= bit;
    }
  }));
}

std::unique_ptr<const Classes> MakeClasses() {
  std::string every;
  for (char32_t code = 0; code < kCodeEnd; ++code) {
    if (code < 0xd800 || code >= 0xe000) AppendUtf8(code, every);
  }
  auto classes = std::make_unique<Classes>();
  classes->fill(0);
  const std::pair<absl::string_view, uint8_t> patterns[] = {
      {"\\p{L}+", kLetter}, {"\\p{N}+", kNumber}, {"\\s+", kSpace}};
  for (const auto& [pattern, bit] : patterns) {
    const auto regex = Regex::Compile(pattern);
    SH_CHECK_OK(regex);
    Mark(**regex, every, bit, *classes);
  }
  Mark(*Regex::Digits(/*individually=*/false), every, kRustNumber, *classes);
  return classes;
}

const Classes& AllClasses() {
  static const std::unique_ptr<const Classes> classes = MakeClasses();
  return *classes;
}

// A place in a text.
class Cursor {
 public:
  Cursor(absl::string_view text, size_t at)
      : classes_(AllClasses().data()),
        begin_(text.data()),
        at_(begin_ + at),
        end_(begin_ + text.size()) {}

  bool done() const { return at_ == end_; }
  size_t offset() const { return static_cast<size_t>(at_ - begin_); }
  uint8_t kind() const { return classes_[CodeAt(at_)]; }
  bool Is(char c) const { return at_ != end_ && *at_ == c; }
  bool IsLineEnd() const { return Is('\r') || Is('\n'); }
  bool Has(uint8_t classes) const { return at_ != end_ && (kind() & classes) != 0; }
  bool HasOther() const { return at_ != end_ && (kind() & kWordOrSpace) == 0; }
  void Step() { at_ += SizeAt(at_); }
  void SkipAll(uint8_t classes) {
    while (Has(classes)) Step();
  }
  void SkipOther() {
    while (HasOther()) Step();
  }
  // The size of 's, 't, 're, 've, 'm, 'll or 'd here; 0 if none is.
  size_t Contraction(bool any_case) const {
    if (*at_ != '\'' || at_ + 1 == end_) return 0;
    const auto lower = [any_case](char c) {
      return static_cast<char>(any_case && c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c);
    };
    const char first = lower(at_[1]);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
    // U+017F is an s in another case.
    if (any_case && end_ - at_ >= 3 && at_[1] == '\xc5' && at_[2] == '\xbf') return 3;
    if (at_ + 2 == end_) return 0;
    const char second = lower(at_[2]);
    const bool pair =
        ((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l');
    return pair ? 3 : 0;
  }

 private:
  const uint8_t* classes_;
  const char* begin_;
  const char* at_;
  const char* end_;
};

// \s+(?!\S)|\s+: a run of spaces leaves its last to what follows, unless it is alone.
size_t SpaceRunEnd(Cursor cursor) {
  size_t last = cursor.offset();
  const size_t from = last;
  while (cursor.Has(kSpace)) {
    last = cursor.offset();
    cursor.Step();
  }
  return cursor.done() || last == from ? cursor.offset() : last;
}

size_t Gpt2End(absl::string_view text, size_t from) {
  Cursor cursor(text, from);
  const size_t contraction = cursor.Contraction(/*any_case=*/false);
  if (contraction > 0) return from + contraction;
  if (cursor.Is(' ')) {
    Cursor next = cursor;
    next.Step();
    if (!next.done() && !next.Has(kSpace)) cursor = next;
  }
  const uint8_t kind = cursor.kind();
  if ((kind & kSpace) != 0) return SpaceRunEnd(cursor);
  if ((kind & (kLetter | kNumber)) != 0) {
    cursor.SkipAll(kind & (kLetter | kNumber));
  } else {
    cursor.SkipOther();
  }
  return cursor.offset();
}

size_t Llama3End(absl::string_view text, size_t from, int digits_max) {
  Cursor cursor(text, from);
  const size_t contraction = cursor.Contraction(/*any_case=*/true);
  if (contraction > 0) return from + contraction;
  const uint8_t kind = cursor.kind();
  Cursor next = cursor;
  next.Step();
  if ((kind & kLetter) != 0 ||
      ((kind & kNumber) == 0 && !cursor.IsLineEnd() && next.Has(kLetter))) {
    next.SkipAll(kLetter);
    return next.offset();
  }
  if ((kind & kNumber) != 0) {
    for (int digits = 1; digits < digits_max && next.Has(kNumber); ++digits) next.Step();
    return next.offset();
  }
  if ((kind & kSpace) == 0 || (cursor.Is(' ') && next.HasOther())) {
    next.SkipOther();
    while (next.IsLineEnd()) next.Step();
    return next.offset();
  }
  // \s*[\r\n]+: up to the last line end of the run.
  size_t line_end = 0;
  for (Cursor run = cursor; run.Has(kSpace);) {
    const bool ends = run.IsLineEnd();
    run.Step();
    if (ends) line_end = run.offset();
  }
  return line_end > 0 ? line_end : SpaceRunEnd(cursor);
}

size_t DigitsEnd(absl::string_view text, size_t from, int digits_max) {
  Cursor cursor(text, from);
  const bool number = cursor.Has(kRustNumber);
  for (int steps = 0; !cursor.done() && cursor.Has(kRustNumber) == number; ++steps) {
    if (number && digits_max > 0 && steps == digits_max) break;
    cursor.Step();
  }
  return cursor.offset();
}

}  // namespace

std::optional<PatternScanner> PatternScanner::For(absl::string_view pattern) {
  if (pattern == kGpt2Pattern) return PatternScanner(Kind::kGpt2, 0);
  if (pattern == kLlama3Pattern) return PatternScanner(Kind::kLlama3, 3);
  if (pattern == kQwen2Pattern) return PatternScanner(Kind::kLlama3, 1);
  return std::nullopt;
}

PatternScanner PatternScanner::Digits(bool individually) {
  return PatternScanner(Kind::kDigits, individually ? 1 : 0);
}

size_t PatternScanner::End(absl::string_view text, size_t from) const {
  switch (kind_) {
    case Kind::kGpt2:
      return Gpt2End(text, from);
    case Kind::kLlama3:
      return Llama3End(text, from, digits_max_);
    case Kind::kDigits:
      return DigitsEnd(text, from, digits_max_);
  }
  return text.size();
}

}  // namespace stillhouse
