#include "coordinator/ctl/child.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/ascii.h"
#include "common/file.h"
#include "common/status.h"
#include "common/utf8.h"

namespace stillhouse {
namespace {

// Between fork and exec only async-signal-safe calls are allowed.
[[noreturn]] void BecomeChild(pid_t parent, char* const* argv, int input, int output, int errors,
                              int shared) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(kExitTerminated);  // it died before the line above
  setpgid(0, 0);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  dup2(input, STDIN_FILENO);
  dup2(output, STDOUT_FILENO);
  dup2(errors, STDERR_FILENO);
  if (shared >= 0) fcntl(shared, F_SETFD, 0);  // open across exec
  execv(argv[0], argv);
  const char* reason = strerror(errno);
  [[maybe_unused]] ssize_t written = write(STDERR_FILENO, argv[0], strlen(argv[0]));
  written = write(STDERR_FILENO, ": ", 2);
  written = write(STDERR_FILENO, reason, strlen(reason));
  written = write(STDERR_FILENO, "\n", 1);
  _exit(127);
}

absl::StatusOr<pid_t> Start(const std::vector<std::string>& argv, int output, int errors,
                            int shared) {
  SH_CHECK(!argv.empty());
  const int input = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (input < 0) return ErrnoStatus("opening", "/dev/null");
  std::vector<char*> words;
  for (const std::string& word : argv) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) BecomeChild(parent, words.data(), input, output, errors, shared);
  const absl::Status status = pid < 0 ? ErrnoStatus("starting", argv[0]) : absl::OkStatus();
  close(input);
  if (!status.ok()) return status;
  return pid;
}

}  // namespace

absl::StatusOr<pid_t> StartChild(const std::vector<std::string>& argv,
                                 const std::string& log_path) {
  // A pipe in its place that nobody reads would block here for ever; it is ENXIO this way.
  const int log =
      open(log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0600);
  if (log < 0) return ErrnoStatus("opening", log_path);
  fcntl(log, F_SETFL, O_WRONLY | O_APPEND);  // the child's writes wait, as it expects
  absl::StatusOr<pid_t> pid = Start(argv, log, log, -1);
  close(log);
  return pid;
}

absl::StatusOr<PipedChild> StartPipedChild(const std::vector<std::string>& argv, int shared) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus("making", "a pipe");
  const absl::StatusOr<pid_t> pid = Start(argv, ends[1], STDERR_FILENO, shared);
  close(ends[1]);
  if (pid.ok()) return PipedChild{*pid, ends[0]};
  close(ends[0]);
  return pid.status();
}

absl::StatusOr<std::string> ProgramsFolder() {
  char path[PATH_MAX];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof(path));
  if (size <= 0) return ErrnoStatus("reading", "/proc/self/exe");
  const std::string bin = FolderOf(absl::string_view(path, size));
  return JoinPath(FolderOf(bin), "libexec/stillhouse");
}

std::string ChildExit::Describe() const {
  if (!by_signal) return absl::StrCat("exit code ", code);
  return absl::StrCat("signal ", code, " (", strsignal(code), ")");
}

ChildExit ChildExitFrom(int wait_status) {
  if (WIFSIGNALED(wait_status)) return {.by_signal = true, .code = WTERMSIG(wait_status)};
  return {.by_signal = false, .code = WEXITSTATUS(wait_status)};
}

std::string LastLine(const std::string& path, size_t bytes_max) {
  std::FILE* file = std::fopen(path.c_str(), "rbe");
  if (file == nullptr) return "";
  std::string tail(64 << 10, '\0');
  std::fseek(file, 0, SEEK_END);
  const long size = std::ftell(file);
  std::fseek(file, std::max(0l, size - static_cast<long>(tail.size())), SEEK_SET);
  tail.resize(std::fread(tail.data(), 1, tail.size(), file));
  std::fclose(file);
  absl::StripTrailingAsciiWhitespace(&tail);
  const size_t newline = tail.rfind('\n');
  if (newline != std::string::npos) tail.erase(0, newline + 1);
  return CleanUtf8(tail, bytes_max);
}

}  // namespace stillhouse
