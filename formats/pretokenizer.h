// PreTokenizer: cuts text into the pieces that BPE works on, one after another.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "formats/aligned_text.h"
#include "formats/pattern_scanner.h"
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
    // A new text begins: what patterns may cost is counted from here.
    void NewText();
    // Calls `piece` for each piece of `text`, left to right; a piece lives until the next one.
    // A ByteLevel step puts pieces into its alphabet, or, if `raw`, leaves that to the caller.
    // REQUIRES: `text` is UTF-8; `raw` only where the one ByteLevel is the last step.
    absl::Status Split(const TextView& text, bool raw,
                       absl::FunctionRef<void(const TextView&)> piece);

   private:
    struct Cut {
      size_t begin;
      size_t end;
      bool match;
    };
    struct Level {
      std::unique_ptr<Regex::Matcher> matcher;  // null: the step has no pattern, or a scanner
      std::vector<Cut> cuts;
      AlignedText changed;
      AlignedText alphabet;
    };
    using Sink = absl::FunctionRef<void(const TextView&)>;

    absl::Status SplitFrom(size_t step, TextView text, Sink piece);
    absl::Status Recut(size_t step, const TextView& text, Sink piece);
    absl::Status FindCuts(size_t step, absl::string_view text);
    absl::Status Pass(size_t step, const TextView& part, Sink piece);

    const PreTokenizer& owner_;
    std::vector<Level> levels_;  // one per step
    bool raw_ = false;
  };

 private:
  struct Step {
    SplitStep how;
    std::shared_ptr<const Regex> regex;     // null: no pattern
    std::optional<PatternScanner> scanner;  // instead of the pattern, where it gives the same
  };
  std::vector<Step> steps_;
};

}  // namespace stillhouse
