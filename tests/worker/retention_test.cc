// A cache half the size of its plan, with `retention: until_read`: real coordinator, cache server,
// agent and synthetic teacher in one process; only students are made up, and they check what they
// read.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/strip.h"
#include "common/file.h"
#include "common/random.h"
#include "common/status.h"
#include "coordinator/journal.h"
#include "coordinator/server.h"
#include "dataset/plan_writer.h"
#include "storage/job_object.h"
#include "storage/service/cache_admin.h"
#include "storage/service/space_wire.h"
#include "tests/storage/service/cache_fixtures.h"
#include "worker/agent.h"
#include "worker/run_client.h"
#include "worker/synthetic/synthetic_teacher.h"

namespace stillhouse {
namespace {

constexpr char kAddress[] = "mem://coordinator";
constexpr uint32_t kVocabulary = 1000;
constexpr uint32_t kLookAhead = 4;  // chunks that a student wants at a time
const char* const kRuns[] = {"run/j/a", "run/j/b"};

class InlineJournal final : public AsyncJournal {
 public:
  InlineJournal(Journal& journal, Executor& executor) : journal_(journal), executor_(executor) {}
  void Write(std::vector<JournalChange> changes,
             absl::AnyInvocable<void(absl::Status)> done) override {
    executor_.Post([status = journal_.Write(changes), done = std::move(done)]() mutable {
      done(std::move(status));
    });
  }

 private:
  Journal& journal_;
  Executor& executor_;
};

class ServedInventory final : public CacheInventory {
 public:
  ServedInventory(CacheClient& cache, RpcClient& rpc) : cache_(cache), rpc_(rpc) {}
  void Ask(const CaptureSetup& capture, std::vector<uint32_t> chunks,
           absl::AnyInvocable<void(absl::StatusOr<std::vector<bool>>)> done) override {
    CacheClient::InventoryRequest request;
    request.plan = capture.plan;
    request.teacher = capture.teacher;
    request.chunks = std::move(chunks);
    for (const std::string& spec : capture.sections) {
      request.sections.push_back(*ParseSectionSpec(spec));
    }
    for (const std::string& spec : capture.held_out_sections) {
      request.held_out_sections.push_back(*ParseSectionSpec(spec));
    }
    cache_.Inventory(std::move(request), std::move(done));
  }
  void MakeRoom(const std::string& job, std::vector<uint32_t> chunks,
                absl::AnyInvocable<void(absl::StatusOr<uint64_t>)> done) override {
    CallSpace(rpc_,
              {.what = SpaceRequest::What::kRelease,
               .job = std::string(absl::StripPrefix(job, "job/")),
               .chunks = std::move(chunks),
               .live_share_max = 0.8},
              [done = std::move(done)](absl::StatusOr<SpaceResult> result) mutable {
                if (!result.ok()) return done(result.status());
                done(result->bytes_used);
              });
  }

 private:
  CacheClient& cache_;
  RpcClient& rpc_;
};

JobObject JobOver(const Plan& plan) {
  const std::vector<SectionSpec> sections = {SectionSpec{},
                                             {.kind = SectionKind::kHiddenLast, .hidden_size = 64}};
  return {"j", plan.digest(), Sha256Of("teacher"), sections, sections};
}

// Reads the training documents chunk by chunk, each epoch in an order of its own, as a student's
// prefetcher asks for them.
class Student {
 public:
  Student(ServedCache& cache, const Plan& plan, const std::string& run, uint64_t incarnation,
          int epochs, size_t at)
      : cache_(cache), plan_(plan), at_(at) {
    for (int epoch = 0; epoch < epochs; ++epoch) {
      std::vector<uint32_t> chunks(plan.training_chunk_count());
      for (uint32_t i = 0; i < chunks.size(); ++i) chunks[i] = i;
      RandomStream random(std::hash<std::string>()(run) + epoch);
      for (size_t i = chunks.size() - 1; i > 0; --i) {
        std::swap(chunks[i], chunks[random.NextBelow(static_cast<uint32_t>(i + 1))]);
      }
      order_.insert(order_.end(), chunks.begin(), chunks.end());
    }
    channel_ = cache.network.MakeClient(kAddress);
    rpc_ = MakeRpcClient(*channel_, cache.executor, {.incarnation = incarnation});
    client_ = MakeRunClient(*rpc_, run, incarnation);
    client_->Start([this](absl::StatusOr<RunSpec> spec) {
      SH_CHECK_OK(spec.status());
      started_ = true;
    });
  }

