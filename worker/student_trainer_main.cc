// student_trainer: trains one student of a submitted recipe, as the coordinator says.
//
// Exit codes: 0 finished (now or before), 2 the command line is wrong, 7 no checkpoint of the run
// or another file of it can be read, 93 no restart will help (a chunk is poisoned, lost or
// excluded, no teacher is alive, or the loss is not finite), 130 cancelled, 143 stopped by a signal
// with its state saved, else ExitCodeFor. `<run folder>/exit.json` says the same.
#include <malloc.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>

#include "absl/strings/numbers.h"
#include "common/blocking.h"
#include "common/command_line.h"
#include "common/log.h"
#include "common/status.h"
#include "model/parallel.h"
#include "sharding/mpi_world.h"
#include "sharding/rank_exit.h"
#include "sharding/rank_values.h"
#include "storage/service/cache_client.h"
#include "student/rank_group.h"
#include "student/trainer.h"
#include "worker/process.h"
#include "worker/run_client.h"

namespace stillhouse {
namespace {

struct Flags {
  std::string coordinator;
  std::string run;
  int threads = 0;
  int ranks = 1;
  std::string exits;
  int launcher = 0;
};

// How long the last rank may take to leave once all are done.
constexpr absl::Duration kCloseDeadline = absl::Minutes(1);

// Every step allocates and frees the same large tensors. Memory that goes back to the kernel is
// zeroed page by page when it comes again: a third of a step. So it stays here.
void KeepFreedMemory() {
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 64 << 20);
}

// Every rank starts the run as the process that the first rank is.
absl::StatusOr<RunSpec> StartRun(WorkerProcess& process, const Flags& flags, RankGroup& group,
                                 std::unique_ptr<RunClient>* run) {
  const auto start = [&](uint64_t incarnation) {
    *run = MakeRunClient(process.coordinator(), flags.run, incarnation);
    return CallAndWait<RunSpec>(process.loop(), [&](auto done) { (*run)->Start(std::move(done)); });
  };
  absl::StatusOr<RunSpec> spec = absl::UnknownError("not started");
  absl::StatusOr<std::string> incarnation = std::string();
  if (group.leads()) {
    spec = start(process.incarnation());
    incarnation = absl::StrCat(process.incarnation());
    if (!spec.ok()) incarnation = spec.status();
  }
  SH_ASSIGN_OR_RETURN(const std::string said, group.FromLeader(incarnation));
  if (!group.leads()) {
    uint64_t number = 0;
    SH_CHECK(absl::SimpleAtoi(said, &number), said);
    spec = start(number);
  }
  SH_RETURN_IF_ERROR(group.Agree(spec.status()));
  return spec;
}

absl::Status Train(WorkerProcess& process, const Flags& flags, Communicator* communicator,
                   const std::atomic<bool>& stopping, RunStop* stop) {
  RankGroup group(communicator);
  std::unique_ptr<RunClient> run;
  const auto cache = MakeCacheClient(process.cache());
  const absl::StatusOr<RunSpec> spec = StartRun(process, flags, group, &run);
  absl::Status status = spec.status();
  if (spec.ok()) {
    const Services services{process.loop(), *run, *cache, stopping, communicator};
    status = TrainStudent(*spec, services);
    *stop = StopOf(status);
  } else if (absl::IsFailedPrecondition(status)) {
    LogInfo(status.message());  // finished before
    *stop = RunStop::kFinished;
    status = absl::OkStatus();
  } else if (absl::IsCancelled(status)) {
    *stop = RunStop::kCancelled;
  }
  process.Stop();  // before what the loop still knows of is destroyed
  return status;
}

absl::StatusOr<std::unique_ptr<WorkerProcess>> StartProcess(const Flags& flags,
                                                            std::atomic<bool>& stopping) {
  return WorkerProcess::Create({.coordinator_file = flags.coordinator},
                               [&stopping](int signal, int count) {
                                 if (count > 1) _exit(kExitTerminated);
                                 stopping = true;
                               });
}

int TrainAlone(const Flags& flags) {
  std::atomic<bool> stopping = false;
  RunStop stop = RunStop::kFailed;
  const auto process = StartProcess(flags, stopping);
  const absl::Status status =
      process.ok() ? Train(**process, flags, nullptr, stopping, &stop) : process.status();
  if (!status.ok()) LogError(status.message());
  return RunStopExitCode(stop, status);
}

// One of the processes of an mpirun.
int TrainAsRank(const Flags& flags) {
  auto& stopping =
      *new std::atomic<bool>(false);  // a process that leaves by _exit keeps all it has
  // Before MPI, whose threads must not take the signals.
  auto process = StartProcess(flags, stopping);
  absl::StatusOr<std::unique_ptr<MpiWorld>> world = MpiWorld::Init();
  const int rank = world.ok() ? (*world)->rank() : 0;
  const auto leave = [&](const absl::Status& status, RunStop stop) {
    LogError(status.message());
    LeaveWithRankExit(flags.exits, rank, {status, RunStopExitCode(stop, status)});
  };
  if (!process.ok()) leave(process.status(), RunStop::kFailed);
  if (!world.ok()) leave(world.status(), RunStop::kFailed);
  if ((*world)->size() != flags.ranks) {
    leave(absl::InvalidArgumentError(
              absl::StrCat("MPI says ", (*world)->size(), " ranks, not ", flags.ranks)),
          RunStop::kFailed);
  }
  auto communicator = (*world)->MakeCommunicator({});
  if (!communicator.ok()) leave(communicator.status(), RunStop::kRankLost);
  RunStop stop = RunStop::kFailed;
  const absl::Status status = Train(**process, flags, communicator->get(), stopping, &stop);
  const RankGroup group(communicator->get());
  if (!status.ok() && !group.HasAgreedOn(status)) leave(status, stop);
  // All ranks are here, or will be.
  if (!status.ok() && rank == 0) LogError(status.message());
  const absl::Status met = AwaitPatiently((*communicator)->Barrier());
  if (!met.ok()) leave(met, RunStop::kRankLost);
  const absl::Status written =
      WriteRankExit(flags.exits, rank, {status, RunStopExitCode(stop, status)});
  if (!written.ok()) LogError(written.message());
  const absl::Status closed = (*world)->Close(kCloseDeadline);
  if (closed.ok()) return written.ok() ? kExitOk : kExitFailed;
  LogWarning(closed.message());
  _exit(kExitFailed);
}

int Main(int argc, char** argv) {
  CommandLine command_line(
      "Trains one student of a submitted recipe. Started by `coordinatorctl local`.");
  Flags flags;
  command_line.AddOption("--coordinator", &flags.coordinator, "the coordinator's file").Required();
  command_line.AddOption("--run", &flags.run, "the run, for example run/handbook/half").Required();
  command_line
      .AddOption("--threads", &flags.threads, "for computing; 0: as many as there are cores")
      .Range(0, 1024);
  command_line
      .AddOption("--ranks", &flags.ranks, "of the run, of which this is one; by rank_launcher")
      .Range(1, 65'536);
  command_line.AddOption("--exits", &flags.exits, "folder where ranks say how they ended");
  command_line.AddOption("--launcher", &flags.launcher, "process without which no rank goes on");
  if (const auto code = command_line.Parse(argc, argv)) return *code;
  KeepFreedMemory();
  SH_CHECK_OK(InitLog({.program = "student_trainer"}));
  if (flags.threads > 0) SetComputeThreads(flags.threads);
  if (flags.exits.empty()) return TrainAlone(flags);
  // mpirun may be killed without a chance to end its ranks; while this program was being loaded,
  // before it could ask to die with it, too.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (flags.launcher > 0 && kill(flags.launcher, 0) != 0) return kExitTerminated;
  return TrainAsRank(flags);
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }
