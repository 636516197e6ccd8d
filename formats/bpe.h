// Bpe: byte pair encoding of one piece of text (Sennrich et al. 2016).
//
// It repeats what the Python `tokenizers` package does step by step: the pair of lowest rank first,
// the leftmost of equals, through a queue whose stale entries are told by the token they would
// make. On some vocabularies a cleaner algorithm gives other ids.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace stillhouse {

// Immutable once filled, and thread-safe then.
class Bpe {
 public:
  // A later merge of the same pair replaces an earlier one.
  void AddMerge(int32_t left, int32_t right, int32_t rank, int32_t result) {
    merges_[Key(left, right)] = {rank, result};
  }

  // A piece as tokens: of its characters at first, and then of what they merge to. One thread's.
  class Word {
   public:
    struct Symbol {
      int32_t id;
      int32_t bytes;  // of the piece
      int32_t previous = -1;
      int32_t next = -1;
      bool merged = false;  // into the symbol before
    };
    void Clear() { symbols_.clear(); }
    // REQUIRES: the bytes of a word are fewer than 2^31.
    void Add(int32_t id, int32_t bytes);
    // Those that are `merged` no longer count.
    const std::vector<Symbol>& symbols() const { return symbols_; }

   private:
    friend class Bpe;
    struct Candidate {
      int32_t rank;
      int32_t position;
      int32_t result;
    };
    std::vector<Symbol> symbols_;
    std::vector<Candidate> heap_;
  };

  // Merges what can be merged, by merges of ranks below `rank_end`.
  void Merge(Word& word, int32_t rank_end = std::numeric_limits<int32_t>::max()) const;

 private:
  struct Result {
    int32_t rank;
    int32_t id;
  };
  static uint64_t Key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  void Consider(Word& word, int32_t position, int32_t rank_end) const;

  absl::flat_hash_map<uint64_t, Result> merges_;
};

}  // namespace stillhouse
