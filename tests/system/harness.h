// A workplace for tests of whole programs: a tiny teacher, tiny texts, a recipe, and the programs
// as a user would start them.
#pragma once

#include <sys/types.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/file.h"

namespace stillhouse {

struct Finished {
  int code = -1;  // exit code, or 128 + the signal
  std::string out, err;
};

// One program that runs beside the test. Killed with the object.
class Running {
 public:
  Running(const std::vector<std::string>& argv, const std::vector<std::string>& environment,
          const std::string& folder, const std::string& name);
  ~Running();
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

  pid_t pid() const { return pid_; }
  bool IsOver();    // without waiting
  Finished Wait();  // for its end
  void Signal(int signal) const;
  std::string ErrSoFar() const;

 private:
  void Collect(int wait_status);
  std::string out_path_, err_path_;
  pid_t pid_ = -1;
  bool over_ = false;
  Finished finished_;
};

class Workplace {
 public:
  struct Options {
    int texts = 24;
    int students = 2;
    int steps = 4;
    int ranks = 1;             // of each student
    int checkpoint_every = 0;  // steps; 0: at the end only
  };
  explicit Workplace(const Options& options);
  // Stops the test with all logs if a file "keep" is asked for by SH_KEEP_WORKPLACE in the
  // environment.
  ~Workplace();

  std::string Path(const std::string& name) const;
  std::string recipe() const { return Path("recipe.yaml"); }
  // bin/coordinatorctl with these words.
  std::unique_ptr<Running> Start(std::vector<std::string> words);
  Finished Ctl(std::vector<std::string> words);
  // The same of another installation: the folder above its bin/.
  Finished CtlOf(const std::string& prefix, std::vector<std::string> words);
  // A program of libexec.
  std::unique_ptr<Running> StartProgram(const std::string& program, std::vector<std::string> words);
  std::unique_ptr<Running> StartLocal() {
    return Start({"local", recipe(), "--plain", "-o", "json"});
  }
  Finished Local() { return StartLocal()->Wait(); }

  // `coordinatorctl get -o json`, or null while nobody answers.
  nlohmann::json Get();
  // Waits until some chunks are stored and others not, and leaves the teacher worker of `local`
  // stopped (SIGSTOP). Its process, or 0 when it did not come to that. It is let run for a few
  // milliseconds at a time, so that the question is always asked in time.
  pid_t StopTeacherInTheMiddle(Running& local);
  // The digest of the job's cache, with no server running.
  std::string CacheDigest();
  std::string Logs() const;  // the tails of all logs, for a failure's message

 private:
  TempFolder folder_;
  std::vector<std::string> environment_;
  int started_ = 0;
};

// Calls `probe` until it is true. Fails the test after `limit`, or at once when `running` is over.
bool WaitUntil(Running& running, const std::function<bool()>& probe,
               absl::Duration limit = absl::Seconds(60));

// False also for one that has ended and that nobody has waited for yet.
bool IsAlive(pid_t pid);

// Processes whose parent is `parent` and whose program has this name, or any where it is empty.
std::vector<pid_t> ChildrenOf(pid_t parent, const std::string& program);
// Those below it at any depth.
std::vector<pid_t> DescendantsOf(pid_t ancestor, const std::string& program);

}  // namespace stillhouse
