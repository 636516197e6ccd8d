// coordinatorctl cache …, as a user runs it: on a directory, and against a server.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_split.h"
#include "common/file.h"
#include "common/status.h"
#include "storage/cache_directory.h"
#include "storage/service/cache_admin.h"
#include "tests/storage/job_fixture.h"
#include "transport/ipc_address.h"

extern char** environ;

namespace stillhouse {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class CacheVerbsTest : public testing::Test {
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

  TempFolder folder_ = *TempFolder::Create();
  std::string directory_ = JoinPath(folder_.path(), "cache");
  std::string digest_;
};

TEST_F(CacheVerbsTest, LsNamesObjects) {
  const json listed = json::parse(Run(Dir("ls -o json")).out);
  ASSERT_EQ(listed["objects"].size(), 3u);
  EXPECT_EQ(listed["objects"][1]["name"], "job/test");
  EXPECT_EQ(listed["objects"][0]["bytes"], 1000);
  EXPECT_THAT(Run(Dir("ls job/")).out, HasSubstr("job/test"));
  EXPECT_THAT(Run(Dir("ls job/ -o yaml")).out, HasSubstr("name: job/test"));
}

TEST_F(CacheVerbsTest, StatAndDuCount) {
  const json stat = json::parse(Run(Dir("stat -o json")).out);
  EXPECT_EQ(stat["incarnation"], 1);
  EXPECT_EQ(stat["sections"], 16);
  const json usage = json::parse(Run(Dir("du test -o json")).out);
  EXPECT_EQ(usage["training"]["documents"], 6);
  EXPECT_EQ(usage["held_out"]["documents"], 2);
  EXPECT_EQ(usage["artefact_bytes"], 1000);
  EXPECT_EQ(usage["training"]["bytes"].get<int>() + usage["held_out"]["bytes"].get<int>(),
            stat["record_bytes"].get<int>() + stat["index_bytes"].get<int>());
  EXPECT_THAT(Run(Dir("du test")).out, HasSubstr("held out"));
}

TEST_F(CacheVerbsTest, DigestIsOneLine) {
  EXPECT_EQ(Run(Dir("digest test")).out, digest_ + "\n");
  EXPECT_EQ(json::parse(Run(Dir("digest test -o json")).out)["digest"], digest_);
  const Result unknown = Run(Dir("digest other"));
  EXPECT_EQ(unknown.code, kExitNotFound);
  EXPECT_THAT(unknown.errors, HasSubstr("no job other"));
}

TEST_F(CacheVerbsTest, GetWritesDecodedSections) {
  const json stats = json::parse(Run(Dir("get test --document 0 --section stats")).out);
  EXPECT_EQ(stats["section"], "stats");
  EXPECT_EQ(stats["entropy"].size(), stats["rows"].get<size_t>());
  const json sampled = json::parse(Run(Dir("get test --document 1 --section logits/sampled")).out);
  int draws = 0;
  for (const auto& count : sampled["counts"][0]) draws += count.get<int>();
  EXPECT_EQ(draws, static_cast<int>(kTestDraws));
  const json hidden = json::parse(Run(Dir("get test --document 7 --section hidden/last")).out);
  EXPECT_EQ(hidden["values"][0].size(), 8u);
  const std::string file = JoinPath(folder_.path(), "raw");
  EXPECT_EQ(Run(Dir("get test --document 7 --section hidden/last --raw --out " + file)).code, 0);
  EXPECT_EQ(ReadFile(file)->size(), hidden["rows"].get<size_t>() * 8 * 2);
  const auto device = Run(Dir("get test --document 7 --section stats --out /dev/null"));
  EXPECT_EQ(device.code, kExitFailed);
  EXPECT_THAT(device.errors, HasSubstr("--out /dev/null: not a regular file"));
  EXPECT_THAT(Run(Dir("get --object job/test")).out, HasSubstr("\"format\":1"));
  EXPECT_EQ(Run(Dir("get test --document 99 --section stats")).code, kExitNotFound);
  EXPECT_THAT(Run(Dir("get test --document 0 --section hidden/last")).errors,
              HasSubstr("it has: stats, logits/sampled"));
}

TEST_F(CacheVerbsTest, VerifyFindsAFlippedBit) {
  EXPECT_EQ(Run(Dir("verify")).code, 0);
  const std::string database = JoinPath(directory_, "db");
  const std::vector<std::string> names = *ListFolder(database);
  for (const std::string& name : names) {
    if (!name.ends_with(".sst")) continue;
    std::string bytes = *ReadFile(JoinPath(database, name));
    bytes[100] ^= 1;
    SH_CHECK_OK(WriteFileAtomically(JoinPath(database, name), bytes));
  }
  const Result damaged = Run(Dir("verify -o json"));
  EXPECT_EQ(damaged.code, kExitCorrupt) << damaged.out << damaged.errors;
}

TEST_F(CacheVerbsTest, RepairKeepsWhatIsWholeAndListsWhatIsGone) {
  EXPECT_THAT(Run(Dir("repair")).out, HasSubstr("nothing to repair"));
  const std::string database = JoinPath(directory_, "db");
  const std::vector<std::string> names = *ListFolder(database);
  for (const std::string& name : names) {
    const std::string path = JoinPath(database, name);
    std::string bytes = *ReadFile(path);
    // A bit of the first record of a part.
    const size_t record = name.ends_with(".sst") ? bytes.find("SHrc") : std::string::npos;
    if (record == std::string::npos) continue;
    bytes[record + 70] ^= 1;
    SH_CHECK_OK(WriteFileAtomically(path, bytes));
  }
  const Result found = Run(Dir("verify"));
  EXPECT_EQ(found.code, kExitCorrupt);
  EXPECT_THAT(found.out, HasSubstr(" damaged"));
  const Result dry = Run(Dir("repair --dry-run"));
  EXPECT_THAT(dry.out, HasSubstr("nothing was changed"));
  EXPECT_EQ(Run(Dir("verify")).code, kExitCorrupt);
  const json repaired = json::parse(Run(Dir("repair -o json")).out);
  EXPECT_EQ(repaired["changed"], true);
  ASSERT_EQ(repaired["gone"].size(), 1u);
  EXPECT_THAT(repaired["gone"][0].get<std::string>(), HasSubstr(" of chunk "));
  EXPECT_TRUE(PathExists(repaired["quarantine"].get<std::string>()));
  EXPECT_EQ(Run(Dir("verify")).code, 0);
  EXPECT_EQ(json::parse(Run(Dir("du test -o json")).out)["training"]["missing"], 1);
  EXPECT_EQ(Run("repair --dir " + JoinPath(folder_.path(), "none")).code, kExitNotFound);
}

TEST_F(CacheVerbsTest, ServerAnswersTheSameAndItsDirectoryIsRefused) {
  const std::string address = IpcAddress(JoinPath(folder_.path(), "s"));
  const pid_t server = Spawn({SH_TEST_BUILD_DIR "/libexec/stillhouse/cache_server", "--dir",
                              directory_, "--listen", address},
                             "/dev/null", JoinPath(folder_.path(), "server"));
  const auto ask = [&](const std::string& verb) { return Run(verb + " --server " + address); };
  EXPECT_EQ(ask("digest test").out, digest_ + "\n");
  EXPECT_EQ(json::parse(ask("stat -o json").out)["incarnation"], 2);
  EXPECT_EQ(json::parse(ask("ls -o json").out)["objects"].size(), 3u);
  EXPECT_EQ(json::parse(ask("du test -o json").out)["training"]["missing"], 0);
  EXPECT_EQ(ask("verify").code, 0);
  EXPECT_EQ(ask("get test --document 0 --section stats").out,
            ask("get test --document 0 --section stats").out);
  const Result held = Run(Dir("stat"));
  EXPECT_EQ(held.code, kExitConflict);
  EXPECT_THAT(held.errors, HasSubstr("ask its server with --server"));
  kill(server, SIGTERM);
  int status = 0;
  waitpid(server, &status, 0);
  EXPECT_EQ(Run(Dir("digest test")).out, digest_ + "\n");
}

TEST_F(CacheVerbsTest, NothingThereIsOneLine) {
  const Result none = Run("stat --dir " + JoinPath(folder_.path(), "none"));
  EXPECT_EQ(none.code, kExitNotFound);
  EXPECT_EQ(std::count(none.errors.begin(), none.errors.end(), '\n'), 1) << none.errors;
  EXPECT_EQ(Run("stat --dir a --server b").code, kExitFailed);
}

}  // namespace
}  // namespace stillhouse
