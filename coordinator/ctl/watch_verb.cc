// watch: progress of jobs and runs until they have ended.
#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "common/command_line.h"
#include "common/event_loop.h"
#include "common/file.h"
#include "common/status.h"
#include "coordinator/ctl/connection.h"
#include "coordinator/ctl/job_views.h"
#include "coordinator/ctl/progress.h"
#include "coordinator/ctl/verb.h"
#include "coordinator/journal.h"

namespace stillhouse {
namespace {

constexpr absl::Duration kPeriod = absl::Milliseconds(500);
// A supervisor starts a coordinator that died again within this time.
constexpr absl::Duration kComesBackWithin = absl::Seconds(20);

struct Options {
  std::string name;
  CoordinatorChoice coordinator;
  bool plain = false;
};

// Follows a coordinator, also to another address, and reads the journal of one that has gone.
class Watcher {
 public:
  explicit Watcher(const Options& options)
      : options_(options), printer_(ProgressPrinter::ForStderr(options.plain)) {}

  absl::StatusOr<int> Run() {
    const absl::StatusOr<std::string> folder = FindStateFolder(options_.coordinator);
    if (!folder.ok()) return folder.status();
    if (options_.coordinator.file.empty()) {  // the one that is alone now may not be so later
      options_.coordinator = {.file = CoordinatorFilePath(*folder), .recipe = ""};
    }
    journal_ = JoinPath(*folder, "journal");
    Look();
    loop_.Run();
    printer_.Finish();
    return result_;
  }

 private:
  // Finds out whether the coordinator lives, and who it is.
  void Look() {
    absl::StatusOr<Coordinator> found = FindCoordinator(options_.coordinator);
    if (found.ok()) {
      gone_since_.reset();
      if (!followed_.has_value() || followed_->pid != found->file.pid ||
          followed_->address != found->file.address) {
        Follow(found->file);
      }
    } else if (!absl::IsUnavailable(found.status())) {
      return End(found.status());
    } else {
      poller_.reset();
      connection_.reset();
      const bool had_one = std::exchange(followed_, std::nullopt).has_value();
      if (had_one) gone_since_ = loop_.clock().Now();
      ReadLastWord(found.status());
    }
    if (!over_) loop_.PostAfter(kPeriod, [this] { Look(); });
  }

  void Follow(const CoordinatorFile& file) {
    followed_ = file;
    poller_.reset();
    absl::StatusOr<std::unique_ptr<Connection>> connection = Connect(loop_, file.address);
    if (!connection.ok()) return End(connection.status());
    connection_ = *std::move(connection);
    poller_ =
        std::make_unique<ViewPoller>(*connection_->rpc, options_.name, kPeriod,
                                     [this](absl::StatusOr<AdminView> view) { OnView(view); });
  }

  void OnView(const absl::StatusOr<AdminView>& view) {
    if (over_) return;
    if (view.ok()) return Show(*view);
    if (!followed_.has_value() || !IsAlive(*followed_)) return;  // Look() sees it too
    End(absl::IsDeadlineExceeded(view.status())
            ? absl::UnavailableError(absl::StrCat("the coordinator (process ", followed_->pid,
                                                  ") does not answer any more"))
            : view.status());
  }

  void ReadLastWord(const absl::Status& why) {
    const absl::StatusOr<AdminView> view = ReadJournal(journal_, options_.name);
    if (view.ok() && AllEnded(*view)) return Show(*view);
    if (absl::IsFailedPrecondition(view.status())) return;  // the next one has it open already
    if (gone_since_.has_value() && loop_.clock().Now() - *gone_since_ < kComesBackWithin) return;
    if (!view.ok())
      return End(absl::IsNotFound(view.status()) && !PathExists(journal_) ? why : view.status());
    printer_.Show(*view, loop_.clock().Now());
    End(absl::UnavailableError(
        absl::StrCat(why.message(), "; what is shown is what the last one wrote down")));
  }

  void Show(const AdminView& view) {
    printer_.Show(view, loop_.clock().Now());
    if (AllEnded(view)) End(EndedCode(view));
  }

  bool AllEnded(const AdminView& view) const {
    // Of a run the job may go on: its other runs want more.
    const bool jobs_count = !IsOfOneRun(view, options_.name);
    return std::none_of(
               view.jobs.begin(), view.jobs.end(),
               [&](const JobView& job) { return jobs_count && job.state == "capturing"; }) &&
           std::all_of(view.runs.begin(), view.runs.end(), HasEnded);
  }

  void End(absl::StatusOr<int> result) {
    if (std::exchange(over_, true)) return;
    result_ = std::move(result);
    loop_.Stop();
  }

  Options options_;
  std::string journal_;
  EventLoop loop_;
  ProgressPrinter printer_;
  std::optional<CoordinatorFile> followed_;
  std::optional<absl::Duration> gone_since_;
  std::unique_ptr<Connection> connection_;
  std::unique_ptr<ViewPoller> poller_;  // gone before its connection
  bool over_ = false;
  absl::StatusOr<int> result_ = kExitOk;
};

}  // namespace

void AddWatchVerb(Command app, ChosenVerb& chosen) {
  auto options = std::make_shared<Options>();
  Command verb = app.AddCommand("watch", "Follow the progress of jobs and runs until they end");
  verb.AddOption("NAME", &options->name, "a job or a run; default: all");
  AddCoordinatorOptions(verb, &options->coordinator);
  verb.AddFlag("--plain", &options->plain, "lines instead of bars, on a terminal too");
  verb.SetFooter(
      "Ends with 0 when all ended well, 1 when something failed, 130 when something was "
      "cancelled.\n"
      "Examples:\n  coordinatorctl watch\n  coordinatorctl watch run/handbook/half --plain\n");
  verb.OnParsed([options, &chosen] { chosen = [options] { return Watcher(*options).Run(); }; });
}

}  // namespace stillhouse
