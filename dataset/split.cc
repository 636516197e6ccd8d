#include "dataset/split.h"

#include <algorithm>

#include "common/status.h"

namespace stillhouse {
namespace {

Piece MakePiece(absl::Span<const int32_t> tokens, absl::Span<const uint8_t> mask,
                std::optional<int32_t> prefix) {
  Piece piece;
  if (prefix.has_value()) {
    piece.tokens.push_back(*prefix);
    piece.loss_mask.push_back(0);
  }
  piece.tokens.insert(piece.tokens.end(), tokens.begin(), tokens.end());
  piece.loss_mask.insert(piece.loss_mask.end(), mask.begin(), mask.end());
  return piece;
}

bool HasLabel(const Piece& piece) {
  return std::find(piece.loss_mask.begin() + 1, piece.loss_mask.end(), 1) != piece.loss_mask.end();
}

}  // namespace

absl::Status SplitSource(absl::Span<const int32_t> tokens, absl::Span<const uint8_t> loss_mask,
                         const SplitRule& rule, const std::string& where, SplitDrops* drops,
                         absl::FunctionRef<absl::Status(const Piece&)> each) {
  SH_CHECK(tokens.size() == loss_mask.size());
  SH_CHECK(rule.max_tokens >= 2);
  const size_t prefix = rule.prefix.has_value() ? 1 : 0;
  const size_t most = rule.max_tokens - prefix;  // of the source's tokens in one piece
  const size_t least = 2 - prefix;
  if (tokens.size() < least) {
    ++drops->short_sources;
    return absl::OkStatus();
  }
  if (tokens.size() > most && rule.when_longer == DatasetRecipe::WhenLonger::kRefuse) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, ": ", tokens.size() + prefix, " tokens, more than dataset.max_tokens (",
        rule.max_tokens, "); raise it, shorten the source, or say when_longer: split"));
  }
  for (size_t begin = 0; begin < tokens.size();) {
    size_t count = std::min(most, tokens.size() - begin);
    const size_t left = tokens.size() - begin - count;
    if (left > 0 && left < least) {
      if (count > least) {
        --count;
      } else {
        drops->tokens_cut += left;
        tokens = tokens.first(begin + count);
      }
    }
    const Piece piece =
        MakePiece(tokens.subspan(begin, count), loss_mask.subspan(begin, count), rule.prefix);
    if (HasLabel(piece)) {
      SH_RETURN_IF_ERROR(each(piece));
    } else {
      ++drops->unlabelled_pieces;
    }
    begin += count;
  }
  return absl::OkStatus();
}

}  // namespace stillhouse
