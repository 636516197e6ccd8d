#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>

#include "common/byte_io.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/random.h"
#include "common/status.h"
#include "common/tensor_view.h"
#include "common/utf8.h"

namespace stillhouse {
namespace {

TEST(StatusTest, AnnotatePutsTheActionFirstAndKeepsTheCode) {
  const absl::Status status = Annotate(absl::DataLossError("checksum mismatch"), "reading shard 7");
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(status.message(), "reading shard 7: checksum mismatch");
  EXPECT_EQ(ExitCodeFor(status), kExitCorrupt);
}

TEST(DigestTest, Sha256OfAbcIsThatOfTheStandard) {
  EXPECT_EQ(Sha256Of("abc").Hex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(DigestTest, FieldsAreSelfDelimiting) {
  EXPECT_NE(Sha256().AddField("ab").AddField("c").Finish(),
            Sha256().AddField("a").AddField("bc").Finish());
}

TEST(DigestTest, HexRoundTripsAndRefusesAnythingElse) {
  const Digest digest = Sha256Of("x");
  EXPECT_EQ(*DigestFromHex(digest.Hex()), digest);
  EXPECT_FALSE(DigestFromHex("12").ok());
  EXPECT_FALSE(DigestFromHex(std::string(64, 'g')).ok());
}

TEST(ByteIoTest, ReaderFailsForGoodInsteadOfReadingPastTheEnd) {
  ByteWriter writer;
  writer.Put<uint32_t>(7);
  writer.PutVarint(1ull << 63);
  writer.PutField("abc");
  ByteReader reader(writer.bytes());
  uint32_t number = 0;
  uint64_t big = 0;
  absl::string_view field;
  EXPECT_TRUE(reader.Get(&number) && reader.GetVarint(&big) && reader.GetField(&field));
  EXPECT_EQ(number, 7u);
  EXPECT_EQ(big, 1ull << 63);
  EXPECT_EQ(field, "abc");
  EXPECT_TRUE(reader.AtEnd());
  EXPECT_FALSE(reader.Get(&number));
  EXPECT_FALSE(reader.ok());
}

TEST(ByteIoTest, FieldLongerThanTheInputIsRefused) {
  ByteWriter writer;
  writer.PutVarint(~0ull);
  ByteReader reader(writer.bytes());
  absl::string_view field;
  EXPECT_FALSE(reader.GetField(&field));
}

// Known-answer vectors of the Random123 distribution.
TEST(RandomTest, PhiloxMatchesItsPublishedVectors) {
  EXPECT_THAT(Philox4x32({0, 0, 0, 0}, {0, 0}),
              testing::ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  EXPECT_THAT(Philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
              testing::ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
}

TEST(RandomTest, PermutationIsAPureFunctionOfSeedAndStream) {
  const auto first = Permutation(100, 7, 1);
  EXPECT_EQ(first, Permutation(100, 7, 1));
  EXPECT_NE(first, Permutation(100, 7, 2));
  auto sorted = first;
  std::sort(sorted.begin(), sorted.end());
  for (uint32_t i = 0; i < 100; ++i) EXPECT_EQ(sorted[i], i);
}

TEST(RandomTest, NormalHasMeanZeroAndVarianceOne) {
  RandomStream random(3);
  double sum = 0, squares = 0;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    const double x = random.NextNormal();
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kDraws, 0, 0.03);
  EXPECT_NEAR(squares / kDraws, 1, 0.05);
}

TEST(TensorViewTest, Bf16RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(FloatToBf16(1.0f), 0x3f80);
  EXPECT_EQ(Bf16ToFloat(FloatToBf16(1.00390625f)), 1.0f);  // a tie goes to the even neighbour
  EXPECT_EQ(Bf16ToFloat(FloatToBf16(1.01171875f)), 1.015625f);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(NAN))));
}

TEST(TensorViewTest, F16CoversSubnormalsAndInfinity) {
  EXPECT_EQ(F16ToFloat(0x3c00), 1.0f);
  EXPECT_EQ(F16ToFloat(0xc000), -2.0f);
  EXPECT_EQ(F16ToFloat(0x0001), std::ldexp(1.0f, -24));
  EXPECT_TRUE(std::isinf(F16ToFloat(0x7c00)));
  EXPECT_TRUE(std::isnan(F16ToFloat(0x7e00)));
}

TEST(FileTest, AtomicWriteReplacesAndLeavesNothingBeside) {
  const TempFolder folder = *TempFolder::Create();
  const std::string path = JoinPath(folder.path(), "f");
  SH_CHECK_OK(WriteFileAtomically(path, "one"));
  SH_CHECK_OK(WriteFileAtomically(path, "two"));
  EXPECT_EQ(*ReadFile(path), "two");
  EXPECT_THAT(*ListFolder(folder.path()), testing::ElementsAre("f"));
  EXPECT_EQ(ReadFile(path, 2).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReadFile(path + "x").status().code(), absl::StatusCode::kNotFound);
  const std::string pipe = path + ".pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(ReadFile(pipe).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MappedFile::Open(pipe).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(FileTest, LockIsExclusiveUntilReleased) {
  const TempFolder folder = *TempFolder::Create();
  const std::string path = JoinPath(folder.path(), "LOCK");
  auto held = *FileLock::Acquire(path, FileLock::Mode::kExclusive);
  EXPECT_EQ(FileLock::Acquire(path, FileLock::Mode::kShared).status().code(),
            absl::StatusCode::kFailedPrecondition);
  held.reset();
  EXPECT_TRUE(FileLock::Acquire(path, FileLock::Mode::kShared).ok());
}

TEST(FileTest, PathsJoinAndSplit) {
  EXPECT_EQ(JoinPath("a", "b"), "a/b");
  EXPECT_EQ(JoinPath("a/", "/b"), "/b");
  EXPECT_EQ(FolderOf("/a"), "/");
  EXPECT_EQ(FolderOf("a"), ".");
  EXPECT_EQ(BaseName("a/b/"), "b");
}

TEST(Utf8Test, WhatIsUtf8StaysAsItIs) {
  for (const std::string text : {"", "plain", "caf\xc3\xa9", "\xe2\x82\xac \xf0\x9f\x9a\x80"}) {
    EXPECT_TRUE(IsUtf8(text));
    EXPECT_EQ(CleanUtf8(text), text);
  }
  EXPECT_EQ(CleanUtf8(absl::string_view("a\0b", 3)), std::string("a\0b", 3));
}

TEST(Utf8Test, WhatIsNoneIsReplacedPieceByPiece) {
  EXPECT_EQ(CleanUtf8("a\xff"
                      "b"),
            "a\xef\xbf\xbd"
            "b");
  EXPECT_EQ(CleanUtf8("\xe2\x82"), "\xef\xbf\xbd") << "half a character is one piece";
  // An overlong one, a surrogate, beyond the last: each byte for itself.
  for (const std::string text : {"\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80"}) {
    EXPECT_FALSE(IsUtf8(text));
    EXPECT_EQ(CleanUtf8(text).size(), 3 * text.size());
    EXPECT_TRUE(IsUtf8(CleanUtf8(text)));
  }
}

TEST(Utf8Test, CutsFallBetweenCharacters) {
  EXPECT_EQ(CleanUtf8("ab\xe2\x82\xac"
                      "c",
                      5),
            "ab\xe2\x82\xac");
  EXPECT_EQ(CleanUtf8("ab\xe2\x82\xac"
                      "c",
                      4),
            "ab");
  EXPECT_EQ(CleanUtf8("\xff", 2), "") << "the replacement takes three";
  EXPECT_EQ(CleanUtf8("abc", 0), "");
}

}  // namespace
}  // namespace stillhouse
