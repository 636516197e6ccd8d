// TextNormalizer: what a tokenizer does to text before it cuts it.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/aligned_text.h"
#include "formats/regex.h"
#include "formats/tokenizer_spec.h"

namespace stillhouse {

// Immutable and thread-safe.
class TextNormalizer {
 public:
  static absl::StatusOr<TextNormalizer> Create(const std::vector<NormalizerStep>& steps);

  // Working memory of one thread; the TextNormalizer must outlive it.
  class Run {
   public:
    explicit Run(const TextNormalizer& owner);
    void NewText();  // what patterns may cost is counted from here
    // `text` normalised; it lives as long as `text` and until the next call. ResourceExhausted for
    // steps that make too much of it.
    absl::StatusOr<TextView> Normalize(TextView text);

   private:
    // An output longer than `bytes_max` is cut short, but longer than that.
    absl::Status Replace(size_t step, const TextView& text, size_t bytes_max, AlignedText& out);

    const TextNormalizer& owner_;
    std::vector<std::unique_ptr<Regex::Matcher>> matchers_;  // one per step; null: no pattern
    AlignedText texts_[2];                                   // steps go from one to the other
    std::vector<CharChange> changes_;
  };

 private:
  std::vector<NormalizerStep> steps_;
  std::vector<std::shared_ptr<const Regex>> patterns_;  // one per step; null: no pattern
};

}  // namespace stillhouse
