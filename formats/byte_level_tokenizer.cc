// The one Tokenizer there is: byte-level BPE run from a TokenizerSpec.
#include <algorithm>
#include <array>
#include <limits>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/bpe.h"
#include "formats/pretokenizer.h"
#include "formats/tokenizer_spec.h"
#include "formats/utf8.h"

namespace stillhouse {
namespace {

constexpr size_t kTextBytesMax = 1ull << 30;  // offsets within a text are 32 bits

class ByteLevelTokenizer final : public Tokenizer {
 public:
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> Create(TokenizerSpec spec);

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text) const override;
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids,
                                     bool skip_special) const override;
  std::string TokenBytes(int32_t id) const override;
  int32_t size() const override { return static_cast<int32_t>(kinds_.size()); }
  std::optional<int32_t> bos_id() const override { return spec_.bos_id; }
  std::optional<int32_t> eos_id() const override { return spec_.eos_id; }
  bool adds_bos() const override { return spec_.adds_bos; }
  const Digest& Fingerprint() const override { return fingerprint_; }
  absl::Status WriteFiles(const std::string& folder) const override;

 private:
  enum class Kind : uint8_t { kNone, kPlain, kAdded, kSpecial };

  explicit ByteLevelTokenizer(TokenizerSpec spec) : spec_(std::move(spec)) {}
  absl::Status FillTokens();
  absl::Status FillMerges();
  absl::Status FillAdded();
  void FillFingerprint();

  absl::string_view PlainBytes(int32_t id) const {
    return absl::string_view(bytes_).substr(starts_[id], starts_[id + 1] - starts_[id]);
  }
  // The added token that begins at the start of `text`, the longest if several do; null if none.
  const AddedToken* AddedAt(absl::string_view text) const;

  struct Work;
  absl::Status EncodePlain(absl::string_view text, Work& work) const;

  // Constant after Create.
  TokenizerSpec spec_;
  PreTokenizer pretokenizer_;
  Bpe bpe_;
  std::vector<Kind> kinds_;                                // by id
  std::string bytes_;                                      // of all tokens, one after another
  std::vector<uint32_t> starts_;                           // by id, and the end
  absl::flat_hash_map<std::string, int32_t> whole_;        // by bytes, for ignore_merges
  std::array<std::vector<const AddedToken*>, 256> added_;  // by first byte, longest first
  absl::flat_hash_map<int32_t, const AddedToken*> added_by_id_;
  Digest fingerprint_;
};

// What one Encode needs besides the tokenizer.
struct ByteLevelTokenizer::Work {
  PreTokenizer::Run pieces;
  Bpe::Scratch scratch;
  std::vector<int32_t> ids;
  // Pieces already seen in this text, and where their ids lie in `ids`.
  absl::flat_hash_map<absl::string_view, std::pair<uint32_t, uint32_t>> seen;
};

absl::Status ByteLevelTokenizer::FillTokens() {
  if (spec_.tokens.size() > static_cast<size_t>(kTokenizerSizeMax)) {
    return absl::InvalidArgumentError(absl::StrCat("a vocabulary of ", spec_.tokens.size(),
                                                   " is past the limit of ", kTokenizerSizeMax));
  }
  kinds_.assign(spec_.tokens.size(), Kind::kNone);
  starts_.reserve(spec_.tokens.size() + 1);
  for (size_t id = 0; id < spec_.tokens.size(); ++id) {
    starts_.push_back(static_cast<uint32_t>(bytes_.size()));
    const std::string& token = spec_.tokens[id];
    if (token.empty()) continue;
    kinds_[id] = Kind::kPlain;
    // A token outside the alphabet (an added one, as a rule) stands for its own text.
    const std::optional<std::string> mapped = BytesFromByteLevel(token);
    bytes_ += mapped.has_value() ? *mapped : token;
    if (bytes_.size() > kTokenizerJsonBytesMax) {
      return absl::InvalidArgumentError("the vocabulary's tokens are too long");
    }
    if (!mapped.has_value()) continue;
    if (mapped->size() == 1) {
      bpe_.SetByte(static_cast<uint8_t>(mapped->front()), static_cast<int32_t>(id));
    }
    if (spec_.ignore_merges) whole_[*mapped] = static_cast<int32_t>(id);
  }
  starts_.push_back(static_cast<uint32_t>(bytes_.size()));
  return absl::OkStatus();
}

