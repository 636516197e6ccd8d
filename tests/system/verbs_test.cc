// The verbs that ask a coordinator or change what it does, by real processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "tests/system/harness.h"

namespace stillhouse {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

void ExpectOneLine(const Finished& run, int code, const std::string& words) {
  EXPECT_EQ(run.code, code) << run.err << run.out;
  EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  EXPECT_THAT(run.err, HasSubstr(words));
  EXPECT_EQ(run.out, "");
}

// A `local` whose teacher worker stands still in the middle of the capture, so that what the verbs
// say can be compared with what is so.
class LiveJobTest : public testing::Test {
 protected:
  LiveJobTest() : place_({.texts = 40, .students = 2, .steps = 2}), local_(place_.StartLocal()) {
    teacher_ = place_.StopTeacherInTheMiddle(*local_);
  }
  void SetUp() override {
    ASSERT_NE(teacher_, 0) << place_.Logs();
    // The first student is at work, too.
    ASSERT_TRUE(WaitUntil(*local_, [&] {
      const json workers = json::parse(Ask({"workers", "-o", "json"}).out);
      return workers["workers"].size() == 2;
    })) << place_.Logs();
  }
  Finished Ask(std::vector<std::string> words) {
    words.insert(words.end(), {"--recipe", place_.recipe()});
    return place_.Ctl(words);
  }
  std::string Told(const std::vector<std::string>& words) {
    const Finished run = Ask(words);
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(run.err, "");
    return run.out;
  }
  Finished LetItEnd() {
    kill(teacher_, SIGCONT);
    return local_->Wait();
  }

  Workplace place_;
  std::unique_ptr<Running> local_;
  pid_t teacher_ = 0;
};

TEST_F(LiveJobTest, GetAndDescribeTellTheSameInEveryFormat) {
  const json got = json::parse(Told({"get", "-o", "json"}));
  ASSERT_EQ(got["jobs"].size(), 1u);
  ASSERT_EQ(got["runs"].size(), 2u);
  const json& job = got["jobs"][0];
  EXPECT_EQ(job["name"], "job/tiny");
  EXPECT_EQ(job["state"], "capturing");
  EXPECT_EQ(job["recipe"], place_.recipe());
  EXPECT_GT(job["tokens_durable"], 0);
  EXPECT_EQ(got["runs"][0]["name"], "run/tiny/s0");
  EXPECT_EQ(got["runs"][1]["name"], "run/tiny/s1");
  EXPECT_EQ(got["runs"][1]["state"], "queued");
  EXPECT_EQ(json::parse(Told({"describe", "job/tiny", "-o", "json"}))["jobs"][0]["chunks_durable"],
            job["chunks_durable"]);
  const json one = json::parse(Told({"get", "run/tiny/s1", "-o", "json"}));
  ASSERT_EQ(one["runs"].size(), 1u);
  EXPECT_EQ(one["runs"][0], got["runs"][1]);

  const std::string table = Told({"get"});
  EXPECT_THAT(table, testing::ContainsRegex("job/tiny +capturing +[0-9]+%"));
  EXPECT_THAT(table, testing::ContainsRegex("run/tiny/s1 +queued"));
  const std::string yaml = Told({"get", "-o", "yaml"});
  EXPECT_THAT(yaml, HasSubstr("name: job/tiny\n"));
  EXPECT_THAT(yaml, HasSubstr(absl::StrCat("chunks: ", job["chunks"].dump(), "\n")));
  EXPECT_THAT(yaml, HasSubstr("state: queued\n"));

  const std::string text = Told({"describe", "job/tiny"});
  EXPECT_THAT(text, HasSubstr(absl::StrCat(job["chunks_durable"].dump(), " of ",
                                           job["chunks"].dump(), " stored")));
  EXPECT_THAT(text, HasSubstr(job["plan"].get<std::string>()));
  EXPECT_THAT(Told({"describe", "run/tiny/s0"}), HasSubstr("run/tiny/s0\n"));
  EXPECT_THAT(Told({"describe", "run/tiny/s0", "-o", "yaml"}), HasSubstr("name: run/tiny/s0\n"));
  EXPECT_EQ(LetItEnd().code, 0) << place_.Logs();
}

TEST_F(LiveJobTest, WorkersAndLogsTellOfTheProcessesThatThereAre) {
  const json workers = json::parse(Told({"workers", "-o", "json"}))["workers"];
  ASSERT_EQ(workers.size(), 2u);
  EXPECT_EQ(workers[0]["name"], "teacher-0");
  EXPECT_EQ(workers[0]["role"], "teacher");
  EXPECT_EQ(workers[0]["pid"], teacher_);
  EXPECT_EQ(workers[1]["name"], "s0");
  EXPECT_EQ(workers[1]["role"], "student");
  EXPECT_EQ(workers[1]["holding"], "run/tiny/s0");
  const std::vector<pid_t> students = ChildrenOf(local_->pid(), "student_trainer");
  ASSERT_EQ(students.size(), 1u);
  EXPECT_EQ(workers[1]["pid"], students[0]);
  EXPECT_THAT(Told({"workers"}), testing::ContainsRegex("teacher-0 +teacher"));
  EXPECT_THAT(Told({"workers", "-o", "yaml"}), HasSubstr("name: teacher-0\n"));

  EXPECT_THAT(Told({"logs", "coordinator"}), HasSubstr("incarnation 1"));
  EXPECT_THAT(Told({"logs", "cache"}), HasSubstr("serving the cache"));
  EXPECT_EQ(Told({"logs", "teacher-0"}),
            *ReadFile(place_.Path("runs/.stillhouse/logs/teacher-0.log")));
  EXPECT_EQ(Told({"logs", "run/tiny/s0"}), Told({"logs", "s0"}));
  ExpectOneLine(Ask({"logs", "none"}), kExitNotFound,
                "there are: cache, coordinator, student-s0, teacher-0");
  EXPECT_EQ(LetItEnd().code, 0) << place_.Logs();

  // Who was at work is written down nowhere; logs are.
  ExpectOneLine(Ask({"workers"}), kExitUnreachable, "no coordinator is alive");
  EXPECT_THAT(Told({"logs", "s1"}), Not(HasSubstr("error")));
}

TEST_F(LiveJobTest, UnknownNamesGiveOneLine) {
  const std::string none = "there is no job or run named ";
  for (const char* verb : {"get", "describe", "cancel", "watch"}) {
    ExpectOneLine(Ask({verb, "job/none"}), kExitNotFound, none + "job/none");
    ExpectOneLine(Ask({verb, "run/tiny/s9"}), kExitNotFound, none + "run/tiny/s9");
  }
  EXPECT_EQ(Ask({"get", "-o", "xml"}).code, kExitUsage);
  EXPECT_EQ(place_.Ctl({"describe"}).code, kExitUsage);
  ExpectOneLine(place_.Ctl({"get", "--coordinator", place_.Path("none.json")}), kExitUnreachable,
                "no coordinator is alive");
  EXPECT_EQ(LetItEnd().code, 0) << place_.Logs();
}

TEST_F(LiveJobTest, WatchFollowsToTheEnd) {
  const auto watch = place_.Start({"watch", "--plain"});  // the only one alive
  const auto run_watch = place_.Start({"watch", "run/tiny/s0", "--plain"});
  for (const auto& one : {watch.get(), run_watch.get()}) {
    ASSERT_TRUE(WaitUntil(*one, [&] { return !one->ErrSoFar().empty(); }));
  }
  // Another coordinator takes over in the middle.
  const std::vector<pid_t> coordinators = ChildrenOf(local_->pid(), "coordinatord");
  ASSERT_EQ(coordinators.size(), 1u);
  kill(coordinators[0], SIGKILL);
  const Finished local = LetItEnd();
  EXPECT_EQ(local.code, 0) << local.err << place_.Logs();
  const Finished watched = watch->Wait();
  EXPECT_EQ(watched.code, 0) << watched.err;
  EXPECT_THAT(watched.err, HasSubstr("job/tiny: captured 100 %"));
  EXPECT_THAT(watched.err, HasSubstr("run/tiny/s0: finished, step 2 of 2"));
  EXPECT_THAT(watched.err, HasSubstr("run/tiny/s1: finished, step 2 of 2"));
  EXPECT_EQ(watched.err.find('\033'), std::string::npos);
  const Finished run_watched = run_watch->Wait();
  EXPECT_EQ(run_watched.code, 0) << run_watched.err;
  EXPECT_THAT(run_watched.err, HasSubstr("run/tiny/s0: finished"));
  EXPECT_THAT(run_watched.err, Not(HasSubstr("run/tiny/s1")));

  // Nobody is alive: the last word is in the journal.
  const Finished late = Ask({"watch", "--plain"});
  EXPECT_EQ(late.code, 0) << late.err;
  EXPECT_THAT(late.err, HasSubstr("run/tiny/s1: finished"));
  ExpectOneLine(place_.Ctl({"watch", "--plain"}), kExitUnreachable, "no coordinator of yours");
  ExpectOneLine(place_.Ctl({"submit", place_.recipe()}), kExitUnreachable,
                "no coordinator of yours");
}

TEST_F(LiveJobTest, ACancelledRunStopsAndTheOthersGoOn) {
  const auto watch = place_.Start({"watch", "--plain", "--recipe", place_.recipe()});
  const std::vector<pid_t> students = ChildrenOf(local_->pid(), "student_trainer");
  ASSERT_EQ(students.size(), 1u);
  EXPECT_EQ(Told({"cancel", "run/tiny/s0"}), "run/tiny/s0 is cancelled\n");
  EXPECT_EQ(Told({"cancel", "run/tiny/s0"}), "run/tiny/s0 is cancelled\n");  // and stays so
  const Finished local = LetItEnd();
  EXPECT_EQ(local.code, kExitInterrupted) << local.err << place_.Logs();
  EXPECT_THAT(local.err, HasSubstr("run/tiny/s0: cancelled"));
  EXPECT_EQ(kill(students[0], 0), -1);
  const json runs = json::parse(local.out)["runs"];
  EXPECT_EQ(runs[0]["state"], "cancelled");
  EXPECT_EQ(runs[1]["state"], "finished");
  EXPECT_FALSE(PathExists(place_.Path("runs/s0")));
  EXPECT_TRUE(PathExists(place_.Path("runs/s1/config.json")));
  EXPECT_EQ(watch->Wait().code, kExitInterrupted) << watch->Wait().err;
  EXPECT_EQ(
      json::parse(*ReadFile(JoinPath(runs[0]["folder"].get<std::string>(), "exit.json")))["kind"],
      "cancelled");

  // The same recipe again takes it up.
  const Finished again = place_.Local();
  EXPECT_EQ(again.code, 0) << again.err << place_.Logs();
  EXPECT_EQ(json::parse(again.out)["runs"][0]["state"], "finished");
}

TEST_F(LiveJobTest, ACancelledJobStopsAll) {
  EXPECT_EQ(Told({"cancel", "job/tiny"}),
            "job/tiny is cancelled\nrun/tiny/s0 is cancelled\nrun/tiny/s1 is cancelled\n");
  const Finished local = LetItEnd();
  EXPECT_EQ(local.code, kExitInterrupted) << local.err << place_.Logs();
  EXPECT_THAT(local.err, HasSubstr("job/tiny: cancelled"));
  EXPECT_THAT(local.err, HasSubstr("run/tiny/s1: cancelled"));
  const json got = place_.Get();  // from the journal
  EXPECT_EQ(got["jobs"][0]["state"], "cancelled");
  EXPECT_LT(got["jobs"][0]["chunks_durable"], got["jobs"][0]["chunks"]);
  EXPECT_EQ(place_.Local().code, 0) << place_.Logs();  // and goes on when asked to
}

TEST(SubmitTest, AJobIsHandedToACoordinatorThatRuns) {
  Workplace place({.texts = 24, .students = 2, .steps = 2});
  const std::string cache_address = absl::StrCat("ipc://", place.Path("cache.sock"));
  const std::string file = place.Path("coordinator.json");
  const auto cache =
      place.StartProgram("cache_server", {"--dir", place.Path("cache"), "--listen", cache_address});
  const auto coordinator =
      place.StartProgram("coordinatord", {"--journal", place.Path("journal"), "--listen",
                                          absl::StrCat("ipc://", place.Path("c.sock")), "--cache",
                                          cache_address, "--ready-file", file});
  ASSERT_TRUE(WaitUntil(*coordinator, [&] { return PathExists(file); }));
  const auto ask = [&](std::vector<std::string> words) {
    words.insert(words.end(), {"--coordinator", file});
    return place.Ctl(words);
  };
  const auto get = [&] { return json::parse(ask({"get", "-o", "json"}).out); };

  EXPECT_THAT(ask({"get"}).out, HasSubstr("No jobs"));
  EXPECT_THAT(ask({"workers"}).out, HasSubstr("No workers"));
  ExpectOneLine(ask({"submit", place.Path("none.yaml")}), kExitNotFound, "none.yaml");
  const Finished submitted = ask({"submit", place.recipe()});
  ASSERT_EQ(submitted.code, 0) << submitted.err;
  EXPECT_THAT(submitted.out, HasSubstr("job/tiny is submitted"));
  const json before = get();
  EXPECT_EQ(before["jobs"][0]["state"], "capturing");
  EXPECT_EQ(before["jobs"][0]["chunks_durable"], 0);
  EXPECT_EQ(before["runs"][0]["state"], "queued");
  const Finished twice = ask({"submit", place.recipe()});
  EXPECT_EQ(twice.code, 0) << twice.err;
  EXPECT_THAT(twice.out, HasSubstr("job/tiny goes on"));
  EXPECT_EQ(get()["jobs"].size(), 1u);

  const auto watch = place.Start({"watch", "--plain", "--coordinator", file});
  const auto teacher =
      place.StartProgram("teacher_worker", {"--coordinator", file, "--model", place.Path("teacher"),
                                            "--dtype", "fp32", "--name", "t", "--leave-when-done"});
  EXPECT_EQ(teacher->Wait().code, 0) << teacher->Wait().err;
  EXPECT_EQ(get()["jobs"][0]["state"], "captured");
  const auto student =
      place.StartProgram("student_trainer", {"--coordinator", file, "--run", "run/tiny/s0"});
  EXPECT_EQ(student->Wait().code, 0) << student->Wait().err;

  EXPECT_EQ(ask({"cancel", "job/tiny"}).out,
            "job/tiny stays captured\nrun/tiny/s0 stays finished\nrun/tiny/s1 is cancelled\n");
  ExpectOneLine(ask({"cancel", "run/tiny/s0"}), kExitConflict, "run/tiny/s0 has ended");
  EXPECT_EQ(watch->Wait().code, kExitInterrupted) << watch->Wait().err;
  const auto refused =
      place.StartProgram("student_trainer", {"--coordinator", file, "--run", "run/tiny/s1"});
  EXPECT_EQ(refused->Wait().code, kExitInterrupted) << refused->Wait().err;
  EXPECT_THAT(refused->Wait().err, HasSubstr("was cancelled"));

  coordinator->Signal(SIGTERM);
  EXPECT_EQ(coordinator->Wait().code, 0) << coordinator->Wait().err;
  cache->Signal(SIGTERM);
  EXPECT_EQ(cache->Wait().code, 0) << cache->Wait().err;
}

}  // namespace
}  // namespace stillhouse
