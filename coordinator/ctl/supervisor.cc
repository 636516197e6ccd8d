#include "coordinator/ctl/supervisor.h"

#include <errno.h>
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/backoff.h"
#include "common/digest.h"
#include "common/file.h"
#include "common/log.h"
#include "common/status.h"

namespace stillhouse {

struct Supervisor::Child {
  ChildSpec spec;
  Callbacks callbacks;
  Backoff backoff;
  pid_t pid = 0;
  int restarts = 0;  // since its last healthy life
  absl::Duration started;
  bool stop_asked = false;
  bool ended = false;
  TimerId timer = 0;  // of the next restart, the next look for the ready file, or the SIGKILL
};

Supervisor::Supervisor(EventLoop& loop, const Options& options) : loop_(loop), options_(options) {}

Supervisor::~Supervisor() {
  KillAll();
  for (auto& [name, child] : children_) {
    loop_.Cancel(child->timer);
    if (child->pid > 0) waitpid(child->pid, nullptr, 0);
  }
}

void Supervisor::Start(ChildSpec spec, Callbacks callbacks) {
  const std::string name = spec.name;
  SH_CHECK(!children_.contains(name), name, " was started before");
  auto child = std::make_unique<Child>(Child{
      .spec = std::move(spec),
      .callbacks = std::move(callbacks),
      .backoff = Backoff(
          {.first = options_.backoff_first, .max = options_.backoff_max, .seed = Xxh3(name)})});
  Child& started = *child;
  children_[name] = std::move(child);
  if (stopping_) {
    loop_.Post([this, &started] { End(started, absl::OkStatus()); });
    return;
  }
  Launch(started);
}

void Supervisor::Launch(Child& child) {
  child.timer = 0;
  if (!child.spec.ready_file.empty()) {
    // A file of an earlier process must not be taken for this one's.
    RemoveTree(child.spec.ready_file).IgnoreError();
  }
  absl::StatusOr<pid_t> pid = StartChild(child.spec.argv, child.spec.log_path);
  if (!pid.ok()) {
    loop_.Post([this, &child, status = pid.status()] { End(child, status); });
    return;
  }
  child.pid = *pid;
  child.started = loop_.clock().Now();
  LogDebug(child.spec.name, " started, process ", *pid);
  if (!child.spec.ready_file.empty()) PollReady(child);
}

void Supervisor::PollReady(Child& child) {
  child.timer = 0;
  const absl::StatusOr<std::string> text = ReadFile(child.spec.ready_file, 1 << 20);
  if (text.ok()) {
    const auto json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
    if (json.is_object() && json.contains("pid") && json["pid"] == child.pid) {
      if (child.callbacks.ready) child.callbacks.ready();
      return;
    }
  }
  child.timer = loop_.PostAfter(options_.ready_poll, [this, &child] { PollReady(child); });
}

void Supervisor::Reap() {
  for (auto& [name, child] : children_) {
    if (child->pid <= 0) continue;
    int wait_status = 0;
    const pid_t got = waitpid(child->pid, &wait_status, WNOHANG);
    if (got == child->pid) OnExit(*child, ChildExitFrom(wait_status));
  }
}

void Supervisor::OnExit(Child& child, const ChildExit& exit) {
  loop_.Cancel(child.timer);
  child.timer = 0;
  child.pid = 0;
  if (child.stop_asked || (!exit.by_signal && exit.code == kExitOk)) {
    End(child, absl::OkStatus());
    return;
  }
  if (loop_.clock().Now() - child.started >= options_.healthy) {
    child.restarts = 0;
    child.backoff.Reset();
  }
  const std::string& log = child.spec.log_path;
  const bool is_final =
      !exit.by_signal && std::find(child.spec.final_codes.begin(), child.spec.final_codes.end(),
                                   exit.code) != child.spec.final_codes.end();
  if (is_final || child.restarts >= kChildRestartsMax) {
    const std::string last = LastLine(log);
    const bool damaged = is_final && exit.code == kExitCorrupt;
    End(child,
        absl::Status(
            damaged ? absl::StatusCode::kDataLoss : absl::StatusCode::kInternal,
            absl::StrCat(child.spec.name, " ended with ", exit.Describe(),
                         is_final ? "" : absl::StrCat(" for the ", child.restarts + 1, "th time"),
                         last.empty() ? "" : ": ", last, " (log: ", log, ")")));
    return;
  }
  const absl::Duration wait = child.backoff.Next();
  LogWarning(child.spec.name, " ended with ", exit.Describe(),
             "; unless it is over, it starts again (", child.restarts + 1, " of ",
             kChildRestartsMax, "); log: ", log);
  child.timer = loop_.PostAfter(wait, [this, &child] { Restart(child); });
}

void Supervisor::Restart(Child& child) {
  child.timer = 0;
  if (child.callbacks.wanted && !child.callbacks.wanted()) {
    End(child, absl::OkStatus());
    return;
  }
  ++child.restarts;
  Launch(child);
}

void Supervisor::End(Child& child, absl::Status status) {
  if (child.ended) return;
  child.ended = true;
  loop_.Cancel(child.timer);
  child.timer = 0;
  if (child.callbacks.ended) child.callbacks.ended(std::move(status));
  MaybeAllStopped();
}

void Supervisor::Terminate(Child& child, absl::Duration grace) {
  if (child.ended) return;
  loop_.Cancel(child.timer);
  child.timer = 0;
  if (child.pid <= 0) {
    End(child, absl::OkStatus());
    return;
  }
  if (!child.stop_asked) kill(child.pid, SIGTERM);
  child.stop_asked = true;
  child.timer = loop_.PostAfter(grace, [&child] {
    child.timer = 0;
    if (child.pid > 0) kill(child.pid, SIGKILL);
  });
}

void Supervisor::Stop(const std::string& name, absl::Duration grace) {
  const auto it = children_.find(name);
  if (it != children_.end()) Terminate(*it->second, grace);
}

void Supervisor::StopAll(absl::Duration grace, absl::AnyInvocable<void()> done) {
  stopping_ = true;
  all_stopped_ = std::move(done);
  for (auto& [name, child] : children_) Terminate(*child, grace);
  loop_.Post([this] { MaybeAllStopped(); });
}

void Supervisor::MaybeAllStopped() {
  if (!stopping_ || all_stopped_ == nullptr) return;
  for (const auto& [name, child] : children_) {
    if (!child->ended) return;
  }
  std::exchange(all_stopped_, nullptr)();
}

void Supervisor::KillAll() {
  for (auto& [name, child] : children_) {
    if (child->pid > 0) kill(child->pid, SIGKILL);
  }
}

pid_t Supervisor::pid(const std::string& name) const {
  const auto it = children_.find(name);
  return it == children_.end() ? 0 : it->second->pid;
}

int Supervisor::restarts(const std::string& name) const {
  const auto it = children_.find(name);
  return it == children_.end() ? 0 : it->second->restarts;
}

}  // namespace stillhouse
