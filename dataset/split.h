// Splitting one source's tokens into documents of at most max_tokens.
//
// Special tokens: a source's text is tokenised without any. If the tokenizer has an end-of-text id,
// one is appended to the source, so that it ends the last piece; if the model expects a
// beginning-of-text id, one stands before every piece. To `input_ids` nothing is added: they are
// taken as written.
//
// Every token of the source lies in exactly one piece, pieces follow one another, and nothing
// crosses a split. A last piece that would be too short for a row takes one token from the piece
// before it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "recipe/recipe.h"

namespace stillhouse {

struct SplitRule {
  int64_t max_tokens = 0;  // at least 2, `prefix` included
  DatasetRecipe::WhenLonger when_longer = DatasetRecipe::WhenLonger::kSplit;
  std::optional<int32_t> prefix;  // stands before every piece, with loss mask 0
};

// What did not become a document.
struct SplitDrops {
  uint64_t short_sources = 0;  // too few tokens for one row
  uint64_t tokens_cut = 0;     // last tokens without a piece; only possible where max_tokens is 2
  uint64_t unlabelled_pieces = 0;  // no label with loss mask 1
};

struct Piece {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> loss_mask;
};

// InvalidArgument, naming `where` and the length, when the source is longer than allowed and to be
// refused. REQUIRES: loss_mask.size() == tokens.size().
absl::Status SplitSource(absl::Span<const int32_t> tokens, absl::Span<const uint8_t> loss_mask,
                         const SplitRule& rule, const std::string& where, SplitDrops* drops,
                         absl::FunctionRef<absl::Status(const Piece&)> each);

}  // namespace stillhouse
