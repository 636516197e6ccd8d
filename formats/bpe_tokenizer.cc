#include "formats/bpe_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/piece_cache.h"
#include "formats/utf8.h"

namespace stillhouse {
namespace {

constexpr size_t kTextBytesMax = 1ull << 30;       // offsets within a text are 32 bits
constexpr size_t kTrackedBytesMax = 128ull << 20;  // where each byte's origin is kept: 8 more each
constexpr size_t kKeptBytesMax = 4ull << 20;       // of a text whose working memory is used again

}  // namespace

// What one Encode needs besides the tokenizer.
struct BpeTokenizer::Work {
  explicit Work(const BpeTokenizer& owner)
      : normalizer(owner.normalizer_), pieces(owner.pretokenizer_) {}

  TextNormalizer::Run normalizer;
  PreTokenizer::Run pieces;
  Bpe::Word word;
  PieceCache cache;
  std::vector<int32_t> ids;
};

struct BpeTokenizer::Token {
  int32_t id;
  TextRange place;
  size_t leading;  // characters of it that are spaces
  size_t trailing;
};

BpeTokenizer::BpeTokenizer(TokenizerSpec spec)
    : spec_(std::move(spec)),
      normalizer_(*TextNormalizer::Create({})),
      decoder_(*TokenDecoder::Create({})) {}

BpeTokenizer::~BpeTokenizer() = default;

std::unique_ptr<BpeTokenizer::Work> BpeTokenizer::Borrow() const {
  {
    const MutexLock lock(mutex_);
    if (!idle_.empty()) {
      std::unique_ptr<Work> work = std::move(idle_.back());
      idle_.pop_back();
      return work;
    }
  }
  return std::make_unique<Work>(*this);
}

// There come to be as many as there were calls at one time.
void BpeTokenizer::Return(std::unique_ptr<Work> work, size_t text_bytes) const {
  if (text_bytes > kKeptBytesMax) return;
  const MutexLock lock(mutex_);
  idle_.push_back(std::move(work));
}

int32_t BpeTokenizer::Find(absl::string_view token) const {
  const auto found = vocabulary_.find(token);
  return found == vocabulary_.end() ? -1 : found->second;
}

absl::Status BpeTokenizer::RunPart(const TextView& text, bool raw, Work& work, AddedSink added,
                                   PieceSink piece) const {
  SH_ASSIGN_OR_RETURN(const TextView normal, work.normalizer.Normalize(text));
  return normalized_added_.Split(
      normal.text, [&](const AddedToken* token, size_t begin, size_t end) -> absl::Status {
        const TextView part = normal.Sub(begin, end);
        if (token == nullptr) return work.pieces.Split(part, raw, piece);
        added(*token, part);
        return absl::OkStatus();
      });
}

absl::Status BpeTokenizer::Run(absl::string_view text, bool offsets, Work& work, AddedSink added,
                               PieceSink piece) const {
  const bool tracks = offsets || places_needed_;
  const size_t bytes_max = tracks ? kTrackedBytesMax : kTextBytesMax;
  if (text.size() > bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("a text of ", text.size(), " bytes is past the limit of ", bytes_max));
  }
  const size_t invalid = FindInvalidUtf8(text);
  if (invalid != absl::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat("the text is not UTF-8 at byte ", invalid));
  }
  AlignedText tracked;
  TextView whole = {text, nullptr};
  if (tracks) {
    tracked.Track(text);
    whole = tracked.view();
  }
  work.normalizer.NewText();
  work.pieces.NewText();
  // Offsets count the characters of the byte-level alphabet, so that it has to be spelled out.
  const bool raw = raw_ && !offsets;
  return plain_added_.Split(text,
                            [&](const AddedToken* token, size_t begin, size_t end) -> absl::Status {
                              const TextView part = whole.Sub(begin, end);
                              if (token == nullptr) return RunPart(part, raw, work, added, piece);
                              added(*token, part);
                              return absl::OkStatus();
                            });
}