absl::Status ByteLevelTokenizer::FillMerges() {
  absl::flat_hash_map<absl::string_view, int32_t> ids;
  ids.reserve(spec_.tokens.size());
  for (size_t id = 0; id < spec_.tokens.size(); ++id) {
    if (spec_.tokens[id].empty()) continue;
    if (!ids.emplace(spec_.tokens[id], static_cast<int32_t>(id)).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", id, " stands twice in the vocabulary"));
    }
  }
  std::string merged;
  for (size_t rank = 0; rank < spec_.merges.size(); ++rank) {
    const auto& [left, right] = spec_.merges[rank];
    merged = spec_.tokens[left] + spec_.tokens[right];
    const auto found = ids.find(merged);
    if (found == ids.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "merge ", rank, " makes \"", merged.substr(0, 80), "\", which is not in the vocabulary"));
    }
    bpe_.AddMerge(left, right, static_cast<int32_t>(rank), found->second);
  }
  return absl::OkStatus();
}

absl::Status ByteLevelTokenizer::FillAdded() {
  for (const AddedToken& token : spec_.added) {
    if (token.content.empty() || token.id < 0 || token.id >= size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("added token ", token.id, " is empty or outside the vocabulary"));
    }
    kinds_[token.id] = token.special ? Kind::kSpecial : Kind::kAdded;
    added_[static_cast<uint8_t>(token.content.front())].push_back(&token);
    added_by_id_[token.id] = &token;
  }
  for (auto& tokens : added_) {
    std::stable_sort(tokens.begin(), tokens.end(), [](const auto* a, const auto* b) {
      return a->content.size() > b->content.size();
    });
  }
  return absl::OkStatus();
}

