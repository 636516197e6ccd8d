// AddedTokens: finds a tokenizer's added tokens in text.
//
// At each place the longest token that begins there counts; the search goes on where the token
// itself ends, also when it took in white space after it, or was passed over because it is no word
// of its own. (So does the Python `tokenizers` package.)
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "formats/tokenizer_spec.h"

namespace stillhouse {

// Immutable once filled, and thread-safe then.
class AddedTokens {
 public:
  // `pattern` is what to look for; `token` must outlive *this. InvalidArgument if it is empty or
  // another token's.
  absl::Status Add(const AddedToken& token, absl::string_view pattern);

  // Calls `part` for what `text` consists of, left to right: the token found and its place, or null
  // and the place of the text between two.
  absl::Status Split(
      absl::string_view text,
      absl::FunctionRef<absl::Status(const AddedToken*, size_t begin, size_t end)> part) const;

 private:
  struct Node {
    const AddedToken* token = nullptr;  // which ends here
  };
  static uint64_t Edge(uint32_t node, char byte) {
    return static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(byte);
  }
  // The longest token at `at`, or null; `size` is its pattern's.
  const AddedToken* Longest(absl::string_view text, size_t at, size_t* size) const;

  std::array<bool, 256> begins_{};  // whether a token begins with the byte
  std::vector<Node> nodes_;         // of a trie; 0 is its root
  absl::flat_hash_map<uint64_t, uint32_t> edges_;
};

}  // namespace stillhouse
