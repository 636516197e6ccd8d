// Tokenizer: text to token ids and back, exactly as the Python `tokenizers` package does it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "common/digest.h"

namespace stillhouse {

// Bytes of the text that was given to the tokenizer.
struct TextRange {
  uint32_t begin = 0;
  uint32_t end = 0;
  friend bool operator==(const TextRange&, const TextRange&) = default;
};

struct Encoding {
  std::vector<int32_t> ids;
  // What each id came from; whole characters. Neighbours overlap where a character takes several
  // ids.
  std::vector<TextRange> offsets;
};

struct TokenizerSpec;

// Immutable once made, and thread-safe.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of `text`; added tokens that stand in the text are recognised, no special token is added.
  // InvalidArgument if `text` is not UTF-8; ResourceExhausted if a pattern takes too long on it.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text) const = 0;
  // The same ids, and where they came from.
  virtual absl::StatusOr<Encoding> EncodeWithOffsets(absl::string_view text) const = 0;
  // What the tokenizer's post-processor puts before and after the ids of one text.
  virtual absl::Span<const int32_t> prefix() const = 0;
  virtual absl::Span<const int32_t> suffix() const = 0;
  // The text of `ids`, special tokens left out if asked. OutOfRange, naming it, for an unknown id.
  virtual absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids,
                                             bool skip_special) const = 0;
  // The bytes that id stands for. REQUIRES: 0 <= id < size().
  virtual std::string TokenBytes(int32_t id) const = 0;
  virtual int32_t size() const = 0;  // ids are 0..size()-1; ids at or above it are padding
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;
  virtual bool adds_bos() const = 0;  // whether the model expects bos_id before a document

  // SHA-256 over all that decides the ids of a text: the id-to-bytes map, the added tokens, the
  // normalizer, the pre-tokenizer and the merges; padding ids left out.
  virtual const Digest& Fingerprint() const = 0;
  // What it was made from, for writing it in another form; null where it was not.
  virtual const TokenizerSpec* spec() const { return nullptr; }
  // Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json; files that came with
  // a Hugging Face folder are copied verbatim.
  virtual absl::Status WriteFiles(const std::string& folder) const = 0;
};

// Text of ids that come one by one, in the chunks that DecodeStream of `tokenizers` gives: a chunk
// ends where no later id can change it, so that a character whose bytes lie in several ids comes
// with the last of them, never in halves. One thread's.
class StreamDecoder {
 public:
  // `tokenizer` must outlive *this.
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
      : tokenizer_(tokenizer), skip_special_(skip_special) {}

  // Goes on after `ids`, whose text was given out otherwise. To be called before the first Add.
  absl::Status Begin(absl::Span<const int32_t> ids);
  // The next chunk; "" while it is not complete. OutOfRange, as Decode. FailedPrecondition if the
  // id changes text that was given out already (byte tokens that spell no character).
  absl::StatusOr<std::string> Add(int32_t id);
  // What is left when no further id comes. FailedPrecondition, as Add.
  absl::StatusOr<std::string> Finish();
  // After FailedPrecondition: the text of the ids since the last chunk by themselves, broken bytes
  // as U+FFFD. What was given out stays, and Add goes on.
  absl::StatusOr<std::string> GiveUp();

 private:
  const Tokenizer& tokenizer_;
  const bool skip_special_;
  std::vector<int32_t> ids_;  // of the last chunk, and those after it
  std::string given_;         // the text of the last chunk's ids
  size_t given_ids_ = 0;
};

}  // namespace stillhouse
