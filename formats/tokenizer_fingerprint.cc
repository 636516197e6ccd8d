// The fingerprint of a tokenizer. Caches are bound to it, so that what it was for a tokenizer it
// has to stay: fields that came later are added only where they say what the first ones do not. A
// flag that decides no id is none of them: it differs between the files of one model.
#include <vector>

#include "common/status.h"
#include "formats/added_token_flags.h"
#include "formats/bpe_tokenizer.h"
#include "formats/utf8.h"

namespace stillhouse {
namespace {

using Behavior = SplitStep::Behavior;

// The fields of the first version.
void AddFirst(const TokenizerSpec& spec, const Tokenizer& tokenizer, Sha256& hash) {
  hash.AddField("stillhouse tokenizer 1").AddU64(spec.tokens.size());
  for (int32_t id = 0; id < tokenizer.size(); ++id) hash.AddField(tokenizer.TokenBytes(id));
  hash.AddU64(spec.added.size());
  for (const AddedToken& token : spec.added) {
    hash.AddU64(token.id).AddField(token.content).AddU64(token.special ? 1 : 0);
  }
  hash.AddU64(spec.steps.size());
  for (const SplitStep& step : spec.steps) {
    const bool removes = step.behavior == Behavior::kRemoved;
    hash.AddU64(static_cast<uint64_t>(step.kind)).AddField(step.pattern);
    hash.AddU64(step.individual_digits).AddU64(step.use_regex).AddU64(step.add_prefix_space);
    hash.AddU64(!removes || step.invert).AddU64(!removes || !step.invert);
  }
}

// Whether the merges follow from the tokens: each token of two characters and more that is not an
// added one comes of one merge, in the order of ids, of the two tokens that it falls into by the
// merges before. (So does training make them.)
bool MergesFollow(const TokenizerSpec& spec, const Tokenizer& tokenizer, const Bpe& bpe) {
  std::vector<int32_t> by_byte(256, -1);
  std::vector<int32_t> made;  // ids that a merge should make
  size_t next_added = 0;
  for (int32_t id = 0; id < tokenizer.size(); ++id) {
    const bool added = next_added < spec.added.size() && spec.added[next_added].id == id;
    if (added) ++next_added;
    const std::optional<std::string> bytes = BytesFromByteLevel(spec.tokens[id]);
    if (added || spec.tokens[id].empty()) continue;
    if (!bytes.has_value()) return false;
    if (bytes->size() > 1) {
      made.push_back(id);
    } else {
      by_byte[static_cast<uint8_t>(bytes->front())] = id;
    }
  }
  if (made.size() != spec.merges.size()) return false;
  Bpe::Word word;
  for (size_t rank = 0; rank < made.size(); ++rank) {
    const auto& [left, right] = spec.merges[rank];
    if (absl::StrCat(spec.tokens[left], spec.tokens[right]) != spec.tokens[made[rank]])
      return false;
    const std::optional<std::string> bytes = BytesFromByteLevel(spec.tokens[made[rank]]);
    word.Clear();
    for (const char byte : *bytes) {
      const int32_t id = by_byte[static_cast<uint8_t>(byte)];
      if (id < 0) return false;
      word.Add(id, 1);
    }
    bpe.Merge(word, static_cast<int32_t>(rank));
    std::vector<int32_t> parts;
    for (const auto& symbol : word.symbols()) {
      if (!symbol.merged) parts.push_back(symbol.id);
    }
    if (parts != std::vector<int32_t>{left, right}) return false;
  }
  return true;
}

bool IsPlain(const TokenizerSpec& spec, const std::vector<EffectiveFlags>& flags) {
  if (!spec.normalizer.empty() || spec.ignore_merges || spec.byte_fallback ||
      spec.unknown.has_value() || spec.steps.empty() ||
      spec.steps.back().kind != SplitStep::Kind::kByteLevel) {
    return false;
  }
  for (size_t i = 0; i < spec.steps.size(); ++i) {
    const SplitStep& step = spec.steps[i];
    if (step.kind == SplitStep::Kind::kMetaspace ||
        (step.kind == SplitStep::Kind::kByteLevel && i + 1 < spec.steps.size()) ||
        (step.behavior != Behavior::kIsolated && step.behavior != Behavior::kRemoved)) {
      return false;
    }
  }
  for (size_t i = 0; i < flags.size(); ++i) {
    const AddedToken& token = spec.added[i];
    if (token.single_word || token.lstrip || token.rstrip || flags[i].normalized ||
        !flags[i].in_vocabulary) {
      return false;
    }
  }
  return true;
}

void AddSecond(const TokenizerSpec& spec, const std::vector<EffectiveFlags>& flags, Sha256& hash) {
  hash.AddField("stillhouse tokenizer 2");
  for (const std::string& token : spec.tokens) hash.AddField(token);
  hash.AddU64(spec.merges.size());
  for (const auto& [left, right] : spec.merges) hash.AddU64(left).AddU64(right);
  hash.AddU64(spec.normalizer.size());
  for (const NormalizerStep& step : spec.normalizer) {
    hash.AddU64(static_cast<uint64_t>(step.kind)).AddU64(static_cast<uint64_t>(step.form));
    hash.AddField(step.pattern).AddField(step.content);
  }
  for (size_t i = 0; i < flags.size(); ++i) {
    const AddedToken& token = spec.added[i];
    hash.AddU64(token.single_word).AddU64(token.lstrip).AddU64(token.rstrip);
    hash.AddU64(flags[i].normalized).AddU64(flags[i].in_vocabulary);
  }
  for (const SplitStep& step : spec.steps) {
    hash.AddU64(static_cast<uint64_t>(step.behavior)).AddU64(step.invert);
    hash.AddU64(static_cast<uint64_t>(step.prepend)).AddU64(step.split);
  }
  hash.AddU64(spec.ignore_merges).AddU64(spec.byte_fallback).AddU64(spec.fuse_unknown);
  hash.AddU64(spec.unknown.has_value() ? static_cast<uint64_t>(*spec.unknown) + 1 : 0);
}

}  // namespace

Digest TokenizerFingerprint(const TokenizerSpec& spec, const Tokenizer& tokenizer, const Bpe& bpe) {
  Sha256 hash;
  AddFirst(spec, tokenizer, hash);
  const std::vector<EffectiveFlags> flags = FlagsThatMatter(spec);
  if (!IsPlain(spec, flags) || !MergesFollow(spec, tokenizer, bpe)) AddSecond(spec, flags, hash);
  return hash.Finish();
}

}  // namespace stillhouse
