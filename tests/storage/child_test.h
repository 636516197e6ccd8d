// A part of a test that runs, and dies, in a process of its own: the test program again, with one
// test chosen. (A fork would not do: RocksDB's threads do not survive one.)
#pragma once

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "common/status.h"

extern char** environ;

namespace stillhouse {

// Runs the disabled test `name` with what it is told as its environment's SH_CHILD; its output goes
// to `output`. The exit code, or minus the signal.
inline int RunChildTest(const std::string& name, const std::string& told,
                        const std::string& output) {
  std::vector<std::string> words = {"/proc/self/exe", "--gtest_filter=" + name,
                                    "--gtest_also_run_disabled_tests"};
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  SH_CHECK(setenv("SH_CHILD", told.c_str(), 1) == 0);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  for (const int fd : {STDOUT_FILENO, STDERR_FILENO}) {
    posix_spawn_file_actions_addopen(&actions, fd, output.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                     0600);
  }
  pid_t pid = 0;
  SH_CHECK(posix_spawn(&pid, words[0].c_str(), &actions, nullptr, argv.data(), environ) == 0);
  posix_spawn_file_actions_destroy(&actions);
  int status = 0;
  SH_CHECK(waitpid(pid, &status, 0) == pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

// What the child was told.
inline std::string ChildTold() {
  const char* told = std::getenv("SH_CHILD");
  return told == nullptr ? "" : told;
}

}  // namespace stillhouse
