#include "dataset/split.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "common/status.h"

namespace stillhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<int32_t> Count(int n) {
  std::vector<int32_t> ids(n);
  std::iota(ids.begin(), ids.end(), 0);
  return ids;
}

struct Result {
  absl::Status status;
  std::vector<Piece> pieces;
  SplitDrops drops;
};

Result Split(const std::vector<int32_t>& tokens, const std::vector<uint8_t>& mask, SplitRule rule) {
  Result result;
  result.status = SplitSource(tokens, mask, rule, "a.txt", &result.drops, [&](const Piece& piece) {
    result.pieces.push_back(piece);
    return absl::OkStatus();
  });
  return result;
}

TEST(SplitTest, EveryTokenIsInExactlyOnePieceForAllSmallCases) {
  for (int max_tokens = 2; max_tokens <= 7; ++max_tokens) {
    for (int n = 0; n <= 40; ++n) {
      for (const bool bos : {false, true}) {
        SplitRule rule{.max_tokens = max_tokens};
        if (bos) rule.prefix = 99;
        const Result result = Split(Count(n), std::vector<uint8_t>(n, 1), rule);
        ASSERT_TRUE(result.status.ok());
        std::vector<int32_t> joined;
        for (const Piece& piece : result.pieces) {
          ASSERT_GE(piece.tokens.size(), 2u);
          ASSERT_LE(piece.tokens.size(), static_cast<size_t>(max_tokens));
          ASSERT_EQ(piece.tokens.size(), piece.loss_mask.size());
          if (bos) {
            ASSERT_EQ(piece.tokens[0], 99);
            ASSERT_EQ(piece.loss_mask[0], 0);
          }
          joined.insert(joined.end(), piece.tokens.begin() + bos, piece.tokens.end());
        }
        const int least = bos ? 1 : 2;
        ASSERT_EQ(result.drops.short_sources, n < least ? 1u : 0u) << n;
        const int cut = !bos && max_tokens == 2 && n > 2 ? n % 2 : 0;
        ASSERT_EQ(result.drops.tokens_cut, static_cast<uint64_t>(cut));
        ASSERT_EQ(joined, n < least ? std::vector<int32_t>() : Count(n - cut))
            << n << "/" << max_tokens;
      }
    }
  }
}

TEST(SplitTest, ALoneLastTokenTakesOneFromThePieceBefore) {
  const Result result = Split(Count(9), std::vector<uint8_t>(9, 1), {.max_tokens = 4});
  ASSERT_EQ(result.pieces.size(), 3u);
  EXPECT_THAT(result.pieces[1].tokens, ElementsAre(4, 5, 6));
  EXPECT_THAT(result.pieces[2].tokens, ElementsAre(7, 8));
}

TEST(SplitTest, RefusesALongSourceByNameAndLength) {
  const SplitRule rule{
      .max_tokens = 8, .when_longer = DatasetRecipe::WhenLonger::kRefuse, .prefix = 1};
  EXPECT_TRUE(Split(Count(7), std::vector<uint8_t>(7, 1), rule).status.ok());
  const Result result = Split(Count(8), std::vector<uint8_t>(8, 1), rule);
  EXPECT_EQ(result.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(result.status.message()), HasSubstr("a.txt: 9 tokens"));
  EXPECT_TRUE(result.pieces.empty());
}

TEST(SplitTest, MaskFollowsItsTokensAndPiecesWithoutALabelAreCounted) {
  // A mask on a piece's first token counts for nothing: no row of the piece has it as its label.
  const Result result = Split(Count(6), {0, 1, 1, 0, 0, 1}, {.max_tokens = 2});
  ASSERT_EQ(result.pieces.size(), 2u);
  EXPECT_THAT(result.pieces[0].loss_mask, ElementsAre(0, 1));
  EXPECT_THAT(result.pieces[1].tokens, ElementsAre(4, 5));
  EXPECT_EQ(result.drops.unlabelled_pieces, 1u);
}

}  // namespace
}  // namespace stillhouse
