// A student on two ranks under `coordinatorctl local`: real processes, mpirun among them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>

#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "tests/system/harness.h"

namespace stillhouse {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::SizeIs;

// mpirun, ranks and servers all start before the first checkpoint, on a machine that may be busy.
constexpr absl::Duration kLimit = absl::Minutes(5);

Workplace::Options TwoRanks(int steps) {
  return {.texts = 24, .students = 1, .steps = steps, .ranks = 2, .checkpoint_every = 5};
}

// What a calm run of twenty steps on two ranks gave.
const json& CalmRun() {
  static const json* const kept = [] {
    Workplace place(TwoRanks(20));
    const Finished run = place.Local();
    SH_CHECK(run.code == 0, run.err, place.Logs());
    return new json(json::parse(run.out)["runs"][0]);
  }();
  return *kept;
}

std::vector<pid_t> Ranks(const Running& local) {
  return DescendantsOf(local.pid(), "student_trainer");
}

// The folder of the run's checkpoints holds one that is complete.
bool HasCheckpoint(const Workplace& place) {
  const std::string runs = place.Path("runs/.runs");
  const auto folders = ListFolder(runs);
  if (!folders.ok() || folders->empty()) return false;
  const auto names = ListFolder(JoinPath(runs, folders->front() + "/checkpoints"));
  if (!names.ok()) return false;
  for (const std::string& name : *names) {
    if (!absl::EndsWith(name, ".tmp")) return true;
  }
  return false;
}

TEST(RanksTest, TwoRanksEndAsOneWithinTolerance) {
  Workplace::Options alone = TwoRanks(20);
  alone.ranks = 1;
  Workplace place(alone);
  const Finished run = place.Local();
  ASSERT_EQ(run.code, 0) << run.err << place.Logs();
  const json one = json::parse(run.out)["runs"][0];
  const json& two = CalmRun();
  EXPECT_EQ(two["state"], "finished");
  EXPECT_EQ(two["step"], 20);
  for (const char* key : {"perplexity", "kl_to_teacher"}) {
    const double wanted = one["final"][key];
    EXPECT_NEAR(two["final"][key].get<double>(), wanted, 0.01 * wanted) << key;
  }
  const std::string exported = two["exported_to"];
  EXPECT_THAT(exported, HasSubstr("/runs/s0"));
}

TEST(RanksTest, AKilledRankIsStartedAgainWithTheOthersAndEndsTheSame) {
  for (const size_t victim : {size_t{0}, size_t{1}}) {
    Workplace place(TwoRanks(20));
    const auto local = place.StartLocal();
    ASSERT_TRUE(WaitUntil(
        *local, [&] { return HasCheckpoint(place); }, kLimit))
        << place.Logs();
    const std::vector<pid_t> ranks = Ranks(*local);
    ASSERT_THAT(ranks, SizeIs(2)) << place.Logs();
    kill(ranks[victim], SIGKILL);
    const Finished run = local->Wait();
    ASSERT_EQ(run.code, 0) << run.err << place.Logs();
    EXPECT_THAT(run.err, HasSubstr("student-s0 ended with exit code"));
    EXPECT_THAT(place.Logs(), HasSubstr("ended without a word"));
    EXPECT_THAT(place.Logs(), HasSubstr("resuming after step"));
    const json again = json::parse(run.out)["runs"][0];
    EXPECT_EQ(again["final"], CalmRun()["final"]);
    for (const pid_t rank : ranks) EXPECT_FALSE(IsAlive(rank));
  }
}

TEST(RanksTest, CtrlCSavesOnAllRanksAndTheSameCommandGoesOn) {
  Workplace place(TwoRanks(1'000'000));
  uint64_t saved = 0;
  {
    const auto local = place.StartLocal();
    ASSERT_TRUE(WaitUntil(
        *local, [&] { return HasCheckpoint(place); }, kLimit))
        << place.Logs();
    const std::vector<pid_t> ranks = Ranks(*local);
    EXPECT_THAT(ranks, SizeIs(2));
    local->Signal(SIGINT);
    const Finished run = local->Wait();
    EXPECT_EQ(run.code, kExitInterrupted);
    const size_t at = run.err.find("goes on after step ");
    ASSERT_NE(at, std::string::npos) << run.err << place.Logs();
    saved = std::stoull(run.err.substr(at + 19));
    EXPECT_GE(saved, 5u);
    EXPECT_THAT(run.err, testing::Not(HasSubstr("were not saved")));
    for (const pid_t rank : ranks) EXPECT_FALSE(IsAlive(rank));
  }
  const auto local = place.StartLocal();
  ASSERT_TRUE(WaitUntil(
      *local,
      [&] { return absl::StrContains(place.Logs(), absl::StrCat("resuming after step ", saved)); },
      kLimit))
      << place.Logs();
  // Killed, it takes them all with it.
  ASSERT_TRUE(WaitUntil(
      *local, [&] { return Ranks(*local).size() == 2; }, kLimit));
  const std::vector<pid_t> ranks = Ranks(*local);
  local->Signal(SIGKILL);
  local->Wait();
  for (const pid_t rank : ranks) {
    while (IsAlive(rank)) sched_yield();
  }
}

TEST(RanksTest, WhatCannotBeIsRefusedBeforeAnythingRuns) {
  Workplace::Options options = TwoRanks(20);
  options.ranks = 200;
  Workplace many(options);
  for (const char* verb : {"check", "local"}) {
    const Finished run = many.Ctl({verb, many.recipe()});
    EXPECT_EQ(run.code, kExitFailed);
    EXPECT_THAT(run.err, HasSubstr("students[0].ranks: 200 ranks, but the plan has only"));
  }
  options.ranks = 300;
  Workplace more(options);
  EXPECT_THAT(more.Ctl({"check", more.recipe()}).err,
              HasSubstr("students[0].ranks: more than batch.tokens, which is 256"));
}

TEST(RanksTest, ARankWhoseLauncherIsGoneDoesNotEvenBegin) {
  Workplace place(TwoRanks(20));
  const auto launcher = place.StartProgram("cache_server", {"--help"});
  launcher->Wait();
  const auto rank = place.StartProgram(
      "student_trainer",
      {"--coordinator", place.Path("none"), "--run", "run/tiny/one", "--ranks", "2", "--exits",
       place.Path("exits"), "--launcher", absl::StrCat(launcher->pid())});
  EXPECT_EQ(rank->Wait().code, kExitTerminated);
  EXPECT_TRUE(!PathExists(place.Path("exits"))) << "it went on";
}

TEST(RanksTest, ABuildWithoutMpiSaysSoBeforeItCaptures) {
  Workplace place(TwoRanks(20));
  const std::string programs = place.Path("prefix/libexec/stillhouse");
  SH_CHECK_OK(MakeFolders(programs));
  SH_CHECK_OK(MakeFolders(place.Path("prefix/bin")));
  const std::string build = SH_TEST_BUILD_DIR;
  for (const char* program :
       {"cache_server", "coordinatord", "teacher_worker", "student_trainer"}) {
    std::filesystem::create_symlink(JoinPath(build, absl::StrCat("libexec/stillhouse/", program)),
                                    JoinPath(programs, program));
  }
  // The program looks for the others beside itself.
  std::filesystem::copy(JoinPath(build, "bin/coordinatorctl"),
                        place.Path("prefix/bin/coordinatorctl"));
  const Finished run = place.CtlOf(place.Path("prefix"), {"local", place.recipe()});
  EXPECT_EQ(run.code, kExitFailed) << run.err;
  EXPECT_THAT(run.err, HasSubstr("student s0 has 2 ranks, and this build has no MPI"));
  EXPECT_FALSE(PathExists(place.Path("cache")));
}

}  // namespace
}  // namespace stillhouse
