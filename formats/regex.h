// Regex: a pre-tokenizer's pattern, in the dialect of tokenizer.json, run by PCRE2 with limits.
//
// tokenizer.json patterns are written for Oniguruma, with newer Unicode tables than Debian's PCRE2
// has. The pattern is rewritten so that \s, \d and \p{…} mean what they mean there; constructs
// whose meaning differs or is not known to agree are refused by name.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace stillhouse {

inline constexpr uint32_t kRegexMatchLimit = 10'000'000;  // backtracking steps for one match
// Steps of the matches of one text that are not cheap, all together: a few seconds.
inline constexpr uint64_t kRegexTextLimit = 200'000'000;
inline constexpr uint32_t kRegexHeapLimitKib = 64 * 1024;  // memory of one match
inline constexpr size_t kRegexPatternMax = 16 * 1024;      // bytes; the longest real one has 300

// Immutable and thread-safe.
class Regex {
 public:
  // InvalidArgument or Unimplemented, naming the construct.
  static absl::StatusOr<std::shared_ptr<const Regex>> Compile(absl::string_view pattern);
  // Exactly `text`, no pattern.
  static absl::StatusOr<std::shared_ptr<const Regex>> Literal(absl::string_view text);
  // \p{N} one by one or in runs, as the Digits pre-tokenizer splits (Rust's char::is_numeric).
  static std::shared_ptr<const Regex> Digits(bool individually);

  // Per-thread working memory; any number of them may use one Regex.
  class Matcher;

  // Whether a match may be empty.
  bool may_match_empty() const { return may_match_empty_; }

  ~Regex();
  Regex(const Regex&) = delete;
  Regex& operator=(const Regex&) = delete;

 private:
  friend class Matcher;
  Regex() = default;
  static absl::StatusOr<std::shared_ptr<const Regex>> CompilePcre(absl::string_view pattern,
                                                                  uint32_t options);
  void* code_ = nullptr;  // pcre2_code
  bool may_match_empty_ = false;
};

// Finds the matches of a text from left to right, as Oniguruma's iterator does: a match may be
// empty, but not where the one before ended.
class Regex::Matcher {
 public:
  explicit Matcher(const Regex& regex);  // which must outlive *this
  ~Matcher();
  Matcher(const Matcher&) = delete;
  Matcher& operator=(const Matcher&) = delete;

  // Calls `match` with the place of each match. ResourceExhausted past a limit, which all texts
  // since NewBudget share. REQUIRES: `text` is UTF-8.
  absl::Status ForEach(absl::string_view text,
                       absl::FunctionRef<void(size_t begin, size_t end)> match);
  void NewBudget() { spent_ = 0; }

 private:
  absl::StatusOr<bool> Next(size_t* begin, size_t* end);  // false: there is none
  int Match(uint32_t options);
  int MatchWithin(uint32_t limit);

  const Regex& regex_;
  void* data_;     // pcre2_match_data
  void* context_;  // pcre2_match_context
  absl::string_view text_;
  size_t from_ = 0;
  size_t last_end_ = absl::string_view::npos;
  uint64_t spent_ = 0;
};

}  // namespace stillhouse
