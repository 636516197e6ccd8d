#include "student/packing.h"

#include <numeric>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "student/data_cursor.h"
#include "student/step_split.h"
#include "tests/student/fakes.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;

TEST(GroupDocumentsTest, PacksNeighboursUpToTheLimit) {
  EXPECT_THAT(GroupDocuments({4, 4, 3, 8, 1}, 8, /*packed=*/true), ElementsAre(2, 1, 1, 1));
  EXPECT_THAT(GroupDocuments({4, 4, 3, 5}, 8, /*packed=*/true), ElementsAre(2, 2));
}

TEST(GroupDocumentsTest, CountsPaddingWhereDocumentsAreNotPacked) {
  // 4 and 3 take 2·4; a third of 1 would take 3·4.
  EXPECT_THAT(GroupDocuments({4, 3, 1, 5}, 8, /*packed=*/false), ElementsAre(2, 1, 1));
  EXPECT_THAT(GroupDocuments({1, 1, 4}, 8, /*packed=*/false), ElementsAre(2, 1));
}

TEST(MakeMicroBatchTest, LaysOutRowsLabelsAndTargets) {
  const auto plan = MakeTestPlan({.masked = true});
  const TestTeacher teacher;
  const std::vector<DocumentTargets> documents = {teacher.Targets(*plan, 3),
                                                  teacher.Targets(*plan, 1)};
  for (const bool packed : {true, false}) {
    const MicroBatch batch = MakeMicroBatch(*plan, documents, packed);
    int64_t begin = 0;
    size_t row = 0;
    for (size_t d = 0; d < documents.size(); ++d) {
      const PlanDocument document = plan->document(documents[d].document);
      for (uint32_t t = 0; t < document.rows(); ++t) {
        EXPECT_EQ(batch.ids[begin + t], document.tokens[t]);
        if (document.loss_mask[t + 1] == 0) continue;
        ASSERT_LT(row, batch.loss_rows.size());
        EXPECT_EQ(batch.loss_rows[row], begin + t);
        EXPECT_EQ(batch.labels[row], document.tokens[t + 1]);
        EXPECT_EQ(batch.teacher_entropy[row], documents[d].stats.entropy[t]);
        const SampledRows& sampled = documents[d].sampled;
        const std::vector<int32_t> ids(sampled.ids.begin() + sampled.offsets[t],
                                       sampled.ids.begin() + sampled.offsets[t + 1]);
        const std::vector<int32_t> got(batch.sampled.ids.begin() + batch.sampled.offsets[row],
                                       batch.sampled.ids.begin() + batch.sampled.offsets[row + 1]);
        EXPECT_EQ(got, ids);
        EXPECT_EQ(batch.teacher_hidden.values[row * 12], documents[d].hidden.values[t * 12]);
        ++row;
      }
      begin += batch.lengths[d];
      EXPECT_EQ(batch.whole_lengths[d], document.rows() + 1);
      if (packed) {
        EXPECT_EQ(batch.lengths[d], document.rows());
      }
    }
    EXPECT_EQ(row, batch.loss_rows.size());
    EXPECT_EQ(begin, static_cast<int64_t>(batch.ids.size()));
    if (!packed) {
      EXPECT_EQ(batch.lengths[0], batch.lengths[1]);
    }
  }
}

TEST(DataCursorTest, StepsTakeDocumentsInOrderAndNeverSkipOne) {
  const auto plan = MakeTestPlan({});
  DataCursor cursor(plan, /*seed=*/9);
  std::vector<uint32_t> seen;
  uint64_t previous_rows = 0;
  while (seen.size() < 2 * 24) {
    const std::vector<uint32_t> step = TakeStep(*plan, cursor, 40);
    uint64_t rows = 0;
    for (const uint32_t document : step) rows += plan->document(document).rows();
    EXPECT_LE(rows, 40u);
    if (previous_rows > 0) {
      EXPECT_GT(previous_rows + plan->document(step[0]).rows(), 40u);
    }
    previous_rows = rows;
    seen.insert(seen.end(), step.begin(), step.end());
  }
  // Each of the first two epochs holds every training document once.
  EXPECT_EQ(std::set<uint32_t>(seen.begin(), seen.begin() + 24).size(), 24u);
  EXPECT_EQ(std::set<uint32_t>(seen.begin() + 24, seen.begin() + 48).size(), 24u);
  for (const uint32_t document : seen) {
    EXPECT_FALSE(plan->chunk(plan->document(document).chunk).held_out);
  }
}

TEST(DataCursorTest, GoesOnFromAnyPosition) {
  const auto plan = MakeTestPlan({});
  DataCursor cursor(plan, 9);
  for (int i = 0; i < 7; ++i) TakeStep(*plan, cursor, 40);
  DataCursor resumed(plan, 9, cursor.position());
  for (int i = 0; i < 7; ++i) {
    EXPECT_EQ(TakeStep(*plan, resumed, 40), TakeStep(*plan, cursor, 40));
  }
}

TEST(CheckPlanFitsTest, RefusesADocumentThatFitsNowhere) {
  const auto plan = MakeTestPlan({.rows_min = 20, .rows_max = 20});
  EXPECT_TRUE(CheckPlanFits(*plan, 40, 20).ok());
  const absl::Status status = CheckPlanFits(*plan, 40, 19);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("batch.micro_batch is 19"));
}

TEST(CheckPlanFitsTest, RefusesMoreRanksThanDocuments) {
  const auto plan = MakeTestPlan({.documents = 5});
  EXPECT_TRUE(CheckPlanFits(*plan, 40, 20, 5).ok());
  const absl::Status status = CheckPlanFits(*plan, 40, 20, 6);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              testing::HasSubstr("6 ranks, but the plan has only 5 training documents"));
}

TEST(StepDocumentsTest, EveryRankListsAllAndMarksItsOwn) {
  const auto plan = MakeTestPlan({});
  DataCursor cursor(plan, 9);
  std::vector<DocumentList> lists;
  for (int rank = 0; rank < 3; ++rank) {
    lists.push_back(StepDocuments(plan, cursor, /*steps=*/5, 40, rank, 3));
  }
  for (int step = 0; step < 5; ++step) {
    const std::vector<uint32_t> documents = TakeStep(*plan, cursor, 40);
    const auto dealt = DealDocuments(*plan, documents, 3);
    for (size_t rank = 0; rank < 3; ++rank) {
      std::vector<uint32_t> all, mine;
      for (size_t i = 0; i < documents.size(); ++i) {
        const auto listed = lists[rank]();
        ASSERT_TRUE(listed.has_value());
        all.push_back(listed->document);
        if (listed->mine) mine.push_back(listed->document);
      }
      EXPECT_EQ(all, documents);
      EXPECT_EQ(mine, dealt[rank]);
    }
  }
  for (DocumentList& list : lists) EXPECT_FALSE(list().has_value());
}

}  // namespace
}  // namespace stillhouse
