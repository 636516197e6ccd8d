// cache_server: serves one cache directory on one address.
//
// SIGTERM and SIGINT stop it cleanly: what was acknowledged is durable at any moment, a clean stop
// also flushes. Exit codes: docs/exit-codes.md; 4 when another process holds the directory or the
// address, 7 when the cache is damaged, 1 when the database stops (a full disk, a failing one).
#include <malloc.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "common/command_line.h"
#include "common/event_loop.h"
#include "common/file.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status.h"
#include "storage/async_store.h"
#include "storage/cache_directory.h"
#include "storage/service/cache_server.h"
#include "transport/rpc.h"
#include "transport/zmq_channel.h"

namespace stillhouse {
namespace {

constexpr int kReadThreads = 2;
constexpr uint64_t kBoundedSegments = 16;  // at least, of a cache that is full
// Answers that are on their way still leave after the database stopped.
constexpr absl::Duration kLastAnswers = absl::Milliseconds(200);

// Parts come and go by the megabyte. Memory that goes back to the kernel is zeroed page by page
// when it comes again, which costs more than reading a part does; so it stays here.
void KeepFreedMemory() {
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
}

struct ServerOptions {
  std::string directory;
  std::string address;
  std::string ready_file;
  std::string log_file;
  std::string reads = "auto";
  uint64_t bytes_max = 0;
};

std::optional<KvReads> ReadsOf(const std::string& name) {
  if (name == "mapped") return KvReads::kMapped;
  if (name == "direct") return KvReads::kDirect;
  return std::nullopt;
}

// Why the database stopped by itself, told by one of its threads.
class Stopped {
 public:
  void Set(const absl::Status& error) {
    MutexLock lock(mutex_);
    error_ = error;
  }
  absl::Status Get() {
    MutexLock lock(mutex_);
    return error_;
  }

 private:
  Mutex mutex_;
  absl::Status error_ ABSL_GUARDED_BY(mutex_);
};

// SIGTERM and SIGINT as a descriptor. Called before any other thread begins, which inherits the
// mask.
int BlockSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGINT, SIGTERM}) sigaddset(&signals, signal);
  SH_CHECK(pthread_sigmask(SIG_BLOCK, &signals, nullptr) == 0);
  const int fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  SH_CHECK(fd >= 0, "signalfd failed, errno ", errno);
  return fd;
}

absl::Status WriteReadyFile(const ServerOptions& options, const std::string& address,
                            const CacheIdentity& identity) {
  if (options.ready_file.empty()) return absl::OkStatus();
  const nlohmann::json ready = {{"address", address},
                                {"incarnation", identity.incarnation},
                                {"pid", getpid()},
                                {"store_id", identity.store_id}};
  return WriteFileAtomically(options.ready_file, ready.dump() + "\n", 0600);
}

absl::Status Serve(const ServerOptions& options) {
  const int signals = BlockSignals();
  EventLoop loop;
  Stopped stopped;
  const auto on_error = [&](const absl::Status& error) {
    stopped.Set(error);
    loop.PostAfter(kLastAnswers, [&] { loop.Stop(); });
  };
  const uint64_t segment_bytes =
      options.bytes_max == 0 ? kSegmentBytesMin
                             : std::min(kSegmentBytesMin, options.bytes_max / kBoundedSegments);
  SH_ASSIGN_OR_RETURN(const auto cache, CacheDirectory::Open({.path = options.directory,
                                                              .reads = ReadsOf(options.reads),
                                                              .on_background_error = on_error,
                                                              .segment_bytes = segment_bytes}));
  SH_ASSIGN_OR_RETURN(const auto channel, MakeZmqServerChannel(loop, options.address));
  auto rpc = MakeRpcServer(*channel, loop);
  auto store = MakePoolAsyncStore(cache->sections(), cache->objects(), loop, kReadThreads);
  const auto server = MakeCacheServer(*rpc, *store, cache->sections().identity());
  SH_RETURN_IF_ERROR(WriteReadyFile(options, channel->address(), cache->sections().identity()));
  LogInfo("serving the cache ", options.directory, " at ", channel->address(), ", incarnation ",
          cache->sections().identity().incarnation);
  loop.WatchFd(signals, [&] {
    signalfd_siginfo info;
    while (read(signals, &info, sizeof(info)) == sizeof(info)) loop.Stop();
  });
  loop.Run();
  rpc.reset();    // answers that come now have nowhere to go
  store.reset();  // finishes what was begun
  SH_RETURN_IF_ERROR_AT(stopped.Get(),
                        absl::StrCat("the cache ", options.directory,
                                     " takes no more (what was acknowledged is safe)"));
  SH_RETURN_IF_ERROR(cache->Close());
  LogInfo("stopped");
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  ServerOptions options;
  CommandLine command_line("Serves a cache directory to teachers, students and tools.",
                           "cache_server");
  command_line.AddOption("--dir", &options.directory, "cache directory, made if need be")
      .Required();
  command_line
      .AddOption("--listen", &options.address, "address, as ipc:///run/user/1000/x/cache.sock")
      .Required();
  command_line.AddOption("--ready-file", &options.ready_file,
                         "written as JSON {address, incarnation, pid, store_id} once it listens");
  command_line
      .AddOption("--reads", &options.reads,
                 "auto: mapped if the cache fits into memory when it is opened, else direct")
      .OneOf({"auto", "mapped", "direct"});
  command_line.AddOption("--log-file", &options.log_file, "log lines go here as well");
  command_line
      .AddOption("--bytes-max", &options.bytes_max,
                 "the coordinator keeps the cache below this: segments are made small enough")
      .Range(uint64_t{1} << 20, uint64_t{1} << 60);
  if (const auto code = command_line.Parse(argc, argv, UsageErrors::kOneLine)) return *code;
  KeepFreedMemory();
  absl::Status status = InitLog({.program = "cache_server", .file = options.log_file});
  if (status.ok()) status = Serve(options);
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "cache_server: %s\n",
               WithoutControls(std::string(status.message())).c_str());
  return ExitCodeFor(status);
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }
