// The run client against the real coordinator server, over a memory channel.
#include "worker/run_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>

#include "common/manual_executor.h"
#include "coordinator/journal.h"
#include "coordinator/server.h"
#include "transport/memory_channel.h"

namespace stillhouse {
namespace {

class ImmediateJournal final : public AsyncJournal {
 public:
  ImmediateJournal(Journal& journal, Executor& executor) : journal_(journal), executor_(executor) {}
  void Write(std::vector<JournalChange> changes,
             absl::AnyInvocable<void(absl::Status)> done) override {
    executor_.Post([done = std::move(done), status = journal_.Write(changes)]() mutable {
      done(std::move(status));
    });
  }

 private:
  Journal& journal_;
  Executor& executor_;
};

class HalfFullCache final : public CacheInventory {
 public:
  explicit HalfFullCache(Executor& executor) : executor_(executor) {}
  void Ask(const CaptureSetup&, std::vector<uint32_t> chunks,
           absl::AnyInvocable<void(absl::StatusOr<std::vector<bool>>)> done) override {
    std::vector<bool> present;
    for (const uint32_t chunk : chunks) present.push_back(chunk % 2 == 0);
    executor_.Post([present, done = std::move(done)]() mutable { done(present); });
  }
  void MakeRoom(const std::string&, std::vector<uint32_t>,
                absl::AnyInvocable<void(absl::StatusOr<uint64_t>)> done) override {
    executor_.Post([done = std::move(done)]() mutable { done(0); });
  }

 private:
  Executor& executor_;
};

class RunClientTest : public ::testing::Test {
 protected:
  RunClientTest() : network_(executor_), cache_(executor_), store_(MakeMemoryKvStore(1)) {
    SubmitEvent event;
    event.key = "key";
    event.name = "handbook";
    event.recipe_path = "/recipes/handbook.yaml";
    event.recipe_text = "name: handbook\n";
    event.capture.plan = Sha256Of("plan");
    event.capture.teacher = Sha256Of("teacher");
    event.capture.sections = {"stats", "logits/sampled?draws=50"};
    event.capture.held_out_sections = {"stats"};
    event.capture.first_chunk_artefacts = {"influence/p"};
    event.chunks = {{10, false}, {10, false}, {10, true}};
    event.runs = {{"run/handbook/half", "half", "/out/.runs/half-1", "h", 40}};
    Journal::Opened opened = *Journal::OpenOver(*store_);
    Effects effects;
    EXPECT_TRUE(OnSubmit(opened.state, event, absl::ZeroDuration(), effects).ok());
    EXPECT_TRUE(opened.journal->Write(EncodeRows(opened.state, effects.rows)).ok());
    StartCoordinator();
  }

  void StartCoordinator() {
    Journal::Opened opened = *Journal::OpenOver(*store_);
    journal_ = std::move(opened.journal);
    async_journal_ = std::make_unique<ImmediateJournal>(*journal_, executor_);
    server_channel_ = *network_.MakeServer("memory://c");
    rpc_server_ = MakeRpcServer(*server_channel_, executor_);
    server_ = std::make_unique<CoordinatorServer>(CoordinatorServer::Options{"ipc:///run/cache"},
                                                  std::move(opened.state), *rpc_server_, executor_,
                                                  *async_journal_, cache_, [](absl::Status) {});
    server_->Start();
    executor_.Advance(absl::Seconds(1));
  }
  void StopCoordinator() {
    server_.reset();
    rpc_server_.reset();
    server_channel_.reset();
    network_.CutConnections("memory://c");
  }

  struct Student {
    std::unique_ptr<ClientChannel> channel;
    std::unique_ptr<RpcClient> rpc;
    std::unique_ptr<RunClient> client;
  };
  Student MakeStudent(const std::string& run, uint64_t incarnation) {
    Student student;
    student.channel = network_.MakeClient("memory://c");
    student.rpc = MakeRpcClient(*student.channel, executor_, {.incarnation = incarnation});
    student.client = MakeRunClient(*student.rpc, run, incarnation);
    return student;
  }

  // Makes the call and lets time go on until it is answered.
  template <typename T, typename F>
  absl::StatusOr<T> Ask(F call) {
    std::optional<absl::StatusOr<T>> result;
    call([&](absl::StatusOr<T> answer) { result = std::move(answer); });
    for (int i = 0; i < 1000 && !result.has_value(); ++i) executor_.Advance(absl::Seconds(1));
    return result.has_value() ? *result : absl::InternalError("never answered");
  }
  absl::StatusOr<RunSpec> Start(Student& s) {
    return Ask<RunSpec>([&](auto done) { s.client->Start(std::move(done)); });
  }
  absl::StatusOr<bool> Commit(Student& s, uint64_t step) {
    return Ask<bool>([&](auto done) {
      s.client->CommitCheckpoint(step, absl::StrCat("step-", step), std::move(done));
    });
  }
  absl::StatusOr<bool> Report(Student& s, const std::string& phase) {
    RunReport report;
    report.phase = phase;
    report.step = 20;
    report.has_evaluation = true;
    report.evaluation.kl = 1.25;
    report.exported_to = "/out/half";
    return Ask<bool>([&](auto done) { s.client->Report(report, std::move(done)); });
  }

