#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "sharding/mpi_world.h"

namespace stillhouse {
namespace {

TEST(MpiAbsentTest, SaysWhatToInstall) {
  const auto world = MpiWorld::Init();
  EXPECT_EQ(world.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(world.status().message()), testing::HasSubstr("libopenmpi-dev"));
}

}  // namespace
}  // namespace stillhouse
