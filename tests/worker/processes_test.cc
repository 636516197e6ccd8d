// A capture by real processes: coordinatord, cache_server, synthetic teacher workers over ipc
// sockets, and SIGKILL for each kind.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "common/blocking.h"
#include "common/event_loop.h"
#include "common/file.h"
#include "common/random.h"
#include "common/status.h"
#include "coordinator/admin_view.h"
#include "coordinator/journal.h"
#include "dataset/plan.h"
#include "dataset/plan_writer.h"
#include "proto/admin.pb.h"
#include "proto/cache.pb.h"
#include "storage/job_object.h"
#include "storage/service/cache_client.h"
#include "transport/ipc_address.h"
#include "transport/rpc.h"
#include "transport/zmq_channel.h"
#include "worker/process.h"

namespace stillhouse {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(60);
constexpr uint32_t kVocabulary = 1000;

class Child {
 public:
  Child(std::vector<std::string> argv, const std::string& log) {
    argv[0] = absl::StrCat(SH_TEST_BUILD_DIR, "/libexec/stillhouse/", argv[0]);
    std::vector<char*> words;
    for (const std::string& word : argv) words.push_back(const_cast<char*>(word.c_str()));
    words.push_back(nullptr);
    const int out = open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    SH_CHECK(out >= 0);
    pid_ = fork();
    if (pid_ == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      dup2(out, STDERR_FILENO);
      execv(words[0], words.data());
      _exit(127);
    }
    close(out);
    SH_CHECK(pid_ > 0);
  }
  ~Child() {
    if (pid_ > 0) End(SIGKILL);
  }
  // Its exit code, or 128 + the signal that ended it.
  int End(int signal) {
    kill(pid_, signal);
    return Wait();
  }
  int Wait() {
    int status = 0;
    SH_CHECK(waitpid(pid_, &status, 0) == pid_);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = 0;
};

// One cluster on this machine, in a private folder.
class Cluster {
 public:
  Cluster() : folder_(*TempFolder::Create("sh")) {
    StartCache();
    StartCoordinator();
    Connect();
    thread_ = std::thread([this] { loop_.Run(); });
  }
  ~Cluster() {
    loop_.Stop();
    thread_.join();
  }

  // Both servers end and come back elsewhere; only the coordinator's file says where.
  void Move() {
    coordinator_.reset();
    coordinator_socket_ = "c2.sock";
    cache_socket_ = "cache2.sock";
    StartCache();
    StartCoordinator();
    const auto moved = CallAndWait<bool>(loop_, [this](auto done) {
      Connect();
      done(true);
    });
    ASSERT_TRUE(moved.ok());
  }

  std::string Path(const std::string& name) const { return JoinPath(folder_.path(), name); }
  std::string Address(const std::string& name) const { return IpcAddress(Path(name)); }
  std::string Log(const std::string& name) const { return Path(name + ".log"); }

  void StartCache() {
    cache_process_.reset();
    cache_process_ = std::make_unique<Child>(
        std::vector<std::string>{"cache_server", "--dir", Path("cache"), "--listen",
                                 Address(cache_socket_), "--ready-file", Path("cache.json")},
        Log("cache"));
  }
  std::vector<std::string> CoordinatorCommand() const {
    return {"coordinatord",
            "--journal",
            Path("journal"),
            "--listen",
            Address(coordinator_socket_),
            "--cache",
            Address(cache_socket_),
            "--ready-file",
            Path("coordinator.json")};
  }
  void StartCoordinator() {
    coordinator_.reset();
    coordinator_ = std::make_unique<Child>(CoordinatorCommand(), Log("coordinator"));
  }
  void StartWorker(size_t i) {
    workers_.resize(std::max(workers_.size(), i + 1));
    workers_[i].reset();
    workers_[i] = std::make_unique<Child>(
        std::vector<std::string>{"synthetic_teacher_worker", "--coordinator",
                                 Path("coordinator.json"), "--name", absl::StrCat("teacher-", i),
                                 "--teacher", Sha256Of("teacher").Hex(), "--batch-ms", "20",
                                 "--leave-when-done"},
        Log(absl::StrCat("teacher-", i)));
  }
  Child& coordinator() { return *coordinator_; }
  Child& worker(size_t i) { return *workers_[i]; }

