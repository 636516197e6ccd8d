// PatternScanner: the pre-tokenizer patterns that most models use, without a regular expression.
//
// Each of these patterns matches at every place of every text, so that a text is one match after
// another, and where a match ends is decided by a few characters. Which class a character belongs
// to is asked of the same Regex that would run the pattern, once for all characters; the tests
// compare the scanner with that Regex.
#pragma once

#include <optional>

#include "absl/strings/string_view.h"

namespace stillhouse {

// The pattern of GPT-2 (Radford et al. 2019), as the ByteLevel pre-tokenizer has it.
inline constexpr absl::string_view kGpt2Pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
// Those of Llama 3 and Qwen 2: they differ in how many digits stand together.
inline constexpr absl::string_view kLlama3Pattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
inline constexpr absl::string_view kQwen2Pattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
    " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

// Immutable, a value; thread-safe.
class PatternScanner {
 public:
  // nullopt unless `pattern` is one of the above.
  static std::optional<PatternScanner> For(absl::string_view pattern);
  // Numbers of Rust's char::is_numeric, alone or in runs, and the runs of what is none between
  // them.
  static PatternScanner Digits(bool individually);

  // Where the match that begins at `from` ends. REQUIRES: `text` is UTF-8 and `from` < its size.
  size_t End(absl::string_view text, size_t from) const;

 private:
  enum class Kind : uint8_t { kGpt2, kLlama3, kDigits };
  PatternScanner(Kind kind, int digits_max) : kind_(kind), digits_max_(digits_max) {}

  Kind kind_;
  int digits_max_;  // numbers in a row; 0: any
};

}  // namespace stillhouse
