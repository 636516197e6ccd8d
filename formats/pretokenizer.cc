#include "formats/pretokenizer.h"

#include <utility>

#include "absl/strings/match.h"
#include "common/status.h"
#include "formats/utf8.h"

namespace stillhouse {
namespace {

using Kind = SplitStep::Kind;
using Behavior = SplitStep::Behavior;

// Spaces become the replacement, and one is put before the text where the scheme says so.
void ChangeSpaces(const SplitStep& how, const TextView& text, AlignedText& out) {
  out.Clear(text);
  const bool starts = absl::StartsWith(text.text, " ") || absl::StartsWith(text.text, how.pattern);
  const bool prepends = how.prepend == SplitStep::Prepend::kAlways ||
                        (how.prepend == SplitStep::Prepend::kFirst && text.ranges[0].begin == 0);
  if (prepends && !starts) {
    out.AppendNew(how.pattern, text.ranges == nullptr ? TextRange() : text.ranges[0]);
  }
  size_t at = 0;
  while (at < text.text.size()) {
    const size_t space = std::min(text.text.find(' ', at), text.text.size());
    out.Append(text.Sub(at, space));
    if (space < text.text.size()) {
      out.AppendNew(how.pattern, text.ranges == nullptr ? TextRange() : text.ranges[space]);
    }
    at = space + 1;
  }
}

// `text` in the alphabet of byte-level vocabularies.
void AppendByteLevel(const TextView& text, AlignedText& out) {
  for (size_t i = 0; i < text.text.size(); ++i) {
    out.AppendNew(ByteLevelCharacter(static_cast<uint8_t>(text.text[i])),
                  text.ranges == nullptr ? TextRange() : text.ranges[i]);
  }
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Create(const std::vector<SplitStep>& steps) {
  PreTokenizer made;
  for (const SplitStep& step : steps) {
    Step& added = made.steps_.emplace_back();
    added.how = step;
    // A scanner's text is all matches, so that dropping or isolating them is the same.
    const bool matches_only = step.behavior == Behavior::kIsolated ||
                              (step.behavior == Behavior::kRemoved && step.invert);
    if (step.kind == Kind::kDigits) {
      added.scanner = PatternScanner::Digits(step.individual_digits);
    } else if (step.kind == Kind::kByteLevel && step.use_regex) {
      added.scanner = PatternScanner::For(kGpt2Pattern);
    } else if (step.kind == Kind::kPattern) {
      if (matches_only) added.scanner = PatternScanner::For(step.pattern);
      if (!added.scanner.has_value()) {
        SH_ASSIGN_OR_RETURN(added.regex, Regex::Compile(step.pattern));
      }
    } else if (step.kind == Kind::kLiteral) {
      SH_ASSIGN_OR_RETURN(added.regex, Regex::Literal(step.pattern));
    }
  }
  return made;
}

PreTokenizer::Run::Run(const PreTokenizer& owner) : owner_(owner) {
  for (const Step& step : owner.steps_) {
    Level& level = levels_.emplace_back();
    if (step.regex != nullptr) level.matcher = std::make_unique<Regex::Matcher>(*step.regex);
  }
}

void PreTokenizer::Run::NewText() {
  for (Level& level : levels_) {
    if (level.matcher != nullptr) level.matcher->NewBudget();
  }
}

absl::Status PreTokenizer::Run::Split(const TextView& text, bool raw, Sink piece) {
  raw_ = raw;
  return SplitFrom(0, text, piece);
}

// Depth-first over the steps, so that only one step's list of cuts is ever held at each depth.
absl::Status PreTokenizer::Run::SplitFrom(size_t step, TextView text, Sink piece) {
  if (text.text.empty()) return absl::OkStatus();
  if (step == levels_.size()) {
    piece(text);
    return absl::OkStatus();
  }
  const SplitStep& how = owner_.steps_[step].how;
  Level& level = levels_[step];
  if (how.kind == Kind::kMetaspace) {
    ChangeSpaces(how, text, level.changed);
    text = level.changed.view();
    if (!how.split) return SplitFrom(step + 1, text, piece);
  } else if (how.kind == Kind::kByteLevel) {
    if (how.add_prefix_space && text.text.front() != ' ') {
      level.changed.Clear(text);
      level.changed.AppendNew(" ", text.ranges == nullptr ? TextRange() : text.ranges[0]);
      level.changed.Append(text);
      text = level.changed.view();
    }
    if (!how.use_regex) return Pass(step, text, piece);
  }
  const std::optional<PatternScanner>& scanner = owner_.steps_[step].scanner;
  if (!scanner.has_value()) return Recut(step, text, piece);
  for (size_t at = 0; at < text.text.size();) {
    const size_t end = scanner->End(text.text, at);
    SH_RETURN_IF_ERROR(Pass(step, text.Sub(at, end), piece));
    at = end;
  }
  return absl::OkStatus();
}

// Hands a part that `step` has cut to the next step.
absl::Status PreTokenizer::Run::Pass(size_t step, const TextView& part, Sink piece) {
  if (owner_.steps_[step].how.kind != Kind::kByteLevel || raw_) {
    return SplitFrom(step + 1, part, piece);
  }
  AlignedText& alphabet = levels_[step].alphabet;
  alphabet.Clear(part);
  AppendByteLevel(part, alphabet);
  return SplitFrom(step + 1, alphabet.view(), piece);
}

// Matches, and what lies between, in order; together they are the whole text.
absl::Status PreTokenizer::Run::FindCuts(size_t step, absl::string_view text) {
  const SplitStep& how = owner_.steps_[step].how;
  Level& level = levels_[step];
  std::vector<Cut>& cuts = level.cuts;
  cuts.clear();
  size_t at = 0;
  const auto add = [&](size_t begin, size_t end) {
    if (at < begin) cuts.push_back({at, begin, how.invert});
    cuts.push_back({begin, end, !how.invert});
    at = end;
  };
  if (how.kind == Kind::kMetaspace) {
    for (size_t found = text.find(how.pattern); found != absl::string_view::npos;
         found = text.find(how.pattern, at)) {
      add(found, found + how.pattern.size());
    }
  } else {
    SH_RETURN_IF_ERROR(level.matcher->ForEach(text, add));
  }
  if (at < text.size()) cuts.push_back({at, text.size(), how.invert});
  return absl::OkStatus();
}

absl::Status PreTokenizer::Run::Recut(size_t step, const TextView& text, Sink piece) {
  SH_RETURN_IF_ERROR(FindCuts(step, text.text));
  const SplitStep& how = owner_.steps_[step].how;
  const std::vector<Cut>& cuts = levels_[step].cuts;
  const auto joins_next = [&](size_t i) {
    const Cut& cut = cuts[i];
    const Cut& next = cuts[i + 1];
    switch (how.behavior) {
      case Behavior::kMergedWithPrevious:
        return next.match && !cut.match;
      case Behavior::kMergedWithNext:
        return cut.match && !next.match;
      case Behavior::kContiguous:
        return cut.match == next.match;
      case Behavior::kRemoved:
      case Behavior::kIsolated:
        break;
    }
    return false;
  };
  for (size_t i = 0; i < cuts.size(); ++i) {
    const size_t begin = cuts[i].begin;
    if (how.behavior == Behavior::kRemoved && cuts[i].match) continue;
    while (i + 1 < cuts.size() && joins_next(i)) ++i;
    SH_RETURN_IF_ERROR(Pass(step, text.Sub(begin, cuts[i].end), piece));
  }
  return absl::OkStatus();
}

}  // namespace stillhouse
