// Models split into several GGUF files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <map>
#include <string>

#include "absl/strings/str_format.h"
#include "common/file.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "tests/formats/gguf_builder.h"
#include "tests/formats/tiny_model.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

class GgufSplitTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return JoinPath(folder_.path(), name); }
  std::string PartPath(int64_t number, const std::string& stem = "tiny", int64_t count = 3) const {
    return Path(absl::StrFormat("%s-%05d-of-%05d.gguf", stem, number, count));
  }
  void Write(const std::string& path, const TinyPart& part) {
    SH_CHECK_OK(WriteFileAtomically(path, TinyGgufPart(options_, part)));
  }
  void WriteParts(const std::string& stem = "tiny") {
    for (int64_t number = 0; number < 3; ++number) {
      Write(PartPath(number + 1, stem), {.number = number});
    }
  }
  // One line that says `what` and names `path`.
  void ExpectRefused(const std::string& given, absl::StatusCode code, const std::string& path,
                     const std::string& what) {
    const absl::Status status = OpenModelFiles(given).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
    EXPECT_THAT(std::string(status.message()), HasSubstr(what));
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);
  }

  static constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  TempFolder folder_ = *TempFolder::Create();
  TinyModelOptions options_;
};

TEST_F(GgufSplitTest, AnyPartOrTheFolderIsTheWholeModel) {
  WriteParts();
  const std::string whole = Path("whole/tiny.gguf");
  ASSERT_TRUE(MakeFolders(Path("whole")).ok());
  ASSERT_TRUE(WriteTinyGguf(whole, options_, "F16").ok());
  const auto expected = OpenModelFiles(whole);
  ASSERT_TRUE(expected.ok()) << expected.status();
  const Digest fingerprint = *TeacherFingerprint(*expected, "");
  for (const std::string& path : {PartPath(1), PartPath(2), PartPath(3), folder_.path()}) {
    const auto model = OpenModelFiles(path);
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->format, "gguf");
    EXPECT_EQ(model->config, expected->config);
    EXPECT_EQ(model->weights->files().size(), 3u);
    EXPECT_EQ(*TeacherFingerprint(*model, ""), fingerprint) << path;
    const auto tokenizer = OpenTokenizer(path);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->Fingerprint(), expected->tokenizer->Fingerprint());
  }
}

TEST_F(GgufSplitTest, AMissingPartIsNamed) {
  WriteParts();
  for (int64_t missing = 1; missing <= 3; ++missing) {
    ASSERT_EQ(std::rename(PartPath(missing).c_str(), Path("away").c_str()), 0);
    const std::string what = absl::StrCat("part ", missing, " of 3 of the model is missing");
    const std::string other = PartPath(missing == 1 ? 2 : 1);
    ExpectRefused(other, absl::StatusCode::kNotFound, PartPath(missing), what);
    if (missing > 1) {
      ExpectRefused(folder_.path(), absl::StatusCode::kNotFound, PartPath(missing), what);
    }
    ASSERT_EQ(std::rename(Path("away").c_str(), PartPath(missing).c_str()), 0);
  }
}

TEST_F(GgufSplitTest, PartsThatDoNotBelongTogetherAreRefused) {
  WriteParts();
  Write(PartPath(2), {.number = 2});  // a copy of part 3
  ExpectRefused(PartPath(1), kInvalid, PartPath(2), "part 3 of 3");
  Write(PartPath(2), {.number = 1, .count = 4});
  ExpectRefused(PartPath(1), kInvalid, PartPath(2), "part 2 of 4");
  Write(PartPath(2), {.number = 1, .tensors_error = 1});
  ExpectRefused(PartPath(1), kInvalid, PartPath(2), "another model");
  Write(PartPath(2), {.number = 1, .tensors_of = 2});
  ExpectRefused(PartPath(1), kInvalid, PartPath(3), "is in an earlier part too");
  // A whole model where a part should be.
  ASSERT_TRUE(WriteTinyGguf(PartPath(2), options_).ok());
  ExpectRefused(PartPath(1), kInvalid, PartPath(2), "it is no part of a split model");
  // The parts of a model of another shape.
  options_.hidden = 32;
  Write(PartPath(2), {.number = 1});
  ExpectRefused(PartPath(1), kInvalid, PartPath(1), "has the shape");
}

