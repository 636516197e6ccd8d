// The agent against a coordinator that the test scripts, over a memory channel.
#include "worker/agent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/manual_executor.h"
#include "common/random.h"
#include "proto/control.pb.h"
#include "transport/memory_channel.h"
#include "transport/rpc.h"

namespace stillhouse {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr char kAddress[] = "memory://c";

// A coordinator that answers as the test has set, and remembers what it heard.
class ScriptedCoordinator {
 public:
  ScriptedCoordinator(MemoryNetwork& network, Executor& executor)
      : channel_(*network.MakeServer(kAddress)), rpc_(MakeRpcServer(*channel_, executor)) {
    On<pb::RegisterRequest, pb::RegisterResponse>("Register", [this](const auto& request) {
      registered.push_back(request);
      pb::RegisterResponse response;
      response.set_heartbeat_ms(5000);
      response.set_lease_ms(15000);
      if (keep) *response.mutable_kept() = request.held();
      return response;
    });
    On<pb::HeartbeatRequest, pb::HeartbeatResponse>("Heartbeat", [this](const auto& request) {
      heartbeats.push_back(request);
      return std::exchange(next_heartbeat, {});
    });
    On<pb::LeaseRequest, pb::LeaseResponse>("Lease", [this](const auto& request) {
      leases.push_back(request);
      return offer_again ? next_lease : std::exchange(next_lease, Nothing());
    });
    On<pb::DoneRequest, pb::DoneResponse>("Done", [this](const auto& request) {
      done.push_back(request);
      return pb::DoneResponse();
    });
    On<pb::FailedRequest, pb::FailedResponse>("Failed", [this](const auto& request) {
      failed.push_back(request);
      return pb::FailedResponse();
    });
  }

  static pb::LeaseResponse Nothing() {
    pb::LeaseResponse response;
    response.set_retry_ms(500);
    return response;
  }
  static pb::LeaseResponse Chunk(uint32_t chunk, uint64_t epoch) {
    pb::LeaseResponse response;
    response.set_granted(true);
    response.mutable_grant()->set_job("job/j");
    response.mutable_grant()->set_chunk(chunk);
    response.mutable_grant()->set_epoch(epoch);
    response.set_plan(std::string(Sha256Of("plan").AsStringView()));
    response.mutable_sections()->add_canonical("stats");
    return response;
  }

  bool keep = true;
  bool offer_again = false;                    // answer every Lease with next_lease
  std::map<std::string, absl::Status> refuse;  // by method
  pb::HeartbeatResponse next_heartbeat;
  pb::LeaseResponse next_lease = Nothing();
  std::vector<pb::RegisterRequest> registered;
  std::vector<pb::HeartbeatRequest> heartbeats;
  std::vector<pb::LeaseRequest> leases;
  std::vector<pb::DoneRequest> done;
  std::vector<pb::FailedRequest> failed;

 private:
  template <typename Request, typename Response, typename F>
  void On(const std::string& method, F f) {
    rpc_->Handle("control." + method,
                 [this, method, f](const Peer&, RpcMessage message, RpcServer::Respond respond) {
                   Request request;
                   ASSERT_TRUE(request.ParseFromString(message.body));
                   if (auto it = refuse.find(method); it != refuse.end()) {
                     return respond(it->second);
                   }
                   const Response response = f(request);
                   respond(RpcMessage{response.SerializeAsString(), {}});
                 });
  }
  std::unique_ptr<ServerChannel> channel_;
  std::unique_ptr<RpcServer> rpc_;
};

class HeldWorker final : public ChunkWorker {
 public:
  void Start(const ChunkGrant& grant, absl::AnyInvocable<void(uint64_t)> progress,
             absl::AnyInvocable<void(absl::StatusOr<ChunkResult>)> done) override {
    grants.push_back(grant);
    progress_ = std::move(progress);
    done_ = std::move(done);
  }
  uint64_t Steps() const override { return steps; }
  void Cancel() override { ++cancels; }

  bool busy() const { return done_ != nullptr; }
  void Progress(uint64_t rows) { progress_(rows); }
  void Finish(absl::StatusOr<ChunkResult> result) {
    auto done = std::exchange(done_, nullptr);
    done(std::move(result));
  }
  static ChunkResult Result() {
    ChunkResult result;
    result.acks = {{"store-1", 3}};
    result.rows_computed = 100;
    result.seconds = 1.5;
    return result;
  }

  std::vector<ChunkGrant> grants;
  int cancels = 0;
  uint64_t steps = 0;