  bool done() const { return at_ == order_.size(); }
  size_t at() const { return at_; }
  const std::set<uint32_t>& read() const { return read_; }

  void Step() {
    if (!started_ || busy_ || done()) return;
    busy_ = true;
    std::vector<WantItem> items;
    std::set<uint32_t> listed;
    for (size_t i = at_; i < order_.size() && listed.size() < kLookAhead; ++i) {
      if (listed.insert(order_[i]).second) items.push_back({order_[i], absl::Seconds(i - at_)});
    }
    client_->Want(items, [this](absl::StatusOr<WantAnswer> answer) {
      SH_CHECK_OK(answer.status());
      if (answer->states.front() != ChunkAvailability::kDurable) {
        busy_ = false;
        return;
      }
      Read();
    });
  }

 private:
  void Read() {
    std::vector<PartKey> keys;
    const JobObject job = JobOver(plan_);
    const PlanChunk chunk = plan_.chunk(order_[at_]);
    SH_CHECK_OK(ForEachSectionOf(job, plan_, chunk.begin, chunk.end, [&](const WantedSection& s) {
      const std::vector<PartKey> parts = PartKeysOf(s.key, s.spec, s.rows);
      keys.insert(keys.end(), parts.begin(), parts.end());
      return absl::OkStatus();
    }));
    cache_.client->Get(keys, [this, alive = std::weak_ptr<bool>(alive_)](
                                 absl::StatusOr<std::vector<std::optional<Part>>> parts) {
      if (alive.expired()) return;  // this process was killed
      busy_ = false;
      SH_CHECK_OK(parts.status());
      for (const std::optional<Part>& part : *parts) {
        if (!part.has_value()) return;  // it made room just now: asked for again
      }
      read_.insert(order_[at_]);
      if (++at_ < order_.size()) return;
      busy_ = true;
      client_->Report({.phase = "finished"},
                      [](absl::StatusOr<bool> told) { SH_CHECK_OK(told.status()); });
    });
  }

  ServedCache& cache_;
  const Plan& plan_;
  std::vector<uint32_t> order_;
  size_t at_;
  bool started_ = false, busy_ = false;
  std::set<uint32_t> read_;
  std::unique_ptr<ClientChannel> channel_;
  std::unique_ptr<RpcClient> rpc_;
  std::unique_ptr<RunClient> client_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

class RetentionTest : public testing::Test {
 protected:
  RetentionTest() {
    const TempFolder folder = *TempFolder::Create();
    auto writer = *PlanWriter::Create({.folder = folder.path(),
                                       .tokenizer = Sha256Of("tokenizer"),
                                       .vocabulary = kVocabulary,
                                       .max_tokens = 64,
                                       .chunk_tokens = 256,
                                       .seed = 1,
                                       .domains = {"default"}});
    RandomStream random(3);
    std::vector<bool> held_out;
    for (uint32_t source = 0; source < 300; ++source) {
      std::vector<int32_t> tokens(16 + random.NextBelow(48));
      for (int32_t& token : tokens) token = static_cast<int32_t>(random.NextBelow(kVocabulary));
      SH_CHECK_OK(writer->Add(tokens, std::vector<uint8_t>(tokens.size(), 1), 0, source));
      held_out.push_back(source % 60 == 0);
    }
    const auto written = *writer->Finish(held_out);
    plan_bytes_ = std::make_shared<const std::string>(*ReadFile(written.path));
    plan_ = *ParsePlan(plan_bytes_);
  }

  // The most that a chunk may take.
  uint64_t WorstOf(uint32_t chunk) const {
    const PlanChunk planned = plan_->chunk(chunk);
    return planned.rows * (20 + 2 * 64) + (planned.end - planned.begin) * 2 * 160 + 2 * 1024;
  }

