#include "tests/transport/channel_conformance.h"

#include <set>

#include "absl/strings/str_cat.h"

namespace stillhouse {
namespace {

Frames ToFrames(std::vector<std::string> frames) {
  Frames out;
  for (std::string& frame : frames) out.emplace_back(std::move(frame));
  return out;
}

std::vector<std::string> ToStrings(const Frames& frames) {
  std::vector<std::string> out;
  for (const Frame& frame : frames) out.emplace_back(frame.view());
  return out;
}

std::string Bytes(size_t size, int salt) {
  std::string bytes(size, '\0');
  for (size_t i = 0; i < size; ++i) bytes[i] = static_cast<char>((i * 131 + i / 251 + salt) & 0xff);
  return bytes;
}

}  // namespace

void ChannelConformanceTest::TearDown() {
  world_->Do([&] {
    clients_.clear();
    server_.reset();
  });
  world_.reset();
}

void ChannelConformanceTest::StartServer(bool echo) {
  world_->Do([&, echo] {
    auto server = world_->MakeServer();
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    server_->SetReceiver([this, echo](const Peer& peer, Frames frames) {
      at_server_.push_back(ToStrings(frames));
      peers_.push_back(peer);
      if (echo) {
        EXPECT_TRUE(server_->Send(peer.connection, std::move(frames)).ok());
      }
    });
  });
}

void ChannelConformanceTest::StopServer() {
  world_->Do([&] { server_.reset(); });
}

std::shared_ptr<TestClient> ChannelConformanceTest::AddClient(bool reads) {
  auto client = std::make_shared<TestClient>();
  world_->Do([&] {
    auto channel = world_->MakeClient();
    ASSERT_TRUE(channel.ok()) << channel.status();
    client->channel = *std::move(channel);
    clients_.push_back(client);
  });
  if (reads) StartReading(*client);
  return client;
}

void ChannelConformanceTest::DropClient(const std::shared_ptr<TestClient>& client) {
  world_->Do([&] {
    std::erase(clients_, client);
    client->channel.reset();
  });
}

void ChannelConformanceTest::StartReading(TestClient& client) {
  world_->Do([&] {
    client.channel->SetReceiver(
        [&client](Frames frames) { client.received.push_back(ToStrings(frames)); });
  });
}

absl::Status ChannelConformanceTest::Send(TestClient& client, std::vector<std::string> frames) {
  absl::Status status;
  world_->Do([&] { status = client.channel->Send(ToFrames(std::move(frames))); });
  return status;
}

absl::Status ChannelConformanceTest::SendFromServer(const std::string& connection,
                                                    std::vector<std::string> frames) {
  absl::Status status;
  world_->Do([&] { status = server_->Send(connection, ToFrames(std::move(frames))); });
  return status;
}

size_t ChannelConformanceTest::ServerCount() {
  size_t count = 0;
  world_->Do([&] { count = at_server_.size(); });
  return count;
}

bool ChannelConformanceTest::WaitForServerCount(size_t count) {
  return world_->WaitFor([&] { return at_server_.size() >= count; });
}

bool ChannelConformanceTest::WaitForClientCount(TestClient& client, size_t count) {
  return world_->WaitFor([&] { return client.received.size() >= count; });
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ChannelConformanceTest);

TEST_P(ChannelConformanceTest, FramesComeBackWholeAndInOrder) {
  StartServer(/*echo=*/true);
  auto client = AddClient();
  std::vector<std::vector<std::string>> sent;
  for (int i = 0; i < 500; ++i) {
    sent.push_back({absl::StrCat("message ", i), "", Bytes(i * 17, i)});
    ASSERT_TRUE(Send(*client, sent.back()).ok());
  }
  ASSERT_TRUE(WaitForClientCount(*client, sent.size()));
  world_->Do([&] { EXPECT_EQ(client->received, sent); });
}

TEST_P(ChannelConformanceTest, LargeFramesArriveUnchanged) {
  StartServer(/*echo=*/true);
  auto client = AddClient();
  const std::vector<std::string> sent = {Bytes(4 << 20, 1), "x", Bytes((16 << 20) + 1, 2)};
  ASSERT_TRUE(Send(*client, sent).ok());
  ASSERT_TRUE(WaitForClientCount(*client, 1));
  world_->Do([&] { EXPECT_EQ(client->received[0], sent); });
}

TEST_P(ChannelConformanceTest, ManyClientsEachGetTheirOwnAnswers) {
  StartServer(/*echo=*/true);
  constexpr int kClients = 40, kMessages = 25;
  for (int i = 0; i < kClients; ++i) AddClient();
  for (int m = 0; m < kMessages; ++m) {
    for (int i = 0; i < kClients; ++i) {
      ASSERT_TRUE(Send(*clients_[i], {absl::StrCat(i, "/", m)}).ok());
    }
  }
  for (int i = 0; i < kClients; ++i) {
    ASSERT_TRUE(WaitForClientCount(*clients_[i], kMessages)) << i;
    world_->Do([&] {
      for (int m = 0; m < kMessages; ++m) {
        EXPECT_EQ(clients_[i]->received[m][0], absl::StrCat(i, "/", m));
      }
    });
  }
  std::set<std::string> connections;
  world_->Do([&] {
    for (const Peer& peer : peers_) connections.insert(peer.connection);
    for (const Peer& peer : peers_) EXPECT_EQ(peer.user, peers_[0].user);
  });
  EXPECT_EQ(connections.size(), kClients);
  EXPECT_FALSE(peers_[0].user.empty());
}

TEST_P(ChannelConformanceTest, SendToAPeerThatIsGoneIsUnavailable) {
  StartServer(/*echo=*/false);
  auto client = AddClient();
  ASSERT_TRUE(Send(*client, {"hello"}).ok());
  ASSERT_TRUE(WaitForServerCount(1));
  const std::string connection = peers_[0].connection;
  EXPECT_TRUE(SendFromServer(connection, {"still there"}).ok());
  DropClient(client);
  EXPECT_TRUE(world_->WaitFor(
      [&] { return absl::IsUnavailable(server_->Send(connection, ToFrames({"gone?"}))); }));
  EXPECT_TRUE(absl::IsUnavailable(SendFromServer("no such connection", {"x"})));
  // Others are served as before.
  auto other = AddClient();
  ASSERT_TRUE(Send(*other, {"hello"}).ok());
  EXPECT_TRUE(WaitForServerCount(2));
}

TEST_P(ChannelConformanceTest, FullQueueOfAPeerThatDoesNotReadPushesBack) {
  StartServer(/*echo=*/false);
  auto lazy = AddClient(/*reads=*/false);
  ASSERT_TRUE(Send(*lazy, {"hello"}).ok());
  ASSERT_TRUE(WaitForServerCount(1));
  const std::string connection = peers_[0].connection;
  const std::string payload = Bytes(8 << 10, 3);
  size_t accepted = 0;
  absl::Status status;
  world_->Do([&] {
    // The kernel's buffers and both queues fill up first: bounded all the same.
    while (accepted < 20 * kQueueMessagesMax) {
      status = server_->Send(connection, ToFrames({absl::StrCat(accepted), payload}));
      if (!status.ok()) break;
      ++accepted;
    }
  });
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_GT(accepted, 0u);
  // Nothing that was accepted is lost, and there is room again once it is read.
  StartReading(*lazy);
  ASSERT_TRUE(WaitForClientCount(*lazy, accepted));
  EXPECT_TRUE(world_->WaitFor(
      [&] { return server_->Send(connection, ToFrames({absl::StrCat(accepted)})).ok(); }));
  ASSERT_TRUE(WaitForClientCount(*lazy, accepted + 1));
  world_->Do([&] {
    for (size_t i = 0; i < lazy->received.size(); ++i) {
      ASSERT_EQ(lazy->received[i][0], absl::StrCat(i));
    }
  });
}

TEST_P(ChannelConformanceTest, FullQueueToAServerThatIsNotThereYetPushesBack) {
  auto client = AddClient();
  size_t accepted = 0;
  absl::Status status;
  world_->Do([&] {
    while (accepted < 20 * kQueueMessagesMax) {
      status = client->channel->Send(ToFrames({absl::StrCat(accepted)}));
      if (!status.ok()) break;
      ++accepted;
    }
  });
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(accepted, kQueueMessagesMax);
  StartServer(/*echo=*/false);
  ASSERT_TRUE(WaitForServerCount(accepted));
  world_->Do([&] {
    for (size_t i = 0; i < accepted; ++i) EXPECT_EQ(at_server_[i][0], absl::StrCat(i));
  });
}

TEST_P(ChannelConformanceTest, WaitingBytesAreBoundedToo) {
  auto client = AddClient();
  const Frame large = std::string(kMessageBytesMax, 'x');
  size_t accepted = 0;
  absl::Status status;
  world_->Do([&] {
    while ((status = client->channel->Send({large})).ok() && accepted < 100) ++accepted;
  });
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(accepted, kQueueBytesMax / kMessageBytesMax);
}

TEST_P(ChannelConformanceTest, MessagesOverALimitAreRefusedBeforeTheyAreSent) {
  StartServer(/*echo=*/true);
  auto client = AddClient();
  const std::string half(kMessageBytesMax / 2, 'x');
  EXPECT_TRUE(absl::IsInvalidArgument(Send(*client, {half, half, "x"})));
  EXPECT_TRUE(absl::IsInvalidArgument(Send(*client, {})));
  EXPECT_TRUE(absl::IsInvalidArgument(Send(*client, std::vector<std::string>(kFramesMax + 1))));
  EXPECT_TRUE(Send(*client, std::vector<std::string>(kFramesMax)).ok());
  ASSERT_TRUE(WaitForClientCount(*client, 1));
  EXPECT_TRUE(absl::IsInvalidArgument(SendFromServer(peers_[0].connection, {half, half, "x"})));
  EXPECT_TRUE(absl::IsInvalidArgument(SendFromServer(peers_[0].connection, {})));
  EXPECT_EQ(ServerCount(), 1u);
}

TEST_P(ChannelConformanceTest, ClientsReconnectWhenTheServerRestarts) {
  StartServer(/*echo=*/true);
  auto client = AddClient();
  ASSERT_TRUE(Send(*client, {"first"}).ok());
  ASSERT_TRUE(WaitForClientCount(*client, 1));
  for (int restart = 0; restart < 3; ++restart) {
    StopServer();
    StartServer(/*echo=*/true);
    // What was sent while the connection broke may be lost: so ask again until an answer comes.
    const std::string question = absl::StrCat("again ", restart);
    int asked = 0;
    EXPECT_TRUE(world_->WaitFor([&] {
      if (asked++ % 50 == 0) {
        EXPECT_TRUE(client->channel->Send(ToFrames({question})).ok());
      }
      return !client->received.empty() && client->received.back()[0] == question;
    }));
  }
}

TEST_P(ChannelConformanceTest, EachConnectionIsToldAndNumberedHigher) {
  auto client = AddClient();
  std::vector<uint64_t> told;
  world_->Do([&] {
    EXPECT_EQ(client->channel->connection(), 0u);
    client->channel->SetConnected([&] { told.push_back(client->channel->connection()); });
  });
  for (size_t server = 1; server <= 3; ++server) {
    StartServer(/*echo=*/true);
    ASSERT_TRUE(world_->WaitFor([&] { return told.size() == server; }));
    const std::string question = absl::StrCat("question ", server);
    ASSERT_TRUE(Send(*client, {question}).ok());
    ASSERT_TRUE(WaitForClientCount(*client, server)) << "lost on a connection just told";
    StopServer();
    ASSERT_TRUE(world_->WaitFor([&] { return client->channel->connection() == 0; }));
  }
  world_->Do([&] {
    client->channel->SetConnected(nullptr);
    for (size_t i = 0; i < told.size(); ++i) EXPECT_GT(told[i], i == 0 ? 0 : told[i - 1]);
  });
}

TEST_P(ChannelConformanceTest, SecondServerOnOneAddressIsRefused) {
  StartServer(/*echo=*/true);
  world_->Do([&] {
    const auto second = world_->MakeServer();
    ASSERT_TRUE(absl::IsFailedPrecondition(second.status())) << second.status();
    EXPECT_NE(second.status().message().find("in use"), absl::string_view::npos);
  });
  auto client = AddClient();
  ASSERT_TRUE(Send(*client, {"the first one still answers"}).ok());
  EXPECT_TRUE(WaitForClientCount(*client, 1));
}

TEST_P(ChannelConformanceTest, MessagesWaitForTheReceiver) {
  StartServer(/*echo=*/true);
  auto client = AddClient(/*reads=*/false);
  ASSERT_TRUE(Send(*client, {"early"}).ok());
  ASSERT_TRUE(WaitForServerCount(1));
  StartReading(*client);
  EXPECT_TRUE(WaitForClientCount(*client, 1));
}

// Each receipt sends and each send touches the socket: no wake-up may be lost in between.
TEST_P(ChannelConformanceTest, PingPongFromInsideReceiversNeverStalls) {
  StartServer(/*echo=*/true);
  constexpr size_t kRounds = 3000;
  constexpr int kInFlight = 3;
  auto client = std::make_shared<TestClient>();
  size_t answers = 0;
  world_->Do([&] {
    client->channel = *world_->MakeClient();
    clients_.push_back(client);
    client->channel->SetReceiver([&](Frames frames) {
      if (++answers < kRounds) {
        EXPECT_TRUE(client->channel->Send(std::move(frames)).ok());
      }
    });
    for (int i = 0; i < kInFlight; ++i) {
      EXPECT_TRUE(client->channel->Send(ToFrames({absl::StrCat(i)})).ok());
    }
  });
  EXPECT_TRUE(world_->WaitFor([&] { return answers >= kRounds; })) << answers;
}

}  // namespace stillhouse
