// The tokenizer of a GGUF file as a TokenizerSpec.
#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "common/status.h"
#include "formats/gguf_tokenizer.h"
#include "formats/pattern_scanner.h"
#include "formats/piece_merges.h"
#include "formats/utf8.h"

namespace stillhouse {
namespace {

// llama.cpp's token types.
constexpr int64_t kNormal = 1;
constexpr int64_t kUnknown = 2;
constexpr int64_t kControl = 3;
constexpr int64_t kUserDefined = 4;
constexpr int64_t kUnused = 5;
constexpr int64_t kByte = 6;

// Stands for a space in the pieces of SentencePiece.
constexpr absl::string_view kPieceSpace = "\xe2\x96\x81";  // U+2581

SplitStep PatternStep(absl::string_view pattern) {
  SplitStep step;
  step.kind = SplitStep::Kind::kPattern;
  step.pattern = std::string(pattern);
  return step;
}

absl::Status ReadTokens(const GgufFile& file, bool pieces, std::vector<int64_t>& types,
                        TokenizerSpec& spec) {
  SH_ASSIGN_OR_RETURN(const std::vector<absl::string_view> tokens,
                      file.Strings("tokenizer.ggml.tokens"));
  SH_ASSIGN_OR_RETURN(types, file.Ints("tokenizer.ggml.token_type"));
  if (tokens.empty() || tokens.size() > static_cast<size_t>(kTokenizerSizeMax)) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer.ggml.tokens has ", tokens.size(), " entries"));
  }
  if (!types.empty() && types.size() != tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.token_type has ", types.size(),
                                                   " entries for ", tokens.size(), " tokens"));
  }
  size_t size = tokens.size();  // converters fill up to the embedding's rows with unused tokens
  while (size > 0 && !types.empty() && types[size - 1] == kUnused) --size;
  for (size_t id = 0; id < size; ++id) {
    const int64_t type = types.empty() ? kNormal : types[id];
    const int64_t last = pieces ? kByte : kUnused;
    if (tokens[id].empty() || FindInvalidUtf8(tokens[id]) != absl::string_view::npos) {
      return absl::InvalidArgumentError(absl::StrCat("token ", id, " is empty or not UTF-8"));
    }
    if (type < kNormal || type > last) {
      return absl::UnimplementedError(
          absl::StrCat("token ", id, " has type ", type, ", which this kind does not have"));
    }
    spec.tokens.emplace_back(tokens[id]);
    if (type == kControl || type == kUnknown || type == kUserDefined) {
      spec.added.push_back(
          {static_cast<int32_t>(id), spec.tokens.back(), /*special=*/type != kUserDefined});
    }
    if (pieces && type == kUnknown) spec.unknown = static_cast<int32_t>(id);
  }
  types.resize(size, kNormal);
  return absl::OkStatus();
}

absl::Status ReadMerges(const GgufFile& file, TokenizerSpec& spec) {
  SH_ASSIGN_OR_RETURN(const std::vector<absl::string_view> merges,
                      file.Strings("tokenizer.ggml.merges"));
  absl::flat_hash_map<absl::string_view, int32_t> ids;
  ids.reserve(spec.tokens.size());
  for (size_t id = 0; id < spec.tokens.size(); ++id) {
    ids.emplace(spec.tokens[id], static_cast<int32_t>(id));
  }
  for (const absl::string_view merge : merges) {
    const size_t space = merge.find(' ');
    const auto left = ids.find(merge.substr(0, space));
    const auto right =
        space == absl::string_view::npos ? ids.end() : ids.find(merge.substr(space + 1));
    if (left == ids.end() || right == ids.end()) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.merges: entry ",
                                                     spec.merges.size(),
                                                     " is not two tokens of the vocabulary"));
    }
    spec.merges.emplace_back(left->second, right->second);
  }
  return absl::OkStatus();
}

// The kind "llama": SentencePiece's BPE, whose merges follow from scores.
absl::Status ReadPieces(const GgufFile& file, const std::vector<int64_t>& types,
                        TokenizerSpec& spec) {
  SH_ASSIGN_OR_RETURN(std::vector<double> scores, file.Numbers("tokenizer.ggml.scores"));
  if (scores.size() < spec.tokens.size()) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.scores has ", scores.size(),
                                                   " entries for ", spec.tokens.size(), " tokens"));
  }
  scores.resize(spec.tokens.size());
  std::vector<bool> mergeable;
  for (const int64_t type : types) mergeable.push_back(type == kNormal || type == kUserDefined);
  SH_ASSIGN_OR_RETURN(spec.merges, PieceMerges(spec.tokens, scores, mergeable));
  spec.byte_fallback = true;
  spec.fuse_unknown = true;
  SH_ASSIGN_OR_RETURN(const std::optional<bool> prefix,
                      file.Bool("tokenizer.ggml.add_space_prefix"));
  const std::string space(kPieceSpace);
  if (prefix.value_or(true)) {
    spec.normalizer.push_back({NormalizerStep::Kind::kPrepend, UnicodeForm::kNfc, "", space});
  }
  spec.normalizer.push_back({NormalizerStep::Kind::kReplaceLiteral, UnicodeForm::kNfc, " ", space});
  spec.decoder = {{DecoderStep::Kind::kReplaceLiteral, space, " "},
                  {DecoderStep::Kind::kByteFallback},
                  {DecoderStep::Kind::kFuse}};
  if (prefix.value_or(true)) {
    spec.decoder.push_back({DecoderStep::Kind::kStrip, "", " ", /*start=*/1});
  }
  return absl::OkStatus();
}

