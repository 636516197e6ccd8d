#include "tests/system/harness.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "common/clock.h"
#include "common/random.h"
#include "common/status.h"
#include "tests/formats/tiny_model.h"

namespace stillhouse {
namespace {

// A text of plausible words, another for every number.
std::string SomeText(int number) {
  static const char* const kWords[] = {"the ",    "still ",  "warms ", "slowly ",
                                       "until ",  "spirit ", "rises ", "and ",
                                       "copper ", "glows, ", "then ",  "cools. "};
  RandomStream random(/*seed=*/11, number);
  std::string text = absl::StrCat("Note ", number, ": ");
  const uint64_t words = 20 + random.NextBelow(40);
  for (uint64_t i = 0; i < words; ++i) text += kWords[random.NextBelow(std::size(kWords))];
  return text;
}

std::string Student(int number, const Workplace::Options& options) {
  std::string more;
  if (options.ranks > 1) absl::StrAppend(&more, "    ranks: ", options.ranks, "\n");
  if (options.checkpoint_every > 0) {
    absl::StrAppend(&more, "    checkpoint: {every: ", options.checkpoint_every, ", keep: 2}\n");
  }
  return absl::StrCat("  - name: s", number,
                      "\n"
                      "    init: {from: teacher, layers: [",
                      number == 0 ? "0, 1" : "0",
                      "]}\n"
                      "    dtype: fp32\n"
                      "    batch: {tokens: 256, micro_batch: 128, packing: true}\n"
                      "    losses:\n"
                      "      - {kl: {targets: sampled, temperature: 1.0}, weight: 0.9}\n"
                      "      - {cross_entropy: {}, weight: 0.1}\n"
                      "    optimizer: {name: adamw, lr: 1e-3}\n"
                      "    steps: ",
                      options.steps,
                      "\n"
                      "    seed: 7\n",
                      more);
}

}  // namespace

Running::Running(const std::vector<std::string>& argv, const std::vector<std::string>& environment,
                 const std::string& folder, const std::string& name)
    : out_path_(JoinPath(folder, name + ".out")), err_path_(JoinPath(folder, name + ".err")) {
  std::vector<char*> words, variables;
  for (const std::string& word : argv) words.push_back(const_cast<char*>(word.c_str()));
  for (const std::string& variable : environment)
    variables.push_back(const_cast<char*>(variable.c_str()));
  words.push_back(nullptr);
  variables.push_back(nullptr);
  const int out = open(out_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  const int err = open(err_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  SH_CHECK(out >= 0 && err >= 0);
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    execve(words[0], words.data(), variables.data());
    _exit(127);
  }
  SH_CHECK(pid_ > 0);
  close(out);
  close(err);
}

Running::~Running() {
  if (over_) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
}

void Running::Collect(int wait_status) {
  over_ = true;
  finished_.code =
      WIFSIGNALED(wait_status) ? 128 + WTERMSIG(wait_status) : WEXITSTATUS(wait_status);
  finished_.out = *ReadFile(out_path_);
  finished_.err = *ReadFile(err_path_);
}

bool Running::IsOver() {
  int wait_status = 0;
  if (!over_ && waitpid(pid_, &wait_status, WNOHANG) == pid_) Collect(wait_status);
  return over_;
}

Finished Running::Wait() {
  int wait_status = 0;
  if (!over_ && waitpid(pid_, &wait_status, 0) == pid_) Collect(wait_status);
  return finished_;
}

std::string Running::ErrSoFar() const { return ReadFile(err_path_).value_or(""); }

void Running::Signal(int signal) const { kill(pid_, signal); }

Workplace::Workplace(const Options& options) : folder_(*TempFolder::Create("still house")) {
  TinyModelOptions model;
  SH_CHECK_OK(WriteTinyModel(Path("teacher"), model));
  SH_CHECK_OK(MakeFolders(Path("corpus")));
  for (int i = 0; i < options.texts; ++i) {
    SH_CHECK_OK(WriteFileAtomically(Path(absl::StrCat("corpus/", i, ".txt")), SomeText(i)));
  }
  std::string recipe =
      "name: tiny\n"
      "teacher: {model: teacher, dtype: fp32}\n"
      "dataset:\n"
      "  sources: [{path: \"corpus/*.txt\", domain: notes}]\n"
      "  max_tokens: 64\n"
      "  held_out: 0.1\n"
      "  chunk_tokens: 128\n"
      "capture:\n"
      "  logits: {method: sampled, draws: 20}\n"
      "cache: {directory: cache}\n"
      "output: runs\n"
      "students:\n";
  for (int i = 0; i < options.students; ++i) recipe += Student(i, options);
  SH_CHECK_OK(WriteFileAtomically(Path("recipe.yaml"), recipe));
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!absl::StartsWith(*variable, "XDG_")) environment_.emplace_back(*variable);
  }
  environment_.push_back(absl::StrCat("XDG_CACHE_HOME=", Path("home")));
  environment_.push_back("OMP_NUM_THREADS=1");
}

Workplace::~Workplace() {
  if (getenv("SH_KEEP_WORKPLACE") == nullptr) return;
  std::error_code ignored;
  std::filesystem::copy(
      folder_.path(), getenv("SH_KEEP_WORKPLACE"),
      std::filesystem::copy_options::recursive | std::filesystem::copy_options::overwrite_existing,
      ignored);
}

