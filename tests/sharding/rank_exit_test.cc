#include "sharding/rank_exit.h"

#include "common/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace stillhouse {
namespace {

class RankExitTest : public testing::Test {
 protected:
  RankExitTest() : folder_(*TempFolder::Create()) {}
  void Write(int rank, const absl::Status& exit, int code = 0) {
    ASSERT_TRUE(WriteRankExit(folder_.path(), rank, {exit, code}).ok());
  }
  TempFolder folder_;
};

TEST_F(RankExitTest, IsReadAsItWasWritten) {
  const absl::Status written = absl::DataLossError("two\nlines");
  Write(3, written, 143);
  const auto read = ReadRankExit(folder_.path(), 3);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->status, written);
  EXPECT_EQ(read->code, 143);
  EXPECT_EQ(*ReadFile(JoinPath(folder_.path(), "rank-3.exit")),
            "stillhouse rank exit 2\n15 143 9\ntwo\nlines");
}

TEST_F(RankExitTest, DamageIsNoticed) {
  for (const char* bytes :
       {"", "stillhouse rank exit 1\n0 0\n", "stillhouse rank exit 2\n0 0 5\nabc",
        "stillhouse rank exit 2\n99 0 0\n", "stillhouse rank exit 2\n0 999 0\n",
        "stillhouse rank exit 2\n0 0\n"}) {
    ASSERT_TRUE(WriteFileAtomically(JoinPath(folder_.path(), "rank-0.exit"), bytes).ok());
    EXPECT_TRUE(absl::IsDataLoss(ReadRankExit(folder_.path(), 0).status())) << bytes;
  }
}

TEST_F(RankExitTest, AStepSaysWhatExplainsMost) {
  Write(0, absl::OkStatus());
  EXPECT_EQ(StepExit(folder_.path(), 1).status, absl::OkStatus());
  EXPECT_EQ(StepExit(folder_.path(), 3).status,
            absl::UnavailableError("rank 1, 2 ended without a word"));
  Write(1, absl::DeadlineExceededError("rank 2 did not come"), 124);
  EXPECT_EQ(StepExit(folder_.path(), 3).status,
            absl::DeadlineExceededError("rank 1: rank 2 did not come"));
  EXPECT_EQ(StepExit(folder_.path(), 3).code, 124);
  Write(2, absl::InternalError("a bug"), 93);
  EXPECT_EQ(StepExit(folder_.path(), 3).status, absl::InternalError("rank 2: a bug"));
  EXPECT_EQ(StepExit(folder_.path(), 3).code, 93);
}

}  // namespace
}  // namespace stillhouse
