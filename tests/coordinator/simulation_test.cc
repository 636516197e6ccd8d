// A whole capture from one seed: real coordinator server, agents and run client over a network that
// loses, repeats and delays, with crashes of every process. Only the model, the cache and the clock
// are made up.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/manual_executor.h"
#include "common/random.h"
#include "common/status.h"
#include "coordinator/journal.h"
#include "coordinator/server.h"
#include "transport/memory_channel.h"
#include "worker/agent.h"
#include "worker/run_client.h"

namespace stillhouse {
namespace {

constexpr char kAddress[] = "memory://coordinator";
constexpr int kChunks = 120;
constexpr uint64_t kRows = 10;  // of each chunk
constexpr int kWorkers = 3;

// What all processes share and no crash destroys.
struct World {
  explicit World(uint64_t seed)
      : random(seed), network(executor), journal_store(MakeMemoryKvStore(1)) {}

  absl::Duration Upto(absl::Duration most) { return most * random.NextUniform(); }
  bool Chance(double p) { return random.NextUniform() < p; }

  ManualExecutor executor;
  RandomStream random;
  MemoryNetwork network;
  std::unique_ptr<KvStore> journal_store;
  bool calm = false;  // no more faults

  std::map<uint32_t, int> stored;  // the cache: chunk → how often it was computed
  // Who held an epoch: nobody else ever may.
  std::map<uint64_t, std::string> epochs;
  std::vector<std::string> violations;
};

// Stands for the threaded journal: slow, and a crash leaves a batch written or not, but not
// acknowledged.
class SimJournal final : public AsyncJournal {
 public:
  SimJournal(World& world, Journal& journal) : world_(world), journal_(journal) {}
  ~SimJournal() override {
    if (!pending_.empty() && world_.Chance(0.5)) SH_CHECK_OK(journal_.Write(pending_));
  }
  void Write(std::vector<JournalChange> changes,
             absl::AnyInvocable<void(absl::Status)> done) override {
    pending_ = std::move(changes);
    world_.executor.PostAfter(
        world_.Upto(absl::Milliseconds(50)),
        [this, alive = std::weak_ptr<bool>(alive_), done = std::move(done)]() mutable {
          if (alive.expired()) return;
          done(journal_.Write(std::exchange(pending_, {})));
        });
  }

 private:
  World& world_;
  Journal& journal_;
  std::vector<JournalChange> pending_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

class SimInventory final : public CacheInventory {
 public:
  explicit SimInventory(World& world) : world_(world) {}
  void Ask(const CaptureSetup&, std::vector<uint32_t> chunks,
           absl::AnyInvocable<void(absl::StatusOr<std::vector<bool>>)> done) override {
    world_.executor.PostAfter(world_.Upto(absl::Milliseconds(200)),
                              [this, alive = std::weak_ptr<bool>(alive_),
                               chunks = std::move(chunks), done = std::move(done)]() mutable {
                                if (alive.expired()) return;
                                if (!world_.calm && world_.Chance(0.1))
                                  return done(absl::UnavailableError("the cache restarts"));
                                std::vector<bool> present;
                                for (const uint32_t chunk : chunks)
                                  present.push_back(world_.stored.count(chunk) > 0);
                                done(std::move(present));
                              });
  }

 private:
  World& world_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

struct CoordinatorProcess {
  explicit CoordinatorProcess(World& world) : inventory(world) {
    absl::StatusOr<Journal::Opened> opened = Journal::OpenOver(*world.journal_store);
    SH_CHECK_OK(opened.status());
    journal = std::move(opened->journal);
    async_journal = std::make_unique<SimJournal>(world, *journal);
    absl::StatusOr<std::unique_ptr<ServerChannel>> made = world.network.MakeServer(kAddress);
    SH_CHECK_OK(made.status());
    channel = *std::move(made);
    rpc = MakeRpcServer(*channel, world.executor);
    server = std::make_unique<CoordinatorServer>(CoordinatorServer::Options{"memory://cache"},
                                                 std::move(opened->state), *rpc, world.executor,
                                                 *async_journal, inventory,
                                                 [](absl::Status status) { SH_CHECK_OK(status); });
    server->Start();
  }
  std::unique_ptr<Journal> journal;
  std::unique_ptr<SimJournal> async_journal;
  SimInventory inventory;
  std::unique_ptr<ServerChannel> channel;
  std::unique_ptr<RpcServer> rpc;
  std::unique_ptr<CoordinatorServer> server;
};

// Computes a chunk row by row; its rows are durable in the world's cache at the end.
class SimTeacher final : public ChunkWorker {
 public:
  SimTeacher(World& world, std::string who) : world_(world), who_(std::move(who)) {}

