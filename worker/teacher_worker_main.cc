// teacher_worker: computes chunks of teacher signals for as long as the coordinator has some.
//
// Exit codes: 0 when drained, 2 the command line is wrong, 143 at a second signal, else
// ExitCodeFor.
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "common/command_line.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status.h"
#include "formats/model_files.h"
#include "model/decoder.h"
#include "model/parallel.h"
#include "storage/service/cache_client.h"
#include "teacher_pool/artefacts.h"
#include "teacher_pool/pool_worker.h"
#include "teacher_pool/teacher_backend.h"
#include "worker/agent.h"
#include "worker/process.h"

namespace stillhouse {
namespace {

struct Flags {
  std::string coordinator;
  std::string model;
  std::string dtype = "bf16";
  std::string name;
  int threads = 0;
  bool leave_when_done = false;
};

// Stands for the PoolWorker while the model is being loaded. Loop thread only.
class LoadingWorker final : public ChunkWorker {
 public:
  void Loaded(ChunkWorker& worker) { worker_ = &worker; }
  uint64_t Steps() const override { return worker_ == nullptr ? 0 : worker_->Steps(); }
  void Start(const ChunkGrant& grant, absl::AnyInvocable<void(uint64_t)> progress,
             absl::AnyInvocable<void(absl::StatusOr<ChunkResult>)> done) override {
    SH_CHECK(worker_ != nullptr, "a chunk was leased to a worker that is still loading");
    worker_->Start(grant, std::move(progress), std::move(done));
  }
  void Cancel() override {
    if (worker_ != nullptr) worker_->Cancel();
  }

 private:
  ChunkWorker* worker_ = nullptr;
};

// The agent's last word, waited for by the main thread.
class Ending {
 public:
  void Set(absl::Status status) {
    MutexLock lock(mutex_);
    status_ = std::move(status);
    changed_.NotifyAll();
  }
  absl::Status Wait() {
    MutexLock lock(mutex_);
    while (!status_.has_value()) changed_.Wait(mutex_);
    return *status_;
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mutex_);
};

struct LoadedTeacher {
  std::unique_ptr<TeacherBackend> backend;
  PoolWorkerOptions options;
};

constexpr uint64_t kLoggedBytesMin = 1 << 30;
int TenthsOf(const LoadProgress& progress) {
  return static_cast<int>(progress.bytes_done / (progress.bytes_total / 10 + 1));
}

absl::StatusOr<LoadedTeacher> LoadTeacher(const ModelFiles& files, const Digest& teacher,
                                          at::ScalarType dtype) {
  LoadedTeacher loaded;
  int tenths = 0;  // of the bytes; what loads in one line's time needs no line
  SH_ASSIGN_OR_RETURN_AT(DecoderWeights weights,
                         LoadDecoder(files, dtype,
                                     [&](const LoadProgress& progress) {
                                       const int now = TenthsOf(progress);
                                       if (now == tenths || progress.bytes_total < kLoggedBytesMin)
                                         return;
                                       tenths = now;
                                       LogInfo("loaded ", now, "0 % of ", progress.bytes_total,
                                               " bytes");
                                     }),
                         files.path);
  loaded.backend = MakeLocalBackend(std::move(weights));
  loaded.options.teacher = teacher;
  loaded.options.vocabulary = static_cast<uint32_t>(files.tokenizer->size());
  loaded.options.tokenizer_fingerprint = files.tokenizer->Fingerprint();
  SH_ASSIGN_OR_RETURN(loaded.options.artefacts, MakeArtefacts(*loaded.backend, *files.tokenizer));
  return loaded;
}

absl::Status Work(const Flags& flags) {
  Agent* agent_running = nullptr;  // loop thread only
  SH_ASSIGN_OR_RETURN(
      const std::unique_ptr<WorkerProcess> process,
      WorkerProcess::Create({.coordinator_file = flags.coordinator}, [&](int signal, int count) {
        if (count > 1) _exit(kExitTerminated);
        if (agent_running != nullptr) agent_running->Drain();
      }));
  if (flags.threads > 0) SetComputeThreads(flags.threads);
  SH_ASSIGN_OR_RETURN(const ModelFiles files, OpenModelFiles(flags.model));
  if (files.tokenizer == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(flags.model, ": has no tokenizer"));
  }
  SH_ASSIGN_OR_RETURN(const Digest teacher, TeacherFingerprint(files, UserCacheFolder()));
  const at::ScalarType dtype = flags.dtype == "fp32" ? at::kFloat : at::kBFloat16;

  EventLoop& loop = process->loop();
  const auto cache = MakeCacheClient(process->cache());
  LoadingWorker worker;
  Ending ending;
  const auto agent = MakeAgent({.worker = flags.name,
                                .host = process->host(),
                                .pid = process->pid(),
                                .incarnation = process->incarnation(),
                                .teacher = teacher,
                                .teacher_dtype = flags.dtype,
                                .producer_class = LocalProducerClass(dtype),
                                .leave_when_done = flags.leave_when_done,
                                .loading = true},
                               process->coordinator(), loop, worker,
                               [&](absl::Status status) { ending.Set(std::move(status)); });
  loop.Post([&] {
    agent_running = agent.get();
    agent->Start();
  });
  LogInfo("loading ", flags.model, " (teacher ", teacher.ShortHex(), ", ", flags.dtype, ")");
  absl::StatusOr<LoadedTeacher> loaded = LoadTeacher(files, teacher, dtype);
  absl::Status status = loaded.status();
  std::unique_ptr<PoolWorker> pool;
  if (status.ok()) {
    auto made = PoolWorker::Create(std::move(loaded->options), *loaded->backend, *cache, loop);
    status = made.status();
    if (made.ok()) pool = *std::move(made);
  }
  if (status.ok()) {
    loop.Post([&] {
      worker.Loaded(*pool);
      agent->Ready();
    });
    status = ending.Wait();
  }
  process->Stop();  // before what the loop still knows of is destroyed
  return status;
}

int Main(int argc, char** argv) {
  CommandLine command_line(
      "Computes what students learn from, with one teacher, for a coordinator.");
  Flags flags;
  command_line.AddOption("--coordinator", &flags.coordinator, "the coordinator's file").Required();
  command_line
      .AddOption("--model", &flags.model, "the teacher: a GGUF file or a Hugging Face folder")
      .Required();
  command_line.AddOption("--dtype", &flags.dtype, "to compute in")
      .OneOf({"bf16", "fp32"})
      .ShowDefault();
  command_line.AddOption("--name", &flags.name, "unique name, for example teacher-0").Required();
  command_line
      .AddOption("--threads", &flags.threads,
                 "threads to compute with; as many as cores if not given")
      .Range(1, 1024);
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
