#include "transport/rpc.h"

#include <gtest/gtest.h>

#include <optional>

#include "absl/strings/str_cat.h"
#include "common/manual_executor.h"
#include "common/random.h"
#include "transport/memory_channel.h"
#include "transport/rpc_envelope.h"

namespace stillhouse {
namespace {

using Result = absl::StatusOr<RpcMessage>;

class RpcTest : public testing::Test {
 protected:
  void StartServer(const RpcOptions& options = {}) {
    server_channel_ = *network_.MakeServer("server");
    server_ = MakeRpcServer(*server_channel_, executor_, options);
    server_->Handle("echo",
                    [this](const Peer& peer, RpcMessage request, RpcServer::Respond respond) {
                      ++handled_;
                      request.body = absl::StrCat(peer.user, " said ", request.body);
                      respond(std::move(request));
                    });
    server_->Handle("refuse", [](const Peer&, RpcMessage, RpcServer::Respond respond) {
      respond(absl::AbortedError("epoch 3 is over: \xff"));
    });
    server_->Handle("slow", [this](const Peer&, RpcMessage, RpcServer::Respond respond) {
      ++handled_;
      held_.push_back(std::move(respond));
    });
  }
  void StopServer() {
    held_.clear();
    server_.reset();
    server_channel_.reset();
  }
  void StartClient(const RpcOptions& options = {.incarnation = 77}) {
    client_channel_ = network_.MakeClient("server", "uid/5");
    client_ = MakeRpcClient(*client_channel_, executor_, options);
  }
  RpcClient::Done Into(std::optional<Result>& result) {
    return [&result](Result got) {
      EXPECT_FALSE(result.has_value()) << "answered twice";
      result = std::move(got);
    };
  }
  // What a hostile or foreign client sends.
  void SendRaw(const std::vector<std::string>& frames) {
    Frames message;
    for (const std::string& frame : frames) message.emplace_back(frame);
    ASSERT_TRUE(raw_->Send(std::move(message)).ok());
    executor_.RunUntilIdle();
  }

