// student_trainer: trains one student of a submitted recipe, as the coordinator says.
//
// Exit codes: 0 finished (now or before), 2 the command line is wrong, 7 no checkpoint of the run
// or another file of it can be read, 93 no restart will help (a chunk is poisoned, lost or
// excluded, no teacher is alive, or the loss is not finite), 130 cancelled, 143 stopped by a signal
// with its state saved, else ExitCodeFor. `<run folder>/exit.json` says the same.
#include <malloc.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>

#include "common/blocking.h"
#include "common/command_line.h"
#include "common/log.h"
#include "common/status.h"
#include "model/parallel.h"
#include "storage/service/cache_client.h"
#include "student/trainer.h"
#include "worker/process.h"
#include "worker/run_client.h"

namespace stillhouse {
namespace {

struct Flags {
  std::string coordinator;
  std::string run;
  int threads = 0;
};

// Every step allocates and frees the same large tensors. Memory that goes back to the kernel is
// zeroed page by page when it comes again: a third of a step. So it stays here.
void KeepFreedMemory() {
  mallopt(M_MMAP_MAX, 0);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  mallopt(M_TOP_PAD, 64 << 20);
}

absl::Status Train(const Flags& flags, RunStop* stop) {
  std::atomic<bool> stopping = false;
  SH_ASSIGN_OR_RETURN(
      const std::unique_ptr<WorkerProcess> process,
      WorkerProcess::Create({.coordinator_file = flags.coordinator}, [&](int signal, int count) {
        if (count > 1) _exit(kExitTerminated);
        stopping = true;
      }));
  const auto run = MakeRunClient(process->coordinator(), flags.run, process->incarnation());
  const auto cache = MakeCacheClient(process->cache());
  const absl::StatusOr<RunSpec> spec =
      CallAndWait<RunSpec>(process->loop(), [&](auto done) { run->Start(std::move(done)); });
  absl::Status status = spec.status();
  if (spec.ok()) {
    const Services services{process->loop(), *run, *cache, stopping};
    status = TrainStudent(*spec, services);
    *stop = StopOf(status);
  } else if (absl::IsFailedPrecondition(status)) {
    LogInfo(status.message());  // finished before
    *stop = RunStop::kFinished;
    status = absl::OkStatus();
  } else if (absl::IsCancelled(status)) {
    *stop = RunStop::kCancelled;
  }
  process->Stop();  // before what the loop still knows of is destroyed
  return status;
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
  if (const auto code = command_line.Parse(argc, argv)) return *code;
  KeepFreedMemory();
  SH_CHECK_OK(InitLog({.program = "student_trainer"}));
  if (flags.threads > 0) SetComputeThreads(flags.threads);
  RunStop stop = RunStop::kFailed;
  const absl::Status status = Train(flags, &stop);
  if (!status.ok()) LogError(status.message());
  return RunStopExitCode(stop, status);
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }
