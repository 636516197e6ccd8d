// A TokenizerSpec as the metadata of a GGUF file.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "common/status.h"
#include "formats/added_token_flags.h"
#include "formats/gguf_tokenizer.h"
#include "formats/piece_merges.h"

namespace stillhouse {
namespace {

// llama.cpp's token types.
enum TokenType : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

absl::Status Lacks(absl::string_view what) {
  return absl::UnimplementedError(
      absl::StrCat("GGUF cannot hold this tokenizer: ", what, " has no place in it"));
}

// What neither kind can say.
absl::Status CheckCommon(const TokenizerSpec& spec) {
  const std::vector<EffectiveFlags> flags = FlagsThatMatter(spec);
  for (size_t i = 0; i < spec.added.size(); ++i) {
    const AddedToken& token = spec.added[i];
    const std::string label = absl::StrCat("added token \"", token.content.substr(0, 80), "\"");
    if (token.lstrip || token.rstrip || token.single_word) {
      return Lacks(absl::StrCat("the lstrip, rstrip or single_word of ", label));
    }
    if (flags[i].normalized) {
      return Lacks(
          absl::StrCat("the `normalized` of ", label, ", which decides where it is found,"));
    }
    if (!flags[i].in_vocabulary) {
      return Lacks(absl::StrCat("that the model does not know ", label));
    }
  }
  if (!spec.suffix.empty()) return Lacks("a token after each text");
  const bool bos = spec.prefix.size() == 1 && spec.bos_id == spec.prefix.front();
  if (!spec.prefix.empty() && !bos) return Lacks("what stands before each text");
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> Texts(const TokenizerSpec& spec) {
  std::vector<std::string> texts = spec.tokens;
  for (const AddedToken& token : spec.added) {
    texts[static_cast<size_t>(token.id)] = token.content;
  }
  for (size_t id = 0; id < texts.size(); ++id) {
    if (texts[id].empty()) return Lacks(absl::StrCat("the id ", id, ", which stands for nothing,"));
  }
  return texts;
}

std::vector<int32_t> Types(const TokenizerSpec& spec, bool pieces) {
  std::vector<int32_t> types(spec.tokens.size(), kNormal);
  for (size_t id = 0; pieces && id < types.size(); ++id) {
    const std::string& token = spec.tokens[id];  // <0x41>
    if (token.size() == 6 && absl::StartsWith(token, "<0x") && token.back() == '>') {
      types[id] = kByte;
    }
  }
  for (const AddedToken& token : spec.added) {
    types[static_cast<size_t>(token.id)] = token.special ? kControl : kUserDefined;
  }
  if (pieces && spec.unknown.has_value()) types[static_cast<size_t>(*spec.unknown)] = kUnknown;
  return types;
}

// The pre-tokenizer's name: the one that means the same steps.
absl::StatusOr<absl::string_view> PreTokenizerOf(const TokenizerSpec& spec) {
  for (const absl::string_view name : kGgufPreTokenizers) {
    TokenizerSpec named;
    SH_RETURN_IF_ERROR(AddGgufPreTokenizer(name, named));
    if (named.steps == spec.steps && named.normalizer == spec.normalizer &&
        named.ignore_merges == spec.ignore_merges) {
      return name;
    }
  }
  return Lacks(
      "its normalizer or pre-tokenizer, which is none that llama.cpp has a name for that "
      "we know,");
}

absl::Status AddMerges(const TokenizerSpec& spec, GgufMetadata& metadata) {
  std::vector<std::string> merges;
  for (const auto& [left, right] : spec.merges) {
    const std::string& a = spec.tokens[static_cast<size_t>(left)];
    if (absl::StrContains(a, " ")) return Lacks("a merge of a token with a space");
    merges.push_back(absl::StrCat(a, " ", spec.tokens[static_cast<size_t>(right)]));
  }
  metadata.AddStrings("tokenizer.ggml.merges", merges);
  return absl::OkStatus();
}

// Scores from which the merges follow, by one of the orders that tokenizers have: by id, or by the
// first merge that makes each token.
absl::StatusOr<std::vector<float>> ScoresOf(const TokenizerSpec& spec,
                                            const std::vector<int32_t>& types) {
  std::vector<bool> mergeable;
  for (const int32_t type : types) mergeable.push_back(type == kNormal || type == kUserDefined);
  std::vector<double> by_id, by_rank;
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    by_id.push_back(-static_cast<double>(id));
    by_rank.push_back(-static_cast<double>(spec.merges.size() + id));
  }
  absl::flat_hash_map<absl::string_view, size_t> ids;
  for (size_t id = 0; id < spec.tokens.size(); ++id) ids.emplace(spec.tokens[id], id);
  for (size_t rank = spec.merges.size(); rank-- > 0;) {
    const auto& [left, right] = spec.merges[rank];
    const auto made = ids.find(absl::StrCat(spec.tokens[static_cast<size_t>(left)],
                                            spec.tokens[static_cast<size_t>(right)]));
    if (made != ids.end()) by_rank[made->second] = -static_cast<double>(rank);
  }
  for (const std::vector<double>& scores : {by_id, by_rank}) {
    SH_ASSIGN_OR_RETURN(const auto merges, PieceMerges(spec.tokens, scores, mergeable));
    if (merges == spec.merges) return std::vector<float>(scores.begin(), scores.end());
  }
  return Lacks("the order of its merges, which follows from no scores,");
}

// The normalizer and the decoder of the kind "llama" with or without a space before each text; what
// the reader makes of tokenizer.ggml.add_space_prefix.
absl::StatusOr<bool> SpacePrefixOf(const TokenizerSpec& spec) {
  const std::string space = "\xe2\x96\x81";  // U+2581
  const NormalizerStep prepend = {NormalizerStep::Kind::kPrepend, UnicodeForm::kNfc, "", space};
  const NormalizerStep replace = {NormalizerStep::Kind::kReplaceLiteral, UnicodeForm::kNfc, " ",
                                  space};
  const bool prefix = spec.normalizer == std::vector<NormalizerStep>{prepend, replace};
  if (!spec.steps.empty() || (!prefix && spec.normalizer != std::vector<NormalizerStep>{replace})) {
    return Lacks("its normalizer or pre-tokenizer");
  }
  if (!spec.byte_fallback || !spec.fuse_unknown || spec.ignore_merges) {
    return Lacks("a model without byte_fallback or fuse_unk, or with ignore_merges,");
  }
  return prefix;
}

}  // namespace

absl::Status AddGgufTokenizer(const TokenizerSpec& spec, int64_t rows, GgufMetadata& metadata) {
  SH_RETURN_IF_ERROR(CheckCommon(spec));
  SH_ASSIGN_OR_RETURN(std::vector<std::string> texts, Texts(spec));
  SH_CHECK(static_cast<int64_t>(texts.size()) <= rows);
  const bool pieces = spec.byte_fallback;
  std::vector<int32_t> types = Types(spec, pieces);
  std::vector<float> scores;
  metadata.AddString("tokenizer.ggml.model", pieces ? "llama" : "gpt2");
  if (pieces) {
    SH_ASSIGN_OR_RETURN(const bool prefix, SpacePrefixOf(spec));
    SH_ASSIGN_OR_RETURN(scores, ScoresOf(spec, types));
    metadata.AddString("tokenizer.ggml.pre", "default");
    metadata.AddBool("tokenizer.ggml.add_space_prefix", prefix);
  } else {
    if (spec.unknown.has_value()) return Lacks("an unknown token of a byte-level model");
    SH_ASSIGN_OR_RETURN(const absl::string_view name, PreTokenizerOf(spec));
    metadata.AddString("tokenizer.ggml.pre", name);
    SH_RETURN_IF_ERROR(AddMerges(spec, metadata));
  }
  while (static_cast<int64_t>(texts.size()) < rows) {
    scores.resize(pieces ? scores.size() + 1 : 0, -10000.0f);
    texts.push_back(absl::StrCat("[PAD", texts.size(), "]"));
    types.push_back(kUnused);
  }
  metadata.AddStrings("tokenizer.ggml.tokens", texts);
  metadata.AddI32s("tokenizer.ggml.token_type", types);
  if (pieces) metadata.AddF32s("tokenizer.ggml.scores", scores);
  if (spec.unk_id.has_value()) {
    metadata.AddU32("tokenizer.ggml.unknown_token_id", *spec.unk_id);
  }
  metadata.AddBool("tokenizer.ggml.add_bos_token", spec.adds_bos);
  if (!spec.chat_template.empty()) {
    metadata.AddString("tokenizer.chat_template", spec.chat_template);
  }
  return absl::OkStatus();
}

bool SameForGguf(const TokenizerSpec& a, const TokenizerSpec& b) {
  const auto texts_a = Texts(a), texts_b = Texts(b);
  const auto added = [](const TokenizerSpec& spec) {
    std::vector<std::pair<int32_t, bool>> all;
    for (const AddedToken& token : spec.added) all.emplace_back(token.id, token.special);
    std::sort(all.begin(), all.end());
    return all;
  };
  return texts_a.ok() && texts_b.ok() && *texts_a == *texts_b && added(a) == added(b) &&
         a.merges == b.merges && a.normalizer == b.normalizer && a.steps == b.steps &&
         a.decoder == b.decoder && a.ignore_merges == b.ignore_merges &&
         a.byte_fallback == b.byte_fallback && a.unknown == b.unknown &&
         a.fuse_unknown == b.fuse_unknown && a.adds_bos == b.adds_bos && a.prefix == b.prefix &&
         a.suffix == b.suffix;
}

}  // namespace stillhouse