// The byte tokens of a character, if all of them are there.
bool BpeTokenizer::AddFallback(absl::string_view character, Bpe::Word& word) const {
  if (!spec_.byte_fallback) return false;
  for (const char byte : character) {
    if (byte_tokens_[static_cast<uint8_t>(byte)] < 0) return false;
  }
  for (const char byte : character) word.Add(byte_tokens_[static_cast<uint8_t>(byte)], 1);
  return true;
}

// A run of unknown characters is added when a known one follows it, and so after any byte tokens
// that stand between: `tokenizers` does it in this order.
void BpeTokenizer::AddCharacters(absl::string_view piece, Bpe::Word& word) const {
  int32_t unknown_bytes = 0;
  const auto add_unknown = [&] {
    if (unknown_bytes > 0) word.Add(*spec_.unknown, unknown_bytes);
    unknown_bytes = 0;
  };
  while (!piece.empty()) {
    const auto size = static_cast<size_t>(Utf8Length(piece.substr(0, 4)));
    const absl::string_view character = piece.substr(0, size);
    piece.remove_prefix(size);
    const int32_t id = Find(character);
    if (id >= 0) {
      add_unknown();
      word.Add(id, static_cast<int32_t>(size));
    } else if (!AddFallback(character, word) && spec_.unknown.has_value()) {
      if (!spec_.fuse_unknown) add_unknown();
      unknown_bytes += static_cast<int32_t>(size);
    }
  }
  add_unknown();
}

void BpeTokenizer::EncodeNewPiece(absl::string_view piece, Work& work) const {
  if (spec_.ignore_merges) {
    const int32_t whole = Find(raw_ ? ByteLevelFromBytes(piece) : piece);
    if (whole >= 0) return work.ids.push_back(whole);
  }
  work.word.Clear();
  if (raw_) {
    for (const char byte : piece) {
      const int32_t id = byte_characters_[static_cast<uint8_t>(byte)];
      if (id >= 0) work.word.Add(id, 1);
    }
  } else {
    AddCharacters(piece, work.word);
  }
  bpe_.Merge(work.word);
  for (const auto& symbol : work.word.symbols()) {
    if (!symbol.merged) work.ids.push_back(symbol.id);
  }
}

void BpeTokenizer::EncodePiece(absl::string_view piece, Work& work) const {
  if (work.cache.Find(piece, work.ids)) return;
  const size_t before = work.ids.size();
  EncodeNewPiece(piece, work);
  work.cache.Put(piece, absl::MakeSpan(work.ids).subspan(before));
}

absl::StatusOr<std::vector<int32_t>> BpeTokenizer::Encode(absl::string_view text) const {
  std::unique_ptr<Work> work = Borrow();
  work->ids.clear();
  work->ids.reserve(text.size() / 3);
  const auto encode = [&](const TextView& piece) {
    absl::string_view rest = piece.text;
    // Where no token can reach over the start of a run of some character, both sides are apart.
    while (!safe_cut_.empty()) {
      size_t at = 0;
      while (absl::StartsWith(rest.substr(at), safe_cut_)) at += safe_cut_.size();
      at = rest.find(safe_cut_, at);
      if (at == absl::string_view::npos) break;
      EncodePiece(rest.substr(0, at), *work);
      rest.remove_prefix(at);
    }
    EncodePiece(rest, *work);
  };
  const absl::Status status = Run(
      text, /*offsets=*/false, *work,
      [&](const AddedToken& token, const TextView&) { work->ids.push_back(token.id); }, encode);
  std::vector<int32_t> ids(work->ids.begin(), work->ids.end());
  Return(std::move(work), text.size());
  SH_RETURN_IF_ERROR(status);
  return ids;
}

namespace {

bool IsTrimmed(absl::string_view character) {
  return character == ByteLevelCharacter(' ') || IsSpaceCharacter(Utf8CodePoint(character));
}

size_t LeadingSpaces(absl::string_view token) {
  size_t count = 0;
  while (!token.empty()) {
    const auto size = static_cast<size_t>(Utf8Length(token.substr(0, 4)));
    if (!IsTrimmed(token.substr(0, size))) break;
    token.remove_prefix(size);
    ++count;
  }
  return count;
}

size_t TrailingSpaces(absl::string_view token) {
  size_t count = 0;
  while (!token.empty()) {
    const size_t last = Utf8CharacterBefore(token, token.size());
    if (!IsTrimmed(token.substr(last))) break;
    token = token.substr(0, last);
    ++count;
  }
  return count;
}

}  // namespace