  ManualExecutor executor_;
  MemoryNetwork network_;
  HalfFullCache cache_;
  std::unique_ptr<KvStore> store_;
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<AsyncJournal> async_journal_;
  std::unique_ptr<ServerChannel> server_channel_;
  std::unique_ptr<RpcServer> rpc_server_;
  std::unique_ptr<CoordinatorServer> server_;
};

TEST_F(RunClientTest, StartTellsWhatToDo) {
  Student student = MakeStudent("run/handbook/half", 5);
  const absl::StatusOr<RunSpec> spec = Start(student);
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->recipe_path, "/recipes/handbook.yaml");
  EXPECT_EQ(spec->recipe_text, "name: handbook\n");
  EXPECT_EQ(spec->student, "half");
  EXPECT_EQ(spec->plan, Sha256Of("plan"));
  EXPECT_EQ(spec->teacher, Sha256Of("teacher"));
  EXPECT_EQ(spec->run_epoch, 1);
  EXPECT_EQ(spec->run_folder, "/out/.runs/half-1");
  EXPECT_EQ(spec->checkpoint, "");
  EXPECT_EQ(spec->cache_address, "ipc:///run/cache");
  EXPECT_THAT(spec->sections, ::testing::ElementsAre("stats", "logits/sampled?draws=50"));
  EXPECT_THAT(spec->held_out_sections, ::testing::ElementsAre("stats"));
}

TEST_F(RunClientTest, WantIsAnsweredPerChunk) {
  Student student = MakeStudent("run/handbook/half", 5);
  ASSERT_TRUE(Start(student).ok());
  const absl::StatusOr<WantAnswer> answer = Ask<WantAnswer>([&](auto done) {
    student.client->Want({{1, absl::Seconds(1)}, {0, absl::Seconds(1)}}, std::move(done));
  });
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(answer->states,
              ::testing::ElementsAre(ChunkAvailability::kPending, ChunkAvailability::kDurable));
  EXPECT_GT(answer->retry, absl::ZeroDuration());
  EXPECT_FALSE(answer->cancelled);
}

TEST_F(RunClientTest, ARestartedCoordinatorIsWaitedForAndKnowsTheRun) {
  Student student = MakeStudent("run/handbook/half", 5);
  ASSERT_TRUE(Start(student).ok());
  ASSERT_TRUE(Commit(student, 20).ok());
  StopCoordinator();
  executor_.PostAfter(absl::Minutes(2), [this] { StartCoordinator(); });
  EXPECT_TRUE(Commit(student, 40).ok());
  Student next = MakeStudent("run/handbook/half", 6);
  const absl::StatusOr<RunSpec> spec = Start(next);
  ASSERT_TRUE(spec.ok());
  EXPECT_EQ(spec->checkpoint, "step-40");
  EXPECT_EQ(spec->run_epoch, 2);
  EXPECT_TRUE(absl::IsAborted(Commit(student, 60).status())) << "fenced by its successor";
  EXPECT_TRUE(absl::IsAborted(Report(student, "training").status()));
}

TEST_F(RunClientTest, ACoordinatorThatNeverComesBackIsGivenUp) {
  Student student = MakeStudent("run/handbook/half", 5);
  StopCoordinator();
  EXPECT_TRUE(absl::IsDeadlineExceeded(Start(student).status()));
}

TEST_F(RunClientTest, FinishedIsRememberedCancelledIsTold) {
  Student student = MakeStudent("run/handbook/half", 5);
  ASSERT_TRUE(Start(student).ok());
  EXPECT_THAT(*Report(student, "training"), false);
  EXPECT_TRUE(Report(student, "finished").ok());
  EXPECT_EQ(server_->state().runs.at("run/handbook/half").final->kl, 1.25);
  Student next = MakeStudent("run/handbook/half", 6);
  EXPECT_TRUE(absl::IsFailedPrecondition(Start(next).status()));
  Student other = MakeStudent("run/handbook/none", 7);
  EXPECT_TRUE(absl::IsNotFound(Start(other).status()));
}

}  // namespace
}  // namespace stillhouse
