#include "coordinator/ctl/starting_recipe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/file.h"

namespace stillhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class FindTextsTest : public testing::Test {
 protected:
  std::string Write(const std::string& name) {
    const std::string path = folder_.path() + "/" + name;
    EXPECT_TRUE(MakeFolders(FolderOf(path)).ok());
    EXPECT_TRUE(WriteFileAtomically(path, "text").ok());
    return path;
  }
  TempFolder folder_ = *TempFolder::Create();
};

TEST_F(FindTextsTest, FolderBecomesGlobsOfWhatIsInIt) {
  Write("c/a.txt");
  Write("c/b.jsonl");
  Write("c/picture.png");
  const auto found = FindTexts({folder_.path() + "/c"});
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_THAT(*found, ElementsAre(folder_.path() + "/c/*.txt", folder_.path() + "/c/*.jsonl"));
}

TEST_F(FindTextsTest, WhatTheShellExpandedBecomesAGlobAgain) {
  std::vector<std::string> all;
  for (int i = 0; i < 20; ++i) all.push_back(Write(absl::StrCat("page", i, ".txt")));
  EXPECT_THAT(*FindTexts(all), ElementsAre(folder_.path() + "/*.txt"));
  all.pop_back();  // one of them is not wanted
  EXPECT_EQ(FindTexts(all)->size(), 19u);
}

TEST_F(FindTextsTest, FewFilesAndGlobsStayAsTheyAre) {
  const std::string a = Write("a.txt");
  EXPECT_THAT(*FindTexts({a}), ElementsAre(a));
  EXPECT_THAT(*FindTexts({folder_.path() + "/*.t?t"}), ElementsAre(folder_.path() + "/*.t?t"));
}

TEST_F(FindTextsTest, WhatIsNotThereIsNamed) {
  Write("c/picture.png");
  for (const char* missing : {"/nothing.txt", "/*.txt", "/c"}) {
    const auto found = FindTexts({folder_.path() + missing});
    EXPECT_TRUE(absl::IsNotFound(found.status())) << missing;
    EXPECT_THAT(std::string(found.status().message()), HasSubstr(folder_.path() + missing));
  }
}

TEST(StartingRecipeTest, IsARecipeOfWhatWasAsked) {
  StartingRecipe start;
  start.file = "/work space/recipes/first.yaml";
  start.teacher = "/work space/models/SmolLM2 \"Q4\".gguf";
  start.config.layers = 30;
  start.config.max_positions = 8192;
  start.texts = {"/work space/My Corpus/*.txt", "/elsewhere/chats.jsonl"};
  const std::string text = WriteStartingRecipe(start, 1'200'000);
  EXPECT_EQ(text.find('$'), std::string::npos) << text;
  const auto recipe = ParseRecipe(text, start.file);
  ASSERT_TRUE(recipe.ok()) << recipe.status() << "\n" << text;
  EXPECT_EQ(recipe->name, "my-corpus");
  EXPECT_EQ(recipe->teacher.model, start.teacher);
  EXPECT_EQ(recipe->teacher.written, "../models/SmolLM2 \"Q4\".gguf");
  ASSERT_EQ(recipe->dataset.sources.size(), 2u);
  EXPECT_EQ(recipe->dataset.sources[0].path, start.texts[0]);
  EXPECT_EQ(recipe->dataset.sources[1].path, start.texts[1]);
  EXPECT_EQ(recipe->cache_directory, "/work space/recipes/cache");
  ASSERT_EQ(recipe->students.size(), 1u);
  EXPECT_EQ(recipe->students[0].init.keep, 15);
  EXPECT_EQ(recipe->students[0].steps, 136);  // 1.2 MB in steps of 2,048 tokens of 4.3 bytes
  EXPECT_EQ(recipe->students[0].evaluate_every, 34);
}

TEST(StartingRecipeTest, StaysARecipeAtTheEdges) {
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1} << 50}) {
    for (const int64_t layers : {1, 2, 80}) {
      StartingRecipe start;
      start.file = "/r.yaml";
      start.teacher = "/t";
      start.config.layers = layers;
      start.config.max_positions = 64;
      start.texts = {"/_"};
      const auto recipe = ParseRecipe(WriteStartingRecipe(start, bytes), start.file);
      ASSERT_TRUE(recipe.ok()) << recipe.status();
      EXPECT_EQ(recipe->dataset.max_tokens, 64);
      EXPECT_GE(recipe->students[0].init.keep, 1);
    }
  }
}

}  // namespace
}  // namespace stillhouse
