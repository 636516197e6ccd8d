// TokenDecoder: the texts of tokens put together to text.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "formats/regex.h"
#include "formats/tokenizer_spec.h"

namespace stillhouse {

// Immutable and thread-safe.
class TokenDecoder {
 public:
  static absl::StatusOr<TokenDecoder> Create(const std::vector<DecoderStep>& steps);

  // Whether all it does is to put byte-level texts one after another.
  bool only_bytes() const;
  absl::StatusOr<std::string> Decode(std::vector<std::string> tokens) const;
  // The bytes of one token, as it stands among others.
  std::string Bytes(absl::string_view token) const;

 private:
  absl::StatusOr<std::string> Replace(size_t step, absl::string_view token) const;
  absl::Status Apply(size_t step, std::vector<std::string>& tokens) const;

  std::vector<DecoderStep> steps_;
  std::vector<std::shared_ptr<const Regex>> patterns_;  // one per step; null: no pattern
};

// The byte of a token <0x41>; nullopt for any other.
std::optional<uint8_t> FallbackByte(absl::string_view token);

}  // namespace stillhouse
