#include "teacher_pool/pool_worker.h"

#include <deque>
#include <limits>
#include <map>
#include <set>
#include <thread>

#include "ATen/ATen.h"
#include "absl/strings/str_cat.h"
#include "common/blocking.h"
#include "common/event_loop.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/codec.h"
#include "tests/model/random_decoder.h"
#include "tests/teacher_pool/test_plan.h"

namespace stillhouse {
namespace {

using ::stillhouse::testing::RandomDecoder;
using ::stillhouse::testing::SmallConfig;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// A cache in memory that keeps the first write and counts the rest, as the server does. It can
// fail, and it can hold its answers back until told.
class FakeCache final : public CacheClient {
 public:
  explicit FakeCache(Executor& executor) : executor_(executor) {}

  void Put(std::vector<Part> parts, Provenance provenance, Callback<StoreAck> done) override {
    events.push_back("put");
    uint64_t bytes = 0;
    StoreAck ack{"store", 7};
    for (Part& part : parts) {
      bytes += part.payload.size();
      specs[part.key] = provenance.spec;
      const auto [place, inserted] = stored.emplace(part.key, part);
      const bool same = place->second.payload == part.payload;
      ++(inserted ? ack.stored : same ? ack.already : ack.mismatched);
    }
    EXPECT_LE(bytes, kPutBytesMax);
    producer_class = provenance.producer_class;
    Answer(put_status.ok() ? absl::StatusOr<StoreAck>(ack) : put_status, std::move(done));
  }
  void Get(std::vector<PartKey>, Callback<std::vector<std::optional<Part>>> done) override {
    done(absl::UnimplementedError("not used here"));
  }
  void PutObject(std::string name, std::shared_ptr<const std::string> bytes, PutObjectOptions,
                 Callback<StoreAck> done) override {
    events.push_back(absl::StrCat("object ", name.substr(name.find('/', 9) + 1, 9)));
    const auto [place, inserted] = objects.emplace(name, bytes);
    if (!inserted && *place->second != *bytes) {
      return Answer<StoreAck>(absl::AlreadyExistsError("other bytes"), std::move(done));
    }
    Answer<StoreAck>(StoreAck{"store", 7}, std::move(done));
  }
  void GetObject(std::string name, Callback<std::shared_ptr<const std::string>> done) override {
    const auto object = objects.find(name);
    if (object == objects.end()) {
      return Answer<std::shared_ptr<const std::string>>(absl::NotFoundError(name), std::move(done));
    }
    Answer<std::shared_ptr<const std::string>>(object->second, std::move(done));
  }
  void Inventory(InventoryRequest, Callback<std::vector<bool>> done) override {
    done(absl::UnimplementedError("not used here"));
  }

  void Release() {
    hold = false;
    for (Task& answer : std::exchange(held, {})) executor_.Post(std::move(answer));
  }

  std::map<PartKey, Part> stored;
  std::map<PartKey, SectionSpec> specs;
  std::map<std::string, std::shared_ptr<const std::string>> objects;
  std::vector<std::string> events;
  std::string producer_class;
  absl::Status put_status;
  bool hold = false;
  std::deque<Task> held;

 private:
  template <typename T>
  void Answer(absl::StatusOr<T> result, Callback<T> done) {
    Task task = [result = std::move(result), done = std::move(done)]() mutable {
      done(std::move(result));
    };
    if (hold) {
      held.push_back(std::move(task));
    } else {
      executor_.Post(std::move(task));
    }
  }

  Executor& executor_;
};

class PoolWorkerTest : public ::testing::Test {
 protected:
  static constexpr uint32_t kHeldOut = 2;
  PoolWorkerTest() {
    const stillhouse::testing::TestPlanOptions options{.lengths = {9, 30, 31, 2, 64, 17, 40, 12},
                                                       .held_out_documents = kHeldOut};
    const auto bytes = stillhouse::testing::MakeTestPlanBytes(options);
    plan_ = *ParsePlan(bytes);
    cache_.objects[PlanObjectName(plan_->digest())] = bytes;
    loop_thread_ = std::thread([this] { loop_.Run(); });
  }
  ~PoolWorkerTest() override {
    loop_.Stop();
    loop_thread_.join();
  }

  static DecoderWeights Weights() { return RandomDecoder(SmallConfig(), at::kBFloat16, 1); }