  absl::StatusOr<std::string> Ask(RpcClient& rpc, const std::string& method, std::string body) {
    absl::StatusOr<RpcMessage> answer = CallAndWait<RpcMessage>(loop_, [&](auto done) {
      rpc.Call(method, {std::move(body), {}}, {.deadline = kPatience}, std::move(done));
    });
    if (!answer.ok()) return answer.status();
    return answer->body;
  }

  void Submit() {
    PlanWriter::Options options;
    options.folder = folder_.path();
    options.tokenizer = Sha256Of("tokenizer");
    options.vocabulary = kVocabulary;
    options.max_tokens = 64;
    options.chunk_tokens = 256;
    options.domains = {"default"};
    std::unique_ptr<PlanWriter> writer = *PlanWriter::Create(options);
    RandomStream random(3);
    constexpr uint32_t kSources = 100;
    for (uint32_t source = 0; source < kSources; ++source) {
      std::vector<int32_t> tokens(16 + random.NextBelow(48));
      for (int32_t& token : tokens) token = static_cast<int32_t>(random.NextBelow(kVocabulary));
      const std::vector<uint8_t> mask(tokens.size(), 1);
      ASSERT_TRUE(writer->Add(tokens, mask, 0, source).ok());
    }
    std::vector<bool> held_out(kSources, false);
    for (uint32_t source = 0; source < kSources; source += 20) held_out[source] = true;
    const PlanWriter::Written written = *writer->Finish(held_out);
    const auto bytes = std::make_shared<const std::string>(*ReadFile(written.path));
    plan_ = *ParsePlan(bytes);
    PutObject(PlanObjectName(written.digest), bytes);
    const JobObject job = {
        "j",
        written.digest,
        Sha256Of("teacher"),
        {*ParseSectionSpec("stats"), *ParseSectionSpec("logits/sampled?draws=50"),
         *ParseSectionSpec("logits/topk?k=8"), *ParseSectionSpec("logits/topp?p=0.9&k_max=8")},
        {*ParseSectionSpec("stats"), *ParseSectionSpec("hidden/last?hidden_size=64&dtype=bf16"),
         *ParseSectionSpec("hidden/0?hidden_size=64&dtype=int8")}};
    PutObject(JobObjectName("j"), std::make_shared<const std::string>(EncodeJobObject(job)));

    pb::SubmitRequest request;
    request.set_idempotency_key("key");
    request.set_name("j");
    request.set_plan(std::string(job.plan.AsStringView()));
    request.set_teacher(std::string(job.teacher.AsStringView()));
    request.set_teacher_dtype("bf16");
    for (const SectionSpec& spec : job.sections) request.add_sections(spec.Canonical());
    for (const SectionSpec& spec : job.held_out_sections) {
      request.add_held_out_sections(spec.Canonical());
    }
    for (uint32_t i = 0; i < plan_->chunk_count(); ++i) {
      pb::SubmitRequest::Chunk* chunk = request.add_chunks();
      chunk->set_rows(plan_->chunk(i).rows);
      chunk->set_held_out(plan_->chunk(i).held_out);
    }
    const absl::StatusOr<std::string> answer =
        Ask(*rpc_, "admin.Submit", request.SerializeAsString());
    ASSERT_TRUE(answer.ok()) << answer.status();
  }

  JobView GetJob() {
    const absl::StatusOr<std::string> body = Ask(*rpc_, "admin.Get", "");
    SH_CHECK_OK(body.status());
    return ParseAdminView(*body)->jobs.at(0);
  }
  // Until at least so many chunks are durable.
  JobView WaitForChunks(uint32_t durable) {
    const absl::Duration give_up = SystemClock().Now() + kPatience;
    JobView job = GetJob();
    while (job.chunks_durable < durable && SystemClock().Now() < give_up) {
      poll(nullptr, 0, /*timeout_ms=*/5);
      job = GetJob();
    }
    EXPECT_GE(job.chunks_durable, durable);
    return job;
  }
  std::string Digest() {
    pb::DigestRequest request;
    request.set_job("j");
    const absl::StatusOr<std::string> body =
        Ask(*cache_rpc_, "cache.Digest", request.SerializeAsString());
    SH_CHECK_OK(body.status());
    pb::DigestResponse response;
    SH_CHECK(response.ParseFromString(*body));
    EXPECT_EQ(response.missing(), 0);
    EXPECT_GT(response.sections(), 0);
    return response.digest();
  }
  const Plan& plan() const { return *plan_; }

 private:
  // On the loop's thread, or before there is one.
  void Connect() {
    cache_.reset();
    cache_rpc_.reset();
    rpc_.reset();
    channel_ = *MakeZmqClientChannel(loop_, Address(coordinator_socket_));
    rpc_ = MakeRpcClient(*channel_, loop_);
    cache_channel_ = *MakeZmqClientChannel(loop_, Address(cache_socket_));
    cache_rpc_ = MakeRpcClient(*cache_channel_, loop_);
    cache_ = MakeCacheClient(*cache_rpc_);
  }
  void PutObject(const std::string& name, std::shared_ptr<const std::string> bytes) {
    const absl::StatusOr<StoreAck> ack = CallAndWait<StoreAck>(
        loop_, [&](auto done) { cache_->PutObject(name, bytes, {}, std::move(done)); });
    ASSERT_TRUE(ack.ok()) << ack.status();
  }