 private:
  absl::AnyInvocable<void(uint64_t)> progress_;
  absl::AnyInvocable<void(absl::StatusOr<ChunkResult>)> done_;
};

class AgentTest : public ::testing::Test {
 protected:
  AgentTest() : network_(executor_) {
    coordinator_ = std::make_unique<ScriptedCoordinator>(network_, executor_);
    channel_ = network_.MakeClient(kAddress);
    rpc_ = MakeRpcClient(*channel_, executor_);
    options_.worker = "teacher-0";
    options_.incarnation = 77;
    options_.teacher = Sha256Of("teacher");
    options_.teacher_dtype = "bf16";
  }

  void StartAgent() {
    agent_ = MakeAgent(options_, *rpc_, executor_, worker_, [this](absl::Status status) {
      EXPECT_FALSE(drained_.has_value());
      drained_ = std::move(status);
    });
    agent_->Start();
    executor_.RunUntilIdle();
  }
  void StartWithChunk(uint32_t chunk, uint64_t epoch) {
    coordinator_->next_lease = ScriptedCoordinator::Chunk(chunk, epoch);
    StartAgent();
    ASSERT_TRUE(worker_.busy());
  }
  void Finish(absl::StatusOr<ChunkResult> result) {
    worker_.Finish(std::move(result));
    executor_.RunUntilIdle();
  }
  void RestartCoordinator() {
    coordinator_.reset();
    network_.CutConnections(kAddress);
    coordinator_ = std::make_unique<ScriptedCoordinator>(network_, executor_);
  }

