#include "formats/piece_merges.h"

#include <algorithm>
#include <cmath>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/status.h"

namespace stillhouse {

absl::StatusOr<std::vector<std::pair<int32_t, int32_t>>> PieceMerges(
    const std::vector<std::string>& pieces, const std::vector<double>& scores,
    const std::vector<bool>& mergeable) {
  SH_CHECK(scores.size() == pieces.size() && mergeable.size() == pieces.size());
  absl::flat_hash_map<absl::string_view, int32_t> ids;
  std::vector<int32_t> order;
  for (size_t id = 0; id < pieces.size(); ++id) {
    if (pieces[id].size() > kPieceBytesMax || std::isnan(scores[id])) {
      return absl::InvalidArgumentError(
          absl::StrCat("token ", id, " has ", pieces[id].size(), " bytes and the score ",
                       scores[id], "; at most ", kPieceBytesMax, " bytes and a number are taken"));
    }
    ids.emplace(pieces[id], static_cast<int32_t>(id));
    if (mergeable[id]) order.push_back(static_cast<int32_t>(id));
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
  std::vector<std::pair<int32_t, int32_t>> merges;
  for (const int32_t id : order) {
    const absl::string_view whole = pieces[id];
    const auto first = static_cast<std::ptrdiff_t>(merges.size());
    for (size_t at = 1; at < whole.size(); ++at) {
      if ((static_cast<uint8_t>(whole[at]) & 0xc0) == 0x80) continue;  // within a character
      const auto left = ids.find(whole.substr(0, at));
      const auto right = ids.find(whole.substr(at));
      if (left != ids.end() && right != ids.end()) {
        merges.emplace_back(left->second, right->second);
      }
    }
    std::stable_sort(merges.begin() + first, merges.end(), [&](const auto& a, const auto& b) {
      return std::pair(scores[a.first], scores[a.second]) >
             std::pair(scores[b.first], scores[b.second]);
    });
  }
  return merges;
}

}  // namespace stillhouse