  TempFolder folder_;
  std::string coordinator_socket_ = "c.sock", cache_socket_ = "cache.sock";
  std::unique_ptr<Child> cache_process_;
  std::unique_ptr<Child> coordinator_;
  std::vector<std::unique_ptr<Child>> workers_;
  std::shared_ptr<const Plan> plan_;
  EventLoop loop_;
  std::unique_ptr<ClientChannel> channel_;
  std::unique_ptr<RpcClient> rpc_;
  std::unique_ptr<ClientChannel> cache_channel_;
  std::unique_ptr<RpcClient> cache_rpc_;
  std::unique_ptr<CacheClient> cache_;
  std::thread thread_;
};

uint64_t RowsOf(const Plan& plan) { return plan.training_rows() + plan.held_out_rows(); }

std::string UndisturbedDigest() {
  static const std::string* const digest = [] {
    Cluster cluster;
    cluster.Submit();
    cluster.StartWorker(0);
    const JobView job = cluster.WaitForChunks(cluster.plan().chunk_count());
    EXPECT_EQ(job.state, "captured");
    EXPECT_EQ(job.rows_computed, RowsOf(cluster.plan())) << "every row once";
    EXPECT_EQ(cluster.worker(0).Wait(), 0) << "it leaves when all is done";
    return new std::string(cluster.Digest());
  }();
  return *digest;
}

TEST(ProcessesTest, KilledCoordinatorAndWorkersLoseNothing) {
  const std::string expected = UndisturbedDigest();
  Cluster cluster;
  cluster.Submit();
  cluster.StartWorker(0);
  cluster.StartWorker(1);
  const uint32_t chunks = cluster.plan().chunk_count();
  ASSERT_GE(chunks, 12);
  cluster.WaitForChunks(2);
  cluster.StartCoordinator();  // kills the old one first
  cluster.WaitForChunks(4);
  cluster.StartWorker(0);
  cluster.WaitForChunks(6);
  cluster.StartWorker(1);
  cluster.StartCoordinator();
  cluster.WaitForChunks(8);
  cluster.StartCache();
  const JobView job = cluster.WaitForChunks(chunks);
  EXPECT_EQ(job.state, "captured");
  EXPECT_EQ(job.chunks_poisoned, 0);
  EXPECT_EQ(job.parts_mismatched, 0) << "computed again, the same bytes";
  EXPECT_GE(job.rows_computed, RowsOf(cluster.plan()));
  EXPECT_EQ(cluster.Digest(), expected);
}

TEST(ProcessesTest, WorkersFollowTheServersToOtherAddresses) {
  const std::string expected = UndisturbedDigest();
  Cluster cluster;
  cluster.Submit();
  cluster.StartWorker(0);
  cluster.WaitForChunks(2);
  cluster.Move();
  const uint32_t chunks = cluster.plan().chunk_count();
  const JobView job = cluster.WaitForChunks(chunks);
  EXPECT_EQ(job.state, "captured");
  EXPECT_EQ(job.parts_mismatched, 0);
  EXPECT_EQ(cluster.worker(0).Wait(), 0) << "the same process to the end";
  EXPECT_EQ(cluster.Digest(), expected);
}

TEST(ProcessesTest, OneJournalOneCoordinator) {
  Cluster cluster;
  cluster.Submit();  // it is up
  std::vector<std::string> command = cluster.CoordinatorCommand();
  command[4] = cluster.Address("other.sock");
  EXPECT_EQ(Child(command, cluster.Log("second")).Wait(), kExitConflict);
  const std::string log = *ReadFile(cluster.Log("second"));
  EXPECT_THAT(log, HasSubstr("is held by another process"));
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 1) << log;
  command[4] = cluster.Address("c.sock");
  command[2] = cluster.Path("journal-2");
  EXPECT_EQ(Child(command, cluster.Log("third")).Wait(), kExitConflict);
  EXPECT_THAT(*ReadFile(cluster.Log("third")), HasSubstr("in use"));
  EXPECT_EQ(Child({"coordinatord", "--nonsense"}, cluster.Log("fourth")).Wait(), kExitUsage);
}

TEST(ProcessesTest, SigtermEndsEachCleanly) {
  Cluster cluster;
  cluster.Submit();
  cluster.StartWorker(0);
  cluster.WaitForChunks(1);
  struct stat info;
  ASSERT_EQ(stat(cluster.Path("coordinator.json").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_EQ(cluster.worker(0).End(SIGTERM), 0);
  const uint32_t durable = cluster.GetJob().chunks_durable;
  EXPECT_EQ(cluster.coordinator().End(SIGTERM), 0);
  EXPECT_FALSE(PathExists(cluster.Path("coordinator.json")));
  const absl::StatusOr<AdminView> view = ReadJournal(cluster.Path("journal"));
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_GE(view->jobs[0].chunks_durable, durable);
  EXPECT_EQ(view->jobs[0].state, "capturing");
}

TEST(CoordinatorFileTest, OnlyAWholeFileOfThisUserIsTaken) {
  const TempFolder folder = *TempFolder::Create();
  const std::string path = JoinPath(folder.path(), "coordinator.json");
  EXPECT_TRUE(absl::IsNotFound(ReadCoordinatorFile(path).status()));
  const auto write = [&](const std::string& text, int mode) {
    ASSERT_TRUE(WriteFileAtomically(path, text, mode).ok());
    ASSERT_EQ(chmod(path.c_str(), mode), 0);
  };
  const std::string good =
      R"({"address": "ipc:///a", "incarnation": 3, "pid": 7, "cache": "ipc:///b"})";
  write(good, 0600);
  const absl::StatusOr<CoordinatorFile> place = ReadCoordinatorFile(path);
  ASSERT_TRUE(place.ok()) << place.status();
  EXPECT_EQ(place->address, "ipc:///a");
  EXPECT_EQ(place->cache, "ipc:///b");
  EXPECT_EQ(place->incarnation, 3);
  EXPECT_EQ(place->pid, 7);
  write(good, 0666);
  EXPECT_TRUE(absl::IsPermissionDenied(ReadCoordinatorFile(path).status()));
  for (const std::string& bad :
       {std::string(), good.substr(0, 40), std::string("[]"), std::string(R"({"address": 3})"),
        std::string(R"({"address": "a", "incarnation": -1, "pid": 7, "cache": "b"})")}) {
    write(bad, 0600);
    EXPECT_TRUE(absl::IsDataLoss(ReadCoordinatorFile(path).status())) << bad;
  }
}

}  // namespace
}  // namespace stillhouse
