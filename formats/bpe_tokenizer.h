// The one Tokenizer there is: BPE run from a TokenizerSpec.
//
// Text goes: added tokens, normalizer, added tokens again (those that stand in normalised text),
// pre-tokenizer, BPE. Where each byte of a piece is a token of the vocabulary, and nothing but the
// last step of the pre-tokenizer changes text (the byte-level tokenizers), pieces are the text's
// own bytes, and their ids are remembered.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/mutex.h"
#include "formats/added_tokens.h"
#include "formats/bpe.h"
#include "formats/pretokenizer.h"
#include "formats/text_normalizer.h"
#include "formats/token_decoder.h"
#include "formats/tokenizer_spec.h"

namespace stillhouse {

// Thread-safe. Calls of Encode share nothing but a list of idle working memory.
class BpeTokenizer final : public Tokenizer {
 public:
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> Create(TokenizerSpec spec);
  ~BpeTokenizer() override;

  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text) const override;
  absl::StatusOr<Encoding> EncodeWithOffsets(absl::string_view text) const override;
  absl::Span<const int32_t> prefix() const override { return spec_.prefix; }
  absl::Span<const int32_t> suffix() const override { return spec_.suffix; }
  absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids,
                                     bool skip_special) const override;
  std::string TokenBytes(int32_t id) const override;
  int32_t size() const override { return static_cast<int32_t>(spec_.tokens.size()); }
  std::optional<int32_t> bos_id() const override { return spec_.bos_id; }
  std::optional<int32_t> eos_id() const override { return spec_.eos_id; }
  bool adds_bos() const override { return spec_.adds_bos; }
  const Digest& Fingerprint() const override { return fingerprint_; }
  const TokenizerSpec* spec() const override { return &spec_; }
  absl::Status WriteFiles(const std::string& folder) const override;

 private:
  struct Work;
  struct Token;
  using AddedSink = absl::FunctionRef<void(const AddedToken&, const TextView&)>;
  using PieceSink = absl::FunctionRef<void(const TextView&)>;

  explicit BpeTokenizer(TokenizerSpec spec);
  absl::Status FillVocabulary();
  absl::Status FillMerges();
  absl::Status FillAdded();
  absl::Status FillDecoder();
  void FillBytes();
  void FillSafeCut();

  std::unique_ptr<Work> Borrow() const;
  void Return(std::unique_ptr<Work> work, size_t text_bytes) const;
  absl::Status Run(absl::string_view text, bool offsets, Work& work, AddedSink added,
                   PieceSink piece) const;
  absl::Status RunPart(const TextView& text, bool raw, Work& work, AddedSink added,
                       PieceSink piece) const;
  void EncodePiece(absl::string_view piece, Work& work) const;
  void EncodeNewPiece(absl::string_view piece, Work& work) const;
  void AddCharacters(absl::string_view piece, Bpe::Word& word) const;
  bool AddFallback(absl::string_view character, Bpe::Word& word) const;
  // The id of a token of the model, -1 if there is none.
  int32_t Find(absl::string_view token) const;
  void Trim(absl::string_view text, bool prefix_space, std::vector<Token>& tokens) const;

  // Constant after Create.
  TokenizerSpec spec_;
  TextNormalizer normalizer_;
  PreTokenizer pretokenizer_;
  Bpe bpe_;
  AddedTokens plain_added_;       // looked for in the text as it came
  AddedTokens normalized_added_;  // … and in the normalised text
  absl::flat_hash_map<absl::string_view, int32_t> vocabulary_;
  std::array<int32_t, 256> byte_tokens_;      // <0x41>; -1 for none
  std::array<int32_t, 256> byte_characters_;  // of the alphabet; -1 for none
  bool raw_ = false;                          // pieces are bytes: see above
  std::string safe_cut_;  // no token reaches over the start of a run of it; "" if that is not so
  bool places_needed_ = false;  // for the ids too
  TokenDecoder decoder_;
  std::vector<std::string> texts_;  // by id, what the decoder is given; its result, if only bytes
  std::vector<bool> special_;       // by id: left out if asked
  Digest fingerprint_;

  mutable Mutex mutex_;
  mutable std::vector<std::unique_ptr<Work>> idle_ ABSL_GUARDED_BY(mutex_);
};

// Of what decides the ids of a text.
Digest TokenizerFingerprint(const TokenizerSpec& spec, const Tokenizer& tokenizer, const Bpe& bpe);

}  // namespace stillhouse
