#include "transport/memory_channel.h"

#include <gtest/gtest.h>

#include "common/manual_executor.h"
#include "tests/transport/channel_conformance.h"

namespace stillhouse {
namespace {

class MemoryWorld final : public ChannelWorld {
 public:
  void Do(std::function<void()> task) override { task(); }
  bool WaitFor(std::function<bool()> condition) override {
    for (int i = 0; i < 10'000; ++i) {
      executor_.Advance(absl::Milliseconds(1));
      if (condition()) return true;
    }
    return false;
  }
  absl::StatusOr<std::unique_ptr<ServerChannel>> MakeServer() override {
    return network_.MakeServer("server");
  }
  absl::StatusOr<std::unique_ptr<ClientChannel>> MakeClient() override {
    return network_.MakeClient("server");
  }

 private:
  ManualExecutor executor_;
  MemoryNetwork network_{executor_};
};

INSTANTIATE_TEST_SUITE_P(Memory, ChannelConformanceTest,
                         testing::Values([] { return std::make_unique<MemoryWorld>(); }));

Frames One(const std::string& text) { return {text}; }

class MemoryChannelTest : public testing::Test {
 protected:
  MemoryChannelTest() {
    server_ = *network_.MakeServer("s");
    server_->SetReceiver([this](const Peer& peer, Frames frames) {
      absl::StrAppend(&seen_, frames[0].view(), " from ", peer.user, ";");
    });
    client_ = network_.MakeClient("s", "uid/7");
  }
  ManualExecutor executor_;
  MemoryNetwork network_{executor_};
  std::unique_ptr<ServerChannel> server_;
  std::unique_ptr<ClientChannel> client_;
  std::string seen_;
};

TEST_F(MemoryChannelTest, FateLosesDelaysAndDuplicatesButNeverReorders) {
  network_.SetFate([](const MemoryNetwork::Delivery& delivery) -> std::vector<absl::Duration> {
    EXPECT_TRUE(delivery.to_server);
    EXPECT_EQ(delivery.address, "s");
    const absl::string_view text = delivery.frames[0];
    if (text == "lost") return {};
    if (text == "slow") return {absl::Seconds(2)};
    if (text == "twice") return {absl::ZeroDuration(), absl::Seconds(3)};
    return {absl::ZeroDuration()};
  });
  for (const char* text : {"a", "lost", "slow", "b", "twice"}) {
    ASSERT_TRUE(client_->Send(One(text)).ok());
  }
  executor_.RunUntilIdle();
  EXPECT_EQ(seen_, "a from uid/7;");
  executor_.Advance(absl::Seconds(2));
  EXPECT_EQ(seen_, "a from uid/7;slow from uid/7;b from uid/7;twice from uid/7;");
  executor_.Advance(absl::Seconds(1));
  EXPECT_EQ(seen_.size(), std::string("a from uid/7;slow from uid/7;b from uid/7;").size() +
                              2 * std::string("twice from uid/7;").size());
}

TEST_F(MemoryChannelTest, CutConnectionsLoseWhatIsOnItsWay) {
  ASSERT_TRUE(client_->Send(One("lost")).ok());
  network_.CutConnections("s");
  ASSERT_TRUE(client_->Send(One("kept")).ok());
  executor_.RunUntilIdle();
  EXPECT_EQ(seen_, "kept from uid/7;");
}

}  // namespace
}  // namespace stillhouse