  ManualExecutor executor_;
  MemoryNetwork network_{executor_};
  std::unique_ptr<ServerChannel> server_channel_;
  std::unique_ptr<RpcServer> server_;
  std::vector<RpcServer::Respond> held_;
  std::unique_ptr<ClientChannel> client_channel_;
  std::unique_ptr<RpcClient> client_;
  std::unique_ptr<ClientChannel> raw_;
  int handled_ = 0;
};

TEST_F(RpcTest, AnswersCarryBodyAttachmentsAndTheCallersUser) {
  StartServer();
  StartClient();
  std::optional<Result> result;
  const Frame bulk = std::string(1 << 20, 'b');
  client_->Call("echo", {"hi", {bulk, Frame()}}, {}, Into(result));
  EXPECT_FALSE(result.has_value()) << "done ran inside Call";
  executor_.RunUntilIdle();
  ASSERT_TRUE(result.has_value() && result->ok());
  EXPECT_EQ((*result)->body, "uid/5 said hi");
  ASSERT_EQ((*result)->attachments.size(), 2u);
  EXPECT_EQ((*result)->attachments[0].data(), bulk.data())
      << "the memory network copies no frame, nor may we";
  EXPECT_EQ((*result)->attachments[1].view(), "");
}

TEST_F(RpcTest, StatusOfTheHandlerArrivesAsItIs) {
  StartServer();
  StartClient();
  std::optional<Result> result;
  client_->Call("refuse", {}, {}, Into(result));
  executor_.RunUntilIdle();
  ASSERT_TRUE(result.has_value());
  EXPECT_EQ(result->status(), absl::AbortedError("epoch 3 is over: \xff"));
}

TEST_F(RpcTest, UnknownMethodIsUnimplementedByName) {
  StartServer();
  StartClient();
  std::optional<Result> result;
  client_->Call("cache.Frobnicate", {}, {}, Into(result));
  executor_.RunUntilIdle();
  ASSERT_TRUE(result.has_value());
  EXPECT_TRUE(absl::IsUnimplemented(result->status()));
  EXPECT_NE(result->status().message().find("cache.Frobnicate"), absl::string_view::npos);
}

TEST_F(RpcTest, RequestWaitsForAServerThatComesLater) {
  StartClient();
  std::optional<Result> result;
  client_->Call("echo", {"hi", {}}, {}, Into(result));
  executor_.Advance(absl::Seconds(5));
  EXPECT_FALSE(result.has_value());
  StartServer();
  executor_.Advance(absl::Seconds(11));
  ASSERT_TRUE(result.has_value() && result->ok());
  EXPECT_EQ(handled_, 1) << "copies that waited are one request";
}

TEST_F(RpcTest, DeadlinePassesWithoutAServer) {
  StartClient();
  std::optional<Result> result;
  client_->Call("echo", {}, {.deadline = absl::Seconds(3)}, Into(result));
  executor_.Advance(absl::Milliseconds(2999));
  EXPECT_FALSE(result.has_value());
  executor_.Advance(absl::Milliseconds(1));
  ASSERT_TRUE(result.has_value());
  EXPECT_TRUE(absl::IsDeadlineExceeded(result->status()));
  EXPECT_EQ(result->status().message(), "echo: no answer within 3s (no server is there)");
}

TEST_F(RpcTest, NoCopiesPileUpWhileNoServerIsThere) {
  StartClient();
  std::optional<Result> result;
  client_->Call("echo", {"hi", {}}, {.deadline = absl::InfiniteDuration()}, Into(result));
  executor_.Advance(absl::Minutes(5));
  int sent = 0;
  network_.SetFate([&](const MemoryNetwork::Delivery& delivery) -> std::vector<absl::Duration> {
    sent += delivery.to_server;
    return {absl::ZeroDuration()};
  });
  StartServer();
  executor_.RunUntilIdle();
  EXPECT_TRUE(result.has_value() && result->ok());
  EXPECT_EQ(sent, 1);
  EXPECT_EQ(client_->counters().resent, 0u);
}

TEST_F(RpcTest, WhatAServerLeftUnansweredGoesAtOnceToTheNextOne) {
  StartServer();
  StartClient();
  constexpr int kCalls = 20;
  std::vector<std::optional<Result>> results(kCalls);
  for (auto& result : results) {
    client_->Call("slow", {}, {.deadline = absl::InfiniteDuration()}, Into(result));
  }
  executor_.Advance(absl::Minutes(1));
  StopServer();
  executor_.Advance(absl::Minutes(1));
  handled_ = 0;
  StartServer();
  executor_.RunUntilIdle();  // no time passes
  ASSERT_EQ(handled_, kCalls);
  for (auto& respond : held_) respond(RpcMessage());
  executor_.RunUntilIdle();
  for (const auto& result : results) EXPECT_TRUE(result.has_value() && result->ok());
}

TEST_F(RpcTest, AnswerAfterTheDeadlineIsCountedAndDropped) {
  StartServer();
  StartClient();
  std::optional<Result> result;
  client_->Call("slow", {}, {.deadline = absl::Seconds(1)}, Into(result));
  executor_.Advance(absl::Seconds(2));
  ASSERT_TRUE(result.has_value());
  held_[0](RpcMessage{"late", {}});
  executor_.RunUntilIdle();
  EXPECT_EQ(client_->counters().late, 1u);
}

TEST_F(RpcTest, LostRequestsAndAnswersAreMadeUpForBySendingAgain) {
  StartServer();
  StartClient();
  RandomStream random(3);
  network_.SetFate([&](const MemoryNetwork::Delivery&) -> std::vector<absl::Duration> {
    if (random.NextUniform() < 0.6) return {};
    if (random.NextUniform() < 0.2) return {absl::ZeroDuration(), absl::Milliseconds(300)};
    return {absl::Milliseconds(random.NextBelow(3000))};
  });
  constexpr int kCalls = 200;
  std::vector<std::optional<Result>> results(kCalls);
  for (int i = 0; i < kCalls; ++i) {
    client_->Call("echo", {absl::StrCat(i), {}}, {.deadline = absl::InfiniteDuration()},
                  Into(results[i]));
  }
  executor_.Advance(absl::Minutes(20));
  for (int i = 0; i < kCalls; ++i) {
    ASSERT_TRUE(results[i].has_value() && results[i]->ok()) << i;
    EXPECT_EQ((*results[i])->body, absl::StrCat("uid/5 said ", i));
  }
  EXPECT_EQ(handled_, kCalls) << "a request that came again was handled again";
  EXPECT_GT(client_->counters().resent, static_cast<uint64_t>(kCalls));
  EXPECT_GT(server_->counters().duplicates, 0u);
}

TEST_F(RpcTest, ResendsGrowRarer) {
  StartServer();
  StartClient();
  int sent = 0;
  network_.SetFate([&](const MemoryNetwork::Delivery&) -> std::vector<absl::Duration> {
    ++sent;
    return {};
  });
  std::optional<Result> result;
  client_->Call("echo", {}, {.deadline = absl::Seconds(120), .resend_after = absl::Seconds(1)},
                Into(result));
  executor_.Advance(absl::Seconds(121));
  EXPECT_GE(sent, 13);  // 1, 2, 4, 8, then at most every 10 s
  EXPECT_LE(sent, 27);  // the same with every wait halved
  EXPECT_TRUE(result.has_value());
}

TEST_F(RpcTest, SlowRequestThatComesAgainIsHandledOnceAndAnsweredToTheNewConnection) {
  StartServer();
  StartClient();
  std::optional<Result> result;
  client_->Call("slow", {}, {.deadline = absl::InfiniteDuration()}, Into(result));
  executor_.Advance(absl::Seconds(5));
  network_.CutConnections("server");
  executor_.Advance(absl::Seconds(30));
  ASSERT_EQ(handled_, 1);
  held_[0](RpcMessage{"at last", {}});
  executor_.RunUntilIdle();
  ASSERT_TRUE(result.has_value() && result->ok());
  EXPECT_EQ((*result)->body, "at last");
}

TEST_F(RpcTest, AnswerLostWithItsConnectionIsGivenAgainWithoutHandlingAgain) {
  StartServer();
  StartClient();
  std::optional<Result> result;
  network_.SetFate([](const MemoryNetwork::Delivery& delivery) -> std::vector<absl::Duration> {
    if (delivery.to_server) return {absl::ZeroDuration()};
    return {};
  });
  client_->Call("echo", {"hi", {}}, {}, Into(result));
  executor_.Advance(absl::Seconds(1));
  ASSERT_EQ(handled_, 1);
  network_.SetFate(nullptr);
  network_.CutConnections("server");
  executor_.Advance(absl::Seconds(10));
  ASSERT_TRUE(result.has_value() && result->ok());
  EXPECT_EQ(handled_, 1);
}

TEST_F(RpcTest, RequestSurvivesARestartOfTheServer) {
  StartServer();
  StartClient();
  std::optional<Result> result;
  client_->Call("slow", {}, {.deadline = absl::InfiniteDuration()}, Into(result));
  executor_.Advance(absl::Seconds(1));
  StopServer();
  executor_.Advance(absl::Seconds(20));
  StartServer();
  executor_.Advance(absl::Seconds(20));
  ASSERT_EQ(held_.size(), 1u);
  held_[0](RpcMessage{"from the second server", {}});
  executor_.RunUntilIdle();
  ASSERT_TRUE(result.has_value() && result->ok());
}

TEST_F(RpcTest, RespondDestroyedUnusedMeansTheRequestIsHandledAnew) {
  StartServer();
  StartClient();
  std::optional<Result> result;
  client_->Call("slow", {}, {.deadline = absl::InfiniteDuration()}, Into(result));
  executor_.RunUntilIdle();
  held_.clear();
  executor_.Advance(absl::Seconds(3));
  EXPECT_EQ(handled_, 2);
}

TEST_F(RpcTest, ARestartedClientsIdsAreNotItsFormerOnes) {
  StartServer();
  StartClient({.incarnation = 1});
  std::optional<Result> first, second;
  client_->Call("echo", {"first", {}}, {}, Into(first));
  executor_.RunUntilIdle();
  client_.reset();
  StartClient({.incarnation = 2});
  client_->Call("echo", {"second", {}}, {}, Into(second));
  executor_.RunUntilIdle();
  ASSERT_TRUE(second.has_value() && second->ok());
  EXPECT_EQ((*second)->body, "uid/5 said second");
}

TEST_F(RpcTest, DestroyedClientRunsNoCallback) {
  StartServer();
  StartClient();
  client_->Call("echo", {}, {}, [](Result) { FAIL() << "the owner is gone"; });
  client_->Call("slow", {}, {}, [](Result) { FAIL() << "the owner is gone"; });
  client_.reset();
  executor_.Advance(absl::Minutes(1));
}

TEST_F(RpcTest, CallbackMayDestroyTheClient) {
  StartServer();
  StartClient();
  bool done = false;
  client_->Call("echo", {}, {}, [&](Result) {
    done = true;
    client_.reset();
  });
  executor_.Advance(absl::Minutes(1));
  EXPECT_TRUE(done);
}

TEST_F(RpcTest, VersionsWithoutACommonProtocolAreRefusedWithBothNames) {
  StartServer({.protocol_min = 4, .protocol_max = 5});
  StartClient({.protocol_min = 2, .protocol_max = 3});
  std::optional<Result> result;
  client_->Call("echo", {}, {}, Into(result));
  executor_.RunUntilIdle();
  ASSERT_TRUE(result.has_value());
  EXPECT_TRUE(absl::IsFailedPrecondition(result->status())) << result->status();
  for (const char* part : {"4 to 5", "2 to 3"}) {
    EXPECT_NE(result->status().message().find(part), absl::string_view::npos) << result->status();
  }
  EXPECT_EQ(handled_, 0);
}

TEST_F(RpcTest, NeighbouringProtocolsInteroperate) {
  StartServer({.protocol_min = 3, .protocol_max = 4});
  StartClient({.protocol_min = 2, .protocol_max = 3});
  std::optional<Result> result;
  client_->Call("echo", {}, {}, Into(result));
  executor_.RunUntilIdle();
  EXPECT_TRUE(result.has_value() && result->ok());
}

TEST_F(RpcTest, RequestOverTheLimitFailsAtOnce) {
  StartServer();
  StartClient();
  std::optional<Result> result;
  client_->Call("echo", {std::string(kMessageBytesMax, 'x'), {}}, {}, Into(result));
  executor_.RunUntilIdle();
  ASSERT_TRUE(result.has_value());
  EXPECT_TRUE(absl::IsInvalidArgument(result->status()));
}

TEST_F(RpcTest, AnswerOverTheLimitIsAnErrorNotSilence) {
  StartServer();
  StartClient();
  server_->Handle("huge", [](const Peer&, RpcMessage, RpcServer::Respond respond) {
    respond(RpcMessage{std::string(kMessageBytesMax, 'x'), {}});
  });
  std::optional<Result> result;
  client_->Call("huge", {}, {}, Into(result));
  executor_.RunUntilIdle();
  ASSERT_TRUE(result.has_value());
  EXPECT_TRUE(absl::IsInternal(result->status()));
}

TEST_F(RpcTest, LargeAnswersAreNotKept) {
  StartServer();
  raw_ = network_.MakeClient("server");
  int answers = 0;
  raw_->SetReceiver([&](Frames) { ++answers; });
  const Envelope envelope{1, 1, 9, "echo", absl::OkStatus(), 5};
  for (int i = 0; i < 2; ++i) {
    SendRaw({SerializeEnvelope(envelope), "body", std::string(kAnswerKeptBytesMax + 1, 'x')});
  }
  EXPECT_EQ(answers, 2);
  EXPECT_EQ(handled_, 2);
}

TEST_F(RpcTest, AnswersKeptAreBounded) {
  StartServer();
  raw_ = network_.MakeClient("server");
  for (uint64_t id = 1; id <= kAnswersKeptMax + 1; ++id) {
    SendRaw({SerializeEnvelope({1, 1, id, "echo", absl::OkStatus(), 5}), ""});
  }
  const int before = handled_;
  SendRaw({SerializeEnvelope({1, 1, kAnswersKeptMax + 1, "echo", absl::OkStatus(), 5}), ""});
  EXPECT_EQ(handled_, before) << "the youngest is kept";
  SendRaw({SerializeEnvelope({1, 1, 1, "echo", absl::OkStatus(), 5}), ""});
  EXPECT_EQ(handled_, before + 1) << "the oldest went";
}

TEST_F(RpcTest, MalformedRequestsAreCountedAndDropped) {
  StartServer();
  raw_ = network_.MakeClient("server");
  const std::string good = SerializeEnvelope({1, 1, 9, "echo", absl::OkStatus(), 5});
  const std::vector<std::vector<std::string>> hostile = {
      {""},
      {"\xff\xff\xff\xff garbage", "body"},
      {good},                                                               // no body
      {good.substr(0, good.size() - 1), "body"},                            // truncated
      {std::string(kEnvelopeBytesMax + 1, '\0'), "body"},                   // too large
      {SerializeEnvelope({1, 1, 0, "echo", absl::OkStatus(), 5}), "body"},  // no id
      {SerializeEnvelope({0, 1, 9, "echo", absl::OkStatus(), 5}), "body"},  // no protocol
      {SerializeEnvelope({3, 2, 9, "echo", absl::OkStatus(), 5}), "body"},  // empty range
      {SerializeEnvelope({1, 1, 9, "", absl::OkStatus(), 5}), "body"},      // an answer
      {SerializeEnvelope({1, 1, 9, std::string(kMethodBytesMax + 1, 'm'), {}, 5}), "body"},
  };
  for (const auto& frames : hostile) SendRaw(frames);
  EXPECT_EQ(server_->counters().malformed, hostile.size());
  EXPECT_EQ(handled_, 0);
  SendRaw({good, "body"});
  EXPECT_EQ(handled_, 1);
}

TEST_F(RpcTest, MalformedAnswersAreCountedAndDropped) {
  server_channel_ = *network_.MakeServer("server");
  std::vector<std::vector<std::string>> replies = {
      {"garbage \xff"},
      {SerializeEnvelope({1, 1, 1, "", absl::OkStatus(), 77})},                // OK without a body
      {SerializeEnvelope({1, 1, 1, "method", absl::OkStatus(), 77}), "body"},  // a request
      {SerializeEnvelope({1, 1, 1, "", absl::OkStatus(), 78}), "body"},        // another client's
      // status code 99, in protobuf's own bytes: min 1, max 1, id 1, code 99, incarnation 77
      {std::string("\x08\x01\x10\x01\x18\x01\x28\x63\x38\x4d"), "body"},
  };
  server_channel_->SetReceiver([&](const Peer& peer, Frames) {
    for (const auto& reply : replies) {
      Frames frames;
      for (const std::string& frame : reply) frames.emplace_back(frame);
      ASSERT_TRUE(server_channel_->Send(peer.connection, std::move(frames)).ok());
    }
    replies = {{SerializeEnvelope({1, 1, 1, "", absl::OkStatus(), 77}), "good"}};
  });
  StartClient();
  std::optional<Result> result;
  client_->Call("echo", {}, {}, Into(result));
  executor_.RunUntilIdle();
  EXPECT_FALSE(result.has_value());
  EXPECT_EQ(client_->counters().malformed, 5u);
  executor_.Advance(absl::Seconds(3));
  ASSERT_TRUE(result.has_value() && result->ok());
  EXPECT_EQ((*result)->body, "good");
}

TEST(EnvelopeTest, EveryPrefixAndEveryFlippedByteIsParsedOrRefused) {
  const std::string good =
      SerializeEnvelope({1, 2, 300, "control.Lease", absl::NotFoundError("gone"), 1ull << 60});
  ASSERT_TRUE(ParseEnvelope(good).has_value());
  for (size_t size = 0; size < good.size(); ++size) ParseEnvelope(good.substr(0, size));
  for (size_t i = 0; i < good.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ (1 << bit));
      const auto parsed = ParseEnvelope(bad);
      if (parsed.has_value()) {
        EXPECT_LE(parsed->method.size(), kMethodBytesMax);
      }
    }
  }
}

}  // namespace
}  // namespace stillhouse
