#include "common/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "common/status.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Optional;

enum class Colour { kRed, kBlue };

struct Given {
  std::string name = "none";
  int count = 1;
  std::optional<uint64_t> seed;
  std::vector<std::string> rest;
  bool quiet = false;
  Colour colour = Colour::kRed;
};

std::optional<int> Parse(std::vector<const char*> words, Given* given,
                         UsageErrors errors = UsageErrors::kTwoLines) {
  CommandLine command_line("Tries things.", "trial");
  command_line.SetVersion("trial 1");
  command_line.AddOption("NAME", &given->name, "of it").Required();
  command_line.AddOption("--count", &given->count, "how many").Range(1, 9).ShowDefault();
  command_line.AddOption("--seed", &given->seed);
  command_line.AddOption("--rest", &given->rest).OneValueEach();
  command_line.AddFlag("-q,--quiet", &given->quiet);
  command_line.AddChoice<Colour>("--colour", &given->colour,
                                 {{"red", Colour::kRed}, {"blue", Colour::kBlue}}, "of it");
  words.insert(words.begin(), "trial");
  return command_line.Parse(static_cast<int>(words.size()), words.data(), errors);
}

TEST(CommandLineTest, WritesWhatWasGiven) {
  Given given;
  EXPECT_EQ(Parse({"--rest", "a", "x", "--rest", "b", "-q", "--count", "3", "--seed", "7",
                   "--colour", "blue"},
                  &given),
            std::nullopt);
  EXPECT_EQ(given.name, "x");
  EXPECT_EQ(given.count, 3);
  EXPECT_THAT(given.seed, Optional(7u));
  EXPECT_THAT(given.rest, ElementsAre("a", "b"));
  EXPECT_TRUE(given.quiet);
  EXPECT_EQ(given.colour, Colour::kBlue);
}

TEST(CommandLineTest, LeavesWhatWasNotGiven) {
  Given given;
  EXPECT_EQ(Parse({"x"}, &given), std::nullopt);
  EXPECT_EQ(given.count, 1);
  EXPECT_EQ(given.seed, std::nullopt);
  EXPECT_FALSE(given.quiet);
  EXPECT_EQ(given.colour, Colour::kRed);
}

TEST(CommandLineTest, HelpAndVersionEndWell) {
  Given given;
  testing::internal::CaptureStdout();
  EXPECT_THAT(Parse({"--help"}, &given), Optional(kExitOk));
  EXPECT_THAT(Parse({"--version"}, &given), Optional(kExitOk));
  const std::string said = testing::internal::GetCapturedStdout();
  EXPECT_THAT(said, HasSubstr("--count INT:INT in [1 - 9]=1"));
  EXPECT_THAT(said, HasSubstr("trial 1\n"));
}

TEST(CommandLineTest, HelpIsOfWhatIsAskedNotOfWhatWasGiven) {
  CommandLine command_line("Tries things.", "trial");
  command_line.RequireCommand();
  command_line.AddCommand("help", "explain");
  command_line.AddCommand("go", "move").SetFooter("Wear shoes.");
  const char* words[] = {"trial", "help"};
  EXPECT_EQ(command_line.Parse(2, words), std::nullopt);
  EXPECT_THAT(command_line.Help(""), HasSubstr("Tries things."));
  EXPECT_THAT(command_line.Help(""), HasSubstr("go"));
  const std::string go = command_line.Find("go")->Help("trial");
  EXPECT_THAT(go, HasSubstr("Usage: trial go"));
  EXPECT_THAT(go, HasSubstr("Wear shoes."));
}

TEST(CommandLineTest, TellsOfAMistake) {
  Given given;
  testing::internal::CaptureStderr();
  EXPECT_THAT(Parse({}, &given), Optional(kExitUsage));
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "NAME is required\nRun with --help for more information.\n");
  testing::internal::CaptureStderr();
  EXPECT_THAT(Parse({"x", "--count", "10"}, &given, UsageErrors::kOneLine), Optional(kExitUsage));
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "trial: --count: Value 10 not in range 1 to 9 (trial --help)\n");
}

TEST(CommandLineTest, WhatIsNoNumberIsNotTakenForOne) {
  for (const auto& [option, value] : {std::pair{"--count", ""},
                                      {"--count", "2x"},
                                      {"--seed", ""},
                                      {"--seed", "-1"},
                                      {"--seed", "18446744073709551616"},
                                      {"--seed", "1.5"}}) {
    Given given;
    testing::internal::CaptureStderr();
    EXPECT_THAT(Parse({"x", option, value}, &given, UsageErrors::kOneLine), Optional(kExitUsage))
        << option << " " << value;
    EXPECT_THAT(testing::internal::GetCapturedStderr(), HasSubstr(option));
    EXPECT_EQ(given.seed, std::nullopt);
  }
  Given given;
  testing::internal::CaptureStderr();
  Parse({"x", "--seed", "1\n2"}, &given, UsageErrors::kOneLine);
  const std::string said = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(said.begin(), said.end(), '\n'), 1) << said;
}

TEST(CommandLineTest, CallsTheCommandThatWasGiven) {
  CommandLine command_line("Tries things.", "trial");
  command_line.RequireCommand();
  std::string called;
  for (const char* name : {"one", "two"}) {
    command_line.AddCommand(name, "").OnParsed([&called, name] { called += name; });
  }
  const char* const words[] = {"trial", "two"};
  EXPECT_EQ(command_line.Parse(2, words), std::nullopt);
  EXPECT_EQ(called, "two");
  EXPECT_TRUE(command_line.Chose("two"));
  EXPECT_FALSE(command_line.Chose("one"));
  EXPECT_TRUE(command_line.Find("one").has_value());
  EXPECT_FALSE(command_line.Find("three").has_value());
}

TEST(WithoutControlsTest, OneLineStaysOne) {
  EXPECT_EQ(WithoutControls("llama\n\x1b[31mEVIL\x7f é"), "llama  [31mEVIL  é");
}

}  // namespace
}  // namespace stillhouse
