#include "student/prefetcher.h"

#include <numeric>
#include <set>

#include "common/manual_executor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "student/data_cursor.h"
#include "student/run_stop.h"
#include "tests/student/fakes.h"

namespace stillhouse {
namespace {

using Taken = std::optional<absl::StatusOr<std::vector<DocumentTargets>>>;

class PrefetcherTest : public testing::Test {
 protected:
  PrefetcherTest() : plan_(MakeTestPlan({})), cache_(executor_), run_(executor_) {
    for (uint32_t document = 0; document < 24; ++document) order_.push_back((document * 7) % 24);
  }

  std::unique_ptr<Prefetcher> Make(PrefetchOptions options = {}) {
    options.teacher = teacher_.fingerprint;
    if (options.sections.empty()) options.sections = teacher_.Sections();
    auto next = [this, at = size_t{0}]() mutable -> std::optional<ListedDocument> {
      if (at == order_.size()) return std::nullopt;
      const uint32_t document = order_[at++];
      return ListedDocument{document, others_.count(document) == 0};
    };
    return std::make_unique<Prefetcher>(executor_, run_, cache_, plan_, options, std::move(next));
  }

  void MakeDurable(uint32_t chunk) {
    cache_.AddChunk(*plan_, teacher_, chunk);
    run_.states[chunk] = ChunkAvailability::kDurable;
  }
  void MakeAllDurable() {
    for (uint32_t chunk = 0; chunk < plan_->chunk_count(); ++chunk) MakeDurable(chunk);
  }

  Taken Take(Prefetcher& prefetcher, size_t count) {
    prefetcher.Take(count, [this](auto taken) { taken_ = std::move(taken); });
    executor_.RunUntilIdle();
    return std::exchange(taken_, std::nullopt);
  }

  void ExpectTargets(const DocumentTargets& got, uint32_t document) {
    EXPECT_EQ(got.document, document);
    const DocumentTargets wanted = teacher_.Targets(*plan_, document);
    EXPECT_EQ(got.sampled.ids, wanted.sampled.ids);
    EXPECT_EQ(got.sampled.counts, wanted.sampled.counts);
    EXPECT_EQ(got.hidden.values, wanted.hidden.values);
    EXPECT_EQ(got.stats.rows(), wanted.stats.rows());
    EXPECT_EQ(got.top.ids, wanted.top.ids);
    EXPECT_EQ(got.top.levels, wanted.top.levels);
    EXPECT_EQ(got.top.residual_levels, wanted.top.residual_levels);
  }

