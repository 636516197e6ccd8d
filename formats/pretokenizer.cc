#include "formats/pretokenizer.h"

#include <utility>

#include "common/status.h"

namespace stillhouse {
namespace {

// The pattern of GPT-2 (Radford et al. 2019), as the ByteLevel pre-tokenizer has it.
constexpr absl::string_view kGpt2Pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

absl::StatusOr<std::shared_ptr<const Regex>> CompileStep(const SplitStep& step) {
  switch (step.kind) {
    case SplitStep::Kind::kDigits:
      return Regex::Digits(step.individual_digits);
    case SplitStep::Kind::kPattern:
      return Regex::Compile(step.pattern);
    case SplitStep::Kind::kLiteral:
      return Regex::Literal(step.pattern);
    case SplitStep::Kind::kByteLevel:
      return Regex::Compile(kGpt2Pattern);
  }
  return absl::InternalError("unknown step");
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Create(const std::vector<SplitStep>& steps) {
  PreTokenizer made;
  for (const SplitStep& step : steps) {
    std::shared_ptr<const Regex> regex;
    if (step.kind != SplitStep::Kind::kByteLevel || step.use_regex) {
      SH_ASSIGN_OR_RETURN(regex, CompileStep(step));
    }
    made.steps_.push_back(
        {std::move(regex), step.keep_matches, step.keep_between, step.add_prefix_space});
  }
  return made;
}

PreTokenizer::Run::Run(const PreTokenizer& owner) : owner_(owner) {
  for (const Step& step : owner.steps_) {
    matchers_.push_back(step.regex == nullptr ? nullptr
                                              : std::make_unique<Regex::Matcher>(*step.regex));
  }
}

absl::Status PreTokenizer::Run::Split(absl::string_view text,
                                      absl::FunctionRef<void(absl::string_view)> piece) {
  return SplitFrom(0, text, piece);
}

// Depth-first over the steps, so that no list of pieces is ever built.
absl::Status PreTokenizer::Run::SplitFrom(size_t step, absl::string_view text,
                                          absl::FunctionRef<void(absl::string_view)> piece) {
  if (text.empty()) return absl::OkStatus();
  if (step == matchers_.size()) {
    piece(text);
    return absl::OkStatus();
  }
  const Step& how = owner_.steps_[step];
  if (how.add_prefix_space && text.front() != ' ') {
    text = prefixed_.emplace_back(absl::StrCat(" ", text));
  }
  if (how.regex == nullptr) return SplitFrom(step + 1, text, piece);
  size_t at = 0;
  while (at < text.size()) {
    size_t begin = text.size();
    size_t end = text.size();
    SH_ASSIGN_OR_RETURN(const bool found, matchers_[step]->Next(text, at, &begin, &end));
    if (!found) begin = end = text.size();
    if (how.keep_between) {
      SH_RETURN_IF_ERROR(SplitFrom(step + 1, text.substr(at, begin - at), piece));
    }
    if (how.keep_matches) {
      SH_RETURN_IF_ERROR(SplitFrom(step + 1, text.substr(begin, end - begin), piece));
    }
    at = end;
  }
  return absl::OkStatus();
}

}  // namespace stillhouse
