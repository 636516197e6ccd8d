// What becomes of a step under mpirun when one rank is at fault: the launcher's view.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/file.h"
#include "common/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "sharding/rank_exit.h"

extern char** environ;

namespace stillhouse {
namespace {

using testing::HasSubstr;

struct Outcome {
  int code = -1;  // of mpirun
  absl::Status exit;
  int64_t waited_ms = -1;  // by rank 0; -1 when it was ended before it could say
  std::string output;
};

Outcome RunStep(const std::string& fault, int ranks, int deadline_ms) {
  auto folder = TempFolder::Create("mpi-fault");
  SH_CHECK_OK(folder);
  const std::string log = JoinPath(folder->path(), "log");
  std::vector<std::string> words = absl::StrSplit(SH_MPIRUN, ' ');
  for (const std::string& word :
       {std::string("-n"), absl::StrCat(ranks), std::string(SH_MPI_FAULT_RANK), fault,
        folder->path(), absl::StrCat(deadline_ms)}) {
    words.push_back(word);
  }
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  for (const int fd : {STDOUT_FILENO, STDERR_FILENO}) {
    posix_spawn_file_actions_addopen(&actions, fd, log.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                     0600);
  }
  pid_t pid = 0;
  SH_CHECK(posix_spawnp(&pid, argv[0], &actions, nullptr, argv.data(), environ) == 0);
  posix_spawn_file_actions_destroy(&actions);
  int status = 0;
  SH_CHECK(waitpid(pid, &status, 0) == pid);
  Outcome outcome;
  outcome.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  outcome.exit = StepExit(folder->path(), ranks).status;
  outcome.output = ReadFile(log).value_or("");
  const auto elapsed = ReadFile(JoinPath(folder->path(), "elapsed"));
  if (elapsed.ok()) SH_CHECK(absl::SimpleAtoi(*elapsed, &outcome.waited_ms));
  return outcome;
}

class MpiFaultsTest : public testing::Test {
 protected:
  // Also when this program is run by hand.
  MpiFaultsTest() {
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 0);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 0);
  }
};

TEST_F(MpiFaultsTest, AStepWithoutFaultEndsWell) {
  const Outcome outcome = RunStep("none", 2, /*deadline_ms=*/60'000);
  EXPECT_EQ(outcome.code, 0) << outcome.output;
  EXPECT_TRUE(outcome.exit.ok()) << outcome.exit;
}

TEST_F(MpiFaultsTest, AHungPeerIsMissedWithinAFifthMoreThanTheDeadline) {
  constexpr int kDeadlineMs =
      10'000;  // so long that a fifth of it is more than a busy core is late
  const Outcome outcome = RunStep("hung", 2, kDeadlineMs);
  EXPECT_EQ(outcome.code, kExitTimeout) << outcome.output;
  EXPECT_EQ(outcome.exit,
            absl::DeadlineExceededError("rank 0: collective: rank 1 did not come within 10s"));
  EXPECT_GE(outcome.waited_ms, kDeadlineMs);
  EXPECT_LE(outcome.waited_ms, kDeadlineMs * 6 / 5);
}

TEST_F(MpiFaultsTest, ADeadPeerEndsTheStepLongBeforeTheDeadline) {
  const Outcome outcome = RunStep("killed", 3, /*deadline_ms=*/280'000);
  EXPECT_NE(outcome.code, 0) << outcome.output;
  // mpirun ends the survivors, who may have had time to say that MPI lost a peer, or not.
  EXPECT_FALSE(outcome.exit.ok());
  EXPECT_EQ(outcome.exit.code(), absl::StatusCode::kUnavailable) << outcome.exit;
  EXPECT_THAT(std::string(outcome.exit.message()), HasSubstr("2 ended without a word"));
}

TEST_F(MpiFaultsTest, WhatFailedOnOneRankIsWhatTheStepSays) {
  const Outcome outcome = RunStep("failed", 3, /*deadline_ms=*/280'000);
  EXPECT_NE(outcome.code, 0) << outcome.output;
  EXPECT_EQ(outcome.exit, absl::ResourceExhaustedError("rank 2: writing a shard: disk full"));
}

TEST_F(MpiFaultsTest, AnAbortReachesTheOthers) {
  const Outcome outcome = RunStep("aborted", 3, /*deadline_ms=*/280'000);
  EXPECT_NE(outcome.code, 0) << outcome.output;
  EXPECT_EQ(outcome.exit.code(), absl::StatusCode::kAborted) << outcome.exit;
  EXPECT_THAT(std::string(outcome.exit.message()), HasSubstr("rank 2 gave up"));
}

TEST_F(MpiFaultsTest, DifferentOperationsAreCaught) {
  const Outcome outcome = RunStep("mismatched", 2, /*deadline_ms=*/280'000);
  EXPECT_NE(outcome.code, 0) << outcome.output;
  EXPECT_EQ(outcome.exit.code(), absl::StatusCode::kAborted) << outcome.exit;
  EXPECT_THAT(std::string(outcome.exit.message()), HasSubstr("different operations"));
}

}  // namespace
}  // namespace stillhouse
