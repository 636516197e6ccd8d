#include "dataset/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "common/digest.h"
#include "common/file.h"
#include "common/random.h"
#include "common/status.h"
#include "dataset/plan_format.h"
#include "dataset/plan_writer.h"

namespace stillhouse {
namespace {

using testing::HasSubstr;

class PlanTest : public testing::Test {
 protected:
  PlanTest() : folder_(*TempFolder::Create()) {
    auto writer = *PlanWriter::Create({.folder = folder_.path(),
                                       .tokenizer = Sha256Of("tokenizer"),
                                       .vocabulary = 100,
                                       .max_tokens = 9,
                                       .shuffle_window = 2,
                                       .chunk_tokens = 20,
                                       .seed = 1,
                                       .domains = {"a", "long name"}});
    for (uint32_t source = 0; source < 12; ++source) {
      std::vector<int32_t> ids;
      for (uint32_t i = 0; i < 2 + source % 8; ++i) ids.push_back((source * 31 + i * 7) % 100);
      SH_CHECK_OK(writer->Add(ids, std::vector<uint8_t>(ids.size(), 1), source % 2, source));
    }
    std::vector<bool> held_out(12, false);
    held_out[3] = held_out[8] = true;
    const auto written = writer->Finish(held_out);
    SH_CHECK_OK(written);
    path_ = written->path;
    bytes_ = *ReadFile(path_);
  }
  absl::Status Parse(std::string bytes) {
    return ParsePlan(std::make_shared<const std::string>(std::move(bytes))).status();
  }
  // Puts the checksum right, as a hostile writer would.
  std::string Sealed(std::string bytes) {
    const uint64_t checksum = Xxh3(absl::string_view(bytes).substr(0, bytes.size() - 8));
    std::memcpy(bytes.data() + bytes.size() - 8, &checksum, 8);
    return bytes;
  }
  template <typename T>
  std::string With(uint64_t offset, T value) {
    std::string bytes = bytes_;
    std::memcpy(bytes.data() + offset, &value, sizeof(value));
    return Sealed(std::move(bytes));
  }

  TempFolder folder_;
  std::string path_, bytes_;
};

TEST_F(PlanTest, ReadsBackWhatWasWritten) {
  const auto plan = OpenPlan(path_);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ((*plan)->digest(), Sha256Of(bytes_));
  EXPECT_EQ(BaseName(path_), (*plan)->digest().Hex() + ".plan");
  EXPECT_EQ((*plan)->document_count(), 12u);
  EXPECT_EQ((*plan)->tokenizer_fingerprint(), Sha256Of("tokenizer"));
  uint64_t rows = 0;
  for (uint32_t c = 0; c < (*plan)->chunk_count(); ++c) rows += (*plan)->chunk(c).rows;
  EXPECT_EQ(rows, (*plan)->training_rows() + (*plan)->held_out_rows());
  EXPECT_EQ((*plan)->held_out_rows(), 4u + 1u);
  const PlanDocument document = (*plan)->document(5);
  EXPECT_EQ(document.key,
            DocumentKey(Sha256Of("tokenizer"), document.tokens.data(), document.tokens.size()));
  const uint32_t source = document.tokens[0] % 31 == 0 ? document.tokens[0] / 31 : 99;
  if (source < 4) {
    EXPECT_EQ(document.tokens.size(), 2 + source % 8);
  }
}

TEST_F(PlanTest, ParsesWhatItOpens) {
  const auto plan = ParsePlan(std::make_shared<const std::string>(bytes_));
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ((*plan)->digest(), (*OpenPlan(path_))->digest());
}

TEST_F(PlanTest, TheBytesOfVersion1StayAsTheyAre) {
  EXPECT_EQ(Sha256Of(bytes_).Hex(),
            "c903018e2c7f0f9153f4376961cb9c606eb1c13e8356ea0d6cd8b53fef796278");
}

TEST_F(PlanTest, EveryFlippedByteIsCaught) {
  for (size_t i = 0; i < bytes_.size(); ++i) {
    std::string damaged = bytes_;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
    EXPECT_FALSE(Parse(std::move(damaged)).ok()) << i;
  }
}

TEST_F(PlanTest, EveryTruncationIsCaught) {
  for (size_t size = 0; size < bytes_.size(); ++size) {
    EXPECT_FALSE(Parse(bytes_.substr(0, size)).ok()) << size;
  }
  EXPECT_EQ(Parse(bytes_ + std::string(8, '\0')).code(), absl::StatusCode::kDataLoss);
}

TEST_F(PlanTest, HostileCountsWithARightChecksumAreRefusedByName) {
  const PlanHeader header = *DecodePlanHeader(bytes_);
  const PlanLayout layout = LayOutPlan(header);
  const struct {
    std::string bytes;
    const char* message;
  } cases[] = {
      {With<uint32_t>(layout.tokens, 100), "token 0 is 100"},
      {With<int32_t>(layout.tokens, -1), "token 0 is -1"},
      {With<uint8_t>(layout.loss_mask + 3, 2), "loss mask of token 3"},
      {With<uint32_t>(layout.document_domains + 4, 2), "document 1 has no such domain"},
      {With<uint64_t>(layout.token_offsets + 8, 1), "document 0 has an impossible length"},
      {With<uint64_t>(layout.token_offsets + 8, ~0ull), "document 0 has an impossible length"},
      {With<uint64_t>(layout.keys, 0), "document 0 does not have the key"},
      {With<uint32_t>(layout.chunk_begins + 4, 0), "chunk 0 has an impossible range"},
      {With<uint32_t>(layout.chunk_begins + 4, 0xFFFFFFFF), "chunk 0 has an impossible range"},
      {With<uint32_t>(layout.chunk_batches + 4, 0xFFFFFFFF), "chunk 0 has an impossible range"},
      {With<uint32_t>(layout.batches + 4, 0xFFFFFFFF), "batch 0 does not follow"},
      {With<uint32_t>(layout.batches + 8, 1), "batch 0 has length 1"},
      {With<uint32_t>(layout.batches + 8, 10), "batch 0 has length 10"},
      {With<uint32_t>(layout.domain_ends, 0xFFFFFFFF), "domain 0 has an impossible name"},
      {With<uint8_t>(layout.domain_names, 0xFF), "domain 0 is not UTF-8"},
  };
  for (const auto& [bytes, message] : cases) {
    const absl::Status status = Parse(bytes);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
}

TEST_F(PlanTest, RandomDamageWithARightChecksumNeverCrashes) {
  RandomStream random(4);
  int parsed = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string damaged = bytes_;
    const uint64_t hits = 1 + random.NextBelow(3);
    for (uint64_t k = 0; k < hits; ++k) {
      damaged[random.NextBelow(damaged.size())] = static_cast<char>(random.Next32());
    }
    parsed += Parse(Sealed(std::move(damaged))).ok();
  }
  EXPECT_LT(parsed, 3000);
}

TEST_F(PlanTest, ALaterVersionIsNamed) {
  EXPECT_EQ(Parse(With<uint32_t>(8, 2)).code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(Parse(With<uint32_t>(8, 2)).message()), HasSubstr("version 2"));
}

}  // namespace
}  // namespace stillhouse
