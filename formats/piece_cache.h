// PieceCache: the ids of pieces of text that were encoded before.
//
// Text repeats itself: most pieces of a corpus are words seen a moment ago. Short pieces are told
// by their bytes, held in the table itself. One thread's.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace stillhouse {

class PieceCache {
 public:
  static constexpr size_t kShortMax = 15;           // bytes of a piece
  static constexpr size_t kLongMax = 256;           // longer ones do not come twice
  static constexpr size_t kSlots = 1 << 16;         // 1.5 MB
  static constexpr size_t kPiecesMax = kSlots / 2;  // of either length; then all are forgotten
  static constexpr size_t kIdsMax = 1 << 20;

  // Appends the ids of `piece` to `out`; false if they are not known.
  bool Find(absl::string_view piece, std::vector<int32_t>& out) const {
    if (piece.size() > kShortMax) {
      const auto found = long_.find(piece);
      if (found == long_.end()) return false;
      Append(found->second, out);
      return true;
    }
    const Key key = KeyOf(piece);
    if (slots_.empty()) return false;
    for (size_t at = Home(key);; at = (at + 1) % kSlots) {
      const Slot& slot = slots_[at];
      if (slot.place.count == 0) return false;
      if (slot.key.low == key.low && slot.key.high == key.high) {
        Append(slot.place, out);
        return true;
      }
    }
  }

  // REQUIRES: Find(piece) is false. Pieces without ids are not kept.
  void Put(absl::string_view piece, absl::Span<const int32_t> ids) {
    if (piece.size() > kLongMax || ids.empty()) return;
    if (used_ >= kPiecesMax || long_.size() >= kPiecesMax || ids_.size() >= kIdsMax) Clear();
    const Place place = {static_cast<uint32_t>(ids_.size()), static_cast<uint32_t>(ids.size())};
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    if (piece.size() > kShortMax) {
      long_.emplace(piece, place);
      return;
    }
    if (slots_.empty()) slots_.resize(kSlots);
    const Key key = KeyOf(piece);
    size_t at = Home(key);
    while (slots_[at].place.count != 0) at = (at + 1) % kSlots;
    slots_[at] = {key, place};
    ++used_;
  }

 private:
  struct Key {
    uint64_t low = 0;
    uint64_t high = 0;  // its last byte is the piece's size
  };
  struct Place {
    uint32_t first = 0;
    uint32_t count = 0;  // 0: the slot is free
  };
  struct Slot {
    Key key;
    Place place;
  };

  static Key KeyOf(absl::string_view piece) {
    Key key;
    char bytes[16] = {};
    std::memcpy(bytes, piece.data(), piece.size());
    bytes[15] = static_cast<char>(piece.size());
    std::memcpy(&key.low, bytes, 8);
    std::memcpy(&key.high, bytes + 8, 8);
    return key;
  }
  static size_t Home(const Key& key) {
    const uint64_t mixed = (key.low ^ (key.high >> 32 | key.high << 32)) * 0x9e3779b97f4a7c15ull;
    return (mixed ^ mixed >> 29) * 0xbf58476d1ce4e5b9ull >> 48;
  }
  void Append(const Place& place, std::vector<int32_t>& out) const {
    const int32_t* ids = ids_.data() + place.first;
    if (place.count == 1) {
      out.push_back(*ids);
    } else {
      out.insert(out.end(), ids, ids + place.count);
    }
  }
  void Clear() {
    slots_.assign(slots_.size(), Slot());
    long_.clear();
    ids_.clear();
    used_ = 0;
  }

  std::vector<Slot> slots_;
  size_t used_ = 0;
  absl::flat_hash_map<std::string, Place> long_;
  std::vector<int32_t> ids_;
};

}  // namespace stillhouse
