// The real cache_server: real processes, real signals, a real disk.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/strip.h"
#include "common/blocking.h"
#include "common/event_loop.h"
#include "common/file.h"
#include "common/mutex.h"
#include "common/status.h"
#include "storage/cache_directory.h"
#include "storage/cache_verify.h"
#include "storage/service/cache_client.h"
#include "tests/common/small_disk.h"
#include "tests/storage/section_fixtures.h"
#include "transport/ipc_address.h"
#include "transport/rpc.h"
#include "transport/zmq_channel.h"

extern char** environ;

namespace stillhouse {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

constexpr char kProgram[] = SH_TEST_BUILD_DIR "/libexec/stillhouse/cache_server";
// For what should take milliseconds, and takes many resends under a sanitizer on a busy machine.
constexpr absl::Duration kPatience = absl::Minutes(4);

// One run of cache_server; killed with the object.
class ServerProcess {
 public:
  ServerProcess(const std::string& directory, const std::string& address, const std::string& folder)
      : ready_file_(JoinPath(folder, "ready.json")), error_file_(JoinPath(folder, "stderr.txt")) {
    unlink(ready_file_.c_str());
    std::vector<std::string> arguments = {kProgram, "--dir",        directory,  "--listen",
                                          address,  "--ready-file", ready_file_};
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, error_file_.c_str(),
                                     O_WRONLY | O_CREAT | O_TRUNC, 0600);
    SH_CHECK(posix_spawn(&pid_, kProgram, &actions, nullptr, argv.data(), environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
  }
  ~ServerProcess() {
    if (pid_ != 0) {
      Signal(SIGKILL);
      Wait();
    }
  }
  void Signal(int signal) { kill(pid_, signal); }
  // The exit code, or minus the signal.
  int Wait() {
    int status = 0;
    SH_CHECK(waitpid(pid_, &status, 0) == pid_);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  pid_t pid() const { return pid_; }
  std::string errors() const { return *ReadFile(error_file_); }
  nlohmann::json ready() const { return nlohmann::json::parse(*ReadFile(ready_file_)); }

 private:
  const std::string ready_file_, error_file_;
  pid_t pid_ = 0;
};

// A client on a loop and thread of its own.
class ClientThread {
 public:
  explicit ClientThread(const std::string& address) {
    channel_ = *MakeZmqClientChannel(loop_, address);
    rpc_ = MakeRpcClient(*channel_, loop_);
    client_ = MakeCacheClient(*rpc_, {.deadline = kPatience});
    thread_ = std::thread([this] { loop_.Run(); });
  }
  ~ClientThread() {
    loop_.Stop();
    thread_.join();
  }
  absl::StatusOr<StoreAck> Put(const PutItem& item) {
    return CallAndWait<StoreAck>(
        loop_, [&](auto done) { client_->Put(item.parts, item.provenance, std::move(done)); });
  }
  absl::StatusOr<std::vector<std::optional<Part>>> Get(const std::vector<PartKey>& keys) {
    return CallAndWait<std::vector<std::optional<Part>>>(
        loop_, [&](auto done) { client_->Get(keys, std::move(done)); });
  }
  EventLoop& loop() { return loop_; }
  CacheClient& client() { return *client_; }

 private:
  EventLoop loop_;
  std::unique_ptr<ClientChannel> channel_;
  std::unique_ptr<RpcClient> rpc_;
  std::unique_ptr<CacheClient> client_;
  std::thread thread_;
};

// Every third one is large enough to be ingested.
PutItem ItemOf(int d) {
  const SectionSpec spec = d % 3 == 0 ? HiddenSpec(4096) : SampledSpec();
  return {TestParts(spec, TestDocument(d), d % 3 == 0 ? 300 : 20, d), TestProvenance(spec)};
}

class CacheProcessTest : public testing::Test {
 protected:
  std::unique_ptr<ServerProcess> Start() {
    return std::make_unique<ServerProcess>(directory_, address_, folder_.path());
  }
  // Reads what lies on the disk when no server runs.
  void ExpectHolds(const std::vector<int>& documents, uint64_t incarnation) {
    const auto cache = CacheDirectory::Open({.path = directory_, .read_only = true});
    ASSERT_TRUE(cache.ok()) << cache.status();
    EXPECT_EQ((*cache)->sections().identity().incarnation, incarnation);
    for (const int d : documents) {
      for (const Part& part : ItemOf(d).parts) {
        const auto found = (*cache)->sections().Get({part.key}, 1 << 30);
        ASSERT_TRUE(found.ok()) << found.status();
        ASSERT_TRUE((*found)[0].has_value()) << "document " << d << " was acknowledged and is gone";
        EXPECT_EQ((*found)[0]->payload, part.payload);
      }
    }
    std::string next;
    do {
      const auto step = VerifyCache((*cache)->sections(), (*cache)->objects(), next);
      ASSERT_TRUE(step.ok()) << step.status();
      EXPECT_THAT(step->problems, IsEmpty());
      next = step->next;
    } while (!next.empty());
  }

  TempFolder folder_ = *TempFolder::Create();
  std::string directory_ = JoinPath(folder_.path(), "cache");
  std::string address_ = IpcAddress(JoinPath(folder_.path(), "s"));
};

TEST_F(CacheProcessTest, EverythingAcknowledgedSurvivesKill) {
  constexpr int kRounds = 4, kPutsOfARound = 12;
  Mutex mutex;
  CondVar changed;
  std::vector<int> acknowledged;  // guarded by mutex
  uint64_t last_incarnation = 0;  // guarded by mutex
  ClientThread client(address_);  // ends before what its callbacks use
  for (int round = 0; round < kRounds; ++round) {
    auto server = Start();
    client.loop().Post([&, round] {
      for (int i = 0; i < kPutsOfARound; ++i) {
        const int d = round * kPutsOfARound + i;
        PutItem item = ItemOf(d);
        client.client().Put(item.parts, item.provenance, [&, d](absl::StatusOr<StoreAck> ack) {
          SH_CHECK_OK(ack);
          MutexLock lock(mutex);
          acknowledged.push_back(d);
          last_incarnation = ack->incarnation;
          changed.NotifyAll();
        });
      }
    });
    // What the server before left unanswered comes again, so at least so many are answered.
    const size_t enough = round * kPutsOfARound + 2 + 2 * round;
    std::vector<int> known;
    {
      MutexLock lock(mutex);
      while (acknowledged.size() < enough) ASSERT_TRUE(changed.WaitFor(mutex, kPatience));
      known = acknowledged;
    }
    server->Signal(SIGKILL);
    EXPECT_EQ(server->Wait(), -SIGKILL);
    ExpectHolds(known, round + 1);
  }
  const auto server = Start();
  MutexLock lock(mutex);
  while (acknowledged.size() < kRounds * kPutsOfARound) {
    ASSERT_TRUE(changed.WaitFor(mutex, kPatience));
  }
  EXPECT_LE(last_incarnation, static_cast<uint64_t>(kRounds + 1));
}

TEST_F(CacheProcessTest, ReadyFileSaysWhereAndWho) {
  const auto server = Start();
  ClientThread client(address_);
  const StoreAck ack = *client.Put(ItemOf(1));
  const nlohmann::json ready = server->ready();
  EXPECT_EQ(ready["address"], address_);
  EXPECT_EQ(ready["pid"], server->pid());
  EXPECT_EQ(ready["incarnation"], ack.incarnation);
  EXPECT_EQ(ready["store_id"], ack.store_id);
}

TEST_F(CacheProcessTest, TerminateStopsCleanlyAndFlushes) {
  auto server = Start();
  {
    ClientThread client(address_);
    SH_CHECK_OK(client.Put(ItemOf(0)));
    SH_CHECK_OK(client.Put(ItemOf(1)));
  }
  server->Signal(SIGTERM);
  EXPECT_EQ(server->Wait(), 0) << server->errors();
  ExpectHolds({0, 1}, 1);
  const std::vector<std::string> names = *ListFolder(directory_);
  EXPECT_THAT(names, testing::ElementsAre("STILLHOUSE.LOCK", "db"));
}

TEST_F(CacheProcessTest, SecondProcessOnOneDirectoryIsRefusedInOneLine) {
  const auto server = Start();
  ClientThread client(address_);
  SH_CHECK_OK(client.Put(ItemOf(1)));
  const TempFolder other = *TempFolder::Create();
  ServerProcess second(directory_, IpcAddress(JoinPath(other.path(), "s")), other.path());
  EXPECT_EQ(second.Wait(), kExitConflict);
  const std::string errors = second.errors();
  EXPECT_THAT(errors, HasSubstr(directory_));
  EXPECT_THAT(errors, HasSubstr("held by another process"));
  EXPECT_EQ(std::count(errors.begin(), errors.end(), '\n'), 1) << errors;
  SH_CHECK_OK(client.Put(ItemOf(2)));  // the first is not disturbed
}

TEST_F(CacheProcessTest, AddressInUseIsRefusedInOneLine) {
  const auto server = Start();
  ClientThread client(address_);
  SH_CHECK_OK(client.Put(ItemOf(1)));
  const TempFolder other = *TempFolder::Create();
  ServerProcess second(JoinPath(other.path(), "cache"), address_, other.path());
  EXPECT_EQ(second.Wait(), kExitConflict);
  const std::string errors = second.errors();
  EXPECT_THAT(errors, HasSubstr("in use"));
  EXPECT_EQ(std::count(errors.begin(), errors.end(), '\n'), 1) << errors;
}

TEST_F(CacheProcessTest, DamagedCacheIsRefusedWithItsCode) {
  auto server = Start();
  {
    ClientThread client(address_);
    SH_CHECK_OK(client.Put(ItemOf(1)));
  }
  server->Signal(SIGTERM);
  ASSERT_EQ(server->Wait(), 0);
  const std::string manifest = JoinPath(
      directory_,
      "db/" + std::string(absl::StripSuffix(*ReadFile(JoinPath(directory_, "db/CURRENT")), "\n")));
  std::string bytes = *ReadFile(manifest);
  bytes[bytes.size() / 2] ^= 1;
  SH_CHECK_OK(WriteFileAtomically(manifest, bytes));
  server = Start();
  EXPECT_EQ(server->Wait(), kExitCorrupt) << server->errors();
  EXPECT_THAT(server->errors(), HasSubstr("is damaged"));
}

TEST_F(CacheProcessTest, FullDiskIsRefusedAndPassesWhenThereIsRoomAgain) {
  SmallDisk disk(directory_, "size=225m,mode=700");
  if (!disk.mounted()) GTEST_SKIP() << "this process may not mount a tmpfs";
  auto server = Start();
  ClientThread client(address_);
  std::vector<int> acknowledged;
  absl::Status refused;
  for (int d = 0; d < 60 && refused.ok(); ++d) {
    const auto ack = client.Put(ItemOf(d));
    if (ack.ok()) acknowledged.push_back(d);
    refused = ack.status();
  }
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("is full"));
  EXPECT_FALSE(acknowledged.empty());
  disk.Resize("size=400m");
  SH_CHECK_OK(client.Put(ItemOf(100)));
  acknowledged.push_back(100);
  server->Signal(SIGKILL);
  server->Wait();
  ExpectHolds(acknowledged, 1);
}

// The same without our own check before each write: what the database itself does on a full disk.
TEST_F(CacheProcessTest, DiskThatFillsUnderTheDatabaseLosesNothingAcknowledged) {
  SmallDisk disk(directory_, "size=24m,mode=700");
  if (!disk.mounted()) GTEST_SKIP() << "this process may not mount a tmpfs";
  absl::Status told;
  std::vector<int> acknowledged;
  {
    auto cache = *CacheDirectory::Open(
        {.path = directory_,
         .disk_reserve_bytes = 0,
         .on_background_error = [&told](const absl::Status& error) { told = error; }});
    absl::Status refused;
    for (int d = 0; d < 60 && refused.ok(); ++d) {
      refused = cache->sections().Put({ItemOf(d)}).status();
      if (refused.ok()) acknowledged.push_back(d);
    }
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted) << refused;
    // A database that cannot write its log stops for good and says so: a server then ends.
    for (int d = 1000; d < 1060 && told.ok(); ++d) {
      const auto parts = TestParts(SectionSpec{}, TestDocument(d), 100'000, d);
      cache->sections().Put({PutItem{parts, TestProvenance({})}}).status().IgnoreError();
    }
    EXPECT_EQ(told.code(), absl::StatusCode::kResourceExhausted) << told;
  }
  EXPECT_FALSE(acknowledged.empty());
  disk.Resize("size=400m");
  ExpectHolds(acknowledged, 1);
}

}  // namespace
}  // namespace stillhouse
