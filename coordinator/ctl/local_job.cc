#include "coordinator/ctl/local_job.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "common/log.h"
#include "common/status.h"
#include "coordinator/ctl/estimate.h"
#include "coordinator/ctl/job_views.h"
#include "proto/admin.pb.h"
#include "transport/ipc_address.h"

namespace stillhouse {
namespace {

constexpr absl::Duration kViewPeriod = absl::Milliseconds(500);
// Until SIGKILL. Where no student has much to save, a job is gone within 5 seconds of its
// interruption: workers, a last look, servers.
constexpr absl::Duration kInterruptGrace = absl::Seconds(3);
constexpr absl::Duration kLastViewDeadline = absl::Milliseconds(500);
constexpr absl::Duration kServerGrace = absl::Milliseconds(1500);
// A student writes 12 bytes a parameter. A second signal ends it at once.
constexpr absl::Duration kSaveGrace = absl::Minutes(5);
constexpr absl::Duration kTellAfter = absl::Seconds(1);
// A cache server that is asked to leave flushes what it holds in memory.
constexpr absl::Duration kCloseGrace = absl::Seconds(60);
constexpr absl::Duration kShutdownDeadline = absl::Seconds(5);

// Exit codes after which a server would only fail the same way again: wrong command line, something
// not found, a folder held by another process, not allowed, damaged data, program not there.
const std::vector<int> kServerFinalCodes = {kExitUsage,        kExitNotFound, kExitConflict,
                                            kExitUnauthorised, kExitCorrupt,  127};
const std::vector<int> kWorkerFinalCodes = {kExitUsage, kExitDoNotRequeue, 127};
const std::vector<int> kStudentFinalCodes = {kExitUsage, kExitCorrupt, kExitDoNotRequeue, 127};

constexpr char kLauncher[] = "rank_launcher";  // there in a build with MPI

std::string TeacherName(int number) { return absl::StrCat("teacher-", number); }

}  // namespace

absl::StatusOr<std::unique_ptr<LocalJob>> LocalJob::Create(std::shared_ptr<const PreparedJob> job,
                                                           const LocalOptions& options) {
  for (const char* program :
       {"cache_server", "coordinatord", "teacher_worker", "student_trainer"}) {
    const std::string path = JoinPath(options.programs, program);
    if (access(path.c_str(), X_OK) != 0) {
      return absl::NotFoundError(absl::StrCat(path, " is not there: this build is not complete"));
    }
  }
  for (const StudentRecipe& student : job->recipe.students) {
    if (student.ranks == 1 || access(JoinPath(options.programs, kLauncher).c_str(), X_OK) == 0) {
      continue;
    }
    return absl::UnimplementedError(
        absl::StrCat("student ", student.name, " has ", student.ranks,
                     " ranks, and this build has no MPI: install libopenmpi-dev and build again, "
                     "or write \"ranks: 1\""));
  }
  SH_RETURN_IF_ERROR(MakeFolders(JoinPath(options.state_folder, "logs"), 0700));
  SH_ASSIGN_OR_RETURN(TempFolder sockets, TempFolder::Create());
  return std::unique_ptr<LocalJob>(new LocalJob(std::move(job), options, std::move(sockets)));
}

LocalJob::LocalJob(std::shared_ptr<const PreparedJob> job, const LocalOptions& options,
                   TempFolder sockets)
    : job_(std::move(job)),
      options_(options),
      sockets_(std::move(sockets)),
      supervisor_(loop_, {}),
      signals_(loop_, [this](int signal) { OnSignal(signal); }),
      printer_(options.progress) {
  for (const StudentRecipe& student : job_->recipe.students) {
    students_.push_back({.run = RunName(job_->recipe, student),
                         .child = "student-" + student.name,
                         .ranks = static_cast<int>(student.ranks)});
  }
}

LocalJob::~LocalJob() {
  unlink(CoordinatorFilePath(options_.state_folder).c_str());
  poller_.reset();
}

std::string LocalJob::Program(const std::string& name) const {
  return JoinPath(options_.programs, name);
}

std::string LocalJob::LogOf(const std::string& child) const {
  return JoinPath(options_.state_folder, absl::StrCat("logs/", child, ".log"));
}

void LocalJob::OnSignal(int signal) {
  if (signal == SIGCHLD) {
    supervisor_.Reap();
    return;
  }
  if (closing_) {
    StopServers();
    supervisor_.KillAll();
    return;
  }
  printer_.Say("Stopping; what is stored stays, and the same command goes on from there.");
  result_.signal = signal;
  Close(absl::OkStatus());
}

void LocalJob::StartCache() {
  ChildSpec spec;
  spec.name = "cache";
  spec.ready_file = JoinPath(options_.state_folder, "cache.json");
  spec.log_path = LogOf(spec.name);
  spec.argv = {Program("cache_server"),
               "--dir",
               job_->recipe.cache_directory,
               "--listen",
               IpcAddress(JoinPath(sockets_.path(), "cache.sock")),
               "--ready-file",
               spec.ready_file};
  if (job_->recipe.cache.bytes_max > 0) {
    spec.argv.insert(spec.argv.end(), {"--bytes-max", absl::StrCat(job_->recipe.cache.bytes_max)});
  }
  spec.final_codes = kServerFinalCodes;
  supervisor_.Start(
      std::move(spec),
      {.ready =
           [this] {
             if (supervisor_.pid("coordinator") == 0 && !closing_) {
               StartCoordinator();
             }
           },
       .wanted = nullptr,
       .ended = [this](absl::Status status) { OnServerEnded("cache", std::move(status)); }});
}

void LocalJob::StartCoordinator() {
  if (coordinator_connection_ != nullptr) return;  // the cache server came back; so does it
  ChildSpec spec;
  spec.name = "coordinator";
  spec.ready_file = CoordinatorFilePath(options_.state_folder);
  spec.log_path = LogOf(spec.name);
  spec.argv = {Program("coordinatord"),
               "--journal",
               JoinPath(options_.state_folder, "journal"),
               "--listen",
               IpcAddress(JoinPath(sockets_.path(), "coordinator.sock")),
               "--cache",
               IpcAddress(JoinPath(sockets_.path(), "cache.sock")),
               "--ready-file",
               spec.ready_file};
  spec.final_codes = kServerFinalCodes;
  supervisor_.Start(
      std::move(spec),
      {.ready =
           [this] {
             if (coordinator_connection_ == nullptr) OnServersReady();
           },
       .wanted = nullptr,
       .ended = [this](absl::Status status) { OnServerEnded("coordinator", std::move(status)); }});
}

// T6
void LocalJob::OnServerEnded(const std::string& name, absl::Status status) {
  if (closing_) return;
  if (status.ok()) {  // nothing of ours asked it to
    status = absl::UnavailableError(
        absl::StrCat("the ", name, " was stopped by someone (log: ", LogOf(name), ")"));
  }
  Close(std::move(status));
}

// T1
void LocalJob::OnServersReady() {
  if (closing_) return;
  const auto connect = [this](const char* socket) {
    return Connect(loop_, IpcAddress(JoinPath(sockets_.path(), socket)));
  };
  absl::StatusOr<std::unique_ptr<Connection>> cache = connect("cache.sock");
  absl::StatusOr<std::unique_ptr<Connection>> coordinator = connect("coordinator.sock");
  absl::StatusOr<std::unique_ptr<LiveNote>> note =
      LiveNote::Write(CoordinatorFilePath(options_.state_folder));
  for (const absl::Status& status : {cache.status(), coordinator.status(), note.status()}) {
    if (!status.ok()) {
      Close(status);
      return;
    }
  }
  note_ = *std::move(note);
  cache_connection_ = *std::move(cache);
  coordinator_connection_ = *std::move(coordinator);
  cache_ = MakeCacheClient(*cache_connection_->rpc);
  StoreJob(*cache_, job_, [this](absl::Status status) { OnStored(std::move(status)); });
}

// T2
void LocalJob::OnStored(absl::Status status) {
  if (closing_) return;
  if (!status.ok()) {
    Close(status);
    return;
  }
  cache_->Inventory(
      {.plan = job_->plan->digest(),
       .teacher = job_->teacher,
       .sections = job_->sections,
       .held_out_sections = job_->held_out_sections,
       .chunks = {},
       .first_chunk_artefacts = job_->first_chunk_artefacts},
      [this](absl::StatusOr<std::vector<bool>> complete) { OnInventory(std::move(complete)); });
}

void LocalJob::OnInventory(absl::StatusOr<std::vector<bool>> complete) {
  if (closing_) return;
  if (!complete.ok()) {
    Close(Annotate(complete.status(), "asking the cache what it has"));
    return;
  }
  const auto missing = std::count(complete->begin(), complete->end(), false);
  if (missing == 0) {
    printer_.Say("cache: has all that this recipe wants; no teacher is needed");
  } else {
    printer_.Say(
        absl::StrCat("cache: ", missing, " of ", complete->size(), " chunks are to be captured"));
    for (int i = 0; i < options_.workers; ++i) StartTeacher();
  }
  SubmitJob(*coordinator_connection_->rpc, *job_, NewSubmissionKey(),
            [this](absl::StatusOr<Submitted> answer) { OnSubmitted(std::move(answer)); });
}

// T3
void LocalJob::OnSubmitted(absl::StatusOr<Submitted> answer) {
  if (closing_) return;
  if (!answer.ok()) {
    Close(answer.status());
    return;
  }
  for (const std::string& note : answer->notes) printer_.Say(note);
  if (answer->resumed) printer_.Say(absl::StrCat(job_->JobName(), " goes on where it was"));
  poller_ = std::make_unique<ViewPoller>(
      *coordinator_connection_->rpc, job_->JobName(), kViewPeriod,
      [this](absl::StatusOr<AdminView> view) { OnView(std::move(view)); });
}

void LocalJob::StartTeacher() {
  ChildSpec spec;
  spec.name = TeacherName(teachers_started_++);
  spec.log_path = LogOf(spec.name);
  spec.argv = {Program("teacher_worker"),
               "--coordinator",
               CoordinatorFilePath(options_.state_folder),
               "--model",
               job_->recipe.teacher.model,
               "--dtype",
               job_->recipe.teacher.dtype,
               "--name",
               spec.name,
               "--leave-when-done"};
  if (options_.threads > 0) {
    spec.argv.insert(spec.argv.end(), {"--threads", absl::StrCat(options_.threads)});
  }
  spec.final_codes = kWorkerFinalCodes;
  ++teachers_alive_;
  supervisor_.Start(std::move(spec),
                    {.ready = nullptr,
                     .wanted = [this] { return !CaptureIsOver(); },
                     .ended = [this](absl::Status status) { OnTeacherEnded(std::move(status)); }});
}

void LocalJob::OnTeacherEnded(absl::Status status) {
  --teachers_alive_;
  if (closing_) return WhenWorkersAreGone();
  view_is_fresh_ = false;
  if (poller_ != nullptr) poller_->AskNow();
  if (status.ok()) return;
  printer_.Say(std::string(status.message()));
  teacher_problems_.emplace_back(status.message());
  // With none left that could do the work, waiting would be for ever.
  if (teachers_alive_ == 0) Close(status);
}

void LocalJob::StartStudent(Student& student) {
  student.started = true;
  ChildSpec spec;
  spec.name = student.child;
  spec.log_path = LogOf(spec.name);
  int threads = options_.threads;
  if (student.ranks > 1) {
    spec.argv = {Program(kLauncher), "--ranks", absl::StrCat(student.ranks), "--"};
    if (threads == 0) threads = ThisMachine().cores;
    threads = std::max(1, threads / student.ranks);
  }
  spec.argv.insert(spec.argv.end(),
                   {Program("student_trainer"), "--coordinator",
                    CoordinatorFilePath(options_.state_folder), "--run", student.run});
  if (threads > 0) spec.argv.insert(spec.argv.end(), {"--threads", absl::StrCat(threads)});
  spec.final_codes = kStudentFinalCodes;
  supervisor_.Start(std::move(spec),
                    {.ready = nullptr,
                     // One that has told the coordinator how it ended has nothing more to do.
                     .wanted =
                         [this, run = student.run] {
                           const RunView* view = FindRun(run);
                           return view == nullptr || !HasEnded(*view);
                         },
                     .ended =
                         [this, &student](absl::Status status) {
                           student.over = true;
                           if (closing_) return WhenWorkersAreGone();
                           student.problem = std::string(status.message());
                           student.unreadable = absl::IsDataLoss(status);
                           view_is_fresh_ = false;
                           if (!status.ok()) printer_.Say(student.problem);
                           if (poller_ != nullptr) poller_->AskNow();
                         }});
}

const RunView* LocalJob::FindRun(const std::string& name) const {
  for (const RunView& run : result_.view.runs) {
    if (run.name == name) return &run;
  }
  return nullptr;
}

bool LocalJob::CaptureIsOver() const {
  return !result_.view.jobs.empty() && result_.view.jobs.front().state != "capturing";
}

void LocalJob::StartStudents() {
  int active = 0;
  for (const Student& student : students_) active += student.started && !student.over;
  for (Student& student : students_) {
    if (active >= options_.parallel) return;
    if (student.started || student.over) continue;
    const RunView* run = FindRun(student.run);
    if (run != nullptr && HasEnded(*run)) {
      student.over = true;
      continue;
    }
    StartStudent(student);
    ++active;
  }
}

void LocalJob::OnView(absl::StatusOr<AdminView> view) {
  if (closing_) return;
  if (!view.ok()) {
    LogDebug("asking the coordinator: ", view.status().message());
    return;  // it is being started again, or it has ended and the supervisor says so
  }
  result_.view = *std::move(view);
  printer_.Show(result_.view, loop_.clock().Now());
  StartStudents();
  // A teacher may leave a moment before a chunk turns out to be lost.
  const bool teacher_is_missing = teachers_alive_ == 0 && !CaptureIsOver();
  const bool may_start_another = teachers_started_ < options_.workers + kChildRestartsMax;
  if (view_is_fresh_ && teacher_is_missing && may_start_another) StartTeacher();
  CheckIfOver();
  view_is_fresh_ = true;
}

// T4
void LocalJob::CheckIfOver() {
  const bool students_over = std::all_of(students_.begin(), students_.end(),
                                         [](const Student& student) { return student.over; });
  if (students_over && view_is_fresh_ && !CaptureIsOver() &&
      !std::exchange(told_of_capture_, true)) {
    printer_.Say(
        "No student is left to train; the capture goes on for later ones. Ctrl-C ends it, "
        "and what is stored stays.");
  }
  // The view must be younger than the end of the last process, which reported just before.
  if (!CaptureIsOver() || !students_over || !view_is_fresh_) return;
  CollectProblems();
  Close(absl::OkStatus());
}

void LocalJob::CollectProblems() {
  for (const JobView& job : result_.view.jobs) {
    if (job.state != "captured") {
      result_.problems.push_back(absl::StrCat(job.name, ": ", job.state, " ", job.problem));
    }
  }
  for (const Student& student : students_) {
    const RunView* run = FindRun(student.run);
    const std::string state = run == nullptr ? "unknown" : run->state;
    if (state == "finished") continue;
    result_.unreadable |= student.unreadable;
    result_.problems.push_back(absl::StrCat(
        student.run, ": ", state, student.problem.empty() ? "" : ": ", student.problem,
        student.problem.empty() ? absl::StrCat(" (log: ", LogOf(student.child), ")") : ""));
  }
}

void LocalJob::Close(absl::Status status) {
  if (closing_) return;
  closing_ = true;
  status_ = std::move(status);
  note_.reset();
  if (!status_.ok() || result_.signal != 0 || coordinator_connection_ == nullptr) {
    return StopWorkers();
  }
  pb::ShutdownRequest request;
  coordinator_connection_->rpc->Call(
      "admin.Shutdown", {.body = request.SerializeAsString(), .attachments = {}},
      {.deadline = kShutdownDeadline}, [this](absl::StatusOr<RpcMessage>) { StopServers(); });
}

// T6
void LocalJob::StopWorkers() {
  for (int i = 0; i < teachers_started_; ++i) supervisor_.Stop(TeacherName(i), kInterruptGrace);
  for (const Student& student : students_) {
    supervisor_.Stop(student.child, status_.ok() ? kSaveGrace : kInterruptGrace);
  }
  loop_.PostAfter(kTellAfter, [this] { TellWhoSaves(); });
  WhenWorkersAreGone();
}

void LocalJob::TellWhoSaves() {
  if (workers_gone_ || !status_.ok()) return;
  for (const Student& student : students_) {
    if (!student.started || student.over) continue;
    printer_.Say(absl::StrCat(student.run,
                              " saves what it has trained; another Ctrl-C stops it at once, back "
                              "to its last checkpoint"));
  }
}

void LocalJob::WhenWorkersAreGone() {
  const bool student_at_work =
      std::any_of(students_.begin(), students_.end(),
                  [](const Student& student) { return student.started && !student.over; });
  if (student_at_work || teachers_alive_ > 0 || std::exchange(workers_gone_, true)) return;
  if (coordinator_connection_ == nullptr) return StopServers();
  pb::GetRequest request;
  request.set_name(job_->JobName());
  coordinator_connection_->rpc->Call(
      "admin.Get", {.body = request.SerializeAsString(), .attachments = {}},
      {.deadline = kLastViewDeadline}, [this](absl::StatusOr<RpcMessage> answer) {
        if (answer.ok()) TellWhatIsSaved(ParseAdminView(answer->body));
        StopServers();
      });
}

void LocalJob::TellWhatIsSaved(const absl::StatusOr<AdminView>& view) {
  if (!view.ok()) return;
  for (const RunView& run : view->runs) {
    if (HasEnded(run) || run.last.step == 0) continue;
    const uint64_t saved = SavedStep(run);
    const uint64_t trained = std::max(run.last.step, saved);
    printer_.Say(absl::StrCat(
        run.name, " goes on after step ", saved,
        trained == saved ? ""
                         : absl::StrCat("; the steps from there to ", trained, " were not saved")));
  }
}

// T5, T6
void LocalJob::StopServers() {
  const bool early = !status_.ok() || result_.signal != 0;
  supervisor_.StopAll(early ? kServerGrace : kCloseGrace, [this] { loop_.Stop(); });
}

absl::StatusOr<LocalJob::Result> LocalJob::Run() {
  StartCache();
  loop_.Run();
  printer_.Finish();
  if (!status_.ok()) return status_;
  return std::move(result_);
}

}  // namespace stillhouse
