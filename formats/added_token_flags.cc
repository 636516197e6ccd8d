#include "formats/added_token_flags.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "common/utf8.h"
#include "formats/token_decoder.h"

namespace stillhouse {
namespace {

// Pairs of tokens are compared where they are not all of one kind: so many at most, and so long.
constexpr size_t kComparedTokensMax = 1024;
constexpr size_t kComparedBytesMax = 64 * 1024;

bool IsOneCharacter(absl::string_view text) {
  return static_cast<size_t>(Utf8Length(text)) == text.size();
}

bool SharesBytes(absl::string_view a, absl::string_view b) {
  return a.find_first_of(b) != absl::string_view::npos;
}

bool HasFlagsOfPlace(const TokenizerSpec& spec) {
  return std::any_of(spec.added.begin(), spec.added.end(), [](const AddedToken& token) {
    return token.single_word || token.lstrip || token.rstrip;
  });
}

// Whether the normalizer changes a text beside `content` alone, never `content` itself, never makes
// one, and what it does to either side does not depend on the other: then cutting `content` out
// before it and after it is the same.
bool IsLocal(const TokenizerSpec& spec, absl::string_view content) {
  return std::all_of(
      spec.normalizer.begin(), spec.normalizer.end(), [&](const NormalizerStep& step) {
        return step.kind == NormalizerStep::Kind::kReplaceLiteral && !step.pattern.empty() &&
               !step.content.empty() && !SharesBytes(content, step.pattern) &&
               !SharesBytes(content, step.content);
      });
}

// Whether some text holds both in places that have a byte in common.
bool Overlap(absl::string_view a, absl::string_view b) {
  if (absl::StrContains(a, b) || absl::StrContains(b, a)) return true;
  for (size_t size = std::min(a.size(), b.size()) - 1; size > 0; --size) {
    if (a.substr(a.size() - size) == b.substr(0, size)) return true;
    if (b.substr(b.size() - size) == a.substr(0, size)) return true;
  }
  return false;
}

bool OverlapsAnother(const TokenizerSpec& spec, size_t index) {
  for (size_t i = 0; i < spec.added.size(); ++i) {
    if (i != index && Overlap(spec.added[i].content, spec.added[index].content)) return true;
  }
  return false;
}

// Tokens that are not `normalized` are looked for first, so that the flag can tell on any that
// overlaps another; but not where all have it and lose it together.
void SetNormalized(const TokenizerSpec& spec, std::vector<EffectiveFlags>& flags) {
  const bool no_steps = spec.normalizer.empty();
  const bool of_place = HasFlagsOfPlace(spec);
  bool all_local = true, all_normalized = true;
  size_t bytes = 0;
  for (size_t i = 0; i < flags.size(); ++i) {
    const AddedToken& token = spec.added[i];
    flags[i].normalized = token.normalized;
    all_normalized = all_normalized && token.normalized;
    all_local = all_local && IsLocal(spec, token.content);
    bytes += token.content.size();
  }
  if (all_normalized && (no_steps || (all_local && !of_place))) {
    for (EffectiveFlags& flag : flags) flag.normalized = false;
    return;
  }
  if (of_place || flags.size() > kComparedTokensMax || bytes > kComparedBytesMax) return;
  for (size_t i = 0; i < flags.size(); ++i) {
    if (!flags[i].normalized || !IsLocal(spec, spec.added[i].content)) continue;
    flags[i].normalized = OverlapsAnother(spec, i);
  }
}

// Whether the model, once it knows the token, can find it by its text in a piece: as a character or
// as the whole. (Merges that make it cannot be there unless it is known.)
bool IsLookedUp(const TokenizerSpec& spec, absl::string_view content) {
  return spec.ignore_merges || IsOneCharacter(content);
}

// The tokens of bytes stand for what no piece spells.
bool IsByteToken(const TokenizerSpec& spec, absl::string_view content) {
  return spec.byte_fallback && FallbackByte(content).has_value();
}

// Whether an output of the step that holds a string of printable ASCII has it from the same string
// in its input. NFC makes such characters of three others only.
bool KeepsAscii(const NormalizerStep& step, absl::string_view content) {
  constexpr absl::string_view kMadeByNfc = "K;`";  // of U+212A, U+037E and U+1FEF
  if (step.kind == NormalizerStep::Kind::kUnicode) {
    return step.form == UnicodeForm::kNfc && !SharesBytes(content, kMadeByNfc);
  }
  return !step.content.empty() && std::all_of(step.content.begin(), step.content.end(),
                                              [](char c) { return (c & 0x80) != 0; });
}

// Whether no piece that the model sees can hold the token's text, as each place of it in the text
// is the added token's (or a longer one's).
bool NeverInPieces(const TokenizerSpec& spec, const AddedToken& token, bool normalized) {
  const bool printable = std::all_of(token.content.begin(), token.content.end(),
                                     [](char c) { return c > 0x20 && c < 0x7f; });
  if (!printable || (normalized && !spec.normalizer.empty())) return false;
  for (const NormalizerStep& step : spec.normalizer) {
    if (!KeepsAscii(step, token.content)) return false;
  }
  for (const SplitStep& step : spec.steps) {
    if (step.kind == SplitStep::Kind::kMetaspace && SharesBytes(token.content, step.pattern)) {
      return false;
    }
  }
  return true;
}

}  // namespace

std::vector<EffectiveFlags> FlagsThatMatter(const TokenizerSpec& spec) {
  std::vector<EffectiveFlags> flags(spec.added.size());
  SetNormalized(spec, flags);
  // A longer token that must be a word can be passed over, and with it what it holds.
  const bool any_word = std::any_of(spec.added.begin(), spec.added.end(),
                                    [](const AddedToken& token) { return token.single_word; });
  for (size_t i = 0; i < flags.size(); ++i) {
    const AddedToken& token = spec.added[i];
    flags[i].in_vocabulary =
        token.in_vocabulary || (!IsByteToken(spec, token.content) &&
                                (!IsLookedUp(spec, token.content) ||
                                 (!any_word && NeverInPieces(spec, token, flags[i].normalized))));
  }
  return flags;
}

}  // namespace stillhouse
