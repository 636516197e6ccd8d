// WorkerProcess: what the mains of teacher_worker and student_trainer have in common: the
// coordinator's file, a loop on a thread of its own, connections to coordinator and cache, signals.
//
// Owner: a main. Threads: Create and the destructor are called on the main thread, Create before
// any other thread exists (signals are blocked from then on, in every thread). Everything else that
// calls back runs on the loop's thread; use it through Post or CallAndWait (common/blocking.h).
//
// The file is read again and again: a coordinator (or cache) that comes back at another address is
// connected to, and calls under way go on there under the same request ids.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <thread>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/event_loop.h"
#include "common/thread_pool.h"
#include "transport/rpc.h"

namespace stillhouse {

// coordinator.json, as coordinatord writes it.
struct CoordinatorFile {
  std::string address;
  uint64_t incarnation = 0;
  int64_t pid = 0;
  std::string cache;  // address of the cache server
};
// NotFound when the file is not there, DataLoss when it is not such a file, PermissionDenied when
// others than its owner, this user, may write it.
absl::StatusOr<CoordinatorFile> ReadCoordinatorFile(const std::string& path);

class WorkerProcess {
 public:
  struct Options {
    std::string coordinator_file;
    absl::Duration file_wait = absl::Seconds(30);  // a coordinator that is just starting
    absl::Duration file_period = absl::Seconds(1);
  };
  // Signals are SIGTERM, SIGINT and SIGUSR2; `on_signal` gets each with its count (1, 2, …), on the
  // loop: drain at the first, leave at once at the second.
  using OnSignal = absl::AnyInvocable<void(int signal, int count)>;
  // Cancelled when a signal came while the file was waited for.
  static absl::StatusOr<std::unique_ptr<WorkerProcess>> Create(const Options& options,
                                                               OnSignal on_signal);
  // Stops the loop: calls outstanding are dropped. Objects that use the connections must be gone by
  // then, or made never to be called again by Stop().
  ~WorkerProcess();
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;

  EventLoop& loop() { return loop_; }
  RpcClient& coordinator();
  RpcClient& cache();
  const std::string& host() const { return host_; }
  int64_t pid() const;
  uint64_t incarnation() const { return incarnation_; }  // random, of this process

  // Ends the loop and waits for its thread. Nothing of the loop's runs after it. Idempotent.
  void Stop();

 private:
  class Connection;
  class Signals;
  explicit WorkerProcess(const Options& options);
  absl::Status Init(OnSignal on_signal);
  void WatchFile();
  void TakeFile(const CoordinatorFile& file);

  const Options options_;
  std::string host_;
  uint64_t incarnation_ = 0;
  EventLoop loop_;
  std::unique_ptr<Signals> signals_;
  std::unique_ptr<Connection> coordinator_;
  std::unique_ptr<Connection> cache_;
  std::unique_ptr<ThreadPool> file_reader_;  // the file may lie on a slow file system
  std::thread thread_;
};

}  // namespace stillhouse
