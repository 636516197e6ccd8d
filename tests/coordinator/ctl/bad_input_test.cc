// What people get wrong before anything runs: each time one clear line and a documented exit code.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/file.h"
#include "common/status.h"
#include "tests/formats/tiny_model.h"

namespace stillhouse {
namespace {

using testing::HasSubstr;
using testing::Not;

struct Result {
  int code = -1;
  std::string out;  // standard output and, when asked for, standard error
  size_t lines() const { return std::count(out.begin(), out.end(), '\n'); }
};

// A folder with a tiny teacher and some texts, and coordinatorctl started in it.
class BadInputTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WriteTinyModel(Path("models/tiny")).ok());
    ASSERT_TRUE(MakeFolders(Path("texts")).ok());
    for (int i = 0; i < 12; ++i) {
      std::string text;
      for (int word = 0; word < 60 + i; ++word) absl::StrAppend(&text, "word ", word * i, " ");
      ASSERT_TRUE(WriteFileAtomically(Path(absl::StrCat("texts/", i, ".txt")), text).ok());
    }
  }
  std::string Path(const std::string& name) const { return JoinPath(folder_.path(), name); }

  Result Ctl(const std::string& words, bool errors_too = true) {
    const std::string command = absl::StrCat(
        "cd '", folder_.path(), "' && XDG_CACHE_HOME='", folder_.path(), "/home' '",
        SH_TEST_BUILD_DIR, "/bin/coordinatorctl' ", words, errors_too ? " 2>&1" : " 2>/dev/null");
    Result result;
    FILE* pipe = popen(command.c_str(), "r");
    char buffer[4096];
    for (size_t got; (got = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
      result.out.append(buffer, got);
    }
    const int status = pclose(pipe);
    result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return result;
  }
  // The recipe that `init` writes, changed.
  void WriteRecipe(const std::vector<std::pair<std::string, std::string>>& changes) {
    ASSERT_EQ(Ctl("init models/tiny texts --force").code, 0);
    std::string text = *ReadFile(Path("recipe.yaml"));
    for (const auto& [from, to] : changes) {
      ASSERT_NE(text.find(from), std::string::npos) << from << "\n" << text;
      text = absl::StrReplaceAll(text, {{from, to}});
    }
    ASSERT_TRUE(WriteFileAtomically(Path("recipe.yaml"), text).ok());
  }
  void ExpectCheck(int code, const std::string& words) {
    const Result result = Ctl("check recipe.yaml");
    EXPECT_EQ(result.code, code) << result.out;
    EXPECT_THAT(result.out, HasSubstr(words));
  }
  // In one line, whatever it is.
  void ExpectRefused(const std::string& words) {
    const Result result = Ctl("check recipe.yaml");
    EXPECT_GT(result.code, 0) << result.out;
    EXPECT_LT(result.code, 128) << result.out;
    EXPECT_EQ(result.lines(), 1u) << result.out;
    EXPECT_THAT(result.out, HasSubstr(words));
  }

  TempFolder folder_ = *TempFolder::Create();
};

TEST_F(BadInputTest, InitThenCheckSaysWhatItWouldCost) {
  const Result init = Ctl("init models/tiny texts");
  EXPECT_EQ(init.code, 0);
  EXPECT_THAT(init.out, HasSubstr("wrote recipe.yaml: 12 files of text"));
  ExpectCheck(0, "student half");
  const Result json = Ctl("check recipe.yaml -o json", /*errors_too=*/false);
  EXPECT_EQ(json.code, 0);
  const auto report = nlohmann::json::parse(json.out);
  EXPECT_EQ(report["teacher"]["layers"], 2);
  EXPECT_EQ(report["students"][0]["layers"], 1);
  EXPECT_EQ(report["capture"]["teacher_tokens"],
            report["dataset"]["training_tokens"].get<int64_t>() +
                report["dataset"]["held_out_tokens"].get<int64_t>());
  EXPECT_GT(report["capture"]["cache_bytes"], 0);
  const Result other_format = Ctl("check recipe.yaml -o xml");
  EXPECT_EQ(other_format.code, kExitUsage);
  EXPECT_THAT(other_format.out, HasSubstr("--output: is one of json, table, yaml, not 'xml'"));
}

TEST_F(BadInputTest, CheckAsksWhetherSoManyEpochsAreMeant) {
  WriteRecipe({{" steps: ", " steps: 1  # not "}});
  ExpectCheck(0, "student half");
  EXPECT_THAT(Ctl("check recipe.yaml").out, Not(HasSubstr("are so many meant?")));
  WriteRecipe({{" steps: ", " steps: 9000  # not "}});
  ExpectCheck(0, "students[0]: steps times batch.tokens read the text");
}

