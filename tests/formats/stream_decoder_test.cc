// StreamDecoder beyond what tokenizer_variants_test compares with the Python package.
#include <gtest/gtest.h>

#include "absl/strings/str_format.h"
#include "common/status.h"
#include "formats/tokenizer_spec.h"

namespace stillhouse {
namespace {

constexpr int32_t kA = 256, kSpaceB = 257, kEnd = 258;

// Byte b has id b, and there are "a", " b" and a special "</s>". One space at the start of a text
// is the tokenizer's own.
std::shared_ptr<const Tokenizer> Bytes() {
  TokenizerSpec spec;
  for (int byte = 0; byte < 256; ++byte) spec.tokens.push_back(absl::StrFormat("<0x%02X>", byte));
  spec.tokens.insert(spec.tokens.end(), {"a", "\u2581b", "</s>"});
  AddedToken end;
  end.id = kEnd;
  end.content = "</s>";
  end.special = true;
  spec.added = {end};
  spec.byte_fallback = true;
  spec.decoder = {{DecoderStep::Kind::kReplaceLiteral, "\u2581", " "},
                  {DecoderStep::Kind::kByteFallback},
                  {DecoderStep::Kind::kFuse},
                  {DecoderStep::Kind::kStrip, "", " ", /*start=*/1}};
  auto tokenizer = MakeTokenizer(std::move(spec));
  SH_CHECK_OK(tokenizer);
  return *tokenizer;
}

TEST(StreamDecoderTest, ACharacterComesWithItsLastByte) {
  const auto tokenizer = Bytes();
  StreamDecoder stream(*tokenizer, /*skip_special=*/true);
  EXPECT_EQ(*stream.Add(0xe6), "");
  EXPECT_EQ(*stream.Add(0x97), "");
  EXPECT_EQ(*stream.Add(0xa5), "\u65e5");
  EXPECT_EQ(*stream.Add(kEnd), "");
  EXPECT_EQ(*stream.Add(kA), "a");
  EXPECT_EQ(*stream.Add(0xc3), "");
  EXPECT_EQ(*stream.Finish(), "\ufffd");
}

TEST(StreamDecoderTest, GoesOnAfterAPrompt) {
  const auto tokenizer = Bytes();
  StreamDecoder alone(*tokenizer, /*skip_special=*/true), after(*tokenizer, /*skip_special=*/true);
  EXPECT_EQ(*alone.Add(kSpaceB), "b");  // the space is the tokenizer's own
  ASSERT_TRUE(after.Begin({kA, kEnd}).ok());
  EXPECT_EQ(*after.Add(kSpaceB), " b");
  EXPECT_EQ(*after.Add(kSpaceB), " b");
  EXPECT_EQ(*after.Finish(), "");
  StreamDecoder unknown(*tokenizer, /*skip_special=*/true);
  EXPECT_EQ(unknown.Begin({999}).code(), absl::StatusCode::kOutOfRange);
}

TEST(StreamDecoderTest, GivesUpOnBytesThatBreakWhatWasGivenOut) {
  const auto tokenizer = Bytes();
  StreamDecoder stream(*tokenizer, /*skip_special=*/false);
  EXPECT_EQ(*stream.Add(0xc3), "");
  EXPECT_EQ(*stream.Add(0xa9), "\u00e9");
  EXPECT_EQ(*stream.Add(0xff), "");  // now all three spell nothing
  EXPECT_EQ(stream.Add(kSpaceB).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(*stream.GiveUp(), "\ufffd b");
  EXPECT_EQ(*stream.Add(kA), "a");
  // The same where the text ends there.
  EXPECT_EQ(*stream.Add(0xc3), "");
  EXPECT_EQ(*stream.Add(0xa9), "\u00e9");
  EXPECT_EQ(*stream.Add(0xff), "");
  EXPECT_EQ(stream.Finish().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(*stream.GiveUp(), "\ufffd");
  EXPECT_EQ(*stream.Finish(), "");
}

}  // namespace
}  // namespace stillhouse
