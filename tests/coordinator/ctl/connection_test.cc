#include "coordinator/ctl/connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>

#include "common/file.h"
#include "common/status.h"

namespace stillhouse {
namespace {

using testing::HasSubstr;

// Each test is a user with a cache folder of its own.
class ConnectionTest : public testing::Test {
 protected:
  ConnectionTest() : folder_(*TempFolder::Create()) {
    setenv("XDG_CACHE_HOME", Path("cache").c_str(), /*overwrite=*/1);
  }
  std::string Path(const std::string& name) { return JoinPath(folder_.path(), name); }
  std::string WriteCoordinator(const std::string& state, int64_t pid, int mode = 0600) {
    SH_CHECK_OK(MakeFolders(Path(state)));
    const std::string path = CoordinatorFilePath(Path(state));
    SH_CHECK_OK(
        WriteFileAtomically(path,
                            absl::StrCat("{\"address\": \"ipc:///x\", \"cache\": \"ipc:///y\", "
                                         "\"incarnation\": 7, \"pid\": ",
                                         pid, "}"),
                            mode));
    return path;
  }
  TempFolder folder_;
};

constexpr int64_t kNobody = 99'999'999;  // above every pid_max

TEST_F(ConnectionTest, FindsTheOnlyLiveOne) {
  EXPECT_EQ(FindCoordinator({}).status().code(), absl::StatusCode::kUnavailable);
  const auto dead = LiveNote::Write(WriteCoordinator("dead", kNobody));
  const auto live = LiveNote::Write(WriteCoordinator("live", getpid()));
  const auto found = FindCoordinator({});
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->path, CoordinatorFilePath(Path("live")));
  EXPECT_EQ(found->file.address, "ipc:///x");
  EXPECT_EQ(found->file.cache, "ipc:///y");
  EXPECT_EQ(found->file.incarnation, 7u);
}

TEST_F(ConnectionTest, AsksWhichWhenThereAreSeveral) {
  const auto a = LiveNote::Write(WriteCoordinator("a", getpid()));
  auto b = LiveNote::Write(WriteCoordinator("b", getpid()));
  const absl::Status status = FindCoordinator({}).status();
  EXPECT_EQ(ExitCodeFor(status), kExitConflict);
  EXPECT_THAT(std::string(status.message()), HasSubstr(Path("a")));
  EXPECT_TRUE(FindCoordinator({.file = CoordinatorFilePath(Path("b")), .recipe = ""}).ok());
  b->reset();
  EXPECT_EQ(FindCoordinator({})->path, CoordinatorFilePath(Path("a")));
}

TEST_F(ConnectionTest, ANoteOutlivesACoordinatorForAsLongAsItsWriterLives) {
  const auto note = LiveNote::Write(WriteCoordinator("a", kNobody));
  EXPECT_EQ(FindCoordinator({}).status().code(), absl::StatusCode::kUnavailable);
  WriteCoordinator("a", getpid());  // started again
  EXPECT_TRUE(FindCoordinator({}).ok());
  std::string path;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(Path("cache"))) {
    if (entry.is_regular_file()) path = entry.path();
  }
  SH_CHECK_OK(WriteFileAtomically(
      path, absl::StrCat(WriteCoordinator("a", kNobody), "\n", kNobody, "\n"), 0600));
  EXPECT_EQ(FindCoordinator({}).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(PathExists(path));
}

TEST_F(ConnectionTest, SaysThatNoneIsAlive) {
  const std::string file = WriteCoordinator("dead", kNobody);
  const absl::Status status = FindCoordinator({.file = file, .recipe = ""}).status();
  EXPECT_EQ(ExitCodeFor(status), kExitUnreachable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no coordinator is alive in"));
}

TEST_F(ConnectionTest, RefusesAFileThatOthersMayWriteOrThatIsNone) {
  EXPECT_EQ(FindCoordinator({.file = WriteCoordinator("open", getpid(), 0666), .recipe = ""})
                .status()
                .code(),
            absl::StatusCode::kPermissionDenied);
  for (const char* text : {"", "{", "[]", "{\"address\": 3}"}) {
    SH_CHECK_OK(WriteFileAtomically(Path("bad.json"), text, 0600));
    const absl::Status status = FindCoordinator({.file = Path("bad.json"), .recipe = ""}).status();
    EXPECT_EQ(ExitCodeFor(status), kExitCorrupt) << text << " " << status;
  }
}

}  // namespace
}  // namespace stillhouse
