// Bpe: byte pair encoding of one piece of text (Sennrich et al. 2016, on bytes as in GPT-2).
//
// It repeats what the Python `tokenizers` package does step by step: the pair of lowest rank first,
// the leftmost of equals, through a queue whose stale entries are told by the token they would
// make. On some vocabularies a cleaner algorithm gives other ids.
#pragma once

#include <array>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace stillhouse {

// Immutable once filled, and thread-safe then.
class Bpe {
 public:
  static constexpr int32_t kNoToken = -1;

  // The token of one byte; bytes that have none vanish from the text, as in `tokenizers`.
  void SetByte(uint8_t byte, int32_t id) { bytes_[byte] = id; }
  // A later merge of the same pair replaces an earlier one.
  void AddMerge(int32_t left, int32_t right, int32_t rank, int32_t result) {
    merges_[Key(left, right)] = {rank, result};
  }
  Bpe() { bytes_.fill(kNoToken); }

  // Working memory of one thread.
  class Scratch {
    friend class Bpe;
    struct Symbol {
      int32_t id;
      int32_t previous;  // -1: none
      int32_t next;
      bool merged = false;  // into the symbol before
    };
    struct Candidate {
      int32_t rank;
      int32_t position;
      int32_t result;
    };
    std::vector<Symbol> symbols_;
    std::vector<Candidate> heap_;
  };

  // Appends the ids of `piece`. REQUIRES: fewer than 2^31 bytes.
  void Encode(absl::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  struct Merge {
    int32_t rank;
    int32_t result;
  };
  static uint64_t Key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  void Consider(Scratch& scratch, int32_t position) const;

  std::array<int32_t, 256> bytes_;
  absl::flat_hash_map<uint64_t, Merge> merges_;
};

}  // namespace stillhouse