// Takes the spaces that a token begins or ends with out of its place, in characters of the text.
void BpeTokenizer::Trim(absl::string_view text, bool prefix_space,
                        std::vector<Token>& tokens) const {
  for (size_t i = 0; i < tokens.size(); ++i) {
    TextRange& place = tokens[i].place;
    // One space before the text is the tokenizer's own.
    const bool own = (i == 0 || place.begin == 0) && prefix_space && tokens[i].leading == 1;
    for (size_t n = own ? 0 : tokens[i].leading; n > 0 && place.begin < place.end; --n) {
      place.begin += static_cast<uint32_t>(Utf8Length(text.substr(place.begin, 4)));
    }
    place.begin = std::min(place.begin, place.end);
    uint32_t end = place.end;
    size_t n = tokens[i].trailing;
    for (; n > 0 && end > 0; --n) end = static_cast<uint32_t>(Utf8CharacterBefore(text, end));
    if (n == 0) place.end = std::max(end, place.begin);
  }
}

absl::StatusOr<Encoding> BpeTokenizer::EncodeWithOffsets(absl::string_view text) const {
  std::unique_ptr<Work> work = Borrow();
  std::vector<Token> tokens;
  const auto add = [&](int32_t id, absl::string_view token, TextRange place) {
    tokens.push_back({id, place, LeadingSpaces(token), TrailingSpaces(token)});
  };
  const auto encode = [&](const TextView& piece) {
    const int32_t whole = spec_.ignore_merges ? Find(piece.text) : -1;
    if (whole >= 0) return add(whole, piece.text, piece.Source(0, piece.text.size()));
    work->word.Clear();
    AddCharacters(piece.text, work->word);
    bpe_.Merge(work->word);
    size_t at = 0;
    for (const auto& symbol : work->word.symbols()) {
      if (symbol.merged) continue;
      const size_t end = at + static_cast<size_t>(symbol.bytes);
      add(symbol.id, spec_.tokens[symbol.id], piece.Source(at, end));
      at = end;
    }
  };
  const absl::Status status = Run(
      text, /*offsets=*/true, *work,
      [&](const AddedToken& token, const TextView& part) {
        add(token.id, part.text, part.Source(0, part.text.size()));
      },
      encode);
  Return(std::move(work), text.size());
  SH_RETURN_IF_ERROR(status);
  for (const bool prefix_space : spec_.trims) Trim(text, prefix_space, tokens);
  Encoding encoding;
  for (const Token& token : tokens) {
    encoding.ids.push_back(token.id);
    encoding.offsets.push_back(token.place);
  }
  return encoding;
}

absl::StatusOr<std::string> BpeTokenizer::Decode(absl::Span<const int32_t> ids,
                                                 bool skip_special) const {
  const bool only_bytes = decoder_.only_bytes();
  std::string bytes;
  std::vector<std::string> tokens;
  for (const int32_t id : ids) {
    if (id < 0 || id >= size() || spec_.tokens[id].empty()) {
      return absl::OutOfRangeError(
          absl::StrCat("token id ", id, " is not in the vocabulary of ", size()));
    }
    if (skip_special && special_[id]) continue;
    if (only_bytes) {
      bytes += texts_[id];
    } else {
      tokens.push_back(texts_[id]);
    }
  }
  return only_bytes ? CleanUtf8(bytes) : decoder_.Decode(std::move(tokens));
}

std::string BpeTokenizer::TokenBytes(int32_t id) const {
  SH_CHECK(id >= 0 && id < size(), id);
  const auto added =
      std::lower_bound(spec_.added.begin(), spec_.added.end(), id,
                       [](const AddedToken& token, int32_t wanted) { return token.id < wanted; });
  if (added != spec_.added.end() && added->id == id) return added->content;
  return decoder_.Bytes(spec_.tokens[id]);
}

absl::Status BpeTokenizer::WriteFiles(const std::string& folder) const {
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

}  // namespace stillhouse