void ByteLevelTokenizer::FillFingerprint() {
  Sha256 hash;
  hash.AddField("stillhouse tokenizer 1").AddU64(kinds_.size());
  for (int32_t id = 0; id < size(); ++id) hash.AddField(TokenBytes(id));
  hash.AddU64(spec_.added.size());
  for (const AddedToken& token : spec_.added) {
    hash.AddU64(token.id).AddField(token.content).AddU64(token.special ? 1 : 0);
  }
  hash.AddU64(spec_.steps.size());
  for (const SplitStep& step : spec_.steps) {
    hash.AddU64(static_cast<uint64_t>(step.kind)).AddField(step.pattern);
    hash.AddU64(step.individual_digits).AddU64(step.use_regex).AddU64(step.add_prefix_space);
    hash.AddU64(step.keep_matches).AddU64(step.keep_between);
  }
  fingerprint_ = hash.Finish();
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> ByteLevelTokenizer::Create(TokenizerSpec spec) {
  if (spec.steps.empty() || spec.steps.back().kind != SplitStep::Kind::kByteLevel) {
    return absl::UnimplementedError("only byte-level tokenizers are implemented");
  }
  const auto size = static_cast<int32_t>(std::min<size_t>(spec.tokens.size(), kTokenizerSizeMax));
  for (auto* id : {&spec.bos_id, &spec.eos_id, &spec.pad_id, &spec.unk_id}) {
    if (id->has_value() && (**id < 0 || **id >= size)) {
      return absl::InvalidArgumentError(
          absl::StrCat("special token id ", **id, " is outside the vocabulary of ", size));
    }
  }
  if (spec.adds_bos && !spec.bos_id.has_value()) {
    return absl::InvalidArgumentError(
        "a beginning-of-text token is to be added, but there is none");
  }
  for (const auto& [left, right] : spec.merges) SH_CHECK(left < size && right < size);
  std::sort(spec.added.begin(), spec.added.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  std::shared_ptr<ByteLevelTokenizer> made(new ByteLevelTokenizer(std::move(spec)));
  SH_ASSIGN_OR_RETURN(made->pretokenizer_, PreTokenizer::Create(made->spec_.steps));
  SH_RETURN_IF_ERROR(made->FillTokens());
  SH_RETURN_IF_ERROR(made->FillMerges());
  SH_RETURN_IF_ERROR(made->FillAdded());
  made->FillFingerprint();
  return std::shared_ptr<const Tokenizer>(std::move(made));
}

const AddedToken* ByteLevelTokenizer::AddedAt(absl::string_view text) const {
  for (const AddedToken* token : added_[static_cast<uint8_t>(text.front())]) {
    if (absl::StartsWith(text, token->content)) return token;
  }
  return nullptr;
}

absl::Status ByteLevelTokenizer::EncodePlain(absl::string_view text, Work& work) const {
  std::vector<int32_t>& ids = work.ids;
  return work.pieces.Split(text, [&](absl::string_view piece) {
    const auto start = static_cast<uint32_t>(ids.size());
    const auto [entry, is_new] = work.seen.try_emplace(piece, start, 0);
    if (!is_new) {
      const auto [from, count] = entry->second;
      for (uint32_t i = 0; i < count; ++i) ids.push_back(ids[from + i]);
      return;
    }
    const auto whole = spec_.ignore_merges ? whole_.find(piece) : whole_.end();
    if (whole != whole_.end()) {
      ids.push_back(whole->second);
    } else {
      bpe_.Encode(piece, work.scratch, ids);
    }
    entry->second.second = static_cast<uint32_t>(ids.size()) - start;
  });
}

absl::StatusOr<std::vector<int32_t>> ByteLevelTokenizer::Encode(absl::string_view text) const {
  if (text.size() > kTextBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a text of ", text.size(), " bytes is past the limit of ", kTextBytesMax));
  }
  const size_t invalid = FindInvalidUtf8(text);
  if (invalid != absl::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("the text is not UTF-8 at byte ", invalid));
  }
  Work work{PreTokenizer::Run(pretokenizer_), {}, {}, {}};
  size_t plain = 0;  // where the text since the last added token begins
  size_t at = 0;
  while (at < text.size()) {
    const AddedToken* token = AddedAt(text.substr(at));
    if (token == nullptr) {
      ++at;
      continue;
    }
    SH_RETURN_IF_ERROR(EncodePlain(text.substr(plain, at - plain), work));
    work.ids.push_back(token->id);
    at += token->content.size();
    plain = at;
  }
  SH_RETURN_IF_ERROR(EncodePlain(text.substr(plain), work));
  return std::move(work.ids);
}

absl::StatusOr<std::string> ByteLevelTokenizer::Decode(absl::Span<const int32_t> ids,
                                                       bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (id < 0 || id >= size() || kinds_[id] == Kind::kNone) {
      return absl::OutOfRangeError(
          absl::StrCat("token id ", id, " is not in the vocabulary of ", size()));
    }
    if (skip_special && kinds_[id] == Kind::kSpecial) continue;
    const absl::string_view token = PlainBytes(id);
    bytes.append(token.data(), token.size());
  }
  return CleanUtf8(bytes);
}

std::string ByteLevelTokenizer::TokenBytes(int32_t id) const {
  SH_CHECK(id >= 0 && id < size(), id);
  const auto added = added_by_id_.find(id);
  return added != added_by_id_.end() ? added->second->content : std::string(PlainBytes(id));
}

absl::Status ByteLevelTokenizer::WriteFiles(const std::string& folder) const {
  std::vector<std::pair<std::string, std::string>> files = spec_.files;
  const auto add = [&](const char* name, std::string (*write)(const TokenizerSpec&)) {
    for (const auto& [there, bytes] : files) {
      if (there == name) return;
    }
    files.emplace_back(name, write(spec_));
  };
  add("tokenizer.json", TokenizerJson);
  add("tokenizer_config.json", TokenizerConfigJson);
  add("special_tokens_map.json", SpecialTokensMapJson);
  for (const auto& [name, bytes] : files) {
    SH_RETURN_IF_ERROR(WriteFileAtomically(JoinPath(folder, name), bytes));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> MakeTokenizer(TokenizerSpec spec) {
  return ByteLevelTokenizer::Create(std::move(spec));
}

}  // namespace stillhouse