  ManualExecutor executor_;
  std::shared_ptr<const Plan> plan_;
  TestTeacher teacher_;
  FakeCache cache_;
  FakeRun run_;
  std::vector<uint32_t> order_;
  std::set<uint32_t> others_;  // of other ranks
  Taken taken_;
};

TEST_F(PrefetcherTest, GivesDocumentsInOrderAndFewerAtTheEnd) {
  MakeAllDurable();
  auto prefetcher = Make();
  size_t next = 0;
  for (const size_t count : {5u, 1u, 10u, 20u}) {
    const Taken taken = Take(*prefetcher, count);
    ASSERT_TRUE(taken.has_value() && taken->ok());
    ASSERT_EQ((*taken)->size(), std::min<size_t>(count, 24 - next));
    for (const DocumentTargets& targets : **taken) ExpectTargets(targets, order_[next++]);
  }
  const Taken taken = Take(*prefetcher, 3);
  ASSERT_TRUE(taken.has_value() && taken->ok());
  EXPECT_TRUE((*taken)->empty());
  EXPECT_LT(cache_.gets, 24u);  // batched
}

TEST_F(PrefetcherTest, BringsTopTokensToo) {
  teacher_.top_k = 7;
  MakeAllDurable();
  auto prefetcher = Make();
  const Taken taken = Take(*prefetcher, 3);
  ASSERT_TRUE(taken.has_value() && taken->ok()) << taken->status();
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_GT((**taken)[i].top.rows(), 0u);
    ExpectTargets((**taken)[i], order_[i]);
  }
}

TEST_F(PrefetcherTest, T1_WaitsForAPendingChunkAndNeverSkips) {
  MakeAllDurable();
  const uint32_t late = plan_->document(order_[2]).chunk;
  run_.states[late] = ChunkAvailability::kPending;
  auto prefetcher = Make();
  EXPECT_FALSE(Take(*prefetcher, 4).has_value());
  EXPECT_TRUE(run_.wanted.contains(late));
  executor_.Advance(absl::Seconds(1));
  EXPECT_FALSE(taken_.has_value());
  run_.states[late] = ChunkAvailability::kDurable;
  executor_.Advance(absl::Seconds(1));
  ASSERT_TRUE(taken_.has_value() && taken_->ok());
  for (size_t i = 0; i < 4; ++i) ExpectTargets((**taken_)[i], order_[i]);
}

TEST_F(PrefetcherTest, ReadsAheadWithinItsBound) {
  MakeAllDurable();
  PrefetchOptions options;
  options.read_ahead_rows = 30;
  options.sections = {teacher_.Sections()[0]};
  auto prefetcher = Make(options);
  ASSERT_TRUE(Take(*prefetcher, 1).has_value());
  uint64_t rows = 0;
  size_t documents = 1;
  for (size_t i = 1; i < order_.size(); ++i) {
    rows += plan_->document(order_[i]).rows();
    if (rows > 30) break;
    ++documents;
  }
  // What lies within the bound is here already: no further question is needed for it.
  const size_t gets = cache_.gets;
  ASSERT_TRUE(Take(*prefetcher, documents - 1).has_value());
  EXPECT_LE(cache_.gets, gets + 1);
  EXPECT_LE(cache_.keys_in_largest_get, documents + 1);
}

TEST_F(PrefetcherTest, ChunksThatWillNotComeStopTheRunInTheirOwnWords) {
  const std::pair<ChunkAvailability, RunStop> cases[] = {
      {ChunkAvailability::kPoisoned, RunStop::kPoisoned},
      {ChunkAvailability::kExcluded, RunStop::kExcluded},
      {ChunkAvailability::kLost, RunStop::kLost}};
  for (const auto& [state, stop] : cases) {
    MakeAllDurable();
    run_.states[plan_->document(order_[3]).chunk] = state;
    auto prefetcher = Make();
    const Taken taken = Take(*prefetcher, 4);
    ASSERT_TRUE(taken.has_value());
    EXPECT_EQ(StopOf(taken->status()), stop) << taken->status();
    EXPECT_EQ(RunStopExitCode(stop, taken->status()), 93);
  }
}

TEST_F(PrefetcherTest, AProblemFurtherOnDoesNotStopWhatCanBeRead) {
  MakeAllDurable();
  const uint32_t bad = plan_->document(order_.back()).chunk;
  run_.states[bad] = ChunkAvailability::kPoisoned;
  auto prefetcher = Make();
  size_t readable = 0;
  while (plan_->document(order_[readable]).chunk != bad) ++readable;
  ASSERT_GT(readable, 0u);
  const Taken taken = Take(*prefetcher, readable);
  ASSERT_TRUE(taken.has_value());
  EXPECT_TRUE(taken->ok()) << taken->status();
  const Taken then = Take(*prefetcher, 1);
  ASSERT_TRUE(then.has_value());
  EXPECT_EQ(StopOf(then->status()), RunStop::kPoisoned);
}

TEST_F(PrefetcherTest, BelievesThatNoTeacherIsAliveOnlyAfterAWhile) {
  auto prefetcher = Make();
  for (uint32_t chunk = 0; chunk < plan_->chunk_count(); ++chunk) {
    run_.states[chunk] = ChunkAvailability::kNeedsTeacher;
  }
  EXPECT_FALSE(Take(*prefetcher, 1).has_value());
  executor_.Advance(absl::Seconds(60));
  EXPECT_FALSE(taken_.has_value());
  executor_.Advance(absl::Seconds(90));
  ASSERT_TRUE(taken_.has_value());
  EXPECT_EQ(StopOf(taken_->status()), RunStop::kNeedsTeacher);
}

TEST_F(PrefetcherTest, T4_AsksAgainForMissingPartsThenCallsThemLost) {
  MakeAllDurable();
  const PlanDocument document = plan_->document(order_[0]);
  const PartKey key{SectionKey(teacher_.fingerprint, document.key, teacher_.Sections()[1]), 0};
  const Part part = cache_.parts.at(key);
  cache_.parts.erase(key);
  {
    auto prefetcher = Make();
    EXPECT_FALSE(Take(*prefetcher, 1).has_value());
    cache_.parts[key] = part;
    executor_.Advance(absl::Seconds(1));
    ASSERT_TRUE(taken_.has_value() && taken_->ok());
    ExpectTargets((**taken_)[0], order_[0]);
  }
  cache_.parts.erase(key);
  taken_.reset();
  auto prefetcher = Make();
  EXPECT_FALSE(Take(*prefetcher, 1).has_value());
  executor_.Advance(absl::Seconds(10));
  ASSERT_TRUE(taken_.has_value());
  EXPECT_EQ(StopOf(taken_->status()), RunStop::kLost);
}

TEST_F(PrefetcherTest, RefusesDamagedParts) {
  MakeAllDurable();
  const PlanDocument document = plan_->document(order_[0]);
  const PartKey key{SectionKey(teacher_.fingerprint, document.key, teacher_.Sections()[0]), 0};
  SharedBytes& payload = cache_.parts.at(key).payload;
  payload = std::string(payload.view().substr(1));
  auto prefetcher = Make();
  const Taken taken = Take(*prefetcher, 1);
  ASSERT_TRUE(taken.has_value());
  EXPECT_EQ(taken->status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(PrefetcherTest, CancelAndFailReachWhoWaits) {
  run_.cancelled = true;
  {
    auto prefetcher = Make();
    const Taken taken = Take(*prefetcher, 1);
    ASSERT_TRUE(taken.has_value());
    EXPECT_EQ(StopOf(taken->status()), RunStop::kCancelled);
  }
  run_.cancelled = false;
  auto prefetcher = Make();
  EXPECT_FALSE(Take(*prefetcher, 1).has_value());
  prefetcher->Fail(StopStatus(RunStop::kTerminated, "stop"));
  ASSERT_TRUE(taken_.has_value());
  EXPECT_EQ(StopOf(taken_->status()), RunStop::kTerminated);
  const Taken again = Take(*prefetcher, 1);
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(StopOf(again->status()), RunStop::kTerminated);
}

TEST_F(PrefetcherTest, DocumentsOfOtherRanksAreAskedForButNotFetched) {
  MakeAllDurable();
  std::vector<uint32_t> mine;
  for (size_t i = 0; i < order_.size(); ++i) {
    if (i % 3 == 1) {
      mine.push_back(order_[i]);
    } else {
      others_.insert(order_[i]);
      // Not even there.
      const Digest key = plan_->document(order_[i]).key;
      for (const SectionSpec& spec : teacher_.Sections()) {
        cache_.parts.erase({SectionKey(teacher_.fingerprint, key, spec), 0});
      }
    }
  }
  auto prefetcher = Make();
  const Taken first = Take(*prefetcher, 3);
  ASSERT_TRUE(first.has_value() && first->ok());
  ASSERT_EQ((*first)->size(), 3u);
  for (size_t i = 0; i < 3; ++i) ExpectTargets((**first)[i], mine[i]);
  std::set<uint32_t> chunks;
  for (const uint32_t document : order_) chunks.insert(plan_->document(document).chunk);
  EXPECT_EQ(run_.wanted, chunks);
  const Taken rest = Take(*prefetcher, 100);
  ASSERT_TRUE(rest.has_value() && rest->ok());
  ASSERT_EQ((*rest)->size(), mine.size() - 3);
  for (size_t i = 3; i < mine.size(); ++i) ExpectTargets((**rest)[i - 3], mine[i]);
  const Taken none = Take(*prefetcher, 1);
  ASSERT_TRUE(none.has_value() && none->ok());
  EXPECT_TRUE((*none)->empty());
}

TEST_F(PrefetcherTest, NeedsNothingWhenNoSectionIsRead) {
  std::vector<uint32_t> documents(20);
  std::iota(documents.begin(), documents.end(), 0u);
  Prefetcher prefetcher(executor_, run_, cache_, plan_, {}, ListOf(documents));
  const Taken taken = Take(prefetcher, 3);
  ASSERT_TRUE(taken.has_value() && taken->ok());
  EXPECT_EQ((**taken)[2].document, 2u);
  EXPECT_TRUE(run_.wanted.empty());
  EXPECT_EQ(cache_.gets, 0u);
}

}  // namespace
}  // namespace stillhouse