absl::Status ReadSpecials(const GgufFile& file, bool adds_bos, TokenizerSpec& spec) {
  const std::pair<absl::string_view, std::optional<int32_t>*> keys[] = {
      {"tokenizer.ggml.bos_token_id", &spec.bos_id},
      {"tokenizer.ggml.eos_token_id", &spec.eos_id},
      {"tokenizer.ggml.padding_token_id", &spec.pad_id},
      {"tokenizer.ggml.unknown_token_id", &spec.unk_id},
  };
  for (const auto& [key, target] : keys) {
    SH_ASSIGN_OR_RETURN(const std::optional<int64_t> id, file.Int(key));
    if (!id.has_value()) continue;
    if (*id < 0 || static_cast<size_t>(*id) >= spec.tokens.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(key, " is ", *id, ", outside the vocabulary of ", spec.tokens.size()));
    }
    *target = static_cast<int32_t>(*id);
  }
  SH_ASSIGN_OR_RETURN(const std::optional<bool> adds, file.Bool("tokenizer.ggml.add_bos_token"));
  spec.adds_bos = adds.value_or(adds_bos) && spec.bos_id.has_value();
  if (spec.adds_bos) spec.prefix = {*spec.bos_id};
  SH_ASSIGN_OR_RETURN(const std::optional<absl::string_view> chat,
                      file.String("tokenizer.chat_template"));
  if (chat.has_value()) spec.chat_template = std::string(*chat);
  return absl::OkStatus();
}

}  // namespace

// The pre-tokenizers of llama.cpp by their names (llama-vocab.cpp), and what else goes with them in
// the tokenizer.json of those models.
absl::Status AddGgufPreTokenizer(absl::string_view name, TokenizerSpec& spec) {
  SplitStep byte_level;
  SplitStep bytes_only;
  bytes_only.use_regex = false;
  if (name == "smollm") {
    SplitStep digits;
    digits.kind = SplitStep::Kind::kDigits;
    digits.individual_digits = true;
    spec.steps = {digits, byte_level};
  } else if (name == "llama-bpe") {
    spec.steps = {PatternStep(kLlama3Pattern), bytes_only};
    spec.ignore_merges = true;
  } else if (name == "qwen2") {
    spec.normalizer = {NormalizerStep()};  // NFC
    spec.steps = {PatternStep(kQwen2Pattern), bytes_only};
  } else if (name == "default") {
    spec.steps = {PatternStep("[\\p{P}\\$\\+<=>\\^~\\|]+"),
                  PatternStep("'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|"
                              "\\s+(?!\\S)"),
                  PatternStep("\\p{N}+"), PatternStep("[0-9][0-9][0-9]"), bytes_only};
  } else {
    return absl::UnimplementedError(absl::StrCat(
        "pre-tokenizer \"", name.substr(0, 80),
        "\" (tokenizer.ggml.pre) is not implemented, only \"smollm\", \"llama-bpe\", \"qwen2\" and "
        "\"default\""));
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenizerSpec> GgufTokenizerSpec(const GgufFile& file) {
  SH_ASSIGN_OR_RETURN(const std::optional<absl::string_view> kind,
                      file.String("tokenizer.ggml.model"));
  if (!kind.has_value()) return absl::InvalidArgumentError("the file holds no tokenizer");
  if (*kind != "gpt2" && *kind != "llama") {
    return absl::UnimplementedError(
        absl::StrCat("tokenizer kind \"", kind->substr(0, 80),
                     "\" (tokenizer.ggml.model) is not implemented, only \"gpt2\" and \"llama\""));
  }
  const bool pieces = *kind == "llama";
  TokenizerSpec spec;
  std::vector<int64_t> types;
  SH_RETURN_IF_ERROR(ReadTokens(file, pieces, types, spec));
  // Which models expect a beginning-of-text token where the file does not say, as llama.cpp has it.
  bool adds_bos = pieces;
  if (pieces) {
    SH_RETURN_IF_ERROR(ReadPieces(file, types, spec));
  } else {
    SH_ASSIGN_OR_RETURN(const std::optional<absl::string_view> pre,
                        file.String("tokenizer.ggml.pre"));
    SH_RETURN_IF_ERROR(AddGgufPreTokenizer(pre.value_or("default"), spec));
    SH_RETURN_IF_ERROR(ReadMerges(file, spec));
    adds_bos = pre.value_or("default") == "llama-bpe";
  }
  SH_RETURN_IF_ERROR(ReadSpecials(file, adds_bos, spec));
  return spec;
}

}  // namespace stillhouse
