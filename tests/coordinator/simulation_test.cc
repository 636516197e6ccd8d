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
constexpr uint64_t kChunkBytes = 1000;
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
  bool calm = false;          // no more faults
  bool journal_lies = false;  // a planted bug: acknowledged first, written later

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
    if (world_.journal_lies) {
      // A crash before the next write loses this one.
      if (!pending_.empty()) SH_CHECK_OK(journal_.Write(pending_));
      pending_ = std::move(changes);
      world_.executor.Post([done = std::move(done)]() mutable { done(absl::OkStatus()); });
      return;
    }
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
  void MakeRoom(const std::string&, std::vector<uint32_t> chunks,
                absl::AnyInvocable<void(absl::StatusOr<uint64_t>)> done) override {
    world_.executor.PostAfter(world_.Upto(absl::Milliseconds(200)),
                              [this, alive = std::weak_ptr<bool>(alive_),
                               chunks = std::move(chunks), done = std::move(done)]() mutable {
                                if (alive.expired()) return;
                                if (!world_.calm && world_.Chance(0.1)) {
                                  return done(absl::UnavailableError("the cache restarts"));
                                }
                                for (const uint32_t chunk : chunks) world_.stored.erase(chunk);
                                done(world_.stored.size() * kChunkBytes);
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

// Submits the job as coordinatorctl would have before the first coordinator died.
void SubmitTo(World& world) {
  absl::StatusOr<Journal::Opened> opened = Journal::OpenOver(*world.journal_store);
  SH_CHECK_OK(opened.status());
  Effects effects;
  SH_CHECK_OK(OnSubmit(opened->state, Submission(), absl::ZeroDuration(), effects).status());
  SH_CHECK_OK(opened->journal->Write(EncodeRows(opened->state, effects.rows)));
}

// The processes of one cluster, and what makes them die.
class Cluster {
 public:
  explicit Cluster(World& world)
      : world_(world), coordinator_(std::make_unique<CoordinatorProcess>(world)) {
    for (int i = 0; i < kWorkers; ++i) workers_.push_back(StartWorker(i));
    StartStudent();
  }

  const State& state() const { return coordinator_->server->state(); }
  const Job& job() const { return state().jobs.at("job/j"); }
  uint64_t acknowledged() const { return acknowledged_; }

  void RunFor(absl::Duration time) {
    world_.executor.Advance(time);
    acknowledged_ = std::max(acknowledged_, student_->acknowledged);
  }

  void MaybeCrash() {
    for (int i = 0; i < kWorkers; ++i) {
      if (!workers_[i]->ended && (world_.calm || !world_.Chance(0.006))) continue;
      workers_[i].reset();
      workers_[i] = StartWorker(i);
    }
    if (world_.calm) return;
    if (world_.Chance(0.02)) StartStudent();
    if (world_.Chance(0.03)) RestartCoordinator();
  }

 private:
  std::unique_ptr<WorkerSim> StartWorker(int i) {
    return std::make_unique<WorkerSim>(world_, absl::StrCat("teacher-", i), ++processes_);
  }
  void StartStudent() {
    student_.reset();
    student_ = std::make_unique<StudentSim>(world_, ++processes_, acknowledged_ + 1);
  }
  void RestartCoordinator() {
    coordinator_.reset();
    world_.network.CutConnections(kAddress);
    coordinator_ = std::make_unique<CoordinatorProcess>(world_);
    if (state().runs.at("run/j/a").checkpoint_step < acknowledged_) {
      world_.violations.push_back("a checkpoint was acknowledged that the journal does not hold");
    }
  }

  World& world_;
  uint64_t processes_ = 0;
  uint64_t acknowledged_ = 0;  // the last checkpoint that the student was told is committed
  std::unique_ptr<CoordinatorProcess> coordinator_;
  std::vector<std::unique_ptr<WorkerSim>> workers_;
  std::unique_ptr<StudentSim> student_;
};

// Runs the job to its end and returns everything that must not have happened.
std::vector<std::string> Simulate(World& world) {
  world.network.SetFate([&](const MemoryNetwork::Delivery&) -> std::vector<absl::Duration> {
    if (!world.calm && world.Chance(0.05)) return {};
    std::vector<absl::Duration> copies = {world.Upto(absl::Milliseconds(100))};
    if (!world.calm && world.Chance(0.05)) copies.push_back(world.Upto(absl::Seconds(20)));
    return copies;
  });
  SubmitTo(world);
  Cluster cluster(world);
  int seconds = 0;
  for (; seconds < 3600 && cluster.job().phase == JobPhase::kCapturing; ++seconds) {
    world.calm = seconds > 1200;
    cluster.RunFor(absl::Seconds(1));
    cluster.MaybeCrash();
  }
  const auto expect = [&](bool holds, const std::string& what) {
    if (!holds) world.violations.push_back(absl::StrCat(what, " after ", seconds, " s"));
  };
  const Job& job = cluster.job();
  expect(job.phase == JobPhase::kCaptured, absl::StrCat("not captured: ", job.problem));
  expect(world.stored.size() == kChunks, absl::StrCat(world.stored.size(), " chunks are stored"));
  expect(job.chunks.rows_durable() == kChunks * kRows, "rows are missing");
  expect(job.rows_computed >= kChunks * kRows, "rows were not charged");
  expect(cluster.state().runs.at("run/j/a").teacher_rows_charged == job.rows_computed,
         "job and run were charged unlike");
  expect(cluster.acknowledged() > 10, "the student got nowhere");
  return world.violations;
}

class SimulationTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(SimulationTest, EveryChunkEndsDurableWhateverCrashes) {
  World world(GetParam());
  EXPECT_THAT(Simulate(world), ::testing::IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Seeds, SimulationTest, ::testing::Range(uint64_t{1}, uint64_t{41}));

// What the simulation is good for: bugs planted on purpose must not pass.
TEST(NegativeSimulationTest, AJournalThatAcknowledgesTooEarlyIsCaught) {
  size_t caught = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    World world(seed);
    world.journal_lies = true;
    caught += !Simulate(world).empty();
  }
  EXPECT_GT(caught, 0);
}

TEST(CalmSimulationTest, WithoutFaultsEveryRowIsComputedOnce) {
  World world(7);
  world.calm = true;
  SubmitTo(world);
  CoordinatorProcess coordinator(world);
  WorkerSim worker(world, "teacher-0", 1);
  world.executor.Advance(absl::Minutes(30));
  const Job& job = coordinator.server->state().jobs.at("job/j");
  EXPECT_EQ(job.phase, JobPhase::kCaptured);
  EXPECT_EQ(job.rows_computed, kChunks * kRows);
  for (const auto& [chunk, times] : world.stored) EXPECT_EQ(times, 1) << "chunk " << chunk;
}

}  // namespace
}  // namespace stillhouse
