#include "dataset/sources.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/file.h"
#include "common/status.h"
#include "formats/utf8.h"

namespace stillhouse {
namespace {

using testing::ElementsAre;
using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

class SourcesTest : public testing::Test {
 protected:
  SourcesTest() : folder_(*TempFolder::Create()) {}
  std::string Write(const std::string& name, absl::string_view bytes) {
    const std::string path = JoinPath(folder_.path(), name);
    SH_CHECK_OK(MakeFolders(FolderOf(path)));
    SH_CHECK_OK(WriteFileAtomically(path, bytes));
    return path;
  }
  std::string Path(const std::string& name) { return JoinPath(folder_.path(), name); }

  absl::StatusOr<std::vector<Source>> ReadAll(const std::string& path) {
    std::vector<Source> sources;
    SH_ASSIGN_OR_RETURN(const std::vector<SourceFile> files, FindSources({{path, ""}}));
    for (const SourceFile& file : files) {
      SH_RETURN_IF_ERROR(ReadSources(file, /*id_bound=*/100, [&](Source source, uint64_t) {
        sources.push_back(std::move(source));
        return absl::OkStatus();
      }));
    }
    return sources;
  }
  std::string ErrorOf(const std::string& name, absl::string_view bytes) {
    const std::string path = Write(name, bytes);
    const absl::Status status = ReadAll(path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), StartsWith(path));
    EXPECT_EQ(status.message().find('\n'), absl::string_view::npos) << status;
    return std::string(status.message()).substr(path.size());
  }