std::string Workplace::Path(const std::string& name) const {
  return JoinPath(folder_.path(), name);
}

std::unique_ptr<Running> Workplace::Start(std::vector<std::string> words) {
  words.insert(words.begin(), JoinPath(SH_TEST_BUILD_DIR, "bin/coordinatorctl"));
  return std::make_unique<Running>(words, environment_, folder_.path(),
                                   absl::StrCat("ctl-", started_++));
}

std::unique_ptr<Running> Workplace::StartProgram(const std::string& program,
                                                 std::vector<std::string> words) {
  words.insert(words.begin(),
               JoinPath(SH_TEST_BUILD_DIR, absl::StrCat("libexec/stillhouse/", program)));
  return std::make_unique<Running>(words, environment_, folder_.path(),
                                   absl::StrCat(program, "-", started_++));
}

Finished Workplace::Ctl(std::vector<std::string> words) { return Start(std::move(words))->Wait(); }

Finished Workplace::CtlOf(const std::string& prefix, std::vector<std::string> words) {
  words.insert(words.begin(), JoinPath(prefix, "bin/coordinatorctl"));
  return Running(words, environment_, folder_.path(), absl::StrCat("ctl-", started_++)).Wait();
}

nlohmann::json Workplace::Get() {
  const Finished got = Ctl({"get", "-o", "json", "--recipe", recipe()});
  if (got.code != 0) return nullptr;
  return nlohmann::json::parse(got.out, nullptr, /*allow_exceptions=*/false);
}

pid_t Workplace::StopTeacherInTheMiddle(Running& local) {
  pid_t teacher = 0;
  const bool stopped = WaitUntil(local, [&] {
    const std::vector<pid_t> teachers = ChildrenOf(local.pid(), "teacher_worker");
    if (teachers.empty()) return false;
    teacher = teachers[0];
    kill(teacher, SIGSTOP);
    const nlohmann::json now = Get();
    const bool known = now.is_object() && !now["jobs"].empty();
    if (known && now["jobs"][0]["chunks_durable"] > 0) {
      EXPECT_LT(now["jobs"][0]["chunks_durable"], now["jobs"][0]["chunks"]) << "it was too quick";
      return true;
    }
    kill(teacher, SIGCONT);
    return false;
  });
  return stopped ? teacher : 0;
}

std::string Workplace::CacheDigest() {
  const Finished got = Ctl({"cache", "digest", "tiny", "--dir", Path("cache")});
  EXPECT_EQ(got.code, 0) << got.err;
  return got.out;
}

std::string Workplace::Logs() const {
  std::string all;
  const std::string folder = Path("runs/.stillhouse/logs");
  const auto names = ListFolder(folder);
  if (!names.ok()) return "(no logs)";
  for (const std::string& name : *names) {
    std::string text = ReadFile(JoinPath(folder, name)).value_or("");
    if (text.size() > 3000) text = text.substr(text.size() - 3000);
    absl::StrAppend(&all, "---- ", name, "\n", text, "\n");
  }
  return all;
}

bool WaitUntil(Running& running, const std::function<bool()>& probe, absl::Duration limit) {
  const absl::Duration end = SystemClock().Now() + limit;
  while (SystemClock().Now() < end) {
    if (probe()) return true;
    if (running.IsOver()) {
      ADD_FAILURE() << "ended before what the test waits for: " << running.Wait().code << "\n"
                    << running.Wait().err;
      return false;
    }
    poll(nullptr, 0, 5);
  }
  ADD_FAILURE() << "what the test waits for did not come";
  return false;
}

namespace {

// The fields of /proc/<pid>/stat from the state on; none when there is no such process. "pid (name)
// state parent …": a name may hold anything, so it ends at the last parenthesis.
std::vector<std::string> StatFields(pid_t pid) {
  const std::string stat = ReadFile(absl::StrCat("/proc/", pid, "/stat")).value_or("");
  const size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos) return {};
  return absl::StrSplit(stat.substr(std::min(stat.size(), name_end + 2)), ' ');
}

}  // namespace

bool IsAlive(pid_t pid) {
  const std::vector<std::string> fields = StatFields(pid);
  return !fields.empty() && fields[0] != "Z" && fields[0] != "X";
}

std::vector<pid_t> ChildrenOf(pid_t parent, const std::string& program) {
  std::vector<pid_t> found;
  const auto names = ListFolder("/proc");
  for (const std::string& name : names.value_or(std::vector<std::string>())) {
    int pid = 0;
    if (!absl::SimpleAtoi(name, &pid)) continue;
    const std::vector<std::string> fields = StatFields(pid);
    if (fields.size() < 2 || fields[1] != absl::StrCat(parent)) continue;
    std::error_code error;
    const auto exe = std::filesystem::read_symlink(absl::StrCat("/proc/", name, "/exe"), error);
    if (program.empty() || (!error && exe.filename() == program)) found.push_back(pid);
  }
  return found;
}

std::vector<pid_t> DescendantsOf(pid_t ancestor, const std::string& program) {
  std::vector<pid_t> found = ChildrenOf(ancestor, program);
  for (const pid_t child : ChildrenOf(ancestor, "")) {
    for (const pid_t below : DescendantsOf(child, program)) found.push_back(below);
  }
  return found;
}

}  // namespace stillhouse
