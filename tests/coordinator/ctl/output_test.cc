#include "coordinator/ctl/output.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "common/file.h"
#include "coordinator/ctl/job_views.h"
#include "coordinator/ctl/progress.h"

namespace stillhouse {
namespace {

using Json = nlohmann::ordered_json;
using testing::HasSubstr;

TEST(ShellWordTest, QuotesWhatAShellWouldTakeApart) {
  EXPECT_EQ(ShellWord("build/bin/coordinatorctl"), "build/bin/coordinatorctl");
  EXPECT_EQ(ShellWord("my work/x.yaml"), "'my work/x.yaml'");
  EXPECT_EQ(ShellWord("it's"), "'it'\\''s'");
  EXPECT_EQ(ShellWord(""), "''");
  EXPECT_EQ(ShellWord("*"), "'*'");
}

TEST(TableTest, AlignsWordsLeftAndNumbersRight) {
  EXPECT_EQ(RenderTable({.header = {"NAME", "N", "NOTE"},
                         .rows = {{"größe", "5", ""}, {"b", "1000", "x"}, {"c", "-", ""}}}),
            "NAME      N  NOTE\n"
            "größe     5\n"
            "b      1000  x\n"
            "c         -\n");
}

TEST(YamlTest, IsBlockStyleAndQuotesWhatCouldBeSomethingElse) {
  const Json value = {
      {"jobs", Json::array({{{"name", "job/a"}, {"state", "yes"}, {"list", {1, 2}}}})},
      {"none", Json::array()},
      {"text", "a: b\n"},
      {"number", 1.5},
      {"null", nullptr},
      {"digits", "12"}};
  EXPECT_EQ(RenderYaml(value),
            "jobs:\n"
            "  - name: job/a\n"
            "    state: \"yes\"\n"
            "    list:\n"
            "      - 1\n"
            "      - 2\n"
            "none: []\n"
            "text: \"a: b\\n\"\n"
            "number: 1.5\n"
            "\"null\": null\n"
            "digits: \"12\"\n");
}

TEST(HumanTest, NumbersAreShort) {
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1536), "1.5 KiB");
  EXPECT_EQ(HumanBytes(1024 * 1024 - 1), "1.0 MiB");
  EXPECT_EQ(HumanBytes(~0ull), "16.0 EiB");
  EXPECT_EQ(HumanCount(0), "0");
  EXPECT_EQ(HumanCount(999.4), "999");
  EXPECT_EQ(HumanCount(999.6), "1.0k");
  EXPECT_EQ(HumanCount(16'384), "16.4k");
  EXPECT_EQ(HumanCount(135e6), "135M");
  EXPECT_EQ(HumanDuration(absl::Seconds(4.21)), "4.2s");
  EXPECT_EQ(HumanDuration(absl::Seconds(59.9)), "1m 00s");
  EXPECT_EQ(HumanDuration(absl::Seconds(7500)), "2h 05m");
  EXPECT_EQ(HumanDuration(absl::Hours(49)), "2d 01h");
  EXPECT_EQ(HumanDuration(absl::InfiniteDuration()), "?");
  EXPECT_EQ(ProgressBar(0.5, 4), "[##--]  50 %");
  EXPECT_EQ(ProgressBar(7, 2), "[##] 100 %");
  EXPECT_EQ(ProgressBar(0.0 / 0.0, 2), "[--]   0 %");
}

AdminView SomeView() {
  AdminView view;
  JobView job;
  job.name = "job/handbook";
  job.state = "capturing";
  job.rows = 1000;
  job.rows_durable = 450;
  job.rows_per_s = 1900;
  job.seconds_left = 80;
  view.jobs.push_back(job);
  RunView run;
  run.name = "run/handbook/half";
  run.state = "training";
  run.last.step = 10;
  run.last.steps = 40;
  run.last.loss = 4.25;
  run.last.seconds = 25;
  run.last.waited_s = 5;
  run.last.message = "odd\033[2J";
  view.runs.push_back(run);
  return view;
}

TEST(ViewTest, TimeLeftIsOfTheWorkNotOfTheWaiting) {
  AdminView view = SomeView();
  EXPECT_DOUBLE_EQ(SecondsLeft(view.runs[0]), 60);
  EXPECT_FALSE(HasEnded(view.runs[0]));
  view.runs[0].state = "cancelled";
  EXPECT_DOUBLE_EQ(SecondsLeft(view.runs[0]), 0);
  EXPECT_TRUE(HasEnded(view.runs[0]));
}

TEST(ViewTest, JsonHasStableNames) {
  const Json json = JobsAndRunsJson(SomeView());
  EXPECT_EQ(json["jobs"][0]["tokens_durable"], 450);
  EXPECT_EQ(json["runs"][0]["final"], nullptr);
  EXPECT_EQ(json["runs"][0]["seconds_left"], 60.0);
  EXPECT_THAT(JobsAndRunsTable(SomeView()), HasSubstr("run/handbook/half"));
  EXPECT_EQ(JobsAndRunsTable({}), "No jobs.\n");
}

class ProgressTest : public testing::Test {
 protected:
  ProgressTest() : file_(std::tmpfile()) {}
  ~ProgressTest() override { std::fclose(file_); }
  std::string Written() {
    std::fflush(file_);
    std::string text(std::ftell(file_), '\0');
    std::rewind(file_);
    text.resize(std::fread(text.data(), 1, text.size(), file_));
    return text;
  }
  std::FILE* file_;
};

TEST_F(ProgressTest, PlainLinesComeOnChangeOnly) {
  ProgressPrinter printer({.out = file_, .terminal = false});
  AdminView view = SomeView();
  printer.Show(view, absl::Seconds(0));
  view.jobs[0].rows_durable = 460;  // the same tenth
  printer.Show(view, absl::Seconds(1));
  view.jobs[0].rows_durable = 500;
  printer.Show(view, absl::Seconds(2));
  view.runs[0].state = "waiting";
  printer.Show(view, absl::Seconds(3));
  printer.Show(view, absl::Seconds(40));  // long ago
  view.runs[0].state = "finished";
  printer.Show(view, absl::Seconds(41));
  view.jobs[0].rows_durable = 600;
  printer.Show(view, absl::Seconds(100));  // what has ended is not told again
  const std::string job = "job/handbook: capturing ";
  const std::string rest = " of 1.0k tokens, 1.9k tokens/s, 1m 20s left\n";
  const std::string run = ", step 10 of 40, loss 4.250, 1m 00s left, odd [2J\n";
  EXPECT_EQ(Written(),
            absl::StrCat(job, "45 %, 450", rest, "run/handbook/half: training", run, job,
                         "50 %, 500", rest, job, "50 %, 500", rest, "run/handbook/half: waiting",
                         run, "run/handbook/half: finished, step 10 of 40, loss 4.250, odd [2J\n",
                         job, "60 %, 600", rest));
}

TEST_F(ProgressTest, ATerminalIsRedrawnInPlaceAndNeverWrapped) {
  ProgressPrinter printer({.out = file_, .terminal = true, .columns = 60});
  printer.Show(SomeView(), absl::Seconds(0));
  printer.Say("a remark");
  printer.Show(SomeView(), absl::Seconds(1));
  const std::string text = Written();
  EXPECT_THAT(text, HasSubstr("\033[2A\033[Ja remark\njob/handbook  capturing"));  // no bar
  EXPECT_EQ(text.find("\033[2J"), std::string::npos);
  size_t begin = 0;
  for (size_t end = text.find('\n'); end != std::string::npos; end = text.find('\n', begin)) {
    const std::string line = text.substr(begin, end - begin);
    EXPECT_LT(line.size(), 60 + sizeof("\033[2A\033[J"));
    begin = end + 1;
  }
}

TEST_F(ProgressTest, AWideTerminalHasBars) {
  ProgressPrinter printer({.out = file_, .terminal = true, .columns = 200});
  printer.Show(SomeView(), absl::Seconds(0));
  EXPECT_THAT(Written(), HasSubstr("[#########-----------]  45 %  job/handbook  capturing"));
}

}  // namespace
}  // namespace stillhouse
