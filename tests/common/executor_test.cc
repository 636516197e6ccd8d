#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>

#include "common/event_loop.h"
#include "common/manual_executor.h"
#include "common/thread_pool.h"

namespace stillhouse {
namespace {

TEST(ManualExecutorTest, TimersRunInOrderOfDeadlineAtTheirOwnMoment) {
  ManualExecutor executor;
  std::string order;
  executor.PostAfter(absl::Seconds(2), [&] { order += "b"; });
  executor.PostAfter(absl::Seconds(1), [&] {
    EXPECT_EQ(executor.clock().Now(), absl::Seconds(1));
    order += "a";
    executor.PostAfter(absl::Milliseconds(500), [&] { order += "x"; });
  });
  const TimerId cancelled = executor.PostAfter(absl::Seconds(2), [&] { order += "!"; });
  EXPECT_TRUE(executor.Cancel(cancelled));
  EXPECT_FALSE(executor.Cancel(cancelled));
  executor.Advance(absl::Seconds(3));
  EXPECT_EQ(order, "axb");
}

TEST(EventLoopTest, RunsPostedTasksTimersAndReadableFds) {
  EventLoop loop;
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  std::string seen;
  loop.WatchFd(fds[0], [&] {
    char c = 0;
    ASSERT_EQ(read(fds[0], &c, 1), 1);
    seen += c;
    loop.UnwatchFd(fds[0]);
    loop.PostAfter(absl::Milliseconds(1), [&] {
      seen += 't';
      loop.Stop();
    });
  });
  std::thread other([&] { loop.Post([&] { ASSERT_EQ(write(fds[1], "r", 1), 1); }); });
  loop.Run();
  other.join();
  EXPECT_EQ(seen, "rt");
  close(fds[0]);
  close(fds[1]);
}

TEST(EventLoopTest, CancelledTimerDoesNotRun) {
  EventLoop loop;
  bool ran = false;
  const TimerId timer = loop.PostAfter(absl::ZeroDuration(), [&] { ran = true; });
  EXPECT_TRUE(loop.Cancel(timer));
  loop.PostAfter(absl::Milliseconds(1), [&] { loop.Stop(); });
  loop.Run();
  EXPECT_FALSE(ran);
}

TEST(ThreadPoolTest, RunsEverythingBeforeItIsDestroyed) {
  std::atomic<int> ran{0};
  {
    ThreadPool pool(2);
    for (int i = 0; i < 100; ++i) pool.Post([&] { ++ran; });
  }
  EXPECT_EQ(ran, 100);
}

}  // namespace
}  // namespace stillhouse