  void MakeWorker(DecoderWeights weights = Weights()) {
    backend_ = MakeLocalBackend(std::move(weights));
    PoolWorkerOptions options;
    options.teacher = Sha256Of("teacher");
    options.vocabulary = 90;
    options.tokenizer_fingerprint = tokenizer_;
    options.artefacts = {{"tokenizer", std::make_shared<const std::string>("{}")},
                         {"lm_head/bf16", std::make_shared<const std::string>("head")}};
    auto worker = PoolWorker::Create(options, *backend_, cache_, loop_);
    ASSERT_TRUE(worker.ok()) << worker.status();
    worker_ = *std::move(worker);
  }

  ChunkGrant Grant(uint32_t chunk,
                   std::vector<std::string> sections = {"stats", "logits/sampled?draws=20"}) {
    return {"job/test", chunk, 1, plan_->digest(), std::move(sections)};
  }

  // Runs one chunk to its end; `started` runs on the loop after Start.
  absl::StatusOr<ChunkResult> Run(
      const ChunkGrant& grant, absl::AnyInvocable<void()> started = [] {}) {
    progress_.clear();
    return CallAndWait<ChunkResult>(
        loop_, [this, &grant, started = std::move(started)](auto done) mutable {
          worker_->Start(
              grant,
              [this](uint64_t rows) {
                progress_.push_back(rows);
                steps_ = worker_->Steps();
              },
              std::move(done));
          started();
        });
  }