  // A cache, a coordinator and a teacher for the job. bytes_max 0: all is kept.
  void Start(uint64_t bytes_max) {
    bytes_max_ = bytes_max;
    cache_ = std::make_unique<ServedCache>();
    if (bytes_max > 0) {
      cache_->sections->set_segment_bytes(bytes_max / 16);
      // After every write, so that no moment above the limit goes unseen.
      cache_->store->after_write = [this] { most_used_ = std::max(most_used_, UsedBytes()); };
    }
    SH_CHECK_OK(cache_->PutObject(PlanObjectName(plan_->digest()), *plan_bytes_));
    SH_CHECK_OK(cache_->PutObject(JobObjectName("j"), EncodeJobObject(JobOver(*plan_))));
    inventory_ = std::make_unique<ServedInventory>(*cache_->client, *cache_->rpc_client);
    journal_store_ = MakeMemoryKvStore(1);
    StartCoordinator();
    teacher_ =
        MakeSyntheticTeacher(*cache_->client, cache_->executor,
                             {.teacher = Sha256Of("teacher"), .batch_time = absl::Milliseconds(5)});
    agent_channel_ = cache_->network.MakeClient(kAddress);
    agent_rpc_ = MakeRpcClient(*agent_channel_, cache_->executor, {.incarnation = 1});
    agent_ = MakeAgent(
        {.worker = "t", .incarnation = 1, .teacher = Sha256Of("teacher"), .teacher_dtype = "bf16"},
        *agent_rpc_, cache_->executor, *teacher_, [](absl::Status) {});
    agent_->Start();
  }
  void StartCoordinator() {
    auto opened = *Journal::OpenOver(*journal_store_);
    journal_ = std::move(opened.journal);
    if (opened.state.jobs.empty()) Submit(&opened.state);
    async_journal_ = std::make_unique<InlineJournal>(*journal_, cache_->executor);
    channel_ = *cache_->network.MakeServer(kAddress);
    rpc_ = MakeRpcServer(*channel_, cache_->executor);
    coordinator_ = std::make_unique<CoordinatorServer>(
        CoordinatorServer::Options{"mem://cache"}, std::move(opened.state), *rpc_, cache_->executor,
        *async_journal_, *inventory_, [](absl::Status status) { SH_CHECK_OK(status); });
    coordinator_->Start();
  }
  void RestartCoordinator() {
    coordinator_.reset();
    rpc_.reset();
    channel_.reset();
    cache_->network.CutConnections(kAddress);
    StartCoordinator();
  }
  void Submit(State* state) {
    const JobObject job = JobOver(*plan_);
    SubmitEvent event;
    event.key = "key";
    event.name = "j";
    event.capture = {.plan = job.plan, .teacher = job.teacher, .teacher_dtype = "bf16"};
    for (const SectionSpec& spec : job.sections) {
      event.capture.sections.push_back(spec.Canonical());
      event.capture.held_out_sections.push_back(spec.Canonical());
    }
    for (uint32_t i = 0; i < plan_->chunk_count(); ++i) {
      const PlanChunk chunk = plan_->chunk(i);
      event.chunks.push_back({chunk.rows, chunk.held_out, bytes_max_ > 0 ? WorstOf(i) : 0});
    }
    for (const std::string run : kRuns) event.runs.push_back({run, run.substr(6), "/r", "h", 10});
    event.retention.bytes_max = bytes_max_;
    Effects effects;
    SH_CHECK_OK(OnSubmit(*state, event, absl::ZeroDuration(), effects).status());
    SH_CHECK_OK(journal_->Write(EncodeRows(*state, effects.rows)));
  }