  void Start(const ChunkGrant& grant, absl::AnyInvocable<void(uint64_t)> progress,
             absl::AnyInvocable<void(absl::StatusOr<ChunkResult>)> done) override {
    const std::string held = absl::StrCat(who_, " ", grant.job, " chunk ", grant.chunk);
    auto [owner, fresh] = world_.epochs.emplace(grant.epoch, held);
    if (owner->second != held) {
      world_.violations.push_back(
          absl::StrCat("epoch ", grant.epoch, " of ", owner->second, " was given to ", held));
    }
    grant_ = grant;
    progress_ = std::move(progress);
    done_ = std::move(done);
    rows_ = 0;
    cancelled_ = false;
    Step();
  }
  void Cancel() override { cancelled_ = true; }

 private:
  void Step() {
    world_.executor.PostAfter(world_.Upto(absl::Seconds(1)),
                              [this, alive = std::weak_ptr<bool>(alive_)] {
                                if (alive.expired()) return;
                                if (cancelled_) return Finish(absl::CancelledError("told to stop"));
                                if (!world_.calm && world_.Chance(0.004)) {
                                  return Finish(absl::InternalError("out of memory"));
                                }
                                progress_(++rows_);
                                if (rows_ < kRows) return Step();
                                ++world_.stored[grant_.chunk];
                                ChunkResult result;
                                result.rows_computed = kRows;
                                Finish(result);
                              });
  }
  void Finish(absl::StatusOr<ChunkResult> result) {
    auto done = std::exchange(done_, nullptr);
    done(std::move(result));
  }

  World& world_;
  const std::string who_;
  ChunkGrant grant_;
  absl::AnyInvocable<void(uint64_t)> progress_;
  absl::AnyInvocable<void(absl::StatusOr<ChunkResult>)> done_;
  uint64_t rows_ = 0;
  bool cancelled_ = false;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

struct WorkerSim {
  WorkerSim(World& world, const std::string& name, uint64_t incarnation)
      : channel(world.network.MakeClient(kAddress)),
        rpc(MakeRpcClient(*channel, world.executor, {.incarnation = incarnation})),
        teacher(world, absl::StrCat(name, "/", incarnation)) {
    AgentOptions options;
    options.worker = name;
    options.incarnation = incarnation;
    options.teacher = Sha256Of("teacher");
    options.teacher_dtype = "bf16";
    agent =
        MakeAgent(options, *rpc, world.executor, teacher, [this](absl::Status) { ended = true; });
    agent->Start();
  }
  std::unique_ptr<ClientChannel> channel;
  std::unique_ptr<RpcClient> rpc;
  SimTeacher teacher;
  std::unique_ptr<Agent> agent;
  bool ended = false;
};

// A student that commits checkpoint after checkpoint and remembers which were acknowledged.
struct StudentSim {
  StudentSim(World& world, uint64_t incarnation, uint64_t first_step)
      : channel(world.network.MakeClient(kAddress)),
        rpc(MakeRpcClient(*channel, world.executor, {.incarnation = incarnation})),
        client(MakeRunClient(*rpc, "run/j/a", incarnation)),
        step(first_step) {
    client->Start([this](absl::StatusOr<RunSpec> spec) {
      if (spec.ok()) Commit();
    });
  }
  void Commit() {
    client->CommitCheckpoint(step, absl::StrCat("step-", step), [this](absl::StatusOr<bool> ok) {
      if (!ok.ok()) return;
      acknowledged = step++;
      Commit();
    });
  }
  std::unique_ptr<ClientChannel> channel;
  std::unique_ptr<RpcClient> rpc;
  std::unique_ptr<RunClient> client;
  uint64_t step;
  uint64_t acknowledged = 0;
};

SubmitEvent Submission() {
  SubmitEvent event;
  event.key = "key";
  event.name = "j";
  event.capture.plan = Sha256Of("plan");
  event.capture.teacher = Sha256Of("teacher");
  event.capture.teacher_dtype = "bf16";
  event.capture.sections = event.capture.held_out_sections = {"stats"};
  for (int i = 0; i < kChunks; ++i) event.chunks.push_back({kRows, i >= kChunks - 4});
  event.runs = {{"run/j/a", "a", "/out/a", "hash", 10}};
  return event;
}

class SimulationTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(SimulationTest, EveryChunkEndsDurableWhateverCrashes) {
  World world(GetParam());
  world.network.SetFate([&](const MemoryNetwork::Delivery&) -> std::vector<absl::Duration> {
    if (!world.calm && world.Chance(0.05)) return {};
    std::vector<absl::Duration> copies = {world.Upto(absl::Milliseconds(100))};
    if (!world.calm && world.Chance(0.05)) copies.push_back(world.Upto(absl::Seconds(20)));
    return copies;
  });
  {
    absl::StatusOr<Journal::Opened> opened = Journal::OpenOver(*world.journal_store);
    ASSERT_TRUE(opened.ok());
    Effects effects;
    ASSERT_TRUE(OnSubmit(opened->state, Submission(), absl::ZeroDuration(), effects).ok());
    ASSERT_TRUE(opened->journal->Write(EncodeRows(opened->state, effects.rows)).ok());
  }
  auto coordinator = std::make_unique<CoordinatorProcess>(world);
  uint64_t processes = 0;
  std::vector<std::unique_ptr<WorkerSim>> workers;
  const auto start_worker = [&](int i) {
    return std::make_unique<WorkerSim>(world, absl::StrCat("teacher-", i), ++processes);
  };
  for (int i = 0; i < kWorkers; ++i) workers.push_back(start_worker(i));
  auto student = std::make_unique<StudentSim>(world, ++processes, 1);
  uint64_t acknowledged = 0;

