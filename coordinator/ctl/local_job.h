// LocalJob: one recipe on one machine, its processes supervised as our children.
//
// Owner: the verb `local`, on the main thread, which Run() occupies. Event-driven inside.
// Durability: all state is the children's (journal, cache, checkpoints), so a job that was
// interrupted anywhere goes on when it is run again.
//
//   [starting] ─1 cache and coordinator ready─► [storing] ─2 plan stored, cache asked what it has─►
//   [submitting] ─3 accepted─► [running] ─4 captured and every run ended─► [closing] ─5 all gone─►
//   [over]
//        any ──6 signal, or a server that will not stay alive──► [closing]
//   [closing] ends teachers and students first, then the servers: a student that is interrupted
//   commits a last checkpoint, for which it needs the coordinator.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/event_loop.h"
#include "common/file.h"
#include "coordinator/admin_view.h"
#include "coordinator/ctl/connection.h"
#include "coordinator/ctl/prepare_job.h"
#include "coordinator/ctl/progress.h"
#include "coordinator/ctl/signals.h"
#include "coordinator/ctl/supervisor.h"

namespace stillhouse {

struct LocalOptions {
  int parallel = 1;          // students at a time
  int workers = 1;           // teacher workers
  int threads = 0;           // of each teacher worker and student (all its ranks); 0: all cores
  std::string state_folder;  // locked by the caller
  std::string programs;      // folder of the sibling programs
  ProgressPrinter::Options progress;
};

class LocalJob {
 public:
  static absl::StatusOr<std::unique_ptr<LocalJob>> Create(std::shared_ptr<const PreparedJob> job,
                                                          const LocalOptions& options);
  ~LocalJob();

  struct Result {
    AdminView view;                     // the last one seen
    std::vector<std::string> problems;  // empty: everything ended well
    bool unreadable = false;            // a run's files are among the problems
    int signal = 0;                     // that ended it early
  };
  // REQUIRES: called once.
  absl::StatusOr<Result> Run();

 private:
  LocalJob(std::shared_ptr<const PreparedJob> job, const LocalOptions& options, TempFolder sockets);

  struct Student {
    std::string run, child;
    int ranks = 1;
    bool started = false, over = false;
    std::string problem;
    bool unreadable = false;
  };

  std::string Program(const std::string& name) const;
  std::string LogOf(const std::string& child) const;
  void OnSignal(int signal);
  void StartCache();
  void StartCoordinator();
  void OnServerEnded(const std::string& name, absl::Status status);
  void OnServersReady();
  void OnStored(absl::Status status);
  void OnInventory(absl::StatusOr<std::vector<bool>> complete);
  void OnSubmitted(absl::StatusOr<Submitted> answer);
  void StartTeacher();
  void OnTeacherEnded(absl::Status status);
  void StartStudents();
  void StartStudent(Student& student);
  void OnView(absl::StatusOr<AdminView> view);
  bool CaptureIsOver() const;
  const RunView* FindRun(const std::string& name) const;
  void CheckIfOver();
  void CollectProblems();
  void Close(absl::Status status);
  void StopWorkers();
  void TellWhoSaves();
  void WhenWorkersAreGone();
  void TellWhatIsSaved(const absl::StatusOr<AdminView>& view);
  void StopServers();

  // Constant after construction.
  const std::shared_ptr<const PreparedJob> job_;
  const LocalOptions options_;
  const TempFolder sockets_;

  EventLoop loop_;
  Supervisor supervisor_;
  SignalWatch signals_;  // reaps the supervisor's children
  ProgressPrinter printer_;
  std::unique_ptr<LiveNote> note_;
  // Each client before what it speaks through.
  std::unique_ptr<Connection> cache_connection_, coordinator_connection_;
  std::unique_ptr<CacheClient> cache_;
  std::unique_ptr<ViewPoller> poller_;

  std::vector<Student> students_;
  int teachers_started_ = 0, teachers_alive_ = 0;
  std::vector<std::string> teacher_problems_;
  bool closing_ = false, workers_gone_ = false;
  bool told_of_capture_ = false;
  bool view_is_fresh_ = false;  // came after the last process ended
  absl::Status status_;
  Result result_;
};

}  // namespace stillhouse