TEST_F(BadInputTest, InitNeverWritesOverAFileUnasked) {
  ASSERT_TRUE(WriteFileAtomically(Path("mine.yaml"), "precious").ok());
  const Result refused = Ctl("init models/tiny texts -o mine.yaml");
  EXPECT_EQ(refused.code, kExitConflict);
  EXPECT_EQ(refused.lines(), 1u);
  EXPECT_THAT(refused.out, HasSubstr("--force"));
  EXPECT_EQ(*ReadFile(Path("mine.yaml")), "precious");
  EXPECT_EQ(Ctl("init models/tiny texts -o mine.yaml --force").code, 0);
}

TEST_F(BadInputTest, InitNamesWhatIsMissing) {
  for (const char* words : {"init models/none texts", "init models/tiny nowhere"}) {
    const Result result = Ctl(words);
    EXPECT_EQ(result.code, kExitNotFound) << result.out;
    EXPECT_EQ(result.lines(), 1u) << result.out;
    EXPECT_FALSE(PathExists(Path("recipe.yaml")));
  }
  EXPECT_EQ(Ctl("init").code, kExitUsage);
}

TEST_F(BadInputTest, RecipeThatIsNotThere) {
  const Result result = Ctl("check none.yaml");
  EXPECT_EQ(result.code, kExitNotFound);
  EXPECT_EQ(result.lines(), 1u) << result.out;
}

TEST_F(BadInputTest, MisspeltDuplicateAndLaterKeys) {
  WriteRecipe({{"max_tokens", "max_token"}});
  ExpectCheck(1, "dataset.max_token: unknown key; did you mean \"max_tokens\"?");
  WriteRecipe({{"output: runs", "output: runs\noutput: here"}});
  ExpectCheck(1, "output: written twice, first in line");
  WriteRecipe({{"seed: 0", "seed: zero"}});
  ExpectCheck(1, "students[0].seed: expected a whole number");
  WriteRecipe({{"cache: {directory: cache}", "cache: {servers: [a]}"}});
  ExpectCheck(1, "cache.servers: cache servers started elsewhere: not in this version");
  EXPECT_EQ(Ctl("check recipe.yaml").lines(), 1u);
}

TEST_F(BadInputTest, TeacherThatIsNotThere) {
  WriteRecipe({{"\"models/tiny\"", "teacher.gguf"}});
  ExpectCheck(kExitNotFound, "teacher.gguf: no such file");
  WriteRecipe({{"\"models/tiny\"", "HuggingFaceTB/SmolLM2-135M"}});
  ExpectCheck(kExitNotFound, "hf download HuggingFaceTB/SmolLM2-135M");
  ExpectCheck(kExitNotFound, absl::StrCat("looked for at ", Path("HuggingFaceTB/SmolLM2-135M")));
}

TEST_F(BadInputTest, TeacherCutShort) {
  const std::string weights = Path("models/tiny/model.safetensors");
  const std::string bytes = *ReadFile(weights);
  WriteRecipe({});
  for (const size_t size :
       {size_t{0}, size_t{7}, size_t{100}, bytes.size() / 2, bytes.size() - 1}) {
    ASSERT_TRUE(WriteFileAtomically(weights, bytes.substr(0, size)).ok());
    ExpectRefused("model.safetensors");
  }
}

TEST_F(BadInputTest, HostileGguf) {
  const std::string version_3("GGUF\3\0\0\0", 8);
  const std::string many(8, '\x7f');  // tensors, keys
  for (const std::string& bytes : {std::string(), std::string("GGU"), std::string(1000, 'G'),
                                   version_3, version_3 + many, version_3 + many + many + many}) {
    ASSERT_TRUE(WriteFileAtomically(Path("bad.gguf"), bytes).ok());
    WriteRecipe({{"\"models/tiny\"", "bad.gguf"}});
    ExpectRefused("bad.gguf");
  }
}

TEST_F(BadInputTest, LayersThatTheTeacherLacks) {
  WriteRecipe({{"{keep: 1, by: block_influence}", "[0, 2]"}});
  ExpectCheck(1, "the teacher has no layer 2, only 0 to 1");
}

TEST_F(BadInputTest, DatasetThatIsEmptyOrMissing) {
  WriteRecipe({{"texts/*.txt", "texts/*.md"}});
  ExpectCheck(kExitNotFound, "texts/*.md");
  ASSERT_TRUE(WriteFileAtomically(Path("empty.txt"), "").ok());
  WriteRecipe({{"texts/*.txt", "empty.txt"}});
  ExpectCheck(1, "dataset");
}

TEST_F(BadInputTest, DocumentLongerThanAllowed) {
  WriteRecipe(
      {{"when_longer: split", "when_longer: refuse"}, {"max_tokens: 512", "max_tokens: 64"}});
  ExpectCheck(1, "texts/");
  WriteRecipe({{"max_tokens: 512", "max_tokens: 64"}});
  ExpectCheck(0, "student half");
}

}  // namespace
}  // namespace stillhouse