  const auto job = [&]() -> const Job& { return coordinator->server->state().jobs.at("job/j"); };
  int worker_crashes = 0, coordinator_crashes = 0, seconds = 0;
  for (; seconds < 3600 && job().phase == JobPhase::kCapturing; ++seconds) {
    world.calm = seconds > 600;
    world.executor.Advance(absl::Seconds(1));
    acknowledged = std::max(acknowledged, student->acknowledged);
    for (int i = 0; i < kWorkers; ++i) {
      const bool crash = !world.calm && world.Chance(0.006);
      worker_crashes += crash;
      if (!crash && !workers[i]->ended) continue;
      workers[i].reset();
      workers[i] = start_worker(i);
    }
    if (!world.calm && world.Chance(0.02)) {
      student.reset();
      student = std::make_unique<StudentSim>(world, ++processes, acknowledged + 1);
    }
    if (!world.calm && world.Chance(0.03)) {
      ++coordinator_crashes;
      coordinator.reset();
      world.network.CutConnections(kAddress);
      coordinator = std::make_unique<CoordinatorProcess>(world);
      EXPECT_GE(coordinator->server->state().runs.at("run/j/a").checkpoint_step, acknowledged)
          << "a checkpoint was acknowledged that the journal does not hold";
    }
  }
  EXPECT_EQ(job().phase, JobPhase::kCaptured)
      << job().problem << " after " << seconds << " s, " << worker_crashes << " worker and "
      << coordinator_crashes << " coordinator crashes";
  EXPECT_EQ(world.stored.size(), kChunks);
  EXPECT_THAT(world.violations, ::testing::IsEmpty());
  EXPECT_EQ(job().chunks.rows_durable(), kChunks * kRows);
  EXPECT_GE(job().rows_computed, kChunks * kRows);
  EXPECT_EQ(coordinator->server->state().runs.at("run/j/a").teacher_rows_charged,
            job().rows_computed);
  EXPECT_GT(acknowledged, 10);
}

INSTANTIATE_TEST_SUITE_P(Seeds, SimulationTest, ::testing::Range(uint64_t{1}, uint64_t{41}));

TEST(CalmSimulationTest, WithoutFaultsEveryRowIsComputedOnce) {
  World world(7);
  world.calm = true;
  {
    absl::StatusOr<Journal::Opened> opened = Journal::OpenOver(*world.journal_store);
    ASSERT_TRUE(opened.ok());
    Effects effects;
    ASSERT_TRUE(OnSubmit(opened->state, Submission(), absl::ZeroDuration(), effects).ok());
    ASSERT_TRUE(opened->journal->Write(EncodeRows(opened->state, effects.rows)).ok());
  }
  CoordinatorProcess coordinator(world);
  WorkerSim worker(world, "teacher-0", 1);
  world.executor.Advance(absl::Minutes(10));
  const Job& job = coordinator.server->state().jobs.at("job/j");
  EXPECT_EQ(job.phase, JobPhase::kCaptured);
  EXPECT_EQ(job.rows_computed, kChunks * kRows);
  for (const auto& [chunk, times] : world.stored) EXPECT_EQ(times, 1) << "chunk " << chunk;
}

}  // namespace
}  // namespace stillhouse
