#include "coordinator/ctl/supervisor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>

#include "common/file.h"
#include "common/status.h"
#include "coordinator/ctl/signals.h"

namespace stillhouse {
namespace {

using testing::HasSubstr;

class SupervisorTest : public testing::Test {
 protected:
  explicit SupervisorTest(absl::Duration healthy = absl::Minutes(10))
      : folder_(*TempFolder::Create()),
        signals_(loop_,
                 [this](int signal) {
                   if (signal == SIGCHLD) supervisor_.Reap();
                 }),
        supervisor_(loop_, {.backoff_first = absl::Milliseconds(1),
                            .backoff_max = absl::Milliseconds(2),
                            .ready_poll = absl::Milliseconds(1),
                            .healthy = healthy}) {}

  std::string Path(const std::string& name) { return JoinPath(folder_.path(), name); }
  ChildSpec Shell(const std::string& name, const std::string& script) {
    return {.name = name,
            .argv = {"/bin/sh", "-c", script},
            .log_path = Path(name + ".log"),
            .final_codes = {kExitConflict}};
  }
  // Starts the child, runs the loop until it has ended.
  absl::Status RunToEnd(ChildSpec spec, absl::AnyInvocable<void()> ready = nullptr,
                        absl::AnyInvocable<bool()> wanted = nullptr) {
    std::optional<absl::Status> ended;
    supervisor_.Start(
        std::move(spec),
        {.ready = std::move(ready), .wanted = std::move(wanted), .ended = [&](absl::Status status) {
           ended = status;
           loop_.Stop();
         }});
    EXPECT_FALSE(ended.has_value());
    loop_.Run();
    return ended.value_or(absl::UnknownError("the loop ended first"));
  }

