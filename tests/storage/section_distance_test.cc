#include "storage/section_distance.h"

#include <gtest/gtest.h>

#include "tests/storage/section_fixtures.h"

namespace stillhouse {
namespace {

std::vector<SectionSpec> AllKinds() {
  return {{},
          SampledSpec(),
          {.kind = SectionKind::kLogitsTopK, .k = 16},
          {.kind = SectionKind::kLogitsTopP, .k = 40, .p_millionths = 950'000},
          HiddenSpec(64),
          {.kind = SectionKind::kHiddenLayer, .hidden_size = 64, .layer = 2}};
}

TEST(SectionDistanceTest, EqualRowsAreNoDistanceApartAndOthersBeyondTheTolerance) {
  for (const SectionSpec& spec : AllKinds()) {
    const SectionRows rows = MakeRows(spec, 20, 1), other = MakeRows(spec, 20, 2);
    const auto same = DistanceOf(rows, rows);
    ASSERT_TRUE(same.ok());
    EXPECT_EQ(same->rows, 20u);
    EXPECT_EQ(same->equal, 20u);
    EXPECT_EQ(same->worst, 0.0);
    const auto apart = DistanceOf(rows, other);
    ASSERT_TRUE(apart.ok());
    const SectionTolerance allowed = ToleranceOf(spec.kind);
    EXPECT_GT(apart->sum / 20, allowed.mean) << spec.Canonical();
    EXPECT_LE(apart->worst, 1.5) << spec.Canonical();
    EXPECT_FALSE(DistanceOf(rows, MakeRows(spec, 19, 1)).ok());
  }
}

TEST(SectionDistanceTest, OneWrongRowIsTheWorst) {
  for (const SectionSpec& spec : AllKinds()) {
    const SectionRows rows = MakeRows(spec, 20, 1), other = MakeRows(spec, 20, 2);
    SectionRows changed = NoRows(spec);
    for (size_t row = 0; row < 20; ++row) AppendRow(row == 7 ? other : rows, row, &changed);
    const auto distance = DistanceOf(rows, changed);
    ASSERT_TRUE(distance.ok());
    EXPECT_EQ(distance->equal, 19u);
    EXPECT_EQ(distance->worst_row, 7u);
    EXPECT_EQ(distance->worst, distance->sum);
  }
}

TEST(SectionDistanceTest, ByHand) {
  // At or below 3: 6 of 10 and 9 of 10; at or below 8: 10 and 9.
  const SampledRows a{.draws = 10, .offsets = {0, 2}, .ids = {3, 8}, .counts = {6, 4}};
  const SampledRows b{.draws = 10, .offsets = {0, 2}, .ids = {3, 9}, .counts = {9, 1}};
  EXPECT_NEAR(DistanceOf(a, b)->worst, 0.3, 1e-12);
  // |(3, 4) - (3, 0)| / |(3, 4)|, in bf16.
  const HiddenRows x{.hidden_size = 2, .values = {0x4040, 0x4080}};
  const HiddenRows y{.hidden_size = 2, .values = {0x4040, 0}};
  EXPECT_NEAR(DistanceOf(x, y)->worst, 0.8, 1e-12);
  StatsRows s;
  s.entropy = {1};
  s.logsumexp = {9};
  s.top1_id = {5};
  s.top1_logprob = {std::log(0.5f)};
  s.next_logprob = {std::log(0.25f)};
  StatsRows t = s;
  t.next_logprob = {std::log(0.125f)};
  EXPECT_NEAR(DistanceOf(s, t)->worst, 0.125, 1e-6);
  t = s;
  t.entropy = {3};
  EXPECT_NEAR(DistanceOf(s, t)->worst, 0.5, 1e-6);
}

}  // namespace
}  // namespace stillhouse
