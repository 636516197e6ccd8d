#include "gtest/gtest.h"
#include "sharding/flat_buffer.h"
#include "sharding/flat_layout.h"

namespace stillhouse {
namespace {

TEST(FlatLayoutTest, AlignsEveryParameterAndKeepsTheOrder) {
  const FlatLayout layout({{"b", 5}, {"a", 32}, {"c", 33}});
  ASSERT_EQ(layout.parameters().size(), 3u);
  EXPECT_EQ(layout.Find("b")->offset, 0u);
  EXPECT_EQ(layout.Find("a")->offset, 32u);
  EXPECT_EQ(layout.Find("c")->offset, 64u);
  EXPECT_EQ(layout.size(), 128u);
  EXPECT_EQ(layout.parameter_count(), 70u);
  EXPECT_EQ(layout.Find("d"), nullptr);
}

TEST(FlatLayoutTest, ShardsCoverTheBufferWithoutOverlap) {
  const FlatLayout layout({{"a", 1000}, {"b", 77}});
  for (const int ranks : {1, 2, 3, 5, 64}) {
    size_t at = 0;
    for (int rank = 0; rank < ranks; ++rank) {
      const FlatRange shard = layout.ShardOf(rank, ranks);
      EXPECT_EQ(shard.begin, at);
      EXPECT_EQ(shard.begin % kFlatAlignment, 0u);
      EXPECT_LE(shard.size(), (layout.size() / kFlatAlignment / ranks + 1) * kFlatAlignment);
      at = shard.end;
    }
    EXPECT_EQ(at, layout.size());
  }
}

TEST(FlatBufferTest, IsZeroedAndAligned) {
  FlatBuffer<float> buffer(100000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
  for (const float value : buffer.span()) ASSERT_EQ(value, 0.0f);
  buffer.data()[5] = 1;
  FlatBuffer<float> other = std::move(buffer);
  EXPECT_EQ(other.data()[5], 1.0f);
}

}  // namespace
}  // namespace stillhouse
