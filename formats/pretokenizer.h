// PreTokenizer: cuts text into the pieces that BPE works on, one after another.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "formats/regex.h"
#include "formats/tokenizer_spec.h"

namespace stillhouse {

// Immutable and thread-safe.
class PreTokenizer {
 public:
  static absl::StatusOr<PreTokenizer> Create(const std::vector<SplitStep>& steps);

  // Working memory of one thread; the PreTokenizer must outlive it.
  class Run {
   public:
    explicit Run(const PreTokenizer& owner);
    // Calls `piece` for each piece of `text`, left to right; pieces live as long as `text` and
    // *this. REQUIRES: `text` is UTF-8.
    absl::Status Split(absl::string_view text, absl::FunctionRef<void(absl::string_view)> piece);

   private:
    absl::Status SplitFrom(size_t step, absl::string_view text,
                           absl::FunctionRef<void(absl::string_view)> piece);

    const PreTokenizer& owner_;
    std::vector<std::unique_ptr<Regex::Matcher>> matchers_;  // one per step; null: cuts nothing
    std::deque<std::string> prefixed_;                       // pieces that a space was put before
  };

 private:
  struct Step {
    std::shared_ptr<const Regex> regex;  // null: cuts nothing
    bool keep_matches = true;
    bool keep_between = true;
    bool add_prefix_space = false;
  };
  std::vector<Step> steps_;
};

}  // namespace stillhouse