  TempFolder folder_;
};

TEST_F(SourcesTest, FilesComeInOrderOfRecipeThenName) {
  Write("a/2.txt", "x");
  Write("a/1.txt", "x");
  Write("b/9.jsonl", "");
  Write("a/folder.txt/inner", "x");
  const auto files = FindSources({{Path("b/*.jsonl"), "code"}, {Path("a/*.txt"), ""}});
  ASSERT_TRUE(files.ok()) << files.status();
  std::vector<std::string> names;
  for (const SourceFile& file : *files) names.push_back(BaseName(file.path) + " " + file.domain);
  EXPECT_THAT(names, ElementsAre("9.jsonl code", "1.txt default", "2.txt default"));
  EXPECT_TRUE(files->front().json_lines);
}

TEST_F(SourcesTest, AFileWhoseNameIsAPatternIsItself) {
  Write("[draft] a*.txt", "hello");
  EXPECT_EQ((*ReadAll(Path("[draft] a*.txt"))).front().text, "hello");
}

TEST_F(SourcesTest, RefusesWhatNamesNoUsableFile) {
  Write("a/1.txt", "x");
  Write("b.json", "{}");
  const auto code = [&](std::vector<SourceRecipe> recipes) {
    return FindSources(recipes).status();
  };
  EXPECT_THAT(std::string(code({{Path("c/*.txt"), ""}}).message()), HasSubstr("no file matches"));
  EXPECT_EQ(code({{Path("c/*.txt"), ""}}).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(code({{Path("a"), ""}}).message()), HasSubstr("is a folder"));
  EXPECT_THAT(std::string(code({{Path("**/1.txt"), ""}}).message()), HasSubstr("'**'"));
  EXPECT_THAT(std::string(code({{Path("b.json"), ""}}).message()), HasSubstr(".jsonl"));
  EXPECT_THAT(std::string(code({{Path("a/*.txt"), ""}, {Path("a/1.txt"), "x"}}).message()),
              HasSubstr("is matched by both"));
}

TEST_F(SourcesTest, TextIsTakenWholeWithoutItsByteOrderMark) {
  Write("a.txt", "\xEF\xBB\xBFline\r\n\xE2\x82\xAC");
  const auto sources = ReadAll(Path("a.txt"));
  ASSERT_TRUE(sources.ok());
  EXPECT_EQ(sources->at(0).text, "line\r\n\xE2\x82\xAC");
  EXPECT_EQ(sources->at(0).where, Path("a.txt"));
}

TEST_F(SourcesTest, NamesTheLineThatIsNotUtf8) {
  EXPECT_EQ(ErrorOf("a.txt", "one\ntwo \xC3(\n"), ":2: not UTF-8: byte 0xc3 at byte 5 of the line");
  EXPECT_THAT(ErrorOf("b.jsonl", "{\"text\": \"a\"}\n{\"text\": \"\xFF\"}\n"),
              StartsWith(":2: not UTF-8"));
}

TEST_F(SourcesTest, JsonLinesHoldTextOrIds) {
  Write("a.jsonl",
        "{\"text\": \"hi\", \"id\": 7}\n\n"
        "{\"input_ids\": [1, 99], \"loss_mask\": [0, true]}\r\n{\"input_ids\": [5]}");
  const auto sources = ReadAll(Path("a.jsonl"));
  ASSERT_TRUE(sources.ok()) << sources.status();
  ASSERT_EQ(sources->size(), 3u);
  EXPECT_EQ(sources->at(0).text, "hi");
  EXPECT_THAT(sources->at(1).where, EndsWith("a.jsonl:3"));
  EXPECT_THAT(sources->at(1).ids, ElementsAre(1, 99));
  EXPECT_THAT(sources->at(1).loss_mask, ElementsAre(0, 1));
  EXPECT_THAT(sources->at(2).loss_mask, ElementsAre(1));
}

TEST_F(SourcesTest, RefusesBadJsonLinesByLine) {
  const struct {
    const char* line;
    const char* message;
  } cases[] = {
      {"{\"text\": ", "not JSON"},
      {"[1]", "not a JSON object"},
      {"{\"txt\": \"a\"}", "has neither"},
      {"{\"text\": \"a\", \"input_ids\": [1]}", "has both"},
      {"{\"text\": \"a\", \"text\": \"b\"}", "\"text\" stands twice"},
      {"{\"text\": 3}", "text: not a string"},
      {"{\"text\": \"a\", \"loss_mask\": [1]}", "loss_mask: needs"},
      {"{\"input_ids\": 3}", "input_ids: not a list"},
      {"{\"input_ids\": [1, 100]}", "input_ids[1]: 100 is not a token id (0 to 99)"},
      {"{\"input_ids\": [-1]}", "input_ids[0]: -1"},
      {"{\"input_ids\": [1.0]}", "input_ids[0]: 1.0"},
      {"{\"input_ids\": [18446744073709551617]}", "input_ids[0]"},
      {"{\"input_ids\": [1], \"loss_mask\": [1, 1]}", "loss_mask has 2 entries for 1"},
      {"{\"input_ids\": [1], \"loss_mask\": [2]}", "loss_mask[0]: not 0 or 1"},
      {"{\"text\": \"\\ud800\"}", "not JSON"},
  };
  for (const auto& [line, message] : cases) {
    EXPECT_THAT(ErrorOf("bad.jsonl", absl::StrCat("{\"text\": \"fine\"}\n", line, "\n")),
                testing::AllOf(StartsWith(":2: "), HasSubstr(message)))
        << line;
  }
}

TEST_F(SourcesTest, DeeplyNestedJsonIsRefusedWithoutHarm) {
  EXPECT_THAT(ErrorOf("deep.jsonl", std::string(1'000'000, '[')), HasSubstr("not JSON"));
  Write("deep2.jsonl", absl::StrCat("{\"text\": \"a\", \"x\": ", std::string(100'000, '['),
                                    std::string(100'000, ']'), "}"));
  EXPECT_TRUE(ReadAll(Path("deep2.jsonl")).ok());
  EXPECT_THAT(ErrorOf("ids.jsonl", absl::StrCat("{\"input_ids\": [", std::string(1'000'000, '['),
                                                std::string(1'000'000, ']'), "]}")),
              HasSubstr("input_ids[0]: [["));
}

TEST_F(SourcesTest, ContentHashIsOfTheContentOnly) {
  Source a, b;
  a.where = "x";
  a.text = b.text = "same";
  EXPECT_EQ(a.ContentHash(), b.ContentHash());
  b.text = "other";
  EXPECT_NE(a.ContentHash(), b.ContentHash());
}

TEST(Utf8Test, FindsTheFirstBadByte) {
  EXPECT_EQ(FindInvalidUtf8("plain ascii, longer than eight"), absl::string_view::npos);
  EXPECT_EQ(FindInvalidUtf8("\xF0\x9F\x98\x80\xEF\xBF\xBF\xC2\x80"), absl::string_view::npos);
  for (const char* bad : {"\x80", "\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xED\xA0\x80",
                          "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xE2\x82", "\xF0\x9F\x98"}) {
    EXPECT_EQ(FindInvalidUtf8(absl::StrCat("12345678a", bad)), 9u);
  }
}

}  // namespace
}  // namespace stillhouse
