#include "transport/ipc_address.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "common/file.h"

namespace stillhouse {
namespace {

TEST(IpcAddressTest, ParsesWhatItMakes) {
  EXPECT_EQ(*ParseIpcAddress(IpcAddress("/a folder/s")), "/a folder/s");
  const std::string longest = "/" + std::string(kSocketPathBytesMax - 1, 'p');
  EXPECT_EQ(*ParseIpcAddress(IpcAddress(longest)), longest);
}

TEST(IpcAddressTest, RefusesOtherAddresses) {
  EXPECT_TRUE(absl::IsUnimplemented(ParseIpcAddress("tcp://127.0.0.1:0").status()));
  for (const std::string address :
       {"", "ipc://", "ipc://*", "ipc://@abstract", "ipc://relative", "inproc://x", "/no/scheme"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseIpcAddress(address).status())) << address;
  }
  const auto too_long = ParseIpcAddress(IpcAddress("/" + std::string(kSocketPathBytesMax, 'p')));
  ASSERT_TRUE(absl::IsInvalidArgument(too_long.status()));
  EXPECT_NE(too_long.status().message().find("108 bytes long; at most 107"),
            absl::string_view::npos);
}

TEST(IpcAddressTest, FolderMustBePrivate) {
  const auto folder = TempFolder::Create();
  ASSERT_TRUE(folder.ok());
  const std::string socket = folder->path() + "/s";
  EXPECT_TRUE(CheckPrivateFolder(socket).ok());
  for (const mode_t mode : {0701, 0710, 0740, 0755, 01777}) {
    ASSERT_EQ(chmod(folder->path().c_str(), mode), 0);
    const absl::Status status = CheckPrivateFolder(socket);
    EXPECT_TRUE(absl::IsPermissionDenied(status)) << mode;
    EXPECT_NE(status.message().find("chmod 700"), absl::string_view::npos);
  }
  ASSERT_EQ(chmod(folder->path().c_str(), 0700), 0);
  EXPECT_TRUE(absl::IsNotFound(CheckPrivateFolder(folder->path() + "/none/s")));
  EXPECT_TRUE(absl::IsPermissionDenied(CheckPrivateFolder("/tmp/s")));
}

}  // namespace
}  // namespace stillhouse
