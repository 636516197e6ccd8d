// coordinatorctl cache verify | repair.
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "common/command_line.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/thread_pool.h"
#include "coordinator/ctl/cache_session.h"
#include "coordinator/ctl/cache_verbs.h"
#include "coordinator/ctl/output.h"
#include "storage/cache_repair.h"
#include "storage/service/job_scan.h"

namespace stillhouse {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kProblemsKeptMax = 10'000;  // named in all; the rest is counted
constexpr unsigned kThreadsMax = 4;          // beside one another, on one disk

struct TrustOptions {
  CacheChoice choice;
  OutputFormat format = OutputFormat::kTable;
  bool dry_run = false;
};

int Threads() {
  return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1u, kThreadsMax));
}

// Goes through the shares of a cache on a few threads.
class Verifier {
 public:
  Verifier(CacheSession& cache, bool print) : cache_(cache), print_(print) {}

  absl::Status Run(const std::vector<std::string>& shares) {
    shares_ = shares.size();
    {
      ThreadPool pool(Threads());
      for (const std::string& share : shares) {
        pool.Post([this, share] { Go(share); });
      }
    }
    MutexLock lock(mutex_);
    return error_;
  }
  // After Run.
  uint64_t records() const { return all_.records; }
  uint64_t unreferenced() const { return all_.unreferenced; }
  uint64_t problems() const { return problems_; }
  const std::vector<std::string>& named() const { return all_.problems; }

 private:
  void Go(std::string cursor) {
    do {
      {
        MutexLock lock(mutex_);
        if (!error_.ok()) return;
      }
      const auto step = cache_.Verify(cursor);
      MutexLock lock(mutex_);
      if (!step.ok()) {
        error_ = step.status();
        return;
      }
      Add(*step);
      cursor = step->next;
      if (cursor.empty()) ++done_;
      progress_.Show(absl::StrCat("verifying: ", done_ * 100 / std::max<size_t>(shares_, 1), " %, ",
                                  all_.records, " records read, ", problems_, " damaged"));
    } while (!cursor.empty());
  }

  void Add(const VerifyStep& step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    all_.records += step.records;
    all_.unreferenced += step.unreferenced;
    for (const std::string& problem : step.problems) {
      if (++problems_ > kProblemsKeptMax) continue;
      if (print_) {
        progress_.Show("");
        PrintText(absl::StrCat(problem, "\n"));
      } else {
        all_.problems.push_back(problem);
      }
    }
  }

  CacheSession& cache_;
  const bool print_;  // problems at once, instead of keeping them
  Mutex mutex_;       // guards all below while Run runs
  StatusLine progress_;
  size_t shares_ = 0, done_ = 0;
  VerifyStep all_;
  uint64_t problems_ = 0;
  absl::Status error_;
};

absl::StatusOr<int> Verify(const TrustOptions& options) {
  SH_ASSIGN_OR_RETURN(const auto cache, OpenCacheSession(options.choice));
  SH_ASSIGN_OR_RETURN(const std::vector<std::string> shares, cache->VerifyShares());
  const bool table = options.format == OutputFormat::kTable;
  Verifier verifier(*cache, /*print=*/table);
  SH_RETURN_IF_ERROR(verifier.Run(shares));
  if (table) {
    const uint64_t left = verifier.unreferenced();
    PrintText(absl::StrCat(
        verifier.records(), " records read, ", verifier.problems(), " damaged",
        left == 0 ? "" : absl::StrCat(", ", left, " removed or left by a crash (harmless)"), "\n"));
  } else {
    PrintText(Render({{"records", verifier.records()},
                      {"damaged", verifier.problems()},
                      {"unreferenced", verifier.unreferenced()},
                      {"problems", verifier.named()}},
                     options.format));
  }
  return verifier.problems() == 0 ? kExitOk : kExitCorrupt;
}

absl::StatusOr<int> Repair(const TrustOptions& options) {
  const bool table = options.format == OutputFormat::kTable;
  StatusLine progress;
  std::vector<std::string> gone;
  CacheRepairOptions repair;
  repair.path = options.choice.directory;
  repair.dry_run = options.dry_run;
  repair.threads = Threads();
  repair.name_sections = NameSections;
  repair.on_gone = [&](const std::string& line) {
    if (!table) return gone.push_back(line);
    progress.Show("");
    PrintText(absl::StrCat("gone: ", line, "\n"));
  };
  repair.on_progress = [&](const std::string& what) { progress.Show(what); };
  SH_ASSIGN_OR_RETURN(const CacheRepairReport report, RepairCache(repair));
  progress.Show("");
  if (!table) {
    PrintText(Render({{"changed", report.changed && !options.dry_run},
                      {"needed", report.changed},
                      {"records", report.records},
                      {"gone", gone},
                      {"gone_at_least", report.gone_at_least},
                      {"objects_gone", report.objects_gone},
                      {"taken_back", report.taken_back},
                      {"indexed", report.indexed},
                      {"damaged_files", report.damaged_files},
                      {"quarantine", report.quarantine}},
                     options.format));
    return kExitOk;
  }
  for (const std::string& file : report.damaged_files) {
    PrintText(absl::StrCat("damaged: ", file, "\n"));
  }
  if (!report.changed) {
    PrintText(absl::StrCat(report.records, " records, nothing to repair\n"));
    return kExitOk;
  }
  PrintText(absl::StrCat(report.records, " records in service, ", report.indexed,
                         " parts indexed anew, ", report.taken_back, " taken back, ",
                         report.gone_at_least ? "at least " : "", report.gone, " gone",
                         report.gone > 0 ? " (a job captures them again)" : "", "\n"));
  if (report.objects_gone) {
    PrintText(
        "jobs, plans and artefacts may be gone: submit their recipes again before `cache gc`, "
        "which "
        "would take what they captured for what nobody wants\n");
  }
  if (report.gone_at_least) {
    PrintText("more may be gone: the files that would name it are damaged or gone as well\n");
  }
  PrintText(options.dry_run
                ? "nothing was changed (--dry-run)\n"
                : absl::StrCat("what was taken out of service lies in ", report.quarantine, "\n"));
  return kExitOk;
}

}  // namespace

void AddCacheTrustVerbs(Command cache, ChosenVerb& chosen) {
  auto options = std::make_shared<TrustOptions>();
  Command verify = cache.AddCommand("verify", "Read and check everything");
  AddCacheOptions(verify, &options->choice);
  AddOutputOption(verify, &options->format);
  verify.SetFooter(
      "Exit code 7 when something is damaged.\n"
      "Example:\n  coordinatorctl cache verify --dir cache\n");
  verify.OnParsed([options, &chosen] { chosen = [options] { return Verify(*options); }; });

  Command repair =
      cache.AddCommand("repair", "Keep what is whole of a damaged cache, list what is gone");
  repair.AddOption("--dir", &options->choice.directory, "cache directory that no server holds")
      .Required();
  repair.AddFlag("--dry-run", &options->dry_run, "only tell; needs the same time");
  AddOutputOption(repair, &options->format);
  repair.SetFooter(
      "Damaged files are moved to DIR/quarantine, nothing is deleted.\n"
      "Examples:\n  coordinatorctl cache repair --dir cache --dry-run\n"
      "  coordinatorctl cache repair --dir cache\n");
  repair.OnParsed([options, &chosen] { chosen = [options] { return Repair(*options); }; });
}

}  // namespace stillhouse
