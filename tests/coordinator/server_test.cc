// The server around the State: order of answers, durability before them, refusals.
#include "coordinator/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/manual_executor.h"
#include "proto/admin.pb.h"
#include "proto/control.pb.h"
#include "transport/memory_channel.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Writes when the test says so.
class HeldJournal final : public AsyncJournal {
 public:
  void Write(std::vector<JournalChange> changes,
             absl::AnyInvocable<void(absl::Status)> done) override {
    ++batches;
    rows += changes.size();
    EXPECT_EQ(done_, nullptr) << "one batch at a time";
    done_ = std::move(done);
  }
  bool waiting() const { return done_ != nullptr; }
  void Finish(absl::Status status = absl::OkStatus()) {
    auto done = std::exchange(done_, nullptr);
    done(std::move(status));
  }
  int batches = 0;
  size_t rows = 0;

 private:
  absl::AnyInvocable<void(absl::Status)> done_;
};

class EmptyCache final : public CacheInventory {
 public:
  explicit EmptyCache(Executor& executor) : executor_(executor) {}
  void Ask(const CaptureSetup&, std::vector<uint32_t> chunks,
           absl::AnyInvocable<void(absl::StatusOr<std::vector<bool>>)> done) override {
    EXPECT_LE(chunks.size(), kAskChunksMax);
    asked += chunks.size();
    executor_.Post([n = chunks.size(), fails = failures-- > 0, done = std::move(done)]() mutable {
      if (fails) return done(absl::UnavailableError("restarting"));
      done(std::vector<bool>(n, false));
    });
  }
  void MakeRoom(const std::string&, std::vector<uint32_t>,
                absl::AnyInvocable<void(absl::StatusOr<uint64_t>)> done) override {
    executor_.Post([done = std::move(done)]() mutable { done(0); });
  }
  size_t asked = 0;
  int failures = 0;

 private:
  Executor& executor_;
};

class ServerTest : public ::testing::Test {
 protected:
  ServerTest() : network_(executor_), cache_(executor_) {
    channel_ = *network_.MakeServer("memory://c");
    rpc_server_ = MakeRpcServer(*channel_, executor_);
    server_ = std::make_unique<CoordinatorServer>(
        CoordinatorServer::Options{"memory://cache"}, State{}, *rpc_server_, executor_, journal_,
        cache_, [this](absl::Status status) { stopped_ = std::move(status); });
    server_->Start();
    client_channel_ = network_.MakeClient("memory://c");
    client_ = MakeRpcClient(*client_channel_, executor_);
  }

  static std::string SubmitBody(const std::string& key, int chunks = 2) {
    pb::SubmitRequest request;
    request.set_idempotency_key(key);
    request.set_name("j");
    request.set_plan(std::string(Sha256Of("plan").AsStringView()));
    request.set_teacher(std::string(Sha256Of("teacher").AsStringView()));
    request.set_teacher_dtype("bf16");
    request.add_sections("stats");
    for (int i = 0; i < chunks; ++i) request.add_chunks()->set_rows(10);
    return request.SerializeAsString();
  }

  void Call(const std::string& method, std::string body) {
    client_->Call(method, {std::move(body), {}}, {},
                  [this, method](absl::StatusOr<RpcMessage> answer) {
                    answers_.push_back(method);
                    last_ = answer.status();
                    if (answer.ok()) last_body_ = answer->body;
                  });
    executor_.RunUntilIdle();
  }
  void FinishWrite(absl::Status status = absl::OkStatus()) {
    journal_.Finish(std::move(status));
    executor_.RunUntilIdle();
  }

  ManualExecutor executor_;
  MemoryNetwork network_;
  HeldJournal journal_;
  EmptyCache cache_;
  std::unique_ptr<ServerChannel> channel_;
  std::unique_ptr<RpcServer> rpc_server_;
  std::unique_ptr<CoordinatorServer> server_;
  std::unique_ptr<ClientChannel> client_channel_;
  std::unique_ptr<RpcClient> client_;
  std::vector<std::string> answers_;
  absl::Status last_;
  std::string last_body_;
  std::optional<absl::Status> stopped_;
};