  Digest tokenizer_ = Sha256Of("test tokenizer");
  std::shared_ptr<const Plan> plan_;
  EventLoop loop_;
  FakeCache cache_{loop_};
  std::unique_ptr<TeacherBackend> backend_;
  std::unique_ptr<PoolWorker> worker_;
  std::vector<uint64_t> progress_;  // of the last chunk
  uint64_t steps_ = 0;              // when the last of its rows were stored
  std::thread loop_thread_;
};

TEST_F(PoolWorkerTest, StoresEverySectionOfEveryDocument) {
  MakeWorker();
  const auto result = Run(Grant(1));
  ASSERT_TRUE(result.ok()) << result.status();
  const PlanChunk chunk = plan_->chunk(1);
  EXPECT_EQ(result->rows_computed, chunk.rows);
  EXPECT_EQ(result->parts_mismatched, 0u);
  ASSERT_EQ(result->acks.size(), 1u);
  EXPECT_EQ(result->acks[0].store_id, "store");
  EXPECT_EQ(result->acks[0].incarnation, 7u);
  EXPECT_EQ(progress_.back(), chunk.rows);
  EXPECT_TRUE(std::is_sorted(progress_.begin(), progress_.end()));
  const uint64_t layers = static_cast<uint64_t>(backend_->config().layers);
  EXPECT_EQ(steps_, chunk.batches.size() * (layers + 1)) << "each layer, and the logits at once";
  EXPECT_EQ(cache_.producer_class, backend_->producer_class());
  EXPECT_EQ(cache_.stored.size(), 2u * (chunk.end - chunk.begin));
  for (uint32_t d = chunk.begin; d < chunk.end; ++d) {
    const PlanDocument document = plan_->document(d);
    const SectionSpec stats_spec, sampled_spec{SectionKind::kLogitsSampled, 20, 0};
    const Digest teacher = Sha256Of("teacher");
    StatsRows stats;
    const Part& part = cache_.stored.at({SectionKey(teacher, document.key, stats_spec), 0});
    ASSERT_TRUE(DecodeStats(part.payload, document.rows(), &stats).ok());
    SampledRows sampled;
    sampled.draws = 20;
    const Part& draws = cache_.stored.at({SectionKey(teacher, document.key, sampled_spec), 0});
    ASSERT_TRUE(DecodeSampled(draws.payload, document.rows(), 90, &sampled).ok());
  }
}

TEST_F(PoolWorkerTest, ArtefactsComeFirstAndOnceAndInfluenceAfterTheParts) {
  MakeWorker();
  ASSERT_TRUE(Run(Grant(0)).ok());
  const std::vector<std::string> events = cache_.events;
  ASSERT_GE(events.size(), 4u);
  EXPECT_THAT(events[0], HasSubstr("tokenizer"));
  EXPECT_THAT(events[1], HasSubstr("lm_head"));
  EXPECT_EQ(events[2], "put");
  EXPECT_THAT(events.back(), HasSubstr("influence"));
  const auto influence = cache_.objects.find(
      ArtefactObjectName(Sha256Of("teacher"), absl::StrCat("influence/", plan_->digest().Hex())));
  ASSERT_NE(influence, cache_.objects.end());
  EXPECT_THAT(*influence->second, HasSubstr(absl::StrCat("\"rows\":", plan_->chunk(0).rows)));

  cache_.events.clear();
  ASSERT_TRUE(Run(Grant(1)).ok());
  for (const std::string& event : cache_.events) EXPECT_EQ(event, "put");
}

TEST_F(PoolWorkerTest, AnotherWorkerGivesTheSameBytes) {
  MakeWorker();
  ASSERT_TRUE(Run(Grant(0)).ok());
  const size_t parts = cache_.stored.size();
  MakeWorker();
  ASSERT_TRUE(Run(Grant(1)).ok());
  const auto again = Run(Grant(0));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->parts_mismatched, 0u);
  EXPECT_GT(cache_.stored.size(), parts);
}

TEST_F(PoolWorkerTest, OtherBytesForAStoredKeyAreCounted) {
  MakeWorker();
  ASSERT_TRUE(Run(Grant(0)).ok());
  MakeWorker(RandomDecoder(SmallConfig(), at::kBFloat16, 2));
  const auto again = Run(Grant(0));
  ASSERT_TRUE(again.ok()) << again.status();  // also though the influence differs
  EXPECT_GT(again->parts_mismatched, 0u);
}

TEST_F(PoolWorkerTest, HeldOutChunksGetTheirOwnSections) {
  MakeWorker();
  const uint32_t chunk = plan_->training_chunk_count();
  ASSERT_LT(chunk, plan_->chunk_count());
  const auto result = Run(Grant(chunk, {"stats", "hidden/last?hidden_size=48&dtype=bf16"}));
  ASSERT_TRUE(result.ok()) << result.status();
  std::set<SectionKind> kinds;
  for (const auto& [key, spec] : cache_.specs) kinds.insert(spec.kind);
  EXPECT_THAT(kinds, ElementsAre(SectionKind::kStats, SectionKind::kHiddenLast));
}

TEST_F(PoolWorkerTest, CancelEndsAChunkWhoseAnswersDoNotCome) {
  MakeWorker();
  cache_.hold = true;  // not even the artefacts are acknowledged
  auto result = Run(Grant(0), [&] { worker_->Cancel(); });
  EXPECT_EQ(result.status().code(), absl::StatusCode::kCancelled);
  loop_.Post([&] { cache_.Release(); });
  result = Run(Grant(1));  // late answers of the cancelled chunk do no harm
  EXPECT_TRUE(result.ok()) << result.status();
}

TEST_F(PoolWorkerTest, AFailedWriteIsNotTheChunksFault) {
  MakeWorker();
  cache_.put_status = absl::DataLossError("the disk lies");
  auto result = Run(Grant(0));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(result.status().message(), HasSubstr("storing parts: the disk lies"));
  cache_.put_status = absl::OkStatus();
  EXPECT_TRUE(Run(Grant(0)).ok());
}

TEST_F(PoolWorkerTest, AFullCacheIsToldFromOtherFailures) {
  MakeWorker();
  cache_.put_status = absl::ResourceExhaustedError("No space left on device");
  EXPECT_EQ(Run(Grant(0)).status().code(), absl::StatusCode::kResourceExhausted);
  cache_.put_status = absl::OkStatus();
  EXPECT_TRUE(Run(Grant(0)).ok()) << "there is room again";
}

TEST_F(PoolWorkerTest, LogitsThatAreNotFiniteAreTheChunksFault) {
  DecoderWeights weights = Weights();
  weights.final_norm.fill_(std::numeric_limits<float>::infinity());
  MakeWorker(std::move(weights));
  const auto result = Run(Grant(0));
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(result.status().message(), HasSubstr("chunk 0: document "));
  EXPECT_TRUE(cache_.stored.empty());
}

TEST_F(PoolWorkerTest, RefusesPlansOfOtherTokenizersAndSectionsItLacks) {
  MakeWorker();
  EXPECT_EQ(Run(Grant(0, {"attention/3"})).status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(Run(Grant(999)).status().code(), absl::StatusCode::kFailedPrecondition);
  ChunkGrant unknown = Grant(0);
  unknown.plan = Sha256Of("no such plan");
  EXPECT_EQ(Run(unknown).status().code(), absl::StatusCode::kNotFound);
  tokenizer_ = Sha256Of("another");
  MakeWorker();
  EXPECT_THAT(Run(Grant(0)).status().message(), HasSubstr("another tokenizer"));
}

}  // namespace
}  // namespace stillhouse
