// Supervisor: starts child processes, starts again what dies, stops them all in bounded time.
//
// Owner: the program that supervises; every method and callback on the thread of `loop`, which must
// be the main thread (a child dies with the thread that started it).
//
//            Start            ready file written
//   [absent] ──1──► [running] ──────2──────► (ready called)
//                     ▲  │ 3 died, restarts left, still wanted
//        5 backoff over│  ▼
//                   [waiting] ──6 no longer wanted──► [ended OK]
//   [running] ──4── exit 0 ─────────────────────────► [ended OK]
//   [running] ──7── a final exit code, or too many deaths ─► [ended with an error naming the log]
//   [running] ──8── Stop or StopAll: SIGTERM, after `grace` SIGKILL ─► [ended OK]
#pragma once

#include <sys/types.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "common/event_loop.h"
#include "coordinator/ctl/child.h"

namespace stillhouse {

// Of one child without a healthy life between; a sixth death means it will not get better.
inline constexpr int kChildRestartsMax = 5;

struct ChildSpec {
  std::string name;  // unique, for people: "teacher-0"
  std::vector<std::string> argv;
  std::string log_path;
  // A JSON file the child writes when it can be spoken to, with its "pid". Empty: none.
  std::string ready_file;
  std::vector<int> final_codes;  // exit codes after which starting again is of no use
};

class Supervisor {
 public:
  struct Options {
    absl::Duration backoff_first = absl::Milliseconds(300);
    absl::Duration backoff_max = absl::Seconds(5);
    absl::Duration ready_poll = absl::Milliseconds(20);
    absl::Duration healthy = absl::Minutes(10);  // a life that long forgives the deaths before it
  };
  // `loop` must outlive the supervisor.
  Supervisor(EventLoop& loop, const Options& options);
  ~Supervisor();  // kills and reaps what still runs
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  struct Callbacks {
    absl::AnyInvocable<void()> ready;   // each time its ready file was written; may be null
    absl::AnyInvocable<bool()> wanted;  // asked before a restart; null: always
    absl::AnyInvocable<void(absl::Status)> ended;  // once; never inside Start
  };
  // REQUIRES: no child of that name was started before.
  void Start(ChildSpec spec, Callbacks callbacks);
  // Ends one child, with SIGKILL after `grace`. No effect on one that has ended.
  void Stop(const std::string& name, absl::Duration grace);
  // Ends all, with SIGKILL after `grace`; `done` is called when none is left. Nothing is started
  // again from here on. Called again, with a shorter grace, it hurries; only the last `done` is
  // then called.
  void StopAll(absl::Duration grace, absl::AnyInvocable<void()> done);
  void KillAll();  // at once; for a second Ctrl-C

  // To be called after every SIGCHLD.
  void Reap();

  pid_t pid(const std::string& name) const;  // 0 when not running
  int restarts(const std::string& name) const;

 private:
  struct Child;
  void Launch(Child& child);
  void PollReady(Child& child);
  void OnExit(Child& child, const ChildExit& exit);
  void Restart(Child& child);
  void End(Child& child, absl::Status status);
  void Terminate(Child& child, absl::Duration grace);
  void MaybeAllStopped();

  EventLoop& loop_;
  const Options options_;
  std::map<std::string, std::unique_ptr<Child>> children_;
  bool stopping_ = false;
  absl::AnyInvocable<void()> all_stopped_;
};

}  // namespace stillhouse
