#include "formats/bpe.h"

#include <algorithm>

namespace stillhouse {
namespace {

// For std::push_heap, which keeps the greatest in front: lowest rank first, then leftmost.
struct Later {
  template <typename Candidate>
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  }
};

}  // namespace

void Bpe::Word::Add(int32_t id, int32_t bytes) {
  const auto position = static_cast<int32_t>(symbols_.size());
  if (position > 0) symbols_.back().next = position;
  symbols_.push_back({id, bytes, position - 1});
}

// Queues the merge of the symbol at `position` with its successor, if there is one.
void Bpe::Consider(Word& word, int32_t position, int32_t rank_end) const {
  const Word::Symbol& symbol = word.symbols_[position];
  if (symbol.next < 0) return;
  const auto found = merges_.find(Key(symbol.id, word.symbols_[symbol.next].id));
  if (found == merges_.end() || found->second.rank >= rank_end) return;
  word.heap_.push_back({found->second.rank, position, found->second.id});
  std::push_heap(word.heap_.begin(), word.heap_.end(), Later());
}

void Bpe::Merge(Word& word, int32_t rank_end) const {
  auto& symbols = word.symbols_;
  word.heap_.clear();
  const auto count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i + 1 < count; ++i) Consider(word, i, rank_end);
  // Each merge removes a symbol and queues at most two candidates, so this ends.
  while (!word.heap_.empty()) {
    std::pop_heap(word.heap_.begin(), word.heap_.end(), Later());
    const Word::Candidate top = word.heap_.back();
    word.heap_.pop_back();
    Word::Symbol& symbol = symbols[top.position];
    if (symbol.merged || symbol.next < 0) continue;
    Word::Symbol& next = symbols[symbol.next];
    const auto now = merges_.find(Key(symbol.id, next.id));
    if (now == merges_.end() || now->second.id != top.result) continue;  // stale
    next.merged = true;
    symbol.id = top.result;
    symbol.bytes += next.bytes;
    symbol.next = next.next;
    if (symbol.next >= 0) symbols[symbol.next].previous = top.position;
    if (symbol.previous >= 0) Consider(word, symbol.previous, rank_end);
    Consider(word, top.position, rank_end);
  }
}

}  // namespace stillhouse
