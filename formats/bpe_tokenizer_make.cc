// Making a BpeTokenizer from its spec.
#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "common/status.h"
#include "formats/bpe_tokenizer.h"
#include "formats/utf8.h"

namespace stillhouse {
namespace {

absl::Status CheckSpec(const TokenizerSpec& spec) {
  if (spec.tokens.size() > static_cast<size_t>(kTokenizerSizeMax)) {
    return absl::InvalidArgumentError(absl::StrCat("a vocabulary of ", spec.tokens.size(),
                                                   " is past the limit of ", kTokenizerSizeMax));
  }
  const auto size = static_cast<int32_t>(spec.tokens.size());
  for (const auto& id : {spec.bos_id, spec.eos_id, spec.pad_id, spec.unk_id, spec.unknown}) {
    if (id.has_value() && (*id < 0 || *id >= size)) {
      return absl::InvalidArgumentError(
          absl::StrCat("special token id ", *id, " is outside the vocabulary of ", size));
    }
  }
  if (spec.adds_bos && !spec.bos_id.has_value()) {
    return absl::InvalidArgumentError(
        "a beginning-of-text token is to be added, but there is none");
  }
  for (const auto& [left, right] : spec.merges) SH_CHECK(left < size && right < size);
  return absl::OkStatus();
}

}  // namespace

absl::Status BpeTokenizer::FillVocabulary() {
  std::vector<bool> known(spec_.tokens.size(), true);
  for (const AddedToken& token : spec_.added) {
    if (token.id < 0 || token.id >= size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("added token ", token.id, " is outside the vocabulary"));
    }
    known[token.id] = token.in_vocabulary;
  }
  vocabulary_.reserve(spec_.tokens.size());
  for (size_t id = 0; id < spec_.tokens.size(); ++id) {
    const std::string& token = spec_.tokens[id];
    if (token.size() > kTokenBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("token ", id, " has ", token.size(),
                                                     " bytes, past the limit of ", kTokenBytesMax));
    }
    if (token.empty() || !known[id]) continue;
    if (!vocabulary_.emplace(token, static_cast<int32_t>(id)).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", id, " stands twice in the vocabulary"));
    }
  }
  return absl::OkStatus();
}

absl::Status BpeTokenizer::FillMerges() {
  std::string merged;
  for (size_t rank = 0; rank < spec_.merges.size(); ++rank) {
    const auto& [left, right] = spec_.merges[rank];
    merged = absl::StrCat(spec_.tokens[left], spec_.tokens[right]);
    const int32_t result = Find(merged);
    if (result < 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "merge ", rank, " makes \"", merged.substr(0, 80), "\", which is not in the vocabulary"));
    }
    bpe_.AddMerge(left, right, static_cast<int32_t>(rank), result);
  }
  return absl::OkStatus();
}

void BpeTokenizer::FillBytes() {
  bool all_known = true;
  for (int byte = 0; byte < 256; ++byte) {
    byte_tokens_[byte] = Find(absl::StrFormat("<0x%02X>", byte));
    byte_characters_[byte] = Find(ByteLevelCharacter(static_cast<uint8_t>(byte)));
    all_known = all_known && byte_characters_[byte] >= 0;
  }
  int byte_levels = 0;
  for (const SplitStep& step : spec_.steps) {
    byte_levels += step.kind == SplitStep::Kind::kByteLevel ? 1 : 0;
    places_needed_ = places_needed_ || step.prepend == SplitStep::Prepend::kFirst;
  }
  raw_ = byte_levels == 1 && spec_.steps.back().kind == SplitStep::Kind::kByteLevel &&
         (all_known || (!spec_.unknown.has_value() && !spec_.byte_fallback));
}

// The character that stands for a space in tokenizers made with SentencePiece. If it begins tokens
// but never stands within one after another character, then no merge reaches over its left side.
void BpeTokenizer::FillSafeCut() {
  constexpr absl::string_view kSpace = "\xe2\x96\x81";  // U+2581
  if (raw_ || spec_.ignore_merges || Find(kSpace) < 0) return;
  if (spec_.unknown.has_value() && absl::StrContains(spec_.tokens[*spec_.unknown], kSpace)) return;
  for (const auto& [left, right] : spec_.merges) {
    absl::string_view rest = spec_.tokens[right];
    // Left of it in the result: a part of `left` that is none, or one of `right`.
    if (absl::StartsWith(rest, kSpace) && !absl::EndsWith(spec_.tokens[left], kSpace)) return;
    while (absl::StartsWith(rest, kSpace)) rest.remove_prefix(kSpace.size());
    if (absl::StrContains(rest, kSpace)) return;
    rest = spec_.tokens[left];
    while (absl::StartsWith(rest, kSpace)) rest.remove_prefix(kSpace.size());
    if (absl::StrContains(rest, kSpace)) return;
  }
  safe_cut_ = std::string(kSpace);
}

absl::Status BpeTokenizer::FillAdded() {
  TextNormalizer::Run normalizer(normalizer_);
  texts_ = spec_.tokens;
  for (const AddedToken& token : spec_.added) {
    if (!token.normalized) {
      SH_RETURN_IF_ERROR(plain_added_.Add(token, token.content));
      continue;
    }
    normalizer.NewText();
    SH_ASSIGN_OR_RETURN(const TextView normal, normalizer.Normalize({token.content, nullptr}));
    texts_[token.id] = std::string(normal.text);
    SH_RETURN_IF_ERROR(normalized_added_.Add(token, normal.text));
  }
  return absl::OkStatus();
}

absl::Status BpeTokenizer::FillDecoder() {
  SH_ASSIGN_OR_RETURN(decoder_, TokenDecoder::Create(spec_.decoder));
  absl::flat_hash_set<absl::string_view> special;
  for (const AddedToken& token : spec_.added) {
    if (token.special) special.insert(token.content);
  }
  special_.resize(spec_.tokens.size());
  for (size_t id = 0; id < texts_.size(); ++id) {
    special_[id] = special.contains(texts_[id]);  // by its text, as `tokenizers` tells them
    if (decoder_.only_bytes()) texts_[id] = decoder_.Bytes(texts_[id]);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> BpeTokenizer::Create(TokenizerSpec spec) {
  SH_RETURN_IF_ERROR(CheckSpec(spec));
  std::sort(spec.added.begin(), spec.added.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  std::shared_ptr<BpeTokenizer> made(new BpeTokenizer(std::move(spec)));
  SH_ASSIGN_OR_RETURN(made->normalizer_, TextNormalizer::Create(made->spec_.normalizer));
  SH_ASSIGN_OR_RETURN(made->pretokenizer_, PreTokenizer::Create(made->spec_.steps));
  SH_RETURN_IF_ERROR(made->FillVocabulary());
  SH_RETURN_IF_ERROR(made->FillMerges());
  made->FillBytes();
  made->FillSafeCut();
  SH_RETURN_IF_ERROR(made->FillAdded());
  SH_RETURN_IF_ERROR(made->FillDecoder());
  made->fingerprint_ = TokenizerFingerprint(made->spec_, *made, made->bpe_);
  return std::shared_ptr<const Tokenizer>(std::move(made));
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> MakeTokenizer(TokenizerSpec spec) {
  return BpeTokenizer::Create(std::move(spec));
}

}  // namespace stillhouse
