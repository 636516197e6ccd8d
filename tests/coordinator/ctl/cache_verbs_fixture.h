// A cache with the test's job, and `coordinatorctl cache …` run as a process. Header only.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "common/file.h"
#include "common/status.h"
#include "storage/cache_directory.h"
#include "storage/service/cache_admin.h"
#include "tests/storage/job_fixture.h"
#include "transport/ipc_address.h"

extern char** environ;

namespace stillhouse {

class CacheVerbsFixture : public testing::Test {
 protected:
  void SetUp() override {
    auto cache = *CacheDirectory::Open({.path = directory_, .disk_reserve_bytes = 0});
    FillTestJob(*cache);
    PlanCache plans;
    digest_ =
        CacheAdmin(cache->sections(), cache->objects(), plans).DigestOfJob("test")->digest.Hex();
    SH_CHECK_OK(cache->Close());
  }

  struct Result {
    int code;
    std::string out, errors;
  };
  // `coordinatorctl cache ARGUMENTS`, split at spaces.
  Result Run(const std::string& arguments) {
    const std::string program = SH_TEST_BUILD_DIR "/bin/coordinatorctl";
    std::vector<std::string> words = {program, "cache"};
    for (const absl::string_view word : absl::StrSplit(arguments, ' ')) words.emplace_back(word);
    const std::string out = JoinPath(folder_.path(), "out"),
                      errors = JoinPath(folder_.path(), "err");
    const pid_t pid = Spawn(words, out, errors);
    int status = 0;
    SH_CHECK(waitpid(pid, &status, 0) == pid);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, *ReadFile(out), *ReadFile(errors)};
  }
  static pid_t Spawn(std::vector<std::string> words, const std::string& out,
                     const std::string& errors) {
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 1, out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_addopen(&actions, 2, errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
    pid_t pid = 0;
    SH_CHECK(posix_spawn(&pid, words[0].c_str(), &actions, nullptr, argv.data(), environ) == 0);
    posix_spawn_file_actions_destroy(&actions);
    return pid;
  }
  std::string Dir(const std::string& arguments) { return arguments + " --dir " + directory_; }

  // Starts a server over the directory, for the life of the test.
  std::string Serve(const std::string& directory, const std::string& name) {
    const std::string address = IpcAddress(JoinPath(folder_.path(), name));
    servers_.push_back(Spawn({SH_TEST_BUILD_DIR "/libexec/stillhouse/cache_server", "--dir",
                              directory, "--listen", address},
                             "/dev/null", JoinPath(folder_.path(), name + ".log")));
    return address;
  }
  void StopServers() {
    for (const pid_t server : servers_) kill(server, SIGTERM);
    for (const pid_t server : servers_) waitpid(server, nullptr, 0);
    servers_.clear();
  }
  void TearDown() override { StopServers(); }

  TempFolder folder_ = *TempFolder::Create();
  std::string directory_ = JoinPath(folder_.path(), "cache");
  std::string digest_;

 private:
  std::vector<pid_t> servers_;
};

}  // namespace stillhouse