  ManualExecutor executor_;
  MemoryNetwork network_;
  std::unique_ptr<ScriptedCoordinator> coordinator_;
  std::unique_ptr<ClientChannel> channel_;
  std::unique_ptr<RpcClient> rpc_;
  HeldWorker worker_;
  AgentOptions options_;
  std::unique_ptr<Agent> agent_;
  std::optional<absl::Status> drained_;
};

TEST_F(AgentTest, T1_RegistersThenAsksForWorkAgainAndAgain) {
  StartAgent();
  ASSERT_EQ(coordinator_->registered.size(), 1);
  EXPECT_EQ(coordinator_->registered[0].worker(), "teacher-0");
  EXPECT_EQ(coordinator_->registered[0].state(), "ready");
  EXPECT_THAT(coordinator_->registered[0].held(), IsEmpty());
  executor_.Advance(absl::Seconds(2));
  EXPECT_EQ(coordinator_->leases.size(), 5);
  EXPECT_GT(coordinator_->leases[4].sequence(), coordinator_->leases[3].sequence());
}

TEST_F(AgentTest, T1_WaitsForACoordinatorThatIsNotThereYet) {
  coordinator_.reset();
  StartAgent();
  executor_.Advance(absl::Minutes(5));
  EXPECT_FALSE(drained_.has_value());
  coordinator_ = std::make_unique<ScriptedCoordinator>(network_, executor_);
  executor_.Advance(absl::Seconds(30));
  EXPECT_GE(coordinator_->registered.size(), 1);
  EXPECT_GE(coordinator_->leases.size(), 1);
}

TEST_F(AgentTest, T1_WhileLoadingNothingIsLeased) {
  options_.loading = true;
  StartAgent();
  executor_.Advance(absl::Seconds(11));
  EXPECT_EQ(coordinator_->registered[0].state(), "loading");
  ASSERT_EQ(coordinator_->heartbeats.size(), 2);
  EXPECT_EQ(coordinator_->heartbeats[1].state(), "loading");
  EXPECT_THAT(coordinator_->leases, IsEmpty());
  agent_->Ready();
  executor_.RunUntilIdle();
  EXPECT_EQ(coordinator_->heartbeats.back().state(), "ready");
  EXPECT_EQ(coordinator_->leases.size(), 1);
}

TEST_F(AgentTest, T2_AGrantStartsTheWorkAndHeartbeatsCarryItsProgress) {
  StartWithChunk(7, 11);
  EXPECT_EQ(worker_.grants[0].job, "job/j");
  EXPECT_EQ(worker_.grants[0].chunk, 7);
  EXPECT_EQ(worker_.grants[0].plan, Sha256Of("plan"));
  EXPECT_THAT(worker_.grants[0].sections, ElementsAre("stats"));
  worker_.Progress(40);
  worker_.steps = 3;
  executor_.Advance(absl::Seconds(5));
  ASSERT_EQ(coordinator_->heartbeats.size(), 1);
  EXPECT_EQ(coordinator_->heartbeats[0].state(), "working");
  ASSERT_EQ(coordinator_->heartbeats[0].progress_size(), 1);
  EXPECT_EQ(coordinator_->heartbeats[0].progress(0).grant().epoch(), 11);
  EXPECT_EQ(coordinator_->heartbeats[0].progress(0).rows_done(), 40);
  EXPECT_EQ(coordinator_->heartbeats[0].progress(0).steps(), 3);
}

TEST_F(AgentTest, T3_DoneIsReportedBeforeTheNextLease) {
  StartWithChunk(7, 11);
  const size_t asked = coordinator_->leases.size();
  Finish(HeldWorker::Result());
  ASSERT_EQ(coordinator_->done.size(), 1);
  EXPECT_EQ(coordinator_->done[0].grant().chunk(), 7);
  EXPECT_EQ(coordinator_->done[0].rows_computed(), 100);
  ASSERT_EQ(coordinator_->done[0].acks_size(), 1);
  EXPECT_EQ(coordinator_->done[0].acks(0).store_id(), "store-1");
  EXPECT_EQ(coordinator_->leases.size(), asked + 1);
}

TEST_F(AgentTest, T3_FailuresSayWhoseFaultTheyAre) {
  const std::vector<std::pair<absl::Status, bool>> cases = {
      {absl::DataLossError("logits are not finite"), true},
      {absl::InvalidArgumentError("a token out of range"), true},
      {absl::InternalError("out of memory"), false},
      {absl::UnavailableError("the cache"), false}};
  coordinator_->next_lease = ScriptedCoordinator::Chunk(0, 1);
  StartAgent();
  for (size_t i = 0; i < cases.size(); ++i) {
    ASSERT_TRUE(worker_.busy());
    coordinator_->next_lease = ScriptedCoordinator::Chunk(0, i + 2);
    Finish(cases[i].first);
    ASSERT_EQ(coordinator_->failed.size(), i + 1);
    EXPECT_EQ(coordinator_->failed[i].chunk_at_fault(), cases[i].second) << cases[i].first;
    EXPECT_THAT(coordinator_->failed[i].reason(), HasSubstr(std::string(cases[i].first.message())));
  }
}

TEST_F(AgentTest, T3_AFullCacheIsWaitedOutAndNobodyIsBlamed) {
  coordinator_->offer_again = true;
  StartWithChunk(7, 11);
  absl::Duration waited;
  for (size_t i = 0; i < 12; ++i) {
    ASSERT_TRUE(worker_.busy());
    Finish(absl::ResourceExhaustedError("No space left on device"));
    ASSERT_EQ(coordinator_->failed.size(), i + 1);
    EXPECT_TRUE(coordinator_->failed[i].returned());
    EXPECT_FALSE(coordinator_->failed[i].chunk_at_fault());
    EXPECT_FALSE(worker_.busy()) << "not at once";
    EXPECT_FALSE(drained_.has_value());
    for (waited = absl::ZeroDuration(); !worker_.busy(); waited += absl::Milliseconds(100)) {
      ASSERT_LE(waited, absl::Minutes(1));
      executor_.Advance(absl::Milliseconds(100));
    }
  }
  EXPECT_GE(waited, absl::Seconds(30)) << "a disk that stays full is not tried all the time";
  Finish(HeldWorker::Result());
  EXPECT_EQ(coordinator_->done.size(), 1);
  EXPECT_TRUE(worker_.busy()) << "there is room again";
}

TEST_F(AgentTest, T3_AFullCacheDoesNotKeepADrainingWorker) {
  StartWithChunk(7, 11);
  Finish(absl::ResourceExhaustedError("No space left on device"));
  agent_->Drain();
  executor_.RunUntilIdle();
  EXPECT_TRUE(drained_.has_value() && drained_->ok());
}

TEST_F(AgentTest, T3_AReasonOfAnyBytesArrives) {
  options_.host = "h\xff";
  StartWithChunk(7, 11);
  EXPECT_EQ(coordinator_->registered.at(0).host(), "h\xef\xbf\xbd");
  Finish(absl::InternalError("reading caf\xe9/x" + std::string(100'000, 'a')));
  ASSERT_EQ(coordinator_->failed.size(), 1);
  EXPECT_THAT(coordinator_->failed[0].reason(), HasSubstr("reading caf\xef\xbf\xbd/x"));
  EXPECT_LT(coordinator_->failed[0].reason().size(), 10'000);
}

TEST_F(AgentTest, T3_AResultOutlivesAnOutage) {
  StartWithChunk(7, 11);
  coordinator_.reset();
  network_.CutConnections(kAddress);
  Finish(HeldWorker::Result());
  executor_.Advance(absl::Minutes(2));
  coordinator_ = std::make_unique<ScriptedCoordinator>(network_, executor_);
  executor_.Advance(absl::Seconds(15));
  ASSERT_EQ(coordinator_->done.size(), 1);
  EXPECT_EQ(coordinator_->done[0].grant().epoch(), 11);
}

TEST_F(AgentTest, T4_CancelledWorkIsStoppedAndDropped) {
  StartWithChunk(7, 11);
  coordinator_->next_heartbeat.add_cancelled()->CopyFrom(
      ScriptedCoordinator::Chunk(7, 10).grant());  // an older grant of the chunk: not this one
  executor_.Advance(absl::Seconds(5));
  EXPECT_EQ(worker_.cancels, 0);
  coordinator_->next_heartbeat.add_cancelled()->CopyFrom(ScriptedCoordinator::Chunk(7, 11).grant());
  executor_.Advance(absl::Seconds(5));
  EXPECT_EQ(worker_.cancels, 1);
  const size_t asked = coordinator_->leases.size();
  Finish(absl::CancelledError("told to stop"));
  EXPECT_THAT(coordinator_->done, IsEmpty());
  EXPECT_THAT(coordinator_->failed, IsEmpty());
  EXPECT_EQ(coordinator_->leases.size(), asked + 1);
}

TEST_F(AgentTest, T4_WorkThatWasFasterThanItsCancelCounts) {
  StartWithChunk(7, 11);
  coordinator_->next_heartbeat.add_cancelled()->CopyFrom(ScriptedCoordinator::Chunk(7, 11).grant());
  executor_.Advance(absl::Seconds(5));
  Finish(HeldWorker::Result());
  EXPECT_EQ(coordinator_->done.size(), 1);
}

TEST_F(AgentTest, T5_DrainFinishesWhatIsHeldThenLeaves) {
  StartWithChunk(7, 11);
  agent_->Drain();
  executor_.Advance(absl::Seconds(5));
  EXPECT_FALSE(drained_.has_value());
  EXPECT_EQ(coordinator_->heartbeats.back().state(), "draining");
  const size_t asked = coordinator_->leases.size();
  Finish(HeldWorker::Result());
  EXPECT_EQ(coordinator_->done.size(), 1);
  EXPECT_EQ(coordinator_->leases.size(), asked);
  EXPECT_EQ(coordinator_->heartbeats.back().state(), "left");
  ASSERT_TRUE(drained_.has_value());
  EXPECT_TRUE(drained_->ok());
}

TEST_F(AgentTest, T5_DrainDoesNotWaitForADeadCoordinator) {
  StartAgent();
  coordinator_.reset();
  network_.CutConnections(kAddress);
  executor_.Advance(absl::Seconds(1));
  agent_->Drain();
  executor_.Advance(absl::Seconds(5));
  ASSERT_TRUE(drained_.has_value());
  EXPECT_TRUE(drained_->ok());
}

TEST_F(AgentTest, T5_TheCoordinatorMayAskForIt) {
  StartAgent();
  coordinator_->next_heartbeat.set_drain(true);
  executor_.Advance(absl::Seconds(6));
  ASSERT_TRUE(drained_.has_value());
  EXPECT_TRUE(drained_->ok());
}

TEST_F(AgentTest, T5_AGrantThatComesTooLateIsGivenBack) {
  StartAgent();
  coordinator_->next_lease = ScriptedCoordinator::Chunk(7, 11);
  network_.SetFate([](const MemoryNetwork::Delivery&) {
    return std::vector<absl::Duration>{absl::Milliseconds(300)};
  });
  executor_.Advance(absl::Milliseconds(600));  // the question is out
  agent_->Drain();
  executor_.Advance(absl::Seconds(3));
  EXPECT_THAT(worker_.grants, IsEmpty());
  ASSERT_EQ(coordinator_->failed.size(), 1);
  EXPECT_TRUE(coordinator_->failed[0].returned());
  ASSERT_TRUE(drained_.has_value());
}

TEST_F(AgentTest, T5_LeavesByItselfWhenAllIsDoneOnlyIfToldSo) {
  coordinator_->next_lease.set_all_done(true);
  StartAgent();
  executor_.Advance(absl::Seconds(3));
  EXPECT_FALSE(drained_.has_value());
  agent_.reset();
  options_.leave_when_done = true;
  coordinator_->next_lease.set_all_done(true);
  StartAgent();
  ASSERT_TRUE(drained_.has_value());
  EXPECT_TRUE(drained_->ok());
}

TEST_F(AgentTest, T6_ARestartedCoordinatorIsToldWhatIsHeld) {
  StartWithChunk(7, 11);
  RestartCoordinator();
  coordinator_->next_heartbeat.set_unknown_worker(true);
  executor_.Advance(absl::Seconds(5));
  ASSERT_EQ(coordinator_->registered.size(), 1);
  ASSERT_EQ(coordinator_->registered[0].held_size(), 1);
  EXPECT_EQ(coordinator_->registered[0].held(0).epoch(), 11);
  EXPECT_EQ(coordinator_->registered[0].state(), "working");
  EXPECT_EQ(worker_.cancels, 0);
  Finish(HeldWorker::Result());
  EXPECT_EQ(coordinator_->done.size(), 1);
}

TEST_F(AgentTest, T6_WhatItDoesNotKeepIsDropped) {
  StartWithChunk(7, 11);
  RestartCoordinator();
  coordinator_->keep = false;
  coordinator_->next_heartbeat.set_unknown_worker(true);
  executor_.Advance(absl::Seconds(5));
  EXPECT_EQ(worker_.cancels, 1);
}

TEST_F(AgentTest, T6_ALeaseRequestFindsOutToo) {
  StartAgent();
  RestartCoordinator();
  coordinator_->next_lease.set_unknown_worker(true);
  executor_.Advance(absl::Seconds(1));
  EXPECT_EQ(coordinator_->registered.size(), 1);
  EXPECT_GE(coordinator_->leases.size(), 2);
}

TEST_F(AgentTest, LostMessagesCostTimeOnly) {
  RandomStream random(/*seed=*/5);
  network_.SetFate([&](const MemoryNetwork::Delivery&) -> std::vector<absl::Duration> {
    if (random.NextUniform() < 0.6) return {};
    return {absl::Milliseconds(1), absl::Milliseconds(700)};
  });
  coordinator_->offer_again = true;
  coordinator_->next_lease = ScriptedCoordinator::Chunk(7, 11);
  StartAgent();
  for (int i = 0; i < 120 && !worker_.busy(); ++i) executor_.Advance(absl::Seconds(1));
  ASSERT_TRUE(worker_.busy());
  worker_.Finish(HeldWorker::Result());
  for (int i = 0; i < 120 && coordinator_->leases.size() < 2; ++i) {
    executor_.Advance(absl::Seconds(1));
  }
  EXPECT_EQ(coordinator_->done.size(), 1) << "handled once, however often it was sent";
}

TEST_F(AgentTest, ARefusalEndsItWithItsReason) {
  coordinator_->refuse["Register"] = absl::AbortedError("a newer process has registered");
  StartAgent();
  ASSERT_TRUE(drained_.has_value());
  EXPECT_TRUE(absl::IsAborted(*drained_));
  EXPECT_THAT(drained_->message(), HasSubstr("the coordinator refused this worker: a newer"));
}

TEST_F(AgentTest, ARefusalStopsTheWorkFirst) {
  StartWithChunk(7, 11);
  coordinator_->refuse["Register"] = absl::AbortedError("a newer process has registered");
  coordinator_->next_heartbeat.set_unknown_worker(true);
  executor_.Advance(absl::Seconds(5));
  EXPECT_EQ(worker_.cancels, 1);
  EXPECT_FALSE(drained_.has_value());
  Finish(absl::CancelledError("told to stop"));
  executor_.Advance(absl::Seconds(3));
  ASSERT_TRUE(drained_.has_value());
  EXPECT_TRUE(absl::IsAborted(*drained_));
}

TEST_F(AgentTest, AskedForAFreshProcessItLeavesWithAnError) {
  coordinator_->next_lease.set_leave("job/j chunk 7 failed in this process");
  StartAgent();
  ASSERT_TRUE(drained_.has_value());
  EXPECT_TRUE(absl::IsUnavailable(*drained_));
  EXPECT_THAT(drained_->message(), HasSubstr("chunk 7 failed in this process"));
}

TEST_F(AgentTest, MayBeDestroyedAtAnyMoment) {
  StartWithChunk(7, 11);
  agent_.reset();
  worker_.Progress(5);
  worker_.Finish(HeldWorker::Result());
  executor_.Advance(absl::Minutes(1));
  EXPECT_THAT(coordinator_->done, IsEmpty());
}

}  // namespace
}  // namespace stillhouse
