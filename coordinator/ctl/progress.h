// Progress of captures and runs: bars that stay in place on a terminal, plain lines elsewhere.
#pragma once

#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/event_loop.h"
#include "coordinator/admin_view.h"
#include "transport/rpc.h"

namespace stillhouse {

// "capturing 45 %, 121k of 270k tokens, 1.9k tokens/s, 1m 20s left"
std::string ProgressText(const JobView& job);
std::string ProgressText(const RunView& run);

// Owner: a verb. One thread.
class ProgressPrinter {
 public:
  // `terminal`: redraw in place, `columns` wide.
  struct Options {
    std::FILE* out = stderr;
    bool terminal = false;
    int columns = 100;
  };
  // What standard error is; `plain` asks for lines even on a terminal.
  static Options ForStderr(bool plain);
  explicit ProgressPrinter(const Options& options) : options_(options) {}
  ~ProgressPrinter() { Finish(); }

  // Without a terminal a thing is told when its state changes, after another tenth of its way, and
  // every 30 seconds otherwise until it has ended.
  void Show(const AdminView& view, absl::Duration now);
  // A line of its own, above the bars.
  void Say(const std::string& line);
  void Finish();  // leaves the last bars standing

 private:
  struct Told {
    std::string phase;
    int tenth = -1;
    absl::Duration when;
  };
  void ShowLine(const std::string& name, const std::string& state, double share,
                const std::string& text, absl::Duration now);
  void Erase();
  void Draw();

  const Options options_;
  std::map<std::string, Told> told_;
  std::string block_;  // what the terminal shows now
  int block_lines_ = 0;
};

// Asks the coordinator for a view again and again. One thread, that of the rpc's executor.
class ViewPoller {
 public:
  using OnView = std::function<void(absl::StatusOr<AdminView>)>;
  // `rpc` must outlive the poller and its outstanding question. An error of one question is passed
  // on and the next is asked all the same.
  ViewPoller(RpcClient& rpc, std::string name, absl::Duration period, OnView on_view);
  ~ViewPoller();
  void AskNow();  // at the latest after the outstanding question

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace stillhouse
