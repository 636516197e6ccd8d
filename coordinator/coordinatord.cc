// coordinatord: the coordinator's process: journal, state machine, server.
//
// Exit codes: 0 after SIGTERM or admin.Shutdown, 2 the command line is wrong, 4 another coordinator
// has the journal or the address, 7 the journal is damaged, else ExitCodeFor (docs/exit-codes.md).
#include <errno.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/strings/strip.h"
#include "common/command_line.h"
#include "common/event_loop.h"
#include "common/file.h"
#include "common/log.h"
#include "common/status.h"
#include "common/thread_pool.h"
#include "coordinator/cache_inventory.h"
#include "coordinator/journal.h"
#include "coordinator/server.h"
#include "storage/service/cache_client.h"
#include "storage/service/space_wire.h"
#include "transport/zmq_channel.h"

namespace stillhouse {
namespace {

// What a bounded cache gives up comes mostly together, so segments are rewritten early: at worst
// four bytes are copied for one that is given back.
constexpr double kReleaseLiveShareMax = 0.8;

struct Flags {
  std::string journal;
  std::string listen;
  std::string cache;
  std::string ready_file;
};

// The coordinator's question, asked of a cache server.
class RemoteInventory final : public CacheInventory {
 public:
  RemoteInventory(CacheClient& cache, RpcClient& rpc, Executor& executor)
      : cache_(cache), rpc_(rpc), executor_(executor) {}

  void Ask(const CaptureSetup& capture, std::vector<uint32_t> chunks,
           absl::AnyInvocable<void(absl::StatusOr<std::vector<bool>>)> done) override {
    CacheClient::InventoryRequest request;
    request.plan = capture.plan;
    request.teacher = capture.teacher;
    request.chunks = std::move(chunks);
    request.first_chunk_artefacts = capture.first_chunk_artefacts;
    absl::Status parsed = ParseSpecs(capture.sections, &request.sections);
    parsed.Update(ParseSpecs(capture.held_out_sections, &request.held_out_sections));
    if (!parsed.ok()) {
      executor_.Post([done = std::move(done), parsed]() mutable { done(parsed); });
      return;
    }
    cache_.Inventory(std::move(request), std::move(done));
  }

  void MakeRoom(const std::string& job, std::vector<uint32_t> chunks,
                absl::AnyInvocable<void(absl::StatusOr<uint64_t>)> done) override {
    SpaceRequest request{.what = SpaceRequest::What::kRelease,
                         .job = std::string(absl::StripPrefix(job, "job/")),
                         .chunks = std::move(chunks),
                         .live_share_max = kReleaseLiveShareMax};
    CallSpace(rpc_, request, [done = std::move(done)](absl::StatusOr<SpaceResult> result) mutable {
      if (!result.ok()) return done(result.status());
      done(result->bytes_used);
    });
  }

 private:
  static absl::Status ParseSpecs(const std::vector<std::string>& canonical,
                                 std::vector<SectionSpec>* specs) {
    for (const std::string& text : canonical) {
      SH_ASSIGN_OR_RETURN(const SectionSpec spec, ParseSectionSpec(text));
      specs->push_back(spec);
    }
    return absl::OkStatus();
  }

  CacheClient& cache_;
  RpcClient& rpc_;
  Executor& executor_;
};

// Blocks the signals of this thread, and of all made after it, and hands them to the loop.
class Signals {
 public:
  Signals(EventLoop& loop, absl::AnyInvocable<void(int signal, int count)> on_signal)
      : loop_(loop), on_signal_(std::move(on_signal)) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    SH_CHECK(pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0, "pthread_sigmask");
    fd_ = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    SH_CHECK(fd_ >= 0, "signalfd failed, errno ", errno);
    loop_.WatchFd(fd_, [this] {
      signalfd_siginfo info;
      while (read(fd_, &info, sizeof(info)) == static_cast<ssize_t>(sizeof(info))) {
        on_signal_(static_cast<int>(info.ssi_signo), ++count_);
      }
    });
  }
  ~Signals() {
    loop_.UnwatchFd(fd_);
    close(fd_);
  }

 private:
  EventLoop& loop_;
  absl::AnyInvocable<void(int, int)> on_signal_;
  int fd_ = -1;
  int count_ = 0;
};

absl::Status WriteReadyFile(const Flags& flags, uint64_t incarnation) {
  const nlohmann::json file = {{"address", flags.listen},
                               {"incarnation", incarnation},
                               {"pid", getpid()},
                               {"cache", flags.cache}};
  return WriteFileAtomically(flags.ready_file, file.dump() + "\n", 0600);
}

absl::Status Serve(const Flags& flags) {
  EventLoop loop;
  absl::Status end = absl::OkStatus();
  const auto stop = [&](absl::Status status) {
    end = std::move(status);
    loop.Stop();
  };
  CoordinatorServer* serving = nullptr;
  Signals signals(loop, [&](int signal, int count) {
    if (count > 1) {
      stop(absl::AbortedError(absl::StrCat("signal ", signal, " came again: leaving at once")));
    } else {
      serving->Shutdown();
    }
  });
  SH_ASSIGN_OR_RETURN(Journal::Opened opened,
                      Journal::Open(flags.journal, [&](absl::Status status) {
                        loop.Post([&stop, status = std::move(status)] { stop(status); });
                      }));
  const uint64_t incarnation = opened.state.incarnation;
  SH_ASSIGN_OR_RETURN_AT(std::unique_ptr<ServerChannel> channel,
                         MakeZmqServerChannel(loop, flags.listen), flags.listen);
  SH_ASSIGN_OR_RETURN_AT(std::unique_ptr<ClientChannel> cache_channel,
                         MakeZmqClientChannel(loop, flags.cache), flags.cache);
  {
    ThreadPool journal_thread(1);
    const auto journal = MakeThreadedJournal(*opened.journal, journal_thread, loop);
    const auto rpc = MakeRpcServer(*channel, loop);
    const auto cache_rpc = MakeRpcClient(*cache_channel, loop);
    const auto cache = MakeCacheClient(*cache_rpc);
    RemoteInventory inventory(*cache, *cache_rpc, loop);
    CoordinatorServer server({.cache_address = flags.cache}, std::move(opened.state), *rpc, loop,
                             *journal, inventory, stop);
    serving = &server;
    server.Start();
    SH_RETURN_IF_ERROR(WriteReadyFile(flags, incarnation));
    LogInfo("coordinator, incarnation ", incarnation, ", at ", flags.listen);
    loop.Run();
  }
  // Still under the journal's lock, so this is no successor's file.
  unlink(flags.ready_file.c_str());
  const absl::Status closed = opened.journal->Close();
  return end.ok() ? closed : end;
}

int Main(int argc, char** argv) {
  CommandLine command_line(
      "The coordinator: hands out chunks, keeps the journal, answers coordinatorctl.");
  Flags flags;
  command_line.AddOption("--journal", &flags.journal, "folder of the journal").Required();
  command_line
      .AddOption("--listen", &flags.listen, "address to serve at, for example ipc:///run/x/c.sock")
      .Required();
  command_line.AddOption("--cache", &flags.cache, "address of the cache server").Required();
  command_line
      .AddOption("--ready-file", &flags.ready_file, "written (0600) when serving: coordinator.json")
      .Required();
  if (const auto code = command_line.Parse(argc, argv)) return *code;
  SH_CHECK_OK(InitLog({.program = "coordinatord"}));
  const absl::Status status = Serve(flags);
  if (!status.ok()) LogError(status.message());
  return ExitCodeFor(status);
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }
