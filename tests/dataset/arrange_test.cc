#include "dataset/arrange.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace stillhouse {
namespace {

std::vector<ArrangedDocument> Documents(int n) {
  std::vector<ArrangedDocument> documents;
  for (int i = 0; i < n; ++i) {
    documents.push_back({static_cast<uint32_t>(2 + (i * 7919) % 511), i % 10 == 0});
  }
  return documents;
}

TEST(ArrangeTest, ChunksAndBatchesHoldEveryDocumentOnce) {
  const std::vector<ArrangedDocument> documents = Documents(2000);
  const Arrangement arranged = Arrange(documents, /*chunk_tokens=*/16384, /*seed=*/1);
  std::vector<uint32_t> sorted = arranged.order;
  std::sort(sorted.begin(), sorted.end());
  for (uint32_t i = 0; i < sorted.size(); ++i) ASSERT_EQ(sorted[i], i);
  ASSERT_EQ(sorted.size(), documents.size());

  const size_t chunks = arranged.chunk_begins.size() - 1;
  ASSERT_EQ(arranged.batch_begins.size(), chunks + 1);
  for (size_t c = 0; c < chunks; ++c) {
    uint64_t tokens = 0;
    for (uint32_t i = arranged.chunk_begins[c]; i < arranged.chunk_begins[c + 1]; ++i) {
      tokens += documents[arranged.order[i]].length;
      EXPECT_EQ(documents[arranged.order[i]].held_out, c >= arranged.training_chunks);
    }
    EXPECT_LE(tokens, 16384u);
    if (c + 1 != arranged.training_chunks && c + 1 != chunks) {
      EXPECT_GT(tokens, 16384u - 513);
    }
    uint32_t next = arranged.chunk_begins[c];
    for (uint32_t b = arranged.batch_begins[c]; b < arranged.batch_begins[c + 1]; ++b) {
      const PlanBatch& batch = arranged.batches[b];
      EXPECT_EQ(batch.begin, next);
      next = batch.end;
      EXPECT_LE((batch.end - batch.begin) * uint64_t{batch.length}, kBatchTokensMax);
      EXPECT_EQ(batch.length, documents[arranged.order[batch.end - 1]].length);
    }
    EXPECT_EQ(next, arranged.chunk_begins[c + 1]);
  }
}

TEST(ArrangeTest, IsAPureFunctionOfDocumentsAndSeed) {
  EXPECT_EQ(Arrange(Documents(300), 4096, 5).order, Arrange(Documents(300), 4096, 5).order);
  EXPECT_NE(Arrange(Documents(300), 4096, 5).order, Arrange(Documents(300), 4096, 6).order);
}

TEST(ArrangeTest, ADocumentLongerThanABatchHasOneAlone) {
  const Arrangement arranged = Arrange({{5000, false}, {10, false}, {6000, false}}, 100'000, 0);
  ASSERT_EQ(arranged.batches.size(), 3u);
  EXPECT_EQ(arranged.batches[2].length, 6000u);
}

TEST(HeldOutTest, ShareIsByHashAndEqualContentsGoTogether) {
  std::vector<Digest> hashes;
  for (int i = 0; i < 20'000; ++i) hashes.push_back(Sha256Of(absl::StrCat(i / 2)));
  const std::vector<bool> held_out = ChooseHeldOut(hashes, 0.05);
  for (size_t i = 0; i < hashes.size(); i += 2) ASSERT_EQ(held_out[i], held_out[i + 1]);
  // 10,000 contents at 5 %: the standard deviation is 22.
  EXPECT_NEAR(std::count(held_out.begin(), held_out.end(), true) / 2, 500, 110);
}

TEST(HeldOutTest, AtLeastOneEachWayWhereThereAreTwoContents) {
  for (int i = 0; i < 50; ++i) {
    const std::vector<Digest> two = {Sha256Of(absl::StrCat("a", i)),
                                     Sha256Of(absl::StrCat("b", i))};
    for (const double share : {1e-9, 0.999999}) {
      const std::vector<bool> held_out = ChooseHeldOut(two, share);
      EXPECT_NE(held_out[0], held_out[1]);
    }
    EXPECT_EQ(ChooseHeldOut(two, 0), std::vector<bool>({false, false}));
    EXPECT_EQ(ChooseHeldOut({two[0], two[0]}, 0.5), std::vector<bool>({false, false}));
  }
}

TEST(HeldOutTest, AddingASourceMovesNoOther) {
  std::vector<Digest> hashes;
  for (int i = 0; i < 200; ++i) hashes.push_back(Sha256Of(absl::StrCat(i)));
  const std::vector<bool> before = ChooseHeldOut(hashes, 0.1);
  hashes.push_back(Sha256Of("one more"));
  std::vector<bool> after = ChooseHeldOut(hashes, 0.1);
  after.pop_back();
  EXPECT_EQ(before, after);
}

}  // namespace
}  // namespace stillhouse
