#include "coordinator/ctl/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "coordinator/ctl/job_views.h"
#include "coordinator/ctl/output.h"
#include "proto/admin.pb.h"

namespace stillhouse {
namespace {

constexpr absl::Duration kTellAtLeast = absl::Seconds(30);
constexpr int kBarWidth = 20;
constexpr absl::Duration kViewDeadline = absl::Seconds(10);  // of one question

double Share(uint64_t done, uint64_t all) {
  return all == 0 ? 0 : static_cast<double>(done) / static_cast<double>(all);
}

// Nothing new is to be told until the state changes.
bool StandsStill(absl::string_view state) {
  for (const absl::string_view one : {"queued", "captured", "finished", "failed", "cancelled"}) {
    if (state == one) return true;
  }
  return false;
}

// At most `columns` bytes, cut at a code point.
std::string Cut(std::string text, int columns) {
  size_t at = std::min<size_t>(text.size(), std::max(columns, 10));
  while (at > 0 && at < text.size() && (text[at] & 0xC0) == 0x80) --at;
  text.resize(at);
  return text;
}

}  // namespace

std::string ProgressText(const JobView& job) {
  std::vector<std::string> parts;
  parts.push_back(absl::StrFormat("%s %d %%", job.state,
                                  static_cast<int>(100 * Share(job.rows_durable, job.rows))));
  parts.push_back(absl::StrCat(HumanCount(static_cast<double>(job.rows_durable)), " of ",
                               HumanCount(static_cast<double>(job.rows)), " tokens"));
  if (job.state == "capturing") {
    if (job.rows_per_s > 0) parts.push_back(absl::StrCat(HumanCount(job.rows_per_s), " tokens/s"));
    if (job.seconds_left > 0) {
      parts.push_back(HumanDuration(absl::Seconds(job.seconds_left)) + " left");
    }
  }
  if (!job.problem.empty()) parts.push_back(job.problem);
  return WithoutControls(absl::StrJoin(parts, ", "));
}

std::string ProgressText(const RunView& run) {
  std::vector<std::string> parts = {run.state};
  if (run.last.steps > 0)
    parts.push_back(absl::StrCat("step ", run.last.step, " of ", run.last.steps));
  if (HasLoss(run)) parts.push_back(absl::StrFormat("loss %.3f", run.last.loss));
  if (!HasEnded(run)) {
    if (run.last.rows_per_s > 0) parts.push_back(HumanCount(run.last.rows_per_s) + " tokens/s");
    if (SecondsLeft(run) > 0)
      parts.push_back(HumanDuration(absl::Seconds(SecondsLeft(run))) + " left");
  } else if (run.final.has_value()) {
    parts.push_back(absl::StrFormat("perplexity %.2f, KL %.4f, agreement %.1f %%",
                                    run.final->perplexity, run.final->kl,
                                    100 * run.final->agreement));
  }
  if (!run.last.message.empty()) parts.push_back(run.last.message);
  return WithoutControls(absl::StrJoin(parts, ", "));
}

ProgressPrinter::Options ProgressPrinter::ForStderr(bool plain) {
  Options options;
  winsize size{};
  options.terminal = !plain && isatty(STDERR_FILENO) == 1;
  if (options.terminal && ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    options.columns = size.ws_col;
  }
  return options;
}

void ProgressPrinter::ShowLine(const std::string& name, const std::string& state, double share,
                               const std::string& text, absl::Duration now) {
  if (options_.terminal) {
    std::string line = absl::StrCat(name, "  ", text);
    // Where both do not fit, the words matter more than the bar.
    const std::string bar = ProgressBar(share, kBarWidth) + "  ";
    if (bar.size() + line.size() < static_cast<size_t>(options_.columns)) line.insert(0, bar);
    absl::StrAppend(&block_, Cut(std::move(line), options_.columns - 1), "\n");
    ++block_lines_;
    return;
  }
  Told& told = told_[name];
  const int tenth = static_cast<int>(share * 10);
  // A run that catches up with its teacher waits and trains in turn: that is one state here.
  const std::string phase = state == "waiting" ? "training" : state;
  if (told.phase == phase &&
      (StandsStill(phase) || (tenth <= told.tenth && now - told.when < kTellAtLeast))) {
    return;
  }
  told = {phase, tenth, now};
  std::fprintf(options_.out, "%s: %s\n", name.c_str(), text.c_str());
}

void ProgressPrinter::Show(const AdminView& view, absl::Duration now) {
  Erase();
  block_.clear();
  for (const JobView& job : view.jobs) {
    ShowLine(job.name, job.state, Share(job.rows_durable, job.rows), ProgressText(job), now);
  }
  for (const RunView& run : view.runs) {
    ShowLine(run.name, run.state, Share(run.last.step, run.last.steps), ProgressText(run), now);
  }
  Draw();
}

void ProgressPrinter::Erase() {
  if (block_lines_ > 0) std::fprintf(options_.out, "\033[%dA\033[J", block_lines_);
  block_lines_ = 0;
}

void ProgressPrinter::Draw() {
  std::fputs(block_.c_str(), options_.out);
  block_lines_ = static_cast<int>(std::count(block_.begin(), block_.end(), '\n'));
  std::fflush(options_.out);
}

void ProgressPrinter::Say(const std::string& line) {
  Erase();
  std::fprintf(options_.out, "%s\n", WithoutControls(line).c_str());
  Draw();
}

void ProgressPrinter::Finish() {
  block_.clear();
  block_lines_ = 0;
}

struct ViewPoller::State {
  RpcClient* rpc = nullptr;  // null once the poller is gone
  std::string name;
  absl::Duration period;
  OnView on_view;
  bool asking = false, again = false;
  TimerId timer = 0;
};

namespace {

template <typename State>
void Ask(const std::shared_ptr<State>& state) {
  if (state->rpc == nullptr) return;
  if (state->asking) {
    state->again = true;
    return;
  }
  state->rpc->executor().Cancel(std::exchange(state->timer, 0));
  state->asking = true;
  pb::GetRequest request;
  request.set_name(state->name);
  state->rpc->Call("admin.Get", {.body = request.SerializeAsString(), .attachments = {}},
                   {.deadline = kViewDeadline}, [state](absl::StatusOr<RpcMessage> answer) {
                     state->asking = false;
                     if (state->rpc == nullptr) return;
                     absl::Duration wait = state->period;
                     if (std::exchange(state->again, false)) wait = absl::ZeroDuration();
                     state->timer = state->rpc->executor().PostAfter(wait, [state] { Ask(state); });
                     if (answer.ok()) {
                       state->on_view(ParseAdminView(answer->body));
                     } else {
                       state->on_view(answer.status());
                     }
                   });
}

}  // namespace

ViewPoller::ViewPoller(RpcClient& rpc, std::string name, absl::Duration period, OnView on_view)
    : state_(std::make_shared<State>(State{
          .rpc = &rpc, .name = std::move(name), .period = period, .on_view = std::move(on_view)})) {
  Ask(state_);
}

ViewPoller::~ViewPoller() {
  state_->rpc->executor().Cancel(state_->timer);
  state_->rpc = nullptr;
}

void ViewPoller::AskNow() { Ask(state_); }

}  // namespace stillhouse
