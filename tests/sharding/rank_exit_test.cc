#include "sharding/rank_exit.h"

#include "common/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stillhouse {
namespace {

class RankExitTest : public testing::Test {
 protected:
  RankExitTest() : folder_(*TempFolder::Create()) {}
  void Write(int rank, const absl::Status& exit) {
    ASSERT_TRUE(WriteRankExit(folder_.path(), rank, exit).ok());
  }
  TempFolder folder_;
};

TEST_F(RankExitTest, IsReadAsItWasWritten) {
  const absl::Status written = absl::DataLossError("two\nlines");
  Write(3, written);
  absl::Status read;
  ASSERT_TRUE(ReadRankExit(folder_.path(), 3, &read).ok());
  EXPECT_EQ(read, written);
  EXPECT_EQ(*ReadFile(JoinPath(folder_.path(), "rank-3.exit")),
            "stillhouse rank exit 1\n15 9\ntwo\nlines");
}

TEST_F(RankExitTest, DamageIsNoticed) {
  for (const char* bytes : {"", "stillhouse rank exit 2\n0 0\n", "stillhouse rank exit 1\n0 5\nabc",
                            "stillhouse rank exit 1\n99 0\n", "stillhouse rank exit 1\n0\n"}) {
    ASSERT_TRUE(WriteFileAtomically(JoinPath(folder_.path(), "rank-0.exit"), bytes).ok());
    absl::Status read;
    EXPECT_TRUE(absl::IsDataLoss(ReadRankExit(folder_.path(), 0, &read))) << bytes;
  }
}

TEST_F(RankExitTest, AStepSaysWhatExplainsMost) {
  Write(0, absl::OkStatus());
  EXPECT_EQ(StepExit(folder_.path(), 1), absl::OkStatus());
  EXPECT_EQ(StepExit(folder_.path(), 3), absl::UnavailableError("rank 1, 2 ended without a word"));
  Write(1, absl::DeadlineExceededError("rank 2 did not come"));
  EXPECT_EQ(StepExit(folder_.path(), 3),
            absl::DeadlineExceededError("rank 1: rank 2 did not come"));
  Write(2, absl::InternalError("a bug"));
  EXPECT_EQ(StepExit(folder_.path(), 3), absl::InternalError("rank 2: a bug"));
}

}  // namespace
}  // namespace stillhouse
