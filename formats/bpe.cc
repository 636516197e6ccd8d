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

// Queues the merge of the symbol at `position` with its successor, if there is one.
void Bpe::Consider(Scratch& scratch, int32_t position) const {
  const Scratch::Symbol& symbol = scratch.symbols_[position];
  if (symbol.next < 0) return;
  const auto found = merges_.find(Key(symbol.id, scratch.symbols_[symbol.next].id));
  if (found == merges_.end()) return;
  scratch.heap_.push_back({found->second.rank, position, found->second.result});
  std::push_heap(scratch.heap_.begin(), scratch.heap_.end(), Later());
}

void Bpe::Encode(absl::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const {
  auto& symbols = scratch.symbols_;
  symbols.clear();
  scratch.heap_.clear();
  for (const char c : piece) {
    const int32_t id = bytes_[static_cast<uint8_t>(c)];
    if (id == kNoToken) continue;
    const auto position = static_cast<int32_t>(symbols.size());
    if (position > 0) symbols.back().next = position;
    symbols.push_back({id, position - 1, -1});
  }
  const auto count = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i + 1 < count; ++i) Consider(scratch, i);
  // Each merge removes a symbol and queues at most two candidates, so this ends.
  while (!scratch.heap_.empty()) {
    std::pop_heap(scratch.heap_.begin(), scratch.heap_.end(), Later());
    const Scratch::Candidate top = scratch.heap_.back();
    scratch.heap_.pop_back();
    Scratch::Symbol& symbol = symbols[top.position];
    if (symbol.merged || symbol.next < 0) continue;
    const Scratch::Symbol& next = symbols[symbol.next];
    const auto now = merges_.find(Key(symbol.id, next.id));
    if (now == merges_.end() || now->second.result != top.result) continue;  // stale
    symbols[symbol.next].merged = true;
    symbol.id = top.result;
    symbol.next = next.next;
    if (symbol.next >= 0) symbols[symbol.next].previous = top.position;
    if (symbol.previous >= 0) Consider(scratch, symbol.previous);
    Consider(scratch, top.position);
  }
  for (const Scratch::Symbol& symbol : symbols) {
    if (!symbol.merged) out.push_back(symbol.id);
  }
}

}  // namespace stillhouse
