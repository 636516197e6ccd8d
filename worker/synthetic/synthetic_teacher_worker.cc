// synthetic_teacher_worker: a teacher worker without a model, for tests and scale trials.
//
// Exit codes: 0 when drained, 2 the command line is wrong, 143 at a second signal, else
// ExitCodeFor.
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>

#include "common/command_line.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status.h"
#include "storage/service/cache_client.h"
#include "worker/agent.h"
#include "worker/process.h"
#include "worker/synthetic/synthetic_teacher.h"

namespace stillhouse {
namespace {

struct Flags {
  std::string coordinator;
  std::string name;
  std::string teacher;
  std::string dtype = "bf16";
  int64_t batch_ms = 0;
  bool leave_when_done = false;
};

absl::Status Work(const Flags& flags) {
  SH_ASSIGN_OR_RETURN_AT(const Digest teacher, DigestFromHex(flags.teacher), "--teacher");
  Agent* agent_running = nullptr;  // loop thread only
  SH_ASSIGN_OR_RETURN(
      const std::unique_ptr<WorkerProcess> process,
      WorkerProcess::Create({.coordinator_file = flags.coordinator}, [&](int signal, int count) {
        if (count > 1) _exit(kExitTerminated);
        if (agent_running != nullptr) agent_running->Drain();
      }));
  EventLoop& loop = process->loop();
  const auto cache = MakeCacheClient(process->cache());
  const auto worker = MakeSyntheticTeacher(
      *cache, loop, {.teacher = teacher, .batch_time = absl::Milliseconds(flags.batch_ms)});
  Mutex mutex;
  CondVar ended;
  std::optional<absl::Status> status;
  const auto agent = MakeAgent({.worker = flags.name,
                                .host = process->host(),
                                .pid = process->pid(),
                                .incarnation = process->incarnation(),
                                .teacher = teacher,
                                .teacher_dtype = flags.dtype,
                                .producer_class = "synthetic",
                                .leave_when_done = flags.leave_when_done},
                               process->coordinator(), loop, *worker, [&](absl::Status drained) {
                                 MutexLock lock(mutex);
                                 status = std::move(drained);
                                 ended.NotifyAll();
                               });
  loop.Post([&] {
    agent_running = agent.get();
    agent->Start();
  });
  {
    MutexLock lock(mutex);
    while (!status.has_value()) ended.Wait(mutex);
  }
  process->Stop();  // before what the loop still knows of is destroyed
  return *status;
}

int Main(int argc, char** argv) {
  CommandLine command_line(
      "A teacher worker that computes made-up rows: for tests and scale trials.");
  Flags flags;
  command_line.AddOption("--coordinator", &flags.coordinator, "the coordinator's file").Required();
  command_line.AddOption("--name", &flags.name, "unique name, for example teacher-0").Required();
  command_line.AddOption("--teacher", &flags.teacher, "fingerprint it answers for, 64 digits")
      .Required();
  command_line.AddOption("--dtype", &flags.dtype, "of the teacher it stands for").ShowDefault();
  command_line.AddOption("--batch-ms", &flags.batch_ms, "time that each batch is made to take")
      .Range(0, 3'600'000);
  command_line.AddFlag("--leave-when-done", &flags.leave_when_done,
                       "end when no job needs the teacher");
  if (const auto code = command_line.Parse(argc, argv)) return *code;
  SH_CHECK_OK(InitLog({.program = flags.name}));
  const absl::Status status = Work(flags);
  if (!status.ok()) LogError(status.message());
  return ExitCodeFor(status);
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }
