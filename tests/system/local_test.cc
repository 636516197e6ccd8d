// `coordinatorctl local` end to end: real processes, a tiny teacher, and what happens when they
// die.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/status.h"
#include "tests/system/harness.h"

namespace stillhouse {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

// What the one undisturbed run of these tests gave.
struct Undisturbed {
  json result;
  std::string digest;
};
const Undisturbed& RunUndisturbed() {
  static const Undisturbed* const kept = [] {
    Workplace place({.texts = 40, .students = 1, .steps = 2});
    const Finished run = place.Local();
    SH_CHECK(run.code == 0, run.err, place.Logs());
    return new Undisturbed{json::parse(run.out), place.CacheDigest()};
  }();
  return *kept;
}

// What `local` says of runs whose inputs or files changed since they finished.
class ChangedTest : public testing::Test {
 protected:
  ChangedTest() : place_({.texts = 24, .students = 1, .steps = 2}) {
    const Finished run = place_.Local();
    SH_CHECK(run.code == 0, run.err, place_.Logs());
    before_ = json::parse(run.out)["runs"][0];
  }

  Workplace place_;
  json before_;
};

TEST_F(ChangedTest, OtherTextsAreANewRunBesideTheOld) {
  const std::string old_export = before_["exported_to"];
  const std::string old_weights = *ReadFile(JoinPath(old_export, "model.safetensors"));
  SH_CHECK_OK(WriteFileAtomically(place_.Path("corpus/3.txt"), "quite another text than before"));
  const Finished again = place_.Local();
  ASSERT_EQ(again.code, 0) << again.err << place_.Logs();
  EXPECT_THAT(again.err, HasSubstr("its texts changed since it was last submitted"));
  const json run = json::parse(again.out)["runs"][0];
  EXPECT_EQ(run["name"], before_["name"]);
  EXPECT_EQ(run["state"], "finished");
  EXPECT_EQ(run["step"], 2);
  EXPECT_NE(run["folder"], before_["folder"]);
  const std::string new_export = run["exported_to"];
  EXPECT_NE(new_export, old_export);
  EXPECT_TRUE(PathExists(JoinPath(new_export, "model.safetensors")));
  EXPECT_EQ(*ReadFile(JoinPath(old_export, "model.safetensors")), old_weights);
}

TEST_F(ChangedTest, ALostExportIsSaidAndTheRunFoundWhereItWasMoved) {
  const std::string model =
      JoinPath(before_["exported_to"].get<std::string>(), "model.safetensors");
  const std::string weights = *ReadFile(model);
  SH_CHECK_OK(WriteFileAtomically(model, "short"));
  const Finished damaged = place_.Local();
  EXPECT_EQ(damaged.code, 7) << damaged.err;
  EXPECT_THAT(damaged.err, HasSubstr("has a model.safetensors of 5 bytes"));
  // What it says helps.
  SH_CHECK_OK(RemoveTree(place_.Path("runs/.stillhouse")));
  const Finished anew = place_.Local();
  EXPECT_EQ(anew.code, 0) << anew.err << place_.Logs();
  EXPECT_EQ(*ReadFile(model), weights);
  // The journal has the old place.
  SH_CHECK(rename(place_.Path("runs").c_str(), place_.Path("moved").c_str()) == 0);
  std::string recipe = *ReadFile(place_.recipe());
  recipe.replace(recipe.find("output: runs"), 12, "output: moved");
  SH_CHECK_OK(WriteFileAtomically(place_.recipe(), recipe));
  const json seen = place_.Get();
  EXPECT_EQ(seen["runs"][0]["exported_to"], place_.Path("moved/" + BaseName(FolderOf(model))));
  const Finished moved = place_.Local();
  EXPECT_EQ(moved.code, 0) << moved.err;
  EXPECT_EQ(json::parse(moved.out)["runs"][0]["exported_to"], seen["runs"][0]["exported_to"]);
  SH_CHECK_OK(RemoveTree(seen["runs"][0]["exported_to"].get<std::string>()));
  const Finished gone = place_.Local();
  EXPECT_EQ(gone.code, 7);
  EXPECT_THAT(gone.err, HasSubstr("is not there any more"));
}

// Starts the same job and stops the teacher worker in the middle of the capture.
class DisturbedTest : public testing::Test {
 protected:
  DisturbedTest() : place_({.texts = 40, .students = 1, .steps = 2}) {}

  bool StopInTheMiddle(Running& local) {
    teacher_ = place_.StopTeacherInTheMiddle(local);
    return teacher_ != 0;
  }
  void ExpectTheSameEnd(Running& local) {
    const Finished run = local.Wait();
    ASSERT_EQ(run.code, 0) << run.err << place_.Logs();
    EXPECT_EQ(place_.CacheDigest(), RunUndisturbed().digest);
    const json result = json::parse(run.out);
    EXPECT_EQ(result["runs"][0]["state"], "finished");
    EXPECT_EQ(result["runs"][0]["final"]["perplexity"],
              RunUndisturbed().result["runs"][0]["final"]["perplexity"]);
  }

  Workplace place_;
  pid_t teacher_ = 0;
};

TEST(LocalTest, OneCacheTwoStudentsAndNothingIsPaidTwice) {
  Workplace place({.texts = 24, .students = 2, .steps = 4});
  const Finished first = place.Local();
  ASSERT_EQ(first.code, 0) << first.err << place.Logs();
  const json result = json::parse(first.out);
  const json& job = result["jobs"][0];
  EXPECT_EQ(job["state"], "captured");
  EXPECT_EQ(job["tokens"], job["tokens_durable"]);
  EXPECT_EQ(job["teacher_forward_tokens"], job["tokens"]);
  ASSERT_EQ(result["runs"].size(), 2u);
  EXPECT_EQ(result["runs"][0]["teacher_forward_tokens"], job["tokens"]);
  EXPECT_EQ(result["runs"][1]["teacher_forward_tokens"], 0);
  for (const json& run : result["runs"]) {
    EXPECT_EQ(run["state"], "finished");
    EXPECT_EQ(run["step"], 4);
    EXPECT_GT(run["final"]["kl_to_teacher"], 0);
    const std::string exported = run["exported_to"];
    EXPECT_TRUE(PathExists(JoinPath(exported, "config.json"))) << exported;
    EXPECT_TRUE(PathExists(JoinPath(exported, "model.safetensors"))) << exported;
  }
  const std::string digest = place.CacheDigest();

  // The same command again: everything is there already.
  const Finished again = place.Local();
  ASSERT_EQ(again.code, 0) << again.err << place.Logs();
  EXPECT_THAT(again.err, HasSubstr("no teacher is needed"));
  EXPECT_EQ(json::parse(again.out)["runs"], result["runs"]);

  // With all but the cache gone, the students are trained again and the teacher is not paid.
  SH_CHECK_OK(RemoveTree(place.Path("runs")));
  const Finished anew = place.Local();
  ASSERT_EQ(anew.code, 0) << anew.err << place.Logs();
  const json trained = json::parse(anew.out);
  EXPECT_EQ(trained["jobs"][0]["teacher_forward_tokens"], 0);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(trained["runs"][i]["teacher_forward_tokens"], 0);
    EXPECT_EQ(trained["runs"][i]["final"], result["runs"][i]["final"]);
  }
  EXPECT_EQ(place.CacheDigest(), digest);
}

TEST_F(DisturbedTest, AKilledTeacherWorkerLosesNothing) {
  const auto local = place_.StartLocal();
  ASSERT_TRUE(StopInTheMiddle(*local)) << place_.Logs();
  kill(teacher_, SIGKILL);
  ExpectTheSameEnd(*local);
  EXPECT_THAT(local->Wait().err, HasSubstr("teacher-0 ended with signal 9"));
}

TEST_F(DisturbedTest, AKilledCoordinatorLosesNothing) {
  const auto local = place_.StartLocal();
  ASSERT_TRUE(StopInTheMiddle(*local)) << place_.Logs();
  const std::vector<pid_t> coordinators = ChildrenOf(local->pid(), "coordinatord");
  ASSERT_EQ(coordinators.size(), 1u);
  kill(coordinators[0], SIGKILL);
  kill(teacher_, SIGCONT);
  ExpectTheSameEnd(*local);
  EXPECT_THAT(local->Wait().err, HasSubstr("coordinator ended with signal 9"));
}

TEST_F(DisturbedTest, AKilledCacheServerLosesNothing) {
  const auto local = place_.StartLocal();
  ASSERT_TRUE(StopInTheMiddle(*local)) << place_.Logs();
  const std::vector<pid_t> servers = ChildrenOf(local->pid(), "cache_server");
  ASSERT_EQ(servers.size(), 1u);
  kill(servers[0], SIGKILL);
  kill(teacher_, SIGCONT);
  ExpectTheSameEnd(*local);
}

TEST_F(DisturbedTest, AKilledStudentIsStartedAgainAndEndsTheSame) {
  const auto local = place_.StartLocal();
  ASSERT_TRUE(StopInTheMiddle(*local)) << place_.Logs();
  pid_t student = 0;
  ASSERT_TRUE(WaitUntil(*local, [&] {
    const std::vector<pid_t> students = ChildrenOf(local->pid(), "student_trainer");
    if (!students.empty()) student = students[0];
    return student != 0;
  }));
  kill(student, SIGKILL);
  kill(teacher_, SIGCONT);
  ExpectTheSameEnd(*local);
  EXPECT_THAT(local->Wait().err, HasSubstr("student-s0 ended with signal 9"));
}

TEST_F(DisturbedTest, CtrlCStopsAllInFiveSecondsAndTheSameCommandGoesOn) {
  {
    const auto local = place_.StartLocal();
    ASSERT_TRUE(StopInTheMiddle(*local)) << place_.Logs();
    // Only one at a time.
    const Finished second = place_.Local();
    EXPECT_EQ(second.code, kExitConflict);
    EXPECT_THAT(second.err, HasSubstr("another `coordinatorctl local` is at work"));

    const absl::Duration asked = SystemClock().Now();
    local->Signal(SIGINT);
    EXPECT_EQ(local->Wait().code, kExitInterrupted);
    EXPECT_LT(SystemClock().Now() - asked, absl::Seconds(6));  // a stopped process must be killed
    EXPECT_FALSE(IsAlive(teacher_));
  }
  const Finished get = place_.Ctl({"get", "-o", "json", "--recipe", place_.recipe()});
  EXPECT_EQ(get.code, 0) << get.err;  // from the journal
  EXPECT_THAT(get.err, HasSubstr("No coordinator is alive"));

  const auto local = place_.StartLocal();
  ExpectTheSameEnd(*local);
}

// A student with more steps than any test waits for.
class InterruptedStudentTest : public testing::Test {
 protected:
  InterruptedStudentTest() : place_({.texts = 24, .students = 1, .steps = 1'000'000}) {}

  // The first step of more than `after` that the coordinator has heard of; 0 when none came.
  uint64_t WaitForStep(Running& local, uint64_t after) {
    uint64_t step = 0;
    const bool came = WaitUntil(local, [&] {
      const json seen = place_.Get();
      if (!seen.is_null() && !seen["runs"].empty()) step = seen["runs"][0]["step"];
      return step > after;
    });
    return came ? step : 0;
  }
  // "goes on after step N" in what `local` said; 0 without it.
  static uint64_t StepSaid(const std::string& err) {
    const size_t at = err.find("goes on after step ");
    return at == std::string::npos ? 0 : std::stoull(err.substr(at + 19));
  }

  Workplace place_;
};

TEST_F(InterruptedStudentTest, CtrlCSavesItsStepsAndASecondOneDoesNotWait) {
  uint64_t saved = 0;
  {
    const auto local = place_.StartLocal();
    const uint64_t seen = WaitForStep(*local, 0);
    ASSERT_GT(seen, 0u) << place_.Logs();
    local->Signal(SIGINT);
    const Finished run = local->Wait();
    EXPECT_EQ(run.code, kExitInterrupted);
    saved = StepSaid(run.err);
    EXPECT_GE(saved, seen) << run.err;
    EXPECT_THAT(run.err, Not(HasSubstr("were not saved")));
  }
  const auto local = place_.StartLocal();
  ASSERT_GT(WaitForStep(*local, saved), saved) << place_.Logs();
  EXPECT_THAT(place_.Logs(), HasSubstr(absl::StrCat("resuming after step ", saved)));
  const std::vector<pid_t> students = ChildrenOf(local->pid(), "student_trainer");
  ASSERT_EQ(students.size(), 1u);
  kill(students[0], SIGSTOP);  // it will not save
  local->Signal(SIGINT);
  ASSERT_TRUE(WaitUntil(*local, [&] {
    return local->ErrSoFar().find("saves what it has trained") != std::string::npos;
  }));
  local->Signal(SIGINT);
  EXPECT_EQ(local->Wait().code, kExitInterrupted);
  EXPECT_FALSE(IsAlive(students[0]));
}

TEST_F(DisturbedTest, ChildrenDieWithTheirSupervisor) {
  const auto local = place_.StartLocal();
  ASSERT_TRUE(StopInTheMiddle(*local)) << place_.Logs();
  std::vector<pid_t> children;
  for (const char* program : {"cache_server", "coordinatord", "teacher_worker"}) {
    for (const pid_t pid : ChildrenOf(local->pid(), program)) children.push_back(pid);
  }
  EXPECT_EQ(children.size(), 3u);
  local->Signal(SIGKILL);
  local->Wait();
  // They are not ours to wait for; a new run on the same folders needs all their locks.
  const Finished again = place_.Local();
  EXPECT_EQ(again.code, 0) << again.err << place_.Logs();
  for (const pid_t pid : children) EXPECT_FALSE(IsAlive(pid)) << pid;
  EXPECT_EQ(place_.CacheDigest(), RunUndisturbed().digest);
}

}  // namespace
}  // namespace stillhouse