TEST_F(GgufSplitTest, PartsOutOfOrderOrInOnesOwnPlaceAreRefused) {
  WriteParts();
  ASSERT_EQ(std::rename(PartPath(2).c_str(), Path("spare").c_str()), 0);
  ASSERT_EQ(std::rename(PartPath(3).c_str(), PartPath(2).c_str()), 0);
  ASSERT_EQ(std::rename(Path("spare").c_str(), PartPath(3).c_str()), 0);
  ExpectRefused(PartPath(1), kInvalid, PartPath(2), "says that it is part 3 of 3");
  ExpectRefused(PartPath(3), kInvalid, PartPath(3), "is called part 3 of 3");
  // A part that is another by a link, or leads to itself.
  ASSERT_EQ(std::remove(PartPath(2).c_str()), 0);
  ASSERT_EQ(::symlink(PartPath(1).c_str(), PartPath(2).c_str()), 0);
  ExpectRefused(PartPath(1), kInvalid, PartPath(2), "says that it is part 1 of 3");
  ASSERT_EQ(std::remove(PartPath(2).c_str()), 0);
  ASSERT_EQ(::symlink(PartPath(2).c_str(), PartPath(2).c_str()), 0);
  EXPECT_THAT(std::string(OpenModelFiles(PartPath(1)).status().message()), HasSubstr(PartPath(2)));
  // A folder or a pipe in a part's place: nothing waits for a writer.
  ASSERT_EQ(std::remove(PartPath(2).c_str()), 0);
  ASSERT_TRUE(MakeFolders(PartPath(2)).ok());
  EXPECT_THAT(std::string(OpenModelFiles(PartPath(1)).status().message()), HasSubstr(PartPath(2)));
  ASSERT_EQ(std::remove(PartPath(2).c_str()), 0);
  ASSERT_EQ(::mkfifo(PartPath(2).c_str(), 0600), 0);
  EXPECT_THAT(std::string(OpenModelFiles(PartPath(1)).status().message()), HasSubstr(PartPath(2)));
}

TEST_F(GgufSplitTest, WrongCountsAndNamesAreRefused) {
  for (int64_t number = 0; number < 3; ++number) {
    Write(PartPath(number + 1), {.number = number, .tensors_error = 1});
  }
  ExpectRefused(PartPath(1), kInvalid, PartPath(1), "split.tensors.count says");
  Write(Path("renamed.gguf"), {.number = 1});
  ExpectRefused(Path("renamed.gguf"), kInvalid, "renamed.gguf", "-00002-of-00003.gguf");
  Write(PartPath(1, "m", 2), {.number = 0, .count = 3});
  ExpectRefused(PartPath(1, "m", 2), kInvalid, PartPath(1, "m", 2), "is called part 1 of 2");
  Write(PartPath(3, "n"), {.number = 1});
  ExpectRefused(PartPath(3, "n"), kInvalid, PartPath(3, "n"), "says that it is part 2 of 3");
  Write(PartPath(1, "many", 60000), {.number = 0, .count = 60000});
  ExpectRefused(PartPath(1, "many", 60000), kInvalid, "many", "1 to 1024 are possible");
  for (const int32_t count : {0, -1}) {
    const auto i32 = [](int32_t value) {
      return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
    };
    GgufBuilder file;
    file.AddRaw("split.no", 5, i32(-1));
    file.AddRaw("split.count", 5, i32(count));
    file.AddRaw("split.tensors.count", 5, i32(-1));
    SH_CHECK_OK(WriteFileAtomically(PartPath(1, "negative"), file.Build()));
    ExpectRefused(PartPath(1, "negative"), kInvalid, "negative", "1 to 1024 are possible");
  }
  GgufBuilder words;
  words.AddString("split.count", "3");
  SH_CHECK_OK(WriteFileAtomically(PartPath(1, "words"), words.Build()));
  ExpectRefused(PartPath(1, "words"), kInvalid, "words", "\"split.count\" is not an integer");
}

TEST_F(GgufSplitTest, AFolderOfTwoSplitModelsAsksWhich) {
  WriteParts("a");
  WriteParts("b");
  ExpectRefused(folder_.path(), kInvalid, folder_.path(), "a (3 parts) and b (3 parts)");
  EXPECT_TRUE(OpenModelFiles(PartPath(2, "b")).ok());
}

}  // namespace
}  // namespace stillhouse