TEST_F(ServerTest, NothingIsAnsweredBeforeItsRowsAreSynced) {
  Call("admin.Submit", SubmitBody("k"));
  EXPECT_TRUE(journal_.waiting());
  Call("admin.Get", "");
  EXPECT_THAT(answers_, IsEmpty()) << "what it would tell is not durable yet";
  FinishWrite();
  EXPECT_THAT(answers_, ElementsAre("admin.Submit")) << "the cache answered meanwhile: more rows";
  FinishWrite();
  EXPECT_THAT(answers_, ElementsAre("admin.Submit", "admin.Get"));
  EXPECT_TRUE(last_.ok()) << last_;
}

TEST_F(ServerTest, WhatComesDuringAWriteGoesTogetherIntoTheNext) {
  Call("admin.Submit", SubmitBody("k"));
  Call("admin.Submit", SubmitBody("k2"));
  Call("admin.Cancel", [] {
    pb::CancelRequest request;
    request.set_name("job/j");
    return request.SerializeAsString();
  }());
  EXPECT_EQ(journal_.batches, 1);
  FinishWrite();
  EXPECT_THAT(answers_, ElementsAre("admin.Submit"));
  EXPECT_EQ(journal_.batches, 2);
  FinishWrite();
  EXPECT_THAT(answers_, ElementsAre("admin.Submit", "admin.Submit", "admin.Cancel"));
}

TEST_F(ServerTest, AJournalThatCannotBeWrittenStopsTheServer) {
  Call("admin.Submit", SubmitBody("k"));
  FinishWrite(absl::ResourceExhaustedError("no space left on device"));
  ASSERT_TRUE(stopped_.has_value());
  EXPECT_TRUE(absl::IsResourceExhausted(*stopped_));
  EXPECT_THAT(stopped_->message(), ::testing::HasSubstr("writing the journal: no space"));
  EXPECT_THAT(answers_, IsEmpty());
  Call("admin.Get", "");
  EXPECT_THAT(answers_, IsEmpty()) << "nobody is told what is not durable";
}

TEST_F(ServerTest, ShutdownWritesWhatIsToBeWrittenThenStops) {
  Call("admin.Submit", SubmitBody("k"));
  Call("admin.Shutdown", "");
  FinishWrite();
  EXPECT_FALSE(stopped_.has_value());
  FinishWrite();
  EXPECT_THAT(answers_, ElementsAre("admin.Submit", "admin.Shutdown"));
  ASSERT_TRUE(stopped_.has_value());
  EXPECT_TRUE(stopped_->ok());
}

TEST_F(ServerTest, HostileRequestsAreRefused) {
  Call("admin.Submit", "\xff\xff\xff");
  EXPECT_TRUE(absl::IsInvalidArgument(last_)) << last_;
  Call("control.Register", "");
  EXPECT_TRUE(absl::IsInvalidArgument(last_)) << last_;
  Call("control.Nothing", "");
  EXPECT_TRUE(absl::IsUnimplemented(last_)) << last_;
  Call("control.Heartbeat", "");
  ASSERT_TRUE(last_.ok()) << last_;
  pb::HeartbeatResponse heartbeat;
  ASSERT_TRUE(heartbeat.ParseFromString(last_body_));
  EXPECT_TRUE(heartbeat.unknown_worker());
  EXPECT_EQ(journal_.rows, 0);
}

TEST_F(ServerTest, TheCacheIsAskedInSlicesAndAgainUntilItAnswers) {
  cache_.failures = 2;
  Call("admin.Submit", SubmitBody("k", /*chunks=*/10'000));
  while (journal_.waiting()) FinishWrite();
  EXPECT_FALSE(server_->state().jobs.at("job/j").reconciled);
  executor_.Advance(absl::Seconds(5));
  EXPECT_TRUE(server_->state().jobs.at("job/j").reconciled);
  EXPECT_EQ(cache_.asked, 10'000 + 2 * kAskChunksMax);
}

}  // namespace
}  // namespace stillhouse
