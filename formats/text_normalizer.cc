#include "formats/text_normalizer.h"

#include <utility>

#include "common/status.h"

namespace stillhouse {

using Kind = NormalizerStep::Kind;

namespace {

// What a text may grow to: Unicode's own forms make at most 18 times as much of it.
size_t BytesMax(const TextView& text) { return 64 * text.text.size() + 4096; }

absl::Status GrownTooFar(size_t bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat("the normalizer makes more than ", bytes, " bytes of a text"));
}

}  // namespace

absl::StatusOr<TextNormalizer> TextNormalizer::Create(const std::vector<NormalizerStep>& steps) {
  TextNormalizer made;
  for (const NormalizerStep& step : steps) {
    std::shared_ptr<const Regex> pattern;
    if (step.kind == Kind::kReplacePattern) {
      SH_ASSIGN_OR_RETURN(pattern, Regex::Compile(step.pattern));
    } else if (step.kind == Kind::kReplaceLiteral) {
      SH_ASSIGN_OR_RETURN(pattern, Regex::Literal(step.pattern));
    }
    if (pattern != nullptr && pattern->may_match_empty()) {
      return absl::UnimplementedError(
          absl::StrCat("normalizer Replace of \"", step.pattern.substr(0, 80),
                       "\", which may match nothing, is not implemented"));
    }
    made.patterns_.push_back(std::move(pattern));
    made.steps_.push_back(step);
  }
  return made;
}

TextNormalizer::Run::Run(const TextNormalizer& owner) : owner_(owner) {
  for (const auto& pattern : owner.patterns_) {
    matchers_.push_back(pattern == nullptr ? nullptr : std::make_unique<Regex::Matcher>(*pattern));
  }
}

void TextNormalizer::Run::NewText() {
  for (const auto& matcher : matchers_) {
    if (matcher != nullptr) matcher->NewBudget();
  }
}

absl::Status TextNormalizer::Run::Replace(size_t step, const TextView& text, size_t bytes_max,
                                          AlignedText& out) {
  out.Clear(text);
  size_t at = 0;
  SH_RETURN_IF_ERROR(matchers_[step]->ForEach(text.text, [&](size_t begin, size_t end) {
    if (out.view().text.size() > bytes_max) return;  // an error, below
    out.Append(text.Sub(at, begin));
    // All of the new text counts as the last character that it replaces.
    out.AppendNew(owner_.steps_[step].content,
                  text.ranges == nullptr ? TextRange() : text.ranges[end - 1]);
    at = end;
  }));
  out.Append(text.Sub(at, text.text.size()));
  return absl::OkStatus();
}

absl::StatusOr<TextView> TextNormalizer::Run::Normalize(TextView text) {
  size_t next = 0;
  const size_t bytes_max = BytesMax(text);
  for (size_t i = 0; i < owner_.steps_.size() && !text.text.empty(); ++i) {
    const NormalizerStep& step = owner_.steps_[i];
    AlignedText& out = texts_[next];
    if (step.kind == Kind::kUnicode) {
      if (SurelyNormalized(step.form, text.text)) continue;
      NormalizeUnicode(step.form, text.text, changes_);
      out.Transform(text, changes_);
    } else if (step.kind == Kind::kPrepend) {
      out.Clear(text);
      out.AppendNew(step.content, text.ranges == nullptr ? TextRange() : text.ranges[0]);
      out.Append(text);
    } else {
      SH_RETURN_IF_ERROR(Replace(i, text, bytes_max, out));
    }
    text = out.view();
    if (text.text.size() > bytes_max) return GrownTooFar(bytes_max);
    next = 1 - next;
  }
  return text;
}

}  // namespace stillhouse
