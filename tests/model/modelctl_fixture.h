// Runs modelctl in a folder of its own that holds a tiny model, as "tiny" and "tiny.gguf".
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/status.h"
#include "tests/formats/tiny_model.h"

namespace stillhouse {

struct Outcome {
  int code = -1;
  std::string out, error;
};

class ModelctlTest : public ::testing::Test {
 protected:
  ModelctlTest() : folder_(*TempFolder::Create("modelctl")) {
    SH_CHECK_OK(WriteTinyModel(Path("tiny")));
    SH_CHECK_OK(WriteTinyGguf(Path("tiny.gguf"), {}, "Q8_0"));
  }
  std::string Path(absl::string_view name) const { return JoinPath(folder_.path(), name); }
  void Write(absl::string_view name, absl::string_view text) {
    SH_CHECK_OK(WriteFileAtomically(Path(name), text));
  }
  // Arguments are quoted; standard input is the text.
  Outcome Run(const std::vector<std::string>& arguments, absl::string_view input = "") {
    Write("input", input);
    std::string command = absl::StrCat("cd '", folder_.path(), "' && XDG_CACHE_HOME='",
                                       folder_.path(), "' '" SH_TEST_BUILD_DIR "/bin/modelctl'");
    for (const std::string& argument : arguments) absl::StrAppend(&command, " '", argument, "'");
    absl::StrAppend(&command, " <input >output 2>error");
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, *ReadFile(Path("output")),
            *ReadFile(Path("error"))};
  }
  // One line that holds `what`, and this exit code.
  void ExpectRefused(const Outcome& outcome, int code, const std::string& what) {
    EXPECT_EQ(outcome.code, code) << outcome.error;
    EXPECT_THAT(outcome.error, ::testing::HasSubstr(what));
    EXPECT_EQ(std::count(outcome.error.begin(), outcome.error.end(), '\n'), 1) << outcome.error;
    EXPECT_EQ(outcome.out, "");
  }

  TempFolder folder_;
};

}  // namespace stillhouse
