// rank_launcher: runs one program as several ranks of MPI on this machine, and ends as they did.
//
//   rank_launcher --ranks N [--] PROGRAM ARGUMENT...
//
// Each rank is PROGRAM ARGUMENT... --ranks N --exits FOLDER --launcher PID, under mpirun; where
// mpirun would lose how a rank ended, it says so in a file of FOLDER (sharding/rank_exit.h). The
// first SIGTERM, SIGINT or SIGUSR2 reaches the ranks as SIGUSR2, which mpirun passes on, so that
// they can save (SIGTERM would make mpirun kill them within a second); the second one ends them
// all. The ranks die with mpirun, and mpirun with this process.
//
// Exit codes: 2 the command line is wrong, 3 there is no mpirun, else what the ranks say.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "common/command_line.h"
#include "common/file.h"
#include "common/log.h"
#include "common/status.h"
#include "sharding/rank_exit.h"

namespace stillhouse {
namespace {

struct Flags {
  int ranks = 0;
  std::vector<std::string> program;
};

sigset_t AwaitedSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR2, SIGCHLD}) sigaddset(&set, signal);
  return set;
}

// The words of mpirun, as this build was configured with it.
std::vector<std::string> Words(const Flags& flags, const std::string& exits) {
  std::vector<std::string> words = absl::StrSplit(SH_MPIRUN, '|');
  words.insert(words.end(), {"-n", absl::StrCat(flags.ranks)});
  words.insert(words.end(), flags.program.begin(), flags.program.end());
  words.insert(words.end(), {"--ranks", absl::StrCat(flags.ranks), "--exits", exits, "--launcher",
                             absl::StrCat(getpid())});
  return words;
}

absl::StatusOr<pid_t> StartMpirun(const std::vector<std::string>& words) {
  std::vector<char*> argv;
  for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  const int input = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (input < 0) return ErrnoStatus("opening", "/dev/null");
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {  // async-signal-safe calls only
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(kExitTerminated);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    dup2(input, STDIN_FILENO);
    execv(argv[0], argv.data());
    _exit(127);
  }
  const absl::Status status = pid < 0 ? ErrnoStatus("starting", words[0]) : absl::OkStatus();
  close(input);
  SH_RETURN_IF_ERROR(status);
  return pid;
}

// Passes signals on until mpirun is gone.
void Await(pid_t mpirun) {
  const sigset_t signals = AwaitedSignals();
  for (int asked = 0;;) {
    siginfo_t info;
    const int signal = sigwaitinfo(&signals, &info);
    if (signal < 0) continue;  // interrupted
    if (signal == SIGCHLD) {
      if (waitpid(mpirun, nullptr, WNOHANG) == mpirun) return;
      continue;
    }
    kill(mpirun, ++asked == 1 ? SIGUSR2 : SIGTERM);
  }
}

absl::StatusOr<RankExit> Launch(const Flags& flags) {
  const std::vector<std::string> mpirun = absl::StrSplit(SH_MPIRUN, '|');
  if (access(mpirun[0].c_str(), X_OK) != 0) {
    return absl::NotFoundError(
        absl::StrCat(mpirun[0],
                     " is not there: install the MPI that this was built with "
                     "(openmpi-bin), or build again"));
  }
  // OpenMPI asks root for both; containers run as root.
  setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", /*overwrite=*/0);
  setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", /*overwrite=*/0);
  SH_ASSIGN_OR_RETURN(const TempFolder exits, TempFolder::Create("stillhouse-ranks"));
  SH_ASSIGN_OR_RETURN(const pid_t pid, StartMpirun(Words(flags, exits.path())));
  Await(pid);
  return StepExit(exits.path(), flags.ranks);
}

int Main(int argc, char** argv) {
  CommandLine command_line(
      "Runs a program as several ranks of MPI on this machine. Started by `coordinatorctl local`.");
  Flags flags;
  command_line.AddOption("--ranks", &flags.ranks, "how many").Required().Range(1, 1024);
  command_line.AddOption("PROGRAM", &flags.program, "and its arguments, after --").Required();
  if (const auto code = command_line.Parse(argc, argv)) return *code;
  const sigset_t signals = AwaitedSignals();
  sigprocmask(SIG_BLOCK, &signals, nullptr);
  SH_CHECK_OK(InitLog({.program = "rank_launcher"}));
  const absl::StatusOr<RankExit> end = Launch(flags);
  const absl::Status status = end.ok() ? end->status : end.status();
  if (!status.ok()) LogError(status.message());
  return end.ok() ? end->code : ExitCodeFor(status);
}

}  // namespace
}  // namespace stillhouse

int main(int argc, char** argv) { return stillhouse::Main(argc, argv); }