  uint64_t UsedBytes() {
    return CacheAdmin(*cache_->sections, *cache_->objects, plans_).Stat()->UsedBytes();
  }
  void Advance() {
    cache_->executor.Advance(absl::Milliseconds(100));
    ASSERT_TRUE(bytes_max_ == 0 || most_used_ <= bytes_max_) << most_used_;
  }
  const Job& job() { return coordinator_->state().jobs.at("job/j"); }
  std::unique_ptr<Student> NewStudent(const std::string& run, uint64_t incarnation, int epochs,
                                      size_t at = 0) {
    return std::make_unique<Student>(*cache_, *plan_, run, incarnation, epochs, at);
  }
  void ExpectReadWhole(const Student& student) {
    EXPECT_TRUE(student.done()) << "stands at " << student.at();
    EXPECT_EQ(student.read().size(), plan_->training_chunk_count());
  }
  // What all of it takes when it is kept.
  uint64_t KeptBytes() {
    Start(0);
    for (int i = 0; i < 3000 && job().phase == JobPhase::kCapturing; ++i) Advance();
    EXPECT_EQ(job().phase, JobPhase::kCaptured);
    const uint64_t bytes = UsedBytes();
    Stop();
    return bytes;
  }
  void Stop() {
    agent_.reset();
    agent_rpc_.reset();
    agent_channel_.reset();
    teacher_.reset();
    coordinator_.reset();
    rpc_.reset();
    channel_.reset();
    async_journal_.reset();
    journal_.reset();
    inventory_.reset();
    cache_.reset();
  }
  void TearDown() override { Stop(); }

  std::shared_ptr<const std::string> plan_bytes_;
  std::shared_ptr<const Plan> plan_;
  uint64_t bytes_max_ = 0, most_used_ = 0;
  PlanCache plans_;
  std::unique_ptr<ServedCache> cache_;
  std::unique_ptr<KvStore> journal_store_;
  std::unique_ptr<ServedInventory> inventory_;
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<InlineJournal> async_journal_;
  std::unique_ptr<ServerChannel> channel_;
  std::unique_ptr<RpcServer> rpc_;
  std::unique_ptr<CoordinatorServer> coordinator_;
  std::unique_ptr<ChunkWorker> teacher_;
  std::unique_ptr<ClientChannel> agent_channel_;
  std::unique_ptr<RpcClient> agent_rpc_;
  std::unique_ptr<Agent> agent_;
};

TEST_F(RetentionTest, HalfTheCacheServesEveryRunToItsEnd) {
  const uint64_t kept = KeptBytes();
  Start(kept / 2);
  auto a = NewStudent(kRuns[0], 11, /*epochs=*/1), b = NewStudent(kRuns[1], 12, /*epochs=*/1);
  for (int i = 0; i < 3000 && !(a->done() && b->done()); ++i) {
    a->Step();
    if (i % 3 == 0) b->Step();  // the slower run loses nothing
    Advance();
    if (HasFatalFailure()) return;
  }
  ExpectReadWhole(*a);
  ExpectReadWhole(*b);
  Advance();
  EXPECT_EQ(job().phase, JobPhase::kCaptured);
  EXPECT_GE(job().rows_computed, plan_->training_rows() + plan_->held_out_rows());
  EXPECT_GT(most_used_, bytes_max_ / 2);
  EXPECT_EQ(*ReadSegments(*cache_->kv), *CountSegments(*cache_->kv));
}

TEST_F(RetentionTest, LaterEpochsAndRestartsAreServedToo) {
  const uint64_t kept = KeptBytes();
  Start(kept / 2);
  const size_t chunks = plan_->training_chunk_count();
  auto a = NewStudent(kRuns[0], 11, /*epochs=*/2);
  auto b = std::unique_ptr<Student>();
  bool restarted = false, coordinator_restarted = false;
  for (int i = 0; i < 6000 && !(a->done() && b != nullptr && b->done()); ++i) {
    if (!restarted && a->at() == chunks + 5) {  // killed, and back at its last checkpoint
      a = NewStudent(kRuns[0], 13, /*epochs=*/2, chunks / 2);
      restarted = true;
    }
    if (!coordinator_restarted && a->at() == chunks + 10) {
      RestartCoordinator();
      coordinator_restarted = true;
    }
    if (a->done() && b == nullptr) b = NewStudent(kRuns[1], 14, /*epochs=*/1);  // one after another
    a->Step();
    if (b != nullptr) b->Step();
    Advance();
    if (HasFatalFailure()) return;
  }
  EXPECT_TRUE(restarted && coordinator_restarted);
  ASSERT_NE(b, nullptr) << "the first run stands at " << a->at();
  EXPECT_TRUE(a->done());
  ExpectReadWhole(*b);
  EXPECT_GT(job().rows_computed, 3 * plan_->training_rows() / 2);
}

}  // namespace
}  // namespace stillhouse
