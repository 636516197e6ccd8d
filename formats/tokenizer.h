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

// Immutable once made, and thread-safe.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of `text`; added tokens that stand in the text are recognised, no special token is added.
  // InvalidArgument if `text` is not UTF-8.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text) const = 0;
  // The text of `ids`, special tokens left out if asked. OutOfRange, naming it, for an unknown id.
  virtual absl::StatusOr<std::string> Decode(absl::Span<const int32_t> ids,
                                             bool skip_special) const = 0;
  // The bytes that id stands for. REQUIRES: 0 <= id < size().
  virtual std::string TokenBytes(int32_t id) const = 0;
  virtual int32_t size() const = 0;  // ids are 0..size()-1; ids at or above it are padding
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;
  virtual bool adds_bos() const = 0;  // whether the model expects bos_id before a document

  // SHA-256 over the id-to-bytes map, the added tokens and the pre-tokenizer; padding ids left out.
  virtual const Digest& Fingerprint() const = 0;
  // Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json; files that came with
  // a Hugging Face folder are copied verbatim.
  virtual absl::Status WriteFiles(const std::string& folder) const = 0;
};

}  // namespace stillhouse