  TempFolder folder_;
  EventLoop loop_;
  SignalWatch signals_;
  Supervisor supervisor_;
};

TEST_F(SupervisorTest, T4_ExitZeroEndsIt) {
  EXPECT_TRUE(RunToEnd(Shell("a", "echo hello; exit 0")).ok());
  EXPECT_EQ(*ReadFile(Path("a.log")), "hello\n");
  EXPECT_EQ(supervisor_.restarts("a"), 0);
}

TEST_F(SupervisorTest, T3_DeathIsFollowedByARestart) {
  const std::string count = Path("count");
  EXPECT_TRUE(RunToEnd(Shell("a", absl::StrCat("echo x >> '", count, "'; [ $(wc -l < '", count,
                                               "') -ge 3 ] || kill -9 $$")))
                  .ok());
  EXPECT_EQ(*ReadFile(count), "x\nx\nx\n");
  EXPECT_EQ(supervisor_.restarts("a"), 2);
}

TEST_F(SupervisorTest, T7_TheSixthDeathNamesTheLogAndItsLastLine) {
  const std::string count = Path("count");
  const absl::Status status =
      RunToEnd(Shell("a", absl::StrCat("echo x >> '", count, "'; echo no luck; echo; exit 9")));
  EXPECT_EQ(*ReadFile(count), "x\nx\nx\nx\nx\nx\n");
  EXPECT_THAT(
      std::string(status.message()),
      testing::AllOf(HasSubstr("exit code 9 for the 6th time: no luck"), HasSubstr(Path("a.log"))));
}

class EveryLifeIsHealthyTest : public SupervisorTest {
 protected:
  EveryLifeIsHealthyTest() : SupervisorTest(absl::ZeroDuration()) {}
};

TEST_F(EveryLifeIsHealthyTest, T3_ALongLifeForgivesTheDeathsBeforeIt) {
  const std::string count = Path("count");
  EXPECT_TRUE(RunToEnd(Shell("a", absl::StrCat("echo x >> '", count, "'; [ $(wc -l < '", count,
                                               "') -ge 9 ] || exit 1")))
                  .ok());
  EXPECT_EQ(ReadFile(count)->size(), 18u);
}

TEST_F(SupervisorTest, T7_AFinalExitCodeEndsItAtOnce) {
  const absl::Status status = RunToEnd(Shell("a", "echo the cache is held >&2; exit 4"));
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("a ended with exit code 4: the cache is held"));
  EXPECT_EQ(supervisor_.restarts("a"), 0);
}

TEST_F(SupervisorTest, T6_WhatIsNoLongerWantedIsNotStartedAgain) {
  EXPECT_TRUE(RunToEnd(Shell("a", "exit 1"), nullptr, [] { return false; }).ok());
  EXPECT_EQ(supervisor_.restarts("a"), 0);
}

TEST_F(SupervisorTest, T2_ReadyMeansTheFileOfThisVeryProcess) {
  ChildSpec spec = Shell(
      "a", absl::StrCat("echo \"{\\\"pid\\\": $$}\" > '", Path("r.tmp"), "'; mv '", Path("r.tmp"),
                        "' '", Path("ready"), "'; read x < '", Path("fifo"), "'"));
  spec.ready_file = Path("ready");
  SH_CHECK_OK(WriteFileAtomically(spec.ready_file, "{\"pid\": 1}"));  // of an earlier one
  ASSERT_EQ(mkfifo(Path("fifo").c_str(), 0600), 0);
  int ready = 0;
  EXPECT_TRUE(RunToEnd(spec, [&] {
                ++ready;
                supervisor_.Stop("a", absl::Seconds(30));
              }).ok());
  EXPECT_EQ(ready, 1);
}

TEST_F(SupervisorTest, T8_StopAllKillsWhatWillNotGo) {
  const std::string fifo = Path("fifo"), ready = Path("ready");
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  ChildSpec deaf = Shell("deaf", absl::StrCat("trap '' TERM; echo \"{\\\"pid\\\": $$}\" > '", ready,
                                              "'; while :; do read x < '", fifo, "'; done"));
  deaf.ready_file = ready;
  int ended = 0;
  bool stopped = false;
  supervisor_.Start(Shell("polite", absl::StrCat("read x < '", fifo, "'")),
                    {.ended = [&](absl::Status status) { ended += status.ok(); }});
  supervisor_.Start(deaf, {.ready =
                               [&] {
                                 supervisor_.StopAll(absl::Milliseconds(100), [&] {
                                   stopped = true;
                                   loop_.Stop();
                                 });
                               },
                           .ended = [&](absl::Status status) { ended += status.ok(); }});
  const pid_t pid = supervisor_.pid("deaf");
  loop_.Run();
  EXPECT_TRUE(stopped);
  EXPECT_EQ(ended, 2);
  EXPECT_EQ(kill(pid, 0), -1);
}

TEST_F(SupervisorTest, AProgramThatIsNotThereIsNamed) {
  ChildSpec spec = Shell("a", "");
  spec.argv = {Path("no such program")};
  spec.final_codes = {127};
  EXPECT_THAT(std::string(RunToEnd(spec).message()), HasSubstr("no such program: No such file"));
}

TEST(ChildTest, APipeThatNobodyReadsIsNoLog) {
  const TempFolder folder = *TempFolder::Create();
  const std::string fifo = JoinPath(folder.path(), "cache.log");
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  const absl::Status status = StartChild({"/bin/true"}, fifo).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("opening " + fifo));
}

TEST(ChildTest, DiesWithTheProcessThatStartedIt) {
  const TempFolder folder = *TempFolder::Create();
  const std::string fifo = JoinPath(folder.path(), "fifo");
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  int report[2];
  ASSERT_EQ(pipe(report), 0);
  const pid_t middle = fork();
  if (middle == 0) {
    // The grandchild keeps the pipe's writing end open for as long as it lives.
    const auto child = StartChild({"/bin/sh", "-c", absl::StrCat("read x < '", fifo, "'")},
                                  absl::StrCat("/proc/self/fd/", report[1]));
    [[maybe_unused]] const ssize_t written = write(report[1], child.ok() ? "y" : "n", 1);
    _exit(0);
  }
  close(report[1]);
  char answer = 0;
  ASSERT_EQ(read(report[0], &answer, 1), 1);
  EXPECT_EQ(answer, 'y');
  waitpid(middle, nullptr, 0);
  EXPECT_EQ(read(report[0], &answer, 1), 0);  // end of file: nobody holds the other end any more
  close(report[0]);
}

}  // namespace
}  // namespace stillhouse
